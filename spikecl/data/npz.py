"""Read a user's ``.npz`` without pickle, write one whole or not at all."""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from spikecl.data import checks
from spikecl.data.checks import ARRAYS, Array
from spikecl.errors import DataError

MEANINGS = ("classes", "temporal", "step_ms")  # arrays that say what the four mean

_npy: Any = np.lib.format  # numpy leaves these functions untyped

# What zipfile and numpy raise for members that are cut short, altered, encrypted or absurdly big.
_DAMAGED = (
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of one of its arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read(path: Path) -> dict[str, Array]:
    """Return the four arrays of a file, and ``classes, temporal, step_ms`` where it has them.

    Raises:
        DataError: The file cannot be opened, is no ``.npz``, is truncated or altered, holds
            pickled objects or events, or lacks an array.
    """
    found = headers(path)
    checks.layout(found, str(path))
    return members(path, found, (*ARRAYS, *MEANINGS))


def members(path: Path, found: Mapping[str, Header], names: Iterable[str]) -> dict[str, Array]:
    """Return those of the named arrays that a file has; class names only where they are text.

    Raises:
        DataError: The file is truncated or altered, or an array holds no numbers.
    """
    names = [n for n in names if n in found and (n != "classes" or found[n].dtype.kind == "U")]
    for name in names:
        if name != "classes":
            checks.numeric(found[name].dtype, name, str(path))
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except OSError as error:
        raise _unreadable(path, error) from None
    except _DAMAGED as error:
        raise _damaged(path, error) from None


def headers(path: Path) -> dict[str, Header]:
    """Return name, shape and dtype of every array without reading the values.

    Raises:
        DataError: The file cannot be opened, is no ``.npz`` or is damaged.
    """
    found: dict[str, Header] = {}
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                raise _not_a_zip(path, file.read(8))
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    found[member.removesuffix(".npy")] = _header(stream)
    except OSError as error:
        raise _unreadable(path, error) from None
    except DataError:
        raise
    except _DAMAGED as error:
        raise _damaged(path, error) from None
    return found


def save(path: Path, arrays: dict[str, Array]) -> None:
    """Write arrays under a temporary name, flush and rename, so that no half file is ever seen.

    Raises:
        DataError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; free space or make the folder "
            "writable; nothing half-written was left"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _header(stream: IO[bytes]) -> Header:
    version = _npy.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = _npy.read_array_header_1_0(stream)
    else:
        shape, _, dtype = _npy.read_array_header_2_0(stream)
    return Header(tuple(shape), dtype)


def _not_a_zip(path: Path, start: bytes) -> DataError:
    if start.startswith(b"PK"):
        return _damaged(path, "it ends too early")
    kind = "no zip archive" if start else "empty"
    if start.startswith(b"\x80"):
        kind = "a pickle"
    elif start.startswith(b"\x93NUMPY"):
        kind = "a single .npy array"
    return DataError(
        f"{path} is {kind}; allowed: an .npz with {', '.join(ARRAYS)}; make one with numpy.savez"
    )


def _damaged(path: Path, reason: object) -> DataError:
    line = " ".join(str(reason).split()) or type(reason).__name__
    return DataError(
        f"{path} is damaged ({line[:120]}); needed: a whole .npz; copy or download it again"
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read {path}: {error.strerror or error}; give an .npz file that you may read"
    )
