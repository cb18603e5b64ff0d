"""How importances of parameters are shared out: a map of an array, or histograms of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from spikecl.errors import RunError, UsageError
from spikecl.plots.recording import place
from spikecl.plots.style import SMALL, note, plain, thinned, tidy
from spikecl.plots.training import check_path
from spikecl.records import RunRecord

_SHADES = "viridis"
_MOST_NUMBERS = 10  # of experiences along the axis
_DECADES = 6  # below the largest, in a map


def importance_map(
    source: RunRecord | ArrayLike,
    parameter: str | None = None,
    *,
    shape: tuple[int, int] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw where the importance of a parameter is.

    Of a run with method ``ewc``, ``si``, ``mas`` or ``l2``: a histogram for each experience, side
    by side, of log10 of the importances held behind it; a cell's shade is its share of the
    parameter's entries. Of an array [n_out, n_in], or a kernel's [n_out, ...]: each entry, at most
    six decades below the largest; with ``shape`` the mean over n_out of each input, as an image.

    Args:
        source: A run's record, or importances.
        parameter: Which parameter of the run, ``hidden1.weight``; without it the first.
        shape: Rows and columns of the image that the inputs are.
        ax: Where to draw; a new figure if not given.

    Raises:
        RunError: No method of the run reported importances.
        UsageError: No such parameter, a parameter or shape where none belongs, an array that has
            no such shape, or one with negative or infinite entries.

    Example:
        >>> figure = importance_map([[1.0, 10.0], [0.0, 100.0]])
        >>> figure.axes[0].get_title(loc="left")
        'importance: highest 1 % hold 90 %'
    """
    if isinstance(source, RunRecord):
        if shape is not None:
            raise UsageError("shape= is for an array of importances; a record has histograms")
        return _histograms(source, parameter, *place(ax, 5.2, 3.0))
    if parameter is not None:
        raise UsageError("parameter= chooses from a record; an array is one parameter's")
    return _map(_checked(source), shape, *place(ax, 4.2, 3.4))


def _checked(source: ArrayLike) -> Any:
    values = np.asarray(source, dtype=np.float64)
    if values.ndim < 2 or not values.size:
        raise UsageError(
            f"importances have shape {values.shape}; give those of a weight, [n_out, n_in]"
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise UsageError("importances are negative or not finite; give those a method holds")
    return values.reshape(len(values), -1)


def _map(values: Any, shape: tuple[int, int] | None, figure: Figure, ax: Axes) -> Figure:
    ranked, most = np.sort(values.ravel())[::-1], max(1, values.size // 100)
    total = ranked.sum()
    if shape is not None:
        if values.shape[1] != shape[0] * shape[1]:
            raise UsageError(
                f"shape={shape} has {shape[0] * shape[1]} places, and there are "
                f"{values.shape[1]} inputs; give rows and columns of the input"
            )
        values = values.mean(0).reshape(shape)
    tidy(ax, "importance", grid="none")
    if not total:
        note(ax, "no importance")
        return figure
    tidy(ax, f"importance: highest 1 % hold {100 * ranked[:most].sum() / total:.0f} %", grid="none")
    high = values.max()
    shown = np.where(values < 10.0**-_DECADES * high, np.nan, values)
    low = max(float(np.nanmin(shown)), 1e-300)
    norm = LogNorm(low, high if high > low else 10 * low)
    mesh = ax.pcolormesh(shown, cmap=_SHADES, norm=norm, rasterized=True)
    ax.set(xlabel="input" if shape is None else "", ylabel="output" if shape is None else "")
    ax.invert_yaxis()
    if shape is not None:
        ax.set(aspect="equal", xticks=[], yticks=[])
    figure.colorbar(mesh, ax=ax).ax.tick_params(labelsize=SMALL)
    return figure


def _histograms(record: RunRecord, parameter: str | None, figure: Figure, ax: Axes) -> Figure:
    method, said = _said(record)
    known = list(said[0])
    parameter = known[0] if parameter is None else parameter
    check_path(parameter, known, "parameter")
    own = [each[parameter] for each in said]
    tidy(ax, f"{parameter}: importance by {method}", grid="none")
    some = [each["histogram"] for each in own if each["histogram"]["counts"]]
    if not some:
        note(ax, "no importance")
        return figure
    width = some[0]["width"]
    first = min(h["low"] for h in some)
    last = max(h["low"] + width * len(h["counts"]) for h in some)
    cells = np.zeros((round((last - first) / width), len(own)))
    for column, each in enumerate(own):
        counts = np.array(each["histogram"]["counts"], dtype=np.float64)
        at = round((each["histogram"]["low"] - first) / width)
        share = (1 - each["zero"]) / max(counts.sum(), 1)
        cells[at : at + len(counts), column] = 100 * share * counts
    edges = first + width * np.arange(len(cells) + 1)
    shown = np.where(cells == 0, np.nan, cells)
    mesh = ax.pcolormesh(np.arange(len(own) + 1), edges, shown, cmap=_SHADES, vmin=0)
    means = [np.log10(each["mean"]) if each["mean"] else np.nan for each in own]
    ax.plot(np.arange(len(own)) + 0.5, means, "_", color="white", ms=14, mew=1.6, label="mean")
    ticks = thinned(len(own), _MOST_NUMBERS)
    ax.set_xticks([i + 0.5 for i in ticks], [str(i) for i in ticks])
    ax.set(xlabel="after experience", ylabel="log10 importance")
    bar = figure.colorbar(mesh, ax=ax)
    bar.set_label(plain("% of entries"), fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def _said(record: RunRecord) -> tuple[str, list[dict[str, Any]]]:
    """Return the first method that reported importances, and what it said by event."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in record.steps():
        if row["phase"] == "report" and _is_importance(row["value"]):
            found.setdefault(row["metric"], []).append(row["value"])
    if not found:
        raise RunError(
            f"run {record.id} has no record of importances; run it with method 'ewc', 'si', 'mas' "
            "or 'l2', alone or beside its own"
        )
    return next(iter(found.items()))


def _is_importance(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(
        isinstance(each, dict)
        and {"mean", "zero", "histogram"} <= set(each)
        and {"low", "width", "counts"} <= set(each["histogram"])
        for each in value.values()
    )
