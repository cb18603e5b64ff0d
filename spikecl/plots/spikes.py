"""Spikes and membranes over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikecl.errors import UsageError
from spikecl.metrics.trains import Floats, Trains, positive
from spikecl.plots.recording import (
    check_places,
    neuron_axis,
    number_of,
    one_sample,
    place,
    time_axis,
)
from spikecl.plots.style import DARK, GREY, SMALL, colour, note, thinned, tidy

_MOST_MARKS = 500_000  # more than a picture of this size has places for
_MOST_PATHS = 5_000  # more would make vector files slow and large
_MOST_TRACES = 4


def raster(spikes: Trains, dt: float, *, sample: int = 0, ax: Axes | None = None) -> Figure:
    """Draw each spike as a mark at its time and neuron, neuron 0 at the bottom.

    More than 5 000 marks are drawn as one image inside vector files. Of a layer with more than
    500 000 spikes one neuron in k is drawn; the title says so.

    Args:
        spikes: [T, B, N] or [T, N]; a count is one mark.
        dt: Time step in ms.
        sample: Which of the B samples.
        ax: Where to draw; a new figure if not given.

    Raises:
        UsageError: The array or the time step cannot be, or there is no such sample.

    Example:
        >>> import numpy as np
        >>> figure = raster(np.eye(4), dt=0.5)
        >>> figure.axes[0].lines[0].get_xdata().tolist()  # in ms
        [0.0, 0.5, 1.0, 1.5]
    """
    x = one_sample(spikes, sample) > 0
    steps, n = x.shape
    number = int(x.sum())
    figure, ax = place(ax, 7.2, 3.2)
    shown = np.array(thinned(n, max(1, n * _MOST_MARKS // max(number, 1))))
    step, row = np.nonzero(x[:, shown])
    size, dense = ax.get_window_extent(), number / x.size
    height, width = size.height / len(shown), size.width / steps  # of a cell, in pixels
    ax.plot(
        step * positive(dt, "dt"),
        shown[row],
        "|",
        color=DARK,
        ms=_mark(72 * height / figure.dpi, dense, 9.0),
        mew=_mark(72 * width / figure.dpi, dense, 1.4),
        rasterized=len(step) > _MOST_PATHS,
    )
    of = number_of(n, "neuron")
    if len(shown) < n:
        of = f"one in {-(-n // len(shown))} of {of}"
    tidy(ax, f"spikes of {of}", grid="none")
    time_axis(ax, steps, dt)
    neuron_axis(ax, n)
    if not number:
        note(ax, "no spikes")
    return figure


def _mark(room: float, dense: float, most: float) -> float:
    """Return the size of a mark in points: three quarters of its room, or all of less than 1.

    It is not below what a pixel shows; of dense spikes more, as gaps would be the screen's own.
    """
    return max(0.4 + 0.4 * dense, min(most, room, max(0.75 * room, 1.0)))


def membrane(
    v: Trains,
    dt: float,
    *,
    spikes: Trains | None = None,
    v_th: float | None = None,
    neurons: Sequence[int] | None = None,
    sample: int = 0,
    unit: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Draw membrane traces, the threshold as a dashed line, and spikes as marks above the traces.

    Args:
        v: Membranes [T, B, N] or [T, N].
        dt: Time step in ms.
        spikes: Same shape; each neuron's marks are a row at the top, in the colour of its trace.
        v_th: Threshold, in the unit of ``v``.
        neurons: Which neurons; four, evenly chosen, if not given.
        sample: Which of the B samples.
        unit: Of ``v``, for the label, such as ``"mV"``; none for a membrane without.
        ax: Where to draw; a new figure if not given.

    Raises:
        UsageError: An array or the time step cannot be, shapes differ, or there is no such neuron
            or sample.

    Example:
        >>> import numpy as np
        >>> v = np.linspace(0.0, 0.9, 10)[:, None]
        >>> ax = membrane(v, dt=1.0, v_th=1.0).axes[0]
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('time, ms', 'membrane v')
    """
    x = one_sample(v, sample, "membranes", counts=False)
    steps, n = x.shape
    which = thinned(n, _MOST_TRACES) if neurons is None else list(neurons)
    check_places(which, n, "neuron")
    fired = None if spikes is None else one_sample(spikes, sample)
    if fired is not None and fired.shape != x.shape:
        raise UsageError(
            f"spikes [T, N] are {list(fired.shape)}, membranes {list(x.shape)}; record both from "
            "one run of one layer"
        )
    figure, ax = place(ax, 7.2, 3.0)
    times: Floats = np.arange(steps) * np.float64(positive(dt, "dt"))
    form = ".-" if steps <= 60 else "-"
    for i, neuron in enumerate(which):
        ax.plot(
            times, x[:, neuron], form, color=colour(i), lw=1.2, ms=3.5, label=f"neuron {neuron}"
        )
    if v_th is not None:
        ax.axhline(v_th, color=GREY, ls="--", lw=0.9, label="threshold", zorder=1)
    if fired is not None:
        _mark_spikes(ax, [times[fired[:, neuron] > 0] for neuron in which])
    tidy(ax, f"membranes of {len(which)} of {n} neurons" if len(which) < n else "membranes")
    time_axis(ax, steps, dt)
    ax.set_ylabel(f"membrane v, {unit}" if unit else "membrane v")
    ax.legend(
        fontsize=SMALL - 1,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        handlelength=1.2,
    )
    return figure


def _mark_spikes(ax: Axes, times: Sequence[Floats]) -> None:
    """Put a row of marks per neuron into the top of the axes, above all traces."""
    low, high = ax.get_ylim()
    row = min(0.06, 0.6 / (len(times) + 0.5))  # heights in shares of the axes'
    ax.set_ylim(low, low + (high - low) / (1 - row * (len(times) + 0.5)))
    for i, at in enumerate(times):
        y = np.full(len(at), 1 - row * (i + 0.75))
        ax.plot(at, y, "|", color=colour(i), ms=6, mew=1.2, transform=ax.get_xaxis_transform())
