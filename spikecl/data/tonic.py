"""Data sets of the library tonic, or any that look like them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from spikecl.data.arrays import Data, checked
from spikecl.data.checks import Array
from spikecl.data.events import Events, Frames, refuse_dark
from spikecl.errors import DataError

CHUNK = 256  # recordings in memory as events


class TonicSet(Protocol):
    """What is asked of a data set: length and items ``(events, label)``.

    Events are a structured array with the fields ``x, t`` and, where the sensor has them, ``y, p``.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


def from_tonic(
    train: TonicSet,
    test: TonicSet,
    *,
    frames: Frames | None = None,
    sensor_size: Sequence[int] | None = None,
    name: str | None = None,
) -> Data:
    """Return frames of the recordings of two tonic data sets as one data set.

    Sensors with rows become ``[N, T, H, W, P]``; those without ``[N, T, columns]``, or
    ``[N, T, columns, P]`` with several polarities.

    Args:
        train: Training set, without a transform that makes something else of the events.
        test: Test set.
        frames: How events become frames; its ``sensor`` counts before all others.
        sensor_size: Width, height and polarities as tonic orders them; by default
            ``train.sensor_size``.
        name: What the data set is called; by default the class of ``train`` in small letters.

    Raises:
        DataError: A set is empty, items are no events with a label, the size of the sensor is not
            known, or the events do not fit it.

    Example:
        >>> import numpy as np
        >>> events = np.array([(3, 1, 0, 1), (4, 2, 900, 0)], "i8,i8,i8,i8")
        >>> events.dtype.names = ("x", "y", "t", "p")
        >>> one, two = [(events, 0), (events[:1], 1)], [(events, 1)]
        >>> from_tonic(one, two, sensor_size=(5, 3, 2), name="tiny").x_train.shape
        (2, 20, 3, 5, 2)
    """
    frames = frames or Frames()
    name = name or type(train).__name__.lower()
    given = sensor_size if sensor_size is not None else getattr(train, "sensor_size", None)
    arrays: dict[str, Array] = {}
    for split, items in (("train", train), ("test", test)):
        where = f"data '{name}': {split}"
        if not len(items):
            raise DataError(f"{where}: no items; allowed: at least one; check how it was made")
        labels, count = [], 0
        for first, events in _chunks(items, where):
            part = frames.of(events, sensor=_sensor(given, events, frames))
            if first == 0:
                x = np.empty((len(items), *part.shape[1:]), part.dtype)
            x[first : first + len(part)] = part
            labels.append(events.labels)
            count += len(events.t)
        refuse_dark(x, count, where)
        arrays[f"x_{split}"], arrays[f"y_{split}"] = x, np.concatenate(labels)
    return checked(arrays, name, peak=1.0, temporal=True, step_ms=frames.step_ms)


def _chunks(items: TonicSet, where: str) -> Iterator[tuple[int, Events]]:
    for first in range(0, len(items), CHUNK):
        rows = range(first, min(first + CHUNK, len(items)))
        recordings, labels = zip(*(_item(items, i, where) for i in rows))
        lengths = [len(events) for events in recordings]
        fields = recordings[0].dtype.names or ()
        columns = {f: np.concatenate([e[f] for e in recordings]) for f in "txyp" if f in fields}
        yield (
            first,
            Events(
                **columns,
                offset=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                labels=np.array(labels),
                where=f"{where}, items {first} to {rows[-1]}",
            ),
        )


def _item(items: TonicSet, i: int, where: str) -> tuple[Array, int]:
    item = items[i]
    pair = isinstance(item, tuple) and len(item) == 2
    events, label = item if pair else (item, "")
    names = getattr(getattr(events, "dtype", None), "names", None) or ()
    number = np.asarray(label)
    if not {"t", "x"} <= set(names) or number.shape != () or number.dtype.kind not in "iu":
        raise DataError(
            f"{where}, item {i}: {type(events).__name__} with fields {list(names)} and label "
            f"{label!r}; allowed: a structured array with t, x and maybe y, p, and an integer; use "
            "no transform that changes them"
        )
    return events, int(number)


def _sensor(given: Sequence[int] | None, events: Events, frames: Frames) -> tuple[int, ...]:
    if frames.sensor is not None:
        return frames.sensor
    if given is None or len(given) != 3 or not all(size and size > 0 for size in given):
        raise DataError(
            f"{events.where}: the sensor has the size {given}; allowed: (width, height, "
            "polarities); give sensor_size, or frames with a sensor"
        )
    width, height, polarities = (int(size) for size in given)
    if events.y is not None:
        return (height, width, polarities)
    return (width,) if polarities == 1 else (width, polarities)
