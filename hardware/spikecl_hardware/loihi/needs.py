"""What a layer's numbers have to hold: measured on calibration data, or the worst case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spikecl_hardware.chain import Dynamics, Layer
from spikecl_hardware.floating import Activity
from spikecl_hardware.loihi.linear_map import LinearMap
from spikecl_hardware.loihi.registers import STEPS, before, biases, gains
from spikecl_hardware.loihi.scales import Needs

Array = npt.NDArray[np.float64]
HEADROOM = 16  # thresholds that a membrane may lie away from rest, where nothing was measured


@dataclass(frozen=True)
class Place:
    """Where a layer stands.

    Args:
        source: What sends to it.
        depth: Synapses between the input and the layer.
        unit: What an input of 1 is as a message.
        message: Largest input.
        bits: Of a graded input; 0 where spikes come in.
    """

    source: str
    depth: int
    unit: float = 1.0
    message: float = 1.0
    bits: int = 0


def measured(
    layer: Layer,
    d: Dynamics,
    weights: LinearMap,
    onto: float,
    *,
    place: Place,
    seen: Activity,
    margin: float,
    steps: int,
) -> Needs:
    """Return what was seen times a margin; one message over the largest weight at least.

    Args:
        layer: The layer.
        d: Its neurons, or what stands for them.
        weights: Its map in units of the membrane.
        onto: Its largest weight onto itself, over the largest integer.
        place: Where it stands.
        seen: What it did in floating point.
        margin: How much more than what was seen is allowed.
        steps: Steps of a sample; for a readout that adds up.
    """
    bias = biases(layer, d)
    shape = seen.current.shape
    sent = (seen.current.reshape(*shape[:2], -1)) * gains(d) - bias
    peak = seen.peak
    if layer.neurons is None:
        total = (sent + bias).cumsum(0) if d.beta.any() else sent
        peak = float(abs(total).max()) * (max(1, steps / shape[0]) if d.beta.any() else 1)
    current = max(margin * float(abs(sent).max()), top(weights) * place.message)
    return _needs(d, weights, current, margin * peak, bias, onto, place.depth)


def worst_case(
    layer: Layer,
    d: Dynamics,
    weights: LinearMap,
    onto: float,
    *,
    place: Place,
    steps: int,
) -> Needs:
    """Return what inputs of one size can do at most; see :func:`measured` for arguments.

    Membranes of neurons that fire are given `HEADROOM`. What adds up counts twice: rounding makes
    no weight larger than that.
    """
    current, bias = weights.reach * place.message, biases(layer, d)
    if layer.recurrent is not None:
        onto_all = np.asarray(layer.recurrent.weight) * gains(d)[:, None]
        current += float(abs(onto_all).sum(1).max(initial=0.0))
    driven = 2 * current * _kept(d.alpha, steps)
    if d.v_threshold is None:
        peak = (driven + float(abs(bias).max())) * _kept(d.beta, steps)
    else:
        peak = max(driven, HEADROOM * _threshold(d))
    return _needs(d, weights, current, peak, bias, onto, place.depth)


def top(weights: LinearMap) -> float:
    """Return the largest magnitude of a weight."""
    return float(abs(weights.weights).max(initial=0.0))


def _needs(
    d: Dynamics,
    weights: LinearMap,
    current: float,
    peak: float,
    bias: Array,
    onto: float,
    depth: int,
) -> Needs:
    """Return all needs; membranes hold thresholds, biases and what waits for the first input."""
    largest, threshold = float(abs(bias).max(initial=0.0)), _threshold(d)
    membrane = max(peak, largest, threshold)
    lines = np.inf if d.v_threshold is None else d.v_threshold - d.v_rest
    waiting = float(abs(before(bias, d.beta, depth, np.zeros_like(bias) + lines)).max(initial=0.0))
    membrane = max(membrane, min(waiting, HEADROOM * membrane))
    return Needs(top(weights), current, membrane, threshold, largest, onto)


def _threshold(d: Dynamics) -> float:
    return 0.0 if d.v_threshold is None else float((d.v_threshold - d.v_rest).max())


def _kept(decay: Array, steps: int) -> float:
    """Return what a constant input of 1 becomes at most, with the slowest register there is."""
    lost = float(np.rint(STEPS * (1 - decay)).min(initial=STEPS))
    return min(steps, STEPS / lost) if lost >= 1 else steps
