"""Schedule-free optimisers: an average in the place of a learning rate that falls."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from spikecl.components import PositiveFloat, component
from spikecl.optim.adam import EPSILON
from spikecl.optim.optimiser import Decay, Kept, Moving, NonNegative, OptimiserSpec
from spikecl.optim.schedules import AnySchedule, Constant


class _ScheduleFree(OptimiserSpec):
    """Gradients are taken at y, the base rule moves z, tests see the average x of all z.

    The parameter holds y, between z and x. The state holds x without the last z, and the numbers
    of that step: c, the weight of z in the average, and with it ``a = 1 - beta + beta c``. In
    order, d being the direction of the base rule at y::

        z <- x + (y - x) / a
        x <- x + c (z - x)
        z <- z - lr d
        h <- max(h, lr);  s <- s + h^2;  c <- h^2 / s;  a <- 1 - beta + beta c
        y <- x + a (z - x)

    which is ``y = (1 - beta) z + beta x`` for the average x that has the last z in it. Tests see
    ``x + (c / a) (y - x)``, that average. h, s and c are kept for each parameter.

    The last z is read off y, not kept: whoever changes the update of y has changed that of z, and
    x is a mean of what was applied. All three stay in one plane with the weights an experience
    began with and the updates that were applied to y, so a projection of these holds for x, too;
    what is masked stays to the last bit.
    """

    __slots__ = ()
    averages: ClassVar[bool] = True
    weight_decay: float

    @property
    @abstractmethod
    def _beta(self) -> float:
        """How far y is from z to x."""

    @abstractmethod
    def _direction(self, y: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Return the direction of the base rule at y; its own state is changed in place."""

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return x, which is y, and the numbers c = 1, h = 0, s = 0, which stay on the host."""
        one = torch.ones((), dtype=torch.float64)
        return {
            "x": parameter.detach().clone(),
            "c": one,
            "h": torch.zeros_like(one),
            "s": torch.zeros_like(one),
        }

    def move(self, moving: Moving) -> None:
        """Take one step of each sequence."""
        for y, gradient, state in zip(moving.parameters, moving.gradients, moving.states):
            x, c = state["x"], float(state["c"])
            direction = self._direction(y, gradient, state)
            z = x + (y - x) / self._ahead(c)
            x.lerp_(z, c)
            z.sub_(direction, alpha=moving.lr)
            c = _weigh(state, moving.lr)
            y.copy_(torch.lerp(x, z, self._ahead(c)))

    def tested(self, parameter: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Return the average of all z."""
        c = float(state["c"])
        return torch.lerp(state["x"], parameter, c / self._ahead(c))

    def rejoin(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        """Let x, and so z, begin again at y; the weights of the average stay."""
        state["x"].copy_(parameter)

    def _ahead(self, c: float) -> float:
        """Return ``a``, the distance of y from x as a part of that of z."""
        return 1 - self._beta + self._beta * c


def _weigh(state: dict[str, Tensor], lr: float) -> float:
    """Count a step with a learning rate; return the weight of its z in the average."""
    highest = max(float(state["h"]), lr)
    total = float(state["s"]) + highest**2
    c = highest**2 / total if total else 0.0
    for name, value in (("h", highest), ("s", total), ("c", c)):
        state[name].fill_(value)
    return c


@component
class ScheduleFreeSgd(_ScheduleFree):
    """Gradient descent with averaging in the place of momentum and of a schedule.

    With lr the learning rate of a step, h the highest so far, and z = x = y at the start::

        y <- (1 - beta) z + beta x
        z <- z - lr (g(y) + weight_decay y)
        x <- (1 - c) x + c z,   c = h^2 / sum of all h^2

    Training and its methods work on y. Tests, and all that comes behind the end of an experience,
    see x. Statistics of a normalisation are those of y.

    Args:
        lr: Learning rate; 10 to 50 times that of plain descent is a good start.
        beta: How far the gradient is taken from z towards x; 0 averages plain descent.
        weight_decay: Pull towards zero, added to the gradient.
        schedule: Which share of the learning rate a step takes; a warm-up is of use.
        state: At each boundary that is revealed, the average begins ``fresh``; or its weights are
            ``carried`` over, so that it moves ever slower. z begins at x either way.

    Source: Defazio et al. 2024, "The Road Less Scheduled", equations 3 to 5 and section 2; the
    highest learning rate in the weights as in the authors' code.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimiser = ScheduleFreeSgd(lr=0.5, beta=0.5).start({"w": w})
        >>> for _ in range(2):
        ...     optimiser.step({"w": w.detach().clone()})
        >>> w.tolist()
        [0.3125]
        >>> with optimiser.evaluating():
        ...     w.tolist()
        [0.375]
    """

    lr: PositiveFloat = 1.0
    beta: Decay = 0.9
    weight_decay: NonNegative = 0.0
    schedule: AnySchedule = Constant()
    state: Kept = "fresh"

    @property
    def keeps_row_space(self) -> bool:
        """True without weight decay: each sequence is a sum of gradients and of the others."""
        return self.weight_decay == 0

    @property
    def _beta(self) -> float:
        return self.beta

    def _direction(self, y: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        return gradient.add(y, alpha=self.weight_decay) if self.weight_decay else gradient


@component
class ScheduleFreeAdamW(_ScheduleFree):
    """AdamW with averaging in the place of its first mean and of a schedule.

    With lr the learning rate of a step, h the highest so far, k the steps done, this one included,
    and z = x = y at the start::

        y <- (1 - beta1) z + beta1 x
        v <- beta2 v + (1 - beta2) g(y)^2
        z <- z - lr (g(y) / (sqrt(v / (1 - beta2^k)) + 1e-8) + weight_decay y)
        x <- (1 - c) x + c z,   c = h^2 / sum of all h^2

    Training and its methods work on y. Tests, and all that comes behind the end of an experience,
    see x. Statistics of a normalisation are those of y.

    Deviation: the paper multiplies lr by sqrt(1 - beta2^k) instead of dividing v, which also
    changes the decay and the weights of the average; this is what the authors' code does since its
    version 1.3.

    Args:
        lr: Learning rate; 1 to 10 times that of AdamW is a good start.
        beta1: How far the gradient is taken from z towards x; 0 averages plain steps.
        beta2: Decay of the running mean of the gradient's square.
        weight_decay: Pull towards zero of z, by y, times the learning rate.
        schedule: Which share of the learning rate a step takes; a warm-up is of use.
        state: At each boundary that is revealed, v, k and the average begin ``fresh``; or v, k and
            the weights of the average are ``carried`` over. z begins at x either way.

    Source: Defazio et al. 2024, "The Road Less Scheduled", algorithm 1; the highest learning rate
    in the weights as in the authors' code.
    """

    lr: PositiveFloat = 0.0025
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    weight_decay: NonNegative = 0.0
    schedule: AnySchedule = Constant()
    state: Kept = "fresh"

    @property
    def keeps_row_space(self) -> bool:
        """False, since each weight is scaled on its own."""
        return False

    @property
    def _beta(self) -> float:
        return self.beta1

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return that of the average, the number of steps, and the mean of squares."""
        return {
            **_ScheduleFree.fresh(self, parameter),
            "k": torch.zeros((), dtype=torch.float64),
            "v": torch.zeros_like(parameter),
        }

    def _direction(self, y: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        state["k"] += 1
        mean = state["v"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        scale = (mean / (1 - self.beta2 ** int(state["k"]))).sqrt_().add_(EPSILON)
        return (gradient / scale).add_(y, alpha=self.weight_decay)
