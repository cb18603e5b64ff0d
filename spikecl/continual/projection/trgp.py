"""TRGP: trust region gradient projection (Lin et al., ICLR 2022)."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveInt, component
from spikecl.continual.method import Context, Factors, Method, MethodSpec, Phase, Tensors
from spikecl.continual.projection.gpm import Bases, Energies, Growth, Sizing
from spikecl.continual.projection.moments import check_alive, moments
from spikecl.continual.projection.protection import Others, ProjectUpdates
from spikecl.continual.projection.sgp import Scaled
from spikecl.continual.projection.subspace import count_for_energy
from spikecl.networks import AnyFactor, GradientFactor, Network, Outside
from spikecl.networks.network import own_parameters
from spikecl.storage import State, nbytes
from spikecl.streams import Batch, LearnerView, Reveal

Threshold = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Scales = dict[str, dict[str, Tensor]]


@component
class Trgp(MethodSpec):
    """GPM, and a rotated, scaled copy of what was learned in experiences that resemble the new one.

    Experience j has rows B_j of a synapse's memory M: those that its activity used. When a new one
    begins with the gradient G at the weights W that there are, the experiences with
    ``|G B_j^T| >= threshold |G|`` are its trust region, the ``tasks`` largest at most. With a
    matrix Q_j [k, k] for each, I at first, the network runs with::

        W̃ = W + sum_j W B_j^T (Q_j - I) B_j

    and the gradient G̃ that is taken at W̃ is carried to what learns::

        dL/dW   = G̃ + sum_j G̃ B_j^T (Q_j - I)^T B_j
        dL/dQ_j = (W B_j^T)^T G̃ B_j^T

    Both take a step of the run's optimiser; then ``ΔW <- ΔW (I - M^T M)``. At the end, with C the
    second moments of what was transmitted with W̃::

        pool = rows m of M, of energy m C m^T, and the eigenvectors of (I - M^T M) C (I - M^T M)
        B    = the fewest of the pool that hold  min(1, energy + growth t)  of tr C
        M   <- M and what is new in B

    Tests of a task use the Q of its last experience: later updates are outside all B_j, so W̃ gives
    old activity what it gave. Without a task, or of one that was not learned yet, they use W.

    Args:
        energy: Share of the activity's energy that B holds; one number or one per synapse.
        growth: What is added to that share with each experience.
        threshold: Least share of the gradient's norm that is in B_j of a trust region.
        tasks: Experiences in a trust region at most.
        rate: Learning rate of Q, relative to that of the weights: gradients of Q have the square of
            ``|W B_j^T|`` in them and may need less. 0 keeps Q = I.
        samples: Samples of an experience that C is gathered from, after training on it.
        probe: Samples whose gradient chooses the trust region.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: ``freeze``, or ``learn`` on.

    Source: Lin et al. 2022 and their code: threshold 0.5, two tasks, rate 1 at a learning rate of
    0.01, no decay of Q.
    Deviation: a rate of 0.1; at 1, spiking networks become unstable at the learning rates that suit
    them. Weight decay, if there is any, pulls Q to I. Samples and energy as in method ``gpm``. The
    authors' code gathers C without Q, an activity that no test has; it leaves the strongest new
    direction of an experience out of M; it takes a threshold of 0.2 for permuted MNIST, and for the
    third task the second alone.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    energy: Energies = 0.95
    growth: Growth = 0.003
    threshold: Threshold = 0.5
    tasks: PositiveInt = 2
    rate: Rate = 0.1
    samples: PositiveInt = 2000
    probe: PositiveInt = 300
    others: Others = "freeze"

    def start(self, context: Context) -> Method:
        """Return the running method."""
        trust = Trust(self.threshold, self.tasks, self.rate, self.probe)
        sizing = Sizing(self.energy, self.growth, None, self.samples, offbyone=False)
        return RunScaled(TrustRegions(trust, sizing, context, "trgp"), context, self.others)


class Trust(NamedTuple):
    """Whom to trust: the options of :class:`Trgp` by these names."""

    threshold: float
    tasks: int
    rate: float
    probe: int


class TrustRegions(Bases):
    """The memory, the rows of it that each experience used, and each task's ``Q - I``.

    Args:
        trust: How trust regions are chosen and used.
        sizing: How bases grow.
        context: The run.
        name: Of the method.
    """

    projector = True

    def __init__(self, trust: Trust, sizing: Sizing, context: Context, name: str):
        super().__init__(sizing, context, name)
        self.name, self._trust = name, trust
        self.used: dict[str, dict[str, Tensor]] = {}  # rows of M by experience, by synapse
        self.scales: dict[str, Scales] = {}  # Q - I by task, by synapse, by experience
        self._task = ""
        self._optimiser = context.optimiser.start({})
        self._changes: dict[str, Tensor] = {}  # dL/dQ within a step

    def basis(self, path: str, key: str) -> Tensor:
        """Return the rows B_j [k, n] of a synapse that an experience used."""
        return self.memory[path].rows[self.used[key][path]]

    def outside(self, name: str) -> Outside | None:
        rows = self.memory[name].rows
        return Scaled(rows, self.held(name)) if len(rows) else None

    def held(self, path: str) -> Tensor:
        """Return 1 for rows of M that updates stay out of, 0 for the others."""
        return self.memory[path].rows.new_ones(len(self.memory[path].rows))

    # ---- the effective weights ------------------------------------------------------------------

    @torch.no_grad()
    def effective(self, weights: Tensors, task: str | None = None) -> Tensors:
        """Return W̃ of a task by parameter name, by default of the present one."""
        made = dict(weights)
        for path, scales in self.scales.get(self._task if task is None else task, {}).items():
            weight = weights[f"{path}.weight"]
            rows = total = weight.flatten(1)
            for key, scale in scales.items():
                basis = self.basis(path, key)
                total = total + ((rows @ basis.T) @ scale) @ basis
            made[f"{path}.weight"] = total.view_as(weight)
        return made

    @torch.no_grad()
    def pull_back(self, path: str, factor: AnyFactor) -> AnyFactor:
        """Return the factor of dL/dW from that of dL/dW̃, and note dL/dQ."""
        scales = self.scales.get(self._task, {}).get(path)
        if not scales:
            return factor
        network = self._context.network
        found = stored_gradients(network, path, factor)
        given, weight = found["weight"].flatten(1), network.synapses[path].weight.flatten(1)
        total = given
        for key, scale in scales.items():
            basis, name = self.basis(path, key), f"{path}:{key}"
            inside = given @ basis.T
            total = total + (inside @ scale.T) @ basis
            change = (weight @ basis.T).T @ inside
            self._changes[name] = self._changes.get(name, 0) + change
        found["weight"] = total.view_as(found["weight"])
        sent = lambda: factor.transmitted  # noqa: E731
        return GradientFactor(None, found.get("bias"), sent, self.name, stored=found)

    def step(self) -> None:
        """Move Q, once the weights have moved."""
        if self._trust.rate and self._changes:
            share = self._context.host.share() * self._trust.rate
            self._optimiser.step(self._changes, share)
        self._changes = {}

    # ---- experiences ----------------------------------------------------------------------------

    def begin(self, view: LearnerView) -> None:
        self._task = str(view.task)
        self.scales[self._task] = {}
        self.choose(self.gradients(view) if self.used else {})
        self.stand()

    def choose(self, gradients: Tensors) -> None:
        """Choose the trust regions by the gradients of an experience that begins."""
        for path, gradient in gradients.items():
            trusted = self._trusted(path, gradient)
            self.scales[self._task][path] = {key: gradient.new_zeros(k, k) for key, k in trusted}

    def _trusted(self, path: str, gradient: Tensor) -> list[tuple[str, int]]:
        """Return the trust region of a synapse: experiences, and the sizes of their bases."""
        least = self._trust.threshold * float(gradient.norm())
        norms = {key: float((gradient @ self.basis(path, key).T).norm()) for key in self.used}
        near = [key for key, norm in norms.items() if norm >= least and norm > 0]
        near = sorted(near, key=lambda key: -norms[key])[: self._trust.tasks]
        return [(key, len(self.used[key][path])) for key in sorted(near)]

    @torch.no_grad()
    def gradients(self, view: LearnerView) -> dict[str, Tensor]:
        """Return dL/dW as rows of each synapse that learns, at the weights of the present task."""
        network, total = self._context.network, dict[str, Tensor]()
        weights = self.effective(network.weights())
        moving = [path for path in self.sizes if network.synapses[path].weight.requires_grad]
        for part in self._context.host.factors(view.samples, self._trust.probe, weights):
            for path in moving:
                factor = self.pull_back(path, part.synapses[path])
                found = stored_gradients(network, path, factor)["weight"].flatten(1)
                total[path] = total.get(path, 0) + len(part.logits) * found
        self._changes = {}
        return total

    def stand(self) -> None:
        scales = self.scales.get(self._task, {})
        names = {f"{path}:{key}": s for path, of in scales.items() for key, s in of.items()}
        self._optimiser = self._context.optimiser.start(names)

    def end(self, view: LearnerView) -> None:
        self._optimiser.settle()
        self._optimiser = self._context.optimiser.start({})
        weights = self.effective(self._context.network.weights())
        found = moments(self._context, view, self.sizes, self._sizing.samples, weights)
        check_alive(found, self.name)
        self.used[f"{self._experience:04d}"] = {}
        self._report = {path: self.extend(path, c) for path, c in found.items()}
        self._experience += 1

    def extend(self, path: str, covariance: Tensor) -> dict[str, object]:
        memory, total = self.memory[path], float(covariance.trace())
        rows = memory.rows.double()
        values, vectors = self.new(path, covariance)
        pool = torch.cat([((rows @ covariance) * rows).sum(1).clamp_min(0), values])
        order = pool.argsort(descending=True, stable=True)
        share = min(1.0, self._energy[path] + self._sizing.growth * self._experience)
        taken = order[: count_for_energy(pool[order], share, total)]
        old, new = taken[taken < len(rows)], int((taken >= len(rows)).sum())
        added = memory.extend(vectors[:new].to(memory.rows))
        fresh = torch.arange(len(rows), len(rows) + added, device=taken.device)
        used = self.used[f"{self._experience:04d}"][path] = torch.cat([old.sort().values, fresh])
        trusted = [int(key) for key in self.scales[self._task].get(path, {})]
        held = float(pool[taken].sum()) / total if total else 1.0
        return {**memory.report(), "used": len(used), "energy": held, "trusted": trusted}

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> State:
        own = {"used": self.used, "scales": self.scales, "task": self._task}
        return {**super().state_dict(), **own, "optimiser": self._optimiser.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.used = {key: dict(each) for key, each in state["used"].items()}
        self.scales = {
            task: {path: dict(of) for path, of in each.items()}
            for task, each in state["scales"].items()
        }
        self._task = state["task"]
        super().load_state_dict(state)
        self._optimiser.load_state_dict(state["optimiser"])

    def nbytes(self) -> int:
        used = [rows for each in self.used.values() for rows in each.values()]
        scales = [s for each in self.scales.values() for of in each.values() for s in of.values()]
        kept = sum(memory.nbytes() for memory in self.memory.values())
        return kept + nbytes(*used, *scales) + self._optimiser.nbytes()


class RunScaled(ProjectUpdates):
    """Runs the network with the effective weights of a task.

    Args:
        regions: What to protect, and the effective weights.
        context: The run.
        others: What becomes of parameters that are no weights.
    """

    needs_gradient = True

    def __init__(self, regions: TrustRegions, context: Context, others: Others):
        super().__init__(regions, context, others)
        self.regions = regions

    def weights(self, weights: Tensors) -> Tensors:
        return self.regions.effective(weights)

    def factors(self, factors: Factors, batch: Batch) -> Factors:
        return {path: self.regions.pull_back(path, factor) for path, factor in factors.items()}

    def after_step(self) -> None:
        self.regions.step()

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None) -> Tensor:
        network, generator = self._context.network, None
        if network.is_random:
            seeds, name = self._context.seeds, f"{self.regions.name}-test"
            generator = seeds.generator(name, event=self._experience)
        weights = self.regions.effective(network.weights(), "" if task is None else str(task))
        return network(x, weights=weights, generator=generator).logits  # type: ignore[no-any-return]


def stored_gradients(network: Network, path: str, factor: AnyFactor) -> dict[str, Tensor]:
    """Return the gradients of what a synapse stores, by its own names, behind its weight maps."""
    found = getattr(factor, "stored", None)
    if found is None:
        synapse = network.synapses[path]
        bias = None if synapse.bias is None else factor.bias_gradient()
        own = own_parameters(path, synapse, network.weights())
        found = synapse.pull_back(own, factor.gradient(), bias)
    return dict(found)
