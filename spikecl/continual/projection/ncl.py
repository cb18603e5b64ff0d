"""NCL: natural continual learning (Kao et al., NeurIPS 2021)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.continual.projection.circuits import root
from spikecl.continual.projection.moments import check_alive, moments
from spikecl.continual.projection.protection import Others, check_fits, in_order, refuse_unused
from spikecl.continual.projection.two_sided import BothSides, RunBothSides
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal

Pull = Annotated[float, Field(ge=0)]
Nearest = Literal["traces", "divergence"]
Pair = tuple[Tensor, Tensor]


@component
class Ncl(MethodSpec):
    """Step by the natural gradient of the posterior of old experiences, with a pull to its mean.

    Weights have the posterior ``N(mu, Λ^-1)`` after the experiences before this one, ``N(0, I /
    precision)`` before the first. The step that lowers the loss of the N samples of this one and
    the posterior's own ``(W - mu)^T Λ (W - mu) / 2`` most, within a distance by Λ, is::

        ΔW = -eta precision (Λ^-1 G + pull / N (W - mu))

    where G is the gradient of the mean loss: in the first experience Λ is the prior's, and it is
    the plain step with a weight decay. Λ of a synapse is a Kronecker product, ``Λ^-1 G = D^-1 G
    A^-1``. In order: the optimiser gets ``G + pull / N D (W - mu) A``, with momentum, if it has
    any; its update is multiplied by ``precision D^-1 . A^-1``. At the end mu is W, and::

        A_new = sum over a sample's rows E[x x^T],  D_new = E[d d^T]   (d: errors of its currents)
        A ⊗ D <- A ⊗ D + N A_new ⊗ D_new,  approximately

    Args:
        precision: Of the weights before the first experience, ``p_w^-2`` in the paper. Small is
            rigid: it is what the curvature is compared with.
        pull: Strength of the pull to mu; 1 is the posterior's.
        output: Use D. Without it ``Λ = A ⊗ I`` with ``A <- A + N E[x x^T]`` over rows: the step of
            method ``inhibition``, alpha of which is ``precision / N``, and the pull.
        nearest: Which product stands for the sum: of ``traces`` (sums of factors, weighted by their
            traces; never below the sum), or of the least Kullback-Leibler ``divergence``, whose
            steps can be larger than plain ones.
        samples: Samples of an experience that A and D are gathered from, after training on it.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: ``freeze``, or ``learn`` on.

    Source: Kao et al. 2021, equation 8 and appendices E and G, and their code: ``p_w = 1``, pull 1,
    momentum 0.9, ``divergence`` in recurrent and ``traces`` in feedforward networks.
    Deviation: D is of true labels (the empirical Fisher information), theirs of labels that the
    network draws; biases freeze, where theirs are a column of W; ``N`` is each experience's own.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    precision: PositiveFloat = 1.0
    pull: Pull = 1.0
    output: bool = True
    nearest: Nearest = "traces"
    samples: PositiveInt = 2000
    others: Others = "freeze"

    def __post_init__(self) -> None:
        if not self.output:
            refuse_unused(self, ("nearest",), "with output=false")

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _Run(_Posterior(self, context), context, self.others)


class _Posterior(BothSides):
    def __init__(self, spec: Ncl, context: Context):
        super().__init__(context, "ncl")
        self._spec = spec
        self.mean: dict[str, Tensor] = {}  # mu
        self.inner: dict[str, Tensor] = {}  # A
        self.outer: dict[str, Tensor] = {}  # D
        self._size = 0

    def begin(self, view: LearnerView) -> None:
        if self._spec.output and not self.mean:
            self.check_rows(view, "use output=false")
        self._size = len(view.samples)

    @torch.no_grad()
    def pulled(self, gradients: Tensors) -> Tensors:
        """Return gradients with that of the posterior, for each sample."""
        made, portion = dict(gradients), self._context.host.portion()
        strength = self._spec.pull / max(self._size, 1) * portion
        for name in self.sizes if strength else ():
            key, weight = f"{name}.weight", self._context.network.synapses[name].weight
            if key not in gradients:
                continue
            off = weight.flatten(1)
            if name in self.mean:
                off = (off - self.mean[name]) @ self.inner[name].to(weight)
                slope = self.outer[name].to(weight) @ off
            else:
                slope = self._spec.precision * off
            made[key] = gradients[key] + strength * slope.view_as(weight)
        return made

    def end(self, view: LearnerView) -> None:
        for name, (a, d) in self._factors(view).items():
            weight = self._context.network.synapses[name].weight.detach()
            root = self._spec.precision**0.5 if self._spec.output else 1.0
            prior_in = self._spec.precision / root * torch.eye(len(a), dtype=a.dtype)
            prior_out = root * torch.eye(len(d), dtype=d.dtype)
            old = (self.inner.get(name, prior_in.to(a)), self.outer.get(name, prior_out.to(d)))
            self.inner[name], self.outer[name] = self._summed(old, (self._size * a, d))
            self.mean[name] = weight.flatten(1).clone()
        self._stand()

    def _factors(self, view: LearnerView) -> dict[str, Pair]:
        if self._spec.output:
            found = self.curvature(view, self._spec.samples)
            check_alive({name: a for name, (a, _) in found.items()}, "ncl")
            return found
        covariances = moments(self._context, view, self.sizes, self._spec.samples)
        check_alive(covariances, "ncl")
        sizes = {name: len(self._context.network.synapses[name].weight) for name in self.sizes}
        return {
            name: (c, torch.eye(sizes[name], dtype=c.dtype, device=c.device))
            for name, c in covariances.items()
        }

    def _summed(self, old: Pair, new: Pair) -> Pair:
        if not self._spec.output:
            return old[0] + new[0], old[1]
        if not float(new[1].trace()):  # no errors: nothing was learned of these weights
            return old
        return by_traces(old, new) if self._spec.nearest == "traces" else by_divergence(old, new)

    def _stand(self) -> None:
        for name, a in self.inner.items():
            least = float(torch.linalg.eigvalsh(a)[0])
            scale = self._spec.precision / least
            self.hold(name, least * inverse(a), scale * inverse(self.outer[name]))

    def state_dict(self) -> State:
        own = {"mean": self.mean, "inner": self.inner, "outer": self.outer}
        return {**own, "size": self._size}

    def load_state_dict(self, state: State) -> None:
        check_fits(state["inner"], self.sizes, "ncl")
        self.mean, self.inner, self.outer = (
            in_order(state[kind], self.sizes) for kind in ("mean", "inner", "outer")
        )
        self._size = state["size"]
        self._stand()

    def nbytes(self) -> int:
        own = (*self.mean.values(), *self.inner.values(), *self.outer.values())
        return super().nbytes() + nbytes(*own)


class _Run(RunBothSides):
    sides: _Posterior

    def gradients(self, gradients: Tensors) -> Tensors:
        return super().gradients(self.sides.pulled(gradients))


def inverse(matrix: Tensor) -> Tensor:
    """Return the inverse of a symmetric positive definite matrix."""
    return torch.cholesky_inverse(root((matrix + matrix.T) / 2))


def by_traces(old: Pair, new: Pair) -> Pair:
    """Return ``(A + A'/w, D + w D')``, ``w^2 = tr D tr A' / (tr D' tr A)``.

    The product exceeds the sum of both by ``w A ⊗ D' + A' ⊗ D / w``, which this w makes least.
    """
    (a, d), (a2, d2) = old, new
    weight = float((d.trace() * a2.trace() / (d2.trace() * a.trace())).sqrt())
    return a + a2 / weight, d + weight * d2


def by_divergence(old: Pair, new: Pair, *, rounds: int = 200, close: float = 1e-9) -> Pair:
    """Return the product of which ``N(0, .)`` is nearest to ``N(0, A ⊗ D + A' ⊗ D')``.

    Either factor has a closed form where the other is given; they take turns until they stay.
    """
    (a, d), (a2, d2) = old, new
    inner, outer = by_traces(old, new)
    for _ in range(rounds):
        back = inverse(outer)
        inner = ((d * back).sum() * a + (d2 * back).sum() * a2) / len(d)
        back = inverse(inner)
        moved = ((a * back).sum() * d + (a2 * back).sum() * d2) / len(a)
        still = float((moved - outer).norm()) <= close * float(moved.norm())
        outer = moved
        if still:
            break
    return inner, outer
