from __future__ import annotations

import statistics

import numpy as np
import pytest
from numpy.testing import assert_allclose

from spikecl.plots import plot_comparison


def seeds(fake_run, method, matrices):
    return [
        fake_run(f"{method}{seed}", method=method, seed=seed, matrix=matrix)
        for seed, matrix in enumerate(matrices)
    ]


def two_events(after_first, old, new):
    return [[0.1, 0.1], [after_first, 0.1], [old, new]]


@pytest.fixture
def records(fake_run):
    first = seeds(fake_run, "hlop", [two_events(0.9, 0.8, 0.8), two_events(0.7, 0.5, 0.7)])
    return [*first, *seeds(fake_run, "finetune", [two_events(1.0, 0.2, 1.0)])]


def test_numbers_are_mean_and_sample_deviation_over_seeds(records):
    acc, bwt, learning, _ = plot_comparison(records).axes
    sd = 100 * statistics.stdev([0.8, 0.6])
    assert [t.get_text() for t in acc.texts] == [f"70.0 ± {sd:.1f}", "60.0"]
    assert [t.xy for t in acc.texts] == [(pytest.approx(70), 0), (pytest.approx(60), 1)]
    assert [t.get_text() for t in bwt.texts] == ["−22.5 ± 0.0", "−22.5"]
    assert [t.get_text() for t in learning.texts] == ["95.0 ± 0.0", "95.0"]
    assert [t.get_text() for t in acc.get_yticklabels()] == ["hlop", "finetune"]
    (bar,) = acc.containers
    (segment,) = bar.lines[2][0].get_segments()
    assert_allclose(segment[:, 0], [70 - sd, 70 + sd])
    points = [line.get_xdata() for line in acc.lines if line.get_alpha() == 0.5]
    assert_allclose(points, [[80, 60]])


def test_curves_are_means_over_seeds_with_a_band_where_there_are_seeds(records):
    ax = plot_comparison(records).axes[3]
    assert_allclose(ax.lines[0].get_ydata(), [80, 70])
    assert_allclose(ax.lines[1].get_ydata(), [100, 60])
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    sd = 100 * statistics.stdev([0.9, 0.7])
    at_first = corners[corners[:, 0] == 0, 1]
    assert_allclose([at_first.min(), at_first.max()], [80 - sd, 80 + sd])
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names == ["hlop (n = 2)", "finetune (n = 1)"]


def test_streams_without_bwt(fake_run):
    one = fake_run("one", matrix=[[0.1], [0.8]], losses=((1.0,),), bwt=None)
    _, bwt, _, _ = plot_comparison([one]).axes
    assert [t.get_text() for t in bwt.texts] == ["not defined for these streams"]
    assert not bwt.lines


def test_no_tick_above_all_accuracies(fake_run):
    acc, _, _, curves = plot_comparison([fake_run(matrix=np.full((4, 3), 0.99))]).axes
    assert max(acc.get_xticks()) <= 100
    assert max(curves.get_yticks()) <= 100


def test_many_groups_look_different(fake_run):
    records = [fake_run(f"m{i}", method=f"method{i}") for i in range(20)]
    lines = plot_comparison(records).axes[3].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20
