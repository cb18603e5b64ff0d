"""Archives of CIFAR in the official binary format."""

from __future__ import annotations

import dataclasses
import io
import tarfile

import numpy as np
import pytest

from spikecl.data import cifar, npz
from spikecl.data.download import download
from spikecl.data.images import CIFAR10, CIFAR100
from spikecl.errors import DataError

KINDS = {
    "cifar10": (CIFAR10, cifar.read_10, "cifar-10-batches-bin", 1, 10),
    "cifar100": (CIFAR100, cifar.read_100, "cifar-100-binary", 2, 100),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3)).astype(np.uint8)


def members(labels, classes):
    """Content and truth: files of an archive, and the arrays they stand for."""
    y = {"train": np.arange(2 * classes) % classes, "test": np.arange(classes)[::-1]}
    x = {split: images(len(y[split]), seed) for seed, split in enumerate(y)}
    records = {
        split: [
            bytes([7] * (labels - 1) + [label])  # 7: the coarse label
            + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(x[split], y[split].tolist())
        ]
        for split in y
    }
    if labels == 2:
        files = {"train.bin": records["train"], "test.bin": records["test"]}
    else:
        parts = np.array_split(np.arange(2 * classes), 5)
        files = {
            f"data_batch_{i + 1}.bin": [records["train"][k] for k in part]
            for i, part in enumerate(parts)
        }
        files["test_batch.bin"] = records["test"]
    truth = {f"x_{s}": x[s] for s in y} | {f"y_{s}": y[s] for s in y}
    return {name: b"".join(rows) for name, rows in files.items()}, truth


def archive(folder, files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in sorted(files, reverse=True):  # the order in the archive does not count
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    return buffer.getvalue()


@pytest.fixture
def packed(kind, tmp_path):
    """Write an archive of files and return where it lies."""

    def write(files):
        path = tmp_path / "archive.tar.gz"
        path.write_bytes(archive(kind[2], {**files, "readme.html": b"<html>"}))
        return {"archive": path}

    return write


def test_records_become_images_with_colours_last(kind, packed):
    _, read, _, labels, classes = kind
    files, truth = members(labels, classes)
    arrays = read(packed(files))
    assert set(arrays) == set(truth)
    for name, array in truth.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == np.uint8


def test_what_is_missing_or_cut_is_named(kind, packed):
    _, read, _, labels, classes = kind
    files, _ = members(labels, classes)
    name = sorted(files)[0]
    with pytest.raises(DataError, match=f"archive.tar.gz: has no {name}.*download it again"):
        read(packed({n: c for n, c in files.items() if n != name}))
    with pytest.raises(DataError, match=f"{name} has .* bytes, no multiple of {3072 + labels}"):
        read(packed({**files, name: files[name][:-1]}))


@pytest.mark.parametrize("share", [0, 0.01, 0.5])
def test_what_is_no_archive_is_named(kind, packed, share):
    _, read, _, labels, classes = kind
    where = packed(members(labels, classes)[0])
    whole = where["archive"].read_bytes()
    where["archive"].write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="archive.tar.gz: not a whole gzipped tar archive"):
        read(where)


def test_downloads_the_official_archive(kind, server, files, tmp_path):
    entry, _, folder, labels, classes = kind
    content, truth = members(labels, classes)
    files[entry.remote["archive"]] = archive(folder, content)
    small = dataclasses.replace(entry, train=2 * classes, test=classes, md5={})
    path = download(small, tmp_path / "cache", base_url=server.url)
    assert path.name == f"{entry.name}.npz"
    assert server.asked == [entry.remote["archive"]]
    stored = npz.read(path)
    for name, array in truth.items():
        np.testing.assert_array_equal(stored[name], array)
    with pytest.raises(DataError, match="has md5 .*, but .* is published"):
        download(entry, tmp_path / "other", base_url=server.url)
    with pytest.raises(DataError, match=rf"train, test, shape \({2 * classes}, .*, expected"):
        unchecked = dataclasses.replace(entry, md5={})
        download(unchecked, tmp_path / "other", base_url=server.url)
    assert list((tmp_path / "other").iterdir()) == []
