"""Streams with convolutions, and with classes that come bit by bit: methods side by side.

    python benchmarks/streams.py --data-dir FOLDER                       all tables; resumes
    python benchmarks/streams.py --streams split_mnist --methods finetune er

``split_cifar100``: ten tasks of ten classes with heads of their own (a subset of 24,000 images
where that is what is found); ``five_datasets``: five sets of pictures of ten classes; both with
spiking convolutions. ``split_mnist``: five tasks of two digits, and nobody says which task it is.
Each runs as ``examples/NAME.toml`` says. Subsets and few epochs: not comparable with published
figures.

Each method gets the same number of trials: learning rates times strengths, on the first three
tasks with a tenth of the training samples held out, with a seed and an order of classes that no
row reports. The best one is run with the seeds of the table; test sets are read by the table alone.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import FOLDER, write
from rows import TRIAL_TASKS, Row, figures, measured, rows_of

EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass(frozen=True, slots=True)
class Table:
    """A stream of the table.

    Args:
        tasks: Its experiences.
        classes: Classes of one.
        rates: Learning rates to choose from.
        methods: Rows.
        common: Settings of all runs.
    """

    tasks: int
    classes: int
    rates: tuple[float, ...]
    methods: tuple[str, ...]
    common: tuple[str, ...] = ()


ALPHAS = (("method.inhibition.alpha=0.1",), ("method.inhibition.alpha=0.4",))
SHARES = (("method.hlop.rows=[0.15, 0.08]",), ("method.hlop.rows=[0.3, 0.08]",))
BATCHES = (("method.er.batch=16",), ("method.er.batch=32",))
ROWS = {
    "finetune": Row(
        "fine-tuning", ("method.name=finetune",), (("train.batch=32",), ("train.batch=64",))
    ),
    "er": Row("experience replay, 500 images", ("method.name=er",), BATCHES),
    "hlop": Row("HLOP", ("method.name=hlop",), SHARES),
    "inhibition": Row("inhibition", ("method.name=inhibition",), ALPHAS),
    "hlop_er": Row("HLOP and experience replay", ('method.name=["er", "hlop"]',), SHARES),
    "inhibition_er": Row(
        "inhibition and experience replay", ('method.name=["er", "inhibition"]',), ALPHAS
    ),
    "finetune_norms": Row(
        "fine-tuning, norms of each task's own",
        ("method.name=task_norms",),
        (("train.batch=32",), ("train.batch=64",)),
    ),
    "hlop_norms": Row(
        "HLOP, norms of each task's own",
        ('method.name=["task_norms", "hlop"]', "method.hlop.others=learn"),
        SHARES,
    ),
    "inhibition_norms": Row(
        "inhibition, norms of each task's own",
        ('method.name=["task_norms", "inhibition"]', "method.inhibition.others=learn"),
        ALPHAS,
    ),
    "joint": Row(
        "joint training on all tasks so far",
        ("method.name=joint", "stream.old_data=true"),
        (("train.batch=32",), ("train.batch=64",)),
    ),
}
MIXED = ("finetune", "er", "hlop", "inhibition", "hlop_er", "inhibition_er", "joint")
NORMED = (
    "finetune",
    "er",
    "hlop",
    "inhibition",
    "finetune_norms",
    "hlop_norms",
    "inhibition_norms",
)
TABLES = {
    "split_mnist": Table(5, 2, (0.03, 0.1, 0.3), MIXED),
    "five_datasets": Table(5, 10, (0.02, 0.05, 0.1), NORMED, ("data.samples=10000",)),
    "split_cifar100": Table(10, 10, (0.02, 0.05, 0.1), NORMED),
}


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", nargs="*", choices=TABLES, default=list(TABLES))
    parser.add_argument("--methods", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/streams"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    where = {"runs_dir": given.runs_dir, "data_dir": given.data_dir}
    path = FOLDER / "streams.json"
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    shown: dict[str, Any] = {}
    for stream in given.streams:
        cells = found.setdefault(stream, {})
        for method in (m for m in TABLES[stream].methods if m in given.methods):
            cells[method] = row_of(stream, method, given.seeds, where)
            shown.setdefault(stream, {})[method] = figures(cells, method)
            if given.seeds == 3:
                keep(found)
    print(json.dumps(shown))


def row_of(stream: str, method: str, seeds: int, where: dict[str, Any]) -> dict[str, Any]:
    """Return what one method came to on one stream."""
    table = TABLES[stream]
    first = ", ".join(map(str, range(TRIAL_TASKS * table.classes)))
    return measured(
        ROWS[method],
        EXAMPLES / f"{stream}.toml",
        rates=table.rates,
        tasks=table.tasks,
        seeds=seeds,
        common=table.common,
        trial=[f"stream.split_classes.order=[{first}]"],
        where=where,
    )


def keep(found: dict[str, Any]) -> None:
    """Write the table as it is so far."""
    ordered = {
        stream: {method: found[stream][method] for method in ROWS if method in found[stream]}
        for stream in TABLES
        if found.get(stream)
    }
    rows = [row for stream, cells in ordered.items() for row in rows_of(cells, stream=stream)]
    content = {"rows": rows, "cells": ordered}
    write("streams", "python benchmarks/streams.py", content)


if __name__ == "__main__":
    main()
