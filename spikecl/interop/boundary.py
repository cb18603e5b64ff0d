"""What crosses to the hardware distribution and back: input in its shapes, its errors as ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from spikecl_hardware.graph import GraphError
from spikecl_hardware.loihi.lava import LavaError
from spikecl_hardware.loihi.netx import NetxError
from spikecl_hardware.loihi.program import ProgramError
from spikecl_hardware.loihi.rules import RuleError
from torch import Tensor

from spikecl.errors import HardwareError, UsageError


@contextlib.contextmanager
def hardware_errors() -> Iterator[None]:
    """Raise what the hardware distribution refuses as an error of this one."""
    refused = (GraphError, ProgramError, RuleError, LavaError, NetxError, FileNotFoundError)
    try:
        yield
    except refused as error:
        raise HardwareError(str(error)) from None


def as_input(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return encoded data [T, B, *features] with the features of a file's input.

    Images become rows before a dense synapse and maps [C, H, W] before a convolution.
    """
    if tuple(x.shape[2:]) == shape:
        return x
    if len(shape) == 1 and x[0, 0].numel() == shape[0]:
        return x.flatten(2)
    if len(shape) == 3 and tuple(x.shape[2:]) == shape[1:]:
        return x[:, :, None]
    if len(shape) == 3 and x.dim() == 5 and (x.shape[4], *x.shape[2:4]) == shape:
        return x.movedim(-1, 2)
    raise UsageError(f"data have features {list(x.shape[2:])}, the file takes {list(shape)}")
