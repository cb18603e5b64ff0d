"""Accuracy of small spiking networks on every kind of data, beside ordinary and linear ones.

    python benchmarks/datasets.py --data-dir FOLDER            all rows, 3 seeds; resumes
    python benchmarks/datasets.py --rows braille --validate    on validation splits, for tuning

One task, all classes, 1 to 3 epochs; the files in ``examples/datasets`` say how each row is
trained. Test sets are read by the table alone; the notes say how hyper-parameters were chosen. The
linear classifier is scikit-learn's logistic regression on standardised inputs, every step of a
recording an input of its own.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

from results import FOLDER as RESULTS
from results import write
from table import row

from spikecl.data import Data, hold_out, load
from spikecl.experiments import load_config, run_seeds

HERE = Path(__file__).parent
FOLDER = "examples/datasets"
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mnist": ("mnist.toml", ()),
    "fashion_mnist": ("fashion_mnist.toml", ()),
    "nmnist": ("nmnist.toml", ()),
    "braille": ("braille.toml", ()),
    "spoken_digits": ("spoken_digits.toml", ()),
    "cifar10 conv": ("cifar10_conv.toml", ()),
    "cifar10 conv, ordinary": ("cifar10_conv.toml", ("network.name=conv",)),
    "cifar10 resnet": ("cifar10_resnet.toml", ()),
    "cifar10 resnet, ordinary": ("cifar10_resnet.toml", ("network.name=resnet",)),
}
HELD_OUT = 0.1
NOTES = [
    "One task of all classes. Settings were chosen on training samples held out (a tenth, or a "
    "fifth for the last trials of Braille and spoken digits), with other seeds than those of the "
    "row: 38 trials for Braille, 28 for spoken digits, 5 for N-MNIST, one each for MNIST, "
    "Fashion-MNIST and the convolutional network on CIFAR-10 (its ordinary twin takes the same "
    "settings); the residual networks were not tuned.",
    "The test sets of Braille and spoken digits were read three times: at first the synapses of "
    "the readout had delays too (83.4 and 96.4 %), then without a schedule of the learning rate "
    "(85.7 and 95.6 %). The last settings were chosen on validation samples alone.",
]


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/datasets"))
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    first = given.first_seed if given.first_seed is not None else 100 if given.validate else 1
    done: list[dict[str, Any]] = []
    baselines: dict[str, float] = {}
    for label in given.rows:
        file, overrides = ROWS[label]
        overrides = (*overrides, f"run.seed={first}", *given.set)
        if given.validate:
            overrides = (*overrides, f"data.validation={HELD_OUT}")
        config = load_config(HERE.parent / FOLDER / file, overrides)
        group = run_seeds(config, given.seeds, runs_dir=given.runs_dir, data_dir=given.data_dir)
        data = load(config.data.name, data_dir=given.data_dir, frames=config.data.frames)
        if data.name not in baselines:
            baselines[data.name] = linear(hold_out(data, HELD_OUT) if given.validate else data)
        found = row(group)
        accuracy = found["metrics"]["acc"]  # type: ignore[index]
        print(f"{label}: {accuracy['mean']:.4f} (linear {baselines[data.name]:.4f})", flush=True)
        done.append(
            {
                "label": label,
                "data": data.name,
                "epochs": str(config.train.epochs),
                "linear classifier %": f"{100 * baselines[data.name]:.1f}",
                "config": f"{FOLDER}/{file}",
                **found,
                "metrics": {"acc": accuracy},
            }
        )
        if not given.validate:
            content = {"notes": NOTES, "rows": merged(done)}
            write("datasets", "python benchmarks/datasets.py", content)


def merged(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the file with those just made in their places."""
    path = RESULTS / "datasets.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["label"]: row for row in [*old, *done]}
    return [rows[label] for label in ROWS if label in rows]


def linear(data: Data) -> float:
    """Return the test accuracy of a linear classifier of all inputs."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = (x.reshape(len(x), -1).astype("float32") for x in (data.x_train, data.x_test))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=100))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(model.fit(train, data.y_train).score(test, data.y_test))


if __name__ == "__main__":
    main()
