"""A learner that regulates its own rate, against the best constant rate, while labels shift.

    python benchmarks/concept_shift.py --data-dir FOLDER               the table; resumes
    python benchmarks/concept_shift.py --shifts 500 --seeds 1 --rows constant need

20,000 images of MNIST, seen once each in batches of 10; after every so many samples two pairs of
labels exchange (``examples/concept_shift.toml``), at a constant rate or a varying one. Rows: the
best constant learning rate of a grid, the homeostatic learner ``need``, and its controls, whose
rate is regulated at random. Each row gets the same number of trials at each rate of shifts, with a
seed that no row reports. What is reported is prequential: the accuracy on training batches before
the step on them, over the whole stream; no test set is read.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from results import FOLDER, write

from spikecl.experiments import load_config, run_seeds
from spikecl.experiments.result import RunResult
from spikecl.experiments.runner import run_config
from spikecl.metrics import interval

CONFIG = Path(__file__).parent.parent / "examples" / "concept_shift.toml"
SHIFTS = ("250", "500", "1000", "2000", "varying 500")
TOTAL, SEEDS, TRIAL_SEED = 20_000, 5, 100
REGULATED = tuple(
    (f"optimiser.lr={rate}", f"method.need.kappa={kappa}")
    for rate, kappa in itertools.product((0.05, 0.1, 0.2, 0.4), (0.3, 1.0, 3.0))
)
ROWS: dict[str, tuple[str, str, tuple[tuple[str, ...], ...]]] = {
    "constant": (
        "best constant rate",
        "method.name=finetune",
        tuple(
            (f"optimiser.lr={rate}",)
            for rate in (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8)
        ),
    ),
    "need": ("homeostatic learner", "method.name=need", REGULATED),
    "random": ("regulated at random", "method.name=need", REGULATED),
}


def prequential(result: RunResult) -> float:
    """Return the accuracy on training batches before the step on them, over the whole stream."""
    hits, seen, before = 0.0, 0, 0
    for row in result.steps():
        if row["phase"] == "train" and row["metric"] == "accuracy":
            count = row["samples_seen"] - before
            hits, seen, before = hits + row["value"] * count, seen + count, row["samples_seen"]
    return hits / seen


def common(shift: str, row: str) -> list[str]:
    """Return the settings of a rate of shifts."""
    samples = int(shift.split()[-1])
    rate = "varying" if shift.startswith("varying") else "constant"
    return [
        ROWS[row][1],
        f"stream.concept_shift.samples={samples}",
        f"stream.concept_shift.rate={rate}",
        f"stream.experiences={TOTAL // samples}",
        *(["method.need.control=random"] if row == "random" else []),
    ]


def cell(shift: str, row: str, seeds: int, where: dict[str, Any]) -> dict[str, Any]:
    """Choose the settings of a row at a rate of shifts, run its seeds, return what they came to."""
    label, _, trials = ROWS[row]
    fixed, tried = common(shift, row), {}
    for each in trials:
        settings = [*fixed, *each, f"run.seed={TRIAL_SEED}"]
        tried[each] = prequential(run_config(load_config(CONFIG, settings), **where))
    best = max(tried, key=lambda each: tried[each])
    group = run_seeds(load_config(CONFIG, [*fixed, *best, "run.seed=1"]), seeds, **where)
    values = [prequential(result) for result in group.results]
    print(shift, label, *best, f"{100 * sum(values) / len(values):.2f}", flush=True)
    return {
        "label": label,
        "samples between shifts": shift,
        "chosen": " ".join(best),
        "trials": {" ".join(each): value for each, value in tried.items()},
        "metrics": {"prequential": interval(values)._asdict()},
    }


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shifts", nargs="*", choices=SHIFTS, default=list(SHIFTS))
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/concept_shift"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    where = {"runs_dir": given.runs_dir, "data_dir": given.data_dir}
    path = FOLDER / "concept_shift.json"
    found: dict[str, Any] = {}
    if given.seeds == SEEDS and path.exists():
        found = json.loads(path.read_text())["cells"]
    for shift, row in itertools.product(given.shifts, given.rows):
        found[f"{shift} {row}"] = cell(shift, row, given.seeds, where)
        if given.seeds == SEEDS:
            keys = [f"{s} {r}" for s, r in itertools.product(SHIFTS, ROWS)]
            cells = {key: found[key] for key in keys if key in found}
            rows = [{k: v for k, v in c.items() if k != "trials"} for c in cells.values()]
            content = {"rows": rows, "cells": cells}
            write("concept_shift", "python benchmarks/concept_shift.py", content)
    shown = {key: each["metrics"]["prequential"]["mean"] for key, each in found.items()}
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
