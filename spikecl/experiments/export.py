"""Trained networks become files: NIR, Loihi programs, lava-dl's ``.net``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nir
import numpy as np
import torch
from spikecl_hardware.graph import Meta, checksum, write
from spikecl_hardware.loihi import limits, netx
from spikecl_hardware.loihi.program import Program
from spikecl_hardware.loihi.quantise import SEARCH, Options, quantise

from spikecl.errors import UsageError
from spikecl.experiments.result import RunResult
from spikecl.experiments.trained import Trained
from spikecl.interop.boundary import as_input, hardware_errors
from spikecl.interop.loihi_networks import program_of
from spikecl.interop.nir_out import to_nir
from spikecl.networks import Layer, Network
from spikecl.neurons import LoihiLIF
from spikecl.records import RunRecord
from spikecl.storage import writing
from spikecl.streams import Stream

Target = Literal["nir", "loihi", "netx"]
SUFFIXES: dict[str, str] = {"nir": ".nir", "loihi": ".h5", "netx": ".net"}
CALIBRATE = 256


class Exported(NamedTuple):
    """Files that were written, and what is in them.

    Args:
        path: The file that was asked for.
        graph: The network as a NIR file; None where neurons are Loihi's already.
        program: The integers, of a Loihi program.
        meta: What the file says beside the network.
        cores: Where its layers lie on the chip.
    """

    path: Path
    graph: Path | None
    program: Program | None
    meta: Meta
    cores: tuple[limits.Placement, ...]


def export(
    source: Network | RunResult | RunRecord,
    path: str | Path | None = None,
    *,
    to: Target = "nir",
    input_shape: Sequence[int] | None = None,
    meta: Meta | None = None,
    calibration: torch.Tensor | None = None,
    calibrate: int = CALIBRATE,
    options: Options | None = None,
    chip: limits.Chip = limits.LOIHI2,
    chips: int = 1,
    stream: Stream | None = None,
    data_dir: str | Path | None = None,
) -> Exported:
    """Write a trained network to a file that reproduces it alone.

    ``nir`` is the graph in floats, ``loihi`` a program of integers that every backend runs bit for
    bit the same (its graph is written beside it), ``netx`` the program for lava-dl. A network of
    :class:`~spikecl.neurons.LoihiLIF` is integers already and is written as it is.

    Args:
        source: A finished run, or a network of your own.
        path: The file; of a run by default ``export/`` in its directory.
        to: What to write.
        input_shape: Features of one step of encoded input; a run knows its own.
        meta: Steps, encoder, input range and class names; a run knows its own.
        calibration: Encoded training input [T, B, *features] for scales, of a network.
        calibrate: Training samples for the same, of a run; 0 takes the worst case.
        options: How numbers become integers.
        chip: Whose limits hold.
        chips: How many of them there are.
        stream: Of a run that was made from Python objects.
        data_dir: Folder with data sets, of a run from a configuration.

    Raises:
        InteropError: A layer cannot be written; it is named.
        HardwareError: Numbers fit no register, or layers not the chip.
        RunError: The run is not finished, or has no configuration and no stream was given.
    """
    if to not in SUFFIXES:
        raise UsageError(f"to={to!r}; {', '.join(SUFFIXES)} are allowed")
    if not isinstance(source, Network | RunResult | RunRecord):
        raise UsageError(
            f"export of a {type(source).__name__}; a network, or the result of a run or load() is "
            "allowed"
        )
    if calibrate < 0:
        raise UsageError(f"calibrate={calibrate}; a number of samples, or 0, is allowed")
    if isinstance(source, Network):
        if path is None or input_shape is None:
            raise UsageError("export of a network: give a path and the input_shape of one step")
        network, shape = source, tuple(input_shape)
        meta = _meta_of(meta, calibration)
    else:
        record = source.record if isinstance(source, RunResult) else source
        folder = None if data_dir is None else Path(data_dir)
        network, tests, config = Trained.of(record, stream=stream, data_dir=folder)
        seen = tests.calibration(max(calibrate, 1))
        shape = tuple(seen.shape[2:])
        meta = tests.meta(seen, config) if meta is None else meta
        calibration = seen if calibrate else None
        path = path or record.path / "export" / f"{record.id}{SUFFIXES[to]}"
    path = Path(path)
    if path.is_dir():
        file = path / f"network{SUFFIXES[to]}"
        raise UsageError(f"{path} is a folder; name a file in it, such as {file}")
    if (path.suffix == ".nir") != (to == "nir"):
        raise UsageError(f"{path}: a file of to={to!r} has to be called *{SUFFIXES[to]}")
    with hardware_errors():
        return _write(network, path, to, shape, meta, calibration, options, chip, chips)


def _write(
    network: Network,
    path: Path,
    to: Target,
    shape: tuple[int, ...],
    meta: Meta,
    calibration: torch.Tensor | None,
    options: Options | None,
    chip: limits.Chip,
    chips: int,
) -> Exported:
    graph_path = None
    if is_whole(network):
        if to == "nir":
            raise UsageError(
                "NIR has no neurons of whole numbers; export them with to='loihi', or the network "
                "they were made from"
            )
        program = program_of(network, shape, meta=meta)
    else:
        graph = to_nir(network, shape, meta=meta)
        graph_path = path if to == "nir" else path.with_suffix(".nir")
        if to == "nir":
            save_graph(graph, path)
            return Exported(path, path, None, meta, ())
        if calibration is None and options is not None and len(options.clips) > 1:
            raise UsageError("scales are tried on calibration data; give some, or do not search")
        seen = None
        if calibration is not None:
            taken = tuple(int(n) for n in graph.nodes["input"].input_type["input"])
            seen = as_input(calibration.detach().cpu(), taken).numpy()
        program = quantise(graph, calibration=seen, options=_fitting(options, to))
        made_from = {"graph": graph_path.name, "graph_sha256": checksum(graph)}
        program = replace(program, manifest={**program.manifest, **made_from})
    cores = tuple(limits.check(program, chip, chips=chips))
    if to == "netx":
        with _place(path):
            netx.save(program, path)
        return Exported(path, None, program, meta, cores)
    if graph_path is not None:
        save_graph(graph, graph_path)
    with _place(path):
        program.save(path)
    return Exported(path, graph_path, program, meta, cores)


def is_whole(network: Network) -> bool:
    """Whether a network has neurons of Loihi."""
    cells = [x.neuron for x in network.layers.values() if isinstance(x, Layer) and x.neuron]
    return any(isinstance(c.neuron, LoihiLIF) for c in cells)


def save_graph(graph: nir.NIRGraph, path: Path) -> None:
    """Write a NIR file, whole or not at all."""
    with _place(path):
        write(graph, path)


@contextlib.contextmanager
def _place(path: Path) -> Iterator[None]:
    """Make the folder of a file; what cannot be written is named."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield


def _meta_of(meta: Meta | None, calibration: torch.Tensor | None) -> Meta:
    meta = Meta() if meta is None else meta
    if calibration is None or meta.input:
        return meta
    x = calibration.detach().cpu().numpy()
    steps = len(x) if meta.steps == 1 else meta.steps
    told: dict[str, Any] = {"spikes": bool(np.isin(x, (0, 1)).all())}
    return replace(meta, steps=steps, input={**told, "low": float(x.min()), "high": float(x.max())})


def options_of(
    weight_bits: int, message_bits: int, convolutions: Any, *, search: bool, to: str
) -> Options:
    """Return options, refused with their names where they are out of range."""
    try:
        clips = SEARCH if search else (1.0,)
        made = Options(weight_bits, message_bits, convolutions, clips)
        return _fitting(made, to)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _fitting(options: Options | None, to: str) -> Options:
    """Return options with which a file can hold the numbers."""
    options = Options() if options is None else options
    return replace(options, exponents="fixed") if to == "netx" else options


def chip_named(name: str) -> limits.Chip:
    """Return the limits of a chip."""
    chips = {"loihi1": limits.LOIHI1, "loihi2": limits.LOIHI2}
    if name not in chips:
        raise UsageError(f"chip {name!r}; {', '.join(chips)} are allowed")
    return chips[name]


def layer_rows(made: Exported) -> list[dict[str, Any]]:
    """Return a row for each layer of a program: size, scale, and cores."""
    if made.program is None:
        return []
    scales = made.program.manifest.get("scales", {})
    rows = []
    for cores in made.cores:
        scale = scales.get(cores.population, {})
        rows.append(
            {
                "layer": cores.population,
                "neurons": made.program.populations[cores.population].size,
                "synapses": cores.synapses,
                "cores": cores.cores,
                "a weight of 1": scale.get("weight"),
                "exponent": scale.get("exponent"),
                "a membrane of 1": scale.get("unit"),
            }
        )
    return rows
