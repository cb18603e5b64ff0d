"""Backpropagation through time with surrogate gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spikecl.components import component
from spikecl.encoding import OutputLoss
from spikecl.networks import Factor, Network, Tap
from spikecl.trainers.trainer import Factors, Trainer


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
    ) -> Factors:
        """Return factors whose rows are the spikes that each synapse transmitted."""
        taps: dict[str, Tap] = {}
        with torch.enable_grad():
            logits = network(x, taps=taps, weights=weights).logits
            loss = output_loss(logits)
            deltas = torch.autograd.grad(loss, [tap.current for tap in taps.values()])
        return Factors(
            loss.detach(),
            logits.detach(),
            {
                name: Factor(tap.rows, delta, tap.rows)
                for (name, tap), delta in zip(taps.items(), deltas, strict=True)
            },
        )
