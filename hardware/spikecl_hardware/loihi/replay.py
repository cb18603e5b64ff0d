"""Weights learn the product of two signed vectors, on a chip whose traces have no sign.

What a projected update needs, ``dW = f x^T`` with signs in both, is no sum of products: a synapse
sees a trace of its source's spikes, which counts up, and two factors. So sources send twice, first
``x+`` with the factors ``f+, f-``, then ``x-`` with the two exchanged (``x = x+ - x-``). A phase
has ``steps`` steps for spikes and one more; at its end::

    P = floor((16 - t) / 32)
    w <- w + c P                            c = 2 where weights have mixed signs, which are even
    t <- t + 32 P - g x1 (y2 - y3)          x1 counts the spikes of the phase

Tags ``t`` hold, with the other sign, what is too small for a weight, half a step at most, and carry
over into weights without loss from one phase to the next. Numbers are such that
products are exact too; what is left of a tag unit is rounded by chance, as the engine does. (The
engine lets factors decay by ``exp(-1/65535)`` in a step: in two phases of a thousand, by chance,
they lose one at each.)

The closed form here is, bit for bit, what `engine` and Lava make of :func:`learning`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from spikecl_hardware.loihi.engine import RANGES, ROUNDING_SEED
from spikecl_hardware.loihi.learning import (
    LONGEST,
    STILL,
    TRACE_MAX,
    WEIGHTS,
    Array,
    Learning,
    Trace,
)
from spikecl_hardware.loihi.library import term
from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program, Readout
from spikecl_hardware.loihi.rules import RuleError
from spikecl_hardware.loihi.semantics import DenseParameters, LIFParameters, SignMode

CARRY = 32  # tag units that make a step of a weight
LARGEST = 126  # of a factor, which is even
LEAST_GAIN, MOST_REPEATS = 2.0**-8, 16
COUNTERS = ("clipped", "lost", "updates", "spikes")
MOST_STEPS = 62  # an epoch has at most 63, one more than a phase


@dataclass(frozen=True)
class Gain:
    """How numbers become spikes, factors and tags.

    Args:
        steps: Largest number of spikes in a phase, 1 to 62.
        tags: Tag units of one spike and a factor of 1: a power of two.
        factor: Whole number that a factor of 1 becomes.
        repeats: How often a sample is replayed, because tags cannot hold all that it changes.
    """

    steps: int
    tags: float
    factor: float
    repeats: int = 1

    @classmethod
    def of(cls, change: float, *, steps: int, largest: float, mixed: bool = True) -> Gain:
        """Return the finest numbers for ``dW = change f x / steps``, in units of weights.

        Args:
            change: Units of weight for a factor of 1 and a source that sends in every step.
            steps: Largest number of spikes in a phase.
            largest: Largest magnitude of a factor.
            mixed: Whether weights have mixed signs, and so steps of 2.

        Raises:
            RuleError: Such a change is beyond what tags hold in 16 replays.
        """
        if not 1 <= steps <= MOST_STEPS:
            raise RuleError(f"phases of {steps} steps; 1 to {MOST_STEPS} is allowed")
        if not (0 < change < math.inf and 0 < largest < math.inf):
            raise RuleError(f"change {change:g}, factors to {largest:g}; above 0 is allowed")
        repeats = math.ceil(change * largest / most_change(steps, mixed=mixed))
        if repeats > MOST_REPEATS:
            raise RuleError(
                f"one sample would change weights by {change * largest:.3g} units; up to "
                f"{MOST_REPEATS * most_change(steps, mixed=mixed):.3g} is allowed: a lower rate, "
                "or larger batches"
            )
        tags = change / repeats / steps * CARRY / (1 + mixed)  # of one spike and a factor of 1
        power = 2.0 ** math.ceil(math.log2(tags * largest / LARGEST))
        power = max(power, LEAST_GAIN)
        return cls(steps, power, tags / power, repeats)

    def counts(self, x: Array, generator: np.random.Generator) -> Array:
        """Return numbers from -1 to 1 as spikes with a sign, rounded by chance."""
        return _by_chance(x.clip(-1, 1) * self.steps, generator)

    def factors(self, f: Array, generator: np.random.Generator) -> Array:
        """Return factors as even whole numbers with a sign, rounded by chance."""
        whole = 2 * _by_chance(f * (self.factor / 2), generator)
        return whole.clip(-LARGEST, LARGEST)


def most_change(steps: int, *, mixed: bool = True) -> float:
    """Return the most that one replay can change a weight by, in units of weights."""
    return _most(steps) * LARGEST * steps * (1 + mixed) / CARRY


def _most(steps: int) -> float:
    return 2.0 ** math.floor(math.log2(CARRY * 7 / (LARGEST * steps)))  # tags end at 255


def _by_chance(x: Array, generator: np.random.Generator) -> Array:
    lower = np.floor(x)
    made: Array = (lower + (generator.random(x.shape) < x - lower)).astype(np.int64)
    return made


def learning(gain: Gain, mode: SignMode) -> Learning:
    """Return the rule as the chip has it; a phase is an epoch of ``steps + 1`` steps."""
    carry = f"u0*(t-{CARRY // 2})*(x2+1)"  # the bits of x2, which is still, shift the product
    grown = term(-gain.tags, "u0", "x1", "y2") + term(gain.tags, "u0", "x1", "y3")
    return Learning(
        dw=f"-1*2^{int(mode is SignMode.MIXED)}*{carry}",
        dt=f"-1*2^5*{carry}{grown}",
        traces={"x1": Trace(1.0, LONGEST), "x2": Trace()},
        modulated=True,
        epoch=gain.steps + 1,
    )


class Phase(NamedTuple):
    """Spikes of each source in a phase, and ``y2 y3`` at its end."""

    counts: Array
    third: Array


def phases(counts: Array, factors: Array) -> tuple[Phase, Phase]:
    """Return the two phases of signed spikes [n_in] and signed factors [n_out]."""
    up, down = factors.clip(min=0), (-factors).clip(min=0)
    return (
        Phase(counts.clip(min=0), np.stack([up, down])),
        Phase((-counts).clip(min=0), np.stack([down, up])),
    )


class Taught:
    """Weights [n_out, n_in] that learn in phases.

    Args:
        weights: Of the start, as synaptic memory holds them.
        mode: Which signs they may have.
        gain: How numbers become spikes, factors and tags.
        logged: Whether phases are kept.

    Attributes:
        start: Weights of the start.
        done: Phases so far.
        clipped: Changes that would have left the range of weights.
        lost: Those that would have left the range of tags.
        updates: Synapses that a phase reached: those of sources that sent.
        spikes: That sources sent.
        log: Phases, where they are kept.
    """

    def __init__(self, weights: Array, mode: SignMode, gain: Gain, *, logged: bool = False):
        """Start with clear tags."""
        self.start = weights.astype(np.int64)
        self.log: list[Phase] | None = [] if logged else None
        self.w, self.t = weights.astype(np.int32), np.zeros(weights.shape, np.float32)
        self.mode, self.gain = mode, gain
        self.done = self.clipped = self.lost = self.updates = self.spikes = 0
        self._draws = _Draws(gain, 0)
        self._pending = np.arange(len(weights))

    def learn(self, counts: Array, factors: Array) -> None:
        """Replay one sample: signed spikes [n_in], signed even factors [n_out]."""
        for phase in phases(counts, factors) * self.gain.repeats:
            self.phase(phase)

    def phase(self, phase: Phase) -> None:
        """Carry what the tags hold into weights, then add a product to the tags."""
        if self.log is not None:
            self.log.append(phase)
        self._carry()
        draw, third = self._draws.next(phase.third)
        sent = phase.counts.nonzero()[0]
        told = (third[0] - third[1]).nonzero()[0]
        self.done += 1
        self.updates += len(sent) * len(self.w)
        self.spikes += int(phase.counts.sum())
        if not (len(sent) and len(told)):
            return
        moved = self.t[told] + _product(third[:, told], phase.counts, self.gain)
        whole = np.floor(moved)
        moved -= whole
        # fractions are multiples of a power of two, and so the number to compare with may be
        whole += moved > np.float32(math.floor(draw / self.gain.tags) * self.gain.tags)
        low, high = RANGES["t"]
        if whole.min() < low or whole.max() > high:
            self.lost += int(((whole < low) | (whole > high)).sum())
            whole.clip(low, high, out=whole)
        self.t[told] = whole
        self._pending = told

    def _carry(self) -> None:
        rows = self._pending
        if not len(rows):
            return
        tags = self.t[rows]
        steps = np.floor((tags - CARRY // 2) / -CARRY)
        low, high = WEIGHTS[self.mode]
        grown = self.w[rows] + (1 + (self.mode is SignMode.MIXED)) * steps.astype(np.int32)
        if grown.min() < low or grown.max() > high:
            self.clipped += int(((grown < low) | (grown > high)).sum())
            grown.clip(low, high, out=grown)
        self.w[rows] = grown
        steps *= CARRY
        self.t[rows] = tags + steps
        self._pending = rows[:0]

    def settle(self) -> Array:
        """Add a phase without spikes, in which tags become weights; return these."""
        n_out, n_in = self.w.shape
        self.phase(Phase(np.zeros(n_in, np.int64), np.zeros((2, n_out), np.int64)))
        return self.w.astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        kept = {name: getattr(self, name) for name in ("start", "w", "t", "done", *COUNTERS)}
        if not self.log:
            return kept
        counts = np.stack([phase.counts for phase in self.log]).astype(np.int16)
        third = np.stack([phase.third for phase in self.log]).astype(np.int16)
        return {**kept, "counts": counts, "third": third}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.start = np.array(state["start"], np.int64)
        self.w, self.t = np.array(state["w"], np.int32), np.array(state["t"], np.float32)
        for name in ("done", *COUNTERS):
            setattr(self, name, state[name])
        self._draws, self._pending = _Draws(self.gain, self.done), np.arange(len(self.w))
        if self.log is not None and "counts" in state:
            pairs = zip(state["counts"], state["third"], strict=True)
            self.log = [Phase(*(each.astype(np.int64) for each in pair)) for pair in pairs]


def _product(third: Array, counts: Array, gain: Gain) -> Array:
    """Return what tags gain; where a factor has become odd, it is rounded down as on the chip."""
    if not (third & 1).any():
        factors = (third[1] - third[0]).astype(np.float32) * np.float32(gain.tags)
        return np.outer(factors, counts.astype(np.float32))
    up, down = 4 * third[:, :, None] * counts
    made: Array = (((-up >> 3) + (down >> 3)) * (2 * gain.tags)).astype(np.float32)
    return made


class _Draws:
    """The engine's random numbers: one to round with, one for the decay of factors."""

    def __init__(self, gain: Gain, done: int):
        self._steps = gain.steps + 1
        bits = np.random.PCG64(ROUNDING_SEED), np.random.PCG64(3)
        bits[0].advance(1 + done)
        bits[1].advance(1 + 2 * self._steps * done)
        self._round, self._decay = (np.random.Generator(each) for each in bits)

    def next(self, third: Array) -> tuple[float, Array]:
        """Return the number to round with, and what a phase leaves of factors."""
        draw = float(self._decay.random(2 * self._steps)[-1])
        if draw >= 1 - TRACE_MAX / STILL:
            for _ in range(self._steps):
                kept = math.exp(-1 / STILL) * third
                lower = np.floor(kept)
                third = (lower + (draw < kept - lower)).astype(np.int64)
        return float(self._round.random()), third


def alone(weights: Array, mode: SignMode, gain: Gain) -> Program:
    """Return a program of these synapses alone, whose input is what their sources replay."""
    n_out, n_in = weights.shape
    synapses = DenseParameters(weights, sign_mode=mode)
    cells = Population((n_out,), LIFParameters(vth=(1 << 17) - 1, du=4095))
    return Program(
        input_shape=(n_in,),
        populations={"cells": cells},
        connections=(Connection(INPUT, "cells", synapses, learning(gain, mode)),),
        readout=Readout("cells"),
        steps=gain.steps,
    )


def played(made: list[Phase], gain: Gain) -> tuple[Array, dict[str, Array]]:
    """Return phases as spikes [steps, phases, n_in] and third factors, for `plastic` and `lava`."""
    counts = np.stack([phase.counts for phase in made])
    spikes = (np.arange(gain.steps)[:, None, None] < counts).astype(np.uint8)
    third = np.zeros((gain.steps + 1, len(made), *made[0].third.shape), np.int64)
    third[-1] = np.stack([phase.third for phase in made])
    return spikes, {"cells": third}
