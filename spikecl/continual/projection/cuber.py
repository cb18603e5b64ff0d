"""CUBER: continual learning with backward knowledge transfer (Lin et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveInt, component
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.continual.projection.gpm import Energies, Growth, Sizing
from spikecl.continual.projection.protection import Others
from spikecl.continual.projection.trgp import Rate, RunScaled, Threshold, Trust, TrustRegions
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal

Alignment = Annotated[float, Field(ge=-1, le=1)]
Penalty = Annotated[float, Field(ge=0)]


@component
class Cuber(MethodSpec):
    """TRGP, and updates may enter what an old experience used where it would gain by them.

    At a synapse, with W_0 and G the weights and the gradient when an experience begins, and G_j the
    gradient when experience j had ended, j is in one of three regimes::

        1  |G B_j^T| < threshold |G|, or not among the ``tasks`` largest of them
        2  the others, where  <G_j, G> <= alignment |G_j| |G|
        3  the others, where it is more

    In 2 and 3 a Q_j is learned, as by method ``trgp``. Updates stay out of all rows of the memory
    that experiences in 1 and 2 used. Those in 3 alone used are open, and the loss has a term
    ``penalty |(W - W_0) B_j^T|`` for each. Before each step, with G the gradient of its batch, j
    falls from 3 to 2, until the experience ends, where ``<G_j, G>`` is not that much any more.

    Args:
        energy: Share of the activity's energy that B holds; one number or one per synapse.
        growth: What is added to that share with each experience.
        threshold: Least share of the gradient's norm that is in B_j of regimes 2 and 3.
        alignment: Cosine with the gradient of j above which updates enter B_j; 1 is ``trgp``.
        penalty: Weight of the change inside B_j, lambda in the paper.
        tasks: Experiences in regimes 2 and 3 at most.
        rate: Learning rate of Q, relative to that of the weights.
        samples: Samples of an experience that C is gathered from, after training on it.
        probe: Samples of which G and G_j are.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: ``freeze``, or ``learn`` on.

    Source: Lin et al. 2022, section 4 and algorithm 1: threshold 0.5, alignment 0, two tasks; there
    is no code, and lambda is not given.
    Deviation: the condition is asked before a step, not behind it; a rate of 0.1, as in method
    ``trgp``. An old experience whose Q mixes rows that are open feels their change; so it does in
    the paper.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    energy: Energies = 0.95
    growth: Growth = 0.003
    threshold: Threshold = 0.5
    alignment: Alignment = 0.0
    penalty: Penalty = 0.1
    tasks: PositiveInt = 2
    rate: Rate = 0.1
    samples: PositiveInt = 2000
    probe: PositiveInt = 300
    others: Others = "freeze"

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _Run(_Regimes(self, context), context, self.others)


class _Regimes(TrustRegions):
    def __init__(self, spec: Cuber, context: Context):
        trust = Trust(spec.threshold, spec.tasks, spec.rate, spec.probe)
        sizing = Sizing(spec.energy, spec.growth, None, spec.samples, offbyone=False)
        super().__init__(trust, sizing, context, "cuber")
        self._spec = spec
        self.slopes: dict[str, dict[str, Tensor]] = {}  # G_j by experience, by synapse
        self.open: dict[str, dict[str, Tensor]] = {}  # 1 in regime 3, else 0, by synapse
        self.anchors: dict[str, dict[str, Tensor]] = {}  # W_0 B_j^T by synapse
        self._began: dict[str, list[int]] = {}  # experiences that began in regime 3

    def choose(self, gradients: Tensors) -> None:
        super().choose(gradients)
        self.open, self.anchors, self._began = {}, {}, {}
        for path, gradient in gradients.items():
            trusted = self.scales[self._task][path]
            asked = {key: self._aligned(key, path, gradient) for key in trusted}
            found = {key: aligned for key, aligned in asked.items() if bool(aligned)}
            weight = self._context.network.synapses[path].weight.detach().flatten(1)
            self.open[path] = found
            self.anchors[path] = {key: weight @ self.basis(path, key).T for key in found}
            self._began[path] = [int(key) for key in found]

    def _aligned(self, key: str, path: str, gradient: Tensor) -> Tensor:
        """Return 1 where an experience's gradient points as a gradient [n_out, fan_in] does."""
        slope = self.slopes[key][path]
        least = self._spec.alignment * slope.norm() * gradient.norm()
        aligned: Tensor = (slope * gradient).sum() > least
        return aligned.to(slope)

    def held(self, path: str) -> Tensor:
        held = torch.zeros_like(self.memory[path].rows[:, 0])
        for key, used in self.used.items():
            closed = 1 - self.open.get(path, {}).get(key, held.new_zeros(()))
            held[used[path]] = torch.maximum(held[used[path]], closed)
        return held

    @torch.no_grad()
    def enter(self, gradients: Tensors) -> Tensors:
        """Close what is not aligned any more; return gradients with that of the penalty."""
        made, penalty = dict(gradients), self._spec.penalty * self._context.host.portion()
        for path, keys in self.open.items():
            given = gradients.get(f"{path}.weight")
            if given is None:
                continue
            rows = total = given.flatten(1)
            weight = self._context.network.synapses[path].weight.flatten(1)
            for key, is_open in keys.items():
                is_open = keys[key] = is_open * self._aligned(key, path, rows)
                basis = self.basis(path, key)
                moved = weight @ basis.T - self.anchors[path][key]
                size, rounding = moved.norm(), 16 * torch.finfo(moved.dtype).eps * weight.norm()
                is_open = is_open * (size > rounding)  # noise has no direction to be drawn back in
                total = total + (penalty * is_open / size.clamp_min(rounding) * moved) @ basis
            made[f"{path}.weight"] = total.view_as(given)
        return made

    def end(self, view: LearnerView) -> None:
        super().end(view)
        self.slopes[f"{self._experience - 1:04d}"] = self.gradients(view)
        for path, said in self._report.items():
            assert isinstance(said, dict)
            said["opened"] = self._began.get(path, [])
            said["open"] = [int(key) for key, on in self.open.get(path, {}).items() if bool(on)]
        self.open, self.anchors, self._began = {}, {}, {}

    def state_dict(self) -> State:
        own = {"slopes": self.slopes, "open": self.open, "anchors": self.anchors}
        return {**super().state_dict(), **own, "began": self._began}

    def load_state_dict(self, state: State) -> None:
        self.slopes, self.open, self.anchors = (
            {name: dict(each) for name, each in state[kind].items()}
            for kind in ("slopes", "open", "anchors")
        )
        self._began = dict(state["began"])
        super().load_state_dict(state)

    def nbytes(self) -> int:
        kept = (self.slopes, self.open, self.anchors)
        tensors = [t for kind in kept for each in kind.values() for t in each.values()]
        return super().nbytes() + nbytes(*tensors)


class _Run(RunScaled):
    regions: _Regimes

    def gradients(self, gradients: Tensors) -> Tensors:
        return super().gradients(self.regions.enter(gradients))
