"""The command line beside the board: ``python -m spikecl_hardware setup | doctor | run``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spikecl_hardware import doctor
from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.emulator import STATES, emulate
from spikecl_hardware.loihi.lava_runner import ARITHMETICS, CONFIGS
from spikecl_hardware.loihi.program import Program, ProgramError
from spikecl_hardware.record import Record


def main(given: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; an error is one line on standard error."""
    arguments = _parser().parse_args(given)
    try:
        return int(arguments.command(arguments))
    except (lava.LavaError, ProgramError, OSError) as error:
        print(f"spikecl_hardware: {doctor.one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spikecl_hardware", description="Run Loihi programs."
    )
    commands = parser.add_subparsers(required=True, metavar="setup | doctor | run")
    setup = commands.add_parser("setup", help="install Lava where no other package sees it")
    setup.set_defaults(command=_setup)
    checks = commands.add_parser("doctor", help="a network with a known answer, on every backend")
    checks.set_defaults(command=_doctor)
    run = commands.add_parser("run", help="run samples through a program")
    run.set_defaults(command=_run)
    run.add_argument("program", type=Path, metavar="PROGRAM.h5")
    run.add_argument(
        "inputs", type=Path, help=".npy, or .npz with 'inputs': whole numbers [T, B, *features]"
    )
    run.add_argument("--backend", choices=("emulator", "lava"), default="emulator")
    run.add_argument("--states", type=_states, default=(), help="u, v or both, with a comma")
    run.add_argument("--output", type=Path, metavar="OUT.npz", help="where the record goes")
    run.add_argument("--limit", type=_seconds, default=600.0, metavar="SECONDS")
    run.add_argument("--config", choices=CONFIGS, default="Loihi2SimCfg", help="of Lava")
    run.add_argument("--arithmetic", choices=ARITHMETICS, default="fixed_pt", help="of Lava")
    for command in (checks, run):
        command.add_argument("--lava-python", metavar="PATH", help="interpreter that has Lava")
    return parser


def _states(text: str) -> tuple[str, ...]:
    states = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := set(states) - set(STATES):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}; {', '.join(STATES)} is allowed")
    return states


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}'; a number above 0 is allowed")
    return seconds


def _setup(arguments: argparse.Namespace) -> int:
    print(lava.setup())
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    return doctor.main(arguments.lava_python)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.output is not None and not arguments.output.parent.is_dir():
        raise FileNotFoundError(f"no folder {arguments.output.parent} for the record")
    program = Program.load(arguments.program)
    x = _inputs(arguments.inputs)
    if arguments.backend == "emulator":
        record = emulate(program, x, states=arguments.states)
    else:
        record = lava.run(
            program,
            x,
            states=arguments.states,
            config=arguments.config,
            arithmetic=arguments.arithmetic,
            python=arguments.lava_python,
            limit_s=arguments.limit,
        )
    if arguments.output is not None:
        _write(record, arguments.output)
    rates = ", ".join(f"'{name}' {rate:.4f}" for name, rate in record.rates.items())
    steps, samples = record.inputs.shape[:2]
    print(
        f"{record.backend}: {samples} samples of {steps} steps; spikes a neuron and step: {rates}"
    )
    return 0


def _inputs(path: Path) -> npt.NDArray[Any]:
    """Read an array; else ProgramError, or OSError where no file is."""
    try:
        loaded = np.load(path)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if "inputs" not in loaded.files:
                names = ", ".join(loaded.files) or "nothing"
                raise ProgramError(f"{path} has {names}; an array 'inputs' is needed")
            return np.asarray(loaded["inputs"])
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, ProgramError):
            raise
        raise ProgramError(f"{path} is no array of numbers (.npy or .npz): {error}") from None


def _write(record: Record, path: Path) -> None:
    """Write a record (npz), whole or not at all: inputs, outputs, spikes/NAME, u/NAME, v/NAME."""
    arrays: dict[str, Any] = {"inputs": record.inputs, "outputs": record.outputs}
    arrays |= {f"spikes/{name}": x for name, x in record.spikes.items()}
    arrays |= {f"{s}/{name}": x for name, all_ in record.states.items() for s, x in all_.items()}
    arrays["backend"] = np.array(record.backend)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


if __name__ == "__main__":
    sys.exit(main())
