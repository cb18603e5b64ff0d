"""Signals times traces of every synapse, step by step: for neurons that one trace does not tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from spikecl.errors import PairingError
from spikecl.kernels import Recurrence
from spikecl.networks import AnyFactor, GradientFactor, Layer, Linear, Network, Paths, Taps
from spikecl.networks.network import own_parameters
from spikecl.neurons import State
from spikecl.neurons.neuron import carry
from spikecl.trainers.credit import (
    Signals,
    activity_of,
    ends,
    forward,
    hidden,
    with_errors,
)
from spikecl.trainers.eligibility import Eligibility, slopes
from spikecl.trainers.feedback import BROADCAST, Signal
from spikecl.trainers.needs import layers_of
from spikecl.trainers.traces import Decays, Traces, decays
from spikecl.trainers.trainer import Call, Factors, PerStep, joined


class SynapticTraces:
    """Steps one after the other, with a trace for each synapse of hidden layers.

    Args:
        rule: Name of the rule.
        call: The whole batch.
        feedback: Through which weights signals come.
        reset: Errors pass the reset (``True``), do not (``False``), or as the neurons say.
        autapses: They pass the synapse of a neuron onto itself.
        extra: More errors of outputs.
    """

    def __init__(
        self,
        rule: str,
        call: Call,
        feedback: Signal,
        *,
        reset: bool | None,
        autapses: bool,
        extra: Signals | None,
    ):
        self.rule, self.feedback, self.autapses, self.extra = rule, feedback, autapses, extra
        self.paths = Paths("instant", "instant", recurrent=False, reset=reset, stepwise=True)
        *hidden, (self.last, readout) = layers_of(call.network).items()
        self.hidden = dict(hidden)
        leak = signal_decays(readout, feedback)
        assert leak is not None
        self.traces = Traces(call.network, only=self.last)
        self.synapses = {
            path: Eligibility(leak) for name, layer in hidden for path, _ in onto(name, layer)
        }

    def part(self, call: Call) -> Factors:
        """Return the factors of a part, step by step."""
        made, state = [], call.state
        for x in call.all_steps:
            share = 1 / len(call.x)
            loss = PerStep(partial(_of_step, call, share), True)
            step = replace(call, x=x[None], state=state, output_loss=loss, share=call.share * share)
            made.append(self._step(step))
            state = carry({**(state or {}), **made[-1].state}, "detach")
        return joined(made)._replace(state=state or {})

    def _step(self, call: Call) -> Factors:
        output, loss, taps = forward(call, self.paths, self.feedback)
        fired, edge = hidden(call, taps), cast(Any, taps[self.last].edge)
        outputs, errors = ends(call, loss, taps, self.feedback, None)
        delta, *signals = torch.autograd.grad(
            outputs, [edge, *fired.values()], errors, allow_unused=True, retain_graph=True
        )
        costs = self._costs(fired, with_errors(call, self.extra))
        synapses: dict[str, AnyFactor] = {}
        with torch.no_grad():
            for (name, layer), signal, cost in zip(self.hidden.items(), signals, costs):
                synapses |= self._onto(call, name, layer, taps, (signal, cost))
        synapses[self.last] = self.traces.factor(
            self.last, taps[self.last], delta, samples=call.all_steps.shape[1]
        )
        synapses = {path: synapses[path] for path in taps}
        return Factors(
            loss.detach(),
            output.logits.detach(),
            synapses,
            state=output.state,
            activity=activity_of(taps),
            share=call.share,
        )

    def _costs(self, fired: Mapping[str, Tensor], extra: Signals | None) -> Sequence[Tensor | None]:
        """Return errors of spikes that no readout has filtered, by layer."""
        errors = {} if extra is None else extra(fired)
        if not errors:
            return [None] * len(fired)
        return torch.autograd.grad(
            [fired[name] for name in errors],
            list(fired.values()),
            list(errors.values()),
            allow_unused=True,
        )

    def _onto(
        self,
        call: Call,
        name: str,
        layer: Layer,
        taps: Taps,
        signals: tuple[Tensor | None, Tensor | None],
    ) -> dict[str, AnyFactor]:
        """Return the factors of a layer's synapses at a step: filtered by the readout, or not."""
        before, current = (call.state or {}).get(name), taps.driven[name][0]
        assert layer.neuron is not None
        neuron, auto = layer.neuron.bound(), None
        if self.paths.reset is not None and hasattr(neuron, "detach_reset"):
            neuron = neuron.bind({"detach_reset": not self.paths.reset})
        if layer.recurrent is not None:
            own = own_parameters(f"{name}.recurrent", layer.recurrent, call.parameters)
            weight = layer.recurrent.effective(own)
            current = current + _heard(weight, own.get("bias"), before, current)
            before = None if before is None else before.neuron
            auto = weight.diagonal() if self.autapses else None
        slope = slopes(neuron, current, before)
        found: dict[str, AnyFactor] = {}
        for path, bias in onto(name, layer):
            rows = taps[path].rows
            p = torch.cat([rows, torch.ones_like(rows[:, :1])], 1) if bias else rows
            e, filtered = self.synapses[path].step(slope, p, auto)
            gradient = torch.zeros_like(e[0])
            for signal, trace in zip(signals, (filtered, e)):
                if signal is not None:
                    gradient = gradient + (signal[0].flatten(1)[..., None] * trace).sum(0)
            weight_, bias_ = (gradient[:, :-1], gradient[:, -1]) if bias else (gradient, None)
            found[path] = GradientFactor(weight_, bias_, taps[path].kept, self.rule)
        return found


def onto(name: str, layer: Layer) -> Iterator[tuple[str, bool]]:
    """Yield the synapses onto a layer: path, and whether it has a bias."""
    yield name, layer.synapse.bias is not None
    if layer.recurrent is not None:
        yield f"{name}.recurrent", layer.recurrent.bias is not None


def _heard(weight: Tensor, bias: Tensor | None, before: State, like: Tensor) -> Tensor:
    """Return the current that the layer's last spikes cause."""
    spikes = torch.zeros_like(like) if before is None else before.spikes
    return Recurrence(weight, bias)(spikes)


def _of_step(call: Call, share: float, outputs: Tensor) -> Tensor:
    return call.output_loss(outputs) * share


def signal_decays(readout: Layer, feedback: Signal) -> Decays | None:
    """Return the decays of signals through a readout; a target has passed none."""
    if feedback == "target" or readout.neuron is None:
        return ()
    return decays(readout.neuron.bound())


def passes_reset(layer: Layer, reset: bool | None) -> bool:
    """Whether errors pass the reset of a layer's neurons, as a rule says or they do."""
    neuron = None if layer.neuron is None else layer.neuron.neuron
    own = getattr(neuron, "detach_reset", None)
    return own is not None and (not own if reset is None else reset)


def diagonals(call: Call) -> dict[str, Tensor]:
    """Return, by recurrent synapse, the weights of neurons onto themselves, the others zero."""
    found = {}
    for name, layer in layers_of(call.network).items():
        if layer.recurrent is not None:
            path = f"{name}.recurrent"
            own = own_parameters(path, layer.recurrent, call.parameters)
            found[path] = layer.recurrent.effective(own).detach().diagonal().diag()
    return found


def check_synapses(rule: str, network: Network, feedback: Signal, *, reset: bool | None) -> None:
    """Refuse what has no trace for each synapse that signals of a step could meet."""
    *hidden, (_, last) = layers_of(network).items()
    leak = () if last.neuron is None else decays(last.neuron.bound())
    why = f"trainer '{rule}' in windows keeps a trace of each synapse here"
    if leak is None or passes_reset(last, reset):
        raise PairingError(
            f"{why}, filtered as the readout is, and that has no linear memory; give it a leaky "
            "integrator or no neurons, or use window=0"
        )
    if leak and len(hidden) > 1 and feedback not in BROADCAST:
        raise PairingError(
            f"{why}, filtered as the readout is, and signals that come down through {len(hidden)} "
            "layers would need one for each output; use feedback='direct', a readout without "
            "leak, or window=0"
        )
    for name, layer in hidden:
        plain = isinstance(layer.synapse, Linear) and not layer.synapse.pair
        cells = layer.neuron
        if not plain or layer.currents or layer.norm is not None:
            raise PairingError(f"{why}, and layer '{name}' is no plain dense layer; use window=0")
        if cells is None or not cells.is_spiking or cells.neuron.random:
            raise PairingError(
                f"{why}, and layer '{name}' has no neurons that spike by their state alone; use "
                "spiking neurons without noise and escape, or window=0"
            )
