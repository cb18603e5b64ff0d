"""Time scans: a reference and its faster twins, each tested equal to the reference."""

from spikecl.kernels.scans import Kernel, choose, reference, scan

__all__ = ["Kernel", "choose", "reference", "scan"]
