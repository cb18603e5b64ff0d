"""What pictures of a recording share: whose trains, a time axis, a place to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from spikecl.errors import UsageError
from spikecl.metrics.trains import Trains, as_trains, positive
from spikecl.plots.style import new_figure


def place(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Return axes and the figure they are in; a new one, in inches, where none are given."""
    if ax is None:
        figure = new_figure(width, height)
        return figure, figure.subplots()
    parent = ax.figure
    return parent if isinstance(parent, Figure) else parent.figure, ax


def one_sample(
    x: Trains, sample: int, name: str = "spikes", *, counts: bool = True
) -> NDArray[Any]:
    """Return one sample [T, N] of [T, B, N]; [T, N] is sample 0.

    Raises:
        UsageError: There is no such sample, or the array is none of these.
    """
    return samples(x, sample, name, counts=counts)[:, 0]


def samples(
    x: Trains, sample: int | None, name: str = "spikes", *, counts: bool = True
) -> NDArray[Any]:
    """Return [T, B, N] of all samples, or [T, 1, N] of one.

    Raises:
        UsageError: There is no such sample, or the array is none of these.
    """
    a = as_trains(x, name, counts=counts)
    if sample is None:
        return a
    check_places([sample], a.shape[1], "sample")
    return a[:, [sample]]


def check_places(places: Sequence[int], n: int, name: str) -> None:
    """Raise ``UsageError`` unless there are places and all are in 0 to n - 1."""
    if not places:
        raise UsageError(f"no {name} was chosen; choose from 0 to {n - 1}")
    for i in places:
        if not 0 <= i < n:
            raise UsageError(f"{name} is {i}; the array has {n}: choose from 0 to {n - 1}")


def time_axis(ax: Axes, steps: int, dt: float) -> None:
    """Let the x-axis be time: step t lies at ``t dt``, with half a step of room at both ends."""
    ax.set(xlim=(-dt / 2, (steps - 0.5) * positive(dt, "dt")), xlabel="time, ms")


def neuron_axis(ax: Axes, n: int) -> None:
    """Let the y-axis number n neurons."""
    ax.set(ylim=(-0.5, n - 0.5), ylabel="neuron")
    ax.yaxis.set_major_locator(whole_numbers())


def whole_numbers() -> MaxNLocator:
    """Return ticks for an axis that counts, one tick if need be."""
    return MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def number_of(n: int, thing: str) -> str:
    """Return ``"1 neuron"`` or ``"5 neurons"``."""
    return f"{n} {thing}{'s' * (n != 1)}"
