"""Intervals against scipy."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.metrics import interval

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)


@quick
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_equals_scipy(values):
    found = interval(values)
    sem = scipy.stats.sem(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(sem * math.sqrt(len(values)), abs=1e-9)
    if sem > 0:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), sem)
        assert found.low == pytest.approx(low, abs=1e-9)
        assert found.high == pytest.approx(high, abs=1e-9)


def test_by_hand():
    found = interval([1.0, 2.0, 3.0, 6.0])
    assert found.mean == 3.0
    assert found.sd == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3))
    assert found.high - found.mean == pytest.approx(3.182446 * found.sd / 2, rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_value_has_no_spread():
    assert interval([0.7]) == (1, 0.7, None, None, None)


def test_equal_values_have_no_width():
    assert interval([0.5, 0.5, 0.5]) == (3, 0.5, 0.0, 0.5, 0.5)


def test_it_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(2.0, 3.0, (1000, 5))
    hits = sum(1 for d in draws if (i := interval(d)).low <= 2.0 <= i.high)
    assert 0.93 < hits / 1000 < 0.97
