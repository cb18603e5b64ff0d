"""NIR graphs in a row, and a loop that says what they do: step by step, node by node."""

from __future__ import annotations

import nir
import numpy as np
from spikecl_hardware.graph import Meta

DT = 1e-4
SPIKES = {"low": 0.0, "high": 1.0, "spikes": True}


def row(shape, *nodes, onto=None, **meta):
    """Return nodes in a row from an input; ``onto`` leads the neurons of a number onto themselves.

    Layers have the number of their synapse: 'n0', 'n1', ...
    """
    names = [f"n{i}" for i in range(len(nodes))]
    line = ["in", *names, "out"]
    found = {"in": nir.Input(np.array(shape)), **dict(zip(names, nodes))}
    links = list(zip(line, line[1:]))
    for i, synapse in (onto or {}).items():
        found[f"r{i}"] = synapse
        links += [(f"n{i}", f"r{i}"), (f"r{i}", f"n{i}")]
    graph = nir.NIRGraph({**found, "out": nir.Output(np.array([1]))}, links, type_check=False)
    Meta(**{"input": SPIKES, **meta}).attach(graph)
    return graph


def cells(shape, *, beta=None, alpha=None, gain=1.0, threshold=1.0, rest=0.0, reset=None):
    """Return neurons whose membrane keeps ``beta`` and takes ``gain`` times what arrives.

    One without ``beta`` is an IF, with ``alpha`` a CubaLIF, without ``threshold`` does not fire.
    """
    shape = (shape,) if isinstance(shape, int) else shape

    def each(value):
        return np.array(np.broadcast_to(np.asarray(value, dtype=float), shape))

    fires = {}
    if threshold is not None:
        fires = {"v_threshold": each(threshold), "v_reset": each(rest if reset is None else reset)}
    if beta is None:
        return nir.IF(r=each(gain), **fires)
    lost = 1 - each(beta)
    tau, r = DT / lost, gain / lost
    if alpha is None:
        kind = nir.LI if threshold is None else nir.LIF
        return kind(tau=tau, r=r, v_leak=each(rest), **fires)
    kind, taken = nir.CubaLI if threshold is None else nir.CubaLIF, 1 - each(alpha)
    more = {"tau_syn": DT / taken, "w_in": 1 / taken}
    return kind(tau_mem=tau, r=r, v_leak=each(rest), **more, **fires)


def loop(nodes, x, onto=None):
    """Return what every node gave [T, B, ...], and membranes before the reset by node."""
    out = [[] for _ in nodes]
    peaks = {i: [] for i, node in enumerate(nodes) if hasattr(node, "r")}
    state = {}
    for now in np.asarray(x, dtype=float):
        for i, node in enumerate(nodes):
            if i in peaks:
                if onto and i in onto and out[i]:
                    now = now + out[i][-1] @ onto[i].weight.T
                now, v = _neurons(node, now, state, i)
                peaks[i].append(v)
            else:
                now = _linear(node, now)
            out[i].append(now)
    return [np.array(o) for o in out], {i: np.array(p) for i, p in peaks.items()}


def _neurons(node, x, state, i):
    rest = getattr(node, "v_leak", 0.0)
    current, v = state.get(i, (np.zeros_like(x), np.zeros_like(x) + rest))
    if isinstance(node, nir.IF):
        v = v + node.r * x
    elif isinstance(node, nir.LIF | nir.LI):
        v = v + DT / node.tau * (rest - v + node.r * x)
    else:
        current = current + DT / node.tau_syn * (node.w_in * x - current)
        v = v + DT / node.tau_mem * (rest - v + node.r * current)
    spikes = v > node.v_threshold if hasattr(node, "v_threshold") else None
    after = v if spikes is None else np.where(spikes, node.v_reset, v)
    state[i] = current, after
    return (v if spikes is None else spikes * 1.0), v


def _linear(node, x):
    if isinstance(node, nir.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(node, nir.Linear | nir.Affine):
        return x.reshape(len(x), -1) @ node.weight.T + getattr(node, "bias", 0.0)
    up, across = (int(n) for n in np.broadcast_to(node.stride, 2))
    top, left = (int(n) for n in np.broadcast_to(node.padding, 2))
    conv = isinstance(node, nir.Conv2d)
    k, m = node.weight.shape[2:] if conv else np.broadcast_to(node.kernel_size, 2)
    x = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    rows = []
    for y in range(0, x.shape[2] - k + 1, up):
        places = []
        for z in range(0, x.shape[3] - m + 1, across):
            seen = x[:, :, y : y + k, z : z + m]
            if conv:
                places.append(
                    [(seen * w).sum((1, 2, 3)) + b for w, b in zip(node.weight, node.bias)]
                )
            else:
                share = k * m if isinstance(node, nir.AvgPool2d) else 1
                places.append((seen.sum((2, 3)) / share).T)
        rows.append(places)
    return np.array(rows).transpose(3, 2, 0, 1)


def conv(weight, side, *, stride=1, padding=0, bias=None):
    """Return a convolution of maps of side ``side``."""
    bias = np.zeros(len(weight)) if bias is None else bias
    two = (side, side) if isinstance(side, int) else side
    return nir.Conv2d(two, np.asarray(weight), (stride,) * 2, (padding,) * 2, (1, 1), 1, bias)


def pooled(kind, kernel, *, stride=None, padding=0):
    """Return pooling; numbers or pairs."""
    stride = kernel if stride is None else stride
    values = (np.array(np.broadcast_to(v, 2)) for v in (kernel, stride, padding))
    return kind(*values)


def whole(rng, shape, *, share=1.0, scale=64.0):
    """Return weights that eight bits hold exactly: even numbers up to 254, over ``scale``."""
    weights = 2.0 * rng.integers(-127, 128, shape) * (rng.random(shape) < share)
    weights.flat[rng.integers(weights.size)] = 254.0
    weights.flat[rng.integers(weights.size - 1)] = -2.0
    if abs(weights).max() < 254:
        weights.flat[-1] = 254.0
    return weights / scale


def spikes(rng, *shape, rate=0.3):
    """Return zeros and ones."""
    return (rng.random(shape) < rate) * 1.0
