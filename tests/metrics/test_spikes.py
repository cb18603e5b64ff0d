"""Measures of trains against loops, numpy, scipy, and what is known of point processes."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spikecl.errors import UsageError
from spikecl.metrics.spikes import correlation, fano, psth, rates, sta, synchrony

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
shapes = st.tuples(st.integers(4, 12), st.integers(1, 3), st.integers(1, 4))
spikes = shapes.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 2)))


def poisson(mean, shape, seed=0):
    return np.random.default_rng(seed).poisson(mean, shape)


def counts_by_loop(x, steps):
    """Counts [windows * B, N]."""
    rows = []
    for start in range(0, len(x) - steps + 1, steps):
        for b in range(x.shape[1]):
            rows.append(
                [sum(x[t, b, n] for t in range(start, start + steps)) for n in range(x.shape[2])]
            )
    return np.array(rows, dtype=float)


# ---- rates --------------------------------------------------------------------------------------


@quick
@given(spikes, st.integers(1, 4), st.sampled_from([1.0, 0.5, 0.1]))
def test_rates_and_psth_equal_a_loop(x, steps, dt):
    windows = len(x) // steps
    expected = counts_by_loop(x, steps).reshape(windows, *x.shape[1:]) / (steps * dt / 1000)
    np.testing.assert_allclose(rates(x, dt, window=steps * dt), expected)
    np.testing.assert_allclose(psth(x, dt, window=steps * dt), expected.mean(1))
    np.testing.assert_allclose(rates(x, dt), x.sum(0) / (len(x) * dt / 1000))


def test_units_are_hertz():
    x = np.zeros((2000, 1))
    x[::25] = 1  # every 25 steps of 0.5 ms
    assert rates(x, 0.5).tolist() == [80.0]
    assert rates(np.ones((7, 1)), 0.5).tolist() == [2000.0]


def test_what_does_not_fill_a_window_is_left_out():
    x = np.array([[1, 0, 0, 0, 1, 1]]).T
    assert rates(x, 1.0, window=4.0).tolist() == [[250.0]]
    assert psth(x, 1.0, window=5.0).tolist() == [[400.0]]


def test_psth_finds_the_rate_that_made_the_trials():
    p = np.repeat([0.02, 0.2, 0.05, 0.0], 50)
    trials = np.random.default_rng(3).random((200, 400, 1)) < p[:, None, None]
    found = psth(trials, 1.0, window=50.0)[:, 0]
    true = 1000 * p[::50]
    sigma = np.sqrt(true * (1 - true / 1000) * 1000 / (400 * 50))
    assert (abs(found - true) <= 4 * sigma).all()


# ---- variability --------------------------------------------------------------------------------


@quick
@given(spikes, st.integers(1, 2))
def test_fano_equals_numpy(x, steps):
    n = counts_by_loop(x, steps)
    expected = [c.var(ddof=1) / c.mean() if c.any() else math.nan for c in n.T]
    np.testing.assert_allclose(fano(x, 0.5, window=steps * 0.5), expected)


def test_fano_of_a_poisson_process():
    """Given n counts the estimate has mean 1 and, about, variance 2 / (n - 1)."""
    found = fano(poisson(0.3, (1000, 4, 60)), 1.0, window=10.0)
    assert abs(found.mean() - 1) < 4 * math.sqrt(2 / 399 / 60)
    assert abs(found - 1).max() < 5 * math.sqrt(2 / 399)


def test_fano_of_spikes_drawn_at_each_step_and_of_a_clock():
    x = np.random.default_rng(4).random((40_000, 1)) < 0.3
    assert fano(x, 1.0, window=20.0)[0] == pytest.approx(0.7, abs=5 * 0.7 * math.sqrt(2 / 1999))
    clock = np.zeros((100, 1))
    clock[::5] = 1
    assert fano(clock, 1.0, window=10.0).tolist() == [0.0]


def test_with_one_window_counts_vary_over_trials():
    x = poisson(0.5, (30, 8, 3))
    expected = x.sum(0).var(0, ddof=1) / x.sum(0).mean(0)
    np.testing.assert_allclose(fano(x, 2.0, window=60.0), expected)
    np.testing.assert_allclose(
        correlation(x, 2.0, window=60.0), np.corrcoef(x.sum(0), rowvar=False)
    )


def test_silent_and_saturated():
    silent, full = np.zeros((10, 2)), np.ones((10, 2))
    assert rates(silent, 1.0).tolist() == [0.0, 0.0]
    assert np.isnan(fano(silent, 1.0, window=2.0)).all()
    assert fano(full, 1.0, window=2.0).tolist() == [0.0, 0.0]
    for x in (silent, full):
        assert np.isnan(correlation(x, 1.0, window=2.0)).all()
        assert np.isnan(synchrony(x, 1.0, window=2.0))
    assert np.isnan(sta(silent[:, 0], silent, dt=1.0, window=3.0)).all()


@pytest.mark.parametrize("measure", [fano, correlation, synchrony])
def test_one_count_does_not_vary(measure):
    with pytest.raises(UsageError, match="shorter window or give more trials"):
        measure(np.ones((10, 3)), 1.0, window=6.0)


# ---- together -----------------------------------------------------------------------------------


@quick
@given(spikes, st.integers(1, 2))
def test_correlation_equals_scipy(x, steps):
    n = counts_by_loop(x, steps)
    found = correlation(x, 1.0, window=float(steps))
    for i in range(n.shape[1]):
        for j in range(n.shape[1]):
            varies = np.ptp(n[:, i]) > 0 and np.ptp(n[:, j]) > 0
            expected = scipy.stats.pearsonr(n[:, i], n[:, j])[0] if varies else math.nan
            assert found[i, j] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert np.nanmax(abs(np.append(found, 0.0))) <= 1


def test_correlation_of_neurons_that_share_their_input():
    """n_i = shared + own: r = var(shared) / (var(shared) + var(own))."""
    shared, own = poisson(1.0, (20_000, 1), 5), poisson(3.0, (20_000, 2), 6)
    found = correlation(shared + own, 1.0, window=1.0)
    assert found[0, 1] == pytest.approx(0.25, abs=5 * (1 - 0.25**2) / math.sqrt(20_000))
    assert np.diag(found) == pytest.approx([1, 1])


@quick
@given(spikes)
def test_synchrony_is_between_its_bounds(x):
    found = synchrony(x, 1.0, window=1.0)
    assert np.isnan(found) == (np.ptp(x.reshape(-1, x.shape[2]), axis=0) == 0).all()
    assert np.isnan(found) or 0 <= found <= 1 + 1e-12


@pytest.mark.parametrize("n", [1, 4, 100])
def test_synchrony_of_all_and_of_none(n):
    one = poisson(0.4, (5000, 1), 7)
    assert synchrony(np.repeat(one, n, axis=1), 1.0, window=5.0) == pytest.approx(1)
    alone = poisson(0.4, (5000, n), 8)
    assert synchrony(alone, 1.0, window=1.0) == pytest.approx(1 / math.sqrt(n), rel=0.08)


def test_synchrony_of_membranes_by_hand():
    """Two sines a quarter turn apart: the mean has half the variance of each."""
    t = np.arange(1000)
    v = -65 + 3 * np.stack([np.sin(2 * np.pi * t / 100), np.cos(2 * np.pi * t / 100)], 1)
    assert synchrony(v, 0.1, window=0.1) == pytest.approx(math.sqrt(0.5))
    assert math.isnan(synchrony(np.full((9, 3), 0.1), 1.0, window=1.0))  # 0.1 has no exact mean


# ---- spike-triggered average --------------------------------------------------------------------


@quick
@given(spikes, st.integers(1, 4), st.integers(0, 999))
def test_sta_equals_a_loop(x, lags, seed):
    stimulus = np.random.default_rng(seed).normal(size=(*x.shape[:2], 2, 3))
    found = sta(stimulus, x, dt=0.5, window=lags * 0.5)
    assert found.shape == (lags, x.shape[2], 2, 3)
    for n in range(x.shape[2]):
        seen = [
            [stimulus[t - lag, b] for lag in range(lags)]
            for t in range(lags - 1, len(x))
            for b in range(x.shape[1])
            for _ in range(x[t, b, n])
        ]
        expected = np.mean(seen, axis=0) if seen else np.full((lags, 2, 3), math.nan)
        np.testing.assert_allclose(found[:, n], expected, atol=1e-12)


def test_sta_finds_the_filter_of_a_linear_neuron():
    """White noise through a filter h, rate linear in the result: the STA is proportional to h."""
    rng = np.random.default_rng(9)
    h = np.array([0.0, 0.6, 0.8, 0.0])
    stimulus = rng.normal(size=200_000)
    p = 0.1 * (1 + 0.3 * np.convolve(stimulus, h)[: len(stimulus)])
    x = rng.random(len(p)) < p
    found = sta(stimulus, x[:, None], dt=1.0, window=4.0)[:, 0]
    assert found == pytest.approx(0.3 * h, abs=5 / math.sqrt(x.sum()))


@pytest.mark.parametrize("shape", [(9,), (10, 3), (10, 2, 0), ()])
def test_a_stimulus_fits_the_spikes(shape):
    with pytest.raises(UsageError, match=r"spikes are \[10, 2, 4\]; give finite numbers \[10, 2\]"):
        sta(np.zeros(shape), np.ones((10, 2, 4)), dt=1.0, window=1.0)


def test_a_stimulus_is_finite():
    with pytest.raises(UsageError, match="finite"):
        sta(np.array([0.0, math.nan]), np.ones((2, 1)), dt=1.0, window=1.0)
