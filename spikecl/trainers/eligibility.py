"""Eligibility traces of every synapse, forward in time: what holds for any neuron.

With the state ``h_j[t]`` of neuron j, its own derivatives by the state before and by its current,
and the presynaptic activity ``p_i[t]`` of a synapse from i to j::

    eps_ji[t] = (dh[t]/dh[t-1])_j eps_ji[t-1] + (dh[t]/dI)_j p_i[t]       d numbers for a state of d
    e_ji[t]   = (dz[t]/dh[t-1])_j eps_ji[t-1] + (dz[t]/dI)_j p_i[t]       eligibility
    m_ji[t]   = kappa m_ji[t-1] + e_ji[t]                                 where the readout leaks
    dW_ji     = sum_t L_j[t] m_ji[t]

It holds B S d numbers, S being the number of synapses, whatever the number of steps.

Source: Bellec et al., Nature Communications 11:3625 (2020), equations 4 and 13 to 25.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.neurons import Neuron, State
from spikecl.neurons.neuron import carry, leaves, rebuild
from spikecl.trainers.traces import Decays


class Slopes(NamedTuple):
    """Derivatives of one step of neurons [B, m]: of the state (rows) and the output.

    Args:
        state: By the state before, [d, d, B, m].
        drive: By the current, [d, B, m].
        out: Of the output by the state before, [d, B, m].
        now: Of the output by the current, [B, m].
    """

    state: Tensor
    drive: Tensor
    out: Tensor
    now: Tensor


def slopes(neuron: Neuron, current: Tensor, before: State) -> Slopes:
    """Return the derivatives of a step; each neuron depends on itself alone."""
    with torch.enable_grad():
        x = current.detach().requires_grad_()
        values = carry(neuron.rest(x.detach()) if before is None else before, "detach")
        parts = [part.clone().requires_grad_() for part in leaves(values)]
        out, after = neuron.advance(x, rebuild(values, iter(parts)))
        made = []
        for end in (*leaves(after), out):
            zeros = [torch.zeros_like(x)] * (len(parts) + 1)
            if end.requires_grad:
                found = torch.autograd.grad(
                    end.sum(), [*parts, x], retain_graph=True, allow_unused=True
                )
                zeros = [z if g is None else g for z, g in zip(zeros, found)]
            made.append(torch.stack(zeros).flatten(2))
    rows = torch.stack(made)
    return Slopes(rows[:-1, :-1], rows[:-1, -1], rows[-1, :-1], rows[-1, -1])


class Eligibility:
    """Traces of the synapses onto a layer.

    Args:
        filters: Decays of the readout that listens, in order.
    """

    def __init__(self, filters: Decays):
        self.filters = filters
        self._eps = self._last = torch.empty(0)
        self._filtered: list[Tensor] = []
        self._begun = False

    def step(self, slope: Slopes, p: Tensor, auto: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take a step of presynaptic activity [B, n]; return eligibility [B, m, n], and filtered.

        The first meets errors of spikes, the other those of the readout's current. ``auto`` [m]
        are weights of the neurons onto themselves, one step later.
        """
        d, heard = len(slope.drive), p[:, None].expand(len(p), slope.now.shape[1], -1)
        if not self._begun:
            self._begun = True
            self._eps = p.new_zeros(d, *heard.shape)
            self._last = torch.zeros_like(heard)
            self._filtered = [torch.zeros_like(heard) for _ in self.filters]
        if auto is not None:
            heard = heard + auto[:, None] * self._last
        e = slope.now[..., None] * heard + (slope.out[..., None] * self._eps).sum(0)
        moved = [(slope.state[k][..., None] * self._eps).sum(0) for k in range(d)]
        if d:
            self._eps = torch.stack(moved) + slope.drive[..., None] * heard
        self._last = filtered = e
        for i, decay in enumerate(self.filters):
            self._filtered[i] = filtered = decay * self._filtered[i] + filtered
        return e, filtered
