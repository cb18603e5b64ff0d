"""lava-dl's network files (``.net``, HDF5), for netx of lava-dl 0.6.0.

A file is a chain of layers ``/layer/0``, ``/layer/1`` ...: ``input``, ``flatten``, ``dense``,
``dense_rec`` (onto itself, too) and ``conv``, maps channels first. netx makes of the numbers::

    du = neuron/iDecay - 1,  dv = neuron/vDecay,  vth = neuron/vThMant,  bias = bias << 6
    s  = most bits by which weights can be shifted to the left within the synapse's range
    z  = trailing bits (8 at most) that are zero in all weights
    weights = weight << s,  weight_exp = -s,  num_weight_bits = 8 - s - z (+ 1 where signs differ)

so that a dense layer sends the sums of ``weight`` as they stand; weights of a convolution are not
shifted. Those of ``dense_rec`` are shifted together. Names, readout, steps and manifest stand in
``/spikecl``, which netx does not look at.

Tests read ``.net`` files with our own reader only. For graded input say so to netx:
``Network(path, input_message_bits=...)``; the file has no place for it.

Source: lava/lib/dl/netx/{hdf5, utils}.py and blocks/process.py of lava-dl 0.6.0.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from spikecl_hardware.files import replacing
from spikecl_hardware.loihi.program import (
    INPUT,
    LIBVER,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
    Synapses,
)
from spikecl_hardware.loihi.semantics import ConvParameters, DenseParameters, LIFParameters

ABOUT = "spikecl"
BIAS_EXP = 6
Ints = npt.NDArray[np.int64]
Fields = dict[str, Any]


class NetxError(ProgramError):
    """A program that a ``.net`` file cannot hold, or a file that is none."""


@dataclass(frozen=True)
class _Layer:
    """One population of the chain, what leads to it, and its loop onto itself."""

    name: str
    forward: Connection
    loop: Connection | None


def save(program: Program, path: str | Path) -> Path:
    """Write a program as a ``.net`` file, whole or not at all.

    Raises:
        NetxError: The layer's name, and what netx cannot express or would store differently.
    """
    path = Path(path)
    layers, about = _written(program), _about(program)
    with replacing(path) as temporary, h5py.File(temporary, "w", libver=LIBVER) as file:
        for i, layer in enumerate(layers):
            for key, value in layer.items():
                file.create_dataset(f"layer/{i}/{key}", data=value, track_times=False)
        file.create_dataset(ABOUT, data=about, track_times=False)
    return path


def load(path: str | Path, *, steps: int | None = None) -> Program:
    """Read a ``.net`` file: what netx would run, as a program.

    Args:
        path: Of a file that :func:`save` wrote, or of another without delays and input neurons.
        steps: Of one sample; has to be given where the file does not say.

    Raises:
        NetxError: The layer, and what is missing or not supported.
        FileNotFoundError: No file is there.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with h5py.File(path, "r") as file:
            about = dict(json.loads(file[ABOUT][()].tobytes())) if ABOUT in file else {}
            layers = [_fields(file[f"layer/{i}"]) for i in range(len(file["layer"]))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise NetxError(f"{path}: no network file, or cut short ({error})") from None
    try:
        return _program(layers, about, steps)
    except (LookupError, TypeError, ValueError) as error:
        raise NetxError(f"{path}: {error}") from None


def _about(program: Program) -> npt.NDArray[np.uint8]:
    bits = {c.synapses.num_message_bits for c in program.connections if c.source == INPUT}
    text = json.dumps(
        {
            "names": [layer.name for layer in _chain(program)],
            "input_message_bits": max(bits),
            "readout": {**vars(program.readout), "constants": dict(program.readout.constants)},
            "steps": program.steps,
            "manifest": dict(program.manifest),
        },
        default=operator.index,
    )
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _chain(program: Program) -> list[_Layer]:
    """Return populations in the order in which one feeds the next; else NetxError."""
    layers: list[_Layer] = []
    left, source = list(program.connections), INPUT
    while ways := [c for c in left if c.source == source]:
        if len(ways) > 1:
            names = ", ".join(f"'{c.target}'" for c in ways)
            raise NetxError(f"'{source}' sends to {names}; netx runs one chain: leave one")
        name = ways[0].target
        loops = [c for c in left if c.source == c.target == name]
        if len(loops) > 1 or name in (layer.name for layer in layers):
            raise NetxError(f"'{source}' to '{name}': a loop; netx knows one onto the same layer")
        layers.append(_Layer(name, ways[0], loops[0] if loops else None))
        left = [c for c in left if c is not ways[0] and c not in loops]
        source = name
    for c in left:
        raise NetxError(f"'{c.source}' to '{c.target}': not part of one chain; netx runs no other")
    for name in set(program.populations) - {layer.name for layer in layers}:
        raise NetxError(f"'{name}': nothing leads to it; leave it out")
    return layers


def _written(program: Program) -> list[Fields]:
    """Return the datasets of all layers."""
    layers: list[Fields] = [{"type": _text("input"), "shape": np.array(program.input_shape)}]
    after_maps = len(program.input_shape) > 1
    for layer in _chain(program):
        shape, before = program.shape(layer.name), program.shape(layer.forward.source)
        maps = isinstance(layer.forward.synapses, ConvParameters)
        if after_maps and not maps:
            layers.append({"type": _text("flatten"), "shape": np.array([int(np.prod(before))])})
        try:
            if maps and not after_maps:
                raise NetxError("maps behind a dense layer; netx has none there")
            _refuse_messages(layer)
            made = _convolution(program, layer) if maps else _dense(layer)
            neurons = _neurons(program.populations[layer.name], maps=maps)
        except NetxError as error:
            raise NetxError(f"'{layer.name}': {error}") from None
        layers.append({"shape": np.array(shape), **made, **neurons})
        after_maps = maps
    return layers


def _refuse_messages(layer: _Layer) -> None:
    for c in (layer.forward, layer.loop):
        if c is not None and c.source != INPUT and c.synapses.num_message_bits:
            raise NetxError(
                f"messages of {c.synapses.num_message_bits} bits from '{c.source}'; netx reads "
                "graded ones from the input only"
            )


def _dense(layer: _Layer) -> Fields:
    both = [_sums(c.synapses) for c in (layer.forward, layer.loop) if c is not None]
    for stored, weights in zip(_stored(both), both, strict=True):
        if (stored.effective != weights << -stored.weight_exp).any():
            raise NetxError(f"netx would clip the weight {int(weights.min())}; rescale the layer")
    fields = dict(zip(("weight", "weight_rec"), both, strict=False))
    return {"type": _text("dense_rec" if layer.loop else "dense"), **fields}


def _sums(synapses: Synapses) -> Ints:
    """Return weights whose sums are what the synapses send."""
    if isinstance(synapses, ConvParameters):
        raise NetxError("a convolution onto itself; netx has dense loops")
    weights, e = np.asarray(synapses.effective), synapses.weight_exp
    if e < 0 and (weights & ((1 << -e) - 1)).any():
        raise NetxError(
            f"weight_exp {e} rounds sums down, netx sums whole weights; multiples of {1 << -e} "
            "are allowed"
        )
    return np.asarray(weights << e if e > 0 else weights >> -e)


def _stored(both: Sequence[Ints], bits: int = 0) -> list[DenseParameters]:
    """Return what netx makes of the weights of one layer."""
    low, high = min(int(w.min()) for w in both), max(int(w.max()) for w in both)
    signed = low < 0 <= high
    if not (low or high) or low < -256 or high > (254 if signed else 255):
        raise NetxError(
            f"weights from {low} to {high}; -256 to 254, or 0 to 255, not all zero, is what netx "
            "stores: rescale the layer"
        )
    if signed:
        shift = 1 + min(_room(127, high), _room(128, -low))
    else:
        shift = _room(255, high) if high > 0 else _room(256, -low)
    zeros = max(n for n in range(9) if not any((w & ((1 << n) - 1)).any() for w in both))
    try:
        return [
            DenseParameters(
                w << shift,
                weight_exp=-shift,
                num_weight_bits=8 - shift - zeros + signed,
                num_message_bits=b,
            )
            for w, b in zip(both, (bits, 0), strict=False)
        ]
    except ValueError as error:
        raise NetxError(f"weights that netx does not store as they are: {error}") from None


def _room(most: int, weight: int) -> int:
    """Return by how many bits a weight can be shifted without passing ``most``; -1 where it is."""
    return (most // weight).bit_length() - 1 if weight else 8


def _convolution(program: Program, layer: _Layer) -> Fields:
    synapses, shape = layer.forward.synapses, program.shape(layer.name)
    assert isinstance(synapses, ConvParameters)
    if shape != (out := synapses.out_shape(program.shape(layer.forward.source))):
        raise NetxError(f"neurons are {shape}, netx has maps {out}")
    if layer.loop:
        raise NetxError("maps with a loop onto themselves; netx has loops of dense layers only")
    return {
        "type": _text("conv"),
        "weight": np.asarray(synapses.weights),
        "stride": np.array([synapses.stride] * 2),
        "padding": np.array([synapses.padding] * 2),
        "dilation": np.array([1, 1]),
        "groups": 1,
    }


def _neurons(population: Population, *, maps: bool) -> Fields:
    neurons = population.neurons
    if np.any(population.start):
        raise NetxError("a membrane that does not start at 0; in netx it does")
    made: Fields = {
        "neuron/type": np.bytes_("CUBA"),
        "neuron/iDecay": _one("du", neurons.du) + 1,
        "neuron/vDecay": _one("dv", neurons.dv),
        "neuron/vThMant": _one("vth", neurons.vth),
        "neuron/refDelay": 1,
    }
    bias = np.broadcast_to(neurons.bias_mant << neurons.bias_exp, population.size)
    mantissa, limits = bias >> BIAS_EXP, range(-(1 << 12), 1 << 12)
    wrong = (mantissa << BIAS_EXP != bias) | (mantissa < limits[0]) | (mantissa > limits[-1])
    if wrong.any():
        raise NetxError(
            f"a bias of {int(bias[wrong][0])}; multiples of 64 from {limits[0] << BIAS_EXP} to "
            f"{limits[-1] << BIAS_EXP} is what netx has"
        )
    if mantissa.any():
        made["bias"] = mantissa.reshape(population.shape).T if maps else mantissa
    return made


def _one(what: str, value: Any) -> int:
    values = np.unique(np.asarray(value))
    if len(values) > 1:
        raise NetxError(f"{what} from {values[0]} to {values[-1]}; one number is allowed")
    return int(values[0])


def _text(kind: str) -> npt.NDArray[np.bytes_]:
    return np.array([kind.encode()])


def _fields(group: Any) -> Fields:
    """Return the datasets of a layer by path."""
    found: Fields = {}

    def keep(key: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[str(key)] = item[()]

    group.visititems(keep)
    return found


def _program(layers: Sequence[Fields], about: Mapping[str, Any], steps: int | None) -> Program:
    """Return the program that netx would run."""
    shape: tuple[int, ...] = ()
    names, source, bits = iter(about.get("names", ())), INPUT, about.get("input_message_bits", 0)
    populations: dict[str, Population] = {}
    connections: list[Connection] = []
    for i, fields in enumerate(layers):
        kind = _string(fields.get("type", "nameless"))
        name = f"layer{i}" if kind in ("input", "flatten") else str(next(names, f"layer{i}"))
        try:
            if kind == "input":
                shape = _input(fields)
            elif kind != "flatten":
                made = _synapses(kind, fields, bits)
                populations[name] = _population(fields, maps=kind == "conv")
                connections += [
                    Connection(origin, name, synapses)
                    for origin, synapses in zip((source, name), made, strict=False)
                ]
                source, bits = name, 0
        except KeyError as error:
            raise NetxError(f"'{name}' ({kind}): no {error.args[0]}") from None
        except (TypeError, ValueError) as error:
            raise NetxError(f"'{name}' ({kind}): {error}") from None
    if (steps := steps or about.get("steps")) is None:
        raise NetxError("the file does not say how many steps a sample has; give steps")
    readout = Readout(**about["readout"]) if "readout" in about else Readout(source)
    manifest = about.get("manifest", {})
    return Program(shape, populations, tuple(connections), readout, steps, manifest)


def _input(fields: Fields) -> tuple[int, ...]:
    if any(key.startswith("neuron/") for key in fields):
        raise NetxError("neurons of the input are not supported; spikes have to come in")
    return _shape(fields)


def _population(fields: Fields, *, maps: bool) -> Population:
    kind = _string(fields["neuron/type"])
    if kind not in ("CUBA", "LOIHI"):
        raise NetxError(f"neurons {kind} are not supported; CUBA, LOIHI are")
    for key in ("delay", "neuron/messageBits"):
        if np.any(fields.get(key, 0)):
            raise NetxError(f"{key} is not supported; 0 is")
    shape, bias = _shape(fields), _whole(fields, "bias") if "bias" in fields else np.array([0])
    if maps:
        bias = bias.T if bias.shape == shape[::-1] else bias[:, None, None]
    mantissa = np.broadcast_to(bias, shape).ravel() if maps else bias.ravel()
    if not maps and len(mantissa) == 1:
        mantissa = np.repeat(mantissa, int(np.prod(shape)))
    du, dv, vth = (
        _one(key, _whole(fields, key))
        for key in ("neuron/iDecay", "neuron/vDecay", "neuron/vThMant")
    )
    return Population(shape, LIFParameters(vth, du - 1, dv, mantissa, BIAS_EXP))


def _synapses(kind: str, fields: Fields, bits: int) -> Sequence[Synapses]:
    """Return what leads to a layer, and its loop onto itself where it has one."""
    if kind in ("dense", "dense_rec"):
        n = int(np.prod(_shape(fields)))
        keys = ("weight", "weight_rec")[: 1 + (kind == "dense_rec")]
        return _stored([_whole(fields, key).reshape(n, -1) for key in keys], bits)
    if kind != "conv":
        raise NetxError("not supported; input, flatten, dense, dense_rec, conv are")
    for key in ("dilation", "groups"):
        if (value := _one(key, _whole(fields, key))) != 1:
            raise NetxError(f"{key} {value} is not supported; 1 is")
    stride, padding = (_one(key, _whole(fields, key)) for key in ("stride", "padding"))
    weights = _whole(fields, "weight")
    return [ConvParameters(weights.reshape(weights.shape[:4]), stride, padding, bits)]


def _shape(fields: Fields) -> tuple[int, ...]:
    return tuple(int(n) for n in np.atleast_1d(_whole(fields, "shape")))


def _whole(fields: Fields, key: str) -> Ints:
    values = np.asarray(fields[key])
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    if (whole != values).any():
        raise NetxError(f"{key} is not whole; netx would round it")
    return whole


def _string(value: Any) -> str:
    value = value if isinstance(value, (str, bytes)) else np.ravel(value)[0]
    return value.decode() if isinstance(value, bytes) else str(value)
