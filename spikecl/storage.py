"""State on disk: tensors as safetensors, the rest as JSON, written whole or not at all.

A folder or file is written under a temporary name, flushed to the disk and renamed, so a reader
sees the old state or the new one, never half of either. There is no pickle anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikecl.errors import RunError

State = dict[str, Any]  # nested dictionaries with tensors and JSON values as leaves


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, keys in the order given."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is named."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; is this a run directory?") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove the run and start again") from None


def save_state(folder: Path, state: State) -> None:
    """Write a nested state as ``tensors.safetensors``, ``state.json`` and a checksum of both."""
    from safetensors.torch import save_file

    tensors, values = split(state)
    temporary, aside = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "old"))
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "tensors.safetensors")
        (temporary / "state.json").write_text(json.dumps(values, allow_nan=False) + "\n")
        (temporary / "sha256.txt").write_text(_checksum(temporary) + "\n")
        for part in (*temporary.iterdir(), temporary):
            _flush(part)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.replace(aside)
        temporary.replace(folder)
        _flush(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)


def load_state(folder: Path) -> State:
    """Read what :func:`save_state` wrote; tensors come back in storage of their own.

    A tensor that views the file is aligned by chance, and unaligned matrix products may round
    differently, so every tensor is copied.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not folder.exists() and (aside := folder.with_name(f".{folder.name}.old")).exists():
        folder = aside  # the writer died between its two renames
    try:
        if (folder / "sha256.txt").read_text().strip() != _checksum(folder):
            raise ValueError("its checksum is wrong")
        values = json.loads((folder / "state.json").read_text())
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {folder} is damaged ({error}); delete this folder to resume from an "
            "earlier one"
        ) from None
    return join({name: tensor.clone() for name, tensor in tensors.items()}, values)


def _checksum(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("tensors.safetensors", "state.json"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a nested state into flat tensors (``"a/b/c"``) and nested JSON values."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.items():
            if "/" in key:
                raise ValueError(f"state key {key!r} has a '/', which separates levels; rename it")
            if isinstance(value, Tensor):
                tensors[prefix + key] = value.detach().cpu().contiguous().clone()
            elif isinstance(value, Mapping):
                values[key] = walk(value, f"{prefix}{key}/")
            else:
                values[key] = value
        return values

    return tensors, walk(state, "")


def join(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> State:
    """Undo :func:`split`."""
    state: State = json.loads(json.dumps(values))
    for path, tensor in tensors.items():
        *parents, last = path.split("/")
        node = state
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tensor
    return state


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error that names the path."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place "
            "with --runs-dir; what was saved before is intact"
        ) from None
    except Exception as error:  # safetensors wraps I/O errors in its own type
        if type(error).__name__ != "SafetensorError":
            raise
        raise RunError(f"cannot write {path}: {error}; what was saved before is intact") from None


def nbytes(*tensors: Tensor) -> int:
    """Return the bytes the elements of some tensors take."""
    return sum(t.element_size() * t.numel() for t in tensors)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_device(state: State, device: torch.device) -> State:
    """Return the state with every tensor on a device."""
    return {
        key: to_device(value, device)
        if isinstance(value, dict)
        else (value.to(device) if isinstance(value, Tensor) else value)
        for key, value in state.items()
    }
