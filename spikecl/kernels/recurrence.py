"""Layers that listen to themselves."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from spikecl.neurons import State


class Recurrence(NamedTuple):
    """Synapses of a layer onto itself: what fired one step ago is input now.

    Args:
        weight: [n, n].
        bias: [n].
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, spikes: Tensor) -> Tensor:
        """Return the current [B, *features] that spikes [B, *features] cause one step later."""
        return functional.linear(spikes.flatten(1), self.weight, self.bias).view(spikes.shape)


class RecurrentState(NamedTuple):
    """State of a layer that listens to itself: that of its neurons, and their last output."""

    neuron: State
    spikes: Tensor
