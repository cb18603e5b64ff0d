"""Measures of spike trains: pure functions of spikes [T, B, N] or [T, N] and of ``dt`` in ms.

Spikes are 0 or 1, or counts, in an array or a tensor. The spikes of step t lie at ``t dt``. A batch
is taken as B trials of one stimulus: except for :func:`rates`, trials add observations of the same
N neurons. Where the samples of a batch are different stimuli, give one, ``spikes[:, b]``.

Windows are a whole number of steps; steps that do not fill the last one are left out. What is
undefined is NaN. Variances are sample variances, over n - 1.

All raise ``UsageError`` for another rank, values that are no spikes, and times that are not
positive.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikecl.errors import UsageError
from spikecl.metrics.trains import Floats, Trains, as_trains, positive, ratio, steps_in, to_array

_MS = 1000.0  # milliseconds in a second


def rates(spikes: Trains, dt: float, *, window: float | None = None) -> Floats:
    """Return firing rates in Hz, ``1000 n / (steps dt)`` with n the spikes of one neuron.

    Args:
        spikes: [T, B, N] or [T, N].
        dt: Time step in ms.
        window: Length of the windows in ms; ``None`` takes the whole recording as one.

    Returns:
        [B, N] or [N]; with windows [T dt // window, B, N] or [T dt // window, N].

    Example:
        >>> import numpy as np
        >>> spikes = np.array([[0, 1], [0, 1], [1, 1], [0, 1]])  # 4 steps of 2 neurons
        >>> rates(spikes, dt=1.0).tolist()
        [250.0, 1000.0]
        >>> rates(spikes, dt=1.0, window=2.0).tolist()
        [[0.0, 1000.0], [500.0, 1000.0]]
    """
    x = as_trains(spikes)
    span = len(x) * positive(dt, "dt") if window is None else window
    found = _counts(x, dt, span) * (_MS / span)
    found = found.reshape(len(found), *to_array(spikes).shape[1:])
    return found[0] if window is None else found


def psth(spikes: Trains, dt: float, *, window: float) -> Floats:
    """Return the peri-stimulus time histogram in Hz: rates in windows, averaged over trials.

    Args:
        spikes: [T, B, N], or one trial [T, N].
        dt: Time step in ms.
        window: Width of a bin in ms.

    Returns:
        [T dt // window, N]; bin k covers the steps from ``k window`` to before ``(k + 1) window``.

    Source: Gerstein & Kiang (1960).

    Example:
        >>> import numpy as np
        >>> trials = np.array([[[1], [0]], [[0], [0]], [[1], [1]], [[0], [0]]])  # 2 trials
        >>> psth(trials, dt=1.0, window=2.0).ravel().tolist()
        [250.0, 500.0]
    """
    found: Floats = _counts(as_trains(spikes), dt, window).mean(1) * (_MS / window)
    return found


def fano(spikes: Trains, dt: float, *, window: float) -> Floats:
    """Return each neuron's Fano factor [N], ``var(n) / mean(n)`` of its spike counts n in windows.

    Counts are of all windows of all trials; with ``window = T dt`` they vary over trials alone.
    1 for a Poisson process, 0 for a clock, ``1 - p`` for spikes drawn at each step with probability
    p. NaN for a neuron without spikes.

    Args:
        spikes: [T, B, N] or [T, N].
        dt: Time step in ms.
        window: Length of the windows in ms.

    Raises:
        UsageError: There is but one window.

    Source: Fano (1947).

    Example:
        >>> import numpy as np
        >>> spikes = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1], [0, 0]])
        >>> fano(spikes, dt=1.0, window=2.0).tolist()  # counts 2, 0, 1 and 1, 1, 1
        [1.0, 0.0]
    """
    n = _observations(as_trains(spikes), dt, window)
    return ratio(n.var(0, ddof=1), n.mean(0))


def correlation(spikes: Trains, dt: float, *, window: float) -> Floats:
    """Return the spike-count correlations [N, N], Pearson's r of the counts in windows.

    ``r[i, j] = cov(n_i, n_j) / (sd(n_i) sd(n_j))`` over all windows of all trials; with
    ``window = T dt`` over trials alone, the "noise correlation". NaN where the counts of a neuron
    do not vary, as they do not in silent and in saturated trains.

    Args:
        spikes: [T, B, N] or [T, N].
        dt: Time step in ms.
        window: Length of the windows in ms.

    Raises:
        UsageError: There is but one window.

    Source: Cohen & Kohn (2011).

    Example:
        >>> import numpy as np
        >>> spikes = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]])
        >>> correlation(spikes, dt=1.0, window=1.0).round(3).tolist()
        [[1.0, -1.0, nan], [-1.0, 1.0, nan], [nan, nan, nan]]
    """
    n = _observations(as_trains(spikes), dt, window)
    n -= n.mean(0)
    sd = np.sqrt((n * n).sum(0))
    return ratio(n.T @ n, np.outer(sd, sd)).clip(-1, 1)


def synchrony(activity: Trains, dt: float, *, window: float) -> float:
    """Return the synchrony ``chi = sqrt(var(mean_i x_i) / mean_i var(x_i))`` of a population.

    ``x_i`` is the activity of neuron i in windows of all trials: 1 if all N neurons do the same,
    ``1 / sqrt(N)`` if they have nothing to do with each other. For spikes it depends on the window;
    it was made for membranes, where a window is one step. NaN where no neuron's activity varies.

    Args:
        activity: Spikes or membranes [T, B, N] or [T, N].
        dt: Time step in ms.
        window: Length of the windows in ms.

    Raises:
        UsageError: There is but one window.

    Source: Golomb & Rinzel (1993); Golomb (2007).

    Example:
        >>> import numpy as np
        >>> one = np.array([1, 0, 0, 1, 0, 0])
        >>> synchrony(np.stack([one, one], 1), dt=1.0, window=1.0)
        1.0
        >>> synchrony(np.stack([one, 1 - one], 1), dt=1.0, window=1.0)
        0.0
    """
    x = _observations(as_trains(activity, "activity", counts=False), dt, window)
    if (x.max(0) == x.min(0)).all():
        return float("nan")
    return float(np.sqrt(x.mean(1).var() / x.var(0).mean()))


def sta(stimulus: Trains, spikes: Trains, *, dt: float, window: float) -> Floats:
    """Return the spike-triggered average ``sta[l] = (1 / n) sum_k stimulus(t_k - l dt)``.

    n counts the spikes with a whole window of stimulus behind them; earlier ones are left out. A
    count of k is k spikes. NaN for a neuron without spikes.

    Args:
        stimulus: [T, B, *features] for spikes [T, B, N]; [T, *features] for [T, N].
        spikes: [T, B, N] or [T, N].
        dt: Time step in ms.
        window: How far to look back, in ms: the lags are 0, dt, ... up to before it.

    Returns:
        [window / dt, N, *features].

    Raises:
        UsageError: Stimulus and spikes do not fit each other.

    Source: de Boer & Kuyper (1968); Dayan & Abbott (2001), section 1.3.

    Example:
        >>> import numpy as np
        >>> stimulus = np.array([5.0, 1.0, 2.0, 3.0, 4.0])
        >>> spikes = np.array([[0, 0, 1, 0, 1]]).T
        >>> sta(stimulus, spikes, dt=1.0, window=2.0).tolist()  # means of 2, 4 and of 1, 3
        [[3.0], [2.0]]
    """
    x, s = as_trains(spikes), to_array(stimulus)
    shape = to_array(spikes).shape
    fits = s.shape[: len(shape) - 1] == shape[:-1] and s.size and s.dtype.kind in "buif"
    if not fits or not np.isfinite(s).all():
        raise UsageError(
            f"stimulus is {s.dtype} {list(s.shape)}, spikes are {list(shape)}; give finite "
            f"numbers {list(shape[:-1])} and whatever features follow, for every step and trial"
        )
    lags = steps_in(window, dt, len(x))
    flat, fired = s.reshape(*x.shape[:2], -1), x[lags - 1 :].astype(np.float64)
    seen = [flat[lags - 1 - lag : len(x) - lag] for lag in range(lags)]
    sums = np.stack([np.tensordot(fired, part, ((0, 1), (0, 1))) for part in seen])
    means = ratio(sums, fired.sum((0, 1))[:, None])
    return means.reshape(lags, x.shape[2], *s.shape[len(shape) - 1 :])


def _counts(x: NDArray[Any], dt: float, window: float) -> Floats:
    """Return the sums in windows [windows, B, N]."""
    n = steps_in(window, dt, len(x))
    whole = len(x) // n * n
    found: Floats = x[:whole].reshape(-1, n, *x.shape[1:]).sum(1, dtype=np.float64)
    return found


def _observations(x: NDArray[Any], dt: float, window: float) -> Floats:
    """Return the sums in windows of all trials [windows * B, N]; at least two rows."""
    found = _counts(x, dt, window).reshape(-1, x.shape[2])
    if len(found) < 2:
        raise UsageError(
            f"a window of {window} ms leaves one count of {len(x) * dt:g} ms in one trial, and one "
            "does not vary; choose a shorter window or give more trials"
        )
    return found
