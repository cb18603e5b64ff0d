from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.data import npz
from spikecl.errors import DataError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.npz"


def refused(path, says):
    with pytest.raises(DataError, match=says) as caught:
        npz.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Trap:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes_and_leaves_the_rest(path, arrays, write):
    write(path, **arrays, classes=np.array(["a", "b", "c"]), other=np.zeros(9))
    read = npz.read(path)
    assert set(read) == {*arrays, "classes"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_reads_what_the_arrays_mean(path, arrays):
    np.savez(path, **arrays, temporal=np.array(True), step_ms=np.array(5.0))
    read = npz.read(path)
    assert (bool(read["temporal"]), float(read["step_ms"])) == (True, 5.0)
    np.savez(path, **arrays, temporal=np.array([{}], object))
    refused(path, "temporal holds pickled Python objects")


def test_objects_in_arrays_that_are_not_needed_are_never_touched(path, arrays):
    np.savez(path, **arrays, extra=np.array([{}], object), classes=np.array([{}], object))
    assert set(npz.read(path)) == set(arrays)


def test_headers_say_what_the_arrays_are(path, arrays):
    np.savez(path, **arrays)
    found = npz.headers(path)
    assert {n: (h.shape, h.dtype) for n, h in found.items()} == {
        n: (a.shape, a.dtype) for n, a in arrays.items()
    }


def test_pickled_array(path, arrays):
    np.savez(path, **{**arrays, "x_train": np.array([Trap()], object)})
    refused(path, "x_train holds pickled Python objects")


def test_pickled_array_behind_a_clean_one_of_the_same_name(path, arrays, tmp_path):
    clean, trap = tmp_path / "clean.npz", tmp_path / "trap.npy"
    np.savez(clean, **arrays)
    np.save(trap, np.array([Trap()], object))
    with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(clean) as source:
        archive.write(trap, "x_train")
        for member in source.namelist():
            archive.writestr(member, source.read(member))
    refused(path, "is damaged .Object arrays cannot be loaded")


def test_pickle_file(path):
    path.write_bytes(pickle.dumps({"x_train": 1}))
    refused(path, "is a pickle; allowed: an .npz")


def test_single_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused(path, r"is a single \.npy array")


def test_text_and_empty_file(path):
    path.write_text("x_train,y_train\n")
    refused(path, "is no zip archive")
    path.write_bytes(b"")
    refused(path, "is empty")


def test_zip_of_something_else(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "is damaged")


def test_events_and_missing_arrays_name_the_file(path, arrays):
    np.savez(path, **arrays, offset_train=np.arange(3), t_train=np.arange(3))
    refused(path, "holds events")
    np.savez(path, x_train=arrays["x_train"])
    refused(path, "y_train and x_test and y_test missing, found x_train")


def test_missing_file_and_folder(path):
    refused(path, "cannot read .*No such file")
    path.mkdir()
    refused(path, "cannot read .*Is a directory")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(path, arrays, write, share):
    write(path, **arrays)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "is damaged .it ends too early.")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_altered_byte_gives_anything_but_the_arrays_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("altered") / "mine.npz"
    x, y = np.arange(12, dtype=np.uint8).reshape(3, 4), np.arange(3)
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        read = npz.read(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)


def test_save_is_read_back_and_leaves_one_file(path, arrays):
    npz.save(path, arrays)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    np.testing.assert_array_equal(npz.read(path)["x_train"], arrays["x_train"])


def test_failed_save_keeps_the_old_file_and_leaves_nothing_else(path, arrays, monkeypatch):
    npz.save(path, arrays)
    old = path.read_bytes()

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match=r"cannot write .*No space left"):
        npz.save(path, arrays)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == old
