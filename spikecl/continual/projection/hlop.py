"""HLOP: Hebbian learning based orthogonal projection (Xiao et al., ICLR 2024)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, Strict
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.method import (
    Context,
    Factors,
    Method,
    MethodSpec,
    Phase,
    Tensors,
    overrides,
)
from spikecl.continual.projection.faithful import FaithfulHlop
from spikecl.continual.projection.lateral import LateralWeights
from spikecl.errors import ConfigError, PairingError
from spikecl.storage import State
from spikecl.streams import Batch, LearnerView, Reveal

Size = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)]
Sizes = Annotated[tuple[Size, ...], Strict(False)]
Schedule = Annotated[tuple[Size | Sizes, ...], Field(min_length=1), Strict(False)]


@component
class Hlop(MethodSpec):
    """Learn lateral weights of each synapse's input; keep updates out of what old tasks used.

    With H the rows learned in earlier experiences, the gradient of a synapse is formed from
    ``x - H^T H x``, so an update leaves the response to old activity as it was. What is no weight
    (biases, parameters of neurons and norms) is frozen after the first experience: it acts on
    every input. Of a convolution the rows are its patches.

    Args:
        rows: Rows per experience; the last entry repeats. An entry is a number for all synapses or
            a list with one per synapse; a number below 1 is a fraction of the synapse's inputs.
        rate: Learning rate of the lateral weights, relative to the activity's variance.
        iterations: Repetitions of the rule per batch.
        every: Run the rule in every n-th step only.
        faithful: Use the arithmetic of the authors' code instead, with its fixed rates.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"

    rows: Schedule = (0.2,)
    rate: PositiveFloat = 1.0
    iterations: PositiveInt = 5
    every: PositiveInt = 1
    faithful: bool = False

    def start(self, context: Context) -> Method:
        """Return the running method.

        It projects the factors where that is exact and all there is; where another method changes
        gradients or updates, the trainer sets weights, or the optimiser leaves their row space, it
        projects the update.
        """
        if self.faithful:
            return FaithfulHlop(self.rows_for, len(self.rows), sizes_of(context), context)
        alone = not any(overrides(m, hook) for m in context.before for hook in _GRADIENT_HOOKS)
        if alone and context.optimiser.keeps_row_space and not context.settles:
            return _Hlop(self, context)
        return _HlopOnUpdates(self, context)

    def rows_for(self, experience: int, sizes: dict[str, int]) -> dict[str, int]:
        """Return the rows to add per synapse in an experience."""
        entry = self.rows[min(experience, len(self.rows) - 1)]
        entries = entry if isinstance(entry, tuple) else (entry,) * len(sizes)
        if len(entries) != len(sizes):
            raise ConfigError(
                f"method.hlop.rows: got {len(entries)} sizes {list(entries)} for "
                f"{len(sizes)} synapses ({', '.join(sizes)}); give one per synapse or one number"
            )
        return {
            name: round(size * n) if isinstance(size, float) else size
            for (name, n), size in zip(sizes.items(), entries, strict=True)
        }


def sizes_of(context: Context) -> dict[str, int]:
    """Return the length of the rows of each synapse; refuse weights that are not stored as such.

    A projected gradient of an effective weight is not projected any more when it has gone through
    a map to the stored one, unless that multiplies by one number. Weights that are rounded behind
    it (``LoihiWeights``) are protected up to their rounding.
    """
    synapses = context.network.synapses
    mapped = [n for n, synapse in synapses.items() if not all(m.scales for m in synapse.maps)]
    if mapped:
        raise PairingError(
            f"method 'hlop' protects weights as they are stored, but {mapped} pass through maps "
            f"({', '.join(type(m).__name__ for m in synapses[mapped[0]].maps)}); use a network "
            "without standardised, masked, signed or delayed weights"
        )
    return {name: synapse.fan_in for name, synapse in synapses.items()}


_GRADIENT_HOOKS = ("factors", "gradients", "update")


class _Hlop(Method):
    def __init__(self, spec: Hlop, context: Context):
        self._spec, self._seeds = spec, context.seeds
        self.sizes = sizes_of(context)
        for experience in range(len(spec.rows)):
            spec.rows_for(experience, self.sizes)  # a list of the wrong length fails here
        self.lateral = {
            name: LateralWeights(self.sizes[name], synapse.weight.detach())
            for name, synapse in context.network.synapses.items()
        }
        self._protected = {f"{name}.weight" for name in self.sizes}
        self._experience, self._step = 0, 0
        self._report: dict[str, object] = {}

    def begin(self, view: LearnerView) -> None:
        rows = self._spec.rows_for(self._experience, self.sizes)
        for position, (name, lateral) in enumerate(self.lateral.items()):
            generator = self._seeds.generator("hlop", event=self._experience, epoch=position)
            lateral.begin(rows[name], generator)
        self._step = 0

    def factors(self, factors: Factors, batch: Batch) -> Factors:
        learn = self._step % self._spec.every == 0
        self._step += 1
        changed = {}
        for name, factor in factors.items():
            lateral, rows = self.lateral[name], None
            if learn and len(lateral.new):
                seen, spec = factor.transmitted, self._spec
                rows = lateral.seen(seen)
                lateral.learn(rows, seen, rate=spec.rate, iterations=spec.iterations)
            changed[name] = lateral.project(factor, rows)
        return changed

    def gradients(self, gradients: Tensors) -> Tensors:
        if self._experience == 0:
            return gradients
        return {n: g for n, g in gradients.items() if n in self._protected}

    def end(self, view: LearnerView) -> None:
        self._report = {}
        for name, lateral in self.lateral.items():
            defect = lateral.end()
            self._report[name] = {
                "rows": len(lateral.old),
                "free": lateral.free,
                "orthonormality_defect": defect,
            }
        self._experience += 1

    def report(self) -> dict[str, object]:
        return self._report

    def state_dict(self) -> State:
        return {
            "experience": self._experience,
            "step": self._step,
            "report": self._report,
            "lateral": {name: value.state_dict() for name, value in self.lateral.items()},
        }

    def load_state_dict(self, state: State) -> None:
        self._experience, self._step = state["experience"], state["step"]
        self._report = state["report"]
        for name, value in self.lateral.items():
            value.load_state_dict(state["lateral"][name])

    def nbytes(self) -> int:
        return sum(lateral.nbytes() for lateral in self.lateral.values())


class _HlopOnUpdates(_Hlop):
    """Project what was applied, whoever had a hand in it."""

    def factors(self, factors: Factors, batch: Batch) -> Factors:
        super().factors(factors, batch)
        return factors

    @torch.no_grad()
    def update(self, update: Tensors) -> Tensors:
        changed: dict[str, Tensor] = dict(update)
        for name, lateral in self.lateral.items():
            if lateral.outside is not None:
                rows = update[f"{name}.weight"]
                changed[f"{name}.weight"] = lateral.outside.residual(rows.flatten(1)).view_as(rows)
        if self._experience:
            for name in changed.keys() - self._protected:
                changed[name] = torch.zeros_like(update[name])
        return changed
