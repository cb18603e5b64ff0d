"""Five new classes of MNIST on an exported network: prototypes that learn on the chip.

    python benchmarks/on_chip.py --data-dir FOLDER            all rows, 5 seeds; resumes
    python benchmarks/on_chip.py --seeds 1 --tests 200        a try

``examples/to_loihi.toml`` is trained on the digits 0 to 4 and exported. In the emulator a head of
prototypes is then shown 5 or 20 images of each of the digits 5 to 9, once, and tested on images of
the test set of these digits. Nothing is chosen, so nothing is held out. Beside it, from the same
shots: nearest means of the spike counts of the hidden layer in the emulator and in the float
network, and a readout in floats (logistic regression on the counts of the float network).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import spikecl_hardware.loihi.emulator as emulator
import torch
from results import write
from sklearn.linear_model import LogisticRegression
from spikecl_hardware.loihi.messages import quantise_input
from spikecl_hardware.loihi.program import Program
from spikecl_hardware.loihi.prototypes import learn_classes, with_prototypes

import spikecl
from spikecl.experiments import load_config, run_config
from spikecl.experiments.export import export
from spikecl.experiments.trained import TaskData
from spikecl.metrics import interval
from spikecl.seeds import Seeds

CONFIG = Path(__file__).parent.parent / "examples" / "to_loihi.toml"
OLD, NEW, SHOTS, HIDDEN = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (5, 20), "hidden1"
ROWS = {
    "chip": "prototypes, learned in the emulator",
    "means": "nearest means of the emulator's counts, in floats",
    "float": "nearest means of the float network's counts",
    "readout": "readout of the float network, logistic regression",
}


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tests", type=int, default=1000, help="test images of the new classes")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/on_chip"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(1, given.seeds + 1):
        for shots, row in measure(seed, given).items():
            found.setdefault(str(shots), []).append(row)
            print(seed, shots, {k: round(v, 4) for k, v in row.items()}, flush=True)
    if (given.seeds, given.tests) == (5, 1000):
        write("on_chip", "python benchmarks/on_chip.py", content(found))
    print(
        json.dumps(
            {s: {k: np.mean([r[k] for r in rows]) for k in ROWS} for s, rows in found.items()}
        )
    )


def measure(seed: int, given: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Return accuracies on the new classes by shots."""
    overrides = [f"run.seed={seed}", f"stream.split_classes.order={list(OLD)}"]
    config = load_config(CONFIG, overrides)
    result = run_config(config, runs_dir=given.runs_dir, data_dir=given.data_dir)
    made = export(result.record, to="loihi", data_dir=given.data_dir)
    program = Program.load(made.path)
    data = TaskData.of_config(config.table(), data_dir=given.data_dir)
    network = result.network()
    where = {} if given.data_dir is None else {"data_dir": given.data_dir}
    mnist = spikecl.load_data("mnist", **where)
    tests = encoded(data, mnist.x_test, mnist.y_test, given.tests // len(NEW), seed, "test")
    rows = {}
    for shots in SHOTS:
        shown = encoded(data, mnist.x_train, mnist.y_train, shots, seed, f"{shots} shots")
        rows[shots] = scores(program, network, shown, tests)
    return rows


def encoded(
    data: TaskData, x: Any, y: Any, each: int, seed: int, name: str
) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """Return some images of each new class as input over time, in random order, and 0 to 4."""
    generator = Seeds(seed).generator(name)
    labels = torch.as_tensor(y)
    picked = []
    for digit in NEW:
        of = torch.nonzero(labels == digit).flatten()
        picked.append(of[torch.randperm(len(of), generator=generator)[:each]])
    index = torch.cat(picked)
    index = index[torch.randperm(len(index), generator=generator)]
    images = torch.as_tensor(x)[index].float().flatten(1) / 255
    return data.encode(images, name, 0), np.searchsorted(NEW, labels[index].numpy())


def scores(program: Program, network: Any, shown: Any, tests: Any) -> dict[str, float]:
    """Return the accuracy of each row."""
    head = with_prototypes(program, HIDDEN, len(NEW))
    whole = [quantise_input(head, x.flatten(2).numpy()) for x, _ in (shown, tests)]
    learned = learn_classes(head, whole[0], shown[1])
    answers = emulator.emulate(learned, whole[1]).outputs[-1].argmax(1)
    chip = [emulator.emulate(head, x).spikes[HIDDEN].sum(0, dtype=np.float64) for x in whole]
    floats = [counts(network, x) for x, _ in (shown, tests)]
    readout = LogisticRegression(max_iter=2000).fit(floats[0], shown[1])
    return {
        "chip": float((answers == tests[1]).mean()),
        "means": nearest(*chip, shown[1], tests[1]),
        "float": nearest(*floats, shown[1], tests[1]),
        "readout": float((readout.predict(floats[1]) == tests[1]).mean()),
    }


@torch.no_grad()
def counts(network: Any, x: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return the spikes of the hidden layer [B, n]."""
    spikes = network.record(x, variables=["spikes"])[HIDDEN]["spikes"]
    return np.asarray(spikes, dtype=np.float64).sum(0)


def nearest(seen: Any, tested: Any, y: Any, expected: Any) -> float:
    """Return the accuracy of nearest means."""
    means = np.stack([seen[y == c].mean(0) for c in range(len(NEW))])
    return float(((tested @ means.T - (means**2).sum(1) / 2).argmax(1) == expected).mean())


def content(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the table as it is kept."""
    rows = [
        {
            "label": label,
            "shots": shots,
            "metrics": {"acc": interval([row[key] for row in made])._asdict()},
        }
        for shots, made in found.items()
        for key, label in ROWS.items()
    ]
    return {"rows": rows, "cells": found}


if __name__ == "__main__":
    main()
