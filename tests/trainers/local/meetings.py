"""Small networks that fire, spikes to feed them, and what their hidden synapses see."""

from __future__ import annotations

import torch
from torch.nn import functional

from spikecl.networks import SpikingConvNet, SpikingMlp, SpikingRecurrentNet, initialise
from spikecl.neurons import LIF
from spikecl.seeds import Seeds

CLASSES = 3
NEURON = LIF(beta=0.8, v_th=0.6)
SPECS = {
    "dense": (SpikingMlp(hidden=(5, 4), neuron=NEURON, bias=True), (6,)),
    "recurrent": (SpikingRecurrentNet(hidden=(5,), neuron=NEURON), (6,)),
    "conv": (
        SpikingConvNet(channels=(3,), kernel=2, pool_size=1, hidden=(5,), neuron=NEURON),
        (3, 4),
    ),
}


def build(spec, shape, *, seed=1, scale=2.0):
    """A network in float64, its initial weights ``scale`` times as large."""
    network = spec.build(shape, CLASSES).double()
    initialise(network, Seeds(seed))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(scale)
    return network


def trains(*shape, p=0.4, seed=0):
    """Spikes, each with probability ``p``."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) < p).double()


def sides(network, x, variable="spikes"):
    """By hidden synapse, without taps: (pre [T, B, places, n], post [T, B, places, m])."""
    recorded = network.record(x, variables=["spikes", "current"])
    found, source = {}, x
    for name, layer in list(network.layers.items())[:-1]:
        fired, wanted = (torch.as_tensor(recorded[name][v]) for v in ("spikes", variable))
        if hasattr(layer.synapse, "geometry"):
            pre = _patches(source[:, :, None], layer.synapse.geometry)
            post = wanted.flatten(3).transpose(2, 3)
        else:
            pre, post = source.flatten(2)[:, :, None], wanted.flatten(2)[:, :, None]
        found[name] = pre, post
        if layer.recurrent is not None:
            late = fired.flatten(2)[:, :, None]
            found[f"{name}.recurrent"] = torch.cat([torch.zeros_like(late[:1]), late[:-1]]), post
        source = fired
    return found


def _patches(maps, geometry):
    kernel, stride, padding = geometry
    cut = functional.unfold(maps.flatten(0, 1), kernel, stride=stride, padding=padding)
    return cut.transpose(1, 2).reshape(*maps.shape[:2], -1, cut.shape[1])


def synapses(pre, post):
    """Each synapse and its copies: (j, i, sample, spikes of i, spikes of j)."""
    _, samples, places, n = pre.shape
    for b in range(samples):
        for p in range(places):
            for j in range(post.shape[3]):
                for i in range(n):
                    yield j, i, b, pre[:, b, p, i].tolist(), post[:, b, p, j].tolist()


def off_diagonal(path, *tensors):
    """What is a synapse: of a layer onto itself, all but the diagonal."""
    if not path.endswith("recurrent"):
        return tensors
    return tuple(t - torch.diag(t.diag()) for t in tensors)
