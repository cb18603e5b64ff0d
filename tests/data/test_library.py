from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from spikecl.data import catalogue_rows, checked, fetch, library, load, verify
from spikecl.data.catalogue import CATALOGUE
from spikecl.errors import DataError


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    return path


def test_unknown_names_suggest_the_nearest(cache):
    with pytest.raises(
        DataError, match="unknown data set 'minst'; did you mean 'mnist'?"
    ) as caught:
        load("minst")
    assert all(name in str(caught.value) for name in CATALOGUE)
    with pytest.raises(DataError, match="unknown data set 'digit'; did you mean 'digits'?"):
        fetch("digit")


@pytest.mark.parametrize("name", ["", "~no-such-user", "a\0b", "x" * 5000])
def test_odd_names_are_unknown(cache, name):
    with pytest.raises(DataError, match="unknown data set"):
        load(name)


def test_a_path_absolute_and_relative_to_here_and_to_the_folders(
    cache, folder, arrays, monkeypatch
):
    np.savez(folder / "mine.npz", **arrays)
    monkeypatch.chdir(folder)
    here = load("mine.npz")
    assert (here.name, here.peak, here.classes) == ("mine", 255.0, 3)
    assert here == load(folder / "mine.npz") == load("./mine.npz")
    monkeypatch.chdir("/")
    assert here == load("mine.npz", data_dir=folder) == load("mine", data_dir=str(folder))
    with pytest.raises(DataError, match=r"no file mine.npz, neither here nor in .*cache"):
        load("mine.npz")


def test_order_is_argument_then_variable_then_cache(cache, tmp_path, arrays, monkeypatch):
    places = [tmp_path / "argument", tmp_path / "variable", cache]
    for count, place in enumerate(places):
        place.mkdir()
        x = np.full((6, 1), count, np.uint8)
        np.savez(place / "mine.npz", **{**arrays, "x_train": x, "x_test": x[:3]})
    monkeypatch.setenv("SPIKECL_DATA", str(places[1]))
    assert load("mine", data_dir=places[0]).x_train[0, 0] == 0
    assert load("mine").x_train[0, 0] == 1
    monkeypatch.delenv("SPIKECL_DATA")
    assert load("mine").x_train[0, 0] == 2


def test_folders_that_do_not_exist_are_named(cache, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="--data-dir.* is .*nowhere, which is no folder"):
        load("digits", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("SPIKECL_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="SPIKECL_DATA is .*gone, which is no folder"):
        catalogue_rows()


def test_a_file_of_the_catalogue_with_other_content_is_refused_with_both_named(
    cache, folder, arrays
):
    np.savez(folder / "mnist.npz", **arrays)
    got, expected = checked(arrays, "mnist").checksum, CATALOGUE["mnist"].full.checksum
    with pytest.raises(
        DataError, match=f"{got}, but mnist has checksum {expected}; .*fetch mnist"
    ) as caught:
        load("mnist", data_dir=folder)
    assert str(folder / "mnist.npz") in str(caught.value)
    row = verify("mnist", data_dir=folder)
    assert (row.ok, row.checksum, row.expected) == (False, got, expected)
    assert load(folder / "mnist.npz").checksum == got  # as data of one's own it may be used


def test_a_damaged_file_is_not_passed_over(cache, folder, arrays):
    cache.mkdir()
    np.savez(cache / "notmnist.npz", **arrays)
    (folder / "notmnist.npz").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match="folder/notmnist.npz is damaged"):
        load("notmnist", data_dir=folder)


def ten_classes():
    x, y = np.arange(20, dtype=np.uint8).reshape(10, 2), np.arange(10)
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y}


def test_where_no_checksum_is_published_it_is_said(cache, folder):
    np.savez(folder / "notmnist.npz", **ten_classes())
    data = load("notmnist", data_dir=folder)
    assert (data.name, data.class_names[0]) == ("notmnist", "A")
    row = verify("notmnist", data_dir=folder)
    assert (row.ok, row.expected) == (None, None)
    assert row.message == f"no published checksum known; got {data.checksum}"


def test_where_no_checksum_is_published_the_classes_must_agree(cache, folder, arrays):
    np.savez(folder / "notmnist.npz", **arrays)
    with pytest.raises(DataError, match="inputs of 3 classes, but notmnist has inputs of 10"):
        load("notmnist", data_dir=folder)


def test_the_full_set_is_preferred_and_the_subset_is_labelled(cache, folder, monkeypatch):
    np.savez(folder / "notmnist_10k.npz", **ten_classes())
    for name in ("notmnist", "notmnist_10k"):
        row = verify(name, data_dir=folder)
        assert (row.name, row.ok) == ("notmnist_10k", False)
    assert catalogue_rows(folder)[3].note.startswith("subset")
    np.savez(folder / "notmnist.npz", **ten_classes())
    assert verify("notmnist", data_dir=folder).name == "notmnist"
    assert verify("notmnist_10k", data_dir=folder).name == "notmnist_10k"


def test_a_subset_is_never_downloaded(cache, monkeypatch):
    monkeypatch.setattr(library, "download", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(
        DataError, match="notmnist_10k is not on this machine .*put notmnist_10k.npz"
    ):
        load("notmnist_10k")


def test_verify_never_downloads(cache, monkeypatch):
    monkeypatch.setattr(library, "download", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(DataError, match="mnist is not on this machine .*spikecl data fetch mnist"):
        verify("mnist")


def test_verify_digits_and_a_users_file(cache, folder, arrays):
    row = verify("digits")
    assert (row.ok, row.found) == (True, None)
    np.savez(folder / "mine.npz", **arrays)
    row = verify(folder / "mine.npz")
    assert (row.ok, row.checksum) == (None, checked(arrays, "mine").checksum)


def test_rows_read_sizes_from_the_files_and_name_what_is_wrong(cache, folder):
    np.savez(folder / "fashion_mnist.npz", **ten_classes())
    (folder / "notmnist.npz").write_text("no zip")
    np.savez(folder / "mnist.npz", other=np.zeros(3))
    digits, mnist, fashion, notmnist = catalogue_rows(folder)[:4]
    assert (digits.note, digits.found, digits.train, digits.test) == ("built in", None, 1442, 355)
    assert (fashion.train, fashion.test, fashion.shape, fashion.note) == (10, 10, (2,), "")
    assert fashion.found == folder / "fashion_mnist.npz"
    assert "no zip archive" in notmnist.note
    assert "wrong layout" in mnist.note


def test_rows_of_what_is_not_here(cache):
    row = catalogue_rows()[1]
    assert (row.name, row.found, row.train, row.shape) == ("mnist", None, 60000, (28, 28))
    assert row.note == "not here; fetch downloads it"
    assert not cache.exists()


def test_fetch_of_what_is_built_in_does_nothing(cache):
    assert fetch("digits").note == "built in"
    assert not cache.exists()


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    assert library.cache_dir() == tmp_path / "spikecl" / "data"


def test_heavy_libraries_are_imported_where_they_are_used():
    code = "import sys, spikecl.data; print(*{'sklearn', 'pooch', 'requests'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_files_are_the_published_ones(real_folder, name):
    data = load(name, data_dir=real_folder)
    assert verify(name, data_dir=real_folder).ok is True
    assert (data.name, data.x_train.shape, data.x_test.shape) == (
        name,
        (60000, 28, 28),
        (10000, 28, 28),
    )
    assert (data.y_train.dtype, data.peak, data.classes) == (np.int64, 255.0, 10)
    if name == "mnist":  # the first labels of the published file
        assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    else:  # balanced by construction
        assert np.bincount(data.y_train).tolist() == [6000] * 10


@pytest.mark.data
def test_real_subset_is_found_under_the_name_of_the_set_and_labelled(real_folder):
    if os.path.exists(real_folder / "notmnist.npz"):
        pytest.skip("the full set is here")
    data = load("notmnist", data_dir=real_folder)
    assert (data.name, data.x_train.shape) == ("notmnist_10k", (7847, 28, 28))
    assert data == load("notmnist_10k", data_dir=real_folder)
    assert verify("notmnist", data_dir=real_folder).ok is True
