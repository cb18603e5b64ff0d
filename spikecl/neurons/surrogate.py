"""Surrogate gradients: what stands for the derivative of the spike, and the spike itself.

The forward pass is the Heaviside step of ``x = v - v_th``; the backward pass multiplies by a
surrogate ``h(x)``. The area under ``h`` sets the gradient's size: here every area is 1 except for
the fast sigmoid, whose area is ``2 / slope``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from spikecl.components import PositiveFloat, component


class Surrogate(ABC):
    """A pure function ``h(x)`` of the distance to threshold, same shape out as in."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return the surrogate derivative at ``x = v - v_th``."""


@component
class Sigmoid(Surrogate):
    """``h(x) = k s(kx) (1 - s(kx))``, s the logistic function (SpikingJelly: k = 4).

    Example:
        >>> float(Sigmoid(slope=4.0)(torch.zeros(1)))
        1.0
    """

    slope: PositiveFloat = 4.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        s = torch.sigmoid(self.slope * x)
        return torch.addcmul(s, s, s, value=-1).mul_(self.slope)


@component
class Arctan(Surrogate):
    """``h(x) = (a/2) / (1 + (pi a x / 2)^2)`` (snnTorch's and SpikingJelly's default: a = 2)."""

    slope: PositiveFloat = 2.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        scaled = (0.5 * math.pi * self.slope) * x
        return (0.5 * self.slope) / scaled.square_().add_(1)


@component
class FastSigmoid(Surrogate):
    """``h(x) = 1 / (1 + k|x|)^2`` (Zenke & Ganguli 2018; snnTorch: k = 25, Norse: k = 100)."""

    slope: PositiveFloat = 25.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        return (self.slope * x.abs()).add_(1).square_().reciprocal_()


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate, strict: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x > 0 if strict else x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate(x), None, None


def spike(x: Tensor, surrogate: Surrogate, *, strict: bool = True) -> Tensor:
    """Return ``1[x > 0]`` (or ``>=``), differentiated as ``surrogate(x)``.

    Args:
        x: Distance to threshold ``v - v_th``, any shape.
        surrogate: Stands for the derivative in the backward pass.
        strict: Compare with ``>`` (Loihi, snnTorch, Norse) instead of ``>=`` (SpikingJelly).
    """
    return _Spike.apply(x, surrogate, strict)  # type: ignore[no-any-return, no-untyped-call]
