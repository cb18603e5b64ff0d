"""The adjoint of a membrane with a synaptic current: exact errors of hard thresholds.

A step of :class:`~spikecl.neurons.CUBA`, voltages counted from rest::

    i[t] = alpha i[t-1] + x[t]
    u[t] = beta v[t-1] + c i[t]
    s[t] = 1[u[t] > th],   v[t] = r where s[t], else u[t]

is read as events in continuous time, in steps, ``tau = -1 / log(decay)``: a spike of size w that
arrives lets the current jump by w, and between events::

    tau_mem V' = -V + k I,   k = c / (1 - beta),   tau_syn I' = -I

so that V and I are ``v`` and ``i`` up to ``O(dt)``, whatever the scale c of the input. Errors are
sensitivities: ``q = dL/di`` and ``p = dL/du``, in the letters of the source (with k = 1)
``-tau_syn lambda_I`` and ``-tau_mem lambda_V``. Backwards in time, in order of execution::

    p+ = beta p[t+1]                                  just behind the reset
    p[t] = p+ V'+ / V'- - (dL/dt_k) / V'-             where s[t]: the spike moves by -1 / V'-
         = p+ + dL/dv[t]                              elsewhere; dL/dv of membranes that are read
    q[t] = c p[t] + alpha q[t+1]

with the slopes before and behind the reset::

    V'- = (k I - th) / tau_mem,   V'+ = V'- + (th - r) / tau_mem

The weight's gradient is ``q^T x``: the factor tau_syn is in q. What a presynaptic spike costs when
it comes a step later is ``dL/dt_k = g[t+1] - g[t]`` with ``g = W^T q``, the grid's form of
``W^T (lambda_V - lambda_I)``.

Source: Wunderlich & Pehle, Scientific Reports 11:12829 (2021), table 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from spikecl.neurons import CUBA, LeakyIntegrator, Neuron, SynapticIntegrator
from spikecl.neurons.values import Value


class Membrane(NamedTuple):
    """Constants of a step, as tensors: decays, scale of the current, threshold and reset.

    The last two are counted from rest, and 0 for a membrane that never fires.
    """

    alpha: Tensor
    beta: Tensor
    scale: Tensor
    threshold: Tensor
    reset: Tensor

    @classmethod
    def of(cls, neuron: Neuron, like: Tensor) -> Membrane:
        """Return the constants of a neuron; those of a readout without one pass currents on."""
        values: tuple[Value, ...] = (0.0, 0.0, 1.0, 0.0, 0.0)
        if isinstance(neuron, CUBA):
            ends = neuron.v_th - neuron.v_rest, neuron.reset_value - neuron.v_rest
            values = (neuron.alpha, neuron.beta, neuron.input_scale, *ends)
        elif isinstance(neuron, SynapticIntegrator):
            values = (neuron.alpha, neuron.kappa, 1 - neuron.kappa, 0.0, 0.0)
        elif isinstance(neuron, LeakyIntegrator):
            scale = 1 - neuron.kappa if neuron.scale_input else 1.0
            values = (0.0, neuron.kappa, scale, 0.0, 0.0)
        return cls(*(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in values))

    @property
    def leak(self) -> Tensor:
        """``1 / tau_mem``, per step."""
        return -self.beta.log()

    def current(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the synaptic current of an input [T, B, ...], from that before the first step."""
        i = torch.zeros_like(x[0]) if start is None else start
        found = torch.empty_like(x)
        for t in range(len(x)):
            i = self.alpha * i + x[t]
            found[t] = i
        return found

    def slope(self, i: Tensor, least: float) -> Tensor:
        """Return ``V'-`` of a membrane at threshold, per step, for synaptic currents.

        It is positive where a membrane that was below the threshold has crossed it. One that
        grazes it is taken to rise by ``least (th - r) (1/tau_mem + 1/tau_syn)``.
        """
        flow = torch.where(self.beta < 1, self.leak / (1 - self.beta), 1.0) * self.scale
        rate = (self.leak - self.alpha.log()) * (self.threshold - self.reset)
        return torch.maximum(flow * i - self.leak * self.threshold, least * rate)


class Recurrent(NamedTuple):
    """Effective weight [n, n] of a layer onto itself, one step later."""

    weight: Tensor

    def error(self, q: Tensor) -> Tensor:
        """Return ``R^T q`` of errors [B, ...]."""
        return (q.flatten(1) @ self.weight).view(q.shape)


def read(membrane: Membrane, error: Tensor) -> Tensor:
    """Return ``q`` of a membrane that never fires, from ``dL/dv`` [T, B, ...]."""
    p = q = torch.zeros_like(error[0])
    found = torch.empty_like(error)
    for t in range(len(error) - 1, -1, -1):
        p = error[t] + membrane.beta * p
        q = membrane.scale * p + membrane.alpha * q
        found[t] = q
    return found


def fired(
    membrane: Membrane,
    spikes: Tensor,
    slope: Tensor,
    timing: Tensor,
    recurrent: Recurrent | None = None,
) -> Tensor:
    """Return ``q`` of spiking neurons.

    Args:
        membrane: Their constants.
        spikes: What they fired [T, B, ...].
        slope: ``V'-`` [T, B, ...].
        timing: ``dL/dt_k`` of a spike in each step [T, B, ...], their own synapses aside.
        recurrent: Synapses of the layer onto itself: they add ``R^T (q[t+2] - q[t+1])`` to it.
    """
    moved = spikes / slope  # -dt_k/du
    jump = membrane.leak * (membrane.threshold - membrane.reset)
    keep = membrane.beta * (1 + jump * moved)
    push = -moved * timing
    p = q = torch.zeros_like(spikes[0])
    soon = later = torch.zeros_like(q)
    found = torch.empty_like(spikes)
    for t in range(len(spikes) - 1, -1, -1):
        p = torch.addcmul(push[t], keep[t], p)
        if recurrent is not None:
            soon, later = recurrent.error(q), soon
            p = p - moved[t] * (later - soon)
        q = membrane.scale * p + membrane.alpha * q
        found[t] = q
    return found


def delay(error: Tensor) -> Tensor:
    """Return ``dL/dt_k`` of spikes from the error ``g`` [T, B, ...] of what was sent.

    A spike of the last step would leave the window: that is no matter of degree, and it gets 0.
    """
    return functional.pad(error.diff(dim=0), (0, 0) * (error.dim() - 1) + (0, 1))
