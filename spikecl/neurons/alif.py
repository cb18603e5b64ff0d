"""Adaptive LIF: a threshold that rises with every spike."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from spikecl.components import component
from spikecl.neurons.lif import LIF
from spikecl.neurons.neuron import State
from spikecl.neurons.values import Decay, Real


class ALIFState(NamedTuple):
    """Membrane ``v``, adaptation ``b`` and the last ``spikes``, [B, *features] each."""

    v: Tensor
    b: Tensor
    spikes: Tensor


@component
class ALIF(LIF):
    """LIF whose threshold adapts: ``A[t] = v_th + adaptation b[t]``.

    One step, in order of execution; membrane and reset as in :class:`LIF`, a soft reset taking the
    base threshold ``v_th``::

        b[t] = rho b[t-1] + g s[t-1]         g is 1, or 1 - rho with ``normalise``
        u[t] = beta v[t-1] + c x[t]
        s[t] = 1[u[t] > v_th + adaptation b[t]]

    Two normalisations are in circulation, and they differ by a factor ``1 / (1 - rho)``, hundreds
    for slow adaptation: with ``normalise`` the adaptation of a neuron that fires in every step
    goes to ``adaptation`` itself.

    Source: Bellec et al., NeurIPS 2018 (normalised) and Nature Communications 11:3625, 2020.

    Args:
        rho: Decay of the adaptation per step, ``exp(-dt/tau_adapt)``.
        adaptation: Rise of the threshold per unit of ``b``.
        normalise: Scale each spike's contribution by ``1 - rho``.
    """

    rho: Decay = 0.99
    adaptation: Real = 1.6
    normalise: bool = True

    def silence(self, x: Tensor) -> State:
        """Return a membrane at rest and no adaptation."""
        zero = x.new_zeros(x.shape)
        return ALIFState(zero + self.v_rest, zero, zero)

    def integrate(self, x: Tensor, state: State) -> State:
        """Let the adaptation take the last spikes, then the membrane its input."""
        gain = 1 - self.rho if self.normalise else 1.0
        b = self.rho * state.b + gain * state.spikes
        u = self.beta * self.before(state) + self.input_scale * x
        if isinstance(self.v_rest, Tensor) or self.v_rest:
            u = u + self.drift
        return ALIFState(self.behind(u, state), b, state.spikes)

    def distance(self, state: State) -> Tensor:
        """Return ``v - v_th - adaptation b``."""
        distance: Tensor = state.v - self.v_th - self.adaptation * state.b
        return distance

    def settle(self, state: State, spikes: Tensor) -> State:
        """Reset, and remember the spikes for the adaptation."""
        v = state.v
        if self.reset_time == "same":
            v = self._after_reset(v, spikes)
        return ALIFState(v, state.b, spikes)
