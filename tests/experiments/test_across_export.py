"""Runs that go on across an export: files, resuming, costs, the command line, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from spikecl_hardware.energy import LOIHI_PJ
from spikecl_hardware.loihi.program import Program
from typer.testing import CliRunner

import spikecl
from spikecl.cli import app
from spikecl.continual import Hlop
from spikecl.errors import ConfigError, Interrupted, PairingError, UsageError
from spikecl.experiments import parse_config, run_config, runner
from spikecl.experiments.cost import CHIP, tasks_cost
from spikecl.learner import ExportPlan, Learner, TrainPlan
from spikecl.networks import SpikingMlp
from spikecl.neurons import LIF
from spikecl.report import write_report

FINAL = ("steps.jsonl", "matrix.json", "cost.json", "run.json", "weights/tensors.safetensors")
KNOWN = {"encoding": {"steps": 3}, "train": {"epochs": 2, "batch": 12, "eval_batch": 24}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    patterns, y = rng.integers(0, 200, (3, 4, 4)), np.arange(108) % 3
    x = (patterns[y] + rng.integers(0, 56, (108, 4, 4))).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x_train=x[:72], y_train=y[:72], x_test=x[72:], y_test=y[72:])
    return str(path)


@pytest.fixture
def make(data):
    def make(**changes):
        table = {
            "data": {"name": data},
            "stream": {"experiences": 3},
            "network": {"hidden": [10], "neuron": {"reset": "zero"}},
            "trainer": {"bptt": {"feedback": "direct"}},
            "method": {"name": "hlop", "hlop": {"rows": [[2, 2]]}},
            "export": {"after": 2, "steps": 8},
            **KNOWN,
        }
        for section, values in changes.items():
            table[section] = {**table.get(section, {}), **values}
        return parse_config({k: v for k, v in table.items() if v is not None})

    return make


def final(path):
    summary = json.loads((path / "summary.json").read_text())
    del summary["wall_s"], summary["cpu_s"]
    return {name: (path / name).read_bytes() for name in FINAL} | {"summary": summary}


# ---- files --------------------------------------------------------------------------------------


def test_what_a_run_leaves(make, tmp_path):
    result = run_config(make(), runs_dir=tmp_path)
    path = result.record.path
    matrix = json.loads((path / "matrix.json").read_text())
    assert len(matrix["rows"]) == 5 and "export" in matrix["rows"][3]
    assert len(matrix["columns"]) == 3
    rows = result.record.tasks()
    assert [row["samples"] for row in rows] == [144, 144, 144]
    steps = list(result.record.steps())
    assert all({"metric", "value", "event", "phase"} <= set(row) for row in steps)
    assert [r["value"] for r in steps if r["phase"] == "cost"] == rows
    (program,) = (path / "export").iterdir()
    assert program == result.record.chip_path
    loaded = Program.load(program)
    assert {"input.lateral", "hidden1.lateral"} <= set(loaded.populations)
    assert any(c.learning is not None for c in loaded.connections)


def test_the_program_of_the_end_answers_as_the_last_row_says(make, tmp_path):
    record = run_config(make(), runs_dir=tmp_path).record
    made = CliRunner().invoke(
        app, ["simulate", str(next((record.path / "export").iterdir())), "--backend", "emulator"]
    )
    assert made.exit_code == 0, made.output
    rows = [line.split() for line in made.output.splitlines() if " emulator " in line]
    assert [row[3] for row in rows] == [f"{v:.4f}" for v in record.summary["final_accuracies"]]


def test_without_the_section_nothing_changes(make):
    with_it = make()
    table = with_it.table()
    del table["export"]
    without = parse_config(table)
    assert without.export is None and "export" not in without.table()
    assert with_it.identity() != without.identity()
    assert parse_config(with_it.table()) == with_it


def test_an_export_of_floats_does_not_replace_what_the_chip_learned(make, tmp_path):
    record = run_config(make(), runs_dir=tmp_path).record
    before = record.chip_path.read_bytes()
    for options in (["--to", "loihi"], ["--to", "nir"], ["--to", "loihi", "--fine-tune", "1"]):
        made = CliRunner().invoke(app, ["export", str(record.path), *options])
        assert isinstance(made.exception, UsageError)
        assert "went on on the chip" in str(made.exception)
    assert record.chip_path.read_bytes() == before


# ---- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [3, 13, 24, 26, 28, 31, 40])
def test_stopped_anywhere_it_ends_the_same(make, tmp_path, monkeypatch, number):
    config = make(checkpoint={"every_steps": 1})
    whole = run_config(config, runs_dir=tmp_path / "whole").record.path
    ticks, seen = Learner.ticks, []

    def stopped(self):
        for tick in ticks(self):
            seen.append(tick.kind)
            if len(seen) == number:
                raise KeyboardInterrupt
            yield tick

    monkeypatch.setattr(Learner, "ticks", stopped)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run_config(config, runs_dir=tmp_path / "again")
    monkeypatch.setattr(Learner, "ticks", ticks)
    again = run_config(config, runs_dir=tmp_path / "again").record.path
    assert final(whole) == final(again)
    ours, theirs = (Program.load(next((p / "export").iterdir())) for p in (whole, again))
    for one, other in zip(ours.connections, theirs.connections, strict=True):
        assert (one.dense.weights == other.dense.weights).all()


# ---- costs --------------------------------------------------------------------------------------


def test_costs_of_the_chip_are_its_operations_priced(make, tmp_path, monkeypatch):
    counted = []
    event_cost = runner.event_cost

    def spy(learner, *args):
        counted.append(None if learner.chip is None else learner.chip.operations)
        return event_cost(learner, *args)

    monkeypatch.setattr(runner, "event_cost", spy)
    rows = run_config(make(), runs_dir=tmp_path).record.tasks()
    assert counted[:2] == [None, None]
    made, row = counted[2], rows[2]
    assert row["synaptic operations"] == made.synaptic_events > 0
    assert row["neuron updates"] == made.neuron_updates > 0
    assert row["synaptic updates"] == made.synaptic_updates > 0
    wanted = (
        made.synaptic_events * LOIHI_PJ["synaptic spike operation (min)"]
        + made.neuron_updates * LOIHI_PJ["neuron update (active)"]
        + made.synaptic_updates * LOIHI_PJ["synaptic update (pairwise STDP)"]
    )
    assert row["energy uJ (estimate)"] == pytest.approx(wanted / 1e6)
    assert row["table"] == CHIP.name and rows[0]["table"] != CHIP.name


def test_tables_of_costs_name_their_sources(make, tmp_path):
    tasks = run_config(make(), runs_dir=tmp_path).record.cost["tasks"]
    assert "estimate" in tasks["note"]
    assert len(tasks["tables"]) == 2 and all(t["source"] for t in tasks["tables"].values())
    assert tasks_cost([]) == {"note": tasks["note"], "rows": [], "tables": {}}


def test_they_stand_beside_the_matrix(make, tmp_path):
    record = run_config(make(), runs_dir=tmp_path).record
    shown = CliRunner().invoke(app, ["show", str(record.path)])
    assert shown.exit_code == 0
    assert "estimate" in shown.output and "export" in shown.output
    page = write_report([record], tmp_path / "report.html").read_text()
    assert "estimate" in page and "pairwise STDP" in page


# ---- from Python --------------------------------------------------------------------------------


def test_a_call_is_what_the_file_says(data, make, tmp_path):
    stream = spikecl.permuted(spikecl.load_data(data), experiences=3)
    result = spikecl.run(
        stream,
        SpikingMlp(hidden=(10,), neuron=LIF(reset="zero")),
        methods=[Hlop(rows=((2, 2),))],
        encoder=spikecl.encoding.Direct(steps=3),
        plan=TrainPlan(epochs=2, batch=12, eval_batch=24),
        export=ExportPlan(after=2, steps=8),
        trainer=spikecl.trainers.Bptt(feedback="direct"),
        runs_dir=tmp_path,
    )
    same = run_config(make(run={"seed": 0}), runs_dir=tmp_path / "file")
    assert np.array_equal(result.matrix, same.matrix, equal_nan=True)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"export": {"after": 3}}, UsageError, "1 to 2"),
        ({"export": {"after": 99}}, UsageError, "1 to 2"),
        ({"optimiser": {"name": "adam", "lr": 0.01}}, PairingError, "say export.rate"),
        ({"optimiser": {"sgd": {"momentum": 0.9}}}, PairingError, "say export.rate"),
        ({"network": {"spiking_mlp": {"readout": "sum"}}}, PairingError, "mean_rate"),
        ({"network": {"spiking_mlp": {"binary": "fixed"}}}, PairingError, "Binarise"),
        ({"method": {"name": "ewc"}}, PairingError, "'ewc' cannot go on on the chip"),
        ({"method": {"name": ["hlop", "er"]}}, PairingError, "'er' cannot go on on the chip"),
    ],
)
def test_a_run_that_could_not_go_on_does_not_begin(make, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        run_config(make(**changes), runs_dir=tmp_path)
    assert not list(tmp_path.glob("*/summary.json"))


@pytest.mark.parametrize(
    ("export", "words"),
    [
        ({"after": 0}, "export.after"),
        ({"after": -1}, "export.after"),
        ({"steps": 0}, "export.steps"),
        ({"steps": 63}, "export.steps"),
        ({"rate": 0.0}, "export.rate"),
        ({"headroom": 0.5}, "export.headroom"),
        ({"headroom": 9.0}, "export.headroom"),
        ({"chip": "loihi3"}, "export.chip"),
        ({"chips": 0}, "export.chips"),
        ({"backend": "brian2"}, "export.backend"),
        ({"layers": "first"}, "export.layers"),
        ({"calibrate": 0}, "export.calibrate"),
        ({"afterwards": 2}, "after"),
    ],
)
def test_nonsense_is_refused_with_its_key(make, export, words):
    with pytest.raises(ConfigError, match=words):
        make(export=export)


def test_a_section_without_its_place_is_refused(data):
    with pytest.raises(ConfigError, match="after"):
        parse_config({"data": {"name": data}, "export": {}})


def test_a_record_without_costs_of_tasks_says_none(fake_run):
    assert fake_run().tasks() == []
