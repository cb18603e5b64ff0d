"""Accuracies: of test sets, with the task known and unknown, and of batches as they come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spikecl.learner.calls import Calls
from spikecl.learner.plan import TrainPlan
from spikecl.learner.window import hits
from spikecl.storage import nbytes
from spikecl.streams import Adapt, Loaded, Stream

CACHE_BYTES = 2**28

Answer = Callable[[Tensor, int | None, torch.Generator | None], Tensor]
"""From encoded samples, their task (``None`` where it is unknown) and a generator to outputs."""


class Evaluation:
    """The network as it is, on test sets and on batches as they come.

    Args:
        stream: Test sets.
        calls: The network, its input and its heads.
        plan: Sizes of batches.
        answer: What gives outputs: the network, a method, or the chip.
        by_task: Whether who knows the task may answer otherwise.
    """

    def __init__(
        self,
        stream: Stream,
        calls: Calls,
        *,
        plan: TrainPlan,
        answer: Answer,
        by_task: bool,
    ):
        self._stream, self._network, self._heads = stream, calls.network, calls.heads
        self._inputs, self._plan, self._at = calls.inputs, plan, calls.at
        self.answer, self._by_task = answer, by_task
        self._kept: dict[str, Loaded] = {}

    def accuracies(self, name: str) -> tuple[float, float]:
        """Return accuracy among the task's classes, and among all."""
        test, loaded = self._stream.eval_sets[name], self._load(name)
        device = self._inputs.device
        mask = self._heads.class_mask(test.classes)
        task, place = self._stream.task_of(name), list(self._stream.eval_sets).index(name)
        right = torch.zeros(2, dtype=torch.int64, device=device)
        for step, start in enumerate(range(0, len(loaded), self._plan.eval_batch)):
            batch = loaded.take(slice(start, start + self._plan.eval_batch))
            at = {"event": self._at.event + 1, "epoch": place, "step": step}
            x = self._inputs.encode(batch.x, "encode-test", **at)
            generator = None
            if self._network.is_random:
                generator = self._inputs.generator("network-test", **at)
            outputs = self.answer(x, task, generator)
            logits = self._heads.test(outputs, task)
            right[0] += hits(logits if mask is None else logits + mask, batch.y)
            if self._by_task and task is not None:
                outputs = self.answer(x, None, None)
            right[1] += hits(self._heads.test(outputs, None), batch.y)
        counts = right.tolist()
        return counts[0] / len(loaded), counts[1] / len(loaded)

    def _load(self, name: str) -> Loaded:
        """Return a test set in memory; the first ones are kept, up to ``CACHE_BYTES``."""
        if name in self._kept:
            return self._kept[name]
        loaded = self._stream.eval_sets[name].samples.load().to(self._inputs.device)
        if sum(nbytes(t.x) for t in self._kept.values()) + nbytes(loaded.x) <= CACHE_BYTES:
            self._kept[name] = loaded
        return loaded

    def prequential(self, event: Adapt, adapt: Callable[..., Tensor] | None) -> float:
        """Return the accuracy of what was answered to each batch when it came.

        Args:
            event: Its samples.
            adapt: A method that answers, and adapts on the way.
        """
        device = self._inputs.device
        truth, view = event.inputs.load().to(device), self._stream.view(event)
        loaded = view.samples.load().to(device)
        right = torch.zeros((), dtype=torch.int64, device=device)
        for step, start in enumerate(range(0, len(loaded), self._plan.batch)):
            rows = slice(start, start + self._plan.batch)
            at = {"event": self._at.event, "epoch": 0, "step": step}
            x = self._inputs.encode(loaded.take(rows).x, "encode", **at)
            if adapt is not None:
                outputs = adapt(x, view)
            else:
                random = self._network.is_random
                generator = self._inputs.generator("network", **at) if random else None
                outputs = self.answer(x, None, generator)
            right += hits(self._heads.test(outputs, None), truth.take(rows).y)
        return int(right) / len(loaded)
