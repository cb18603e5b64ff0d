"""Projection on both sides of a synapse, input and output (Duncker et al., NeurIPS 2020)."""

from __future__ import annotations

from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.method import Context, Method, MethodSpec, Phase, overrides
from spikecl.continual.projection.circuits import suppression
from spikecl.continual.projection.moments import Moments, check_alive, moments
from spikecl.continual.projection.protection import (
    Others,
    ProjectUpdates,
    Protection,
    check_fits,
    in_order,
    sizes_of,
)
from spikecl.errors import PairingError
from spikecl.networks import Gain, GradientFactor, NoAutapses, Outside, Suppression
from spikecl.networks.network import own_parameters
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal


@component
class TwoSided(MethodSpec):
    """Hold updates back on both sides: ``ΔW <- P_out ΔW P_in``.

    After an experience, for each synapse with effective weights W::

        C <- C + E[x x^T]                     second moments of what it transmitted
        D <- D + E[I I^T],  I = W x           second moments of its currents,
             or  E[d d^T],  d = dL/dI         those of a sample's errors
        P_in = (I + C / (alpha c))^-1,        c = tr C / n of the first experience
        P_out = (I + D / (beta d))^-1,        d = tr D / m of the first experience

    An update moves what old activity drives by little (P_in), and currents of new activity little
    along what old activity drove (P_out): the second makes room for new dynamics, and costs
    plasticity. Method ``inhibition`` is P_in alone.

    Args:
        alpha: Strength on the input's side, relative to the mean variance. Small is rigid.
        beta: Strength on the output's side, likewise.
        output: Where D is from: ``currents``, as in the paper, or ``errors``, the output factor of
            an approximate curvature (method ``ncl``).
        samples: Samples of an experience that C and D are gathered from, after training on it.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: ``freeze``, or ``learn`` on.

    Source: Duncker et al. 2020, in the form of the baseline of Kao et al. 2021 and their code
    (alpha and beta 1e-3, absolute).
    Deviation: C and D are summed over experiences, not averaged; strengths are relative.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    alpha: PositiveFloat = 0.4
    beta: PositiveFloat = 0.4
    output: Literal["currents", "errors"] = "currents"
    samples: PositiveInt = 5000
    others: Others = "freeze"

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return RunBothSides(_Moments(self, context), context, self.others)


class BothSides(Protection):
    """A map on each side of a synapse.

    Args:
        context: The run.
        name: Of the method.
    """

    def __init__(self, context: Context, name: str):
        self._context, self._name = context, name
        self.sizes = sizes_of(context, name)
        self._inner: dict[str, Suppression] = {}
        self._outer: dict[str, Tensor] = {}
        self._report: dict[str, object] = {}

    def outside(self, name: str) -> Outside | None:
        return self._inner.get(name)

    def project_update(self, name: str, rows: Tensor) -> Tensor:
        """Return ``P_out U P_in`` of an update's rows [n_out, fan_in]."""
        left, right = self._outer[name], self._inner[name].matrix
        made = left @ rows @ right
        if any(isinstance(m, NoAutapses) for m in self._context.network.synapses[name].maps):
            made = made - _on_diagonal(made, left, right)
            made = made - torch.diag(made.diagonal())  # rounding
        return made

    def hold(self, name: str, inner: Tensor, outer: Tensor) -> None:
        """Take up maps [n, n] and [m, m] in double precision."""
        like = self._context.network.synapses[name].weight
        self._inner[name] = Suppression(inner.to(like).contiguous())
        self._outer[name] = outer.to(like).contiguous()
        self._report[name] = {
            "plasticity": float(inner.diagonal().mean() * outer.diagonal().mean()),
            "plasticity_in": float(inner.diagonal().mean()),
            "plasticity_out": float(outer.diagonal().mean()),
        }

    def check_rows(self, view: LearnerView, remedy: str) -> None:
        """Refuse, when a run begins, a trainer whose factors have no error rows."""
        for part in self._context.host.factors(view.samples, 2):
            for name in self.sizes:
                if isinstance(part.synapses[name], GradientFactor):
                    raise PairingError(
                        f"method '{self._name}' takes second moments of errors, and this trainer "
                        f"gives gradients without error rows; {remedy}, or a trainer that gives "
                        "rows, such as 'bptt'"
                    )

    def curvature(self, view: LearnerView, count: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return Kronecker factors ``A = sum E[x x^T]``, ``D = E[d d^T]`` of each synapse.

        A sums over the rows of a sample (steps, places), D is their mean; d is the error of the
        loss of one sample, by currents that stored weights make without a gain: ``A ⊗ D``
        approximates the second moment of a sample's gradient by what is stored. The pass is one of
        a test.
        """
        device, synapses, seen = self._context.device, self._context.network.synapses, 0
        inner = {name: Moments(n, device) for name, n in self.sizes.items()}
        outer: dict[str, Moments] = {}
        for part in self._context.host.factors(view.samples, count, training=False):
            seen += (batch := len(part.logits))
            for name in self.sizes:
                factor = part.synapses[name]
                inner[name].add(factor.transmitted)
                outer.setdefault(name, Moments(factor.delta.shape[1], device))
                gain = prod(m.factor for m in synapses[name].maps if isinstance(m, Gain))
                outer[name].add(batch * gain * factor.delta)  # the loss is a mean over the batch
        return {name: (inner[name].total / seen, outer[name].mean()) for name in self.sizes}

    def report(self) -> dict[str, object]:
        return self._report

    def nbytes(self) -> int:
        return nbytes(*(each.matrix for each in self._inner.values()), *self._outer.values())


class RunBothSides(ProjectUpdates):
    """Projects updates on both sides.

    Args:
        sides: The maps.
        context: The run.
        others: What becomes of parameters that are no weights.
    """

    def __init__(self, sides: BothSides, context: Context, others: Others):
        super().__init__(sides, context, others)
        self.sides = sides
        if any(overrides(method, "still") for method in context.before):
            raise PairingError(
                "another method of this run holds entries of weights still, row by row, and a "
                "projection on both sides ties rows to one another; use method 'inhibition', or "
                "another that projects rows, or leave one of the two out"
            )

    def _projected(self, name: str, update: Tensor, outside: Outside) -> Tensor:
        return self.sides.project_update(name, update.flatten(1)).view_as(update)


class _Moments(BothSides):
    def __init__(self, spec: TwoSided, context: Context):
        super().__init__(context, "two_sided")
        self._spec = spec
        self.summed: dict[str, dict[str, Tensor]] = {"in": {}, "out": {}}  # C and D
        self.means: dict[str, dict[str, float]] = {"in": {}, "out": {}}  # c and d

    def begin(self, view: LearnerView) -> None:
        if self._spec.output == "errors" and not self.means["in"]:
            self.check_rows(view, "use output='currents'")

    def end(self, view: LearnerView) -> None:
        inner = moments(self._context, view, self.sizes, self._spec.samples)
        check_alive(inner, "two_sided")
        if self._spec.output == "errors":
            found = self.curvature(view, self._spec.samples)
            outer = {name: d for name, (_, d) in found.items()}
        else:
            outer = {name: self._currents(name, c) for name, c in inner.items()}
        for side, new in (("in", inner), ("out", outer)):
            for name, c in new.items():
                mean = float(c.diagonal().mean())
                if not self.means[side].get(name):
                    self.means[side][name] = mean
                old = self.summed[side].get(name)
                self.summed[side][name] = c if old is None else old + c
        self._stand()

    @torch.no_grad()
    def _currents(self, name: str, covariance: Tensor) -> Tensor:
        """Return ``W C W^T``."""
        network = self._context.network
        synapse = network.synapses[name]
        weight = synapse.effective(own_parameters(name, synapse, network.weights()))
        rows = weight.flatten(1).to(covariance)
        return rows @ covariance @ rows.T

    def _stand(self) -> None:
        for name in self.summed["in"]:
            self.hold(name, self._map("in", name), self._map("out", name))

    def _map(self, side: str, name: str) -> Tensor:
        strength = self._spec.alpha if side == "in" else self._spec.beta
        summed, mean = self.summed[side][name], self.means[side][name]
        return suppression(summed, strength * mean if mean else 1.0)

    def state_dict(self) -> State:
        return {"summed": self.summed, "means": self.means}

    def load_state_dict(self, state: State) -> None:
        check_fits(state["summed"].get("in", {}), self.sizes, "two_sided")
        self.summed = {
            side: in_order(state["summed"].get(side, {}), self.sizes) for side in ("in", "out")
        }
        self.means = {side: dict(state["means"].get(side, {})) for side in ("in", "out")}
        self._stand()

    def nbytes(self) -> int:
        summed = [c for each in self.summed.values() for c in each.values()]
        return super().nbytes() + nbytes(*summed)


def _on_diagonal(made: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return ``L diag(v) R`` with the diagonal of an update that was projected.

    Without it the update is the best of those that leave the diagonal as it is, in the metric of
    both sides: ``(L * R) v`` is that diagonal.
    """
    v: Tensor = torch.linalg.solve((left * right).double(), made.diagonal().double())
    return left @ (v.to(made)[:, None] * right)
