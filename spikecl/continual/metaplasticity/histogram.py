"""Histograms for records, in bins that are as wide on a logarithmic scale."""

from __future__ import annotations

import torch
from torch import Tensor

LOW, HIGH, PER_DECADE = -6, 3, 4  # from 10^-6 to 10^3


def edges() -> list[float]:
    """Return the edges of the bins, of which there is one less."""
    return [10 ** (LOW + k / PER_DECADE) for k in range((HIGH - LOW) * PER_DECADE + 1)]


def log_histogram(values: Tensor) -> dict[str, object]:
    """Return how many values lie in each bin, those below zero by their size.

    ``below`` counts those nearer to zero than the first edge; the last bin has all that are larger.

    Example:
        >>> found = log_histogram(torch.tensor([0.0, 0.2, -0.2, 5000.0]))
        >>> found["below"], sum(found["positive"]), found["positive"][-1], sum(found["negative"])
        (1, 2, 1, 1)
    """
    bounds = torch.tensor(edges(), dtype=torch.float64)
    flat = values.detach().flatten().double().cpu()
    place = torch.bucketize(flat.abs(), bounds, right=True) - 1
    count, last = len(bounds) - 1, len(bounds) - 2

    def counted(chosen: Tensor) -> list[int]:
        found: list[int] = torch.bincount(chosen.clamp_max(last), minlength=count).tolist()
        return found

    seen = place >= 0
    return {
        "below": int((~seen).sum()),
        "positive": counted(place[seen & (flat > 0)]),
        "negative": counted(place[seen & (flat < 0)]),
    }
