"""Hebb's rule."""

from __future__ import annotations

from typing import ClassVar

from spikecl.components import component
from spikecl.networks import AnyFactor
from spikecl.trainers.local.rates import RateRule, Rows
from spikecl.trainers.local.seen import Meeting
from spikecl.trainers.trainer import Call, Traits


@component
class Hebb(RateRule):
    """Hebb's rule: ``dW = y x^T``, the mean over what is seen.

    Nothing holds the weights: they grow without bound.

    Source: Hebb, The Organization of Behavior (1949).

    Args:
        readout: ``delta`` trains it by the delta rule; ``none`` leaves it alone.
        activity: Means over the steps of a sample (``rate``), or each ``step`` for itself.
        post: What ``y`` is: the ``output`` of the neurons, or the ``current`` that drives them.
    """

    traits: ClassVar[Traits] = Traits(
        time="yes",
        space="yes",
        memory="T B N",
        exact="no gradient",
        network="any with hidden neurons",
        source="Hebb 1949",
    )

    def form(self, call: Call, meeting: Meeting, rows: Rows) -> AnyFactor:
        """Return the factor of a synapse."""
        return meeting.factor(rows.x, -rows.each * rows.y)
