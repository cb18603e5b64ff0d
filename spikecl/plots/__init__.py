"""Figures from records, never from live objects.

Functions named ``plot_*`` read run directories; ``raster``, ``membrane``, ``rates``, ``isi``,
``psth`` and ``animation`` take the arrays of a recording, ``plot_stdp_window`` takes a rule. All
use matplotlib's objects without ``pyplot``: no global state, no backend, so figures can be made in
notebooks, threads and on machines without a display.
"""

from spikecl.plots.activity import isi, psth, rates
from spikecl.plots.comparison import plot_comparison
from spikecl.plots.curves import plot_curves, plot_loss
from spikecl.plots.drift import (
    plot_alignment,
    plot_flipped,
    plot_leakage,
    plot_similarity,
    plot_tasks,
)
from spikecl.plots.geometry import geometry_tables, plot_geometry
from spikecl.plots.groups import Group, group_records
from spikecl.plots.homeostasis import plot_distribution, plot_learning_rate
from spikecl.plots.importance import importance_map
from spikecl.plots.matrix import plot_matrix
from spikecl.plots.memory_trace import plot_memory_trace
from spikecl.plots.movie import animation
from spikecl.plots.plasticity import plot_stdp_window
from spikecl.plots.run import plot_run
from spikecl.plots.spikes import membrane, raster
from spikecl.plots.subspaces import (
    plot_angles,
    plot_caught,
    plot_free_dimensions,
    plot_inside,
    plot_orthonormality,
    plot_plasticity,
    plot_spectrum,
    plot_task_angles,
)
from spikecl.plots.synapses import plot_synapses
from spikecl.plots.training import has_geometry

__all__ = [
    "Group",
    "animation",
    "geometry_tables",
    "group_records",
    "has_geometry",
    "importance_map",
    "isi",
    "membrane",
    "plot_alignment",
    "plot_angles",
    "plot_caught",
    "plot_comparison",
    "plot_curves",
    "plot_distribution",
    "plot_flipped",
    "plot_free_dimensions",
    "plot_geometry",
    "plot_inside",
    "plot_leakage",
    "plot_learning_rate",
    "plot_loss",
    "plot_matrix",
    "plot_memory_trace",
    "plot_orthonormality",
    "plot_plasticity",
    "plot_run",
    "plot_similarity",
    "plot_spectrum",
    "plot_stdp_window",
    "plot_synapses",
    "plot_task_angles",
    "plot_tasks",
    "psth",
    "raster",
    "rates",
]
