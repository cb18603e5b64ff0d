"""The commands export, simulate and hardware."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from spikecl_hardware.loihi import lava

from spikecl import cli
from spikecl.experiments import parse_config, run_config
from spikecl.records import RunRecord

SPIKECL = str(Path(sys.executable).with_name("spikecl"))
LEAKY = {"model": "lif", "beta": 0.9, "reset": "zero"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("cli"), np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.integers(0, 200, (3, 4, 4))[y] + rng.integers(0, 56, (120, 4, 4))).astype(np.uint8)
    np.savez(path / "toy.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return path


@pytest.fixture(scope="module")
def make(folder):
    """Return a function from changes to a small finished run in ``runs``."""

    def make(**changes):
        table = {
            "data": {"name": str(folder / "toy.npz")},
            "stream": {"experiences": 1},
            "network": {"hidden": [12], "spiking_mlp": {"neuron": LEAKY}},
            "encoding": {"steps": 6},
            "optimiser": {"name": "adam", "lr": 0.03},
            "train": {"epochs": 2, "batch": 10},
        }
        for section, values in changes.items():
            table[section] = {**table.get(section, {}), **values}
        return run_config(parse_config(table), runs_dir=folder / "runs").record

    return make


@pytest.fixture(scope="module")
def record(make):
    return make()


@pytest.fixture
def spikecl(capsys, monkeypatch, folder):
    """Return a function that runs a command in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)
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
def program(spikecl, record):
    code, out, err = spikecl("export", record.id, "--to", "loihi", "--json")
    assert (code, err) == (0, "")
    return Path(json.loads(out)["path"])


def refused(result, code, *words):
    """A refusal: its code, nothing on standard output, one line on standard error."""
    assert (result[0], result[1]) == (code, ""), result
    lines = result[2].splitlines()
    assert len(lines) == 1 and lines[0].startswith("spikecl: "), result[2]
    assert "--debug" not in lines[0] and "Traceback" not in lines[0]
    for word in words:
        assert word in lines[0], lines[0]


def files(folder):
    return {p for p in folder.rglob("*") if p.is_file()}


def test_export_shows_layers_cores_and_files(spikecl, record):
    code, out, err = spikecl("export", record.id[:12], "--to", "loihi")
    assert (code, err) == (0, "")
    place = f"runs/{record.id}/export/{record.id}"
    for text in ("hidden1", "readout", "6 steps", "the answer 2 later", f"graph: {place}.nir"):
        assert text in out
    assert out.splitlines()[-1] == f"file: {place}.h5"
    assert spikecl("export", record.id) == (0, f"file: {place}.nir\n", "")


def test_export_json_and_output(spikecl, record, tmp_path):
    path = tmp_path / "new" / "p.h5"
    code, out, err = spikecl(
        "export", record.path, "--to", "loihi", "--output", path, "--weight-bits", 5, "--json"
    )
    told = json.loads(out)
    assert (code, err, told["path"]) == (0, "", str(path)) and path.is_file()
    assert [row["layer"] for row in told["layers"]] == ["hidden1", "readout"]
    assert {p.name for p in path.parent.iterdir()} == {"p.h5", "p.nir"}


def test_simulate_shows_accuracy_operations_and_energy(spikecl, program, record):
    code, out, err = spikecl("simulate", program, "--backend", "torch", "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["rows"]
    assert row["accuracy"] == pytest.approx(record.matrix()[-1][0])
    assert spikecl("simulate", program.with_suffix(".nir"), "--backend", "torch")[0] == 0
    code, out, err = spikecl("simulate", program, "--compare", "torch,emulator", "--samples", 50)
    assert (code, err) == (0, "")
    for text in ("torch", "emulator", "task0, first samples, against torch", "estimate:", "Loihi"):
        assert text in out


def test_simulate_keeps_records_and_the_report_shows_them(spikecl, program, record, tmp_path):
    code, out, err = spikecl(
        "simulate", program, "--compare", "torch,emulator", "--states", "u,v", "--json",
        "--output", tmp_path / "records", "--sets", "task0",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(program.with_name("simulation.json").read_text())
    with np.load(tmp_path / "records.npz") as file:
        assert file["task0/emulator/hidden1/v"].shape == (8, 50, 12)
    page = tmp_path / "r.html"
    assert spikecl("report", record.id, "--output", page)[0] == 0
    text = page.read_text()
    assert "<summary>Hardware</summary>" in text and program.name in text


@pytest.mark.parametrize("to", ["loihi", "netx"])
def test_fine_tuning_makes_a_file_of_the_kind_that_was_asked_for(spikecl, make, monkeypatch, to):
    record = make(encoding={"name": "rate", "steps": 4})
    written = []
    monkeypatch.setattr(
        "spikecl_hardware.loihi.netx.save", lambda program, path: written.append(path)
    )
    code, out, err = spikecl("export", record.id, "--to", to, "--fine-tune", 1, "--json")
    path = Path(json.loads(out)["path"])
    suffix = {"loihi": ".h5", "netx": ".net"}[to]
    assert (code, err, path.name) == (0, "", f"{record.id}-tuned{suffix}")
    assert written == ([path] if to == "netx" else [])
    if to == "loihi":
        assert spikecl("simulate", path, "--samples", 5)[0] == 0
        refused(spikecl("simulate", path, "--backend", "torch"), 2, "trained as integers")


EXPORTS = [
    (("--weight-bits", 9), 2, "weight_bits=9", "1 to 8"),
    (("--message-bits", 1), 2, "message_bits=1", "2 to 24"),
    (("--convolutions", "some"), 2, "convolutions='some'", "shared"),
    (("--calibrate", -1), 2, "calibrate=-1"),
    (("--search", "--calibrate", 0), 2, "calibration data"),
    (("--chip", "loihi3"), 2, "chip 'loihi3'; loihi1, loihi2"),
    (("--chip", "loihi1"), 2, "Loihi 1 has binary ones"),
    (("--chips", 0), 2, "cores: 2 in all"),
    (("--fine-tune", -1), 2, "epochs=-1"),
    (("--fine-tune", 1, "--to", "nir"), 2, "--fine-tune", "--to loihi"),
    (("--output", "."), 2, "is a folder"),
    (("--output", "x.nir"), 2, "x.nir", "has to be called *.h5"),
    (("--output", "toy.npz/x.h5"), 1, "cannot write toy.npz/x."),
    (("--data-dir", "nowhere"), 2, "--data-dir", "nowhere"),
]


@pytest.mark.parametrize("case", EXPORTS, ids=lambda case: " ".join(map(str, case[0])))
def test_export_refuses(spikecl, record, folder, case):
    before = files(folder)
    refused(spikecl("export", record.id, "--to", "loihi", *case[0]), *case[1:])
    assert files(folder) == before


RUNS = {
    "soft reset": ({"network": {"spiking_mlp": {"neuron": {"model": "lif"}}}}, "reset='zero'"),
    "adaptation": ({"network": {"spiking_mlp": {"neuron": {"model": "alif"}}}}, "(ALIF)"),
    "maximum": (
        {"network": {"name": "spiking_conv", "spiking_conv": {"channels": [2], "kernel": 3}}},
        "maximum pooling",
    ),
    "whole": (
        {"network": {"spiking_mlp": {"neuron": {"model": "loihi"}, "gain": 100.0}}},
        "input that is no spikes",
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_export_names_the_layer_that_it_cannot_write(spikecl, make, case):
    change, told = RUNS[case]
    if case == "maximum":
        change["network"]["spiking_conv"]["neuron"] = LEAKY
        change["network"]["hidden"] = []
    record = make(**change)
    refused(spikecl("export", record.id, "--to", "loihi"), 2, "'", told)
    assert not (record.path / "export").exists()


def test_export_of_other_runs(spikecl, make, record, tmp_path):
    refused(spikecl("export", "nothing"), 2, "no run 'nothing' in runs")
    several = make(stream={"experiences": 2})
    refused(
        spikecl("export", several.id, "--to", "loihi", "--fine-tune", 1),
        2,
        "learned 2 experiences",
    )
    for name, change, told in (
        ("unfinished", {"status": "interrupted"}, "not finished"),
        ("python", {"config": None}, "made from Python objects"),
    ):
        copy = RunRecord(tmp_path / name)
        copy.path.mkdir()
        for path in record.path.glob("*.json"):
            if name != "unfinished" or path.name != "summary.json":
                (copy.path / path.name).write_bytes(path.read_bytes())
        (copy.path / "run.json").write_text(json.dumps({**record.run, **change}))
        refused(spikecl("export", copy.path), 1, told)


SIMULATIONS = [
    (("--backend", "loihi"), 2, "torch, emulator, lava, brian2 are allowed"),
    (("--compare", ","), 2, "torch, emulator, lava, brian2 are allowed"),
    (("--sets", "task9"), 2, "there are task0"),
    (("--samples", 0), 2, "samples=0"),
    (("--states", "i"), 2, "u, v are allowed"),
    (("--device", "tpu"), 2, "cpu or cuda"),
    (("--data", "none.npz"), 2, "no file none.npz"),
    (("--output", "."), 2, "is a folder"),
    (("--backend", "lava", "--lava-python", "/nonexistent"), 2, "no Python '/nonexistent'"),
    (("--backend", "lava", "--config", "Loihi9"), 2, "Loihi2SimCfg"),
]


@pytest.mark.parametrize("case", SIMULATIONS, ids=lambda case: " ".join(map(str, case[0])))
def test_simulate_refuses(spikecl, program, folder, case):
    before = files(folder)
    refused(spikecl("simulate", program, *case[0]), *case[1:])
    assert files(folder) == before


def test_simulate_refuses_other_files_and_machines(spikecl, program, monkeypatch, tmp_path):
    refused(spikecl("simulate", "none.h5"), 2, "no file none.h5")
    refused(spikecl("simulate", "toy.npz"), 2, "toy.npz", "no HDF5 file")
    refused(spikecl("simulate", program.with_suffix(".nir")), 2, "graph of floats")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(program.read_bytes()[:-999])
    refused(spikecl("simulate", cut), 2, "cut short")
    cut.write_bytes(program.read_bytes())
    refused(spikecl("simulate", cut, "--compare", "emulator,torch"), 2, "is missing")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(spikecl("simulate", program, "--device", "cuda"), 2, "no GPU", "use 'cpu'")


def test_results_are_shown_even_if_they_cannot_be_kept(spikecl, program):
    code, out, err = spikecl(
        "simulate", program, "--samples", 5, "--json", "--output", "toy.npz/records.npz"
    )
    assert code == 1 and len(json.loads(out)["rows"]) == 1
    assert len(err.splitlines()) == 1 and "cannot write toy.npz/records.npz" in err


@pytest.mark.parametrize(
    "arguments",
    [("export", "x", "--to", "onnx"), ("export",), ("simulate",), ("hardware", "nothing")],
)
def test_usage(spikecl, arguments):
    code, out, err = spikecl(*arguments)
    assert (code, out) == (2, "") and "Usage: spikecl" in err and "Traceback" not in err


def test_hardware_setup_says_where_lava_is(spikecl, monkeypatch):
    monkeypatch.setattr(lava, "setup", lambda: "lava 0.10.0 in /somewhere")
    assert spikecl("hardware", "setup") == (0, "lava 0.10.0 in /somewhere\n", "")

    def fail():
        raise lava.LavaError("pip could not install lava-nc==0.10.0:\nno network")

    monkeypatch.setattr(lava, "setup", fail)
    refused(spikecl("hardware", "setup"), 2, "could not install", "no network")


def test_hardware_doctor_ends_with_what_it_found(spikecl, monkeypatch):
    given = []
    monkeypatch.setattr("spikecl_hardware.doctor.main", lambda python: given.append(python) or 3)
    assert spikecl("hardware", "doctor", "--lava-python", "/p")[0] == 3
    assert given == ["/p"]


LAVA = """#!{python}
import json, os, subprocess, sys, time
if sys.argv[1] == "-c":
    found = {{"python": "3.10", "version": "0.10.0", "path": "/", "lacks": [], "board": 0}}
    print(json.dumps(found))
else:
    child = subprocess.Popen(["sleep", "60"])
    with open({told!r} + ".new", "w") as file:
        file.write(f"{{os.getpid()}} {{child.pid}}")
    os.rename({told!r} + ".new", {told!r})
    time.sleep(60)
"""


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c_ends_lava_and_leaves_nothing(program, tmp_path):
    """An interpreter that says it has Lava, and then takes a minute."""
    python, told, scratch = tmp_path / "python", tmp_path / "pids", tmp_path / "tmp"
    scratch.mkdir()
    python.write_text(LAVA.format(python=sys.executable, told=str(told)))
    python.chmod(0o755)
    before = files(program.parent)
    command = [SPIKECL, "simulate", program, "--backend", "lava", "--lava-python", python]
    done = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(scratch)},
        cwd=program.parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        limit = time.monotonic() + 60
        while not told.exists() and time.monotonic() < limit and done.poll() is None:
            time.sleep(0.05)
        pids = [int(pid) for pid in told.read_text().split()]
        assert len(pids) == 2 and all(map(running, pids))
        done.send_signal(signal.SIGINT)
        out, err = done.communicate(timeout=30)
    finally:
        done.kill()
    refused((done.returncode, out, err), 75, "stopped; nothing was written")
    assert not any(map(running, pids))
    assert not [p for p in scratch.iterdir() if "lava" in p.name]
    assert files(program.parent) == before
