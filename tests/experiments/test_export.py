from __future__ import annotations

import json
from dataclasses import replace

import nir
import numpy as np
import pytest
import torch
from spikecl_hardware.graph import Meta, read
from spikecl_hardware.loihi import limits, netx
from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.program import Program
from spikecl_hardware.loihi.quantise import SEARCH, Options, quantise_input

import spikecl
from spikecl.errors import HardwareError, InteropError, RunError, UsageError
from spikecl.experiments import export as module
from spikecl.experiments import load, parse_config, run_config
from spikecl.experiments.trained import TaskData
from spikecl.interop import from_nir
from spikecl.networks import SpikingMlp, initialise
from spikecl.neurons import ALIF, LIF, LoihiLIF, Reset
from spikecl.records import RunRecord
from spikecl.seeds import Seeds

LEAKY = {"model": "lif", "beta": 0.9, "reset": "zero"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.integers(0, 200, (3, 4, 4))[y] + rng.integers(0, 56, (120, 4, 4))).astype(np.uint8)
    names = np.array(["a", "b", "c"])
    np.savez(
        path / "toy.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:], names=names
    )
    return path


@pytest.fixture(scope="module")
def make(folder):
    """Return a function from changes to a small finished run."""

    def make(name="run", **changes):
        table = {
            "data": {"name": str(folder / "toy.npz")},
            "stream": {"experiences": 1},
            "network": {"hidden": [12], "spiking_mlp": {"neuron": LEAKY}},
            "encoding": {"steps": 6},
            "optimiser": {"lr": 0.05},
            "train": {"epochs": 2, "batch": 10},
        }
        for section, values in changes.items():
            table[section] = {**table.get(section, {}), **values}
        return run_config(parse_config(table), runs_dir=folder / name).record

    return make


@pytest.fixture(scope="module")
def record(make):
    return make()


def network(neuron=None, **options):
    neuron = LIF(beta=0.9, reset=Reset.ZERO) if neuron is None else neuron
    made = SpikingMlp(hidden=(9,), neuron=neuron, **options).build((4, 4), 3)
    initialise(made, Seeds(0))
    return made


def spikes():
    return (torch.rand(5, 20, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def test_a_graph_says_what_the_run_knew(record):
    made = spikecl.export(record)
    assert made.path == made.graph == record.path / "export" / f"{record.id}.nir"
    assert made.program is None and made.cores == ()
    meta = Meta.of(read(made.path))
    assert meta == made.meta and meta.config == json.loads(json.dumps(record.run["config"]))
    assert (meta.steps, meta.encoder["name"], len(meta.classes)) == (6, "direct", 3)
    assert meta.input["low"] < 0 < meta.input["high"] and not meta.input["spikes"]
    x = torch.rand(6, 4, 16)
    mine = spikecl.RunResult(record).network()
    again = from_nir(read(made.path))
    ours, theirs = (n.record(x)["hidden1"]["spikes"] for n in (mine, again))
    assert ours.any() and np.array_equal(ours, theirs)
    torch.testing.assert_close(mine(x).logits, again(x).logits)


def test_a_program_has_its_graph_beside_it(record, tmp_path):
    made = spikecl.export(record, tmp_path / "new" / "p.h5", to="loihi")
    assert made.graph == tmp_path / "new" / "p.nir"
    assert {p.name for p in made.path.parent.iterdir()} == {"p.h5", "p.nir"}
    program = Program.load(made.path)
    assert program.checksum == made.program.checksum
    assert program.manifest["graph"] == "p.nir" and program.manifest["calibrated"]
    rows = module.layer_rows(made)
    assert [(row["layer"], row["neurons"]) for row in rows] == [("hidden1", 12), ("readout", 3)]
    assert rows[0]["a membrane of 1"] == program.manifest["scales"]["hidden1"]["unit"]
    again = spikecl.export(record, tmp_path / "again.h5", to="loihi")
    assert replace(again.program, manifest={}).checksum == replace(program, manifest={}).checksum


def test_options_reach_the_program(record, tmp_path):
    options = Options(weight_bits=4, message_bits=6, clips=SEARCH)
    made = spikecl.export(record, tmp_path / "p.h5", to="loihi", options=options)
    assert {c.synapses.num_weight_bits for c in made.program.connections} == {4}
    assert made.program.manifest["input"]["bits"] == 6
    worst = spikecl.export(record, tmp_path / "w.h5", to="loihi", calibrate=0)
    assert not worst.program.manifest["calibrated"]


def test_a_file_for_lava_dl_has_the_spikes_of_its_program(record, tmp_path):
    made = spikecl.export(record, tmp_path / "n.net", to="netx")
    assert [path.name for path in tmp_path.iterdir()] == ["n.net"]
    again = netx.load(made.path)
    draw = np.random.default_rng(0).integers(0, 2, (again.steps, 3, *again.input_shape))
    graded = made.program.connections[0].synapses.num_message_bits
    x = draw * 90 if graded else draw
    ours, theirs = (emulate(p, x, states=("v",)) for p in (made.program, again))
    for name, spikes in ours.spikes.items():
        assert np.array_equal(spikes, theirs.spikes[name])
        assert np.array_equal(ours.states[name]["v"], theirs.states[name]["v"])
    assert any(spikes.any() for spikes in ours.spikes.values())


def test_a_network_of_whole_numbers_is_written_as_it_is(make):
    cells = {"model": "loihi", "vth": 100, "dv": 400}
    mlp = {"neuron": cells, "gain": 100.0}
    record = make("whole", encoding={"name": "rate"}, network={"spiking_mlp": mlp})
    made = spikecl.export(record, to="loihi")
    assert made.graph is None and [p.name for p in made.path.parent.iterdir()] == [made.path.name]
    network, tests, _ = module.Trained.of(record)
    ((x, _, _),) = tests.batches("task0")
    found = emulate(made.program, quantise_input(made.program, x.flatten(2).numpy()))
    recording = network.record(x)["hidden1"]["spikes"]
    assert recording.any() and np.array_equal(recording, found.spikes["hidden1"][1:7])
    ours, theirs = network(x).logits.detach(), logits(found.outputs, made.program.readout)
    assert np.array_equal(ours.argmax(1), theirs.argmax(1))
    with pytest.raises(UsageError, match="NIR has no neurons of whole numbers.*to='loihi'"):
        spikecl.export(record)


def test_a_network_of_ones_own(tmp_path):
    options = {"input_shape": (4, 4), "calibration": spikes()}
    made = spikecl.export(network(), tmp_path / "p.h5", to="loihi", **options)
    assert made.meta.steps == 5 and made.meta.input["spikes"]
    assert not made.program.manifest["input"]["graded"]
    with pytest.raises(HardwareError, match="which values its input has; give calibration data"):
        spikecl.export(network(), tmp_path / "q.h5", to="loihi", input_shape=(4, 4))
    assert spikecl.export(network(), tmp_path / "q.nir", input_shape=(4, 4)).meta == Meta()


def test_python_runs_with_their_stream(folder, tmp_path):
    data = spikecl.load_data(folder / "toy.npz")
    stream = spikecl.permuted(data, experiences=1)
    neuron = LIF(beta=0.9, reset=Reset.ZERO)
    result = spikecl.run(stream, SpikingMlp(hidden=(5,), neuron=neuron), runs_dir=tmp_path)
    with pytest.raises(RunError, match="hand in its stream"):
        spikecl.export(result)
    with pytest.raises(UsageError, match="another stream"):
        spikecl.export(result, stream=spikecl.permuted(data, experiences=2))
    made = spikecl.export(load(result.path), stream=stream, to="loihi")
    assert made.meta.config == {} and made.meta.classes == ("0", "1", "2")


REFUSED = {
    "soft reset": (LIF(beta=0.9), InteropError, "'hidden1'.*reset='zero'"),
    "adaptation": (ALIF(), InteropError, r"'hidden1' \(ALIF\)"),
    "mixed": (LoihiLIF(), InteropError, "'readout'.* has LIF neurons"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("to", ["loihi", "netx"])
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, case, to):
    neuron, error, told = REFUSED[case]
    options = {"output": LIF(reset=Reset.ZERO)} if case == "mixed" else {}
    path = tmp_path / "sub" / f"p{module.SUFFIXES[to]}"
    with pytest.raises(error, match=told):
        spikecl.export(
            network(neuron, **options), path, to=to, input_shape=(4, 4), calibration=spikes()
        )
    assert not list(tmp_path.iterdir())


def test_what_fits_no_chip_leaves_nothing_behind(record, tmp_path):
    small = replace(limits.LOIHI2, cores=1)
    with pytest.raises(HardwareError, match="'hidden1' 1, 'readout' 1 cores: 2 in all"):
        spikecl.export(record, tmp_path / "p.h5", to="loihi", chip=small)
    with pytest.raises(HardwareError, match="Loihi 1 has binary ones"):
        spikecl.export(record, tmp_path / "p.h5", to="loihi", chip=limits.LOIHI1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"to": "onnx"}, "to='onnx'; nir, loihi, netx are allowed"),
        ({"path": "p.nir", "to": "loihi"}, r"p.nir: a file of to='loihi' has to be called \*.h5"),
        ({"path": "p.h5"}, r"p.h5: a file of to='nir' has to be called \*.nir"),
        ({"calibrate": -1}, "calibrate=-1; a number of samples, or 0"),
        (
            {"to": "loihi", "calibrate": 0, "options": Options(clips=SEARCH)},
            "scales are tried on calibration data",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(record, tmp_path, monkeypatch, change, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=told):
        spikecl.export(record, **{"path": None if "path" in change else "p.h5", **change})
    assert not list(tmp_path.iterdir())


def test_folders_and_places_that_cannot_be_written(record, tmp_path):
    with pytest.raises(UsageError, match="is a folder; name a file in it, such as .*network.h5"):
        spikecl.export(record, tmp_path, to="loihi")
    (tmp_path / "file").write_text("")
    for path, to in (("p.nir", "nir"), ("p.h5", "loihi")):
        with pytest.raises(RunError, match="cannot write .*file"):
            spikecl.export(record, tmp_path / "file" / path, to=to)


def test_a_failure_while_writing_keeps_the_old_file(record, tmp_path, monkeypatch):
    path = spikecl.export(record, tmp_path / "p.nir").path
    before = path.read_bytes()

    def fail(name, graph):
        with open(name, "w") as file:
            file.write("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nir, "write", fail)
    with pytest.raises(RunError, match="p.nir: No space left on device"):
        spikecl.export(record, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["p.nir"]


def test_only_finished_runs(record, tmp_path):
    copy = tmp_path / record.id
    copy.mkdir()
    told = {**record.run, "status": "interrupted"}
    (copy / "run.json").write_text(json.dumps(told))
    with pytest.raises(RunError, match=r"not finished \(status interrupted\); resume it first"):
        spikecl.export(RunRecord(copy))
    with pytest.raises(UsageError, match="export of a str; a network, or the result"):
        spikecl.export("runs/x")
    with pytest.raises(UsageError, match="give a path and the input_shape"):
        spikecl.export(network())


def test_classes_keep_their_names(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (60, 4, 4)).astype(np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "toy.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:])
    data = replace(spikecl.load_data(tmp_path / "toy.npz"), class_names=("a", "b", "c"))
    for stream, names in (
        (spikecl.permuted(data, experiences=2), ("a", "b", "c")),
        (spikecl.joint(spikecl.split_classes(data, experiences=1)), ("a", "b", "c")),
        (spikecl.permuted(replace(data, class_names=()), experiences=1), ("0", "1", "2")),
    ):
        tests = TaskData(stream, spikecl.Direct(steps=2))
        assert tests.meta(tests.calibration(8)).classes == names
