from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from scipy import stats

from spikecl.errors import Interrupted, RunError, UsageError
from spikecl.experiments import group as groups
from spikecl.experiments import parse_config, run_config, run_seeds
from spikecl.experiments.result import RunResult
from spikecl.records import RunRecord

NAMES = ("method", "network", "trainer", "stream", "parameters")


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (60, 4, 4)).astype(np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "toy.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:])
    return {
        "data": {"name": str(tmp_path / "toy.npz")},
        "stream": {"experiences": 2},
        "network": {"hidden": [6]},
        "encoding": {"steps": 2},
        "train": {"batch": 15},
    }


class InProcess:
    """Stands for a child process: the worker's ``main`` as a thread, with real pipes.

    Only the import of torch in every child is saved; messages and exit codes are the real ones.
    """

    started: list[dict] = []
    alive = 0
    most = 0

    def __init__(self, job):
        read, write = os.pipe()
        self.stdout = os.fdopen(read)
        self._out, self._job = os.fdopen(write, "w"), job
        self.code, self.terminated = None, False
        InProcess.started.append(job)
        InProcess.alive += 1
        InProcess.most = max(InProcess.most, InProcess.alive)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        from spikecl.errors import Interrupted, SpikeclError

        try:
            config = parse_config(self._job["config"])
            path = run_config(config, runs_dir=self._job["runs_dir"]).path
            message = {"code": 0, "path": str(path)}
        except (Interrupted, SpikeclError) as error:
            message = {"code": error.exit_code, "error": str(error)}
        InProcess.alive -= 1
        self._out.write(json.dumps(message) + "\n")
        self._out.close()
        self.code = message["code"]

    def poll(self):
        return self.code

    def wait(self):
        self._thread.join()
        return self.code

    def terminate(self):
        self.terminated = True


@pytest.fixture
def children(monkeypatch):
    InProcess.started, InProcess.alive, InProcess.most = [], 0, 0
    monkeypatch.setattr(groups, "_start", InProcess)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    return InProcess


def write_summary(folder, seed, **values):
    folder.mkdir(parents=True)
    names = {"method": "m", "network": "n", "trainer": "t", "stream": "s", "parameters": 7}
    numbers = dict.fromkeys(groups.METRICS, 0.5) | {"wall_s": 1.0}
    (folder / "summary.json").write_text(json.dumps(names | numbers | {"seed": seed} | values))
    return RunResult(RunRecord(folder))


# ---- statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_is_that_of_scipy(tmp_path, n):
    values = np.random.default_rng(n).random((n, 2))
    results = [
        write_summary(tmp_path / str(i), i, acc=a, bwt=-b) for i, (a, b) in enumerate(values)
    ]
    table = groups.group_table(results)
    assert table["seeds"] == list(range(n)) and table["runs"] == [str(i) for i in range(n)]
    assert {name: table[name] for name in NAMES} == {
        "method": "m", "network": "n", "trainer": "t", "stream": "s", "parameters": 7
    }  # fmt: skip
    assert set(table["metrics"]) == set(groups.METRICS)
    for metric, column in (("acc", values[:, 0]), ("bwt", -values[:, 1])):
        entry = table["metrics"][metric]
        assert set(entry) == {"n", "mean", "sd", "low", "high"} and entry["n"] == n
        assert entry["mean"] == pytest.approx(column.mean())
        assert entry["sd"] == pytest.approx(stats.tstd(column))
        low, high = stats.t.interval(0.95, n - 1, loc=column.mean(), scale=stats.sem(column))
        assert (entry["low"], entry["high"]) == pytest.approx((low, high))


def test_one_run_has_no_spread_and_equal_runs_none_either(tmp_path):
    one = groups.group_table([write_summary(tmp_path / "a", 0)])["metrics"]["acc"]
    assert one == {"n": 1, "mean": 0.5, "sd": None, "low": None, "high": None}
    two = groups.group_table([write_summary(tmp_path / x, 0) for x in "bc"])["metrics"]["acc"]
    assert two == {"n": 2, "mean": 0.5, "sd": 0.0, "low": 0.5, "high": 0.5}


def test_a_metric_that_the_stream_does_not_define_is_left_out(tmp_path):
    results = [write_summary(tmp_path / "a", 0), write_summary(tmp_path / "b", 1, bwt=None)]
    metrics = groups.group_table(results)["metrics"]
    assert "bwt" not in metrics and "fwt" in metrics


# ---- runs ---------------------------------------------------------------------------------------


def test_seeds_start_at_the_seed_of_the_configuration(table, tmp_path, children):
    config = parse_config(table | {"run": {"seed": 5}})
    group = run_seeds(config, 3, runs_dir=tmp_path / "runs")
    written = json.loads((group.path / "group.json").read_text())
    assert written == group.table and written["format_version"] == 1
    assert written["seeds"] == [5, 6, 7]
    assert written["runs"] == [result.path.name for result in group.results]
    assert group.path.parent == tmp_path / "runs" and "-n3-" in group.path.name
    acc = [result.summary["acc"] for result in group.results]
    assert written["metrics"]["acc"]["mean"] == pytest.approx(np.mean(acc))
    for result in group.results:  # each is what a single run with that seed gives
        seed = result.summary["seed"]
        single = parse_config(table | {"run": {"seed": seed}})
        assert run_config(single, runs_dir=tmp_path / "runs").path == result.path
        assert run_config(single, runs_dir=tmp_path / "single").path.name == result.path.name


def test_finished_seeds_are_taken_as_they_are(table, tmp_path, children):
    runs = tmp_path / "runs"
    first = run_config(parse_config(table | {"run": {"seed": 1}}), runs_dir=runs)
    before = (first.path / "summary.json").stat().st_mtime_ns
    group = run_seeds(parse_config(table), 2, runs_dir=runs)
    assert group.results[1].path.name == first.path.name
    files = {p: p.stat().st_mtime_ns for p in runs.glob("*s[01]-*/*.json")}
    again = run_seeds(parse_config(table), 2, runs_dir=runs)
    assert again.path == group.path and again.table == group.table
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert (first.path / "summary.json").stat().st_mtime_ns == before


def test_another_number_of_seeds_is_another_group(table, tmp_path, children):
    runs = tmp_path / "runs"
    paths = [run_seeds(parse_config(table), n, runs_dir=runs).path for n in (1, 2)]
    changed = parse_config(table | {"train": {"batch": 9}})
    paths.append(run_seeds(changed, 2, runs_dir=runs).path)
    paths.append(run_seeds(parse_config(table | {"run": {"seed": 1}}), 2, runs_dir=runs).path)
    assert len(set(paths)) == 4
    assert all((path / "group.json").exists() for path in paths)


def test_a_failing_seed_is_reported_and_the_others_are_finished(table, tmp_path, children):
    runs = tmp_path / "runs"
    good = parse_config(table)
    bad = run_config(parse_config(table | {"run": {"seed": 1}}), runs_dir=runs).path
    (bad / "run.json").write_text('{"format_version": 0}')
    with pytest.raises(RunError, match="format version 0") as caught:
        run_seeds(good, 3, runs_dir=runs)
    assert bad.name in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert len(list(runs.glob("*/summary.json"))) == 3 and not list(runs.glob("*/group.json"))


def test_a_usage_error_of_a_seed_ends_with_2(table, tmp_path, children):
    table["method"] = {"name": "joint"}
    with pytest.raises(RunError, match="needs old_data") as caught:
        run_seeds(parse_config(table), 2, runs_dir=tmp_path / "runs")
    assert caught.value.exit_code == 2 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("count", [0, -3])
def test_at_least_one_seed(table, tmp_path, count):
    with pytest.raises(UsageError, match=f"--seeds: got {count}; use at least 1"):
        run_seeds(parse_config(table), count, runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("cores", "threads", "most"), [(1, 1, 1), (2, 1, 2), (4, 3, 1), (2, 4, 1)])
def test_no_more_processes_than_cores_for_their_threads(
    table, tmp_path, children, monkeypatch, cores, threads, most
):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    config = parse_config(table)
    barrier, run = threading.Barrier(most), InProcess._run

    def meet(self):
        if most > 1:
            barrier.wait(20)  # only if so many are there at once
        run(self)

    monkeypatch.setattr(InProcess, "_run", meet)
    object.__setattr__(config.run, "threads", threads)
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    monkeypatch.setattr("spikecl.experiments.runner.check_same", lambda *a: None)
    run_seeds(config, 2 * most, runs_dir=tmp_path / "runs")
    assert InProcess.most == most


def test_a_stop_goes_to_every_child_and_starts_no_more(table, tmp_path, children, monkeypatch):
    started = []

    class Stopped(InProcess):
        def _run(self):
            started.append(self)
            if len(started) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            while not self.terminated:
                threading.Event().wait(0.01)
            self._out.write('{"code": 75}\n')
            self._out.close()
            self.code = 75

    monkeypatch.setattr(groups, "_start", Stopped)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="the same command again goes on") as caught:
        run_seeds(parse_config(table), 3, runs_dir=tmp_path / "runs")
    assert caught.value.exit_code == 75 and len(started) == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_progress_of_every_seed_is_passed_on(table, tmp_path, monkeypatch):
    """With real processes, once: progress comes from both, and both leave their runs."""
    shown = []
    group = run_seeds(parse_config(table), 2, runs_dir=tmp_path / "runs", show=shown.append)
    assert {p.run for p in shown} == {result.path.name for result in group.results}
    for result in group.results:
        fractions = [p.fraction for p in shown if p.run == result.path.name]
        assert fractions == sorted(fractions) and fractions[-1] == 1


# ---- the worker ---------------------------------------------------------------------------------


def test_a_worker_tells_an_error_in_its_last_message(table, tmp_path):
    config = parse_config(table).table()
    config["network"]["spiking_mlp"]["hidden"] = "x"
    job = {"config": config, "runs_dir": str(tmp_path / "runs"), "data_dir": None}
    done = subprocess.run(
        [sys.executable, "-m", "spikecl.experiments.worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
    )
    message = json.loads(done.stdout.splitlines()[-1])
    assert message["code"] == done.returncode == 2 and "hidden" in message["error"]
    assert done.stderr == ""


# ---- known defects ------------------------------------------------------------------------------


def test_what_a_child_prints_beside_its_messages_does_no_harm(table, tmp_path, monkeypatch):
    class Chatty(InProcess):
        def _run(self):
            self._out.write("a library prints a line\n")
            super()._run()

    monkeypatch.setattr(groups, "_start", Chatty)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    assert run_seeds(parse_config(table), 1, runs_dir=tmp_path / "runs").results


def test_a_group_that_cannot_be_written_is_told_in_one_line(table, tmp_path, children):
    config, runs = parse_config(table), tmp_path / "runs"
    group = run_seeds(config, 1, runs_dir=runs)
    (group.path / "group.json").unlink()
    group.path.rmdir()
    group.path.write_text("in the way")
    with pytest.raises(RunError):
        run_seeds(config, 1, runs_dir=runs)
