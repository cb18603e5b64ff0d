from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from spikecl.errors import UsageError
from spikecl.plots import animation

V = np.random.default_rng(0).normal(-60, 5, (5, 2, 6))


@pytest.fixture
def film(tmp_path):
    """Make films, and save them: one that is never shown complains."""
    films = []

    def make(*args, **kwargs):
        films.append(animation(*args, **kwargs))
        return films[-1]

    yield make
    for number, one in enumerate(films):
        one.save(tmp_path / f"{number}.gif", writer="pillow")


def shown(film, step):
    """Return the picture and the title of a frame, as drawn."""
    film._draw_frame(step)
    ax = film._fig.axes[0]
    return ax.images[0].get_array(), ax.get_title(loc="left")


def test_frames_are_the_activity_row_by_row(film):
    made = film(V, 0.5, shape=(2, 3), sample=1)
    for step in range(5):
        picture, title = shown(made, step)
        np.testing.assert_allclose(picture, V[step, 1].reshape(2, 3), rtol=1e-6)
        assert title == f"{0.5 * step:g} ms"


def test_without_a_shape_it_is_a_strip(film):
    made = film(V, 1.0)
    np.testing.assert_allclose(shown(made, 3)[0], V[3, :1], rtol=1e-6)
    assert made._fig.axes[0].get_xlabel() == "neuron"


def test_a_file_has_every_frame_and_they_move(film, tmp_path):
    made = film(np.eye(4), 1.0, shape=(2, 2), frame_ms=100.0)
    made.save(tmp_path / "film.gif", writer="pillow")
    with Image.open(tmp_path / "film.gif") as picture:
        assert picture.n_frames == 4
        assert picture.info["duration"] == 100
        frames = []
        for i in range(4):
            picture.seek(i)
            frames.append(picture.convert("RGB").tobytes())
    assert len(set(frames)) == 4


@pytest.mark.parametrize(
    ("activity", "limits"),
    [
        (np.zeros((3, 2)), (0, 1)),
        (np.ones((3, 2)), (0, 1)),
        (np.array([[2, 3], [2, 4]]), (0, 4)),
        (np.array([[-70.0, -50.0]]), (-70, -50)),
        (np.full((2, 2), -65.0), (-65, -64)),
    ],
)
def test_colours_mean_the_same_in_all_frames(film, activity, limits):
    assert film(activity, 1.0)._fig.axes[0].images[0].get_clim() == limits


def test_labels_and_axes_of_ones_own(film):
    figure = Figure()
    ax = figure.subplots()
    made = film(V, 1.0, shape=(3, 2), label="membrane v, mV", ax=ax)
    assert made._fig is figure
    assert figure.axes[1].get_ylabel() == "membrane v, mV"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column", "row")
    made.to_jshtml()


@pytest.mark.parametrize("shape", [(2, 2), (-2, -3), (6,), (1, 2, 3), (0, 6)])
def test_a_shape_holds_the_layer(shape):
    with pytest.raises(UsageError, match="the layer has 6 neurons; give rows times columns"):
        animation(V, 1.0, shape=shape)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dt": 0.0}, "dt is 0.0"),
        ({"frame_ms": -1.0}, "frame_ms is -1.0"),
        ({"sample": 2}, "sample is 2; the array has 2"),
    ],
)
def test_films_that_cannot_be(given, message):
    with pytest.raises(UsageError, match=message):
        animation(V, **{"dt": 1.0, **given})


def test_activity_is_finite():
    with pytest.raises(UsageError, match="activity must be finite numbers"):
        animation(np.array([[np.inf]]), 1.0)
