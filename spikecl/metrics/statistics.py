"""Aggregates over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Mean over seeds, sample standard deviation, and the 95 % t-interval of the mean."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """Return ``mean ± t(0.975, n - 1) sd / sqrt(n)``; with one value there is no spread.

    Example:
        >>> interval([1.0, 2.0, 3.0]).sd
        1.0
    """
    from scipy.stats import t

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(n, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, n - 1)) * sd / n**0.5
    return Interval(n, mean, sd, mean - half, mean + half)
