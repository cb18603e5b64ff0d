"""What homeostasis left in a run's record: how rates, thresholds and weights spread over time."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from spikecl.errors import RunError, UsageError, suggest
from spikecl.plots.style import COLOURS, GREY, SMALL, plain, tidy
from spikecl.records import RunRecord

LABELS = {"rate": "spikes per step", "threshold": "threshold", "weight_sum": "sum of |w|"}
LABELS |= {"gate": "gate"}
_MEDIAN = 3  # of the quantiles that a report has


def plot_distribution(
    record: RunRecord, path: str, quantity: str, ax: Axes, *, method: str | None = None
) -> None:
    """Draw how a quantity of a layer's neurons is spread after each event.

    The line is the median; half of the neurons are in the dark band, nine in ten in the light one,
    all between the dotted lines.

    Args:
        record: A run with ``threshold``, ``scaling``, ``rates``, ``dendrites`` or ``sleep``.
        path: Layer, or synapse.
        quantity: What that method reports: ``rate``, ``threshold``, ``weight_sum``, ``gate``.
        ax: Where to draw.
        method: Whose report; of several that have the quantity it is the last one's without.

    Raises:
        RunError: No method reports distributions.
        UsageError: None of this method, this layer, or this quantity.
    """
    by_method = _distributions(record)
    if method is not None and by_method and method not in by_method:
        raise UsageError(f"no distributions of method '{method}'{suggest(method, by_method)}")
    given = [by_method[method]] if method in by_method else by_method.values()
    found = {key: said for each in given for key, said in each.items()}
    if not found:
        raise RunError(
            f"run {record.id} has no distributions; run it with a method that reports them, such "
            "as 'threshold' or 'scaling'"
        )
    known = sorted({key[0] for key in found})
    if path not in known:
        raise UsageError(f"no distributions of '{path}'{suggest(path, known)}")
    own = sorted({key[1] for key in found if key[0] == path})
    if quantity not in own:
        raise UsageError(f"no distribution '{quantity}' of '{path}'{suggest(quantity, own)}")
    said = found[path, quantity]
    x, q = np.array(list(said)), np.array([each["quantiles"] for each in said.values()])
    ax.fill_between(x, q[:, 1], q[:, -2], color=COLOURS[0], alpha=0.15, lw=0)
    ax.fill_between(x, q[:, 2], q[:, -3], color=COLOURS[0], alpha=0.35, lw=0)
    for end in (0, -1):
        ax.plot(x, q[:, end], color=GREY, lw=0.8, ls=":")
    ax.plot(x, q[:, _MEDIAN], color=COLOURS[0], lw=1.6, marker="o", ms=3, label="median")
    tidy(ax, f"{plain(path)}: {LABELS.get(quantity, quantity)}")
    ax.set(xlabel="event", ylabel=LABELS.get(quantity, quantity), xticks=x[:: 1 + len(x) // 10])


def _distributions(record: RunRecord) -> dict[str, dict[tuple[str, str], dict[int, Any]]]:
    """Return what was reported by method, then by layer and quantity, then by event."""
    found: dict[str, dict[tuple[str, str], dict[int, Any]]] = {}
    for row in record.steps():
        if row["phase"] != "report" or not isinstance(row["value"], dict):
            continue
        for path, values in row["value"].items():
            for name, value in values.items() if isinstance(values, dict) else ():
                if isinstance(value, dict) and "quantiles" in value:
                    own = found.setdefault(row["metric"], {})
                    own.setdefault((path, name), {})[row["event"]] = value
    return found


def plot_learning_rate(record: RunRecord, ax: Axes) -> None:
    """Draw the learning rate that method ``need`` came to, relative to the optimiser's.

    Args:
        record: A run with method ``need``.
        ax: Where to draw.

    Raises:
        RunError: The method had no part in the run.
    """
    rows = [row for row in record.steps() if row["phase"] == "report" and row["metric"] == "need"]
    if not rows:
        raise RunError(f"run {record.id} has no record of method 'need'; run it with that method")
    every = rows[0]["value"]["every"]
    rates = np.concatenate([row["value"]["rate"] for row in rows])
    ax.axhline(1, color=GREY, lw=0.8)
    ax.plot(every * np.arange(len(rates)), rates, color=COLOURS[0], lw=1.2)
    for end in np.cumsum([len(row["value"]["rate"]) for row in rows])[:-1]:
        ax.axvline(every * end, color=GREY, lw=0.6, ls=":")
    tidy(ax, "learning rate, relative to the optimiser's")
    ax.set(xlabel="steps", ylabel="rate")
    ax.set_yscale("log")
    ax.tick_params(labelsize=SMALL)
