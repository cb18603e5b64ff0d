"""Loihi's learning engine in integers: traces, rules, rounding, as Lava computes them.

A connection that learns has traces of its source (``x1 x2``) and of its target (``y1 y2 y3``), 7
bits each, and beside its weights ``w`` tags ``t`` and delays ``d``. Within an epoch of ``epoch``
steps it notes when neurons fired last; at its end, for each step of the epoch::

    x <- x exp(-1/tau), rounded down, or up with a chance of the rest
    x <- clip(x + impulse, 0, 127) where the neuron fired, its fraction rounded by chance

and then, with all traces as they were in the step that a product depends on (``x0``: when the
source fired, ``y0``: the target, ``u``: the last one) ::

    a <- 2^7 w
    a <- clip(a + clip((m * factors >> s) << (e + 7), -2^15 - 1, 2^15 - 1), ...)    each product
    w <- clip(round by chance(a / 2^7))

``s`` brings the bits of the factors and of m (4) back to 15. Three random numbers are drawn for a
whole step, not for each synapse: all that round in one step round with the same one. The
generators are numpy's, seeded as Lava seeds them, so a run is the same here and there.

Rules of three factors (``modulated``): ``y2 y3`` come from outside, -128 to 127 for each neuron and
step, and ``y1`` is a trace that the target keeps of its own spikes, without chance::

    y1 <- min((y1 (4096 - d) >> 12) + impulse where it fired, 127),   d = 4096 (1 - exp(-1/tau))

Within an epoch they decay as good as not at all. A factor below zero counts as zero in a step in
which the target fires: use one factor for each sign.

Source: lava-nc 0.10.0, ``LearningConnectionModelBitApproximate``, matched bit for bit. Lava calls
itself an approximation of the chip here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spikecl_hardware.loihi.learning import TRACE_MAX, WEIGHTS, Array, Learning, own_trace
from spikecl_hardware.loihi.rules import (
    ACCUMULATOR_BITS,
    MANTISSA_BITS,
    TRACES,
    WIDTHS,
    Product,
    Rule,
)
from spikecl_hardware.loihi.semantics import SignMode

SHIFT = 7  # of weights, tags and delays within the accumulator
LIMIT = 1 << ACCUMULATOR_BITS
ROUNDING_SEED = 2  # Lava's, whatever the seed of the rule
RANGES = {"d": (0, 255), "t": (-257, 255)}


class _Draws:
    """Random numbers of a step: one to round decays, one to round impulses."""

    def __init__(self, seed: int):
        self._decay, self._impulse = (np.random.default_rng(seed + k) for k in (0, 1))
        self.advance()

    def advance(self) -> None:
        self.decay = self._decay.random(1)[0]
        self.impulse = self._impulse.integers(0, TRACE_MAX + 1, size=1, dtype=int)[0]


class Engine:
    """The learning engine of one connection: sees spikes, and changes its weights.

    Args:
        learning: Rules and traces.
        weights: Weights in memory [n_out, n_in], of the signs ``mode``.
        mode: Which signs they may have.
    """

    def __init__(self, learning: Learning, weights: Array, mode: SignMode):
        """Start at rest."""
        self.learning, self.mode = learning, mode
        self.values = {
            "w": weights.copy(),
            "t": np.zeros_like(weights),
            "d": np.zeros_like(weights),
        }
        self.saturated = {name: 0 for name in TRACES}
        self.clipped = 0
        self._x, self._y = _Draws(learning.seed), _Draws(learning.seed + 2)
        self._round = np.random.default_rng(ROUNDING_SEED)
        self._round.random(1)
        self.rest()

    def rest(self) -> None:
        """Forget traces and spikes; variables stay, and time goes on."""
        n_out, n_in = self.values["w"].shape
        self._traces = {"x": np.zeros((2, n_in), np.int64), "y": np.zeros((3, n_out), np.int64)}
        self._fired = {"x": np.zeros(n_in, np.int64), "y": np.zeros(n_out, np.int64)}
        self._own = np.zeros(n_out, np.int64)

    def step(self, time: int, source: Array, target: Array, third: Array | None = None) -> None:
        """See the spikes of a step; at the end of an epoch, learn.

        Args:
            time: Steps since the start, this one with them.
            source: Spikes of the source [n_in].
            target: Spikes of the target [n_out], of the same step.
            third: ``y2 y3`` [2, n_out], which rules of three factors read.
        """
        at = (time - 1) % self.learning.epoch + 1
        self._see("x", source != 0, at, 0)
        self._advance()
        self._see("y", target != 0, at, self._y.impulse)
        if self.learning.modulated and third is not None:
            self._own = own_trace(self._own, target, self.learning)
            self._traces["y"] = np.vstack([self._own, third])
        self._advance()
        if at == self.learning.epoch:
            self._learn(time)

    def _see(self, side: str, fired: Array, at: int, draw: int) -> None:
        """Note when neurons fired; a second spike in an epoch drives the traces at once."""
        again = fired & (self._fired[side] > 0)
        if again.any():
            self._drive(side, again, draw)
        self._fired[side][fired] = at

    def _drive(self, side: str, fired: Array, draw: int) -> None:
        for row, values in enumerate(self._traces[side]):
            whole, part = self.learning.trace(f"{side}{row + 1}").parts
            risen = values[fired] + whole + int(draw < part)
            self.saturated[f"{side}{row + 1}"] += int((risen > TRACE_MAX).sum())
            values[fired] = risen.clip(0, TRACE_MAX)

    def _advance(self) -> None:
        self._x.advance()
        self._y.advance()

    def _learn(self, time: int) -> None:
        draw = self._round.random(1)[0]
        seen = {"x": self._course("x", self._x), "y": self._course("y", self._y)}
        every = self.learning.every
        u = int(every is not None and time // self.learning.epoch % 2**every == 0)
        sees = _Seen(self.values, self._fired, seen, u)
        new = {
            name: self._rounded(name, sees.changed(rule, self.values[name] << SHIFT), draw)
            for name, rule in self.learning.rules.items()
        }
        self.values |= new
        self._fired = {side: np.zeros_like(times) for side, times in self._fired.items()}

    def _course(self, side: str, draws: _Draws) -> Array:
        """Return the traces of one side at each step of the epoch [epoch + 1, rows, n]."""
        course = [self._traces[side]]
        taus = np.array([self.learning.trace(f"{side}{k + 1}").tau for k in range(len(course[0]))])
        keeps = np.zeros((len(taus), 1))
        keeps[taus != 0] = np.exp(-1 / taus[taus != 0][:, None])
        for at in range(1, self.learning.epoch + 1):
            decayed = keeps * course[-1]
            lower = np.floor(decayed)
            self._traces[side] = (lower + (draws.decay < decayed % 1)).astype(np.int64)
            fired = self._fired[side] == at
            if fired.any():
                self._drive(side, fired, draws.impulse)
            course.append(self._traces[side])
        if side == "y" and self.learning.modulated:
            self._traces[side] = course[0]
        return np.stack(course)

    def _rounded(self, name: str, sum_: Array, draw: float) -> Array:
        if name == "d" or (name == "w" and self.mode is SignMode.EXCITATORY):
            sum_ = sum_.clip(min=0)
        elif name == "w" and self.mode is SignMode.INHIBITORY:
            sum_ = sum_.clip(max=0)
        parts = sum_ / (1 << SHIFT)
        value = (np.floor(parts) + (draw < parts % 1)).astype(np.int64)
        low, high = WEIGHTS[self.mode] if name == "w" else RANGES[name]
        if name == "w":
            self.clipped += int(((value < low) | (value > high)).sum())
        return value.clip(low, high)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the products of an epoch read."""

    values: Mapping[str, Array]
    fired: Mapping[str, Array]
    course: Mapping[str, Array]
    u: int

    def changed(self, rule: Rule, sum_: Array) -> Array:
        """Return an accumulator with all products of a rule added."""
        for product in rule.products:
            sum_ = (sum_ + self._product(product)).clip(-LIMIT - 1, LIMIT - 1)
        return sum_

    def _product(self, product: Product) -> Array:
        made = self._when(product.dependency) * product.mantissa
        for factor in product.factors:
            limit = 1 << WIDTHS[factor.name]
            value = self._value(factor.name, product.dependency) + factor.constant
            made = made * (np.sign(value) if factor.sign else value).clip(-limit, limit - 1)
        made = made >> max(0, product.width + MANTISSA_BITS - ACCUMULATOR_BITS)
        made = made << (product.exponent + SHIFT)
        found: Array = np.broadcast_to(made, self.values["w"].shape)
        return found.clip(-LIMIT - 1, LIMIT - 1)

    def _when(self, dependency: str) -> Array:
        if dependency == "u":
            return np.full((1, 1), self.u, np.int64)
        fired = (self.fired[dependency[0]] > 0).astype(np.int64)
        return np.expand_dims(fired, 0 if dependency == "x0" else 1)

    def _value(self, name: str, dependency: str) -> Array:
        """Return a factor, rows for the target and columns for the source."""
        if name in self.values:
            return self.values[name]
        if name in ("x0", "y0"):
            return self._when(name)
        side, row = name[0], int(name[1]) - 1
        course = self.course[side][:, row]
        times = self.fired.get(dependency[0])
        if times is None or side == dependency[0]:  # at the end, or when the neuron itself fired
            own = course[-1] if times is None else course[times, np.arange(len(times))]
            return np.expand_dims(own, 0 if side == "x" else 1)
        other: Array = course[times]  # when the neuron at the other end fired
        return other if dependency == "y0" else other.T
