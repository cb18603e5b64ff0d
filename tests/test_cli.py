from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from spikecl import cli, screen
from spikecl.experiments import runner
from spikecl.learner import Learner
from spikecl.records import find_runs

SPIKECL = str(Path(sys.executable).with_name("spikecl"))
CONFIG = """
[data]
name = "{data}"
[stream]
experiences = 2
[network]
hidden = [6]
[encoding]
steps = 2
[train]
batch = 10
[checkpoint]
every_steps = 2
"""


def arrays(**changes):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (60, 4, 4)).astype(np.uint8), np.arange(60) % 3
    given = {"x_train": x[:45], "y_train": y[:45], "x_test": x[45:], "y_test": y[45:]} | changes
    return {name: array for name, array in given.items() if array is not None}


@pytest.fixture
def spikecl(capsys, monkeypatch, tmp_path):
    """Return a function that runs a command in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPIKECL_DATA", raising=False)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["spikecl", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.fixture
def config(tmp_path):
    np.savez(tmp_path / "toy.npz", **arrays())
    path = tmp_path / "c.toml"
    path.write_text(CONFIG.format(data=tmp_path / "toy.npz"))
    return path


@pytest.fixture
def finished(spikecl, config, tmp_path):
    assert spikecl("run", config, "--quiet")[0] == 0
    (record,) = find_runs(tmp_path / "runs")
    return record


def on_tick(monkeypatch, number, action):
    ticks = Learner.ticks

    def armed(self):
        for i, tick in enumerate(ticks(self)):
            if i == number:
                action()
            yield tick

    monkeypatch.setattr(Learner, "ticks", armed)


def raise_signal(signum=signal.SIGTERM):
    return lambda *args, **kwargs: os.kill(os.getpid(), signum)


@pytest.fixture
def interrupted(spikecl, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        on_tick(patch, 7, raise_signal())
        code, out, err = spikecl("run", config, "--quiet")
    assert (code, out) == (75, "") and len(err.splitlines()) == 1
    (record,) = find_runs(tmp_path / "runs")
    return record


def refused(result, code, *words):
    """A refusal: its code, nothing on standard output, one line on standard error."""
    assert (result[0], result[1]) == (code, ""), result
    lines = result[2].splitlines()
    assert len(lines) == 1 and lines[0].startswith("spikecl: "), result[2]
    assert "Traceback" not in result[2]
    for word in words:
        assert word in lines[0]


# ---- run ----------------------------------------------------------------------------------------


def test_run_shows_summary_matrix_and_the_place_of_the_record(spikecl, config, tmp_path):
    code, out, err = spikecl("run", config, "--runs-dir", "here")
    (record,) = find_runs(tmp_path / "here")
    assert (code, err) == (0, "")
    summary = record.summary
    for value in (record.id, "permuted-toy", "finetune", "untrained", "event1", "task1"):
        assert value in out
    for key in ("acc", "bwt", "learning_accuracy"):
        assert f"{100 * summary[key]:.2f}" in out
    assert f"record: here/{record.id}" in out
    assert not (tmp_path / "runs").exists()


def test_of_a_long_stream_the_ends_of_the_matrix_are_shown(spikecl, config):
    long = ("--set", "stream.experiences=20", "--set", "train.evaluate=present")
    code, out, err = spikecl("run", config, *long, "--runs-dir", "here")
    assert (code, err) == (0, "")
    for value in ("untrained", "event0", "event19", "task0", "task19", "…"):
        assert value in out
    for value in ("event9 ", "task9 "):
        assert value not in out


def test_run_again_shows_the_finished_result(spikecl, config, monkeypatch):
    first = spikecl("run", config)
    monkeypatch.setattr(Learner, "ticks", None)
    assert spikecl("run", config) == first


def test_json_is_alone_on_standard_output(spikecl, config):
    code, out, err = spikecl("run", config, "--json")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert summary["method"] == "finetune" and 0 <= summary["acc"] <= 1
    shown = spikecl("show", summary["run"], "--json")
    assert json.loads(shown[1]) == summary


def test_overrides_and_their_mistakes(spikecl, config, tmp_path):
    code, out, _ = spikecl(
        "run", config, "--set", "method.name=hlop", "--set", "run.seed=3", "--json"
    )
    assert code == 0 and json.loads(out)["method"] == "hlop" and json.loads(out)["seed"] == 3
    refused(spikecl("run", config, "--set", "train.epoch=3"), 2, "did you mean 'epochs'?")
    refused(spikecl("run", config, "--set", "train.epochs"), 2, "write section.key=value")
    assert len(find_runs(tmp_path / "runs")) == 1


def test_seeds(spikecl, config, tmp_path, monkeypatch):
    given = {}

    class Group:
        table = {"stream": "s", "method": "m", "seeds": [0, 1], "metrics": {}}
        path = tmp_path / "group"

    def run_seeds(checked, count, **keywords):
        given.update(keywords, config=checked, count=count)
        return Group

    monkeypatch.setattr("spikecl.experiments.run_seeds", run_seeds)
    Group.table["metrics"]["acc"] = {"mean": 0.5, "sd": 0.125, "low": 0.25, "high": None}
    code, out, _ = spikecl("run", config, "--seeds", 2, "--runs-dir", "r", "--data-dir", tmp_path)
    assert code == 0 and "n = 2" in out
    assert "50.00" in out and "12.50" in out and "25.00 … –" in out
    assert f"record: {tmp_path / 'group'}" in out
    assert given["count"] == 2 and given["runs_dir"] == Path("r") and given["data_dir"] == tmp_path
    assert json.loads(spikecl("run", config, "--seeds", 2, "--json")[1]) == Group.table


def test_several_seeds_for_real(config, tmp_path):
    done = subprocess.run(
        [SPIKECL, "run", config, "--seeds", "2", "--json", "--runs-dir", tmp_path / "r"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    table = json.loads(done.stdout)
    assert table["seeds"] == [0, 1] and table["metrics"]["acc"]["n"] == 2
    (group,) = (tmp_path / "r").glob("*-n2-*/group.json")
    assert json.loads(group.read_text()) == table


def test_a_seed_that_fails_is_told_in_one_line(config, tmp_path):
    done = subprocess.run(
        [SPIKECL, "run", config, "--seeds", "2", "--set", "method.name=joint"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    refused((done.returncode, done.stdout, done.stderr), 2, "joint", "old_data")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("count", ["0", "-1"])
def test_at_least_one_seed(spikecl, config, tmp_path, count):
    refused(spikecl("run", config, "--seeds", count), 2, f"--seeds: got {count}")
    assert not (tmp_path / "runs").exists()


def test_progress_is_only_for_terminals_and_quiet_silences_it(spikecl, config, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "spikecl.experiments.run_config", lambda *a, show, **k: shown.append(show) or 1 / 0
    )
    terminal = Console(file=sys.stderr, force_terminal=True)
    for console, flags, expected in [
        (screen.err, (), False),
        (terminal, (), True),
        (terminal, ("--quiet",), False),
        (terminal, ("--json",), False),
    ]:
        monkeypatch.setattr(screen, "err", console)
        assert spikecl("run", config, *flags)[0] == 1
        assert (shown.pop() is not None) == expected


def test_the_progress_bar_says_event_accuracy_and_time_left(spikecl, config, monkeypatch, capsys):
    from io import StringIO

    drawn = StringIO()
    monkeypatch.setattr(screen, "err", Console(file=drawn, force_terminal=True, width=150))
    assert spikecl("run", config)[0] == 0
    assert "event 2/2" in drawn.getvalue()
    assert re.search(r"accuracy so far \d+\.\d\d %, \d+ s left", drawn.getvalue())


# ---- interruption and resume --------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_end_with_75(spikecl, config, tmp_path, monkeypatch, signum):
    on_tick(monkeypatch, 5, raise_signal(signum))
    refused(spikecl("run", config, "--quiet"), 75, "saved in runs/permuted-toy", "spikecl resume")
    (record,) = find_runs(tmp_path / "runs")
    assert record.run["status"] == "interrupted" and not record.finished
    assert len(list((record.path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("how", ["run", "name", "prefix", "path"])
def test_an_interrupted_run_is_finished_by_run_and_by_resume(spikecl, config, interrupted, how):
    name = {"name": interrupted.id, "prefix": interrupted.id[:12], "path": interrupted.path}
    command = ("run", config) if how == "run" else ("resume", name[how])
    code, out, err = spikecl(*command, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == interrupted.summary
    assert spikecl("run", config, "--runs-dir", "whole", "--json")[0] == 0
    (whole,) = find_runs(Path("whole"))
    for name in ("steps.jsonl", "matrix.json", "run.json", "weights/tensors.safetensors"):
        assert (whole.path / name).read_bytes() == (interrupted.path / name).read_bytes()


STOPPED_EARLY = """
import os, signal, sys
from spikecl import cli, experiments
def load_config(*args):
    {}
experiments.load_config = load_config
cli.main()
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_before_the_start_ends_with_75(config, tmp_path, signum, swallowed):
    """Also within the import of a library that turns any exception into one of its own."""
    kill = f"os.kill(os.getpid(), {int(signum)})"
    if swallowed:
        kill = f"try: {kill}\n    except Exception: raise AttributeError('numpy') from None"
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_EARLY.format(kill), "run", config],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    refused((done.returncode, done.stdout, done.stderr), 75, "stopped")
    assert not (tmp_path / "runs").exists()


STOPPED_IN_NUMPY = """
import os, signal, sys
from spikecl import cli
class Finder:
    sent = False
    def find_spec(self, name, path=None, target=None):
        if name.startswith("numpy.") and name.endswith("._exceptions") and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
cli.main()
"""


def test_a_signal_within_the_import_of_compiled_code_ends_with_75(config, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_NUMPY, "run", config],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    refused((done.returncode, done.stdout, done.stderr), 75, "stopped")


def test_an_unexpected_error_leaves_the_run_failed(spikecl, config):
    assert spikecl("run", config, "--set", "optimiser.lr=1e300")[0] == 1
    assert json.loads(spikecl("list", "--json")[1])[0]["status"] == "failed"


def test_show_says_how_to_finish_an_interrupted_run(spikecl, interrupted):
    refused(
        spikecl("show", interrupted.id), 1, "is interrupted", f"'spikecl resume {interrupted.id}'"
    )


# ---- list and show ------------------------------------------------------------------------------


def test_list(spikecl, config, finished, monkeypatch):
    with monkeypatch.context() as patch:
        on_tick(patch, 5, raise_signal())
        assert spikecl("run", config, "--set", "run.seed=1")[0] == 75
    code, out, err = spikecl("list", "--json")
    assert (code, err) == (0, "")
    rows = {row["run"]: row for row in json.loads(out)}
    assert rows.pop(finished.id) == {
        "run": finished.id, "status": "finished", "acc": finished.summary["acc"]
    }  # fmt: skip
    ((name, row),) = rows.items()
    assert (row["status"], row["acc"]) == ("interrupted", None) and "-s1-" in name
    code, out, _ = spikecl("list")
    assert code == 0 and f"{100 * finished.summary['acc']:.2f}" in out
    assert finished.id in out and name in out and "interrupted" in out


def test_list_of_nothing(spikecl):
    code, out, _ = spikecl("list", "--runs-dir", "nowhere")
    assert code == 0 and "no runs in nowhere" in out and "spikecl run CONFIG" in out
    assert json.loads(spikecl("list", "--runs-dir", "nowhere", "--json")[1]) == []


def test_runs_of_another_format_are_listed_and_refused(spikecl, config, finished):
    info = json.loads((finished.path / "run.json").read_text()) | {"format_version": 0}
    (finished.path / "run.json").write_text(json.dumps(info))
    assert json.loads(spikecl("list", "--json")[1]) == [
        {"run": finished.id, "status": "format 0", "acc": None}
    ]
    for command in (("run", config), ("resume", finished.id)):
        refused(spikecl(*command), 1, finished.id, "format version 0")


def test_show(spikecl, finished):
    code, out, err = spikecl("show", finished.id[:10])
    assert (code, err) == (0, "")
    assert finished.id in out and f"{100 * finished.summary['acc']:.2f}" in out
    for row in finished.matrix()[1:]:
        assert f"{100 * row[0]:.2f}" in out
    assert spikecl("show", finished.path)[0] == 0


@pytest.mark.parametrize("command", ["show", "resume", "compare", "report"])
def test_an_unknown_run_is_refused_with_what_there_is(spikecl, finished, command):
    typo = finished.id.replace("finetune", "finetun")
    refused(spikecl(command, typo), 2, f"no run '{typo}'", f"did you mean '{finished.id}'?")
    refused(spikecl(command, "zzz"), 2, "no run 'zzz' in runs", finished.id)


def test_an_ambiguous_prefix_is_refused(spikecl, config, finished):
    assert spikecl("run", config, "--set", "run.seed=1", "--quiet")[0] == 0
    refused(spikecl("show", "permuted"), 2, "fits 2 runs", finished.id)


# ---- methods, trainers, data --------------------------------------------------------------------


def test_methods_and_trainers(spikecl):
    code, out, _ = spikecl("methods")
    assert code == 0 and all(name in out for name in ("finetune", "hlop", "joint"))
    rows = {row["method"]: row for row in json.loads(spikecl("methods", "--json")[1])}
    assert rows["hlop"]["needs"] == "boundary" and rows["finetune"]["needs"] == "nothing"
    assert "old_data" in rows["joint"]["needs"]
    code, out, _ = spikecl("trainers")
    assert code == 0 and "bptt" in out and "local in space" in out
    rows = {row["trainer"]: row for row in json.loads(spikecl("trainers", "--json")[1])}
    assert {"bptt", "eprop", "ottt", "stdp", "spsa"} <= rows.keys()
    assert rows["bptt"]["needs"] == "labels" and "traces" in rows["ottt"]["local in time"]
    assert all(row["source"] and row["memory"] and row["exact"] for row in rows.values())


def test_data_list_and_verify(spikecl):
    code, out, _ = spikecl("data", "list")
    assert code == 0 and "digits" in out and "built in" in out
    rows = {row["name"]: row for row in json.loads(spikecl("data", "list", "--json")[1])}
    assert rows["digits"]["note"] == "built in" and rows["digits"]["shape"] == [8, 8]
    code, out, _ = spikecl("data", "verify", "digits")
    assert code == 0 and "as published" in out
    assert spikecl("data", "fetch", "digits")[0] == 0
    refused(spikecl("data", "fetch", "mnits"), 2, "did you mean 'mnist'?")
    refused(spikecl("data", "verify", "none.npz"), 2, "none.npz")


def test_data_verify_of_altered_data_ends_with_1(spikecl, tmp_path):
    np.savez(tmp_path / "mnist.npz", **arrays())
    code, out, _ = spikecl("data", "verify", "mnist", "--data-dir", tmp_path)
    assert code == 1 and "expected" in out


# ---- usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("run",),
        ("run", "a", "b"),
        ("run", "c.toml", "--seeds", "x"),
        ("run", "c.toml", "--nonsense"),
        ("show",),
        ("compare",),
        ("data",),
        ("data", "nonsense"),
    ],
)
def test_wrong_usage_ends_with_2(spikecl, arguments):
    code, _, err = spikecl(*arguments)
    assert code == 2 and "Traceback" not in err


def test_help_names_every_command(spikecl):
    code, out, _ = spikecl("--help")
    assert code == 0
    for command in ("run", "resume", "list", "show", "compare", "report", "methods", "data"):
        assert re.search(rf"\b{command}\b", out)
    assert spikecl("run", "--help")[0] == 0


def test_debug_gives_a_traceback_and_nothing_else_does(config, tmp_path):
    for flags, traced in (((), False), (("--debug",), True)):
        done = subprocess.run(
            [SPIKECL, *flags, "run", config, "--set", "train.epochs=0"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert ("Traceback" in done.stderr) == traced
        assert "train.epochs: got 0" in done.stderr
        if not traced:
            refused((done.returncode, done.stdout, done.stderr), 2)


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ("unknown key train.epoch", "'epochs'")),
        ("trian.epochs=3", ("unknown section [trian]", "'train'")),
        ("train.epochs=two", ("train.epochs: got 'two'", "integer")),
        ("train.epochs=0", ("train.epochs: got 0", "1")),
        ("optimiser.lr=-1", ("optimiser.lr: got -1", "greater than 0")),
        ("optimiser.lr=nan", ("optimiser.lr: got nan", "finite")),
        ("data.name=mnits", ("unknown data set 'mnits'", "'mnist'")),
        ("method.name=hlpo", ("unknown method 'hlpo'", "'hlop'")),
        ("method.name=[]", ("method.name: got []", "list")),
        ("method.name=joint", ("'joint' needs old_data", "'permuted-toy' hides")),
        ("stream.name=permutted", ("unknown stream 'permutted'", "'permuted'")),
        ("network.hidden=[]", ("network.hidden", "1 entry or more")),
        ("network.hidden=[0]", ("network.hidden", "greater than or equal to 1")),
        ("run.device=cuda", ("run.device: got 'cuda'", "'cpu'")),
    ],
)
def test_bad_configurations(spikecl, config, tmp_path, monkeypatch, override, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(spikecl("run", config, "--set", override), 2, *words)
    assert not (tmp_path / "runs").exists()


def test_more_tasks_than_classes(spikecl, config, tmp_path):
    changes = ("--set", "stream.name=split_classes", "--set", "stream.experiences=4")
    refused(spikecl("run", config, *changes), 2, "stream.experiences: got 4", "3 classes", "1 to 3")
    assert not (tmp_path / "runs").exists()


def test_a_configuration_that_cannot_be_read(spikecl, tmp_path):
    (tmp_path / "bad.toml").write_text("[run\n")
    for path, words in [
        ("none.toml", "cannot read none.toml"),
        (tmp_path, "Is a directory"),
        ("bad.toml", "bad.toml is not TOML"),
    ]:
        refused(spikecl("run", path), 2, words)
    assert not (tmp_path / "runs").exists()


X = arrays()["x_train"]
BAD_DATA = {
    "missing": (arrays(y_test=None), ("y_test missing", "x_train, y_train, x_test, y_test")),
    "events": (arrays(offset_train=X, t_train=X), ("holds events", "coordinate")),
    "one-axis": (arrays(x_train=X[:, 0, 0], x_test=X[:15, 0, 0]), ("[N, *features]",)),
    "lengths": (arrays(y_train=np.arange(44) % 3), ("45 samples", "44 labels")),
    "other-shape": (arrays(x_test=np.zeros((15, 3, 3), np.uint8)), ("(4, 4)", "(3, 3)")),
    "one-hot": (arrays(y_train=np.eye(3, dtype=int)[np.arange(45) % 3]), ("argmax",)),
    "nan": (
        arrays(x_train=np.full((45, 4, 4), np.nan), x_test=np.zeros((15, 4, 4))),
        ("x_train holds 720 values that are NaN",),
    ),
    "labels-from-1": (
        arrays(y_train=np.arange(45) % 3 + 1, y_test=np.arange(15) % 3 + 1),
        ("labels do not start at 0", "renumber"),
    ),
    "labels-negative": (arrays(y_train=np.arange(45) % 3 - 1), ("labels are negative",)),
    "labels-with-gap": (arrays(y_train=np.arange(45) % 2 * 2), ("label 1 is absent",)),
    "no-samples": (
        arrays(x_test=np.zeros((0, 4, 4), np.uint8), y_test=np.zeros(0, int)),
        ("x_test has shape (0, 4, 4)",),
    ),
    "text": (arrays(x_train=np.full((45, 2), "a")), ("x_train", "convert it")),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(spikecl, config, tmp_path, case):
    content, words = BAD_DATA[case]
    np.savez(tmp_path / "bad.npz", **content)
    result = spikecl("run", config, "--set", f"data.name={tmp_path / 'bad.npz'}")
    refused(result, 2, "bad.npz", *words)
    assert not (tmp_path / "runs").exists()


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def test_damaged_and_pickled_data(spikecl, config, tmp_path):
    whole = (tmp_path / "toy.npz").read_bytes()
    objects = np.empty(45, dtype=object)
    objects[:] = [Trap() for _ in objects]
    np.savez(tmp_path / "objects.npz", **arrays(x_train=objects))
    files = {
        "truncated.npz": whole[: len(whole) // 2],
        "flipped.npz": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        "pickled.npz": pickle.dumps(Trap()),
        "empty.npz": b"",
        "objects.npz": (tmp_path / "objects.npz").read_bytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        refused(spikecl("run", config, "--set", f"data.name={tmp_path / name}"), 2, name)
    (tmp_path / "folder.npz").mkdir()
    refused(spikecl("run", config, "--set", "data.name=folder.npz"), 2, "Is a directory")
    refused(spikecl("run", config, "--set", "data.name=none.npz"), 2, "no file none.npz")
    assert not (tmp_path / "trapped").exists() and not (tmp_path / "runs").exists()


def test_a_runs_directory_that_cannot_be_written(spikecl, config, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        refused(spikecl("run", config, "--runs-dir", place), 1, "cannot write", "--runs-dir")
    assert (tmp_path / "file").read_text() == ""


def test_a_full_disk(spikecl, config, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(spikecl("run", config, "--quiet"), 1, "cannot write", "No space left", "free space")
    assert find_runs(tmp_path / "runs") == []
    assert spikecl("run", config, "--quiet")[0] == 0


def test_a_corrupted_checkpoint(spikecl, config, interrupted):
    newest = sorted((interrupted.path / "checkpoints").iterdir())[-1]
    (newest / "tensors.safetensors").write_bytes(b"\x80\x04")
    for command in (("run", config), ("resume", interrupted.id)):
        refused(spikecl(*command), 1, f"checkpoint runs/{interrupted.id}", newest.name, "delete")


def test_a_loss_that_is_not_finite(spikecl, config, tmp_path):
    changes = ("--set", "network.name=mlp", "--set", "optimiser.lr=1e30")
    refused(spikecl("run", config, *changes), 1, "loss is", "step", "lower optimiser.lr")
    assert json.loads(spikecl("list", "--json")[1])[0]["status"] == "failed"
    assert not list((tmp_path / "runs").glob("*/summary.json"))


def test_a_data_directory_that_is_none(spikecl, config, tmp_path):
    refused(spikecl("run", config, "--data-dir", "nowhere"), 2, "nowhere")
    assert not (tmp_path / "runs").exists()


# ---- known defects ------------------------------------------------------------------------------


def test_a_signal_before_run_json_is_written_ends_with_75(spikecl, config, monkeypatch):
    monkeypatch.setattr(runner, "describe", raise_signal())
    refused(spikecl("run", config), 75, "stopped")


@pytest.mark.parametrize("at", ["measure_cost", "save_state", "matrix_table"])
def test_a_signal_while_the_final_files_are_written_lets_the_run_end(
    spikecl, config, monkeypatch, at
):
    plain, sent = getattr(runner, at), []

    def signalled(*args, **kwargs):
        sent.append(raise_signal()())
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(runner, at, signalled)
        result = spikecl("run", config, "--quiet")
    assert sent and result[0] == 0  # all but done, it ends
    assert spikecl("run", config, "--quiet") == result


def test_a_signal_after_the_summary_leaves_the_run_finished(spikecl, config, tmp_path, monkeypatch):
    write = runner.RunDirectory.write

    def written(self, name, value):
        write(self, name, value)
        if name == "summary.json":
            raise_signal()()

    monkeypatch.setattr(runner.RunDirectory, "write", written)
    spikecl("run", config, "--quiet")
    (record,) = find_runs(tmp_path / "runs")
    assert record.finished and record.run["status"] == "finished"


def test_a_second_ctrl_c_ends_with_75_too(spikecl, config, monkeypatch):
    def twice():
        raise_signal(signal.SIGINT)()
        raise_signal(signal.SIGINT)()

    on_tick(monkeypatch, 6, twice)
    assert spikecl("run", config, "--quiet")[0] == 75


@pytest.mark.parametrize("damage", ["empty", "list", "no-status", "no-acc", "long-name"])
def test_a_damaged_record_is_told_in_one_line(spikecl, finished, damage):
    if damage == "empty":
        (finished.path / "summary.json").write_text("{}")
    elif damage == "list":
        (finished.path / "summary.json").write_text('["x"]')
    elif damage == "no-acc":
        summary = finished.summary
        del summary["acc"]
        (finished.path / "summary.json").write_text(json.dumps(summary))
    elif damage == "no-status":
        (finished.path / "summary.json").unlink()
        info = finished.run
        del info["status"]
        (finished.path / "run.json").write_text(json.dumps(info))
    name = "x" * 300 if damage == "long-name" else finished.id
    refused(spikecl("show", name), 2 if damage == "long-name" else 1)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"format_version": 1}'])
def test_a_damaged_run_does_not_hide_the_others_from_list(spikecl, finished, tmp_path, content):
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text(content)
    code, out, _ = spikecl("list", "--json")
    assert code == 0 and finished.id in [row["run"] for row in json.loads(out)]


@pytest.mark.parametrize("change", ["optimiser.lr=1e300", "network.hidden=[1000000000000]"])
def test_absurd_sizes_are_told_in_one_line(spikecl, config, change):
    code, _, err = spikecl("run", config, "--set", change)
    assert code in (1, 2) and len(err.splitlines()) == 1


def test_line_breaks_in_names_do_not_break_the_line(spikecl, config):
    refused(spikecl("run", config, "--set", 'data.name="a\\nb"'), 2)


def test_long_names_are_whole_where_no_terminal_is(spikecl, config):
    sets = ("--set", 'method.name=["hlop","finetune"]', "--set", f"run.seed={10**30}")
    assert spikecl("run", config, *sets, "--quiet")[0] == 0
    (record,) = find_runs(Path("runs"))
    assert record.id in spikecl("list")[1]
    assert "fashion_mnist" in spikecl("data", "list")[1]


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "spikecl", "methods", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "hlop" in {row["method"] for row in json.loads(done.stdout)}
