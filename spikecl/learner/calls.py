"""From a batch to what the trainer is called with: input, loss, errors and weights of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from spikecl.continual.host import Seen
from spikecl.encoding import Loss
from spikecl.learner.heads import Heads
from spikecl.learner.inputs import Inputs
from spikecl.learner.plan import Position
from spikecl.networks import Network
from spikecl.neurons import State as NeuronState
from spikecl.streams import Batch
from spikecl.trainers import Call, PerStep, Trainer

HOOKS = (
    "extend_batch",
    "weights",
    "logits",
    "output_loss",
    "errors",
    "fired",
    "answered",
    "factors",
    "gradients",
    "update",
    "after_step",
)


class Calls:
    """The network with its input, its loss, and what methods make of weights, logits and errors.

    Args:
        network: The network.
        trainer: Credit assignment.
        loss: Loss of the network's output.
        heads: Whose outputs compete.
        inputs: Samples as the network gets them.
        at: Where the learner stands.

    Attributes:
        hooks: What methods do within a step, by the hook's name, in order.
        variables: What the trainer remembers between batches.
    """

    def __init__(
        self,
        network: Network,
        trainer: Trainer,
        *,
        loss: Loss,
        heads: Heads,
        inputs: Inputs,
        at: Position,
    ):
        self.network, self.trainer, self.loss = network, trainer, loss
        self.heads, self.inputs, self.at = heads, inputs, at
        self.hooks: dict[str, Sequence[Callable[..., Any]]] = {name: () for name in HOOKS}
        self.variables: dict[str, Tensor] = {}

    def see(self, batch: Batch, epoch: int, step: int, *, prefix: str = "") -> Seen:
        """Return a batch as the network gets it, with its loss."""
        at = {"event": self.at.event, "epoch": epoch, "step": step}
        seen = self.with_loss(self.inputs.encode(batch.x, f"{prefix}encode", **at), batch)
        if not (self.network.draws or self.trainer.random):
            return seen
        return seen._replace(generator=self.inputs.generator(f"{prefix}network", **at))

    def with_loss(self, x: Tensor, batch: Batch, *, terms: bool = True) -> Seen:
        """Return encoded samples with the loss of their labels, and terms of methods."""

        def logits_of(outputs: Tensor) -> Tensor:
            logits = self.heads.train(outputs, batch)
            for change in self.hooks["logits"]:
                logits = change(logits)
            return logits

        def output_loss(outputs: Tensor) -> Tensor:
            logits = logits_of(outputs)
            assert batch.y is not None
            loss = self.loss(logits, batch.y)
            for term in self.hooks["output_loss"] if terms else ():
                loss = term(loss, logits, batch)
            return loss

        return Seen(x, batch, output_loss, logits=logits_of)

    def call(
        self,
        seen: Seen,
        weights: Mapping[str, Tensor] | None = None,
        state: Mapping[str, NeuronState] | None = None,
    ) -> Call:
        """Return what the trainer is called with."""
        return Call(
            self.network,
            seen.x,
            PerStep(seen.loss, self.loss.separable) if self.loss.per_step else seen.loss,
            weights,
            state=state,
            variables=self.variables,
            generator=seen.generator,
            labels=seen.batch.y,
        )

    def weights(self) -> dict[str, Tensor]:
        """Return the effective weights; none where no method has a hand in them."""
        if not self.hooks["weights"]:
            return {}
        weights: Mapping[str, Tensor] = self.network.weights()
        for change in self.hooks["weights"]:
            weights = change(weights)
        return dict(weights)

    def errors(self, fired: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Return the errors that methods add to those of hidden outputs."""
        total: dict[str, Tensor] = {}
        for send in self.hooks["errors"]:
            for name, error in send(fired, share).items():
                total[name] = total[name] + error if name in total else error
        return total
