"""Records of runs: which files there are, how they are written and read.

A run directory holds ``run.json`` (what ran, where, status), ``steps.jsonl`` (measurements, no
times), ``timing.jsonl`` (times), ``matrix.json``, ``cost.json``, ``weights/`` and ``summary.json``
(written last: a run with a summary is finished), and ``checkpoints/``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikecl.errors import RunError, UsageError, suggest
from spikecl.storage import read_json, writing

FORMAT_VERSION = 1


class RowLog:
    """An append-only file of JSON rows that can be cut back to an earlier length."""

    def __init__(self, path: Path):
        self.path = path
        with writing(path):
            self._file = path.open("ab")
            self._file.truncate(path.read_bytes().rfind(b"\n") + 1)  # a line cut off by a kill
            self._file.seek(0, os.SEEK_END)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows; they reach the disk at the next :meth:`sync`."""
        with writing(self.path):
            for row in rows:
                self._file.write((json.dumps(row, allow_nan=False) + "\n").encode())

    def sync(self) -> int:
        """Flush to the disk and return the length in bytes."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def truncate(self, length: int) -> None:
        """Drop everything after a length returned by :meth:`sync`."""
        with writing(self.path):
            self._file.truncate(length)
            self._file.seek(length)

    def close(self) -> None:
        """Flush and close."""
        with writing(self.path):
            self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the whole rows of a log; a half-written last line is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove the run and start again") from None


@dataclass(frozen=True, slots=True, eq=False)
class RunRecord:
    """One run as its directory tells it."""

    path: Path

    @property
    def id(self) -> str:
        """Name of the run directory."""
        return self.path.name

    @property
    def run(self) -> dict[str, Any]:
        """What ran, with configuration, versions, host and status."""
        return _read_table(self.path / "run.json")

    @property
    def finished(self) -> bool:
        """Whether the run has its summary."""
        return (self.path / "summary.json").exists()

    @property
    def summary(self) -> dict[str, Any]:
        """Scalars of a finished run."""
        if not self.finished:
            raise RunError(
                f"run {self.id} is {self.run.get('status')}; 'spikecl resume {self.id}' finishes it"
            )
        return _read_table(self.path / "summary.json", "acc")

    @property
    def cost(self) -> dict[str, Any]:
        """Bytes, operations and energy estimate of a finished run."""
        return dict(read_json(self.path / "cost.json"))

    @property
    def on_chip(self) -> bool:
        """Whether the run went on on the chip."""
        return "of" in self.cost

    @property
    def chip_path(self) -> Path:
        """The program that the chip ended with, where the run learned on one."""
        return self.path / "export" / f"{self.id}-chip.h5"

    def tasks(self) -> list[dict[str, Any]]:
        """Return operations and the energy estimate of each event, in rows for a table."""
        return list(self.cost.get("tasks", {}).get("rows", []))

    def matrix(self, kind: str | None = None) -> NDArray[np.float64]:
        """Return the accuracy matrix; ``kind`` is ``aware`` or ``agnostic``, else the run's own."""
        table = read_json(self.path / "matrix.json")
        values = table[kind or table["chosen"]]
        return np.array([[np.nan if v is None else v for v in row] for row in values])

    def matrix_names(self) -> tuple[list[str], list[str]]:
        """Return the names of the matrix's rows and columns."""
        table = read_json(self.path / "matrix.json")
        return list(table["rows"]), list(table["columns"])

    def steps(self) -> list[dict[str, Any]]:
        """Return the measurements in order."""
        return read_rows(self.path / "steps.jsonl")


def _read_table(path: Path, *keys: str) -> dict[str, Any]:
    table = read_json(path)
    if not isinstance(table, dict) or set(keys) - table.keys():
        raise RunError(f"{path} is damaged (no table with {keys}); remove the run and start again")
    return table


def find_runs(runs_dir: Path) -> list[RunRecord]:
    """Return all runs under a directory, sorted by name."""
    return [RunRecord(path.parent) for path in sorted(runs_dir.glob("*/run.json"))]


def find_run(given: str, runs_dir: Path) -> RunRecord:
    """Return the run a path, a name or a unique prefix stands for."""
    path = Path(given)
    if _has(path, "run.json"):
        return RunRecord(path.resolve())
    runs = {record.id: record for record in find_runs(runs_dir)}
    matches = [name for name in runs if name.startswith(given)]
    if given in runs or len(matches) == 1:
        return runs[given if given in runs else matches[0]]
    if matches:
        raise UsageError(f"'{given}' fits {len(matches)} runs: {', '.join(matches)}; give more")
    raise UsageError(f"no run '{given}' in {runs_dir}{suggest(given, runs)}")


def _has(folder: Path, name: str) -> bool:
    try:
        return (folder / name).exists()
    except OSError:  # a name that no disk could have
        return False


def select_runs(given: Sequence[str], runs_dir: Path) -> list[RunRecord]:
    """Return the runs that names stand for, in order.

    A name is what :func:`find_run` takes, a group of seeds (its directory or name), or a pattern
    with ``*``, which means the finished runs it fits.
    """
    selected: list[RunRecord] = []
    for name in given:
        group = next((p for p in (Path(name), runs_dir / name) if _has(p, "group.json")), None)
        if group is not None:
            members = read_json(group / "group.json")["runs"]
            selected += [find_run(str(group.parent / member), runs_dir) for member in members]
        elif "*" in name:
            fits = [r for r in find_runs(runs_dir) if fnmatch(r.id, name) and r.finished]
            if not fits:
                raise UsageError(f"no finished run in {runs_dir} fits '{name}'; see 'spikecl list'")
            selected += fits
        else:
            selected.append(find_run(name, runs_dir))
    return selected


def event_name(event: int, exports: Sequence[int] = ()) -> str:
    """Return what an event is called in tables."""
    return "export" if event in exports else f"event{event}"


def matrix_table(
    aware: NDArray[np.float64],
    agnostic: NDArray[np.float64],
    *,
    columns: list[str],
    chosen: str,
    exports: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the content of ``matrix.json``; entries not measured are ``null``."""
    rows = ["untrained", *(event_name(i, exports) for i in range(len(aware) - 1))]

    def plain(values: NDArray[np.float64]) -> list[list[float | None]]:
        return [[None if np.isnan(v) else float(v) for v in row] for row in values]

    return {
        "format_version": FORMAT_VERSION,
        "rows": rows,
        "columns": columns,
        "chosen": chosen,
        "aware": plain(aware),
        "agnostic": plain(agnostic),
    }
