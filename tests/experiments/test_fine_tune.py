from __future__ import annotations

import os
import signal
import tempfile

import numpy as np
import pytest
import torch
from spikecl_hardware.loihi.quantise import Options

import spikecl
from spikecl.errors import InteropError, Interrupted, UsageError
from spikecl.experiments import fine_tune as module
from spikecl.experiments import parse_config, run_config
from spikecl.experiments.fine_tune import fine_tuned
from spikecl.experiments.trained import Trained
from spikecl.learner import Learner
from spikecl.networks.fixed_point import LoihiWeights
from spikecl.neurons import LoihiLIF
from spikecl.optim import Adam

LEAKY = {"model": "lif", "beta": 0.9, "reset": "zero"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.integers(0, 200, (3, 4, 4))[y] + rng.integers(0, 56, (120, 4, 4))).astype(np.uint8)
    np.savez(path / "toy.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return path


@pytest.fixture(scope="module")
def make(folder):
    def make(name="run", **changes):
        table = {
            "data": {"name": str(folder / "toy.npz")},
            "stream": {"experiences": 1},
            "network": {"hidden": [12], "spiking_mlp": {"neuron": LEAKY}},
            "encoding": {"steps": 6},
            "optimiser": {"name": "adam", "lr": 0.03},
            "train": {"epochs": 3, "batch": 10},
        }
        for section, values in changes.items():
            table[section] = {**table.get(section, {}), **values}
        return run_config(parse_config(table), runs_dir=folder / name).record

    return make


@pytest.fixture(scope="module")
def record(make):
    return make()


@pytest.mark.parametrize("encoder", ["direct", "rate"])
def test_the_program_has_the_accuracy_of_the_network_that_was_trained(make, tmp_path, encoder):
    record = make(encoder, encoding={"name": encoder})
    options = Options(weight_bits=4)
    tuned = fine_tuned(record, epochs=2, options=options, optimiser=Adam(lr=0.01))
    original, tests, _ = Trained.of(record)
    after, before = tuned.network.weights(), original.weights()
    assert all(not torch.equal(weight, before[name]) for name, weight in after.items())
    hidden = tuned.network.layers["hidden1"]
    assert isinstance(hidden.neuron.neuron, LoihiLIF)
    assert isinstance(hidden.synapse.maps[-1], LoihiWeights) and hidden.synapse.maps[-1].bits == 4
    made = spikecl.export(
        tuned.network, tmp_path / "p.h5", to="loihi", input_shape=tuned.shape, meta=tuned.meta
    )
    assert made.graph is None and made.program.manifest["exact"]
    ((x, y, _),) = tests.batches("task0")
    found = spikecl.simulate(made.path)
    with torch.no_grad():
        right = tests.hits(tuned.network(x).logits, y, "task0")
    assert found.accuracies("emulator") == [right / 60] and right > 30
    assert not any(found.results["task0"]["emulator"].notes["saturated"].values())


def test_with_calibration_and_without(record):
    for count in (0, 20):
        assert fine_tuned(record, epochs=1, calibrate=count).meta.steps == 6


def test_nothing_of_it_stays(record, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {p: p.read_bytes() for p in record.path.rglob("*") if p.is_file()}
    fine_tuned(record)
    assert not list(tmp_path.iterdir())
    assert before == {p: p.read_bytes() for p in record.path.rglob("*") if p.is_file()}


def test_several_experiences_are_refused(make, monkeypatch):
    record = make("two", stream={"experiences": 2})
    monkeypatch.setattr(module, "run", None)
    with pytest.raises(UsageError, match="learned 2 experiences.*LIF.loihi"):
        fine_tuned(record)


def test_what_is_whole_already_and_what_cannot_be(make, folder, tmp_path, monkeypatch):
    mlp = {"neuron": {"model": "loihi", "vth": 100}, "gain": 100.0}
    whole = make("whole", encoding={"name": "rate"}, network={"spiking_mlp": mlp})
    soft = make("soft", network={"spiking_mlp": {"neuron": {"model": "lif"}}})
    bias = make("bias", network={"spiking_mlp": {"neuron": LEAKY, "bias": True}})
    monkeypatch.setattr(module, "run", None)
    with pytest.raises(UsageError, match="trained on whole numbers already; export it without"):
        fine_tuned(whole)
    with pytest.raises(InteropError, match="'hidden1'.*reset='zero'"):
        fine_tuned(soft)
    with pytest.raises(InteropError, match="'hidden1'.*without biases"):
        fine_tuned(bias)


@pytest.mark.parametrize("epochs", [0, -1])
def test_at_least_one_epoch(record, epochs):
    with pytest.raises(UsageError, match=f"epochs={epochs}; 1 or more"):
        fine_tuned(record, epochs=epochs)


def test_an_interruption_does_not_say_that_it_can_be_resumed(record, monkeypatch, tmp_path):
    ticks = Learner.ticks

    def armed(self):
        for i, tick in enumerate(ticks(self)):
            if i == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield tick

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Learner, "ticks", armed)
    with pytest.raises(Interrupted, match="^fine-tuning was stopped; nothing was written$"):
        fine_tuned(record, epochs=3)
    assert not list(tmp_path.iterdir())
