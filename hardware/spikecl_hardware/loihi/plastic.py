"""Runs programs whose synapses learn, one sample after the other, bit for bit as Lava does.

Samples come in order, each from rest: neurons, sums and traces start from zero, weights, tags and
time go on. So there is no batch: what the first sample teaches, the second one meets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.emulator import NUMPY, STATES, Synapses, checked_inputs
from spikecl_hardware.loihi.engine import Engine
from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program, ProgramError
from spikecl_hardware.loihi.semantics import LIFState, lif_step
from spikecl_hardware.record import Record

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Learned:
    """What a run with learning left.

    Args:
        record: What populations did. Its notes count, by connection, traces that were cut at 127
            (``traces_saturated``) and weights at the ends of their range (``weights_clipped``).
        program: The program with the weights of the end.
        tags: Tags ``t`` and delays ``d`` [n_out, n_in] by connection.
    """

    record: Record
    program: Program
    tags: Mapping[str, Mapping[str, Array]]


def learn(
    program: Program,
    inputs: npt.ArrayLike,
    *,
    third: Mapping[str, npt.ArrayLike] | None = None,
    states: Iterable[str] = (),
) -> Learned:
    """Run samples one after the other while synapses with `Learning` change.

    Args:
        program: What to run; at least one connection learns.
        inputs: Zeros and ones [T, B, *input_shape] (whole numbers where synapses are graded).
        third: For populations that rules of three factors reach: ``y2 y3`` of each neuron at each
            step [T, B, 2, n], -128 to 127; zero in the steps after the input, unless they are
            given too, [T + latency, B, 2, n].
        states: ``u``, ``v`` or both, where they are wanted.

    Raises:
        ProgramError: Nothing learns, or the input or the third factors do not fit.
    """
    x, third = checked_inputs(program, inputs), checked_third(program, inputs, third or {})
    states = tuple(states)
    if unknown := set(states) - set(STATES):
        raise ProgramError(f"states {sorted(unknown)}; {', '.join(STATES)} is allowed")
    steps, samples = x.shape[:2]
    total = steps + program.latency
    silence = np.zeros((program.latency, *x.shape[1:]), dtype=x.dtype)
    x = np.concatenate([x, silence])
    rows = x.reshape(total, samples, -1).astype(np.int64)
    chip = _Chip(program, (total, samples), states)
    for sample in range(samples):
        chip.rest()
        for t in range(total):
            factors = {name: values[t, sample] for name, values in third.items()}
            chip.step(t, sample, rows[t, sample], factors)
    return chip.learned(x, steps)


def checked_third(
    program: Program, inputs: npt.ArrayLike, third: Mapping[str, npt.ArrayLike]
) -> dict[str, Array]:
    """Return third factors [T + latency, B, 2, n] by population, else ProgramError."""
    learning = [c for c in program.connections if c.learning is not None]
    if not learning:
        raise ProgramError("no connection learns; give one a Learning, or run it with emulate()")
    wanted = {c.target for c in learning if c.learning is not None and c.learning.modulated}
    if wanted != set(third):
        raise ProgramError(
            f"third factors for {', '.join(sorted(third)) or 'no population'}; rules of three "
            f"factors reach {', '.join(sorted(wanted)) or 'none'}"
        )
    found = {}
    for name, given in third.items():
        values = np.asarray(given)
        steps, samples = np.shape(inputs)[:2]
        shape = (steps, samples, 2, program.populations[name].size)
        whole = (steps + program.latency, *shape[1:])
        if values.shape not in (shape, whole) or not np.issubdtype(values.dtype, np.integer):
            raise ProgramError(
                f"third factors of '{name}' are {values.dtype} of shape {values.shape}; whole "
                f"numbers [steps, samples, 2, neurons] = {list(shape)} are allowed"
            )
        if values.size and not (values.min() >= -128 and values.max() <= 127):
            raise ProgramError(
                f"third factors of '{name}' are {values.min()} to {values.max()}; -128 to 127 is "
                "allowed: scale them"
            )
        found[name] = np.zeros(whole, np.int64)
        found[name][: len(values)] = values
    return found


class _Chip:
    """A program in one step after the other."""

    def __init__(self, program: Program, shape: tuple[int, int], states: tuple[str, ...]):
        self.program, self.time = program, 0
        self.engines = {
            c.name: Engine(c.learning, c.dense.effective, c.dense.mode)
            for c in program.connections
            if c.learning is not None
        }
        self.fixed = {
            c.name: Synapses(c, program, NUMPY) for c in program.connections if c.learning is None
        }
        sizes = {name: p.size for name, p in program.populations.items()}
        self.spikes = {name: np.zeros((*shape, n), np.uint8) for name, n in sizes.items()}
        kept = {*states, program.readout.quantity} - {"spikes"}
        self.states = {
            name: {key: np.zeros((*shape, n), np.int64) for key in sorted(kept)}
            for name, n in sizes.items()
        }
        self.wanted = states
        self.rest()

    def rest(self) -> None:
        """Start a sample."""
        populations = self.program.populations
        self.now = {name: _start(p) for name, p in populations.items()}
        self.sums = [
            np.zeros(populations[c.target].size, np.int64) for c in self.program.connections
        ]
        for engine in self.engines.values():
            engine.rest()

    def step(self, t: int, sample: int, x: Array, third: Mapping[str, Array]) -> None:
        """Advance all populations, then let synapses sum and learn."""
        self.time += 1
        fired = {INPUT: x}
        for name, population in self.program.populations.items():
            arrived = [
                sums
                for c, sums in zip(self.program.connections, self.sums, strict=True)
                if c.target == name
            ]
            a = np.sum(arrived, axis=0) if arrived else np.zeros(population.size, np.int64)
            fired[name], self.now[name] = lif_step(a, self.now[name], population.neurons)
            self.spikes[name][t, sample] = fired[name]
            for key, values in self.states[name].items():
                values[t, sample] = getattr(self.now[name], key)
        self.sums = [self._sums(c, fired[c.source]) for c in self.program.connections]
        for c in self.program.connections:
            if c.name in self.engines:
                self.engines[c.name].step(
                    self.time, fired[c.source], fired[c.target], third.get(c.target)
                )

    def _sums(self, connection: Connection, sent: Array) -> Array:
        engine = self.engines.get(connection.name)
        if engine is None:
            shape = self.program.shape(connection.source)
            found: Array = self.fixed[connection.name].sums(sent.reshape(1, *shape))[0]
            return found
        sums: Array = engine.values["w"][:, sent != 0].sum(1)
        e = connection.dense.weight_exp
        return sums << e if e > 0 else sums >> -e

    def learned(self, x: Array, steps: int) -> Learned:
        """Return what is left."""
        program, readout = self.program, self.program.readout
        shapes = {name: p.shape for name, p in program.populations.items()}
        quantity = readout.quantity
        out = (
            self.spikes[readout.population]
            if quantity == "spikes"
            else self.states[readout.population][quantity]
        )
        record = Record(
            backend="emulator (numpy), learning",
            inputs=x,
            spikes={n: s.reshape(*s.shape[:2], *shapes[n]) for n, s in self.spikes.items()},
            outputs=out[len(x) - steps :],
            states={
                n: {k: kept[k].reshape(*x.shape[:2], *shapes[n]) for k in self.wanted}
                for n, kept in self.states.items()
                if self.wanted
            },
            notes={
                "traces_saturated": {n: sum(e.saturated.values()) for n, e in self.engines.items()},
                "weights_clipped": {n: e.clipped for n, e in self.engines.items()},
            },
        )
        tags = {n: {k: e.values[k] for k in ("t", "d")} for n, e in self.engines.items()}
        weights = {n: e.values["w"] for n, e in self.engines.items()}
        return Learned(record, with_weights(program, weights), tags)


def with_weights(program: Program, weights: Mapping[str, Array]) -> Program:
    """Return a program with other weights, by the names of connections."""
    connections = tuple(
        replace(
            c,
            synapses=replace(c.dense, weights=weights[c.name], sign_mode=c.dense.mode),
        )
        if c.name in weights
        else c
        for c in program.connections
    )
    return replace(program, connections=connections)


def _start(population: Population) -> LIFState:
    zero = np.zeros(population.size, np.int64)
    return LIFState(zero, zero + population.start)
