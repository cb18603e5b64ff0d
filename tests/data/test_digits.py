from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from spikecl.data import digits, load


def test_split_takes_every_fifth_of_each_class_and_loses_nothing():
    bunch, data = load_digits(), digits.read()
    for label in range(10):
        images = bunch.images[bunch.target == label]
        number = np.arange(1, len(images) + 1)
        np.testing.assert_array_equal(
            data["x_test"][data["y_test"] == label], images[number % 5 == 0]
        )
        np.testing.assert_array_equal(
            data["x_train"][data["y_train"] == label], images[number % 5 > 0]
        )
    assert len(data["x_train"]) + len(data["x_test"]) == len(bunch.images)


def test_loaded_as_bytes_up_to_16():
    data = load("digits")
    assert (data.name, data.x_train.dtype, data.peak, data.x_train.max()) == (
        "digits",
        np.uint8,
        16,
        16,
    )
    assert (data.input_shape, data.classes, data.class_names[3]) == ((8, 8), 10, "3")
    assert (len(data.x_train), len(data.x_test)) == (1442, 355)


def test_a_linear_classifier_learns_them():
    from sklearn.linear_model import RidgeClassifier

    data = load("digits")
    model = RidgeClassifier().fit(data.x_train.reshape(-1, 64) / 16, data.y_train)
    assert model.score(data.x_test.reshape(-1, 64) / 16, data.y_test) > 0.9
