"""Optimisers: descriptions of ``torch.optim``'s, stepping on gradients that are handed in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from spikecl.components import PositiveFloat, component
from spikecl.storage import State, nbytes

NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["constant", "linear", "cosine"]


class Optimiser:
    """A running optimiser over named parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], inner: torch.optim.Optimizer):
        self._parameters = dict(parameters)
        self._inner = inner
        self._rates = [group["lr"] for group in inner.param_groups]

    def step(self, gradients: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Apply gradients with a share of the learning rate; a parameter without one stays.

        No gradient is left behind.
        """
        if unknown := gradients.keys() - self._parameters.keys():
            raise KeyError(
                f"gradients of unknown or frozen parameters: {', '.join(sorted(unknown))}"
            )
        for group, lr in zip(self._inner.param_groups, self._rates):
            group["lr"] = lr * share
        for name, parameter in self._parameters.items():
            gradient = gradients.get(name)
            if gradient is not None and gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)  # as fused steps read them
            parameter.grad = gradient
        self._inner.step()
        for parameter in self._parameters.values():
            parameter.grad = None

    def state_dict(self) -> State:
        """Return the state by parameter name."""
        names = list(self._parameters)
        inner = self._inner.state_dict()["state"]
        return {names[index]: dict(entries) for index, entries in inner.items()}

    def load_state_dict(self, state: State) -> None:
        """Take a state back, in place of the present one."""
        names = list(self._parameters)
        inner = self._inner.state_dict()
        inner["state"] = {names.index(name): dict(entries) for name, entries in state.items()}
        self._inner.load_state_dict(inner)

    def nbytes(self) -> int:
        """Return the bytes of the state."""
        return sum(
            nbytes(*(v for v in entries.values() if isinstance(v, Tensor)))
            for entries in self._inner.state.values()
        )


class OptimiserSpec(ABC):
    """Describes an optimiser; ``start`` makes a running one.

    ``schedule`` says which share of the learning rate is left where a part p of the steps of an
    experience is done::

        constant   1
        linear     1 - p
        cosine     (1 + cos(pi p)) / 2
    """

    __slots__ = ()
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
    def start(self, parameters: Mapping[str, nn.Parameter]) -> Optimiser:
        """Return an optimiser with fresh state."""


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

    def start(self, parameters: Mapping[str, nn.Parameter]) -> Optimiser:
        """Return ``torch.optim.SGD``."""
        options: dict[str, Any] = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return Optimiser(
            parameters, torch.optim.SGD(list(parameters.values()), lr=self.lr, **options)
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

    def start(self, parameters: Mapping[str, nn.Parameter]) -> Optimiser:
        """Return ``torch.optim.Adam``."""
        options: dict[str, Any] = {
            "betas": (self.beta1, self.beta2),
            "weight_decay": self.weight_decay,
            "fused": True,  # one pass over the memory
        }
        return Optimiser(
            parameters, torch.optim.Adam(list(parameters.values()), lr=self.lr, **options)
        )
