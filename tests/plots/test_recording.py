"""What all pictures of a recording do: figures, axes, samples, refusals, no global state."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from spikecl import plots
from spikecl.errors import UsageError

SPIKES = np.random.default_rng(0).random((40, 3, 7)) < 0.2
PICTURES = {name: getattr(plots, name) for name in ("raster", "membrane", "rates", "isi", "psth")}
each = pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
PNG = b"\x89PNG"


@each
def test_a_picture_is_a_figure_that_a_notebook_shows(draw):
    figure = draw(SPIKES, 1.0)
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(PNG)
    (ax,) = figure.axes
    assert ax.get_title(loc="left") and ax.get_xlabel() and ax.get_ylabel()


@each
def test_axes_of_ones_own(draw):
    figure = Figure()
    left, _ = figure.subplots(1, 2)
    assert draw(SPIKES, 1.0, ax=left) is figure
    assert len(figure.axes) == 2 and left.get_title(loc="left")
    whole = Figure()
    part = whole.subfigures(1, 2)[1].subplots()
    assert draw(SPIKES, 1.0, ax=part) is whole


@each
@pytest.mark.parametrize("value", [0, 1], ids=["silent", "saturated"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (30, 1), (6, 2, 4), (30, 300)])
def test_the_extremes_draw_without_a_warning(draw, value, shape):
    assert draw(np.full(shape, value), 0.5)._repr_png_().startswith(PNG)


@each
def test_tensors_are_drawn_like_arrays(draw):
    tensor = torch.tensor(SPIKES, dtype=torch.float32, requires_grad=True)
    assert draw(tensor, 1.0)._repr_png_() == draw(SPIKES.astype(np.float32), 1.0)._repr_png_()


@each
def test_a_sample_is_that_sample(draw):
    assert draw(SPIKES, 1.0, sample=2)._repr_png_() == draw(SPIKES[:, 2], 1.0)._repr_png_()
    for wrong in (3, -1):
        with pytest.raises(UsageError, match=f"sample is {wrong}; the array has 3"):
            draw(SPIKES, 1.0, sample=wrong)


@each
def test_what_cannot_be_is_refused(draw):
    for dt in (0.0, -1.0, np.nan):
        with pytest.raises(UsageError, match="dt is .* milliseconds above zero"):
            draw(SPIKES, dt)
    with pytest.raises(UsageError, match=r"allowed are numbers \[T, N\] or \[T, B, N\]"):
        draw(SPIKES[:, 0, 0], 1.0)
    with pytest.raises(UsageError, match="must be"):
        draw(np.full((3, 2), np.nan), 1.0)


def test_no_pyplot_and_no_display_is_needed(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from spikecl import plots\n"
        "x = np.eye(9)\n"
        "for draw in (plots.raster, plots.membrane, plots.rates, plots.isi, plots.psth):\n"
        "    draw(x, 1.0)._repr_png_()\n"
        f"plots.animation(x, 1.0).save({str(tmp_path / 'film.gif')!r}, writer='pillow')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_pictures_can_be_made_in_threads():
    with ThreadPoolExecutor(4) as pool:
        figures = list(pool.map(lambda b: plots.raster(SPIKES, 1.0, sample=b), [0, 1, 2]))
    for b, figure in enumerate(figures):
        assert len(figure.axes[0].lines[0].get_xdata()) == SPIKES[:, b].sum()
