"""Fewer samples and folds: drawn once for all, every class in its share."""

import numpy as np
import pytest

from spikecl.data import first_samples, fold, load
from spikecl.errors import DataError
from spikecl.experiments import parse_config
from spikecl.experiments.job import chosen_data


def rows(x):
    return {row.tobytes() for row in x}


@pytest.mark.parametrize("samples", [10, 37, 500, 1442])
def test_fewer_samples_keep_the_shares_of_classes(samples):
    data = load("digits")
    made = first_samples(data, samples)
    assert len(made.x_train) == len(made.y_train) == samples
    assert rows(made.x_train) <= rows(data.x_train)
    counts, whole = (np.bincount(d.y_train, minlength=10) for d in (made, data))
    assert (abs(counts - whole * samples / len(data.y_train)) <= 1).all() and counts.min() > 0
    assert np.array_equal(made.x_test, data.x_test)
    again = first_samples(data, samples)
    assert np.array_equal(again.x_train, made.x_train) and again.name == f"digits-{samples}"


@pytest.mark.parametrize("samples", [0, 9, 1443, -1])
def test_sample_counts_that_cannot_be(samples):
    with pytest.raises(DataError, match=rf"got {samples}; digits has 1442.*10 to 1442"):
        first_samples(load("digits"), samples)


def test_every_sample_is_tested_once():
    data = load("digits")
    folds = [fold(data, k, 5) for k in range(5)]
    sizes = [len(f.x_test) for f in folds]
    assert sum(sizes) == 1797 and max(sizes) - min(sizes) <= 1
    everything = np.concatenate([data.x_train, data.x_test])
    tested = np.concatenate([f.x_test for f in folds])
    assert np.array_equal(
        np.sort(everything.reshape(1797, -1), axis=0), np.sort(tested.reshape(1797, -1), axis=0)
    )
    for f in folds:
        assert len(f.x_train) + len(f.x_test) == 1797
        counts = np.bincount(f.y_test, minlength=10)
        whole = np.bincount(np.concatenate([data.y_train, data.y_test]), minlength=10)
        assert (abs(counts - whole / 5) < 1).all()


@pytest.mark.parametrize(("number", "folds"), [(5, 5), (-1, 5), (0, 1)])
def test_folds_that_cannot_be(number, folds):
    with pytest.raises(DataError, match=f"got fold {number} of {folds}"):
        fold(load("digits"), number, folds)
    with pytest.raises(DataError, match="class .* has .* samples for 1000 folds"):
        fold(load("digits"), 0, 1000)


def test_a_configuration_names_them():
    table = {"data": {"name": "digits", "folds": 4, "fold": 1, "samples": 200, "validation": 0.1}}
    data = chosen_data(parse_config(table).data, None)
    assert data.name == "digits-fold1of4-200-validation0.1"
    assert len(data.x_train) + len(data.x_test) == 200
    tested = rows(fold(load("digits"), 1, 4).x_test)
    assert not tested & rows(data.x_train) and not tested & rows(data.x_test)
