"""The IDX format of the MNIST family: a short header and unsigned bytes, gzipped.

Bytes 0, 0, 8 (the code for unsigned bytes), the number of axes, one big-endian uint32 for the size
of each axis, then the values in C order (Y. LeCun, C. Cortes, C. Burges, "The MNIST database").
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spikecl.data.checks import Array
from spikecl.errors import DataError

_UNSIGNED_BYTES = 8


def read_all(files: Mapping[str, Path]) -> dict[str, Array]:
    """Return the array of each file."""
    return {name: read(path) for name, path in files.items()}


def read(path: Path) -> Array:
    """Return the uint8 array of a gzipped IDX file.

    Raises:
        DataError: The file is no gzip, no IDX of unsigned bytes, or shorter or longer than its
            header says.
    """
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _wrong(path, f"not a whole gzip file: {error}") from None
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTES)):
        raise _wrong(path, f"starts with {content[:4].hex(' ') or 'nothing'}, not 00 00 08")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise _wrong(path, "ends inside its header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise _wrong(path, f"has {len(content) - start} values, its header says {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _wrong(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path.name}: {reason}; needed: gzipped IDX of unsigned bytes; download it again"
    )
