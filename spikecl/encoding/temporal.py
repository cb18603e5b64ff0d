"""Encoders of samples that have time of their own, [B, T, *features]."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.encoding.encoders import Encoder, InputStatistics
from spikecl.errors import ConfigError, UsageError


@component
class Sequence(Encoder):
    """The sample itself, step by step, in fewer steps if wanted.

    In order of execution, n samples' steps to one step of the input::

        x[t'] = 0 beyond the end              pad
        x <- (x - mean) / std                 centre
        x[t] = sum, mean or max of x[t n] ... x[t n + n - 1]
        x <- 1[x > 0]                         binary
        x <- scale x

    Args:
        steps: Number of time steps; not set: those of the sample.
        reduce: What becomes of the steps that fall together.
        pad: Fill up with silent steps where the sample's do not divide evenly.
        centre: Shift and scale by :class:`InputStatistics`.
        binary: Count several events in one step as one.
        scale: Factor of the result.

    Raises:
        ConfigError: ``centre`` and ``binary`` together.

    Example:
        >>> x = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
        >>> Sequence(steps=3).encode(x, InputStatistics())[:, 0].tolist()
        [1.0, 2.0, 0.0]
        >>> Sequence(steps=4).encode(x, InputStatistics())
        Traceback (most recent call last):
        ...
        spikecl.errors.UsageError: Sequence.steps: 6 steps do not divide into 4; allowed: 1, 2, 3, \
6, or any with pad = true
    """

    temporal: ClassVar[bool] = True
    steps: PositiveInt | None = None
    reduce: Literal["sum", "mean", "max"] = "sum"
    pad: bool = False
    centre: bool = False
    binary: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a pair that undoes itself."""
        if self.centre and self.binary:
            raise ConfigError("centre and binary cannot both be true; keep one of the two")

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the sample with time first, [T, B, *features]."""
        self.check(x)
        steps = x.shape[1] if self.steps is None else self.steps
        x = self._filled(x.transpose(0, 1), steps)
        if self.centre:
            x = (x - statistics.mean) / statistics.std
        blocks = x.reshape(steps, x.shape[0] // steps, *x.shape[1:])
        if self.reduce == "max":
            x = blocks.amax(1)
        else:
            x = blocks.sum(1) if self.reduce == "sum" else blocks.mean(1)
        if self.binary:
            x = (x > 0).to(x.dtype)
        return self.scale * x

    def _filled(self, x: Tensor, steps: int) -> Tensor:
        """Return ``x`` with silent steps behind it, up to a multiple of ``steps``."""
        given = x.shape[0]
        missing = -given % steps
        if missing and not self.pad:
            divisors = ", ".join(str(n) for n in range(1, given + 1) if given % n == 0)
            raise UsageError(
                f"Sequence.steps: {given} steps do not divide into {steps}; allowed: {divisors}, "
                "or any with pad = true"
            )
        return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


@component
class Delta(Encoder):
    """Spikes where the input changes (snnTorch's ``spikegen.delta``).

    In order of execution::

        d[t] = x[t] - x[t-1]
        on[t] = 1[d[t] >= threshold]
        off[t] = 1[d[t] <= -threshold]

    Args:
        threshold: Smallest change that makes a spike.
        off: What becomes of falls: ``none`` drops them, ``negative`` gives spikes of -1,
            ``channel`` puts them beside the others, features (2, *features), on first.
        first: What comes before the first step: ``zero``, so that a bright beginning spikes, or
            ``repeat`` of it, so that it does not.

    Example:
        >>> x = torch.tensor([[0.0, 0.5, 0.5, 0.0]])
        >>> Delta(off="negative").encode(x, InputStatistics())[:, 0].tolist()
        [0.0, 1.0, 0.0, -1.0]
    """

    temporal: ClassVar[bool] = True
    threshold: PositiveFloat = 0.1
    off: Literal["none", "negative", "channel"] = "none"
    first: Literal["zero", "repeat"] = "zero"

    @classmethod
    def snntorch(
        cls, *, threshold: float = 0.1, padding: bool = False, off_spike: bool = False
    ) -> Delta:
        """Return snnTorch's ``spikegen.delta``, with its names."""
        return cls(
            threshold=threshold,
            off="negative" if off_spike else "none",
            first="repeat" if padding else "zero",
        )

    def shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one step's features."""
        return (2, *input_shape[1:]) if self.off == "channel" else input_shape[1:]

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return spikes, [T, B, *features] or [T, B, 2, *features]."""
        self.check(x)
        x = x.transpose(0, 1)
        before = x[:1] if self.first == "repeat" else torch.zeros_like(x[:1])
        change = x.diff(dim=0, prepend=before)
        on, off = (change >= self.threshold).to(x), (change <= -self.threshold).to(x)
        if self.off == "channel":
            return torch.stack([on, off], 2)
        return on - off if self.off == "negative" else on


@component
class SigmaDelta(Encoder):
    """Graded messages that say how far the receiver's sum is off, where that is far enough.

    In order of execution, ``sent[-1] = 0``::

        d[t] = x[t] - sent[t-1]
        s[t] = d[t] where |d[t]| >= threshold, else 0
        sent[t] = sent[t-1] + s[t]

    The running sum of the messages never strays further from x than the threshold. Lava's
    sigma-delta neuron keeps the residue ``x - sent`` in place of ``sent``: the same, but rounding
    adds up there.

    Args:
        threshold: Smallest error that is sent; at 0 all of them.

    Example:
        >>> x = torch.tensor([[0.5, 0.5, 0.5625, 0.625, 0.0]])
        >>> SigmaDelta(threshold=0.125).encode(x, InputStatistics())[:, 0].tolist()
        [0.5, 0.0, 0.0, 0.125, -0.625]
    """

    temporal: ClassVar[bool] = True
    threshold: Annotated[float, Field(ge=0)] = 0.1

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return messages of any size, [T, B, *features]."""
        self.check(x)
        x = x.transpose(0, 1)
        messages, sent = torch.zeros_like(x), torch.zeros_like(x[0])
        for t, now in enumerate(x):
            error = now - sent
            messages[t] = error.where(error.abs() >= self.threshold, 0)
            sent = sent + messages[t]
        return messages
