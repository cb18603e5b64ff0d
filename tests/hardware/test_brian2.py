"""Graphs in Brian2 against the float simulation, spike for spike, and what users meet."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import nir
import numpy as np
import pytest
from graphs import cells, conv, pooled, row, spikes
from spikecl_hardware.brian2 import graphs as reading
from spikecl_hardware.brian2 import library, run
from spikecl_hardware.brian2.description import Brian2Error
from spikecl_hardware.brian2.options import Options
from spikecl_hardware.chain import chain
from spikecl_hardware.floating import simulate
from spikecl_hardware.graph import GraphError

NEEDED = "needs brian2: pip install 'brian2>=2.9'"
try:
    brian2 = library.library()
except Brian2Error:
    pytest.skip(NEEDED, allow_module_level=True)

KINDS = {
    "IF": {},
    "LIF": {"beta": 0.8},
    "LIF at rest": {"beta": 0.8, "rest": -0.5, "reset": -0.25},
    "CubaLIF": {"beta": 0.8, "alpha": 0.6},
    "LI": {"beta": 0.9, "threshold": None},
    "CubaLI": {"beta": 0.9, "alpha": 0.3, "threshold": None, "rest": 0.5},
}


def same(graph, x, **options):
    """Compare all layers of a record with the float simulation; return the record."""
    _, layers = chain(graph)
    record, expected = run.run(graph, x, **options), simulate(layers, x)
    for layer, activity in zip(layers, expected, strict=True):
        if layer.neurons is not None and layer.neurons.spiking:
            found = record.spikes[layer.name]
            assert 0.005 < activity.out.mean() < 0.98
            np.testing.assert_array_equal(found, activity.out)
            assert found.dtype == np.uint8
    flat = expected[-1].out.reshape(*x.shape[:2], -1)
    np.testing.assert_allclose(record.outputs, flat, rtol=0, atol=1e-12)
    return record


def row_of(rng, kind, around=False):
    nodes = [
        nir.Linear(rng.normal(0.5, size=(7, 5))),
        cells(7, beta=0.7),
        nir.Affine(rng.normal(size=(4, 7)), rng.normal(size=4)),
        cells(4, **{**KINDS[kind], "gain": rng.uniform(0.5, 2, 4)}),
    ]
    return row(
        (5,), *nodes, onto={3: nir.Linear(rng.normal(0, 0.1, size=(4, 4)))} if around else None
    )


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_spike_for_spike(kind):
    """500 steps in all: five samples, each from rest."""
    rng = np.random.default_rng(len(kind))
    record = same(row_of(rng, kind, around=kind != "CubaLI"), spikes(rng, 100, 5, 5))
    assert record.backend == f"brian2 {brian2.__version__} (numpy)" and not record.notes


def test_maps_and_input_that_is_no_spikes():
    rng = np.random.default_rng(1)
    nodes = [
        conv(rng.normal(size=(3, 2, 3, 2)), (9, 8), stride=2, padding=1, bias=rng.normal(size=3)),
        cells((3, 5, 5), beta=0.5),
        pooled(nir.AvgPool2d, (2, 3), stride=(1, 2), padding=(1, 0)),
        pooled(nir.SumPool2d, 2, stride=(2, 1)),
        conv(rng.normal(size=(2, 3, 2, 1)), (3, 1)),
        cells((2, 2, 1)),
        nir.Flatten(np.array([2, 2, 1]), 0, -1),
        nir.Linear(rng.normal(size=(3, 4))),
    ]
    same(row((2, 9, 8), *nodes), rng.normal(size=(30, 4, 2, 9, 8)))


def test_states_are_those_of_the_record_format():
    rng = np.random.default_rng(3)
    graph, x = row_of(rng, "CubaLIF"), spikes(rng, 40, 2, 5)
    record = same(graph, x, states=("u", "v"))
    assert {name: set(found) for name, found in record.states.items()} == {
        "n0": {"u", "v"},
        "n2": {"u", "v"},
    }
    layer = chain(graph)[1][0]
    (activity, *_) = simulate([layer], x)
    np.testing.assert_allclose(record.states["n0"]["u"], activity.current, atol=1e-12)
    after = record.states["n0"]["v"]
    assert after.shape == (40, 2, 7) and (after[activity.out > 0] == 0).all()


@pytest.mark.parametrize("kind", ["LIF", "LIF at rest", "LI"])
def test_currents_have_input_that_is_no_spikes_in_them(kind):
    rng = np.random.default_rng(4)
    more = {**KINDS[kind], "gain": 0.5}
    nodes = nir.Affine(rng.normal(size=(7, 5)), rng.normal(size=7)), cells(7, **more)
    graph, x = row((5,), *nodes, nir.Linear(rng.normal(size=(2, 7)))), rng.normal(size=(30, 2, 5))
    record = same(graph, x, states=("u",))
    (activity, *_) = simulate(chain(graph)[1], x)
    np.testing.assert_allclose(record.states["n0"]["u"], activity.current, atol=1e-12)
    np.testing.assert_allclose(record.states["n2"]["u"], record.outputs, atol=1e-12)


def test_equations_in_time_come_close():
    rng = np.random.default_rng(5)
    graph = row((5,), nir.Linear(rng.normal(0.3, size=(40, 5))), cells(40, beta=0.97))
    x = spikes(rng, 200, 3, 5)
    steps = run.run(graph, x)
    time = run.run(graph, x, options=Options("continuous", dt_ms=0.0125))  # an eighth of a step
    ours, theirs = (r.spikes["n0"].sum((0, 1), dtype=int) for r in (steps, time))
    assert ours.sum() > 1000 and theirs.sum() == pytest.approx(ours.sum(), rel=0.1)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.95


# ---- what users meet ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Let temporary files be those of one test: others run beside it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def small():
    rng = np.random.default_rng(0)
    return row((5,), nir.Linear(rng.normal(0.5, size=(7, 5))), cells(7, beta=0.7))


@pytest.fixture
def x():
    return spikes(np.random.default_rng(1), 20, 2, 5)


def present():
    """What of Brian2 is global, and files of it in the temporary folder."""
    settings = {name: brian2.prefs[name] for name in brian2.prefs}
    files = set(Path(tempfile.gettempdir()).iterdir())
    return settings, brian2.get_device(), brian2.defaultclock.dt, files


def test_nothing_global_is_left_changed(small, x):
    before = present()
    run.run(small, x)
    with pytest.raises(RuntimeError, match="within"), library.device("cython"):
        assert brian2.prefs.codegen.target == "cython"
        raise RuntimeError("within")
    with pytest.raises(RuntimeError, match="within"), library.device("cpp_standalone") as folder:
        assert folder.is_dir() and brian2.get_device() is not before[1]
        raise RuntimeError("within")
    assert not folder.exists() and present() == before
    run.run(small, x)


@pytest.mark.parametrize("target", ["cython", "cpp_standalone"])
def test_without_a_compiler_numpy_is_used_and_the_record_says_so(target, small, x, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    monkeypatch.setattr(library, "_compiles", lambda: False)
    record = same(small, x, target=target)
    assert record.notes == {run.FALLBACK: {target: 1}}
    assert f"(numpy, not {target}: " in record.backend


def test_a_project_that_does_not_compile_is_run_by_numpy(small, x, monkeypatch):
    monkeypatch.setattr(library, "usable", lambda target: (target, ""))
    monkeypatch.setattr(run, "usable", lambda target: (target, ""))
    monkeypatch.setitem(brian2.prefs, "devices.cpp_standalone.make_cmd_unix", "false")
    before = present()
    record = same(small, x, target="cpp_standalone")
    assert present() == before
    assert "not cpp_standalone: compiling failed" in record.backend
    assert record.notes == {run.FALLBACK: {"cpp_standalone": 1}}


def test_ctrl_c_while_a_project_compiles_ends_the_run(small, x, monkeypatch):
    monkeypatch.setattr(run, "usable", lambda target: (target, ""))
    stop = f"sh -c 'sleep 1; kill -INT {os.getpid()}; sleep 5; exit 2' #"
    monkeypatch.setitem(brian2.prefs, "devices.cpp_standalone.make_cmd_unix", stop)
    before = present()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test before may differ
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run(small, x, target="cpp_standalone")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert present() == before


@pytest.mark.parametrize("how", ["signal", "stop"])
def test_a_run_that_is_stopped_gives_no_record(how, small, monkeypatch):
    """Where Brian2 was imported first, Ctrl-C is its own: the run would end as if it were over."""
    monkeypatch.setattr(brian2._int_handler, "previous_handler", signal.default_int_handler)
    monkeypatch.setattr(brian2.Network, "_globally_running", False)
    handler = signal.signal(signal.SIGINT, brian2._int_handler)

    def stop():
        while not brian2.Network._globally_running:
            time.sleep(0.01)
        brian2.stop() if how == "stop" else os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run(small, spikes(np.random.default_rng(1), 1000, 20, 5))
    finally:
        signal.signal(signal.SIGINT, handler)
        thread.join()


def test_a_channel_that_neurons_lack_is_named(small):
    about = reading.described(small)
    (one,) = about.projections
    wrong = replace(about, projections=(replace(one, channel="I_exc"),))
    with pytest.raises(Brian2Error, match="'n0' leads to 'I_exc' of 'n0', which has I"):
        run.run(wrong, np.zeros((3, 1, 5)))


def test_weights_that_are_none_are_named(small, x):
    about = reading.described(small)
    (one,) = about.projections
    wrong = replace(about, projections=(replace(one, weight=one.weight * np.inf),))
    with pytest.raises(Brian2Error, match="'n0' has weights that are not finite"):
        run.run(wrong, x)


def test_a_standalone_project_of_the_caller_is_left_alone(small, x):
    brian2.set_device("cpp_standalone", build_on_run=False)
    try:
        with pytest.raises(Brian2Error, match="standalone device of Brian2 is set"):
            run.run(small, x)
    finally:
        importlib.import_module("brian2.devices.device").reset_device()


@pytest.mark.parametrize(
    "given, options, words",
    [
        ((20, 2, 4), {}, r"input has shape \(20, 2, 4\); \[steps, samples, \*\[5\]\]"),
        ((0, 2, 5), {}, "one or more of each"),
        ((20, 5), {}, "input has shape"),
        ((20, 2, 5), {"target": "fortran"}, "'fortran'; numpy, cython, cpp_standalone"),
    ],
)
def test_input_and_targets_that_cannot_be_meant(small, given, options, words):
    with pytest.raises(GraphError, match=words):
        run.run(small, np.zeros(given), **options)


def test_numbers_that_are_none(small):
    with pytest.raises(Brian2Error, match="not finite"):
        run.run(small, np.full((3, 1, 5), np.nan))


def test_a_layer_that_is_too_large_is_named(small, x, monkeypatch):
    monkeypatch.setattr(reading, "LIMIT", 34)
    with pytest.raises(Brian2Error, match="'n0': 35 weights.*34 are allowed"):
        run.run(small, x)


def test_a_missing_brian2_is_named(small, x, monkeypatch):
    monkeypatch.setitem(sys.modules, "brian2", None)
    with pytest.raises(Brian2Error, match="brian2 is not installed; pip install"):
        run.run(small, x)


def test_importing_leaves_no_files_and_changes_no_handlers(temporary):
    program = """
import signal, sys
import spikecl_hardware.brian2.run
assert "brian2" not in sys.modules and "torch" not in sys.modules
hook, handler = sys.excepthook, signal.getsignal(signal.SIGINT)
from spikecl_hardware.brian2.library import library
library()
assert (hook, handler) == (sys.excepthook, signal.getsignal(signal.SIGINT))
"""
    command, place = [sys.executable, "-c", program], {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(command, capture_output=True, text=True, env=place)
    assert (done.returncode, done.stderr) == (0, "") and not list(temporary.iterdir())
