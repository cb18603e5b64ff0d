"""What every trainer offers: factors of the gradient of each synapse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from torch import Tensor

from spikecl.encoding import OutputLoss
from spikecl.networks import Factor, Network
from spikecl.streams.reveal import Reveal


class Factors(NamedTuple):
    """Result of one call of a trainer.

    Args:
        loss: Scalar loss of the batch, detached.
        logits: Logits [B, classes] before the loss, detached.
        synapses: Factor by layer name.
        direct: Gradients by parameter name of parameters that have no factor.
    """

    loss: Tensor
    logits: Tensor
    synapses: Mapping[str, Factor]
    direct: Mapping[str, Tensor] = MappingProxyType({})


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
    ) -> Factors:
        """Return factors for an encoded batch [T, B, *features].

        Args:
            network: The network; nothing is left on it.
            x: Encoded batch.
            output_loss: From logits [B, classes] to a scalar.
            weights: Effective weights to run with, in place of the network's own.
        """
