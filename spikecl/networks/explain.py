"""Which kernel runs where, and why."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from spikecl.kernels import choose
from spikecl.kernels.events import Events
from spikecl.networks.layer import Cells, Layer
from spikecl.networks.network import Network
from spikecl.networks.synapses import Conv2d
from spikecl.networks.tap import Tap


class Plan(NamedTuple):
    """How one layer is computed.

    Args:
        layer: Name of the layer.
        synapse: The product of its synapse, and its form.
        rows: Rows of that product.
        density: Fraction of the entries of the rows that are not zero.
        kernel: The scan of its neurons.
        reason: Why that one.
    """

    layer: str
    synapse: str
    rows: int
    density: float
    kernel: str
    reason: str


def explain(network: Network, batch: Tensor) -> list[Plan]:
    """Return the plan of each layer for an input [T, B, *features].

    Raises:
        KernelError: A kernel that ``network.kernels`` asks for by name cannot run here.

    Example:
        >>> from spikecl.networks import SpikingMlp
        >>> net = SpikingMlp(hidden=(8,)).build((4,), 2)
        >>> explain(net, torch.zeros(3, 5, 4))[0].synapse
        'one product 4x8'
    """
    taps: dict[str, Tap] = {}
    generator = torch.Generator() if network.is_random else None
    with torch.enable_grad():
        network(batch, taps=taps, generator=generator)
    plans = []
    for name, module in network.layers.items():
        layer, tap = cast(Layer, module), taps[name]
        rows = tap.rows
        shape = "x".join(str(n) for n in reversed(layer.synapse.weight.shape))
        product = "convolution" if isinstance(layer.synapse, Conv2d) else "product"
        form = f" of {len(tap.kept.columns)} events" if isinstance(tap.kept, Events) else ""
        kernel, reason = "linear", "no neuron: the current is the output"
        if isinstance(layer.neuron, Cells) and (
            layer.neuron.has_memory or layer.recurrent is not None
        ):
            current = rows.new_empty(len(batch), batch.shape[1], *tap.shape[1:])
            kernel, reason = choose(
                layer.neuron.bound(),
                current,
                kernels=network.kernels,
                recurrent=layer.recurrent is not None,
            )
        elif layer.neuron is not None:
            kernel, reason = "relu", "units without memory"
        density = float((rows != 0).float().mean())
        synapse = f"one {product} {shape}{form}"
        plans.append(Plan(name, synapse, len(rows), density, kernel, reason))
    return plans
