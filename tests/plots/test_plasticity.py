from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from spikecl.errors import UsageError
from spikecl.plots import plot_stdp_window
from spikecl.trainers import Stdp, TripletStdp

RULE = Stdp(a_plus=1.0, a_minus=0.5, tau_plus=10.0, tau_minus=30.0, dt=0.5)


def curves(ax):
    """Lags and changes of the curve before, the curve behind, and the dot."""
    found = [line for line in ax.lines if len(line.get_xdata()) != 2]
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in found]


def test_the_curves_are_the_window():
    (ax,) = plot_stdp_window(RULE, longest=20.0).axes
    (before, down), (behind, up), (zero, both) = curves(ax)
    np.testing.assert_allclose(before, np.arange(-20, 0, 0.5))
    np.testing.assert_allclose(behind, np.arange(0.5, 20.5, 0.5))
    np.testing.assert_allclose(down, -0.5 * np.exp(before / 30))
    np.testing.assert_allclose(up, np.exp(-behind / 10))
    assert zero == 0 and both == pytest.approx(0.5)
    assert ax.get_title(loc="left") == "stdp: one pair"
    assert ax.get_xlabel() == "postsynaptic less presynaptic spike, ms"
    assert ax.get_ylabel() == "change of the weight"


def test_weight_and_repeats_reach_the_rule():
    rule = Stdp(mu=1.0)
    (ax,) = plot_stdp_window(rule, longest=5.0, weight=1.0).axes
    assert not curves(ax)[1][1].any() and curves(ax)[0][1].all()
    triplets = TripletStdp()
    (ax,) = plot_stdp_window(triplets, longest=5.0).axes
    assert not curves(ax)[1][1].any()  # the first pair has no postsynaptic spike before it
    (ax,) = plot_stdp_window(triplets, longest=5.0, repeats=3, every=20.0).axes
    expected = triplets.window([1.0, 2.0, 3.0, 4.0, 5.0], repeats=3, every=20.0)
    np.testing.assert_array_equal(curves(ax)[1][1], expected)
    assert min(expected) > 0
    assert ax.get_title(loc="left") == "triplet_stdp: 3 pairs, 20 ms apart"


def test_axes_may_be_given_and_lags_must_be_a_step_long():
    figure = Figure()
    ax = figure.subplots()
    assert plot_stdp_window(RULE, ax=ax) is figure
    with pytest.raises(UsageError, match="longest is 0.4 ms, a step has 0.5 ms"):
        plot_stdp_window(RULE, longest=0.4)
