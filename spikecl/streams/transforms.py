"""Pure changes of raw images, vectorised over samples."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Permute:
    """Reorder the features: ``y[i] = x[order[i]]`` over the flattened features.

    Features are the last axes, as many as the order has entries for: all of a sample, or those of
    a step, which are then reordered alike at every step.
    """

    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return [N, *shape] permuted."""
        return x.reshape(-1, len(self.order))[:, self.order].view(x.shape)

    def describe(self) -> str:
        """Return a digest of the order."""
        return "permute:" + hashlib.sha256(self.order.numpy().tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Rotate:
    """Rotate images [N, H, W] or [N, H, W, C] counter-clockwise about their centre, bilinearly.

    Integer images are rounded back to their type; what comes in from outside is 0. Temporal images
    [N, T, H, W] or [N, T, H, W, C] take the nearest element instead: a single event between two
    elements would be rounded away.
    """

    degrees: float
    temporal: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return the rotated images."""
        if self.degrees % 360 == 0 or not len(x):
            return x
        images = x.flatten(0, 1) if self.temporal else x
        starts = range(0, len(images), CHUNK)
        turned = torch.cat([self._rotate(images[i : i + CHUNK]) for i in starts])
        return turned.view(x.shape)

    def _rotate(self, x: Tensor) -> Tensor:
        grey = x.dim() == 3
        images = (x[..., None] if grey else x).movedim(-1, 1).float()
        a = math.radians(self.degrees)
        h, w = images.shape[2:]
        turn = torch.tensor(
            [
                [math.cos(a), -math.sin(a) * h / w, 0.0],
                [math.sin(a) * w / h, math.cos(a), 0.0],
            ]
        )
        grid = functional.affine_grid(
            turn.expand(len(images), 2, 3), list(images.shape), align_corners=False
        )
        mode = "nearest" if self.temporal else "bilinear"
        out = functional.grid_sample(images, grid, mode=mode, align_corners=False).movedim(1, -1)
        if not x.dtype.is_floating_point:
            out = out.round()
        return (out[..., 0] if grey else out).to(x.dtype)

    def describe(self) -> str:
        """Return the angle, and whether time is left out."""
        return f"rotate:{self.degrees!r}{':temporal' * self.temporal}"
