"""Which of our surrogates a spike function of another library is, found by asking it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.neurons import (
    Arctan,
    Boxcar,
    Erf,
    FastSigmoid,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangle,
    spike,
)

Fire = Callable[[Tensor], Tensor]
_HALF = 1.0137 * torch.logspace(-6, 2, 57, dtype=torch.float64)  # no round numbers: boxes end there


@dataclass(frozen=True)
class SpikeGrad:
    """One of our surrogates as a function of ``v - v_th``, in the membrane's own precision.

    What :func:`to_snntorch` gives its neurons: snnTorch's own spikes are float32 whatever the
    membrane is.
    """

    surrogate: Surrogate
    strict: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """Return the spikes."""
        return spike(x, self.surrogate, strict=self.strict)


class Identity(NamedTuple):
    """What a spike function is.

    Args:
        strict: Whether it compares with ``>`` or ``>=``; ``None`` if it is no step.
        surrogate: Its derivative; ``None`` if that is none of ours.
    """

    strict: bool | None
    surrogate: Surrogate | None


def identify(fire: Fire) -> Identity:
    """Return what a spike function is, by its values and derivatives between -100 and 100.

    Parameters are found to 12 digits. Where a derivative overflows it is not compared.

    Example:
        >>> identify(lambda x: spike(x, FastSigmoid(slope=7.0)))
        Identity(strict=True, surrogate=FastSigmoid(slope=7.0))
    """
    if isinstance(fire, SpikeGrad):
        return Identity(fire.strict, fire.surrogate)
    x = _points()
    with torch.random.fork_rng(devices=()):  # some derivatives are drawn
        (spikes, h), (_, again) = _ask(fire, x), _ask(fire, x)
    steps = {True: x > 0, False: x >= 0}
    strict = next((s for s, step in steps.items() if torch.equal(spikes, step.to(x))), None)
    surrogate = None
    if torch.allclose(h, again, rtol=0, atol=0, equal_nan=True):
        surrogate = next((s for s in _candidates(x, h) if _fits(s, x, h)), None)
    return Identity(strict, surrogate)


def agrees(fire: Fire, surrogate: Surrogate) -> bool:
    """Return whether a spike function compares with ``>`` and has a derivative of ours."""
    x = _points()
    spikes, h = _ask(fire, x)
    return torch.equal(spikes, (x > 0).to(x)) and _fits(surrogate, x, h)


def _points() -> Tensor:
    return torch.cat([-_HALF, _HALF.new_zeros(1), _HALF])


def _ask(fire: Fire, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return spikes and derivatives; a function that has none has zeros."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        spikes = fire(leaf + 0)
        if not spikes.requires_grad:
            return spikes.to(x), torch.zeros_like(x)
        (h,) = torch.autograd.grad(spikes.sum(), leaf)
    return spikes.detach().to(x), h


def _candidates(x: Tensor, h: Tensor) -> Iterator[Surrogate]:
    """Return surrogates that agree in as many points as they have parameters."""
    peak, (far, low) = float(h[x == 0]), (float(t[x > 1][0]) for t in (x, h))
    if not 0 < peak < math.inf:
        return
    yield StraightThrough()
    yield Arctan(slope=_digits(2 * peak))
    yield Sigmoid(slope=_digits(4 * peak))
    if 0 < low < 1:
        yield FastSigmoid(slope=_digits((low**-0.5 - 1) / far))
    yield Boxcar(width=_digits(0.5 / peak))
    yield Erf(slope=_digits(peak * math.sqrt(math.pi)))
    base = h[(x > 0) & (h > 0)]  # of a triangle; its last point is the steadiest
    if len(base) and (end := float(base[-1])) < peak:
        width = float(_HALF[len(base) - 1]) / (1 - end / peak)
        yield Triangle(height=_digits(peak), width=_digits(width))


def _digits(value: float) -> float:
    return float(f"{value:.12g}")


def _fits(surrogate: Surrogate, x: Tensor, h: Tensor) -> bool:
    known = torch.isfinite(h)
    return torch.allclose(surrogate(x)[known], h[known], rtol=1e-6, atol=1e-9 * float(h[x == 0]))
