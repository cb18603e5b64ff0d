"""From factors to gradients of what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from spikecl.errors import UsageError
from spikecl.networks.network import Network, own_parameters


def learning(network: Network) -> dict[str, nn.Parameter]:
    """Return the parameters that are not frozen (``requires_grad=False``); refuse to have none."""
    found = {name: p for name, p in network.weights().items() if p.requires_grad}
    if not found:
        raise UsageError(
            "all parameters of the network are frozen (requires_grad=False), nothing is left to "
            "train; call requires_grad_() of those that are to learn"
        )
    return found


def form_gradients(
    network: Network,
    factors: Mapping[str, Any],
    direct: Mapping[str, Tensor],
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Form each synapse's gradients from its factor, once; frozen parameters have none.

    Args:
        network: The network.
        factors: Factor by synapse.
        direct: Gradients of the parameters that no synapse holds.
        weights: The parameters that the factors were taken at, where not the network's own.
    """
    frozen = {name for name, p in network.weights().items() if not p.requires_grad}
    gradients = {name: gradient for name, gradient in direct.items() if name not in frozen}
    use: Mapping[str, Tensor] = {}
    if any(synapse.maps for synapse in network.synapses.values()):
        use = network.weights() if weights is None else weights
    for path, synapse in network.synapses.items():
        if frozen and not any(p.requires_grad for p in synapse.parameters()):
            continue
        factor = factors[path]
        bias = None if synapse.bias is None else factor.bias_gradient()
        own = own_parameters(path, synapse, use) if synapse.maps else {"weight": synapse.weight}
        found: Mapping[str, Tensor] | None = getattr(factor, "stored", None)
        if found is None:
            found = synapse.pull_back(own, factor.gradient(), bias)
        for name, gradient in found.items():
            if f"{path}.{name}" not in frozen:
                gradients[f"{path}.{name}"] = gradient
    return gradients
