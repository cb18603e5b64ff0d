"""Metrics: pure functions of the accuracy matrix and of weights."""

from spikecl.metrics.matrix import AccuracyMatrix, Summary
from spikecl.metrics.statistics import Interval, interval
from spikecl.metrics.subspace import captured_energy, orthonormality_defect, principal_angles

__all__ = [
    "AccuracyMatrix",
    "Interval",
    "Summary",
    "captured_energy",
    "interval",
    "orthonormality_defect",
    "principal_angles",
]
