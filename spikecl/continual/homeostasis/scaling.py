"""Synaptic scaling: a neuron multiplies all its weights, so that their ratios stay."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.homeostasis.layers import (
    MeanRates,
    distribution,
    layers_with_neurons,
    rates_of_rows,
)
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.errors import ConfigError, PairingError
from spikecl.networks import BatchNorm, Binarise, Dale, NoAutapses, SplitSigns, Standardise, Synapse
from spikecl.networks.reachable import warn_of, warn_unreachable
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView
from spikecl.trainers.needs import layers_of

NonNegative = Annotated[float, Field(ge=0)]


@component
class Scaling(MethodSpec):
    """Scale the weights onto each neuron by what it fires, or to a sum.

    For row i of every synapse onto neurons (feed-forward, recurrent, shortcuts), behind the
    optimiser::

        rate    r_i <- r_i + (f_i - r_i) / tau_rate,   w_ij <- w_ij max(1 + rate (target - r_i), 0)
        sum     w_ij <- w_ij (1 + rate (target_sum / sum_j |w_ij| - 1))

    with ``f_i`` the mean output over time steps and samples (and places, of a channel). ``sum``
    with ``rate=1`` normalises; a row of zeros stays. All weights of a row are multiplied alike,
    where signs are told (``excitatory`` neurons, conductances) those that excite: the inhibitory
    ones would pull the other way. With ``rate=0`` the method does nothing at all.

    It acts behind projections, which do not hold it back: ``moved`` in the report is how far it
    alone has taken a synapse's weights since the experience began, relative to their size.

    Source: Turrigiano et al., Nature 391 (1998); multiplicative form of van Rossum, Bi & Turrigiano
    2000; sums: von der Malsburg 1973, Diehl & Cook 2015.

    Args:
        form: By ``rate``, or to a ``sum``.
        rate: Strength, per step of training; slow beside learning.
        target: Spikes per time step that neurons are scaled to.
        tau_rate: Steps of training that r is a mean of.
        target_sum: Sum of the stored weights' sizes, but for autapses that have no effect; 0 is the
            mean over rows at the start.
        every: Steps of training from one scaling to the next.
        most: By ``rate``, rows grow no further than so many times the mean sum of rows at the
            start: a neuron that more of its input does not wake would grow for ever.
    """

    phase: ClassVar[Phase] = Phase.AVERAGING

    form: Literal["rate", "sum"] = "rate"
    rate: NonNegative = 0.001
    target: PositiveFloat = 0.1
    tau_rate: Annotated[float, Field(ge=1)] = 20.0
    target_sum: NonNegative = 0.0
    every: PositiveInt = 1
    most: Annotated[float, Field(gt=1)] = 10.0

    def __post_init__(self) -> None:
        """Refuse sums that a step would go beyond, and signs that it would turn."""
        if self.form == "sum" and self.rate > 1:
            raise ConfigError(
                f"method.scaling.rate: got {self.rate} for form='sum', whose rows would go beyond "
                "their sum, and could change their signs; use at most 1, which goes all the way"
            )

    def start(self, context: Context) -> Method:
        """Return the running method."""
        if not self.rate:
            return Method()
        rows = _rows(context)
        if self.form == "rate":
            layers = layers_with_neurons(context.network)
            scaled = {each.layer: layers[each.layer] for each in rows.values()}
            warn_unreachable(scaled, self.target, f"scaling.target={self.target}", "lower it")
        return _Scaling(self, rows)


class _Rows(NamedTuple):
    """Weights onto the neurons of a layer, and which of them are scaled."""

    layer: str
    weight: nn.Parameter
    synapse: Synapse

    def scaled(self) -> Tensor:
        """Return 1 for weights [n_out, ...] that are scaled, 0 for others."""
        weight = self.weight.detach()
        found = torch.ones_like(weight)
        for each in self.synapse.maps:
            if isinstance(each, Dale):
                excite = each.signs(weight.shape[1], weight) > 0
                found = found * excite.view(1, -1, *[1] * (weight.dim() - 2)).to(weight)
            elif isinstance(each, SplitSigns):
                found = found * (weight > 0)
            elif isinstance(each, NoAutapses):
                found = found * (1 - torch.eye(len(weight)).to(weight))
        return found


def _rows(context: Context) -> dict[str, _Rows]:
    """Return the synapses onto neurons that learn; refuse those that nothing can scale."""
    found, layers = {}, layers_of(context.network)
    for name, layer in layers_with_neurons(context.network).items():
        shortcuts = {each: layers[each] for each in layer.currents if each in layers}
        onto = {name: layer.synapse, f"{name}.recurrent": layer.recurrent}
        onto |= {each: cut.synapse for each, cut in shortcuts.items() if cut.neuron is None}
        for path, synapse in onto.items():
            if synapse is not None and synapse.weight.requires_grad:
                found[path] = _Rows(name, synapse.weight, synapse)
        for path, each in {name: layer, **shortcuts}.items():
            if path in found and isinstance(each.norm, BatchNorm):
                raise PairingError(
                    f"method 'scaling' multiplies weights, and the norm behind those of '{path}' "
                    "takes their size out again; use a network without norms"
                )
    for path, rows in found.items():
        if fixed := [m for m in rows.synapse.maps if isinstance(m, Standardise | Binarise)]:
            raise PairingError(
                f"method 'scaling' multiplies weights, and {type(fixed[0]).__name__} gives those "
                f"of '{path}' a size of its own; use a network without it"
            )
    if not found:
        raise PairingError(
            "method 'scaling' scales weights onto neurons, and the network has no such weights "
            "that learn; give it a hidden layer"
        )
    return found


class _Scaling(Method):
    writes = remembers = True

    def __init__(self, spec: Scaling, rows: dict[str, _Rows]):
        self._spec, self._rows = spec, rows
        self._rates = MeanRates(spec.tau_rate)
        self._step = 0
        self._start = {path: self._sum(path).mean().item() for path in rows}
        self._sums = {path: spec.target_sum or start for path, start in self._start.items()}
        self._change: dict[str, Tensor] = {}  # what scaling did since the experience began
        self._size: dict[str, float] = {}
        self._said: list[str] = []

    def _sum(self, path: str) -> Tensor:
        """Return the sum of the sizes of the weights that are scaled, by row."""
        rows = self._rows[path]
        return (rows.weight.detach().abs() * rows.scaled()).flatten(1).sum(1)

    def begin(self, view: LearnerView) -> None:
        for path, rows in self._rows.items():
            self._change[path] = torch.zeros_like(rows.weight.detach())
            self._size[path] = float(rows.weight.detach().norm())

    def fired(self, rates: Tensors, share: float) -> None:
        layers = {rows.layer for rows in self._rows.values()}
        self._rates.add({name: rate for name, rate in rates.items() if name in layers}, share)

    @torch.no_grad()
    def after_step(self) -> None:
        self._rates.step()
        self._step += 1
        if self._step % self._spec.every:
            return
        for path, rows in self._rows.items():
            factor = self._factor(path, rows)
            factor = factor.view(-1, *[1] * (rows.weight.dim() - 1))
            new = torch.where(rows.scaled() > 0, rows.weight * factor, rows.weight)
            self._change[path] += new - rows.weight
            rows.weight.copy_(new)

    def _factor(self, path: str, rows: _Rows) -> Tensor:
        """Return what each row is multiplied by."""
        if self._spec.form == "sum":
            total = self._sum(path)
            share = torch.where(total > 0, self._sums[path] / total, torch.ones_like(total))
            return 1 + self._spec.rate * (share - 1)
        rate = rates_of_rows(self._rates.mean[rows.layer], rows.weight)
        wanted = (1 + self._spec.rate * (self._spec.target - rate)).clamp_min(0)
        return torch.minimum(wanted, self._room(path).clamp_min(1))

    def _room(self, path: str) -> Tensor:
        """Return what rows may be multiplied by at most; without bound where all began as zeros."""
        most, total = self._spec.most * (self._start[path] or math.inf), self._sum(path)
        return torch.where(total > 0, most / total, torch.full_like(total, math.inf))

    def end(self, view: LearnerView) -> None:
        for path, rows in self._rows.items():
            if self._spec.form == "sum" or path in self._said or not self._step:
                continue
            rate = rates_of_rows(self._rates.mean[rows.layer], rows.weight)
            count = int(((self._room(path) <= 1 + 1e-5) & (rate < 0.5 * self._spec.target)).sum())
            if count:
                self._said.append(path)
                what = f"scaling.target={self._spec.target}: {count} of its {len(rate)} neurons "
                what += f"fire less than half of it with the largest weights of '{path}'"
                warn_of(rows.layer, what, "raise its gain, or lower its threshold or the target")

    def report(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for path, rows in self._rows.items():
            change = self._change.get(path)
            if change is not None and rows.layer in self._rates.mean:
                found[path] = {
                    "rate": distribution(self._rates.mean[rows.layer]),
                    "weight_sum": distribution(self._sum(path)),
                    "moved": float(change.norm()) / self._size[path] if self._size[path] else 0.0,
                }
        return found

    def state_dict(self) -> State:
        return {
            "rates": self._rates.state_dict(),
            "step": self._step,
            "start": dict(self._start),
            "said": list(self._said),
            "change": self._change,
            "size": dict(self._size),
        }

    def load_state_dict(self, state: State) -> None:
        self._rates.load_state_dict(state["rates"])
        self._step, self._start, self._said = state["step"], dict(state["start"]), state["said"]
        self._sums = {n: self._spec.target_sum or start for n, start in self._start.items()}
        self._change = {n: t.clone() for n, t in state["change"].items()}
        self._size = dict(state["size"])

    def nbytes(self) -> int:
        return nbytes(*self._change.values()) + self._rates.nbytes()
