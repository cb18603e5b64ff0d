from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikecl.data.arrays import checked, checksum_of
from spikecl.data.checks import ARRAYS


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
