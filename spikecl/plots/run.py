"""One run on one page: matrix, curves, loss."""

from __future__ import annotations

from matplotlib.figure import Figure

from spikecl.plots.curves import plot_curves, plot_loss
from spikecl.plots.matrix import plot_matrix
from spikecl.plots.style import DARK, NORMAL, new_figure, percent, plain
from spikecl.records import RunRecord

_TITLE = {"acc": "ACC", "bwt": "BWT", "learning_accuracy": "learning accuracy"}


def plot_run(record: RunRecord) -> Figure:
    """Return a figure of a run: accuracy matrix, accuracies over the stream, training loss.

    Args:
        record: A finished run.

    Raises:
        RunError: The run is not finished.
    """
    summary = record.summary
    figure = new_figure(9.6, 4.6)
    panels = figure.subplot_mosaic([["matrix", "curves"], ["matrix", "loss"]])
    plot_matrix(record, panels["matrix"])
    plot_curves(record, panels["curves"])
    plot_loss(record, panels["loss"])
    scalars = [
        f"{label} {percent(summary[name])} %"
        for name, label in _TITLE.items()
        if summary[name] is not None
    ]
    figure.suptitle(
        plain("    ".join([record.id, *scalars])),
        fontsize=NORMAL + 1,
        color=DARK,
        x=0.01,
        ha="left",
    )
    return figure
