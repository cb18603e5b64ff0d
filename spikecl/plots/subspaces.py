"""What tasks use of a synapse's input, what is held of it, and what is left.

All read what method ``geometry`` left in a run's record, and raise ``RunError`` where that is
nothing; those of one synapse raise ``UsageError`` where there is no such one.
"""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from spikecl.plots.style import SMALL, note, ordered_colours, plain, thinned, tidy
from spikecl.plots.training import (
    MOST_NAMES,
    Said,
    check_path,
    curve,
    draw,
    draw_synapses,
    draw_tasks,
    of_path,
    over_training,
    paths,
    reports,
    synapse_colour,
)
from spikecl.records import RunRecord

_MOST_NUMBERS = 10  # in a row of the heat map
_WHITE_BELOW = 29  # degrees
_NOTHING = "nothing is held"


def plot_spectrum(record: RunRecord, synapse: str, ax: Axes) -> None:
    """Draw the share of each task's activity in its leading directions, when it was learned.

    The legend has the dimensionality: the participation ratio of the covariance.

    Args:
        record: A run.
        synapse: Path of the synapse.
        ax: Where to draw.
    """
    said = _learned(record, synapse)
    named = thinned(len(said), MOST_NAMES)
    for i, (report, shade) in enumerate(zip(said, ordered_colours(len(said)))):
        own = report["synapses"][synapse]
        if None in (own["spectrum"] or [None]):
            continue  # nothing reached it
        share = 100 * np.cumsum(own["spectrum"])
        place = report["tasks"].index(report["experience"])
        name = f"task {report['experience']}: {own['dimensionality'][place]:.1f} dim."
        ranks = np.arange(1, len(share) + 1)
        ax.plot(ranks, share, color=shade, lw=1.3, label=name if i in named else None)
    tidy(ax, f"{plain(synapse)}: leading directions")
    ax.set(xlabel="directions", ylabel="energy %", ylim=(0, 103), xscale="log")
    ax.set_xlim(1, said[0]["synapses"][synapse]["inputs"])
    ax.xaxis.set_major_formatter("{x:.0f}")
    if ax.lines:
        ax.legend(fontsize=SMALL - 1, frameon=False, loc="lower right", handlelength=1.2)
    else:
        note(ax, "silent")


def plot_task_angles(record: RunRecord, synapse: str, ax: Axes) -> None:
    """Draw the mean principal angle between the leading directions of each pair of tasks.

    Row: the task that was just learned; column: an older one. Both are in the activity that the
    network has at that time.

    Args:
        record: A run.
        synapse: Path of the synapse.
        ax: Where to draw.
    """
    said = _learned(record, synapse)
    size = 1 + max(max(report["tasks"]) for report in said)
    means = np.full((size, size), np.nan)
    for report in said:
        old = [task for task in report["tasks"] if task != report["experience"]]
        for task, angles in zip(old, report["synapses"][synapse]["task_angles"], strict=True):
            if angles and None not in angles:  # of silence there are none
                means[report["experience"], task] = np.mean(angles)
    tidy(ax, f"{plain(synapse)}: angle between tasks, °", grid="none")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if size == 1:
        ax.set(xticks=[], yticks=[])
        note(ax, "one task")
        return
    _heat_map(ax, means[1:, :-1])
    ticks = thinned(size - 1, _MOST_NUMBERS)
    ax.set_xticks([i + 0.5 for i in ticks], [str(i) for i in ticks])
    ax.set_yticks([i + 0.5 for i in ticks], [str(i + 1) for i in ticks])
    ax.set(xlabel="task", ylabel="after task", ylim=(size - 1, 0))


def _heat_map(ax: Axes, degrees: Any) -> None:
    shades = matplotlib.colormaps["YlGnBu_r"]
    ax.pcolormesh(degrees, cmap=shades, vmin=0, vmax=90, edgecolors="white", linewidth=0.8)
    if len(degrees) > _MOST_NUMBERS:
        return
    for row, column in np.argwhere(~np.isnan(degrees)):
        value = degrees[row, column]
        shade = "white" if value < _WHITE_BELOW else "black"
        place = (column + 0.5, row + 0.5)
        ax.text(*place, f"{value:.0f}", ha="center", va="center", fontsize=SMALL, color=shade)


def plot_angles(record: RunRecord, synapse: str, ax: Axes) -> None:
    """Draw the angles between the task being learned and what is held, over training.

    One line for each leading principal direction of the present activity: at 0 degrees it is held,
    at 90 it is free. What is held are old rows and rows that learn (``hlop``), or what a
    projection keeps from updates.

    Args:
        record: A run.
        synapse: Path of the synapse.
        ax: Where to draw.
    """
    said = reports(record)
    check_path(synapse, paths(said, "synapses"), "synapse")
    looks = [look["synapses"][synapse] for report in said for look in report["curve"]]
    count = max((len(look.get("angles", ())) for look in looks), default=0)
    for i, shade in enumerate(matplotlib.colormaps["viridis"](np.linspace(0, 0.85, count))):
        name = {0: "smallest", count - 1: "largest"}.get(i)
        draw(
            ax,
            *curve(said, of_path("synapses", synapse, "angles", i), gaps=True),
            color=shade,
            label=name,
        )
    tidy(ax, f"{plain(synapse)}: new activity to what is held")
    ax.set(ylabel="angle °", ylim=(-2, 108), yticks=(0, 30, 60, 90))
    over_training(ax, said, _NOTHING, loc="best")


def plot_inside(record: RunRecord, synapse: str, ax: Axes) -> None:
    """Draw the share of each task's energy that is held, over training.

    A task's line begins with its training: it is new first, and old when the next one begins.

    Args:
        record: A run.
        synapse: Path of the synapse.
        ax: Where to draw.
    """
    said = reports(record)
    check_path(synapse, paths(said, "synapses"), "synapse")
    draw_tasks(ax, said, "synapses", synapse, "inside", scale=100, old=False)
    tidy(ax, f"{plain(synapse)}: activity held")
    _share(ax, "energy %")
    over_training(ax, said, _NOTHING, loc="lower right")


def plot_plasticity(record: RunRecord, ax: Axes) -> None:
    """Draw the share of each synapse's directions that are left to learn in, over training.

    Args:
        record: A run.
        ax: Where to draw.
    """
    said = reports(record)
    draw_synapses(ax, said, "plasticity", scale=100, gaps=False)
    tidy(ax, "plasticity left")
    _share(ax, "directions %")
    over_training(ax, said, _NOTHING, loc="lower left")


def plot_free_dimensions(record: RunRecord, ax: Axes) -> None:
    """Draw the share of each synapse's directions that are free after each task.

    Solid: those that no task so far needs. Dotted: those that the newest task does not need.

    Args:
        record: A run.
        ax: Where to draw.
    """
    said = reports(record)
    learned = [report for report in said if report["synapses"]]
    tasks = [report["experience"] for report in learned]
    for path in paths(said, "synapses"):
        own = [report["synapses"][path] for report in learned]
        for key, line, name in (("free_of_all", ".-", plain(path)), ("free", ".:", None)):
            share = [100 * each[key] / each["inputs"] for each in own]
            ax.plot(tasks, share, line, color=synapse_colour(said, path), label=name, lw=1.3, ms=4)
    tidy(ax, "free dimensions: so far (—), newest (···)")
    _share(ax, "inputs %")
    ax.set(xlabel="after task", xticks=[tasks[i] for i in thinned(len(tasks), _MOST_NUMBERS)])
    ax.legend(fontsize=SMALL - 1, frameon=False, loc="best", handlelength=1.2)


def plot_caught(record: RunRecord, ax: Axes) -> None:
    """Draw the energy in learned rows, relative to that of as many principal directions.

    Args:
        record: A run.
        ax: Where to draw.
    """
    said = reports(record)
    for path in paths(said, "synapses", "caught"):
        (x, y), (_, best) = (
            curve(said, of_path("synapses", path, key), gaps=True) for key in ("caught", "best")
        )
        draw(ax, x, 100 * y / best, color=synapse_colour(said, path), label=plain(path))
    tidy(ax, "energy in rows, of the most possible")
    _share(ax, "energy %")
    over_training(ax, said, "no rows learn", loc="lower right")


def plot_orthonormality(record: RunRecord, ax: Axes) -> None:
    """Draw how far rows are from orthonormal: while they learn, and as their method reports it.

    Args:
        record: A run.
        ax: Where to draw.
    """
    said = reports(record)
    draw_synapses(ax, said, "defect")
    ends = np.cumsum([report["curve"][-1]["step"] for report in said])
    place = {report["event"]: int(end) for report, end in zip(said, ends)}
    known = paths(said, "synapses")
    for row in record.steps():
        if row["phase"] == "report" and row["metric"] != "geometry" and row["event"] in place:
            for path, values in row["value"].items():
                defect = values.get("orthonormality_defect") if path in known else None
                if defect:
                    shade = synapse_colour(said, path)
                    ax.plot(place[row["event"]], defect, "x", ms=5, color=shade, clip_on=False)
    tidy(ax, "orthonormality defect (×: frozen)")
    ax.set_ylabel("max |H Hᵀ − 1|")
    if ax.lines:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    over_training(ax, said, "no rows learn", loc="best")


def _learned(record: RunRecord, synapse: str) -> Said:
    """Return the reports that have a summary of a synapse."""
    said = reports(record)
    check_path(synapse, paths(said, "synapses"), "synapse")
    return [report for report in said if report["synapses"]]


def _share(ax: Axes, label: str) -> None:
    ax.set(ylabel=label, ylim=(-3, 112), yticks=(0, 25, 50, 75, 100))
