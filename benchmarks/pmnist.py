"""Ten permutations of MNIST, seen once each: methods of the continual core side by side.

    python benchmarks/pmnist.py --data-dir FOLDER                       the table; resumes
    python benchmarks/pmnist.py --epochs 5 --tasks 5                    five epochs of five tasks
    python benchmarks/pmnist.py --samples 10000 --tasks 5               five tasks of 10,000 images
    python benchmarks/pmnist.py --methods finetune inhibition --seeds 1 --samples 10000 --tasks 3

784-800-800-10 spiking neurons, 6 steps, batches of 64. Each method gets the same number of trials:
learning rates times strengths, on the first five tasks with half their training samples, a tenth of
them held out, with a seed that no row reports. The best one is run with the seeds of the table,
which begin at 11: seeds 1 and 2 were read while the methods were made. Test sets are read by the
table alone. With all images, methods of metaplasticity have one seed. Time is CPU seconds of whole
runs over those of fine-tuning with the same seed. The last line is one JSON object: method to
figures.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from results import FOLDER, write
from rows import BINARY, Row, bimu, figures, measured, mesu, rows_of

FIRST_SEED, ALL = 11, 60_000
TRIAL_TASKS, TRIAL_SAMPLES = 5, 30_000
CONFIG = Path(__file__).parent.parent / "examples" / "pmnist.toml"
RATES, SOFT = (0.1, 0.2, 0.4), (0.2, 0.3, 0.4)  # soft projections hold back all directions
FAST = (0.3, 0.4, 0.6)  # where the best of a first grid, RATES, was its fastest
SIX = (0.03, 0.06, 0.1, 0.2, 0.3, 0.4)
PUBLISHED = "method.hlop.rows=[[80, 200, 100], 70, 70, 50, 50, 50, 30, 30, 30, 10]"
WIDE = "method.hlop.rows=[[160, 200, 160], 70, 70, 60, 60, 60, 60, 60, 60, 60]"
ROWS: dict[str, Row] = {
    "finetune": Row("fine-tuning", ("method.name=finetune",), rates=SIX),
    "er": Row(
        "experience replay, 2,000 images",
        ("method.name=er", "method.er.capacity=2000"),
        (("method.er.batch=32",), ("method.er.batch=64",)),
    ),
    "gpm": Row(
        "GPM",
        ("method.name=gpm",),
        (("method.gpm.energy=0.9",), ("method.gpm.energy=0.95",)),
        rates=FAST,
    ),
    "sgp": Row(
        "SGP",
        ("method.name=sgp",),
        (("method.sgp.energy=0.95",), ("method.sgp.energy=0.98",)),
        rates=FAST,
    ),
    "owm": Row(
        "OWM",
        ("method.name=owm",),
        (("method.owm.alpha=1.0",), ("method.owm.alpha=10.0",)),
        rates=FAST,
    ),
    "hlop_faithful": Row(
        "HLOP, arithmetic of its authors' code",
        ("method.name=hlop", "method.hlop.faithful=true", PUBLISHED),
        rates=SIX,
    ),
    "hlop": Row(
        "HLOP",
        ("method.name=hlop",),
        ((PUBLISHED,), (WIDE,)),
        rates=FAST,
    ),
    "inhibition": Row(
        "inhibition",
        ("method.name=inhibition",),
        (("method.inhibition.alpha=0.5",), ("method.inhibition.alpha=[0.5, 0.22, 0.45]",)),
        rates=SOFT,
    ),
    "two_sided": Row(
        "inhibition on both sides",
        ("method.name=two_sided",),
        (
            ("method.two_sided.alpha=0.5", "method.two_sided.beta=5.0"),
            ("method.two_sided.alpha=1.0", "method.two_sided.beta=10.0"),
        ),
        rates=SOFT,
    ),
    "joint": Row(
        "joint training on all tasks",
        ("method.name=joint", "stream.old_data=true", "method.joint.wait=TASKS"),
        rates=SIX,
        note="trained once, on the samples of all tasks; BWT and learning accuracy say nothing",
    ),
    "independent": Row(
        "one network for each task",
        ("method.name=finetune", "method.finetune.restart=true"),
        rates=SIX,
        note="the learning accuracy is the ceiling; what one network knows of other tasks is not",
        score="learning_accuracy",
    ),
}

THRESHOLDS = ('network.spiking_mlp.learns=["v_th"]', "network.spiking_mlp.per_neuron=true")
SLOW = (0.0001, 0.0003, 0.001)  # for Adam
WINDOWS = (3000.0, 10000.0, 100000.0)  # batches; the last forgets nothing
SYNAPSES: dict[str, Row] = {
    "ewc": Row(
        "EWC",
        ("method.name=ewc", "method.ewc.step=implicit"),
        (("method.ewc.strength=100.0",), ("method.ewc.strength=300.0",)),
        rates=FAST,
    ),
    "si": Row(
        "SI",
        ("method.name=si", "method.si.step=implicit"),
        (("method.si.strength=3.0",), ("method.si.strength=10.0",)),
        rates=FAST,
    ),
    "mas": Row(
        "MAS",
        ("method.name=mas", "method.mas.step=implicit"),
        (("method.mas.strength=0.03",), ("method.mas.strength=0.1",)),
        rates=FAST,
    ),
    "laborieux": Row(
        "hidden weights (Laborieux), binary synapses",
        ("method.name=laborieux", *BINARY),
        (("method.laborieux.m=1.35",), ("method.laborieux.m=5.0",)),
        rates=SLOW,
    ),
    "benna_fusi": Row(
        "Benna-Fusi chain",
        ("method.name=benna_fusi",),
        (("method.benna_fusi.g=0.0003",), ("method.benna_fusi.g=0.003",)),
    ),
    "tacos": Row(
        "TACOS",
        ("method.name=tacos",),
        (("method.tacos.beta=0.0",), ("method.tacos.beta=0.001",)),
        rates=FAST,
    ),
    "mesu": mesu(WINDOWS),
    "bimu": bimu(WINDOWS, (3000.0, 10000.0)),
    "threshold_hlop": Row(
        "thresholds that find their set point, and HLOP",
        ('method.name=["threshold", "hlop"]', WIDE, *THRESHOLDS),
        (("method.threshold.rate=0.0003",), ("method.threshold.rate=0.001",)),
        rates=FAST,
    ),
    "inhibition_si": Row(
        "inhibition and SI",
        (
            'method.name=["inhibition", "si"]',
            "method.inhibition.alpha=0.5",
            "method.si.step=implicit",
        ),
        (("method.si.strength=0.3",), ("method.si.strength=3.0",)),
        rates=SOFT,
    ),
}
ALL_ROWS = ROWS | SYNAPSES
GENTLE = (0.1, 0.2, 0.3)  # with all samples, the best of a first grid was its slowest and weakest
FULL_LENGTH: dict[str, Row] = {
    "ewc": replace(
        SYNAPSES["ewc"],
        strengths=(("method.ewc.strength=30.0",), ("method.ewc.strength=100.0",)),
        rates=GENTLE,
    ),
    "si": replace(
        SYNAPSES["si"],
        strengths=(("method.si.strength=1.0",), ("method.si.strength=3.0",)),
        rates=GENTLE,
    ),
    "mas": replace(
        SYNAPSES["mas"],
        strengths=(("method.mas.strength=0.01",), ("method.mas.strength=0.03",)),
        rates=GENTLE,
    ),
}
TABLES = {  # tasks, samples, epochs, seeds
    (10, 0, 1, 3): "pmnist",
    (5, 0, 5, 3): "pmnist_5_epochs",
    (5, 10_000, 1, 3): "pmnist_10000",
}


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", choices=ALL_ROWS, default=list(ALL_ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--samples", type=int, default=0, help="of each task; 0 takes all")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/pmnist"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--write", action="store_true", help="keep a narrowed table as a file too")
    given = parser.parse_args()
    keep = given.write or (given.tasks, given.samples, given.epochs, given.seeds) in TABLES
    name = TABLES.get((given.tasks, given.samples, given.epochs, 3), "pmnist_narrowed")
    path = FOLDER / f"{name}.json"
    held: dict[str, Any] = json.loads(path.read_text()) if keep and path.exists() else {}
    if reason := lost(held, given):
        parser.error(f"{reason}; see {path.name}, or leave out --write")
    found: dict[str, Any] = held.get("cells", {})
    common = [f"train.epochs={given.epochs}"]
    if given.samples:
        common.append(f"data.samples={given.samples}")
    where = {"runs_dir": given.runs_dir, "data_dir": given.data_dir}
    sizes = {"tasks": given.tasks, "seeds": given.seeds}
    trial = {
        "trial": [f"data.samples={min(given.samples or ALL, TRIAL_SAMPLES // given.epochs)}"],
        "trial_tasks": TRIAL_TASKS,
    }
    for method in given.methods:
        row = ALL_ROWS[method] if given.samples else (ALL_ROWS | FULL_LENGTH)[method]
        if seeds_of(method, given) < given.seeds:
            row = replace(row, seeds=1)
        found[method] = measured(
            row,
            CONFIG,
            rates=RATES,
            common=common,
            first_seed=FIRST_SEED,
            where=where,
            **trial,
            **sizes,
        )
        if keep:
            write(name, command(given), content(found, given))
    shown = {method: figures(found, method) for method in given.methods}
    print(json.dumps(shown))


def seeds_of(method: str, given: argparse.Namespace) -> int:
    """Return the seeds of a row; synapses that hold back have one at full length."""
    return min(given.seeds, 1) if method in SYNAPSES and not given.samples else given.seeds


def lost(held: dict[str, Any], given: argparse.Namespace) -> str:
    """Return what a table that is kept would lose if this run were written to it."""
    size = {"tasks": given.tasks, "epochs": given.epochs, "samples": given.samples or ALL}
    if held and (other := {name: held[name] for name in size if held[name] != size[name]}):
        return f"the table that is kept has {other}, and this run {size}"
    for method in given.methods if held else ():
        seeds = held["cells"][method]["metrics"]["acc"]["n"] if method in held["cells"] else 0
        if seeds > (now := seeds_of(method, given)):
            return f"row '{method}' has {seeds} seeds, and this run would put {now} in their place"
    return ""


def content(found: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Return the table as it is kept."""
    ordered = {method: found[method] for method in ALL_ROWS if method in found}
    return {
        "tasks": given.tasks,
        "epochs": given.epochs,
        "samples": given.samples or ALL,
        "rows": list(rows_of(ordered)),
        "cells": ordered,
    }


def command(given: argparse.Namespace) -> str:
    """Return the command that makes the table."""
    more = [f" --{n} {getattr(given, n)}" for n in ("tasks", "samples", "epochs", "seeds")]
    defaults = [" --tasks 10", " --samples 0", " --epochs 1", " --seeds 3"]
    return "python benchmarks/pmnist.py" + "".join(m for m in more if m not in defaults)


if __name__ == "__main__":
    main()
