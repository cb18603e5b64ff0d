"""Encoders that say it with time: one spike whose moment counts, or bits in the order of weight."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import Fraction, PositiveFloat, PositiveInt, component
from spikecl.encoding.encoders import Encoder, InputStatistics
from spikecl.errors import ConfigError

_EPSILON = 1e-7  # snnTorch's: how far above the threshold of the membrane an input is kept


@component
class Latency(Encoder):
    """One spike per feature, the stronger the earlier.

    In order of execution::

        x <- clip(x, threshold, 1)                    weaker inputs count as the threshold
        t = tau (1 - x)                               linear, tau = T - 1 if not given
          = tau ln(x / (x - threshold))               membrane: when a leaky integrator that is
                                                      charged by x reaches the threshold
          = T - 1 - ln((exp(T - 1) - 1) x + 1)        log, from T - 1 at 0 to 0 at 1
        s[round(t)] = 1                               halves to even; none if that is past T - 1

    Without ``tau`` the membrane's times are stretched so that the threshold itself (1e-7 above it)
    fires at T - 1.

    Deviation: snnTorch stretches the latest time *of the batch* to T - 1, so that the code of
    a sample depends on its neighbours; the two agree when the batch has a feature at or below the
    threshold, as images with a background have.

    Args:
        steps: Number of time steps T.
        curve: How intensity becomes time.
        tau: Time constant in steps; not set: the code fills all steps.
        threshold: Intensity below which all count as the same; above 0 for ``membrane``.
        silent_below: Features weaker than this never spike. At 0 every feature spikes once, the
            dark ones at the last step.

    Raises:
        ConfigError: ``membrane`` without a threshold between 0 and 1, or ``log`` with ``tau``.

    Example:
        >>> spikes = Latency(steps=5).encode(torch.tensor([[0.0, 0.5, 1.0]]), InputStatistics())
        >>> spikes[:, 0].tolist()
        [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    steps: PositiveInt = 20
    curve: Literal["linear", "membrane", "log"] = "linear"
    tau: PositiveFloat | None = None
    threshold: Fraction = 0.01
    silent_below: Fraction = 0.01

    def __post_init__(self) -> None:
        """Refuse curves that are not defined."""
        if self.curve == "membrane" and not 0 < self.threshold < 1:
            raise ConfigError(
                f"curve='membrane' needs a threshold between 0 and 1, got {self.threshold}"
            )
        if self.curve == "log" and self.tau is not None:
            raise ConfigError(f"curve='log' has no tau, got {self.tau}; leave it out")

    @classmethod
    def snntorch(
        cls,
        steps: int,
        *,
        threshold: float = 0.01,
        tau: float = 1.0,
        linear: bool = False,
        normalize: bool = False,
        clip: bool = False,
    ) -> Latency:
        """Return snnTorch's ``spikegen.latency(x, steps, ..., bypass=True)``, with its names."""
        return cls(
            steps=steps,
            curve="linear" if linear else "membrane",
            tau=None if normalize else tau,
            threshold=threshold,
            silent_below=threshold if clip else 0.0,
        )

    @classmethod
    def spikingjelly(cls, steps: int, *, log: bool = False) -> Latency:
        """Return SpikingJelly's ``LatencyEncoder(T, "linear" or "log")``."""
        curve: Literal["linear", "log"] = "log" if log else "linear"
        return cls(steps=steps, curve=curve, threshold=0.0, silent_below=0.0)

    def times(self, x: Tensor) -> Tensor:
        """Return the spike times in steps, before rounding, of the shape of ``x``."""
        last = self.steps - 1
        if self.curve == "membrane":
            low = self.threshold + _EPSILON
            t = self._charge(x.clamp(low, 1))
            return t * last / self._charge(x.new_tensor(low)) if self.tau is None else self.tau * t
        x = x.clamp(self.threshold, 1)
        if self.curve == "linear":
            return (last if self.tau is None else self.tau) * (1 - x)
        # exp(T - 1) x + (1 - x), whose first term alone would overflow for many steps
        return last - torch.logaddexp(last + x.log(), torch.log1p(-x))

    def _charge(self, x: Tensor) -> Tensor:
        return torch.log(x / (x - self.threshold))

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return spikes 0 or 1, at most one per feature, [T, B, *features]."""
        self.check(x)
        times = self.times(x).round().masked_fill(x < self.silent_below, -1)
        return (times == _clock(x, self.steps)).to(x.dtype)


@component
class Phase(Encoder):
    """Weighted phases: the bits of an intensity, the heaviest first, over and over.

    In order of execution, K = ``bits``, for step t in phase ``k = t mod K``::

        n = clip(floor(2^K x), 0, 2^K - 1)
        b[t] = bit k of n, counted from the heaviest
        s[t] = 2^-(k+1) b[t]                  (b[t] when not weighted)

    The weighted spikes of one period sum to x, rounded down to K bits. A byte p/255 is shown as its
    own eight bits.

    Source: Kim et al., Neurocomputing 311 (2018). SpikingJelly's ``WeightedPhaseEncoder(K)`` is
    this without weights, for intensities up to 1 - 2^-K.

    Args:
        steps: Number of time steps T.
        bits: Steps K of one period.
        weighted: Give each spike the weight of its phase. Without, the network cannot know which
            bit it sees.

    Example:
        >>> Phase(steps=4, bits=4).encode(torch.tensor([[0.6875]]), InputStatistics())[:, 0, 0]
        tensor([0.5000, 0.0000, 0.1250, 0.0625])
    """

    steps: PositiveInt = 8
    bits: Annotated[int, Field(ge=1, le=24)] = 8
    weighted: bool = True

    def encode(
        self, x: Tensor, statistics: InputStatistics, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return weighted spikes, [T, B, *features]."""
        self.check(x)
        levels = 2**self.bits
        n = (x * levels).floor().clamp(0, levels - 1).long()
        phase = _clock(x, self.steps) % self.bits
        spikes: Tensor = ((n >> (self.bits - 1 - phase)) & 1).to(x.dtype)
        return spikes * torch.pow(0.5, (phase + 1).to(x.dtype)) if self.weighted else spikes


def _clock(x: Tensor, steps: int) -> Tensor:
    """Return 0 to T - 1, [T, 1, ...], to be compared with ``x``."""
    return torch.arange(steps, device=x.device).view(-1, *[1] * x.dim())
