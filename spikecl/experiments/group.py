"""The same configuration from several seeds, in parallel over cores."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikecl.errors import Interrupted, RunError, SpikeclError, UsageError
from spikecl.experiments.config import Config
from spikecl.experiments.progress import Progress, Show
from spikecl.experiments.result import RunResult
from spikecl.metrics import interval
from spikecl.records import FORMAT_VERSION, RunRecord
from spikecl.signals import StopRequest, stop_on_signals
from spikecl.storage import write_json, writing

METRICS = (
    "acc",
    "bwt",
    "fwt",
    "forgetting",
    "learning_accuracy",
    "acc_task_aware",
    "acc_task_agnostic",
)


@dataclass(frozen=True, slots=True, eq=False)
class GroupResult:
    """Finished runs that differ in their seed alone, and their statistics."""

    path: Path
    results: tuple[RunResult, ...]

    @property
    def table(self) -> dict[str, Any]:
        """Content of ``group.json`` with n, mean, sd and 95 % t-interval of each metric."""
        return group_table(self.results)


def run_seeds(
    config: Config,
    count: int,
    *,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    show: Show | None = None,
) -> GroupResult:
    """Run seeds ``seed, seed + 1, ...`` and write ``group.json``.

    Each run is a process of its own, as many at a time as there are cores for their threads.
    Finished seeds are taken as they are, interrupted ones go on. Ctrl-C and SIGTERM reach every
    process, and each saves its state.

    Raises:
        Interrupted: Stopped; the same call goes on.
        RunError: A seed failed; its message is given. The others were finished first.
    """
    if count < 1:
        raise UsageError(f"--seeds: got {count}; use at least 1")
    runs, folder = Path(runs_dir), None if data_dir is None else str(data_dir)
    jobs = [_job(config, config.run.seed + i, runs, folder) for i in range(count)]
    limit = max(1, min(count, (os.cpu_count() or 1) // config.run.threads))
    pool = _Pool(jobs, show)
    with stop_on_signals(also=pool.stop) as stop:
        ends = pool.run(limit)
    _check(ends, stop)
    results = tuple(RunResult(RunRecord(Path(end["path"]))) for end in ends)
    group = GroupResult(runs / group_id(config, count, results), results)
    with writing(group.path):
        group.path.mkdir(parents=True, exist_ok=True)
    write_json(group.path / "group.json", group.table)
    return group


def group_table(results: Sequence[RunResult]) -> dict[str, Any]:
    """Return the statistics of several runs; a metric that a run lacks is left out."""
    summaries = [result.summary for result in results]
    first = summaries[0]
    statistics = {
        metric: interval([s[metric] for s in summaries])._asdict()
        for metric in METRICS
        if all(s[metric] is not None for s in summaries)
    }
    names = ("method", "network", "trainer", "stream", "parameters")
    return {
        "format_version": FORMAT_VERSION,
        **{name: first[name] for name in names},
        "seeds": [s["seed"] for s in summaries],
        "runs": [result.path.name for result in results],
        "metrics": statistics,
    }


def group_id(config: Config, count: int, results: Sequence[RunResult]) -> str:
    """Return the group's directory name."""
    text = json.dumps([config.identity(), config.run.seed, count], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    first = results[0].summary
    return f"{first['stream']}-{config.method}-n{count}-{digest}"


class _Pool:
    """Child processes and the threads that read them."""

    def __init__(self, jobs: Sequence[dict[str, Any]], show: Show | None):
        self._jobs, self._show = jobs, show
        self._ends: list[dict[str, Any]] = [{} for _ in jobs]
        self._children: list[subprocess.Popen[str]] = []
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def stop(self) -> None:
        """Pass a stop request on; start nothing more."""
        self._stopped.set()
        for child in self._children:
            if child.poll() is None:
                child.terminate()

    def run(self, limit: int) -> list[dict[str, Any]]:
        """Run all jobs, some at a time; return how each ended."""
        slots = threading.Semaphore(limit)
        threads = []
        for number in range(len(self._jobs)):
            while not slots.acquire(timeout=0.2):  # wakes up for signals
                continue
            if self._stopped.is_set():
                self._ends[number] = {"code": Interrupted.exit_code}
                slots.release()
                continue
            child = _start(self._jobs[number])
            self._children.append(child)
            if self._stopped.is_set():  # the signal came while the child was being started
                child.terminate()
            thread = threading.Thread(target=self._follow, args=(number, child, slots))
            thread.start()
            threads.append(thread)
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.2)
        return self._ends

    def _follow(
        self, number: int, child: subprocess.Popen[str], slots: threading.Semaphore
    ) -> None:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                with contextlib.suppress(ValueError):  # what a library prints is no message
                    self._take(number, json.loads(line))
            code = child.wait()
            self._ends[number].setdefault("code", code)
        finally:
            slots.release()

    def _take(self, number: int, message: dict[str, Any]) -> None:
        if "progress" in message:
            if self._show is not None:
                with self._lock:
                    self._show(Progress(*message["progress"]))
        else:
            self._ends[number] = message


def _job(config: Config, seed: int, runs: Path, data_dir: str | None) -> dict[str, Any]:
    table = config.table()
    table["run"]["seed"] = seed
    return {"config": table, "runs_dir": str(runs), "data_dir": data_dir}


def _start(job: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a process of its own session: Ctrl-C reaches the parent, which passes it on once."""
    child = subprocess.Popen(
        [sys.executable, "-m", "spikecl.experiments.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(job))
    child.stdin.close()
    return child


def _check(ends: Sequence[dict[str, Any]], stop: StopRequest) -> None:
    """Raise what the first failed child said, or that the group was stopped."""
    stopped = [Interrupted.exit_code]
    if stop.asked:
        stopped.append(-signal.SIGTERM)  # it had not begun yet
    for end in ends:
        if end.get("code") not in (0, *stopped):
            error: SpikeclError = RunError(end.get("error", f"a run died with {end.get('code')}"))
            error.exit_code = end["code"] if end.get("code") in (1, 2) else 1
            raise error
    if stop.asked or any(end["code"] in stopped for end in ends):
        raise Interrupted("stopped; all seeds are saved; the same command again goes on")
