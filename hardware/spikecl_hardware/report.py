"""How backends differ on one program: float simulation, emulator, Lava, in the same samples.

The first record is the reference. Hardware answers later than a simulation without delays, so
populations are compared after `aligned` has taken the delay away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.decode import accuracy, logits
from spikecl_hardware.loihi.program import Program, ProgramError
from spikecl_hardware.record import Record

Array = npt.NDArray[Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """A population against the reference, after alignment.

    Args:
        first: Step, sample and neuron (counted through all features) that differ first, else None.
        differing: Places [T, B, n] in which one fired and the other did not.
        percent: Of the places in which either fired; 0 where none did.
        correlation: Pearson's, over neurons and samples, of spike counts; None where the counts of
            either are all the same.
        count_error: Mean absolute difference of the counts of a neuron in a sample.
    """

    first: tuple[int, int, int] | None
    differing: int
    percent: float
    correlation: float | None
    count_error: float


@dataclass(frozen=True)
class Layer:
    """One population in one backend.

    Args:
        backend: Who ran it.
        population: Which one.
        neurons: How many there are.
        rate: Mean spikes of a neuron and step, after alignment.
        silent: Neurons that fire in no sample.
        notes: Counts that the backend gave, such as ``overflowed`` and ``saturated``.
        difference: Against the reference; None in the reference itself.
    """

    backend: str
    population: str
    neurons: int
    rate: float
    silent: int
    notes: Mapping[str, int]
    difference: Difference | None


@dataclass(frozen=True)
class Outputs:
    """Answers of one backend: share that equals the reference's, and share that is right."""

    backend: str
    agreement: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Report:
    """Layers and answers of every backend, the reference first."""

    samples: int
    layers: tuple[Layer, ...]
    outputs: tuple[Outputs, ...]

    @property
    def silent_layers(self) -> list[tuple[str, str]]:
        """Backend and population where no neuron fires in any sample."""
        return [(x.backend, x.population) for x in self.layers if x.silent == x.neurons]

    def rows(self) -> list[Row]:
        """Return a row for each backend and population, all with the same columns."""
        keys = sorted({key for layer in self.layers for key in layer.notes})
        return [_row(layer, keys) for layer in self.layers]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        found = {**asdict(self), "silent_layers": self.silent_layers}
        return dict(json.loads(json.dumps(found)))  # tuples become lists

    def markdown(self) -> str:
        """Return two tables and the silent layers."""
        parts = [markdown(self.rows()), markdown([asdict(x) for x in self.outputs])]
        parts += [f"Silent: {name} in {backend}" for backend, name in self.silent_layers]
        return "\n\n".join(parts)


def aligned(record: Record, program: Program) -> dict[str, Array]:
    """Return spikes [T, B, *features] by population, step 0 that of the first sample step.

    A record with the latency of the program starts population p at step ``depths[p]``; one without
    (as many steps as answers) starts all at step 0. A population deeper than the readout has fewer
    than T steps; one that the input does not reach starts at step 0. A readout that is read by its
    currents or membranes may be missing.

    Raises:
        ProgramError: The record has another number of steps, or lacks a population.
    """
    steps, answers = len(record.inputs), len(record.outputs)
    if steps not in (answers, answers + program.latency):
        raise ProgramError(
            f"{record.backend}: {steps} steps for {answers} answers; {answers} (no delays) or "
            f"{answers + program.latency} is allowed"
        )
    depths = program.depths if steps > answers else {}
    found = {}
    readout = program.readout
    for name, population in program.populations.items():
        spikes = record.spikes.get(name)
        if spikes is None and name == readout.population and readout.quantity != "spikes":
            continue
        shape = (steps, record.inputs.shape[1], *population.shape)
        if spikes is None or spikes.shape != shape:
            got = "no spikes" if spikes is None else f"spikes {spikes.shape}"
            raise ProgramError(f"{record.backend}: {got} of '{name}'; {shape} is needed")
        start = depths.get(name, 0)
        found[name] = spikes[start : start + answers]
    return found


def compare(
    program: Program, records: Sequence[Record], *, labels: npt.ArrayLike | None = None
) -> Report:
    """Compare records of the same samples with the first of them.

    Scales do not matter: answers are compared by the largest logit.

    Raises:
        ProgramError: No records, no samples, or records that do not fit program or each other.
    """
    sizes = sorted({(len(r.outputs), r.inputs.shape[1]) for r in records})
    if len(sizes) != 1 or 0 in sizes[0]:
        raise ProgramError(
            f"records of (steps, samples) {sizes}; the same for all, one or more, is allowed"
        )
    spikes = [aligned(record, program) for record in records]
    layers = [
        _layer(record, name, own[name], spikes[0].get(name) if i else None)
        for name in program.populations
        for i, (record, own) in enumerate(zip(records, spikes, strict=True))
        if name in own
    ]
    return Report(sizes[0][1], tuple(layers), _outputs(program, records, labels))


def difference(reference: npt.ArrayLike, other: npt.ArrayLike) -> Difference:
    """Compare spikes [T, B, *features]; where one has fewer steps, only those.

    >>> found = difference([[[1, 0]], [[0, 1]]], [[[1, 0]], [[1, 1]]])
    >>> found.first, found.differing, found.count_error
    ((1, 0, 0), 1, 0.5)
    """
    a, b = _fired(reference), _fired(other)
    steps = min(len(a), len(b))
    a, b = a[:steps], b[:steps]
    apart, either = a != b, int(np.count_nonzero(a | b))
    differing = int(np.count_nonzero(apart))
    place = np.unravel_index(int(np.argmax(apart)), apart.shape) if differing else None
    counts = a.sum(axis=0, dtype=np.int64), b.sum(axis=0, dtype=np.int64)
    return Difference(
        first=(int(place[0]), int(place[1]), int(place[2])) if place else None,
        differing=differing,
        percent=100 * differing / max(either, 1),
        correlation=_pearson(*counts),
        count_error=float(np.mean(abs(counts[0] - counts[1]))),
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return rows with the same columns as a table; what is None stays empty.

    >>> print(markdown([{"a": 1, "b": 0.5}, {"a": 2, "b": None}]))
    | a | b |
    | --- | --- |
    | 1 | 0.5 |
    | 2 |  |
    """
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _layer(record: Record, name: str, own: Array, reference: Array | None) -> Layer:
    fired = _fired(own)
    return Layer(
        backend=record.backend,
        population=name,
        neurons=fired.shape[2],
        rate=float(fired.mean()) if fired.size else 0.0,
        silent=int(np.count_nonzero(~fired.any(axis=(0, 1)))),
        notes={key: int(counts[name]) for key, counts in record.notes.items() if name in counts},
        difference=None if reference is None else difference(reference, own),
    )


def _outputs(
    program: Program, records: Sequence[Record], labels: npt.ArrayLike | None
) -> tuple[Outputs, ...]:
    answers = [logits(record.outputs, program.readout) for record in records]
    first = np.argmax(answers[0], axis=1)
    return tuple(
        Outputs(
            backend=record.backend,
            agreement=accuracy(answer, first) if i else None,
            accuracy=None if labels is None else accuracy(answer, labels),
        )
        for i, (record, answer) in enumerate(zip(records, answers, strict=True))
    )


def _row(layer: Layer, notes: Sequence[str]) -> Row:
    d = layer.difference
    return {
        "population": layer.population,
        "backend": layer.backend,
        "neurons": layer.neurons,
        "rate": layer.rate,
        "silent": layer.silent,
        "first difference": d and d.first and "step {}, sample {}, neuron {}".format(*d.first),
        "differing": d and d.differing,
        "percent": d and d.percent,
        "correlation": d and d.correlation,
        "count error": d and d.count_error,
        **{key: layer.notes.get(key) for key in notes},
    }


def _fired(spikes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return spikes as [T, B, n]."""
    s = np.asarray(spikes) != 0
    return np.asarray(s.reshape(*s.shape[:2], int(np.prod(s.shape[2:]))))


def _pearson(a: Array, b: Array) -> float | None:
    x, y = a.ravel() - a.mean(), b.ravel() - b.mean()
    if not a.size or a.min() == a.max() or b.min() == b.max():
        return None
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
