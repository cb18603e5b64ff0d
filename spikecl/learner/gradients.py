"""From factors to gradients of what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spikecl.networks import Network
from spikecl.networks.network import own_parameters


def form_gradients(
    network: Network,
    factors: Mapping[str, Any],
    direct: Mapping[str, Tensor],
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Form each synapse's gradients from its factor, once.

    Args:
        network: The network.
        factors: Factor by synapse.
        direct: Gradients of the parameters that no synapse holds.
        weights: The parameters that the factors were taken at, where not the network's own.
    """
    gradients = dict(direct)
    use: Mapping[str, Tensor] = {}
    if any(synapse.maps for synapse in network.synapses.values()):
        use = network.weights() if weights is None else weights
    for path, synapse in network.synapses.items():
        factor = factors[path]
        bias = None if synapse.bias is None else factor.bias_gradient()
        own = own_parameters(path, synapse, use) if synapse.maps else {"weight": synapse.weight}
        for name, gradient in synapse.pull_back(own, factor.gradient(), bias).items():
            gradients[f"{path}.{name}"] = gradient
    return gradients
