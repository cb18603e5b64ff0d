"""How large the integers of one layer are: weights, exponent, and what a membrane of 1 becomes.

A layer's numbers share one scale. With ``S`` for the weights, ``U`` for the input (1 for spikes)
and the exponent ``e``, a membrane of 1 is ``K = 64 S U 2^e`` units; every register is a bound::

    weights     max |w| S      <= 254, 255 of one sign, 127 of a convolution
    current     max |a| K / 64 <= 32767     (declared with 16 bits)
    threshold   max theta K / 64 <= 131071
    membrane    max |v| K      <= 131071 * 64  (what does not fire has that threshold)
    bias        max |b| K      <= 4095 * 2^7
    recurrent   max |r| K / 64 <= 254 * 2^7
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.semantics import SignMode

Array = npt.NDArray[np.float64]

CURRENT_LIMIT = (1 << 15) - 1
THRESHOLD_LIMIT = (1 << 17) - 1
MANTISSA_LIMIT = (1 << 12) - 1
EXPONENTS = range(-7, 8)
BIAS_EXPONENTS = range(8)
CONV_LIMIT = (1 << 7) - 1
UNIT = 1 << 6


class RangeError(ValueError):
    """A layer's numbers fit no registers; the message says which bound they break."""


@dataclass(frozen=True)
class Needs:
    """What a layer's numbers have to hold, in the units of the network.

    Args:
        weight: Largest magnitude of a weight.
        current: Largest magnitude of a current.
        membrane: Largest distance of a membrane from rest.
        threshold: Largest distance of a threshold from rest; 0 where neurons do not fire.
        bias: Largest magnitude of a bias.
        recurrent: Largest magnitude of a layer's weight onto itself, over the largest integer.
    """

    weight: float
    current: float
    membrane: float
    threshold: float = 0.0
    bias: float = 0.0
    recurrent: float = 0.0

    @property
    def largest_unit(self) -> float:
        """Largest ``K`` that all registers but the weights' allow."""
        bounds = [
            (UNIT * CURRENT_LIMIT, self.current),
            (UNIT * THRESHOLD_LIMIT, self.threshold),
            (UNIT * THRESHOLD_LIMIT, self.membrane),
            (MANTISSA_LIMIT << BIAS_EXPONENTS[-1], self.bias),
            (UNIT << EXPONENTS[-1], self.recurrent),
        ]
        return min((limit / need for limit, need in bounds if need > 0), default=math.inf)


class Scale(NamedTuple):
    """``weight`` is ``S``, ``unit`` is ``K``."""

    weight: float
    exponent: int
    unit: float


class Grid(NamedTuple):
    """Integers that weights may be: multiples of ``step`` from ``low`` to ``high``."""

    step: int
    low: int
    high: int

    def round(self, values: Array) -> npt.NDArray[np.int64]:
        """Return the nearest points."""
        points = np.rint(values / self.step) * self.step
        return np.clip(points, self.low, self.high).astype(np.int64)


def sign_mode(weights: Array) -> SignMode:
    """Return the narrowest mode that weights fit."""
    if (weights >= 0).all():
        return SignMode.EXCITATORY
    return SignMode.INHIBITORY if (weights <= 0).all() else SignMode.MIXED


def grid(mode: SignMode, bits: int) -> Grid:
    """Return the integers of a dense synapse with so many bits."""
    step = 1 << (8 - bits)
    if mode is SignMode.MIXED:
        step *= 2
        return Grid(step, step - 256 if bits > 1 else -256, 256 - step)
    highest = 256 - step
    return Grid(step, 0, highest) if mode is SignMode.EXCITATORY else Grid(step, -highest, 0)


def solve(
    needs: Needs,
    *,
    high: int,
    unit_in: float,
    clip: float,
    exponents: Sequence[int] = EXPONENTS,
    step: int = 2,
) -> Scale:
    """Return the scale with the finest weights, and the finest membrane that goes with them.

    Args:
        needs: What has to fit.
        high: Largest integer weight.
        unit_in: ``U``.
        clip: Share of the largest weight that is kept; what is larger becomes that.
        exponents: Those that the synapse may have, the smallest first.
        step: Between integers that weights may be.

    Raises:
        RangeError: The largest weight would be less than 2, or less than a step.
    """
    most = needs.largest_unit
    if needs.weight == 0:
        unit = most if math.isfinite(most) else UNIT * unit_in
        e = exponents[0] if len(exponents) == 1 else 0
        return Scale(unit / (UNIT * unit_in * 2.0**e), e, unit)
    s = high / (clip * needs.weight)
    fitting = [e for e in exponents if UNIT * s * unit_in * 2.0**e <= most]
    if fitting:
        return Scale(s, fitting[-1], UNIT * s * unit_in * 2.0 ** fitting[-1])
    e = exponents[0]
    finest, s = s, min(s, most / (UNIT * unit_in * 2.0**e))
    if s * needs.weight < max(step, 2):
        raise RangeError(
            f"weights would be {s * needs.weight:.2g} at most, of {finest * needs.weight:.3g} "
            f"possible and {max(step, 2)} needed, because of the registers behind them "
            f"(currents {needs.current:.3g}, membranes {needs.membrane:.3g}, thresholds "
            f"{needs.threshold:.3g}, biases {needs.bias:.3g} against weights of {needs.weight:.3g})"
        )
    return Scale(s, e, UNIT * s * unit_in * 2.0**e)


def bias_registers(bias: Array) -> tuple[npt.NDArray[np.int64], int]:
    """Return mantissas and the smallest exponent that holds biases in units of the membrane."""
    largest = float(abs(bias).max(initial=0.0))
    for exponent in BIAS_EXPONENTS:
        if np.rint(largest / 2**exponent) <= MANTISSA_LIMIT:
            return np.rint(bias / 2**exponent).astype(np.int64), exponent
    raise RangeError(f"a bias of {largest:.4g} units; {MANTISSA_LIMIT << 7} is the largest")
