"""Neurons without a binary spike: leaky integrators and the sigma-delta neuron."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.components import component
from spikecl.neurons.neuron import Neuron, State
from spikecl.neurons.values import Decay, NonNegative, Real


class LIState(NamedTuple):
    """Membrane ``v`` [B, *features]."""

    v: Tensor


@component
class LeakyIntegrator(Neuron):
    """A membrane that never fires: ``v[t] = kappa v[t-1] + c x[t]``, which is also its output.

    Args:
        kappa: Decay per step, ``exp(-dt/tau_out)``.
        scale_input: ``c = 1 - kappa`` instead of 1: the output of a constant input is that input.
    """

    kappa: Decay = 0.9
    scale_input: bool = False

    def rest(self, x: Tensor) -> State:
        """Return a membrane at zero."""
        return LIState(torch.zeros_like(x))

    def advance(
        self, x: Tensor, state: State, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Decay and take the input."""
        c = 1 - self.kappa if self.scale_input else 1.0
        v = self.kappa * state.v + c * x
        return v, LIState(v)


class SynapticIntegratorState(NamedTuple):
    """Current ``i`` and membrane ``v`` [B, *features]."""

    i: Tensor
    v: Tensor


@component
class SynapticIntegrator(Neuron):
    """A membrane that never fires, driven by a synaptic current: Norse's ``LI``.

    One step, in order of execution; the membrane is also the output::

        i[t] = alpha i[t-1] + x[t]
        v[t] = v_rest + kappa (v[t-1] - v_rest) + (1 - kappa) i[t]

    Args:
        alpha: Decay of the current per step, ``exp(-dt/tau_syn)``; 0 has none.
        kappa: Decay of the membrane per step, ``exp(-dt/tau_mem)``.
        v_rest: Where the membrane rests, and starts.
    """

    alpha: Decay = 0.8
    kappa: Decay = 0.9
    v_rest: Real = 0.0

    def rest(self, x: Tensor) -> State:
        """Return no current and a membrane at rest."""
        zero = torch.zeros_like(x)
        return SynapticIntegratorState(zero, zero + self.v_rest)

    def advance(
        self, x: Tensor, state: State, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Advance the current, then the membrane."""
        i = self.alpha * state.i + x
        v = self.kappa * state.v + (1 - self.kappa) * (self.v_rest + i)
        return v, SynapticIntegratorState(i, v)


class SigmaDeltaState(NamedTuple):
    """Sum of the input ``sigma``, last activation ``act``, and what was not sent yet, ``residue``.

    [B, *features] each.
    """

    sigma: Tensor
    act: Tensor
    residue: Tensor


@component
class SigmaDelta(Neuron):
    """Sends changes of a rectified unit as graded spikes, and only those that are large enough.

    One step, in order of execution::

        sigma[t] = sigma[t-1] + x[t]
        act[t] = max(sigma[t], 0)
        delta = act[t] - act[t-1] + residue[t-1]
        s[t] = delta where |delta| >= v_th, else 0
        residue[t] = delta - s[t]

    What was sent plus the residue is the activation, at every step; ``v_th = 0`` is the ordinary
    unit. The next layer sums the messages, so a network of these computes what its rectified twin
    does. Gradients pass straight through the comparison: ``ds/ddelta = 1``.

    Source: O'Connor & Welling, ICLR 2017; the ``SigmaDelta`` process of lava-nc 0.10.0.

    Args:
        v_th: Smallest change that is sent.
    """

    v_th: NonNegative = 0.1

    def rest(self, x: Tensor) -> State:
        """Return zero sums."""
        zero = torch.zeros_like(x)
        return SigmaDeltaState(zero, zero, zero)

    def advance(
        self, x: Tensor, state: State, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Sum, rectify, send the change."""
        sigma = state.sigma + x
        act = torch.relu(sigma)
        delta = act - state.act + state.residue
        with torch.no_grad():
            sent = delta * (delta.abs() >= self.v_th)
        spikes = delta + (sent - delta).detach()
        return spikes, SigmaDeltaState(sigma, act, delta - spikes)
