"""Initial weights, drawn from named seeds."""

from __future__ import annotations

import math
from typing import cast

import torch

from spikecl.networks.layer import Layer
from spikecl.networks.network import Network
from spikecl.seeds import Seeds


@torch.no_grad()
def initialise(network: Network, seeds: Seeds) -> None:
    """Draw all weights and biases from ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``.

    Parameters of weight maps get what the map says (gains are 1, delays are drawn); norms and
    neurons start where their models do, whatever they had learned. Frozen parameters
    (``requires_grad=False``) keep their values. Each synapse has a generator of
    its own (``init``, its position), so adding a layer changes no other; drawn on the CPU, so a
    device changes nothing.
    """
    kept = [(p, p.detach().clone()) for p in network.parameters() if not p.requires_grad]
    for layer in network.layers.values():
        cast(Layer, layer).restart()
    for position, synapse in enumerate(network.synapses.values()):
        generator = seeds.generator("init", event=position)
        bound = 1 / math.sqrt(synapse.weight[0].numel())
        for name, parameter in synapse.named_parameters():
            if name in ("weight", "bias"):
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(drawn)
            for each in synapse.maps:
                if (start := each.parameters(synapse.weight).get(name)) is not None:
                    parameter.copy_(each.draw(name, start, generator))
    for parameter, value in kept:
        parameter.copy_(value)
