"""What the measures and pictures of spike trains ask of their input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikecl.errors import UsageError

Trains = NDArray[Any] | Tensor
Floats = NDArray[np.float64]

_AT_ONCE = 2**20  # values checked at once: no temporaries of the array's size


def to_array(x: Trains) -> NDArray[Any]:
    """Return an array of the values; a tensor leaves its graph and device, bfloat16 widens."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return np.asarray(x)


def as_trains(x: Trains, name: str = "spikes", *, counts: bool = True) -> NDArray[Any]:
    """Return [T, N] or [T, B, N] as [T, B, N], checked, without a copy.

    Args:
        x: The array or tensor.
        name: What a message calls it.
        counts: Values must be whole and not negative, as spikes are; else they must be finite.

    Raises:
        UsageError: Another rank, an empty axis, or values that cannot be.
    """
    a = to_array(x)
    if a.ndim not in (2, 3) or not a.size or a.dtype.kind not in "buif":
        raise UsageError(
            f"{name} are {a.dtype} {list(a.shape)}; allowed are numbers [T, N] or [T, B, N], no "
            f"axis empty: one train is x[:, None], and x.reshape(T, B, -1) flattens features"
        )
    rows = max(1, _AT_ONCE * len(a) // a.size)
    if not all(_possible(a[i : i + rows], counts) for i in range(0, len(a), rows)):
        kind = "0, 1 or whole counts" if counts else "finite numbers"
        raise UsageError(
            f"{name} must be {kind}, but some values are not; was another array meant?"
        )
    return a[:, None] if a.ndim == 2 else a


def _possible(x: NDArray[Any], counts: bool) -> bool:
    if not np.isfinite(x).all():
        return False
    return not counts or bool(((x >= 0) & (x == np.rint(x))).all())


def positive(value: float, name: str) -> float:
    """Return a value in milliseconds that is finite and above zero.

    Raises:
        UsageError: It is not.
    """
    if not 0 < value < math.inf:
        raise UsageError(f"{name} is {value}; give a finite number of milliseconds above zero")
    return value


def steps_in(window: float, dt: float, steps: int) -> int:
    """Return how many of the ``steps`` time steps of ``dt`` ms a window of so many ms spans.

    Raises:
        UsageError: The window is no whole number of steps or longer than the recording.
    """
    n = round(positive(window, "window") / positive(dt, "dt"))
    if not 1 <= n <= steps or not math.isclose(n * dt, window, rel_tol=1e-6):
        raise UsageError(
            f"window is {window} ms; choose a whole number of steps of {dt} ms, at most the "
            f"{steps * dt:g} ms of the recording"
        )
    return n


def ratio(above: Floats, below: Floats) -> Floats:
    """Return a quotient, NaN where the denominator is zero."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    found: Floats = np.divide(above, below, where=below > 0, out=np.full(shape, np.nan))
    return found
