from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikecl.data.arrays import checked, checksum_of
from spikecl.data.checks import ARRAYS
from spikecl.errors import DataError


def test_types_and_sizes(arrays):
    data = checked(arrays, "tiny")
    assert data.x_train.dtype == data.x_test.dtype == np.uint8
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert (data.input_shape, data.classes, data.peak) == ((4, 4), 3, 255.0)
    np.testing.assert_array_equal(data.x_train, arrays["x_train"])
    np.testing.assert_array_equal(data.y_test, arrays["y_test"])


@pytest.mark.parametrize(
    ("convert", "dtype", "peak"),
    [
        (lambda x: x.astype(np.float64) / 255, np.float32, 1.0),
        (lambda x: x.astype(np.int64), np.uint8, 255.0),
        (lambda x: x % 2, np.uint8, 1.0),
        (lambda x: x % 2 == 1, np.uint8, 1.0),
        (lambda x: x % 3, np.uint8, 255.0),
    ],
)
def test_inputs_become_bytes_or_floats_with_their_peak(arrays, convert, dtype, peak):
    for name in ("x_train", "x_test"):
        arrays[name] = convert(arrays[name])
    data = checked(arrays, "tiny")
    assert (data.x_train.dtype, data.peak) == (dtype, peak)
    np.testing.assert_allclose(data.x_train, arrays["x_train"], rtol=1e-7)


def test_peak_of_a_test_set_that_is_not_binary_counts(arrays):
    arrays["x_train"] = arrays["x_train"] % 2
    assert checked(arrays, "tiny").peak == 255.0


def test_given_peak_wins(arrays):
    assert checked(arrays, "tiny", peak=16).peak == 16.0


def test_checksum_is_the_stated_sequence_of_bytes(arrays):
    stream = b""
    for name, dtype in zip(ARRAYS, ("|u1", "<i8", "|u1", "<i8")):
        array = arrays[name].astype(dtype)
        stream += f"{name} {dtype} {','.join(map(str, array.shape))}\n".encode()
        stream += array.tobytes()
    assert checked(arrays, "tiny").checksum == hashlib.sha256(stream).hexdigest()


@given(name=st.sampled_from(ARRAYS), seed=st.integers(0, 2**16))
def test_checksum_tells_any_changed_value(name, seed):
    rng = np.random.default_rng(seed)
    whole = {n: rng.integers(0, 200, (3, 2) if n[0] == "x" else 3) for n in ARRAYS}
    changed = {**whole, name: whole[name].copy()}
    changed[name].flat[rng.integers(changed[name].size)] += 1
    assert checksum_of(whole) != checksum_of(changed)


def test_checksum_tells_shapes_and_splits_apart(arrays):
    flat = {n: a.reshape(len(a), -1) if n[0] == "x" else a for n, a in arrays.items()}
    swapped = {**arrays, "x_train": arrays["x_test"], "x_test": arrays["x_train"]}
    assert len({checksum_of(a) for a in (arrays, flat, swapped)}) == 3


def test_checksum_depends_neither_on_byte_order_nor_on_memory_layout(arrays):
    same = {
        "x_train": np.asfortranarray(arrays["x_train"]),
        "y_train": arrays["y_train"].astype(">i8"),
        "x_test": arrays["x_test"].astype(np.int16),
        "y_test": np.repeat(arrays["y_test"], 2)[::2],
    }
    one, other = checked(arrays, "tiny"), checked(same, "tiny")
    assert one.checksum == other.checksum
    assert one == other


def test_equality_follows_content_and_the_set_is_frozen(arrays):
    one = checked(arrays, "tiny")
    arrays["x_test"] = arrays["x_test"][::-1]
    assert one != checked(arrays, "tiny")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "other"


def test_class_names_from_the_file_or_the_caller(arrays):
    arrays["classes"] = np.array(["a", "b", "c"])
    assert checked(arrays, "tiny").class_names == ("a", "b", "c")
    assert checked(arrays, "tiny", class_names="xyz").class_names == ("x", "y", "z")


def test_a_number_called_classes_is_no_list_of_names(arrays):
    arrays["classes"] = np.array(3)
    assert checked(arrays, "tiny").class_names == ()


def in_time(arrays, **changes):
    """The same as two steps of two rows of four features."""
    x = {name: arrays[name].reshape(-1, 2, 2, 4) for name in ("x_train", "x_test")}
    return {**arrays, **x, **changes}


def test_time_comes_from_the_file_or_the_caller(arrays):
    plain = checked(in_time(arrays), "tiny")
    assert (plain.temporal, plain.step_ms) == (False, None)
    stored = {"temporal": np.array(True), "step_ms": np.array(2.5, np.float32)}
    data = checked(in_time(arrays, **stored), "tiny")
    assert (data.temporal, data.step_ms, data.input_shape) == (True, 2.5, (2, 2, 4))
    assert type(data.temporal) is bool and type(data.step_ms) is float
    assert data == checked(in_time(arrays), "tiny", temporal=True, step_ms=2.5)
    assert checked(in_time(arrays, **stored), "tiny", temporal=False) == plain
    assert checked(in_time(arrays, temporal=np.array(1)), "tiny").step_ms is None
    assert checked(in_time(arrays, temporal=np.array(0)), "tiny") == plain


def test_data_that_differ_in_time_are_not_equal(arrays):
    options = [{}, {"temporal": True}, *({"temporal": True, "step_ms": s} for s in (1.0, 2.0))]
    sets = [checked(in_time(arrays), "tiny", **given) for given in options]
    assert len({data.checksum for data in sets}) == 1
    assert all((a == b) == (i == j) for i, a in enumerate(sets) for j, b in enumerate(sets))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temporal": np.array([True])}, r"temporal is bool of shape \(1,\)"),
        ({"temporal": np.array("yes")}, "temporal is <U3"),
        ({"temporal": np.array(True), "step_ms": np.array(0.0)}, "step_ms is 0.0"),
        ({"temporal": np.array(True), "step_ms": np.array(np.nan)}, "step_ms is nan"),
        ({"temporal": np.array(True), "step_ms": np.array([1.0, 2.0])}, "step_ms is .1. 2.."),
        ({"temporal": np.array(True), "step_ms": np.array("5 ms")}, "step_ms is 5 ms"),
        ({"step_ms": np.array(5.0)}, "step_ms is given, but temporal is not True"),
        ({"temporal": np.array(False), "step_ms": np.array(5.0)}, "but temporal is not True"),
        (
            {"temporal": np.array(True), "x_train": np.zeros((6, 4)), "x_test": np.zeros((3, 4))},
            r"temporal is True, but x_train has shape \(6, 4\).*an axis of one feature",
        ),
    ],
)
def test_bad_words_on_time_are_refused_in_one_line(arrays, changes, says):
    with pytest.raises(DataError, match=says) as caught:
        checked(in_time(arrays, **changes), "tiny", where="mine.npz")
    message = str(caught.value)
    assert message.startswith("mine.npz: ")
    assert "\n" not in message
    assert message.count(";") >= 2
