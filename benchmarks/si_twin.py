"""Synaptic intelligence where it was published: an ordinary network of 2000-2000 rectified units.

    python benchmarks/si_twin.py --data-dir FOLDER                 the table; resumes
    python benchmarks/si_twin.py --data-dir FOLDER --epochs 20     as long as the authors trained
    python benchmarks/si_twin.py --data-dir FOLDER --samples 1000  a try

Ten permutations of MNIST under ``examples/si_twin.toml``, whose settings are the authors': Adam at
0.001, carried over, batches of 256, xi = 0.1. Nothing is chosen here: the rows are the authors'
strengths c. Their last mean accuracies, after 20 epochs of each task: 57.41 at c = 0, 96.94 at
c = 0.1 (ganguli-lab/pathint, results of the permuted MNIST notebook). Theirs has the same loss,
sizes and pixels from 0 to 1; initial weights, the order of samples and the number of epochs differ.
Rows with centred pixels show what that changes: dark pixels, which most are, move weights then.
Each number of epochs has rows of its own; none is replaced by one of fewer seeds. The last line is
one JSON object: row to figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from results import FOLDER, commit, write
from rows import means

from spikecl.experiments import load_config, run_seeds

CONFIG = Path(__file__).parent.parent / "examples" / "si_twin.toml"
NONE, HELD = "method.si.strength=0.0", "method.si.strength=0.1"
CENTRED = "encoding.direct.centre=true"
ROWS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "finetune": ("c = 0: fine-tuning", (NONE,), "57.4"),
    "si": ("c = 0.1", (HELD,), "96.9"),
    "finetune_centred": ("c = 0, centred pixels", (NONE, CENTRED), ""),
    "si_centred": ("c = 0.1, centred pixels", (HELD, CENTRED), ""),
}
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
    if not given.samples and (reason := lost(found, given)):
        parser.error(f"{reason}; see {path.name}")
    shown: dict[str, Any] = {}
    for row in given.rows:
        begun = commit()
        settings = [f"train.epochs={given.epochs}", *ROWS[row][1]]
        if given.samples:
            settings.append(f"data.samples={given.samples}")
        group = run_seeds(
            load_config(CONFIG, settings),
            given.seeds,
            runs_dir=given.runs_dir,
            data_dir=given.data_dir,
        )
        metrics = {name: group.table["metrics"][name] for name in METRICS}
        shown[row] = means(metrics)
        print(ROWS[row][0], given.epochs, f"{100 * metrics['acc']['mean']:.2f} %", flush=True)
        if not given.samples:
            found.setdefault(row, {})[str(given.epochs)] = {**metrics, "commit": begun}
            write("si_twin", command(found), content(found))
    print(json.dumps(shown))


def lost(found: dict[str, Any], given: argparse.Namespace) -> str:
    """Return what a table that is kept would lose if this run were written to it."""
    for row in given.rows:
        held = found.get(row, {}).get(str(given.epochs), {"acc": {"n": 0}})["acc"]["n"]
        if held > given.seeds:
            kept = f"row '{row}' with --epochs {given.epochs} has {held} seeds"
            return f"{kept}, and this run would put {given.seeds} in their place"
    return ""


def command(found: dict[str, Any]) -> str:
    """Return the commands that make the table, one for each number of epochs and of seeds."""
    kept = {(int(e), cell["acc"]["n"]) for cells in found.values() for e, cell in cells.items()}
    return "; ".join(
        "python benchmarks/si_twin.py"
        + (f" --epochs {epochs}" if epochs != 1 else "")
        + (f" --seeds {seeds}" if seeds != 1 else "")
        for epochs, seeds in sorted(kept)
    )


def content(found: dict[str, Any]) -> dict[str, Any]:
    """Return the table as it is kept."""
    rows = [
        {
            "label": label,
            "epochs": epochs,
            "published, 20 epochs %": known,
            "metrics": {name: each[name] for name in METRICS},
        }
        for row, (label, _, known) in ROWS.items()
        for epochs, each in found.get(row, {}).items()
    ]
    return {"rows": rows, "cells": found}


if __name__ == "__main__":
    main()
