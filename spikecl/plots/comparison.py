"""Several runs side by side, grouped over seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikecl.metrics import interval
from spikecl.plots.curves import mean_so_far, name_events
from spikecl.plots.groups import Group, group_records
from spikecl.plots.style import (
    DARK,
    GREY,
    SMALL,
    colour,
    marker,
    new_figure,
    note,
    only_possible,
    percent,
    plain,
    tidy,
)
from spikecl.records import RunRecord

_PANELS = {"acc": "ACC %", "bwt": "BWT %", "learning_accuracy": "learning accuracy %"}
_LABEL_WIDTH = 30  # characters
_LEGEND_COLUMNS = 3


def plot_comparison(records: Sequence[RunRecord]) -> Figure:
    """Return a figure that compares runs, grouped over seeds.

    Above, for each group, every seed as a small point, the mean as a large one, and a bar of one
    sample standard deviation each way; below, the mean accuracy over the sets taught so far after
    each event, with a band of the same width.

    Args:
        records: Finished runs; see :func:`group_records` for what belongs together.

    Raises:
        UsageError: No runs were given.
        RunError: A run is not finished.
    """
    groups = group_records(records)
    lines = [1 + _label(group).count("\n") for group in groups]
    top = 0.7 + sum(max(0.46, 0.18 * n) for n in lines)
    legend = 0.17 * max(lines) * -(-len(groups) // _LEGEND_COLUMNS)
    figure = new_figure(9.6, top + 3.0 + legend)
    panels = figure.subplot_mosaic([list(_PANELS), ["curves"] * 3], height_ratios=[top, 2.9])
    for metric, title in _PANELS.items():
        _plot_metric(groups, metric, panels[metric])
        tidy(panels[metric], title, grid="x")
        _name_groups(panels[metric], groups, shown=metric == next(iter(_PANELS)))
    _plot_progress(groups, panels["curves"])
    return figure


def _plot_metric(groups: Sequence[Group], metric: str, ax: Axes) -> None:
    """Draw one row per group: seeds, mean, standard deviation, and the numbers."""
    for row, group in enumerate(groups):
        seeds, stats = [100 * v for v in group.values(metric)], group.statistics(metric)
        if stats is None:
            continue
        shade, mean, number = colour(row), 100 * stats.mean, percent(stats.mean)
        if stats.sd is not None:
            ax.plot(seeds, [row + 0.2] * len(seeds), "o", color=shade, ms=3.5, alpha=0.5, mew=0)
            ax.errorbar(mean, row, xerr=100 * stats.sd, color=shade, linewidth=1.6, capsize=3)
            number += f" ± {percent(stats.sd)}"
        ax.plot(mean, row, marker(row), color=shade, ms=6, mec="white", mew=0.6)
        _write_above(ax, number, (mean, row))
    if not any(group.values(metric) for group in groups):
        ax.set_xticks([])
        note(ax, "not defined for these streams")
        return
    ax.margins(x=0.25)
    if metric == "bwt":
        ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    only_possible(ax.xaxis)


def _write_above(ax: Axes, text: str, point: tuple[float, float]) -> None:
    ax.annotate(
        text,
        point,
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=SMALL - 1,
        color=DARK,
    )


def _name_groups(ax: Axes, groups: Sequence[Group], *, shown: bool) -> None:
    ax.set_ylim(len(groups) - 0.5, -0.7)
    ax.set_yticks(range(len(groups)), [_label(group) if shown else "" for group in groups])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _plot_progress(groups: Sequence[Group], ax: Axes) -> None:
    """Draw the mean accuracy over the sets taught so far, after each event."""
    look: dict[str, Any] = {"lw": 1.6, "ms": 4.5, "mec": "white", "mew": 0.5}
    longest = 0
    for i, group in enumerate(groups):
        runs = np.array([mean_so_far(record) for record in group.records])
        stats = [interval([float(v) for v in column]) for column in runs.T]
        mean = np.array([100 * s.mean for s in stats])
        sd = np.array([100 * (s.sd or 0.0) for s in stats])
        events = np.arange(len(mean))
        if len(runs) > 1:
            ax.fill_between(events, mean - sd, mean + sd, color=colour(i), alpha=0.18, linewidth=0)
        name = f"{_label(group)} (n = {len(runs)})"
        ax.plot(events, mean, f"{marker(i)}-", color=colour(i), label=name, **look)
        longest = max(longest, len(events))
    tidy(ax, "mean accuracy over the sets taught so far, %")
    name_events(ax, longest, untrained=False)
    only_possible(ax.yaxis)
    ax.legend(
        fontsize=SMALL,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(0.0, -0.16),
        ncols=min(_LEGEND_COLUMNS, len(groups)),
    )


def _label(group: Group) -> str:
    return plain(
        textwrap.fill(group.label, _LABEL_WIDTH, break_long_words=False, break_on_hyphens=False)
    )
