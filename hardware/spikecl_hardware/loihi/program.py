"""A Loihi program: populations of neurons, connections between them, and how answers are read.

All numbers are integers in the ranges of `semantics`. A program is one file (HDF5): the arrays, and
a manifest with a version and a checksum of everything else.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np
import numpy.typing as npt

from spikecl_hardware.files import replacing
from spikecl_hardware.loihi.learning import WEIGHTS, Learning
from spikecl_hardware.loihi.semantics import (
    STATE_LIMIT,
    ConvParameters,
    DenseParameters,
    Integers,
    LIFParameters,
    SignMode,
)

FORMAT, VERSION = "spikecl-loihi-program", 1
INPUT = "input"
ENDS = ("source", "target", "kind", "learning")
LIBVER = "v110"  # structure with checksums; without them, and with strings, one bit can hang HDF5

Quantity = Literal["spikes", "u", "v"]
Reduction = Literal["mean", "sum", "max", "last", "leaky", "first_spike"]
Synapses = DenseParameters | ConvParameters


class ProgramError(ValueError):
    """A program or its file is not what it should be."""


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons of one layer, features channel-first; registers are one int or a vector ``[n]``.

    ``start`` is the membrane before the first step, one int or ``[n]``.
    """

    shape: tuple[int, ...]
    neurons: LIFParameters
    start: Integers = 0

    @property
    def size(self) -> int:
        """Number of neurons."""
        return int(np.prod(self.shape))

    @property
    def registers(self) -> dict[str, Integers]:
        """All values by name."""
        found = {f.name: getattr(self.neurons, f.name) for f in fields(self.neurons)}
        return {**found, "start": self.start}


@dataclass(frozen=True, eq=False)
class Connection:
    """Synapses from a population (or the input) to another, or onto itself.

    With ``learning`` they change while :func:`spikecl_hardware.loihi.plastic.learn` runs the
    program; whoever else runs it takes them as they are.
    """

    source: str
    target: str
    synapses: Synapses
    learning: Learning | None = None

    @property
    def name(self) -> str:
        """Where from and where to, as messages and results name it."""
        return f"{self.source} to {self.target}"

    @property
    def dense(self) -> DenseParameters:
        """The synapses of a connection that is dense."""
        assert isinstance(self.synapses, DenseParameters)
        return self.synapses


@dataclass(frozen=True)
class Readout:
    """How answers are read: a quantity of one population, reduced over the steps of a sample.

    ``units`` outputs in a row belong to one class; their mean counts. ``scale`` times the result
    is in the units of the network that was exported.
    """

    population: str
    quantity: Quantity = "spikes"
    reduction: Reduction = "mean"
    units: int = 1
    scale: float = 1.0
    constants: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Program:
    """What runs on the chip, in Lava and in the emulator.

    Args:
        input_shape: Features of the input; whole numbers, zero or one unless graded.
        populations: By name, in the order of layers.
        connections: In any order; each adds one step of delay.
        readout: How answers are read.
        steps: Steps of one sample; a run takes ``latency`` steps more until the last answer is out.
        manifest: What else belongs to the network, as JSON: encoder, classes, scales, origin.
    """

    input_shape: tuple[int, ...]
    populations: Mapping[str, Population]
    connections: tuple[Connection, ...]
    readout: Readout
    steps: int
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ProgramError where names or shapes do not fit."""
        if self.steps < 1:
            raise ProgramError(f"steps is {self.steps}; at least 1 is allowed")
        if INPUT in self.populations:
            raise ProgramError(f"a population cannot be called '{INPUT}'; that is the input")
        for connection in self.connections:
            self._check(connection)
        for name, population in self.populations.items():
            self._check_registers(name, population)
        self._check_readout()
        self.depths  # noqa: B018  # an output that nothing reaches is refused

    def _check_readout(self) -> None:
        name, units = f"readout of '{self.readout.population}'", self.readout.units
        if self.readout.population not in self.populations:
            raise ProgramError(f"{name}; {self._known()}")
        for key, allowed in (("quantity", get_args(Quantity)), ("reduction", get_args(Reduction))):
            if (value := getattr(self.readout, key)) not in allowed:
                raise ProgramError(f"{name}: {key} '{value}'; {', '.join(allowed)} is allowed")
        size = self.populations[self.readout.population].size
        if units < 1 or size % units:
            raise ProgramError(f"{name}: {size} neurons in units of {units}; a divisor is allowed")

    def _check_registers(self, name: str, population: Population) -> None:
        for key, value in population.registers.items():
            if getattr(value, "shape", ()) not in ((), (population.size,)):
                raise ProgramError(
                    f"'{name}': {key} has shape {value.shape}; one number or "
                    f"[{population.size}] is allowed"
                )
        start = np.asarray(population.start)
        if start.dtype != np.int64:
            raise ProgramError(f"'{name}': start is {start.dtype}; int64 is allowed: round it")
        if int(abs(start).max()) > STATE_LIMIT:
            raise ProgramError(f"'{name}': start leaves the membrane's 24 bits; rescale the layer")

    def _known(self) -> str:
        return f"there are {', '.join(self.populations) or 'no populations'}"

    def _check(self, connection: Connection) -> None:
        name = f"'{connection.source}' to '{connection.target}'"
        if connection.target not in self.populations:
            raise ProgramError(f"{name}: no population '{connection.target}'; {self._known()}")
        if connection.source not in (INPUT, *self.populations):
            raise ProgramError(f"{name}: no population '{connection.source}'; {self._known()}")
        shape, target = self.shape(connection.source), self.populations[connection.target]
        try:
            out = self._out_shape(connection.synapses, shape)
        except ValueError as error:
            raise ProgramError(f"{name}: {error}") from None
        if int(np.prod(out)) != target.size:
            raise ProgramError(f"{name}: synapses reach {out}, the neurons are {target.shape}")
        if connection.learning is not None:
            self._check_learning(name, connection)

    def _check_learning(self, name: str, connection: Connection) -> None:
        synapses = connection.synapses
        if not isinstance(synapses, DenseParameters) or synapses.num_message_bits:
            raise ProgramError(f"{name} learns; dense synapses and binary spikes are allowed")
        low, high = WEIGHTS[synapses.mode]
        if synapses.weights.min(initial=0) < low or synapses.weights.max(initial=0) > high:
            raise ProgramError(
                f"{name} learns, with weights {synapses.weights.min()} to "
                f"{synapses.weights.max()}; {low} to {high} is allowed: clip them"
            )
        if (
            sum(
                (c.source, c.target) == (connection.source, connection.target)
                for c in self.connections
            )
            > 1
        ):
            raise ProgramError(f"{name} learns beside another connection of the same ends")

    def _out_shape(self, synapses: Synapses, shape: tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(synapses, ConvParameters):
            return synapses.out_shape(shape)
        n_out, n_in = synapses.effective.shape
        if n_in != int(np.prod(shape)):
            raise ValueError(f"weights for {n_in} inputs, the source has {shape}")
        return (n_out,)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the features of a population or of the input."""
        return self.input_shape if name == INPUT else self.populations[name].shape

    @property
    def depths(self) -> dict[str, int]:
        """Steps from the input to each population that it reaches, on the shortest way."""
        found, frontier = {INPUT: 0}, [INPUT]
        while frontier:
            reached = []
            for c in self.connections:
                if c.source in frontier and c.target not in found:
                    found[c.target] = found[c.source] + 1
                    reached.append(c.target)
            frontier = reached
        if self.readout.population not in found:
            raise ProgramError(f"no way leads from the input to '{self.readout.population}'")
        return found

    @property
    def latency(self) -> int:
        """Steps from an input to the answer: one for each connection on the way."""
        return self.depths[self.readout.population]

    def save(self, path: str | Path) -> Path:
        """Write the program to one file (``.h5``), whole or not at all."""
        path = Path(path)
        arrays, header = _packed(self)
        text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), dtype=np.uint8)
        with replacing(path) as temporary, h5py.File(temporary, "w", libver=LIBVER) as file:
            for key, array in {**arrays, "header": text}.items():
                file.create_dataset(key, data=array, compression="gzip", track_times=False)
            file.attrs["sha256"] = np.bytes_(_checksum(arrays, header))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read what :meth:`save` wrote; else ProgramError (OSError where no file is)."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
        try:
            with h5py.File(path, "r") as file:
                if "header" not in file or "sha256" not in file.attrs:
                    raise ProgramError(f"{path}: HDF5, but no Loihi program; 'export --to loihi'")
                header = dict(json.loads(np.asarray(file["header"][()]).tobytes()))
                checksum = np.asarray(file.attrs["sha256"]).tobytes().decode()
                arrays: dict[str, Any] = {}
                file.visititems(
                    lambda key, item: (
                        arrays.update({str(key): item[()]})
                        if isinstance(item, h5py.Dataset) and key != "header"
                        else None
                    )
                )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            if isinstance(error, ProgramError):
                raise
            raise ProgramError(
                f"{path}: no HDF5 file, or cut short ({error}); export again"
            ) from None
        if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            raise ProgramError(
                f"{path}: {header.get('format')} version {header.get('version')}; this release "
                f"reads {FORMAT} version {VERSION}; export again"
            )
        if any(np.asarray(x).dtype != np.int64 for x in arrays.values()) or (
            _checksum(arrays, header) != checksum
        ):
            raise ProgramError(f"{path}: the checksum does not fit its content; export again")
        try:
            return _unpacked(arrays, header)
        except (KeyError, TypeError, ValueError) as error:
            raise ProgramError(f"{path}: {error}") from None

    @property
    def checksum(self) -> str:
        """SHA-256 of the content, the same whenever and wherever it is written."""
        return _checksum(*_packed(self))


def _packed(program: Program) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, Any]]:
    """Return arrays by path, and everything else as JSON."""
    arrays: dict[str, npt.NDArray[np.int64]] = {}
    populations: list[dict[str, Any]] = []
    for name, population in program.populations.items():
        registers: dict[str, Any] = {}
        for key, value in population.registers.items():
            if np.ndim(value) == 0:
                registers[key] = int(value)
            else:
                arrays[f"populations/{len(populations)}/{key}"] = np.asarray(value)
        populations.append({"name": name, "shape": list(population.shape), **registers})
    connections = []
    for i, connection in enumerate(program.connections):
        synapses = connection.synapses
        arrays[f"connections/{i}/weights"] = np.asarray(synapses.weights)
        options = {
            f.name: getattr(synapses, f.name) for f in fields(synapses) if f.name != "weights"
        }
        if isinstance(mode := options.get("sign_mode"), SignMode):
            options["sign_mode"] = mode.value
        kind = "conv" if isinstance(synapses, ConvParameters) else "dense"
        entry = {"source": connection.source, "target": connection.target, "kind": kind, **options}
        if connection.learning is not None:
            entry["learning"] = asdict(connection.learning)
        connections.append(entry)
    readout = {f.name: getattr(program.readout, f.name) for f in fields(program.readout)}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "input_shape": list(program.input_shape),
        "steps": program.steps,
        "populations": populations,
        "connections": connections,
        "readout": {**readout, "constants": dict(program.readout.constants)},
        "manifest": dict(program.manifest),
    }
    return arrays, json.loads(json.dumps(header, default=operator.index))  # numpy's integers, too


def _unpacked(arrays: Mapping[str, Any], header: Mapping[str, Any]) -> Program:
    populations = {}
    for i, entry in enumerate(header["populations"]):
        registers = {
            key: entry[key] if key in entry else arrays[f"populations/{i}/{key}"]
            for key in (*(f.name for f in fields(LIFParameters)), "start")
        }
        start = registers.pop("start")
        populations[entry["name"]] = Population(
            tuple(entry["shape"]), LIFParameters(**registers), start
        )
    connections = []
    for i, entry in enumerate(header["connections"]):
        options = {k: v for k, v in entry.items() if k not in ENDS}
        learning = entry.get("learning")
        if options.get("sign_mode") is not None:
            options["sign_mode"] = SignMode(options["sign_mode"])
        kind = {"conv": ConvParameters, "dense": DenseParameters}[entry["kind"]]
        synapses = kind(weights=arrays[f"connections/{i}/weights"], **options)
        made = None if learning is None else Learning.of(learning)
        connections.append(Connection(entry["source"], entry["target"], synapses, made))
    return Program(
        input_shape=tuple(header["input_shape"]),
        populations=populations,
        connections=tuple(connections),
        readout=Readout(**header["readout"]),
        steps=header["steps"],
        manifest=header["manifest"],
    )


def _checksum(arrays: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key], dtype="<i8")
        digest.update(f"{key} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
