"""Runs are killed and stopped from outside; what they leave must be as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from spikecl.data import load
from spikecl.experiments import load_config, run_config

FINAL = ("steps.jsonl", "matrix.json", "cost.json", "run.json", "weights/tensors.safetensors")
SPIKECL = str(Path(sys.executable).with_name("spikecl"))

CONFIG = """
[data]
name = "DATA"
[stream]
experiences = 2
[network]
hidden = [12]
[encoding]
steps = 2
[train]
batch = 10
eval_batch = 512
[checkpoint]
every_steps = 25
[method]
name = "hlop"
[method.hlop]
rate = 0.1
"""

# A process that has imported everything and forks one full command after the other: each child is
# the command line itself, and is killed for real, without paying for the imports each time.
FORKS = r"""
import json, os, random, signal, sys, time
from pathlib import Path
import numpy, scipy.stats, torch, safetensors.torch
torch.set_num_threads(1)
from spikecl import cli
from spikecl.experiments import load_config
from spikecl.experiments.job import Job
import spikecl.experiments.cost
task = json.loads(sys.argv[1])
Job.from_config(load_config(Path(task["arguments"][1])), data_dir=None).learner()

def start(arguments):
    pid = os.fork()
    if pid:
        return pid
    sys.argv = ["spikecl", *arguments]
    code = 0
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        code = 99
    finally:
        os._exit(code)

def run(signum, delay):
    began = time.perf_counter()
    pid = start(task["arguments"])
    if signum:
        time.sleep(delay)
        os.kill(pid, signum)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), time.perf_counter() - began

rng, runs = random.Random(task["seed"]), task["runs"]
log = []
code, whole = run(None, 0)
assert code == 0, code
while len(log) < task["times"]:
    task["arguments"][task["arguments"].index("--runs-dir") + 1] = f"{runs}/{len(log)}"
    for _ in range(200):
        signum = task["signals"][len(log) % len(task["signals"])]
        code, _ = run(signum, rng.uniform(0.05, 1) * whole * task["part"])
        if code == 0:
            break
        log.append([signum, code])
print(json.dumps(log))
"""


@pytest.fixture
def config(tmp_path):
    """A configuration on the first 400 + 100 digits."""
    digits, data, path = load("digits"), tmp_path / "few.npz", tmp_path / "c.toml"
    arrays = {"x_train": digits.x_train[:400], "y_train": digits.y_train[:400]}
    np.savez(data, **arrays, x_test=digits.x_test[:100], y_test=digits.y_test[:100])
    path.write_text(CONFIG.replace("DATA", str(data)))
    return path


def fork(config, tmp_path, *, changes=(), signals, times, part, seed):
    """Run once undisturbed, then in pieces until ``times`` signals were sent; return the log."""
    sets = [word for change in changes for word in ("--set", change)]
    task = {
        "arguments": ["run", str(config), "--runs-dir", str(tmp_path / "whole"), "--quiet", *sets],
        "runs": str(tmp_path / "cut"),
        "signals": signals,
        "times": times,
        "part": part,
        "seed": seed,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS, json.dumps(task)],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def final(path):
    summary = json.loads((path / "summary.json").read_text())
    del summary["wall_s"], summary["cpu_s"]
    return {name: (path / name).read_bytes() for name in FINAL} | {"summary": summary}


def check_equal(tmp_path):
    (whole,) = (tmp_path / "whole").iterdir()
    parts = [path for runs in (tmp_path / "cut").iterdir() for path in runs.iterdir()]
    assert parts
    for path in parts:
        assert path.name == whole.name
        assert final(path) == final(whole), path
        assert len(list((path / "checkpoints").iterdir())) == 2
        assert not list(path.glob(".*.tmp"))


@pytest.mark.parametrize(("batch", "part"), [(1, 0.4), (10, 0.4)])
def test_killing_at_random_points(config, tmp_path, batch, part):
    """Ten real SIGKILLs of the command line each, at times drawn from the length of the run."""
    changes = [f"train.batch={batch}", f"train.epochs={1 if batch == 1 else 8}"]
    changes += [f"checkpoint.every_steps={20 if batch == 1 else 5}"]
    log = fork(
        config, tmp_path, changes=changes, signals=[signal.SIGKILL], times=10, part=part, seed=batch
    )
    assert len(log) >= 10 and {code for _, code in log} == {-signal.SIGKILL}
    check_equal(tmp_path)


def test_stopping_at_random_points(config, tmp_path):
    """SIGINT and SIGTERM save and end with 75, whenever they come."""
    signals = [signal.SIGINT, signal.SIGTERM]
    log = fork(
        config, tmp_path, changes=["train.epochs=8"], signals=signals, times=8, part=0.5, seed=3
    )
    assert len(log) >= 8 and {code for _, code in log} == {75}
    check_equal(tmp_path)


# ---- whole processes ----------------------------------------------------------------------------


class Command:
    """The command line as a process, in a session of its own; knows all that descend from it."""

    def __init__(self, *arguments):
        self.mark = f"SPIKECL_TEST={uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [SPIKECL, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {name: value},
        )

    def alive(self):
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    folder.name.isdigit()
                    and self.mark.encode() in (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
        return found

    def end(self, seconds=30):
        """Wait for the end; return exit code and standard error; nothing may be left."""
        out, err = self.process.communicate(timeout=seconds)
        assert not self.wait_for_all(5), "processes were left"
        return self.process.returncode, err

    def wait_for_all(self, seconds):
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.05)
        return self.alive()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for pid in self.alive():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


def newest(runs):
    """Return the number of the newest checkpoint of each run."""
    return {
        path.name: max((int(p.name) for p in path.glob("checkpoints/0*")), default=0)
        for path in runs.glob("permuted-*-s*")
    }


def wait_for_progress(command, runs, *, more, count):
    """Wait until each of ``count`` runs has saved ``more`` checkpoints from now."""
    before, until = newest(runs), time.monotonic() + 30
    while time.monotonic() < until:
        assert command.process.poll() is None, command.process.communicate()
        now = newest(runs)
        if len(now) == count and all(now[n] >= before.get(n, 0) + more for n in now):
            return
        time.sleep(0.01)
    raise AssertionError(f"no progress: {newest(runs)}")


def test_killing_the_whole_command(config, tmp_path):
    rng, runs, change = random.Random(0), tmp_path / "cut" / "0", "train.epochs=25"
    arguments = ("run", config, "--quiet", "--set", change, "--runs-dir", runs)
    with Command(*arguments) as command:
        wait_for_progress(command, runs, more=3, count=1)
        time.sleep(rng.uniform(0, 0.1))
        command.process.kill()
        assert command.end()[0] == -signal.SIGKILL
    assert not list(runs.glob("*/summary.json"))
    with Command(*arguments) as command:
        assert command.end(60) == (0, "")
    run_config(load_config(config, [change]), runs_dir=tmp_path / "whole")
    check_equal(tmp_path)


def status(runs):
    return [json.loads(p.read_text())["status"] for p in sorted(runs.glob("permuted-*/run.json"))]


def test_several_seeds_are_stopped_together_and_go_on(config, tmp_path):
    """Ctrl-C reaches the whole group, a queueing system signals the parent alone, or kills it."""
    runs, change = tmp_path / "runs", "train.epochs=40"
    arguments = ("run", config, "--quiet", "--seeds", 2, "--set", change, "--runs-dir", runs)
    for send, signum in [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)]:
        with Command(*arguments) as command:
            wait_for_progress(command, runs, more=2, count=2)
            send(command.process.pid, signum)
            code, err = command.end()
            assert (code, len(err.splitlines())) == (75, 1), (send, signum, err)
            assert "the same command again goes on" in err
        assert status(runs) == ["interrupted"] * 2
        assert not list(runs.glob("*/summary.json")) and not list(runs.glob("*-n2-*"))
    with Command(*arguments) as command:
        wait_for_progress(command, runs, more=2, count=2)
        command.process.kill()
        assert command.end()[0] == -signal.SIGKILL  # end() waits for the children too
    assert status(runs) == ["interrupted"] * 2
    with Command(*arguments) as command:
        assert command.end(90) == (0, "")
    (group,) = runs.glob("*-n2-*/group.json")
    for seed, name in enumerate(json.loads(group.read_text())["runs"]):
        checked = load_config(config, [change, f"run.seed={seed}"])
        whole = run_config(checked, runs_dir=tmp_path / "whole").path
        assert whole.name == name and final(runs / name) == final(whole)


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_several_seeds_can_be_stopped_while_they_start(config, tmp_path, send):
    with Command("run", config, "--quiet", "--seeds", 2, "--runs-dir", tmp_path / "r") as command:
        until = time.monotonic() + 20
        while len(command.alive()) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.3)
        send(command.process.pid, signal.SIGINT)
        code, err = command.end()
        assert code == 75 and "Traceback" not in err, err
