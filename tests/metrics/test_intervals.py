"""Intervals against loops, and irregularity against what is known of point processes."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spikecl.metrics.intervals import cv, cv2, isi

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 3))
spikes = shapes.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 2)))


def intervals_by_loop(x, dt):
    """Per neuron, the intervals of each trial."""
    found = []
    for n in range(x.shape[2]):
        trials = []
        for b in range(x.shape[1]):
            times = [t * dt for t in range(len(x)) for _ in range(x[t, b, n])]
            trials.append([later - t for t, later in zip(times, times[1:])])
        found.append(trials)
    return found


@quick
@given(spikes, st.sampled_from([1.0, 0.25, 2.0]))
def test_intervals_equal_a_loop(x, dt):
    expected = [sum(trials, []) for trials in intervals_by_loop(x, dt)]
    assert [found.tolist() for found in isi(x, dt, per_neuron=True)] == expected
    assert isi(x, dt).tolist() == sum(expected, [])


@quick
@given(spikes)
def test_irregularity_equals_a_loop(x):
    for n, trials in enumerate(intervals_by_loop(x, 1.0)):
        pooled = sum(trials, [])
        defined = len(pooled) > 1 and sum(pooled) > 0
        expected = scipy.stats.variation(pooled, ddof=1) if defined else math.nan
        assert cv(x)[n] == pytest.approx(expected, nan_ok=True)
        pairs = [pair for trial in trials for pair in zip(trial, trial[1:])]
        terms = [2 * abs(b - a) / (a + b) if a + b else 0.0 for a, b in pairs]
        expected = np.mean(terms) if terms else math.nan
        assert cv2(x)[n] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("period", [1, 2, 7])
def test_a_clock_has_no_variation(period):
    x = np.zeros((700, 2, 1))
    x[::period, 0] = x[3::period, 1] = 1
    assert cv(x).tolist() == [0.0]
    assert cv2(x).tolist() == [0.0]
    assert set(isi(x, 0.5)) == {period * 0.5}


def test_few_spikes_have_no_variation_to_speak_of():
    x = np.zeros((10, 4))
    x[2, 1] = x[2, 2] = x[5, 2] = 1
    x[4, 3] = 3  # three at once: intervals 0, 0
    assert np.isnan(cv(x)).all()
    assert np.isnan(cv2(x[:, :3])).all()
    assert cv2(x)[3] == 0.0
    assert [len(found) for found in isi(x, 1.0, per_neuron=True)] == [0, 0, 1, 2]
    assert isi(np.zeros((5, 2)), 1.0).shape == (0,)
    assert [len(found) for found in isi(np.zeros((5, 2)), 1.0, per_neuron=True)] == [0, 0]


@pytest.mark.parametrize("p", [0.01, 0.2, 0.6])
def test_spikes_drawn_at_each_step(p):
    """Geometric intervals: cv = sqrt(1 - p); as p goes to 0, a Poisson process."""
    x = np.random.default_rng(1).random((400_000, 1)) < p
    n = x.sum() - 1
    assert cv(x)[0] == pytest.approx(math.sqrt(1 - p), abs=5 / math.sqrt(n))  # 5 sigma
    if p == 0.01:
        assert cv2(x)[0] == pytest.approx(1, abs=0.01 + 5 / math.sqrt(3 * n))  # uniform on 0 to 2


def test_a_slow_change_of_the_rate_moves_cv_and_not_cv2():
    p = np.where(np.arange(400_000) < 200_000, 0.002, 0.05)
    x = (np.random.default_rng(2).random(len(p)) < p)[:, None]
    assert cv(x)[0] > 1.5
    assert cv2(x)[0] == pytest.approx(1, abs=0.06)
