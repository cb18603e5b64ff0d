"""Normalisation of currents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikecl.errors import UsageError
from spikecl.networks.presynaptic import Pass

EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation over time and batch: one mean and variance per channel.

    In training, with mean ``m`` and variance ``s`` of a channel over steps, samples and places::

        y = gain (x - m) / sqrt(s + 1e-5) + shift

    and new running statistics ``(1 - momentum) old + momentum (m, unbiased s)`` come out with the
    pass (they are not written here: a trainer may call a network several times per step). Otherwise
    the running statistics stand in for ``m`` and ``s``. Steps that repeat one constant input count
    once in the unbiased ``s``. Builders start ``gain`` at the way
    from rest to threshold, so that currents are as wide (threshold-dependent normalisation).

    Source: Ioffe & Szegedy, ICML 2015; over time and with the threshold: Zheng et al., AAAI 2021.

    Args:
        size: Channels.
        gain: Initial gain.
        momentum: Weight of the newest statistics.
    """

    def __init__(self, size: int, *, gain: float = 1.0, momentum: float = 0.1):
        super().__init__()
        self.gain = nn.Parameter(torch.full((size,), gain))
        self.shift = nn.Parameter(torch.zeros(size))
        self.start, self.momentum = gain, momentum
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))

    @torch.no_grad()
    def restart(self) -> None:
        """Put back initial parameters and statistics."""
        for tensor, value in (
            (self.gain, self.start),
            (self.shift, 0.0),
            (self.mean, 0.0),
            (self.variance, 1.0),
        ):
            tensor.fill_(value)

    def forward(self, rows: Tensor, path: str, run: Pass) -> Tensor:
        """Normalise rows [R, C, ...]."""
        mean, variance = self.mean, self.variance
        if run.training:
            axes = [d for d in range(rows.dim()) if d != 1]
            count = rows.numel() // rows.shape[1]
            if count < 2:
                raise UsageError(
                    f"{path}: batch normalisation of one value has no variance; use a larger batch"
                )
            variance, mean = torch.var_mean(rows, axes, correction=0)
            unbiased = variance.detach() * (count / (count - 1))
            run.statistics[f"{path}.mean"] = torch.lerp(self.mean, mean.detach(), self.momentum)
            run.statistics[f"{path}.variance"] = torch.lerp(self.variance, unbiased, self.momentum)
        scale = run.weights[f"{path}.gain"] * torch.rsqrt(variance + EPSILON)
        offset = run.weights[f"{path}.shift"] - mean * scale
        shape = (1, -1) + (1,) * (rows.dim() - 2)
        return rows * scale.view(shape) + offset.view(shape)
