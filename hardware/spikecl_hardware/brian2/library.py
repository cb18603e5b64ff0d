"""Brian2 itself: imported when it is needed, and left as it was found."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from spikecl_hardware.brian2.description import Brian2Error

Target = Literal["numpy", "cython", "cpp_standalone"]
TARGETS = ("numpy", "cython", "cpp_standalone")


def library() -> Any:
    """Return the module ``brian2``.

    An import of it writes two small files to the temporary folder and takes over Ctrl-C and the
    printing of errors; where it is the first one, all of that is undone.

    Raises:
        Brian2Error: It is not installed.
    """
    if "brian2" in sys.modules and sys.modules["brian2"] is not None:
        return sys.modules["brian2"]
    main = threading.current_thread() is threading.main_thread()
    before, hook = signal.getsignal(signal.SIGINT) if main else None, sys.excepthook
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it calls pyparsing by old names
            found = importlib.import_module("brian2")
    except ModuleNotFoundError as error:
        if error.name != "brian2":
            raise
        raise Brian2Error(
            "brian2 is not installed; pip install 'brian2>=2.9' (or 'spikecl[brian2]')"
        ) from None
    if before is not None:
        signal.signal(signal.SIGINT, before)
    sys.excepthook = hook
    _without_files(found)
    return found


def _without_files(brian: Any) -> None:
    """Close and remove the log and the copy of the script that an import leaves."""
    logger = brian.BrianLogger
    if logger.file_handler is not None:
        logging.getLogger("brian2").removeHandler(logger.file_handler)
        logger.file_handler.close()
        logger.file_handler = None
    for name in ("tmp_log", "tmp_script"):
        if (path := getattr(logger, name)) is not None:
            Path(path).unlink(missing_ok=True)
            setattr(logger, name, None)


def unit(name: str) -> Any:
    """Return a unit by its text."""
    b = library()
    if name == "1":
        return 1
    top, _, bottom = name.partition("/")
    made = 1 if top == "1" else getattr(b, top)
    return made / getattr(b, bottom) if bottom else made


def check_method(name: str, group: Any, method: str) -> None:
    """Refuse an integrator that does not exist, or not for the equations of a layer."""
    methods = importlib.import_module("brian2.stateupdaters.base")
    known = methods.StateUpdateMethod
    if method not in known.stateupdaters:
        allowed = ", ".join(sorted(known.stateupdaters))
        raise Brian2Error(f"method={method!r}; {allowed} are allowed")
    try:
        known.apply_stateupdater(group.equations, group.variables, method, group_name=group.name)
    except methods.UnsupportedEquationsException:
        raise Brian2Error(
            f"'{name}': method={method!r} does not solve its equations; leave it out, or use euler "
            "or rk4"
        ) from None


def checked(target: str) -> None:
    """Refuse, before any work, a target that does not exist, or a Brian2 that is not there."""
    if target not in TARGETS:
        raise Brian2Error(f"target {target!r}; {', '.join(TARGETS)} are allowed")
    library()


def usable(target: str) -> tuple[Target, str]:
    """Return the target that can be used here, and why it is not the one that was asked for.

    Raises:
        Brian2Error: No such target, or no Brian2.
    """
    checked(target)
    if target == "cython" and not _compiles():
        return "numpy", "no C++ compiler, or no Cython, that works"
    if target == "cpp_standalone" and os.name == "nt":
        return "numpy", "it is for Linux and macOS"
    if target == "cpp_standalone":
        compiler = os.environ.get("CXX", "g++").split()[0]
        for tool in (compiler, "make"):
            if shutil.which(tool) is None:
                return "numpy", f"there is no {tool}"
    return target, ""  # type: ignore[return-value]


def _compiles() -> bool:
    """Whether Brian2 can compile with Cython; its warning says what this says."""
    library()
    cython = importlib.import_module("brian2.codegen.runtime.cython_rt.cython_rt")
    with quiet():
        return bool(cython.CythonCodeObject.is_available())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what Brian2 logs, and what it says of its own dependencies, from the console."""
    handler = library().BrianLogger.console_handler
    before = handler.level
    handler.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        handler.setLevel(before)


@contextlib.contextmanager
def no_output() -> Iterator[None]:
    """Send what child processes print nowhere."""
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(nowhere)


@contextlib.contextmanager
def device(target: Target) -> Iterator[Path | None]:
    """Build and run for a target within; afterwards preferences, device and clock are as before.

    Yields:
        The folder of a standalone project, which is removed behind it.

    Raises:
        Brian2Error: A standalone project of the caller is open.
    """
    b = library()
    devices = importlib.import_module("brian2.devices.device")
    if b.get_device() is not devices.runtime_device:
        raise Brian2Error(
            "a standalone device of Brian2 is set; call brian2.set_device('runtime') first"
        )
    dt, environment = b.defaultclock.dt, dict(os.environ)
    wanted = {
        "codegen.target": "numpy" if target == "cpp_standalone" else target,
        "devices.cpp_standalone.extra_make_args_unix": [f"-j{os.cpu_count() or 1}"],
        "logging.std_redirection": False,
        "core.stop_on_keyboard_interrupt": False,  # it would end a run early, as if it were over
    }
    before = {name: b.prefs[name] for name in wanted}
    try:
        for name, value in wanted.items():
            b.prefs[name] = value
        if target != "cpp_standalone":
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="spikecl_brian2_") as folder:
            b.set_device("cpp_standalone", build_on_run=False)
            try:
                yield Path(folder)
            finally:
                b.get_device().reinit()
                b.get_device().activate()
                devices.reset_device()
    finally:
        for name, value in before.items():
            b.prefs[name] = value
        b.defaultclock.dt = dt
        for name in set(os.environ) - set(environment):
            del os.environ[name]
