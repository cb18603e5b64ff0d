"""Synaptic intelligence where it was published: an ordinary network of 2000-2000 rectified units.

    python benchmarks/si_twin.py --data-dir FOLDER                 the table; resumes
    python benchmarks/si_twin.py --data-dir FOLDER --epochs 20     as long as the authors trained
    python benchmarks/si_twin.py --data-dir FOLDER --samples 1000  a try

Ten permutations of MNIST under ``examples/si_twin.toml``, whose settings are the authors': Adam at
0.001, carried over, batches of 256, xi = 0.1. Nothing is chosen here: the rows are the authors'
strengths c. Their last mean accuracies, after 20 epochs of each task: 57.41 at c = 0, 96.94 at
c = 0.1 (ganguli-lab/pathint, results of the permuted MNIST notebook). Theirs has the same loss and
sizes; initial weights, the order of samples and the number of epochs differ.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from results import FOLDER, write

from spikecl.experiments import load_config, run_seeds

CONFIG = Path(__file__).parent.parent / "examples" / "si_twin.toml"
ROWS = {"finetune": ("c = 0: fine-tuning", "0.0", 57.41), "si": ("c = 0.1", "0.1", 96.94)}
METRICS = ("acc", "bwt", "learning_accuracy")


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--samples", type=int, default=0, help="of each task; 0 takes all")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/si_twin"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    path = FOLDER / "si_twin.json"
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    for row in given.rows:
        settings = [f"train.epochs={given.epochs}", f"method.si.strength={ROWS[row][1]}"]
        if given.samples:
            settings.append(f"data.samples={given.samples}")
        group = run_seeds(
            load_config(CONFIG, settings),
            given.seeds,
            runs_dir=given.runs_dir,
            data_dir=given.data_dir,
        )
        metrics = group.table["metrics"]
        print(ROWS[row][0], given.epochs, f"{100 * metrics['acc']['mean']:.2f} %", flush=True)
        if not given.samples:
            found.setdefault(row, {})[str(given.epochs)] = {name: metrics[name] for name in METRICS}
            write("si_twin", "python benchmarks/si_twin.py", content(found))


def content(found: dict[str, Any]) -> dict[str, Any]:
    """Return the table as it is kept."""
    rows = [
        {
            "label": label,
            "epochs": epochs,
            "published, 20 epochs %": f"{known:.1f}",
            "metrics": each,
        }
        for row, (label, _, known) in ROWS.items()
        for epochs, each in found.get(row, {}).items()
    ]
    return {"rows": rows, "cells": found}


if __name__ == "__main__":
    main()
