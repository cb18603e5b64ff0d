"""TACOS: a synapse between neurons that were active together changes ever less."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import component
from spikecl.continual.metaplasticity.gates import Gate, weights_of
from spikecl.continual.method import Context, Factors, Method, MethodSpec, Phase, Tensors
from spikecl.storage import State, nbytes
from spikecl.streams import Batch

NotNegative = Annotated[float, Field(ge=0)]
Steps = Annotated[float, Field(ge=1)]


@component
class Tacos(MethodSpec):
    """Gate each update by ``exp(-|m w|)``, with an m that grows as both neurons are active.

    For each weight w, reference w_r and state m, each batch, ``dw`` being what was applied::

        w <- w + exp(-|m w|) dw - beta (w - w_r)
        w_r <- w_r + (w - w_r) / tau_ref                     with the w of before
        m <- m + growth  where x_pre > threshold and x_post > threshold
        x <- x + (mean |activity| - x) / tau                 for both neurons

    The gate holds steps back in both directions. ``threshold`` is relative to the mean x of a
    layer.

    Args:
        growth: What a coincidence in one batch adds to m; 0 with ``beta = 0`` is the optimiser
            alone, bit for bit.
        threshold: Activity that counts, in means of the layer.
        tau: Time constant of the activity in batches.
        beta: Part of the way back to the reference that a weight goes in each batch.
        tau_ref: Time constant of the reference in batches.
        updates: ``scaled`` by the gate, or applied with the ``probability`` that it says, and
            whole: the same in the mean, and fewer changes.

    Source: Soures et al., arXiv:2409.00021, for consolidation, traces and reference; the gate also
    Shi et al. (Nature Communications 2025), with m of 10 to 15; updates by probability: Zohora et
    al., Scientific Reports 2024.
    Deviation: the equations but for the gate are from descriptions of the paper; the optimiser's
    step under any trainer in place of its error neurons and fixed random feedback. Traces follow
    means over a batch. All outputs of a layer without neurons (a readout) count as active; of a
    convolution a channel is one neuron.
    """

    phase: ClassVar[Phase] = Phase.GATE
    growth: NotNegative = 0.3
    threshold: NotNegative = 1.0
    tau: Steps = 10.0
    beta: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    tau_ref: Steps = 1000.0
    updates: Literal["scaled", "probability"] = "scaled"

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _Tacos(self, context)


class _Tacos(Gate):
    remembers = True

    def __init__(self, spec: Tacos, context: Context):
        super().__init__(context, weights_of(context, "tacos"))
        self._spec, self._step = spec, 0
        self.own = "method 'tacos' with beta draws weights back" if spec.beta else ""
        self.reference = {name: weight.clone() for name, weight in self.stored.items()}
        self.m = {name: torch.zeros_like(weight) for name, weight in self.stored.items()}
        self.pre = {name: w.new_zeros(w[0].numel()) for name, w in self.stored.items()}
        self.post = {name: w.new_zeros(len(w)) for name, w in self.stored.items()}
        self._seen: dict[str, list[Tensor]] = {}  # of this step, in parts
        self._rates: list[Tensors] = []
        self._shares: list[float] = []

    # ---- activity -------------------------------------------------------------------------------

    def fired(self, rates: Tensors, share: float) -> None:
        self._rates.append(rates)
        self._shares.append(share)

    def factors(self, factors: Factors, batch: Batch) -> Factors:
        for name in self.names:
            mean = factors[name.removesuffix(".weight")].transmitted.abs().mean(0)
            here = self.pre[name]
            self._seen.setdefault(name, []).append(mean.view(-1, len(here)).mean(0).to(here))
        return factors

    def _follow(self, portion: float) -> None:
        """Let the traces follow the activity of a step, or of a portion of it."""
        share = portion / self._spec.tau
        for name, rows in self._seen.items():
            post, layer = self.post[name], layer_of(name)
            self.pre[name] = torch.lerp(self.pre[name], self._mean(rows), share)
            rates = [each[layer].abs().to(post) for each in self._rates if layer in each]
            if rates:
                fired = self._mean(rates).reshape(len(post), -1).mean(1)
                self.post[name] = torch.lerp(post, fired, share)
        self._seen, self._rates, self._shares = {}, [], []

    def _mean(self, parts: list[Tensor]) -> Tensor:
        """Return the mean over the parts of a step, of which the last may be shorter."""
        each = parts[0].new_tensor(self._shares)
        mean: Tensor = torch.tensordot(each / each.sum(), torch.stack(parts), 1)
        return mean

    def _coincident(self, name: str) -> Tensor:
        """Return 1 where both neurons of a weight are active, else 0."""
        pre, post = (x > self._spec.threshold * x.mean() for x in (self.pre[name], self.post[name]))
        if self._context.network.layers[layer_of(name)].neuron is None:
            post = torch.ones_like(post)
        return torch.logical_and(post[:, None], pre).view_as(self.m[name]).to(self.m[name])

    # ---- the step -------------------------------------------------------------------------------

    def update(self, update: Tensors) -> Tensors:
        made = super().update(update)
        self._follow(self._context.host.portion())
        self._step += 1
        return made

    def changed(self, name: str, update: Tensor, old: Tensor) -> Tensor:
        spec, portion = self._spec, self._context.host.portion()
        made = update * self._gate(name, old)
        if spec.beta:
            made = made - spec.beta * portion * (old - self.reference[name])
        self.reference[name] = torch.lerp(self.reference[name], old, portion / spec.tau_ref)
        if spec.growth:
            self.m[name] = self.m[name] + spec.growth * portion * self._coincident(name)
        return made

    def _gate(self, name: str, weight: Tensor) -> Tensor:
        share = torch.exp(-(self.m[name] * weight).abs())
        if self._spec.updates == "scaled":
            return share
        place = self.names.index(name)
        generator = self._context.seeds.generator("tacos", event=place, step=self._step)
        drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        return (drawn.to(share.device) < share).to(share)

    # ---- state ----------------------------------------------------------------------------------

    def report(self) -> dict[str, object]:
        """Return histograms of weights and of m."""
        return self.described("m", self.m)

    @property
    def _kept(self) -> dict[str, dict[str, Tensor]]:
        return {"reference": self.reference, "m": self.m, "pre": self.pre, "post": self.post}

    def state_dict(self) -> State:
        return {**self._kept, "step": self._step}

    def load_state_dict(self, state: State) -> None:
        self._step = state["step"]
        for key in self._kept:
            setattr(self, key, {name: state[key][name] for name in self.names})

    def nbytes(self) -> int:
        return nbytes(*(value for each in self._kept.values() for value in each.values()))


def layer_of(name: str) -> str:
    """Return the layer that a weight drives."""
    return name.removesuffix(".weight").removesuffix(".recurrent")
