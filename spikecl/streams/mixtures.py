"""Drifting mixtures: one task fades into the next, and nobody says when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from spikecl.components import Fraction, PositiveInt, component
from spikecl.data import Data
from spikecl.errors import ConfigError
from spikecl.registry import STREAMS
from spikecl.seeds import Seeds
from spikecl.streams.corruptions import Corrupt
from spikecl.streams.events import Experience, Part, Samples
from spikecl.streams.reveal import TASK_FREE
from spikecl.streams.scenarios import StreamSpec
from spikecl.streams.stream import Stream


def drifting(base: Stream, *, segments: int = 10, overlap: float = 0.5, seed: int = 0) -> Stream:
    """Return a stream in which the tasks of another one fade into each other.

    Task k of the base has its time from k to k + 1. Each unit of time is cut into ``segments``
    experiences; at the time t of its middle an experience has task k with the weight ::

        w_k(t) = clip((t - k) / overlap + 1/2) - clip((t - k - 1) / overlap + 1/2),  clip to 0..1

    (the first task does not fade in, the last one not out), so that two tasks at most are mixed
    and weights sum to one. An experience has the share 1 / segments of the samples of its task;
    samples come in an order drawn once for each task, and from its beginning again when all came.
    No boundary is revealed.

    Args:
        base: Stream of experiences, each with one task.
        segments: Experiences in the time of a task.
        overlap: Time for which two neighbours are mixed, 0 (sharp) to 1 (all of the time).
        seed: Seed of the orders.

    Raises:
        ConfigError: No segments, or an overlap beyond two neighbours.
    """
    if segments < 1:
        raise ConfigError(f"stream.drifting.segments: got {segments}; use at least 1")
    if not 0 <= overlap <= 1:
        raise ConfigError(f"stream.drifting.overlap: got {overlap}; use 0 to 1")
    events = [event for event in base if isinstance(event, Experience)]
    seeds, tasks = Seeds(seed), len(events)
    plan = _plan([len(e.train) for e in events], segments, overlap)

    def make(i: int) -> Experience:
        parts = []
        for task, (start, count) in plan[i].items():
            train = events[task].train
            order = torch.randperm(len(train), generator=seeds.generator("drift", event=task))
            rows = order[torch.arange(start, start + count) % len(order)]
            parts.append(_taken(train, rows, i))
        classes = tuple(sorted({c for task in plan[i] for c in events[task].classes}))
        most = max(plan[i], key=lambda task: plan[i][task][1])
        shown = tuple(part for samples in parts for part in samples.parts)
        return Experience(i, replace(parts[0], parts=shown), classes, task=most)

    taught = [tuple(i for i in range(len(plan)) if task in plan[i]) for task in range(tasks)]
    sets = {
        name: replace(each, taught=taught[task])
        for task, (name, each) in enumerate(base.eval_sets.items())
    }
    return replace(
        base,
        name=f"drifting-{base.name}",
        identity={
            "stream": "drifting",
            "base": base.fingerprint(),
            "segments": segments,
            "overlap": overlap,
        },
        seed=seed,
        reveal=TASK_FREE,
        length=len(plan),
        make=make,
        eval_sets=sets,
    )


def weights_at(time: float, tasks: int, overlap: float) -> Tensor:
    """Return the weight of each task [tasks] at a time."""
    edges = torch.arange(1, tasks, dtype=torch.float64)
    faded = ((time - edges) / overlap + 0.5).clamp(0, 1) if overlap else time >= edges
    risen = faded.double()
    return -torch.diff(risen, prepend=torch.ones(1), append=torch.zeros(1))


def _plan(sizes: Sequence[int], segments: int, overlap: float) -> list[dict[int, tuple[int, int]]]:
    """Return, for each experience, where in the order of each of its tasks it starts, and how far.

    An experience that rounds to nothing has one sample of its heaviest task.
    """
    used, plan = [0] * len(sizes), []
    for i in range(len(sizes) * segments):
        share = weights_at((i + 0.5) / segments, len(sizes), overlap).tolist()
        counts = {k: round(w * sizes[k] / segments) for k, w in enumerate(share)}
        if not any(counts.values()):
            counts[max(counts, key=lambda k: share[k])] = 1
        plan.append({k: (used[k], count) for k, count in counts.items() if count})
        for k, count in counts.items():
            used[k] += count
    return plan


def _taken(samples: Samples, rows: Tensor, experience: int) -> Samples:
    """Return some rows of samples, in this order where there is one part."""
    parts, first = [], 0
    for part in samples.parts:
        inside = rows[(rows >= first) & (rows < first + len(part))] - first
        if len(inside):
            parts.append(_picked(part, inside, experience))
        first += len(part)
    return replace(samples, parts=tuple(parts))


def _picked(part: Part, rows: Tensor, experience: int) -> Part:
    change = part.transform
    if isinstance(change, Corrupt):  # draws for samples as they come: without this the same ones
        change = replace(change, seed=Seeds(change.seed).derive("drifting", event=experience))
    index = rows if part.index is None else part.index[rows]
    return replace(part, index=index, transform=change)


@component
class Drifting(StreamSpec):
    """The tasks of another scenario fade into each other; see :func:`drifting`.

    Args:
        base: The scenario; it has its default parameters.
        experiences: Number of tasks of the base; without it the base's default.
        segments: Experiences in the time of a task.
        overlap: Time for which two neighbours are mixed, as a share of a task's time.
    """

    base: Literal["permuted", "rotated", "split_classes", "domains"] = "permuted"
    experiences: PositiveInt | None = None
    segments: PositiveInt = 10
    overlap: Fraction = 0.5

    def make(self, data: Data, seed: int) -> Stream:
        """Return the stream."""
        given = {} if self.experiences is None else {"experiences": self.experiences}
        spec: StreamSpec = STREAMS.get(self.base)(**given)
        return drifting(
            spec.make(data, seed), segments=self.segments, overlap=self.overlap, seed=seed
        )
