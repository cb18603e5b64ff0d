"""What the learner lends to methods: encoded samples, the trainer's factors, who owns outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from spikecl.continual.host import Seen
from spikecl.learner.calls import Calls
from spikecl.learner.training import Training
from spikecl.seeds import Seeds
from spikecl.streams import Samples
from spikecl.trainers import Bptt, Factors, Trainer
from spikecl.trainers.trainer import joined


class LearnerHost:
    """The learner as methods see it.

    Args:
        calls: The network with its input and its loss.
        training: The network as it learns.
        batch: Samples in a batch.
        seeds: Root of all randomness.
        restart: Take network and trainer back to where they started.
    """

    def __init__(
        self,
        calls: Calls,
        training: Training,
        *,
        batch: int,
        seeds: Seeds,
        restart: Callable[[], None],
    ):
        self._calls, self._training, self._batch, self._seeds = calls, training, batch, seeds
        self.restart = restart
        self.progress, self.share = training.progress, training.share

    def portion(self) -> float:
        """Return the share of a batch's steps that the present gradients are of."""
        return self._training.portion

    def part(self) -> float:
        """Return the share of a batch's steps that the present factors are of."""
        return self._training.part

    @property
    def apart(self) -> bool:
        """Whether every experience has outputs of its own."""
        return self._calls.heads.apart

    def outputs(self) -> Tensor | None:
        """Return which outputs learn in this experience, where they are ``apart``."""
        return self._calls.heads.own if self.apart else None

    def look(self, samples: Samples, count: int, *, batch: int | None = None) -> Iterator[Seen]:
        """Yield at most ``count`` samples in batches, encoded; ``batch`` is the run's size."""
        loaded = samples.load().to(self._calls.inputs.device)
        order = self._seeds.generator("look", event=self._calls.at.event)
        chosen = torch.randperm(len(loaded), generator=order)[:count].to(loaded.x.device)
        for step, rows in enumerate(torch.split(chosen, batch or self._batch)):
            yield self._calls.see(loaded.take(rows), 0, step, prefix="look-")

    def relabel(self, seen: Seen, labels: Tensor) -> Seen:
        """Return samples with other labels [B], and the loss of these, without methods' terms."""
        batch = seen.batch._replace(y=labels)
        return self._calls.with_loss(seen.x, batch, terms=False)._replace(generator=seen.generator)

    def credit(
        self,
        seen: Seen,
        weights: Mapping[str, Tensor] | None = None,
        *,
        training: bool = True,
        of_loss: bool = False,
    ) -> Factors:
        """Return what the trainer makes of samples that were looked at."""
        trainer = self._gradient() if of_loss else self._calls.trainer
        with torch.no_grad():
            call = replace(self._calls.call(seen, weights), training=training)
            return joined(list(trainer.parts(call)))

    @property
    def of_loss(self) -> str:
        """Name of the rule that gives the gradient of the loss."""
        return self._gradient().name

    def _gradient(self) -> Trainer:
        trainer = self._calls.trainer
        return trainer.of_loss if trainer.has_gradient else Bptt()

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
