"""Traces of presynaptic activity: what a neuron's linear memory makes of an input.

Where a membrane forgets at one rate and no spike changes that (its reset cut from the gradient), a
change of the weight from i to j moves ``u_j[t]`` by ``c`` times the trace of ``i`` alone, the same
for all j::

    no memory            a[t] = x[t]
    LIF, leaky readout   a[t] = beta a[t-1] + x[t]
    CUBA                 e[t] = alpha e[t-1] + x[t],   a[t] = beta a[t-1] + e[t]

so the eligibility ``psi_j[t] c a_i[t]`` is a product of two vectors, and gradients are sums of
products of rows. Where all steps are there, the filter may as well run backwards over the errors::

    sum_t delta[t] a[t]^T = sum_t d[t] x[t]^T,   d[t] = beta d[t+1] + delta[t]

which leaves the rows what was transmitted, and biases right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from spikecl.errors import PairingError
from spikecl.kernels import scan
from spikecl.networks import AnyFactor, Layer, Paths, Tap
from spikecl.networks.network import Network
from spikecl.neurons import ALIF, CUBA, LIF, LeakyIntegrator, Neuron, Reset, State
from spikecl.neurons.graded import SynapticIntegrator
from spikecl.neurons.rectified import Rectified
from spikecl.trainers.credit import Signals, credit
from spikecl.trainers.feedback import Signal
from spikecl.trainers.needs import layers_of
from spikecl.trainers.online import in_parts
from spikecl.trainers.trainer import Call, Factors

Decays = tuple[float | Tensor, ...]


def decays(neuron: Neuron | None) -> Decays | None:
    """Return the decays of a neuron's linear memory; ``None`` where it has another."""
    found: Decays | None = None
    if neuron is None or isinstance(neuron, Rectified):
        return ()
    if isinstance(neuron, LeakyIntegrator):
        found = (neuron.kappa,)
    elif isinstance(neuron, SynapticIntegrator):
        found = (neuron.alpha, neuron.kappa)
    elif isinstance(neuron, LIF) and not isinstance(neuron, ALIF) and _linear(neuron):
        found = (neuron.alpha, neuron.beta) if isinstance(neuron, CUBA) else (neuron.beta,)
    if found is None or any(isinstance(d, Tensor) and d.numel() > 1 for d in found):
        return None
    return found


def _linear(neuron: LIF) -> bool:
    """Whether spikes leave the decay of the membrane as it is."""
    return neuron.reset in (Reset.SOFT, Reset.NONE) and not neuron.refractory


def need_traces(rule: str, network: Network, instead: str) -> None:
    """Refuse neurons whose eligibility is no product of two vectors."""
    for name, layer in layers_of(network).items():
        if layer.neuron is not None and decays(layer.neuron.bound()) is None:
            model = type(layer.neuron.neuron).__name__
            raise PairingError(
                f"trainer '{rule}' keeps one trace for each input, and in layer '{name}' ({model}) "
                "a trace would differ from neuron to neuron: it takes LIF, IF, PLIF and CUBA with "
                "reset 'soft' or 'none', one decay for all neurons and no refractory period; "
                f"{instead}"
            )


class Traces:
    """Traces of every synapse of a network, from part to part of the steps.

    Args:
        network: The network.
        only: The one layer to keep them of; by default all.
    """

    def __init__(self, network: Network, only: str | None = None):
        self.network = network
        self._states: dict[str, list[State]] = {}
        self._decays: dict[str, Decays] = {}
        for name, layer in layers_of(network).items():
            if only not in (None, name):
                continue
            own = _of(layers_of(network), name)
            self._decays[name] = own
            if layer.recurrent is not None:
                self._decays[f"{name}.recurrent"] = own

    def factor(self, path: str, tap: Tap, delta: Tensor, samples: int) -> AnyFactor:
        """Return the factor of a synapse: traces of what it transmitted, errors of its current."""
        synapse, filters = self.network.synapses[path], self._decays[path]
        if not filters:
            return synapse.factor(tap.kept, delta)
        rows = tap.rows.view(-1, samples, *tap.rows.shape[1:])
        traced = self._filter(path, rows, filters)
        one = None
        if synapse.bias is not None:
            ones = torch.ones(len(rows), 1, 1, dtype=rows.dtype, device=rows.device)
            one = self._filter(f"{path}.bias", ones, filters)
            one = one.view(-1, 1).expand(-1, samples).reshape(-1)
        return synapse.traced(traced.flatten(0, 1), tap.kept, delta, one)

    def reversed(self, path: str, tap: Tap, delta: Tensor, samples: int) -> AnyFactor:
        """Return the factor of all steps: what was transmitted, errors filtered backwards."""
        synapse, filters = self.network.synapses[path], self._decays[path]
        errors = delta.view(-1, samples, *delta.shape[1:])
        if filters:
            errors = self._filter(path, errors.flip(0), filters).flip(0)
        return synapse.factor(tap.kept, errors.flatten(0, 1))

    @torch.no_grad()
    def _filter(self, key: str, rows: Tensor, filters: Decays) -> Tensor:
        states = self._states.get(key, [None] * len(filters))
        for i, decay in enumerate(filters):
            kappa = decay.detach() if isinstance(decay, Tensor) else decay
            rows, states[i] = scan(rows, states[i], LeakyIntegrator(kappa=kappa))
        self._states[key] = states
        return rows


def _of(layers: Mapping[str, Layer], name: str) -> Decays:
    """Return the decays of the neurons that a layer's current drives, through a shortcut too."""
    layer = layers[name]
    if layer.neuron is None:
        layer = next((other for other in layers.values() if name in other.currents), layer)
    found = () if layer.neuron is None else decays(layer.neuron.bound())
    assert found is not None  # said by need_traces
    return found


def traced(
    call: Call, rule: str, window: int, feedback: Signal, extra: Signals | None = None
) -> Iterator[Factors]:
    """Yield the factors of present errors and traces of the past.

    All steps at once filter the errors, windows the activity.
    """
    paths = Paths("instant", "instant", recurrent=False, reset=False, stepwise=True)
    traces = Traces(call.network)

    def part(call: Call) -> Factors:
        rows = traces.factor if window else traces.reversed
        form = partial(rows, samples=call.all_steps.shape[1])
        return credit(call, paths, feedback=feedback, extra=extra, form=form)

    yield from in_parts(call, rule, window, part)
