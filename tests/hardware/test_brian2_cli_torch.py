"""``spikecl simulate --backend brian2``: alone, in comparisons, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest

from spikecl import cli
from spikecl.errors import HardwareError
from spikecl.experiments import parse_config, run_config
from spikecl.experiments.export import export
from spikecl.experiments.simulate import simulate

brian2 = pytest.importorskip("brian2", reason="needs brian2: pip install 'spikecl[brian2]'")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a program, beside which its graph lies."""
    path, rng = tmp_path_factory.mktemp("brian2"), np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.integers(0, 200, (3, 4, 4))[y] + rng.integers(0, 56, (120, 4, 4))).astype(np.uint8)
    np.savez(path / "toy.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    leaky = {"model": "lif", "beta": 0.9, "reset": "zero"}
    table = {
        "data": {"name": str(path / "toy.npz")},
        "stream": {"experiences": 1},
        "network": {"hidden": [12], "spiking_mlp": {"neuron": leaky}},
        "encoding": {"name": "rate", "steps": 6},
        "optimiser": {"name": "adam", "lr": 0.03},
        "train": {"epochs": 1, "batch": 10},
    }
    record = run_config(parse_config(table), runs_dir=path / "runs").record
    return export(record, path / "made.h5", to="loihi").path


@pytest.fixture
def spikecl(capsys, monkeypatch):
    """Return a function that runs a command in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["spikecl", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


def test_a_graph_has_the_spikes_and_answers_of_torch(spikecl, exported):
    graph = exported.with_suffix(".nir")
    code, out, err = spikecl("simulate", graph, "--compare", "torch,brian2", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    ours, theirs = told["rows"]
    assert (ours["backend"], theirs["backend"]) == ("torch", "brian2")
    assert theirs["accuracy"] == ours["accuracy"] and theirs["samples"] == 60
    assert told["rates"]["task0"]["brian2"]["hidden1"] > 0.02
    (report,) = told["comparisons"].values()
    assert report["layers"][1]["difference"]["differing"] == 0
    assert report["outputs"][1]["agreement"] == 1
    code, out, err = spikecl("simulate", graph, "--compare", "torch,brian2", "--samples", 5)
    assert (code, err) == (0, "") and "brian2 2." in out


def test_a_program_runs_as_the_graph_beside_it(spikecl, exported):
    told = spikecl("simulate", exported, "--compare", "torch,brian2,emulator", "--json")
    rows = json.loads(told[1])["rows"]
    assert told[0] == 0 and [row["backend"] for row in rows] == ["torch", "brian2", "emulator"]
    assert rows[1]["synaptic events"] is None and rows[2]["synaptic events"] > 0


def test_records_keep_states(exported, tmp_path):
    made = simulate(exported.with_suffix(".nir"), ("brian2",), states=("u", "v"), keep=True)
    record = made.records["task0"]["brian2"]
    assert record.states["hidden1"]["v"].shape == (6, 50, 12)
    assert set(np.unique(record.spikes["hidden1"])) == {0, 1}


def test_a_target_without_its_compiler_is_named(spikecl, exported, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    graph = exported.with_suffix(".nir")
    options = ("--backend", "brian2", "--target", "cpp_standalone", "--samples", 5, "--json")
    code, out, err = spikecl("simulate", graph, *options)
    assert code == 0 and "no compiler for cpp_standalone that works; it ran with numpy" in err
    told = json.loads(out)
    assert told["notes"]["task0"]["brian2"] == {"fell back to numpy": {"cpp_standalone": 1}}
    saved = json.loads(graph.with_name("simulation.json").read_text())
    assert saved["run_by"] == told["run_by"]
    name = saved["run_by"]["task0"]["brian2"]
    assert name == f"brian2 {brian2.__version__} (numpy, not cpp_standalone: there is no g++)"


def test_ctrl_c_while_brian2_compiles_writes_nothing(spikecl, exported, tmp_path, monkeypatch):
    monkeypatch.setattr("spikecl_hardware.brian2.run.usable", lambda target: (target, ""))
    stop = f"sh -c 'sleep 1; kill -INT {os.getpid()}; sleep 5; exit 2' #"
    monkeypatch.setitem(brian2.prefs, "devices.cpp_standalone.make_cmd_unix", stop)
    graph = tmp_path / "made.nir"
    shutil.copy(exported.with_suffix(".nir"), graph)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told = spikecl("simulate", graph, "--backend", "brian2", "--target", "cpp_standalone")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (told[0], told[1]) == (75, "") and "stopped; nothing was written" in told[2]
    assert list(tmp_path.iterdir()) == [graph]


@pytest.mark.parametrize(
    "suffix, options, words",
    [
        (".nir", ("--backend", "brian2", "--target", "fortran"), "target 'fortran'; numpy, cython"),
        (".nir", ("--backend", "brian"), "torch, emulator, lava, brian2 are allowed"),
        (".nir", ("--compare", "brian2,emulator"), "does not run on emulator"),
        (".nir", ("--compare", "brian2,brian2"), "each once"),
        (".nir", ("--compare", "torch,,brian2"), "are allowed, each once"),
        (".nir", ("--compare", ""), "are allowed, each once"),
        (".nir", ("--backend", "torch", "--target", "cython"), "use it with the backend brian2"),
        (".txt", ("--backend", "brian2"), "made.txt"),
    ],
)
def test_what_cannot_run_is_refused_before_work_starts(spikecl, exported, suffix, options, words):
    code, out, err = spikecl("simulate", exported.with_suffix(suffix), *options)
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1


def test_a_missing_brian2_is_refused_before_work_starts(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "brian2", None)
    with pytest.raises(HardwareError, match="brian2 is not installed; pip install"):
        simulate(exported.with_suffix(".nir"), ("brian2",))


def test_a_program_without_a_graph_says_why_not(exported, tmp_path):
    alone = tmp_path / "alone.h5"
    shutil.copy(exported, alone)
    with pytest.raises(HardwareError, match="the graph that alone.h5 was made from is missing"):
        simulate(alone, ("brian2",))
