"""Five permutations of the 8x8 digits, the last two learned on the chip: one stream, two worlds.

    python benchmarks/across_export.py                             all rows, 5 seeds; resumes
    python benchmarks/across_export.py --rows hlop_chip --seeds 1  a try

``examples/across_export.toml`` with HLOP and with fine-tuning, as it is and without its export: the
same rule, direct feedback, in floats to the end. Each row has the same four trials, learning rates
that hold on both sides, on the first three tasks (of which the chip learns two) with a fifth of
the training samples held out, with a seed that no row reports. Test sets are read by the table
alone. Nothing here needs data that are not built in.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from results import FOLDER, write

from spikecl.experiments import load_config, run_seeds
from spikecl.experiments.config import Config
from spikecl.experiments.result import RunResult
from spikecl.experiments.runner import run_config
from spikecl.metrics import interval

CONFIG = Path(__file__).parent.parent / "examples" / "across_export.toml"
RATES, TRIAL_SEED, TRIAL_TASKS, HELD_OUT = (0.1, 0.3, 0.6, 1.0), 100, 3, 0.2
ROWS = {
    "hlop_float": ("HLOP", "floats", "hlop"),
    "hlop_chip": ("HLOP", "floats, then the chip", "hlop"),
    "finetune_float": ("fine-tuning", "floats", "finetune"),
    "finetune_chip": ("fine-tuning", "floats, then the chip", "finetune"),
}
SEEDS = 5


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/across_export"))
    given = parser.parse_args()
    path = FOLDER / "across_export.json"
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    shown = {}
    for name in given.rows:
        cell = measured(name, given.seeds, given.runs_dir)
        shown[name] = {metric: value["mean"] for metric, value in cell["metrics"].items()}
        if given.seeds == SEEDS:
            found[name] = cell
            write("across_export", "python benchmarks/across_export.py", content(found))
    print(json.dumps(shown))


def configured(name: str, settings: list[str]) -> Config:
    """Return the configuration of a row."""
    _, place, method = ROWS[name]
    config = load_config(CONFIG, [f"method.name={method}", *settings])
    return config if place != "floats" else replace(config, export=None)


def measured(name: str, seeds: int, runs: Path) -> dict[str, Any]:
    """Choose the learning rate of a row, run its seeds, and return what they came to."""
    held = [f"stream.experiences={TRIAL_TASKS}", "export.after=1", f"run.seed={TRIAL_SEED}"]
    held.append(f"data.validation={HELD_OUT}")
    tried = {}
    for rate in RATES:
        config = configured(name, [*held, f"optimiser.lr={rate}"])
        tried[rate] = run_config(config, runs_dir=runs).record.summary["acc"]
        print(name, rate, f"{100 * tried[rate]:.2f}", flush=True)
    best = max(tried, key=lambda rate: tried[rate])
    group = run_seeds(configured(name, [f"optimiser.lr={best}"]), seeds, runs_dir=runs)
    own = {"learned_last": [last_two(each) for each in group.results]}
    if "chip" in name:
        own["lost_at_export"] = [lost(each) for each in group.results]
    print(name, f"{100 * group.table['metrics']['acc']['mean']:.2f}", flush=True)
    return {
        "rate": best,
        "trials": {str(rate): value for rate, value in tried.items()},
        "metrics": {
            **{key: group.table["metrics"][key] for key in ("acc", "bwt", "learning_accuracy")},
            **{key: interval(values)._asdict() for key, values in own.items()},
        },
    }


def last_two(result: RunResult) -> float:
    """Return the mean accuracy on the two last tasks, each as it was just learned."""
    return float(np.mean([result.matrix[-2, -2], result.matrix[-1, -1]]))


def lost(result: RunResult) -> float:
    """Return how much lower the accuracy on the first three tasks is behind the export."""
    return float((result.matrix[3, :3] - result.matrix[4, :3]).mean())


def content(found: dict[str, Any]) -> dict[str, Any]:
    """Return the table as it is kept."""
    rows = [
        {
            "label": ROWS[name][0],
            "learned in": ROWS[name][1],
            "learning rate": f"{found[name]['rate']:g}",
            "metrics": found[name]["metrics"],
        }
        for name in ROWS
        if name in found
    ]
    return {"rows": rows, "cells": found}


if __name__ == "__main__":
    main()
