"""Half fine-tuning: each experience trains a random half of the weights, the rest stands still."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch

from spikecl.components import Fraction, component
from spikecl.continual.metaplasticity.gates import weights_of
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.storage import State
from spikecl.streams import LearnerView, Reveal


@component
class HalfFineTuning(MethodSpec):
    """Freeze a random half of the weight tensors, drawn anew for each experience.

    A frozen tensor gets no gradient: it stays as it is to the last bit, and so does the
    optimiser's state of it. Of an odd number, chance decides whether the larger half is frozen.

    Args:
        share: Part of the tensors that is frozen; 0 is plain fine-tuning, bit for bit.
        others: What becomes of parameters that are no weights (biases, norms, thresholds, delays,
            gains): they ``learn``, or are drawn as tensors of their own (``half``).

    Source: Hui et al., "HFT: Half Fine-Tuning for Large Language Models" (2024).
    Deviation: there half of each block's matrices, of two kinds; here of all matrices, which small
    networks have few of.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.GATE
    slot: ClassVar[str | None] = "frozen"  # the last gate: no other one moves what stands still
    share: Fraction = 0.5
    others: Literal["learn", "half"] = "learn"

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return Half(self, context)


class Half(Method):
    """Draws which tensors of each of its ``groups`` of names stand still."""

    def __init__(self, spec: HalfFineTuning, context: Context):
        self._spec, self._context = spec, context
        weights = weights_of(context, "half")
        learn = [n for n, p in context.network.weights().items() if p.requires_grad]
        self.groups = [weights]
        if spec.others == "half":
            self.groups.append([name for name in learn if name not in weights])
        self._experience = 0
        self.frozen: list[str] = []

    def begin(self, view: LearnerView) -> None:
        generator = self._context.seeds.generator("half", event=self._experience)
        self.frozen = []
        for group in self.groups:
            exact = self._spec.share * len(group)
            extra = float(torch.rand((), generator=generator)) < exact % 1
            order = torch.randperm(len(group), generator=generator)[: int(exact) + extra]
            self.frozen += [group[i] for i in sorted(order.tolist())]

    def gradients(self, gradients: Tensors) -> Tensors:
        return {name: g for name, g in gradients.items() if name not in self.frozen}

    def update(self, update: Tensors) -> Tensors:
        """Hold also what moves without a gradient: rules with a step of their own."""
        return {n: torch.zeros_like(u) if n in self.frozen else u for n, u in update.items()}

    def still(self) -> Tensors:
        weights = self._context.network.weights()
        return {n: torch.ones_like(weights[n], dtype=torch.bool) for n in self.frozen}

    def leave(self, names: Collection[str]) -> None:
        self.groups = [[n for n in group if n not in names] for group in self.groups]

    def end(self, view: LearnerView) -> None:
        self._experience += 1

    def report(self) -> dict[str, object]:
        """Return which tensors stood still."""
        return {"frozen": self.frozen}

    def state_dict(self) -> State:
        return {"experience": self._experience, "frozen": self.frozen}

    def load_state_dict(self, state: State) -> None:
        self._experience, self.frozen = state["experience"], list(state["frozen"])
