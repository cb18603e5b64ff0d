"""LIF over all steps in one autograd node.

Forward stores nothing but the membrane before reset, ``u`` [T, B, *features]; spikes and surrogate
are recomputed from it. Backward is one reverse scan. With ``psi[t] = h(u[t] - v_th)``, ``g_s`` the
gradient of the spikes and ``g_v`` that of the state after a step, for a reset in the same step::

    g_u[t] = psi[t] g_s[t] + k[t] g_v[t]
    g_v[t-1] = beta g_u[t]           g_x[t] = c g_u[t]

with ``k`` the derivative of the reset, ``dv/du`` (``s`` the spikes, kept part in brackets)::

    soft   1 [- v_th psi]       value  1 - s [+ (v_reset - u) psi]       none   1

For a reset in the next step the state is ``u`` itself, and its derivative into the next membrane
is ``beta`` [- v_th psi] (soft) or ``beta`` times the value form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikecl.neurons import LIF, LIFState, Reset
from spikecl.neurons.lif import check_state


class _FusedLIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, neuron: LIF) -> tuple[Tensor, Tensor]:
        u = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        spikes = torch.empty_like(u)
        last = _forward(x, v, neuron, u, spikes)
        ctx.save_for_backward(u, v)
        ctx.neuron = neuron
        return spikes, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        u, v = ctx.saved_tensors
        neuron: LIF = ctx.neuron
        g_spikes, g_last = grads
        psi = neuron.surrogate(u - neuron.v_th)
        g_u = psi * g_spikes
        g_v = _backward(u, psi, g_u, g_last, neuron)
        if neuron.reset_time == "next":
            # the state that came in was reset by its own spikes
            g_v = g_v * _through_reset(v, neuron.surrogate(v - neuron.v_th), neuron)
        else:
            g_v = g_v * neuron.beta
        g_x = g_u if neuron.input_scale == 1 else g_u.mul_(neuron.input_scale)
        return g_x, g_v if ctx.needs_input_grad[1] else None, None


def fused_lif(x: Tensor, state: LIFState | None, neuron: LIF) -> tuple[Tensor, LIFState]:
    """Run LIF neurons over an input current [T, B, *features]; see the module's equations."""
    v = x.new_zeros(x.shape[1:]) if state is None else state.v
    check_state(v, x.shape[1:])
    if not x.shape[0]:
        return x, LIFState(v)
    spikes, last = _FusedLIF.apply(x, v, neuron)  # type: ignore[no-untyped-call]
    return spikes, LIFState(last)


def _forward(x: Tensor, v: Tensor, neuron: LIF, u: Tensor, spikes: Tensor) -> Tensor:
    compare = torch.gt if neuron.strict else torch.ge
    late, c = neuron.reset_time == "next", neuron.input_scale
    fired = compare(v, neuron.v_th).to(x.dtype) if late else spikes[0]
    for t in range(len(x)):
        if late and neuron.reset in (Reset.ZERO, Reset.VALUE):
            v = _reset(v, fired, neuron)
        torch.mul(v, neuron.beta, out=u[t])
        u[t].add_(x[t], alpha=c)
        if late and neuron.reset is Reset.SOFT:
            u[t].sub_(fired, alpha=neuron.v_th)
        fired = compare(u[t], neuron.v_th, out=spikes[t])
        v = u[t] if late else _reset(u[t], fired, neuron)
    return v.clone() if late or neuron.reset is Reset.NONE else v


def _reset(u: Tensor, spikes: Tensor, neuron: LIF) -> Tensor:
    if neuron.reset is Reset.NONE:
        return u
    if neuron.reset is Reset.SOFT:
        return torch.sub(u, spikes, alpha=neuron.v_th)
    return u + spikes * (neuron.reset_value - u)


def _backward(u: Tensor, psi: Tensor, g_u: Tensor, g_v: Tensor, neuron: LIF) -> Tensor:
    """Complete ``g_u`` in place by one reverse scan; return the gradient of the first membrane."""
    if neuron.reset_time == "next":
        for t in reversed(range(len(u))):
            g_u[t].add_(g_v)
            if t:
                g_v = g_u[t] * _through_reset(u[t - 1], psi[t - 1], neuron)
        return g_u[0]
    plain = neuron.reset is Reset.NONE or (neuron.reset is Reset.SOFT and neuron.detach_reset)
    for t in reversed(range(len(u))):
        g_u[t].add_(g_v if plain else g_v * _slope(u[t], psi[t], neuron))
        if t:
            g_v = g_u[t] * neuron.beta
    return g_u[0]


def _slope(u: Tensor, psi: Tensor, neuron: LIF) -> Tensor:
    """Derivative of the membrane after a reset by that before it."""
    if neuron.reset is Reset.SOFT:
        return 1 - neuron.v_th * psi
    spikes = (u > neuron.v_th) if neuron.strict else (u >= neuron.v_th)
    slope = 1 - spikes.to(u.dtype)
    return slope if neuron.detach_reset else slope + (neuron.reset_value - u) * psi


def _through_reset(u: Tensor, psi: Tensor, neuron: LIF) -> Tensor | float:
    """Derivative of the next membrane by this one when the reset comes in the next step."""
    if neuron.reset is Reset.NONE or (neuron.reset is Reset.SOFT and neuron.detach_reset):
        return neuron.beta
    if neuron.reset is Reset.SOFT:
        return neuron.beta - neuron.v_th * psi
    return neuron.beta * _slope(u, psi, neuron)
