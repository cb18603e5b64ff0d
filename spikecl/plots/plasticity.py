"""The window of a plasticity rule: what one pair of spikes does to a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikecl.errors import UsageError
from spikecl.plots.recording import place
from spikecl.plots.style import COLOURS, DARK, GREY, tidy


class Windowed(Protocol):
    """A rule about the times of spikes, such as ``spikecl.trainers.Stdp``."""

    @property
    def name(self) -> str:
        """Name of the rule."""

    @property
    def dt(self) -> float:
        """Length of a step in milliseconds."""

    def window(
        self, lags: Sequence[float], *, repeats: int, every: float, weight: float | None
    ) -> list[float]:
        """Return the change of a weight by pairs of spikes, one for each lag in milliseconds."""


def plot_stdp_window(
    trainer: Windowed,
    *,
    longest: float = 80.0,
    repeats: int = 1,
    every: float = 100.0,
    weight: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw how much a pair of spikes changes a weight, over its lag; the rule runs on each pair.

    Both orders are a curve; the dot is a pair within one step.

    Args:
        trainer: The rule.
        longest: Longest lag in milliseconds.
        repeats: Number of pairs; rules about triplets need more than one.
        every: From pair to pair in milliseconds.
        weight: Weight at the start; by default the middle of the rule's bounds.
        ax: Where to draw; a new figure if not given.

    Raises:
        UsageError: The longest lag is shorter than a step.
    """
    steps = int(longest / trainer.dt + 1e-9)
    if steps < 1:
        raise UsageError(f"longest is {longest} ms, a step has {trainer.dt} ms; use at least that")
    lags = np.arange(-steps, steps + 1) * trainer.dt
    changes = trainer.window(lags.tolist(), repeats=repeats, every=every, weight=weight)
    figure, ax = place(ax, 4.8, 3.0)
    ax.axhline(0, color=GREY, lw=0.7)
    ax.axvline(0, color=GREY, lw=0.7)
    ax.plot(lags[:steps], changes[:steps], color=COLOURS[1], lw=1.6)
    ax.plot(lags[steps + 1 :], changes[steps + 1 :], color=COLOURS[0], lw=1.6)
    ax.plot(lags[steps], changes[steps], "o", color=DARK, ms=3.5)
    of = "one pair" if repeats == 1 else f"{repeats} pairs, {every:g} ms apart"
    tidy(ax, f"{trainer.name}: {of}")
    ax.set(xlabel="postsynaptic less presynaptic spike, ms", ylabel="change of the weight")
    return figure
