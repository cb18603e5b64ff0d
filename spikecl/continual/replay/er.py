"""Experience replay: a few old samples in every step (Chaudhry et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from spikecl.components import PositiveInt, component
from spikecl.continual.method import Context, Method, MethodSpec
from spikecl.continual.replay.memory import CAPACITY, Policy
from spikecl.continual.replay.rehearsal import Rehearsal
from spikecl.errors import ConfigError
from spikecl.streams import Batch, LearnerView, Reveal


@component
class ExperienceReplay(MethodSpec):
    """Learn each batch together with samples drawn from a memory of what came before.

    In order of execution, with B the batch that comes and M the memory::

        R = samples drawn from M, none twice
        step on the mean loss over B and R, in one pass
        put B into M, as it came

    A replayed sample is the very one that was seen, encoded anew. Norms take their statistics from
    B and R together.

    Args:
        capacity: Samples there is room for; without it 500, or as many as ``max_bytes`` holds.
        max_bytes: Most bytes the memory may take, with labels, ids and keys.
        policy: What it keeps: a uniform sample of all that came (``reservoir``), one with as many
            of each class (``balanced``), the newest (``fifo``), the newest of each class
            (``ring``).
        batch: Samples replayed in a step; without it as many as come.
        draw: Draw each sample alike (``uniform``), or each class (``balanced``).
        wait: Replay nothing in the first experience.

    Source: Chaudhry et al., On tiny episodic memories in continual learning, 2019, algorithm 1.
    Deviation: theirs has one epoch; with several, a sample enters in its first. Their code draws a
    slot for sample n (counted from 0) among n, not n + 1, which keeps late samples too often.
    """

    slot: ClassVar[str | None] = "replay"
    needs_to_unlearn: ClassVar[Reveal] = Reveal.SAMPLE_IDS
    offers: ClassVar[frozenset[str]] = frozenset({"unlearn"})

    capacity: PositiveInt | None = None
    max_bytes: PositiveInt | None = None
    policy: Policy = "reservoir"
    batch: PositiveInt | None = None
    draw: Literal["uniform", "balanced"] = "uniform"
    wait: bool = False

    def __post_init__(self) -> None:
        most = self.capacity or (None if self.max_bytes else CAPACITY)
        if most:
            self.check_batch(most)

    def check_batch(self, room: int) -> None:
        """Refuse to draw more samples than there is room for."""
        if self.batch and self.batch > room:
            raise ConfigError(
                f"batch={self.batch} samples cannot be drawn from capacity={room}; use a batch of "
                "at most the capacity"
            )

    @property
    def needs(self) -> Reveal:  # type: ignore[override]
        """Labels where classes count, boundaries where it waits for one; else nothing."""
        by_class = self.policy in ("balanced", "ring") or self.draw == "balanced"
        labels = Reveal.LABELS if by_class else Reveal.NONE
        return labels | (Reveal.BOUNDARY if self.wait else Reveal.NONE)

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _Er(self, context)


class _Er(Rehearsal):
    def __init__(self, spec: ExperienceReplay, context: Context):
        room = {"capacity": spec.capacity, "max_bytes": spec.max_bytes}
        super().__init__("er", context, policy=spec.policy, **room)
        self._spec = spec

    def begin(self, view: LearnerView) -> None:
        super().begin(view)
        assert self.memory is not None
        self._spec.check_batch(self.memory.capacity)

    def extend_batch(self, batch: Batch) -> Batch:
        self.hold(batch)
        spec = self._spec
        if spec.wait and self._experience == 0:
            return batch
        old = self.recall(spec.batch or len(batch.x), balanced=spec.draw == "balanced")
        return batch if old is None else joined(batch, old)


def joined(batch: Batch, old: Batch) -> Batch:
    """Return a batch with old samples behind it."""
    return Batch(
        torch.cat([batch.x, old.x]),
        None if batch.y is None or old.y is None else torch.cat([batch.y, old.y]),
        None if batch.uid is None or old.uid is None else torch.cat([batch.uid, old.uid]),
    )
