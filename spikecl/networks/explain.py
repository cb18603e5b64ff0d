"""Which kernel runs where, and why."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from spikecl.kernels import Recurrence, choose
from spikecl.networks.layer import Cells, Layer
from spikecl.networks.network import Network, Tap
from spikecl.networks.synapses import Conv2d


class Plan(NamedTuple):
    """How one layer is computed."""

    layer: str
    synapse: str
    rows: int
    kernel: str
    reason: str


def explain(network: Network, batch: Tensor) -> list[Plan]:
    """Return the plan of each layer for an input [T, B, *features].

    Example:
        >>> from spikecl.networks import SpikingMlp
        >>> net = SpikingMlp(hidden=(8,)).build((4,), 2)
        >>> explain(net, torch.zeros(3, 5, 4))[0].kernel
        'fused'
    """
    taps: dict[str, Tap] = {}
    generator = torch.Generator() if network.is_random else None
    network(batch, taps=taps, generator=generator)
    plans = []
    for name, module in network.layers.items():
        layer, rows = cast(Layer, module), len(taps[name].rows)
        shape = "x".join(str(n) for n in reversed(layer.synapse.weight.shape))
        product = "convolution" if isinstance(layer.synapse, Conv2d) else "product"
        kernel, reason = "linear", "no neuron: the current is the output"
        onto = None if layer.recurrent is None else Recurrence(layer.recurrent.weight)
        if isinstance(layer.neuron, Cells) and (layer.neuron.has_memory or onto is not None):
            current = torch.empty(len(batch), batch.shape[1], 1)
            kernel, reason = choose(layer.neuron.bound(), current, onto)
        elif layer.neuron is not None:
            kernel, reason = "relu", "units without memory"
        plans.append(Plan(name, f"one {product} {shape}", rows, kernel, reason))
    return plans
