"""Memory traces: recall against age, both on logarithmic scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikecl.errors import UsageError
from spikecl.metrics.memory_trace import MemoryTrace
from spikecl.plots.recording import place
from spikecl.plots.style import COLOURS, GREY, SMALL, plain, tidy


def plot_memory_trace(
    traces: Mapping[str, MemoryTrace],
    *,
    slopes: Sequence[float] = (-0.5, -1.0),
    ax: Axes | None = None,
) -> Figure:
    """Draw the signal to noise ratio of recall against a memory's age, for several rules.

    A ratio of 1, the limit of recall, and straight lines of some slopes are drawn thin. What is not
    above 0 has no place on the scale and is left out.

    Args:
        traces: Traces by name (:func:`spikecl.metrics.recall_curve`).
        slopes: Slopes of the lines, from the highest value of the first age.
        ax: Where to draw; a new figure if not given.

    Raises:
        UsageError: There is no trace, or none has a value above 0.
    """
    shown = {name: (np.asarray(t.ages, float), np.asarray(t.snr)) for name, t in traces.items()}
    kept = {
        name: (x[np.isfinite(y) & (y > 0)], y[np.isfinite(y) & (y > 0)])
        for name, (x, y) in shown.items()
    }
    kept = {name: points for name, points in kept.items() if len(points[0])}
    if not kept:
        raise UsageError(
            f"none of the traces {list(traces)} has a signal above 0; give one that has"
        )
    figure, ax = place(ax, 4.8, 3.2)
    ax.set(xscale="log", yscale="log")
    start = min(x[0] for x, _ in kept.values())
    end = max(x[-1] for x, _ in kept.values())
    top = max(y[0] for _, y in kept.values())
    low = min(1.0, *(y.min() for _, y in kept.values())) / 2
    for slope in slopes:
        ends = np.array([start, end])
        ax.plot(ends, top * (ends / start) ** slope, color=GREY, lw=0.7, ls=":", gid="slope")
    ax.axhline(1.0, color=GREY, lw=0.7, gid="limit")
    for i, (name, (x, y)) in enumerate(kept.items()):
        ax.plot(x, y, ".-", ms=4, lw=1.4, color=COLOURS[i % len(COLOURS)], label=plain(name))
    ax.set_ylim(low, 2 * top)
    ax.legend(fontsize=SMALL - 1, frameon=False)
    tidy(ax, "recall of one memory")
    ax.set(xlabel="memories stored since", ylabel="signal to noise ratio")
    return figure
