"""IF2Net: random features that stay as they are, and a readout that is projected (Li et al. 2023).

"Innately Forgetting-Free Networks for Continual Learning", arXiv 2306.10480.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.continual.projection.moments import rows_of
from spikecl.continual.projection.owm import Regressors
from spikecl.continual.projection.protection import ProjectUpdates, Protection
from spikecl.streams import LearnerView, Reveal


@component
class If2Net(MethodSpec):
    """Leave hidden weights as they were drawn; multiply the readout's updates by a P.

    Hidden synapses stay from the first step on, to the last bit, so an old input has the same
    features h for ever. At the end of an experience, beginning with ``P = I``, for each row h that
    the readout received (recursive least squares)::

        k = P h
        P <- P - k k^T / (alpha + h^T k)

    which is ``P = (I + sum h h^T / alpha)^-1``, and later, at the readout alone::

        ΔW = -eta G P

    The smaller alpha, the less old outputs move; no task is named in a test. The readout's bias
    learns in the first experience and stays then. What random layers do not pass on is lost, so
    one wide layer is better than two, and spiking ones need a ``gain`` at which they fire.

    Args:
        alpha: Strength, in units of a sum over ``samples``: more of them ask for more. Small is
            rigid.
        samples: Samples of an experience that P learns from, after training on it.
        tweak: Which parameters of hidden layers that are no weights (biases, thresholds, delays,
            gains of norms) learn: ``none``, or all of them in the ``first`` experience, after which
            they stay. Statistics of norms are those of the first experience either way.

    Source: Li et al. 2023, arXiv 2306.10480; P of Zeng et al. 2019 over single rows.
    Deviation: only the abstract could be read and no code was found. It has random weights that
    are frozen and reused, drifted representations that are tweaked back to states that are best
    for each task, and projected updates of output weights; how the tweak and the "parsimonious"
    space are made it does not say. A tweak for each task would change what old inputs evoke or
    need the task's name in a test; ``tweak`` moves all at once, before there is anything to
    forget.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    alpha: PositiveFloat = 100.0
    samples: PositiveInt = 5000
    tweak: Literal["none", "first"] = "first"

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _ReadoutAlone(_Features(self, context), context, tweak=self.tweak == "first")


class _Features(Regressors):
    """P of the rows that the readout received; none for heads of tasks."""

    def __init__(self, spec: If2Net, context: Context):
        super().__init__(context, "if2net", only=list(context.network.synapses)[-1])
        self._spec = spec

    def end(self, view: LearnerView) -> None:
        for name in self.sizes:
            for seen in self._context.host.look(view.samples, self._spec.samples):
                rows = rows_of(self._context, seen)[name]
                self.silent.note(name, rows)
                self.show(name, rows.double(), alpha=self._spec.alpha)
        super().end(view)


class _ReadoutAlone(ProjectUpdates):
    """Projects the readout's updates and takes all others back."""

    def __init__(self, protection: Protection, context: Context, *, tweak: bool):
        super().__init__(protection, context)
        hidden = [n for n in context.network.weights() if not n.startswith(f"{self._readout}.")]
        weights = self._weights.keys() - {f"{self._readout}.weight"}
        self._still = {n for n in hidden if n in weights or not tweak}

    def gradients(self, gradients: Tensors) -> Tensors:
        kept = super().gradients(gradients)
        return {name: g for name, g in kept.items() if name not in self._still}

    def update(self, update: Tensors) -> Tensors:
        made = super().update(update)
        return {n: torch.zeros_like(u) if n in self._still else u for n, u in made.items()}
