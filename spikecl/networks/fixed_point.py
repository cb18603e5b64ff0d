"""Integers in training: weights, inputs and shifted sums as the chip holds them.

The forward pass has the chip's whole numbers, held as floats; the backward pass takes rounding for
the identity (straight through).

Source: Bengio et al., arXiv:1308.3432; Jacob et al., CVPR 2018. The ranges are those of
:mod:`spikecl_hardware.loihi.semantics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveFloat, component
from spikecl.networks.norm import Postsynaptic
from spikecl.networks.presynaptic import Pass, Presynaptic, stepwise
from spikecl.networks.weight_maps import WeightMap


def straight_through(x: Tensor, whole: Tensor) -> Tensor:
    """Return ``whole`` with the gradient of ``x``."""
    return whole.detach() + (x - x.detach())


@component
class LoihiWeights(WeightMap):
    """Integer weights of Loihi: ``w_int = factor clip(step round(scale w / step))``.

    Dense weights have mixed signs and ``step = 2^(9 - bits)`` from ``-256 + step`` to
    ``256 - step``; shared weights of a convolution have step 1 from -127 to 127. The gradient is
    that of ``factor scale w``, beyond the range as well, so that a projected one stays projected.

    Args:
        scale: What a weight of 1 becomes.
        bits: Bits of a dense weight.
        shared: Whether weights are those of a convolution.
        factor: Power of two of an exponent that is not negative.
    """

    scales: ClassVar[bool] = True
    scale: PositiveFloat = 1.0
    bits: Annotated[int, Field(ge=2, le=8)] = 8
    shared: bool = False
    factor: Annotated[int, Field(ge=1)] = 1

    def __call__(self, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Return whole numbers."""
        step = 1 if self.shared else 1 << (9 - self.bits)
        limit = 127 if self.shared else 256 - step
        scaled = weight * self.scale
        whole = torch.clamp(torch.round(scaled / step) * step, -limit, limit)
        return straight_through(scaled, whole) * self.factor


class Graded(Presynaptic):
    """Messages of ``bits`` bits, sign included: ``clip(round(scale x))``.

    Args:
        scale: What an input of 1 becomes.
        bits: Bits of a message.
    """

    def __init__(self, scale: float, bits: int = 24):
        super().__init__()
        self.scale, self.bits = scale, bits

    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return whole numbers."""
        half = 1 << (self.bits - 1)

        def whole(rows: Tensor) -> Tensor:
            scaled = torch.clamp(rows * self.scale, -half, half - 1)
            return straight_through(scaled, torch.round(scaled))

        return stepwise(x, whole)


class Shift(Postsynaptic):
    """Sums behind a synapse: ``unit floor(2^exponent a)``.

    Args:
        exponent: Of the synapse.
        unit: What a whole unit counts; other than 1 for a readout, whose answer is decoded.
    """

    def __init__(self, exponent: int = 0, unit: float = 1.0):
        super().__init__()
        self.exponent, self.unit = exponent, unit

    def restart(self) -> None:
        """Nothing learns here."""

    def forward(self, rows: Tensor, path: str, run: Pass) -> Tensor:
        """Return the shifted rows."""
        shifted = rows * 2.0**self.exponent
        if self.exponent < 0:
            shifted = straight_through(shifted, torch.floor(shifted))
        return shifted if self.unit == 1 else shifted * self.unit
