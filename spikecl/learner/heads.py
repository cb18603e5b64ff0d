"""Whose outputs compete: masks of classes by task, growing and multiple heads."""

from __future__ import annotations

import torch
from torch import Tensor

from spikecl.errors import PairingError
from spikecl.networks.build import Head
from spikecl.streams import Batch, Experience, Reveal, Stream


class Heads:
    """Turns outputs of the network into logits of the classes that compete.

    ``single`` has one output per class. Where tasks and their classes are revealed in training, a
    sample competes among the classes of the task that last had its label. ``growing`` has outputs
    only for classes that training has shown. ``multi`` has outputs for every task of its own, so
    it needs the task's identity in training and in tests; a sample of a memory learns at the task
    that last had its label, where classes are revealed. Without a task, in the task-agnostic
    accuracy, each class takes the best of its outputs.

    Args:
        kind: Which of the three.
        stream: The stream.
        device: Where to compute.

    Attributes:
        apart: Whether every experience has outputs of its own.
        own: Outputs of the classes of the present experience, where those are revealed; also of
            earlier ones, where samples of theirs are ``rehearsed``.
        rehearsed: Whether methods bring old samples.
    """

    def __init__(self, kind: Head, stream: Stream, device: torch.device):
        self.kind, self.stream, self.device = kind, stream, device
        self.seen = torch.zeros(stream.classes, dtype=torch.bool, device=device)
        experiences = [event for event in stream if isinstance(event, Experience)]
        self.tasks = sorted({event.task for event in experiences})
        needed = Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL
        if kind == "multi" and (missing := needed & ~stream.reveal):
            raise PairingError(
                f"head 'multi' needs {', '.join(missing.names())}, which stream '{stream.name}' "
                "hides; use head 'single' or 'growing', or a stream that reveals it"
            )
        self._task = 0  # position of the present one
        self._mask = torch.zeros((), device=device)
        self._masks: Tensor | None = None
        self._owners: Tensor | None = None
        self.own = torch.ones(self.outputs, dtype=torch.bool, device=device)
        self.apart = self._are_apart(experiences)
        self.rehearsed = False

    @property
    def outputs(self) -> int:
        """Number of outputs the network needs."""
        return self.stream.classes * (len(self.tasks) if self.kind == "multi" else 1)

    def begin(self, event: Experience) -> None:
        """An experience begins (or goes on after a stop)."""
        self.own = torch.zeros_like(self.own)
        for each in self._until(event) if self.rehearsed else (event,):
            self.own[self._places(each)] = True
        self._task = self.tasks.index(event.task)
        self._owners = self._task_owners(event) if self.kind == "multi" else None
        self._masks = self._task_masks(event)
        mask = self.class_mask(event.classes)
        self._mask = torch.zeros((), device=self.device) if mask is None else mask

    def _are_apart(self, experiences: list[Experience]) -> bool:
        """Whether no output learns in two experiences: by heads, or by classes of known tasks."""
        compete = (
            Reveal.TASK_ID_TRAIN in self.stream.reveal and Reveal.CLASSES in self.stream.reveal
        )
        if self.kind != "multi" and not compete:
            return False
        places = [place for event in experiences for place in self._places(event)]
        return len(places) == len(set(places))

    def _places(self, event: Experience) -> list[int]:
        """Return the outputs of the classes of an experience."""
        shown = Reveal.CLASSES in self.stream.reveal
        classes = event.classes if shown else range(self.stream.classes)
        first = self.tasks.index(event.task) * self.stream.classes if self.kind == "multi" else 0
        return [first + each for each in classes]

    def _until(self, event: Experience) -> list[Experience]:
        """Return the experiences up to this one."""
        events = (self.stream[i] for i in range(event.index + 1))
        return [each for each in events if isinstance(each, Experience)]

    def show(self, batch: Batch) -> None:
        """A batch is trained on: its classes have been seen."""
        if self.kind == "growing" and batch.y is not None:
            self.seen[batch.y] = True

    def train(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return logits [..., B, classes] of a training batch's outputs.

        A sample without a label is one of the present task.
        """
        logits = outputs
        if self._owners is not None:
            rows = torch.arange(outputs.shape[-2], device=self.device)
            owners = self._task if batch.y is None else self._owners[batch.y]
            logits = self._by_task(outputs)[..., rows, owners, :]
        if self._masks is not None:
            logits = logits + (self._masks[batch.y] if batch.y is not None else self._mask)
        if self.kind == "growing" and batch.y is not None:
            closed = ~self.seen
            closed[batch.y] = False
            logits = logits.masked_fill(closed, -torch.inf)
        return logits

    def test(self, outputs: Tensor, task: int | None) -> Tensor:
        """Return logits [B, classes] of a test batch's outputs."""
        logits = outputs
        if self.kind == "multi":
            heads = self._by_task(outputs)
            if task is None or task not in self.tasks:
                logits = heads.amax(-2)
            else:
                logits = heads[..., self.tasks.index(task), :]
        if self.kind == "growing" and bool(self.seen.any()):
            logits = logits.masked_fill(~self.seen, -torch.inf)
        return logits

    def class_mask(self, classes: tuple[int, ...] | None) -> Tensor | None:
        """Return 0 for allowed classes and -inf for the others; ``None`` when all are allowed."""
        if classes is None or len(classes) == self.stream.classes:
            return None
        mask = torch.full((self.stream.classes,), -torch.inf)
        mask[list(classes)] = 0.0
        return mask.to(self.device)

    def _by_task(self, outputs: Tensor) -> Tensor:
        """Return outputs [..., B, tasks, classes]."""
        return outputs.view(*outputs.shape[:-1], len(self.tasks), self.stream.classes)

    def _task_owners(self, event: Experience) -> Tensor:
        """Return, by label, the position of the task that last had it."""
        owners = torch.full((self.stream.classes,), self.tasks.index(event.task))
        if Reveal.CLASSES in self.stream.reveal:
            for earlier in self._until(event):
                owners[list(earlier.classes)] = self.tasks.index(earlier.task)
        return owners.to(self.device)

    def _task_masks(self, event: Experience) -> Tensor | None:
        """Return, by label, the mask of the task that last had it; ``None`` without task ids.

        A sample of an earlier task (from a memory, say) competes with the classes of its own task.
        """
        reveal, classes = self.stream.reveal, self.stream.classes
        if not (Reveal.TASK_ID_TRAIN in reveal and Reveal.CLASSES in reveal):
            return None
        masks = torch.zeros(classes, classes, device=self.device)
        for earlier in self._until(event):
            mask = self.class_mask(earlier.classes)
            masks[list(earlier.classes)] = 0.0 if mask is None else mask
        return masks if bool(masks.any()) else None
