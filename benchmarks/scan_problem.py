"""What every framework of ``scan.py`` computes: input, labels, weights; needs torch alone.

A layer is a synapse without bias and neurons behind it, the readout too::

    u[t] = .9 u[t-1] + W x[t] - s[t-1]      s[t] = 1[u[t] > 1]

with the reset as a constant of the backward pass and an arctan surrogate of slope 2. The loss is
the cross entropy of the spike sums. Each layer's random weights are scaled by bisection until its
neurons fire as densely as is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

STEPS, BATCH, BETA, SLOPE = 25, 64, 0.9, 2.0
INPUT_DENSITY, OUTPUT_DENSITY = 0.15, 0.1
CONV_POOL = 2
# Adam does all its arithmetic, and no weight (so no density) moves
LEARNING_RATE = 1e-12


class Shape(NamedTuple):
    """A network: shapes of its weights, of one input, and the density of its hidden spikes."""

    weights: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    hidden: float


_MLP = ((512, 784), (512, 512), (10, 512))
SHAPES = {
    "mlp": Shape(_MLP, (784,), 0.02),
    "mlp_dense_hidden": Shape(_MLP, (784,), 0.15),
    "conv": Shape(((12, 1, 5, 5), (64, 12, 5, 5), (10, 1024)), (28, 28), 0.05),
}


class Problem(NamedTuple):
    """Tensors of a network, and how densely input and layers fire."""

    x: Tensor
    y: Tensor
    weights: list[Tensor]
    densities: list[float]

    def batch(self, size: int, steps: int = STEPS) -> tuple[Tensor, Tensor]:
        """Return input [steps, size, ...] and labels; longer inputs repeat themselves."""
        repeats = [steps // STEPS] + [1] * (self.x.dim() - 1)
        return self.x[:, :size].repeat(repeats).contiguous(), self.y[:size].clone()


def make(name: str) -> Problem:
    """Draw and scale the tensors of a network."""
    shape, draw = SHAPES[name], torch.Generator().manual_seed(0)
    x = (torch.rand(STEPS, BATCH, *shape.features, generator=draw) < INPUT_DENSITY).float()
    y = torch.randint(0, 10, (BATCH,), generator=draw)
    h, weights, densities = x, [], [float(x.mean())]
    for i, size in enumerate(shape.weights):
        readout = i == len(shape.weights) - 1
        raw = torch.randn(size, generator=draw)
        rows = synapse(i, raw, h.flatten(0, 1))
        current = rows.view(STEPS, BATCH, *rows.shape[1:])
        factor = scale(current, OUTPUT_DENSITY if readout else shape.hidden)
        weights.append(raw * factor)
        h = fire(current * factor)
        densities.append(float(h.mean()))
    return Problem(x, y, weights, densities)


def synapse(index: int, weight: Tensor, h: Tensor) -> Tensor:
    """Return the current of rows [R, ...], images without a channel axis or spikes before pooling.

    In the convolutional network maps are pooled behind the neurons, before the next synapse.
    """
    if h.dim() == 3:
        h = h[:, None]
    if h.dim() == 4 and index:
        h = functional.max_pool2d(h, CONV_POOL)
    if weight.dim() == 4:
        return functional.conv2d(h, weight)
    return functional.linear(h if h.dim() == 2 else h.flatten(1), weight)


def scale(current: Tensor, density: float) -> float:
    """Return the factor of a current that makes neurons fire so densely."""
    part = current[:, : BATCH // 8].contiguous()
    return bisect(lambda factor: float(fire(part * factor).mean()) - density, 1e-4, 1e2)


def fire(current: Tensor) -> Tensor:
    """Return the spikes of a current [T, B, ...]."""
    u, s = torch.zeros_like(current[0]), torch.zeros_like(current[0])
    spikes = torch.empty_like(current)
    for t, one in enumerate(current):
        u = BETA * u + one - s
        s = torch.gt(u, 1.0, out=spikes[t])
    return spikes


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where an increasing function of a positive number crosses zero."""
    for _ in range(20):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return math.sqrt(low * high)
