"""L2: a pull to where the last experience ended, alike for all parameters."""

from __future__ import annotations

from typing import Literal

import torch

from spikecl.components import component
from spikecl.continual.importance.importance import (
    Hold,
    HoldAfter,
    Measure,
    Others,
    Step,
    Strength,
)
from spikecl.continual.method import Context, Method, MethodSpec
from spikecl.streams import LearnerView, Reveal


@component
class L2(MethodSpec):
    """Hold all parameters alike near old weights: the baseline of every importance.

    In each step, to the gradient G of the loss::

        G <- G + strength (w - c)

    with c the weights at the end of the experience before (none in the first), or the ``initial``
    ones in every experience. It is ``ewc`` in mode ``online`` with F = 1 and gamma near 0.

    Args:
        strength: Of the penalty ``strength/2 sum (w - c)^2``.
        anchor: The weights at the end of the ``previous`` experience, or the ``initial`` ones.
        step: Add the penalty's ``gradient``, or take a step of its own behind the optimiser's,
            stable for any strength (``implicit``).
        others: Whether biases, neurons' parameters and norms are held (``protect``) or ``learn``.

    Source: Smith et al., A closer look at rehearsal-free continual learning, CVPRW 2023.
    Deviation: with the half that EWC has, so that strengths compare.
    """

    strength: Strength = 0.01
    anchor: Literal["previous", "initial"] = "previous"
    step: Step = "gradient"
    others: Others = "protect"

    @property
    def needs(self) -> Reveal:  # type: ignore[override]
        """Boundaries, but for the initial weights."""
        return Reveal.BOUNDARY if self.anchor == "previous" else Reveal.NONE

    def start(self, context: Context) -> Method:
        """Return the running method; one of strength 0 does nothing."""
        if self.strength == 0:
            return Method()
        return (_Gradient if self.step == "gradient" else _Implicit)(self, context)


class _Run(Measure):
    def __init__(self, spec: L2, context: Context):
        super().__init__(context, "l2", spec.others, spec.strength)
        self._spec = spec

    def begin(self, view: LearnerView) -> None:
        if self._spec.anchor == "initial" and not self.importance.anchors:
            self._hold()

    def end(self, view: LearnerView) -> None:
        if self._spec.anchor == "previous":
            self._hold()

    def _hold(self) -> None:
        now = self.importance.now()
        self.importance.merge({name: torch.ones_like(w) for name, w in now.items()}, keep=0.0)


class _Gradient(_Run, Hold):
    pass


class _Implicit(_Run, HoldAfter):
    pass
