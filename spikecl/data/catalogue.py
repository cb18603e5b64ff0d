"""The data sets known by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from spikecl.data import images, recordings
from spikecl.data.entry import Entry
from spikecl.data.evidence import EVIDENCE, EVIDENCE_SHORT

CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            images.DIGITS,
            images.MNIST,
            images.FASHION_MNIST,
            images.NOTMNIST,
            images.CIFAR10,
            images.CIFAR100,
            EVIDENCE,
            EVIDENCE_SHORT,
            recordings.NMNIST,
            recordings.BRAILLE,
            recordings.FSDD,
        )
    }
)
