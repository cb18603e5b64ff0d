"""What a stream reveals, and the view that shows a learner nothing else."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from spikecl.errors import HiddenFieldError


class Reveal(enum.Flag):
    """What a learner may know.

    ``BOUNDARY``: that a new experience begins. ``TASK_ID_TRAIN``, ``TASK_ID_EVAL``: which task a
    sample belongs to. ``CLASSES``: the classes of the present experience. ``LABELS``: the labels
    of training samples. ``OLD_DATA``: the training data of earlier experiences. ``SAMPLE_IDS``:
    the id of each training sample.
    """

    NONE = 0
    BOUNDARY = enum.auto()
    TASK_ID_TRAIN = enum.auto()
    TASK_ID_EVAL = enum.auto()
    CLASSES = enum.auto()
    LABELS = enum.auto()
    OLD_DATA = enum.auto()
    SAMPLE_IDS = enum.auto()

    def names(self) -> list[str]:
        """Return the flags as lower-case words."""
        return [flag.name.lower() for flag in self if flag.name]


TASK_IL = (
    Reveal.BOUNDARY | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL | Reveal.CLASSES | Reveal.LABELS
)
CLASS_IL = Reveal.BOUNDARY | Reveal.CLASSES | Reveal.LABELS
DOMAIN_IL = Reveal.BOUNDARY | Reveal.LABELS
TASK_FREE = Reveal.LABELS


class LearnerView:
    """The part of an event that a learner may see.

    Fields, each there only when the stream reveals it: ``index`` (``BOUNDARY``), ``task``
    (``TASK_ID_TRAIN``), ``classes`` (``CLASSES``), ``old`` (``OLD_DATA``), ``samples`` (always).
    Another field raises :class:`HiddenFieldError`.
    """

    __slots__ = ("_fields", "reveal")

    def __init__(self, reveal: Reveal, fields: Mapping[str, Any]):
        self.reveal = reveal
        self._fields = dict(fields)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._fields:
            return self._fields[name]
        raise HiddenFieldError(
            f"this stream does not reveal '{name}'; revealed: "
            f"{', '.join(sorted(self._fields))} ({', '.join(self.reveal.names())})"
        )
