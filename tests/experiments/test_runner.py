from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import spikecl
from spikecl.components import component
from spikecl.continual.method import Method, MethodSpec
from spikecl.errors import (
    ConfigError,
    Interrupted,
    NonFiniteLossError,
    PairingError,
    RunError,
    SpikeclError,
    UsageError,
)
from spikecl.experiments import load, parse_config, resume, run, run_config, runner
from spikecl.experiments.config import CheckpointPolicy
from spikecl.experiments.directory import RunDirectory
from spikecl.experiments.job import Job
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp
from spikecl.records import RunRecord, find_run, find_runs, read_rows

FINAL = ("steps.jsonl", "matrix.json", "cost.json", "run.json", "weights/tensors.safetensors")
CHANGES = {  # one configuration for every kind of state that has to survive
    "finetune": {},
    "hlop": {"method": {"name": "hlop"}},
    "hlop-momentum": {"method": {"name": "hlop"}, "optimiser": {"sgd": {"momentum": 0.9}}},
    "hlop-adam": {"method": {"name": "hlop"}, "optimiser": {"name": "adam", "lr": 0.01}},
    "hlop-faithful": {"method": {"name": "hlop", "hlop": {"faithful": True}}},
    "hlop-every": {"method": {"name": "hlop", "hlop": {"rows": [3, 2], "every": 3}}},
    "joint": {"stream": {"old_data": True}, "method": {"name": "joint"}},
    "rate": {"encoding": {"name": "rate"}, "method": {"name": "hlop"}},
    "mlp-adam": {"network": {"name": "mlp"}, "optimiser": {"name": "adam", "lr": 0.01}},
    "classes": {"stream": {"name": "split_classes", "split_classes": {"scenario": "task"}}},
    "all": {"train": {"evaluate": "all"}},
}


def write_npz(path, seed=0):
    """48 + 24 samples of 4x4 bytes in 3 classes that can be told apart."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 200, (3, 4, 4))
    y = np.arange(72) % 3
    x = (patterns[y] + rng.integers(0, 56, (72, 4, 4))).astype(np.uint8)
    np.savez(path, x_train=x[:48], y_train=y[:48], x_test=x[48:], y_test=y[48:])
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "toy.npz")


@pytest.fixture
def make(data):
    """Return a function from changes to a small configuration."""

    def make(**changes):
        table = {
            "data": {"name": data},
            "stream": {"experiences": 2},
            "network": {"hidden": [6]},
            "encoding": {"steps": 2},
            "train": {"epochs": 2, "batch": 10, "eval_batch": 7},
            "checkpoint": {"every_steps": 2},
        }
        for section, values in changes.items():
            table[section] = {**table.get(section, {}), **values}
        return parse_config(table)

    return make


class Crash(BaseException):
    """Stands for the end of the process; nobody catches it."""


@pytest.fixture
def at_tick(monkeypatch):
    """Return a function that makes the learner do something at its n-th tick from now on."""
    ticks = Learner.ticks
    seen = []

    def arm(number, action):
        seen.clear()

        def armed(self):
            for tick in ticks(self):
                if len(seen) == number:
                    action()
                seen.append(tick.kind)
                yield tick

        monkeypatch.setattr(Learner, "ticks", armed)
        return seen

    def missed(signum, frame):
        raise AssertionError("nobody handled the signal")

    before = signal.signal(signal.SIGTERM, missed), signal.signal(signal.SIGINT, missed)
    yield arm
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def crash():
    raise Crash


def final(path):
    """Return everything of a finished run that must not depend on when it was interrupted."""
    summary = json.loads((path / "summary.json").read_text())
    del summary["wall_s"], summary["cpu_s"]
    return {name: (path / name).read_bytes() for name in FINAL} | {"summary": summary}


def snapshot(folder):
    """Return all files below a folder with content."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {p: p.read_bytes() for p in files}


def status(path):
    return json.loads((path / "run.json").read_text())["status"]


def one_line(error, code=1):
    assert isinstance(error, SpikeclError | Interrupted) and error.exit_code == code
    assert str(error) and "\n" not in str(error)
    return str(error)


def checkpoints(path):
    return sorted((path / "checkpoints").iterdir())


@pytest.fixture
def interrupted(make, tmp_path, at_tick, monkeypatch):
    """A run that was stopped in its second event: configuration, directory, expected files."""
    config = make(method={"name": "hlop"})
    expected = final(run_config(config, runs_dir=tmp_path / "whole").path)
    with monkeypatch.context(), pytest.raises(Interrupted):
        at_tick(25, terminate)
        run_config(config, runs_dir=tmp_path / "cut")
    monkeypatch.undo()
    (path,) = (tmp_path / "cut").iterdir()
    assert status(path) == "interrupted" and len(checkpoints(path)) == 2
    return config, path, expected


# ---- the record ---------------------------------------------------------------------------------


def test_a_finished_run_has_its_files_and_no_others(make, tmp_path):
    result = run_config(make(), runs_dir=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {result.path.name}
    assert {p.name for p in result.path.iterdir()} == {
        *("run.json", "steps.jsonl", "timing.jsonl", "matrix.json", "cost.json", "summary.json"),
        *("weights", "checkpoints", ".lock"),
    }
    for name in ("run.json", "matrix.json", "cost.json", "summary.json"):
        assert json.loads((result.path / name).read_text())["format_version"] == 1


def test_no_pickle_anywhere(make, tmp_path):
    result = run_config(make(method={"name": "hlop"}), runs_dir=tmp_path)
    for path in result.path.rglob("*"):
        if path.is_file():
            assert path.name == ".lock" or path.suffix in (
                ".json",
                ".jsonl",
                ".safetensors",
                ".txt",
            )
            assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_run_json(make, data, tmp_path):
    config = make(method={"name": "hlop"}, run={"seed": 3})
    info = run_config(config, runs_dir=tmp_path).record.run
    assert info["status"] == "finished" and info["seed"] == 3
    assert (info["method"], info["network"], info["trainer"]) == ("hlop", "spiking_mlp", "bptt")
    assert info["stream"] == "permuted-toy" and re.fullmatch(
        "[0-9a-f]{64}", info["stream_fingerprint"]
    )
    assert parse_config(info["config"]) == config
    environment = info["environment"]
    assert environment["torch"] == torch.__version__ and environment["numpy"] == np.__version__
    assert environment["threads"] == 1 and environment["device"] == "cpu"
    assert environment["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert set(environment["kernels"]) == {"hidden1", "readout"}
    assert environment["fallbacks"] == []


def test_steps_are_long_rows_without_times(make, tmp_path):
    result = run_config(make(method={"name": "hlop"}), runs_dir=tmp_path)
    rows = [json.loads(line) for line in (result.path / "steps.jsonl").read_text().splitlines()]
    keys = {"event", "phase", "epoch", "step", "samples_seen", "eval_set", "metric", "value"}
    assert all(set(row) == keys for row in rows)
    assert {row["phase"] for row in rows} == {"train", "test", "report", "cost"}
    assert not re.search("wall|cpu|time|second", (result.path / "steps.jsonl").read_text())
    assert result.steps() == rows
    train = [row for row in rows if row["metric"] == "loss"]
    assert [(r["event"], r["epoch"], r["step"], r["samples_seen"]) for r in train] == [
        (0, 0, 5, 48),
        (0, 1, 5, 96),
        (1, 0, 5, 144),
        (1, 1, 5, 192),
    ]


def test_timing_rows_never_go_back(make, tmp_path):
    result = run_config(make(), runs_dir=tmp_path)
    rows = read_rows(result.path / "timing.jsonl")
    assert all(set(row) == {"event", "samples_seen", "wall_s", "cpu_s"} for row in rows)
    for key in ("event", "samples_seen", "wall_s", "cpu_s"):
        assert [row[key] for row in rows] == sorted(row[key] for row in rows)
    assert 0 < rows[-1]["wall_s"] <= result.summary["wall_s"] < 60
    assert 0 < rows[-1]["cpu_s"] <= result.summary["cpu_s"]


def test_matrix_agrees_with_the_steps(make, tmp_path):
    config = make(stream={"experiences": 3})
    result = run_config(config, runs_dir=tmp_path)
    table = json.loads((result.path / "matrix.json").read_text())
    assert table["rows"] == ["untrained", "event0", "event1", "event2"]
    assert table["columns"] == ["task0", "task1", "task2"]
    assert table["chosen"] == "agnostic"
    for kind in ("aware", "agnostic"):
        expected = [[None] * 3 for _ in range(4)]
        for row in result.steps():
            if row["metric"] == f"accuracy_task_{kind}":
                expected[row["event"] + 1][int(row["eval_set"][-1])] = row["value"]
        assert table[kind] == expected
    assert table["agnostic"][1][2] is None and None not in table["agnostic"][0]
    assert np.array_equal(
        np.isnan(result.matrix), [[c is None for c in r] for r in table["agnostic"]]
    )


def test_the_summary_has_what_the_issue_asks_for(make, tmp_path):
    result = run_config(make(method={"name": "hlop"}, run={"seed": 4}), runs_dir=tmp_path)
    summary = json.loads((result.path / "summary.json").read_text())
    names = {"method": "hlop", "network": "spiking_mlp", "trainer": "bptt", "seed": 4}
    assert {**summary, **names, "stream": "permuted-toy", "run": result.path.name} == summary
    matrix = result.matrix
    assert summary["acc"] == summary["acc_task_agnostic"] == pytest.approx(matrix[-1].mean())
    assert summary["final_accuracies"] == matrix[-1].tolist()
    assert summary["bwt"] == pytest.approx(matrix[2, 0] - matrix[1, 0])
    assert summary["fwt"] == pytest.approx(matrix[1, 1] - matrix[0, 1])
    assert summary["forgetting"] == pytest.approx(matrix[1, 0] - matrix[2, 0])
    assert summary["learning_accuracy"] == pytest.approx((matrix[1, 0] + matrix[2, 1]) / 2)
    assert summary["parameters"] == 16 * 6 + 6 * 3
    assert summary["method_bytes"] > 0 and summary["wall_s"] > 0 and summary["cpu_s"] > 0
    assert all(
        not isinstance(v, dict | list) for k, v in summary.items() if k != "final_accuracies"
    )


def test_the_chosen_accuracy_is_task_aware_only_where_the_task_is_revealed(make, tmp_path):
    for scenario, chosen in (("task", "aware"), ("class", "agnostic")):
        stream = {"name": "split_classes", "split_classes": {"scenario": scenario}}
        result = run_config(make(stream=stream), runs_dir=tmp_path)
        summary = result.summary
        assert summary["acc"] == summary[f"acc_task_{chosen}"]
        assert summary["acc_task_aware"] > summary["acc_task_agnostic"]


def test_cost(make, tmp_path):
    record = run_config(make(), runs_dir=tmp_path).record
    cost = record.cost
    assert cost["parameters"] == 114 and cost["parameter_bytes"] == 456
    assert cost["method_bytes"] == 0
    assert cost["energy_estimate"]["picojoules_per_sample"] > 0


def test_final_weights_are_those_that_were_tested(make, tmp_path):
    config = make(network={"name": "mlp", "hidden": [6]}, stream={"experiences": 1})
    result = run_config(config, runs_dir=tmp_path)
    learner = Job.from_config(config, data_dir=None).learner()
    weights = load_file(result.path / "weights" / "tensors.safetensors")
    with torch.no_grad():
        for name, parameter in learner.network.weights().items():
            parameter.copy_(weights[name])
    assert learner.evaluation.accuracies("task0")[1] == result.summary["acc"]


def test_the_summary_is_written_last(make, tmp_path, monkeypatch):
    written = []
    write = RunDirectory.write
    monkeypatch.setattr(
        RunDirectory, "write", lambda *a: (write(*a), written.append((a[1], a[2].get("status"))))
    )
    run_config(make(), runs_dir=tmp_path)
    assert written[0] == ("run.json", "running")
    assert written[-2:] == [("run.json", "finished"), ("summary.json", None)]


def test_as_many_checkpoints_as_asked_for_are_kept(make, tmp_path):
    for keep in (1, 3):
        config = make(checkpoint={"keep": keep})
        result = run_config(config, runs_dir=tmp_path / str(keep))
        names = [int(p.name) for p in checkpoints(result.path)]
        assert len(names) == keep and names[-1] == 3 + 2 * 2 * 2  # events, and steps 2 and 4


def test_checkpoints_only_after_events_by_default(make, tmp_path):
    result = run_config(make(checkpoint={"every_steps": 0, "keep": 99}), runs_dir=tmp_path)
    assert len(checkpoints(result.path)) == 3


@pytest.mark.parametrize("name", CHANGES)
def test_two_runs_of_one_configuration_are_byte_identical(make, tmp_path, name):
    config = make(**CHANGES[name])
    a, b = (run_config(config, runs_dir=tmp_path / side) for side in "ab")
    assert a.path.name == b.path.name
    assert final(a.path) == final(b.path)


def test_two_seeds_differ(make, tmp_path):
    a, b = (run_config(make(run={"seed": s}), runs_dir=tmp_path) for s in (0, 1))
    assert a.path != b.path
    assert (
        final(a.path)["weights/tensors.safetensors"] != final(b.path)["weights/tensors.safetensors"]
    )


# ---- run identity -------------------------------------------------------------------------------


def test_the_run_id(make, tmp_path):
    config = make(method={"name": ["hlop", "finetune"]}, run={"seed": 12})
    assert re.fullmatch(
        r"permuted-toy-hlop\+finetune-s12-[0-9a-f]{8}",
        run_config(config, runs_dir=tmp_path).path.name,
    )


def test_the_run_id_covers_configuration_data_and_seed_but_not_checkpoints(make, tmp_path):
    def run_id(**changes):
        return Job.from_config(make(**changes), data_dir=None).run_id()

    base = run_id()
    assert run_id() == base == run_id(checkpoint={"every_steps": 5, "keep": 1})
    other = write_npz(tmp_path / "toy.npz", seed=1)  # the same name with other content
    changed = [
        run_id(data={"name": other}),
        run_id(run={"seed": 1}),
        run_id(run={"threads": 2}),
        run_id(train={"epochs": 3}),
        run_id(train={"evaluate": "all"}),
        run_id(network={"hidden": [7]}),
        run_id(encoding={"steps": 3}),
        run_id(optimiser={"lr": 0.2}),
        run_id(stream={"experiences": 3}),
        run_id(method={"name": "hlop"}),
        run_id(method={"name": "hlop", "hlop": {"rows": [3]}}),
    ]
    assert len({base, *changed}) == len(changed) + 1
    moved = tmp_path / "moved"
    moved.mkdir()
    assert run_id(data={"name": write_npz(moved / "toy.npz")}) == base  # where it lies is no matter


def test_names_of_data_cannot_leave_the_runs_directory(make, tmp_path):
    name = write_npz(tmp_path / "ünï ☃;$(x).npz")
    result = run_config(make(data={"name": name}), runs_dir=tmp_path / "runs")
    assert re.fullmatch(r"[A-Za-z0-9_+.-]+", result.path.name)
    assert result.summary["stream"] == "permuted-ünï ☃;$(x)"


def test_runs_are_found_by_path_name_and_unique_prefix(make, tmp_path):
    runs = [run_config(make(run={"seed": s}), runs_dir=tmp_path).path for s in (1, 12)]
    for path in runs:
        assert find_run(path.name, tmp_path).path == path
        assert find_run(str(path), Path("elsewhere")).path == path
        assert find_run(path.name[:-1], tmp_path).path == path
    assert find_run("permuted-toy-finetune-s12", tmp_path).path == runs[1]
    with pytest.raises(UsageError, match="fits 2 runs") as caught:
        find_run("permuted-toy-finetune-s1", tmp_path)
    assert all(path.name in one_line(caught.value, 2) for path in runs)
    with pytest.raises(UsageError, match="no run 'permuted-toy-fine.*did you mean 'permuted-toy"):
        find_run("permuted-toy-finetun-s1", tmp_path)


def test_a_name_that_is_a_prefix_of_another_is_still_found(tmp_path):
    for name in ("a-1", "a-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    assert find_run("a-1", tmp_path).id == "a-1"


def test_python_and_configuration_are_one_run(make, data, tmp_path):
    result = run_config(make(), runs_dir=tmp_path)
    arguments = {
        "encoder": spikecl.Direct(steps=2),
        "plan": TrainPlan(epochs=2, batch=10, eval_batch=7),
        "checkpoint": CheckpointPolicy(every_steps=2),
    }
    stream = spikecl.permuted(spikecl.load_data(data), experiences=2)
    again = run(stream, SpikingMlp(hidden=(6,)), runs_dir=tmp_path, **arguments)
    assert again.path == result.path
    fresh = run(stream, SpikingMlp(hidden=(6,)), runs_dir=tmp_path / "fresh", **arguments)
    a, b = final(result.path), final(fresh.path)
    assert fresh.record.run["config"] is None
    assert a.pop("run.json") != b.pop("run.json")
    assert a == b


@component
class Mine(MethodSpec):
    """A method of the user's."""

    def start(self, context):
        return Method()


def test_unnamed_runs_are_never_reused(data, tmp_path):
    stream = spikecl.permuted(spikecl.load_data(data), experiences=2)
    network = Mlp(hidden=(4,))
    a, b = (run(stream, network, methods=[Mine()], runs_dir=tmp_path) for _ in range(2))
    assert a.path != b.path and len(find_runs(tmp_path)) == 2
    assert a.path.name.startswith("unnamed-permuted-toy-mine-s0-")
    assert a.record.run["identity"] is None
    assert (
        final(a.path)["weights/tensors.safetensors"] == final(b.path)["weights/tensors.safetensors"]
    )
    c, d = (run(stream, network.build((4, 4), 3), runs_dir=tmp_path) for _ in range(2))
    assert c.path != d.path and c.path.name.startswith("unnamed-")


# ---- finished runs ------------------------------------------------------------------------------


def test_the_second_call_returns_the_result_and_touches_nothing(make, tmp_path, at_tick):
    first = run_config(make(), runs_dir=tmp_path)
    before = {p: (p.stat().st_mtime_ns, c) for p, c in snapshot(tmp_path).items()}
    seen = at_tick(0, crash)
    again = run_config(make(), runs_dir=tmp_path)
    assert again.path == first.path and again.summary == first.summary
    resumed = resume(first.record)
    assert resumed.summary == first.summary
    assert seen == []
    assert {p: (p.stat().st_mtime_ns, c) for p, c in snapshot(tmp_path).items()} == before


def test_load(make, tmp_path, at_tick):
    result = run_config(make(), runs_dir=tmp_path)
    for name in (result.path, result.path.name, "permuted"):
        loaded = load(name, runs_dir=tmp_path)
        assert loaded.summary == result.summary
        assert np.array_equal(loaded.matrix, result.matrix, equal_nan=True)
    assert f"{result.summary['acc']:.4f}" in result._repr_html_()
    at_tick(3, terminate)
    with pytest.raises(Interrupted):
        run_config(make(run={"seed": 1}), runs_dir=tmp_path)
    with pytest.raises(RunError, match="not finished .status interrupted.; resume it first"):
        load("permuted-toy-finetune-s1", runs_dir=tmp_path)


# ---- interruption -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not(make, tmp_path, at_tick, name, batch):
    """Stop at several ticks of one run, one after the other: steps, epochs, tests, events."""
    changes = json.loads(json.dumps(CHANGES[name]))
    if batch == 1 and "hlop" in changes.get("method", {}).values():
        options = changes["method"].setdefault("hlop", {})
        if not options.get("faithful"):
            options["rate"] = 0.1  # the default: see below
    plan = {"epochs": 2 if batch == 10 else 1, "batch": batch, **changes.get("train", {})}
    config = make(**{**changes, "train": plan})
    seen = at_tick(10**9, crash)
    expected = final(run_config(config, runs_dir=tmp_path / "whole").path)
    total, kinds = len(seen), set(seen)
    assert {"step", "window", "epoch", "test", "event"} == kinds
    rng, stopped, left = np.random.default_rng(0), set(), total
    for _ in range(200):
        seen = at_tick(int(rng.integers(0, max(2, total // 6))), terminate)
        try:
            path = run_config(config, runs_dir=tmp_path / "cut").path
        except Interrupted as error:
            assert "spikecl resume" in one_line(error, 75)
            stopped.add(seen[-1])
            left -= len(seen)
            (path,) = (tmp_path / "cut").iterdir()
            assert status(path) == "interrupted" and not (path / "summary.json").exists()
        else:
            break
    assert len(stopped) > 1
    assert left - len(seen) == 0  # every tick was done exactly once
    assert final(path) == expected


@pytest.mark.parametrize("action", [terminate, crash])
def test_every_single_tick_can_be_the_last(make, tmp_path, at_tick, action):
    config = make(method={"name": "hlop"}, train={"epochs": 1, "batch": 16})
    seen = at_tick(10**9, crash)
    expected = final(run_config(config, runs_dir=tmp_path / "whole").path)
    for number in range(len(seen)):
        runs = tmp_path / str(number)
        at_tick(number, action)
        with pytest.raises((Interrupted, Crash)):
            run_config(config, runs_dir=runs)
        at_tick(10**9, crash)
        result = run_config(config, runs_dir=runs)
        assert final(result.path) == expected, number


def test_resume_by_record_and_time_goes_on(interrupted):
    config, path, expected = interrupted
    spent = read_rows(path / "timing.jsonl")[-1]
    result = resume(RunRecord(path))
    assert final(path) == expected
    rows = read_rows(path / "timing.jsonl")
    for key in ("wall_s", "cpu_s"):
        assert [row[key] for row in rows] == sorted(row[key] for row in rows)
        assert result.summary[key] > spent[key]


def test_a_stop_saves_the_step_it_came_in(make, tmp_path, at_tick):
    at_tick(6, terminate)  # two tests, the event, then steps; far from a step that is due
    with pytest.raises(Interrupted):
        run_config(make(checkpoint={"every_steps": 0}), runs_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    state = json.loads((checkpoints(path)[-1] / "state.json").read_text())
    assert state["learner"]["position"] == {
        "event": 0, "epoch": 0, "step": 4, "stage": "train", "samples": 40
    }  # fmt: skip


def test_handlers_are_put_back(make, tmp_path, at_tick):
    at_tick(3, terminate)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_config(make(), runs_dir=tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_ends_at_once_and_loses_nothing(make, tmp_path, at_tick):
    config = make(method={"name": "hlop"})
    expected = final(run_config(config, runs_dir=tmp_path / "whole").path)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_tick(9, twice)
    with pytest.raises(Interrupted, match="what was saved before is intact"):
        run_config(config, runs_dir=tmp_path / "cut")
    (path,) = (tmp_path / "cut").iterdir()
    assert status(path) == "interrupted"
    at_tick(10**9, crash)
    assert final(run_config(config, runs_dir=tmp_path / "cut").path) == expected


def test_threads_are_put_back(make, tmp_path, at_tick):
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    inside = []
    config = make(run={"threads": other})
    at_tick(2, lambda: inside.append(torch.get_num_threads()))
    run_config(config, runs_dir=tmp_path / "a")
    assert inside == [other] and torch.get_num_threads() == before
    at_tick(2, crash)
    with pytest.raises(Crash):
        run_config(config, runs_dir=tmp_path / "b")
    assert torch.get_num_threads() == before


def test_progress_is_shown_and_ends_at_one(make, tmp_path):
    shown = []
    result = run_config(make(), runs_dir=tmp_path, show=shown.append)
    assert {p.run for p in shown} == {result.path.name} and {p.events for p in shown} == {2}
    fractions = [p.fraction for p in shown]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert [p.event for p in shown] == sorted(p.event for p in shown)
    assert shown[0].accuracy is None and shown[-1].accuracy == pytest.approx(result.summary["acc"])
    assert shown[-1].seconds_left == 0


# ---- lock, versions, environment ----------------------------------------------------------------


def test_a_second_process_is_refused(interrupted):
    config, path, expected = interrupted
    code = (
        "import sys, pathlib; from spikecl.experiments.directory import RunDirectory\n"
        "held = RunDirectory(pathlib.Path(sys.argv[1])); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        before = snapshot(path)
        with pytest.raises(RunError, match="is in use by another process") as caught:
            run_config(config, runs_dir=path.parent)
        assert path.name in one_line(caught.value)
        assert snapshot(path) == before
        holder.kill()  # the lock goes with the process
        holder.wait()
        assert final(run_config(config, runs_dir=path.parent).path) == expected
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_version_is_refused_but_listed(interrupted, version):
    config, path, _ = interrupted
    info = json.loads((path / "run.json").read_text()) | {"format_version": version}
    (path / "run.json").write_text(json.dumps(info))
    before = snapshot(path)
    for again in (
        lambda: run_config(config, runs_dir=path.parent),
        lambda: resume(RunRecord(path)),
    ):
        with pytest.raises(RunError, match=f"format version {version}, this program writes 1") as e:
            again()
        assert path.name in one_line(e.value)
    assert snapshot(path) == before
    assert [record.id for record in find_runs(path.parent)] == [path.name]


def test_a_finished_run_of_another_format_is_not_returned(make, tmp_path):
    result = run_config(make(), runs_dir=tmp_path)
    info = json.loads((result.path / "run.json").read_text()) | {"format_version": 0}
    (result.path / "run.json").write_text(json.dumps(info))
    with pytest.raises(RunError, match="format version 0"):
        run_config(make(), runs_dir=tmp_path)


@pytest.mark.parametrize(
    ("key", "was"),
    [
        ("torch", "1.0"),
        ("numpy", "1.0"),
        ("cpu_capability", "ALTIVEC"),
        ("threads", 7),
        ("device", "TPU"),
        ("kernels", {"hidden1": "x"}),
    ],
)
def test_another_environment_is_refused_with_the_difference(interrupted, key, was):
    config, path, expected = interrupted
    info = json.loads((path / "run.json").read_text())
    right = info["environment"][key]
    changed = info | {"environment": info["environment"] | {key: was}}
    (path / "run.json").write_text(json.dumps(changed))
    before = snapshot(path)
    with pytest.raises(RunError, match="cannot be resumed identically") as caught:
        run_config(config, runs_dir=path.parent)
    assert f"{key} was {was!r}, is {right!r}" in one_line(caught.value)
    assert snapshot(path) == before
    (path / "run.json").write_text(json.dumps(info))
    assert final(run_config(config, runs_dir=path.parent).path) == expected


def test_the_machine_name_and_the_python_do_not_matter(interrupted):
    config, path, _ = interrupted
    info = json.loads((path / "run.json").read_text())
    info["environment"] |= {"python": "3.99", "system": "Plan9", "spikecl": "0.0"}
    (path / "run.json").write_text(json.dumps(info))
    assert run_config(config, runs_dir=path.parent).summary


def test_changed_data_are_not_resumed_silently(make, tmp_path, at_tick):
    data = write_npz(tmp_path / "mine.npz")
    at_tick(6, terminate)
    with pytest.raises(Interrupted):
        run_config(make(data={"name": data}), runs_dir=tmp_path / "runs")
    (path,) = (tmp_path / "runs").iterdir()
    write_npz(data, seed=1)
    with pytest.raises(RunError, match="its data or a component changed") as caught:
        resume(RunRecord(path))
    assert path.name in one_line(caught.value)


def test_a_run_from_python_objects_says_how_to_resume_it(data, tmp_path, at_tick):
    stream = spikecl.permuted(spikecl.load_data(data), experiences=2)
    at_tick(4, terminate)
    with pytest.raises(Interrupted):
        run(stream, SpikingMlp(hidden=(6,)), runs_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(RunError, match=r"call spikecl\.run with the same arguments"):
        resume(RunRecord(path))
    at_tick(10**9, crash)
    assert run(stream, SpikingMlp(hidden=(6,)), runs_dir=tmp_path).path == path


# ---- damage -------------------------------------------------------------------------------------


def edit_state(change):
    def damage(folder):
        state = json.loads((folder / "state.json").read_text())
        changed = change(state)
        (folder / "state.json").write_text(json.dumps(state if changed is None else changed))

    return damage


def edit_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "tensors.safetensors")
        change(tensors)
        save_file(tensors, folder / "tensors.safetensors")

    return damage


def cut_tensors(keep):
    def damage(folder):
        file = folder / "tensors.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * keep)])

    return damage


def flip_last_byte(folder):
    file = folder / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-40] ^= 0x10
    file.write_bytes(bytes(data))


DAMAGES = {
    "truncated": cut_tensors(0.6),
    "header-cut": cut_tensors(0.01),
    "empty": cut_tensors(0),
    "garbage": lambda f: (f / "tensors.safetensors").write_bytes(b"\x80\x04" * 100),
    "no-tensors": lambda f: (f / "tensors.safetensors").unlink(),
    "no-state": lambda f: (f / "state.json").unlink(),
    "half-json": lambda f: (f / "state.json").write_text('{"learner": {'),
    "empty-json": lambda f: (f / "state.json").write_text(""),
    "binary-json": lambda f: (f / "state.json").write_bytes(b"\xff\xfe"),
    "no-learner": edit_state(lambda s: {"steps_length": s["steps_length"]}),
    "no-length": edit_state(lambda s: s.pop("steps_length") and None),
    "length-text": edit_state(lambda s: s | {"steps_length": "x"}),
    "no-position": edit_state(lambda s: s["learner"].pop("position") and None),
    "no-row": edit_state(lambda s: s["learner"].pop("rows") and None),
    "odd-position": edit_state(lambda s: s["learner"]["position"].update(x=1)),
    "no-weight": edit_tensors(lambda t: t.pop("learner/network/readout.weight")),
    "wrong-shape": edit_tensors(
        lambda t: t.update({"learner/network/readout.weight": torch.zeros(2, 5)})
    ),
    "no-losses": edit_tensors(lambda t: t.pop("learner/losses")),
    "empty-folder": lambda f: [p.unlink() for p in f.iterdir()],
}
UNSEEN = {
    "list-json": edit_state(lambda s: []),
    "learner-text": edit_state(lambda s: {"steps_length": 0, "learner": "x"}),
    "length-too-long": edit_state(lambda s: s | {"steps_length": 10**6}),
    "length-negative": edit_state(lambda s: s | {"steps_length": -1}),
    "event-far-away": edit_state(lambda s: s["learner"]["position"].update(event=99)),
    "broadcast-shape": edit_tensors(
        lambda t: t.update({"learner/network/readout.weight": torch.zeros(1, 1)})
    ),
    "flipped-bit": flip_last_byte,
}


def check_damage(interrupted, damage):
    config, path, expected = interrupted
    newest = checkpoints(path)[-1]
    damage(newest)
    before = snapshot(path)
    for _ in range(2):  # the refusal leaves all as it is, the lock too
        with pytest.raises(RunError) as caught:
            run_config(config, runs_dir=path.parent)
        assert str(newest) in one_line(caught.value)
        assert snapshot(path) == before
    shutil.rmtree(newest)
    assert final(run_config(config, runs_dir=path.parent).path) == expected


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_an_earlier_one_serves(interrupted, name):
    check_damage(interrupted, DAMAGES[name])


@pytest.mark.parametrize("name", UNSEEN)
def test_every_damage_is_noticed(interrupted, name):
    check_damage(interrupted, UNSEEN[name])


def test_without_any_checkpoint_the_run_starts_again(interrupted):
    config, path, expected = interrupted
    shutil.rmtree(path / "checkpoints")
    assert final(run_config(config, runs_dir=path.parent).path) == expected


def test_a_checkpoint_that_was_being_written_is_ignored(interrupted):
    config, path, expected = interrupted
    newest = checkpoints(path)[-1]
    half = path / "checkpoints" / f".{int(newest.name) + 1:08d}.tmp"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    (path / ".summary.json.tmp").write_text('{"half')
    result = run_config(config, runs_dir=path.parent)
    assert final(path) == expected
    assert not [p for p in result.path.rglob("*.tmp")]


def test_what_a_kill_before_the_last_pruning_left_is_dropped(make, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runner.RunDirectory, "prune", lambda self, keep: None)
        patch.setattr(runner, "matrix_table", lambda *args, **kwargs: crash())
        with pytest.raises(Crash):
            run_config(make(), runs_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    assert len(list((path / "checkpoints").iterdir())) > 2
    run_config(make(), runs_dir=tmp_path)
    assert len(list((path / "checkpoints").iterdir())) == 2


def test_half_a_line_in_a_log_is_left_out(interrupted):
    config, path, expected = interrupted
    for name in ("steps.jsonl", "timing.jsonl"):
        rows = read_rows(path / name)
        with (path / name).open("ab") as file:
            file.write(b'{"event": 1, "sam')
        assert read_rows(path / name) == rows
    run_config(config, runs_dir=path.parent)
    assert final(path) == expected


def test_a_log_stays_readable_after_a_kill_in_the_middle_of_a_line(interrupted, at_tick):
    config, path, expected = interrupted
    with (path / "timing.jsonl").open("ab") as file:
        file.write(b'{"event": 1, "sam')
    at_tick(3, terminate)
    with pytest.raises(Interrupted):
        run_config(config, runs_dir=path.parent)
    at_tick(10**9, crash)
    run_config(config, runs_dir=path.parent)
    assert len(read_rows(path / "timing.jsonl")) > 3


@pytest.mark.parametrize("name", ["run.json", "timing.jsonl"])
def test_a_damaged_file_of_the_record_is_named(interrupted, name):
    config, path, _ = interrupted
    right = (path / name).read_bytes()
    (path / name).write_text('{"half\n')
    with pytest.raises(RunError, match="is damaged") as caught:
        run_config(config, runs_dir=path.parent)
    assert name in one_line(caught.value)
    (path / name).write_bytes(right)
    caught = None  # a notebook keeps the last error and with it all that it refers to
    run_config(config, runs_dir=path.parent)


def test_a_damaged_log_does_not_leave_the_lock_taken(interrupted):
    config, path, _ = interrupted
    right = (path / "timing.jsonl").read_bytes()
    (path / "timing.jsonl").write_text('{"half\n')
    with pytest.raises(RunError, match="is damaged") as caught:
        run_config(config, runs_dir=path.parent)
    (path / "timing.jsonl").write_bytes(right)
    assert run_config(config, runs_dir=path.parent).summary and caught


# ---- disks --------------------------------------------------------------------------------------


def fail_at(monkeypatch, number, code):
    """Make the n-th flush to the disk, and all after it, fail."""
    fsync, calls = os.fsync, []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) > number:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    return calls


def test_a_disk_that_fills_up_anywhere_leaves_a_run_to_go_on_with(make, tmp_path, monkeypatch):
    config = make(
        method={"name": "hlop"}, stream={"experiences": 1}, train={"epochs": 1, "batch": 24}
    )
    with monkeypatch.context() as patch:
        calls = fail_at(patch, 10**9, errno.ENOSPC)
        expected = final(run_config(config, runs_dir=tmp_path / "whole").path)
    total = len(calls)
    assert total > 20
    for number in range(total):
        runs = tmp_path / str(number)
        with monkeypatch.context() as patch:
            fail_at(patch, number, errno.ENOSPC)
            with pytest.raises(RunError) as caught:
                run_config(config, runs_dir=runs)
            message = one_line(caught.value)
            assert "cannot write" in message and "No space left" in message
        caught = None
        for file in runs.rglob("*.json"):
            if ".tmp" not in str(file):
                json.loads(file.read_text())
        assert final(run_config(config, runs_dir=runs).path) == expected, number


@pytest.mark.parametrize("limit", [0, 100, 1500, 3000])
def test_writes_that_are_cut_short_leave_a_run_to_go_on_with(make, tmp_path, limit):
    """A limit on the size of files makes real writes fail, those of safetensors too."""
    config = make(method={"name": "hlop"}, network={"hidden": [40]})
    expected = final(run_config(config, runs_dir=tmp_path / "whole").path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(RunError) as caught:
            run_config(config, runs_dir=tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write" in one_line(caught.value)
    caught = None
    assert final(run_config(config, runs_dir=tmp_path / "cut").path) == expected


def test_a_full_disk_does_not_leave_the_lock_taken(make, tmp_path):
    config = make(train={"epochs": 20})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RunError) as caught:
            run_config(config, runs_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run_config(config, runs_dir=tmp_path).summary and caught


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_place_is_refused_in_one_line(make, tmp_path, monkeypatch, code):
    def refuse(self, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match="--runs-dir") as caught:
        run_config(make(), runs_dir=tmp_path / "runs")
    assert os.strerror(code) in one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused_in_one_line(make, tmp_path):
    (tmp_path / "runs").mkdir(mode=0o500)
    with pytest.raises(RunError, match="cannot write .*Permission denied") as caught:
        run_config(make(), runs_dir=tmp_path / "runs")
    one_line(caught.value)


def test_a_runs_directory_that_is_a_file_is_refused_in_one_line(make, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="cannot write .*Not a directory") as caught:
            run_config(make(), runs_dir=place)
        one_line(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


# ---- failures -----------------------------------------------------------------------------------


def test_what_cannot_work_is_refused_before_anything_is_written(make, tmp_path):
    for changes, error, words in [
        ({"method": {"name": "joint"}}, PairingError, ("joint", "old_data", "permuted-toy")),
        ({"network": {"hidden": []}}, ConfigError, ("network.hidden",)),
        ({"method": {"name": "hlop", "hlop": {"rows": [[1, 2, 3]]}}}, ConfigError, ("hlop.rows",)),
        ({"data": {"name": "nope"}}, UsageError, ("nope",)),
        ({"stream": {"name": "split_classes", "experiences": 4}}, ConfigError, ("3 classes",)),
    ]:
        with pytest.raises(error) as caught:
            run_config(make(**changes), runs_dir=tmp_path / "runs")
        assert all(word in one_line(caught.value, 2) for word in words)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_does_not_fit_the_stream_is_refused(data, tmp_path):
    stream = spikecl.permuted(spikecl.load_data(data), experiences=2)
    with pytest.raises(ConfigError, match=r"does not take the input \[4, 4\]"):
        run(stream, Mlp(hidden=(4,)).build((15,), 3), runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def diverge(make):
    return make(network={"name": "mlp", "hidden": [6]}, optimiser={"lr": 1e30})


def test_a_loss_that_is_not_finite_ends_the_run_with_the_step(make, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"event 0, epoch 0, step \d+") as caught:
        run_config(diverge(make), runs_dir=tmp_path)
    assert "lower optimiser.lr" in one_line(caught.value)
    (path,) = tmp_path.iterdir()
    assert status(path) == "failed" and not (path / "summary.json").exists()
    for folder in checkpoints(path):  # nothing that is not finite was saved
        tensors = load_file(folder / "tensors.safetensors")
        assert all(bool(torch.isfinite(t).all()) for t in tensors.values())


def test_a_bad_loss_is_noticed_before_it_is_saved_on_a_stop(make, tmp_path, at_tick):
    at_tick(6, terminate)
    with pytest.raises(NonFiniteLossError):
        run_config(diverge(make), runs_dir=tmp_path)


def test_methods_are_asked_about_every_experience_before_the_start(make, tmp_path):
    config = make(method={"name": "hlop", "hlop": {"rows": [2, 1]}})
    assert run_config(config, runs_dir=tmp_path / "good").summary
    bad = make(method={"name": "hlop", "hlop": {"rows": [2, [1, 1, 1]]}})
    with pytest.raises(ConfigError, match="hlop.rows") as caught:
        run_config(bad, runs_dir=tmp_path / "bad")
    one_line(caught.value, 2)
    assert not (tmp_path / "bad").exists()


def test_a_test_set_without_samples_is_refused(make, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (60, 4, 4)).astype(np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "gap.npz", x_train=x, y_train=y, x_test=x[:6], y_test=np.arange(6) % 2)
    stream = {"name": "split_classes", "experiences": 3}
    with pytest.raises(UsageError):
        run_config(make(data={"name": str(tmp_path / "gap.npz")}, stream=stream), runs_dir=tmp_path)


def test_a_name_that_is_too_long_for_the_disk_is_cut(make, tmp_path):
    (tmp_path / "runs").mkdir()
    names = [write_npz(tmp_path / (letter * 245 + ".npz"), n) for n, letter in enumerate("xy")]
    results = [run_config(make(data={"name": n}), runs_dir=tmp_path / "runs") for n in names]
    assert len({result.path for result in results}) == 2
    assert all(len(result.path.name) <= 255 and result.summary for result in results)


def test_hlop_with_its_defaults_stays_finite_at_batch_1(make, tmp_path):
    config = make(method={"name": "hlop"}, train={"batch": 1, "epochs": 1})
    assert run_config(config, runs_dir=tmp_path).summary


@pytest.mark.parametrize("change", [{"experiences": 1}, {"name": "joint"}])
def test_one_event_has_no_transfer_to_speak_of(make, tmp_path, change):
    summary = run_config(make(stream=change), runs_dir=tmp_path).summary
    assert summary["bwt"] is None and summary["fwt"] is None and summary["forgetting"] is None
    assert 0 <= summary["acc"] <= 1


def test_the_runner_has_one_way_to_run():
    assert runner.run is spikecl.run and runner.run_config is spikecl.run_config
