"""Networks of whole numbers: made from a program to be trained on, and made into programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from spikecl_hardware.chain import Layer as ChainLayer
from spikecl_hardware.graph import Meta
from spikecl_hardware.loihi.linear_map import linear_map
from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program, Readout, Synapses
from spikecl_hardware.loihi.scales import THRESHOLD_LIMIT, UNIT, Needs, solve
from spikecl_hardware.loihi.semantics import (
    ConvParameters,
    DenseParameters,
    LIFParameters,
    SignMode,
)

from spikecl.errors import InteropError
from spikecl.interop.nir_out import described
from spikecl.interop.parts import Flatten
from spikecl.interop.site import Site
from spikecl.networks import AvgPool2d, Cells, Channels, Conv2d, Dropout, Layer, Linear, Network
from spikecl.networks.fixed_point import Graded, LoihiWeights, Shift
from spikecl.networks.network import own_parameters
from spikecl.networks.presynaptic import Presynaptic
from spikecl.networks.synapses import Synapse
from spikecl.neurons import LoihiLIF

Integers = NDArray[np.int64]


def quantised(network: Network, program: Program) -> Network:
    """Return a network that computes in a program's whole numbers and can be trained on.

    It stores the weights of ``network``, copied; the forward pass has their integers at the
    program's scales and :class:`~spikecl.neurons.LoihiLIF` for neurons, the backward pass takes
    rounding for the identity. Its spikes are those of :func:`program_of`, bit for bit. Dense
    weights are of mixed signs.

    Args:
        network: What the program was made from.
        program: From :func:`spikecl_hardware.loihi.quantise.quantise`.

    Raises:
        InteropError: A layer has a bias, a norm, weights of one bit, values of its own for each
            neuron, or neurons that send no spikes.
    """
    layers: dict[str, Layer] = {}
    for name, layer in network.layers.items():
        assert isinstance(layer, Layer)
        layers[name] = _quantised(Site(name, layer.synapse), layer, program)
    made = Network(
        layers, decoder=network.decoder, mean_first=network.mean_first, kernels=network.kernels
    )
    mine = made.weights()
    with torch.no_grad():
        for key, weight in network.weights().items():
            if key in mine:
                mine[key].copy_(weight)
    return made.to(next(network.parameters()).device)


def _quantised(site: Site, layer: Layer, program: Program) -> Layer:
    into = [c for c in program.connections if c.target == site.name]
    if not into:
        raise InteropError(f"the program has no layer '{site.name}'; make it from this network")
    if layer.synapse.bias is not None or layer.norm is not None:
        site.refuse("whole numbers are trained without biases and norms", "train without")
    scale = program.manifest["scales"][site.name]
    first, onto = into[0], into[1:]
    if any(getattr(c.synapses, "num_weight_bits", 8) < 2 for c in into):
        site.refuse("weights of one bit have one sign", "train with 2 bits or more")
    s = scale["weight"] * _input_scale(site, layer)
    told = program.manifest["input"] if first.source == INPUT else {"graded": False}
    before, pooled = _before(layer, told)
    s /= pooled
    synapse = _like(layer.synapse, _weights(first.synapses, s))
    exponent = getattr(first.synapses, "weight_exp", 0)
    if layer.neuron is None:  # no shift upwards: answers may grow in training, and none is lost
        lower = min(exponent, 0)
        norm = Shift(lower, UNIT * 2.0 ** (exponent - lower) / scale["unit"])
        return Layer(synapse, None, inputs=layer.inputs, before=before, norm=norm)
    recurrent = None
    if layer.recurrent is not None:
        recurrent = _recurrent(layer, onto[0].synapses, scale["unit"])
    return Layer(
        synapse,
        Cells(_neuron(site, layer, program.populations[site.name])),
        inputs=layer.inputs,
        before=before,
        norm=Shift(exponent),
        recurrent=recurrent,
    )


def _before(layer: Layer, told: Mapping[str, Any]) -> tuple[dict[str, Presynaptic], float]:
    """Return stages of whole numbers, and by how much pooling has become larger."""
    stages: dict[str, Presynaptic] = {}
    graded = Graded(told["scale"], told["bits"]) if told["graded"] else None
    pooled = 1.0
    for key, stage in layer.before.items():
        assert isinstance(stage, Presynaptic)
        if graded is not None and not isinstance(stage, Channels):
            stages["graded"], graded = graded, None
        stages[key] = stage
        if isinstance(stage, AvgPool2d) and stage.size is not None:  # sums are whole, means not
            stages[f"{key}_sum"] = Graded(float(stage.size**2))
            pooled *= stage.size**2
    if graded is not None:
        stages["graded"] = graded
    return stages, pooled


def _input_scale(site: Site, layer: Layer) -> float:
    """Return what the neurons scale their input by."""
    value = 1.0 if layer.neuron is None else getattr(layer.neuron.bound(), "input_scale", 1.0)
    if isinstance(value, torch.Tensor) and value.numel() > 1:
        site.refuse("its neurons differ", "train with one value for the layer")
    return float(value)


def _weights(synapses: Synapses, scale: float) -> LoihiWeights:
    if isinstance(synapses, ConvParameters):
        return LoihiWeights(scale=scale, shared=True)
    return LoihiWeights(scale=scale, bits=synapses.num_weight_bits)


def _like(synapse: Synapse, last: LoihiWeights) -> Synapse:
    """Return a synapse of the same shape with a map more."""
    maps = (*synapse.maps, last)
    if isinstance(synapse, Conv2d):
        kernel, stride, padding = synapse.geometry
        n_out, n_in = synapse.weight.shape[:2]
        return Conv2d(n_in, n_out, kernel=kernel, stride=stride, padding=padding, maps=maps)
    n_out, n_in = synapse.weight.shape
    return Linear(n_in, n_out, maps=maps)


def _recurrent(layer: Layer, synapses: Synapses, unit: float) -> Linear:
    """Return recurrent weights; their exponent goes into the numbers.

    One below zero would round sums; the numbers become smaller instead, in as many levels.
    """
    assert layer.recurrent is not None and isinstance(synapses, DenseParameters)
    n, exponent = layer.recurrent.weight.shape[0], synapses.weight_exp
    c = float(getattr(layer.neuron.bound() if layer.neuron else None, "input_scale", 1.0))
    factor = 2 ** max(exponent, 0)
    bits = min(synapses.num_weight_bits + max(-exponent, 0), 8)
    map_ = LoihiWeights(scale=c * unit / UNIT / factor, bits=bits, factor=factor)
    return Linear(n, n, maps=(*layer.recurrent.maps, map_))


def _neuron(site: Site, layer: Layer, population: Population) -> LoihiLIF:
    assert layer.neuron is not None
    if not layer.neuron.is_spiking:
        name = type(layer.neuron.neuron).__name__
        site.refuse(f"{name} sends no spikes", "train with a readout without neurons")
    values: dict[str, Any] = {}
    for name, value in asdict(population.neurons).items():
        if not isinstance(value, int):
            site.refuse(f"its neurons have {name} of their own", "train with one for the layer")
        values[name] = value
    own = layer.neuron.neuron
    options = {k: getattr(own, k) for k in ("surrogate", "detach_reset") if hasattr(own, k)}
    return LoihiLIF(**values, **options)


def program_of(
    network: Network, input_shape: tuple[int, ...], *, meta: Meta | None = None
) -> Program:
    """Return the program of a network of :class:`~spikecl.neurons.LoihiLIF`, without any rounding.

    Weights are the network's integers, so the program has its spikes, one step later for each
    layer. A readout that is no integers yet is quantised.

    Args:
        network: From :func:`quantised`, or a builder with such neurons.
        input_shape: Features of one step of input.
        meta: Steps, decoder, encoder and what else belongs into the file.

    Raises:
        InteropError: A layer has something else; it is named.
    """
    meta = replace(Meta() if meta is None else meta, decoder=described(network.decoder))
    populations: dict[str, Population] = {}
    connections: list[Connection] = []
    scales: dict[str, Any] = {}
    told: dict[str, Any] = {"scale": 1.0, "graded": False, "bits": 0}
    first_shape = shape = _entering(network, tuple(input_shape))
    source, last = INPUT, list(network.layers)[-1]
    for name, layer in network.layers.items():
        assert isinstance(layer, Layer)
        site = Site(name, layer.synapse)
        if layer.inputs != (source,) or layer.currents:
            site.refuse("listens to more than the layer before it", "use a chain of layers")
        if layer.neuron is None and name != last:
            site.refuse("only the readout does without neurons", "give it LoihiLIF neurons")
        nodes, graded = _stages(site, layer, first=source == INPUT)
        if graded is not None:
            told = {"scale": graded.scale, "graded": True, "bits": graded.bits}
        elif source == INPUT and not meta.input.get("spikes", True):
            site.refuse(
                "was trained on input that is no spikes, without rounding it",
                "use an encoder of spikes, such as rate, or quantised(...)",
            )
        neurons = _registers(site, layer, meta)
        weights, exponent, unit = _integers(site, layer, meta)
        bits = told["bits"] if source == INPUT else 0
        made, shape = _synapses(site, layer, nodes, weights, exponent, shape, bits)
        populations[name] = Population(shape, neurons)
        connections.append(Connection(source, name, made))
        if layer.recurrent is not None:
            connections.append(Connection(name, name, _onto(site, layer.recurrent)))
        scales[name] = {"weight": _scale_of(layer.synapse), "exponent": exponent, "unit": unit}
        source = name
    assert isinstance(layer, Layer)
    return Program(
        input_shape=first_shape,
        populations=populations,
        connections=tuple(connections),
        readout=_readout(layer, last, unit, meta),
        steps=meta.steps,
        manifest={"meta": asdict(meta), "input": told, "scales": scales, "exact": True},
    )


def _entering(network: Network, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the input's features channel-first, where the first layer moves them."""
    first = next(iter(network.layers.values()))
    assert isinstance(first, Layer)
    if not any(isinstance(stage, Channels) for stage in first.stages()):
        return (int(np.prod(shape)),) if isinstance(first.synapse, Linear) else shape
    return (1, *shape) if len(shape) == 2 else (*shape[2:], *shape[:2])


def _stages(
    site: Site, layer: Layer, *, first: bool
) -> tuple[tuple[nir.NIRNode, ...], Graded | None]:
    """Return pooling as nodes, and how the input becomes messages."""
    nodes: list[nir.NIRNode] = []
    graded = None
    for stage in layer.stages():
        if isinstance(stage, AvgPool2d) and stage.size is not None:
            side = np.array([stage.size] * 2)
            nodes.append(nir.AvgPool2d(side, side, np.array([0, 0])))
        elif isinstance(stage, Graded) and nodes and isinstance(nodes[-1], nir.AvgPool2d):
            pool = nodes.pop()
            nodes.append(nir.SumPool2d(pool.kernel_size, pool.stride, pool.padding))
        elif isinstance(stage, Graded) and first and not nodes and graded is None:
            graded = stage
        elif not isinstance(stage, Channels | Dropout | Flatten):
            site.refuse(f"{type(stage).__name__} has no whole numbers", "train without it")
    if any(isinstance(node, nir.AvgPool2d) for node in nodes):
        site.refuse("a mean over a window is no whole number", "use quantised(...)")
    return tuple(nodes), graded


def _last_map(synapse: Synapse) -> LoihiWeights | None:
    last = synapse.maps[-1] if synapse.maps else None
    return last if isinstance(last, LoihiWeights) else None


def _scale_of(synapse: Synapse) -> float:
    last = _last_map(synapse)
    return 1.0 if last is None else last.scale


@torch.no_grad()
def _whole(site: Site, synapse: Synapse) -> Integers:
    """Return the integer weights without their factor."""
    last = _last_map(synapse)
    if last is None:
        site.refuse("its weights are no integers", "use quantised(...), or LoihiLIF in a builder")
    if synapse.bias is not None:
        site.refuse("whole numbers have no bias", "train without")
    own = own_parameters("", synapse, {f".{k}": v for k, v in synapse.named_parameters()})
    found = synapse.effective(own).double().cpu().numpy() / last.factor
    if not np.isfinite(found).all():
        site.refuse("has weights that are not finite", "train again")
    return np.rint(found).astype(np.int64)


def _integers(site: Site, layer: Layer, meta: Meta) -> tuple[Integers, int, float]:
    """Return integer weights, the exponent, and the units of a membrane of 1."""
    if _last_map(layer.synapse) is None and layer.neuron is None and layer.norm is None:
        return _readout_integers(site, layer, meta)
    if layer.norm is not None and not isinstance(layer.norm, Shift):
        site.refuse(f"{type(layer.norm).__name__} has no whole numbers", "train without")
    shift = layer.norm if isinstance(layer.norm, Shift) else Shift()
    return _whole(site, layer.synapse), shift.exponent, UNIT / shift.unit


@torch.no_grad()
def _readout_integers(site: Site, layer: Layer, meta: Meta) -> tuple[Integers, int, float]:
    """Quantise a readout that is still floats, for the worst case of its input."""
    synapse = layer.synapse
    if synapse.bias is not None or not isinstance(synapse, Linear):
        site.refuse("a readout of whole numbers is dense and without bias", "train such a one")
    own = own_parameters("", synapse, {f".{k}": v for k, v in synapse.named_parameters()})
    weights = synapse.effective(own).double().cpu().numpy()
    if not np.isfinite(weights).all():
        site.refuse("has weights that are not finite", "train again")
    reach = float(abs(weights).sum(1).max())
    needs = Needs(float(abs(weights).max()), reach, reach * meta.steps)
    scale = solve(needs, high=254, unit_in=1.0, clip=1.0)
    whole = np.clip(2 * np.rint(weights * scale.weight / 2), -254, 254).astype(np.int64)
    return whole, scale.exponent, scale.unit


def _synapses(
    site: Site,
    layer: Layer,
    nodes: tuple[nir.NIRNode, ...],
    weights: Integers,
    exponent: int,
    shape: tuple[int, ...],
    bits: int,
) -> tuple[Synapses, tuple[int, ...]]:
    """Return synapses of integer weights behind pooling, and the features behind them."""
    synapse, last = layer.synapse, _last_map(layer.synapse)
    out_shape: tuple[int, ...] = (len(weights),)
    node: nir.NIRNode = nir.Linear(weights.astype(np.float64))
    if isinstance(synapse, Conv2d):
        kernel, stride, padding = synapse.geometry
        pool = int(np.prod([n.kernel_size[0] for n in nodes]))
        size = tuple((n // pool + 2 * padding - kernel) // stride + 1 for n in shape[1:])
        out_shape = (len(weights), *size)
        side = shape[1] // pool, shape[2] // pool
        pad, step = (padding, padding), (stride, stride)
        none = np.zeros(len(weights))
        node = nir.Conv2d(side, weights.astype(np.float64), step, pad, (1, 1), 1, none)
    entry = ChainLayer(site.name, nodes, node, None, None, shape, out_shape)
    shared = last is not None and last.shared
    made = linear_map(entry, unroll=not shared)
    whole = np.rint(made.weights).astype(np.int64)
    if made.is_conv:
        return ConvParameters(whole, made.stride, made.padding, bits), out_shape
    options = {"num_weight_bits": 8 if last is None else last.bits, "num_message_bits": bits}
    return DenseParameters(whole, exponent, sign_mode=SignMode.MIXED, **options), out_shape


def _onto(site: Site, synapse: Synapse) -> DenseParameters:
    weights, last = _whole(site, synapse), _last_map(synapse)
    assert last is not None
    exponent = int(last.factor).bit_length() - 1
    return DenseParameters(weights, exponent, last.bits, SignMode.MIXED)


def _registers(site: Site, layer: Layer, meta: Meta) -> LIFParameters:
    """Return the neurons' registers; a readout without neurons adds up, or passes currents on."""
    if layer.neuron is None:
        summed = meta.decoder["name"] in ("mean", "sum")
        return LIFParameters(vth=THRESHOLD_LIMIT, du=4095, dv=0 if summed else 4095)
    n = layer.neuron.bound()
    if not isinstance(n, LoihiLIF):
        site.refuse(f"has {type(n).__name__} neurons", "use quantised(...), or LIF.loihi(...)")
    if n.refractory or n.random:
        site.refuse("the chip's neuron has no refractory period and no noise", "train without")
    return LIFParameters(n.vth, n.du, n.dv, n.bias_mant, n.bias_exp)


def _readout(layer: Layer, name: str, unit: float, meta: Meta) -> Readout:
    decoder = dict(meta.decoder)
    kind, units = decoder.pop("name"), int(decoder.pop("units", 1))
    if "beta" in decoder:
        decoder["kappa"] = decoder.pop("beta")  # files name every decay so
    options: dict[str, Any] = {"units": units, "constants": decoder}
    if layer.neuron is not None:
        return Readout(name, "spikes", kind, **options)
    if kind in ("mean", "sum"):
        steps = meta.steps if kind == "mean" else 1
        return Readout(name, "v", "last", scale=1 / (unit * steps), **options)
    return Readout(name, "u", kind, scale=1 / unit, **options)
