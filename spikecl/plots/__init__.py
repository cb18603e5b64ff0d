"""Figures from records, never from live objects.

Functions named ``plot_*`` read run directories; ``raster``, ``membrane``, ``rates``, ``isi``,
``psth`` and ``animation`` take the arrays of a recording, ``plot_stdp_window`` takes a rule. All
use matplotlib's objects without ``pyplot``: no global state, no backend, so figures can be made in
notebooks, threads and on machines without a display.
"""

from spikecl.plots.activity import isi, psth, rates
from spikecl.plots.comparison import plot_comparison
from spikecl.plots.curves import plot_curves, plot_loss
from spikecl.plots.groups import Group, group_records
from spikecl.plots.matrix import plot_matrix
from spikecl.plots.movie import animation
from spikecl.plots.plasticity import plot_stdp_window
from spikecl.plots.run import plot_run
from spikecl.plots.spikes import membrane, raster

__all__ = [
    "Group",
    "animation",
    "group_records",
    "isi",
    "membrane",
    "plot_comparison",
    "plot_curves",
    "plot_loss",
    "plot_matrix",
    "plot_run",
    "plot_stdp_window",
    "psth",
    "raster",
    "rates",
]
