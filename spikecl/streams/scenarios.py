"""Scenarios: pure functions from data to a stream, and their descriptions for configurations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from spikecl.components import Floats, Ints, PositiveInt, component
from spikecl.data import Data
from spikecl.errors import ConfigError
from spikecl.registry import STREAMS
from spikecl.seeds import Seeds
from spikecl.streams.events import Experience, concatenate
from spikecl.streams.reveal import CLASS_IL, DOMAIN_IL, TASK_FREE, TASK_IL, Reveal
from spikecl.streams.source import (
    Source,
    at_least_one,
    every_class,
    stream_of,
    with_old,
)
from spikecl.streams.stream import Stream
from spikecl.streams.transforms import Permute, Rotate

SCENARIOS = {"task": TASK_IL, "class": CLASS_IL, "domain": DOMAIN_IL, "free": TASK_FREE}
Scenario = Literal["domain", "task", "free"]
"""What may be revealed of a stream whose experiences all have all classes."""


class StreamSpec(ABC):
    """Describes a stream; ``make`` gives it data and a seed."""

    __slots__ = ()

    @abstractmethod
    def make(self, data: Data, seed: int) -> Stream:
        """Return the stream."""


def permuted(
    data: Data,
    *,
    experiences: int = 10,
    reveal: Reveal = DOMAIN_IL,
    seed: int = 0,
    old_data: bool = False,
) -> Stream:
    """Return a stream whose every experience permutes the features in its own way.

    Of temporal data the features of a step are permuted, at every step alike; time stays.

    All classes are in every experience (domain-incremental). Permutation i depends on the seed and
    i alone; the first experience is permuted too (as in HLOP's and GPM's benchmark).
    """
    at_least_one(experiences)
    source, seeds = Source(data), Seeds(seed)
    size = math.prod(data.input_shape[data.temporal :])
    transforms = [
        Permute(torch.randperm(size, generator=seeds.generator("stream", event=i)))
        for i in range(experiences)
    ]
    parameters = {"experiences": experiences}
    shown = with_old(reveal, old_data)
    return every_class("permuted", source, seed, transforms, parameters, shown)


def rotated(
    data: Data,
    *,
    degrees: Sequence[float] = (0, 45, 90, 135),
    reveal: Reveal = DOMAIN_IL,
    seed: int = 0,
    old_data: bool = False,
) -> Stream:
    """Return a stream whose experience i shows the images turned by ``degrees[i]``.

    Of temporal data the images of all steps are turned alike.
    """
    at_least_one(len(degrees))
    if len(data.input_shape) - data.temporal not in (2, 3):
        raise ConfigError(
            f"rotated needs images [H, W] or [H, W, C], behind time where it is temporal; "
            f"{data.name} has samples of shape {list(data.input_shape)}"
            f"{', temporal' * data.temporal}; use permuted or split_classes"
        )
    source = Source(data)
    transforms = [Rotate(float(angle), data.temporal) for angle in degrees]
    parameters = {"degrees": [float(angle) for angle in degrees]}
    shown = with_old(reveal, old_data)
    return every_class("rotated", source, seed, transforms, parameters, shown)


def split_classes(
    data: Data,
    *,
    experiences: int = 5,
    order: Sequence[int] | None = None,
    reveal: Reveal = CLASS_IL,
    seed: int = 0,
    old_data: bool = False,
) -> Stream:
    """Return a stream that shows a few classes at a time.

    Task- and class-incremental streams differ only in what is revealed: pass ``TASK_IL`` or
    ``CLASS_IL``. Classes keep their labels. Where the classes do not divide evenly, the first
    experiences have one more.

    Args:
        data: Data set.
        experiences: Number of experiences, at most the number of classes that come.
        order: Order in which the classes come; those that it leaves out do not. ``None`` draws one
            of all classes from the seed.
        reveal: What learners may know.
        seed: Seed of the order.
        old_data: Also reveal earlier training data.

    Raises:
        ConfigError: More experiences than classes, or an order that names a class twice or one
            that is not there.
    """
    at_least_one(experiences)
    generator = Seeds(seed).generator("stream")
    drawn = torch.randperm(data.classes, generator=generator).tolist()
    order = drawn if order is None else list(order)
    if not order or len(set(order)) < len(order) or not set(order) <= set(drawn):
        raise ConfigError(
            f"stream.split_classes.order: got {order}; name classes of 0 to {data.classes - 1}, "
            "each once; those left out do not come"
        )
    if experiences > len(order):
        raise ConfigError(
            f"stream.experiences: got {experiences}, but {len(order)} classes come of the "
            f"{data.classes} of {data.name}; use 1 to {len(order)}"
        )
    shown = with_old(reveal, old_data)
    source = Source(data)
    classes = [tuple(c.tolist()) for c in torch.tensor(order).tensor_split(experiences)]
    index = [(_rows(source.train[1], c), _rows(source.test[1], c)) for c in classes]
    for c, (_, test) in zip(classes, index):
        if not len(test):
            raise ConfigError(
                f"{data.name} has no test samples of the classes {list(c)}, which would be an "
                "experience of their own; use fewer experiences or add test samples"
            )
    return stream_of(
        "split_classes",
        source,
        seed,
        shown,
        {"experiences": experiences, "order": order},
        classes=classes,
        index=index,
        transforms=[None] * experiences,
    )


def joint(base: Stream) -> Stream:
    """Return a stream of one experience that has the samples of all of another stream's at once.

    The test sets stay those of the base, so its accuracies are the upper bound to compare with.
    """
    events = [event for event in base if isinstance(event, Experience)]
    classes = tuple(sorted({c for event in events for c in event.classes}))

    def make(i: int) -> Experience:
        return Experience(0, concatenate([event.train for event in events]), classes, task=0)

    return Stream(
        f"joint-{base.name}",
        {"stream": "joint", "base": base.fingerprint()},
        base.seed,
        base.reveal & ~(Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL),
        base.classes,
        base.input_shape,
        1,
        make,
        {name: replace(e, taught=(0,)) for name, e in base.eval_sets.items()},
        base.temporal,
        base.class_names,
    )


def _rows(labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    return torch.isin(labels, torch.tensor(classes)).nonzero()[:, 0]


@component
class Permuted(StreamSpec):
    """Every experience permutes the features in its own way; see :func:`permuted`.

    Args:
        experiences: Number of experiences, each with a permutation of its own.
        scenario: ``domain`` reveals where an experience begins; ``task`` also which task a sample
            belongs to, in training and in tests; ``free`` neither.
        old_data: Also reveal earlier training data.
    """

    experiences: PositiveInt = 10
    scenario: Scenario = "domain"
    old_data: bool = False

    def make(self, data: Data, seed: int) -> Stream:
        """Return the stream."""
        return permuted(
            data,
            experiences=self.experiences,
            reveal=SCENARIOS[self.scenario],
            seed=seed,
            old_data=self.old_data,
        )


@component
class Rotated(StreamSpec):
    """Every experience shows the images turned by another angle; see :func:`rotated`.

    Args:
        degrees: Angle of each experience, counter-clockwise; there are as many experiences.
        scenario: ``domain`` reveals where an experience begins; ``task`` also which task a sample
            belongs to, in training and in tests; ``free`` neither.
        old_data: Also reveal earlier training data.
    """

    degrees: Floats = (0.0, 45.0, 90.0, 135.0)
    scenario: Scenario = "domain"
    old_data: bool = False

    def make(self, data: Data, seed: int) -> Stream:
        """Return the stream."""
        return rotated(
            data,
            degrees=self.degrees,
            reveal=SCENARIOS[self.scenario],
            seed=seed,
            old_data=self.old_data,
        )


@component
class SplitClasses(StreamSpec):
    """A few classes at a time; see :func:`split_classes`.

    Args:
        experiences: Number of experiences, at most the number of classes.
        scenario: ``task`` also reveals which task a sample belongs to, in training and in tests;
            ``class`` does not; ``free`` reveals neither boundaries nor which classes come.
        order: Order in which the classes come; those that it leaves out do not come. Without it
            one of all classes is drawn from the seed.
        old_data: Also reveal earlier training data.
    """

    experiences: PositiveInt = 5
    scenario: Literal["task", "class", "free"] = "class"
    order: Ints | None = None
    old_data: bool = False

    def make(self, data: Data, seed: int) -> Stream:
        """Return the stream."""
        return split_classes(
            data,
            experiences=self.experiences,
            order=self.order,
            reveal=SCENARIOS[self.scenario],
            seed=seed,
            old_data=self.old_data,
        )


@component
class Joint(StreamSpec):
    """All experiences of a base scenario at once; see :func:`joint`.

    Args:
        base: The scenario whose samples come together; it has its default parameters.
        experiences: Number of experiences of the base; without it the base's default.
    """

    base: Literal["permuted", "rotated", "split_classes"] = "permuted"
    experiences: PositiveInt | None = None

    def make(self, data: Data, seed: int) -> Stream:
        """Return the stream."""
        given = {} if self.experiences is None else {"experiences": self.experiences}
        spec: StreamSpec = STREAMS.get(self.base)(**given)
        return joint(spec.make(data, seed))
