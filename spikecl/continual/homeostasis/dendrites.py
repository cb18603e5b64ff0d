"""Active dendrites: segments that know contexts open and close their neurons (Iyer et al. 2022)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.homeostasis.contexts import (
    Contexts,
    along_columns,
    gated_layers,
    heard,
    logits_by_context,
    sources,
)
from spikecl.continual.homeostasis.layers import distribution
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal


@component
class Dendrites(MethodSpec):
    """Each hidden neuron is heard as much as the best of its dendritic segments likes the context.

    With ``c`` the context (the mean input of an experience, of length 1), ``u_jd`` the segments of
    neuron j, and the others silent::

        a_j = max_d u_jd . c
        g_j = sigmoid(a_j)            for the share ``active`` of a layer's largest a
        currents  W (g * z)           of the synapses that listen to the layer

    Segments learn with the weights, by the derivative of the loss: ``u_jd* -= rate dL/dg_j g_j
    (1 - g_j) c`` for the segment d* that spoke. A test is answered in the context whose mean input
    is nearest, sample by sample, or in that of its task where it is revealed.

    Source: Iyer et al., Frontiers in Neurorobotics 16 (2022), with the mean input as context.
    Deviation: k winners are taken by their segments, for a context and not for each sample (which
    no weight stands for); gates act on what a neuron says, spikes too.

    Args:
        segments: Of each neuron.
        active: Share of the neurons of each layer that are heard in a context.
        rate: Learning rate of segments.
        scale: Standard deviation of segments when they are drawn; so, of what they say.
        samples: Samples of an experience that its mean input is taken of.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.FIRST  # others get the gradients of what is stored
    slot: ClassVar[str | None] = "projection"  # projected updates act on weights as they are stored

    segments: PositiveInt = 7
    active: Annotated[float, Field(gt=0, le=1)] = 0.3
    rate: PositiveFloat = 0.1
    scale: PositiveFloat = 1.0
    samples: PositiveInt = 500

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _Dendrites(self, context, gated_layers(context, "dendrites"))


class _Dendrites(Method):
    remembers = needs_gradient = True
    gathers = "the mean input of their context"

    def __init__(self, spec: Dendrites, context: Context, sizes: dict[str, int]):
        self._spec, self._context, self._sizes = spec, context, sizes
        self._contexts = Contexts(context, spec.samples)
        self._listens = sources(context)
        self._segments: dict[str, Tensor] = {}  # [neurons, segments, inputs] by layer

    def begin(self, view: LearnerView) -> None:
        self._contexts.begin(view)
        for place, (name, size) in enumerate(self._sizes.items()):
            if name not in self._segments:
                generator = self._context.seeds.generator("dendrites", epoch=place)
                n = self._contexts.means.shape[1]
                drawn = torch.randn(size, self._spec.segments, n, generator=generator)
                self._segments[name] = (self._spec.scale * drawn).to(self._contexts.means)

    def _unit(self, number: int) -> Tensor:
        """Return a context of length 1."""
        mean = self._contexts.means[number]
        unit: Tensor = mean / mean.norm().clamp_min(1e-12)
        return unit

    def _gates(self, number: int) -> dict[str, Tensor]:
        """Return how much each neuron is heard in a context."""
        gates = {}
        for name, segments in self._segments.items():
            a = (segments @ self._unit(number)).amax(1)
            count = max(round(self._spec.active * len(a)), 1)
            heard_of = torch.zeros_like(a).index_fill_(0, a.topk(count).indices, 1.0)
            gates[name] = a.sigmoid() * heard_of
        return gates

    def weights(self, weights: Tensors) -> Tensors:
        return heard(weights, self._gates(self._contexts.now), self._listens)

    @torch.no_grad()
    def gradients(self, gradients: Tensors) -> Tensors:
        found, stored = dict(gradients), self._context.network.weights()
        gates = self._gates(self._contexts.now)
        slopes = {name: torch.zeros_like(gate) for name, gate in gates.items()}
        for path, source in self._listens.items():
            key = f"{path}.weight"
            if source in gates and key in gradients:
                found[key] = gradients[key] * along_columns(gates[source], gradients[key])
                both = (gradients[key] * stored[key]).transpose(0, 1).flatten(1).sum(1)
                slopes[source] += both.view(len(slopes[source]), -1).sum(1)
        for name, slope in slopes.items():
            self._learn(name, gates[name], slope)
        return found

    def _learn(self, name: str, gate: Tensor, slope: Tensor) -> None:
        """Let the segments that spoke follow the loss."""
        unit, segments = self._unit(self._contexts.now), self._segments[name]
        best = (segments @ unit).argmax(1)
        push = self._spec.rate * slope * gate * (1 - gate)  # nothing where the gate is shut
        segments[torch.arange(len(best)), best] -= push[:, None] * unit

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None) -> Tensor:
        if not self._segments:
            generator = self._context.seeds.generator("dendrites-test")
            return self._context.network(x, generator=generator).logits  # type: ignore[no-any-return]
        gates = [self._gates(number) for number in range(len(self._contexts.names))]
        which = self._contexts.of(x, task)
        return logits_by_context(self._context, x, which, list(gates), "dendrites")

    def report(self) -> dict[str, object]:
        if not self._segments:
            return {}
        gates = self._gates(self._contexts.now)
        return {name: {"gate": distribution(gate)} for name, gate in gates.items()}

    def state_dict(self) -> State:
        return {"contexts": self._contexts.state_dict(), "segments": dict(self._segments)}

    def load_state_dict(self, state: State) -> None:
        self._contexts.load_state_dict(state["contexts"])
        held = state["segments"]
        self._segments = {name: held[name].clone() for name in self._sizes if name in held}

    def nbytes(self) -> int:
        return self._contexts.nbytes() + nbytes(*self._segments.values())
