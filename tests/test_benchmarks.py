"""Rows of long tables begin as they stand: a slip in one would show after hours."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from spikecl.data.arrays import checked
from spikecl.experiments import job, load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TABLES = {"pmnist": ("ALL_ROWS", "FULL_LENGTH"), "long_stream": ("ROWS",)}


def rows():
    """Yield the module and the row of every method."""
    sys.path.insert(0, str(BENCHMARKS))
    before = set(sys.modules)
    try:
        for table, names in TABLES.items():
            module = importlib.import_module(table)
            for name in names:
                for method, row in getattr(module, name).items():
                    yield pytest.param(module, row, id=f"{table}-{name.lower()}-{method}")
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:  # "results" is a module of the documentation, too
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
                del sys.modules[name]


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
