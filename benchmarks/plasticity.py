"""Where plasticity is lost: inhibition on ten tasks, one synapse after the other left free.

    python benchmarks/plasticity.py --data-dir FOLDER                    the study; resumes
    python benchmarks/plasticity.py --rows all --seeds 1 --samples 2000

``examples/pmnist.toml`` with 10,000 images of each task. Rows have the same learning rate and
strength where they do not say otherwise. What a row leaves out of protection shows
what that protection costs new tasks (learning accuracy) and what it saves old ones (BWT). Fewer
than three seeds are not kept, and no row is replaced by one of fewer seeds. The last line is one
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
ALPHA, FREE = 0.5, 1e6  # relative to the mean variance; the second protects nothing
RATE = 0.2
SEEDS, SAMPLES = 3, 10000


def strengths(*alphas: float) -> tuple[str, ...]:
    """Return the settings of inhibition with a strength for each synapse."""
    return ("method.name=inhibition", f"method.inhibition.alpha={list(alphas)}")


ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "finetune": ("fine-tuning", ("method.name=finetune",)),
    "all": ("inhibition", strengths(ALPHA, ALPHA, ALPHA)),
    "no_hidden1": ("hidden1 free", strengths(FREE, ALPHA, ALPHA)),
    "no_hidden2": ("hidden2 free", strengths(ALPHA, FREE, ALPHA)),
    "no_readout": ("readout free", strengths(ALPHA, ALPHA, FREE)),
    "wide": ("four times the strength", strengths(4 * ALPHA, 4 * ALPHA, 4 * ALPHA)),
    "rescaled": (
        "rescaled, twice the learning rate",
        (
            *strengths(ALPHA, ALPHA, ALPHA),
            "method.inhibition.rescale=true",
            f"optimiser.lr={2 * RATE}",
        ),
    ),
    "rate": (
        "twice the learning rate",
        (*strengths(ALPHA, ALPHA, ALPHA), f"optimiser.lr={2 * RATE}"),
    ),
    "budget": (
        "a budget of 0.5",
        (*strengths(ALPHA, ALPHA, ALPHA), "method.inhibition.budget=0.5"),
    ),
}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each task")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/plasticity"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    where = {"runs_dir": given.runs_dir, "data_dir": given.data_dir}
    path = FOLDER / "plasticity.json"
    whole = given.seeds >= SEEDS and given.samples == SAMPLES
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if whole and path.exists() else {}
    if reason := lost(found, given):
        parser.error(f"{reason}; see {path.name}")
    common = [f"data.samples={given.samples}", f"optimiser.lr={RATE}", "run.seed=1"]
    for name in given.rows:
        begun, (label, settings) = commit(), ROWS[name]
        group = run_seeds(load_config(CONFIG, [*common, *settings]), given.seeds, **where)
        found[name] = {
            "label": label,
            "settings": list(settings),
            "metrics": group.table["metrics"],
            **curves(group.results),
            "commit": begun,
        }
        print(label, {k: v["mean"] for k, v in group.table["metrics"].items()}, flush=True)
        if whole:
            ordered = {row: found[row] for row in ROWS if row in found}
            rows = [shown(cell) for cell in ordered.values()]
            write("plasticity", command(given), {"rows": rows, "cells": ordered})
    print(json.dumps({name: means(found[name]["metrics"]) for name in given.rows}))


def lost(found: dict[str, Any], given: argparse.Namespace) -> str:
    """Return what a table that is kept would lose if this run were written to it."""
    for row in (row for row in given.rows if row in found):
        if (held := found[row]["metrics"]["acc"]["n"]) > (now := given.seeds):
            return f"row '{row}' has {held} seeds, and this run would put {now} in their place"
    return ""


def command(given: argparse.Namespace) -> str:
    """Return the command that makes the table."""
    more = "" if given.seeds == SEEDS else f" --seeds {given.seeds}"
    return f"python benchmarks/plasticity.py{more}"


def curves(results: Sequence[RunResult]) -> dict[str, Any]:
    """Return, by task, accuracy when it was learned and at the end, and the plasticity left."""
    learned = [np.diagonal(result.matrix[1:]).tolist() for result in results]
    ends = [result.matrix[-1].tolist() for result in results]
    said: list[dict[str, list[float]]] = []
    for result in results:
        left: dict[str, list[float]] = {}
        for row in result.record.steps():
            if (row["phase"], row["metric"]) == ("report", "inhibition"):
                for path, values in row["value"].items():
                    left.setdefault(path, []).append(values["plasticity"])
        said.append(left)
    return {"learned": learned, "final": ends, "plasticity": said}


def shown(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the documentation."""
    names = ("acc", "bwt", "learning_accuracy")
    left = [path[-1] for seed in cell["plasticity"] for path in seed.values()]
    last = {
        path: np.mean([s[path][-1] for s in cell["plasticity"]]) for path in cell["plasticity"][0]
    }
    text = ", ".join(f"{path} {value:.2f}" for path, value in last.items()) if left else ""
    metrics = {name: cell["metrics"][name] for name in names}
    return {"label": cell["label"], "plasticity left": text, "metrics": metrics}


if __name__ == "__main__":
    main()
