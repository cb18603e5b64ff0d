"""What a backend returns: the same record from all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Record:
    """What a network did with B samples in S steps (those of a sample, and the latency).

    Args:
        backend: Who ran it, such as ``emulator`` or ``lava 0.10.0 (Loihi2SimCfg, fixed_pt)``.
        inputs: What was sent in, [S, B, *features].
        spikes: By population, [S, B, *features], zeros and ones.
        states: ``u`` and ``v`` by population where they were asked for, such as
            ``states["hidden1"]["u"]`` [S, B, *features]. ``v`` is after the reset.
        outputs: The readout's quantity, [T, B, n]: of the T steps in which answers are due.
        notes: Counts by population that a backend has besides, such as ``overflowed``.
    """

    backend: str
    inputs: Array
    spikes: Mapping[str, Array]
    outputs: Array
    states: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def rates(self) -> dict[str, float]:
        """Mean spikes of a neuron and step, by population."""
        return {name: float(np.mean(s)) for name, s in self.spikes.items()}
