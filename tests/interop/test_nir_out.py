"""Files against a loop over the equations of their nodes; what no file can say is refused."""

import json

import nir
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import spikecl
from spikecl.errors import UsageError
from spikecl.interop import Currents, Flatten, OneToOne, first_difference, to_nir
from spikecl.networks import (
    AvgPool2d,
    BatchNorm,
    Cells,
    Channels,
    Conv2d,
    Dale,
    Dropout,
    Gain,
    Layer,
    Linear,
    Network,
    NoAutapses,
    SpikingConvNet,
    SpikingMlp,
    Standardise,
)
from spikecl.neurons import (
    CUBA,
    IF,
    LIF,
    PLIF,
    LeakyIntegrator,
    Reset,
    SynapticIntegrator,
)

STEPS, BATCH = 100, 2
ZERO = {"reset": Reset.ZERO}
THREE = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)


def follow(graph, x, dt=1e-4):
    """Return what each node of neurons (or the last synapse) gives, [T, B, *features], by name."""
    after = {a: b for a, b in graph.edges if not b.endswith("recurrent")}
    back = {a: b for a, b in graph.edges if b.endswith("recurrent")}
    row, name = [], "input"
    while (name := after[name]) != "output":
        row.append(name)
    state, found = {}, {name: [] for name in row}
    for h in x:
        for name in row:
            h = step(name, graph, h, state, back, dt)
            found[name].append(h)
    kept = [name for name in row if name.endswith("neuron") or name == row[-1]]
    return {name: torch.stack(found[name]) for name in kept}


def step(name, graph, h, state, back, dt):
    node = graph.nodes[name]
    p = {k: torch.as_tensor(v) for k, v in vars(node).items() if isinstance(v, np.ndarray)}
    if isinstance(node, nir.Flatten):
        return h.flatten(1)
    if isinstance(node, nir.AvgPool2d):
        return functional.avg_pool2d(h, tuple(node.kernel_size), tuple(node.stride))
    if isinstance(node, nir.Conv2d):
        return functional.conv2d(h, p["weight"], p["bias"], node.stride, node.padding)
    if isinstance(node, nir.Linear | nir.Affine):
        return functional.linear(h, p["weight"], p.get("bias"))
    i, v, s = state.get(name, (0 * h, 0 * h + p.get("v_leak", 0.0), 0 * h))
    if name in back:
        h = h + s @ torch.as_tensor(graph.nodes[back[name]].weight).T
    if "tau_syn" in p:
        i = i + dt / p["tau_syn"] * (p["w_in"] * h - i)
        h = i
    tau = p.get("tau", p.get("tau_mem"))
    v = v + h * p["r"] if tau is None else v + dt / tau * (p["v_leak"] - v + p["r"] * h)
    if "v_threshold" not in p:
        state[name] = (i, v, s)
        return v
    s = (v > p["v_threshold"]).to(h.dtype)
    state[name] = (i, torch.where(s > 0, p["v_reset"], v), s)
    return s


def one(neuron, *, synapse=None, learns=(), size=(), **options):
    cells = None if neuron is None else Cells(neuron, learns=learns, size=size)
    layer = Layer(synapse or Linear(4, 3, bias=True), cells, inputs=("input",), **options)
    return Network({"first": layer}, mean_first=False)


def tuned(network, seed=0):
    """Give norms statistics as after training."""
    for i, norm in enumerate(m for m in network.modules() if isinstance(m, BatchNorm)):
        generator = torch.Generator().manual_seed(seed + i)
        for tensor, low, high in (
            (norm.gain, -1.5, 1.5),
            (norm.shift, -0.3, 0.3),
            (norm.mean, -0.3, 0.3),
            (norm.variance, 0.5, 2.0),
        ):
            drawn = torch.rand(tensor.shape, generator=generator) * (high - low) + low
            tensor.data.copy_(drawn)
    return network


def recurrent(neuron, **options):
    return one(neuron, recurrent=Linear(3, 3, **options))


def normed(positive):
    return tuned(one(LIF(**ZERO), norm=BatchNorm(3, positive=positive)))


MODELS = {
    "LIF": one(LIF(beta=0.7, **ZERO)),
    "scaled": one(LIF(beta=0.7, scale_input=True, **ZERO)),
    "each": one(LIF(beta=THREE, v_th=THREE, **ZERO)),
    "next": one(LIF(beta=0.7, reset_time="next", **ZERO)),
    "value": one(LIF(beta=0.7, v_rest=-0.2, v_reset=-0.4, reset=Reset.VALUE)),
    "value, next": one(LIF(v_rest=0.1, v_reset=-0.4, reset=Reset.VALUE, reset_time="next")),
    "learned": one(LIF(beta=0.7, **ZERO), learns=("beta", "v_th"), size=(3,)),
    "no memory": one(LIF(beta=0.0, **ZERO)),
    "PLIF": one(PLIF(strict=True), learns=None),
    "IF": one(IF(v_th=THREE, **ZERO)),
    "LIF without leak": one(LIF(beta=1.0, v_reset=-0.1, reset=Reset.VALUE)),
    "CUBA": one(CUBA(alpha=0.6, beta=0.8, **ZERO)),
    "CUBA, scaled": one(CUBA(alpha=THREE, beta=0.8, scale_input=True, **ZERO)),
    "CUBA, value": one(CUBA(v_rest=0.1, v_reset=-0.4, reset=Reset.VALUE, reset_time="next")),
    "LI": one(LeakyIntegrator(kappa=0.8)),
    "LI, scaled": one(LeakyIntegrator(kappa=THREE, scale_input=True)),
    "CubaLI": one(SynapticIntegrator(alpha=0.5, v_rest=0.1)),
    "LI that rests elsewhere": one(SynapticIntegrator(alpha=0.0, v_rest=0.1)),
    "recurrent": recurrent(LIF(beta=0.7, **ZERO)),
    "recurrent, bias": recurrent(LIF(beta=THREE, **ZERO), bias=True, maps=(NoAutapses(),)),
    "recurrent, CUBA": recurrent(CUBA(**ZERO), bias=True),
    "recurrent, scaled": recurrent(LIF(beta=0.5, scale_input=True, reset_time="next", **ZERO)),
    "recurrent, IF": recurrent(IF(**ZERO)),
    "one to one": one(LIF(**ZERO), recurrent=OneToOne(3, nn.Parameter(torch.zeros(3)))),
    "Dale": one(LIF(**ZERO), synapse=Linear(4, 3, maps=(Gain(factor=2.0), Dale(excitatory=0.5)))),
    "standardised": one(LIF(v_th=0.1, **ZERO), synapse=Linear(4, 3, maps=(Standardise(),))),
    "norm": normed(False),
    "positive norm": normed(True),
    "dropout": one(LIF(**ZERO), before={"drop": Dropout(0.5)}),
    "several currents": tuned(one(LIF(**ZERO), norm=Currents([BatchNorm(3), Dropout(0.1)]))),
    "no neurons": one(None),
}


@torch.no_grad()
def drawn(lab, network, x, seed=0):
    network.double()
    if not lab.prepare_ours(network, x, seed):
        raise AssertionError("its neurons do not fire as wanted")
    return network


@pytest.mark.parametrize("case", MODELS)
def test_a_file_has_the_equations_of_the_layer(lab, case, tmp_path):
    x = lab.draw(3, STEPS, BATCH, 4)
    network = drawn(lab, MODELS[case], x)
    nir.write(tmp_path / "a.nir", to_nir(network, (4,)))
    theirs = follow(nir.read(tmp_path / "a.nir"), x)
    (name, found), *more = theirs.items()
    assert not more
    ours = network(x).steps.detach()
    if network.is_spiking:
        assert first_difference(ours, found) is None
    else:
        torch.testing.assert_close(ours, found, rtol=1e-12, atol=1e-12)


def test_numbers_by_hand(lab):
    network = one(LIF(beta=0.75, v_th=2.0, **ZERO), learns=())
    network.layers["first"].synapse.weight.data.fill_(3.0)
    network.layers["first"].synapse.bias.data.fill_(0.5)
    graph = to_nir(network, (4,), dt=1e-3)
    weights, neurons = graph.nodes["first.synapse"], graph.nodes["first.neuron"]
    assert list(graph.nodes) == ["input", "first.synapse", "first.neuron", "output"]
    assert (weights.weight == 12).all() and (weights.bias == 2).all()
    assert weights.weight.dtype == np.float32
    for name, value in {"tau": 4e-3, "r": 1, "v_leak": 0, "v_threshold": 2, "v_reset": 0}.items():
        np.testing.assert_allclose(getattr(neurons, name), np.full(3, value), rtol=1e-15)
    assert json.loads(graph.metadata["spikecl"])["dt"] == 1e-3
    neurons = to_nir(one(CUBA(alpha=0.5, beta=0.75, **ZERO)), (4,)).nodes["first.neuron"]
    found = [neurons.tau_syn[0], neurons.tau_mem[0], neurons.r[0], neurons.w_in[0]]
    np.testing.assert_allclose(found, [2e-4, 4e-4, 4, 2], rtol=1e-15)
    assert type(to_nir(one(LIF(beta=1.0, **ZERO)), (4,)).nodes["first.neuron"]) is nir.IF


MAPS = {
    "padded": one(LIF(**ZERO), synapse=Conv2d(2, 3, kernel=3, padding=1, bias=True)),
    "strided": one(IF(**ZERO), synapse=Conv2d(2, 3, kernel=3, stride=2)),
    "norm": tuned(one(LIF(**ZERO), synapse=Conv2d(2, 3, kernel=3), norm=BatchNorm(3))),
    "flat currents": tuned(
        one(LIF(**ZERO), synapse=Conv2d(2, 3, kernel=3), norm=Currents([BatchNorm(3), Flatten()]))
    ),
    "each": one(
        LIF(beta=0.3 + torch.rand(3, 5, 5, generator=torch.manual_seed(0)) / 2, **ZERO),
        synapse=Conv2d(2, 3, kernel=3),
    ),
    "channels": one(
        LIF(beta=THREE.view(3, 1, 1), **ZERO), synapse=Conv2d(2, 3, kernel=3, bias=True)
    ),
    "pools": one(
        LIF(**ZERO),
        synapse=Conv2d(2, 3, kernel=1),
        before={"a": AvgPool2d(3), "b": AvgPool2d(None), "c": Flatten()},
    ),
    "pooled": one(LIF(**ZERO), synapse=Linear(2 * 9, 3), before={"pool": AvgPool2d(2)}),
}
MAPS["pools"].layers["first"].before.pop("c")


@pytest.mark.parametrize("case", MAPS)
def test_maps(lab, case):
    x = lab.draw(4, STEPS, BATCH, 2, 7, 7)
    network = drawn(lab, MAPS[case], x)
    theirs = follow(to_nir(network, (2, 7, 7)), x)["first.neuron"]
    ours = network(x).steps.detach()
    assert first_difference(ours.reshape(theirs.shape), theirs) is None


def test_gains_go_into_weights_where_weights_can_take_them():
    inside, between = (
        to_nir(MAPS[k], (2, 7, 7)).nodes["first.neuron"] for k in ("each", "channels")
    )
    np.testing.assert_allclose(inside.r, inside.tau / 1e-4)
    assert (between.r == 1).all()


@pytest.mark.parametrize("shape", [(12, 12), (12, 12, 2)])
def test_networks_of_images(lab, shape):
    spec = SpikingConvNet(
        channels=(3, 4), kernel=3, pool="average", hidden=(9,), neuron=LIF(**ZERO), norm="batch"
    )
    network = tuned(spec.build(shape, 3))
    x = lab.draw(5, STEPS, BATCH, *shape)
    drawn(lab, network, x)
    graph = to_nir(network, shape)
    maps = x[:, :, None] if len(shape) == 2 else x.movedim(-1, 2)
    assert tuple(graph.nodes["input"].input_type["input"]) == maps.shape[2:]
    recording, theirs = network.record(x), follow(graph, maps)
    for name, ours in recording.items():
        assert first_difference(ours["spikes"], theirs[f"{name}.neuron"]) is None
    logits = theirs["readout.synapse"].mean(0)
    torch.testing.assert_close(network(x).logits, logits, rtol=1e-12, atol=1e-12)


def test_dropout_before_the_channels():
    before = {"drop": Dropout(0.5), "channels": Channels()}
    network = one(IF(**ZERO), synapse=Conv2d(2, 3, kernel=3), before=before)
    graph = to_nir(network, (5, 4, 2))
    assert tuple(graph.nodes["input"].input_type["input"]) == (2, 5, 4)


def test_a_dense_network_takes_one_axis():
    network = SpikingMlp(hidden=(3,), neuron=LIF(**ZERO)).build((4, 5), 2)
    assert tuple(to_nir(network, (4, 5)).nodes["input"].input_type["input"]) == (20,)


def test_the_network_of_a_run(lab, tmp_path):
    stream = spikecl.permuted(spikecl.load_data("digits"), experiences=1)
    network = SpikingMlp(hidden=(9,), neuron=LIF(beta=0.5, **ZERO), norm="batch")
    result = spikecl.run(stream, network, runs_dir=tmp_path)
    network = result.network()
    graph = to_nir(network, result.record.run["input_shape"])
    x = torch.rand(STEPS, BATCH, 64, dtype=torch.float64, generator=torch.manual_seed(0))
    ours = network.double().record(x)["hidden1"]["spikes"]
    assert 0.01 < ours.mean() < 0.99
    for name in ("hidden1.synapse", "readout.synapse"):  # stored as float32, rounded
        for key, value in vars(graph.nodes[name]).items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                setattr(graph.nodes[name], key, value.astype(np.float64))
    assert first_difference(ours, follow(graph, x)["hidden1.neuron"]) is None


def test_the_first_difference():
    ours = torch.zeros(3, 2, 4)
    theirs = ours.clone()
    assert first_difference(ours, theirs) is None
    theirs[2, 0, 0] = theirs[1, 1, 3] = 1
    assert first_difference(ours, theirs.numpy()) == (1, 1, 3)
    with pytest.raises(UsageError, match=r"shapes \(3, 2, 4\) and \(3, 2, 3\)"):
        first_difference(ours, theirs[..., :3])


def test_nothing_of_the_network_changes():
    network = SpikingMlp(hidden=(3,), neuron=LIF(scale_input=True, **ZERO)).build((4,), 2)
    graph = to_nir(network, (4,))
    for node in graph.nodes.values():
        for value in vars(node).values():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                value += 1
    assert not any(p.any() for p in network.parameters())
