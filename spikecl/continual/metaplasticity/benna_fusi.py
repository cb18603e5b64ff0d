"""Benna and Fusi's chain: behind each weight, variables that are ever slower to follow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.metaplasticity.gates import Gate, weights_of
from spikecl.continual.metaplasticity.histogram import log_histogram
from spikecl.continual.method import Context, Method, MethodSpec, Phase
from spikecl.errors import ConfigError
from spikecl.storage import State, nbytes


@component
class BennaFusi(MethodSpec):
    """Couple each weight to a chain of beakers, each larger than the last, and tied more thinly.

    ``u_1`` is the weight, ``dW`` what the optimiser applied to it; all beakers start at the initial
    weight. After each batch, with the levels of before on the right::

        C_k = 2^(k-1),  g_k = g 2^(-k),  g_0 = 0,  g_m = 0, or g 2^(-m) with a leak to u_(m+1) = 0
        u_k <- u_k + dt / C_k (g_(k-1) (u_(k-1) - u_k) + g_k (u_(k+1) - u_k)) + [k = 1] dW

    What is learned sinks into the chain and comes back from it when later steps have pushed the
    weight away: a trace falls with ``t^(-1/2)`` up to about ``2^(2m) / g`` batches. Without a leak
    ``sum_k C_k u_k`` changes by ``dW`` alone.

    Args:
        beakers: Length m of the chain; 1 without a leak is the optimiser alone, bit for bit.
        g: Coupling of the first two beakers, twice; 0 is the optimiser alone, bit for bit.
        leak: Let the last beaker run out.
        dt: Time that a batch stands for.

    Source: Benna & Fusi, Nature Neuroscience 19 (2016), equation 5; weights of networks as in
    Kaplanis et al. 2018.
    Deviation: the chain takes the optimiser's applied step, since Adam would rescale its flows.
    """

    phase: ClassVar[Phase] = Phase.GATE
    beakers: PositiveInt = 6
    g: Annotated[float, Field(ge=0)] = 0.03
    leak: bool = False
    dt: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        """Refuse a chain that one batch would take past its rest."""
        flows = [0.0, *self.couplings]
        for k, (above, below) in enumerate(pairwise(flows)):
            if (share := self.dt * (above + below) / 2**k) >= 1:
                raise ConfigError(
                    f"a chain with g={self.g} and dt={self.dt} is unstable: beaker {k + 1} would "
                    f"exchange {share:.3g} of what it holds in one batch, which has to be below 1; "
                    f"use a smaller g or dt (dt g up to {0.99 * self.dt * self.g / share:.3g})"
                )

    @property
    def couplings(self) -> tuple[float, ...]:
        """Coupling of each beaker to the one behind it."""
        found = [self.g * 2.0**-k for k in range(1, self.beakers + 1)]
        return (*found[:-1], found[-1] if self.leak else 0.0)

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _Chain(self, context)


class _Chain(Gate):
    remembers = True

    def __init__(self, spec: BennaFusi, context: Context):
        super().__init__(context, weights_of(context, "benna_fusi"))
        self._spec = spec
        if spec.g:
            self.own = "method 'benna_fusi' lets weights and chains exchange what they hold"
        self.deep = {
            name: weight.expand(spec.beakers - 1, *weight.shape).clone()
            for name, weight in self.stored.items()
        }

    def changed(self, name: str, update: Tensor, old: Tensor) -> Tensor:
        levels = torch.cat([old[None], self.deep[name]])
        dt = self._spec.dt * self._context.host.portion()
        flows = exchange(levels, self._spec.couplings, dt)
        self.deep[name] = self.deep[name] + flows[1:]
        return update + flows[0]

    def report(self) -> dict[str, object]:
        """Return histograms of every beaker: ``weight``, which is the first, ``beaker2`` and on."""
        said: dict[str, Any] = super().report()
        for name, deep in self.deep.items():
            said[name] |= {f"beaker{k}": log_histogram(u) for k, u in enumerate(deep, 2)}
        return said

    def state_dict(self) -> State:
        return {"deep": self.deep}

    def load_state_dict(self, state: State) -> None:
        self.deep = {name: state["deep"][name] for name in self.names}

    def nbytes(self) -> int:
        return nbytes(*self.deep.values())


def exchange(levels: Tensor, couplings: Sequence[float], dt: float) -> Tensor:
    """Return the change of the levels [m, ...] of beakers in a time dt, ``C_k = 2^(k-1)``.

    Args:
        levels: Level of each beaker.
        couplings: Of each beaker to the one behind it; behind the last one lies 0.
        dt: Time.

    Example:
        >>> exchange(torch.tensor([1.0, 0.0, 0.0]), (0.25, 0.125, 0.0), 1.0).tolist()
        [-0.25, 0.125, 0.0]
    """
    m, shape = len(levels), (-1, *[1] * (levels.dim() - 1))
    g = levels.new_tensor(couplings).view(shape)
    down = g * (levels - torch.cat([levels[1:], torch.zeros_like(levels[:1])]))
    into = torch.cat([torch.zeros_like(down[:1]), down[:-1]]) - down
    return dt * into / levels.new_tensor([2.0**k for k in range(m)]).view(shape)
