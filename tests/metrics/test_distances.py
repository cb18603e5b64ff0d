"""Distances against closed forms, double sums, quadrature and the textbook recursion."""

import math
from functools import cache

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spikecl.errors import UsageError
from spikecl.metrics.distances import van_rossum, victor_purpura

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
trains = arrays(np.int64, (3, 10), elements=st.integers(0, 2)).map(lambda x: x[..., None])
taus = st.sampled_from([0.3, 2.0, 40.0])


def train(*steps, length=30):
    x = np.zeros((length, 1))
    for t in steps:
        x[t] += 1
    return x


def times(x, dt):
    return [t * dt for t in range(len(x)) for _ in range(int(x[t, 0]))]


# ---- van Rossum ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 5.0, 300.0])
@pytest.mark.parametrize("lag", [0, 1, 4, 25])
@pytest.mark.parametrize("dt", [1.0, 0.1])
def test_a_spike_moved(tau, lag, dt):
    (found,) = van_rossum(train(2), train(2 + lag), tau=tau, dt=dt)
    assert found**2 == pytest.approx(1 - math.exp(-lag * dt / tau), abs=1e-12)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("at", [0, 13, 29])
def test_spikes_too_many(number, at):
    (found,) = van_rossum(train(), train(*[at] * number), tau=7.0, dt=1.0)
    assert found**2 == pytest.approx(number**2 / 2)


@quick
@given(trains, taus, st.sampled_from([1.0, 0.5]))
def test_it_equals_the_double_sum(x, tau, dt):
    """D^2 = 1/2 sum over all pairs of spikes of sign sign' exp(-|t - t'| / tau)."""
    a, b, _ = x
    signed = [(t, 1) for t in times(a, dt)] + [(t, -1) for t in times(b, dt)]
    expected = sum(p * q * math.exp(-abs(s - t) / tau) for s, p in signed for t, q in signed) / 2
    assert van_rossum(a, b, tau=tau, dt=dt)[0] ** 2 == pytest.approx(expected, abs=1e-9)


def test_it_equals_the_integral():
    a, b, tau = train(1, 4, 5), train(2, 5, 9), 3.0
    grid = np.linspace(0, 100, 400_001)
    f, g = (
        sum(np.where(grid >= t, np.exp(-np.maximum(grid - t, 0) / tau), 0) for t in times(x, 1.0))
        for x in (a, b)
    )
    expected = scipy.integrate.trapezoid((f - g) ** 2, grid) / tau
    assert van_rossum(a, b, tau=tau, dt=1.0)[0] ** 2 == pytest.approx(expected, rel=1e-3)


def test_long_and_short_time_constants():
    """tau to infinity: half the squared difference of counts; tau to 0: half the odd spikes."""
    a, b = train(1, 2, 3, 9), train(3)
    assert van_rossum(a, b, tau=1e9, dt=1.0)[0] ** 2 == pytest.approx(9 / 2, rel=1e-6)
    assert van_rossum(a, b, tau=1e-3, dt=1.0)[0] ** 2 == pytest.approx(3 / 2)


# ---- Victor and Purpura -------------------------------------------------------------------------


def by_recursion(t, u, q):
    @cache
    def d(i, j):
        if not i or not j:
            return i + j
        moved = d(i - 1, j - 1) + q * abs(t[i - 1] - u[j - 1])
        return min(d(i - 1, j) + 1, d(i, j - 1) + 1, moved)

    return d(len(t), len(u))


@quick
@given(trains, st.sampled_from([0.0, 0.1, 0.7, 5.0]), st.sampled_from([1.0, 0.5]))
def test_it_equals_the_recursion(x, cost, dt):
    a, b, _ = x
    expected = by_recursion(times(a, dt), times(b, dt), cost)
    assert victor_purpura(a, b, cost=cost, dt=dt)[0] == pytest.approx(expected)


def test_the_cost_of_a_spike():
    assert victor_purpura(train(), train(4, 4, 9), cost=1.0, dt=1.0).tolist() == [3.0]
    assert victor_purpura(train(4), train(7), cost=0.2, dt=0.5).tolist() == pytest.approx([0.3])
    assert victor_purpura(train(4), train(29), cost=0.2, dt=1.0).tolist() == [2.0]
    assert victor_purpura(train(1, 2, 3), train(9), cost=0.0, dt=1.0).tolist() == [2.0]


@pytest.mark.parametrize("cost", [-0.1, math.nan, math.inf])
def test_a_cost_is_not_negative(cost):
    with pytest.raises(UsageError, match=f"cost is {cost}; give a finite price"):
        victor_purpura(train(), train(), cost=cost, dt=1.0)


# ---- both ---------------------------------------------------------------------------------------

DISTANCES = {
    "van Rossum": lambda a, b: van_rossum(a, b, tau=4.0, dt=0.5),
    "Victor-Purpura": lambda a, b: victor_purpura(a, b, cost=0.3, dt=0.5),
}
each = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


@each
@quick
@given(x=trains)
def test_they_are_metrics(distance, x):
    a, b, c = x
    assert distance(a, a)[0] == 0
    assert distance(a, b)[0] == pytest.approx(distance(b, a)[0])
    assert distance(a, c)[0] <= distance(a, b)[0] + distance(b, c)[0] + 1e-9
    assert (distance(a, b)[0] > 1e-6) == (a != b).any()


@each
@quick
@given(x=trains, shift=st.integers(0, 20))
def test_when_it_happens_does_not_matter(distance, x, shift):
    before, after = np.zeros((shift, 1)), np.zeros((20 - shift, 1))
    a, b = (np.concatenate([before, train, after]) for train in x[:2])
    assert distance(a, b)[0] == pytest.approx(distance(x[0], x[1])[0])


@each
def test_each_train_is_compared_with_its_like(distance):
    a, b = np.random.default_rng(0).integers(0, 2, (2, 15, 3, 4))
    found = distance(a, b)
    assert found.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            assert found[i, j] == pytest.approx(distance(a[:, i, [j]], b[:, i, [j]])[0])


@each
def test_trains_have_one_shape(distance):
    with pytest.raises(UsageError, match=r"a is \[9, 2\], b is \[9, 3\]; give trains of one shape"):
        distance(np.zeros((9, 2)), np.zeros((9, 3)))


@pytest.mark.parametrize("tau", [0.0, -3.0, math.nan, math.inf])
def test_a_time_constant_is_positive(tau):
    with pytest.raises(UsageError, match=f"tau is {tau}; give a finite number of milliseconds"):
        van_rossum(train(), train(), tau=tau, dt=1.0)
