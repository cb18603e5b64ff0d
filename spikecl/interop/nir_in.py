"""NIR graphs become our networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from spikecl.components import from_table
from spikecl.encoding.decoders import DECODERS, Decoder, PopulationDecoder
from spikecl.errors import ConfigError, InteropError, suggest
from spikecl.interop.nir_neurons import read
from spikecl.interop.parts import Neurons
from spikecl.interop.site import Site
from spikecl.interop.torch_in import Assembly, with_tensors
from spikecl.networks import AvgPool2d, Cells, Conv2d, Linear, Network, Synapse

if TYPE_CHECKING:
    import nir
    from spikecl_hardware import chain, graph


def from_nir(
    graph: nir.NIRGraph | str | Path, *, dt: float | None = None, decoder: Decoder | None = None
) -> Network:
    """Return the network of a NIR graph or a ``.nir`` file, with the spikes it stands for.

    Equations are those of ``spikecl_hardware.chain``: Euler steps of ``dt``, and a spike sets the
    membrane to ``v_reset`` in its own step. Weights are copied, of the file's type; gradients are
    those of new neurons, as files have none. ``Output.steps`` has all steps of the last layer.

    What a file does not say: snnTorch's writer forgets a reset by subtraction (its default) or at
    the next step after the input; only ``reset_mechanism="zero"`` runs here as it did there.
    Norse's ``to_nir`` writes ``dt`` times its time constants: call it with ``dt=1``, and this with
    the ``dt`` of its cells. It also forgets ``v_reset``, and the gain ``tau_syn / dt`` of
    ``LIFCell``.

    Args:
        graph: A chain of layers, or the file of one.
        dt: Seconds of a step; by default what the file says, else 1e-4, as in snnTorch.
        decoder: From the last layer's output [T, B, C] to logits; by default the file's, else the
            mean.

    Raises:
        InteropError: The graph has something that networks here have not; the node is named.
        FileNotFoundError: There is no such file.
    """
    from spikecl_hardware.chain import chain
    from spikecl_hardware.graph import GraphError, Meta
    from spikecl_hardware.graph import read as read_file

    try:
        found = read_file(graph) if isinstance(graph, str | Path) else graph
        decoder = _decoder(Meta.of(found)) if decoder is None else decoder
        _, layers = chain(found, dt=dt)
    except GraphError as error:
        raise InteropError(str(error)) from None
    dtype = _dtype(layers)
    assembly = Assembly()
    for layer in layers:
        _add(assembly, layer, dtype)
    return assembly.network(decoder)


def _dtype(layers: list[chain.Layer]) -> torch.dtype:
    """Return float64 where a weight has it, else float32."""
    double = any(_array(layer.synapse.weight).dtype == np.float64 for layer in layers)
    return torch.float64 if double else torch.float32


def _array(value: Any) -> Any:
    """Return an array; Norse's nodes have tensors."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _add(assembly: Assembly, layer: chain.Layer, dtype: torch.dtype) -> None:
    """Add a layer."""
    import nir

    factor, shape = 1.0, layer.in_shape
    for node in layer.before:
        if not isinstance(node, nir.Flatten):  # a dense synapse flattens by itself
            site = Site(f"{layer.name}.pool", node)
            pool, share, shape = _pool(site, node, shape)
            assembly.add(site, pool)
            factor *= share
    cells, rows = None, torch.ones(layer.out_shape[0]).double()
    if layer.neurons is not None:
        site = Site(f"{layer.name}.neuron", layer.synapse)
        neuron, rows = read(site, layer.neurons, layer.out_shape, dtype)
        cells = Cells(neuron, learns=())
    site = Site(layer.name, layer.synapse)
    assembly.add(site, _synapse(site, factor, rows, dtype))
    if cells is not None:
        onto = None
        if layer.recurrent is not None:
            back = Site(f"{layer.name}.recurrent", layer.recurrent)
            each = rows.repeat_interleave(int(np.prod(layer.out_shape)) // len(rows))
            onto = cast(Linear, _synapse(back, 1.0, each, dtype))
        assembly.add(site, Neurons(cells, onto))


def _synapse(site: Site, factor: float, rows: Tensor, dtype: torch.dtype) -> Synapse:
    """Return a synapse with each row of its weights and its bias scaled."""
    import nir

    node: Any = site.part
    weight = torch.from_numpy(_array(node.weight).astype(np.float64))
    weight = factor * weight * rows.view(-1, *[1] * (weight.dim() - 1))
    given = getattr(node, "bias", None)
    bias = None
    if given is not None and (isinstance(node, nir.Affine) or np.any(_array(given))):
        bias = torch.from_numpy(_array(given).astype(np.float64)) * rows
    made: Synapse
    if isinstance(node, nir.Conv2d):
        n, m, *kernel = weight.shape
        if kernel[0] != kernel[1]:
            site.refuse(f"its kernel is {kernel[0]} by {kernel[1]}", "use a square one")
        stride, padding = (int(np.atleast_1d(v)[0]) for v in (node.stride, node.padding))
        made = Conv2d(m, n, kernel=kernel[0], stride=stride, padding=padding, bias=bias is not None)
    else:
        made = Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    tensors = {"weight": weight.to(dtype), "bias": None if bias is None else bias.to(dtype)}
    made = with_tensors(made, **tensors)
    return made.requires_grad_()


def _pool(
    site: Site, node: Any, shape: tuple[int, ...]
) -> tuple[AvgPool2d, float, tuple[int, ...]]:
    """Return a pool, what the weights behind it are multiplied by, and the features behind it."""
    import nir

    pairs = (node.kernel_size, node.stride, node.padding)
    size, stride, padding = ([int(n) for n in np.broadcast_to(v, 2)] for v in pairs)
    channels, *sides = shape
    factor = float(np.prod(size)) if isinstance(node, nir.SumPool2d) else 1.0
    if not any(padding) and size == sides:
        return AvgPool2d(None), factor, (channels, 1, 1)
    if any(padding) or size != stride or size[0] != size[1]:
        site.refuse(
            f"kernel_size={size}, stride={stride}, padding={padding}: windows here are square and "
            "lie side by side within the map",
            "use kernel_size=stride and padding=0",
        )
    return AvgPool2d(size[0]), factor, (channels, *(n // size[0] for n in sides))


def _decoder(meta: graph.Meta) -> Decoder:
    """Return the decoder that a file names."""
    table = dict(meta.decoder)
    name, units = str(table.pop("name", "mean")), table.pop("units", 1)
    known = [key for key in DECODERS if key != "population"]
    if name not in known:
        raise InteropError(f"metadata: decoder '{name}'{suggest(name, known)}; or pass decoder")
    if units != 1 and name != "mean":
        raise InteropError(
            f"metadata: decoder '{name}' with {units} units for each class; here they go with "
            "'mean': pass decoder"
        )
    try:
        if units != 1:
            return PopulationDecoder(units=units)
        return from_table(DECODERS[name], table, f"decoder.{name}")
    except ConfigError as error:
        raise InteropError(f"metadata: {error}; or pass decoder") from None
