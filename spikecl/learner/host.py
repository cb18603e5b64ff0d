"""What the learner lends to methods: encoded samples, the trainer's factors, who owns outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from spikecl.continual.host import Seen
from spikecl.learner.heads import Heads
from spikecl.streams import Batch, Loaded, Samples
from spikecl.trainers import Call, Factors
from spikecl.trainers.trainer import joined


class LearnerHost:
    """The learner as methods see it.

    Args:
        load: From samples to what is in memory, on the learner's device.
        order: Return the generator that chooses samples of the present event.
        seen: From a batch and its number to what the network gets.
        relabel: From that and labels to the same with these.
        call: From that, and weights in place of the network's own, to what the trainer is called
            with.
        parts: The trainer.
        heads: Whose outputs compete.
        batch: Samples in a batch.
        progress: Return the share of the present experience's steps that are done.
        share: Return the share of the learning rate that the present step takes.
        portion: Return the share of a batch's steps that the present gradients are of.
        restart: Take network and trainer back to where they started.
    """

    def __init__(
        self,
        *,
        load: Callable[[Samples], Loaded],
        order: Callable[[], torch.Generator],
        seen: Callable[[Batch, int], Seen],
        relabel: Callable[[Seen, Tensor], Seen],
        call: Callable[[Seen, Mapping[str, Tensor] | None], Call],
        parts: Callable[[Call], Iterator[Factors]],
        heads: Heads,
        batch: int,
        progress: Callable[[], float],
        share: Callable[[], float],
        portion: Callable[[], float],
        restart: Callable[[], None],
    ):
        self._load, self._order, self._seen = load, order, seen
        self._call, self._parts, self._batch = call, parts, batch
        self._heads, self.relabel = heads, relabel
        self.progress, self.share, self.portion, self.restart = progress, share, portion, restart

    @property
    def apart(self) -> bool:
        """Whether every experience has outputs of its own."""
        return self._heads.apart

    def outputs(self) -> Tensor | None:
        """Return which outputs learn in this experience, where they are ``apart``."""
        return self._heads.own if self.apart else None

    def look(self, samples: Samples, count: int, *, batch: int | None = None) -> Iterator[Seen]:
        """Yield at most ``count`` samples in batches, encoded; ``batch`` is the run's size."""
        loaded = self._load(samples)
        chosen = torch.randperm(len(loaded), generator=self._order())[:count].to(loaded.x.device)
        for step, rows in enumerate(torch.split(chosen, batch or self._batch)):
            yield self._seen(loaded.take(rows), step)

    def credit(
        self,
        seen: Seen,
        weights: Mapping[str, Tensor] | None = None,
        *,
        training: bool = True,
    ) -> Factors:
        """Return what the trainer makes of samples that were looked at."""
        with torch.no_grad():
            call = replace(self._call(seen, weights), training=training)
            return joined(list(self._parts(call)))

    def factors(
        self,
        samples: Samples,
        count: int,
        weights: Mapping[str, Tensor] | None = None,
        *,
        training: bool = True,
    ) -> Iterator[Factors]:
        """Yield what the trainer makes of at most ``count`` samples, at the present weights."""
        for seen in self.look(samples, count):
            yield self.credit(seen, weights, training=training)
