from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest

from spikecl.errors import UsageError
from spikecl.plots import membrane, raster

SPIKES = np.random.default_rng(0).random((50, 2, 6)) < 0.2
V = np.random.default_rng(1).normal(size=(50, 2, 6))


def marks(figure):
    (line,) = figure.axes[0].lines
    return line


def svg(figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg")
    return stream.getvalue()


# ---- raster -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [1.0, 0.25])
def test_marks_are_where_the_spikes_are(dt):
    line = marks(raster(SPIKES, dt, sample=1))
    step, neuron = np.nonzero(SPIKES[:, 1])
    np.testing.assert_array_equal(line.get_xdata(), step * dt)
    np.testing.assert_array_equal(line.get_ydata(), neuron)
    assert line.get_marker() == "|" and line.get_linestyle() == "None"


def test_a_count_is_one_mark():
    assert len(marks(raster(3 * np.eye(4), 1.0)).get_xdata()) == 4


def test_raster_axes():
    (ax,) = raster(SPIKES, 0.5).axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time, ms", "neuron")
    assert ax.get_title(loc="left") == "spikes of 6 neurons"
    assert ax.get_xlim() == (-0.25, 24.75) and ax.get_ylim() == (-0.5, 5.5)
    assert all(tick == int(tick) for tick in ax.get_yticks())


def test_one_neuron_and_no_spikes():
    (ax,) = raster(SPIKES[:, 0, :1], 1.0).axes
    assert ax.get_title(loc="left") == "spikes of 1 neuron"
    assert [tick for tick in ax.get_yticks() if abs(tick) <= 0.5] == [0]
    (ax,) = raster(0 * SPIKES, 1.0).axes
    assert [text.get_text() for text in ax.texts] == ["no spikes"]
    assert len(ax.lines[0].get_xdata()) == 0


def test_a_full_row_of_neurons_does_not_touch_the_next():
    figure = raster(np.ones((20, 40)), 1.0)
    row = figure.axes[0].get_window_extent().height * 72 / figure.dpi / 40
    assert 0.5 * row < marks(figure).get_markersize() < row


def test_many_marks_are_one_image_in_a_vector_file():
    few, many = raster(np.ones((50, 100)), 1.0), raster(np.ones((51, 100)), 1.0)
    assert not marks(few).get_rasterized() and marks(many).get_rasterized()
    assert b"<image" not in svg(few) and b"<image" in svg(many)


def test_a_large_layer_is_drawn_whole_if_it_is_not_too_dense():
    spikes = np.random.default_rng(0).random((1000, 5000)) < 0.05
    figure = raster(spikes, 1.0)
    assert len(marks(figure).get_xdata()) == spikes.sum()
    assert len(svg(figure)) < 1_000_000


def test_a_large_saturated_layer_is_thinned_and_says_so():
    spikes = np.ones((1000, 5000), dtype=bool)
    tracemalloc.start()
    figure = raster(spikes, 1.0)
    figure._repr_png_()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert figure.axes[0].get_title(loc="left") == "spikes of one in 10 of 5000 neurons"
    assert figure.axes[0].get_ylim() == (-0.5, 4999.5)
    drawn = marks(figure).get_ydata()
    np.testing.assert_array_equal(np.unique(drawn), np.arange(0, 5000, 10))
    assert len(drawn) == 500_000


# ---- membrane -----------------------------------------------------------------------------------


def test_traces_are_the_membranes():
    figure = membrane(V, 0.5, neurons=[4, 1], sample=1)
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["neuron 4", "neuron 1"]
    for line, neuron in zip(lines, (4, 1), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(50) * 0.5)
        np.testing.assert_array_equal(line.get_ydata(), V[:, 1, neuron])
    assert lines[0].get_color() != lines[1].get_color()


def test_the_threshold_is_a_line():
    (ax,) = membrane(V[:, 0, :1], 1.0, v_th=7.5).axes
    trace, threshold = ax.lines
    assert list(threshold.get_ydata()) == [7.5, 7.5] and threshold.get_linestyle() == "--"
    assert ax.get_ylim()[1] > 7.5
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["neuron 0", "threshold"]


@pytest.mark.parametrize("n", [1, 3, 6])
def test_spikes_are_marked_above_the_traces(n):
    figure = membrane(V, 0.5, spikes=SPIKES, neurons=range(n), v_th=1.0)
    (ax,) = figure.axes
    figure.draw_without_rendering()
    rows = ax.lines[n + 1 :]
    to_data = ax.transAxes + ax.transData.inverted()
    for neuron, row in enumerate(rows):
        np.testing.assert_array_equal(row.get_xdata(), np.nonzero(SPIKES[:, 0, neuron])[0] * 0.5)
        assert row.get_color() == ax.lines[neuron].get_color()
        (y,) = set(row.get_ydata())
        assert 0 < y < 1
        assert to_data.transform((0, y))[1] > V[:, 0, :n].max()
    assert len({row.get_ydata()[0] for row in rows}) == len(rows) == n


def test_membrane_axes_and_units():
    (ax,) = membrane(V, 0.5).axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time, ms", "membrane v")
    assert ax.get_title(loc="left") == "membranes of 3 of 6 neurons"
    (ax,) = membrane(V[..., :1], 0.5, unit="mV").axes
    assert ax.get_ylabel() == "membrane v, mV"
    assert ax.get_title(loc="left") == "membranes"


def test_a_few_of_thousands_are_drawn():
    (ax,) = membrane(np.zeros((5, 4001)), 1.0).axes
    assert [line.get_label() for line in ax.lines] == [f"neuron {1001 * i}" for i in range(4)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"neurons": [6]}, "neuron is 6; the array has 6: choose from 0 to 5"),
        ({"neurons": [-1]}, "neuron is -1"),
        ({"neurons": []}, "no neuron was chosen"),
        ({"spikes": SPIKES[:40]}, r"spikes \[T, N\] are \[40, 6\], membranes \[50, 6\]"),
        ({"spikes": V}, "spikes must be 0, 1 or whole counts"),
    ],
)
def test_membranes_that_cannot_be_drawn(given, message):
    with pytest.raises(UsageError, match=message):
        membrane(V, 1.0, **given)
