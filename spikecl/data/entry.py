"""What is known of a data set: where it comes from, what it holds, how it is recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spikecl.data.arrays import Data
from spikecl.data.checks import Array


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of a data set on disk.

    Attributes:
        file: File name looked for in the data folders; empty when it comes with a library.
        name: ``Data.name`` of what the file holds; a subset has its own.
        checksum: Expected :func:`~spikecl.data.arrays.checksum_of`, of recordings of events
            :func:`~spikecl.data.event_file.checksum_of`; ``None`` where none is known.
        note: What sets it apart from the full set, empty for the full set.
        class_names: Its own, where it has other classes than the full set.
    """

    file: str
    name: str
    checksum: str | None
    note: str = ""
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set of the catalogue.

    Attributes:
        name: The name in configurations.
        variants: Forms it is found in, the full set first.
        base_url: Folder of the official files, ending in ``/``; ``None`` when built in.
        train: Samples of the full training set.
        test: Samples of the full test set.
        shape: Shape of one sample, of recordings of events the size of the sensor.
        peak: The input value that stands for intensity 1.0.
        class_names: One name for each class, in the order of the labels.
        licence: Under which terms the authors offer it.
        citation: What to cite.
        remote: What an official file is → its name below ``base_url``.
        md5: What an official file is → its published md5, where there is one.
        decode: From what an official file is → where it lies to the arrays of the data set.
        draw: Makes the data set, where it is neither found nor downloaded.
        temporal: Whether axis 0 of a sample is time.
        step_ms: Length of a step, where it is fixed.
        events: Whether it holds events, which become frames when it is loaded.
        conversion: Why it cannot be downloaded and what to do; empty where it can.
    """

    name: str
    variants: tuple[Variant, ...]
    base_url: str | None
    train: int
    test: int
    shape: tuple[int, ...]
    peak: float
    class_names: tuple[str, ...]
    licence: str
    citation: str
    remote: Mapping[str, str] = field(default_factory=dict)
    md5: Mapping[str, str] = field(default_factory=dict)
    decode: Callable[[Mapping[str, Path]], dict[str, Array]] | None = None
    draw: Callable[[], Data] | None = None
    temporal: bool = False
    step_ms: float | None = None
    events: bool = False
    conversion: str = ""

    @property
    def full(self) -> Variant:
        """The full set."""
        return self.variants[0]

    @property
    def built_in(self) -> bool:
        """Whether it comes with a library and needs no file."""
        return self.base_url is None

    def urls(self, base_url: str | None = None) -> dict[str, str]:
        """Return what an official file is → its address, below another folder when one is given."""
        base = base_url or self.base_url
        return (
            {} if base is None else {a: f"{base.rstrip('/')}/{f}" for a, f in self.remote.items()}
        )
