"""What a pass leaves behind for those who form gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from spikecl.kernels.product import LARGE, Kept, dense
from spikecl.networks.paths import ALL, Paths


class Tap(NamedTuple):
    """What a synapse saw, and the place in the graph where the error of its current arrives.

    Args:
        kept: Rows [R, ...] as the pass kept them: as they are, as bits, or as events.
        edge: What gradients of the current are asked of; the current itself is gone by then.
            ``None`` where gradients were off: the rows are there, errors are not.
        shape: Shape [R, ...] of the current.
        dtype: Type of both.
        device: Of both.
    """

    kept: Kept
    edge: GradientEdge | None
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def rows(self) -> Tensor:
        """The rows."""
        return dense(self.kept)

    def no_error(self) -> Tensor:
        """Return the error of a current that nothing depends on."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


class Taps(dict[str, Tap]):
    """Taps by synapse, and what else trainers ask of a pass.

    Args:
        paths: Which ways errors take back.

    Attributes:
        direct: Parameters that no synapse holds, as leaves that gradients can be asked of.
        fired: Output [T, B, *features] of each layer with neurons.
        driven: Current [T, B, *features] that drove them, recurrent synapses aside.
    """

    def __init__(self, paths: Paths = ALL) -> None:
        super().__init__()
        self.paths = paths
        self.direct: dict[str, Tensor] = {}
        self.fired: dict[str, Tensor] = {}
        self.driven: dict[str, Tensor] = {}


def tapped(kept: Kept, current: Tensor) -> tuple[Tap, Tensor]:
    """Return a tap of a current [R, ...], and the current to go on with."""
    if not torch.is_grad_enabled():
        return Tap(kept, None, current.shape, current.dtype, current.device), current
    if not current.requires_grad and current.numel() < LARGE:
        current.requires_grad_()
    elif not current.requires_grad:  # a leaf is held by its own gradient edge
        current = _Start.apply(current, torch.zeros((), requires_grad=True))  # type: ignore[no-untyped-call]
    return Tap(
        kept, get_gradient_edge(current), current.shape, current.dtype, current.device
    ), current


class _Start(torch.autograd.Function):
    """Begins a graph at a tensor that has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0].new_zeros(())
