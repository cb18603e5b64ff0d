"""LIF over all steps in one autograd node.

Forward stores nothing but the membrane before reset, ``u`` [T, B, *features]; the surrogate and
its spikes are recomputed from it. Backward is one reverse scan. With ``psi[t] = h(u[t] - v_th)``,
``g_s`` the gradient of the spikes and ``g_v`` that of the state after a step, for a reset in the
same step::

    g_u[t] = psi[t] g_s[t] + k[t] g_v[t]
    g_v[t-1] = beta g_u[t]           g_x[t] = c g_u[t]

with ``k`` the derivative of the reset, ``dv/du`` (``s`` the spikes, kept part in brackets)::

    soft   1 [- v_th psi]       value  1 - s [+ (v_reset - u) psi]       none   1

For a reset in the next step the state is ``u`` itself with the spikes that wait, and its derivative
into the next membrane is ``beta`` [- v_th psi] (soft) or ``beta`` times the value form.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikecl.neurons import IF, LIF, PLIF, LIFState, Neuron, Reset, Smooth


def is_fusible(neuron: Neuron) -> bool:
    """Whether a neuron is of the kind this kernel computes: one number per parameter."""
    return (
        isinstance(neuron, LIF)
        and type(neuron) in (LIF, IF, PLIF)
        and neuron.plain
        and neuron.reset_time != "after"
        and not isinstance(neuron.surrogate, Smooth)
        and not any(isinstance(getattr(neuron, name), Tensor) for name in _NUMBERS)
    )


_NUMBERS = ("beta", "v_th", "v_reset", "v_rest")


def fused_lif(x: Tensor, state: LIFState, neuron: Neuron) -> tuple[Tensor, LIFState]:
    """Run LIF neurons over an input current [T, B, *features]; see the module's equations."""
    if not x.shape[0]:
        return x, state
    spikes, last = _FusedLIF.apply(x, state.v, state.spikes, neuron)  # type: ignore[no-untyped-call]
    waiting = spikes[-1].clone() if state.spikes is not None else None
    return spikes, LIFState(last, waiting)


class _Numbers:
    """The parameters of a neuron as plain numbers."""

    def __init__(self, neuron: LIF):
        self.beta, self.v_th = cast(float, neuron.beta), cast(float, neuron.v_th)
        self.reset_value = cast(float, neuron.reset_value)
        self.scale, self.drift = cast(float, neuron.input_scale), cast(float, neuron.drift)
        self.late, self.kept = neuron.reset_time == "next", not neuron.detach_reset
        self.soft, self.none = neuron.reset is Reset.SOFT, neuron.reset is Reset.NONE
        self.compare = torch.gt if neuron.strict else torch.ge
        self.surrogate = neuron.surrogate


class _FusedLIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor, waiting: Tensor | None, neuron: LIF
    ) -> tuple[Tensor, Tensor]:
        u = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        spikes = torch.empty_like(u)
        p = _Numbers(neuron)
        last = _forward(x, v, waiting, p, u, spikes)
        ctx.save_for_backward(u, v, waiting)
        ctx.p = p
        return spikes, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        u, v, waiting = ctx.saved_tensors
        p: _Numbers = ctx.p
        psi = p.surrogate(u - p.v_th)
        g_u = psi * grads[0]
        first = _backward(u, psi, g_u, grads[1], p)
        g_v, g_waiting = first * p.beta, None
        if waiting is not None:  # the state that came in is reset by the spikes that waited
            if not (p.soft or p.none):
                if p.kept:
                    g_waiting = g_v * (p.reset_value - v)
                g_v = g_v * (1 - waiting)
            elif p.soft and p.kept:
                g_waiting = first * -p.v_th
        g_x = g_u if p.scale == 1 else g_u.mul_(p.scale)
        return g_x, g_v if ctx.needs_input_grad[1] else None, g_waiting, None


def _forward(
    x: Tensor, v: Tensor, fired: Tensor | None, p: _Numbers, u: Tensor, spikes: Tensor
) -> Tensor:
    for t in range(len(x)):
        if p.late and not p.soft:
            v = _reset(v, fired, p)
        torch.mul(v, p.beta, out=u[t])
        u[t].add_(x[t] if p.scale == 1 else x[t] * p.scale)  # alpha= rounds once, not twice
        if p.drift:
            u[t].add_(p.drift)
        if p.late and p.soft:
            assert fired is not None
            u[t].sub_(fired, alpha=p.v_th)
        fired = p.compare(u[t], p.v_th, out=spikes[t])
        v = u[t] if p.late else _reset(u[t], fired, p)
    return v.clone() if p.late or p.none else v


def _reset(u: Tensor, spikes: Tensor | None, p: _Numbers) -> Tensor:
    assert spikes is not None
    if p.none:
        return u
    if p.soft:
        return torch.sub(u, spikes, alpha=p.v_th)
    return torch.sub(1, spikes).mul_(u).add_(spikes, alpha=p.reset_value)


def _backward(u: Tensor, psi: Tensor, g_u: Tensor, g_v: Tensor, p: _Numbers) -> Tensor:
    """Complete ``g_u`` in place by one reverse scan; return the gradient of the first membrane."""
    if p.late:
        for t in reversed(range(len(u))):
            g_u[t].add_(g_v)
            if t:
                g_v = g_u[t] * _through_reset(u[t - 1], psi[t - 1], p)
        return g_u[0]
    plain = p.none or (p.soft and not p.kept)
    for t in reversed(range(len(u))):
        g_u[t].add_(g_v if plain else g_v * _slope(u[t], psi[t], p))
        if t:
            g_v = g_u[t] * p.beta
    return g_u[0]


def _slope(u: Tensor, psi: Tensor, p: _Numbers) -> Tensor:
    """Derivative of the membrane after a reset by that before it."""
    if p.soft:
        return 1 - p.v_th * psi
    slope = 1 - p.compare(u, p.v_th).to(u.dtype)
    return slope + (p.reset_value - u) * psi if p.kept else slope


def _through_reset(u: Tensor, psi: Tensor, p: _Numbers) -> Tensor | float:
    """Derivative of the next membrane by this one when the reset comes in the next step."""
    if p.none or (p.soft and not p.kept):
        return p.beta
    if p.soft:
        return p.beta - p.v_th * psi
    return p.beta * _slope(u, psi, p)
