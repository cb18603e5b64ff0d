"""What generated kernels have in common: arrays over time in, arrays over time out.

A backend runs a program over all steps. It knows nothing of autograd, recurrence or networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spikecl.errors import KernelError
from spikecl.kernels.equations import Node
from spikecl.kernels.program import Program

DTYPES = {"half": torch.bfloat16, "flag": torch.uint8}


class Backend(Protocol):
    """Runs a program; ``T`` steps of input ``x`` [T, B, *features] of one batch."""

    def forward(
        self,
        program: Program,
        x: Tensor,
        state: Sequence[Tensor],
        parameters: Sequence[Tensor],
        out: Tensor,
        tape: Sequence[Tensor] | None,
    ) -> list[Tensor]:
        """Fill ``out`` and the tape [T, B, *features]; return the state after the last step.

        The given state, contiguous, may be overwritten.
        """
        ...

    def backward(
        self,
        program: Program,
        tape: Sequence[Tensor],
        parameters: Sequence[Tensor],
        g_out: Tensor,
        g_after: Sequence[Tensor],
        g_x: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Fill ``g_x``; return adjoints of the first state and of the trained parameters.

        Those of parameters are sums over time alone, [B, *features].
        """
        ...


def refuse_second_derivatives() -> None:
    """Stop a way back that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise KernelError(
            "a second derivative was asked for (create_graph=True), and the fast kernels know the "
            'first alone; use Kernels(scan="reference", synapse="dense")'
        )


def new_tape(program: Program, x: Tensor) -> list[Tensor]:
    """Return arrays for what the forward pass keeps of an input [T, B, *features]."""
    return [
        torch.empty(x.shape, dtype=DTYPES.get(slot.kind, x.dtype), device=x.device)
        for slot in program.tape
    ]


class TorchBackend:
    """Operation by operation in torch, one step after the other: the form that runs anywhere."""

    def forward(
        self,
        program: Program,
        x: Tensor,
        state: Sequence[Tensor],
        parameters: Sequence[Tensor],
        out: Tensor,
        tape: Sequence[Tensor] | None,
    ) -> list[Tensor]:
        """Fill ``out`` and the tape; return the state after the last step."""
        order = program.step if tape is None else program.step_kept
        known = _known(program, parameters)
        for t in range(len(x)):
            values = {**known, program.x: x[t], **dict(zip(program.before, state))}
            evaluate(program.nodes, order, values, x.dtype)
            out[t] = values[program.out]
            for slot, kept in zip(program.tape, tape or ()):
                kept[t] = values[slot.node]
            state = [full(values[node], x[t]) for node in program.after]
        return [part.clone() for part in state]  # may be a view of what comes out

    def backward(
        self,
        program: Program,
        tape: Sequence[Tensor],
        parameters: Sequence[Tensor],
        g_out: Tensor,
        g_after: Sequence[Tensor],
        g_x: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Fill ``g_x``; return adjoints of the first state and of the trained parameters."""
        order = program.step_back
        known = _known(program, parameters)
        sums = [torch.zeros_like(g_x[0]) for _ in program.trained]
        g_state = list(g_after)
        zero = torch.zeros_like(g_x[0])
        for t in reversed(range(len(g_x))):
            values = {**known, program.g_out: g_out[t], **dict(zip(program.g_after, g_state))}
            for slot, kept in zip(program.tape, tape):
                values[slot.node] = kept[t].to(g_x.dtype)
            evaluate(program.nodes, order, values, g_x.dtype)
            g_x[t] = zero if program.g_x is None else values[program.g_x]
            for total, node in zip(sums, program.g_parameters):
                if node is not None:
                    total += values[node]
            g_state = [zero if n is None else full(values[n], zero) for n in program.g_before]
        return g_state, sums


def _known(program: Program, parameters: Sequence[Tensor]) -> dict[int, Any]:
    constants = constants_of(program.nodes, program.constants)
    return constants | dict(zip(program.parameters, parameters))


def constants_of(nodes: Sequence[Node], constants: Sequence[float]) -> dict[int, Any]:
    """Return the numbers of a program, by node."""
    return {n: constants[args[0]] for n, (op, args) in enumerate(nodes) if op == "constant"}


def full(value: Any, like: Tensor) -> Tensor:
    """Return a value as a tensor of the shape of one step."""
    made = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return made if made.shape == like.shape else made.expand(like.shape)


def evaluate(
    nodes: Sequence[Node], order: Sequence[int], values: dict[int, Any], dtype: torch.dtype
) -> None:
    """Add the values of nodes, computed in this order."""
    for index in order:
        op, args = nodes[index]
        found = _OPERATIONS[op](*(values[n] for n in args))
        values[index] = found.to(dtype) if op == "cast" else found


def _extreme(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    def apply(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        return function(*(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (a, b)))

    return apply


def _where(condition: Tensor, a: Any, b: Any) -> Tensor:
    dtype = next((v.dtype for v in (a, b) if isinstance(v, Tensor)), None)
    found = torch.where(condition.bool(), a, b)
    return found if dtype is None else found.to(dtype)


def _spike(compare: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda distance, *_: compare(distance, 0).to(distance.dtype)


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "abs": abs,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "cast": lambda a: a,
    "where": _where,
    "relu": lambda a: torch.relu(a),
    "min": _extreme(torch.minimum),
    "max": _extreme(torch.maximum),
    "exp": lambda a: torch.exp(a),
    "sigmoid": lambda a: torch.sigmoid(a),
    "erf": lambda a: torch.erf(a),
    "spike_gt": _spike(torch.gt),
    "spike_ge": _spike(torch.ge),
    "detach": lambda a: a,
}
