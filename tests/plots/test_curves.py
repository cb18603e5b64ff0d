from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from spikecl.plots import plot_curves, plot_loss
from spikecl.plots.curves import first_taught, mean_so_far

NAN = float("nan")


def axes():
    return Figure().subplots()


def test_each_set_is_a_curve_over_events(fake_run):
    ax = axes()
    plot_curves(fake_run(), ax)
    curves = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert_allclose(curves[0].get_xdata(), [-1, 0, 1, 2])
    assert_allclose(curves[0].get_ydata(), [10, 90, 70, 60])
    assert_allclose(curves[1].get_ydata(), [12, 20, 95, 80])
    assert_allclose(curves[2].get_ydata(), [8, NAN, 15, 100])
    assert_allclose(curves[3].get_xdata(), [0, 1, 2])
    assert_allclose(curves[3].get_ydata(), [90, 82.5, 80])  # the mean so far
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["mean so far", "task0", "task1", "task2"]
    assert len({line.get_color() for line in curves}) == 4


def test_tests_before_teaching_have_open_markers(fake_run):
    ax = axes()
    plot_curves(fake_run(), ax)
    markers = [line for line in ax.lines if line.get_marker() == "o"]
    open_, full = markers[0::2], markers[1::2]
    assert [list(line.get_xdata()) for line in open_] == [[-1], [-1, 0], [-1, 0, 1]]
    assert [list(line.get_xdata()) for line in full] == [[0, 1, 2], [1, 2], [2]]
    assert {line.get_markerfacecolor() for line in open_} == {"white"}


def test_mean_so_far_ends_at_acc_and_skips_events_without_tests(fake_run):
    record = fake_run()
    assert mean_so_far(record)[-1] == pytest.approx(record.summary["acc"])
    holes = fake_run("holes", matrix=[[0.1, 0.1], [NAN, 0.3], [0.5, 0.7]])
    assert_allclose(mean_so_far(holes), [NAN, 0.6])


def test_sets_belong_to_the_events_that_train(fake_run):
    late = fake_run("late", losses=((), (1.0,), (), (1.0,)), matrix=np.full((5, 3), 0.5))
    assert first_taught(late) == [1, 3, 3]
    joint = fake_run("joint", losses=((1.0,),), matrix=[[0.1, 0.1], [0.4, 0.8]])
    assert first_taught(joint) == [0, 0]
    assert_allclose(mean_so_far(joint), [0.6])


def test_loss_is_drawn_over_samples_with_a_shade_behind_every_second_event(fake_run):
    ax = axes()
    plot_loss(fake_run(), ax)
    assert [list(line.get_xdata()) for line in ax.lines] == [[100, 200], [300, 400], [500, 600]]
    assert [list(line.get_ydata()) for line in ax.lines] == [[2.0, 1.0], [1.5, 0.5], [1.2, 0.4]]
    (shade,) = ax.patches
    assert (shade.get_x(), shade.get_width()) == (200, 200)
    named = [(t.get_text(), t.get_position()[0]) for t in ax.texts]
    assert named == [("event 0", 100), ("event 1", 300), ("event 2", 500)]
    assert ax.get_ylim()[1] > 2.0


def test_many_events_are_not_all_named(fake_run):
    ax = axes()
    plot_loss(fake_run(losses=((1.0,),) * 50), ax)
    assert 2 < len(ax.texts) <= 12
    assert len(ax.lines) == 50


def test_loss_of_an_unfinished_run_and_of_one_that_trained_nothing(fake_run):
    record = fake_run("running")
    (record.path / "summary.json").unlink()
    ax = axes()
    plot_loss(record, ax)
    assert len(ax.lines) == 3
    empty = axes()
    plot_loss(fake_run("empty", losses=()), empty)
    assert not empty.lines
    assert [t.get_text() for t in empty.texts] == ["nothing was trained"]
