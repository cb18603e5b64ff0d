"""A chain of layers in floating point: the reference that integers are measured against.

Layers answer in the same step, so there is no latency here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import nir
import numpy as np
import numpy.typing as npt

from spikecl_hardware.chain import Dynamics, Layer

Array = npt.NDArray[np.float64]
Pair = tuple[int, int]


class Activity(NamedTuple):
    """What one layer did with B samples in T steps.

    Args:
        sent: What came in, before pooling, [T, B, *features].
        current: What the synapse made of it, with the bias and what comes from the layer itself,
            [T, B, *features].
        out: Spikes; membranes where neurons do not fire, the current where there are none.
        peak: Largest distance of a membrane from rest before a reset, or what drove it there in one
            step where that was more.
    """

    sent: Array
    current: Array
    out: Array
    peak: float


def simulate(layers: Sequence[Layer], x: npt.ArrayLike) -> list[Activity]:
    """Run input [T, B, *features] through layers, from rest."""
    found: list[Activity] = []
    activity = np.asarray(x, dtype=np.float64)
    for layer in layers:
        found.append(run_layer(layer, activity))
        activity = found[-1].out
    return found


def run_layer(layer: Layer, activity: Array) -> Activity:
    """Run one layer."""
    steps, samples = activity.shape[:2]
    sent = activity.reshape(steps, samples, *layer.in_shape)
    rows = activity.reshape(-1, *layer.in_shape)
    for node in layer.before:
        rows = rows.reshape(len(rows), -1) if isinstance(node, nir.Flatten) else pool(rows, node)
    current = drive(layer.synapse, rows).reshape(steps, samples, *layer.out_shape)
    if layer.neurons is None:
        return Activity(sent, current, current, 0.0)
    flat, out, peak = fire(layer, current.reshape(steps, samples, -1), layer.neurons)
    return Activity(sent, flat.reshape(current.shape), out.reshape(current.shape), peak)


def fire(layer: Layer, x: Array, d: Dynamics) -> tuple[Array, Array, float]:
    """Return currents [T, B, n] with the recurrent part, the output, and the membranes' peak."""
    i, v = np.zeros_like(x[0]), np.zeros_like(x[0]) + d.v_rest
    out, total, peak = np.zeros_like(x), x.copy(), 0.0
    for t in range(len(x)):
        if t and layer.recurrent is not None:
            total[t] += drive(layer.recurrent, out[t - 1])
        i = d.alpha * i + d.current_gain * total[t]
        v = d.v_rest + d.beta * (v - d.v_rest) + d.gain * i
        largest = (abs(part).max(initial=0.0) for part in (v - d.v_rest, d.gain * i))
        peak = float(max(peak, *largest))
        if d.v_threshold is None:
            out[t] = v
        else:
            assert d.v_reset is not None
            out[t] = v > d.v_threshold
            v = v + out[t] * (d.v_reset - v)
    return total, out, peak


def drive(node: nir.NIRNode, rows: Array) -> Array:
    """Return the current of rows [R, *features] behind a synapse."""
    weight = np.asarray(node.weight, dtype=np.float64)
    if isinstance(node, nir.Conv2d):
        made = windows(rows, weight.shape[2:], both(node.stride), both(node.padding))
        made = np.einsum("rcyxkl,ockl->royx", made, weight, optimize=True)
        return np.asarray(made + np.asarray(node.bias).reshape(-1, 1, 1))
    made = rows.reshape(len(rows), -1) @ weight.T
    return np.asarray(made + getattr(node, "bias", 0.0))


def pool(maps: Array, node: nir.NIRNode) -> Array:
    """Return maps [R, C, H, W] pooled."""
    found = windows(maps, both(node.kernel_size), both(node.stride), both(node.padding))
    return np.asarray(found.mean((4, 5)) if isinstance(node, nir.AvgPool2d) else found.sum((4, 5)))


def windows(maps: Array, size: tuple[int, ...], stride: Pair, padding: Pair) -> Array:
    """Return windows [R, C, H', W', k, l] of maps [R, C, H, W] with zeros around them."""
    edges = ((0, 0), (0, 0), *((p, p) for p in padding))
    made = np.lib.stride_tricks.sliding_window_view(np.pad(maps, edges), (1, 1, *size))
    return made[:, :, :: stride[0], :: stride[1], 0, 0]


def both(value: object) -> Pair:
    """Return the numbers of both axes, which may be one for both."""
    a = np.atleast_1d(np.asarray(value))
    return int(a[0]), int(a[-1])
