"""The factor of a convolution: maps, and rows of patches for those who ask."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from spikecl.kernels import Kernels
from spikecl.kernels.events import Bits
from spikecl.kernels.product import dense
from spikecl.networks.factor import Complement, Factor


class Geometry(NamedTuple):
    """Side of the kernel, stride and zero padding of a convolution."""

    kernel: int
    stride: int
    padding: int


def convolve(
    maps: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, kernels: Kernels
) -> Tensor:
    """Return the convolution of maps [R, C, H, W]; some at a time where ``kernels`` says so."""
    _, stride, padding = geometry
    dtype = maps.dtype if kernels.precision == "full" else torch.bfloat16
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)

    def product(part: Tensor) -> Tensor:
        made = functional.conv2d(part.to(dtype), weight, bias, stride=stride, padding=padding)
        return made.to(maps.dtype)

    if not kernels.chunk or len(maps) <= kernels.chunk:
        return product(maps)
    return torch.cat([product(part) for part in torch.split(maps, kernels.chunk)])


class ConvFactor:
    """What a trainer says about a convolution; reads like a :class:`Factor`.

    The gradient is formed from the maps. ``x`` and ``transmitted`` are rows of patches
    [R H' W', C k k] and ``delta`` [R H' W', C_out], taken out at the first request.

    Args:
        maps: Maps [R, C, H, W] that were transmitted, as they are or as bits.
        errors: Errors [R, C_out, H', W'] of the current.
        geometry: Of the convolution.
    """

    def __init__(self, maps: Tensor | Bits, errors: Tensor, geometry: Geometry):
        self._kept, self.errors, self.geometry = maps, errors, geometry

    @property
    def maps(self) -> Tensor:
        """Maps [R, C, H, W] that were transmitted."""
        return dense(self._kept)

    def gradient(self) -> Tensor:
        """Return the gradient of the weight as rows [C_out, C k k]."""
        kernel, stride, padding = self.geometry
        maps = self.maps
        shape = (self.errors.shape[1], maps.shape[1], kernel, kernel)
        gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            maps, shape, self.errors, stride=stride, padding=padding
        )
        return gradient.flatten(1)

    def bias_gradient(self) -> Tensor:
        """Return the gradient of the bias [C_out]."""
        return self.errors.sum((0, 2, 3))

    @cached_property
    def x(self) -> Tensor:
        """Rows of patches [R H' W', C k k]."""
        kernel, stride, padding = self.geometry
        patches = functional.unfold(self.maps, kernel, stride=stride, padding=padding)
        return patches.transpose(1, 2).flatten(0, 1)

    @property
    def transmitted(self) -> Tensor:
        """The same rows: a convolution passes its patches forward."""
        return self.x

    @cached_property
    def delta(self) -> Tensor:
        """Error rows [R H' W', C_out]."""
        return self.errors.flatten(2).transpose(1, 2).flatten(0, 1)

    def project(
        self, outside: Complement, *, z: Tensor | None = None, residual: Tensor | None = None
    ) -> Factor:
        """Return the factor of the gradient projected out of a subspace of patches."""
        rows = Factor(self.x, self.delta, self.transmitted)
        return rows.project(outside, z=z, residual=residual)
