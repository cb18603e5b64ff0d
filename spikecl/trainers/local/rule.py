"""What rules without error signals share: one pass forward, and a readout of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from spikecl.components import component
from spikecl.encoding import Loss
from spikecl.networks import AnyFactor, Network
from spikecl.streams.reveal import Reveal
from spikecl.trainers.credit import activity_of
from spikecl.trainers.local.needs import need_two_sides
from spikecl.trainers.local.seen import Seen, look
from spikecl.trainers.trainer import NOTHING, Call, Factors, Trainer

Made = tuple[dict[str, AnyFactor], Mapping[str, Tensor]]
"""Factors of hidden synapses, and what the rule remembers."""


class _Needs:
    """Labels; of a rule whose readout is left alone, nothing."""

    def __get__(self, rule: LocalRule | None, owner: type[LocalRule]) -> Reveal:
        alone = rule is not None and rule.readout == "none"
        return Reveal.NONE if alone else Reveal.LABELS


@component
class LocalRule(Trainer):
    """A change of each hidden synapse from what its two neurons did; no errors reach it.

    A rule prescribes a change ``dW`` of the stored weight, whose gradient is ``-dW``: one step of
    plain gradient descent with a learning rate of 1 makes it. Behind a gain g the effective weight
    changes by ``g dW``. Biases of hidden layers and what no synapse holds stay as they are.

    Args:
        readout: ``delta`` trains it by the delta rule, from its own error and what it transmitted;
            ``none`` gives it no gradient, and labels are not needed.
    """

    needs: ClassVar[Reveal] = cast(Reveal, _Needs())
    has_gradient: ClassVar[bool] = False

    readout: Literal["delta", "none"] = "delta"

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse networks without hidden neurons, and weights that are no plain numbers."""
        need_two_sides(self.name, network)

    @abstractmethod
    def learn(self, call: Call, seen: Seen) -> Made:
        """Return the factors of the hidden synapses, and variables that changed."""

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield the factors of all steps."""
        need_two_sides(self.name, call.network)
        seen = look(call, delta=self.readout == "delta")
        with torch.no_grad():
            made, variables = self.learn(call, seen)
        yield Factors(
            seen.loss,
            seen.output.logits.detach(),
            {path: {**made, **seen.readout}[path] for path in seen.taps},
            NOTHING,
            seen.output.statistics,
            seen.output.state,
            variables,
            activity_of(seen.taps),
        )
