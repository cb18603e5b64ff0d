"""N-MNIST: a zip archive for each split, a folder for each digit, a file for each recording.

An event has 40 bits: 8 of column, 8 of row, 1 of polarity (1 is on), 23 of time in microseconds,
high bits first. Row 240 marks no event but an overflow of the clock: 8,192 us are added to all that
follows (G. Orchard, github.com/gorchard/event-Python). A file is named by the number of its image
in MNIST, from 1.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from spikecl.data.checks import Array
from spikecl.errors import DataError

BYTES = 5
OVERFLOW_ROW, OVERFLOW_US = 240, 1 << 13


def read(files: Mapping[str, Path]) -> dict[str, Array]:
    """Return the flat events of both splits in the order of MNIST; each recording in time order."""
    return {
        f"{name}_{split}": array
        for split in ("train", "test")
        for name, array in _read(files[split], split).items()
    }


def _read(path: Path, split: str) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            files = sorted(
                (i for i in archive.infolist() if i.filename.endswith(".bin")), key=_number
            )
            if not files:
                raise _wrong(split, "has no .bin files")
            return _fill(archive, files, split)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise _wrong(split, f"not a whole archive of N-MNIST: {error}") from None


def _fill(archive: zipfile.ZipFile, files: list[zipfile.ZipInfo], split: str) -> dict[str, Array]:
    """Decode one file after the other into arrays that are there from the start."""
    most = sum(info.file_size for info in files) // BYTES
    t = np.empty(most, np.uint32)
    x, y, p = (np.empty(most, np.uint8) for _ in range(3))
    offset = np.zeros(len(files) + 1, np.int64)
    for i, info in enumerate(files):
        content = np.frombuffer(archive.read(info), np.uint8)
        if len(content) % BYTES:
            raise _wrong(split, f"{info.filename} has {len(content)} bytes, no multiple of {BYTES}")
        decoded = decode(content)
        part = slice(offset[i], offset[i] + len(decoded[0]))
        t[part], x[part], y[part], p[part] = decoded
        offset[i + 1] = part.stop
    labels = np.array([int(PurePosixPath(info.filename).parent.name) for info in files], np.uint8)
    n = offset[-1]
    return {"t": t[:n], "x": x[:n], "yy": y[:n], "p": p[:n], "offset": offset, "y": labels}


def decode(content: Array) -> tuple[Array, Array, Array, Array]:
    """Return time, column, row and polarity of the events in the bytes of a file."""
    x, y, high, middle, low = content.reshape(-1, BYTES).T
    t = (high & 127).astype(np.int64) << 16 | middle.astype(np.int64) << 8 | low
    marks = y == OVERFLOW_ROW
    t += np.cumsum(marks) * OVERFLOW_US
    kept = np.flatnonzero(~marks)
    kept = kept[np.argsort(t[kept], kind="stable")]
    return t[kept], x[kept], y[kept], high[kept] >> 7


def _number(info: zipfile.ZipInfo) -> int:
    return int(PurePosixPath(info.filename).stem)


def _wrong(split: str, reason: str) -> DataError:
    return DataError(
        f"N-MNIST, {split}: {reason}; needed: the official zip archive; download it again"
    )
