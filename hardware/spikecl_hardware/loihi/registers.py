"""The registers of a layer's neurons: decays, thresholds, biases, and membranes at the start.

With a membrane of 1 as ``K`` units::

    du = 4096 (1 - alpha) - 1        dv = 4096 (1 - beta)        vth = (v_threshold - v_rest) K / 64
    bias_mant 2^bias_exp = bias current_gain gain K

rounded; a decay to 1/4096 or less in a step keeps 1/4096. Rest is 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spikecl_hardware.chain import Dynamics, Layer
from spikecl_hardware.graph import GraphError
from spikecl_hardware.loihi.program import Population
from spikecl_hardware.loihi.scales import THRESHOLD_LIMIT, UNIT, Scale, bias_registers
from spikecl_hardware.loihi.semantics import STATE_LIMIT, Integers, LIFParameters

Array = npt.NDArray[np.float64]
STEPS = 4096
SHORT = 1e-3  # what membranes keep in a step, below which nothing can be waited for


def check(layer: Layer) -> None:
    """Refuse what the chip's neuron cannot do, by the layer's name."""
    d, name = layer.neurons, layer.name
    if layer.recurrent is not None and np.any(getattr(layer.recurrent, "bias", 0.0)):
        raise GraphError(f"'{name}': its recurrent synapse has a bias; put it into the layer's own")
    if d is None:
        return
    if layer.bias is not None and np.any(d.alpha):
        raise GraphError(
            f"'{name}': a bias goes through the synaptic current, on the chip it drives the "
            "membrane; train without bias, or with neurons without synaptic current"
        )
    if d.v_threshold is None or d.v_reset is None:
        if np.any(d.v_rest):
            raise GraphError(f"'{name}': an integrator rests at {d.v_rest.max():g}; 0 is allowed")
        return
    if np.any(d.v_reset != d.v_rest):
        raise GraphError(
            f"'{name}': a spike resets the membrane to {d.v_reset[0]:g}, it rests at "
            f"{d.v_rest[0]:g}; the chip resets to rest: train with v_reset equal to v_rest"
        )
    if np.any(d.v_threshold <= d.v_rest):
        raise GraphError(f"'{name}': a threshold is not above rest; neurons would always fire")


def gains(d: Dynamics) -> Array:
    """Return what one unit of current does to the membrane, by neuron."""
    return d.current_gain * d.gain


def biases(layer: Layer, d: Dynamics) -> Array:
    """Return what the bias of each neuron adds to its membrane in a step."""
    bias = np.zeros(layer.out_shape[0]) if layer.bias is None else layer.bias
    return np.repeat(bias, int(np.prod(layer.out_shape)) // len(bias)) * gains(d)


def population(layer: Layer, d: Dynamics, scale: Scale, depth: int) -> Population:
    """Return the neurons of a layer that many synapses behind the input.

    Raises:
        GraphError: A threshold is less than one unit.
    """
    du = np.clip(np.rint(STEPS * (1 - d.alpha)) - 1, 0, STEPS - 1).astype(np.int64)
    dv = np.clip(np.rint(STEPS * (1 - d.beta)), 0, STEPS - 1).astype(np.int64)
    vth = np.full(len(dv), THRESHOLD_LIMIT)
    if d.v_threshold is not None:
        vth = np.rint((d.v_threshold - d.v_rest) * scale.unit / UNIT).astype(np.int64)
        if vth.min() < 1:
            raise GraphError(
                f"'{layer.name}': a threshold of {float(np.min(d.v_threshold - d.v_rest)):g} above "
                "rest is less than one unit; thresholds differ too much within the layer, or are "
                "too small for its weights"
            )
    mantissa, exponent = bias_registers(biases(layer, d) * scale.unit)
    bias = (mantissa << exponent).astype(np.float64)
    start = before(bias, 1 - dv / STEPS, depth, UNIT * (vth - 1.0))
    limited = np.rint(np.clip(start, -STATE_LIMIT, STATE_LIMIT)).astype(np.int64)
    return Population(
        layer.out_shape,
        LIFParameters(one(vth), one(du), one(dv), one(mantissa), exponent),
        one(limited),
    )


def before(bias: Array, kept: Array, depth: int, threshold: Array) -> Array:
    """Return membranes that a bias brings to rest in ``depth`` steps, without a spike.

    ``-bias sum_(k=1..depth) kept^-k``, where that is below threshold a step later. A bias so
    negative that it is not, and one where nothing is kept from step to step, cannot be waited for:
    these membranes are below or above rest, by a bias at most, when the first input comes.
    """
    long = kept > SHORT
    powers: Array = np.where(long, kept, np.inf)[:, None] ** -np.arange(1.0, depth + 1)
    start: Array = -bias * powers.sum(1)
    highest = (threshold - bias) / np.where(long, kept, 1.0)
    return np.where(bias < 0, np.minimum(start, highest), start)


def one(values: npt.NDArray[np.int64]) -> Integers:
    """Return one number where all are equal."""
    return int(values[0]) if len(values) and (values == values[0]).all() else values
