"""Lava as a process: found, refused, set up, ended in time, and gone without a trace."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from programs import random_program
from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.emulator import emulate

PROBE = (
    '{"python": "3.10.1", "version": "0.10.0", "path": "/x/lava/magma", "lacks": [], '
    '"board": false}'
)
INPUTS = np.ones((5, 1, 9), int)


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """Give each test its own temporary files; after it none is left."""
    monkeypatch.delenv("SPIKECL_LAVA_PYTHON", raising=False)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as own:
        monkeypatch.setattr(tempfile, "tempdir", own)
        yield own
        assert os.listdir(own) == []


@pytest.fixture
def fake(tmp_path):
    """Write an interpreter that says it has Lava, and then does what the lines say."""

    def make(lines: str, probe: str = PROBE, name: str = "python") -> str:
        path = tmp_path / name
        text = f"#!/bin/sh\nif [ \"$1\" = -c ]; then echo '{probe}'; exit 0; fi\n{lines}\n"
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.fixture
def program():
    return random_program(0)[0]


def gone(pid: int) -> bool:
    """Whether a process ended; one that nobody waits for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_hanging_lava_is_ended_with_all_its_processes(fake, program, tmp_path):
    pids = tmp_path / "pids"
    python = fake(f"sleep 1000 & echo $! $$ > {pids}; wait")
    start = time.monotonic()
    with pytest.raises(lava.LavaError, match=r"did not finish in 0\.5 s and was ended; allow more"):
        lava.run(program, INPUTS, python=python, limit_s=0.5)
    assert time.monotonic() - start < 20
    found = [int(pid) for pid in pids.read_text().split()]
    assert len(found) == 2
    assert wait_for(lambda: all(map(gone, found)))


def test_one_that_does_not_listen_is_ended_too(fake, program, tmp_path):
    pids = tmp_path / "pids"
    python = fake(f"trap '' TERM; echo $$ > {pids}; while :; do sleep 0.1; done")
    with pytest.raises(lava.LavaError, match=r"did not finish in 0\.5 s"):
        lava.run(program, INPUTS, python=python, limit_s=0.5)
    assert wait_for(lambda: gone(int(pids.read_text())))


def test_a_real_network_is_ended_and_gives_its_shared_memory_back(installed, program):
    before = set(os.listdir("/dev/shm"))
    steps = np.ones((200_000, 1, 9), int)
    with pytest.raises(lava.LavaError, match="did not finish in 4 s"):
        lava.run(program, steps, python=installed.python, limit_s=4)
    new = set(os.listdir("/dev/shm")) - before  # some may be of tests beside this one
    assert wait_for(lambda: not new & set(os.listdir("/dev/shm")), 60)


def test_an_interrupt_ends_the_child_and_goes_on(fake, program, tmp_path):
    pids = tmp_path / "pids"
    python = fake(f"sleep 1000 & echo $! $$ > {pids}; wait")

    def interrupt():
        wait_for(lambda: pids.exists() and pids.read_text().strip(), 60)
        time.sleep(1)  # it waits for its child now
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    try:
        with pytest.raises(KeyboardInterrupt):
            lava.run(program, INPUTS, python=python, limit_s=60)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert wait_for(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))


def test_lava_ends_when_the_process_that_asked_is_killed(installed, program, tmp_path, clean):
    left = Path(clean) / "left"
    left.mkdir()
    program.save(tmp_path / "p.h5")
    np.save(tmp_path / "x.npy", np.ones((500_000, 1, 9), np.int8))
    command = [
        sys.executable,
        "-m",
        "spikecl_hardware",
        "run",
        "p.h5",
        "x.npy",
        "--backend",
        "lava",
    ]
    asker = subprocess.Popen(
        [*command, "--lava-python", installed.python],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(left)},
    )

    def runners():
        pids = [p.name for p in Path("/proc").iterdir() if p.name.isdigit()]
        return [pid for pid in pids if str(left) in command_line(pid)]

    def command_line(pid):
        try:
            return Path(f"/proc/{pid}/cmdline").read_text() if not gone(int(pid)) else ""
        except OSError:
            return ""

    assert wait_for(lambda: len(runners()) > 3, 30)  # Lava forked
    asker.kill()
    asker.wait()
    assert wait_for(lambda: not runners())
    shutil.rmtree(left)


def test_a_broken_child_says_what_went_wrong(fake, program):
    python = fake("echo one; echo 'ValueError: no such weight' >&2; exit 3")
    with pytest.raises(lava.LavaError) as caught:
        lava.run(program, INPUTS, python=python)
    assert "Lava ended with status 3" in str(caught.value)
    assert str(caught.value).endswith("one\nValueError: no such weight")


def test_a_child_that_writes_nothing_is_no_success(fake, program):
    with pytest.raises(lava.LavaError, match=r"(?s)ended with status 0 .*\(it said nothing\)"):
        lava.run(program, INPUTS, python=fake("exit 0"))


def test_a_child_that_leaves_processes_behind_is_cleaned_up(fake, program, tmp_path):
    pids = tmp_path / "pids"
    with pytest.raises(lava.LavaError, match="status 1"):
        lava.run(program, INPUTS, python=fake(f"sleep 1000 & echo $! > {pids}; exit 1"))
    assert wait_for(lambda: gone(int(pids.read_text())))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"0.10.0"', '"0.9.0"', r"lava-nc 0\.9\.0 in .*; 0\.10\.0 is allowed"),
        ('"version": "0.10.0"', '"version": null', "a broken Lava in "),
        ('"/x/lava/magma"', "null", "a broken Lava in "),
        ("[]", '["asteval", "scipy"]', "lacks asteval scipy; .*-m pip install asteval scipy'"),
        ('{"python"', "Segmentation", "does not work as Python 3.10 or newer"),
    ],
)
def test_a_lava_that_cannot_serve_is_refused(old, new, message, fake, monkeypatch, tmp_path):
    python = fake("exit 1", probe=PROBE.replace(old, new))
    for cache in ("nowhere", "."):
        monkeypatch.setenv("SPIKECL_LAVA", str(tmp_path / cache))
        with pytest.raises(lava.LavaError, match=f"{message}.*python -m spikecl_hardware setup"):
            lava.find(python)


def test_no_lava_at_all(fake, monkeypatch, tmp_path):
    monkeypatch.setenv("SPIKECL_LAVA", str(tmp_path / "nowhere"))
    probe = PROBE.replace('"0.10.0"', "null").replace('"/x/lava/magma"', "null")
    with pytest.raises(lava.LavaError, match=r"^no Lava in .*nowhere: run 'python -m spikecl_hard"):
        lava.find(fake("exit 1", probe=probe))
    with pytest.raises(lava.LavaError, match=r"no Python '/no/python'"):
        lava.find("/no/python")
    with pytest.raises(lava.LavaError, match=r"does not work as Python 3\.10 or newer"):
        lava.find("/bin/false")


def test_the_option_comes_before_the_variable_and_that_before_this_interpreter(fake, monkeypatch):
    first, second = fake("", name="first"), fake("", name="second")
    monkeypatch.setenv("SPIKECL_LAVA_PYTHON", second)
    assert lava.find(first).python == first
    assert lava.find().python == second
    assert str(lava.find()) == f"lava 0.10.0 in /x/lava/magma, Python 3.10.1 ({second})"


def test_a_folder_called_lava_is_no_lava(monkeypatch, tmp_path):
    (tmp_path / "lava" / "magma").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPIKECL_LAVA", str(tmp_path / "nowhere"))
    with pytest.raises(lava.LavaError, match="no Lava in"):
        lava.find(sys.executable)


def test_set_up_is_done_once_and_whole(installed, monkeypatch, tmp_path, clean):
    folder = tmp_path / "cache" / "lava"
    monkeypatch.setenv("SPIKECL_LAVA", str(folder))
    found = lava.setup()
    assert found.folder == folder
    assert list(folder.parent.iterdir()) == [folder]
    monkeypatch.setattr(lava, "_install", None)
    start = time.monotonic()
    assert lava.setup() == found == lava.find(sys.executable)
    assert time.monotonic() - start < 5
    monkeypatch.undo()
    (folder / "lava_nc-0.10.0.dist-info").rename(tmp_path / "elsewhere")  # now it is broken
    monkeypatch.setenv("SPIKECL_LAVA", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", clean)
    assert lava.setup() == found
    assert list(folder.parent.iterdir()) == [folder]


def test_a_set_up_that_fails_leaves_nothing(monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "lava"
    monkeypatch.setenv("SPIKECL_LAVA", str(folder))
    monkeypatch.setattr(lava, "PACKAGES", ("lava-nc==0.0.0.dev1",))
    with pytest.raises(
        lava.LavaError, match=r"(?s)pip could not install.*No matching distribution"
    ):
        lava.setup()
    assert list(folder.parent.iterdir()) == []


def test_a_long_name_for_temporary_files_is_no_matter(installed, monkeypatch, tmp_path):
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    program, inputs = random_program(0, steps=5)
    record = lava.run(program, inputs, python=installed.python)
    assert (record.outputs == emulate(program, inputs).outputs).all()


def test_two_runs_at_once(installed):
    cases = [random_program(number, steps=30) for number in (0, 2)]

    def run(case):
        return lava.run(*case, states=["v"], python=installed.python)

    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(run, cases))
    for case, record in zip(cases, records):
        expected = emulate(*case, states=["v"])
        for name, states in expected.states.items():
            assert (record.spikes[name] == expected.spikes[name]).all()
            assert (record.states[name]["v"] == states["v"]).all()


def test_the_child_sees_this_package_and_not_its_neighbours(installed, tmp_path):
    code = """
        from spikecl_hardware.loihi import lava
        import os, subprocess, sys
        with lava._own_folder() as own:
            env = lava._environment(own, None)
            print(sorted(os.listdir(own / "packages")))
            command = [sys.executable, "-S", "-c", "import spikecl_hardware"]
            subprocess.run(command, env=env, check=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['spikecl_hardware']\n"
