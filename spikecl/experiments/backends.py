"""An exported file, ready for its backends, and the test data that it speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from spikecl_hardware.brian2 import library as brian2
from spikecl_hardware.brian2.graphs import described
from spikecl_hardware.brian2.run import run as run_brian2
from spikecl_hardware.graph import Meta, checksum, read
from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.emulator import NUMPY, Arrays, emulate
from spikecl_hardware.loihi.messages import cut, quantise_input
from spikecl_hardware.loihi.program import INPUT, Program
from spikecl_hardware.record import Record

from spikecl.components import from_table
from spikecl.encoding.encoders import InputStatistics
from spikecl.errors import HardwareError, UsageError
from spikecl.experiments.trained import TaskData
from spikecl.interop.boundary import as_input
from spikecl.interop.loihi import TorchArrays
from spikecl.interop.nir_in import from_nir
from spikecl.networks import Network
from spikecl.registry import ENCODINGS
from spikecl.streams import Stream

FLOATS = ("torch", "brian2")
"""Backends that run a graph, in floating point."""


@dataclass(frozen=True)
class Lava:
    """How Lava is run: configuration, arithmetic, interpreter, seconds for one batch."""

    config: str = "Loihi2SimCfg"
    arithmetic: str = "fixed_pt"
    python: str | None = None
    limit_s: float = 600.0


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a file holds, ready for its backends."""

    meta: Meta
    program: Program | None
    network: Network | None
    shape: tuple[int, ...]
    arrays: Arrays
    device: torch.device
    lava_options: Lava
    states: tuple[str, ...]
    graph: nir.NIRGraph | None = None
    target: str = "numpy"

    @classmethod
    def read(
        cls,
        path: Path,
        backends: Sequence[str],
        device: str,
        options: Lava,
        states: tuple[str, ...],
        target: str = "numpy",
    ) -> Loaded:
        """Return a program or graph; HardwareError where it cannot run on a backend.

        ``torch`` and ``brian2`` run floats: the graph itself, or the one that lies beside a program
        of integers.
        """
        if device not in ("cpu", "cuda"):
            raise UsageError(f"device {device!r}; cpu or cuda are allowed")
        arrays = TorchArrays(device) if "emulator" in backends or device == "cuda" else NUMPY
        program, graph = None, None
        if path.suffix == ".nir":
            graph = read(path)
            if others := [b for b in backends if b not in FLOATS]:
                raise HardwareError(
                    f"{path}: a graph of floats does not run on {', '.join(others)}; make a "
                    "program of it with 'spikecl export RUN --to loihi'"
                )
        else:
            program = Program.load(path)
            if set(FLOATS) & set(backends):
                graph = _graph_beside(path, program)
        meta = Meta.of(graph) if graph is not None else _meta(path, program)
        network, shape = None, () if program is None else program.input_shape
        if graph is not None:
            network = from_nir(graph).to(device)
            if "brian2" in backends:
                brian2.checked(target)
                described(graph)
            shape = tuple(int(n) for n in graph.nodes["input"].input_type["input"])
        place = torch.device(device)
        return cls(meta, program, network, shape, arrays, place, options, states, graph, target)

    def answers(self, record: Record) -> np.ndarray[Any, Any]:
        """Return the answers [B] of a backend that runs the graph."""
        assert self.network is not None
        made = self.network.decode(torch.from_numpy(np.asarray(record.outputs)))
        return np.asarray(np.argmax(made.numpy(), axis=1))

    def run(self, backend: str, x: torch.Tensor) -> tuple[Record, np.ndarray[Any, Any]]:
        """Return what a backend did with encoded input, and its logits."""
        x = as_input(x, self.shape)
        if backend == "torch":
            return self._float(x)
        if backend == "brian2":
            return self._brian2(x)
        assert self.program is not None
        whole = quantise_input(self.program, x.cpu().numpy())
        if backend == "emulator":
            record = emulate(self.program, whole, states=self.states, arrays=self.arrays)
        else:
            record = lava.run(self.program, whole, states=self.states, **asdict(self.lava_options))
        notes = {**record.notes, "cut": {INPUT: cut(self.program, x.cpu().numpy())}}
        return replace(record, notes=notes), logits(record.outputs, self.program.readout)

    @torch.no_grad()
    def _brian2(self, x: torch.Tensor) -> tuple[Record, np.ndarray[Any, Any]]:
        assert self.graph is not None and self.network is not None
        record = run_brian2(self.graph, x.cpu().numpy(), target=self.target, states=self.states)
        return record, self.network.decode(torch.from_numpy(record.outputs)).numpy()

    @torch.no_grad()
    def _float(self, x: torch.Tensor) -> tuple[Record, np.ndarray[Any, Any]]:
        assert self.network is not None
        x = x.to(self.device, next(self.network.parameters()).dtype)
        recording = self.network.record(x, variables=["spikes"])
        output = self.network(x)
        spikes = {
            name: np.asarray(found["spikes"]).astype(np.uint8)
            for name, found in recording.traces.items()
        }
        made = Record(
            backend=f"torch, {self.device.type}",
            inputs=x.cpu().numpy(),
            spikes=spikes,
            outputs=_answers(output.steps, len(x)),
        )
        return made, output.logits.cpu().numpy()


def _answers(steps: torch.Tensor, count_: int) -> np.ndarray[Any, Any]:
    """Return outputs at every step; a mean that was taken before stands for all."""
    found: np.ndarray[Any, Any] = steps.expand(count_, *steps.shape[1:]).cpu().numpy()
    return found


def data_of(meta: Meta, stream: Stream | None, data: str | None, data_dir: Path | None) -> TaskData:
    """Return the test data that a file speaks of, encoded as it says."""
    told = meta.encoder.get("statistics")
    statistics = InputStatistics(**told) if told else None
    if stream is not None:
        name = meta.encoder.get("name")
        if name is None:
            raise HardwareError("the file names no encoder; run it with emulate(program, inputs)")
        encoder = from_table(ENCODINGS.get(name), meta.encoder["options"], f"encoding.{name}")
        return TaskData(stream, encoder, statistics=statistics)
    if not meta.config:
        raise HardwareError(
            "the file does not say which data it is for; hand in a stream from Python "
            "(spikecl.simulate(file, stream=...))"
        )
    config = {k: dict(v) for k, v in meta.config.items()}
    if data is not None:
        config["data"] = {**config["data"], "name": data}
    return TaskData.of_config(config, statistics=statistics, data_dir=data_dir)


def _graph_beside(path: Path, program: Program) -> nir.NIRGraph:
    name = program.manifest.get("graph")
    if name is None:
        raise HardwareError(
            f"{path}: its neurons were trained as integers, there is no float simulation of it; "
            "use the backends emulator and lava"
        )
    beside = path.with_name(name)
    if not beside.is_file():
        raise HardwareError(f"{beside}: the graph that {path.name} was made from is missing")
    graph = read(beside)
    if checksum(graph) != program.manifest.get("graph_sha256"):
        raise HardwareError(
            f"{beside}: another graph than the one {path.name} was made from; export again"
        )
    return graph


def _meta(path: Path, program: Program | None) -> Meta:
    assert program is not None
    try:
        told = dict(program.manifest["meta"])
        return Meta(**{**told, "classes": tuple(told["classes"])})
    except (KeyError, TypeError):
        raise HardwareError(f"{path}: its manifest says nothing of encoder and data") from None
