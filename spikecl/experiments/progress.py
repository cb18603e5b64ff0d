"""How far a run is: a value handed to whoever shows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from spikecl.learner import Learner


class Progress(NamedTuple):
    """Progress of one run.

    Args:
        run: Name of the run.
        fraction: Part of the stream that is done, 0 to 1.
        event: Present event, counted from 1.
        events: Number of events.
        accuracy: Mean accuracy over the sets taught so far at their last test, if any.
        seconds_left: Estimate, if there is something to estimate from.
    """

    run: str
    fraction: float
    event: int
    events: int
    accuracy: float | None
    seconds_left: float | None


Show = Callable[[Progress], None]


class Tracker:
    """Turns a learner's position into progress."""

    def __init__(self, run: str, learner: Learner, show: Show | None):
        self._run, self._learner, self._show = run, learner, show
        self._from, self._since = learner.fraction(), time.perf_counter()

    def update(self) -> None:
        """Show where the learner is."""
        if self._show is None:
            return
        learner, done = self._learner, self._learner.fraction()
        moved, passed = done - self._from, time.perf_counter() - self._since
        left = passed * (1 - done) / moved if moved > 0 else None
        event, events = min(learner.at.event + 1, len(learner.stream)), len(learner.stream)
        self._show(Progress(self._run, done, event, events, learner.scores.so_far(), left))
