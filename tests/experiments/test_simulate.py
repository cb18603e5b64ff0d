from __future__ import annotations

import json
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from spikecl_hardware.graph import Meta
from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.program import Program

import spikecl
from spikecl.errors import DataError, HardwareError, RunError, SpikeclError, UsageError
from spikecl.experiments import parse_config, run_config
from spikecl.experiments import simulate as module
from spikecl.experiments.backends import Lava
from spikecl.experiments.trained import TaskData
from spikecl.networks import SpikingMlp
from spikecl.neurons import LIF, Reset
from spikecl.storage import read_json

LEAKY = {"model": "lif", "beta": 0.9, "reset": "zero"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    y = np.arange(144) % 6
    x = (rng.integers(0, 200, (6, 4, 4))[y] + rng.integers(0, 56, (144, 4, 4))).astype(np.uint8)
    np.savez(path / "toy.npz", x_train=x[:72], y_train=y[:72], x_test=x[72:], y_test=y[72:])
    z = y % 5
    np.savez(path / "five.npz", x_train=x[:72], y_train=z[:72], x_test=x[72:], y_test=z[72:])
    w = x[:, :3]
    np.savez(path / "wide.npz", x_train=w[:72], y_train=y[:72], x_test=w[72:], y_test=y[72:])
    frames = (rng.random((6, 7, 9)) < 0.4)[y] ^ (rng.random((144, 7, 9)) < 0.1)
    frames = (255 * frames).astype(np.uint8)
    times = {"x_train": frames[:72], "x_test": frames[72:], "temporal": True}
    np.savez(path / "time.npz", y_train=y[:72], y_test=y[72:], **times)
    return path


@pytest.fixture(scope="module")
def make(folder):
    """Return a function from changes to a small finished run."""

    def make(name="run", data="toy", **changes):
        table = {
            "data": {"name": str(folder / f"{data}.npz")},
            "stream": {"experiences": 1},
            "network": {"hidden": [12], "spiking_mlp": {"neuron": LEAKY}},
            "encoding": {"steps": 6},
            "optimiser": {"name": "adam", "lr": 0.03},
            "train": {"epochs": 3, "batch": 12},
        }
        for section, values in changes.items():
            table[section] = {**table.get(section, {}), **values}
        if data == "time":
            del table["encoding"]["steps"]
        return run_config(parse_config(table), runs_dir=folder / name).record

    return make


@pytest.fixture(scope="module")
def record(make):
    return make()


@pytest.fixture(scope="module")
def program(record):
    return spikecl.export(record, to="loihi").path


def last(record):
    """Return the accuracies that the run ended with, by test set."""
    return dict(zip(record.matrix_names()[1], record.matrix()[-1].tolist()))


def accuracies(found, backend):
    return {name: row[backend].accuracy for name, row in found.results.items()}


@pytest.mark.filterwarnings("ignore:layer .hidden1. has been silent:spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("encoder", ["direct", "latency", "phase", "population"])
def test_the_file_alone_has_the_accuracy_of_the_run(make, encoder):
    record = make(encoder, encoding={"name": encoder})
    graph = spikecl.export(record).path
    assert accuracies(spikecl.simulate(graph, ["torch"]), "torch") == pytest.approx(last(record))


@pytest.mark.parametrize("encoder", ["sequence", "delta", "sigma_delta"])
def test_recordings_in_time(make, encoder):
    record = make(encoder, "time", encoding={"name": encoder})
    path = spikecl.export(record, to="loihi").path
    found = spikecl.simulate(path, ["torch", "emulator"])
    assert accuracies(found, "torch") == pytest.approx(last(record))
    assert found.accuracies("emulator")[0] > 0.3
    assert Program.load(path).steps == 7


@pytest.mark.parametrize(
    ("scenario", "head"), [("task", "single"), ("task", "multi"), ("class", "growing")]
)
def test_several_tasks_and_whether_the_task_is_known(make, scenario, head):
    record = make(
        f"{scenario}-{head}",
        stream={"name": "split_classes", "experiences": 3, "split_classes": {"scenario": scenario}},
        network={"spiking_mlp": {"neuron": LEAKY, "head": head}},
    )
    path = spikecl.export(record, to="loihi").path
    found = spikecl.simulate(path, ["torch", "emulator"])
    assert len(found.results) == 3
    assert accuracies(found, "torch") == pytest.approx(last(record))
    assert accuracies(found, "emulator") == pytest.approx(last(record), abs=0.1)
    few = spikecl.simulate(path, sets=["task2", "task0"], samples=5)
    assert list(few.results) == ["task2", "task0"]
    assert {row["samples"] for row in few.rows()} == {5}


def test_random_encoders_draw_the_same_each_time(make):
    record = make("rate", encoding={"name": "rate"})
    path = spikecl.export(record, to="loihi").path
    first, again = (spikecl.simulate(path, ["emulator"], keep=True) for _ in range(2))
    assert first.as_dict() == again.as_dict()
    inputs = [found.records["task0"]["emulator"].inputs for found in (first, again)]
    assert inputs[0].any() and np.array_equal(*inputs)


def test_batches_count_as_one(program, monkeypatch):
    whole = spikecl.simulate(program, ["emulator", "torch"])
    monkeypatch.setattr(module, "BATCH", 31)
    parts = spikecl.simulate(program, ["emulator", "torch"])
    ours, theirs = (found.results["task0"]["emulator"] for found in (whole, parts))
    assert (ours.samples, ours.accuracy, ours.notes) == (72, theirs.accuracy, theirs.notes)
    assert ours.rates == pytest.approx(theirs.rates)


def test_lava_has_the_emulators_spikes_and_answers(program):
    """The one test here that starts Lava."""
    backends, shown = ["emulator", "lava"], []
    found = spikecl.simulate(
        program, backends, samples=3, states=["u", "v"], keep=True, show=lambda *x: shown.append(x)
    )
    ours, theirs = (found.records["task0"][b] for b in backends)
    for layer, spikes in ours.spikes.items():
        assert np.array_equal(spikes, theirs.spikes[layer])
        for key, values in ours.states[layer].items():
            assert np.array_equal(values, theirs.states[layer][key])
    assert ours.spikes["hidden1"].any() and np.array_equal(ours.outputs, theirs.outputs)
    accuracy = found.accuracies("emulator")
    assert accuracy == found.accuracies("lava")
    assert shown == [("task0 emulator", 3, 3), ("task0 lava", 3, 3)]
    layers = {row["population"]: row for row in found.comparisons["task0"].rows()}
    assert layers["hidden1"]["first difference"] is None


def test_answers_are_those_of_the_record(program):
    found = spikecl.simulate(program, keep=True)
    kept, readout = found.records["task0"]["emulator"], Program.load(program).readout
    tests = TaskData.of_config(Program.load(program).manifest["meta"]["config"])
    ((_, y, _),) = tests.batches("task0", samples=50)
    right = (logits(kept.outputs, readout).argmax(1) == y.numpy()).mean()
    first = spikecl.simulate(program, samples=50).accuracies("emulator")
    assert first == [pytest.approx(right)] and kept.outputs.shape[1] == 50


def test_what_is_saved(program, tmp_path):
    found = spikecl.simulate(program, ["torch", "emulator"], states=["u"], keep=True)
    path = module.save(found, tmp_path / "new" / "records.v1")
    assert path == program.with_name("simulation.json")
    assert read_json(path) == json.loads(json.dumps(found.as_dict()))
    with np.load(tmp_path / "new" / "records.v1.npz") as file:
        assert file["task0/emulator/hidden1/u"].shape == (8, 50, 12)
        assert file["task0/torch/hidden1/spikes"].shape == (6, 50, 12)
        assert file["task0/emulator/outputs"].shape == (6, 50, 6)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["records.v1.npz"]
    with pytest.raises(UsageError, match="is a folder; name a file in it"):
        module.save(found, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        module.save(found, tmp_path / "file" / "x.npz")


def test_a_silent_network_can_be_compared_and_saved(folder, tmp_path):
    stream = spikecl.permuted(spikecl.load_data(folder / "toy.npz"), experiences=1)
    silent = SpikingMlp(hidden=(5,), neuron=LIF(reset=Reset.ZERO, v_th=9.0)).build((4, 4), 6)
    calibration = torch.rand(4, 10, 4, 4)
    meta = Meta(
        steps=4,
        encoder={"name": "direct", "options": {"steps": 4}},
        input={"spikes": False, "low": 0.0, "high": 1.0},
    )
    path = tmp_path / "p.h5"
    options = {"input_shape": (4, 4), "calibration": calibration, "meta": meta}
    spikecl.export(silent, path, to="loihi", **options)
    found = spikecl.simulate(path, ["torch", "emulator"], stream=stream)
    assert found.accuracies("emulator") == pytest.approx([1 / 6])
    module.save(found)
    with pytest.raises(HardwareError, match="does not say which data it is for.*stream=..."):
        spikecl.simulate(path)


def test_runs_from_python_objects_with_their_stream(folder, tmp_path):
    stream = spikecl.permuted(spikecl.load_data(folder / "toy.npz"), experiences=2)
    network = SpikingMlp(hidden=(9,), neuron=LIF(beta=0.9, reset=Reset.ZERO))
    result = spikecl.run(stream, network, encoder=spikecl.Direct(steps=4), runs_dir=tmp_path)
    path = spikecl.export(result, stream=stream, to="loihi").path
    found = spikecl.simulate(path, ["torch", "emulator"], stream=stream)
    assert accuracies(found, "torch") == pytest.approx(last(result.record))


REFUSED = [
    ({"backends": ["emu"]}, UsageError, r"\['emu'\]; torch, emulator, lava, brian2 are allowed"),
    ({"backends": []}, UsageError, "torch, emulator, lava, brian2 are allowed, each once"),
    ({"backends": ["torch", "torch"]}, UsageError, "each once"),
    ({"sets": ["x"]}, UsageError, r"test sets \['x'\]; there are task0"),
    ({"sets": []}, UsageError, "there are task0"),
    ({"samples": 0}, UsageError, "samples=0; 1 or more"),
    ({"states": ["w"]}, UsageError, r"states \['w'\]; u, v are allowed"),
    ({"device": "tpu"}, UsageError, "device 'tpu'; cpu or cuda"),
    ({"data": "five.npz"}, UsageError, "6 answers, the data have 5 classes"),
    ({"data": "wide.npz"}, UsageError, r"data have features \[3, 4\], the file takes \[16\]"),
    ({"data": "none.npz"}, DataError, "no file"),
]


@pytest.mark.parametrize(("change", "error", "told"), REFUSED)
def test_mistakes_are_told(program, folder, monkeypatch, change, error, told):
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=told):
        spikecl.simulate(program, **change)


def test_no_gpu_and_no_lava(program, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for backend in ("torch", "emulator"):
        with pytest.raises(UsageError, match="no GPU that torch sees"):
            spikecl.simulate(program, [backend], device="cuda")
    none = Lava(python="/nonexistent")
    with pytest.raises(HardwareError, match="no Python '/nonexistent'"):
        spikecl.simulate(program, ["lava"], lava_options=none)
    monkeypatch.setattr(lava, "_PROBE", "print('{')")
    with pytest.raises(HardwareError, match="does not work as Python"):
        spikecl.simulate(program, ["lava"], lava_options=Lava(python=sys.executable))


def test_a_program_without_its_graph(program, tmp_path):
    alone = tmp_path / "p.h5"
    alone.write_bytes(program.read_bytes())
    assert spikecl.simulate(alone, samples=3).accuracies("emulator")
    with pytest.raises(HardwareError, match="the graph that p.h5 was made from is missing"):
        spikecl.simulate(alone, ["torch"])
    loaded = Program.load(alone)
    manifest = {key: value for key, value in loaded.manifest.items() if key != "graph"}
    replace(loaded, manifest=manifest).save(alone)
    with pytest.raises(HardwareError, match="trained as integers, there is no float simulation"):
        spikecl.simulate(alone, ["torch", "emulator"])
    replace(loaded, manifest={**manifest, "meta": 1}).save(alone)
    with pytest.raises(HardwareError, match="says nothing of encoder and data"):
        spikecl.simulate(alone)


def damaged(path, kind, monkeypatch=None):
    """Damage an HDF5 file in a way."""
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("[data]\n")
    elif kind == "version":
        whole = Program.load(path)
        with monkeypatch.context() as patch:
            patch.setattr("spikecl_hardware.loihi.program.VERSION", 99)
            whole.save(path)
    else:
        with h5py.File(path, "w" if kind == "foreign" else "a") as file:
            if kind == "foreign":
                file["a"] = 1
            else:
                file["connections/0/weights"][0, 0] ^= 2


TOLD = {
    "missing": "no file",
    "empty": "cut short",
    "cut": "cut short",
    "text": "cut short",
    "foreign": "no Loihi program",
    "version": "version 99; this release reads",
    "bit": "checksum does not fit",
}


@pytest.mark.parametrize("kind", TOLD)
def test_damaged_programs(program, tmp_path, monkeypatch, kind):
    path = tmp_path / "p.h5"
    path.write_bytes(program.read_bytes())
    damaged(path, kind, monkeypatch)
    with pytest.raises(HardwareError, match=f"p.h5.*{TOLD[kind]}|{TOLD[kind]}.*p.h5") as raised:
        spikecl.simulate(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "text", "foreign"])
def test_damaged_graphs(program, tmp_path, kind):
    path = tmp_path / "p.nir"
    path.write_bytes(program.with_suffix(".nir").read_bytes())
    damaged(path, kind)
    with pytest.raises(HardwareError, match=r"p\.nir"):
        spikecl.simulate(path, ["torch"])


def test_flipped_bits_are_noticed_or_change_nothing(program, tmp_path):
    """HDF5 has bytes that mean nothing; all that mean something are in the checksum."""
    content, rng, noticed = program.read_bytes(), np.random.default_rng(0), 0
    path, expected = tmp_path / "p.h5", Program.load(program).checksum
    for _ in range(60):
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            assert Program.load(path).checksum == expected
        except ValueError as error:
            assert str(path) in str(error)
            noticed += 1
    assert noticed > 5


def test_a_graph_runs_on_torch_alone(program):
    with pytest.raises(SpikeclError, match="a graph of floats does not run on emulator, lava"):
        spikecl.simulate(program.with_suffix(".nir"), ["emulator", "lava"])
