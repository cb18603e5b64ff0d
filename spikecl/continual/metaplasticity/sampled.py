"""Weights that are drawn anew in each pass, and a step of their own in place of the optimiser's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from spikecl.continual.importance.importance import HoldAfter
from spikecl.continual.metaplasticity.gates import Gate
from spikecl.continual.method import Context, Factors, Tensors, overrides
from spikecl.errors import PairingError, UsageError
from spikecl.networks import form_gradients
from spikecl.storage import State
from spikecl.streams import Batch, Samples
from spikecl.streams.events import Part

_ADDING = ("gradients", "errors")


class Sampled(Gate):
    """Draws weights; what their gradients say is averaged over passes.

    The first pass of a step is the learner's own, at the weights that :meth:`draw` gives. Further
    ones are asked of the trainer, each with other weights: they begin at rest, and what encoder and
    neurons draw at random is what looks of this experience draw.

    Args:
        name: Of the method, for its generators.
        context: The run.
        names: Which parameters are drawn.
        passes: Of a step.
    """

    needs_gradient = True

    def __init__(self, name: str, context: Context, names: Sequence[str], passes: int):
        super().__init__(context, names)
        if passes > 1 and any(overrides(m, h) for m in context.before for h in _ADDING):
            raise PairingError(
                f"method '{name}' with samples={passes} averages gradients over passes, and what "
                "another method of this run adds to gradients would be in the first alone; use "
                "samples=1, or one of the two"
            )
        for method in context.before:
            if isinstance(method, HoldAfter):
                raise PairingError(
                    f"method '{name}' takes a step in place of the optimiser's, in which the one "
                    f"that method '{method.name}' with step='implicit' takes behind it would get "
                    "lost; use step='gradient'"
                )
        self.own = f"method '{name}' takes a step in place of the optimiser's"
        self.name, self.passes = name, passes
        self._count = 0  # sets of weights drawn so far
        self._noise: dict[str, Tensor] = {}
        self._said: dict[str, Tensor] = {}
        self._batch: Batch | None = None

    # ---- what a rule says -----------------------------------------------------------------------

    @abstractmethod
    def draw(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return drawn parameters by name, and what is to be known of the draw."""

    @abstractmethod
    def said(self, noise: Tensors, gradients: Tensors) -> dict[str, Tensor]:
        """Return what the gradients at drawn parameters say; it is averaged over passes."""

    @property
    def size(self) -> int:
        """Samples of the present batch."""
        assert self._batch is not None
        return len(self._batch.x)

    # ---- passes ---------------------------------------------------------------------------------

    def _generator(self, what: str) -> torch.Generator:
        return self._context.seeds.generator(f"{self.name}-{what}", step=self._count)

    @torch.no_grad()
    def weights(self, weights: Tensors) -> Tensors:
        drawn, self._noise = self.draw(self._generator("weights"))
        self._count += 1
        return {**weights, **drawn}

    def factors(self, factors: Factors, batch: Batch) -> Factors:
        self._batch = batch
        return factors

    def gradients(self, gradients: Tensors) -> Tensors:
        total = self.said(self._noise, gradients)
        for _ in range(self.passes - 1):
            for key, value in self._another_pass().items():
                total[key] = total[key] + value
        self._said = {key: value / self.passes for key, value in total.items()}
        self._batch = None
        return super().gradients(gradients)

    def _another_pass(self) -> dict[str, Tensor]:
        if self._context.host.portion() != 1:
            raise UsageError(
                f"method '{self.name}' with samples={self.passes} shows whole batches several "
                "times, and this trainer changes weights in every part of the steps (window); use "
                "samples=1, or a trainer that learns from all steps at once"
            )
        assert self._batch is not None
        x, y, uid = self._batch
        drawn, noise = self.draw(self._generator("weights"))
        self._count += 1
        weights = {**self._context.network.weights(), **drawn}
        samples, total = Samples((Part(x, y, uid),)), dict[str, Tensor]()
        for part in self._context.host.factors(samples, len(x), weights):
            share = len(part.logits) / len(x)
            formed = form_gradients(self._context.network, part.synapses, part.direct, weights)
            for name, gradient in formed.items():
                total[name] = total.get(name, 0) + share * gradient
        return self.said(noise, total)

    # ---- state ----------------------------------------------------------------------------------

    def update(self, update: Tensors) -> Tensors:
        made = super().update(update)
        self._said = {}
        return made

    def after_step(self) -> None:
        """Forget the draw behind the last part of a step, which no part uses."""
        self._noise = {}

    def state_dict(self) -> State:
        return {"count": self._count}

    def load_state_dict(self, state: State) -> None:
        self._count = state["count"]


class Voting(Sampled):
    """Tests by the mean logits of several draws, the same ones for every batch of a test."""

    votes = 1

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None) -> Tensor:
        generator, network = self._generator("test"), self._context.network
        total: Tensor | None = None
        for _ in range(self.votes):
            weights = {**network.weights(), **self.draw(generator)[0]}
            logits = network(x, weights=weights, generator=generator).logits
            total = logits if total is None else total + logits
        assert total is not None
        return total / self.votes
