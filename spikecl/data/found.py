"""A data set that was found on this machine: read it, and refuse what only has its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from spikecl.data import checks, digits, event_file, npz
from spikecl.data.arrays import Data, checked
from spikecl.data.entry import Entry, Variant
from spikecl.data.events import Frames
from spikecl.errors import DataError


@dataclass(frozen=True, slots=True)
class Found:
    """Where a data set is and what is known of it.

    Attributes:
        path: The file, ``None`` when built in.
        name: ``Data.name`` of what is there.
        entry: Its entry of the catalogue, ``None`` for data of the user's own.
        variant: The form of the entry that was found.
    """

    path: Path | None
    name: str
    entry: Entry | None = None
    variant: Variant | None = None

    @property
    def expected(self) -> str | None:
        """The published checksum, if one is known."""
        return self.variant.checksum if self.variant else None

    @property
    def events(self) -> bool:
        """Whether the file holds events."""
        return self.path is not None and checks.holds_events(npz.headers(self.path))

    def data(self, frames: Frames | None) -> Data:
        """Return the data set; events become frames.

        Raises:
            DataError: The file is damaged, of a wrong layout or something else than its name says,
                or frames are given for data that are no events.
        """
        data, checksum = self._read(frames)
        if self.entry is None or self.variant is None:
            return data
        names = self.variant.class_names or self.entry.class_names
        self._refuse_other(data, checksum, self.entry, len(names))
        return replace(data, class_names=names)

    def checksum(self) -> str:
        """Return the checksum of what is stored; events need not become frames for it."""
        if self.path is not None and self.events:
            return event_file.checksum(self.path)
        return self._read(None)[1]

    def _read(self, frames: Frames | None) -> tuple[Data, str]:
        if self.path is not None and self.events:
            return event_file.framed(self.path, frames or Frames(), name=self.name)
        if frames is not None:
            raise DataError(no_frames(self.name))
        entry = self.entry
        if entry and entry.draw:
            data = entry.draw()
            return data, data.checksum
        data = checked(
            digits.read() if self.path is None else npz.read(self.path),
            self.name,
            where=None if self.path is None else str(self.path),
            peak=entry.peak if entry else None,
            temporal=entry.temporal if entry else None,
            step_ms=entry.step_ms if entry else None,
        )
        return data, data.checksum

    def _refuse_other(self, data: Data, checksum: str, entry: Entry, classes: int) -> None:
        got, expected = f"checksum {checksum}", f"checksum {self.expected}"
        if self.expected is None:  # only kind and classes can be compared
            kinds = {True: "events", False: "inputs"}
            got = f"{kinds[self.events]} of {data.classes} classes"
            expected = f"{kinds[entry.events]} of {classes} classes"
        if got != expected:
            raise DataError(
                f"{self.path or entry.name}: the arrays have {got}, but {data.name} has "
                f"{expected}; rename the file to use it as data of your own, or remove it and run "
                f"'spikecl data fetch {entry.name}'"
            )


def no_frames(name: str) -> str:
    """Say that frames were given for data that are no events."""
    return (
        f"frames are given, but '{name}' holds no events to make frames of; allowed: frames for "
        "recordings of events; leave them out ([data.frames] in a configuration)"
    )
