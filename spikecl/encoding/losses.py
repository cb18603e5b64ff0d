"""Losses of the network's output."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

OutputLoss = Callable[[Tensor], Tensor]
"""Takes logits [B, classes], returns a scalar."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``mean_b(-log softmax(logits_b)[label_b])``.

    Args:
        logits: [B, classes]; classes that are not allowed may be at ``-inf``.
        labels: [B], integers.
    """
    return functional.cross_entropy(logits, labels)
