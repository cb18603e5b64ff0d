"""Surrogate gradients: what stands for the derivative of the spike, and the spike itself.

The forward pass is the Heaviside step of ``x = v - v_th``; the backward pass multiplies by a
surrogate ``h(x)``. The area under ``h``, not its peak, sets the size of a gradient that is summed
over a spread of membranes; it is 1 where nothing else is said.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from spikecl.components import Fraction, PositiveFloat, component, named


class Surrogate(ABC):
    """A pure function ``h(x)`` of the distance to threshold, same shape out as in."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return the surrogate derivative at ``x = v - v_th``."""

    @abstractmethod
    def primitive(self, x: Tensor) -> Tensor:
        """Return ``1/2`` plus the integral of ``h`` from 0 to ``x``, differentiable."""


@component
class Sigmoid(Surrogate):
    """``h(x) = k s(kx) (1 - s(kx))``, s the logistic function (SpikingJelly: k = 4).

    Args:
        slope: ``k``; snnTorch's ``sigmoid(slope)``, SpikingJelly's ``Sigmoid(alpha)``.

    Example:
        >>> float(Sigmoid(slope=4.0)(torch.zeros(1)))
        1.0
    """

    slope: PositiveFloat = 4.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        s = torch.sigmoid(self.slope * x)
        return (s * (1 - s)).mul_(self.slope)

    def primitive(self, x: Tensor) -> Tensor:
        """Return ``s(kx)``."""
        return torch.sigmoid(self.slope * x)


@component
class Arctan(Surrogate):
    """``h(x) = (a/2) / (1 + (pi a x / 2)^2)`` (snnTorch's and SpikingJelly's default: a = 2).

    Args:
        slope: ``a``; snnTorch's ``atan(alpha)``, SpikingJelly's ``ATan(alpha)``.
    """

    slope: PositiveFloat = 2.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        scaled = (0.5 * math.pi * self.slope) * x
        return (0.5 * self.slope) / scaled.square_().add_(1)

    def primitive(self, x: Tensor) -> Tensor:
        """Return ``1/2 + atan(pi a x / 2) / pi``."""
        return 0.5 + torch.atan((0.5 * math.pi * self.slope) * x) / math.pi


@component
class FastSigmoid(Surrogate):
    """``h(x) = 1 / (1 + k|x|)^2``, area ``2/k`` (Zenke & Ganguli, Neural Computation 2018).

    Args:
        slope: ``k``; snnTorch's ``fast_sigmoid(slope)`` (25), Norse's ``alpha`` of ``superspike``
            (100; Norse 1.1.0 ignores it and has k = 1). SpikingJelly's ``SuperSpike(alpha)`` is
            another function: ``alpha`` times ours with k = 1.
    """

    slope: PositiveFloat = 25.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        return (self.slope * x.abs()).add_(1).square_().reciprocal_()

    def primitive(self, x: Tensor) -> Tensor:
        """Return ``1/2 + x / (1 + k|x|)``."""
        return 0.5 + x / (1 + self.slope * x.abs())


@component
class Triangle(Surrogate):
    """``h(x) = g max(0, 1 - |x|/w)``, area ``g w`` (Bellec et al., NeurIPS 2018; e-prop).

    Args:
        height: ``g``; e-prop's ``gamma`` over the threshold, Norse's ``alpha`` of ``triangle``.
        width: ``w``; the threshold in e-prop, 1 in Norse. SpikingJelly's
            ``PiecewiseQuadratic(alpha)`` has height alpha and width 1/alpha.
    """

    height: PositiveFloat = 0.3
    width: PositiveFloat = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        return (1 - x.abs() / self.width).clamp_min_(0).mul_(self.height)

    def primitive(self, x: Tensor) -> Tensor:
        """Return ``1/2 + g (y - sign(y) y^2 / 2w)``, y being x clipped to ``[-w, w]``."""
        y = x.clamp(-self.width, self.width)
        return 0.5 + self.height * (y - y * y.abs() / (2 * self.width))


@component
class Boxcar(Surrogate):
    """``h(x) = 1 / 2w`` for ``|x| <= w``, else 0 (Wu et al., Frontiers in Neuroscience 2018).

    Args:
        width: ``w``, half the width of the box.
    """

    width: PositiveFloat = 0.5

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        return (x.abs() <= self.width).to(x.dtype).div_(2 * self.width)

    def primitive(self, x: Tensor) -> Tensor:
        """Return ``1/2 + x / 2w``, clipped to 0 and 1."""
        return 0.5 + x.clamp(-self.width, self.width) / (2 * self.width)


@component
class Erf(Surrogate):
    """``h(x) = a / sqrt(pi) exp(-a^2 x^2)``.

    Args:
        slope: ``a``; SpikingJelly's ``Erf(alpha)``.
    """

    slope: PositiveFloat = 2.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        return (self.slope * x).square_().neg_().exp_().mul_(self.slope / math.sqrt(math.pi))

    def primitive(self, x: Tensor) -> Tensor:
        """Return ``(1 + erf(a x)) / 2``."""
        return 0.5 + 0.5 * torch.erf(self.slope * x)


@component
class MultiGaussian(Surrogate):
    """A Gaussian with negative flanks, area ``1 - h`` (Yin et al., Nature Machine Intell. 2021).

    ``h(x) = (1 + h) N(x; 0, s) - h N(x; s, ws) - h N(x; -s, ws)``, N the normal density.

    Args:
        height: ``h``, weight of the flanks.
        width: ``s``, standard deviation of the centre.
        flank: ``w``, width of the flanks relative to the centre.
    """

    height: Fraction = 0.15
    width: PositiveFloat = 0.5
    flank: PositiveFloat = 6.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        peaks = [
            w * torch.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
            for w, m, s in self._parts()
        ]
        return peaks[0] + peaks[1] + peaks[2]

    def primitive(self, x: Tensor) -> Tensor:
        """Return 1/2 plus the integral, a sum of error functions."""
        parts = [
            0.5 * w * (torch.erf((x - m) / (s * math.sqrt(2))) - math.erf(-m / (s * math.sqrt(2))))
            for w, m, s in self._parts()
        ]
        return 0.5 + parts[0] + parts[1] + parts[2]

    def _parts(self) -> tuple[tuple[float, float, float], ...]:
        h, s, wide = self.height, self.width, self.flank * self.width
        return (1 + h, 0.0, s), (-h, s, wide), (-h, -s, wide)


@component
class StraightThrough(Surrogate):
    """``h(x) = 1``: the gradient passes as if the spike were the membrane (Bengio et al. 2013)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)``."""
        return torch.ones_like(x)

    def primitive(self, x: Tensor) -> Tensor:
        """Return ``1/2 + x``."""
        return 0.5 + x


SURROGATES: Mapping[str, type[Surrogate]] = {
    "sigmoid": Sigmoid,
    "arctan": Arctan,
    "fast_sigmoid": FastSigmoid,
    "triangle": Triangle,
    "boxcar": Boxcar,
    "erf": Erf,
    "multi_gaussian": MultiGaussian,
    "straight_through": StraightThrough,
}
AnySurrogate = Annotated[Surrogate, *named(SURROGATES, "shape", "sigmoid")]
"""A field of a component that takes any surrogate, by name in a configuration."""


@component
class Smooth(Surrogate):
    """Replace the spike itself by another surrogate's primitive.

    The network becomes an ordinary smooth one whose surrogate gradient is its true gradient: what
    finite differences can be compared with.

    Args:
        of: The surrogate whose primitive stands in for the spike.
    """

    of: AnySurrogate = Sigmoid()

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``h(x)`` of the other."""
        return self.of(x)

    def primitive(self, x: Tensor) -> Tensor:
        """Return the primitive of the other."""
        return self.of.primitive(x)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, surrogate: Surrogate, strict: bool, shift: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.surrogate = surrogate
        shifted = x if shift is None else x + shift
        return (shifted > 0 if strict else shifted >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate(x), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        (x,) = ctx.saved_tensors
        return None if tangents[0] is None else tangents[0] * ctx.surrogate(x)


def spike(
    x: Any, surrogate: Surrogate, *, strict: bool = True, shift: Tensor | None = None
) -> Tensor:
    """Return ``1[x > 0]`` (or ``>=``), differentiated as ``surrogate(x)``.

    Args:
        x: Distance to threshold ``v - v_th``, any shape.
        surrogate: Stands for the derivative in the backward pass.
        strict: Compare with ``>`` (Loihi, snnTorch, Norse) instead of ``>=`` (SpikingJelly).
        shift: Added to ``x`` in the comparison alone: a threshold that jitters.
    """
    if isinstance(surrogate, Smooth):
        return surrogate.primitive(x)
    if not isinstance(x, Tensor):  # a kernel reads the equations
        return x.spike(surrogate, strict=strict, shift=shift)  # type: ignore[no-any-return]
    return _Spike.apply(x, surrogate, strict, shift)  # type: ignore[no-any-return, no-untyped-call]
