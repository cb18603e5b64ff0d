"""What homeostasis looks at: firing rates of neurons over time, and how values are spread.

Deviation: of changes of thresholds and of weights that it scales it reports how far they went
(``moved``), and not the leak ``|ΔW X_old|``: it keeps no old input X. Method ``geometry`` beside it
does, and measures ``interference`` and ``leakage`` of weights, scaling included.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from spikecl.continual.method import Tensors
from spikecl.networks import Layer, Network
from spikecl.storage import State, nbytes

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 20


def layers_with_neurons(network: Network) -> dict[str, Layer]:
    """Return the layers that have neurons, by name."""
    return {
        name: layer
        for name, layer in network.layers.items()
        if isinstance(layer, Layer) and layer.neuron is not None
    }


def distribution(values: Tensor) -> dict[str, object]:
    """Return mean, standard deviation, quantiles and a histogram of values, as JSON."""
    array = values.detach().double().flatten().cpu().numpy()
    low, high = float(array.min()), float(array.max())
    alike = high - low <= 1e-12 * max(abs(low), abs(high))  # but for rounding: no room for bins
    counts, edges = np.histogram(array, BINS, (low - 0.5, high + 0.5) if alike else None)
    return {
        "mean": float(array.mean()),
        "sd": float(array.std()),
        "quantiles": np.quantile(array, QUANTILES).tolist(),
        "counts": counts.tolist(),
        "edges": edges.tolist(),
    }


def moved(before: Tensor, now: Tensor) -> float:
    """Return how far values have gone, relative to where they were (0 where they were 0)."""
    size = float(before.norm())
    return float((now - before).norm()) / size if size else 0.0


def rates_of_rows(rates: Tensor, weight: Tensor) -> Tensor:
    """Return the rate of each row of weights [n_out, ...]; of a channel, the mean over places."""
    return rates.reshape(len(weight), -1).mean(1)


class MeanRates:
    """The firing rate of each neuron, as a running mean over steps of training.

    ``r <- r + (f - r) / tau`` with ``f`` the mean output of a step over time and batch, spikes per
    time step; r begins as the first f.

    Args:
        tau: Steps of training that r is a mean of; at least 1.
    """

    def __init__(self, tau: float):
        self.tau = tau
        self.now: dict[str, Tensor] = {}  # of the present step, so far
        self.mean: dict[str, Tensor] = {}

    def add(self, rates: Tensors, share: float) -> None:
        """Take the means of a share of a step."""
        for name, rate in rates.items():
            part = rate.detach() * share
            self.now[name] = self.now[name] + part if name in self.now else part

    def step(self) -> Mapping[str, Tensor]:
        """End a step of training; return its means by layer."""
        seen, self.now = self.now, {}
        for name, rate in seen.items():
            if name in self.mean:
                self.mean[name] = torch.lerp(self.mean[name], rate, 1 / self.tau)
            else:
                self.mean[name] = rate.clone()
        return seen

    def state_dict(self) -> State:
        """Return the means."""
        return dict(self.mean)

    def load_state_dict(self, state: State) -> None:
        """Take them back."""
        self.mean = dict(state)

    def nbytes(self) -> int:
        """Return the bytes kept between steps."""
        return nbytes(*self.mean.values())
