"""Lateral neurons that spike: what a learner with them does, and how far off their answers are.

    python benchmarks/lateral.py --data-dir FOLDER                    the table; resumes
    python benchmarks/lateral.py --data-dir FOLDER --rows hlop_spiking --seeds 1

``examples/pmnist.toml`` on five permutations of 2,000 images. Nothing is chosen here: rows of one
method differ in their lateral neurons alone. ``error`` is that of what the lateral neurons take
out of rows of activity, relative to its size, at the end of the last task. The last line is one
JSON object: row to figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import FOLDER, commit, write
from rows import means

from spikecl.experiments import RunResult, load_config, run_seeds

CONFIG = Path(__file__).parent.parent / "examples" / "pmnist.toml"
TASKS, SAMPLES, SEEDS, RATE = 5, 2000, 3, 0.2
METRICS = ("acc", "bwt", "learning_accuracy")
ERRORS = {"hlop": "projection_error", "inhibition": "error"}
ROWS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "hlop": ("HLOP", "hlop", ()),
    "hlop_quantised": ("HLOP, rates", "hlop", ("method.hlop.lateral=quantised",)),
    "hlop_spiking": ("HLOP, spikes", "hlop", ("method.hlop.lateral=spiking",)),
    "inhibition": ("inhibition", "inhibition", ()),
    "inhibition_circuit": (
        "inhibition, one-shot circuit",
        "inhibition",
        ("method.inhibition.rule=circuit",),
    ),
    "inhibition_spiking": (
        "inhibition, one-shot circuit with spikes",
        "inhibition",
        ("method.inhibition.rule=spiking",),
    ),
}


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each task")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/lateral"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    path, whole = FOLDER / "lateral.json", (given.seeds, given.samples) == (SEEDS, SAMPLES)
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if whole and path.exists() else {}
    common = [f"data.samples={given.samples}", f"stream.experiences={TASKS}", "run.seed=1"]
    for row in given.rows:
        begun, (label, method, settings) = commit(), ROWS[row]
        chosen = [*common, f"optimiser.lr={RATE}", f"method.name={method}", *settings]
        group = run_seeds(
            load_config(CONFIG, chosen),
            given.seeds,
            runs_dir=given.runs_dir,
            data_dir=given.data_dir,
        )
        found[row] = {
            "label": label,
            "errors": errors(group.results, method),
            "metrics": {name: group.table["metrics"][name] for name in METRICS},
            "commit": begun,
        }
        print(label, {k: v["mean"] for k, v in found[row]["metrics"].items()}, flush=True)
        if whole:
            ordered = {name: found[name] for name in ROWS if name in found}
            rows = [shown(cell) for cell in ordered.values()]
            write("lateral", "python benchmarks/lateral.py", {"rows": rows, "cells": ordered})
    print(json.dumps({row: means(found[row]["metrics"]) for row in given.rows}))


def errors(results: Sequence[RunResult], method: str) -> dict[str, float]:
    """Return the error of each synapse's lateral neurons at the end, as a mean over seeds."""
    last = []
    for result in results:
        said = [row for row in result.record.steps() if row["metric"] == method]
        last.append(said[-1]["value"] if said else {})
    of = ERRORS[method]
    return {
        path: float(np.mean([each[path][of] for each in last]))
        for path, value in (last[0] if last else {}).items()
        if of in value
    }


def shown(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the documentation."""
    text = ", ".join(f"{path} {value:.2f}" for path, value in cell["errors"].items())
    return {"label": cell["label"], "error": text, "metrics": cell["metrics"]}


if __name__ == "__main__":
    main()
