"""Backpropagation through time with surrogate gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spikecl.components import component
from spikecl.encoding import OutputLoss
from spikecl.networks import Network, Taps
from spikecl.neurons import State
from spikecl.trainers.trainer import Factors, Trainer, loss_of


@component
class Bptt(Trainer):
    """Exact surrogate gradients.

    For a synapse with input rows ``x`` and current ``I = W x``, one backward pass gives the error
    rows ``delta = dL/dI`` of every synapse; the gradient is ``delta^T x``, summed over steps and
    batch. The weights are constants of that pass, so no weight gradient is formed before a method
    has had its say about the factors.
    """

    def factors(
        self,
        network: Network,
        x: Tensor,
        output_loss: OutputLoss,
        weights: Mapping[str, Tensor] | None = None,
        *,
        state: Mapping[str, State] | None = None,
        generator: torch.Generator | None = None,
        training: bool = True,
    ) -> Factors:
        """Return factors whose rows are the spikes that each synapse transmitted."""
        taps = Taps()
        with torch.enable_grad():
            output = network(
                x, state, taps=taps, weights=weights, training=training, generator=generator
            )
            loss = loss_of(output, output_loss)
            wanted: list[Any] = [*(tap.edge for tap in taps.values()), *taps.direct.values()]
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
        direct = zip(taps.direct, found[len(taps) :], strict=True)
        return Factors(
            loss.detach(),
            output.logits.detach(),
            {
                path: network.synapses[path].factor(
                    tap.kept, tap.no_error() if delta is None else delta
                )
                for (path, tap), delta in zip(taps.items(), found)
            },
            {name: gradient for name, gradient in direct if gradient is not None},
            output.statistics,
            output.state,
        )
