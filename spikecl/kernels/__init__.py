"""Time scans and products of events: a reference and its faster twins, each tested equal to it."""

from spikecl.kernels.allocator import keep_freed_memory
from spikecl.kernels.options import AUTO, Kernels
from spikecl.kernels.recurrence import Recurrence, RecurrentState
from spikecl.kernels.scans import Kernel, choose, reference, scan

__all__ = [
    "AUTO",
    "Kernel",
    "Kernels",
    "Recurrence",
    "RecurrentState",
    "choose",
    "keep_freed_memory",
    "reference",
    "scan",
]
