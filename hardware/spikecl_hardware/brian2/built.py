"""Brian2's objects of a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Built:
    """Brian2's objects of a network, by the paths of layers and synapses.

    Args:
        network: All of them.
        groups: Populations, and ``input``.
        synapses: Synapses.
        spikes: Monitors of spikes.
        states: Monitors of states.
        outputs: What a population that sends no spikes passes on.
    """

    network: Any
    groups: dict[str, Any] = field(default_factory=dict)
    synapses: dict[str, Any] = field(default_factory=dict)
    spikes: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
