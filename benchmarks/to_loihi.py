"""Accuracy before and after a network leaves for Loihi, on all test samples.

    python benchmarks/to_loihi.py --data-dir FOLDER            all rows, 3 seeds; resumes

Each seed is trained once; the float network and the program made from it see the same encoded test
samples (paired). Scales are chosen on 256 training samples, with the defaults; nothing was tuned on
results. ``fine-tuned`` goes on for one epoch with the chip's integers; ``one epoch more`` is the
float network trained as long.

For the sequence of tasks the program is made after every task, so that backward transfer is that
of the programs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from results import FOLDER as RESULTS
from results import write

from spikecl.experiments import Config, load_config, run_config
from spikecl.experiments.export import export
from spikecl.experiments.fine_tune import fine_tuned
from spikecl.experiments.simulate import simulate
from spikecl.experiments.trained import TaskData, job_of
from spikecl.metrics import AccuracyMatrix
from spikecl.metrics.statistics import interval
from spikecl.records import RunRecord

HERE = Path(__file__).parent
SEQUENCE = "permuted MNIST, five tasks, HLOP"
LIF = 'network.spiking_mlp.neuron={model="lif", beta=%s, reset="zero"%s}'
RECORDINGS = ("network.spiking_mlp.delay=0", LIF % (0.6, ', surrogate="arctan"'))
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "MNIST, 784-256-10": ("to_loihi.toml", ()),
    "Braille": ("datasets/braille.toml", RECORDINGS),
    "spoken digits": ("datasets/spoken_digits.toml", RECORDINGS),
    SEQUENCE: ("pmnist_hlop.toml", ("stream.experiences=5", LIF % (0.5, ""))),
}
TUNED = "MNIST, 784-256-10"
NOTES = [
    "`loss` is float minus Loihi, in points, paired over the same encoded test samples; a negative "
    "one is a gain. `fine-tuned` has gone on for an epoch on integers, and its loss is against the "
    "float network it came from; `one epoch more` is that network trained as long. BWT is that of "
    "the programs made after every task, calibrated on the tasks so far.",
    "Braille and spoken digits are trained as in the table of data sets, but without delays and "
    "with a reset to zero: neither has an equal on the chip. Batch normalisation is folded into "
    "weights and biases.",
]


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/to_loihi"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    done: list[dict[str, Any]] = []
    for label in given.rows:
        found: list[dict[str, float]] = []
        for seed in range(1, given.seeds + 1):
            found.append(measure(label, seed, given.runs_dir, given.data_dir))
            print(label, seed, {k: round(v, 4) for k, v in found[-1].items()}, flush=True)
        metrics = {f"{k} %": interval([100 * f[k] for f in found])._asdict() for k in found[0]}
        done.append({"label": label, "config": f"examples/{ROWS[label][0]}", "metrics": metrics})
        write(
            "to_loihi",
            "python benchmarks/to_loihi.py",
            {"notes": NOTES, "rows": merged(done)},
        )


def measure(label: str, seed: int, runs: Path, data_dir: Path | None) -> dict[str, float]:
    """Return accuracies of one seed; found again where it was measured before."""
    file, overrides = ROWS[label]
    kept = runs / f"{label} {seed}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    config = load_config(HERE.parent / "examples" / file, (*overrides, f"run.seed={seed}"))
    if label == SEQUENCE:
        found = sequence(config, runs / f"sequence {seed}", data_dir)
    else:
        record = run_config(config, runs_dir=runs, data_dir=data_dir).record
        made = export(record, to="loihi", data_dir=data_dir)
        seen = simulate(made.path, ("torch", "emulator"), data_dir=data_dir)
        floats, whole = (seen.accuracies(b)[0] for b in ("torch", "emulator"))
        found = {"float": floats, "loihi": whole, "loss": floats - whole}
        if label == TUNED:
            found |= after_training(config, record, floats, runs, data_dir)
    kept.write_text(json.dumps(found))
    return found


def after_training(
    config: Config, record: RunRecord, floats: float, runs: Path, data_dir: Path | None
) -> dict[str, float]:
    """Return the accuracy after an epoch on integers, and after an epoch more in floats."""
    tuned = fine_tuned(record, epochs=1, data_dir=data_dir)
    path = record.path / "export" / "tuned.h5"
    export(tuned.network, path, to="loihi", input_shape=tuned.shape, meta=tuned.meta)
    whole = simulate(path, ("emulator",), data_dir=data_dir).accuracies("emulator")[0]
    longer = replace(config, train=replace(config.train, epochs=config.train.epochs + 1))
    more = run_config(longer, runs_dir=runs, data_dir=data_dir).summary["acc"]
    return {"fine-tuned": whole, "loss fine-tuned": floats - whole, "one epoch more": more}


def sequence(config: Config, folder: Path, data_dir: Path | None) -> dict[str, float]:
    """Return ACC and BWT of the networks after each task, as floats and as programs."""
    job = job_of(config.table(), data_dir)
    learner, tests = job.learner(), TaskData(job.stream, job.encoder, seed=job.seed)
    blank = [float("nan")] * len(tests.sets)
    values: dict[str, list[list[float]]] = {"torch": [blank], "emulator": [blank]}
    folder.mkdir(parents=True, exist_ok=True)
    for tick in learner.ticks():
        if tick.kind != "event" or not (done := tick.position.event):  # 0: untrained
            continue
        learned = TaskData(job.stream.take(done), job.encoder, seed=job.seed)
        seen = learned.calibration(256)  # of the tasks so far
        shape, meta = seen.shape[2:], learned.meta(seen, config.table())
        path = folder / "task.h5"
        export(learner.network, path, to="loihi", input_shape=shape, meta=meta, calibration=seen)
        measured = simulate(path, tuple(values), sets=tests.sets[:done], data_dir=data_dir)
        for backend, rows in values.items():
            rows.append([*measured.accuracies(backend), *blank[done:]])
            print(f"  {backend}, {done} tasks: {np.nanmean(rows[-1]):.4f}", flush=True)
    taught = [s.taught for s in job.stream.eval_sets.values()]
    floats, whole = (AccuracyMatrix(np.array(rows), taught) for rows in values.values())
    return {
        "float": floats.acc(),
        "loihi": whole.acc(),
        "loss": floats.acc() - whole.acc(),
        "BWT float": float(floats.bwt() or 0.0),
        "BWT loihi": float(whole.bwt() or 0.0),
    }


def merged(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the file with those just made in their places."""
    path = RESULTS / "to_loihi.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["label"]: row for row in [*old, *done]}
    return [rows[label] for label in ROWS if label in rows]


if __name__ == "__main__":
    main()
