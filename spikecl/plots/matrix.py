"""The accuracy matrix as a heat map."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from spikecl.plots.style import GREY, LIGHT, SMALL, percent, plain, thinned, tidy
from spikecl.records import RunRecord

_MOST_NUMBERS = 20  # columns; with more, the numbers could not be read
_MOST_TICKS = 20
_WHITE_ABOVE = 0.71  # where white and black numbers stand out equally


def plot_matrix(record: RunRecord, ax: Axes) -> None:
    """Draw accuracies in per cent: events down, test sets across, the untrained network on top.

    Colours go from 0 to 100 % in every figure, so that figures can be compared. A hatched cell was
    not measured.

    Args:
        record: A finished run.
        ax: Where to draw.

    Raises:
        RunError: The run is not finished.
    """
    assert record.summary  # an unfinished run says so here
    values = record.matrix()
    rows, columns = record.matrix_names()
    ax.pcolormesh(
        values,
        cmap=_colours(),
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=0.8,
    )
    _hatch_missing(ax, values)
    if values.shape[1] <= _MOST_NUMBERS:
        _write_numbers(ax, values)
    tidy(ax, "accuracy %", grid="none")
    _name_axes(ax, rows, columns)


def _colours() -> Colormap:
    """Return light to dark blue-green, monotonic in lightness, and no white that looks empty."""
    shades = matplotlib.colormaps["YlGnBu"](np.linspace(0.05, 0.92, 256))
    return LinearSegmentedColormap.from_list("accuracy", shades)


def _hatch_missing(ax: Axes, values: NDArray[np.float64]) -> None:
    for row, column in np.argwhere(np.isnan(values)):
        cell = Rectangle(
            (column, row), 1, 1, facecolor="white", edgecolor=LIGHT, hatch="////", linewidth=0
        )
        ax.add_patch(cell)


def _write_numbers(ax: Axes, values: NDArray[np.float64]) -> None:
    digits = 1 if values.shape[1] <= 8 else 0
    size = max(4.0, SMALL + 0.5 - 0.2 * max(values.shape))
    for row, column in np.argwhere(~np.isnan(values)):
        value = float(values[row, column])
        ax.text(
            column + 0.5,
            row + 0.5,
            percent(value, digits),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if value > _WHITE_ABOVE else "black",
        )


def _name_axes(ax: Axes, rows: list[str], columns: list[str]) -> None:
    ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    across, down = thinned(len(columns), _MOST_TICKS), thinned(len(rows), _MOST_TICKS)
    steep = max(len(columns[i]) for i in across) * len(across) > 40
    ax.set_xticks(
        [i + 0.5 for i in across],
        [plain(columns[i]) for i in across],
        rotation=45 if steep else 0,
        ha="right" if steep else "center",
        rotation_mode="anchor" if steep else "default",
    )
    ax.set_yticks([i + 0.5 for i in down], [plain(rows[i]) for i in down])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("test set", fontsize=SMALL, color=GREY)
    ax.set_ylabel("after", fontsize=SMALL, color=GREY)
