"""Curves over a stream: accuracy of each test set after each event, and the training loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from spikecl.plots.style import (
    COLOURS,
    DARK,
    GREY,
    LIGHT,
    SMALL,
    note,
    ordered_colours,
    plain,
    thinned,
    tidy,
)
from spikecl.records import RunRecord

Floats = NDArray[np.float64]

_MOST_NAMES = 9  # in a legend


def plot_curves(record: RunRecord, ax: Axes) -> None:
    """Draw the accuracy of each test set after each event: how it is learned and forgotten.

    An open marker is a test of a set that was not taught yet. The dark line is the mean over the
    sets taught so far.

    Args:
        record: A finished run.
        ax: Where to draw.

    Raises:
        RunError: The run is not finished.
    """
    assert record.summary  # an unfinished run says so here
    values, (_, names) = 100 * record.matrix(), record.matrix_names()
    events, taught = np.arange(-1, len(values) - 1), first_taught(record)
    lines = []
    for j, shade in enumerate(ordered_colours(len(names))):
        lines += ax.plot(events, values[:, j], color=shade, linewidth=1.2)
        for face, which in (("white", events < taught[j]), (shade, events >= taught[j])):
            ax.plot(events[which], values[which, j], "o", ms=3.5, mec=shade, mfc=face, mew=0.9)
    means = 100 * mean_so_far(record)
    mean = ax.plot(events[1:], means, ".-", color=DARK, linewidth=2.2, alpha=0.85)
    shown = thinned(len(names), _MOST_NAMES)
    tidy(ax, "accuracy of each test set")
    ax.set_ylim(-3, 103)
    ax.set_ylabel("accuracy %")
    name_events(ax, len(events) - 1, untrained=True)
    _list(ax, [*mean, *(lines[j] for j in shown)], ["mean so far", *(names[j] for j in shown)])


def _list(ax: Axes, lines: Sequence[Line2D], names: Sequence[str]) -> None:
    """Put a legend to the right of the axes."""
    ax.legend(
        lines,
        [plain(name) for name in names],
        fontsize=SMALL - 1,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        handlelength=1.2,
    )


def plot_loss(record: RunRecord, ax: Axes) -> None:
    """Draw the training loss over the samples seen; a shade behind every second event.

    The run need not be finished.

    Args:
        record: A run.
        ax: Where to draw.
    """
    rows = [r for r in record.steps() if r["phase"] == "train" and r["metric"] == "loss"]
    tidy(ax, "training loss")
    ax.set(xlabel="samples seen", ylabel="loss")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if not rows:
        note(ax, "nothing was trained")
        return
    parts = [list(part) for _, part in groupby(rows, key=lambda row: row["event"])]
    named = thinned(len(parts), 12)
    start, form = 0, ".-" if len(rows) < 150 or len(rows) == len(parts) else "-"
    for number, part in enumerate(parts):
        seen = [row["samples_seen"] for row in part]
        ax.plot(seen, [row["value"] for row in part], form, ms=3, lw=1.2, color=COLOURS[0])
        if number % 2:
            ax.axvspan(start, seen[-1], color=LIGHT, alpha=0.45, linewidth=0, zorder=0)
        if number in named:
            name = f"event {part[0]['event']}" if len(parts) < 6 else str(part[0]["event"])
            _name_span(ax, name, start, seen[-1])
        start = seen[-1]
    top = max(row["value"] for row in rows)
    ax.set(xlim=(0, start), ylim=(0, 1.2 * top or 1))  # the events' names are above the curve


def mean_so_far(record: RunRecord) -> Floats:
    """Return, after each event, the mean accuracy over the sets taught so far; the last is ACC.

    Sets that were not tested after an event are left out; NaN where none was.
    """
    values, taught = record.matrix()[1:], np.array(first_taught(record))
    means = np.full(len(values), np.nan)
    for event, row in enumerate(values):
        seen = row[(taught <= event) & ~np.isnan(row)]
        if len(seen):
            means[event] = seen.mean()
    return means


def first_taught(record: RunRecord) -> list[int]:
    """Return the event that first teaches each test set.

    Streams name their test sets in the order in which they teach them, so set j belongs to the
    j-th event that trained; sets left over (joint training) belong to the last.
    """
    trained = sorted({r["event"] for r in record.steps() if r["phase"] == "train"}) or [0]
    _, names = record.matrix_names()
    return [trained[min(j, len(trained) - 1)] for j in range(len(names))]


def name_events(ax: Axes, events: int, *, untrained: bool) -> None:
    """Number the events along the x-axis, the untrained network before them."""
    ticks = thinned(events, 12)
    names = [str(i) for i in ticks]
    first = [-1] if untrained else []
    ax.set_xticks([*first, *ticks], ["start", *names] if untrained else names)
    ax.set_xlabel("after event")


def _name_span(ax: Axes, text: str, left: float, right: float) -> None:
    ax.text(
        (left + right) / 2,
        0.97,
        text,
        transform=ax.get_xaxis_transform(),
        ha="center",
        va="top",
        fontsize=SMALL - 1,
        color=GREY,
    )
