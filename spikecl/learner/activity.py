"""Layers that say nothing, or always the same: what no rule can learn from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from spikecl.errors import ActivityWarning
from spikecl.networks import Network
from spikecl.storage import State


class Activity:
    """Mean activity of each layer since the last look; warns of each layer once.

    Args:
        network: The network.
    """

    def __init__(self, network: Network):
        self._spiking = {
            name: bool(layer.neuron.is_spiking)  # type: ignore[union-attr]
            for name, layer in network.layers.items()
            if layer.neuron is not None
        }
        self._sums: dict[str, Tensor] = {}
        self._count = 0.0
        self._said: list[str] = []

    def add(self, activity: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Take the means of each neuron over a batch, or over a share of its steps."""
        for name, mean in activity.items():
            mean = mean.double().mean() * share
            self._sums[name] = self._sums[name] + mean if name in self._sums else mean
        self._count += share if activity else 0.0

    def look(self) -> None:
        """Warn of layers that were silent, or fired at every step, since the last look."""
        names = [name for name in self._sums if name not in self._said]
        if names:
            means = (torch.stack([self._sums[n] for n in names]) / self._count).tolist()
            for name, mean in zip(names, means):
                self._warn(name, mean)
        self._sums, self._count = {}, 0.0

    def _warn(self, name: str, mean: float) -> None:
        if mean == 0:
            what, advice = "has been silent", "lower its threshold, or raise its weights or gain"
        elif mean == 1 and self._spiking.get(name):
            what, advice = "has fired in every step", "raise its threshold, or lower its weights"
        else:
            return
        self._said.append(name)
        warnings.warn(
            f"layer '{name}' {what} since the last look: it has nothing to learn from; {advice}",
            ActivityWarning,
            stacklevel=2,
        )

    def state_dict(self) -> State:
        """Return the sums since the last look, and whom was warned of."""
        return {"sums": dict(self._sums), "count": self._count, "said": list(self._said)}

    def load_state_dict(self, state: State) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self._sums = dict(state.get("sums", {}))
        self._count, self._said = state.get("count", 0.0), list(state.get("said", []))
