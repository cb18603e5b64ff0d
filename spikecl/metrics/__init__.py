"""Metrics: pure functions of the accuracy matrix, of weights and of spike trains."""

from spikecl.metrics.distances import van_rossum, victor_purpura
from spikecl.metrics.intervals import cv, cv2, isi
from spikecl.metrics.leakage import alignment, energy_held, held_angles, interference, leakage
from spikecl.metrics.matrix import AccuracyMatrix, Summary
from spikecl.metrics.memory_trace import (
    MemoryTrace,
    lifetime,
    log_ages,
    power_law,
    recall_curve,
)
from spikecl.metrics.similarity import flipped, linear_cka
from spikecl.metrics.spectrum import (
    dimensionality,
    free_dimensions,
    participation_ratio,
    principal_components,
)
from spikecl.metrics.spikes import correlation, fano, psth, rates, sta, synchrony
from spikecl.metrics.statistics import Interval, interval
from spikecl.metrics.subspace import captured_energy, orthonormality_defect, principal_angles

__all__ = [
    "AccuracyMatrix",
    "Interval",
    "MemoryTrace",
    "Summary",
    "alignment",
    "captured_energy",
    "correlation",
    "cv",
    "cv2",
    "dimensionality",
    "energy_held",
    "fano",
    "flipped",
    "free_dimensions",
    "held_angles",
    "interference",
    "interval",
    "isi",
    "leakage",
    "lifetime",
    "linear_cka",
    "log_ages",
    "orthonormality_defect",
    "participation_ratio",
    "power_law",
    "principal_angles",
    "principal_components",
    "psth",
    "rates",
    "recall_curve",
    "sta",
    "synchrony",
    "van_rossum",
    "victor_purpura",
]
