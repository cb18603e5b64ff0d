"""Firing rates that neurons can have at all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from spikecl.errors import ActivityWarning
from spikecl.networks.layer import Layer
from spikecl.neurons import SpikingNeuron


def most_spikes(layer: Layer) -> float:
    """Return the spikes per time step that neurons of a layer can have in the long run.

    One in ``1 + refractory`` steps; there is no bound for neurons that do not spike.
    """
    if layer.neuron is None or not isinstance(layer.neuron.neuron, SpikingNeuron):
        return float("inf")
    return 1 / (1 + layer.neuron.neuron.refractory)


def warn_unreachable(layers: Mapping[str, Layer], target: float, what: str, advice: str) -> None:
    """Warn of each layer whose neurons cannot fire as often as a rule would have them.

    Args:
        layers: Layers by name.
        target: Spikes per time step.
        what: The setting, as it was given: ``target=0.9``.
        advice: What to do.
    """
    for name, layer in layers.items():
        if target > (most := most_spikes(layer)):
            why = f"{most:.3g} spikes a step are the most that its neurons can have in the long run"
            warn_of(name, f"{what}: {why}", advice)


def warn_of(layer: str, what: str, advice: str) -> None:
    """Warn that a layer cannot reach something."""
    text = f"layer '{layer}' cannot reach {what}; {advice}"
    warnings.warn(text, ActivityWarning, stacklevel=3)
