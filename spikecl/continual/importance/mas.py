"""MAS: memory aware synapses (Aljundi et al., ECCV 2018)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from spikecl.components import PositiveInt, component
from spikecl.continual.host import Seen
from spikecl.continual.importance.importance import (
    Hold,
    HoldAfter,
    Measure,
    Others,
    Step,
    Strength,
)
from spikecl.continual.importance.per_sample import mean_powers
from spikecl.continual.method import Context, Method, MethodSpec
from spikecl.storage import State
from spikecl.streams import LearnerView, Reveal


@component
class Mas(MethodSpec):
    """Hold each parameter by how much the size of the outputs depends on it; no labels are needed.

    In each step, to the gradient G of the loss, with A and c of the experiences before::

        G <- G + 2 strength A (w - c)

    Behind an experience, at its last weights, with the logits z of the classes that compete::

        M = mean_n |d ||z(x_n)||^2 / dw|     of each sample by itself
        A <- A + M                           merge = "sum"
        A <- A + (M - A) / k                 merge = "mean", k experiences so far
        c <- w

    Args:
        strength: Of the penalty ``strength sum A (w - c)^2``.
        merge: Sum of the experiences' importances, or their mean.
        normalise: Divide M by its mean over all parameters first: importances do not grow with
            the scale of the logits, and experiences count alike.
        samples: Samples of an experience that M is a mean over.
        step: Add the penalty's ``gradient``, or take a step of its own behind the optimiser's,
            stable for any strength (``implicit``).
        others: Whether biases, neurons' parameters and norms are held (``protect``) or ``learn``.

    Source: Aljundi et al. 2018, equations 2 to 4 with the squared norm of section 3.3. With a loss
    of steps the norm is a mean over steps too. Under trainers without a gradient of the loss
    (``has_gradient``) BPTT measures.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    strength: Strength = 0.01
    merge: Literal["sum", "mean"] = "sum"
    normalise: bool = False
    samples: PositiveInt = 1000
    step: Step = "gradient"
    others: Others = "protect"

    def start(self, context: Context) -> Method:
        """Return the running method; one of strength 0 measures and holds nothing."""
        if self.strength == 0:
            return _Run(self, context)
        return (_Gradient if self.step == "gradient" else _Implicit)(self, context)


class _Run(Measure):
    looks = True

    def __init__(self, spec: Mas, context: Context):
        super().__init__(context, "mas", spec.others, 2 * spec.strength)
        self._spec, self._experiences = spec, 0

    def end(self, view: LearnerView) -> None:
        spec, names = self._spec, self.importance.names
        count = min(spec.samples, len(view.samples))
        found = mean_powers(self.context, view.samples, count, names, power=1, ask=_norm_of)
        if spec.normalise:
            total = sum(float(each.sum()) for each in found.values())
            size = sum(each.numel() for each in found.values())
            found = {name: each * (size / (total or 1.0)) for name, each in found.items()}
        self._experiences += 1
        share = 1.0 if spec.merge == "sum" else 1 / self._experiences
        keep = 1.0 if spec.merge == "sum" else 1 - share
        self.importance.merge(found, keep=keep, take=share)

    def state_dict(self) -> State:
        return {**super().state_dict(), "experiences": self._experiences}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._experiences = state["experiences"]


class _Gradient(_Run, Hold):
    pass


class _Implicit(_Run, HoldAfter):
    pass


def _norm_of(seen: Seen, before: int) -> Seen:
    """Return samples with the mean squared norm of their logits for a loss."""

    def norm(outputs: Tensor) -> Tensor:
        logits = seen.logits(outputs)
        logits = torch.where(logits.isneginf(), torch.zeros_like(logits), logits)
        return logits.square().sum(-1).mean()

    return seen._replace(loss=norm)
