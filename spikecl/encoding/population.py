"""Population code: each feature is seen by several units, each with a field of its own."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.encoding.encoders import Encoder, InputStatistics, bernoulli
from spikecl.errors import ConfigError


@component
class Population(Encoder):
    """Gaussian receptive fields, K = ``units`` for each feature.

    In order of execution, for the centres ``mu_d``, evenly spaced from ``low`` to ``high``::

        a_d = exp(-(x - mu_d)^2 / (2 sd^2))
        direct      s_d[t] = a_d
        rate        P(s_d[t] = 1) = a_d
        integrate   v[t] = v[t-1] + a_d;  s_d[t] = 1[v[t] >= threshold];  v[t] -= threshold s_d[t]

    The first axis of the features grows K-fold, the units of one feature side by side:
    [B, F, *rest] becomes [T, B, F K, *rest].

    Source: Tang et al. (PopSAN), CoRL 2020. ``integrate``, ``rate`` and ``direct`` are
    SpikingJelly's ``PopSpikeEncoderDeterministic``, ``PopSpikeEncoderRandom`` and ``PopEncoder``;
    there centres and widths learn, here they stay.

    Args:
        steps: Number of time steps T.
        units: Units K for each feature.
        low: Centre of the first unit.
        high: Centre of the last unit.
        sd: Width of the fields; about the distance of two centres covers the range.
        code: How a unit says its activity.
        threshold: Threshold of the integrating units.

    Raises:
        ConfigError: ``low`` is not below ``high``.

    Example:
        >>> Population(steps=1, units=3, sd=0.5).encode(torch.tensor([[0.5]]), InputStatistics())
        tensor([[[0.6065, 1.0000, 0.6065]]])
        >>> Population(units=3).shape((8, 5, 5))
        (24, 5, 5)
    """

    random: ClassVar[bool] = True
    steps: PositiveInt = 20
    units: Annotated[int, Field(ge=2)] = 8
    low: float = 0.0
    high: float = 1.0
    sd: PositiveFloat = 0.1
    code: Literal["direct", "rate", "integrate"] = "direct"
    threshold: PositiveFloat = 0.999

    def __post_init__(self) -> None:
        """Refuse a range that is empty."""
        if self.low >= self.high:
            raise ConfigError(f"got low={self.low}, high={self.high}; low must be below high")

    def shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one step's features; a sample without features has one."""
        first, *rest = input_shape or (1,)
        return (first * self.units, *rest)

    def activity(self, x: Tensor) -> Tensor:
        """Return what the units see of ``x``, between 0 and 1, [B, F K, *rest]."""
        first, *rest = x.shape[1:] or (1,)
        centres = torch.linspace(
            self.low, self.high, self.units, dtype=x.dtype, device=x.device
        ).view(-1, *[1] * len(rest))
        distance = x.reshape(x.shape[0], first, 1, *rest) - centres
        return torch.exp(-(distance**2) / (2 * self.sd**2)).flatten(1, 2)

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return currents or spikes, [T, B, F K, *rest]."""
        self.check(x)
        a = self.activity(x)
        if self.code == "direct":
            return a.expand(self.steps, *a.shape)
        if self.code == "rate":
            return bernoulli(a, self.steps, generator)
        spikes = a.new_empty(self.steps, *a.shape)
        v = torch.zeros_like(a)
        for step in spikes:
            v = v + a
            step.copy_(v >= self.threshold)
            v = v - self.threshold * step
        return spikes
