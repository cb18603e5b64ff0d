"""A data set: four checked arrays, what they mean, and the sha256 that identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from spikecl.data import checks
from spikecl.data.checks import ARRAYS, Array


@dataclass(frozen=True, slots=True)
class Data:
    """Inputs and labels of a training and a test set, as they lie in memory.

    Two data sets are equal when everything but the arrays is, which the checksum stands for.

    Attributes:
        name: What it is called; a subset has a name of its own.
        x_train: Inputs, uint8 or float32 ``[N, *input_shape]``.
        y_train: Labels, int64 ``[N]``, ``0 .. classes-1``, every class present.
        x_test: Inputs of the test set, same dtype and ``input_shape``.
        y_test: Labels of the test set, int64 ``[N_test]``.
        peak: The input value that stands for intensity 1.0.
        classes: Number of classes.
        checksum: sha256 over the four arrays, see :func:`checksum_of`.
        class_names: Empty, or one name for each class.
        temporal: Whether axis 0 of a sample is time: inputs are ``[N, T, *features]``.
        step_ms: Length of a step, ``None`` where steps have no fixed length.
    """

    name: str
    x_train: Array = field(repr=False, compare=False)
    y_train: Array = field(repr=False, compare=False)
    x_test: Array = field(repr=False, compare=False)
    y_test: Array = field(repr=False, compare=False)
    peak: float
    classes: int
    checksum: str
    class_names: tuple[str, ...] = ()
    temporal: bool = False
    step_ms: float | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``[T, *features]`` where it is temporal."""
        return tuple(self.x_train.shape[1:])


def checked(
    arrays: Mapping[str, Array],
    name: str,
    *,
    where: str | None = None,
    peak: float | None = None,
    class_names: Iterable[str] = (),
    temporal: bool | None = None,
    step_ms: float | None = None,
) -> Data:
    """Build a data set from arrays, or say in one line what is wrong with them.

    Whole numbers from 0 to 255 become uint8, floats float32, labels int64.

    Args:
        arrays: ``x_train, y_train, x_test, y_test`` and, if wanted, ``classes`` (text, one name
            for each class), ``temporal`` and ``step_ms`` (one value each).
        name: What the data set is called.
        where: How errors call it; by default ``data 'name'``.
        peak: The value that stands for intensity 1.0. By default 1 for floats and for 0/1 inputs
            (spikes, bits), 255 for other whole numbers.
        class_names: Names that take precedence over the array ``classes``.
        temporal: Whether axis 1 of the inputs is time; by default what the arrays say, else no.
        step_ms: Length of a step of temporal inputs; by default what the arrays say.

    Raises:
        DataError: An array is missing, has a wrong type or shape, holds NaN or infinity, the
            labels are not ``0 .. classes-1``, or the arrays do not fit together.

    Example:
        >>> import numpy as np
        >>> x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])
        >>> checked({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, "tiny").input_shape
        (3,)
    """
    where = where or f"data '{name}'"
    checks.layout(arrays, where)
    x_train, x_test = (checks.inputs(arrays[k], k, where) for k in ("x_train", "x_test"))
    y_train, y_test = (checks.labels(arrays[k], k, where) for k in ("y_train", "y_test"))
    checks.pairs(x_train, y_train, "train", where)
    checks.pairs(x_test, y_test, "test", where)
    checks.splits(x_train, x_test, where)
    classes = checks.class_count(y_train, y_test, where)
    names = checks.names_of_classes(class_names or _stored_names(arrays), classes, where)
    told = temporal is not None
    in_time = checks.time(
        temporal if told else arrays.get("temporal"),
        step_ms if told else arrays.get("step_ms"),
        x_train,
        where,
    )
    checksum = checksum_of(dict(zip(ARRAYS, (x_train, y_train, x_test, y_test))))
    peak = _peak(x_train, x_test) if peak is None else float(peak)
    return Data(name, x_train, y_train, x_test, y_test, peak, classes, checksum, names, *in_time)


def checksum_of(arrays: Mapping[str, Array]) -> str:
    """Return the sha256 (hexadecimal) of the four arrays.

    For ``x_train, y_train, x_test, y_test`` in this order: the line ``name dtype shape`` with its
    line feed (dtype as numpy writes it, little-endian; sizes joined by commas), then the values,
    little-endian in C order. It does not depend on the file the arrays came from.
    """
    digest = hashlib.sha256()
    for name in ARRAYS:
        add(digest, name, arrays[name])
    return digest.hexdigest()


def add(digest: hashlib._Hash, name: str, array: Array) -> None:
    """Add an array to a checksum: its line of name, type and shape, then its values."""
    dtype = array.dtype.newbyteorder("<")
    shape = ",".join(str(size) for size in array.shape)
    digest.update(f"{name} {dtype.str} {shape}\n".encode())
    digest.update(np.ascontiguousarray(array, dtype=dtype).data)


def _peak(x_train: Array, x_test: Array) -> float:
    if x_train.dtype.kind == "f" or max(int(x_train.max()), int(x_test.max())) <= 1:
        return 1.0
    return 255.0


def _stored_names(arrays: Mapping[str, Array]) -> tuple[str, ...]:
    stored = arrays.get("classes")
    if stored is None or stored.ndim != 1 or stored.dtype.kind != "U":
        return ()
    return tuple(stored.tolist())
