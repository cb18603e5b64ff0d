"""The sets in time: what the page of the documentation says of them, and the real files."""

from __future__ import annotations

import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from spikecl.data import Frames, catalogue_rows, fetch, library, load, verify
from spikecl.data.catalogue import CATALOGUE
from spikecl.data.recordings import BRAILLE
from spikecl.errors import DataError

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_braille_is_explained_wherever_it_is_missed(cache, monkeypatch):
    for call in (load, fetch, verify):
        with pytest.raises(DataError, match="pickles, which can run any code.*braille.npz"):
            call("braille")
    assert catalogue_rows()[-2].note == "not here; no download, see the documentation"
    assert not cache.exists()


def test_the_lines_of_the_page_make_braille(cache, tmp_path, monkeypatch):
    block = r"```{code-block} python\n(import numpy as np\nimport pandas.*?)```"
    (lines,) = re.findall(block, PAGE.read_text("utf-8"), re.DOTALL)
    silent = [[[], []] for _ in range(12)]
    once = [*silent[:3], [[0.0, 0.0149], [1.279, 1.28]], *silent[4:]]  # taxel 3, on and off
    events = [once if repetition else silent for _ in range(27) for repetition in range(5)]
    letters = [letter for letter in BRAILLE.class_names for _ in range(5)]
    table = {"letter": letters, "events": events}
    pandas = types.SimpleNamespace(read_pickle=lambda path: table, DataFrame=lambda table: table)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    data = load("braille", data_dir=tmp_path)
    assert (data.name, data.temporal, data.step_ms, data.peak) == ("braille", True, 5.0, 1.0)
    assert (data.x_train.shape, data.x_test.shape) == ((108, 256, 12), (27, 256, 12))
    assert data.class_names == BRAILLE.class_names
    assert np.argwhere(data.x_test[0]).tolist() == [[0, 3], [2, 3], [255, 3]]
    assert not data.x_train[0].any()
    assert data.y_test.tolist() == list(range(27))


def test_frames_of_what_is_no_events_are_refused(cache, tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(library, "download", lambda *_, **__: pytest.fail("downloaded"))
    np.savez(tmp_path / "mine.npz", **arrays)
    for name in ("digits", "mnist", "braille", "mine"):
        with pytest.raises(DataError, match=f"frames are given, but '{name}' holds no events"):
            load(name, data_dir=tmp_path, frames=Frames())


REAL = {
    "cifar10": ("cifar10_11k", (9000, 32, 32, 3), 2000, None),
    "cifar100": ("cifar100_24k", (20000, 32, 32, 3), 4000, None),
    "braille": ("braille7", (929, 256, 12), 229, 5.0),
    "fsdd": ("fsdd_mel40", (2700, 100, 40), 300, 10.0),
}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_subsets_are_found_under_the_name_of_the_set(real_folder, name):
    subset, shape, tests, step_ms = REAL[name]
    if os.path.exists(real_folder / f"{name}.npz"):
        pytest.skip("the full set is here")
    data = load(name, data_dir=real_folder)
    assert data == load(subset, data_dir=real_folder)
    assert verify(name, data_dir=real_folder).ok is True
    assert (data.name, data.x_train.shape, len(data.x_test)) == (subset, shape, tests)
    assert (data.temporal, data.step_ms) == (step_ms is not None, step_ms)
    with np.load(real_folder / f"{subset}.npz") as stored:
        if "classes" in stored:  # the file names its classes: the catalogue has to agree
            assert data.class_names == tuple(stored["classes"].tolist())
    assert len(data.class_names) == data.classes
    row = {row.name: row for row in catalogue_rows(real_folder)}[name]
    assert (row.train, row.test, row.shape) == (shape[0], tests, shape[1:])
    assert (row.classes, row.found) == (data.classes, real_folder / f"{subset}.npz")
    assert row.note == CATALOGUE[name].variants[1].note
    counts = np.bincount(data.y_train)
    if name != "braille":
        assert len(set(counts.tolist())) == 1  # as many of every class


@pytest.mark.data
def test_every_real_file_is_of_the_catalogue(real_folder):
    known = {v.file for entry in CATALOGUE.values() for v in entry.variants}
    assert {path.name for path in real_folder.glob("*.npz")} <= known
