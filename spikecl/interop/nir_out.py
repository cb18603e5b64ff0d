"""Our networks become NIR graphs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from spikecl.components import to_table
from spikecl.encoding.decoders import DECODERS, Decoder, PopulationDecoder
from spikecl.errors import InteropError, UsageError
from spikecl.interop.nir_neurons import array, check, write
from spikecl.interop.parts import Currents, Flatten
from spikecl.interop.site import Site
from spikecl.interop.torch_out import effective
from spikecl.networks import (
    AvgPool2d,
    AxonalDelay,
    BatchNorm,
    Channels,
    Conv2d,
    Dropout,
    Layer,
    Linear,
    MaxPool2d,
    Network,
    ShortTermPlasticity,
    Synapse,
    TimeWindow,
)
from spikecl.networks.norm import EPSILON

if TYPE_CHECKING:
    import nir
    from spikecl_hardware.graph import Meta


@torch.no_grad()
def to_nir(
    network: Network,
    input_shape: Sequence[int],
    *,
    meta: Meta | None = None,
    dt: float = 1e-4,
) -> nir.NIRGraph:
    """Return a NIR graph with the network's spikes in evaluation mode; ``nir.write`` makes a file.

    A layer's nodes are ``LAYER.pool``, ``LAYER.flatten``, ``LAYER.synapse``, ``LAYER.neuron`` and
    ``LAYER.recurrent``. Weights are those a layer uses: maps and batch normalisation are in them.
    Time constants are Euler's, ``tau = dt / (1 - beta)``, so that whoever steps by ``dt`` decays by
    ``beta``. Norse forgets ``r`` of a LIF, so it is 1 and weights are divided by ``1 - beta``
    (unless ``scale_input`` did that); ``r`` is there only where a convolution's places differ.

    The input has the features that the first synapse takes: one axis before a dense one, maps
    [C, H, W] before a convolution. Images [H, W, C] have to be moved by who sends them.

    Args:
        network: A chain of layers.
        input_shape: Shape of one step of its data.
        meta: What the file says besides; its ``dt`` and ``decoder`` are put in here.
        dt: Seconds of a step; snnTorch's reader assumes this one.

    Raises:
        InteropError: A layer has no equal; it is named with the difference and what to do.

    Example:
        >>> from spikecl.networks import SpikingMlp
        >>> from spikecl.neurons import LIF, Reset
        >>> neuron = LIF(beta=0.5, reset=Reset.ZERO)
        >>> graph = to_nir(SpikingMlp(hidden=(3,), neuron=neuron).build((4,), 2), (4,))
        >>> [name for name in graph.nodes]
        ['input', 'hidden1.synapse', 'hidden1.neuron', 'readout.synapse', 'output']
    """
    import nir
    from spikecl_hardware.chain import chain
    from spikecl_hardware.graph import GraphError, Meta

    if not 0 < dt < math.inf:
        raise InteropError(f"to_nir: got dt={dt}; give the seconds of a step, above 0")
    row, source = None, "input"
    for name, module in network.layers.items():
        layer = cast(Layer, module)
        site = Site(name, layer.neuron.neuron if layer.neuron else layer.synapse, True)
        if layer.inputs != (source,) or layer.currents:
            site.refuse(
                f"listens to {[*layer.inputs, *layer.currents]}, a file has layers in a row "
                f"(here behind '{source}')",
                "use a network without shortcuts",
            )
        row = row or _Row(_entering(site, layer, tuple(input_shape)))
        _write(site, layer, row, dt)
        source = name
    assert row is not None
    row.add("output", nir.Output(np.array(row.shape)), row.shape)
    made = nir.NIRGraph(row.nodes, row.edges)
    replace(meta or Meta(), dt=dt, decoder=described(network.decoder)).attach(made)
    try:
        chain(made)  # weights that are not finite, and whatever else no reader would take
    except GraphError as error:
        raise InteropError(str(error)) from None
    return made


class _Row:
    """Nodes in a row, and the features behind the last one."""

    def __init__(self, shape: tuple[int, ...]):
        import nir

        self.nodes: dict[str, Any] = {"input": nir.Input(np.array(shape))}
        self.edges: list[tuple[str, str]] = []
        self.last, self.shape = "input", shape

    def add(self, name: str, node: Any, shape: tuple[int, ...]) -> None:
        """Add a node behind the last."""
        self.nodes[name] = node
        self.edges.append((self.last, name))
        self.last, self.shape = name, shape

    def around(self, name: str, node: Any) -> None:
        """Add a node from the last onto itself: before what follows, or Norse answers with it."""
        self.nodes[name] = node
        self.edges += [(self.last, name), (name, self.last)]


def _entering(site: Site, layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the features as the first synapse takes them."""
    stages = layer.stages()
    if any(isinstance(stage, Channels) for stage in stages):
        if len(shape) not in (2, 3):
            site.refuse(f"takes images [H, W] or [H, W, C], input_shape is {shape}", "give theirs")
        return (*shape[2:], *shape[:2]) if len(shape) == 3 else (1, *shape)
    pools = any(isinstance(stage, AvgPool2d) for stage in stages)
    return shape if pools or not isinstance(layer.synapse, Linear) else (math.prod(shape),)


def _write(site: Site, layer: Layer, row: _Row, dt: float) -> None:
    """Add a layer's nodes."""
    import nir

    model, onto = None if layer.neuron is None else layer.neuron.bound(), layer.recurrent
    if model is not None:
        check(site, model)
    for stage in layer.stages():
        if not isinstance(stage, Channels) or row.last != "input":
            _stage(site, stage, row)
    weight, bias = _drive(site, layer)
    if onto is not None and onto.bias is not None:  # there at every step, the first too
        bias = _double(onto.bias) if bias is None else bias + _double(onto.bias)
    shape = _behind(site, layer, row, len(weight))
    if onto is not None and len(shape) > 1:
        site.refuse("its maps listen to each other, here one axis does", "use a dense layer")
    node = None if model is None else write(site, model, shape, dt)
    rows = torch.ones(len(weight)).double() if node is None else node.rows(len(weight))
    dtype = layer.synapse.weight.dtype
    made = _synapse(
        layer.synapse,
        array(weight * rows.view(-1, *[1] * (weight.dim() - 1)), dtype),
        None if bias is None else array(bias * rows, dtype),
        row.shape,
    )
    row.add(f"{site.name}.synapse", made, shape)
    if node is not None:
        row.add(f"{site.name}.neuron", node.made(), shape)
    if onto is not None:
        back = _double(effective(site, onto)) * rows[:, None]
        row.around(f"{site.name}.recurrent", nir.Linear(array(back, dtype)))


def _synapse(own: Synapse, weight: Any, bias: Any, shape: tuple[int, ...]) -> Any:
    """Return a node; none with a bias where that is zero, as nirtorch misreads it."""
    import nir

    if isinstance(own, Conv2d):
        _, stride, padding = own.geometry
        added = np.zeros(len(weight), dtype=weight.dtype) if bias is None else bias
        pairs = (stride, stride), (padding, padding), (1, 1)
        return nir.Conv2d(shape[1:], weight, *pairs, 1, added)
    return nir.Affine(weight, bias) if np.any(bias) else nir.Linear(weight)


def _double(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)


def _drive(site: Site, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias with what comes between the synapse and its neurons."""
    own, flat = layer.synapse, False
    if type(own) is not Conv2d and not isinstance(own, Linear):
        site.refuse(f"{type(own).__name__} has no node", "use Linear or Conv2d")
    weight = _double(effective(site, own))
    bias = None if own.bias is None else _double(own.bias)
    norms = layer.norm if isinstance(layer.norm, Currents) else [layer.norm]
    for part in norms:
        if isinstance(part, BatchNorm) and not flat:
            gain = _double(part.gain.abs() if part.positive else part.gain)
            scale = gain * torch.rsqrt(_double(part.variance) + EPSILON)
            offset = _double(part.shift) - _double(part.mean) * scale
            weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
            bias = offset if bias is None else bias * scale + offset
        elif isinstance(part, Flatten):  # neurons keep the maps; what follows flattens them
            flat = weight.dim() > 2
        elif part is not None and not isinstance(part, Dropout):
            site.refuse(
                f"{type(part).__name__} changes currents; in a file neurons follow a synapse",
                "put it behind the neurons",
            )
    return weight, bias


_STAGES = {
    MaxPool2d: ("NIR has no maximum pooling", "train with pool='average'"),
    AxonalDelay: ("a file has no delays here", "train with axonal_delay=0"),
    TimeWindow: ("a file has no delays of connections", "train with delay=0"),
    ShortTermPlasticity: ("NIR has no short-term plasticity", "train without stp"),
    Channels: ("moves axes of what is no image any more", "use it where data enter"),
}


def _stage(site: Site, stage: Any, row: _Row) -> None:
    """Add what happens to activity before a synapse."""
    import nir

    if isinstance(stage, (Dropout, Flatten)):  # a dense synapse flattens by itself
        return
    if not isinstance(stage, AvgPool2d):
        told = next((t for kind, t in _STAGES.items() if isinstance(stage, kind)), None)
        site.refuse(*told or (f"{type(stage).__name__} has no node", "use a network without it"))
    if len(row.shape) != 3:
        site.refuse(f"pools maps [C, H, W], gets {row.shape}", "give input_shape of the data")
    channels, *sides = row.shape
    size = np.array(sides if stage.size is None else [stage.size] * 2)
    if (size > sides).any():
        site.refuse(f"pools {size.tolist()}, maps are {sides}", "give input_shape of the data")
    name = f"{site.name}.pool"
    while name in row.nodes:
        name += "_"
    shape = (channels, *(int(n // k) for n, k in zip(sides, size, strict=True)))
    row.add(name, nir.AvgPool2d(size, size.copy(), np.zeros(2, dtype=int)), shape)


def _behind(site: Site, layer: Layer, row: _Row, outputs: int) -> tuple[int, ...]:
    """Return the features behind a synapse; flatten those before a dense one."""
    import nir

    taken, remedy = layer.synapse.inputs, "give input_shape of one step of the network's data"
    if isinstance(layer.synapse, Conv2d):
        kernel, stride, padding = layer.synapse.geometry
        sides = [(n + 2 * padding - kernel) // stride + 1 for n in row.shape[1:]]
        if len(row.shape) != 3 or row.shape[0] != taken or min(sides) < 1:
            site.refuse(f"takes maps [{taken}, H, W], gets {row.shape}", remedy)
        return (outputs, *sides)
    if taken != (n := math.prod(row.shape)):
        site.refuse(f"takes {taken} inputs, gets {row.shape}", remedy)
    if len(row.shape) > 1:
        node = nir.Flatten(np.array(row.shape), start_dim=0, end_dim=-1)
        row.add(f"{site.name}.flatten", node, (n,))
    return (outputs,)


def described(decoder: Decoder) -> dict[str, Any]:
    """Return a decoder as files name it."""
    if isinstance(decoder, PopulationDecoder):
        return {"name": "mean", "units": decoder.units}
    name = next((name for name, kind in DECODERS.items() if type(decoder) is kind), None)
    if name is None:
        raise InteropError(
            f"decoder {type(decoder).__name__}: files know {', '.join(DECODERS)}; use one of them"
        )
    return {"name": name, **to_table(decoder), "units": 1}


def first_difference(ours: Any, theirs: Any) -> tuple[int, ...] | None:
    """Return where two recordings first differ: step, sample and neuron; ``None`` if nowhere.

    Args:
        ours: Values [T, B, *features].
        theirs: What another program computed from the same file.

    Example:
        >>> first_difference([[[0, 1]], [[0, 0]]], [[[0, 1]], [[0, 1]]])
        (1, 0, 1)
    """
    a, b = (x.detach().cpu() if isinstance(x, Tensor) else x for x in (ours, theirs))
    one, other = np.asarray(a), np.asarray(b)
    if one.shape != other.shape:
        raise UsageError(f"recordings have shapes {one.shape} and {other.shape}; give equal ones")
    found = np.argwhere(one != other)
    return tuple(int(k) for k in found[0]) if len(found) else None
