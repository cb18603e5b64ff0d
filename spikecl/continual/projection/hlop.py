"""HLOP: Hebbian learning based orthogonal projection (Xiao et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, ClassVar

from pydantic import Field, Strict
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.method import Context, Factors, Lateral, Method, MethodSpec, Phase
from spikecl.continual.projection.faithful import FaithfulHlop
from spikecl.continual.projection.heard import Heard
from spikecl.continual.projection.hebbian import Rule
from spikecl.continual.projection.lateral import Kind, LateralWeights, response_of
from spikecl.continual.projection.moments import Silent
from spikecl.continual.projection.protection import (
    Others,
    ProjectFactors,
    ProjectUpdates,
    Protection,
    check_fits,
    per_synapse,
    project,
    refuse_unused,
    sizes_of,
)
from spikecl.errors import ConfigError, PairingError
from spikecl.networks import AnyFactor, GradientFactor, Outside
from spikecl.storage import State
from spikecl.streams import Batch, LearnerView, Reveal

Size = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)]
Sizes = Annotated[tuple[Size, ...], Strict(False)]
Scales = PositiveFloat | Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)]
Schedule = Annotated[tuple[Size | Sizes, ...], Field(min_length=1), Strict(False)]


@component
class Hlop(MethodSpec):
    """Learn lateral weights of each synapse's input; keep updates out of what old tasks used.

    With H the rows learned in earlier experiences, the gradient of a synapse is formed from
    ``x - H^T H x``, so an update leaves the response to old activity as it was. Of a convolution
    the rows are its patches. A head that one task alone uses is not protected.

    Lateral neurons that are not ``linear`` act on rows of activity, each by itself: a row is held
    for ``lateral_steps`` steps, whatever it was in the run: a time step, a mean over time, a trace,
    a patch. So they need a trainer that gives rows, plain SGD, and nobody else who changes
    gradients. What old directions keep because of their rounding is reported.

    Args:
        rows: Rows per experience; the last entry repeats. An entry is a number for all synapses or
            a list with one per synapse; a number below 1 is a fraction of the synapse's inputs.
        rule: By which they learn: ``oja`` (Oja's subspace rule), ``sanger`` (generalised Hebbian
            algorithm: rows are principal components, in order), ``foldiak`` (Hebbian weights, and
            anti-Hebbian ones among lateral neurons: every synapse needs its two neurons alone).
        rate: Learning rate of the lateral weights, relative to the activity's variance.
        iterations: Repetitions of the rule per batch.
        every: Run the rule in every n-th step only.
        lateral: What lateral neurons answer: a number (``linear``), that rounded to what a rate of
            spikes can say (``quantised``, as in the authors' code), or the spikes of integrate-and-
            fire neurons with two signs (``spiking``).
        lateral_scale: Largest response of a lateral neuron that is not linear, one number or one
            per protected synapse; the length of rows is enough, what is beyond it is cut off.
        lateral_steps: Time steps of a row, and so spikes that such a neuron can send of either
            sign, each of the size ``lateral_scale / lateral_steps``.
        faithful: Use the arithmetic of the authors' code instead, with its fixed rates.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: they act on every input, so they ``freeze``, or ``learn`` on.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    offers: ClassVar[frozenset[str]] = frozenset({"export"})

    rows: Schedule = (0.2,)
    rule: Rule = "oja"
    rate: PositiveFloat = 1.0
    iterations: PositiveInt = 5
    every: PositiveInt = 1
    lateral: Kind = "linear"
    lateral_scale: Scales = 20.0
    lateral_steps: PositiveInt = 40
    faithful: bool = False
    others: Others = "freeze"

    def __post_init__(self) -> None:
        if self.faithful and (self.rule, self.lateral) != ("oja", "linear"):
            raise ConfigError(
                f"faithful=true is the authors' arithmetic with Oja's rule and linear neurons, but "
                f"rule='{self.rule}' and lateral='{self.lateral}' are given; leave one side out"
            )
        if self.faithful and self.others != "freeze":
            raise ConfigError(
                "faithful=true freezes biases and norms after the first experience, as the "
                f"authors' code does, but others='{self.others}' is given; leave one side out"
            )
        if self.lateral == "linear":
            beside = "with lateral='linear', whose neurons answer with a number"
            refuse_unused(self, ("lateral_scale", "lateral_steps"), beside)
        for each in fields(self) if self.faithful else ():
            given = getattr(self, each.name)
            if each.name in ("rate", "iterations", "every") and given != each.default:
                raise ConfigError(
                    f"faithful=true has a rate of its own and five iterations in every step, but "
                    f"{each.name}={given} is given; leave one side out"
                )

    def start(self, context: Context) -> Method:
        """Return the running method."""
        if self.faithful:
            sizes = sizes_of(context, "hlop", autapses=False)
            rows = FaithfulHlop(self.rows_for, len(self.rows), sizes, context)
            return ProjectFactors(rows, context)  # whatever comes behind: so do the authors
        method = project(_Subspaces(self, context), context, self.others)
        if self.lateral != "linear" and isinstance(method, ProjectUpdates):
            raise PairingError(
                f"method 'hlop' with lateral='{self.lateral}' inhibits rows of activity, and here "
                "it could only project updates, which are far smaller than a spike; they are "
                f"projected where the optimiser ({type(context.optimiser).__name__}) leaves the "
                "rows (Adam, weight decay), where another method or the trainer changes gradients "
                "or weights, and where autapses are forbidden; use plain sgd and no such method, "
                "or lateral='linear'"
            )
        return method

    def rows_for(self, experience: int, sizes: dict[str, int]) -> dict[str, int]:
        """Return the rows to add per synapse in an experience."""
        entry = self.rows[min(experience, len(self.rows) - 1)]
        entries = entry if isinstance(entry, tuple) else (entry,) * len(sizes)
        if len(entries) != len(sizes):
            raise ConfigError(
                f"method.hlop.rows: got {len(entries)} sizes {list(entries)} for "
                f"{len(sizes)} synapses ({', '.join(sizes)}); give one per synapse or one number"
            )
        rows = {
            name: round(size * n) if isinstance(size, float) else size
            for (name, n), size in zip(sizes.items(), entries, strict=True)
        }
        if wide := [name for name, count in rows.items() if count > sizes[name]]:
            name = wide[0]
            raise ConfigError(
                f"method.hlop.rows: got {rows[name]} rows for {name}, which has {sizes[name]} "
                f"inputs; use at most {sizes[name]}, or a share of them below 1"
            )
        return rows


class _Subspaces(Protection):
    projector = True

    def __init__(self, spec: Hlop, context: Context):
        self._spec, self._seeds = spec, context.seeds
        self.sizes = sizes_of(context, "hlop")
        for experience in range(len(spec.rows)):
            spec.rows_for(experience, self.sizes)  # wrong lengths and sizes fail here
        scales = per_synapse(spec.lateral_scale, self.sizes, "method.hlop.lateral_scale")
        self.lateral = {
            name: LateralWeights(
                n,
                context.network.synapses[name].weight.detach(),
                rule=spec.rule,
                response=response_of(spec.lateral, scale=scales[name], steps=spec.lateral_steps),
            )
            for name, n in self.sizes.items()
        }
        self._experience, self._step = 0, 0
        self._seen, self._left = Heard(context), Heard(context)  # all of it, and outside old rows
        self._silent = Silent("hlop", self.sizes)
        self._report: dict[str, object] = {}

    def outside(self, name: str) -> Outside | None:
        return self.lateral[name].outside

    def begin(self, view: LearnerView) -> None:
        rows = self._spec.rows_for(self._experience, self.sizes)
        for position, (name, lateral) in enumerate(self.lateral.items()):
            generator = self._seeds.generator("hlop", event=self._experience, epoch=position)
            lateral.begin(rows[name], generator)
        self._step = 0
        self._silent.begin()

    def learn(self, factors: Factors, batch: Batch) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        spec = self._spec
        if spec.lateral != "linear":
            check_rows(factors, spec.lateral)
        self._silent.hear(factors)
        if self._step % spec.every:
            return found
        for name, factor in factors.items():
            lateral = self.lateral[name]
            if len(lateral.new):
                seen = factor.transmitted
                rows = found[name] = lateral.seen(seen)
                whole, left = self._seen.add(name, seen), self._left.add(name, rows)
                if whole is not None and left is not None:
                    lateral.learn(left, whole, rate=spec.rate, iterations=spec.iterations)
        return found

    def project(self, name: str, factor: AnyFactor, seen: Tensor | None) -> AnyFactor:
        return self.lateral[name].project(factor, seen)

    def after_step(self) -> None:
        self._step += 1

    def end(self, view: LearnerView) -> None:
        self._silent.end()
        self._report = {}
        for name, lateral in self.lateral.items():
            defect = lateral.end()
            self._report[name] = {
                "rows": len(lateral.old),
                "free": lateral.free,
                "full": not lateral.free,
                "orthonormality_defect": defect,
                **lateral.errors(),
            }
        self._experience += 1

    def travels(self) -> Lateral:
        if self._spec.lateral != "linear":
            raise PairingError(
                f"method 'hlop' with lateral='{self._spec.lateral}' cannot go on on the chip, "
                "which has lateral neurons of its own; use lateral='linear'"
            )
        rows = {name: lateral.old for name, lateral in self.lateral.items()}
        first = self._experience
        return Lateral(rows, lambda later: self._spec.rows_for(first + later, self.sizes))

    def report(self) -> dict[str, object]:
        return self._report

    def state_dict(self) -> State:
        return {
            "experience": self._experience,
            "step": self._step,
            "report": self._report,
            "silent": self._silent.state_dict(),
            "lateral": {name: value.state_dict() for name, value in self.lateral.items()},
        }

    def load_state_dict(self, state: State) -> None:
        check_fits({n: each["old"] for n, each in state["lateral"].items()}, self.sizes, "hlop")
        self._silent.load_state_dict(state.get("silent", {}))
        self._experience, self._step = state["experience"], state["step"]
        self._report = state["report"]
        for name, value in self.lateral.items():
            value.load_state_dict(state["lateral"][name])

    def nbytes(self) -> int:
        return sum(lateral.nbytes() for lateral in self.lateral.values())


def check_rows(factors: Factors, lateral: Kind) -> None:
    """Refuse factors that are gradients alone."""
    for name, factor in factors.items():
        if isinstance(factor, GradientFactor):
            raise PairingError(
                f"method 'hlop' with lateral='{lateral}' inhibits rows of activity, and trainer "
                f"'{factor.rule}' gives synapse '{name}' a gradient and no rows that it is made "
                "of; use a trainer that gives rows (spikecl trainers), or lateral='linear'"
            )
