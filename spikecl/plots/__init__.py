"""Figures from records, never from live objects.

Every function reads run directories only and uses matplotlib's objects without ``pyplot``: no
global state, no backend, so figures can be made in notebooks, threads and on machines without a
display.
"""

from spikecl.plots.comparison import plot_comparison
from spikecl.plots.curves import plot_curves, plot_loss
from spikecl.plots.groups import Group, group_records
from spikecl.plots.matrix import plot_matrix
from spikecl.plots.run import plot_run

__all__ = [
    "Group",
    "group_records",
    "plot_comparison",
    "plot_curves",
    "plot_loss",
    "plot_matrix",
    "plot_run",
]
