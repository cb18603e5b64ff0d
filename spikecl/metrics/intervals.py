"""Inter-spike intervals, and how irregular they are: pure functions of spikes [T, B, N] or [T, N].

Spikes are 0 or 1, or counts: a count of k is k spikes at one time, k - 1 intervals of zero. No
interval reaches from one trial into the next; the intervals of a neuron are those of all B trials.
What is undefined is NaN.

All raise ``UsageError`` for another rank and for values that are no spikes.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from spikecl.metrics.trains import Floats, Trains, as_trains, positive, ratio


@overload
def isi(spikes: Trains, dt: float, *, per_neuron: Literal[False] = False) -> Floats: ...
@overload
def isi(spikes: Trains, dt: float, *, per_neuron: Literal[True]) -> list[Floats]: ...
def isi(spikes: Trains, dt: float, *, per_neuron: bool = False) -> Floats | list[Floats]:
    """Return inter-spike intervals in ms, ``t[k + 1] - t[k]``, by neuron, trial and time.

    Args:
        spikes: [T, B, N] or [T, N].
        dt: Time step in ms.
        per_neuron: Return a list of N arrays in place of one; a neuron with fewer than two spikes
            has an empty one.

    Example:
        >>> import numpy as np
        >>> spikes = np.array([[1, 0], [0, 1], [1, 1], [1, 0]])
        >>> isi(spikes, dt=0.5).tolist()
        [1.0, 0.5, 0.5]
        >>> [x.tolist() for x in isi(spikes, dt=0.5, per_neuron=True)]
        [[1.0, 0.5], [0.5]]
    """
    x = as_trains(spikes)
    steps, train = _intervals(x)
    times = steps * np.float64(positive(dt, "dt"))
    if not per_neuron:
        return times
    ends = np.bincount(train // x.shape[1], minlength=x.shape[2]).cumsum()
    return np.split(times, ends[:-1])


def cv(spikes: Trains) -> Floats:
    """Return each neuron's coefficient of variation [N], ``sd(isi) / mean(isi)``.

    Zero for a clock, 1 for a Poisson process, ``sqrt(1 - p)`` for spikes drawn at each step with
    probability p. NaN for fewer than two intervals, or where all are zero (several spikes, one
    step).

    Args:
        spikes: [T, B, N] or [T, N].

    Source: Softky & Koch (1993).

    Example:
        >>> import numpy as np
        >>> clock, other = [1, 0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 1, 0, 0]
        >>> cv(np.array([clock, other]).T).round(3).tolist()
        [0.0, 0.707]
    """
    x = as_trains(spikes)
    steps, train = _intervals(x)
    n, total, squares = _sums(train // x.shape[1], x.shape[2], steps**0, steps, steps**2)
    spread = np.sqrt(n * squares - total**2)  # whole numbers: a clock has exactly zero
    return ratio(spread, total * np.sqrt(1 - 1 / np.maximum(n, 1)))


def cv2(spikes: Trains) -> Floats:
    """Return each neuron's local variation [N], the mean of ``2 |b - a| / (a + b)``.

    a and b are intervals in succession within a trial. Slow changes of the rate hardly matter,
    unlike for :func:`cv`; 1 for a Poisson process. Two intervals of zero count as equal. NaN where
    no trial has two intervals.

    Args:
        spikes: [T, B, N] or [T, N].

    Source: Holt et al. (1996).

    Example:
        >>> import numpy as np
        >>> cv2(np.array([[1, 1, 0, 0, 1, 0, 1]]).T).round(3).tolist()  # intervals 1, 3, 2
        [0.7]
    """
    x = as_trains(spikes)
    steps, train = _intervals(x)
    near = train[1:] == train[:-1]
    a, b, neuron = steps[:-1][near], steps[1:][near], train[1:][near] // x.shape[1]
    terms = np.divide(2.0 * abs(b - a), a + b, where=a + b > 0, out=np.zeros(len(a)))
    return ratio(*_sums(neuron, x.shape[2], terms, terms**0))


def _intervals(x: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return intervals in steps by neuron, trial and time, and the train of each.

    The number of a train is ``neuron B + trial``.
    """
    neuron, trial, step = np.nonzero(x.transpose(2, 1, 0))
    number = x[step, trial, neuron].astype(np.int64)
    train, step = np.repeat(neuron * x.shape[1] + trial, number), np.repeat(step, number)
    inside = train[1:] == train[:-1]
    return np.diff(step)[inside], train[1:][inside]


def _sums(group: NDArray[np.int64], n: int, *values: NDArray[Any]) -> list[Floats]:
    """Return the sums [n] of each kind of values by group."""
    return [np.bincount(group, x, minlength=n).astype(np.float64) for x in values]
