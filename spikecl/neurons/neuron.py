"""What a neuron model is: parameters, a state, and pure functions that advance it by one step.

A spiking model has three phases, and options that work the same in all of them::

    integrate   input and state give the state before a reset
    distance    spikes are where the distance to threshold is positive
    settle      what the spikes do to the state

Nothing is stored on a neuron: the state goes in and comes out. ``None`` stands for rest.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, Strict
from torch import Tensor

from spikecl.components import PositiveFloat, component
from spikecl.errors import ConfigError, UsageError, suggest
from spikecl.neurons.surrogate import AnySurrogate, Sigmoid, Smooth, spike
from spikecl.neurons.values import Real, Value

State = Any  # a NamedTuple of tensors [B, *features], of tuples of them, or None


class Neuron(ABC):
    """A model of a neuron: frozen parameters and a pure step.

    ``learns`` names the parameters that a layer trains unless it is told otherwise.
    """

    __slots__ = ()
    learns: ClassVar[tuple[str, ...]] = ()

    @property
    def random(self) -> bool:
        """Whether a step draws random numbers."""
        return False

    @property
    def idle(self) -> Mapping[str, str]:
        """Parameters that nothing depends on with these options: by name, why and what to do."""
        return {}

    def cells(self, x: Tensor) -> torch.Size:
        """Return the shape [*features] of the neurons that one step of input drives."""
        return x.shape[1:]

    @abstractmethod
    def rest(self, x: Tensor) -> State:
        """Return the state of silence for one step of input [B, *features]."""

    @abstractmethod
    def advance(
        self, x: Tensor, state: State, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Advance by one step without checks; see :func:`step`."""

    def bind(self, values: Mapping[str, Any]) -> Self:
        """Return the neuron with some parameters replaced (by tensors); their values are unchecked.

        Raises:
            UsageError: The model has no parameter of a name.
        """
        made, names = object.__new__(type(self)), [f.name for f in fields(self)]  # type: ignore[arg-type]
        for name in values:
            if name not in names:
                raise UsageError(
                    f"{type(self).__name__} has no parameter '{name}'{suggest(name, names)}"
                )
        for name in names:
            object.__setattr__(made, name, values.get(name, getattr(self, name)))
        return made


@component
class Escape:
    """Firing by chance: the closer to threshold, the likelier (escape rate).

    With the distance to threshold ``d`` that the surrogate sees (``v - v_th``, over ``v_scale``
    where a model has one) and a step of ``dt`` the probability of a spike is::

        sigmoid       p = 1 / (1 + exp(-d / width))
        exponential   p = 1 - exp(-rate exp(d / width))

    Source: Gerstner & Kistler, Spiking Neuron Models (2002), section 5.3.

    Args:
        form: Which of the two.
        width: Softness of the threshold, in units of ``d``.
        rate: Expected spikes per step at threshold, of the exponential form: ``rho_0 dt``.
    """

    form: Literal["sigmoid", "exponential"] = "sigmoid"
    width: PositiveFloat = 0.25
    rate: PositiveFloat = 1.0

    def shift(self, distance: Tensor, generator: torch.Generator) -> Tensor:
        """Draw what to add to the distance so that its sign has the right probability."""
        uniform = torch.rand(distance.shape, generator=generator, dtype=distance.dtype)
        uniform = uniform.clamp_min(torch.finfo(distance.dtype).tiny).to(distance.device)
        if self.form == "sigmoid":
            return self.width * torch.logit(1 - uniform, eps=torch.finfo(distance.dtype).eps)
        return -self.width * (-uniform.log() / self.rate).log()


class Refractory(NamedTuple):
    """State of a neuron with a refractory period: its own, and the steps that are left [B, ...]."""

    neuron: State
    left: Tensor


@component
class SpikingNeuron(Neuron):
    """What all spiking models share.

    Args:
        surrogate: Derivative of the spike.
        strict: Fire at ``v > v_th`` instead of ``v >= v_th``.
        refractory: Steps after a spike in which there is no other.
        integrate_refractory: Go on integrating meanwhile; otherwise the membrane is held.
        noise: Standard deviation of the Gaussian noise that each step adds to the membrane.
        escape: Fire by chance instead of at the threshold.
    """

    surrogate: AnySurrogate = Sigmoid()
    strict: bool = True
    refractory: Annotated[int, Field(ge=0)] = 0
    integrate_refractory: bool = False
    noise: Annotated[float, Field(ge=0)] = 0.0
    escape: Escape | None = None

    def __post_init__(self) -> None:
        """Refuse a smooth spike where there has to be a spike."""
        if isinstance(self.surrogate, Smooth) and (self.escape is not None or self.refractory):
            raise ConfigError(
                f"{type(self).__name__}: Smooth replaces the spike that escape would draw and that "
                "a refractory period would follow; take the surrogate itself, or neither option"
            )

    @property
    def random(self) -> bool:
        """Whether a step draws random numbers."""
        return self.noise > 0 or self.escape is not None

    @property
    def plain(self) -> bool:
        """Whether none of the options is in use."""
        return not (self.random or self.refractory)

    @abstractmethod
    def silence(self, x: Tensor) -> State:
        """Return the state of silence, the refractory period aside."""

    @abstractmethod
    def integrate(self, x: Tensor, state: State) -> State:
        """Return the state with the membrane before the reset."""

    @abstractmethod
    def distance(self, state: State) -> Tensor:
        """Return the distance to threshold."""

    @abstractmethod
    def settle(self, state: State, spikes: Tensor) -> State:
        """Return the state after the spikes."""

    def rest(self, x: Tensor) -> State:
        """Return the state of silence for one step of input [B, *features]."""
        state = self.silence(x)
        return Refractory(state, torch.zeros_like(state.v)) if self.refractory else state

    def advance(
        self, x: Tensor, state: State, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Integrate, fire, settle."""
        if self.plain:
            state = self.integrate(x, state)
            spikes = spike(self.distance(state), self.surrogate, strict=self.strict)
            return spikes, self.settle(state, spikes)
        assert generator is not None or not self.random  # never the global one
        old, left = state if self.refractory else (state, None)
        new = self.integrate(x, old)
        if self.noise:
            drawn = torch.randn(new.v.shape, generator=generator, dtype=new.v.dtype)
            new = new._replace(v=new.v + self.noise * drawn.to(new.v.device))
        if left is not None and not self.integrate_refractory:
            new = new._replace(v=torch.where(left > 0, old.v, new.v))
        distance, shift = self.distance(new), None
        if self.escape is not None and generator is not None:
            shift = self.escape.shift(distance.detach(), generator)
        spikes = spike(distance, self.surrogate, strict=self.strict, shift=shift)
        if left is None:
            return spikes, self.settle(new, spikes)
        spikes = spikes * (left == 0)
        left = torch.where(spikes.detach() > 0, float(self.refractory), (left - 1).clamp_min(0))
        return spikes, Refractory(self.settle(new, spikes), left)


class Reset(enum.StrEnum):
    """What a spike does to the membrane."""

    SOFT = "soft"  # v <- u - v_th
    ZERO = "zero"  # v <- 0
    VALUE = "value"  # v <- v_reset
    NONE = "none"  # v <- u


AnyReset = Annotated[Reset, Strict(False)]  # also by its text


@component
class Resetting(SpikingNeuron):
    """A spiking model whose spike resets the membrane, now or in the next step.

    Its state has the fields ``v`` and ``spikes``; the second is ``None`` unless the reset waits.

    Args:
        v_th: Threshold.
        v_reset: Membrane after a spike with ``reset="value"``.
        reset: What a spike does to the membrane: subtract ``v_th`` (``soft``), set it to ``zero``
            or to v_reset (``value``), or nothing (``none``).
        reset_time: Apply the reset in the same step; in the ``next`` (a soft reset after the decay,
            the others before it); or, ``after``, when the next step has taken its input.
        detach_reset: Cut the gradient through the spike that resets (the membrane path stays).
    """

    v_th: Real = 1.0
    v_reset: Real = 0.0
    reset: AnyReset = Reset.SOFT
    reset_time: Literal["same", "next", "after"] = "same"
    detach_reset: bool = True

    def __post_init__(self) -> None:
        """Refuse a membrane that would be held before its reset has come."""
        SpikingNeuron.__post_init__(self)
        if self.refractory and self.reset_time != "same" and not self.integrate_refractory:
            raise ConfigError(
                f"{type(self).__name__}: refractory={self.refractory} holds the membrane, but "
                f"reset_time='{self.reset_time}' resets it later; use reset_time='same' or "
                "integrate_refractory=true"
            )

    @property
    def idle(self) -> Mapping[str, str]:
        """``v_reset``, unless a spike resets the membrane to it."""
        why = f"reset='{self.reset}' does not use it; use reset='value'"
        return {} if self.reset is Reset.VALUE else {"v_reset": why}

    @property
    def reset_value(self) -> Value:
        """Membrane after a spike, for the two resets to a value."""
        return self.v_reset if self.reset is Reset.VALUE else 0.0

    def waiting(self, x: Tensor) -> Tensor | None:
        """Return the field ``spikes`` of a state of silence."""
        return None if self.reset_time == "same" else torch.zeros_like(x)

    def before(self, state: Any) -> Tensor:
        """Return the membrane to integrate from: past a reset that comes before the decay."""
        if self.reset_time == "next" and self.reset is not Reset.SOFT:
            return self._after_reset(state.v, state.spikes)
        v: Tensor = state.v
        return v

    def behind(self, u: Tensor, state: Any) -> Tensor:
        """Return the integrated membrane, past a reset that comes after the decay."""
        late = self.reset_time == "after" or self.reset is Reset.SOFT
        return self._after_reset(u, state.spikes) if late and self.reset_time != "same" else u

    def settle(self, state: Any, spikes: Tensor) -> Any:
        """Reset, or remember the spikes until the reset is due."""
        if self.reset_time != "same":
            return state._replace(spikes=spikes)
        return state._replace(v=self._after_reset(state.v, spikes))

    def _after_reset(self, u: Tensor, spikes: Tensor) -> Tensor:
        s = spikes.detach() if self.detach_reset else spikes
        if self.reset is Reset.NONE:
            return u
        return u - self.v_th * s if self.reset is Reset.SOFT else to_value(u, s, self.reset_value)


def to_value(v: Tensor, spikes: Tensor, value: Value) -> Tensor:
    """Reset to a value: ``(1 - s) v + s value``, exact however far the membrane overshot."""
    return (1 - spikes) * v + spikes * value


def step(
    x: Tensor, state: State, neuron: Neuron, generator: torch.Generator | None = None
) -> tuple[Tensor, State]:
    """Advance a layer of neurons by one step; the equations stand with each model.

    Args:
        x: Input current [B, *features].
        state: State before the step; ``None`` means rest.
        neuron: The model.
        generator: Where noise and escape firing draw from.

    Returns:
        Output (spikes, for most models) [B, *features] and the new state.

    Raises:
        UsageError: Integer input, a state of another shape, type or device, parameters that do not
            fit the features, or no generator for a model that draws.

    Example:
        >>> from spikecl.neurons import LIF
        >>> spikes, state = step(torch.ones(1, 2), None, LIF(v_th=0.5))
        >>> spikes.tolist(), state.v.tolist()
        ([[1.0, 1.0]], [[0.5, 0.5]])
    """
    return neuron.advance(x, checked_state(x, state, neuron, generator), generator)


def checked_state(
    x: Tensor, state: State, neuron: Neuron, generator: torch.Generator | None = None
) -> State:
    """Return the state to start from; refuse what does not fit one step of input ``x``."""
    name = type(neuron).__name__
    if not x.dtype.is_floating_point:
        raise UsageError(f"input current is {x.dtype}; convert it to a floating type first")
    for field in tensors_of(neuron):
        _check_parameter(f"{name}.{field}", getattr(neuron, field), x, neuron.cells(x))
    if neuron.random and generator is None:
        raise UsageError(f"{name} draws random numbers (noise or escape); pass a torch.Generator")
    rest = neuron.rest(x)
    if state is None:
        return rest
    check_like(state, rest, type(rest).__name__)
    return state


def tensors_of(neuron: Neuron) -> tuple[str, ...]:
    """Return the names of the parameters that are tensors."""
    if _NUMBERS.get(id(neuron)) is neuron:
        return ()
    found = tuple(
        field.name
        for field in fields(neuron)  # type: ignore[arg-type]
        if isinstance(getattr(neuron, field.name), Tensor)
    )
    if not found:
        if len(_NUMBERS) >= 1000:
            _NUMBERS.clear()
        _NUMBERS[id(neuron)] = neuron
    return found


_NUMBERS: dict[int, Neuron] = {}  # seen without a tensor; what every step would look up


def _check_parameter(name: str, value: Tensor, x: Tensor, cells: torch.Size) -> None:
    if value.device != x.device:
        raise UsageError(f"{name} is on {value.device}, the input on {x.device}; move one of them")
    pairs = zip(reversed(value.shape), reversed((1, *cells)))
    if value.dim() > len(cells) + 1 or any(n not in (1, m) for n, m in pairs):
        raise UsageError(
            f"{name} has shape {tuple(value.shape)}, the neurons {tuple(cells)}; give one number, "
            "or one for each neuron"
        )
    if value.dim() and torch.promote_types(value.dtype, x.dtype) != x.dtype:
        raise UsageError(f"{name} is {value.dtype}, the input {x.dtype}; convert one of them")


def check_like(state: Any, rest: Any, name: str) -> None:
    """Refuse a state that is not of the type, shape, device and dtype of one at rest."""
    if type(state) is not type(rest) and not (
        isinstance(state, Tensor) and isinstance(rest, Tensor)
    ):
        raise UsageError(
            f"state is a {type(state).__name__}, the neuron needs {name}; pass the state that a "
            "step of the same neuron returned, or None to start from rest"
        )
    if isinstance(rest, tuple):
        for part, like in zip(state, rest, strict=True):
            check_like(part, like, f"{name} of {type(like).__name__}s")
    elif isinstance(rest, Tensor):
        for what in ("shape", "device", "dtype"):
            got, needed = getattr(state, what), getattr(rest, what)
            if got != needed:
                got, needed = (tuple(v) if what == "shape" else v for v in (got, needed))
                raise UsageError(
                    f"state has {what} {got}, one step of the input needs {needed}; pass the state "
                    "of the same batch, or None to start from rest"
                )


def leaves(state: State) -> list[Tensor]:
    """Return the tensors of a state (or a mapping of states) in a fixed order."""
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, Mapping) else state or ()
    return [tensor for part in parts for tensor in leaves(part)]


def rebuild(template: State, tensors: Iterator[Tensor]) -> State:
    """Return a state like the template with other tensors: the reverse of :func:`leaves`."""
    if isinstance(template, Tensor):
        return next(tensors)
    if template is None:
        return None
    if isinstance(template, Mapping):
        return {name: rebuild(part, tensors) for name, part in template.items()}
    return type(template)(*(rebuild(part, tensors) for part in template))


def carry(state: State, between: Literal["reset", "keep", "detach"]) -> State:
    """Return the state that the next sample starts from.

    Args:
        state: State after the last step, or a mapping of states.
        between: ``reset`` starts from rest, ``keep`` goes on with the graph, ``detach`` goes on
            with the values alone.
    """
    if between not in ("reset", "keep", "detach"):
        raise UsageError(f"carry: got {between!r}; use 'reset', 'keep' or 'detach'")
    if between == "reset" or state is None:
        return None
    if between == "keep":
        return state
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, Mapping):
        return {name: carry(part, between) for name, part in state.items()}
    return type(state)(*(carry(part, between) for part in state))
