"""Encoders: what they are, and the two plain ones (a constant current, Bernoulli spikes)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.errors import UsageError


class InputStatistics(NamedTuple):
    """Mean and standard deviation of the intensities of the first experience's training samples.

    Later experiences are scaled by the same two numbers: a learner cannot know more of them.
    """

    mean: float = 0.0
    std: float = 1.0


class Encoder(ABC):
    """A pure function of the batch, the statistics and, when ``random``, a generator.

    Intensities are floats from 0 to 1. A ``temporal`` encoder takes samples that have time of their
    own, [B, T, *features]; the others take [B, *features].
    """

    __slots__ = ()
    random: ClassVar[bool] = False
    temporal: ClassVar[bool] = False

    @abstractmethod
    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None
    ) -> Tensor:
        """Encode intensities as input [T, B, *features].

        Raises:
            UsageError: The input is not floating or lacks a time axis, or a random encoder was
                given no generator.
        """

    def shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one step's features, of that of one sample (with its time axis)."""
        return input_shape[1:] if self.temporal else input_shape

    def check(self, x: Tensor) -> None:
        """Refuse input that is not floating, or has no time where there must be some."""
        name = type(self).__name__
        if not x.is_floating_point():
            raise UsageError(
                f"{name}: got input of {x.dtype}; give floating intensities from 0 to 1 "
                "(bytes: x.float() / 255)"
            )
        if self.temporal and (x.dim() < 2 or x.shape[1] == 0):
            raise UsageError(
                f"{name}: got input of shape {tuple(x.shape)}; give samples with time, "
                "[B, T, *features], T at least 1"
            )


def bernoulli(p: Tensor, steps: int, generator: torch.Generator | None) -> Tensor:
    """Draw spikes [T, *p.shape]: 1 with probability ``min(max(p, 0), 1)``, independently.

    The numbers are drawn on the CPU, so every device sees the same spikes.
    """
    if generator is None:
        raise UsageError(
            "a random encoder needs a generator, and got none; give one, as in "
            "Seeds(0).generator('encode')"
        )
    uniform = torch.rand(steps, *p.shape, generator=generator, dtype=p.dtype)
    return (uniform.to(p.device) < p).to(p.dtype)


@component
class Direct(Encoder):
    """Constant current: ``x[t] = (x - mean) / std`` (``x`` itself when not centred) at every step.

    The result is a view with stride 0 in time, so a synapse can compute one step for all.

    Args:
        steps: Number of time steps T.
        centre: Shift and scale by :class:`InputStatistics`; plain 0 to 1 input leaves the deeper
            layers of a network silent.

    Example:
        >>> Direct(steps=2).encode(torch.tensor([[0.5, 1.0]]), InputStatistics(0.5, 0.25)).tolist()
        [[[0.0, 2.0]], [[0.0, 2.0]]]
    """

    steps: PositiveInt = 6
    centre: bool = True

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the same current at every step, [T, B, *features]."""
        self.check(x)
        if self.centre:
            x = (x - statistics.mean) / statistics.std
        return x.expand(self.steps, *x.shape)


@component
class Rate(Encoder):
    """Bernoulli spikes: ``P(s[t] = 1) = clip(gain x + offset, 0, 1)``, independent over steps.

    With the same parameters this is snnTorch's ``spikegen.rate``; with the defaults it is
    SpikingJelly's ``PoissonEncoder``.

    Args:
        steps: Number of time steps T.
        gain: Spike probability per step at intensity 1.
        offset: Spike probability per step at intensity 0; a negative one silences weak inputs.

    Example:
        >>> rate, generator = Rate(steps=1000, gain=0.5), torch.Generator().manual_seed(0)
        >>> spikes = rate.encode(torch.tensor([[0.0, 0.4, 1.0]]), InputStatistics(), generator)
        >>> [round(p, 1) for p in spikes.mean(0)[0].tolist()]
        [0.0, 0.2, 0.5]
    """

    random: ClassVar[bool] = True
    steps: PositiveInt = 20
    gain: PositiveFloat = 1.0
    offset: float = 0.0

    @classmethod
    def norse(cls, steps: int, *, f_max: float = 100.0, dt: float = 0.001) -> Rate:
        """Return Norse's ``poisson_encode(x, steps, f_max, dt)``, spike for spike.

        Its ``f_max`` is in hertz and its ``dt`` in seconds: ``gain = f_max dt``, 0.1 by default.
        ``poisson_encode_step`` is the same with ``f_max=1000``: ten times the spikes.
        """
        return cls(steps=steps, gain=dt * f_max)

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return spikes 0 or 1, [T, B, *features]."""
        self.check(x)
        return bernoulli(self.gain * x + self.offset, self.steps, generator)
