"""Corruptions of images: pure, vectorised, in five severities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from spikecl.streams.transforms import CHUNK

Corruption = Literal[
    "clean", "noise", "salt_pepper", "blur", "contrast", "brightness", "invert", "occlude", "coarse"
]
SEVERITIES: Mapping[str, tuple[float, ...]] = {
    "clean": (0.0, 0.0, 0.0, 0.0, 0.0),
    "noise": (0.1, 0.2, 0.3, 0.4, 0.6),  # standard deviation
    "salt_pepper": (0.02, 0.05, 0.1, 0.2, 0.3),  # share of elements
    "blur": (0.5, 1.0, 1.5, 2.0, 3.0),  # standard deviation in elements
    "contrast": (0.7, 0.5, 0.35, 0.2, 0.1),  # factor of the distance to the image's mean
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added
    "invert": (1.0, 1.0, 1.0, 1.0, 1.0),
    "occlude": (0.2, 0.3, 0.4, 0.5, 0.6),  # side of a black square, as a share of the image's
    "coarse": (2.0, 3.0, 4.0, 5.0, 7.0),  # side of the squares that are averaged, in elements
}


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Change images [N, H, W] or [N, H, W, C]; intensities stay within 0 and ``peak``.

    Integer images are rounded back to their type. What is random (noise, where a square lies) is
    drawn from ``seed`` for the N images as they come.
    """

    kind: Corruption
    severity: int
    peak: float
    seed: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return the changed images."""
        if self.kind == "clean" or not len(x):
            return x
        generator = torch.Generator().manual_seed(self.seed)
        change, amount = CHANGES[self.kind], SEVERITIES[self.kind][self.severity - 1]
        return torch.cat(
            [self._change(part, change, amount, generator) for part in torch.split(x, CHUNK)]
        )

    def _change(
        self,
        x: Tensor,
        change: Callable[[Tensor, float, torch.Generator], Tensor],
        amount: float,
        generator: torch.Generator,
    ) -> Tensor:
        grey = x.dim() == 3
        images = (x[..., None] if grey else x).movedim(-1, 1).float() / self.peak
        out = change(images, amount, generator).clamp(0, 1).movedim(1, -1) * self.peak
        if not x.dtype.is_floating_point:
            out = out.round()
        return (out[..., 0] if grey else out).to(x.dtype)

    def describe(self) -> str:
        """Return what identifies it."""
        return f"corrupt:{self.kind}:{self.severity}:{self.peak!r}:{self.seed}"


def _noise(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    return x + amount * torch.randn(x.shape, generator=generator)


def _salt_pepper(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(x.shape[0], 1, *x.shape[2:], generator=generator)
    return torch.where(drawn < amount / 2, 0.0, torch.where(drawn > 1 - amount / 2, 1.0, x))


def _blur(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    reach = math.ceil(3 * amount)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / amount).square())
    kernel = kernel / kernel.sum()
    planes = x.flatten(0, 1)[:, None]
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        ends = (0, 0, reach, reach) if shape[2] == -1 else (reach, reach, 0, 0)
        planes = functional.conv2d(functional.pad(planes, ends, "replicate"), kernel.view(shape))
    return planes.view(x.shape)


def _contrast(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + amount * (x - mean)


def _brightness(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    return x + amount


def _invert(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    return 1 - x


def _occlude(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    hidden = torch.ones(len(x), 1, 1, 1, dtype=torch.bool)
    for axis, size in ((2, x.shape[2]), (3, x.shape[3])):
        side = max(round(amount * size), 1)
        start = torch.randint(size - side + 1, (len(x), 1), generator=generator)
        at = torch.arange(size)
        inside = (at >= start) & (at < start + side)
        hidden = hidden & inside.view(len(x), 1, *((-1, 1) if axis == 2 else (1, -1)))
    return torch.where(hidden, 0.0, x)


def _coarse(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    side, (h, w) = int(amount), x.shape[2:]
    small = functional.avg_pool2d(x, side, ceil_mode=True)
    return small.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :h, :w]


CHANGES: Mapping[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "noise": _noise,
    "salt_pepper": _salt_pepper,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "invert": _invert,
    "occlude": _occlude,
    "coarse": _coarse,
}
