"""Event recordings in an ``.npz``, read and made into frames one split at a time.

For each split: ``t_SPLIT`` (microseconds), ``x_SPLIT`` (column), ``yy_SPLIT`` (row), ``p_SPLIT``
(polarity) of all events, one recording behind the other, ``offset_SPLIT`` (recording i is
``offset[i]:offset[i + 1]``) and ``y_SPLIT`` (labels). Rows and polarities may be absent. Two more
arrays may say what they mean: ``sensor`` (its size) and ``classes`` (a name for each class).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spikecl.data import checks, npz
from spikecl.data.arrays import Data, add, checked
from spikecl.data.checks import Array
from spikecl.data.events import SENSOR, Events, Frames, refuse_dark
from spikecl.errors import DataError

SPLITS = ("train", "test")
FIELDS = {"t": "t", "x": "x", "yy": "y", "p": "p", "offset": "offset", "y": "labels"}
NEEDED = [f"{key}_{split}" for split in SPLITS for key in FIELDS if key not in ("yy", "p")]


def split_of(arrays: Mapping[str, Array], split: str, where: str) -> Events:
    """Return one split of flat arrays, checked."""
    given = {FIELDS[k]: arrays[f"{k}_{split}"] for k in FIELDS if f"{k}_{split}" in arrays}
    return Events(**given, where=f"{where}: {split}")


def checksum_of(arrays: Mapping[str, Array]) -> str:
    """Return the sha256 (hexadecimal) of the event arrays of both splits.

    As :func:`spikecl.data.arrays.checksum_of`, for ``t, x, yy, p, offset, y`` of the training and
    then of the test set, those that are there, each in the smallest unsigned type that holds it.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        _add(digest, split_of(arrays, split, "events"), split)
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """Return the same of a file, with one split in memory at a time."""
    digest = hashlib.sha256()
    for split in SPLITS:
        _add(digest, _read(path, split), split)
    return digest.hexdigest()


def framed(path: Path, frames: Frames, *, name: str) -> tuple[Data, str]:
    """Return frames of the events of a file as a data set, and the checksum of the events.

    One event is intensity 1.0.

    Raises:
        DataError: The file is damaged or the events do not fit the layout or the sensor.
    """
    digest, arrays = hashlib.sha256(), {}
    stored = npz.members(path, npz.headers(path), ("sensor", "classes"))
    sensor = _sensor(stored, str(path))
    for split in SPLITS:
        events = _read(path, split)
        _add(digest, events, split)
        arrays[f"x_{split}"] = frames.of(events, sensor=sensor)
        refuse_dark(arrays[f"x_{split}"], len(events.t), events.where)
        arrays[f"y_{split}"] = events.labels
        del events  # before the other split is read
    data = checked(
        {**arrays, **stored},
        name,
        where=str(path),
        peak=1.0,
        temporal=True,
        step_ms=frames.step_ms,
    )
    return data, digest.hexdigest()


def _read(path: Path, split: str) -> Events:
    found = npz.headers(path)
    checks.present(found, NEEDED, f"{path}: holds events (x_train is a coordinate)")
    return split_of(npz.members(path, found, (f"{k}_{split}" for k in FIELDS)), split, str(path))


def _sensor(stored: Mapping[str, Array], where: str) -> tuple[int, ...]:
    if "sensor" not in stored:
        return SENSOR
    checks.whole(stored["sensor"], "sensor", where)
    sizes = tuple(stored["sensor"].tolist())
    if not 1 <= len(sizes) <= 3 or 0 in sizes:
        raise DataError(
            f"{where}: sensor is {list(sizes)}; allowed: [height, width, polarities], [columns, "
            "polarities] or [columns]; save its true size"
        )
    return sizes


def _add(digest: hashlib._Hash, events: Events, split: str) -> None:
    for key, field in FIELDS.items():
        array = getattr(events, field)
        if array is not None:
            smallest = np.min_scalar_type(int(array.max(initial=0)))
            add(digest, f"{key}_{split}", array.astype(smallest, copy=False))
