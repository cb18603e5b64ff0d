from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import struct

import numpy as np
import pytest

from spikecl.data import catalogue, checked, fetch, library, load, npz, verify
from spikecl.data.download import download
from spikecl.data.images import IDX_FILES, MNIST, NOTMNIST
from spikecl.data.recordings import BRAILLE
from spikecl.errors import DataError


def as_idx(array):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def files(arrays):
    """Official files by name, which a test may change before it downloads."""
    return {IDX_FILES[name]: as_idx(array) for name, array in arrays.items()}


@pytest.fixture
def tiny(arrays):
    """The catalogue entry of the served set."""
    checksum = checked(arrays, "mnist").checksum
    full = dataclasses.replace(MNIST.full, checksum=checksum)
    names = ("a", "b", "c")
    return dataclasses.replace(MNIST, variants=(full,), train=6, test=3, class_names=names)


@pytest.fixture
def known(tiny, monkeypatch):
    """The library with the served set as its only 'mnist'."""
    table = {**catalogue.CATALOGUE, "mnist": tiny}
    monkeypatch.setattr(library, "CATALOGUE", table)
    return table


def refused(entry, folder, url, says):
    with pytest.raises(DataError, match=says) as caught:
        download(entry, folder, base_url=url)
    message = str(caught.value)
    assert "\n" not in message
    assert f"put mnist.npz into {folder}" in message
    assert list(folder.iterdir()) == []  # nothing half-written, no temporary folder


def test_downloads_decodes_verifies_and_keeps_one_file(server, tiny, arrays, tmp_path):
    path = download(tiny, tmp_path / "new" / "cache", base_url=server.url)
    assert sorted(server.asked) == sorted(IDX_FILES.values())
    assert [p.name for p in path.parent.iterdir()] == ["mnist.npz"]
    stored = npz.read(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name], array)


def test_base_url_without_slash(server, tiny, tmp_path):
    assert download(tiny, tmp_path, base_url=server.url.rstrip("/")).exists()


def test_other_content_is_refused(server, tiny, files, arrays, tmp_path):
    files[IDX_FILES["x_train"]] = as_idx(arrays["x_train"] ^ 1)
    refused(tiny, tmp_path, server.url, f"checksum [0-9a-f]{{64}}, expected {tiny.full.checksum}")


def test_a_page_instead_of_a_file_is_refused(server, tiny, files, tmp_path):
    files[IDX_FILES["y_test"]] = b"<html>log in first</html>"
    refused(tiny, tmp_path, server.url, "t10k-labels-idx1-ubyte.gz: not a whole gzip file")


def test_a_transfer_cut_short_is_refused(server, tiny, files, lengths, tmp_path):
    name = IDX_FILES["x_test"]
    lengths[name] = len(files[name])
    files[name] = files[name][:-5]
    refused(tiny, tmp_path, server.url, "cannot download mnist .*t10k-images|ChunkedEncodingError")
    assert server.asked[-1] == name  # the last file asked for: no further transfer was tried


def test_a_missing_file_is_refused(server, tiny, files, tmp_path):
    del files[IDX_FILES["y_train"]]
    refused(tiny, tmp_path, server.url, "HTTP 404 from .*train-labels-idx1-ubyte.gz")


def test_no_network(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    refused(tiny, tmp_path, "http://127.0.0.1:9/", r"cannot download mnist \(ConnectionError from")


def test_an_interrupt_leaves_nothing(server, tiny, tmp_path, monkeypatch):
    import pooch

    def interrupted(self, url, output, _):
        with open(output, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(tiny, tmp_path, base_url=server.url)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(server, tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write into .*Not a directory") as caught:
        download(tiny, tmp_path / "file" / "data", base_url=server.url)
    assert "\n" not in str(caught.value)


def test_without_a_known_checksum_the_sizes_must_agree(server, tmp_path):
    with pytest.raises(DataError, match=r"train, test, shape \(6, 3, \(4, 4\)\), expected \(60000"):
        download(NOTMNIST, tmp_path, base_url=server.url)
    assert list(tmp_path.iterdir()) == []
    small = dataclasses.replace(NOTMNIST, train=6, test=3, shape=(4, 4))
    assert download(small, tmp_path, base_url=server.url).name == "notmnist.npz"


def test_where_an_md5_is_published_the_file_must_have_it(server, tiny, files, tmp_path):
    name = IDX_FILES["x_train"]
    got = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
    right = dataclasses.replace(tiny, md5={"x_train": got})
    assert download(right, tmp_path / "right", base_url=server.url).exists()
    wrong = dataclasses.replace(tiny, md5={"x_train": "0" * 32})
    (tmp_path / "wrong").mkdir()
    says = f"{server.url}{name} has md5 {got}, but {'0' * 32} is published"
    refused(wrong, tmp_path / "wrong", server.url, says)


def test_what_is_a_pickle_is_not_downloaded_but_explained(server, tmp_path):
    with pytest.raises(DataError, match="braille is not downloaded: .*pickles.*numpy.savez") as e:
        download(BRAILLE, tmp_path / "cache", base_url=server.url)
    assert "\n" not in str(e.value)
    assert f"put braille.npz into {tmp_path / 'cache'}" in str(e.value)
    assert server.asked == []
    assert not (tmp_path / "cache").exists()


def test_the_bar_counts_every_byte(server, tiny, files, tmp_path, monkeypatch):
    from rich.progress import Progress

    seen = {}
    stop = Progress.stop

    def look(self):
        seen.update({t.description: (t.completed, t.total) for t in self.tasks})
        stop(self)

    monkeypatch.setattr(Progress, "stop", look)
    download(tiny, tmp_path, base_url=server.url)
    sizes = {f"mnist, {array}": len(files[name]) for array, name in IDX_FILES.items()}
    assert seen == {title: (size, size) for title, size in sizes.items()}


def test_fetch_downloads_once_then_load_and_verify_find_it(server, known, cache):
    row = fetch("mnist", base_url=server.url, progress=False)
    assert (row.found, row.train, row.test, row.note) == (cache / "mnist.npz", 6, 3, "")
    assert fetch("mnist", base_url=server.url) == row
    assert len(server.asked) == 4
    data = load("mnist")
    assert (data.name, data.peak, data.class_names) == ("mnist", 255.0, ("a", "b", "c"))
    assert verify("mnist").ok is True


def test_load_downloads_what_is_missing(server, tiny, known, cache):
    known["mnist"] = dataclasses.replace(tiny, base_url=server.url)
    assert load("mnist").checksum == tiny.full.checksum
    assert os.listdir(cache) == ["mnist.npz"]
