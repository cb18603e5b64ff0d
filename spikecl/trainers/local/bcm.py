"""The rule of Bienenstock, Cooper and Munro."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import component
from spikecl.networks import AnyFactor, Network
from spikecl.seeds import Seeds
from spikecl.trainers.local.rates import RateRule, Rows
from spikecl.trainers.local.rule import Made
from spikecl.trainers.local.seen import Meeting, Seen
from spikecl.trainers.needs import layers_of
from spikecl.trainers.trainer import Call, Traits

PREFIX = "theta."


@component
class Bcm(RateRule):
    """BCM: a neuron more active than its threshold gains, one less active loses.

    In order of execution, means over what is seen::

        dW     = y (y - theta) x^T
        theta <- theta + rate (mean(y^2) - theta)

    The threshold of each neuron (or channel) starts at 0. It has to move faster than the weights
    and slower than the input: of n patterns that come equally often a neuron then chooses one, and
    answers it with ``y = theta = n``.

    Source: Bienenstock, Cooper & Munro, Journal of Neuroscience 2 (1982); ``theta = E[y^2]``:
    Intrator & Cooper, Neural Networks 5 (1992).

    Args:
        readout: ``delta`` trains it by the delta rule; ``none`` leaves it alone.
        activity: Means over the steps of a sample (``rate``), or each ``step`` for itself.
        post: What ``y`` is: the ``output`` of the neurons, or the ``current`` that drives them.
        rate: Share of a batch in the threshold.
    """

    traits: ClassVar[Traits] = Traits(
        time="yes",
        space="yes",
        memory="T B N",
        exact="no gradient",
        network="any with hidden neurons",
        source="Intrator & Cooper 1992",
    )

    rate: Annotated[float, Field(gt=0, le=1)] = 0.1

    def variables(self, network: Network, seeds: Seeds, x: Tensor) -> dict[str, Tensor]:
        """Return the thresholds of each layer: 0."""
        found = {}
        for name in list(layers_of(network))[:-1]:
            weight = network.synapses[name].weight.detach()
            if layers_of(network)[name].neuron is not None:
                found[PREFIX + name] = weight.new_zeros(len(weight))
        return found

    def form(self, call: Call, meeting: Meeting, rows: Rows) -> AnyFactor:
        """Return the factor of a synapse."""
        theta = call.variables[PREFIX + meeting.target]
        theta = theta.view(-1, *[1] * (rows.y.dim() - 2))
        return meeting.factor(rows.x, -rows.each * rows.y * (rows.y - theta))

    def learn(self, call: Call, seen: Seen) -> Made:
        """Return the factors of the hidden synapses, and the new thresholds."""
        made, _ = RateRule.learn(self, call, seen)
        moved = {}
        for meeting in seen.meetings:
            name = PREFIX + meeting.target
            moved[name] = torch.lerp(call.variables[name], self.rows(meeting).power, self.rate)
        return made, moved
