"""Brian2's objects of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spikecl_hardware.brian2.description import INPUT, Brian2Error


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

    def check(self, record: Sequence[str]) -> None:
        """Refuse names that are a state of no layer."""
        if isinstance(record, str):
            raise Brian2Error(f"record={record!r}; give names, such as ('spikes', 'v')")
        layers = [group for name, group in self.groups.items() if name != INPUT]
        if unknown := set(record) - {"spikes"}.union(*(group.variables for group in layers)):
            states = {name for group in layers for name in group.equations.names}
            raise Brian2Error(
                f"record={sorted(unknown)}; there are spikes, {', '.join(sorted(states))}"
            )
