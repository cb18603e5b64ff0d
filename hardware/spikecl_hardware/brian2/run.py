"""A graph run by Brian2: a record like that of every backend."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from spikecl_hardware.brian2.build import build
from spikecl_hardware.brian2.built import Built
from spikecl_hardware.brian2.description import Array, Brian2Error, Description
from spikecl_hardware.brian2.graphs import described
from spikecl_hardware.brian2.library import device, library, no_output, quiet, usable
from spikecl_hardware.brian2.options import Options
from spikecl_hardware.record import Record

FALLBACK = "fell back to numpy"
"""Note of a record whose target needs a compiler that is not there."""


def run(
    network: nir.NIRGraph | Description,
    x: npt.ArrayLike,
    *,
    target: str = "numpy",
    states: tuple[str, ...] = (),
    options: Options | None = None,
) -> Record:
    """Run samples through a network, one after the other in one simulation.

    Args:
        network: A graph, or a description.
        x: Input [T, B, *features].
        target: What Brian2 makes of the equations: ``numpy``, or ``cython`` and
            ``cpp_standalone``, which need a compiler. Without one ``numpy`` is used, and the
            record's notes say so.
        states: ``u`` (synaptic currents; the input current of neurons without) and ``v``.
        options: How time is cut; by default the steps of the network, spike for spike.

    Raises:
        GraphError: The graph cannot be used; a ``Brian2Error`` if that is for Brian2 alone.
    """
    chosen, why = usable(target)
    about = network if isinstance(network, Description) else described(network)
    given = _checked(x, about)
    try:
        found = _simulate(about, given, chosen, states, options)
    except _CompileError as error:
        chosen, why = "numpy", str(error)
        found = _simulate(about, given, chosen, states, options)
    name = f"brian2 {library().__version__} ({chosen}{f', not {target}: {why}' if why else ''})"
    return Record(
        backend=name,
        inputs=np.asarray(x),
        notes={FALLBACK: {target: 1}} if why else {},
        **found,
    )


class _CompileError(Exception):
    """A project could not be compiled."""


def _checked(x: npt.ArrayLike, about: Description) -> Array:
    """Return input [T, B, n]."""
    given = np.asarray(x, dtype=np.float64)
    n = int(np.prod(about.inputs))
    if given.ndim < 3 or 0 in given.shape or int(np.prod(given.shape[2:])) != n:
        raise Brian2Error(
            f"input has shape {given.shape}; [steps, samples, *{list(about.inputs)}], one or more "
            "of each, is allowed"
        )
    if not np.isfinite(given).all():
        raise Brian2Error("the input has values that are not finite; numbers are allowed")
    return given.reshape(*given.shape[:2], n)


def _simulate(
    about: Description, x: Array, target: Any, states: tuple[str, ...], options: Options | None
) -> dict[str, Any]:
    """Return spikes, states and the readout's quantity, [T, B, *features] each."""
    record = ("spikes", *(name for state in states for name in _VARIABLES[state]))
    with quiet(), device(target) as folder:
        built = build(about, x, options=options, record=record)
        steps, samples = x.shape[:2]
        length = steps * samples * about.step_ms
        built.network.run(length * library().ms, namespace={})
        if folder is not None:
            _compile_and_run(folder)
        elif np.max(built.network.t_) * 1000 < length - about.step_ms / 2:
            raise KeyboardInterrupt  # something stopped it: a part of a record is none
        return _found(about, built, states, (steps, samples))


_VARIABLES = {"u": ("i_syn", "I_total", "y"), "v": ("v",)}


def _compile_and_run(folder: Path) -> None:
    """Compile a standalone project and run it."""
    project = library().get_device()
    with no_output():
        project.build(str(folder), compile=False, run=False, with_output=False)
        _make(folder)
        project.run(str(folder), "results", False, [])


def _make(folder: Path) -> None:
    """Compile a project: a signal that stops this process stops the compilers too.

    Brian2's own way, ``os.system``, lets Ctrl-C end the compilers and hides it from Python.
    """
    set_to = library().prefs.devices.cpp_standalone
    command = " ".join([set_to.make_cmd_unix, *set_to.extra_make_args_unix])
    make = subprocess.Popen(f"exec {command}", shell=True, cwd=folder, start_new_session=True)
    try:
        code = make.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(make.pid, signal.SIGTERM)
        make.wait()
        raise
    if code:
        raise _CompileError(f"compiling failed ('{command}' ends with {code})")


def _found(
    about: Description, built: Built, states: tuple[str, ...], size: tuple[int, int]
) -> dict[str, Any]:
    spikes, kept, outputs = {}, {}, None
    for p in about.populations:
        shape = (*size, *p.shape)
        if p.name in built.spikes:
            spikes[p.name] = _spikes(about, built.spikes[p.name], size, p.size).reshape(shape)
        if p.name not in built.states:
            continue
        monitor = built.states[p.name]
        has = monitor.record_variables
        kept[p.name] = {
            state: _sampled(monitor, name, size).reshape(shape)
            for state in states
            if (name := next((v for v in _VARIABLES[state] if v in has), None)) is not None
        }
    last = about.populations[-1]
    if last.neurons.fires:
        outputs = spikes[last.name].reshape(*size, -1).astype(np.float64)
    else:
        outputs = _sampled(built.states[last.name], built.outputs[last.name], size)
    return {"spikes": spikes, "states": kept if states else {}, "outputs": outputs}


def _spikes(
    about: Description, monitor: Any, size: tuple[int, int], n: int
) -> npt.NDArray[np.uint8]:
    """Return spikes [T, B, n] of a monitor."""
    made = np.zeros((size[1] * size[0], n), dtype=np.uint8)
    times = np.asarray(monitor.t_) * 1000 / about.step_ms
    made[np.floor(times + 1e-6).astype(int), np.asarray(monitor.i)] = 1
    return made.reshape(size[1], size[0], n).swapaxes(0, 1)


def _sampled(monitor: Any, name: str, size: tuple[int, int]) -> Array:
    """Return a variable [T, B, n] at the end of each step; of a current, what came in the step."""
    rows = np.asarray(getattr(monitor, f"{name}_")).T
    parts = rows.reshape(size[1], size[0], len(rows) // (size[0] * size[1]), -1)
    made = parts.sum(2) if name == "y" else parts[:, :, -1]
    return made.swapaxes(0, 1)
