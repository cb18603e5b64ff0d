"""What a finished run cost: bytes, operations of a forward pass, and an energy estimate."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from spikecl_hardware.energy import (
    FLOAT32_45NM,
    Layer,
    Operations,
    conv2d,
    count,
    estimate,
    linear,
)

from spikecl.learner import Learner, model_nbytes
from spikecl.networks import Conv2d, Network, Synapse, Tap
from spikecl.networks.network import count_parameters
from spikecl.records import FORMAT_VERSION


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

    Binary rows are priced as spikes (accumulates), others as graded values (multiply-accumulates).
    A readout that averages spikes first is counted as if it took them one by one.

    Returns:
        Operations per sample, and the mean spikes per step of the neurons each synapse listens to.
    """
    taps: dict[str, Tap] = {}
    network(x, taps=taps, generator=torch.Generator() if network.is_random else None)
    steps, samples = x.shape[:2]
    total, rates = Operations(0, 0, 0, 0), {}
    for position, (name, tap) in enumerate(taps.items()):
        layer = _layer(network.synapses[name], tap)
        if name == list(taps)[-1] or name.endswith(".recurrent"):
            layer = replace(layer, neurons=0)
        rows = tap.rows.detach().cpu().numpy().astype(np.float64)
        passes = len(rows) // samples
        spiking = network.is_spiking if position else bool(np.isin(rows, (0, 1)).all())
        if spiking:
            rates[name] = float(rows.mean())
            inputs = rows.sum(0) / samples * (steps // passes)
            total += count(layer, inputs, steps=steps)
        else:
            inputs = np.count_nonzero(rows, axis=0) / samples
            total += replace(
                count(layer, inputs, steps=passes, graded=True),
                membrane_updates=layer.neurons * (steps if network.is_spiking else 0),
            )
    return total, rates


def _layer(synapse: Synapse, tap: Tap) -> Layer:
    """Describe a synapse by the weights it uses."""
    with torch.no_grad():
        weights = synapse.effective(dict(synapse.named_parameters())).cpu().numpy()
    if isinstance(synapse, Conv2d):
        _, stride, padding = synapse.geometry
        height, width = tap.rows.shape[2:]
        return conv2d(weights, (height, width), stride=stride, padding=padding)
    return linear(weights)
