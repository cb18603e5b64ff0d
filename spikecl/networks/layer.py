"""Layers: a synapse and the neurons it drives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikecl.kernels import scan
from spikecl.neurons import LIF, LIFState


class Linear(nn.Module):
    """Dense synapse: current ``W x (+ b)``, ``W`` [n_out, n_in].

    Weights are zero until :func:`spikecl.networks.initialise` draws them: a constructor draws
    nothing.
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None


class Spiking(nn.Module):
    """Spiking neurons as a module: parameters and a call, no state.

    Example:
        >>> spikes, state = Spiking(LIF(beta=0.5))(torch.ones(3, 1, 2))
        >>> spikes[:, 0, 0].tolist()
        [0.0, 1.0, 1.0]
    """

    def __init__(self, neuron: LIF):
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor, state: LIFState | None = None) -> tuple[Tensor, LIFState]:
        """Run over input [T, B, *features]; return spikes and the state after the last step."""
        return scan(x, state, self.neuron)


class Relu(nn.Module):
    """Rectified units of the ordinary twin of a spiking network: ``max(x, 0)`` at every step."""

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Rectify input [T, B, *features]; there is no state."""
        return torch.relu(x), None


class Layer(nn.Module):
    """A synapse, the neurons behind it, and the names of the layers it listens to.

    Args:
        synapse: Turns activity into current.
        neuron: Turns current into activity; ``None`` passes the current on (a readout).
        inputs: Names of the layers whose activity is summed; ``"input"`` is the network's input.
    """

    def __init__(self, synapse: Linear, neuron: Spiking | Relu | None, *, inputs: tuple[str, ...]):
        super().__init__()
        self.synapse = synapse
        self.neuron = neuron
        self.inputs = inputs
