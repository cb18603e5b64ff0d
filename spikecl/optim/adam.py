"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from spikecl.components import PositiveFloat, component
from spikecl.optim.optimiser import Decay, Kept, Moving, NonNegative, OptimiserSpec
from spikecl.optim.schedules import AnySchedule, Constant

EPSILON = 1e-8


class _Moments(OptimiserSpec):
    """A rule with running means of the gradient and of its square."""

    __slots__ = ()
    beta1: float
    beta2: float
    weight_decay: float

    @property
    def keeps_row_space(self) -> bool:
        """False, since each weight is scaled on its own."""
        return False

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the number of steps and both means."""
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def move(self, moving: Moving) -> None:
        """Take the step of ``torch.optim``."""
        self._rule()(
            moving.parameters,
            moving.gradients,
            moving.each("exp_avg"),
            moving.each("exp_avg_sq"),
            [],
            moving.each("step"),
            fused=True,  # one pass over the memory
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=moving.lr,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    @staticmethod
    @abstractmethod
    def _rule() -> Callable[..., None]:
        """Return the function of ``torch.optim``."""


@component
class Adam(_Moments):
    """Adam, weight decay added to the gradient.

    In order, with k steps done, this one included::

        g <- g + weight_decay w
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        w <- w - lr (m / (1 - beta1^k)) / (sqrt(v / (1 - beta2^k)) + 1e-8)

    Args:
        lr: Learning rate.
        beta1: Decay of the running mean of the gradient.
        beta2: Decay of the running mean of its square.
        weight_decay: Pull towards zero, added to the gradient.
        schedule: Which share of the learning rate a step takes.
        state: At each boundary that is revealed, m, v and k begin ``fresh`` or are ``carried``
            over.

    Source: Kingma & Ba 2015, algorithm 1.
    """

    lr: PositiveFloat = 0.001
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    weight_decay: NonNegative = 0.0
    schedule: AnySchedule = Constant()
    state: Kept = "fresh"

    @staticmethod
    def _rule() -> Callable[..., None]:
        return adam


@component
class AdamW(_Moments):
    """Adam, weight decay apart from the gradient.

    In order, with k steps done, this one included::

        w <- w - lr weight_decay w
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        w <- w - lr (m / (1 - beta1^k)) / (sqrt(v / (1 - beta2^k)) + 1e-8)

    Args:
        lr: Learning rate.
        beta1: Decay of the running mean of the gradient.
        beta2: Decay of the running mean of its square.
        weight_decay: Part of a weight, times the learning rate, that is lost in a step.
        schedule: Which share of the learning rate a step takes, of the decay too.
        state: At each boundary that is revealed, m, v and k begin ``fresh`` or are ``carried``
            over.

    Source: Loshchilov & Hutter 2019, algorithm 2, with the decay times the learning rate as in
    ``torch.optim.AdamW``.
    """

    lr: PositiveFloat = 0.001
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    weight_decay: NonNegative = 0.01
    schedule: AnySchedule = Constant()
    state: Kept = "fresh"

    @staticmethod
    def _rule() -> Callable[..., None]:
        return adamw
