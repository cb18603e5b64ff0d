"""A network: an ordered list of layers, run over time in one pass per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

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
        # what every step looks up; the parameters themselves are asked of the modules each time
        self._plan = tuple((name, layer.inputs, layer.neuron) for name, layer in layers.items())
        self._synapses = {name: layer.synapse for name, layer in layers.items()}
        self._keys = tuple(
            (f"{name}.{key}", synapse, key)
            for name, synapse in self._synapses.items()
            for key, _ in synapse.named_parameters()
        )
        self._mean_first = readout == "mean_rate" and self._plan[-1][2] is None
        self.is_spiking = any(isinstance(layer.neuron, Spiking) for layer in layers.values())

    @property
    def synapses(self) -> Mapping[str, Linear]:
        """Synapses by layer name, in order."""
        return self._synapses

    def weights(self) -> Mapping[str, nn.Parameter]:
        """Return the trainable parameters by ``layer.parameter``, in order."""
        return {name: getattr(synapse, key) for name, synapse, key in self._keys}

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
        use = self.weights() if weights is None else weights
        if not self.is_spiking and x.shape[0] > 1 and x.stride(0) == 0:
            x = x[:1]  # units without memory give the same answer at every step
        activity = {"input": x if x.dim() == 3 else x.flatten(2)}
        after: dict[str, LIFState] = {}
        current = x
        for name, inputs, neuron in self._plan:
            h = activity[inputs[0]]
            for other in inputs[1:]:
                h = h + activity[other]
            if name == self._plan[-1][0] and self._mean_first:
                h = _mean(h)[None]
            current = _drive(name, h, use, taps)
            if neuron is not None:
                current, new = neuron(current, None if state is None else state.get(name))
                if new is not None:
                    after[name] = new
            activity[name] = current
        return Output(_mean(current), after)


def _mean(x: Tensor) -> Tensor:
    """Mean over time; of one step, the step."""
    return x[0] if x.shape[0] == 1 else x.mean(0)


def _drive(
    name: str, x: Tensor, weights: Mapping[str, Tensor], taps: dict[str, Tap] | None
) -> Tensor:
    """Return the current [T, B, n_out] of a synapse, all steps in one matrix product.

    A constant input (stride 0 in time) needs one step's rows; so does its gradient.
    """
    steps = x.shape[0]
    static = steps == 1 or x.stride(0) == 0
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
        return current.expand(steps, *current.shape)
    return current.view(steps, -1, current.shape[1])


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
