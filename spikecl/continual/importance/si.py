"""SI: synaptic intelligence (Zenke, Poole & Ganguli, ICML 2017)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from spikecl.components import PositiveFloat, component
from spikecl.continual.importance.importance import (
    Hold,
    HoldAfter,
    Measure,
    Others,
    Step,
    Strength,
)
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal

Part = Annotated[float, Field(gt=0, lt=1)]


@component
class Si(MethodSpec):
    """Hold each parameter by what it did for the loss on its way.

    In each step, with g the gradient as the trainer gives it, before any method has changed it, and
    Δw what the parameter has really moved by when all others have acted::

        G <- G + 2 strength A (w - c)
        omega <- omega - g Δw

    Behind an experience, or every n steps::

        A <- relu(A + omega / ((w - c)^2 + xi))                             decay = None
        A <- relu(decay A + (1 - decay) omega / ((w - c)^2 + xi))           otherwise
        c <- w,  omega <- 0

    The sum of omega over parameters is the loss that was lost on the way, as steps get small. A
    cost that goes through the trainer, as that of method ``rates`` does, is a part of this loss.

    Args:
        strength: Of the penalty ``strength sum A (w - c)^2``, c in the paper.
        xi: Keeps A finite where a parameter hardly moved.
        decay: What stays of A at each consolidation, as a moving average; ``None`` is a sum.
        every: Consolidate every n steps, and not where experiences end: boundaries may be hidden.
        step: Add the penalty's ``gradient``, or take a step of its own behind the optimiser's,
            stable for any strength (``implicit``).
        others: Whether biases, neurons' parameters and norms are held (``protect``) or ``learn``.

    Source: Zenke et al. 2017, equations 3 to 5, and their code, which has the relu and the moving
    average; strength 0.1 and xi 0.1 there for permuted MNIST, xi 0.001 for CIFAR.
    """

    phase: ClassVar[Phase] = Phase.AROUND
    strength: Strength = 0.1
    xi: PositiveFloat = 0.1
    decay: Part | None = None
    every: Annotated[int, Field(ge=0)] = 0
    step: Step = "gradient"
    others: Others = "protect"

    @property
    def needs(self) -> Reveal:  # type: ignore[override]
        """Boundaries, but where it counts steps."""
        return Reveal.NONE if self.every else Reveal.BOUNDARY

    def start(self, context: Context) -> Method:
        """Return the running method; one of strength 0 measures and holds nothing."""
        if self.strength == 0:
            return _Run(self, context)
        return (_Gradient if self.step == "gradient" else _Implicit)(self, context)


class _Run(Measure):
    needs_gradient = True

    def __init__(self, spec: Si, context: Context):
        super().__init__(context, "si", spec.others, 2 * spec.strength)
        self._spec, self._steps = spec, 0
        self.path: dict[str, torch.Tensor] = {}  # omega
        self._moving: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # of a step: g and w

    def begin(self, view: LearnerView) -> None:
        if not self.importance.anchors:
            zero = {name: torch.zeros_like(w) for name, w in self.importance.now().items()}
            self.path = {name: torch.zeros_like(w) for name, w in zero.items()}
            self.importance.merge(zero)

    @torch.no_grad()
    def gradients(self, gradients: Tensors) -> Tensors:
        self._arrive()
        now = self.importance.now()
        self._moving = {n: (gradients[n], w.clone()) for n, w in now.items() if n in gradients}
        return super().gradients(gradients)

    @torch.no_grad()
    def after_step(self) -> None:
        self._arrive()
        self._steps += 1
        if self._spec.every and self._steps % self._spec.every == 0:
            self._consolidate()

    def _arrive(self) -> None:
        """Take in what the step has done, or its last part where weights change in between."""
        now = self.importance.now()
        for name, (gradient, before) in self._moving.items():
            self.path[name].addcmul_(gradient, before.sub_(now[name]))
        self._moving = {}

    def end(self, view: LearnerView) -> None:
        if not self._spec.every:
            self._consolidate()

    @torch.no_grad()
    def _consolidate(self) -> None:
        decay, now = self._spec.decay, self.importance.now()
        new = {}
        for name, anchor in self.importance.anchors.items():
            new[name] = self.path[name] / ((now[name] - anchor).square() + self._spec.xi)
            self.path[name].zero_()
        keep, take = (1.0, 1.0) if decay is None else (decay, 1 - decay)
        self.importance.merge(new, keep=keep, take=take)

    def state_dict(self) -> State:
        return {**super().state_dict(), "path": dict(self.path), "steps": self._steps}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        held = self.importance.fitting(state.get("path", {}))
        self.path = {name: each.clone() for name, each in held.items()}  # added to in place
        self._steps = state["steps"]

    def nbytes(self) -> int:
        return super().nbytes() + nbytes(*self.path.values())


class _Gradient(_Run, Hold):
    pass


class _Implicit(_Run, HoldAfter):
    pass
