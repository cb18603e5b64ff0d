"""Adaptive exponential integrate-and-fire."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.components import component
from spikecl.errors import ConfigError
from spikecl.neurons.neuron import SpikingNeuron, State, to_value
from spikecl.neurons.values import Positive, Real

_STEEP = 60.0  # exp(60) millivolts are past any peak, and float32 holds them


class AdExState(NamedTuple):
    """Membrane ``v`` in millivolts and adaptation current ``w`` in picoampere [B, *features]."""

    v: Tensor
    w: Tensor


@component
class AdEx(SpikingNeuron):
    """Exponential upswing of the spike, and a current that adapts.

    One step of forward Euler, in order of execution, both from the old state::

        e = delta_t exp(min((v - v_t) / delta_t, 60))
        v <- v + dt / capacitance (g_leak (e_leak - v + e) - w + x)
        w <- w + dt / tau_w (a (v - e_leak) - w)
        s = 1[v > v_peak],  v <- min(v, v_peak)
        v <- (1 - s) v + s v_reset,  w <- w + b s

    Input ``x`` is a current in picoampere; potentials are millivolts, conductances nanosiemens,
    times milliseconds. The two bounds change no spike: beyond an exponent of 60 a step ends far
    above ``v_peak``, and without them the overshoot (1e11 mV is common) overflows, or drowns
    ``v_reset`` in rounding. ``(v - v_peak) / v_scale`` is what the surrogate sees.

    Source: Brette & Gerstner, J. Neurophysiol. 94(5), 2005; defaults as there.

    Args:
        capacitance: Capacitance in picofarad.
        g_leak: Leak conductance.
        e_leak: Reversal potential of the leak, where the membrane rests.
        v_t: Threshold of the upswing.
        delta_t: Width of the upswing.
        v_peak: Where a spike is cut off.
        v_reset: Membrane after a spike.
        tau_w: Time constant of the adaptation.
        a: Coupling of the adaptation to the membrane.
        b: What a spike adds to the adaptation, in picoampere.
        v_scale: Millivolts that count as 1 for the surrogate.
        dt: Length of a step.
        detach_reset: Cut the gradient through the spike that resets.
    """

    capacitance: Positive = 281.0
    g_leak: Positive = 30.0
    e_leak: Real = -70.6
    v_t: Real = -50.4
    delta_t: Positive = 2.0
    v_peak: Real = 20.0
    v_reset: Real = -70.6
    tau_w: Positive = 144.0
    a: Real = 4.0
    b: Real = 80.5
    v_scale: Positive = 10.0
    dt: Positive = 0.1
    detach_reset: bool = True

    def __post_init__(self) -> None:
        """Refuse a step with which Euler's method is unstable."""
        SpikingNeuron.__post_init__(self)
        tau = self.capacitance / self.g_leak
        for name, limit in (("2 capacitance/g_leak", 2 * tau), ("2 tau_w", 2 * self.tau_w)):
            if bool(torch.as_tensor(self.dt > limit).any()):
                raise ConfigError(f"AdEx: dt={self.dt} is more than {name}, unstable; lower dt")

    def silence(self, x: Tensor) -> State:
        """Return a membrane at rest and no adaptation."""
        zero = torch.zeros_like(x)
        return AdExState(zero + self.e_leak, zero)

    def integrate(self, x: Tensor, state: State) -> State:
        """Advance membrane and adaptation by one Euler step."""
        v, w = state
        upswing = self.delta_t * torch.exp(((v - self.v_t) / self.delta_t).clamp(max=_STEEP))
        current = self.g_leak * (self.e_leak - v + upswing) - w + x
        slope = (self.a * (v - self.e_leak) - w) / self.tau_w
        return AdExState(v + self.dt / self.capacitance * current, w + self.dt * slope)

    def distance(self, state: State) -> Tensor:
        """Return ``(v - v_peak) / v_scale``."""
        v: Tensor = state.v
        return (v - self.v_peak) / self.v_scale

    def settle(self, state: State, spikes: Tensor) -> State:
        """Cut the spike off and raise the adaptation."""
        s = spikes.detach() if self.detach_reset else spikes
        v = torch.minimum(state.v, state.v.new_zeros(()) + self.v_peak)
        return AdExState(to_value(v, s, self.v_reset), state.w + self.b * s)
