"""A program over all steps as one autograd node, with or without synapses of the layer onto itself.

Backward in time, with the recurrent weight ``R`` and the adjoints ``g_x`` of the input current::

    g_s[t] = g_out[t] + g_x[t+1] R            g_R = sum_t g_x[t]^T s[t-1]

Where the memory of the neurons is cut (:class:`Ways`), all steps go back at once, as if they were
samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikecl.kernels.backend import Backend, new_tape, refuse_second_derivatives
from spikecl.kernels.program import Memory, Program, program
from spikecl.kernels.recurrence import EVERY_WAY, Recurrence, RecurrentState, Ways
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
    ways: Ways = EVERY_WAY,
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
    run = Run(found, backend, ways)
    given = (x, ways.through, *weights, last, *leaves(inner), *tensors)
    if grad and any([tensor is not None and tensor.requires_grad for tensor in given]):
        out, *after = _Scan.apply(run, *given)  # type: ignore[no-untyped-call]
    else:
        out, after, _ = _forward(run, x, *given[2:], keep=False)
    end = rebuild(inner, iter(after))
    if recurrence is None:
        return out, end
    return out, RecurrentState(end, out[-1].clone() if len(x) else last)


class Run(NamedTuple):
    """A program, what runs it, and the ways of errors back through it."""

    program: Program
    backend: Backend
    ways: Ways


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
    known, backend, _ = run
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
        through: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        last: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        out, after, tape = _forward(run, x, weight, bias, last, *tensors, keep=True)
        assert tape is not None
        ctx.run, ctx.shape, ctx.slots = (
            run._replace(ways=run.ways._replace(through=None)),
            x.shape,
            len(tape),
        )
        sent = out if ctx.needs_input_grad[3] else None
        parameters = tensors[len(run.program.before) :]
        ctx.save_for_backward(*tape, *parameters, weight, last, sent)
        ctx.set_materialize_grads(False)
        return out, *after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        saved = ctx.saved_tensors
        weight, last, sent = saved[-3:]
        like = next((g for g in grads if g is not None), None)
        if like is None:  # nothing depends on anything
            return (None,) * len(ctx.needs_input_grad)
        one = like.new_zeros(ctx.shape[1:])
        g_out = grads[0] if grads[0] is not None else one.expand(ctx.shape)
        g_state = [one if g is None else g for g in grads[1:]]
        tape = Tape(ctx.run, saved[: ctx.slots], saved[ctx.slots : -3])
        ways, g_through = ctx.run.ways, None
        if ctx.needs_input_grad[2]:
            silent = [torch.zeros_like(g) for g in g_state]
            g_through = _instant(tape, g_out, silent)[0]
        listens = weight is not None and ways.recurrent
        if ways.instant:
            g_x, g_state, sums = _instant(tape, g_out, g_state)
        elif listens:
            felt = weight if ways.back is None else ways.back
            g_x, g_state, sums = _listening(tape, felt, g_out, g_state)
        else:
            g_x, g_state, sums = _back(tape, g_out, g_state)
        back: list[Tensor | None] = [None] * 3
        if weight is not None:
            n = weight.shape[0]
            rows = g_x.reshape(-1, n)
            if sent is not None:
                before = torch.cat([last[None], sent[:-1]]).reshape(-1, n)
                back[0] = rows.T @ before
            back[1] = rows.sum(0) if ctx.needs_input_grad[4] else None
            if listens and not ways.instant and ctx.needs_input_grad[5]:
                back[2] = (g_x[0].flatten(1) @ felt).view(one.shape)
        trained = dict(zip(tape.run.program.trained, sums))
        g_parameters = [
            trained[k].sum_to_size(_padded(p, one)).view(p.shape).to(p.dtype)
            if k in trained
            else None
            for k, p in enumerate(tape.parameters)
        ]
        return None, g_x, g_through, *back, *g_state, *g_parameters


class Tape(NamedTuple):
    """What a forward pass left: slots [T, B, *features], and the parameters."""

    run: Run
    slots: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]

    def back(
        self, slots: Sequence[Tensor], g_out: Tensor, g_after: list[Tensor], g_x: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Fill ``g_x``; return adjoints of the state before the slots, and of parameters."""
        program, backend, _ = self.run
        return backend.backward(program, slots, self.parameters, g_out, g_after, g_x)


Adjoints = tuple[Tensor, list[Tensor], list[Tensor]]  # of the input, the state, the parameters


def _back(tape: Tape, g_out: Tensor, g_after: list[Tensor]) -> Adjoints:
    """All steps, one after the other."""
    g_x = torch.empty(g_out.shape, dtype=g_out.dtype, device=g_out.device)
    return g_x, *tape.back(tape.slots, g_out, g_after, g_x)


def _listening(tape: Tape, weight: Tensor, g_out: Tensor, g_after: list[Tensor]) -> Adjoints:
    """The same where the output of a step is input of the next."""
    g_x = torch.empty(g_out.shape, dtype=g_out.dtype, device=g_out.device)
    sums = [torch.zeros_like(g_x[0]) for _ in tape.run.program.trained]
    later = None
    for t in reversed(range(len(g_x))):
        at = slice(t, t + 1)
        now = g_out[t] if later is None else g_out[t] + later
        slots = [slot[at] for slot in tape.slots]
        g_after, part = tape.back(slots, now[None], g_after, g_x[at])
        sums = [a + b for a, b in zip(sums, part)]
        later = (g_x[t].flatten(1) @ weight).view(now.shape)
    return g_x, g_after, sums


def _instant(tape: Tape, g_out: Tensor, g_after: list[Tensor]) -> Adjoints:
    """Each step on its own; the error of the last state is that of the last step."""
    steps, rest = g_out.shape[0], g_out.shape[2:]
    once = [slot.flatten(0, 1)[None] for slot in tape.slots]
    errors = []
    for g in g_after:
        all_steps = g_out.new_zeros(g_out.shape)
        all_steps[-1] = g
        errors.append(all_steps.flatten(0, 1))
    flat = g_out.flatten(0, 1)[None]
    g_x = torch.empty(flat.shape, dtype=g_out.dtype, device=g_out.device)
    program, backend, _ = tape.run
    parameters = tuple(_repeated(p, steps, 1 + len(rest)) for p in tape.parameters)
    _, sums = backend.backward(program, once, parameters, flat, errors, g_x)
    shape = (steps, -1, *rest)
    zeros = [torch.zeros_like(g) for g in g_after]
    return g_x.view(shape), zeros, [part.view(shape).sum(0) for part in sums]


def _repeated(parameter: Tensor, steps: int, axes: int) -> Tensor:
    """Return a parameter that fits steps as samples: values per sample are repeated."""
    if parameter.dim() < axes or parameter.shape[0] == 1:
        return parameter
    return parameter.repeat(steps, *[1] * (parameter.dim() - 1))


def _padded(parameter: Tensor, one: Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter with as many axes as one step has."""
    return (1,) * (one.dim() - parameter.dim()) + tuple(parameter.shape)
