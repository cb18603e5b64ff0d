"""Online spatio-temporal learning, and its form with projected targets."""

from __future__ import annotations

from typing import ClassVar

from spikecl.components import component
from spikecl.networks import Network, NoAutapses
from spikecl.trainers.eprop import Eligible
from spikecl.trainers.feedback import Feedback, Signal
from spikecl.trainers.needs import layers_of
from spikecl.trainers.trainer import Traits


@component
class Ostl(Eligible):
    """Spatial learning signals times eligibility by all that a neuron itself remembers.

    ``dE/dW = sum_t L[t] e[t]``: the signal ``L`` comes down through the layers within a step, the
    eligibility carries the whole of a neuron's own derivative from step to step: membrane, current,
    adaptation, the reset as far as the neuron lets gradients pass it, and a synapse onto itself.
    What reaches an earlier step through other neurons is left out. Of one feed-forward
    layer it is BPTT.

    Source: Bohnstingl et al., IEEE Transactions on Neural Networks and Learning Systems (2022).
    Deviation: of recurrent synapses the eligibility has those of a neuron onto itself; the
    authors' has all, at a cost that grows with the fourth power of the layer's size.

    Args:
        window: Steps at a time, forward in time; 0 takes all, which is fastest
            (:class:`Eligible`).
        update: Change weights once for a batch (``sequence``), or after each window.
        feedback: Through which weights learning signals come.
    """

    traits: ClassVar[Traits] = Traits(
        time="yes with window: traces",
        space="no; feedback 'direct' and 'global': yes",
        memory="window: B S (B N without reset gradient); else T B N",
        exact="one feed-forward layer",
        network="spiking, any neuron; dense, recurrent, convolutional",
        source="Bohnstingl et al. 2022",
    )

    feedback: Feedback = "symmetric"

    @property
    def signals(self) -> Signal:
        """Through which weights learning signals come."""
        return self.feedback

    def autapses(self, network: Network) -> bool:
        """Whether a neuron has a synapse onto itself."""
        return listens_to_itself(network)


@component
class Osttp(Eligible):
    """OSTL whose hidden layers hear the target in place of an error: no layer waits for another.

    ``L_l = -B_l^T y / (B T)`` with ``y`` the one-hot label and ``B_l`` fixed and random; the
    eligibility is that of :class:`Ostl`, the readout learns from its own error.

    Source: Ortner, Pes, Gentinetta, Frenkel & Pantazi, "Online spatio-temporal learning with
    target projection", IEEE AICAS (2023).

    Args:
        window: Steps at a time, forward in time; 0 takes all, which is fastest
            (:class:`Eligible`).
        update: Change weights once for a batch (``sequence``), or after each window.
    """

    has_gradient: ClassVar[bool] = False
    traits: ClassVar[Traits] = Traits(
        time="yes with window: traces",
        space="yes: a broadcast of the target",
        memory="window: B S (B N without reset gradient); else T B N",
        exact="no; the readout's is that of OSTL",
        network="spiking, any neuron; dense, recurrent, convolutional",
        source="Ortner et al. 2023",
    )

    @property
    def signals(self) -> Signal:
        """From targets, to every layer."""
        return "target"

    def autapses(self, network: Network) -> bool:
        """Whether a neuron has a synapse onto itself."""
        return listens_to_itself(network)


def listens_to_itself(network: Network) -> bool:
    """Whether some neuron has a synapse onto itself."""
    synapses = (layer.recurrent for layer in layers_of(network).values())
    found = (s for s in synapses if s is not None)
    return any(not any(isinstance(m, NoAutapses) for m in s.maps) for s in found)
