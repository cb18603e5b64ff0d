"""Event recordings, and how they become frames.

Event k of a recording says that at time ``t[k]`` the element in column ``x[k]``, row ``y[k]`` of
the sensor changed by polarity ``p[k]``. A frame counts the events of one step. Nothing is computed
from the data as a whole, so frames of a first task cannot know a later one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from spikecl.components import PositiveInt, Sizes, component
from spikecl.data import checks
from spikecl.data.checks import Array
from spikecl.errors import DataError

SENSOR = (34, 34, 2)  # of N-MNIST
CELLS = 1 << 17  # of one histogram: 1 MB, which stays in the cache
AXES = {1: "x", 2: "xp", 3: "yxp"}  # of a frame, by the length of the sensor's size


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """The recordings of one split, one behind the other in flat arrays of whole numbers.

    Args:
        t: Time of each event in microseconds; within a recording it never goes back.
        x: Column of each event.
        offset: Recording i is ``offset[i]:offset[i + 1]``, length N + 1.
        labels: Class of each recording, length N.
        y: Row of each event, ``None`` for a sensor of one dimension.
        p: Polarity of each event, ``None`` where there is one kind of event.
        where: How errors call it.

    Raises:
        DataError: Lengths differ, values are negative or no whole numbers, offsets do not fit, or
            times go back.

    Example:
        >>> import numpy as np
        >>> t, x, y, p = np.array([[10, 1500, 400], [2, 2, 0], [1, 1, 0], [0, 0, 1]])
        >>> two = Events(t=t, x=x, y=y, p=p, offset=np.array([0, 2, 3]), labels=np.array([0, 1]))
        >>> Frames(steps=2, width_ms=1.0, sensor=(2, 3, 2)).of(two).shape
        (2, 2, 2, 3, 2)
    """

    t: Array
    x: Array
    offset: Array
    labels: Array
    y: Array | None = None
    p: Array | None = None
    where: str = "events"

    def __post_init__(self) -> None:
        """Refuse what no frames could be made of."""
        for name in ("t", "x", "y", "p", "offset", "labels"):
            array = getattr(self, name)
            if array is not None:
                checks.whole(array, name, self.where)
        for name in ("x", "y", "p"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.t):
                raise self._wrong(
                    f"{len(self.t)} times t, but {len(array)} values of {name}",
                    "one of each for every event",
                )
        self._check_offsets()
        self._check_order()

    def __len__(self) -> int:
        return len(self.labels)

    def _check_offsets(self) -> None:
        offset = self.offset.astype(np.int64)
        if len(offset) != len(self) + 1:
            raise self._wrong(
                f"{len(offset)} offsets for {len(self)} labels", "one offset more than labels"
            )
        if offset[0] != 0 or offset[-1] != len(self.t):
            raise self._wrong(
                f"offsets from {offset[0]} to {offset[-1]} for {len(self.t)} events",
                f"offsets from 0 to {len(self.t)}",
            )
        if (np.diff(offset) < 0).any():
            i = int(np.argmax(np.diff(offset) < 0))
            raise self._wrong(
                f"offset {i + 1} is {offset[i + 1]}, the one before it {offset[i]}",
                "offsets that never go back",
            )

    def _check_order(self) -> None:
        back = self.t[1:] < self.t[:-1]
        starts = self.offset[(self.offset > 0) & (self.offset < len(self.t))].astype(np.int64)
        back[starts - 1] = False
        if back.any():
            k = int(np.argmax(back)) + 1
            i = int(np.searchsorted(self.offset, k, side="right")) - 1
            raise self._wrong(
                f"the times of recording {i} go back, from {self.t[k - 1]} to {self.t[k]} us at "
                f"event {k}",
                "times in order; sort the events of each recording by time",
            )

    def _wrong(self, given: str, allowed: str) -> DataError:
        return DataError(f"{self.where}: {given}; allowed: {allowed}; check how it was made")


@component
class Frames:
    """How event recordings become frames ``[T, H, W, P]``, counts in bytes.

    ``frame[s, y // pool, x // pool, p]`` counts the events of step s, up to 255. By width, step s
    has the times ``s width <= t < (s + 1) width``; what comes after the last step is left out. By
    count, event k of n is in step ``k T // n``: every step has the same number of events, give or
    take one. A recording without events gives frames of zeros.

    Args:
        by: ``width`` for steps of fixed length, ``count`` for steps with the same number of events.
        steps: Number of frames T.
        width_ms: Length of a step, rounded to whole microseconds; only by width.
        start: Where the first step begins, only by width: at time ``zero`` of the recording's
            clock, or at its ``first`` event.
        counts: ``keep`` the number of events, or ``binary`` for 1 where there is one or more.
        pool: Side of the square of elements that becomes one, its events added. Where it does not
            divide the sensor, the last squares are narrower; no event is lost.
        sensor: Height, width and polarities; columns and polarities; or columns. With one polarity
            all events count alike. Without it the size that comes with the data, else that of
            N-MNIST, 34, 34 and 2.
    """

    by: Literal["width", "count"] = "width"
    steps: PositiveInt = 20
    width_ms: Annotated[float, Field(ge=0.001, le=1e9)] = 16.0
    start: Literal["zero", "first"] = "zero"
    counts: Literal["keep", "binary"] = "keep"
    pool: PositiveInt = 1
    sensor: Annotated[Sizes, Field(max_length=3)] | None = None

    @property
    def step_ms(self) -> float | None:
        """Length of a step, ``None`` where it depends on the recording."""
        return None if self.by == "count" else round(1000 * self.width_ms) / 1000

    def of(self, events: Events, *, sensor: tuple[int, ...] = SENSOR) -> Array:
        """Return the frames of recordings, uint8 [N, T, *features].

        Args:
            events: The recordings.
            sensor: Size that counts where ``self.sensor`` is not given.

        Raises:
            DataError: Events outside the sensor, or rows or polarities that are not there.
        """
        sensor = self.sensor or sensor
        columns = _columns(events, sensor, self.pool)
        if self.by == "count":
            return _histograms(events, columns, _steps_by_count(self.steps), self)
        width_us = round(1000 * self.width_ms)
        return _histograms(
            events, columns, _steps_by_width(events.t, width_us, self.start == "first"), self
        )


# The coordinates along one axis of a frame, how many of them make one cell, and the cells.
_Column = tuple[Array, int, int]
# From the events of a slice, and the number of each recording in it, to the step of each event.
_Steps = Callable[[slice, Array], Array]


def _columns(events: Events, sensor: tuple[int, ...], pool: int) -> list[_Column]:
    columns: list[_Column] = []
    for name, size in zip(AXES[len(sensor)], sensor):
        given: Array | None = getattr(events, name)
        if name == "p" and size == 1:
            given = np.broadcast_to(np.uint8(0), events.t.shape)
        if given is None:
            raise DataError(
                f"{events.where}: the sensor is {_times(sensor)}, but there is no {name}; allowed: "
                "[height, width, polarities], [columns, polarities] or [columns]; set sensor"
            )
        if len(given) and given.max() >= size:
            raise DataError(
                f"{events.where}: {name} goes up to {given.max()}, the sensor is {_times(sensor)}; "
                f"allowed: {name} from 0 to {size - 1}; set sensor to its true size"
            )
        cell = 1 if name == "p" else pool
        columns.append((given, cell, -(-size // cell)))
    return columns


def refuse_dark(frames: Array, count: int, where: str) -> None:
    """Refuse frames without a single event where there were events: they came after the last."""
    if count and not frames.any():
        raise DataError(
            f"{where}: none of {count} events is in a frame, all come after the last one; allowed: "
            "events within steps x width_ms; set start = 'first', or more or longer steps"
        )


def _steps_by_width(t: Array, width_us: int, from_first: bool) -> _Steps:
    def steps(part: slice, lengths: Array) -> Array:
        times: Array = t[part].astype(np.int64)
        if from_first and len(times):
            lengths = lengths[lengths > 0]
            times -= np.repeat(times[np.cumsum(lengths) - lengths], lengths)
        return times // width_us

    return steps


def _steps_by_count(count: int) -> _Steps:
    def steps(part: slice, lengths: Array) -> Array:
        starts = np.cumsum(lengths) - lengths
        k = np.arange(part.stop - part.start) - np.repeat(starts, lengths)
        step: Array = k * count // np.repeat(lengths, lengths)
        return step

    return steps


def _histograms(events: Events, columns: list[_Column], steps_of: _Steps, frames: Frames) -> Array:
    """Count events in chunks of recordings, each chunk in one histogram."""
    shape = [size for *_, size in columns]
    cells = frames.steps * math.prod(shape)
    most = 1 if frames.counts == "binary" else 255
    made = np.empty((len(events), frames.steps, *shape), np.uint8)
    rows = max(1, CELLS // cells)
    offset = events.offset.astype(np.int64)
    for first in range(0, len(events), rows):
        bounds = offset[first : first + rows + 1]
        part, lengths = slice(int(bounds[0]), int(bounds[-1])), np.diff(bounds)
        step = steps_of(part, lengths)
        index = np.repeat(np.arange(len(lengths)), lengths) * frames.steps + step
        for values, cell, size in columns:
            index *= size
            index += values[part].astype(np.int64) // cell
        counts = np.bincount(index[step < frames.steps], minlength=len(lengths) * cells)
        chunk = made[first : first + rows]
        chunk[...] = np.minimum(counts, most).reshape(chunk.shape)
    return made


def _times(sensor: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in sensor)
