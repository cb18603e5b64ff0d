"""A network: an ordered list of layers, run over time in one pass per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from spikecl.errors import UsageError
from spikecl.networks.layer import Layer, Linear, Spiking
from spikecl.neurons import LIFState

Readout = Literal["mean_rate", "mean_current"]


class Tap(NamedTuple):
    """What a synapse saw and made: rows [R, n_in] and the current [R, n_out] behind them."""

    rows: Tensor
    current: Tensor


class Output(NamedTuple):
    """Result of a pass: logits [B, classes] and the state after the last step by layer name."""

    logits: Tensor
    state: dict[str, LIFState]


class Network(nn.Module):
    """An ordered list of named layers; the last one is the readout.

    The logits are the time mean of the readout's current. A linear readout and a mean commute, so
    ``readout="mean_rate"`` averages the spikes first: the same logits, T times fewer rows; with
    ``"mean_current"`` the synapse sees every step.

    Nothing is kept on the modules: state goes in and out, factors go through ``taps``.

    Args:
        layers: Layers by name, in order of execution.
        readout: Where the time mean is taken.
    """

    def __init__(self, layers: Mapping[str, Layer], *, readout: Readout = "mean_rate"):
        super().__init__()
        known = {"input"}
        for name, layer in layers.items():
            if missing := set(layer.inputs) - known:
                raise UsageError(
                    f"layer '{name}' listens to {sorted(missing)}, which do not come before it; "
                    f"known: {sorted(known)}"
                )
            known.add(name)
        self.layers = nn.ModuleDict(layers)
        self.readout = readout

    @property
    def synapses(self) -> dict[str, Linear]:
        """Synapses by layer name, in order."""
        return {name: cast(Layer, layer).synapse for name, layer in self.layers.items()}

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by ``layer.parameter``, in order."""
        return {
            f"{name}.{key}": value
            for name, synapse in self.synapses.items()
            for key, value in synapse.named_parameters()
        }

    @property
    def is_spiking(self) -> bool:
        """Whether any layer has spiking neurons."""
        return any(isinstance(cast(Layer, v).neuron, Spiking) for v in self.layers.values())

    def forward(
        self,
        x: Tensor,
        state: Mapping[str, LIFState] | None = None,
        *,
        taps: dict[str, Tap] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Output:
        """Run the network.

        Args:
            x: Input [T, B, *features]; features are flattened.
            state: State by layer name; a missing layer starts from rest.
            taps: Filled with a :class:`Tap` per synapse. The weights are then taken as constants:
                gradients of the currents are what is wanted.
            weights: Effective weights by ``layer.parameter`` to use in place of the network's own.
        """
        use = dict(self.weights()) if weights is None else weights
        if not self.is_spiking and len(x) > 1 and x.stride(0) == 0:
            x = x[:1]  # units without memory give the same answer at every step
        activity = {"input": x.flatten(2)}
        after: dict[str, LIFState] = {}
        names = list(self.layers)
        for name in names:
            layer = cast(Layer, self.layers[name])
            h = sum((activity[i] for i in layer.inputs[1:]), activity[layer.inputs[0]])
            if name == names[-1] and self.readout == "mean_rate":
                h = h.mean(0, keepdim=True)
            current = _drive(name, h, use, taps)
            if layer.neuron is not None:
                current, new = layer.neuron(current, (state or {}).get(name))
                if new is not None:
                    after[name] = new
            activity[name] = current
        return Output(activity[names[-1]].mean(0), after)


def _drive(
    name: str, x: Tensor, weights: Mapping[str, Tensor], taps: dict[str, Tap] | None
) -> Tensor:
    """Return the current [T, B, n_out] of a synapse, all steps in one matrix product.

    A constant input (stride 0 in time) needs one step's rows; so does its gradient.
    """
    static = len(x) > 1 and x.stride(0) == 0
    rows = x[0] if static else x.flatten(0, 1)
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    if taps is not None:
        weight, bias = weight.detach(), bias if bias is None else bias.detach()
    current = functional.linear(rows, weight, bias)
    if taps is not None:
        if not current.requires_grad:
            current.requires_grad_()
        taps[name] = Tap(rows.detach(), current)
    if static:
        return current.expand(len(x), *current.shape)
    return current.view(len(x), -1, current.shape[1])


def count_parameters(network: Network) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in network.weights().values())


@torch.no_grad()
def firing_rates(network: Network, x: Tensor) -> dict[str, float]:
    """Return the mean activity of each layer's presynaptic rows for an input [T, B, *features]."""
    taps: dict[str, Tap] = {}
    with torch.enable_grad():
        network(x, taps=taps)
    return {name: float(tap.rows.mean()) for name, tap in taps.items()}
