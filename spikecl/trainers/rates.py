"""A cost of firing rates, as errors of spikes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spikecl.networks import Network
from spikecl.networks.reachable import warn_unreachable
from spikecl.trainers.needs import layers_of


def check_target(rule: str, network: Network, target: float) -> None:
    """Warn of hidden layers whose neurons cannot fire as often as a rule would have them."""
    layers = layers_of(network)
    last = next(reversed(layers))
    hidden = {name: layer for name, layer in layers.items() if name != last}
    warn_unreachable(hidden, target, f"trainer.{rule}.rate_target={target}", "lower it")


class Rates:
    """The cost of firing rates that differ from a target.

    Args:
        cost: Weight of the cost.
        target: Rate, spikes per step.
        steps: Steps of the whole batch.
    """

    def __init__(self, cost: float, target: float, steps: int):
        self.cost, self.target, self.steps = cost, target, steps
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def signals(self, fired: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cost's derivative by every spike, ``2 c (f - f*) / (T B)``."""
        found = {}
        for name, out in fired.items():
            self._sums[name] = out.detach().mean(1).sum(0) + self._sums.get(name, 0.0)
            rate = self._sums[name] / (self._count + len(out))
            slope = 2 * self.cost * (rate - self.target) / (self.steps * out.shape[1])
            found[name] = slope.expand(out.shape)
        self._count += len(next(iter(fired.values())))
        return found
