"""Memory traces: how long one pattern can be read out of synapses that go on learning others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from spikecl.errors import UsageError

S = TypeVar("S")


class MemoryTrace(NamedTuple):
    """Recall of one pattern against its age.

    Args:
        ages: Patterns stored since, itself included [K].
        signal: Mean overlap of weights and pattern [K].
        noise: Its standard deviation over repeats [K].
    """

    ages: Tensor
    signal: Tensor
    noise: Tensor

    @property
    def snr(self) -> Tensor:
        """Signal to noise ratio [K]; 0 where there is neither."""
        none = (self.signal == 0) & (self.noise == 0)
        return torch.where(none, torch.zeros_like(self.signal), self.signal / self.noise)


def recall_curve(
    store: Callable[[S, Tensor], S],
    read: Callable[[S], Tensor],
    state: S,
    ages: Tensor,
    *,
    generator: torch.Generator,
    before: int = 0,
) -> MemoryTrace:
    """Store random patterns of ±1, follow the first of them behind ``before`` others.

    Several populations run side by side, each with patterns of its own: repeats.

    Args:
        store: From a state and a pattern [repeats, N] to the next state; the rule.
        read: From a state to the weights [repeats, N].
        state: The state at the start.
        ages: When to look, in patterns stored, rising from 1 or more.
        generator: Where patterns are drawn.
        before: Patterns stored first, for synapses to come to their equilibrium.

    Raises:
        UsageError: Ages do not rise from at least 1.

    Example:
        >>> decay = lambda w, pattern: 0.5 * w + pattern
        >>> trace = recall_curve(
        ...     decay,
        ...     lambda w: w,
        ...     torch.zeros(50, 400, dtype=torch.float64),
        ...     torch.tensor([1, 2, 4]),
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> [round(float(s), 1) for s in trace.signal]
        [1.0, 0.5, 0.1]
    """
    wanted = [int(age) for age in ages]
    if not wanted or wanted[0] < 1 or any(b <= a for a, b in zip(wanted, wanted[1:])):
        raise UsageError(f"ages are {wanted}; give whole numbers that rise, the first at least 1")
    shape = read(state).shape

    def pattern() -> Tensor:
        return 2.0 * torch.randint(0, 2, shape, generator=generator).double() - 1

    for _ in range(before):
        state = store(state, pattern())
    first, found = pattern(), []
    state = store(state, first)
    for age in range(1, wanted[-1] + 1):
        if age > 1:
            state = store(state, pattern())
        if age in wanted:
            found.append((read(state).double() * first).mean(1))
    overlaps = torch.stack(found)
    return MemoryTrace(torch.tensor(wanted), overlaps.mean(1), overlaps.std(1))


def log_ages(last: int, per_decade: int = 8) -> Tensor:
    """Return whole ages from 1 to ``last``, evenly spread on a logarithmic scale.

    Example:
        >>> log_ages(100, 2).tolist()
        [1, 3, 10, 32, 100]
    """
    steps = torch.arange(int(per_decade * math.log10(last) + 1e-6) + 1, dtype=torch.float64)
    ages: Tensor = torch.unique((10 ** (steps / per_decade)).round().long())
    return ages


def lifetime(trace: MemoryTrace, least: float = 1.0) -> int:
    """Return the last age up to which the signal to noise ratio stays at ``least``; 0 is never."""
    good = (trace.snr >= least).long().cumprod(0)
    return int(trace.ages[int(good.sum()) - 1]) if int(good.sum()) else 0


def power_law(x: Tensor, y: Tensor, first: float, last: float) -> float:
    """Return the slope of ``log y`` over ``log x`` for x from ``first`` to ``last``: least squares.

    Raises:
        UsageError: Less than two points lie there, or a value is not positive.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 4.0])
        >>> round(power_law(x, x**-0.5, 1, 4), 6)
        -0.5
    """
    inside = (x >= first) & (x <= last)
    if int(inside.sum()) < 2 or bool((y[inside] <= 0).any()) or bool((x[inside] <= 0).any()):
        raise UsageError(
            f"a slope needs two points or more from {first} to {last}, all above 0; got "
            f"{y[inside].tolist()[:8]}"
        )
    a, b = x[inside].double().log(), y[inside].double().log()
    a = a - a.mean()
    return float((a * (b - b.mean())).sum() / a.square().sum())
