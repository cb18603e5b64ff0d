"""Intrinsic plasticity: neurons move their own thresholds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from spikecl.components import Fraction, component
from spikecl.continual.homeostasis.layers import MeanRates, distribution, layers_with_neurons, moved
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.errors import PairingError
from spikecl.networks.reachable import warn_of, warn_unreachable
from spikecl.neurons.values import Range
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal

NonNegative = Annotated[float, Field(ge=0)]


@component
class Threshold(MethodSpec):
    """Each neuron moves its threshold by what it fires; gradients do not.

    With ``f`` the mean output of a neuron in a step of training over time steps and samples, in
    order of execution behind the optimiser::

        event       theta <- theta + theta_plus f - theta / tau,    v_th = v_th0 + theta
        set_point   r <- r + (f - r) / tau_rate,                    v_th <- v_th + rate (r - target)

    so the event form rests at ``theta = theta_plus tau f``, the set point at ``f = target``. A mean
    over the batch, not a sum: its size does not change how fast thresholds move. They move in
    training alone. With ``rate`` or ``theta_plus`` of 0 the method does nothing at all.

    It acts behind projections, which do not hold it back: old outputs move with the thresholds.
    ``moved`` in the report is the size of that, and ``adapts="first"`` ends it.

    Source: event form: Diehl & Cook, Frontiers in Computational Neuroscience 9:99 (2015), 0.05 mV a
    spike and 1e7 ms; set point: Desai et al., Nature Neuroscience 2 (1999), as a rule Lazar et al.
    2009. Deviation: time is counted in steps of training; ``theta_plus`` is the gain of a neuron
    that fires in all time steps of a sample.

    Args:
        form: ``set_point`` or ``event``.
        target: Spikes per time step that the set point is.
        rate: How far a threshold moves in a step for a difference of 1 from the set point.
        tau_rate: Steps of training that r is a mean of.
        theta_plus: Gain of the event form.
        tau: Its decay, in steps of training.
        floor: Lowest threshold, as a part of the way from rest to where it started.
        adapts: In all experiences (``always``), or in the ``first`` that is shown.
    """

    phase: ClassVar[Phase] = Phase.AVERAGING

    form: Literal["set_point", "event"] = "set_point"
    target: Annotated[float, Field(gt=0, lt=1)] = 0.1
    rate: NonNegative = 0.01
    tau_rate: Annotated[float, Field(ge=1)] = 20.0
    theta_plus: NonNegative = 0.01
    tau: Annotated[float, Field(ge=1)] = 1000.0
    floor: Fraction = 0.05
    adapts: Literal["always", "first"] = "always"

    @property
    def needs(self) -> Reveal:  # type: ignore[override]
        """Boundaries, where it has to know the first experience from others."""
        return Reveal.BOUNDARY if self.adapts == "first" else Reveal.NONE

    def start(self, context: Context) -> Method:
        """Return the running method."""
        cells = _cells(self, context)
        strength = self.rate if self.form == "set_point" else self.theta_plus
        own = {f"{name}.neuron.v_th" for name in cells}
        for method in context.before if strength else ():
            method.leave(own)
        return _Threshold(self, cells) if strength else Method()


class _Cells(NamedTuple):
    """Thresholds of a layer: as stored, what stored numbers stand for, where they begin and end."""

    stored: nn.Parameter
    range: Range
    start: Tensor
    floor: Tensor

    def value(self) -> Tensor:
        return self.range.from_raw(self.stored.detach()).clone()


def _cells(spec: Threshold, context: Context) -> dict[str, _Cells]:
    """Return the thresholds that learn, by layer; refuse a network without, warn of a target."""
    found = {}
    for name, layer in layers_with_neurons(context.network).items():
        assert layer.neuron is not None
        neuron, stored = layer.neuron.neuron, getattr(layer.neuron, "v_th", None)
        if not isinstance(stored, nn.Parameter) or not stored.dim() or not stored.requires_grad:
            continue
        allowed = layer.neuron.ranges["v_th"]
        start = allowed.from_raw(stored.detach()).clone()
        rest = torch.as_tensor(getattr(neuron, "v_rest", 0.0)).to(stored).expand_as(start)
        floor = torch.lerp(rest, start, spec.floor)
        found[name] = _Cells(stored, allowed, start, floor)
        if spec.form == "set_point":
            warn_unreachable({name: layer}, spec.target, f"target={spec.target}", "lower it")
    if not found:
        raise PairingError(
            "method 'threshold' moves the threshold of each neuron, and no layer has thresholds "
            "that learn, one for each neuron; use a spiking network with learns = ['v_th'] and "
            "per_neuron = true"
        )
    return found


class _Threshold(Method):
    remembers = True

    def __init__(self, spec: Threshold, cells: dict[str, _Cells]):
        self._spec, self._cells = spec, cells
        self._rates = MeanRates(spec.tau_rate)
        self._before: dict[str, Tensor] = {}  # thresholds when the experience began
        self._experience = 0
        self._said: list[str] = []

    def begin(self, view: LearnerView) -> None:
        self._before = {name: cells.value() for name, cells in self._cells.items()}
        self._experience += 1

    def fired(self, rates: Tensors, share: float) -> None:
        self._rates.add({name: rates[name] for name in self._cells if name in rates}, share)

    def gradients(self, gradients: Tensors) -> Tensors:
        own = {f"{name}.neuron.v_th" for name in self._cells}
        return {name: gradient for name, gradient in gradients.items() if name not in own}

    @torch.no_grad()
    def after_step(self) -> None:
        now = self._rates.step()
        if self._spec.adapts == "first" and self._experience > 1:
            return
        for name, seen in now.items():
            cells, value = self._cells[name], self._cells[name].value()
            value = value + self._change(value - cells.start, seen, self._rates.mean[name])
            cells.stored.copy_(cells.range.to_raw(torch.maximum(value, cells.floor)))

    def _change(self, theta: Tensor, seen: Tensor, mean: Tensor) -> Tensor:
        if self._spec.form == "event":
            return self._spec.theta_plus * seen - theta / self._spec.tau
        return self._spec.rate * (mean - self._spec.target)

    def end(self, view: LearnerView) -> None:
        for name, cells in self._cells.items():
            if self._spec.form == "event" or name in self._said or name not in self._rates.mean:
                continue
            lowest = cells.stored.detach() <= cells.range.to_raw(cells.floor)  # as it is stored
            count = int((lowest & (self._rates.mean[name] < 0.5 * self._spec.target)).sum())
            if count:
                self._said.append(name)
                what = f"target={self._spec.target}: {count} of its {lowest.numel()} neurons fire "
                what += "less than half of it at the lowest threshold"
                warn_of(name, what, "raise its weights or gain, or lower the target or the floor")

    def report(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, rate in self._rates.mean.items():
            value = self._cells[name].value()
            found[name] = {
                "rate": distribution(rate),
                "threshold": distribution(value),
                "moved": moved(self._before[name], value),
            }
        return found

    def state_dict(self) -> State:
        return {
            "rates": self._rates.state_dict(),
            "start": {name: cells.start for name, cells in self._cells.items()},
            "floor": {name: cells.floor for name, cells in self._cells.items()},
            "before": self._before,
            "experience": self._experience,
            "said": list(self._said),
        }

    def load_state_dict(self, state: State) -> None:
        self._rates.load_state_dict(state["rates"])
        self._before = dict(state["before"])
        for name, cells in self._cells.items():
            held = {key: state[key][name] for key in ("start", "floor")}
            self._cells[name] = cells._replace(**held)
        self._experience, self._said = state["experience"], list(state["said"])

    def nbytes(self) -> int:
        fixed = [t for cells in self._cells.values() for t in (cells.start, cells.floor)]
        return nbytes(*self._before.values(), *fixed) + self._rates.nbytes()
