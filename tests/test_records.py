"""Records: append-only logs that can be cut, run directories that can be found and read."""

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.errors import RunError, UsageError
from spikecl.records import (
    FORMAT_VERSION,
    RowLog,
    RunRecord,
    find_run,
    find_runs,
    matrix_table,
    read_rows,
)
from spikecl.storage import write_json

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)


@pytest.fixture
def log(tmp_path):
    log = RowLog(tmp_path / "steps.jsonl")
    yield log
    log.close()


@pytest.fixture
def runs(tmp_path):
    """A folder with some run directories, one of them finished, and a stray folder."""
    folder = tmp_path / "runs"
    for name in ("b-s0", "a-s1", "a-s10", "a-s2"):
        (folder / name).mkdir(parents=True)
        write_json(folder / name / "run.json", {"status": "running", "name": name})
    write_json(folder / "b-s0" / "summary.json", {"acc": 0.5})
    (folder / "stray").mkdir()
    return folder


def test_rows_come_back_in_order(log):
    log.append([{"a": 1}, {"b": [1.5, None, "ä"]}])
    log.append([{"a": 2}])
    log.sync()
    assert read_rows(log.path) == [{"a": 1}, {"b": [1.5, None, "ä"]}, {"a": 2}]


def test_sync_returns_the_length_on_disk(log):
    log.append([{"a": 1}])
    assert log.sync() == log.path.stat().st_size == len('{"a": 1}\n')


def test_sync_reaches_the_disk(log, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    log.append([{"a": 1}])
    log.sync()
    assert synced == [log._file.fileno()]


@quick
@given(st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(0, 3), max_size=4))
def test_truncate_goes_back_to_a_sync(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("log") / "steps.jsonl"
    log = RowLog(path)
    log.append({"n": n} for n in first)
    length = log.sync()
    log.append({"n": n} for n in second)
    log.truncate(length)
    assert log.sync() == length
    log.append([{"n": "after"}])
    log.sync()
    log.close()
    assert [row["n"] for row in read_rows(path)] == [*first, "after"]


def test_a_reopened_log_goes_on(log):
    log.append([{"n": 1}])
    length = log.sync()
    log.close()
    again = RowLog(log.path)
    assert again.sync() == length
    again.append([{"n": 2}])
    again.close()
    assert read_rows(log.path) == [{"n": 1}, {"n": 2}]


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{"n": ')
    assert read_rows(path) == [{"n": 1}, {"n": 2}]
    path.write_text("")
    assert read_rows(path) == []


def test_a_log_that_does_not_exist_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(RunError, match="damaged") as error:
        read_rows(path)
    assert str(path) in str(error.value)


def test_numbers_that_are_not_finite_are_refused(log):
    with pytest.raises(ValueError, match="JSON"):
        log.append([{"loss": float("nan")}])


@pytest.mark.parametrize("act", ["open", "sync"])
def test_a_full_disk_is_named(log, monkeypatch, act):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(type(log.path), "open", full)
        with pytest.raises(RunError, match="No space left") as error:
            RowLog(log.path) if act == "open" else log.sync()
    assert str(log.path) in str(error.value)


def test_runs_are_found_sorted(runs):
    assert [run.id for run in find_runs(runs)] == ["a-s1", "a-s10", "a-s2", "b-s0"]
    assert find_runs(runs / "nothing") == []


@pytest.mark.parametrize(
    ("given", "found"), [("b", "b-s0"), ("a-s2", "a-s2"), ("a-s1", "a-s1"), ("a-s10", "a-s10")]
)
def test_a_run_is_found_by_name_or_prefix(runs, given, found):
    assert find_run(given, runs).id == found


def test_a_run_is_found_by_path(runs):
    assert find_run(str(runs / "a-s2"), runs / "elsewhere").path == (runs / "a-s2").resolve()


def test_a_prefix_of_several_runs_names_them(runs):
    with pytest.raises(UsageError, match="fits 3 runs: a-s1, a-s10, a-s2"):
        find_run("a-", runs)


def test_an_unknown_run_suggests(runs):
    with pytest.raises(UsageError, match="no run 'c-s0'.*did you mean 'b-s0'"):
        find_run("c-s0", runs)


def test_a_run_is_finished_when_it_has_a_summary(runs):
    done, open_ = find_run("b", runs), find_run("a-s2", runs)
    assert done.finished
    assert done.summary == {"acc": 0.5}
    assert done.run["name"] == "b-s0"
    assert not open_.finished
    with pytest.raises(RunError, match="run a-s2 is running; 'spikecl resume a-s2'"):
        _ = open_.summary


def test_the_matrix_survives_the_disk(runs):
    rng = np.random.default_rng(0)
    aware, agnostic = rng.random((3, 2)), rng.random((3, 2))
    aware[0, 1] = agnostic[1, 0] = np.nan
    table = matrix_table(aware, agnostic, columns=["x", "y"], chosen="agnostic")
    assert table["format_version"] == FORMAT_VERSION
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    write_json(runs / "a-s1" / "matrix.json", table)
    record = RunRecord(runs / "a-s1")
    np.testing.assert_array_equal(record.matrix("aware"), aware)
    np.testing.assert_array_equal(record.matrix("agnostic"), agnostic)
    np.testing.assert_array_equal(record.matrix(), agnostic)
    assert record.matrix_names() == (["untrained", "event0", "event1"], ["x", "y"])


def test_steps_and_cost_of_a_record(runs):
    record = RunRecord(runs / "b-s0")
    assert record.steps() == []
    (record.path / "steps.jsonl").write_text('{"n": 1}\n')
    assert record.steps() == [{"n": 1}]
    with pytest.raises(RunError, match="cost.json"):
        _ = record.cost
    write_json(record.path / "cost.json", {"bytes": 3})
    assert record.cost == {"bytes": 3}
