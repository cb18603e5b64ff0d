"""What synapses hold beside their weights: hidden weights, beakers, widths, over a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikecl.errors import RunError
from spikecl.plots.recording import place
from spikecl.plots.style import SMALL, note, plain, tidy
from spikecl.plots.training import check_path
from spikecl.records import RunRecord

LOW, PER_DECADE = -6, 4  # of the bins in records
RARE = 1e-3  # share of synapses below which a bin is not worth its place at the ends
_KEYS = {"below", "positive", "negative"}


def plot_synapses(
    record: RunRecord,
    parameter: str | None = None,
    variable: str = "weight",
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw how a variable of synapses is distributed, one line for the end of each experience.

    The axis is logarithmic to both sides: values below zero lie on the left, mirrored; between
    them, in the middle, what is nearer to zero than both. Synapses of ``cascade`` have states in
    place of sizes: a sign times a level.

    Args:
        record: A run with a method of metaplasticity.
        parameter: Which parameter, ``hidden1.weight``; without it the first.
        variable: ``weight`` (as it is stored), or what the method keeps beside it: ``sigma`` of
            ``mesu``, ``m`` of ``tacos``, ``beaker2`` and on of ``benna_fusi``.
        ax: Where to draw; a new figure if not given.

    Raises:
        RunError: No method of the run reported such histograms.
        UsageError: No such parameter or variable.
    """
    said = _said(record)
    known = list(said[0])
    parameter = known[0] if parameter is None else parameter
    check_path(parameter, known, "parameter")
    if "states" in said[0][parameter]:
        return _levels(parameter, [each[parameter] for each in said], ax)
    variables = [key for key, value in said[0][parameter].items() if _is_histogram(value)]
    check_path(variable, variables, "variable")
    found = [each[parameter][variable] for each in said]
    figure, ax = place(ax, 5.2, 2.8)
    tidy(ax, f"{parameter}: {plain(variable)}")
    used = [
        i
        for each in found
        for side in ("negative", "positive")
        for i in np.nonzero(np.array(each[side]) > RARE * _total(each))[0]
    ]
    if not used:
        note(ax, "all are zero")
        return figure
    first, last = min(used), max(used) + 1
    signed = any(any(each["negative"]) for each in found)
    shades = colormaps["viridis"](np.linspace(0.85, 0.1, len(found)))
    for i, (each, shade) in enumerate(zip(found, shades)):
        label = f"experience {i}" if i in (0, len(found) - 1) else None
        shares = _shares(each, first, last, signed=signed)
        ax.stairs(shares, _edges(first, last, signed=signed), color=shade, lw=1.3, label=label)
    ticks = np.arange(first, last + 1, max(1, round((last - first) / 4)))
    sizes = [f"{10 ** (LOW + t / PER_DECADE):.0e}".replace("e-0", "e-") for t in ticks]
    places, names = list(ticks - first + 0.5), list(sizes)
    if signed:
        places = [*(-p for p in places[::-1]), *places]
        names = [*(f"\u2212{s}" for s in sizes[::-1]), *names]
    ax.set_xticks(places, names, fontsize=SMALL, rotation=45, ha="right")
    ax.set_ylabel("% of synapses")
    ax.legend(fontsize=SMALL - 1, frameon=False)
    return figure


def _levels(parameter: str, found: list[dict[str, Any]], ax: Axes | None) -> Figure:
    """Draw how synapses are shared out over the states of a cascade."""
    figure, ax = place(ax, 5.2, 2.8)
    tidy(ax, f"{parameter}: state")
    states = found[0]["states"]
    shades = colormaps["viridis"](np.linspace(0.85, 0.1, len(found)))
    for i, (each, shade) in enumerate(zip(found, shades)):
        label = f"experience {i}" if i in (0, len(found) - 1) else None
        shares = 100 * np.array(each["count"]) / max(sum(each["count"]), 1)
        ax.stairs(shares, np.arange(len(states) + 1) - 0.5, color=shade, lw=1.3, label=label)
    ax.set_xticks(range(len(states)), [f"{s:+d}".replace("-", "\N{MINUS SIGN}") for s in states])
    ax.set_ylabel("% of synapses")
    ax.legend(fontsize=SMALL - 1, frameon=False)
    return figure


def _shares(each: dict[str, Any], first: int, last: int, *, signed: bool) -> Any:
    """Return the percentages of bins: those below zero mirrored, the middle, those above."""
    left = each["negative"][first:last][::-1] if signed else []
    near = each["below"] + sum(each["positive"][:first]) + sum(each["negative"][:first])
    return 100 * np.array([*left, near, *each["positive"][first:last]]) / max(_total(each), 1)


def _total(each: dict[str, Any]) -> int:
    return int(each["below"] + sum(each["positive"]) + sum(each["negative"]))


def _edges(first: int, last: int, *, signed: bool) -> Any:
    right = np.arange(last - first + 1) + 0.5
    return np.concatenate([-right[::-1] if signed else [-0.5], right])


def _said(record: RunRecord) -> list[dict[str, Any]]:
    """Return what the first method with histograms of weights said, by event."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in record.steps():
        value = row["value"]
        if row["phase"] == "report" and isinstance(value, dict) and value:
            entries = list(value.values())
            if all(isinstance(e, dict) and _is_drawn(e) for e in entries):
                found.setdefault(row["metric"], []).append(value)
    if not found:
        raise RunError(
            f"run {record.id} has no record of synapses; run it with a method of metaplasticity "
            "('laborieux', 'tacos', 'cascade', 'benna_fusi', 'mesu', 'bimu'), alone or beside its "
            "own"
        )
    return next(iter(found.values()))


def _is_drawn(entry: dict[str, Any]) -> bool:
    return _is_histogram(entry.get("weight")) or "states" in entry


def _is_histogram(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= _KEYS
