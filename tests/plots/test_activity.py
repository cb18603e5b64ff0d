from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import StepPatch

from spikecl.errors import UsageError
from spikecl.plots import isi, psth, rates

SPIKES = np.random.default_rng(0).random((60, 3, 8)) < 0.3


def steps(figure) -> StepPatch:
    (patch,) = figure.axes[0].patches
    assert isinstance(patch, StepPatch)
    return patch.get_data()


# ---- rates --------------------------------------------------------------------------------------


def test_bars_are_the_rates():
    (ax,) = rates(SPIKES, 0.5).axes
    expected = SPIKES.sum((0, 1)) / 3 / (60 * 0.5e-3)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], expected)
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    np.testing.assert_allclose(centres, np.arange(8))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected.mean())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("neuron", "rate, Hz")
    (ax,) = rates(SPIKES, 0.5, sample=1).axes
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, SPIKES[:, 1].sum(0) / 0.03)


def test_many_neurons_are_ranked():
    spikes = np.random.default_rng(1).random((50, 3000)) < np.linspace(0, 0.5, 3000)
    figure = rates(spikes, 1.0)
    data = steps(figure)
    np.testing.assert_allclose(data.values, np.sort(spikes.sum(0) / 0.05)[::-1])
    np.testing.assert_array_equal(data.edges, np.arange(3001) - 0.5)
    assert figure.axes[0].get_xlabel() == "neurons, the most active first"


def test_the_silent_and_the_saturated_are_counted():
    spikes = np.zeros((10, 4))
    spikes[:, 1] = spikes[3, 2] = 1
    (ax,) = rates(spikes, 1.0).axes
    assert ax.get_title(loc="left") == "mean 275 Hz; 2 of 4 neurons silent, 1 at every step"
    (ax,) = rates(spikes[:, :1], 1.0).axes
    assert ax.get_title(loc="left") == "mean 0 Hz; 1 of 1 neuron silent"
    assert ax.get_ylim() == (0, 1)


# ---- intervals ----------------------------------------------------------------------------------


def test_bars_are_the_numbers_of_intervals():
    spikes = np.zeros((40, 2, 2))
    spikes[[0, 2, 4, 9], 0, 0] = spikes[[1, 3], 1, 0] = spikes[[0, 9], 0, 1] = 1
    figure = isi(spikes, 0.5)  # 2, 2, 5, 2 and 9 steps
    data = steps(figure)
    np.testing.assert_allclose(data.edges, np.arange(1.5, 10) * 0.5)
    np.testing.assert_array_equal(data.values, [3, 0, 0, 1, 0, 0, 0, 1])
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("inter-spike interval, ms", "number")
    cv = np.std([2, 2, 5, 2], ddof=1) / np.mean([2, 2, 5, 2])
    assert ax.get_title(loc="left") == f"5 intervals; CV {cv:.2f}, mean of 1 neuron"
    np.testing.assert_array_equal(steps(isi(spikes, 0.5, sample=1)).values, [1])


@pytest.mark.parametrize("bins", [1, 7, 50])
def test_bins_are_equally_many_steps_wide_and_lose_nothing(bins):
    spikes = np.random.default_rng(2).random((3000, 5)) < 0.03
    data = steps(isi(spikes, 0.1, bins=bins))
    assert data.values.sum() == spikes.sum() - 5
    assert len(data.values) <= bins
    widths = np.diff(data.edges) / 0.1
    np.testing.assert_allclose(widths, round(widths[0]))


def test_no_intervals_and_no_bins():
    (ax,) = isi(np.eye(5), 1.0).axes
    assert [text.get_text() for text in ax.texts] == ["no neuron fired twice"]
    assert ax.get_title(loc="left") == "0 intervals"
    (ax,) = isi(np.array([[1], [1]]), 1.0).axes
    assert ax.get_title(loc="left") == "1 interval"  # and no CV of one
    with pytest.raises(UsageError, match="bins is 0; give at least 1"):
        isi(SPIKES, 1.0, bins=0)


# ---- over time ----------------------------------------------------------------------------------


def test_bars_are_the_rates_over_time():
    figure = psth(SPIKES, 0.5, window=3.5)  # 7 steps; 4 are left over
    data = steps(figure)
    np.testing.assert_allclose(data.edges, np.arange(9) * 3.5 - 0.25)
    expected = [SPIKES[7 * k : 7 * k + 7].mean() / 0.5e-3 for k in range(8)]
    np.testing.assert_allclose(data.values, expected)
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time, ms", "rate, Hz")
    assert ax.get_title(loc="left") == "mean rate of 8 neurons, 3 samples in windows of 3.5 ms"
    assert ax.get_xlim() == (-0.25, 29.75)


@pytest.mark.parametrize(("length", "windows"), [(6, 6), (50, 50), (51, 25), (1000, 50)])
def test_at_most_fifty_windows(length, windows):
    assert len(steps(psth(np.ones((length, 2)), 0.1)).values) == windows


def test_silence_over_time():
    (ax,) = psth(0 * SPIKES, 1.0, sample=0).axes
    assert [text.get_text() for text in ax.texts] == ["no spikes"]
    assert ax.get_title(loc="left").startswith("mean rate of 8 neurons, 1 sample ")
    with pytest.raises(UsageError, match="window is 0.7 ms"):
        psth(SPIKES, 1.0, window=0.7)
