"""The fused form through ``torch.compile``: for any device, compiled for each shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spikecl.kernels import compiler
from spikecl.kernels.backend import TorchBackend
from spikecl.kernels.program import Program


def against(device: str) -> str | None:
    """Return what keeps this kernel from running; ``None`` if nothing does."""
    if device == "cpu" and compiler.compiler() is None:
        return "no C compiler, which torch.compile needs on a CPU"
    return None


class InductorBackend(TorchBackend):
    """Compiles the loop over all steps as a whole."""

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
        run = _compiled(program, "forward")
        found: list[Tensor] = run(x, list(state), list(parameters), out, tape)
        return found

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
        run = _compiled(program, "backward")
        found: tuple[list[Tensor], list[Tensor]] = run(
            list(tape), list(parameters), g_out, list(g_after), g_x
        )
        return found


@functools.cache
def _compiled(program: Program, direction: str) -> Callable[..., Any]:
    plain = getattr(TorchBackend(), direction)

    def run(*args: Any) -> Any:
        return plain(program, *args)

    return torch.compile(run, dynamic=False, fullgraph=True)
