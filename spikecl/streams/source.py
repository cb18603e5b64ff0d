"""What scenarios share: the arrays of a data set, and a stream put together from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spikecl.data import Data
from spikecl.errors import ConfigError
from spikecl.streams.events import Experience, Part, Samples, Transform
from spikecl.streams.reveal import Reveal
from spikecl.streams.stream import EvalSet, Stream


class Source:
    """The arrays of a data set as tensors, with sample ids that tell train from test."""

    def __init__(self, data: Data):
        self.data = data
        self.train = self._split(data.x_train, data.y_train, 0)
        self.test = self._split(data.x_test, data.y_test, len(data.x_train))
        self.all_classes = tuple(range(data.classes))

    @staticmethod
    def _split(x: Any, y: Any, first: int) -> tuple[Tensor, Tensor, Tensor]:
        x, y = (torch.from_numpy(np.require(a, requirements="W")) for a in (x, y))
        return x, y, torch.arange(first, first + len(x))

    def samples(
        self, split: Literal["train", "test"], index: Tensor | None, transform: Transform | None
    ) -> Samples:
        """Return rows of a split (``None``: all), changed by a transform."""
        arrays = self.train if split == "train" else self.test
        return Samples((Part(*arrays, index=index, transform=transform),), self.data.peak)


def stream_of(
    name: str,
    source: Source,
    seed: int,
    reveal: Reveal,
    parameters: Mapping[str, Any],
    *,
    classes: Sequence[tuple[int, ...]],
    index: Sequence[tuple[Tensor | None, Tensor | None]],
    transforms: Sequence[Transform | None],
    tests: Sequence[Transform | None] | None = None,
) -> Stream:
    """Put a stream together from per-experience classes, (train, test) rows and transforms."""
    changes = transforms if tests is None else tests

    def make(i: int) -> Experience:
        train = source.samples("train", index[i][0], transforms[i])
        return Experience(i, train, classes[i], task=i)

    eval_sets = {
        f"task{i}": EvalSet(source.samples("test", index[i][1], changes[i]), classes[i], (i,))
        for i in range(len(classes))
    }
    return assembled(name, source, seed, reveal, parameters, len(classes), make, eval_sets)


def every_class(
    name: str,
    source: Source,
    seed: int,
    transforms: Sequence[Transform],
    parameters: Mapping[str, Any],
    reveal: Reveal,
    *,
    tests: Sequence[Transform] | None = None,
) -> Stream:
    """Return a stream whose experiences all have all classes, each changed in its own way.

    ``tests`` change the test sets, where that is another way than that of the training set.
    """
    return stream_of(
        name,
        source,
        seed,
        reveal,
        parameters,
        classes=[source.all_classes] * len(transforms),
        index=[(None, None)] * len(transforms),
        transforms=transforms,
        tests=tests,
    )


def assembled(
    name: str,
    source: Source,
    seed: int,
    reveal: Reveal,
    parameters: Mapping[str, Any],
    length: int,
    make: Callable[[int], Experience],
    eval_sets: Mapping[str, EvalSet],
) -> Stream:
    """Return the stream of a data set's samples with the identity that its parameters make."""
    data = {"data": source.data.checksum, "peak": source.data.peak}
    if source.data.temporal:
        data |= {"temporal": True, "step_ms": source.data.step_ms}
    return Stream(
        f"{name}-{source.data.name}",
        {"stream": name, **parameters, **data},
        seed,
        reveal,
        source.data.classes,
        source.data.input_shape,
        length,
        make,
        eval_sets,
        source.data.temporal,
        source.data.class_names,
    )


def with_old(reveal: Reveal, old_data: bool) -> Reveal:
    """Return what a stream reveals that may show the data of earlier experiences too."""
    if old_data and Reveal.BOUNDARY not in reveal:
        raise ConfigError(
            "stream: old_data=true shows earlier experiences one by one, which scenario='free' "
            "hides; use one of them"
        )
    return reveal | Reveal.OLD_DATA if old_data else reveal


def at_least_one(experiences: int) -> None:
    """Refuse a stream without experiences."""
    if experiences < 1:
        raise ConfigError(f"stream.experiences: got {experiences}; use at least 1")
