"""The accuracy matrix and what follows from it.

``R[i, j]`` is the accuracy on test set j after event i; the first row, ``i = -1``, is the untrained
network. ``f(j)`` and ``l(j)`` are the first and last event that teaches test set j, ``n`` the last
event. Entries that were not measured are NaN and never enter a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Summary(TypedDict):
    """Scalars of one matrix; ``None`` where the stream does not define one."""

    acc: float
    bwt: float | None
    fwt: float | None
    forgetting: float | None
    learning_accuracy: float


@dataclass(frozen=True, slots=True, eq=False)
class AccuracyMatrix:
    """Accuracies in [0, 1] by event and test set.

    Args:
        values: [1 + events, sets]; row 0 is the untrained network.
        taught: The events that teach each set.
    """

    values: Floats
    taught: Sequence[tuple[int, ...]]

    @property
    def final(self) -> Floats:
        """Accuracies after the last event, ``R[n, :]``."""
        return np.asarray(self.values[-1])

    def acc(self) -> float:
        """Average accuracy, ``mean_j R[n, j]``."""
        return float(np.nanmean(self.final))

    def learning_accuracy(self) -> float:
        """``mean_j R[f(j), j]`` (Riemer et al. 2019): how well each task was learned at all."""
        learned = [self._at(events[0], j) for j, events in enumerate(self.taught)]
        return float(np.nanmean(learned))

    def bwt(self) -> float | None:
        """Backward transfer, ``mean_j R[n, j] - R[l(j), j]`` over sets not taught last.

        Equals Lopez-Paz & Ranzato (2017) eq. 3 where each task occurs once; the last task, whose
        term is zero by definition, is left out.
        """
        old = self._old()
        return _mean([self.final[j] - self._at(self.taught[j][-1], j) for j in old])

    def forgetting(self) -> float | None:
        """``mean_j max_{i<n} R[i, j] - R[n, j]`` over sets not taught last (Chaudhry et al. 2018).

        The maximum is over events from f(j) on.
        """
        best = {j: np.fmax.reduce(self.values[self.taught[j][0] + 1 : -1, j]) for j in self._old()}
        return _mean([best[j] - self.final[j] for j in best])

    def fwt(self) -> float | None:
        """Forward transfer, ``mean_j R[f(j) - 1, j] - R[-1, j]`` over sets not taught first.

        Lopez-Paz & Ranzato (2017) eq. 4.
        """
        later = [j for j, events in enumerate(self.taught) if events[0] > 0]
        return _mean([self._at(self.taught[j][0] - 1, j) - self.values[0, j] for j in later])

    def summary(self) -> Summary:
        """Return all scalars."""
        return {
            "acc": self.acc(),
            "bwt": self.bwt(),
            "fwt": self.fwt(),
            "forgetting": self.forgetting(),
            "learning_accuracy": self.learning_accuracy(),
        }

    def _at(self, event: int, j: int) -> float:
        return float(self.values[event + 1, j])

    def _old(self) -> list[int]:
        last = len(self.values) - 2
        return [j for j, events in enumerate(self.taught) if events[-1] < last]


def _mean(values: Sequence[float]) -> float | None:
    measured = [value for value in values if not np.isnan(value)]
    return float(np.mean(measured)) if measured else None
