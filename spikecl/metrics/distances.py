"""Distances between spike trains: pure functions of two arrays [T, B, N] or [T, N], dt in ms.

Each train of the one is compared with the train in the same place of the other. Spikes are 0 or 1,
or counts; those of step t lie at ``t dt``. Trains without spikes are as good as others.

All raise ``UsageError`` for another rank, values that are no spikes, two shapes that differ, and
times that are not positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikecl.errors import UsageError
from spikecl.metrics.trains import Floats, Trains, as_trains, positive, to_array

Ints = NDArray[np.int64]


def van_rossum(a: Trains, b: Trains, *, tau: float, dt: float) -> Floats:
    """Return the van Rossum distances [B, N] or [N] between the trains of a and b.

    With ``f(t) = sum_k exp(-(t - t_k) / tau)`` over the spikes ``t_k <= t`` of a, and g of b::

        D^2 = (1 / tau) integral_0^inf (f - g)^2 dt

    This is the paper's normalisation: one spike more or less is ``D^2 = 1 / 2``, n at one time
    ``n^2 / 2``, one spike moved by d ``D^2 = 1 - exp(-d / tau)``. What is returned is D, for which
    the triangle inequality holds. Between steps ``x = f - g`` decays, so the integral is exact::

        x[t] = exp(-dt / tau) x[t - 1] + a[t] - b[t]
        D^2 = (1 / 2) ((1 - exp(-2 dt / tau)) sum_{t < T - 1} x[t]^2 + x[T - 1]^2)

    Args:
        a: [T, B, N] or [T, N].
        b: The same shape.
        tau: Time constant in ms: small compares coincidences, large compares counts.
        dt: Time step in ms.

    Source: van Rossum (2001).

    Example:
        >>> import numpy as np
        >>> a, b = np.array([[1, 0, 0], [0, 1, 0]]).T, np.array([[0, 0, 1], [0, 0, 0]]).T
        >>> (van_rossum(a, b, tau=10.0, dt=1.0) ** 2).round(4).tolist()  # 1 - exp(-0.2), 1 / 2
        [0.1813, 0.5]
    """
    one, other = _pair(a, b)
    ratio = positive(dt, "dt") / positive(tau, "tau")
    decay, lost = math.exp(-ratio), -math.expm1(-2 * ratio)
    x, total = np.zeros(one.shape[1:]), np.zeros(one.shape[1:])
    for mine, yours in zip(one, other, strict=True):
        total += lost * x * x
        x = decay * x + mine - yours
    return np.sqrt((total + x * x) / 2).reshape(to_array(a).shape[1:])


def victor_purpura(a: Trains, b: Trains, *, cost: float, dt: float) -> Floats:
    """Return the Victor-Purpura distances [B, N] or [N] between the trains of a and b.

    The least cost of turning one train into the other: 1 for adding or taking away a spike,
    ``cost |d|`` for moving one by d ms. With ``t_i`` and ``u_j`` the spikes' times::

        D[i, 0] = i,  D[0, j] = j
        D[i, j] = min(D[i - 1, j] + 1, D[i, j - 1] + 1, D[i - 1, j - 1] + cost |t_i - u_j|)

    Args:
        a: [T, B, N] or [T, N].
        b: The same shape.
        cost: Per ms, q in the paper, at least 0: 0 compares counts; with more than 2 / d, spikes
            further apart than d are not moved.
        dt: Time step in ms.

    Raises:
        UsageError: The cost is negative or not finite.

    Source: Victor & Purpura (1996).

    Example:
        >>> import numpy as np
        >>> a, b = np.array([[1, 0, 0, 1]]).T, np.array([[0, 0, 1, 0]]).T
        >>> victor_purpura(a, b, cost=0.5, dt=1.0).tolist()  # moves one by 1 ms, drops the other
        [1.5]
    """
    one, other = _pair(a, b)
    if not 0 <= cost < math.inf:
        raise UsageError(f"cost is {cost}; give a finite price per millisecond, at least 0")
    per_step = cost * positive(dt, "dt")
    pairs = zip(_spike_steps(one), _spike_steps(other), strict=True)
    found = np.array([_edit(x, y, per_step) for x, y in pairs])
    return found.reshape(to_array(a).shape[1:])


def _edit(t: Ints, u: Ints, cost: float) -> float:
    """Return the least cost of turning the sorted times t into u, row by row of D."""
    j = np.arange(len(u) + 1)
    row = j.astype(np.float64)
    for i, time in enumerate(t, start=1):
        moved = row[:-1] + cost * abs(u - time)
        row = np.minimum(row + 1, np.append(i, moved))
        row = np.minimum.accumulate(row - j) + j  # D[i, j] <= D[i, j - 1] + 1
    return float(row[-1])


def _spike_steps(x: NDArray[Any]) -> Iterator[Ints]:
    """Return each train's spikes by their steps; a count of k is k spikes."""
    for train in x.reshape(len(x), -1).T:
        yield np.repeat(np.arange(len(x)), train.astype(np.int64))


def _pair(a: Trains, b: Trains) -> tuple[NDArray[Any], NDArray[Any]]:
    shapes = to_array(a).shape, to_array(b).shape
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"a is {list(shapes[0])}, b is {list(shapes[1])}; give trains of one shape"
        )
    return as_trains(a, "a"), as_trains(b, "b")
