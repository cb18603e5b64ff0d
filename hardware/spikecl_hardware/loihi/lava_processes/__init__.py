"""Processes of our own in a Lava network: what sends input, keeps traces, and writes things down.

Lava's own monitor passes every number one by one; `Player` and `Recorder` share arrays with the
process that started them (Lava forks), and take whole vectors. All have a folder of their own
because Lava executes every module that lies beside a process.
"""

from __future__ import annotations

import mmap
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.learning import Learning, own_trace

Process: Any = import_module("lava.magma.core.process.process").AbstractProcess
Model: Any = import_module("lava.magma.core.model.py.model").PyLoihiProcessModel
Variable: Any = import_module("lava.magma.core.process.variable").Var
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


class Trace(Process):  # type: ignore[misc]
    """The trace that a target of synapses of three factors keeps of its own spikes."""

    def __init__(self, shape: tuple[int, ...], learning: Learning):
        """Start from zero."""
        super().__init__(shape=shape, learning=learning)
        self.s_in = outer.InPort(shape=shape)
        self.s_out = outer.OutPort(shape=shape)
        self.trace = Variable(shape=shape, init=0)


@decorator.implements(proc=Player, protocol=PROTOCOL)
@decorator.requires(CPU)
class PlayerModel(Model):  # type: ignore[misc]
    """How a `Player` runs on a CPU."""

    s_out = LavaPyType(inner.PyOutPort.VEC_DENSE, np.int32)

    def run_spk(self) -> None:
        """Send one row."""
        self.s_out.send(self.proc_params["rows"][self.time_step - 1])


@decorator.implements(proc=Trace, protocol=PROTOCOL)
@decorator.requires(CPU)
class TraceModel(Model):  # type: ignore[misc]
    """How a `Trace` runs on a CPU."""

    s_in = LavaPyType(inner.PyInPort.VEC_DENSE, np.int32)
    s_out = LavaPyType(inner.PyOutPort.VEC_DENSE, np.int32)
    trace = LavaPyType(np.ndarray, np.int32, precision=7)

    def run_spk(self) -> None:
        """Hear the spikes of this step and send what the trace is then."""
        self.trace = own_trace(self.trace, self.s_in.recv(), self.proc_params["learning"])
        self.s_out.send(self.trace)


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
