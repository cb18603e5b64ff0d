"""What a run cost in operations: synaptic events and neuron updates per sample, from a record.

A spike (or graded message) at a step reaches the non-zero weights of its neuron, those that
synaptic memory holds; into the padding of a convolution nothing leads. Every neuron is updated at
every step of the record, latency included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from spikecl_hardware import energy
from spikecl_hardware.loihi.program import INPUT, Connection, Program, ProgramError
from spikecl_hardware.loihi.semantics import ConvParameters
from spikecl_hardware.record import Array, Record
from spikecl_hardware.report import markdown

LOIHI2_BRIEF = (
    "Intel, Taking neuromorphic computing to the next level with Loihi 2, technology brief, 2021"
)
GRADED_NOTE = (
    "graded messages are counted as spikes, though the table is of a chip with binary ones: the "
    f"extra energy of payloads of eight bits is negligible on Loihi 2 ({LOIHI2_BRIEF}); that it is "
    "for longer ones is our assumption"
)


@dataclass(frozen=True)
class ConnectionCount:
    """One connection, per sample.

    Args:
        source: Population that sends, or ``input``.
        target: Population that receives.
        graded: Whether messages carry numbers.
        messages: Spikes, or non-zero numbers, that the source sent.
        synaptic_events: Non-zero weights that they reached.
        dense: Weights (zero or not) times steps: what a clocked matrix product would do.
    """

    source: str
    target: str
    graded: bool
    messages: float
    synaptic_events: float
    dense: float


@dataclass(frozen=True)
class NeuronCount:
    """One population, per sample: updates (neurons times steps) and spikes."""

    population: str
    updates: int
    spikes: float


@dataclass(frozen=True)
class Counts:
    """Operations of a program per sample, averaged over the samples of a record."""

    steps: int
    samples: int
    connections: tuple[ConnectionCount, ...]
    neurons: tuple[NeuronCount, ...]

    @property
    def synaptic_events(self) -> float:
        """Of all connections, graded ones included."""
        return sum(c.synaptic_events for c in self.connections)

    @property
    def graded_events(self) -> float:
        """Synaptic events whose message carried a number."""
        return sum(c.synaptic_events for c in self.connections if c.graded)

    @property
    def neuron_updates(self) -> int:
        """Of all populations."""
        return sum(n.updates for n in self.neurons)

    @property
    def operations(self) -> energy.Operations:
        """The same for the tables of `energy`: graded events are MACs, others ACs."""
        return energy.Operations(
            dense=sum(c.dense for c in self.connections),
            effective_macs=self.graded_events,
            effective_acs=self.synaptic_events - self.graded_events,
            membrane_updates=self.neuron_updates,
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each connection and population, and one for the total."""
        rows = [_row(f"{c.source} to {c.target}", **asdict(c)) for c in self.connections]
        rows += [_row(n.population, updates=n.updates, messages=n.spikes) for n in self.neurons]
        total = {"synaptic_events": self.synaptic_events, "updates": self.neuron_updates}
        return [*rows, _row("total", **total, dense=self.operations.dense)]

    def __str__(self) -> str:
        """Return the rows as a table."""
        return markdown(self.rows())


def count(program: Program, record: Record) -> Counts:
    """Count the operations of a record of the program, per sample.

    Raises:
        ProgramError: The record has no samples, or lacks the spikes of a population.
    """
    if record.inputs.ndim < 3 or not record.inputs.size:
        raise ProgramError(f"inputs {record.inputs.shape}; [steps, samples, ...] is allowed")
    activity = {INPUT: record.inputs, **record.spikes}
    steps, samples = record.inputs.shape[:2]
    for name in (INPUT, *program.populations):
        shape = (steps, samples, *program.shape(name))
        if name not in activity or activity[name].shape != shape:
            raise ProgramError(f"{record.backend}: no activity {shape} of '{name}' in the record")
    return Counts(
        steps=steps,
        samples=samples,
        connections=tuple(_connection(c, activity[c.source]) for c in program.connections),
        neurons=tuple(
            NeuronCount(name, p.size * steps, float(energy.events(activity[name]).sum()))
            for name, p in program.populations.items()
        ),
    )


def estimate(counts: Counts, table: energy.EnergyTable = energy.LOIHI) -> energy.Estimate:
    """Price the counts; the table of the result says so where graded messages count as spikes.

    They do where a table has no MACs, such as that of Loihi; the others price them as MACs.
    """
    operations = counts.operations
    if table.mac_pj is None and operations.effective_macs:
        operations = replace(operations, effective_macs=0.0, effective_acs=counts.synaptic_events)
        table = replace(
            table,
            name=f"{table.name}, graded messages as spikes",
            assumption=f"{table.assumption}; {GRADED_NOTE}",
        )
    return energy.estimate(operations, table)


def estimate_rows(
    counts: Counts, tables: Sequence[energy.EnergyTable] = (energy.LOIHI,)
) -> list[dict[str, Any]]:
    """Return a row of estimated nanojoules per sample for each table."""
    made = [estimate(counts, table) for table in tables]
    return [
        {
            "table": e.table.name,
            "synapses nJ": e.synapses_pj / 1000,
            "neurons nJ": e.neurons_pj / 1000,
            "total nJ": e.total_pj / 1000,
            "assumption": e.table.assumption,
            "source": e.table.source,
        }
        for e in made
    ]


def _connection(connection: Connection, activity: Array) -> ConnectionCount:
    synapses, events = connection.synapses, energy.events(activity)
    if isinstance(synapses, ConvParameters):
        height, width = events.shape[1:]
        layer = energy.conv2d(
            synapses.weights,
            (height, width),
            stride=synapses.stride,
            padding=synapses.padding,
        )
    else:
        layer, events = energy.linear(synapses.effective), events.ravel()
    made = energy.count(layer, events, steps=len(activity))
    return ConnectionCount(
        source=connection.source,
        target=connection.target,
        graded=synapses.num_message_bits > 0,
        messages=float(events.sum()),
        synaptic_events=made.effective_acs,
        dense=made.dense,
    )


def _row(name: str, **values: Any) -> dict[str, Any]:
    columns = ("graded", "messages", "synaptic_events", "dense", "updates")
    return {"part": name, **{key: values.get(key) for key in columns}}
