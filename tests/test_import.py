from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import spikecl

PUBLIC = [
    "__version__",
    "ALIF",
    "AdEx",
    "Adam",
    "AdamW",
    "Bptt",
    "CLASS_IL",
    "CUBA",
    "CheckpointPolicy",
    "ConductanceLIF",
    "ConvNet",
    "CrossEntropy",
    "DOMAIN_IL",
    "Data",
    "Delta",
    "Direct",
    "Finetune",
    "Frames",
    "Hlop",
    "IF",
    "Izhikevich",
    "JointTraining",
    "LIF",
    "Latency",
    "LeakyIntegrator",
    "LoihiLIF",
    "Method",
    "MethodSpec",
    "Mlp",
    "Network",
    "PLIF",
    "Phase",
    "Population",
    "Rate",
    "Recording",
    "RecurrentNet",
    "ResNet",
    "Reset",
    "Reveal",
    "RunResult",
    "ScheduleFreeAdamW",
    "ScheduleFreeSgd",
    "Seeds",
    "Sequence",
    "Sgd",
    "SigmaDelta",
    "SpikingConvNet",
    "SpikingMlp",
    "SpikingRecurrentNet",
    "SpikingResNet",
    "Stateful",
    "Stream",
    "TASK_IL",
    "TrainPlan",
    "carry",
    "component",
    "concept_shift",
    "domains",
    "drifting",
    "explain",
    "export",
    "initialise",
    "joint",
    "load",
    "load_config",
    "load_data",
    "permuted",
    "plot_comparison",
    "resume",
    "rotated",
    "run",
    "run_config",
    "run_seeds",
    "scan",
    "simulate",
    "split_classes",
    "step",
    "to_brian2",
    "write_report",
]
HEAVY = {
    *("matplotlib", "pydantic", "typer", "rich", "click", "sklearn", "scipy", "pandas", "jinja2"),
    *("pooch", "requests", "safetensors", "filelock", "platformdirs", "IPython", "snntorch"),
}


def modules_after(code):
    """Return the top-level modules a fresh process has after some code."""
    program = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    present = modules_after("import spikecl")
    assert not present & (HEAVY | {"torch", "numpy"})


def test_the_command_line_starts_without_torch():
    present = modules_after("import spikecl.cli")
    assert not present & {"torch", "numpy", "matplotlib", "scipy", "sklearn", "pydantic"}


def test_a_run_needs_neither_figures_nor_pages(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (60, 4, 4)).astype(np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "toy.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:])
    present = modules_after(
        f"import spikecl\nfolder = {str(tmp_path)!r}\n"
        "data = spikecl.load_data(folder + '/toy.npz')\n"
        "spikecl.run(spikecl.permuted(data, experiences=2), runs_dir=folder)"
    )
    assert "torch" in present
    assert not present & {"matplotlib", "jinja2", "typer", "rich", "sklearn", "scipy", "pooch"}


@pytest.mark.parametrize("optimiser", ["Sgd", "Adam"])
def test_a_run_on_the_digits_needs_neither_their_library_nor_a_compiler(tmp_path, optimiser):
    present = modules_after(
        f"import spikecl\nfolder = {str(tmp_path)!r}\n"
        "stream = spikecl.permuted(spikecl.load_data('digits'), experiences=1)\n"
        "plan = spikecl.TrainPlan(epochs=1)\n"
        f"spikecl.run(stream, plan=plan, optimiser=spikecl.{optimiser}(), runs_dir=folder)\n"
        "assert 'torch.optim.sgd' in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    assert "torch" in present
    assert not present & {"sklearn", "scipy"}


def test_the_public_names_are_these():
    assert spikecl.__all__ == PUBLIC
    assert dir(spikecl) == sorted(PUBLIC)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "component"])
def test_every_public_name_is_there(name):
    value = getattr(spikecl, name)
    if name == "__version__":
        from importlib.metadata import version

        assert value == version("spikecl")
    elif isinstance(value, spikecl.Reveal):
        assert name.endswith("_IL")
    else:
        expected = {"load_data": "load"}.get(name, name)
        assert value.__name__ == expected and value.__module__.startswith("spikecl.")
        assert value.__doc__


def test_all_public_names_are_there_in_a_fresh_process():
    code = "import spikecl\nfor n in spikecl.__all__: assert hasattr(spikecl, n), n"
    assert "torch" in modules_after(code)


def test_component_is_the_decorator_when_it_is_asked_for_first():
    modules_after("import spikecl\nassert callable(spikecl.component)\nspikecl.Hlop")


def test_component_is_the_decorator_when_something_else_came_before():
    modules_after("import spikecl\nspikecl.Hlop\nassert callable(spikecl.component)")


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'spikecl' has no attribute 'nonsense'"):
        spikecl.nonsense  # noqa: B018
    assert not hasattr(spikecl, "__path_of_no_use__")


class Recorder:
    """Global random states before and after."""

    def __init__(self):
        self.torch, self.numpy = torch.random.get_rng_state(), np.random.get_state()
        self.python, self.seed = random.getstate(), torch.initial_seed()

    def unchanged(self):
        after = Recorder()
        return (
            torch.equal(self.torch, after.torch)
            and all(np.array_equal(a, b) for a, b in zip(self.numpy, after.numpy))
            and self.python == after.python
            and self.seed == after.seed
        )


@pytest.fixture
def stream(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (60, 4, 4)).astype(np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "toy.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:])

    def make():
        data = spikecl.load_data(tmp_path / "toy.npz")
        return spikecl.permuted(data, experiences=2, old_data=True)

    return make


CASES = {
    "finetune": {},
    "hlop": {"methods": [spikecl.Hlop()], "encoder": spikecl.Rate(steps=3)},
    "faithful": {"methods": [spikecl.Hlop(faithful=True)], "encoder": spikecl.Direct(steps=2)},
    "joint": {"methods": [spikecl.JointTraining()], "optimiser": spikecl.Adam()},
    "mlp": {"network": spikecl.Mlp(hidden=(5,))},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_neither_draws_from_nor_seeds_the_global_generators(stream, tmp_path, case):
    given = {"network": spikecl.SpikingMlp(hidden=(5,))} | CASES[case]
    states, weights = [], []
    for number in (1, 2):  # and so another global state changes nothing in the result
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        before = Recorder()
        result = spikecl.run(stream(), **given, runs_dir=tmp_path / str(number))
        states.append(before.unchanged())
        weights.append((result.path / "weights" / "tensors.safetensors").read_bytes())
    assert states == [True, True]
    assert weights[0] == weights[1]


def test_the_recorder_notices():
    for draw in (lambda: torch.rand(1), lambda: np.random.rand(), random.random):
        before = Recorder()
        draw()
        assert not before.unchanged()
