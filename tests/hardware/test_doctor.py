"""The known answer, computed again by a loop; and that the doctor sees what is wrong."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from programs import loop
from spikecl_hardware import doctor
from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.emulator import STATES, emulate


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("SPIKECL_LAVA", str(tmp_path / "nowhere"))
    monkeypatch.delenv("SPIKECL_LAVA_PYTHON", raising=False)


def test_the_known_answer_is_right():
    found = loop(doctor.program(), doctor.inputs())
    for name, arrays in found.items():
        for key, array in zip(("spikes", *STATES), arrays):
            for sample in range(2):
                assert (array[:, sample] == doctor.ANSWER[key][name]).all()


def test_the_known_answer_is_no_trivial_one():
    for rows in doctor.SPIKES.values():
        assert (np.array(rows).sum(0) > 0).all()
        assert 0.2 < np.mean(rows) < 0.8
    for states in (doctor.CURRENTS, doctor.MEMBRANES):
        assert all(min(map(min, rows)) < 0 < max(map(max, rows)) for rows in states.values())


@pytest.mark.parametrize("key", doctor.ANSWER)
def test_any_other_number_is_seen(key):
    right = emulate(doctor.program(), doctor.inputs(), states=STATES)
    assert doctor.difference(right) is None
    part = right.spikes if key == "spikes" else {n: s[key] for n, s in right.states.items()}
    part["out"][4, 1, 1] += 5
    known = doctor.ANSWER[key]["out"][4][1]
    assert doctor.difference(right) == (
        f"{key} of 'out', neuron 1: {known + 5} at step 4 of sample 1, {known} is right"
    )


def test_a_record_that_is_too_short_is_seen():
    right = emulate(doctor.program(), doctor.inputs(), states=STATES)
    short = dataclasses.replace(right, spikes={n: s[:-1] for n, s in right.spikes.items()})
    assert doctor.difference(short) == "spikes of 'maps' has shape (8, 2, 2, 1, 2)"


def test_every_backend_is_well(installed, capsys):
    assert doctor.main(installed.python) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "emulator (numpy)",
        "lava 0.10.0 (Loihi1SimCfg, fixed_pt)",
        "lava 0.10.0 (Loihi2SimCfg, fixed_pt)",
        "ok",
    ]


def test_a_lava_that_is_missing_is_an_error_that_says_what_to_do(nowhere, capsys):
    assert doctor.main(sys.executable) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("emulator (numpy): ok (")
    assert lines[1].startswith("lava 0.10.0: no Lava in")
    assert "python -m spikecl_hardware setup" in lines[1]
    assert lines[2:] == ["wrong: lava 0.10.0"]


def test_a_lava_that_fails_and_one_that_errs_are_named(monkeypatch, capsys):
    place = lava.Installation("python", "3.10.1", "0.10.0", lava.Path("/x"), None, False)
    monkeypatch.setattr(lava, "find", lambda python: place)

    def run(program, inputs, *, config, **options):
        if config == "Loihi1SimCfg":
            raise lava.LavaError("Lava ended with status 1:\n  deep\nImportError: no asteval")
        record = emulate(program, inputs, states=STATES)
        record.states["out"]["v"][0, 0, 0] = 7
        return record

    monkeypatch.setattr(lava, "run", run)
    assert doctor.main() == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "lava 0.10.0 (Loihi1SimCfg, fixed_pt): Lava ended with status 1: ImportError: no asteval",
        "lava 0.10.0 (Loihi2SimCfg, fixed_pt): "
        "v of 'out', neuron 0: 7 at step 0 of sample 0, -800 is right",
        "wrong: lava 0.10.0 (Loihi1SimCfg, fixed_pt), lava 0.10.0 (Loihi2SimCfg, fixed_pt)",
    ]
