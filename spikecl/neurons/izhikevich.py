"""Izhikevich's quadratic neuron with a recovery variable."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import component
from spikecl.errors import ConfigError
from spikecl.neurons.neuron import SpikingNeuron, State, to_value
from spikecl.neurons.values import Positive, Real

_FAR = 1e4  # millivolts; no input makes a membrane that is kept within infinite


class IzhikevichState(NamedTuple):
    """Membrane ``v`` and recovery ``u`` [B, *features]."""

    v: Tensor
    u: Tensor


@component
class Izhikevich(SpikingNeuron):
    """Two equations that make the firing patterns of cortical neurons.

    ``v' = 0.04 v^2 + 5 v + 140 - u + x`` and ``u' = a (b v - u)`` per millisecond; at ``v_peak``
    the neuron fires, ``v <- c`` and ``u <- u + d``. One step, in order of execution, h being
    ``dt / substeps``::

        v <- v + h (0.04 v^2 + 5 v + 140 - u + x)      substeps times, while v <= v_peak
        s = 1[v >= v_peak]
        v <- min(v, v_peak),  u <- u + dt a (b v - u)
        v <- (1 - s) v + s c,  u <- u + d s

    The membrane starts at the lower fixed point (-70 mV for the defaults), or at ``c`` where there
    is none. ``(v - v_peak) / v_scale`` is what the surrogate sees.

    Source: Izhikevich, IEEE Transactions on Neural Networks 14(6), 2003; two half steps for ``v``
    as in its program. Defaults: regular spiking.

    Deviation: the program lets a membrane run on past its peak to the end of the step, a thousand
    millivolts and more, and the recovery sees that. Rounding errors then grow with every spike:
    two runs 1e-12 mV apart have different spikes within a second. Cut off at the peak, as the
    equations have it, they have the same.

    Args:
        a: Rate of recovery, per millisecond.
        b: Sensitivity of the recovery to the membrane.
        c: Membrane after a spike, in millivolts.
        d: What a spike adds to the recovery.
        v_peak: Where a spike is cut off, in millivolts.
        v_scale: Millivolts that count as 1 for the surrogate.
        dt: Length of a step in milliseconds.
        substeps: Euler steps of the membrane in each step.
        strict: Fire at ``v > v_peak`` instead of ``v >= v_peak``.
        detach_reset: Cut the gradient through the spike that resets.
    """

    a: Positive = 0.02
    b: Real = 0.2
    c: Real = -65.0
    d: Real = 8.0
    v_peak: Real = 30.0
    v_scale: Positive = 10.0
    dt: Positive = 1.0
    substeps: Annotated[int, Field(ge=1)] = 2
    strict: bool = False
    detach_reset: bool = True

    def __post_init__(self) -> None:
        """Refuse a step with which Euler's method is unstable."""
        SpikingNeuron.__post_init__(self)
        if bool(torch.as_tensor(self.dt * self.a > 2).any()):
            raise ConfigError(f"Izhikevich: dt={self.dt} is more than 2/a, unstable; lower dt")

    def silence(self, x: Tensor) -> State:
        """Return the lower fixed point without input."""
        b, c = (
            torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in (self.b, self.c)
        )
        root = (5 - b) ** 2 - 4 * 0.04 * 140
        safe = torch.where(root > 0, root, torch.ones_like(root))
        v = x.new_zeros(x.shape) + torch.where(root > 0, (b - 5 - safe.sqrt()) / 0.08, c)
        return IzhikevichState(v, v * b)

    def integrate(self, x: Tensor, state: State) -> State:
        """Advance the membrane in small steps, then the recovery."""
        v, u = state
        h = self.dt / self.substeps
        for _ in range(self.substeps):
            new = (v + h * (0.04 * v * v + 5 * v + 140 - u + x)).clamp(-_FAR, _FAR)
            v = torch.where(v > self.v_peak, v, new)
        return IzhikevichState(v, u + self.dt * self.a * (self.b * self._cut(v) - u))

    def distance(self, state: State) -> Tensor:
        """Return ``(v - v_peak) / v_scale``."""
        v: Tensor = state.v
        return (v - self.v_peak) / self.v_scale

    def settle(self, state: State, spikes: Tensor) -> State:
        """Cut the spike off and kick the recovery."""
        s = spikes.detach() if self.detach_reset else spikes
        return IzhikevichState(to_value(self._cut(state.v), s, self.c), state.u + self.d * s)

    def _cut(self, v: Tensor) -> Tensor:
        return torch.minimum(v, v.new_zeros(()) + self.v_peak)
