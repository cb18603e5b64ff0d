"""Encoders: intensities [B, *features] in 0 to 1 become input over time [T, B, *features]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component


class InputStatistics(NamedTuple):
    """Mean and standard deviation of the intensities of the first experience's training samples.

    Later experiences are scaled by the same two numbers: a learner cannot know more of them.
    """

    mean: float = 0.0
    std: float = 1.0


class Encoder(ABC):
    """A pure function of the batch, the statistics and, when ``random``, a generator."""

    __slots__ = ()
    random: ClassVar[bool] = False
    steps: int

    @abstractmethod
    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None
    ) -> Tensor:
        """Encode intensities [B, *features] as input [T, B, *features]."""


@component
class Direct(Encoder):
    """Constant current: ``x[t] = (x - mean) / std`` (``x`` itself when not centred) at every step.

    The result is a view with stride 0 in time, so a synapse can compute one step for all.

    Args:
        steps: Number of time steps T.
        centre: Shift and scale by :class:`InputStatistics`; plain 0 to 1 input leaves the deeper
            layers of a network silent.
    """

    steps: PositiveInt = 6
    centre: bool = True

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the same current at every step, [T, B, *features]."""
        if self.centre:
            x = (x - statistics.mean) / statistics.std
        return x.expand(self.steps, *x.shape)


@component
class Rate(Encoder):
    """Bernoulli spikes: ``P(x[t] = 1) = min(gain x, 1)``, independent over steps.

    Args:
        steps: Number of time steps T.
        gain: Spike probability per step at intensity 1.
    """

    random: ClassVar[bool] = True
    steps: PositiveInt = 20
    gain: PositiveFloat = 1.0

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return spikes 0 or 1, [T, B, *features]."""
        uniform = torch.rand(self.steps, *x.shape, generator=generator, dtype=x.dtype)
        return (uniform.to(x.device) < self.gain * x).to(x.dtype)
