"""Traces of memories: closed forms of rules whose traces are known, slopes and lifetimes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spikecl.errors import UsageError
from spikecl.metrics import MemoryTrace, lifetime, log_ages, power_law, recall_curve


def leaky(keep):
    return lambda w, pattern: keep * w + pattern


@pytest.mark.parametrize("before", [0, 60])
def test_a_leaky_sum_has_the_trace_that_is_known(before):
    """Signal ``keep^(age - 1)``; noise from all other patterns, ``var / N`` of each."""
    repeats, n, keep = 2000, 100, 0.9
    ages = torch.tensor([1, 3, 10, 20])
    start = torch.zeros(repeats, n, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    trace = recall_curve(leaky(keep), lambda w: w, start, ages, generator=draw, before=before)
    assert trace.ages.tolist() == [1, 3, 10, 20]
    for age, signal, noise, snr in zip(ages.tolist(), *trace[1:], trace.snr, strict=True):
        others = sum(keep ** (2 * k) for k in range(before + age) if k != age - 1)
        expected = math.sqrt(others / n)
        assert float(signal) == pytest.approx(
            keep ** (age - 1), abs=5 * expected / repeats**0.5 + 1e-12
        )
        assert float(noise) == pytest.approx(expected, rel=0.08, abs=1e-12)
        if expected:
            assert float(snr) == pytest.approx(float(signal) / float(noise))


def test_patterns_come_from_the_generator_alone():
    start, ages = torch.zeros(3, 5), torch.tensor([1, 2])
    curves = [
        recall_curve(
            leaky(0.5), lambda w: w, start, ages, generator=torch.Generator().manual_seed(s)
        )
        for s in (1, 1, 2)
    ]
    assert torch.equal(curves[0].noise, curves[1].noise)
    assert not torch.equal(curves[0].noise, curves[2].noise)


def test_synapses_that_hold_nothing_have_a_ratio_of_zero():
    none = recall_curve(
        lambda w, pattern: w,
        lambda w: w,
        torch.zeros(4, 3),
        torch.tensor([1, 2]),
        generator=torch.Generator().manual_seed(0),
    )
    assert none.snr.tolist() == [0, 0] and lifetime(none) == 0


@pytest.mark.parametrize("ages", [[0, 1], [2, 2], [3, 1], []])
def test_ages_have_to_rise(ages):
    with pytest.raises(UsageError, match="give whole numbers that rise"):
        recall_curve(
            leaky(0.5),
            lambda w: w,
            torch.zeros(2, 2),
            torch.tensor(ages),
            generator=torch.Generator(),
        )


@pytest.mark.parametrize("last", [1, 7, 100, 1000, 4321])
def test_ages_are_spread_evenly_on_a_logarithmic_scale(last):
    ages = log_ages(last, per_decade=6)
    assert ages[0] == 1 and ages[-1] <= last and bool((ages[1:] > ages[:-1]).all())
    assert int(ages[-1]) >= last / 10 ** (1 / 6) - 1
    assert ages.tolist() == sorted(
        {round(10 ** (k / 6)) for k in range(40) if k <= 6 * math.log10(last) + 1e-9}
    )


def test_the_slope_is_that_of_numpy():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(1, 100, 60))
    y = 3 * x**-0.7 * np.exp(0.1 * rng.standard_normal(60))
    inside = (x >= 5) & (x <= 50)
    expected = np.polyfit(np.log(x[inside]), np.log(y[inside]), 1)[0]
    assert power_law(torch.tensor(x), torch.tensor(y), 5, 50) == pytest.approx(expected, rel=1e-9)
    for bad in (torch.zeros(60), -torch.tensor(y)):
        with pytest.raises(UsageError, match="all above 0"):
            power_law(torch.tensor(x), bad, 5, 50)
    with pytest.raises(UsageError, match="two points"):
        power_law(torch.tensor(x), torch.tensor(y), 200, 300)


def test_a_lifetime_ends_at_the_first_fall_below_the_limit():
    ages = torch.tensor([1, 2, 4, 8, 16])
    trace = MemoryTrace(ages, torch.tensor([9.0, 3.0, 1.0, 0.5, 2.0]), torch.ones(5))
    assert lifetime(trace) == 4 and lifetime(trace, 2.0) == 2 and lifetime(trace, 10.0) == 0
    assert lifetime(trace, 0.1) == 16
