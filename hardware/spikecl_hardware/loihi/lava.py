"""Lava beside this program: finds it, sets it up, and runs programs in it with a time limit.

Lava runs in a process of its own (`lava_runner`), so that its forks never meet the threads of
others, and so that a hang can be ended. lava-nc 0.10.0 declares Python 3.10; here it also runs on
later ones, from a folder that no other package sees.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import spikecl_hardware
from spikecl_hardware.loihi.emulator import STATES, checked_inputs
from spikecl_hardware.loihi.lava_runner import ARITHMETICS, CONFIGS
from spikecl_hardware.loihi.plastic import Learned, checked_third, with_weights
from spikecl_hardware.loihi.program import Program, ProgramError
from spikecl_hardware.record import Record

VERSION = "0.10.0"
# What lava-nc declares, but for numpy and scipy, which are compiled and must fit the interpreter.
PACKAGES = (f"lava-nc=={VERSION}", "asteval>=0.9.31,<0.10", "networkx>=2.8,<=2.8.7")
NEEDS = ("numpy", "scipy", "h5py", "asteval", "networkx")
LAST_LINES = 15
PIP_LIMIT_S = 600.0
LONGEST_FOLDER = 45  # with what is added, a socket stays below the 104 bytes of macOS
ADVICE = "run 'python -m spikecl_hardware setup', or name another Python that has it"

_PROBE = f"""
import json, platform
from importlib import metadata, util
def found(name):
    try:
        return util.find_spec(name)
    except ImportError:
        return None
try:
    version = metadata.version("lava-nc")
except metadata.PackageNotFoundError:
    version = None
core = found("lava.magma")
print(json.dumps({{
    "python": platform.python_version(),
    "version": version,
    "path": core and list(core.submodule_search_locations)[0],
    "lacks": [name for name in {NEEDS} if found(name) is None],
    "board": found("lava.utils.loihi2_profiler") is not None,
}}))
"""


class LavaError(RuntimeError):
    """Lava is missing, is another version, is broken, or took too long."""


@dataclass(frozen=True)
class Installation:
    """A Lava that can run programs.

    Args:
        python: The interpreter.
        python_version: Its version.
        version: That of Lava.
        path: Where Lava lies.
        folder: What the interpreter must be told to find it, or None.
        board: Whether the extension for a Loihi 2 board is there.
    """

    python: str
    python_version: str
    version: str
    path: Path
    folder: Path | None
    board: bool

    def __str__(self) -> str:
        """Return versions and places in one line."""
        return f"lava {self.version} in {self.path}, Python {self.python_version} ({self.python})"


def cache() -> Path:
    """Return the folder that `setup` fills."""
    given = os.environ.get("SPIKECL_LAVA")
    return Path(given) if given else Path.home() / ".cache" / "spikecl" / f"lava-{VERSION}"


def find(python: str | None = None) -> Installation:
    """Return the Lava of an interpreter, else LavaError.

    The interpreter is the one given, else that of ``SPIKECL_LAVA_PYTHON``, else this one. Its own
    packages come first, then the folder that `setup` fills.
    """
    given = python or os.environ.get("SPIKECL_LAVA_PYTHON") or sys.executable
    command = shutil.which(given)
    if command is None:
        raise LavaError(f"no Python '{given}'; the path of an interpreter with Lava is allowed")
    command, folder = os.path.abspath(command), cache()
    try:
        return _installation(command, None)
    except LavaError as error:
        if not folder.is_dir():
            raise LavaError(f"{error}; nor is there {folder}: {ADVICE}") from None
    try:
        return _installation(command, folder)
    except LavaError as error:
        raise LavaError(f"{error}: {ADVICE}") from None


def _installation(python: str, folder: Path | None) -> Installation:
    """Ask an interpreter what it would import."""
    with _own_folder() as own:
        try:
            answer = subprocess.run(
                [python, "-c", _PROBE],
                env=_environment(own, folder),
                cwd=own,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            found = json.loads(answer.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise LavaError(
                f"'{python}' does not work as Python 3.10 or newer: {said[-1]}"
            ) from None
    where = f"{folder or 'the packages of ' + python}"
    if found["version"] is None or found["path"] is None:
        halves = found["version"] is not None or found["path"] is not None
        raise LavaError(f"{'a broken' if halves else 'no'} Lava in {where}")
    if found["version"] != VERSION:
        raise LavaError(f"lava-nc {found['version']} in {where}; {VERSION} is allowed")
    if lacks := " ".join(found["lacks"]):
        raise LavaError(f"Lava in {where} lacks {lacks}; '{python} -m pip install {lacks}'")
    return Installation(
        python, found["python"], found["version"], Path(found["path"]), folder, found["board"]
    )


def setup() -> Installation:
    """Install Lava for this interpreter, unless it is there: about 30 MB, a few seconds.

    It goes to a folder of its own (`cache`), whole or not at all.

    Raises:
        LavaError: pip failed; the message has what it said.
    """
    folder = cache()
    for place in (None, folder):
        try:
            return _installation(sys.executable, place)
        except LavaError:
            continue
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / "new"
        _install(made)
        _installation(sys.executable, made)
        if folder.exists():
            os.replace(folder, Path(temporary) / "old")
        try:
            os.replace(made, folder)
        except OSError:  # somebody else was quicker
            return _installation(sys.executable, folder)
    return _installation(sys.executable, folder)


def _install(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--target", str(target), "--no-deps"]
    options = ["--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--quiet"]
    try:
        done = subprocess.run(
            [*command, *options, *PACKAGES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PIP_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LavaError(f"pip took longer than {PIP_LIMIT_S:g} s; check the network") from None
    if done.returncode:
        said = _last_lines(done.stdout + done.stderr)
        raise LavaError(f"pip could not install {', '.join(PACKAGES)}:\n{said}")


def run(
    program: Program,
    inputs: npt.ArrayLike,
    *,
    states: Iterable[str] = (),
    config: str = "Loihi2SimCfg",
    arithmetic: str = "fixed_pt",
    python: str | None = None,
    limit_s: float = 600.0,
) -> Record:
    """Run samples from rest in Lava and return what every population did.

    Args:
        program: What to run.
        inputs: Whole numbers [T, B, *input_shape], as `emulator.emulate` takes them.
        states: ``u``, ``v`` or both, where they are wanted.
        config: Lava's run configuration.
        arithmetic: ``fixed_pt`` for the integers of the chip; ``floating_pt`` runs the same
            numbers without rounding, wrap and clip.
        python: Interpreter, see `find`.
        limit_s: Seconds after which Lava and all of its processes are ended.

    Raises:
        ProgramError: The input does not fit.
        LavaError: Lava is missing, failed, or took longer than the limit.
    """
    x = checked_inputs(program, inputs)
    asked = _Asked(tuple(states), config, arithmetic, limit_s)
    lava, found = asked.answer(program, {"inputs": x.astype(np.int32)}, (), python)
    return asked.record(program, x, lava, found)


def learn(
    program: Program,
    inputs: npt.ArrayLike,
    *,
    third: Mapping[str, npt.ArrayLike] | None = None,
    states: Iterable[str] = (),
    config: str = "Loihi2SimCfg",
    python: str | None = None,
    limit_s: float = 600.0,
) -> Learned:
    """Run samples one after the other in Lava while synapses learn; as `plastic.learn`.

    Raises:
        ProgramError: Nothing learns, or the input or the third factors do not fit.
        LavaError: Lava is missing, failed, or took longer than the limit.
    """
    x, factors = checked_inputs(program, inputs), checked_third(program, inputs, third or {})
    asked = _Asked(tuple(states), config, "fixed_pt", limit_s)
    arrays = {"inputs": x.astype(np.int32), **{f"third/{n}": v for n, v in factors.items()}}
    lava, found = asked.answer(program, arrays, ("--learn",), python)
    learned = {c.name: found[c.name] for c in program.connections if c.learning is not None}
    return Learned(
        record=asked.record(program, x, lava, found),
        program=with_weights(program, {name: each["w"] for name, each in learned.items()}),
        tags={name: {key: each[key] for key in ("t", "d")} for name, each in learned.items()},
    )


@dataclass(frozen=True)
class _Asked:
    """What is wanted of a run."""

    states: tuple[str, ...]
    config: str
    arithmetic: str
    limit_s: float

    def answer(
        self,
        program: Program,
        arrays: Mapping[str, npt.NDArray[Any]],
        more: tuple[str, ...],
        python: str | None,
    ) -> tuple[Installation, dict[str, dict[str, npt.NDArray[Any]]]]:
        """Run it and return who did, and what came out by population and connection."""
        if unknown := set(self.states) - set(STATES):
            raise ProgramError(f"states {sorted(unknown)}; {', '.join(STATES)} is allowed")
        if self.config not in CONFIGS or self.arithmetic not in ARITHMETICS:
            allowed = f"{', '.join(CONFIGS)} with {' or '.join(ARITHMETICS)} is allowed"
            raise LavaError(f"config {self.config} with {self.arithmetic}; {allowed}")
        lava = find(python)
        if self.config == "Loihi2HwCfg" and not lava.board:
            raise LavaError(f"no board: {lava} lacks lava-loihi; Loihi2SimCfg is allowed")
        quantity = program.readout.quantity
        kept = tuple(s for s in STATES if s in self.states or s == quantity)
        with _own_folder() as own:
            program.save(own / "program.h5")
            np.savez(own / "inputs.npz", allow_pickle=False, **arrays)
            options = ["--config", self.config, "--arithmetic", self.arithmetic]
            _call(lava, own, ["--states", ",".join(kept), *options, *more], self.limit_s)
            return lava, _results(program, own / "output.npz")

    def record(
        self,
        program: Program,
        x: npt.NDArray[Any],
        lava: Installation,
        found: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    ) -> Record:
        """Return what populations did."""
        silence = np.zeros((program.latency, *x.shape[1:]), dtype=x.dtype)
        name, populations = program.readout.population, program.populations
        answers = found[name][program.readout.quantity][program.latency :]
        return Record(
            backend=f"lava {lava.version} ({self.config}, {self.arithmetic})",
            inputs=np.concatenate([x, silence]),
            spikes={n: found[n]["spikes"] for n in populations},
            outputs=answers.reshape(*answers.shape[:2], populations[name].size),
            states=(
                {n: {s: found[n][s] for s in self.states} for n in populations}
                if self.states
                else {}
            ),
        )


def _results(program: Program, path: Path) -> dict[str, dict[str, npt.NDArray[Any]]]:
    names = [*program.populations, *(c.name for c in program.connections if c.learning)]
    found: dict[str, dict[str, npt.NDArray[Any]]] = {name: {} for name in names}
    with np.load(path) as file:
        for entry in file.files:
            index, _, key = entry.partition("/")
            x = file[entry]
            whole = key != "spikes" and np.issubdtype(x.dtype, np.integer)
            found[list(found)[int(index)]][key] = x.astype(np.int64) if whole else x
    return found


def _call(lava: Installation, own: Path, options: list[str], limit_s: float) -> None:
    """Run the child in a session of its own, to its end, its failure, or the limit."""
    module = f"{spikecl_hardware.__name__}.loihi.lava_runner"
    files = [str(own / name) for name in ("program.h5", "inputs.npz", "output.npz")]
    command = [lava.python, "-m", module, *files, *options, "--with-parent"]
    process = None
    try:
        process = _start(command, own, _environment(own, lava.folder))
        status = process.wait(limit_s)
    except BaseException as error:
        if process is not None:  # else its standard input is closed, which ends it
            _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise LavaError(
                f"Lava did not finish in {limit_s:g} s and was ended; allow more time, or run "
                "fewer samples or steps"
            ) from None
        raise
    if status or not (own / "output.npz").is_file():
        _end(process)
        said = _last_lines((own / "log").read_text(errors="replace"))
        raise LavaError(f"Lava ended with status {status} ({lava}):\n{said}")
    _close(process)


def _start(command: list[str], own: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (own / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=own,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process group: first gently, so that its shared memory is given back."""
    _close(process)
    for means, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
        limit = time.monotonic() + patience_s
        try:
            os.killpg(process.pid, means)
            while time.monotonic() < limit:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.01)
        except ProcessLookupError:
            break
    process.wait()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Yield a temporary folder in which only this package can be imported.

    Lava makes a socket there, and the system takes no long names for sockets.
    """
    usual = tempfile.gettempdir()
    place = usual if len(usual) <= LONGEST_FOLDER else "/tmp"
    with tempfile.TemporaryDirectory(
        prefix="spikecl-lava-", dir=place, ignore_cleanup_errors=True
    ) as name:
        package = Path(spikecl_hardware.__file__).parent
        (Path(name) / "packages").mkdir()
        (Path(name) / "packages" / package.name).symlink_to(package, target_is_directory=True)
        yield Path(name)


def _environment(own: Path, folder: Path | None) -> dict[str, str]:
    """Return what a child sees: this package without its neighbours, and the folder of Lava."""
    paths = [str(own / "packages"), *([str(folder.resolve())] if folder else [])]
    if inherited := os.environ.get("PYTHONPATH"):
        paths += [os.path.abspath(p) for p in inherited.split(os.pathsep) if p]
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "TMPDIR": str(own),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LAST_LINES:]) or "(it said nothing)"
