"""Gradient descent with momentum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from spikecl.components import PositiveFloat, component
from spikecl.optim.optimiser import Decay, Kept, Moving, NonNegative, OptimiserSpec
from spikecl.optim.schedules import AnySchedule, Constant


@component
class Sgd(OptimiserSpec):
    """Gradient descent: ``b <- momentum b + g + weight_decay w``, then ``w <- w - lr b``.

    Args:
        lr: Learning rate.
        momentum: Part of the last step that is kept.
        weight_decay: Pull towards zero, added to the gradient.
        schedule: Which share of the learning rate a step takes.
        state: At each boundary that is revealed, b is 0 again (``fresh``) or ``carried`` over.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> Sgd(lr=0.5).start({"w": w}).step({"w": torch.tensor([1.0, 1.0])})
        >>> w.tolist()
        [0.5, -2.5]
    """

    lr: PositiveFloat = 0.1
    momentum: Decay = 0.0
    weight_decay: NonNegative = 0.0
    schedule: AnySchedule = Constant()
    state: Kept = "fresh"

    @property
    def keeps_row_space(self) -> bool:
        """True without weight decay, if no momentum is carried over."""
        return self.weight_decay == 0 and (self.momentum == 0 or self.state == "fresh")

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return ``b``, where there is momentum."""
        return {"momentum_buffer": torch.zeros_like(parameter)} if self.momentum else {}

    def move(self, moving: Moving) -> None:
        """Take the step of ``torch.optim.SGD``."""
        sgd(
            moving.parameters,
            moving.gradients,
            [state.get("momentum_buffer") for state in moving.states],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=moving.lr,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
