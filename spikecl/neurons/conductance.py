"""Conductance-based LIF: excitation and inhibition open channels with reversal potentials."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.components import component
from spikecl.errors import ConfigError, UsageError
from spikecl.neurons.neuron import AnyReset, Reset, Resetting, State
from spikecl.neurons.values import Positive, Real, Value, exp


class ConductanceState(NamedTuple):
    """Excitatory and inhibitory conductance ``g_exc``, ``g_inh`` and membrane ``v``.

    [B, *features] each; ``spikes`` where their reset waits for the next step.
    """

    g_exc: Tensor
    g_inh: Tensor
    v: Tensor
    spikes: Tensor | None = None


@component
class ConductanceLIF(Resetting):
    """LIF with synaptic conductances, integrated by exponential Euler.

    Input is ``x`` [B, 2, *features]: what arrives at excitatory (0) and inhibitory (1) synapses,
    both at least 0, in units of the leak conductance. One step, in order of execution::

        g_exc[t] = exp(-dt/tau_exc) g_exc[t-1] + x[t, 0]       g_inh likewise
        G = 1 + g_exc[t] + g_inh[t]
        v_inf = (v_rest + g_exc[t] e_exc + g_inh[t] e_inh) / G
        u[t] = v_inf + (v[t-1] - v_inf) exp(-dt G / tau_mem)

    exact while the conductances stand still, and stable for any step. The membrane starts at
    ``v_rest``. Potentials are millivolts, times milliseconds; ``(u - v_th) / v_scale`` is what the
    surrogate sees.

    Source: Vogels & Abbott, J. Neurosci. 25(46), 2005, whose constants are the defaults; their
    refractory period of 5 ms is ``refractory=5`` with steps of 1 ms.

    Args:
        tau_mem: Membrane time constant at rest.
        tau_exc: Time constant of excitation.
        tau_inh: Time constant of inhibition.
        v_rest: Reversal potential of the leak.
        e_exc: Reversal potential of excitation.
        e_inh: Reversal potential of inhibition.
        v_th: Threshold.
        v_reset: Membrane after a spike.
        v_scale: Millivolts that count as 1 for the surrogate.
        dt: Length of a step.
        reset: ``value`` or ``none``.
    """

    tau_mem: Positive = 20.0
    tau_exc: Positive = 5.0
    tau_inh: Positive = 10.0
    v_rest: Real = -60.0
    e_exc: Real = 0.0
    e_inh: Real = -80.0
    v_th: Real = -50.0
    v_reset: Real = -60.0
    v_scale: Positive = 10.0
    dt: Positive = 1.0
    reset: AnyReset = Reset.VALUE

    def cells(self, x: Tensor) -> torch.Size:
        """Return the shape behind the axis of the two kinds of synapses."""
        return x.shape[2:]

    def __post_init__(self) -> None:
        """Refuse resets that make no sense of a membrane in millivolts."""
        Resetting.__post_init__(self)
        if self.reset in (Reset.SOFT, Reset.ZERO):
            raise ConfigError(
                f"ConductanceLIF.reset: got '{self.reset}', which would leave the membrane above a "
                "threshold in millivolts; use 'value' or 'none'"
            )

    def silence(self, x: Tensor) -> State:
        """Return closed channels and a membrane at rest."""
        if x.dim() < 3 or x.shape[1] != 2:
            raise UsageError(
                f"ConductanceLIF takes input [B, 2, *features] (excitation, inhibition), got "
                f"{tuple(x.shape)}; stack the two, or use a synapse that splits its weights"
            )
        zero = torch.zeros_like(x[:, 0])
        return ConductanceState(zero, zero, zero + self.v_rest, self.waiting(zero))

    def integrate(self, x: Tensor, state: State) -> State:
        """Advance the conductances, then the membrane."""
        g_exc = self._decay(self.tau_exc) * state.g_exc + x[:, 0]
        g_inh = self._decay(self.tau_inh) * state.g_inh + x[:, 1]
        total = 1 + g_exc + g_inh
        v_inf = (self.v_rest + g_exc * self.e_exc + g_inh * self.e_inh) / total
        u = v_inf + (self.before(state) - v_inf) * torch.exp(-self.dt / self.tau_mem * total)
        return ConductanceState(g_exc, g_inh, self.behind(u, state), state.spikes)

    def distance(self, state: State) -> Tensor:
        """Return ``(v - v_th) / v_scale``."""
        v: Tensor = state.v
        return (v - self.v_th) / self.v_scale

    def _decay(self, tau: Value) -> Value:
        return exp(-self.dt / tau)
