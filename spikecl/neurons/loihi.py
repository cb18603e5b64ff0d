"""Loihi's neuron in training: integers forward, straight through backward."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from spikecl_hardware.loihi import semantics
from torch import Tensor

from spikecl.components import component
from spikecl.neurons.neuron import SpikingNeuron, State

UNIT = 1 << 6  # of threshold and activation, in membrane units


class LoihiState(NamedTuple):
    """Current ``u`` and membrane ``v`` [B, *features]: whole numbers held as floats."""

    u: Tensor
    v: Tensor


@component
class LoihiLIF(SpikingNeuron):
    """Loihi's LIF: 24-bit integer state, bit for bit as on the chip and in Lava.

    The forward pass rounds the input ``a`` to whole numbers and runs the integer equations of
    :func:`spikecl_hardware.loihi.semantics.integrate`; the backward pass differentiates what they
    round (straight through)::

        u[t] = u[t-1] (4096 - (du + 1)) / 4096 + 64 a[t]
        v[t] = v[t-1] (4096 - dv) / 4096 + u[t] + bias_mant 2^bias_exp
        s[t] = 1[v[t] > 64 vth],   psi = h((v - 64 vth) / (64 vth)) / (64 vth)
        v[t] = 0 where s[t]

    so a surrogate is as wide as for a neuron of threshold 1. Sums are exact for float64 input, and
    for float32 input while they stay below 2^24.

    Source: Davies et al., IEEE Micro 38(1), 2018; lava-nc 0.10.0.

    Args:
        vth: Threshold in units of 64, 1 to 131071.
        du: Decay of the current, 0 to 4095 (4095: no memory).
        dv: Decay of the membrane, 0 to 4095 (0: no leak).
        bias_mant: Mantissa of the bias, -4096 to 4095.
        bias_exp: Exponent of the bias, 0 to 7.
        detach_reset: Cut the gradient through the spike that resets.
    """

    vth: Annotated[int, Field(ge=1, lt=1 << 17)] = 100
    du: Annotated[int, Field(ge=0, lt=1 << 12)] = 4095
    dv: Annotated[int, Field(ge=0, lt=1 << 12)] = 0
    bias_mant: Annotated[int, Field(ge=-(1 << 12), lt=1 << 12)] = 0
    bias_exp: Annotated[int, Field(ge=0, lt=1 << 3)] = 0
    detach_reset: bool = True

    def silence(self, x: Tensor) -> State:
        """Return zero current and membrane."""
        return LoihiState(torch.zeros_like(x), torch.zeros_like(x))

    def integrate(self, x: Tensor, state: State) -> State:
        """Advance current and membrane by the integer equations, before the reset."""
        u = state.u * (1 - (self.du + 1) / 4096) + UNIT * x
        with torch.no_grad():
            exact = self._exact(x, state)
        u = exact.u.to(x) + (u - u.detach())  # the value is exact, however far u wrapped
        v = state.v * (1 - self.dv / 4096) + u + self.bias_mant * 2**self.bias_exp
        return LoihiState(u, exact.v.to(x) + (v - v.detach()))

    def _exact(self, x: Tensor, state: State) -> semantics.LIFState:
        parameters = semantics.LIFParameters(
            vth=self.vth,
            du=self.du,
            dv=self.dv,
            bias_mant=self.bias_mant,
            bias_exp=self.bias_exp,
        )
        before = semantics.LIFState(state.u.round().long(), state.v.round().long())
        return semantics.integrate(x.round().long(), before, parameters)

    def distance(self, state: State) -> Tensor:
        """Return ``v - 64 vth`` in units of the threshold."""
        v: Tensor = state.v
        return (v - UNIT * self.vth) / (UNIT * self.vth)

    def settle(self, state: State, spikes: Tensor) -> State:
        """Reset the membrane to zero; the current stays."""
        s = spikes.detach() if self.detach_reset else spikes
        return LoihiState(state.u, state.v * (1 - s))
