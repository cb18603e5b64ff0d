"""Processes of our own in a Lava network: what sends the input, and what writes down the rest.

Lava's own monitor passes every number one by one; these two share arrays with the process that
started them (Lava forks), and take whole vectors. They have a folder of their own because Lava
executes every module that lies beside a process.
"""

from __future__ import annotations

import mmap
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

Process: Any = import_module("lava.magma.core.process.process").AbstractProcess
Model: Any = import_module("lava.magma.core.model.py.model").PyLoihiProcessModel
LavaPyType: Any = import_module("lava.magma.core.model.py.type").LavaPyType
decorator: Any = import_module("lava.magma.core.decorator")
outer: Any = import_module("lava.magma.core.process.ports.ports")
inner: Any = import_module("lava.magma.core.model.py.ports")
CPU: Any = import_module("lava.magma.core.resources").CPU
PROTOCOL: Any = import_module("lava.magma.core.sync.protocols.loihi_protocol").LoihiProtocol


def shared(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros that forked processes see and change too."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype, int(np.prod(shape))).reshape(shape)


class Player(Process):  # type: ignore[misc]
    """Sends row t-1 of ``rows`` ``[steps, n]`` at step t."""

    def __init__(self, rows: npt.NDArray[Any]):
        """Keep rows that both processes see."""
        super().__init__(rows=rows)
        self.s_out = outer.OutPort(shape=rows.shape[1:])


class Recorder(Process):  # type: ignore[misc]
    """Writes what it hears at step t to row t-1 of ``spikes``, and u and v to those of ``states``.

    ``states`` maps the names of variables of the population to arrays ``[steps, n]``.
    """

    def __init__(self, spikes: npt.NDArray[Any], states: dict[str, npt.NDArray[Any]]):
        """Keep arrays that both processes see."""
        super().__init__(spikes=spikes, states=states)
        self.s_in = outer.InPort(shape=spikes.shape[1:])
        self.u = outer.RefPort(shape=spikes.shape[1:])
        self.v = outer.RefPort(shape=spikes.shape[1:])


@decorator.implements(proc=Player, protocol=PROTOCOL)
@decorator.requires(CPU)
class PlayerModel(Model):  # type: ignore[misc]
    """How a `Player` runs on a CPU."""

    s_out = LavaPyType(inner.PyOutPort.VEC_DENSE, np.int32)

    def run_spk(self) -> None:
        """Send one row."""
        self.s_out.send(self.proc_params["rows"][self.time_step - 1])


@decorator.implements(proc=Recorder, protocol=PROTOCOL)
@decorator.requires(CPU)
class RecorderModel(Model):  # type: ignore[misc]
    """How a `Recorder` runs on a CPU."""

    s_in = LavaPyType(inner.PyInPort.VEC_DENSE, np.int32)
    u = LavaPyType(inner.PyRefPort.VEC_DENSE, float)
    v = LavaPyType(inner.PyRefPort.VEC_DENSE, float)

    def run_spk(self) -> None:
        """Hear the spikes."""
        self.proc_params["spikes"][self.time_step - 1] = self.s_in.recv()

    def post_guard(self) -> bool:
        """Ask for the phase after the spikes where states are wanted."""
        return bool(self.proc_params["states"])

    def run_post_mgmt(self) -> None:
        """Read the states, after the reset of neurons that fired."""
        for name, rows in self.proc_params["states"].items():
            rows[self.time_step - 1] = getattr(self, name).read()
