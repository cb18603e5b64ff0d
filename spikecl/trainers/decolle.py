"""Deep continuous local learning: every layer has a readout of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import component
from spikecl.encoding import Loss
from spikecl.errors import UsageError
from spikecl.networks import Network
from spikecl.seeds import Seeds
from spikecl.trainers.feedback import fired_sizes, uniform
from spikecl.trainers.needs import (
    need_no_batch_norm,
    need_present,
    need_separable,
    need_separable_call,
    need_spikes,
    need_steps,
    need_windows,
)
from spikecl.trainers.rates import Rates
from spikecl.trainers.traces import need_traces, traced
from spikecl.trainers.trainer import Call, Factors, Trainer, Traits

PREFIX = "readout."


@component
class Decolle(Trainer):
    """Local losses: each hidden layer's spikes are read by a fixed random readout.

    In order of execution, at each step, with the trace ``P`` of the presynaptic spikes (that of
    the layer's own dynamics, :mod:`spikecl.trainers.traces`)::

        y_l[t] = s_l[t] G_l                    local outputs; G_l [n, classes] never learns
        E_l[t] = loss(y_l[t])                  the loss of the network's own output
        dW_l = sum_t (psi[t] c dE_l/ds_l[t]) P[t]^T

    No error crosses a layer or a step. The network's readout learns from its own error, so tests
    answer with it.

    Source: Kaiser, Mostafa & Neftci, Frontiers in Neuroscience 14:424 (2020).
    Deviation: neurons are the network's own (theirs are CUBA with a refractory trace); activity is
    kept up by a cost of firing rates where theirs is one of membranes.

    Args:
        window: Steps at a time; 0 takes all.
        update: Change weights once for a batch (``sequence``), or after each window.
        burn_in: First steps that hidden layers do not learn from.
        rate_cost: Weight of the firing rates' cost (:class:`~spikecl.trainers.Eprop`).
        rate_target: Rate they are pulled to, spikes per step.
    """

    sends_errors: ClassVar[bool] = True
    traits: ClassVar[Traits] = Traits(
        time="yes: traces",
        space="yes: a readout of each layer",
        memory="window B N",
        exact="gradient of the local losses, states cut",
        network="LIF, CUBA with soft reset; dense, convolutional, recurrent",
        source="Kaiser et al. 2020",
    )

    window: Annotated[int, Field(ge=0)] = 0
    update: Literal["sequence", "window"] = "sequence"
    burn_in: Annotated[int, Field(ge=0)] = 0
    rate_cost: Annotated[float, Field(ge=0)] = 0.0
    rate_target: Annotated[float, Field(ge=0, le=1)] = 0.05

    @property
    def every_part(self) -> bool:
        """Whether weights change after every window."""
        return self.update == "window"

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse networks without spikes or traces, and losses that are not of each step."""
        need_spikes(self.name, network)
        need_present(self.name, network)
        need_separable(self.name, loss)
        need_traces(self.name, network, "use trainer 'bptt'")
        need_no_batch_norm(self.name, network, "learns from each step alone")
        need_steps(self.name, "burn_in", self.burn_in + 1, len(x))
        if self.window:
            need_steps(self.name, "window", self.window, len(x))
        else:
            need_windows(self.name, self.update)

    @property
    def of_loss(self) -> Decolle:
        """Without the cost of firing rates."""
        return replace(self, rate_cost=0.0)

    def variables(self, network: Network, seeds: Seeds, x: Tensor) -> dict[str, Tensor]:
        """Return the local readouts."""
        sizes, outputs = fired_sizes(network, x)
        found = {}
        for position, (name, size) in enumerate(sizes.items()):
            generator = seeds.generator("decolle", event=position)
            like = network.synapses[name].weight
            found[PREFIX + name] = uniform((size, outputs), 1 / math.sqrt(size), generator, like)
        return found

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield factors whose rows are traces."""
        need_separable_call(self.name, call)
        local = LocalLosses(call, burn_in=self.burn_in)
        if self.rate_cost:
            local.rates = Rates(self.rate_cost, self.rate_target, len(call.x))
        yield from traced(call, self.name, self.window, "none", local.signals)


class LocalLosses:
    """Losses of readouts of each layer, from part to part of the steps.

    Args:
        call: The whole batch.
        burn_in: First steps without error.
    """

    def __init__(self, call: Call, *, burn_in: int):
        self.call, self.burn_in, self.at = call, burn_in, 0
        self.rates: Rates | None = None

    def signals(self, fired: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the errors of the layers' spikes [T, B, *features]."""
        found = {} if self.rates is None else self.rates.signals(fired)
        for name, out in fired.items():
            error = self._error(name, out)
            error = found[name] + error if name in found else error
            quiet = max(min(self.burn_in - self.at, len(out)), 0)
            found[name] = torch.cat([torch.zeros_like(error[:quiet]), error[quiet:]])
        self.at += len(next(iter(fired.values())))
        return found

    def _error(self, name: str, out: Tensor) -> Tensor:
        back = self.call.variables[PREFIX + name]
        with torch.enable_grad():
            spikes = out.detach().requires_grad_()
            rows = spikes.flatten(2)
            if rows.shape[2] != len(back):
                raise UsageError(
                    f"readout of layer '{name}' has shape {tuple(back.shape)}, the layer "
                    f"{rows.shape[2]} neurons; give one of shape ({rows.shape[2]}, classes)"
                )
            loss = self.call.output_loss(rows @ back) * (len(out) / len(self.call.x))
            (error,) = torch.autograd.grad(loss, [spikes])
        return error
