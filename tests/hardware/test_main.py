"""The command line beside the board."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from programs import random_program
from spikecl_hardware.__main__ import main
from spikecl_hardware.loihi.emulator import emulate


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write a program and inputs, and go where they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPIKECL_LAVA_PYTHON", raising=False)
    program, inputs = random_program(2, steps=12)
    program.save("p.h5")
    np.savez("x.npz", inputs=inputs, labels=np.zeros(1))
    np.save("x.npy", inputs)
    return program, inputs


def assert_record(program, inputs, *, backend):
    expected = emulate(program, inputs, states=["u", "v"])
    with np.load("out.npz") as found:
        assert set(found) == {
            *("backend", "inputs", "outputs"),
            *(f"{key}/{name}" for key in ("spikes", "u", "v") for name in ("a", "b")),
        }
        assert str(found["backend"]) == backend
        assert (found["inputs"] == expected.inputs).all()
        assert (found["outputs"] == expected.outputs).all()
        for name in program.populations:
            assert (found[f"spikes/{name}"] == expected.spikes[name]).all()
            for key in "uv":
                assert (found[f"{key}/{name}"] == expected.states[name][key]).all()


@pytest.mark.parametrize("inputs", ["x.npz", "x.npy"])
def test_a_run_in_the_emulator_writes_a_record(inputs, files, capsys):
    assert main(["run", "p.h5", inputs, "--states", "u,v", "--output", "out.npz"]) == 0
    assert_record(*files, backend="emulator (numpy)")
    steps = 12 + files[0].latency
    assert capsys.readouterr().out.startswith(f"emulator (numpy): 1 samples of {steps} steps; ")


def test_a_run_in_lava_writes_the_same_record(files, installed):
    command = ["run", "p.h5", "x.npz", "--states", "v,u", "--output", "out.npz"]
    command += ["--backend", "lava", "--lava-python", installed.python, "--limit", "60"]
    assert main([*command, "--config", "Loihi1SimCfg"]) == 0
    assert_record(*files, backend="lava 0.10.0 (Loihi1SimCfg, fixed_pt)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.h5 x.npy", "no file none.h5"),
        ("x.npz x.npy", "x.npz: no HDF5 file, or cut short"),
        ("p.h5 none.npy", "none.npy"),
        ("p.h5 p.h5", "p.h5 is no array of numbers (.npy or .npz)"),
        ("p.h5 other.npz", "other.npz has x, y; an array 'inputs' is needed"),
        ("p.h5 words.npy", "words.npy is no array of numbers"),
        ("p.h5 flat.npy", "inputs have shape (3,); [steps, samples, 9]"),
        ("p.h5 x.npy --output none/out.npz", "no folder none for the record"),
        ("p.h5 x.npy --backend lava --lava-python none", "no Python 'none'"),
        ("p.h5 x.npy --backend lava --lava-python /bin/false", "does not work as Python 3.10"),
    ],
)
def test_an_error_is_one_line_and_nothing_is_written(arguments, message, files, tmp_path, capsys):
    np.savez("other.npz", x=np.zeros(1), y=np.zeros(1))
    np.save("words.npy", np.array(["a", None], dtype=object), allow_pickle=True)
    np.save("flat.npy", np.zeros(3))
    before = sorted(tmp_path.iterdir())
    command = arguments.split()
    command += [] if "--output" in command else ["--output", "out.npz"]
    assert main(["run", *command]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("spikecl_hardware: ") and message in err and err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "walk",
        "run p.h5",
        "run p.h5 x.npy --backend chip",
        "run p.h5 x.npy --states u,w",
        "run p.h5 x.npy --limit 0",
        "run p.h5 x.npy --limit soon",
        "run p.h5 x.npy --limit nan",
    ],
)
def test_what_is_no_command_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert "usage: python -m spikecl_hardware" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(files, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("spikecl_hardware.__main__.emulate", interrupted)
    assert main(["run", "p.h5", "x.npy"]) == 130


def test_set_up_says_where_lava_lies(installed, capsys):
    assert main(["setup"]) == 0
    assert capsys.readouterr().out == f"{installed}\n"


def test_the_doctor_as_a_process_without_lava(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKECL_LAVA", str(tmp_path / "nowhere"))
    monkeypatch.delenv("SPIKECL_LAVA_PYTHON", raising=False)
    command = [sys.executable, "-m", "spikecl_hardware", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.endswith("wrong: lava 0.10.0\n")
    assert done.stderr == ""


def test_the_command_line_needs_no_framework():
    code = "import spikecl_hardware.__main__, sys; print({'torch', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
