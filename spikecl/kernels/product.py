"""The product of rows of activity and a weight, and what is kept of the rows for its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from spikecl.errors import KernelError
from spikecl.kernels.backend import refuse_second_derivatives
from spikecl.kernels.c_code import REALS
from spikecl.kernels.events import Bits, Events, bits_of, events_of, is_worth, outer, product
from spikecl.kernels.options import Kernels

Kept = Tensor | Events | Bits
LARGE = 1 << 18  # values that are worth packing even where memory does not have to be lean


def keep(rows: Tensor, outputs: int, kernels: Kernels, *, passing: bool = False) -> Kept:
    """Return rows [R, n] in the form that their product with a weight [outputs, n] takes.

    The events among them where that is cheaper (or asked for); else the rows, as bits if they are
    spikes and many. With ``passing`` the rows are held by somebody else, or no gradient will be
    asked for: then nothing is packed. Where derivatives are taken forward, nothing is events:
    their product has none.

    Raises:
        KernelError: Events were asked for where there is no such product.
    """
    if kernels.synapse == "events" and (rows.device.type != "cpu" or rows.dtype not in REALS):
        raise KernelError(
            f"synapse='events' cannot run here: rows are {rows.dtype} on {rows.device}, events are "
            "added in float32 and float64 on a CPU; use synapse='auto' or 'dense'"
        )
    if kernels.synapse == "events" and forward_ad._current_level >= 0:
        raise KernelError(
            "synapse='events' cannot run here: derivatives are taken forward, which the dense "
            "product alone can do; use synapse='auto' or 'dense'"
        )
    chosen = kernels.synapse == "events"
    free = kernels.synapse == "auto" and forward_ad._current_level < 0
    if chosen or (free and is_worth(rows, outputs)):
        return events_of(rows)
    return rows.detach() if passing else packed(rows, kernels)


def packed(x: Tensor, kernels: Kernels) -> Tensor | Bits:
    """Return an array as bits if it is one of spikes and large (or memory lean), else as it is."""
    x = x.detach()
    large = x.numel() >= LARGE and x.device.type == "cpu"  # a look would stop a GPU
    if large or kernels.memory == "lean":
        bits = bits_of(x)
        if bits is not None:
            return bits
    return x


def dense(kept: Kept) -> Tensor:
    """Return the rows that were kept."""
    return kept if isinstance(kept, Tensor) else kept.dense()


def weight_gradient(kept: Kept, delta: Tensor) -> Tensor:
    """Return ``delta^T x`` [m, n] of rows ``x`` that were kept."""
    return outer(kept, delta) if isinstance(kept, Events) else delta.T @ dense(kept)


def linear(
    rows: Tensor, kept: Kept, weight: Tensor, bias: Tensor | None, kernels: Kernels
) -> Tensor:
    """Return the current [R, m] of rows [R, n] and a weight [m, n].

    Args:
        rows: The rows.
        kept: What :func:`keep` made of them.
        weight: Effective weight.
        bias: [m].
        kernels: Tells the precision of dense products.
    """
    if isinstance(kept, Tensor):
        return _dense(rows, weight, bias, kernels)
    found: Tensor = _Product.apply(rows, kept, weight, bias, kernels)  # type: ignore[no-untyped-call]
    return found


def _dense(rows: Tensor, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> Tensor:
    if kernels.precision == "full":
        return functional.linear(rows, weight, bias)
    half = None if bias is None else bias.bfloat16()
    return functional.linear(rows.bfloat16(), weight.bfloat16(), half).to(rows.dtype)


class _Product(torch.autograd.Function):
    """Keeps events or bits instead of the rows."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, kept: Kept, weight: Tensor, bias: Tensor | None, kernels: Kernels
    ) -> Tensor:
        ctx.kept = kept if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None)
        if not isinstance(kept, Events):
            return _dense(rows, weight, bias, kernels)
        current = product(kept, weight)
        return current if bias is None else current.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        (weight,) = ctx.saved_tensors
        delta = grads[0].contiguous()
        g_rows = delta @ weight if ctx.needs_input_grad[0] else None
        g_weight = weight_gradient(ctx.kept, delta) if ctx.needs_input_grad[2] else None
        return g_rows, None, g_weight, delta.sum(0) if ctx.needs_input_grad[3] else None, None
