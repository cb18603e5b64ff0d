"""What a finished run cost: bytes, operations of a forward pass, and an energy estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from spikecl_hardware.energy import (
    FLOAT32_45NM,
    LOIHI,
    LOIHI_PJ,
    Layer,
    Operations,
    conv2d,
    count,
    estimate,
    linear,
)
from spikecl_hardware.loihi.operations import GRADED_NOTE

from spikecl.learner import Learner, model_nbytes
from spikecl.networks import Conv2d, Network, Synapse, Tap
from spikecl.networks import Layer as NetworkLayer
from spikecl.networks.network import count_parameters
from spikecl.neurons import State
from spikecl.neurons.neuron import leaves
from spikecl.records import FORMAT_VERSION

TASKS_NOTE = (
    "estimates: operations counted, priced by published figures. Floats: the forward passes of "
    "training alone, at the rates of the event's end. Chip: all of learning, that is runs, replays "
    "and changes of weights; the two cannot be compared"
)
CHIP = replace(
    LOIHI,
    name="Loihi, 14 nm, learning",
    assumption=f"{LOIHI.assumption}; a change of a synapse as one of pairwise STDP; {GRADED_NOTE}",
)


def event_cost(learner: Learner, batch: torch.Tensor, name: str) -> dict[str, Any]:
    """Return what the event that just ended took to learn, as a row of ``cost.json``.

    Args:
        learner: At the end of the event.
        batch: Encoded samples, that the network's operations are counted on.
        name: What the event is called.
    """
    row: dict[str, Any] = {"event": name, "samples": learner.samples_of_event}
    counts: tuple[float | None, ...]
    if learner.chip is not None:
        made = learner.chip.operations
        picojoules = (
            made.synaptic_events * CHIP.ac_pj
            + made.neuron_updates * CHIP.membrane_update_pj
            + made.synaptic_updates * LOIHI_PJ["synaptic update (pairwise STDP)"]
        )
        counts = (made.synaptic_events, made.neuron_updates, made.synaptic_updates)
        table = CHIP
    else:
        each, _ = count_operations(learner.network, batch)
        n, table = learner.samples_of_event, FLOAT32_45NM
        synaptic = each.effective_macs + each.effective_acs
        counts = (synaptic * n, each.membrane_updates * n, None)
        picojoules = estimate(each, table).total_pj * n
    names = ("synaptic operations", "neuron updates", "synaptic updates")
    priced = {"energy uJ (estimate)": picojoules / 1e6, "table": table.name}
    return {**row, **dict(zip(names, counts, strict=True)), **priced}


def tasks_cost(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows of events with the sources of their tables."""
    used = [table for table in (FLOAT32_45NM, CHIP) if any(r["table"] == table.name for r in rows)]
    return {
        "note": TASKS_NOTE,
        "rows": list(rows),
        "tables": {t.name: {"source": t.source, "assumption": t.assumption} for t in used},
    }


def measure_cost(learner: Learner, batch: torch.Tensor) -> dict[str, Any]:
    """Return the content of ``cost.json``; operations are per sample of an encoded batch."""
    operations, rates = count_operations(learner.network, batch)
    energy = estimate(operations, FLOAT32_45NM)
    return {
        "format_version": FORMAT_VERSION,
        "parameters": count_parameters(learner.network),
        "parameter_bytes": model_nbytes(learner.network),
        "optimiser_bytes": learner.optimiser.nbytes(),
        "method_bytes": learner.method_bytes,
        "operations_per_sample": asdict(operations),
        "firing_rates": rates,
        "energy_estimate": {
            "picojoules_per_sample": energy.total_pj,
            "table": asdict(energy.table),
        },
    }


def count_operations(network: Network, x: torch.Tensor) -> tuple[Operations, dict[str, float]]:
    """Count the operations of a forward pass over x [T, B, *features], and rates of the inputs.

    Binary rows are priced as spikes (accumulates), others as graded values (multiply-accumulates),
    so pooled means of spikes are, too. A readout that averages spikes first is counted as if it
    took them one by one. A constant graded input is multiplied once, spikes at every step. The two
    signs of a weight, and its place at every delay, are one connection.

    Returns:
        Operations per sample, and the share of steps at which what a synapse listens to is active.
    """
    taps: dict[str, Tap] = {}
    seen = copy(network)
    seen.mean_first = network.mean_first and not network.is_spiking
    state = seen(x, taps=taps, generator=torch.Generator() if network.is_random else None).state
    steps, samples = x.shape[:2]
    total, rates = Operations(0, 0, 0, 0), {}
    for position, (name, tap) in enumerate(taps.items()):
        rows = tap.rows.detach().cpu().numpy()
        binary, active = bool(np.isin(rows, (0, 1)).all()), rows != 0
        passes = len(rows) // samples
        repeats = steps // passes if binary and network.is_spiking else 1
        if network.is_spiking and (binary or position):
            rates[name] = float(active.mean())
        total += replace(
            count(
                _layer(network.synapses[name], tap),
                active.sum(0) / samples * repeats,
                steps=passes * repeats,
                graded=not binary,
            ),
            membrane_updates=_membranes(network, name, state) * steps,
        )
    return total, rates


def _layer(synapse: Synapse, tap: Tap) -> Layer:
    """Describe a synapse by the weights it uses."""
    with torch.no_grad():
        weights = synapse.effective(dict(synapse.named_parameters())).cpu().numpy()
    if isinstance(synapse, Conv2d):
        _, stride, padding = synapse.geometry
        height, width = tap.rows.shape[2:]
        layer = conv2d(weights, (height, width), stride=stride, padding=padding)
    else:
        layer = linear(weights)
    return replace(layer, connections=layer.connections * synapse.weight.numel() // weights.size)


def _membranes(network: Network, path: str, state: Mapping[str, State]) -> int:
    """Return the number of membranes that a synapse's layer has; those of a recurrent one are 0."""
    layer = dict(network.layers.items()).get(path)
    if not isinstance(layer, NetworkLayer) or layer.neuron is None or not layer.neuron.has_memory:
        return 0
    return leaves(state[path])[0][0].numel()  # each field has one entry for each neuron
