"""How much the neurons of a layer fire, how regularly, and when."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikecl.errors import UsageError
from spikecl.metrics import intervals
from spikecl.metrics import spikes as measures
from spikecl.metrics.trains import Trains, positive
from spikecl.plots.recording import number_of, place, samples, time_axis, whole_numbers
from spikecl.plots.style import COLOURS, DARK, note, tidy

_MOST_BARS = 100  # neurons side by side; more are ranked
_BINS = 50


def rates(
    spikes: Trains, dt: float, *, sample: int | None = None, ax: Axes | None = None
) -> Figure:
    """Draw each neuron's firing rate in Hz, and a line at their mean.

    Up to 100 neurons stand in their order; more are ranked, the most active first, so that silent
    ones are the tail. The title counts those that are silent and those that fire at every step.

    Args:
        spikes: [T, B, N] or [T, N].
        dt: Time step in ms.
        sample: Which of the B samples; their mean if not given.
        ax: Where to draw; a new figure if not given.

    Raises:
        UsageError: The array or the time step cannot be, or there is no such sample.

    Example:
        >>> import numpy as np
        >>> figure = rates(np.array([[1, 0], [1, 1], [1, 0], [1, 0]]), dt=1.0)
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [1000.0, 250.0]
    """
    x = samples(spikes, sample)
    values = measures.rates(x, dt).mean(0)
    figure, ax = place(ax, 7.2, 2.8)
    if len(values) <= _MOST_BARS:
        ax.bar(np.arange(len(values)), values, color=COLOURS[0])
        ax.set_xlabel("neuron")
        ax.xaxis.set_major_locator(whole_numbers())
    else:
        edges = np.arange(len(values) + 1) - 0.5
        ax.stairs(np.sort(values)[::-1], edges, fill=True, color=COLOURS[0])
        ax.set_xlabel("neurons, the most active first")
    ax.axhline(values.mean(), color=DARK, lw=0.9, ls="--")
    of = number_of(len(values), "neuron")
    title = f"mean {values.mean():.3g} Hz; {(values == 0).sum()} of {of} silent"
    if full := int(x.all((0, 1)).sum()):
        title += f", {full} at every step"
    tidy(ax, title)
    ax.set(ylabel="rate, Hz", xlim=(-0.6, len(values) - 0.4), ylim=(0, 1.05 * values.max() or 1))
    return figure


def isi(
    spikes: Trains,
    dt: float,
    *,
    bins: int = _BINS,
    sample: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a histogram of the inter-spike intervals of all neurons, and say how they vary.

    Bins are a whole number of steps wide, so that none of them can catch more steps than another.
    The title has the mean over neurons of :func:`spikecl.metrics.intervals.cv`.

    Args:
        spikes: [T, B, N] or [T, N].
        dt: Time step in ms.
        bins: How many bins at most.
        sample: Which of the B samples; all if not given.
        ax: Where to draw; a new figure if not given.

    Raises:
        UsageError: The array, the time step or the number of bins cannot be, or there is no such
            sample.

    Example:
        >>> import numpy as np
        >>> figure = isi(np.array([[1, 1, 0, 1, 0, 0, 1]]).T, dt=1.0)
        >>> figure.axes[0].patches[0].get_data().values.tolist()  # of 1, 2 and 3 ms
        [1, 1, 1]
    """
    x = samples(spikes, sample)
    if bins < 1:
        raise UsageError(f"bins is {bins}; give at least 1")
    times = intervals.isi(x, dt)
    steps = np.rint(times / dt).astype(int)
    figure, ax = place(ax, 4.8, 3.0)
    title = number_of(len(steps), "interval")
    if len(steps):
        low, high = steps.min(), steps.max()
        width = -(-(high - low + 1) // bins)
        edges = np.arange(low, high + width + 1, width) - 0.5
        ax.stairs(np.histogram(steps, edges)[0], edges * dt, fill=True, color=COLOURS[0])
        ax.set(xlim=(edges[0] * dt, edges[-1] * dt))
        each = intervals.cv(x)
        known = each[~np.isnan(each)]
        if len(known):
            title += f"; CV {known.mean():.2f}, mean of {number_of(len(known), 'neuron')}"
    else:
        note(ax, "no neuron fired twice")
    tidy(ax, title)
    ax.set(xlabel="inter-spike interval, ms", ylabel="number")
    ax.yaxis.set_major_locator(whole_numbers())
    return figure


def psth(
    spikes: Trains,
    dt: float,
    *,
    window: float | None = None,
    sample: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the peri-stimulus time histogram: the mean rate of all neurons and samples over time.

    Give ``spikes[..., [n]]`` to see neuron n alone.

    Args:
        spikes: [T, B, N] or [T, N].
        dt: Time step in ms.
        window: Width of a bin in ms; at most 50 bins if not given. Steps that do not fill the last
            bin are left out.
        sample: Which of the B samples; the mean of all if not given.
        ax: Where to draw; a new figure if not given.

    Raises:
        UsageError: The array, the time step or the window cannot be, or there is no such sample.

    Example:
        >>> import numpy as np
        >>> figure = psth(np.array([[1, 1], [0, 1], [0, 0], [0, 0]]), dt=1.0, window=2.0)
        >>> figure.axes[0].patches[0].get_data().values.tolist()
        [750.0, 0.0]
    """
    x = samples(spikes, sample)
    if window is None:
        window = -(-len(x) // _BINS) * positive(dt, "dt")
    found = measures.psth(x, dt, window=window).mean(1)
    figure, ax = place(ax, 7.2, 2.6)
    edges = np.arange(len(found) + 1) * window - dt / 2
    ax.stairs(found, edges, fill=True, color=COLOURS[0])
    who = f"{number_of(x.shape[2], 'neuron')}, {number_of(x.shape[1], 'sample')}"
    tidy(ax, f"mean rate of {who} in windows of {window:g} ms")
    time_axis(ax, len(x), dt)
    ax.set(ylabel="rate, Hz", ylim=(0, 1.05 * found.max() or 1))
    if not found.any():
        note(ax, "no spikes")
    return figure
