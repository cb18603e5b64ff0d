"""The accuracies of a run so far: which test sets are due after an event, and what they came to."""

from __future__ import annotations

from collections import ChainMap

import numpy as np

from spikecl.metrics import AccuracyMatrix
from spikecl.storage import State
from spikecl.streams import Evaluate, Reveal, Stream


class Scores:
    """Accuracies by event and test set, with the task known and unknown.

    Args:
        stream: Events and test sets.
        evaluate: What is tested after each event, as :class:`TrainPlan` says.
    """

    def __init__(self, stream: Stream, evaluate: str):
        self.stream, self.evaluate = stream, evaluate
        self._rows: list[list[dict[str, float]]] = [[], []]  # aware, agnostic
        self._row: list[dict[str, float]] = [{}, {}]  # of the present event

    def due(self, event: int) -> list[str]:
        """Return the test sets that are still to be tested after an event; -1 is the start."""
        return [name for name in self._wanted(event) if name not in self._row[0]]

    def _wanted(self, now: int) -> list[str]:
        sets = self.stream.eval_sets
        if now < 0 or now == len(self.stream) - 1 or self.evaluate == "all":
            return list(sets)
        event = self.stream[now]
        extra = event.sets if isinstance(event, Evaluate) else ()
        if self.evaluate == "present":
            wanted = {name for name, s in sets.items() if now in s.taught or now + 1 in s.taught}
        else:
            wanted = {name for name, s in sets.items() if s.taught[0] <= now + 1}
        return [name for name in sets if name in wanted or name in extra]

    def add(self, name: str, aware: float, agnostic: float) -> None:
        """Take the accuracies of a test set."""
        self._row[0][name], self._row[1][name] = aware, agnostic

    def close(self) -> None:
        """End the row of the present event."""
        for rows, row in zip(self._rows, self._row):
            rows.append(row)
        self._row = [{}, {}]

    def matrices(self) -> tuple[AccuracyMatrix, AccuracyMatrix]:
        """Return the task-aware and the task-agnostic accuracy matrix of the events so far."""
        names = list(self.stream.eval_sets)
        taught = [s.taught for s in self.stream.eval_sets.values()]
        aware, agnostic = (
            AccuracyMatrix(np.array([[row.get(n, np.nan) for n in names] for row in rows]), taught)
            for rows in self._rows
        )
        return aware, agnostic

    def so_far(self) -> float | None:
        """Return the mean accuracy over the sets taught so far at their last test."""
        which = 0 if Reveal.TASK_ID_EVAL in self.stream.reveal else 1
        if len(self._rows[which]) < 2:
            return None
        latest, last = ChainMap(*reversed(self._rows[which])), len(self._rows[which]) - 2
        seen = [latest[n] for n, s in self.stream.eval_sets.items() if s.taught[0] <= last]
        return sum(seen) / len(seen) if seen else None

    def state_dict(self) -> State:
        """Return rows and the present row."""
        return {
            "rows": {"aware": self._rows[0], "agnostic": self._rows[1]},
            "row": {"aware": self._row[0], "agnostic": self._row[1]},
        }

    def load_state_dict(self, state: State) -> None:
        """Take back what :meth:`state_dict` gave; other keys are not read."""
        self._rows = [state["rows"]["aware"], state["rows"]["agnostic"]]
        self._row = [state["row"]["aware"], state["row"]["agnostic"]]
