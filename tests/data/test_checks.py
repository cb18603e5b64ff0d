from __future__ import annotations

import numpy as np
import pytest

from spikecl.data.arrays import checked
from spikecl.errors import DataError

U8 = np.uint8
X6, X3 = np.zeros((6, 4, 4), U8), np.zeros((3, 4, 4), U8)


def floats(value):
    x = np.zeros((6, 4, 4), np.float64)
    x[2, 1, 1] = value
    return {"x_train": x, "x_test": np.zeros((3, 4, 4))}


def ragged():
    x = np.empty(6, object)
    x[:] = [np.zeros(2)] * 6
    return x


BAD = {
    "one missing": ({"y_test": None}, "y_test missing"),
    "two missing": ({"x_train": None, "y_train": None}, "x_train and y_train missing"),
    "misspelt": ({"x_train": None, "X_train": X6}, r"is 'X_train' meant\?"),
    "events": ({"x_train": np.zeros(50, U8), "offset_train": np.arange(7)}, "coordinate, not the"),
    "events by time": ({"t_train": np.zeros(50)}, "holds events .t_train beside x_train."),
    "objects": ({"x_train": ragged()}, "x_train holds pickled Python objects"),
    "object labels": ({"y_test": np.array([0, 1, 2], object)}, "y_test holds pickled"),
    "text": ({"x_train": np.full((6, 4, 4), "a")}, "x_train has dtype <U1"),
    "complex": ({"x_train": np.zeros((6, 4, 4), complex)}, "x_train has dtype complex128"),
    "one axis": ({"x_train": np.zeros(6, U8)}, r"x_train has shape \(6,\)"),
    "no axis": ({"x_test": np.array(1, U8)}, r"x_test has shape \(\)"),
    "no samples": (
        {"x_train": np.zeros((0, 4, 4), U8), "y_train": np.zeros(0, U8)},
        r"x_train has shape \(0, 4, 4\), no values",
    ),
    "no test samples": (
        {"x_test": np.zeros((0, 4, 4), U8), "y_test": np.zeros(0, U8)},
        r"x_test has shape \(0, 4, 4\), no values",
    ),
    "no features": ({"x_train": np.zeros((6, 0), U8)}, r"shape \(6, 0\), no values"),
    "sample shapes": ({"x_test": np.zeros((3, 4, 5), U8)}, r"\(4, 4\), one of x_test \(4, 5\)"),
    "mixed types": ({"x_test": np.zeros((3, 4, 4))}, "x_train is uint8, x_test float32"),
    "counts": ({"y_train": np.array([0, 1, 2], U8)}, "x_train has 6 samples, y_train has 3 labels"),
    "test counts": ({"y_test": np.array([0], U8)}, "x_test has 3 samples, y_test has 1 labels"),
    "NaN": (floats(np.nan), "x_train holds 1 values that are NaN"),
    "infinite": (floats(-np.inf), "x_train holds 1 values that are NaN, infinite"),
    "beyond float32": (floats(1e300), "x_train holds 1 values .* too large for float32"),
    "above a byte": ({"x_train": X6 + np.uint16(256)}, "x_train is uint16 from 256 to 256"),
    "below zero": ({"x_train": X6 - np.int16(1)}, "x_train is int16 from -1 to -1"),
    "one-hot": ({"y_train": np.eye(3, dtype=U8)[[0, 1, 2, 0, 1, 2]]}, "argmax of one-hot rows"),
    "column": ({"y_train": np.zeros((6, 1), U8)}, r"y_train has shape \(6, 1\).*flatten it"),
    "float labels": ({"y_train": np.arange(6) % 3.0}, "y_train has dtype float64"),
    "NaN labels": ({"y_train": np.full(6, np.nan)}, "y_train has dtype float64"),
    "boolean labels": ({"y_train": np.arange(6) % 2 == 0}, "y_train has dtype bool"),
    "starts at one": ({"y_train": np.array([1, 2, 3] * 2)}, "do not start at 0 .the smallest.* 1"),
    "negative": ({"y_train": np.array([-1, 0, 1] * 2)}, "are negative .the smallest .* -1"),
    "gap": ({"y_train": np.array([0, 1, 3] * 2)}, "label 2 is absent from y_train.* up to 3"),
    "huge label": (
        {"y_train": np.array([0, 2**63, 1] * 2, np.uint64)},
        "up to 9223372036854775808",
    ),
    "unknown in test": (
        {"y_test": np.array([0, 1, 3])},
        r"y_test has label 3, y_train only 0 \.\. 2",
    ),
    "negative in test": ({"y_test": np.array([0, 1, -1])}, "y_test has label -1"),
    "names": ({"classes": np.array(["a", "b"])}, "2 class names for 3 classes"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_one_line(arrays, change, says):
    checked(arrays, "tiny")  # valid before the change
    changed = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    with pytest.raises(DataError, match=says) as caught:
        checked(changed, "tiny", where="mine.npz")
    message = str(caught.value)
    assert message.startswith("mine.npz: ")
    assert "\n" not in message
    assert message.count(";") >= 2  # given; allowed; what to do
    assert caught.value.exit_code == 2


def test_the_place_is_the_name_when_none_is_given(arrays):
    del arrays["y_test"]
    with pytest.raises(DataError, match="^data 'tiny': y_test missing"):
        checked(arrays, "tiny")


def test_a_class_may_be_absent_from_the_test_set(arrays):
    arrays["y_test"] = np.array([0, 0, 1])
    assert checked(arrays, "tiny").classes == 3
