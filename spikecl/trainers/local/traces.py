"""Traces that spikes leave at a neuron."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from spikecl.kernels import scan
from spikecl.neurons import LeakyIntegrator

Pairing = Literal["all", "nearest"]


class Trace:
    """The exponential trace of spikes ``z`` [T, B, ...], from rest.

    ::

        all      x[t] = exp(-dt/tau) x[t-1] + z[t]              every earlier spike counts
        nearest  x[t] = 1 if z[t] > 0 else exp(-dt/tau) x[t-1]  the last one counts

    Args:
        z: Spikes; of several in one step, ``nearest`` sees one.
        tau: Time constant in milliseconds.
        dt: Length of a step in milliseconds.
        pairing: Which spikes count.
    """

    def __init__(self, z: Tensor, tau: float, dt: float, pairing: Pairing):
        self._decay = math.exp(-dt / tau)
        self.after = self._all(z) if pairing == "all" else self._nearest(z)

    @property
    def before(self) -> Tensor:
        """The trace that a spike of the same step has not reached yet: ``exp(-dt/tau) x[t-1]``."""
        return torch.cat([torch.zeros_like(self.after[:1]), self._decay * self.after[:-1]])

    def _all(self, z: Tensor) -> Tensor:
        found, _ = scan(z, None, LeakyIntegrator(kappa=self._decay))
        return found

    def _nearest(self, z: Tensor) -> Tensor:
        steps = torch.arange(len(z), device=z.device).view(-1, *[1] * (z.dim() - 1))
        last = torch.where(z > 0, steps, -1).cummax(0).values
        since = (steps - last).to(z.dtype)
        return torch.where(last >= 0, torch.pow(self._decay, since), torch.zeros_like(since))
