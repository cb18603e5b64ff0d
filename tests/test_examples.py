"""The examples run as they stand, in a folder of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from spikecl.experiments import load_config

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs(path, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not done.stderr
    assert not list(tmp_path.iterdir()), "an example cleans up behind it"


def test_neurons_that_never_answered_do_not_vote():
    """Ten that know a digit each, and ninety that are silent, are always right."""
    spec = importlib.util.spec_from_file_location("diehl_cook", EXAMPLES / "diehl_cook.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    y = torch.arange(10).repeat(5)
    answers = torch.cat([functional.one_hot(y).float(), torch.zeros(50, 90)], 1)
    assert example.accuracy(answers, y, answers, y) == 1.0
    assert example.accuracy(answers, y, answers.roll(1, 0), y) == 0.0


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.name)
def test_a_configuration_is_valid_and_says_how_to_run_it(path):
    load_config(path)
    assert f"spikecl run examples/{path.relative_to(EXAMPLES)}" in path.read_text()
