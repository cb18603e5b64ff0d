"""C code, compiled once for each processor and kept.

One call of the system's C compiler takes a fraction of a second, and what it made is found again by
the hash of its source: a form of neuron is compiled once on a machine.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

from spikecl.errors import UsageError

FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",  # the same rounding as torch: no product goes into a sum unrounded
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-x",
    "c",
)


def folder() -> Path:
    """Return where compiled kernels are kept (``SPIKECL_KERNELS`` names another place)."""
    named = os.environ.get("SPIKECL_KERNELS")
    return Path(named) if named else Path(platformdirs.user_cache_dir("spikecl")) / "kernels"


@functools.cache
def compiler() -> str | None:
    """Return the command of the C compiler (``CC`` names another; empty is none)."""
    named = os.environ.get("CC")
    commands = ("cc", "gcc", "clang") if named is None else (named,)
    for command in commands:
        words = shlex.split(command)
        if words and (path := shutil.which(words[0])):
            return shlex.join([path, *words[1:]])
    return None


@functools.cache
def load(source: str) -> ctypes.CDLL:
    """Return the compiled source as a library.

    Raises:
        UsageError: There is no compiler, or it fails.
    """
    found = compiler()
    if found is None:
        raise UsageError("no C compiler (cc, gcc, clang or the one named by CC)")
    key = "\n".join((source, found, *FLAGS, _processor()))
    path = folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        _build(found, source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # empty, or made for another system
        _build(found, source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UsageError(f"{found} made what cannot be loaded: {error}") from error


def _build(found: str, source: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / "kernel.so"
            command = [*shlex.split(found), *FLAGS, "-", "-o", str(made), "-lm"]
            done = subprocess.run(
                command, input=source, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise UsageError(f"{found} failed: {done.stderr.strip()[:500]}")
            with made.open("rb") as file:
                os.fsync(file.fileno())  # a name must not outlive a crash without its content
            made.replace(path)
    except OSError as error:
        raise UsageError(f"compiled kernels cannot be kept in {path.parent}: {error}") from error


@functools.cache
def _processor() -> str:
    """Return what tells processors apart for which code was made: their instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.machine()} {flags}"


@functools.cache
def against() -> str | None:
    """Return why nothing can be compiled here; ``None`` if it can."""
    try:
        load("int one(void) { return 1; }\n")
    except UsageError as error:
        return str(error)
    return None
