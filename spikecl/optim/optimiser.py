"""A running optimiser, and what a rule that it follows must say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spikecl.optim.schedules import AnySchedule, Constant
from spikecl.storage import State, nbytes

NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Kept = Literal["fresh", "carried"]


class Moving(NamedTuple):
    """What one step moves, in place: parameters and states, by gradients, with a learning rate."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    states: list[dict[str, Tensor]]
    lr: float

    def each(self, entry: str) -> list[Tensor]:
        """Return one entry of all states."""
        return [state[entry] for state in self.states]


class Optimiser:
    """A running optimiser over named parameters: a rule, and its state by parameter."""

    def __init__(self, parameters: Mapping[str, Tensor], rule: OptimiserSpec):
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
            Moving(
                list(moving.values()),
                [_laid_out_like(parameter, gradients[name]) for name, parameter in moving.items()],
                [self._state[name] for name in moving],
                self._rule.lr * share,
            )
        )

    @torch.no_grad()
    def renew(self, parameters: Mapping[str, Tensor]) -> None:
        """Begin an experience: drop the state, or carry it over to the parameters as they are."""
        self._parameters = dict(parameters)
        kept = self._state if self._rule.state == "carried" else {}
        self._state = {name: kept[name] for name in parameters if name in kept}
        for name, state in self._state.items():
            self._rule.rejoin(self._parameters[name], state)

    @torch.no_grad()
    def settle(self) -> None:
        """End an experience: what is tested becomes what the parameters are."""
        self._put(self._tested())
        for name, state in self._state.items():
            self._rule.rejoin(self._parameters[name], state)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold what is tested in the parameters; behind it they are bit for bit what they were."""
        tested = self._tested()
        trained = {name: self._parameters[name].detach().clone() for name in tested}
        try:
            self._put(tested)
            yield
        finally:
            self._put(trained)

    @torch.no_grad()
    def _tested(self) -> dict[str, Tensor]:
        found = {
            name: self._rule.tested(self._parameters[name], state)
            for name, state in self._state.items()
        }
        return {name: value for name, value in found.items() if value is not None}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)

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

    ``schedule`` says which share of ``lr`` a step takes. ``state`` says whether what the rule keeps
    (momentum, means) begins ``fresh`` at each boundary that is revealed, or is ``carried`` over.
    ``averages``: whether tests see something else than the parameters that are trained.
    """

    __slots__ = ()
    averages: ClassVar[bool] = False
    lr: float
    schedule: AnySchedule = Constant()
    state: Kept = "fresh"

    @property
    @abstractmethod
    def keeps_row_space(self) -> bool:
        """Whether updates of a matrix lie in the span of the rows of this experience's gradients.

        Then projecting the gradient is projecting the update. Adam's per-weight scaling and weight
        decay leave that span, and so does what is carried over from earlier gradients.
        """

    @abstractmethod
    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter that was never moved."""

    @abstractmethod
    def move(self, moving: Moving) -> None:
        """Move parameters and their states in place by one step."""

    def tested(self, parameter: Tensor, state: dict[str, Tensor]) -> Tensor | None:
        """Return what tests see in the place of a parameter; ``None``: the parameter itself."""
        return None

    def rejoin(self, parameter: Tensor, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Change the state in place so that training goes on from a parameter as it is."""

    def start(self, parameters: Mapping[str, Tensor]) -> Optimiser:
        """Return an optimiser with fresh state."""
        return Optimiser(parameters, self)
