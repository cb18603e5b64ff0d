"""Two hundred tasks: does a method still learn, and does what it holds stay as it was?

    python benchmarks/long_stream.py --data-dir FOLDER                 the table; resumes
    python benchmarks/long_stream.py --tasks 20 --seeds 1 --methods finetune ewc

200 permutations of the same 1,000 images of MNIST, seen once each in batches of 10; 784-100-10
spiking neurons. Each method gets the same number of trials: learning rates times strengths, on the
first 40 tasks with a tenth of the training samples held out, with a seed that no row reports. The
best one is run with the seeds of the table. ``ACC`` is over all tasks after the last one,
``last five`` over the newest. ``memory`` is the most that a process of 200 tasks had in use, over
that of one of 50, by which the cache of test sets is full. The last line is one JSON object: method
to figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import FOLDER, write
from rows import Row, bimu, figures, measured, mesu, rows_of

from spikecl.experiments.result import RunResult

CONFIG = Path(__file__).parent.parent / "examples" / "long_stream.toml"
TASKS, TRIAL_TASKS, LAST, EARLY = 200, 40, 5, 50
RATES = (0.003, 0.01, 0.03)  # slow ones keep more
SIX = (0.003, 0.006, 0.01, 0.03, 0.1, 0.3)
ROWS: dict[str, Row] = {
    "finetune": Row("fine-tuning", ("method.name=finetune",), rates=SIX),
    "ewc": Row(
        "EWC, online",
        (
            "method.name=ewc",
            "method.ewc.mode=online",
            "method.ewc.gamma=0.9",
            "method.ewc.step=implicit",
        ),
        (("method.ewc.strength=1",), ("method.ewc.strength=10",)),
    ),
    "benna_fusi": Row(
        "Benna-Fusi chain",
        ("method.name=benna_fusi",),
        (("method.benna_fusi.g=0.0003",), ("method.benna_fusi.g=0.003",)),
    ),
    "mesu": mesu((10_000.0, 30_000.0, 100_000.0)),
    "bimu": bimu((1000.0, 10_000.0), (30.0, 100.0, 300.0)),
    "inhibition": Row(
        "inhibition, decaying",
        ("method.name=inhibition",),
        (("method.inhibition.decay=0.8",), ("method.inhibition.decay=0.95",)),
        rates=(0.03, 0.1, 0.3),
    ),
}


def last_five(result: RunResult) -> float:
    """Return the mean accuracy on the newest tasks after the last."""
    return float(np.mean(result.matrix[-1, -LAST:]))


def peak_bytes(settings: Sequence[str], tasks: int, data_dir: Path | None) -> int:
    """Return the most memory that a process of so many tasks had in use."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "spikecl", "run", str(CONFIG), "--runs-dir", folder]
        for each in (*settings, f"stream.experiences={tasks}"):
            command += ["--set", each]
        command += [] if data_dir is None else ["--data-dir", str(data_dir)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        return usage.ru_maxrss * 1024


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/long_stream"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    keep = (given.seeds, given.tasks) == (3, TASKS)
    path = FOLDER / "long_stream.json"
    table: dict[str, Any] = json.loads(path.read_text()) if keep and path.exists() else {}
    found: dict[str, Any] = table.get("cells", {})
    for method in given.methods:
        row = ROWS[method]
        cell = measured(
            row,
            CONFIG,
            rates=RATES,
            tasks=given.tasks,
            seeds=given.seeds,
            trial_tasks=TRIAL_TASKS,
            also={"last_five": last_five},
            where={"runs_dir": given.runs_dir, "data_dir": given.data_dir},
        )
        if keep:
            settings = [*row.at(TASKS), *cell["settings"]]
            peaks = [peak_bytes(settings, tasks, given.data_dir) for tasks in (TASKS, EARLY)]
            found[method] = cell | {"peak_bytes": peaks}
            write("long_stream", "python benchmarks/long_stream.py", content(found))
        else:
            found[method] = cell
    print(json.dumps({method: figures(found, method) for method in given.methods}))


def content(found: dict[str, Any]) -> dict[str, Any]:
    """Return the table as it is kept."""
    ordered = {method: found[method] for method in ROWS if method in found}
    rows = list(rows_of(ordered))
    for row, cell in zip(rows, ordered.values()):
        most, early = cell["peak_bytes"]
        row["memory"] = f"{most / early:.2f}"
    return {"rows": rows, "cells": ordered}


if __name__ == "__main__":
    main()
