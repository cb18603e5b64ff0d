"""Costs of firing rates, under any trainer that follows errors through the neurons."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import Fraction, component
from spikecl.continual.homeostasis.layers import MeanRates, distribution, layers_with_neurons
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.errors import ConfigError, PairingError
from spikecl.networks.reachable import warn_unreachable
from spikecl.storage import State

NonNegative = Annotated[float, Field(ge=0)]


@component
class FiringRates(MethodSpec):
    """Add the gradient of a cost of firing rates, through the surrogate of each spike.

    With ``s`` the outputs of a hidden layer of n neurons, ``nu`` their mean over the T time steps
    of a sample, ``f`` the mean of that over the B samples of a batch::

        target   C = cost sum_j (f_j - target)^2
        bounds   C = mean over samples of
                     cost sum_j max(lower - nu_j, 0)^2 + cost_upper max(mean_j nu_j - upper, 0)^2

    ``dC/ds[t]`` is added to the errors that reach a spike, for each layer, and goes on from there
    as the trainer sends errors: through the surrogate's derivative, which a silent neuron has too,
    to its own weights and to the layers below. (Where errors are broadcast to layers or cut between
    them, to its own weights alone.) Where steps come in parts, rates are those of the steps so far.

    Source: target: Bellec et al. 2020; bounds: Zenke & Vogels, Neural Computation 33 (2021): a
    lower one for each neuron, an upper one for the mean of the layer. Deviation: in spikes per time
    step, not per sample, with strengths of our own.

    Args:
        form: ``target`` or ``bounds``.
        cost: Weight of the target's cost, or of the lower bound's.
        target: Spikes per time step.
        lower: Each neuron is to fire at least so often in each sample, spikes per time step.
        cost_upper: Weight of the upper bound's cost.
        upper: A layer is to fire at most so often in the mean.
    """

    phase: ClassVar[Phase] = Phase.EXTRA_GRADIENT

    form: Literal["target", "bounds"] = "target"
    cost: NonNegative = 0.1
    target: Fraction = 0.1
    lower: Fraction = 0.001
    cost_upper: NonNegative = 1.0
    upper: Fraction = 0.3

    def __post_init__(self) -> None:
        """Refuse bounds that nothing lies between."""
        if self.lower >= self.upper:
            raise ConfigError(
                f"firing rates from lower={self.lower} to upper={self.upper}; upper must be larger"
            )

    def start(self, context: Context) -> Method:
        """Return the running method."""
        last = list(context.network.layers)[-1]
        hidden = {n: e for n, e in layers_with_neurons(context.network).items() if n != last}
        if not hidden:
            raise PairingError(
                "method 'rates' is about firing rates of hidden neurons, and the network has none; "
                "give it a hidden layer"
            )
        key = "target" if self.form == "target" else "lower"
        wanted = getattr(self, key)
        warn_unreachable(hidden, wanted, f"method.rates.{key}={wanted}", "lower it")
        nothing = self.cost == 0 and (self.form == "target" or self.cost_upper == 0)
        return Method() if nothing else _FiringRates(self)


class _FiringRates(Method):
    def __init__(self, spec: FiringRates):
        self._spec = spec
        self._sums: dict[str, Tensor] = {}  # spikes of each sample in the present step
        self._count = 0
        self._rates = MeanRates(100.0)

    def errors(self, fired: Tensors, share: float) -> Tensors:
        found = {}
        with torch.no_grad():
            steps = len(next(iter(fired.values())))
            self._count += steps
            for name, out in fired.items():
                self._sums[name] = out.detach().sum(0) + self._sums.get(name, 0.0)
                slope = self._slope(self._sums[name] / self._count)
                found[name] = (slope * share / (steps * out.shape[1])).expand(out.shape)
        return found

    def _slope(self, rates: Tensor) -> Tensor:
        """Return ``B dC/dnu`` for rates [B, *features] of the samples."""
        spec = self._spec
        if spec.form == "target":
            return (2 * spec.cost * (rates.mean(0) - spec.target)).expand(rates.shape)
        low = -2 * spec.cost * (spec.lower - rates).clamp_min(0)
        size = math.prod(rates.shape[1:])
        over = (rates.flatten(1).mean(1) - spec.upper).clamp_min(0)
        high = 2 * spec.cost_upper * over / size
        return low + high.view(-1, *[1] * (rates.dim() - 1))

    def fired(self, rates: Tensors, share: float) -> None:
        self._rates.add({name: rate for name, rate in rates.items() if name in self._sums}, share)

    def after_step(self) -> None:
        self._rates.step()
        self._sums, self._count = {}, 0

    def report(self) -> dict[str, object]:
        return {name: {"rate": distribution(rate)} for name, rate in self._rates.mean.items()}

    def state_dict(self) -> State:
        return {"rates": self._rates.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self._rates.load_state_dict(state["rates"])

    def nbytes(self) -> int:
        return self._rates.nbytes()
