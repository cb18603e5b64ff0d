"""OWM: orthogonal weights modification (Zeng et al., Nature Machine Intelligence 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.method import Context, Factors, Method, MethodSpec, Phase
from spikecl.continual.projection.circuits import one_shot
from spikecl.continual.projection.moments import Silent, rows_of
from spikecl.continual.projection.protection import (
    Others,
    Protection,
    check_fits,
    in_order,
    per_synapse,
    project,
    refuse_unused,
    sizes_of,
)
from spikecl.networks import Conv2d, Outside, Suppression, Taps
from spikecl.storage import State, nbytes
from spikecl.streams import Batch, LearnerView, Reveal

Alphas = PositiveFloat | Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)]
Decay = Annotated[float, Field(gt=0, le=1)]
Decays = Decay | Annotated[tuple[Decay, ...], Strict(False), Field(min_length=1)]


@component
class Owm(MethodSpec):
    """Multiply updates by a P that recursive least squares learns from batch means.

    For each synapse, beginning with ``P = I``, with x the mean of a batch of what it transmitted
    (over samples and time) and progress from 0 to 1 within the experience::

        alpha_now = alpha decay^progress
        k = P x
        P <- P - k k^T / (alpha_now + x^T k)
        ΔW = -eta G P

    With constant alpha ``P = (I + sum x x^T / alpha)^-1``: a direction loses its plasticity to the
    batch means that were along it. Of a convolution x are the mean patches, one after the other.

    Args:
        alpha: Strength; one number or one per synapse. Small is rigid.
        decay: What is left of alpha at the end of an experience; one number or one per synapse. 1
            holds it constant.
        when: P learns from every ``step`` and acts in it, in the first experience too; or from an
            experience ``after`` training on it.
        samples: Samples of an experience that P learns from, where ``after``.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: ``freeze``, or ``learn`` on.

    Source: Zeng et al. 2019; their code has P learn in every step: alpha 1 and constant (permuted
    MNIST, rate 2); alpha 1 with decay 1e-5 for convolutions and 1e-4, 0.01, 0.1 for what follows
    (split CIFAR-10, rate 0.02, momentum 0.9).
    Deviation: the code for permuted MNIST adds 0.001 times the norm of each weight matrix to the
    loss and lets biases learn; here ``weight_decay`` of an optimiser and ``others`` are for that.
    Where a trainer gives a step in parts in time, each part is a batch.
    """

    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    alpha: Alphas = 1.0
    decay: Decays = 1.0
    when: Literal["step", "after"] = "step"
    samples: PositiveInt = 5000
    others: Others = "freeze"

    def __post_init__(self) -> None:
        if self.when == "step":
            refuse_unused(self, ("samples",), beside="with when='step', which looks at every batch")

    @property
    def needs(self) -> Reveal:  # type: ignore[override]
        """Boundaries, unless all that it does is done in every step alike."""
        decays = self.decay if isinstance(self.decay, tuple) else (self.decay,)
        alike = self.when == "step" and self.others == "learn" and min(decays) == 1
        return Reveal.NONE if alike else Reveal.BOUNDARY

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return project(_OfBatches(self, context), context, self.others)


class Regressors(Protection):
    """A P of each synapse, by recursive least squares; ``lateral`` is I - P in double precision.

    Args:
        context: The run.
        name: Of the method.
        only: The one synapse that is protected, where not all are.
    """

    def __init__(self, context: Context, name: str, *, only: str | None = None):
        self._context, self._name = context, name
        self.sizes = sizes_of(context, name, only=only)
        self.lateral: dict[str, Tensor] = {}
        self.silent = Silent(name, self.sizes)

    def outside(self, name: str) -> Outside | None:
        if name not in self.lateral:
            return None
        return Suppression(self._matrix(name).to(self._context.network.synapses[name].weight))

    def _matrix(self, name: str) -> Tensor:
        lateral = self.lateral[name]
        return torch.eye(len(lateral), dtype=lateral.dtype, device=lateral.device) - lateral

    def begin(self, view: LearnerView) -> None:
        self.silent.begin()

    def show(self, name: str, rows: Tensor, *, alpha: float) -> None:
        """Let P of a synapse learn from rows [R, n] in double precision."""
        n = self.sizes[name]
        old = self.lateral.get(name, rows.new_zeros(n, n))
        self.lateral[name] = one_shot(old, rows, alpha).contiguous()

    def end(self, view: LearnerView) -> None:
        self.silent.end()

    def report(self) -> dict[str, object]:
        free = {name: float(self._matrix(name).diagonal().mean()) for name in self.lateral}
        return {name: {"plasticity": value} for name, value in free.items()}

    def state_dict(self) -> State:
        return {"lateral": self.lateral, "silent": self.silent.state_dict()}

    def load_state_dict(self, state: State) -> None:
        check_fits(state["lateral"], self.sizes, self._name)
        self.lateral = in_order(state["lateral"], self.sizes)
        self.silent.load_state_dict(state.get("silent", {}))

    def nbytes(self) -> int:
        return nbytes(*self.lateral.values())


class _OfBatches(Regressors):
    def __init__(self, spec: Owm, context: Context):
        super().__init__(context, "owm")
        self._spec = spec
        self.steady = spec.when == "after"
        self._alpha = per_synapse(spec.alpha, self.sizes, "method.owm.alpha")
        self._decay = per_synapse(spec.decay, self.sizes, "method.owm.decay")
        self._places: dict[str, int] = {}  # a convolution's patches per map

    def begin(self, view: LearnerView) -> None:
        super().begin(view)
        found = [n for n in self.sizes if isinstance(self._context.network.synapses[n], Conv2d)]
        for seen in self._context.host.look(view.samples, 1) if found else ():
            taps = Taps()
            with torch.no_grad():
                self._context.network(seen.x, taps=taps, generator=seen.generator)
            self._places = {name: prod(taps[name].shape[2:]) for name in found}

    def learn(self, factors: Factors, batch: Batch) -> Mapping[str, Tensor]:
        if self._spec.when == "step":
            decays = any(decay < 1 for decay in self._decay.values())
            progress = self._context.host.progress() if decays else 0.0
            for name, factor in factors.items():
                self._learn(name, factor.transmitted, progress)
        return {}

    def _learn(self, name: str, rows: Tensor, progress: float) -> None:
        """Show the mean of rows [R, n] to P, or those of each place."""
        self.silent.note(name, rows)
        means = rows.reshape(-1, self._places.get(name, 1), self.sizes[name]).mean(0).double()
        self.show(name, means, alpha=self._alpha[name] * self._decay[name] ** progress)

    def end(self, view: LearnerView) -> None:
        if self._spec.when == "after":
            self._look(view)
        super().end(view)

    def _look(self, view: LearnerView) -> None:
        total, done = min(self._spec.samples, len(view.samples)), 0
        for seen in self._context.host.look(view.samples, self._spec.samples):
            for name, rows in rows_of(self._context, seen).items():
                if name in self.sizes:
                    self._learn(name, rows, done / total)
            done += seen.x.shape[1]

    def state_dict(self) -> State:
        return {**super().state_dict(), "places": self._places}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._places = dict(state["places"])
