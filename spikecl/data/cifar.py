"""The binary version of CIFAR: records of labels and pixels in a gzipped tar archive.

A record is one byte of label (CIFAR-100: two, the coarse and the fine one, of which the fine one
counts), then 3,072 bytes of pixels: 32 x 32 of red, of green, of blue, row by row (A. Krizhevsky,
https://www.cs.toronto.edu/~kriz/cifar.html). The Python version holds pickles and is not read.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spikecl.data.checks import Array
from spikecl.errors import DataError

PIXELS = (3, 32, 32)
BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))


def read_10(files: Mapping[str, Path]) -> dict[str, Array]:
    """Return CIFAR-10 from its archive: five training files, one test file."""
    return _read(files["archive"], BATCHES, ("test_batch.bin",), labels=1)


def read_100(files: Mapping[str, Path]) -> dict[str, Array]:
    """Return CIFAR-100 with its 100 fine classes from its archive."""
    return _read(files["archive"], ("train.bin",), ("test.bin",), labels=2)


def _read(
    path: Path, train: Sequence[str], test: Sequence[str], *, labels: int
) -> dict[str, Array]:
    found: dict[str, Array] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                stream = archive.extractfile(member) if name in (*train, *test) else None
                if stream is not None:
                    found[name] = np.frombuffer(stream.read(), np.uint8)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _wrong(path, f"not a whole gzipped tar archive: {error}") from None
    arrays = {}
    for split, names in (("train", train), ("test", test)):
        if missing := [name for name in names if name not in found]:
            raise _wrong(path, f"has no {' and '.join(missing)}")
        records = [_records(found[name], labels, path, name) for name in names]
        arrays[f"x_{split}"] = np.concatenate([x for x, _ in records])
        arrays[f"y_{split}"] = np.concatenate([y for _, y in records])
    return arrays


def _records(content: Array, labels: int, path: Path, name: str) -> tuple[Array, Array]:
    size = labels + int(np.prod(PIXELS))
    if len(content) % size:
        raise _wrong(path, f"{name} has {len(content)} bytes, no multiple of {size}")
    rows = content.reshape(-1, size)
    return rows[:, labels:].reshape(-1, *PIXELS).transpose(0, 2, 3, 1), rows[:, labels - 1]


def _wrong(path: Path, reason: str) -> DataError:
    return DataError(f"{path.name}: {reason}; needed: the binary version; download it again")
