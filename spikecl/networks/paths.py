"""Which ways errors take back through a network; what is computed forward does not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from spikecl.networks.synapses import Synapse

Reach = Literal["full", "instant", "none"]


@dataclass(frozen=True, slots=True)
class Paths:
    """What the error of a current has passed when a trainer asks for it.

    The error of a synapse's current is taken from the error of its neurons' output, and that from
    the synapses which the output meets. Each of the two steps may remember less than the network.

    Args:
        time: From the output to the current: through the memory of the neurons (``full``), or in
            the same step alone (``instant``).
        space: From the current to the activity below: with the error of the current (``full``),
            with what it is in the same step alone (``instant``), or not at all (``none``). The
            readout passes on what ``time`` says.
        recurrent: Errors pass synapses of a layer onto itself.
        reset: Errors pass the reset (``True``), do not (``False``), or as the neuron says.
        stepwise: The error of each step is wanted, also of an input that is constant in time.
        feedback: By synapse, the weight that errors meet in place of its own.
        chosen: Steps [T] that errors come from; ``None``: all.
    """

    time: Literal["full", "instant"] = "full"
    space: Reach = "full"
    recurrent: bool = True
    reset: bool | None = None
    stepwise: bool = False
    feedback: Mapping[str, Tensor] = field(default_factory=dict)
    chosen: Tensor | None = None

    def parted(self, *, last: bool) -> bool:
        """Whether the error of a layer's current and the one it passes on differ."""
        return not last and self.space == "instant" and self.time == "full"

    def choose(self, activity: Tensor) -> Tensor:
        """Return activity [T, B, ...]; errors go back to the chosen steps."""
        if self.chosen is None or len(self.chosen) != len(activity):
            return activity
        open_ = self.chosen.view(-1, *[1] * (activity.dim() - 1))
        return torch.where(open_, activity, activity.detach())


ALL = Paths()


def turned(rows: Tensor, current: Tensor, synapse: Synapse, back: Tensor) -> Tensor:
    """Return a current of rows; errors go back to the rows through another weight.

    Args:
        rows: Rows [R, ...] that caused the current.
        current: The current [R, ...], without a graph.
        synapse: The synapse between them.
        back: Weight of its effective weight's shape.
    """
    if not (torch.is_grad_enabled() and rows.requires_grad):
        return current
    return _Turned.apply(rows, current, synapse, back)  # type: ignore[no-any-return, no-untyped-call]


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, current: Tensor, synapse: Synapse, back: Tensor) -> Tensor:
        ctx.shape, ctx.synapse = rows.shape, synapse
        ctx.save_for_backward(back)
        return current.view_as(current)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return ctx.synapse.error(grads[0], back, ctx.shape), None, None, None
