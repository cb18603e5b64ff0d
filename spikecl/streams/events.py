"""Events of a stream, and the samples they carry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor


class Transform(Protocol):
    """A pure, vectorised change of raw arrays [N, *shape]; the dtype stays."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the changed array."""

    def describe(self) -> str:
        """Return what identifies it."""


class Batch(NamedTuple):
    """Intensities ``x`` [B, *shape] in float32, labels ``y`` [B], sample ids ``uid`` [B].

    ``y`` and ``uid`` are ``None`` where the stream hides them.
    """

    x: Tensor
    y: Tensor | None
    uid: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Samples in memory, transformed, in their raw type; a batch is one gather."""

    x: Tensor
    y: Tensor | None
    uid: Tensor | None
    peak: float

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the batch at some rows; intensity 1.0 is ``peak``."""
        x = self.x[rows].float()  # of float data a slice is a view: divide into a new tensor
        return Batch(
            x if self.peak == 1 else x / self.peak,
            None if self.y is None else self.y[rows],
            None if self.uid is None else self.uid[rows],
        )

    def to(self, device: torch.device) -> Loaded:
        """Move to a device."""
        if self.x.device == device:
            return self
        y, uid = (None if t is None else t.to(device) for t in (self.y, self.uid))
        return Loaded(self.x.to(device), y, uid, self.peak)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows ``index`` (``None``: all) of raw arrays, changed by a transform.

    Labels or ids that are hidden are not there.
    """

    x: Tensor
    y: Tensor | None
    uid: Tensor | None
    index: Tensor | None = None
    transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.x) if self.index is None else len(self.index)

    def load(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return transformed x, y and uid."""
        x, y, uid = self.x, self.y, self.uid
        if self.index is not None:
            x = x[self.index]
            y, uid = (None if a is None else a[self.index] for a in (y, uid))
        return (x if self.transform is None else self.transform(x)), y, uid


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A lazy set of samples: nothing is copied until :meth:`load`.

    Args:
        parts: One or more selections of raw arrays.
        peak: Raw value that stands for intensity 1.0.
    """

    parts: tuple[Part, ...]
    peak: float = 1.0

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def load(self) -> Loaded:
        """Gather and transform all samples at once, in the raw type."""
        if len(self.parts) == 1:
            return Loaded(*self.parts[0].load(), self.peak)
        xs, ys, uids = zip(*(part.load() for part in self.parts))
        y, uid = (None if None in a else torch.cat(a) for a in (ys, uids))
        return Loaded(torch.cat(xs), y, uid, self.peak)

    def show(self, *, labels: bool, ids: bool) -> Samples:
        """Return the same samples without labels or ids; what is taken away stays away."""
        parts = (
            replace(p, y=p.y if labels else None, uid=p.uid if ids else None) for p in self.parts
        )
        return replace(self, parts=tuple(parts))

    def none(self) -> Samples:
        """Return a set of the same kind without any sample."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return replace(self, parts=(replace(self.parts[0], index=nothing),))

    def describe(self) -> str:
        """Return a digest of which rows of what are taken and how they are changed."""
        digest = hashlib.sha256()
        for part in self.parts:
            for tensor in (part.x, part.y, part.uid, part.index):
                if tensor is not None:
                    digest.update(tensor.contiguous().numpy().tobytes())
            digest.update((part.transform.describe() if part.transform else "").encode())
        return digest.hexdigest()


def concatenate(sets: Sequence[Samples]) -> Samples:
    """Return the samples of several sets as one."""
    parts = tuple(part for samples in sets for part in samples.parts)
    return replace(sets[0], parts=parts)


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """Labelled samples to learn from; ``task`` and ``classes`` are the truth, not the view."""

    index: int
    train: Samples
    classes: tuple[int, ...]
    task: int


@dataclass(frozen=True, slots=True, eq=False)
class Unlearn:
    """A request to forget samples; ``retain`` says which other data may be used for it."""

    index: int
    uids: Tensor
    request: Literal["samples", "class", "task"] = "samples"
    retain: Literal["none", "buffer", "full"] = "none"


@dataclass(frozen=True, slots=True, eq=False)
class Adapt:
    """Unlabelled inputs to adapt to, scored one batch after the other."""

    index: int
    inputs: Samples
    corruption: str
    severity: int


@dataclass(frozen=True, slots=True, eq=False)
class Evaluate:
    """An extra evaluation of named sets."""

    index: int
    sets: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """The network becomes whole numbers; what comes after is learned on the chip."""

    index: int


Event = Experience | Unlearn | Adapt | Evaluate | Export
