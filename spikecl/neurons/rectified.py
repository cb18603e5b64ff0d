"""The unit of the ordinary twin of a spiking network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.components import component
from spikecl.neurons.neuron import Neuron, State


class NoState(NamedTuple):
    """A unit without memory has no state."""


@component
class Rectified(Neuron):
    """``y[t] = max(x[t], 0)``: no spikes, no memory."""

    def rest(self, x: Tensor) -> State:
        """Return the empty state."""
        return NoState()

    def advance(
        self, x: Tensor, state: State, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Rectify."""
        return torch.relu(x), state
