"""What a data set must look like; everything else is refused in one line.

Each function takes arrays as they were given and either returns them in the form the rest of the
package relies on or raises ``DataError``. ``where`` is what the user would call the data: a path
or a name.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikecl.errors import DataError

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
SIGNS_OF_EVENTS = ("offset_train", "t_train")

Array = NDArray[Any]


def holds_events(names: Iterable[str]) -> bool:
    """Whether arrays of these names are flat events, so that ``x_train`` is a coordinate."""
    return not set(SIGNS_OF_EVENTS).isdisjoint(names)


def layout(names: Iterable[str], where: str) -> None:
    """Refuse events, which are no inputs, and what lacks one of the four arrays."""
    names = list(names)
    if holds_events(names):
        found = ", ".join(name for name in SIGNS_OF_EVENTS if name in names)
        raise DataError(
            f"{where}: holds events ({found} beside x_train), so x_train is a coordinate, not the "
            "input; allowed: x_train of [N, *features]; bin the events with spikecl.data.Frames"
        )
    present(names, ARRAYS, where)


def present(names: Iterable[str], needed: Iterable[str], where: str) -> None:
    """Refuse what lacks an array, and say which other one may have been meant."""
    names, needed = list(names), list(needed)
    missing = [name for name in needed if name not in names]
    if missing:
        others = [name for name in names if name not in needed]
        close = difflib.get_close_matches(missing[0], others, n=1)
        hint = f" (is '{close[0]}' meant?)" if close else ""
        raise DataError(
            f"{where}: {' and '.join(missing)} missing, found "
            f"{', '.join(sorted(names)[:12]) or 'nothing'}{hint}; needed: {', '.join(needed)}; "
            "save them with numpy.savez"
        )


def numeric(dtype: np.dtype[Any], name: str, where: str) -> None:
    """Refuse arrays of Python objects, of text and of records."""
    if dtype.hasobject:
        raise DataError(
            f"{where}: {name} holds pickled Python objects, which are not read because a pickle "
            "can run code; allowed: arrays of numbers; stack the samples into one array"
        )
    if dtype.kind not in "buif":
        raise DataError(
            f"{where}: {name} has dtype {dtype}; allowed: integers, booleans or floats; convert it"
        )


def inputs(x: Array, name: str, where: str) -> Array:
    """Return inputs ``[N, *features]`` as uint8 (whole numbers) or float32 (floats)."""
    numeric(x.dtype, name, where)
    if x.ndim < 2:
        raise DataError(
            f"{where}: {name} has shape {x.shape}; allowed: [N, *features], at least two axes; "
            "reshape it so that row i is sample i"
        )
    if x.size == 0:
        raise DataError(
            f"{where}: {name} has shape {x.shape}, no values; allowed: at least one sample "
            "with at least one feature; check how the file was made"
        )
    return _floats(x, name, where) if x.dtype.kind == "f" else _bytes(x, name, where)


def _floats(x: Array, name: str, where: str) -> Array:
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, dtype=np.float32)
    bad = x.size - int(np.count_nonzero(np.isfinite(x)))
    if bad:
        raise DataError(
            f"{where}: {name} holds {bad} values that are NaN, infinite or too large for float32; "
            "allowed: finite numbers; remove or replace them"
        )
    return x


def _bytes(x: Array, name: str, where: str) -> Array:
    low, high = int(x.min()), int(x.max())
    if low < 0 or high > 255:
        raise DataError(
            f"{where}: {name} is {x.dtype} from {low} to {high}; allowed: whole numbers from 0 to "
            "255, or floats where 1.0 is full intensity; rescale it"
        )
    return np.ascontiguousarray(x, dtype=np.uint8)


def labels(y: Array, name: str, where: str) -> Array:
    """Return labels ``[N]`` as int64; they must be whole numbers in an integer array."""
    numeric(y.dtype, name, where)
    if y.ndim != 1:
        what = "take argmax of one-hot rows" if y.ndim == 2 and y.shape[1] > 1 else "flatten it"
        raise DataError(
            f"{where}: {name} has shape {y.shape}; allowed: [N], one class each; {what}"
        )
    if y.dtype.kind not in "ui":
        raise DataError(
            f"{where}: {name} has dtype {y.dtype}; allowed: integers 0 .. classes-1; convert it "
            "with .astype('int64')"
        )
    if y.dtype.kind == "u" and y.size and int(y.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{where}: {name} goes up to {y.max()}; allowed: 0 .. classes-1; renumber")
    return np.ascontiguousarray(y, dtype=np.int64)


def whole(array: Array, name: str, where: str) -> None:
    """Refuse all but flat arrays of whole numbers from 0."""
    if array.ndim != 1 or array.dtype.kind not in "bui":
        raise DataError(
            f"{where}: {name} is {array.dtype} of shape {array.shape}; allowed: integers in one "
            "flat array (times in whole microseconds); convert it"
        )
    if array.dtype.kind == "i" and len(array) and array.min() < 0:
        raise DataError(
            f"{where}: {name} goes down to {array.min()}; allowed: integers from 0; shift them"
        )


def time(temporal: Any, step_ms: Any, x: Array, where: str) -> tuple[bool, float | None]:
    """Return whether axis 1 of the inputs is time, and the length of a step where it is fixed."""
    temporal, step_ms = (None if v is None else np.asarray(v) for v in (temporal, step_ms))
    if temporal is not None and (temporal.shape != () or temporal.dtype.kind not in "bui"):
        raise DataError(
            f"{where}: temporal is {temporal.dtype} of shape {temporal.shape}; allowed: one True "
            "or False; save temporal=True where axis 1 of x_train is time"
        )
    if not temporal:
        if step_ms is not None:
            raise DataError(
                f"{where}: step_ms is given, but temporal is not True; allowed: step_ms of inputs "
                "[N, T, *features]; save temporal=True too, or leave step_ms out"
            )
        return False, None
    if x.ndim < 3:
        raise DataError(
            f"{where}: temporal is True, but x_train has shape {x.shape}; allowed: "
            "[N, T, *features], at least three axes; add an axis of one feature"
        )
    if step_ms is None:
        return True, None
    if step_ms.shape != () or step_ms.dtype.kind not in "uif" or not 0 < step_ms < math.inf:
        raise DataError(
            f"{where}: step_ms is {step_ms}; allowed: one positive number, the length of a step in "
            "milliseconds; leave it out where steps have no fixed length"
        )
    return True, float(step_ms)


def pairs(x: Array, y: Array, split: str, where: str) -> None:
    """Refuse a split whose inputs and labels differ in number."""
    if len(x) != len(y):
        raise DataError(
            f"{where}: x_{split} has {len(x)} samples, y_{split} has {len(y)} labels; the numbers "
            "must be equal; check how the file was made"
        )


def splits(x_train: Array, x_test: Array, where: str) -> None:
    """Refuse training and test inputs that no network could both take."""
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{where}: a sample of x_train has shape {x_train.shape[1:]}, one of x_test "
            f"{x_test.shape[1:]}; they must be equal; reshape one of them"
        )
    if x_train.dtype != x_test.dtype:
        raise DataError(
            f"{where}: x_train is {x_train.dtype}, x_test {x_test.dtype}; both must be whole "
            "numbers or both floats on the same scale; convert one of them"
        )


def class_count(y_train: Array, y_test: Array, where: str) -> int:
    """Return the number of classes; labels must be ``0 .. classes-1``, each in the training set."""
    present = np.unique(y_train)
    if present[0] != 0:
        what = "are negative" if present[0] < 0 else "do not start at 0"
        raise DataError(
            f"{where}: labels {what} (the smallest in y_train is {present[0]}); allowed: "
            "0 .. classes-1; renumber them"
        )
    expected = np.arange(len(present))
    if present[-1] != expected[-1]:
        gap = int(expected[present != expected][0])
        raise DataError(
            f"{where}: label {gap} is absent from y_train, which goes up to {present[-1]}; "
            "allowed: 0 .. classes-1 without gaps; renumber them"
        )
    unknown = np.setdiff1d(y_test, present)
    if len(unknown):
        raise DataError(
            f"{where}: y_test has label {unknown[0]}, y_train only 0 .. {present[-1]}; allowed: "
            "classes that are trained; remove those samples or add the class"
        )
    return len(present)


def names_of_classes(given: Iterable[str], classes: int, where: str) -> tuple[str, ...]:
    """Return class names, none or one for each class."""
    names = tuple(str(name) for name in given)
    if names and len(names) != classes:
        raise DataError(
            f"{where}: {len(names)} class names for {classes} classes; allowed: none, or one for "
            "each class in the order of the labels; complete the list or leave it out"
        )
    return names
