"""Schedules: which share of the learning rate a step takes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, Strict

from spikecl.components import PositiveInt, component, named
from spikecl.errors import ConfigError

Part = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Parts = Annotated[
    tuple[Annotated[float, Strict(), Field(gt=0, lt=1)], ...], Field(min_length=1), Strict(False)
]


class Place(NamedTuple):
    """Where in a run a step stands.

    ``step`` steps of ``steps`` of the present experience, and ``samples`` of the whole run, are
    done.
    """

    step: int
    steps: int
    samples: int = 0


class Schedule(ABC):
    """Says which share of the learning rate a step takes.

    ``needs_ends``: whether it must know how many steps the present experience has.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def needs_ends(self) -> bool:
        """Whether it must know where an experience begins and ends."""

    @abstractmethod
    def share(self, place: Place) -> float:
        """Return the share of the learning rate at a place, 0 to 1."""


class _WithinExperience(Schedule):
    """A course over the steps of an experience, the same in each.

    Of S steps, the first ``W = warmup S`` are the warm-up. With s steps done::

        s + 1 < W   (s + 1) / W
        else        course(p),  p = max(0, s - W) / (S - W)
    """

    __slots__ = ()
    warmup: Part = 0.0

    @property
    def needs_ends(self) -> bool:
        return True

    def share(self, place: Place) -> float:
        """Return the share of the learning rate at a place, 0 to 1."""
        warm = self.warmup * place.steps
        if place.step + 1 < warm:
            return (place.step + 1) / warm
        return self.course(max(0.0, place.step - warm) / (place.steps - warm))

    @abstractmethod
    def course(self, done: float) -> float:
        """Return the share where a part of the steps behind the warm-up is done."""


@component
class Constant(_WithinExperience):
    """The learning rate stays as it is.

    Args:
        warmup: Part of the steps of an experience over which the rate rises to its full value.

    Example:
        >>> [Constant(warmup=0.5).share(Place(step, 8)) for step in (0, 1, 2, 3, 7)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    warmup: Part = 0.0

    @property
    def needs_ends(self) -> bool:
        """True with a warm-up."""
        return self.warmup > 0

    def course(self, done: float) -> float:
        """Return 1."""
        return 1.0


@component
class Linear(_WithinExperience):
    """The learning rate falls to 0 behind the last step of an experience: ``1 - p``.

    Args:
        warmup: Part of the steps of an experience over which the rate rises first; p counts the
            steps behind it.

    Example:
        >>> [Linear().share(Place(step, 4)) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """

    warmup: Part = 0.0

    def course(self, done: float) -> float:
        """Return ``1 - p``."""
        return 1 - done


@component
class Cosine(_WithinExperience):
    """The learning rate falls to 0 behind the last step: ``(1 + cos(pi p)) / 2``.

    Args:
        warmup: Part of the steps of an experience over which the rate rises first; p counts the
            steps behind it.

    Source: Loshchilov & Hutter 2017, "SGDR", equation 5, one period per experience.

    Example:
        >>> [round(Cosine().share(Place(step, 4)), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """

    warmup: Part = 0.0

    def course(self, done: float) -> float:
        """Return ``(1 + cos(pi p)) / 2``."""
        return (1 + math.cos(math.pi * done)) / 2


@component
class Step(_WithinExperience):
    """The learning rate drops at parts of an experience: ``factor ** (number of at <= p)``.

    Every n of N epochs is ``at = (n / N, 2 n / N, ...)``.

    Args:
        at: Parts of the steps of an experience, rising, at which the rate drops.
        factor: What the rate is multiplied by each time.
        warmup: Part of the steps of an experience over which the rate rises first; p counts the
            steps behind it.

    Raises:
        ConfigError: The entries of ``at`` do not rise.

    Example:
        >>> [Step(at=(0.5, 0.75), factor=0.5).share(Place(step, 4)) for step in range(4)]
        [1.0, 1.0, 0.5, 0.25]
    """

    at: Parts = (0.5, 0.75)
    factor: Share = 0.1
    warmup: Part = 0.0

    def __post_init__(self) -> None:
        """Refuse parts that do not rise."""
        if list(self.at) != sorted(set(self.at)):
            raise ConfigError(f"at must rise, got {list(self.at)}; sort it, each entry once")

    def course(self, done: float) -> float:
        """Return ``factor`` to the number of entries of ``at`` that are reached."""
        return self.factor ** sum(part <= done for part in self.at)


@component
class Infinite(Schedule):
    """Warm-up, cool-down, and then a constant rate for as long as the stream lasts.

    It counts the samples n of the run, not those of an experience, so it does not rise again at a
    boundary, needs no horizon, and may be used where boundaries are hidden. W and C are the
    samples of warm-up and cool-down, r is ``constant``, m is ``final``, A and E are where an
    annealing begins and ends. The share of the learning rate is::

        n < W            n / W
        n < W + C        with p = (n - W) / C
            cosine         r + (1 - r) (1 + cos(pi p)) / 2
            inverse_sqrt   1 + (r - 1) f(p) / f(1),  f(p) = 1 / sqrt(1 + 10 p) - 1
        n < A            r
        n < E            r (m / r) ** ((n - A) / (E - A))
        else             m

    Without an annealing it is r for ever. The first step of a warm-up does not move.

    Deviation: the paper anneals at the end of each data set, from a copy; here it is done once.

    Args:
        warmup_samples: Samples over which the rate rises.
        cooldown_samples: Samples over which it falls to its constant value.
        cooling: How it falls.
        constant: Share that stays.
        anneal_from_samples: Samples of the run after which the rate begins to fall exponentially.
        anneal_until_samples: Samples of the run after which it has reached ``final``.
        final: Share at the end of the annealing.

    Raises:
        ConfigError: Half an annealing is given, one that begins before the cool-down is over, or
            one that rises.

    Source: Singh et al. 2025, "Beyond Cosine Decay: On the effectiveness of Infinite Learning Rate
    Schedule for Continual Pre-training"; Ibrahim et al. 2024, "Simple and Scalable Strategies to
    Continually Pre-train Large Language Models".

    Example:
        >>> schedule = Infinite(warmup_samples=100, cooldown_samples=400, constant=0.5)
        >>> [schedule.share(Place(0, 1, n)) for n in (0, 50, 100, 300, 500, 10**9)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.5]
    """

    warmup_samples: Count
    cooldown_samples: Count
    cooling: Literal["cosine", "inverse_sqrt"] = "cosine"
    constant: Share = 0.1
    anneal_from_samples: PositiveInt | None = None
    anneal_until_samples: PositiveInt | None = None
    final: Share = 0.01
    needs_ends: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse an annealing that does not follow the constant phase."""
        start, end = self.anneal_from_samples, self.anneal_until_samples
        if start is None and end is None:
            return
        if start is None or end is None:
            raise ConfigError(
                f"anneal_from_samples={start} and anneal_until_samples={end}; give both or neither"
            )
        cool = self.warmup_samples + self.cooldown_samples
        if not cool <= start < end:
            raise ConfigError(
                f"the annealing is from {start} to {end} samples; it must begin where the "
                f"cool-down is over, at {cool} or later, and end behind that"
            )
        if self.final > self.constant:
            raise ConfigError(
                f"final={self.final} is above constant={self.constant}; an annealing falls, so "
                "make it smaller"
            )

    def share(self, place: Place) -> float:
        """Return the share of the learning rate at a place, 0 to 1."""
        n, warm, cool = place.samples, self.warmup_samples, self.cooldown_samples
        if n < warm:
            return n / warm
        if n < warm + cool:
            return self._cooled((n - warm) / cool)
        start, end = self.anneal_from_samples, self.anneal_until_samples
        if start is None or end is None or n < start:
            return self.constant
        done = min(1.0, (n - start) / (end - start))
        return self.constant * math.pow(self.final / self.constant, done)

    def _cooled(self, done: float) -> float:
        if self.cooling == "cosine":
            return self.constant + (1 - self.constant) * (1 + math.cos(math.pi * done)) / 2
        part = (1 / math.sqrt(1 + 10 * done) - 1) / (1 / math.sqrt(11) - 1)
        return 1 + (self.constant - 1) * part


SCHEDULES: Mapping[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "step": Step,
    "infinite": Infinite,
}
AnySchedule = Annotated[
    Schedule,
    Field(json_schema_extra={"default": "constant"}),
    *named(SCHEDULES, "kind", "constant"),
]
"""A field of a component that takes any schedule, by name in a configuration."""


def schedule_name(schedule: Schedule) -> str:
    """Return the name of a schedule in a configuration, or that of its class."""
    names = [name for name, cls in SCHEDULES.items() if cls is type(schedule)]
    return names[0] if names else type(schedule).__name__
