"""Optimisers: rules that move parameters by gradients that are handed in.

The arithmetic is ``torch.optim``'s functions. Its classes would import the compiler of torch, which
takes longer than a short run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from spikecl.components import PositiveFloat, component
from spikecl.storage import State, nbytes

NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["constant", "linear", "cosine"]


class Optimiser:
    """A running optimiser over named parameters: a rule, and its state by parameter."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rule: OptimiserSpec):
        self._parameters = dict(parameters)
        self._rule = rule
        self._state: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Apply gradients with a share of the learning rate; a parameter without one stays."""
        if unknown := gradients.keys() - self._parameters.keys():
            raise KeyError(
                f"gradients of unknown or frozen parameters: {', '.join(sorted(unknown))}"
            )
        moving = {n: p for n, p in self._parameters.items() if gradients.get(n) is not None}
        if not moving:
            return
        for name, parameter in moving.items():
            if name not in self._state:
                self._state[name] = self._rule.fresh(parameter)
        self._rule.move(
            list(moving.values()),
            [_laid_out_like(parameter, gradients[name]) for name, parameter in moving.items()],
            [self._state[name] for name in moving],
            self._rule.lr * share,
        )

    def state_dict(self) -> State:
        """Return the state by parameter name."""
        return {name: dict(entries) for name, entries in self._state.items()}

    def load_state_dict(self, state: State) -> None:
        """Take a state back, in place of the present one."""
        self._state = {
            name: {
                key: torch.empty_like(own).copy_(entries[key])
                for key, own in self._rule.fresh(self._parameters[name]).items()
            }
            for name, entries in state.items()
        }

    def nbytes(self) -> int:
        """Return the bytes of the state."""
        return sum(nbytes(*entries.values()) for entries in self._state.values())


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient with the strides of its parameter, as fused steps read them."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


class OptimiserSpec(ABC):
    """A rule that moves parameters; ``start`` makes a running optimiser of it.

    ``schedule`` says which share of the learning rate is left where a part p of the steps of an
    experience is done::

        constant   1
        linear     1 - p
        cosine     (1 + cos(pi p)) / 2
    """

    __slots__ = ()
    lr: float
    schedule: Schedule = "constant"

    def share(self, done: float) -> float:
        """Return the share of the learning rate where a part, 0 to 1, of the steps is done."""
        if self.schedule == "constant":
            return 1.0
        return 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2

    @property
    @abstractmethod
    def keeps_row_space(self) -> bool:
        """Whether every update of a matrix lies in the span of the rows of past gradients.

        Then projecting the gradient is projecting the update. Adam's per-weight scaling and weight
        decay leave that span.
        """

    @abstractmethod
    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter that was never moved."""

    @abstractmethod
    def move(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        lr: float,
    ) -> None:
        """Move parameters and their states in place by one step."""

    def start(self, parameters: Mapping[str, nn.Parameter]) -> Optimiser:
        """Return an optimiser with fresh state."""
        return Optimiser(parameters, self)


@component
class Sgd(OptimiserSpec):
    """Gradient descent: ``b <- momentum b + g + weight_decay w``, then ``w <- w - lr b``.

    Args:
        lr: Learning rate, at the start of an experience.
        momentum: Part of the last step that is kept.
        weight_decay: Pull towards zero, added to the gradient.
        schedule: How the learning rate falls over the steps of an experience, to 0
            behind the last one (:class:`OptimiserSpec`).
    """

    lr: PositiveFloat = 0.1
    momentum: Decay = 0.0
    weight_decay: NonNegative = 0.0
    schedule: Schedule = "constant"

    @property
    def keeps_row_space(self) -> bool:
        """True without weight decay."""
        return self.weight_decay == 0

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return ``b``, where there is momentum."""
        return {"momentum_buffer": torch.zeros_like(parameter)} if self.momentum else {}

    def move(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        lr: float,
    ) -> None:
        """Take the step of ``torch.optim.SGD``."""
        sgd(
            parameters,
            gradients,
            [state.get("momentum_buffer") for state in states],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0,
            nesterov=False,
            maximize=False,
        )


@component
class Adam(OptimiserSpec):
    """Adam (Kingma & Ba 2015), weight decay added to the gradient.

    Args:
        lr: Learning rate, at the start of an experience.
        beta1: Decay of the running mean of the gradient.
        beta2: Decay of the running mean of its square.
        weight_decay: Pull towards zero, added to the gradient.
        schedule: How the learning rate falls over the steps of an experience, to 0
            behind the last one (:class:`OptimiserSpec`).
    """

    lr: PositiveFloat = 0.001
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    weight_decay: NonNegative = 0.0
    schedule: Schedule = "constant"

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

    def move(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        lr: float,
    ) -> None:
        """Take the step of ``torch.optim.Adam``."""
        adam(
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,  # one pass over the memory
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
