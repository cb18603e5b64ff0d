"""A stream: a pure sequence of events with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, overload

from spikecl.errors import UsageError
from spikecl.streams.events import Adapt, Event, Experience, Export, Samples
from spikecl.streams.reveal import LearnerView, Reveal


@dataclass(frozen=True, slots=True, eq=False)
class EvalSet:
    """Samples to be tested on, the classes of their task, and the events that teach it."""

    samples: Samples
    classes: tuple[int, ...]
    taught: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Events computed from (specification, seed, position) alone: there is no cursor.

    ``stream[:k]`` is the stream of the first k events; looping twice gives the same events twice.

    Args:
        name: Name for tables and run directories.
        identity: What, with the seed, makes the stream what it is: specification, data checksum.
        seed: Root seed of the stream's own choices.
        reveal: What learners may know.
        classes: Number of classes over all events.
        input_shape: Shape of one sample, ``[T, *features]`` where it is temporal.
        length: Number of events.
        make: From a position to the event there.
        eval_sets: Test sets by name, one per task, independent of the events.
        temporal: Whether axis 0 of a sample is time.
        class_names: Empty, or one name for each class.
    """

    name: str
    identity: Mapping[str, Any]
    seed: int
    reveal: Reveal
    classes: int
    input_shape: tuple[int, ...]
    length: int
    make: Callable[[int], Event]
    eval_sets: Mapping[str, EvalSet]
    temporal: bool = False
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, i: int) -> Event: ...
    @overload
    def __getitem__(self, i: slice) -> Stream: ...
    def __getitem__(self, i: int | slice) -> Event | Stream:
        if isinstance(i, slice):
            start, stop, step = i.indices(self.length)
            if (start, step) != (0, 1):
                raise UsageError(f"stream[{i}]: only the first k events are a stream: stream[:k]")
            return self.take(stop)
        if not -self.length <= i < self.length:
            raise IndexError(f"event {i} of a stream of {self.length}")
        return self.make(i % self.length)

    def __iter__(self) -> Iterator[Event]:
        return (self.make(i) for i in range(self.length))

    def take(self, n: int) -> Stream:
        """Return the stream of the first n events, with the test sets that they teach."""
        if not 1 <= n <= self.length:
            raise UsageError(f"take({n}) of a stream of {self.length} events; use 1 to its length")
        sets = {
            name: replace(s, taught=tuple(e for e in s.taught if e < n))
            for name, s in self.eval_sets.items()
        }
        return replace(self, length=n, eval_sets={k: s for k, s in sets.items() if s.taught})

    def exported(self, after: int) -> Stream:
        """Return the same events with an export behind the first ones, unless it is there already.

        Args:
            after: Events before it; at least one more has to follow.
        """
        if self.identity.get("export") == after:
            return self
        if not 1 <= after < self.length:
            raise UsageError(
                f"export after {after} events of a stream of {self.length}; 1 to "
                f"{self.length - 1} is allowed, so that something is learned before and after"
            )

        def make(i: int) -> Event:
            if i == after:
                return Export(i)
            return replace(self.make(i - (i > after)), index=i)

        sets = {
            name: replace(s, taught=tuple(e + (e >= after) for e in s.taught))
            for name, s in self.eval_sets.items()
        }
        identity = {**self.identity, "export": after}
        return replace(self, identity=identity, length=self.length + 1, make=make, eval_sets=sets)

    def with_reveal(self, reveal: Reveal) -> Stream:
        """Return the same events with other things revealed."""
        return replace(self, reveal=reveal)

    def fingerprint(self) -> str:
        """Return the SHA-256 of identity, seed, length and what is revealed."""
        text = json.dumps(
            {
                "identity": dict(self.identity),
                "seed": self.seed,
                "length": self.length,
                "reveal": self.reveal.names(),
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def view(self, event: Event) -> LearnerView:
        """Return what a learner may see of an event."""
        reveal = self.reveal
        shown = {"labels": Reveal.LABELS in reveal, "ids": Reveal.SAMPLE_IDS in reveal}
        fields: dict[str, Any] = {}
        if isinstance(event, Experience):
            fields["samples"] = event.train.show(**shown)
            if Reveal.TASK_ID_TRAIN in reveal:
                fields["task"] = event.task
            if Reveal.CLASSES in reveal:
                fields["classes"] = event.classes
            if Reveal.OLD_DATA in reveal:
                fields["old"] = self._old(event.index, shown)
        elif isinstance(event, Adapt):
            fields["samples"] = event.inputs.show(labels=False, ids=shown["ids"])
        if Reveal.BOUNDARY in reveal:
            fields["index"] = event.index
        return LearnerView(reveal, fields)

    def _old(self, index: int, shown: Mapping[str, bool]) -> tuple[Samples, ...]:
        events = (self.make(i) for i in range(index))
        return tuple(e.train.show(**shown) for e in events if isinstance(e, Experience))

    def task_of(self, eval_set: str) -> int | None:
        """Return the position of a test set's task among the test sets, if it is revealed."""
        if Reveal.TASK_ID_EVAL not in self.reveal:
            return None
        return list(self.eval_sets).index(eval_set)
