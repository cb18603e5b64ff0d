"""A file on every backend: the same samples, one record from each, and where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from spikecl_hardware import energy
from spikecl_hardware.brian2.run import FALLBACK
from spikecl_hardware.loihi.emulator import STATES
from spikecl_hardware.loihi.operations import Counts, count, estimate, estimate_rows
from spikecl_hardware.record import Record
from spikecl_hardware.report import Layer, Outputs, Report, compare, difference

from spikecl.errors import UsageError
from spikecl.experiments.backends import FLOATS, Lava, Loaded, data_of
from spikecl.experiments.trained import TaskData
from spikecl.interop.boundary import hardware_errors
from spikecl.storage import write_json, writing
from spikecl.streams import Stream

Backend = Literal["torch", "emulator", "lava", "brian2"]
BACKENDS = ("torch", "emulator", "lava", "brian2")
BATCH = 250
LAVA_SAMPLES = 20
COMPARED = 50

Progress = Callable[[str, int, int], None]


class Result(NamedTuple):
    """One backend on one test set.

    Args:
        samples: Samples that were run.
        accuracy: Share of right answers.
        rates: Mean spikes of a neuron and step.
        notes: Counts such as ``overflowed`` and ``saturated``.
        operations: Per sample; None where a network has no program.
        run_by: The backend as its records name it, with version and target.
    """

    samples: int
    accuracy: float
    rates: dict[str, float]
    notes: dict[str, dict[str, int]]
    operations: Counts | None
    run_by: str


@dataclass(frozen=True, eq=False)
class Simulation:
    """Backends on test sets: by set and backend."""

    file: Path
    results: dict[str, dict[str, Result]]
    comparisons: dict[str, Report] = field(default_factory=dict)
    records: dict[str, dict[str, Record]] = field(default_factory=dict)

    @property
    def fell_back(self) -> bool:
        """Whether Brian2 ran without the compiler that its target needs."""
        return any(FALLBACK in r.notes for found in self.results.values() for r in found.values())

    def accuracies(self, backend: str) -> list[float]:
        """Return the accuracy of each test set."""
        return [found[backend].accuracy for found in self.results.values()]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each set and backend."""
        made = []
        for name, found in self.results.items():
            for backend, result in found.items():
                row = {
                    "set": name,
                    "backend": backend,
                    "samples": result.samples,
                    "accuracy": result.accuracy,
                    "synaptic events": None,
                    "neuron updates": None,
                    "energy nJ (estimate)": None,
                }
                if result.operations is not None:
                    row["synaptic events"] = result.operations.synaptic_events
                    row["neuron updates"] = result.operations.neuron_updates
                    priced = estimate(result.operations)
                    row["energy nJ (estimate)"] = priced.total_pj / 1000
                made.append(row)
        return made

    def energies(self) -> list[dict[str, Any]]:
        """Return estimates by table for the last backend of the first set, with their sources."""
        for result in reversed(next(iter(self.results.values())).values()):
            if result.operations is not None:
                tables = (energy.LOIHI, energy.INT8_45NM, energy.FLOAT32_45NM)
                return estimate_rows(result.operations, tables)
        return []

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON takes it."""
        return {
            "format_version": 1,
            "file": self.file.name,
            "rows": self.rows(),
            "energy": self.energies(),
            "run_by": {
                name: {b: r.run_by for b, r in found.items()}
                for name, found in self.results.items()
            },
            "notes": {
                name: {b: r.notes for b, r in found.items()} for name, found in self.results.items()
            },
            "rates": {
                name: {b: r.rates for b, r in found.items()} for name, found in self.results.items()
            },
            "comparisons": {
                name: {**r.as_dict(), "rows": r.rows()} for name, r in self.comparisons.items()
            },
        }


def simulate(
    file: str | Path,
    backends: Sequence[str] = ("emulator",),
    *,
    sets: Sequence[str] | None = None,
    samples: int | None = None,
    data: str | None = None,
    data_dir: str | Path | None = None,
    stream: Stream | None = None,
    device: str = "cpu",
    states: Sequence[str] = (),
    lava_options: Lava | None = None,
    target: str | None = None,
    keep: bool = False,
    show: Progress | None = None,
) -> Simulation:
    """Run an exported network on its test data.

    Args:
        file: A Loihi program (``.h5``), or a NIR graph (``.nir``) for ``torch`` and ``brian2``.
        backends: ``torch`` and ``brian2`` are float simulations of the graph (of a program, the one
            beside it), ``emulator`` the integers on numpy (on tensors where ``device`` is ``cuda``
            or there is a compiler), ``lava`` Lava. With several, the first is the reference that
            the others are compared with.
        sets: Test sets by name; by default all of the stream.
        samples: Samples of each set; by default all, 20 for Lava, 250 for Brian2.
        data: Another data set than the one in the file, of the same shape.
        data_dir: Folder with data sets.
        stream: Test sets of your own, or of a run that was made from Python objects.
        device: Of ``torch`` and ``emulator``.
        states: ``u``, ``v`` or both, to be kept in the records.
        lava_options: How Lava is run.
        target: What Brian2 makes of the equations: ``numpy`` (if not given), ``cython``,
            ``cpp_standalone``.
        keep: Whether the records of the first samples of each set are returned.
        show: Called with a backend, samples done and samples in all.

    Raises:
        HardwareError: The file is damaged or of another version, a backend is missing.
        UsageError: An unknown backend or test set.
    """
    path = Path(file)
    if set(backends) - set(BACKENDS) or not backends or len(set(backends)) < len(backends):
        raise UsageError(f"backends {list(backends)}; {', '.join(BACKENDS)} are allowed, each once")
    if unknown := set(states) - set(STATES):
        raise UsageError(f"states {sorted(unknown)}; {', '.join(STATES)} are allowed")
    if samples is not None and samples < 1:
        raise UsageError(f"samples={samples}; 1 or more are allowed")
    if target is not None and "brian2" not in backends:
        raise UsageError(f"target {target!r} is Brian2's; use it with the backend brian2")
    with hardware_errors():
        lava_options = lava_options or Lava()
        loaded = Loaded.read(path, backends, device, lava_options, tuple(states), target or "numpy")
        folder = None if data_dir is None else Path(data_dir)
        tests = data_of(loaded.meta, stream, data, folder)
        chosen = tests.sets if sets is None else list(sets)
        if not chosen or set(chosen) - set(tests.sets):
            raise UsageError(f"test sets {chosen}; there are {', '.join(tests.sets)}")
        if samples is None and {"lava", "brian2"} & set(backends):
            samples = LAVA_SAMPLES if "lava" in backends else BATCH
        found: dict[str, dict[str, Result]] = {}
        reports: dict[str, Report] = {}
        records: dict[str, dict[str, Record]] = {}
        for name in chosen:
            found[name], first, labels = {}, {}, np.zeros(0)
            for backend in backends:
                run = _run_set(loaded, backend, tests, name, samples, show)
                found[name][backend], first[backend], labels = run
            if len(backends) > 1:
                reports[name] = _compared(loaded, list(first.values()), labels)
            if keep:
                records[name] = first
    return Simulation(path, found, reports, records)


def _run_set(
    loaded: Loaded,
    backend: str,
    tests: TaskData,
    name: str,
    samples: int | None,
    show: Progress | None,
) -> tuple[Result, Record, np.ndarray[Any, Any]]:
    """Return one backend on one set, its first record, and the labels of that."""
    hits, done, first, labels = 0, 0, None, np.zeros(0)
    notes: dict[str, dict[str, int]] = {}
    rates: dict[str, float] = {}
    counts: Counts | None = None
    total = tests.size(name)
    total = total if samples is None else min(samples, total)
    for batch in tests.batches(name, size=BATCH, samples=samples):
        record, made = loaded.run(backend, batch.x)
        hits += tests.hits(torch.from_numpy(np.asarray(made)), batch.y, name)
        share = len(batch.y) / total
        for layer, rate in record.rates.items():
            rates[layer] = rates.get(layer, 0.0) + share * rate
        for kind, by_layer in record.notes.items():
            seen = notes.setdefault(kind, {})
            for layer, number in by_layer.items():
                seen[layer] = seen.get(layer, 0) + number
        if first is None:
            first = _cut(record)
            labels = batch.y[:COMPARED].numpy()
            if loaded.program is not None and backend not in FLOATS:
                counts = count(loaded.program, first)
        done += len(batch.y)
        if show is not None:
            show(f"{name} {backend}", done, total)
    assert first is not None
    result = Result(done, hits / max(done, 1), rates, notes, counts, first.backend)
    return result, first, labels


def _compared(loaded: Loaded, records: Sequence[Record], labels: np.ndarray[Any, Any]) -> Report:
    """Return where records differ from the first; those of a graph have no delays to align."""
    if loaded.program is not None:
        return compare(loaded.program, records, labels=labels)
    layers = [
        _layer(record, name, records[0].spikes[name] if i else None)
        for name in records[0].spikes
        if all(name in record.spikes for record in records)
        for i, record in enumerate(records)
    ]
    answers = [loaded.answers(record) for record in records]
    outputs = [
        Outputs(
            record.backend,
            float(np.mean(own == answers[0])) if i else None,
            float(np.mean(own == labels)),
        )
        for i, (record, own) in enumerate(zip(records, answers, strict=True))
    ]
    return Report(len(labels), tuple(layers), tuple(outputs))


def _layer(record: Record, name: str, reference: np.ndarray[Any, Any] | None) -> Layer:
    spikes = record.spikes[name]
    return Layer(
        backend=record.backend,
        population=name,
        neurons=int(np.prod(spikes.shape[2:])),
        rate=record.rates[name],
        silent=int((~(spikes != 0).any((0, 1))).sum()),
        notes={},
        difference=None if reference is None else difference(reference, spikes),
    )


def _cut(record: Record) -> Record:
    """Return the first samples of a record, which are compared and counted."""
    return Record(
        backend=record.backend,
        inputs=record.inputs[:, :COMPARED],
        spikes={name: s[:, :COMPARED] for name, s in record.spikes.items()},
        outputs=record.outputs[:, :COMPARED],
        states={n: {k: v[:, :COMPARED] for k, v in s.items()} for n, s in record.states.items()},
        notes=record.notes,
    )


def save(simulation: Simulation, records: str | Path | None = None) -> Path:
    """Write ``simulation.json`` beside the file, for reports, and kept records as ``.npz``."""
    target = None if records is None else npz(records)
    path = simulation.file.with_name("simulation.json")
    write_json(path, simulation.as_dict())
    if target is None:
        return path
    arrays: dict[str, Any] = {}
    for name, by_backend in simulation.records.items():
        for backend, record in by_backend.items():
            place = f"{name}/{backend}"
            arrays |= {f"{place}/inputs": record.inputs, f"{place}/outputs": record.outputs}
            arrays |= {f"{place}/{layer}/spikes": s for layer, s in record.spikes.items()}
            for layer, kept in record.states.items():
                arrays |= {f"{place}/{layer}/{key}": values for key, values in kept.items()}
    temporary = target.with_name(f".{target.name}.tmp.npz")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(temporary, **arrays)
        temporary.replace(target)
    return path


def npz(path: str | Path) -> Path:
    """Return where records go: a file called ``.npz``."""
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it, such as {path / 'records.npz'}")
    return path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
