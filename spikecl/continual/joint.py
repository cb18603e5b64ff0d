"""Joint training on everything seen so far (the upper bound)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from spikecl.components import component
from spikecl.continual.method import Context, Method, MethodSpec
from spikecl.streams import LearnerView, Reveal, Samples
from spikecl.streams.events import concatenate


@component
class JointTraining(MethodSpec):
    """Train on the union of the present and all earlier experiences.

    Args:
        restart: Begin each experience from the initial weights, so the last row of the accuracy
            matrix is joint training proper; the optimiser begins anew, too (``state="fresh"``).
            Without it training goes on from the weights at hand (cumulative training).
        wait: Experiences that are only gathered before training begins: with all but the last, it
            is trained once, on everything.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY | Reveal.OLD_DATA
    restart: bool = True
    wait: Annotated[int, Field(ge=0)] = 0

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _Joint(self, context)


class _Joint(Method):
    def __init__(self, spec: JointTraining, context: Context):
        self._spec, self._context, self.opens = spec, context, spec.restart

    def begin(self, view: LearnerView) -> None:
        if self._spec.restart:
            self._context.host.restart()

    def training_set(self, samples: Samples, view: LearnerView) -> Samples:
        if len(view.old) < self._spec.wait:
            return samples.none()
        return concatenate([*view.old, samples])
