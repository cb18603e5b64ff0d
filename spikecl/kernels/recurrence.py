"""Layers that listen to themselves, and the ways of errors back through a scan."""

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

    def current(self, spikes: Tensor, ways: Ways) -> Tensor:
        """Return the same; errors go back to the spikes on the ways that are open."""
        if not ways.recurrent or ways.instant:
            return self(spikes.detach())
        if ways.back is None:
            return self(spikes)
        felt = Recurrence(ways.back)(spikes)
        return self(spikes.detach()) + (felt - felt.detach())


class RecurrentState(NamedTuple):
    """State of a layer that listens to itself: that of its neurons, and their last output."""

    neuron: State
    spikes: Tensor


class Ways(NamedTuple):
    """Which ways errors take back through a scan; what is computed forward does not change.

    Args:
        instant: The memory of the neurons is cut: the error of an input is that of its own step.
        recurrent: Errors pass the synapses of the layer onto itself.
        back: Weight [n, n] that they meet there in place of the layer's own.
        through: Input once more, equal to the first: it gets the error of its own step's output,
            whatever the first one gets; that of the last state is the first's alone.
    """

    instant: bool = False
    recurrent: bool = True
    back: Tensor | None = None
    through: Tensor | None = None


EVERY_WAY = Ways()
