"""Metrics: pure functions of the accuracy matrix, of weights and of spike trains."""

from spikecl.metrics.distances import van_rossum, victor_purpura
from spikecl.metrics.intervals import cv, cv2, isi
from spikecl.metrics.matrix import AccuracyMatrix, Summary
from spikecl.metrics.spikes import correlation, fano, psth, rates, sta, synchrony
from spikecl.metrics.statistics import Interval, interval
from spikecl.metrics.subspace import captured_energy, orthonormality_defect, principal_angles

__all__ = [
    "AccuracyMatrix",
    "Interval",
    "Summary",
    "captured_energy",
    "correlation",
    "cv",
    "cv2",
    "fano",
    "interval",
    "isi",
    "orthonormality_defect",
    "principal_angles",
    "psth",
    "rates",
    "sta",
    "synchrony",
    "van_rossum",
    "victor_purpura",
]
