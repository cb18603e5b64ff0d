"""Soft projection: directions are held back in proportion to their use.

P closes none, but where fewer than half keep 1e-3 of the freest's plasticity the others are cut to
none: they count as closed, and the rest makes a map of few columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.method import Context, Factors, Method, MethodSpec, Phase
from spikecl.continual.projection.circuits import (
    Spiking,
    one_shot,
    spiking_one_shot,
    suppression,
)
from spikecl.continual.projection.heard import Heard
from spikecl.continual.projection.moments import (
    Moments,
    Silent,
    check_alive,
    moments,
    rows_of,
)
from spikecl.continual.projection.protection import (
    Others,
    Protection,
    check_fits,
    per_synapse,
    project,
    refuse_unused,
    sizes_of,
)
from spikecl.errors import ConfigError, UsageError
from spikecl.networks import Outside, Suppression
from spikecl.storage import State, nbytes
from spikecl.streams import Batch, LearnerView, Reveal, Unlearn

Alphas = PositiveFloat | Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)]
Rule = Literal["cab", "owm", "circuit", "spiking"]
CLOSED = 1e-3  # plasticity of a direction, relative to the freest, below which it counts as none


@component
class Inhibition(MethodSpec):
    """Multiply updates by ``P = (I + C/alpha)^-1``, C the second moments of what was transmitted.

    ``ΔW = -eta G P`` is the answer to ``argmin <G, ΔW> + (|ΔW|^2 + tr ΔW C ΔW^T / alpha) / (2
    eta)``: a step that pays for what it does to old currents. A direction of variance c keeps the
    share ``alpha / (alpha + c)`` of its plasticity. It bounds no drift, it slows it.

    One matrix, several ways to learn it, all known:

    - ``cab``: C is summed and inverted (conceptor-aided backpropagation, He & Jaeger 2018).
    - ``owm``: recursive least squares on batch means (orthogonal weights modification, Zeng 2019).
    - ``circuit``: recursive least squares on every row, as one-shot lateral inhibition that learns
      from its own output (:mod:`spikecl.continual.projection.circuits`). Equal to ``cab``.
    - ``spiking``: the circuit with lateral neurons that spike.

    Args:
        alpha: Strength, relative to the mean variance ``tr C / n`` of a synapse's inputs in the
            first experience (the oldest that is not released); one number or one per protected
            synapse. Small is rigid.
        rule: How P is learned.
        samples: Samples of an experience that C is gathered from, after training on it.
        budget: Least plasticity ``tr P / n`` that a synapse keeps; alpha rises where it would fall
            below (``cab``), before it is rescaled.
        rescale: Divide P by its largest eigenvalue. Once all directions are in use P is small in
            all, which protects none and slows all; rescaled, the freest learns at the full rate.
        decay: What is left of C when an experience is added: 1 forgets nothing.
        online: Samples that make one experience of C, gathered in training steps instead, without
            boundaries; 0 waits for the end of an experience (``cab``). ``alpha`` is relative to
            the mean variance of the first of them. Samples of a memory count as others do.
        every: Steps between two inversions where ``online``.
        keep: Store each experience's C by itself, so that it can be released (``cab``).
        steps: Time steps of a row where lateral neurons spike.
        quantum: Size of their spikes, relative to the root mean square of inputs.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: ``freeze``, or ``learn`` on. Where ``online``, they learn.

    Source: as above; alpha per synapse and the budget are ours.
    """

    phase: ClassVar[Phase] = Phase.PROJECTION
    needs_to_unlearn: ClassVar[Reveal] = Reveal.SAMPLE_IDS
    slot: ClassVar[str | None] = "projection"
    alpha: Alphas = 0.4
    rule: Rule = "cab"
    samples: PositiveInt = 5000
    budget: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rescale: bool = False
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    online: Annotated[int, Field(ge=0)] = 0
    every: PositiveInt = 20
    keep: bool = False
    steps: PositiveInt = 32
    quantum: PositiveFloat = 0.1
    others: Others = "freeze"

    def __post_init__(self) -> None:
        if self.rule != "spiking":
            beside = f"with rule='{self.rule}', only with rule='spiking'"
            refuse_unused(self, ("steps", "quantum"), beside)
        if self.online:
            refuse_unused(self, ("samples",), f"with online={self.online}, which takes all")
        else:
            refuse_unused(self, ("every",), "without online")
        for name in ("budget", "online", "keep"):
            if getattr(self, name) and self.rule != "cab":
                raise ConfigError(
                    f"{name}={getattr(self, name)} needs C itself, and rule='{self.rule}' has only "
                    "P; use rule='cab'"
                )
        if self.keep and self.online:
            raise ConfigError(
                f"keep=true stores C of each experience when it ends, and online={self.online} "
                "knows of no experiences; leave one out"
            )
        if self.decay < 1 and self.rule != "cab":
            raise ConfigError(
                f"decay={self.decay} with rule='{self.rule}' makes P grow without bound where no "
                "input comes; use rule='cab'"
            )

    @property
    def needs(self) -> Reveal:  # type: ignore[override]
        """Boundaries, unless it learns online."""
        return Reveal.NONE if self.online else Reveal.BOUNDARY

    @property
    def offers(self) -> frozenset[str]:  # type: ignore[override]
        """It can forget where each experience's C is kept."""
        return frozenset({"unlearn"}) if self.keep else frozenset()

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return project(Inhibited(self, context), context, "learn" if self.online else self.others)


class Inhibited(Protection):
    """P of each synapse, and C where it is kept."""

    def __init__(self, spec: Inhibition, context: Context):
        self._spec, self._context = spec, context
        self.sizes = sizes_of(context, "inhibition")
        self.steady = not spec.online
        self.gathers = "" if spec.online else self.gathers
        self._share = per_synapse(spec.alpha, self.sizes, "method.inhibition.alpha")
        self.covariance: dict[str, Tensor] = {}
        self.stored: dict[str, dict[str, Tensor]] = {}  # C of each experience, by synapse
        self.owners: dict[str, Tensor] = {}  # ids of the samples by experience
        self.alphas: dict[str, dict[str, float]] = {}  # alpha that it would give, likewise
        self.alpha: dict[str, float] = {}  # as given, without a budget
        self._learned: dict[str, Tensor] = {}  # P in double precision, where there is no C
        self._outside: dict[str, Suppression] = {}
        self._step = self._experience = 0
        self._weight = self._shown = 0.0  # experiences in C, and in all: samples over ``online``
        self._heard, self._came = Heard(context), 0.0  # what the present step adds to both
        self._report: dict[str, object] = {}

    def outside(self, name: str) -> Outside | None:
        return self._outside.get(name)

    @property
    def matrix(self) -> dict[str, Tensor]:
        """P of each synapse."""
        return {name: outside.matrix for name, outside in self._outside.items()}

    # ---- after an experience --------------------------------------------------------------------

    def end(self, view: LearnerView) -> None:
        self._report = {}
        if not self._spec.online:
            self._gather(view)
        self._refresh()
        self._experience += 1

    def _gather(self, view: LearnerView) -> None:
        if self._spec.rule != "cab":
            self._learn_circuits(view)
            return
        found = moments(self._context, view, self.sizes, self._spec.samples)
        check_alive(found, "inhibition")
        for name, c in found.items():
            self._set_alpha(name, c)
            old = self.covariance.get(name)
            self.covariance[name] = c if old is None else self._spec.decay * old + c
        if self._spec.keep:
            self._store(found, view)

    def _store(self, found: dict[str, Tensor], view: LearnerView) -> None:
        key = f"{self._experience:04d}"
        self.stored[key] = {name: c.clone() for name, c in found.items()}
        self.alphas[key] = {name: self._alpha_of(name, c) for name, c in found.items()}
        ids = view.samples.load().uid
        if ids is not None:
            self.owners[key] = ids

    def _set_alpha(self, name: str, covariance: Tensor) -> None:
        """Fix the strength of a synapse by the first activity it sees."""
        if name not in self.alpha:
            self.alpha[name] = self._alpha_of(name, covariance)

    def _alpha_of(self, name: str, covariance: Tensor) -> float:
        return self._share[name] * float(covariance.diagonal().mean())

    def _learn_circuits(self, view: LearnerView) -> None:
        spec, batches = self._spec, 0
        count = min(spec.samples, len(view.samples))
        if not self.alpha:
            found = moments(self._context, view, self.sizes, spec.samples)
            check_alive(found, "inhibition")
            for name, c in found.items():
                self._set_alpha(name, c)
        silent, made = Silent("inhibition", self.sizes), dict[str, Spiking]()
        for seen in self._context.host.look(view.samples, spec.samples):
            size = seen.x.shape[1]
            batches = batches or -(-count // size)
            for name, rows in rows_of(self._context, seen).items():
                if name in self.sizes:
                    silent.note(name, rows)
                    total = len(rows) // size * count
                    self._learn_rows(name, rows.double(), total, batches, made)
        silent.end()

    def _learn_rows(
        self, name: str, rows: Tensor, total: int, batches: int, made: dict[str, Spiking]
    ) -> None:
        """Show rows to the lateral weights, as a part of ``total`` rows in ``batches``.

        ``made`` is what lateral neurons that spike have made of earlier ones.
        """
        spec, alpha = self._spec, self.alpha[name]
        n = self.sizes[name]
        eye = torch.eye(n, dtype=torch.float64, device=rows.device)
        lateral = eye - self._learned.get(name, eye)
        if spec.rule == "owm":
            lateral = one_shot(lateral, rows.mean(0, keepdim=True), alpha * batches)
        elif spec.rule == "circuit":
            lateral = one_shot(lateral, rows, alpha * total)
        else:
            size = float(rows.square().mean().sqrt())
            spikes = spiking_one_shot(
                lateral, rows, alpha * total, steps=spec.steps, quantum=spec.quantum * size
            )
            lateral = spikes.lateral
            made[name] = spikes.after(made[name]) if name in made else spikes
            said: Any = self._report.setdefault(name, {})
            said["events"], said["error"] = made[name].events, made[name].error
        self._learned[name] = eye - lateral

    # ---- in training ----------------------------------------------------------------------------

    def learn(self, factors: Factors, batch: Batch) -> Mapping[str, Tensor]:
        spec = self._spec
        if not spec.online:
            return {}
        self._came = len(batch.x) / spec.online
        for name, factor in factors.items():
            rows = self._heard.add(name, factor.transmitted)
            if rows is not None:
                found = Moments(self.sizes[name], self._context.device)
                found.add(rows)
                old = spec.decay**self._came * self.covariance.get(name, 0)
                self.covariance[name] = old + self._came * found.mean()
        return {}

    @torch.no_grad()
    def after_step(self) -> None:
        """Take note of a step; now and then take C into P, which holds back the next one."""
        spec = self._spec
        if not spec.online:
            return
        self._weight = spec.decay**self._came * self._weight + self._came
        self._shown, self._step = self._shown + self._came, self._step + 1
        for name, c in self.covariance.items():
            mean = float(c.diagonal().mean()) / self._weight
            if mean and (self._shown <= 1 or name not in self.alpha):
                self.alpha[name] = self._share[name] * mean
        if self._step % spec.every == 0:
            self._refresh()

    # ---- the projector --------------------------------------------------------------------------

    def _refresh(self) -> None:
        for name, alpha in self.alpha.items():
            matrix = self._learned.get(name)
            if matrix is None:
                alpha, matrix = self._inverted(name)
            self._outside[name] = self._map(name, matrix)
            said: Any = self._report.setdefault(name, {})
            said.update(plasticity=float(self.matrix[name].diagonal().mean()), alpha=alpha)

    def _inverted(self, name: str) -> tuple[float, Tensor]:
        """Return P of C, and alpha, raised where the budget asks for it."""
        c, alpha = self.covariance[name], self.alpha[name]
        if self._spec.budget:
            alpha = max(alpha, alpha_for(torch.linalg.eigvalsh(c), self._spec.budget))
        return alpha, suppression(c, alpha)

    def _map(self, name: str, matrix: Tensor) -> Suppression:
        """Return P in the network's type, as few columns where it is all but closed."""
        like = self._context.network.synapses[name].weight
        if self._spec.rescale:
            matrix = matrix / torch.linalg.eigvalsh(matrix)[-1]
        if 2 * float(matrix.diagonal().mean()) < 1 and not self._spec.online:
            values, columns = torch.linalg.eigh(matrix)
            open_ = values > CLOSED * values[-1]
            if 2 * int(open_.sum()) < len(values):
                root = columns[:, open_] * values[open_].sqrt()
                return Suppression((root @ root.T).to(like), root.to(like).contiguous())
        return Suppression(matrix.to(like).contiguous())

    # ---- release --------------------------------------------------------------------------------

    def release(self, experience: int) -> None:
        """Take what was learned of an experience back out of C: its directions are free again.

        P is what the others alone make of the same activity, each decayed as it would be: alpha is
        that of the oldest left. Without any, the next experience to end is the first.

        Raises:
            UsageError: Nothing is stored by that number.
        """
        key = f"{experience:04d}"
        if key not in self.stored:
            known = ", ".join(str(int(k)) for k in self.stored) or "none (keep=true stores them)"
            raise UsageError(
                f"method 'inhibition' has no experience {experience} stored; stored are: {known}"
            )
        released = self.stored.pop(key)
        self.owners.pop(key, None)
        self.alphas.pop(key, None)
        if not self.stored:
            self.alpha, self.covariance, self._outside, self._report = {}, {}, {}, {}
            return
        for name in released:
            total = torch.zeros_like(released[name])
            for kept in self.stored.values():
                total = self._spec.decay * total + kept[name]
            self.covariance[name] = total
        self.alpha = dict(self.alphas.get(min(self.stored), self.alpha))
        self._refresh()

    def forget(self, request: Unlearn) -> None:
        """Release every experience that a sample of the request was part of.

        Raises:
            UsageError: The stream hides which samples those were.
        """
        if self.stored.keys() - self.owners.keys():
            raise UsageError(
                "method 'inhibition' cannot tell which experiences held the samples to forget: the "
                "stream hides sample ids (sample_ids); release(experience) takes their number"
            )
        ids = request.uids.cpu()
        owners = {key: owned.cpu() for key, owned in self.owners.items()}
        for key in [k for k, owned in owners.items() if bool(torch.isin(ids, owned).any())]:
            self.release(int(key))

    # ---- state ----------------------------------------------------------------------------------

    def report(self) -> dict[str, object]:
        return self._report

    def state_dict(self) -> State:
        return {
            "experience": self._experience,
            "step": self._step,
            "weight": self._weight,
            "shown": self._shown,
            "alpha": self.alpha,
            "covariance": self.covariance,
            "learned": self._learned,
            "held": self.matrix if self._spec.online else {},  # of an earlier C
            "stored": self.stored,
            "owners": self.owners,
            "alphas": self.alphas,
            "report": self._report,
        }

    def load_state_dict(self, state: State) -> None:
        check_fits(state["covariance"] or state["learned"], self.sizes, "inhibition")
        self._experience, self._step = state["experience"], state["step"]
        self._weight, self._shown = state["weight"], state["shown"]
        self.alpha, self._report = dict(state["alpha"]), state["report"]
        self.covariance, self._learned = dict(state["covariance"]), dict(state["learned"])
        self.stored = {k: dict(v) for k, v in state["stored"].items()}
        self.owners = dict(state["owners"])
        self.alphas = {k: dict(v) for k, v in state.get("alphas", {}).items()}
        self._outside = {name: Suppression(held) for name, held in state["held"].items()}
        for name in {} if self._spec.online else self.alpha:
            matrix = self._learned.get(name)
            self._outside[name] = self._map(
                name, self._inverted(name)[1] if matrix is None else matrix
            )

    def nbytes(self) -> int:
        kept = [c for each in self.stored.values() for c in each.values()]
        maps = [t for each in self._outside.values() for t in each if t is not None]
        own = (*self.covariance.values(), *self._learned.values(), *self.owners.values())
        return nbytes(*own, *kept, *maps)


def alpha_for(variances: Tensor, budget: float) -> float:
    """Return the least alpha with ``mean(alpha / (alpha + c)) >= budget``, by bisection."""
    low, high = 0.0, float(variances.max()) * budget / (1 - budget) + 1e-30
    for _ in range(60):
        middle = (low + high) / 2
        enough = float((middle / (middle + variances.clamp_min(0))).mean()) >= budget
        low, high = (low, middle) if enough else (middle, high)
    return high
