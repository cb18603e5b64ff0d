"""Bases of gradients: orthogonal gradient descent (Farajtabar et al. 2020) and PCA-OGD (Doan 2021).

What is protected is a vector in the space of all parameters, not rows of one synapse: biases,
thresholds and norms are part of it, and are held back exactly like weights.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from spikecl.components import PositiveInt, component
from spikecl.continual.host import Seen
from spikecl.continual.method import Context, Factors, Method, MethodSpec, Phase, Tensors
from spikecl.continual.projection.protection import ProjectUpdates, Protection
from spikecl.continual.projection.subspace import Subspace, principal
from spikecl.errors import PairingError, RunError, UsageError
from spikecl.networks import Outside
from spikecl.storage import State, nbytes
from spikecl.streams import Batch, LearnerView, Reveal

Logits = Literal["all", "true", "average"]


@component
class Ogd(MethodSpec):
    """Keep updates orthogonal to the gradients of what the network said to old samples.

    At the end of an experience, for each of some samples x, with V [k, P] orthonormal (empty at
    first) and z the network's outputs::

        g = dz_y/dw at x                 the output of its label (of each class; of their mean)
        g <- g - V^T V g, twice          V <- V and g / |g|, unless nothing is left of g

    and later the update that an optimiser has applied, of all parameters in one vector::

        Δw <- Δw - V^T V Δw

    so that to first order the outputs ``z_y`` of those samples stay. Where a method before holds
    entries still, m [P] is 0 for them and 1 for the rest, and with ``B = V m``::

        Δw <- m Δw,  Δw <- Δw - B^T (B B^T)^+ B Δw

    Gradients are those of backpropagation through time with the neurons' surrogate, whatever the
    trainer, in the pass of a test. Heads of single tasks are left out, statistics of norms stay
    after the first experience.

    Args:
        samples: Samples of an experience whose gradients are kept, after training on it.
        logits: Outputs whose gradients are kept: that of the label (``true``, OGD-GTL), those of
            ``all`` classes, each by itself (OGD-ALL), or their mean (``average``, OGD-AVE).
        limit: Most bytes that kept and gathered gradients may take. An experience that would need
            more, ``samples`` times outputs times parameters, is refused before it is learned.

    Source: Farajtabar et al., AISTATS 2020, algorithm 1 and section 3; 200 samples, ``true``.
    Deviation: they project gradients of plain descent; here the applied update is projected, which
    is the same there and holds with momentum, weight decay and Adam. Outputs of all classes are
    meant, of those that compete in an experience where each has its own.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    samples: PositiveInt = 200
    logits: Logits = "true"
    limit: PositiveInt = 2**31

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _ProjectAll(_Gradients(self, context, "ogd"), context)


@component
class PcaOgd(MethodSpec):
    """Keep updates orthogonal to principal directions of the gradients of old samples.

    :class:`Ogd` with a basis that grows by less: with G [s, P] the gradients of an experience's
    samples, uncentred::

        G G^T = U S U^T,  S descending
        V <- V and the first ``directions`` rows of U^T G, made orthonormal

    Args:
        directions: Directions to add per experience.
        samples: Samples of an experience whose gradients are taken, after training on it.
        logits: Outputs whose gradients are taken; see :class:`Ogd`.
        limit: Most bytes that kept and gathered gradients may take; see :class:`Ogd`.

    Source: Doan et al., AISTATS 2021, algorithm 1, and their code: 100 directions of 3,000 samples,
    ``true``.
    Deviation: fewer samples, since all their gradients are held at once. Their code centres G
    first, which leaves the mean gradient free; and it adds directions of length 1 that rounding
    alone has made where nothing new is left of them.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    directions: PositiveInt = 100
    samples: PositiveInt = 1000
    logits: Logits = "true"
    limit: PositiveInt = 2**31

    def start(self, context: Context) -> Method:
        """Return the running method."""
        basis = _Gradients(self, context, "pca_ogd", self.directions)
        return _ProjectAll(basis, context)


class _Gradients(Protection):
    """An orthonormal basis of gradients over all shared parameters that learn."""

    projector = True
    gathers = "gradients"

    def __init__(self, spec: Ogd | PcaOgd, context: Context, name: str, keep: int | None = None):
        self._spec, self._context, self._name, self._keep = spec, context, name, keep
        if spec.logits == "true" and Reveal.LABELS not in context.reveal:
            raise PairingError(
                f"method '{name}' with logits='true' needs labels, which the stream hides; use "
                "logits='all' or 'average'"
            )
        readout, parameters = list(context.network.synapses)[-1], context.network.weights()
        heads = (f"{readout}.weight", f"{readout}.bias") if context.host.apart else ()
        self.sizes = {
            n: p.numel() for n, p in parameters.items() if p.requires_grad and n not in heads
        }
        if not self.sizes:
            raise PairingError(
                f"method '{name}' protects what tasks share, and all that learns are heads of "
                "single tasks; use method 'finetune'"
            )
        like = parameters[next(iter(self.sizes))].detach()
        self.basis = Subspace(sum(self.sizes.values()), like)
        self._report: dict[str, object] = {}

    def outside(self, name: str) -> Outside | None:
        return None  # no synapse is protected by itself

    def begin(self, view: LearnerView) -> None:
        own = self._context.host.outputs()
        outputs = self._context.classes if own is None else int(own.sum())
        count = min(self._spec.samples, len(view.samples))
        count *= outputs if self._spec.logits == "all" else 1
        (held, size), each = self.basis.rows.shape, self.basis.rows.element_size()
        need = (held + count) * size * each
        if need > self._spec.limit:
            raise UsageError(
                f"method '{self._name}': {held} gradients kept and {count} of this experience, of "
                f"{size} parameters each, take {need:.2g} bytes, and limit={self._spec.limit} "
                f"allows {self._spec.limit:.2g}; lower samples, use logits='true' or method "
                "'pca_ogd' with few samples, or raise limit"
            )

    def end(self, view: LearnerView) -> None:
        before = len(self.basis.rows)
        energy: dict[str, object] = {}
        found = map(self._of, self._context.host.look(view.samples, self._spec.samples))
        if self._keep is None:
            for gradients in found:  # batch by batch: they are not all held twice
                self.basis.extend(gradients)
        else:
            gradients = torch.cat(list(found))
            values, vectors = principal((gradients @ gradients.T).double())
            count = min(self._keep, int((values > 0).sum()))
            self.basis.extend(vectors[:count].to(gradients) @ gradients)
            energy["energy"] = float(values[:count].sum() / values.sum().clamp_min(1e-300))
        added = len(self.basis.rows) - before
        self._report = {**self.basis.report(), "added": added, **energy}

    def _of(self, seen: Seen) -> Tensor:
        """Return the gradients [k, P] of samples, one pass for each."""
        network, rows = self._context.network, []
        parameters = network.weights()
        leaves = {name: parameters[name].detach().requires_grad_() for name in self.sizes}
        for i in range(seen.x.shape[1]):
            with torch.enable_grad():
                x, use = seen.x[:, i : i + 1], {**parameters, **leaves}
                logits = network(x, weights=use, generator=seen.generator).logits[0]
                wanted = self._wanted(logits, None if seen.batch.y is None else seen.batch.y[i])
            for value in wanted:
                found = torch.autograd.grad(
                    value, tuple(leaves.values()), retain_graph=True, materialize_grads=True
                )
                rows.append(torch.cat([g.flatten() for g in found]))
        return torch.stack(rows)

    def _wanted(self, logits: Tensor, label: Tensor | None) -> Tensor:
        """Return the outputs of one sample whose gradients are kept."""
        own = self._context.host.outputs()
        places = torch.arange(len(logits), device=logits.device)
        places = places if own is None else places[own]
        if self._spec.logits == "average":
            return logits[places].mean()[None]
        if self._spec.logits == "true":  # of several heads, each has one of a label
            places = places[places % self._context.classes == label]
        return logits[places]

    def report(self) -> dict[str, object]:
        return self._report

    def state_dict(self) -> State:
        return {"rows": self.basis.rows, "report": self._report}

    def load_state_dict(self, state: State) -> None:
        size, found = self.basis.rows.shape[1], state["rows"].shape[1]
        if found != size:
            raise RunError(
                f"method '{self._name}': the checkpoint is of another network: its gradients have "
                f"{found} parameters, and this network has {size} that are shared and learn; "
                "resume with the configuration that it was made with"
            )
        self.basis.rows, self._report = state["rows"], state["report"]

    def nbytes(self) -> int:
        return self.basis.nbytes()


class _ProjectAll(ProjectUpdates):
    """Projects the update of all shared parameters as one vector."""

    protection: _Gradients

    def __init__(self, protection: _Gradients, context: Context):
        super().__init__(protection, context)
        self._solved: tuple[Tensor, Tensor] | None = None  # m and (B B^T)^+

    def factors(self, factors: Factors, batch: Batch) -> Factors:
        return factors

    def gradients(self, gradients: Tensors) -> Tensors:
        return gradients

    @torch.no_grad()
    def update(self, update: Tensors) -> Tensors:
        changed, sizes, basis = dict(update), self.protection.sizes, self.protection.basis
        if len(basis.rows):
            vector = torch.cat([update[name].flatten() for name in sizes])
            free = self._free()
            left = basis.residual(vector[None])[0] if free is None else self._within(free, vector)
            parts = torch.split(left, list(sizes.values()))
            changed |= {n: part.view_as(update[n]) for n, part in zip(sizes, parts)}
        self._keep_heads(changed)
        return changed

    def _free(self) -> Tensor | None:
        """Return 1 for what may move of all parameters [P], 0 for what methods before hold still.

        ``None`` where nothing is held.
        """
        network, held = self._context.network.weights(), map(self._held, self.protection.sizes)
        found = dict(zip(self.protection.sizes, held, strict=True))
        if not any(bool(each.any()) for each in found.values() if each is not None):
            return None
        still = [torch.zeros_like(network[n]) if h is None else h for n, h in found.items()]
        return torch.cat([1 - each.flatten().to(self.protection.basis.rows) for each in still])

    def _within(self, free: Tensor, vector: Tensor) -> Tensor:
        """Return the part of an update of what may move that V does not see.

        With ``B = V m``: ``u <- m u``, ``u <- u - B^T (B B^T)^+ B u``, twice for rounding.
        """
        rows, left = self.protection.basis.rows, free * vector
        solved = self._solve(free)
        for _ in range(2):
            left = left - free * ((solved @ (rows @ left).double()).to(rows) @ rows)
        return left

    def _solve(self, free: Tensor) -> Tensor:
        """Return ``(B B^T)^+``, again only where what may move or the basis has changed."""
        rows, known = self.protection.basis.rows, self._solved
        if known is None or len(known[1]) != len(rows) or not torch.equal(known[0], free):
            inside = (rows * free).double()
            known = (free, torch.linalg.pinv(inside @ inside.T, rtol=1e-9, hermitian=True))
        self._solved = known
        return known[1]

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        free = self._free()
        self._solved = None
        if free is not None and len(self.protection.basis.rows):
            self._solve(free)

    def nbytes(self) -> int:
        return super().nbytes() + nbytes(*(self._solved or ()))
