"""Rows of long tables begin as they stand: a slip in one would show after hours."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spikecl.data.arrays import checked
from spikecl.experiments import job, load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TABLES = {"pmnist": ("ALL_ROWS", "FULL_LENGTH"), "long_stream": ("ROWS",)}


def imported(name):
    """Return a module of the benchmarks."""
    sys.path.insert(0, str(BENCHMARKS))
    before = set(sys.modules)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:  # "results" is a module of the documentation, too
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
                del sys.modules[name]


def rows():
    """Yield the module and the row of every method."""
    for table, names in TABLES.items():
        module = imported(table)
        for name in names:
            for method, row in getattr(module, name).items():
                yield pytest.param(module, row, id=f"{table}-{name.lower()}-{method}")


def pictures(*_):
    x = np.random.default_rng(0).random((40, 28, 28), np.float32)
    y = np.arange(40) % 10
    return checked({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, "pictures")


@pytest.mark.parametrize(("module", "row"), list(rows()))
def test_every_trial_is_a_configuration_and_the_first_one_begins(module, row, monkeypatch):
    monkeypatch.setattr(job, "chosen_data", pictures)
    trials = row.trials(module.RATES)
    assert len(trials) == len(set(trials)) == 6, "each row has the same number of trials"
    checked_trials = [load_config(module.CONFIG, [*row.at(5), *each]) for each in trials]
    settings = [*row.at(5), *trials[0], "stream.experiences=5"]
    learner = job.Job.from_config(load_config(module.CONFIG, settings), data_dir=None).learner()
    assert len({each.run.seed for each in checked_trials}) == 1
    assert next(learner.ticks()).kind == "test"


def test_a_table_that_is_kept_loses_no_seeds():
    module = next(row.values[0] for row in list(rows()) if row.id.startswith("pmnist"))
    kept = {name: {"metrics": {"acc": {"n": 3}}} for name in ("gpm", "ewc")}
    held = {"tasks": 10, "epochs": 1, "samples": 60_000, "cells": kept}

    def lost(methods, seeds, tasks=10, samples=0):
        given = Namespace(methods=methods, seeds=seeds, tasks=tasks, samples=samples, epochs=1)
        return module.lost(held, given)

    assert lost(["finetune"], 1) == lost(["gpm"], 3) == lost(["gpm", "er"], 4) == ""
    assert "row 'gpm' has 3 seeds, and this run would put 1" in lost(["er", "gpm"], 1)
    assert "row 'ewc' has 3 seeds, and this run would put 1" in lost(["ewc"], 3)
    assert "has {'samples': 60000}" in lost(["er"], 3, samples=10_000)
    assert module.lost({}, Namespace(methods=["gpm"], seeds=1, tasks=1, samples=0, epochs=1)) == ""


def intervals(n):
    names = ("acc", "bwt", "learning_accuracy")
    return {name: {"n": n, "mean": 0.5, "sd": None, "low": None, "high": None} for name in names}


KEPT = {
    "si_twin": {"si": {"1": intervals(3), "20": intervals(1)}},
    "plasticity": {"all": {"label": "inhibition", "metrics": intervals(5), "plasticity": [{}]}},
}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("si_twin", "", "row 'si' with --epochs 1 has 3 seeds, and this run would put 1"),
        ("si_twin", "--rows si --seeds 2", "row 'si' with --epochs 1 has 3 seeds"),
        ("plasticity", "", "row 'all' has 5 seeds, and this run would put 3"),
        ("plasticity", "--rows finetune all --seeds 4", "row 'all' has 5 seeds"),
    ],
)
def test_a_row_of_more_seeds_is_not_replaced(name, arguments, said, tmp_path, monkeypatch, capsys):
    module, path = imported(name), tmp_path / f"{name}.json"
    path.write_text(text := json.dumps({"cells": KEPT[name]}))
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "run_seeds", lambda *_, **__: pytest.fail("it was computed"))
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert said in " ".join(capsys.readouterr().err.split())
    assert path.read_text() == text


class Result:
    """A run of two tasks, as far as tables look at it."""

    matrix = np.array([[0.1, 0.1], [0.9, 0.1], [0.8, 0.9]])
    summary = {"acc": 0.5, "method_bytes": 8, "cpu_s": 2.0}
    record = SimpleNamespace(summary=summary, steps=lambda: [])


def ran(config, count, **_):
    return SimpleNamespace(results=[Result()] * count, table={"metrics": intervals(count)})


@pytest.mark.parametrize(
    ("name", "arguments", "more"),
    [
        ("si_twin", "--rows finetune", " --seeds 3; python benchmarks/si_twin.py --epochs 20"),
        ("si_twin", "--rows si --epochs 20 --seeds 2", " --epochs 20 --seeds 2"),
        ("plasticity", "--rows finetune", ""),
        ("plasticity", "--rows all --seeds 6", " --seeds 6"),
    ],
)
def test_what_is_kept_says_how_it_was_made(name, arguments, more, tmp_path, monkeypatch, capsys):
    """The command of a table, the commit of a cell; other cells, made before, stay as they are."""
    module, kept = imported(name), {}
    (tmp_path / f"{name}.json").write_text(json.dumps({"cells": KEPT[name]}))
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "run_seeds", ran)
    monkeypatch.setattr(module, "commit", lambda: "abc1234")
    monkeypatch.setattr(
        module, "write", lambda *given: kept.update(zip(("", "by", "table"), given))
    )
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    module.main()
    row = arguments.split()[1]
    cell, old = kept["table"]["cells"][row], KEPT[name]["si" if name == "si_twin" else "all"]
    cell = cell["20" if "20" in arguments else "1"] if name == "si_twin" else cell
    assert cell["commit"] == "abc1234"
    assert kept["by"].endswith(f"python benchmarks/{name}.py{more}")
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1])) == [row]
    assert all(set(each["metrics"]) == set(intervals(1)) for each in kept["table"]["rows"])
    if row not in KEPT[name]:
        assert old in kept["table"]["cells"].values(), "it is still there"


def test_a_cell_says_its_commit_and_one_without_is_shown(monkeypatch):
    module = imported("pmnist")
    made = module.measured.__globals__
    monkeypatch.setitem(made, "run_config", lambda *_, **__: Result())
    monkeypatch.setitem(made, "run_seeds", ran)
    monkeypatch.setitem(made, "commit", lambda: "abc1234")
    row = module.ROWS["gpm"]
    cell = module.measured(row, module.CONFIG, rates=(0.1,), tasks=2, seeds=2, where={})
    assert cell.pop("commit") == "abc1234"
    assert module.figures({"gpm": cell}, "gpm")["acc"] == 0.5
    assert next(module.rows_of({"gpm": cell}))["label"] == "GPM"


CORE = imported("core_step")


@pytest.mark.parametrize("name", CORE.VARIANTS)
def test_every_variant_of_the_core_step_takes_a_step(name, monkeypatch):
    monkeypatch.setattr(CORE, "LOOKED", 8)
    monkeypatch.setattr(CORE, "STEPS", 1)
    assert CORE.steps_of(CORE.VARIANTS[name])()["step"] >= 0
    if name in CORE.GATHERS.values():
        assert CORE.gathering_of(CORE.VARIANTS[name])()["step"] >= 0


def test_a_penalty_behind_the_optimiser_moves_the_weights_of_the_core_step():
    network, method, _, _ = CORE.at_task_10(replace(CORE.VARIANTS["si_implicit"], strength=5.0))
    weights, optimiser = network.weights(), CORE.Sgd().start(network.weights())
    zero = {name: torch.zeros_like(w) for name, w in weights.items()}
    with torch.no_grad():
        for name, w in weights.items():
            method.importance.values[name] = torch.ones_like(w)
            method.importance.anchors[name] = w.clone()
            w.add_(1.0)
        CORE.apply(network, method, optimiser, method.gradients(zero))
        for name, w in weights.items():  # strength A lr = 2 * 5 * 0.1 = 1: half of the way back
            torch.testing.assert_close(w - method.importance.anchors[name], zero[name] + 0.5)
