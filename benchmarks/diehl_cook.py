"""Digits learned without labels, with and without each part that keeps the neurons at work.

    python benchmarks/diehl_cook.py --data-dir FOLDER                  the table; resumes
    python benchmarks/diehl_cook.py --rows all threshold --seeds 1 --samples 1000 --neurons 100

``examples/diehl_cook.py`` on 10,000 images of MNIST with 400 neurons, the permutation of the
pixels, the first weights and the order of images drawn from each seed; tested on 1,000 images of
the test set. Nothing was chosen for this table; the settings are those of the example, which were
tried on images of the same test set with the seed 0: the table begins at 11.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from results import FOLDER, write

import spikecl
from spikecl.metrics import interval

EXAMPLE = Path(__file__).parent.parent / "examples" / "diehl_cook.py"
FIRST_SEED, SAMPLES, NEURONS = 11, 10_000, 400
METRICS = {
    "vote": "accuracy",
    "spikes per sample": "spikes",
    "neurons that answer": "answering",
    "busiest": "busiest",
}
ROWS = {
    "all": ("all parts", ()),
    "threshold": ("without thresholds that rise", ("threshold",)),
    "scaling": ("without scaling of weights", ("scaling",)),
    "inhibition": ("without lateral inhibition", ("inhibition",)),
    "plasticity": ("without STDP: random weights", ("plasticity",)),
}


def example() -> Any:
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location("diehl_cook_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--neurons", type=int, default=NEURONS)
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    keep = (given.seeds, given.samples, given.neurons) == (3, SAMPLES, NEURONS)
    path = FOLDER / "diehl_cook.json"
    found: dict[str, list[dict[str, float]]] = {}
    if keep and path.exists():
        found = json.loads(path.read_text())["cells"]
    module = example()
    where = {} if given.data_dir is None else {"data_dir": given.data_dir}
    data = module.some(spikecl.load_data("mnist", **where), given.samples)
    for row in given.rows:
        own = found.setdefault(row, [])
        for seed in range(FIRST_SEED + len(own), FIRST_SEED + given.seeds):
            made = module.learn(data, neurons=given.neurons, without=ROWS[row][1], seed=seed)
            own.append(made._asdict())
            print(ROWS[row][0], seed, f"{100 * made.accuracy:.1f} %", flush=True)
            if keep:
                write("diehl_cook", "python benchmarks/diehl_cook.py", content(found))
    print(json.dumps({row: [run["accuracy"] for run in found[row]] for row in given.rows}))


def content(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the table as it is kept."""
    ordered = {row: found[row] for row in ROWS if found.get(row)}
    rows = [
        {
            "label": ROWS[row][0],
            "metrics": {
                metric: interval([run[name] for run in runs])._asdict()
                for metric, name in METRICS.items()
            },
        }
        for row, runs in ordered.items()
    ]
    return {"rows": rows, "cells": ordered}


if __name__ == "__main__":
    main()
