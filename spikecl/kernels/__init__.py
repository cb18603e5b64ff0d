"""Time scans: a reference and its faster twins, each tested equal to the reference."""

from spikecl.kernels.scans import Kernel, Recurrence, RecurrentState, choose, reference, scan

__all__ = ["Kernel", "Recurrence", "RecurrentState", "choose", "reference", "scan"]
