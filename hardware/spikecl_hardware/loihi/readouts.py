"""How the answer of a network is read: which register of the last layer, and in which units.

=================  =====================  ======================================================
last layer         decoder                is read as
=================  =====================  ======================================================
spiking neurons    any                    spikes at every step
integrators        all but first_spike    membranes at every step
no neurons         mean, sum              one membrane that adds everything up, at the last step
no neurons         max, last, leaky       currents at every step; a bias cannot be among them
=================  =====================  ======================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spikecl_hardware.chain import Dynamics, Layer
from spikecl_hardware.graph import GraphError, Meta
from spikecl_hardware.loihi.program import Readout
from spikecl_hardware.loihi.scales import Scale


def sums(layer: Layer, meta: Meta) -> bool:
    """Whether a readout is read once, as a sum over steps."""
    return layer.neurons is None and meta.decoder["name"] in ("mean", "sum")


def dynamics(layer: Layer, meta: Meta) -> Dynamics:
    """Return a layer's neurons; where it has none, those that add currents up or pass them on."""
    if layer.neurons is not None:
        return layer.neurons
    zero = np.zeros(int(np.prod(layer.out_shape)))
    kept = zero + float(sums(layer, meta))
    return Dynamics(zero, kept, zero + 1, zero + 1, zero, None, None)


def readout(layer: Layer, scale: Scale, meta: Meta) -> Readout:
    """Return how the answer is read; its scale brings it back to the network's units."""
    decoder = dict(meta.decoder)
    name, units = decoder.pop("name"), int(decoder.pop("units", 1))
    if "beta" in decoder:
        decoder["kappa"] = decoder.pop("beta")  # files name every decay so
    constants = {key: float(value) for key, value in decoder.items()}
    options: dict[str, Any] = {"units": units, "constants": constants}
    if layer.neurons is not None and layer.neurons.spiking:
        return Readout(layer.name, "spikes", name, **options)
    if name == "first_spike":
        raise GraphError(
            f"'{layer.name}': decoder 'first_spike' reads spikes, this layer has none; train with "
            "spiking neurons at the end, or with another decoder"
        )
    if layer.neurons is not None:
        return Readout(layer.name, "v", name, scale=1 / scale.unit, **options)
    if sums(layer, meta):
        steps = meta.steps if name == "mean" else 1
        return Readout(layer.name, "v", "last", scale=1 / (scale.unit * steps), **options)
    if layer.bias is not None:
        raise GraphError(
            f"'{layer.name}': decoder '{name}' reads a current at every step, which has no bias on "
            "the chip; train the readout without bias, or with decoder 'mean'"
        )
    return Readout(layer.name, "u", name, scale=1 / scale.unit, **options)
