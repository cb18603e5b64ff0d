"""Archives of N-MNIST in the official format, written event by event."""

from __future__ import annotations

import dataclasses
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.data import Frames, fetch, library, load, nmnist, verify
from spikecl.data.catalogue import CATALOGUE
from spikecl.data.recordings import NMNIST
from spikecl.errors import DataError

EVENT = st.tuples(st.integers(0, 33), st.integers(0, 33), st.booleans(), st.integers(0, 2**23 - 1))


def packed(events):
    """40 bits an event: column, row, polarity, time."""
    bits = "".join(f"{x:08b}{y:08b}{int(p):01b}{t:023b}" for x, y, p, t in events)
    return int("1" + bits, 2).to_bytes(len(events) * 5 + 1, "big")[1:]


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(EVENT, max_size=8).map(lambda events: sorted(events, key=lambda e: e[3])))
def test_every_bit_is_where_it_belongs(events):
    decoded = nmnist.decode(np.frombuffer(packed(events), np.uint8))
    assert list(zip(*(column.tolist() for column in decoded))) == [
        (t, x, y, int(p)) for x, y, p, t in events
    ]


def test_row_240_moves_the_clock_and_is_no_event():
    events = [(1, 2, 1, 100), (0, 240, 0, 5), (3, 4, 0, 50), (0, 240, 1, 9), (0, 240, 0, 9),
              (5, 6, 1, 10)]  # fmt: skip
    t, x, y, p = nmnist.decode(np.frombuffer(packed(events), np.uint8))
    assert t.tolist() == [100, 50 + 8192, 10 + 3 * 8192]
    assert (x.tolist(), y.tolist(), p.tolist()) == ([1, 3, 5], [2, 4, 6], [1, 0, 1])


def test_events_out_of_order_are_sorted_and_ties_stay():
    events = [(1, 0, 0, 30), (2, 0, 0, 10), (3, 0, 0, 30), (4, 0, 1, 10)]
    t, x, _, p = nmnist.decode(np.frombuffer(packed(events), np.uint8))
    assert (t.tolist(), x.tolist(), p.tolist()) == ([10, 10, 30, 30], [2, 4, 1, 3], [0, 1, 0, 0])


RECORDINGS = {  # file → events; the numbers are those of the images
    "Train/1/00002.bin": [(5, 6, 1, 0), (7, 8, 0, 300)],
    "Train/0/00001.bin": [(33, 33, 1, 250_000)],
    "Train/1/00010.bin": [],
    "Train/0/00003.bin": [(0, 0, 0, 1), (0, 240, 0, 0), (1, 1, 1, 2)],
    "Test/1/00001.bin": [(9, 9, 1, 12)],
    "Test/0/00002.bin": [(9, 8, 0, 12), (9, 8, 0, 13)],
}


def zipped(split, recordings=RECORDINGS):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{split}/", b"")
        for name, events in recordings.items():
            if name.startswith(split):
                archive.writestr(name, packed(events))
    return buffer.getvalue()


@pytest.fixture
def archives(tmp_path):
    paths = {split.lower(): tmp_path / f"{split}.zip" for split in ("Train", "Test")}
    for split, path in paths.items():
        path.write_bytes(zipped(split.capitalize()))
    return paths


def test_recordings_come_in_the_order_of_the_images(archives):
    arrays = nmnist.read(archives)
    assert arrays["y_train"].tolist() == [0, 1, 0, 1]
    assert arrays["offset_train"].tolist() == [0, 1, 3, 5, 5]
    assert arrays["t_train"].tolist() == [250_000, 0, 300, 1, 2 + 8192]
    assert arrays["x_train"].tolist() == [33, 5, 7, 0, 1]
    assert arrays["yy_train"].tolist() == [33, 6, 8, 0, 1]
    assert arrays["p_train"].tolist() == [1, 1, 0, 0, 1]
    assert arrays["y_test"].tolist() == [1, 0]
    assert arrays["offset_test"].tolist() == [0, 1, 3]


def test_damaged_archives_are_named(archives):
    path = archives["test"]
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Test/0/00001.bin", b"1234")
    with pytest.raises(DataError, match="N-MNIST, test: Test/0/00001.bin has 4 bytes, no multiple"):
        nmnist.read(archives)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Test/readme.txt", b"hello")
    with pytest.raises(DataError, match="N-MNIST, test: has no .bin files"):
        nmnist.read(archives)
    for content in (whole[: len(whole) // 2], b"<html>", zipped("Test", {"Test/a.bin": []})):
        path.write_bytes(content)
        with pytest.raises(DataError, match="N-MNIST, test: not a whole archive"):
            nmnist.read(archives)


def test_fetch_load_and_verify(server, files, cache, monkeypatch):
    for split in ("Train", "Test"):
        files[NMNIST.remote[split.lower()]] = zipped(split)
    small = dataclasses.replace(NMNIST, train=4, test=2, md5={}, class_names=("zero", "one"))
    monkeypatch.setattr(library, "CATALOGUE", {**CATALOGUE, "nmnist": small})
    row = fetch("nmnist", base_url=server.url, progress=False)
    assert sorted(server.asked) == sorted(NMNIST.remote.values())
    assert (row.train, row.test, row.shape, row.classes) == (4, 2, (34, 34, 2), 2)
    data = load("nmnist", frames=Frames(steps=1, width_ms=1000.0))
    assert (data.name, data.class_names) == ("nmnist", ("zero", "one"))
    assert data.x_train.sum((1, 2, 3, 4)).tolist() == [1, 2, 2, 0]
    assert data.x_test[1, 0, 8, 9].tolist() == [2, 0]
    assert (verify("nmnist").ok, server.asked[2:]) == (None, [])


def test_a_file_of_that_name_has_to_hold_events(cache, arrays, tmp_path):
    arrays = {**arrays, "x_train": np.zeros((6, 2, 3)), "x_test": np.zeros((3, 2, 3))}
    np.savez(tmp_path / "nmnist.npz", **arrays)
    with pytest.raises(DataError, match="inputs of 3 classes, but nmnist has events of 10"):
        load("nmnist", data_dir=tmp_path)
