"""The validation split: a part of the training set, the same share of each class, no test data."""

import numpy as np
import pytest

from spikecl.data import hold_out, load
from spikecl.data.arrays import checked
from spikecl.errors import DataError
from spikecl.experiments.config import parse_config
from spikecl.experiments.job import Job


def toy(counts=(10, 20, 5), temporal=False):
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.arange(len(y), dtype=np.float32)[:, None, None] + np.zeros((1, 4, 2), np.float32)
    arrays = {"x_train": x, "y_train": y, "x_test": -1 - x[:3], "y_test": np.arange(3)}
    return checked(arrays, "toy", temporal=temporal, step_ms=2.0 if temporal else None)


def test_it_is_a_partition_of_the_training_set():
    data = toy()
    split = hold_out(data, 0.2)
    train, held = (set(x[:, 0, 0].tolist()) for x in (split.x_train, split.x_test))
    assert not train & held
    assert train | held == set(data.x_train[:, 0, 0].tolist())
    for x, y in ((split.x_train, split.y_train), (split.x_test, split.y_test)):
        assert [data.y_train[int(i)] for i in x[:, 0, 0]] == y.tolist()
    assert np.bincount(split.y_test).tolist() == [2, 4, 1]


def test_it_keeps_what_the_data_are_and_its_name_tells():
    split = hold_out(toy(temporal=True), 0.2)
    assert (split.temporal, split.step_ms, split.peak) == (True, 2.0, 1.0)
    assert split.name == "toy-validation0.2"
    assert hold_out(load("digits"), 0.1).class_names == load("digits").class_names
    assert hold_out(load("digits"), 0.1).peak == 16


def test_the_split_is_the_same_each_time_and_not_the_first_rows():
    a, b = (hold_out(toy(), 0.2) for _ in range(2))
    assert a.checksum == b.checksum
    assert a.checksum != hold_out(toy(), 0.4).checksum
    assert a.x_test[:2, 0, 0].tolist() != [0, 1]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_out_of_range_are_refused(fraction):
    with pytest.raises(DataError, match="above 0 and below 1"):
        hold_out(toy(), fraction)


def test_a_class_of_one_sample_is_refused():
    with pytest.raises(DataError, match="class 1 has one sample"):
        hold_out(toy((4, 1, 4)), 0.5)


def test_a_configuration_asks_for_it():
    config = parse_config({"data": {"validation": 0.25}})
    stream = Job.from_config(config, data_dir=None).stream
    assert "digits-validation0.25" in stream.name
    whole = Job.from_config(parse_config({}), data_dir=None).stream
    assert stream.fingerprint() != whole.fingerprint()
