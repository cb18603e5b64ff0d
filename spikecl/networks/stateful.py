"""A network that remembers its state between calls: for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from spikecl.networks.network import Network, Output
from spikecl.neurons import State, carry


class Stateful:
    """Calls a network and keeps its state for the next call, here and nowhere else.

    Args:
        network: The network; it stays without state.
        between: What the next sample starts from: rest (``reset``), the state with its graph
            (``keep``) or its values alone (``detach``).

    Example:
        >>> import torch
        >>> from spikecl.networks import SpikingMlp
        >>> stream = Stateful(SpikingMlp(hidden=(3,)).build((2,), 2))
        >>> stream(torch.ones(4, 1, 2)).logits.shape
        torch.Size([1, 2])
        >>> sorted(stream.state)
        ['hidden1']
    """

    def __init__(self, network: Network, *, between: Literal["reset", "keep", "detach"] = "detach"):
        self.network, self.between = network, between
        self.state: Mapping[str, State] | None = None

    def __call__(self, x: Tensor, **options: Any) -> Output:
        """Run over input [T, B, *features] from where the last call ended."""
        output: Output = self.network(x, self.state, **options)
        self.state = carry(output.state, self.between)
        return output
