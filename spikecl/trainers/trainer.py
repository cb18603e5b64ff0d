"""What every trainer offers: factors of the gradient of each synapse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from spikecl.encoding import OutputLoss
from spikecl.networks import AnyFactor, Network, Output
from spikecl.neurons import State
from spikecl.streams.reveal import Reveal


class Factors(NamedTuple):
    """Result of one call of a trainer.

    Args:
        loss: Scalar loss of the batch, detached.
        logits: Logits [B, classes] before the loss, detached.
        synapses: Factor by synapse.
        direct: Gradients by parameter name of parameters that have no factor; one that nothing
            depends on (a fixed delay) has none.
        statistics: New running statistics of normalisation by name.
        state: State of the neurons after the last step by path.
    """

    loss: Tensor
    logits: Tensor
    synapses: Mapping[str, AnyFactor]
    direct: Mapping[str, Tensor] = MappingProxyType({})
    statistics: Mapping[str, Tensor] = MappingProxyType({})
    state: Mapping[str, State] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PerStep:
    """An output loss that takes the outputs at every step [T, B, classes] instead of logits."""

    loss: OutputLoss

    def __call__(self, steps: Tensor) -> Tensor:
        """Return the scalar loss."""
        return self.loss(steps)


def loss_of(output: Output, output_loss: OutputLoss) -> Tensor:
    """Return the loss of a pass, from what the loss wants to see."""
    return output_loss(output.steps if isinstance(output_loss, PerStep) else output.logits)


class Trainer(ABC):
    """A rule of credit assignment: a pure call from a batch to factors."""

    __slots__ = ()
    needs: ClassVar[Reveal] = Reveal.LABELS

    @abstractmethod
    def factors(
        self,
        network: Network,
        x: Tensor,
        output_loss: OutputLoss,
        weights: Mapping[str, Tensor] | None = None,
        *,
        state: Mapping[str, State] | None = None,
        generator: torch.Generator | None = None,
        training: bool = True,
    ) -> Factors:
        """Return factors for an encoded batch [T, B, *features].

        Args:
            network: The network; nothing is left on it.
            x: Encoded batch.
            output_loss: From logits [B, classes] to a scalar; a :class:`PerStep` gets the outputs
                at every step instead.
            weights: Effective weights to run with, in place of the network's own.
            state: State of the neurons to start from; ``None`` is rest.
            generator: Where dropout and random neurons draw from.
            training: Drop units, and normalise by the statistics of the batch.
        """
