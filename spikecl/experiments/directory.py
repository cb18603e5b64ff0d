"""A run's directory while the run is on: lock, logs, checkpoints, final files."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spikecl.errors import RunError
from spikecl.records import RowLog, read_rows
from spikecl.storage import State, load_state, read_json, save_state, write_json, writing


class RunDirectory:
    """Opened for writing by one process; others are refused while it is."""

    def __init__(self, path: Path):
        self.path = path
        with writing(path):
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RunError(
                    f"run {path.name} is in use by another process; wait for it or stop it"
                ) from None
        try:
            self.steps = RowLog(path / "steps.jsonl")
            self.timing = RowLog(path / "timing.jsonl")
            self._base = self._spent()
        except BaseException:
            self._lock.release()
            raise
        self._started = time.perf_counter(), time.process_time()

    def close(self) -> None:
        """Close the logs and let others in."""
        with contextlib.ExitStack() as stack:  # whatever fails, the others are closed
            stack.callback(self._lock.release)
            stack.callback(self.timing.close)
            stack.callback(self.steps.close)

    # ---- time -----------------------------------------------------------------------------------

    def elapsed(self) -> tuple[float, float]:
        """Return wall and CPU seconds, earlier sessions included."""
        wall, cpu = self._started
        return (
            self._base[0] + time.perf_counter() - wall,
            self._base[1] + time.process_time() - cpu,
        )

    def note_time(self, event: int, samples: int) -> None:
        """Add a row to ``timing.jsonl``."""
        wall, cpu = self.elapsed()
        row = {"event": event, "samples_seen": samples, "wall_s": wall, "cpu_s": cpu}
        self.timing.append([row])

    def _spent(self) -> tuple[float, float]:
        rows = read_rows(self.path / "timing.jsonl")
        return (rows[-1]["wall_s"], rows[-1]["cpu_s"]) if rows else (0.0, 0.0)

    # ---- checkpoints ----------------------------------------------------------------------------

    def save(self, state: State, *, keep: int) -> None:
        """Write a checkpoint, then drop the oldest."""
        self.timing.sync()
        state = {"learner": state, "steps_length": self.steps.sync()}
        present = self.checkpoints()
        number = int(present[-1].name) + 1 if present else 1
        save_state(self.path / "checkpoints" / f"{number:08d}", state)
        self.prune(keep=keep)

    def prune(self, *, keep: int) -> None:
        """Drop all but the newest checkpoints, and what a killed writer left."""
        kept = self.checkpoints()[-keep:]
        for folder in (self.path / "checkpoints").iterdir():
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def restore(self) -> State | None:
        """Return the newest checkpoint's state and cut the logs back to it."""
        present = self.checkpoints()
        if not present:
            self.steps.truncate(0)
            return None
        state = load_state(present[-1])
        try:
            self.steps.truncate(state["steps_length"])
            return dict(state["learner"])
        except (KeyError, TypeError) as error:
            raise RunError(
                f"checkpoint {present[-1]} is damaged ({error!r}); delete this folder to resume "
                "from an earlier one"
            ) from None

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        with writing(self.path):
            return sorted(p for p in (self.path / "checkpoints").iterdir() if p.name.isdigit())

    # ---- JSON -----------------------------------------------------------------------------------

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write one JSON file of the record."""
        write_json(self.path / name, value)

    def read(self, name: str) -> dict[str, Any]:
        """Read one JSON file of the record."""
        return dict(read_json(self.path / name))

    def set_status(self, status: str) -> None:
        """Change the status in ``run.json``, once there is one."""
        if (self.path / "run.json").exists():
            self.write("run.json", self.read("run.json") | {"status": status})
