"""Context-dependent gating: other units for other tasks (Masse, Grant & Freedman 2018)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveInt, component
from spikecl.continual.homeostasis.contexts import (
    Contexts,
    along_columns,
    gated_layers,
    heard,
    logits_by_context,
    sources,
)
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.errors import PairingError
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal
from spikecl.trainers.needs import layers_of


class _Needs:
    """Boundaries; tasks where contexts are tasks."""

    def __get__(self, spec: Gating | None, owner: type[Gating]) -> Reveal:
        if spec is None or spec.context == "input":
            return Reveal.BOUNDARY
        return Reveal.BOUNDARY | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL


@component
class Gating(MethodSpec):
    """Silence a random part of the hidden units in each context; the others learn.

    For a context with gates ``g`` in {0, 1} of each layer, drawn once::

        currents  W (g_below * z)             of every synapse that listens to a hidden layer
        update    dW_ij g_i g_below_j         biases, norms and parameters of neurons: g_i

    so two contexts that share no unit share no weight: neither forgets by the other. Parameters
    that have no unit of their own (a bias of a readout that tasks share, one threshold of a layer)
    learn in the first context alone; of outputs that each task has of its own, those of others
    stay. Running statistics of norms stand still where parameters do. With ``share=0`` the method
    does nothing at all.

    A test is answered in the context of its task where that is revealed, otherwise in that whose
    mean input is nearest, sample by sample.

    Source: Masse, Grant & Freedman, PNAS 115 (2018), who silence 80 % and know the task; the mean
    of the input as context: Iyer et al. 2022.

    Args:
        share: Part of the units of each hidden layer (channels of a map) that is silent.
        disjoint: Contexts share no unit that is not silent, as long as there are units left.
        context: What tells contexts apart: the ``input``'s mean, or the ``task``, which the stream
            then has to reveal.
        samples: Samples of an experience that its mean input is taken of.
    """

    needs: ClassVar[Reveal] = cast(Reveal, _Needs())
    phase: ClassVar[Phase] = Phase.GATE
    slot: ClassVar[str | None] = "projection"  # projected updates would leave their units

    share: Annotated[float, Field(ge=0, lt=1)] = 0.8
    disjoint: bool = False
    context: Literal["input", "task"] = "input"
    samples: PositiveInt = 500

    def start(self, context: Context) -> Method:
        """Return the running method."""
        sizes = gated_layers(context, "gating")
        return _Gating(self, context, sizes) if self.share else Method()


class _Gating(Method):
    remembers = True  # whose units are whose
    gathers = "the mean input of their context"

    def __init__(self, spec: Gating, context: Context, sizes: dict[str, int]):
        self._spec, self._context, self._sizes = spec, context, sizes
        self._contexts = Contexts(context, spec.samples)
        self._gates: list[dict[str, Tensor]] = []
        self._listens = sources(context)
        self._last = list(context.network.layers)[-1]
        self._outputs = len(context.network.synapses[self._last].weight)
        self._statistics: dict[str, Tensor] = {}  # before the present step
        for name, statistic in context.network.statistics().items():
            own = sizes.get(name.split(".")[0])
            if own is not None and len(statistic.view(-1)) != own:
                raise PairingError(
                    f"method 'gating' leaves what belongs to silent units as it is, and '{name}' "
                    "has no number of each unit; use norm='batch' or a network without norms"
                )
        if spec.disjoint:
            self.room = min(size // self._awake(size) for size in sizes.values())

    def _awake(self, size: int) -> int:
        return max(size - round(self._spec.share * size), 1)

    def begin(self, view: LearnerView) -> None:
        if self._contexts.begin(view):
            self._gates.append({name: self._draw(name) for name in self._sizes})

    def _draw(self, name: str) -> Tensor:
        """Return the gates of a layer in a new context."""
        size, number = self._sizes[name], len(self._gates)
        awake = self._awake(size)
        place = list(self._sizes).index(name)
        event = 0 if self._spec.disjoint else number
        generator = self._context.seeds.generator("gating", event=event, epoch=place)
        order, first = torch.randperm(size, generator=generator), 0
        if self._spec.disjoint:
            first = number * awake
        gate = torch.zeros(size)
        gate[order[first : first + awake]] = 1
        return gate.to(self._context.device)

    def weights(self, weights: Tensors) -> Tensors:
        if not self._statistics:  # once in a step, which may have several parts
            now = self._context.network.statistics()
            self._statistics = {name: statistic.clone() for name, statistic in now.items()}
        return heard(weights, self._gates[self._contexts.now], self._listens)

    def gradients(self, gradients: Tensors) -> Tensors:
        return self._kept(gradients)

    def update(self, update: Tensors) -> Tensors:
        return self._kept(update)

    @torch.no_grad()
    def after_step(self) -> None:
        """Put back the running statistics of silent units."""
        gates, now = self._gates[self._contexts.now], self._context.network.statistics()
        for name, old in self._statistics.items():
            layer = name.split(".")[0]
            if layer in gates:
                now[name].copy_(torch.where(gates[layer] > 0, now[name], old))
            elif self._contexts.now > 0:
                now[name].copy_(old)
        self._statistics = {}

    def _kept(self, changes: Tensors) -> dict[str, Tensor]:
        """Return changes of what belongs to units that are awake."""
        gates = dict(self._gates[self._contexts.now])
        if (own := self._context.host.outputs()) is not None:
            gates[self._last] = own.repeat_interleave(self._outputs // len(own))
        found = {}
        for name, change in changes.items():
            path = name.rpartition(".")[0]
            below = self._listens.get(path) if name.endswith(".weight") else None
            gate = gates.get(self._unit_of(name))
            alone = gate is not None and change.dim() > 0 and len(change) == len(gate)
            if gate is not None and alone:
                change = change * gate.view(-1, *[1] * (change.dim() - 1)).to(change)
            if below in gates:
                change = change * along_columns(gates[below], change)
            elif not alone and self._contexts.now > 0:
                change = torch.zeros_like(change)
            found[name] = change
        return found

    def _unit_of(self, parameter: str) -> str:
        """Return the layer whose units a parameter has numbers of."""
        layer, stage, *_ = parameter.split(".")
        before = layers_of(self._context.network)[layer].before
        return self._listens[layer] if stage in before else layer

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None) -> Tensor:
        if not self._gates:
            generator = self._context.seeds.generator("gating-test")
            return self._context.network(x, generator=generator).logits  # type: ignore[no-any-return]
        which = self._contexts.of(x, task)
        return logits_by_context(self._context, x, which, list(self._gates), "gating")

    def report(self) -> dict[str, object]:
        if not self._gates:
            return {}
        now = self._gates[self._contexts.now]
        others = [g for i, g in enumerate(self._gates) if i != self._contexts.now]
        return {
            name: {
                "awake": int(gate.sum()),
                "shared": [int((gate * other[name]).sum()) for other in others],
            }
            for name, gate in now.items()
        }

    def state_dict(self) -> State:
        gates = {f"{i:04d}": dict(each) for i, each in enumerate(self._gates)}
        return {"contexts": self._contexts.state_dict(), "gates": gates}

    def load_state_dict(self, state: State) -> None:
        self._contexts.load_state_dict(state["contexts"])
        held = state["gates"]
        self._gates = [{n: held[key][n] for n in self._sizes} for key in sorted(held)]

    def nbytes(self) -> int:
        return self._contexts.nbytes() + nbytes(*(t for g in self._gates for t in g.values()))
