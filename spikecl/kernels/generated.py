"""A program over all steps as one autograd node, with or without synapses of the layer onto itself.

Backward in time, with the recurrent weight ``R`` and the adjoints ``g_x`` of the input current::

    g_s[t] = g_out[t] + g_x[t+1] R            g_R = sum_t g_x[t]^T s[t-1]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikecl.kernels.backend import Backend, new_tape, refuse_second_derivatives
from spikecl.kernels.program import Memory, Program, program
from spikecl.kernels.recurrence import Recurrence, RecurrentState
from spikecl.neurons import Neuron, State
from spikecl.neurons.neuron import leaves, rebuild, tensors_of


def generated(
    x: Tensor,
    state: State,
    neuron: Neuron,
    backend: Backend,
    *,
    recurrence: Recurrence | None = None,
    memory: Memory = "full",
) -> tuple[Tensor, State]:
    """Run a neuron that has a program; see :func:`spikecl.kernels.scan`."""
    inner: State = state
    last: Any = None
    if recurrence is not None:
        inner, last = state
    tensors = [getattr(neuron, name) for name in tensors_of(neuron)]
    grad = torch.is_grad_enabled()
    trained = tuple(k for k, tensor in enumerate(tensors) if grad and tensor.requires_grad)
    found = program(neuron, inner, trained=trained, memory=memory)
    assert found is not None
    weights = (None, None) if recurrence is None else recurrence
    run = Run(found, backend)
    given = (x, *weights, last, *leaves(inner), *tensors)
    if grad and any([tensor is not None and tensor.requires_grad for tensor in given]):
        out, *after = _Scan.apply(run, *given)  # type: ignore[no-untyped-call]
    else:
        out, after, _ = _forward(run, *given, keep=False)
    end = rebuild(inner, iter(after))
    if recurrence is None:
        return out, end
    return out, RecurrentState(end, out[-1].clone() if len(x) else last)


class Run(NamedTuple):
    """A program and what runs it."""

    program: Program
    backend: Backend


def _forward(
    run: Run,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    last: Tensor | None,
    *tensors: Tensor,
    keep: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor] | None]:
    """Return the output, the state after the last step, and the tape."""
    known, backend = run
    states = len(known.before)
    after, parameters = list(tensors[:states]), tensors[states:]
    after = [part.clone(memory_format=torch.contiguous_format) for part in after]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tape = new_tape(known, x) if keep else None
    if weight is None:
        return out, backend.forward(known, x, after, parameters, out, tape), tape
    assert last is not None
    spikes, recurrence = last, Recurrence(weight, bias)
    for t in range(len(x)):
        at = slice(t, t + 1)
        now = (x[t] + recurrence(spikes))[None]
        kept = None if tape is None else [slot[at] for slot in tape]
        after = backend.forward(known, now, after, parameters, out[at], kept)
        spikes = out[t].clone()
    return out, after, tape


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        run: Run,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        last: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        out, after, tape = _forward(run, x, weight, bias, last, *tensors, keep=True)
        assert tape is not None
        ctx.run, ctx.shape, ctx.slots = run, x.shape, len(tape)
        sent = out if ctx.needs_input_grad[2] else None
        parameters = tensors[len(run.program.before) :]
        ctx.save_for_backward(*tape, *parameters, weight, last, sent)
        ctx.set_materialize_grads(False)
        return out, *after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        known, backend = ctx.run
        saved = ctx.saved_tensors
        tape, parameters, (weight, last, sent) = (
            saved[: ctx.slots],
            saved[ctx.slots : -3],
            saved[-3:],
        )
        like = next((g for g in grads if g is not None), None)
        if like is None:  # nothing depends on anything
            return (None,) * len(ctx.needs_input_grad)
        one = like.new_zeros(ctx.shape[1:])
        g_out = grads[0] if grads[0] is not None else one.expand(ctx.shape)
        g_state = [one if g is None else g for g in grads[1:]]
        g_x = torch.empty(ctx.shape, dtype=like.dtype, device=like.device)
        back: list[Tensor | None] = [None] * 3
        if weight is None:
            g_state, sums = backend.backward(known, tape, parameters, g_out, g_state, g_x)
        else:
            n = weight.shape[0]
            sums = [one.clone() for _ in known.trained]
            later = None
            for t in reversed(range(len(g_x))):
                at = slice(t, t + 1)
                now = g_out[t] if later is None else g_out[t] + later
                slots = [slot[at] for slot in tape]
                g_state, part = backend.backward(
                    known, slots, parameters, now[None], g_state, g_x[at]
                )
                sums = [a + b for a, b in zip(sums, part)]
                later = (g_x[t].flatten(1) @ weight).view(one.shape)
            rows = g_x.reshape(-1, n)
            if sent is not None:
                before = torch.cat([last[None], sent[:-1]]).reshape(-1, n)
                back[0] = rows.T @ before
            back[1] = rows.sum(0) if ctx.needs_input_grad[3] else None
            back[2] = one if later is None else later
        trained = dict(zip(known.trained, sums))
        g_parameters = [
            trained[k].sum_to_size(_padded(p, one)).view(p.shape).to(p.dtype)
            if k in trained
            else None
            for k, p in enumerate(parameters)
        ]
        return None, g_x, *back, *g_state, *g_parameters


def _padded(parameter: Tensor, one: Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter with as many axes as one step has."""
    return (1,) * (one.dim() - parameter.dim()) + tuple(parameter.shape)
