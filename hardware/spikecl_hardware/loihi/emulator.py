"""The emulator: runs a program bit for bit as Lava does, for many samples at once.

Products are floating-point ones, which are exact: float32 where no sum can reach 2^24, float64
beyond; sums of 2^31, which Lava has no room for, are refused. Everything else is int64. `Arrays`
says what a library of arrays has to offer; numpy is the one that is always there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program, ProgramError
from spikecl_hardware.loihi.semantics import (
    HALF_RANGE,
    STATE_LIMIT,
    ConvParameters,
    DenseParameters,
    LIFParameters,
    LIFState,
    charged,
    fire,
    integrate,
    overflowed,
    wrapped,
)
from spikecl_hardware.record import Record

STATES = ("u", "v")
Values = Any  # arrays of the library that computes


class Scan(NamedTuple):
    """Neurons over all steps: spikes [S, B, n], states that were asked for, and counts."""

    spikes: Values
    states: dict[str, Values]
    last: LIFState
    wrapped: int
    overflowed: int
    saturated: int

    @property
    def notes(self) -> dict[str, int]:
        """How often currents wrapped, left their 24 bits in spite of it, and membranes clipped."""
        return {k: getattr(self, k) for k in ("wrapped", "overflowed", "saturated")}


class Arrays:
    """numpy; another library overrides what it does otherwise."""

    name = "numpy"

    def take(self, x: npt.NDArray[Any]) -> Values:
        """Return whole numbers of any type as values of this library."""
        return x

    def wide(self, x: npt.ArrayLike) -> Values:
        """Return int64 values."""
        return np.asarray(x, dtype=np.int64)

    def give(self, x: Values) -> npt.NDArray[Any]:
        """Return values as a numpy array."""
        return np.asarray(x)

    def zeros(self, shape: tuple[int, ...]) -> Values:
        """Return int64 zeros."""
        return np.zeros(shape, dtype=np.int64)

    def small_zeros(self, shape: tuple[int, ...]) -> Values:
        """Return zeros in which spikes are kept."""
        return np.zeros(shape, dtype=np.uint8)

    def repeats(self, x: Values) -> bool:
        """Whether [S, ...] is one step repeated."""
        return len(x) > 1 and x.strides[0] == 0

    def largest(self, x: Values) -> int:
        """Return the largest magnitude."""
        return max(int(x.max()), -int(x.min())) if x.size else 0

    def real(self, x: Values, *, double: bool) -> Values:
        """Return floating-point numbers to multiply."""
        return x.astype(np.float64 if double else np.float32)

    def whole(self, x: Values) -> Values:
        """Return int64 from floating-point whole numbers."""
        return x.astype(np.int64)

    def product(self, rows: Values, weights: Values) -> Values:
        """Return rows [R, n_in] times weights [n_out, n_in]."""
        return rows @ weights.T

    def convolution(self, maps: Values, weights: Values, stride: int, padding: int) -> Values:
        """Return the convolution of maps [R, c_in, H, W]."""
        edges = ((0, 0), (0, 0), (padding, padding), (padding, padding))
        window = (1, 1, *weights.shape[2:])
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(maps, edges), window)
        windows = windows[:, :, ::stride, ::stride, 0, 0]
        return np.einsum("rcyxkl,ockl->royx", windows, weights, optimize=True)

    def later(self, sums: Values, steps: int, total: int, others: Values | None) -> Values:
        """Return sums [steps or 1, B, n] from the second of ``total`` steps on, with others."""
        made = self.zeros((total, *sums.shape[1:])) if others is None else others
        made[1 : steps + 1] += sums
        return made

    def neurons(self, parameters: LIFParameters) -> LIFParameters:
        """Return registers as values of this library."""
        return parameters

    def scan(
        self,
        a: Values,
        neurons: LIFParameters,
        state: LIFState | None = None,
        *,
        states: Iterable[str] = (),
    ) -> Scan:
        """Run neurons over currents [S, B, n] with the equations of `semantics`."""
        spikes = self.small_zeros(a.shape)
        kept = {name: self.zeros(a.shape) for name in states}
        turned, wild, full = 0, 0, 0
        most = 64 * len(a) * self.largest(a) + (0 if state is None else self.largest(state.u))
        careful = most > STATE_LIMIT  # else u stays in its 24 bits, and is not looked at
        for t in range(len(a)):
            before = integrate(a[t], state, neurons)
            if careful:
                u = charged(a[t], state, neurons)
                turned += int(((u > HALF_RANGE) | (u <= -HALF_RANGE)).sum())
                wild += int(overflowed(before.u).sum())
            if self.largest(before.v) == STATE_LIMIT:
                full += int((abs(before.v) == STATE_LIMIT).sum())
            s, state = fire(before, neurons)
            spikes[t] = s
            for name, values in kept.items():
                values[t] = getattr(state, name)
        zero = self.zeros(a.shape[1:])
        return Scan(spikes, kept, state or LIFState(zero, zero), turned, wild, full)


NUMPY = Arrays()


def emulate(
    program: Program,
    inputs: npt.ArrayLike,
    *,
    states: Iterable[str] = (),
    arrays: Arrays = NUMPY,
) -> Record:
    """Run samples from rest and return what every population did.

    Args:
        program: What to run.
        inputs: Whole numbers [T, B, *input_shape]; zeros and ones unless synapses of the input are
            graded. After them the input is silent until the last answer is out.
        states: ``u``, ``v`` or both, where they are wanted.
        arrays: Library that computes.

    Raises:
        ProgramError: The input does not fit.
    """
    x = checked_inputs(program, inputs)
    states = tuple(states)
    if unknown := set(states) - set(STATES):
        raise ProgramError(f"states {sorted(unknown)}; {', '.join(STATES)} is allowed")
    latency, steps, samples = program.latency, len(x), x.shape[1]
    total = steps + latency
    activity: dict[str, Values] = {INPUT: arrays.take(x)}
    found: dict[str, Scan] = {}
    wanted = {name: set(states) for name in program.populations}
    wanted[program.readout.population] |= {program.readout.quantity} - {"spikes"}
    for group in _groups(program):
        currents = {name: _currents(program, name, group, activity, arrays) for name in group}
        inner = [c for c in program.connections if c.source in group and c.target in group]
        done = (
            _together(program, currents, inner, wanted, arrays)
            if inner
            else {
                name: arrays.scan(
                    a,
                    arrays.neurons(program.populations[name].neurons),
                    _start(program.populations[name], samples, arrays),
                    states=wanted[name],
                )
                for name, a in currents.items()
            }
        )
        found |= done
        activity |= {
            name: scan.spikes.reshape(total, samples, *program.populations[name].shape)
            for name, scan in done.items()
        }
    out = found[program.readout.population]
    quantity = program.readout.quantity
    answers = out.spikes if quantity == "spikes" else out.states[quantity]
    return Record(
        backend=f"emulator ({arrays.name})",
        inputs=np.concatenate([x, np.zeros((latency, *x.shape[1:]), dtype=x.dtype)]),
        spikes={name: arrays.give(activity[name]) for name in program.populations},
        outputs=arrays.give(answers[latency:]),
        states={
            name: {
                key: arrays.give(scan.states[key]).reshape(
                    total, samples, *program.populations[name].shape
                )
                for key in states
            }
            for name, scan in found.items()
            if states
        },
        notes={
            kind: {name: scan.notes[kind] for name, scan in found.items()} for kind in out.notes
        },
    )


def checked_inputs(program: Program, inputs: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return inputs [T, B, *input_shape] that the program can take, else ProgramError."""
    x = np.asarray(inputs)
    if x.ndim < 3 or x.shape[2:] != program.input_shape or not x.size:
        raise ProgramError(
            f"inputs have shape {x.shape}; [steps, samples, "
            f"{', '.join(map(str, program.input_shape))}], no axis empty, is allowed"
        )
    one = x[:1] if x.strides[0] == 0 else x
    if not np.issubdtype(x.dtype, np.integer) and not bool((one == np.round(one)).all()):
        raise ProgramError("inputs are no whole numbers; quantise them with the program's scale")
    bits = [c.synapses.num_message_bits for c in program.connections if c.source == INPUT]
    if min(bits, default=0) == 0:
        low, high, what = 0, 1, "binary synapses"
    else:
        half = 1 << (min(bits) - 1)
        low, high, what = -half, half - 1, f"messages of {min(bits)} bits"
    if one.min() < low or one.max() > high:
        raise ProgramError(
            f"inputs are {one.min()} to {one.max()}; {low} to {high} is allowed for {what}"
        )
    return x


class Synapses:
    """A connection as a function from activity [R, *features] to sums [R, n_out]."""

    def __init__(self, connection: Connection, program: Program, arrays: Arrays):
        """Take the weights in memory."""
        self.synapses, self.arrays = connection.synapses, arrays
        self.name = f"'{connection.source}' to '{connection.target}'"
        self.shape = program.shape(connection.source)
        synapses = connection.synapses
        weights = synapses.weights if isinstance(synapses, ConvParameters) else synapses.effective
        self.weights = np.asarray(weights)
        self.reach = int(abs(self.weights).reshape(len(self.weights), -1).sum(1).max(initial=0))
        self._real: dict[bool, Values] = {}

    def sums(self, activity: Values) -> Values:
        """Return what is sent a step later; exact."""
        synapses, arrays = self.synapses, self.arrays
        graded = synapses.num_message_bits > 0  # else all messages are zeros and ones
        bound = self.reach * (arrays.largest(activity) if graded else 1)
        shift = getattr(synapses, "weight_exp", 0)
        if bound << max(shift, 0) >= 1 << 31:
            raise ProgramError(
                f"{self.name}: sums of weights reach {bound << max(shift, 0)}; below 2^31 is "
                "allowed, as Lava holds them: smaller messages or weights"
            )
        double = bound >= 1 << 24
        if double not in self._real:
            self._real[double] = arrays.real(arrays.wide(self.weights), double=double)
        rows = arrays.real(activity, double=double)
        if isinstance(synapses, DenseParameters):
            acc = arrays.whole(arrays.product(rows.reshape(len(rows), -1), self._real[double]))
            e = synapses.weight_exp
            return acc << e if e > 0 else acc >> -e
        maps = rows.reshape(len(rows), *self.shape)
        made = arrays.convolution(maps, self._real[double], synapses.stride, synapses.padding)
        return wrapped(arrays.whole(made).reshape(len(rows), -1))


def _currents(
    program: Program, name: str, group: list[str], activity: Mapping[str, Values], arrays: Arrays
) -> Values:
    """Return what arrives [S, B, n] from outside a group, each step one step after it was sent."""
    total = len(activity[INPUT]) + program.latency
    samples, found = activity[INPUT].shape[1], None
    for c in program.connections:
        if c.target == name and c.source not in group:
            sent, synapses = activity[c.source], Synapses(c, program, arrays)
            steps = min(total - 1, len(sent))
            if arrays.repeats(sent):
                sums = synapses.sums(sent[0])[None]
            else:
                rows = sent[:steps].reshape(steps * samples, *sent.shape[2:])
                sums = synapses.sums(rows).reshape(steps, samples, -1)
            found = arrays.later(sums, steps, total, found)
    size = program.populations[name].size
    return arrays.zeros((total, samples, size)) if found is None else found


def _together(
    program: Program,
    currents: Mapping[str, Values],
    inner: list[Connection],
    wanted: Mapping[str, set[str]],
    arrays: Arrays,
) -> dict[str, Scan]:
    """Run populations that depend on each other, one step at a time."""
    neurons = {n: arrays.neurons(program.populations[n].neurons) for n in currents}
    synapses = [(c, Synapses(c, program, arrays)) for c in inner]
    steps: dict[str, list[Scan]] = {name: [] for name in currents}
    for t in range(len(next(iter(currents.values())))):
        now = {name: a[t] for name, a in currents.items()}
        if t:
            for c, made in synapses:
                now[c.target] = now[c.target] + made.sums(steps[c.source][-1].spikes[0])
        for name, a in now.items():
            population = program.populations[name]
            state = steps[name][-1].last if t else _start(population, a.shape[0], arrays)
            steps[name].append(arrays.scan(a[None], neurons[name], state, states=wanted[name]))
    return {name: _joined(parts, arrays) for name, parts in steps.items()}


def _start(population: Population, samples: int, arrays: Arrays) -> LIFState | None:
    """Return the state before the first step; ``None`` is zero."""
    if not np.any(population.start):
        return None
    zero = arrays.zeros((samples, population.size))
    return LIFState(zero, zero + arrays.wide(population.start))


def _joined(parts: list[Scan], arrays: Arrays) -> Scan:
    def stacked(values: list[Values], zeros: Values) -> Values:
        for t, value in enumerate(values):
            zeros[t] = value[0]
        return zeros

    shape = (len(parts), *parts[0].spikes.shape[1:])
    return Scan(
        spikes=stacked([p.spikes for p in parts], arrays.small_zeros(shape)),
        states={
            key: stacked([p.states[key] for p in parts], arrays.zeros(shape))
            for key in parts[0].states
        },
        last=parts[-1].last,
        **{kind: sum(p.notes[kind] for p in parts) for kind in parts[0].notes},
    )


def _groups(program: Program) -> list[list[str]]:
    """Return populations in an order in which each group depends on earlier ones and itself."""
    names = list(program.populations)
    into: dict[str, set[str]] = {name: set() for name in names}
    for c in program.connections:
        if c.source != INPUT:
            into[c.target].add(c.source)
    before = {name: _ancestors(name, into) for name in names}
    groups: list[list[str]] = []
    for name in sorted(names, key=lambda n: (len(before[n] | {n}), names.index(n))):
        mates = [o for o in names if o == name or (o in before[name] and name in before[o])]
        if mates not in groups:
            groups.append(mates)
    return groups


def _ancestors(name: str, into: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    frontier = set(into[name])
    while frontier:
        found |= frontier
        frontier = {source for f in frontier for source in into[f]} - found
    return found


__all__ = ["NUMPY", "STATES", "Arrays", "Population", "Scan", "checked_inputs", "emulate"]
