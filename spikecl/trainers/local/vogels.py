"""Inhibitory plasticity that balances excitation (Vogels et al. 2011)."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, Strict
from torch import Tensor

from spikecl.components import PositiveFloat, component
from spikecl.encoding import Loss
from spikecl.errors import PairingError, suggest
from spikecl.networks import AnyFactor, Network
from spikecl.networks.reachable import warn_unreachable
from spikecl.trainers.local.needs import hidden_weights, need_spike_trains
from spikecl.trainers.local.rule import LocalRule, Made
from spikecl.trainers.local.seen import Meeting, Seen
from spikecl.trainers.local.traces import Trace
from spikecl.trainers.needs import layers_of
from spikecl.trainers.trainer import NOTHING, Call, Traits

Names = Annotated[tuple[Annotated[str, Strict()], ...], Field(min_length=1), Strict(False)]


@component
class Vogels(LocalRule):
    """Inhibitory synapses grow onto neurons that fire more than a target, and shrink onto others.

    The stored weight of an inhibitory synapse is -s, its strength s at least 0. With traces of
    spikes z, in order of execution at step t::

        x_post[t] = exp(-dt/tau) x_post[t-1] + z_post[t]
        s += rate (x_post[t] - alpha)             at a presynaptic spike
        s += rate exp(-dt/tau) x_pre[t-1]         at a postsynaptic spike
        x_pre[t]  = exp(-dt/tau) x_pre[t-1] + z_pre[t]

    with ``alpha = 2 target tau``. Spikes that know nothing of each other change it by ``nu_pre (2
    tau nu_post - alpha)`` in the mean: nothing where the neuron fires at its target. Spikes of one
    step are one pair.

    Excitatory synapses, and all that are not named, stay as they are.

    Deviation: weights change behind the last step of a batch, by the mean over its samples.

    Source: Vogels, Sprekeler, Zenke, Clopath & Gerstner, Science 334 (2011), equations 3 and 4 of
    its supplement.

    Args:
        readout: ``delta`` trains it by the delta rule; ``none`` leaves it alone.
        dt: Length of a step in milliseconds.
        synapses: Which hidden synapses inhibit: names or patterns (``*.recurrent``, ``*``).
        w_max: Largest strength; kept, as the least of 0, after each step of the optimiser.
        rate: Change of a pair without a lag.
        tau: Time constant of both traces in milliseconds.
        target: Firing rate that neurons are held at, in hertz.
    """

    traits: ClassVar[Traits] = Traits(
        time="yes: traces",
        space="yes",
        memory="T B N",
        exact="no gradient",
        network="spiking hidden layers with inhibitory synapses, spikes as input",
        source="Vogels et al. 2011",
    )

    dt: PositiveFloat = 1.0
    synapses: Names = ("*.recurrent",)
    w_max: PositiveFloat = 1.0
    rate: PositiveFloat = 1e-3
    tau: PositiveFloat = 20.0
    target: PositiveFloat = 5.0

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse a network without the synapses that are to learn."""
        LocalRule.check(self, network, x, loss)
        need_spike_trains(self.name, network, x)
        known = [name.removesuffix(".weight") for name in hidden_weights(network.weights())]
        onto = {name: layer for name, layer in layers_of(network).items() if self._reaches(name)}
        target = self.target / 1000 * self.dt
        what = f"trainer.{self.name}.target={self.target} hertz"
        warn_unreachable(onto, target, what, "lower it, or shorten dt or the refractory period")
        for wanted in self.synapses:
            if not fnmatch.filter(known, wanted):
                raise PairingError(
                    f"trainer '{self.name}' is to change inhibitory synapses '{wanted}', and no "
                    f"hidden synapse that learns has that name{suggest(wanted, known)}; name those "
                    f"that inhibit with trainer.{self.name}.synapses"
                )

    def _inhibits(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, wanted) for wanted in self.synapses)

    def _reaches(self, layer: str) -> bool:
        return self._inhibits(layer) or self._inhibits(f"{layer}.recurrent")

    def learn(self, call: Call, seen: Seen) -> Made:
        """Return the factors of the hidden synapses; those that do not inhibit have no change."""
        made: dict[str, AnyFactor] = {}
        for meeting in seen.meetings:
            if self._inhibits(meeting.path):
                made[meeting.path] = self.form(meeting)
            else:
                tap = meeting.tap
                made[meeting.path] = meeting.synapse.factor(tap.kept, tap.no_error())
        return made, NOTHING

    def form(self, meeting: Meeting) -> AnyFactor:
        """Return the factor of an inhibitory synapse: its weight is minus its strength."""
        pre, post = meeting.pre, meeting.post
        x_post = Trace(post, self.tau, self.dt, "all").after
        x_pre = Trace(pre, self.tau, self.dt, "all").before
        alpha = 2 * self.target / 1000 * self.tau
        x = torch.cat([pre, x_pre]).flatten(0, 1)
        delta = torch.cat([x_post - alpha, post]).flatten(0, 1)
        return meeting.factor(x, delta * (self.rate / (post.shape[1] * meeting.places)))

    def settle(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights of inhibitory synapses within their bounds."""
        found = hidden_weights(weights)
        return {
            name: weight.clamp(-self.w_max, 0)
            for name, weight in found.items()
            if self._inhibits(name.removesuffix(".weight"))
        }
