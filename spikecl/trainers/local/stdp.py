"""Spike-timing-dependent plasticity of pairs of spikes."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from spikecl.components import PositiveFloat, component
from spikecl.trainers.local.timing import Pairs, TimingRule
from spikecl.trainers.local.traces import Trace
from spikecl.trainers.trainer import Traits


@component
class Stdp(TimingRule):
    """Pair-based spike-timing-dependent plasticity.

    With spikes ``z``, in order of execution at step t::

        x_pre[t]  = exp(-dt/tau_plus) x_pre[t-1] + z_pre[t]
        x_post[t] = exp(-dt/tau_minus) x_post[t-1] + z_post[t]
        dw += a_plus f+(w) x_pre[t] z_post[t] - a_minus f-(w) x_post[t] z_pre[t]

    ``f+ = (w_max - w)^mu``, ``f- = (w - w_min)^mu``, both 1 for ``mu = 0``. So a pair with the
    presynaptic spike D ms earlier gains ``a_plus exp(-D/tau_plus)``, with the other order it loses
    ``a_minus exp(-D/tau_minus)``. Spikes of one step are a pair in both orders; with
    ``coincident=False`` the products are taken before the traces, and they are none.

    What shares a weight (the samples of a batch, the places of a map) changes it by the mean of
    what each would.

    Deviation: weights change behind the last step of a batch, not at each spike.

    Source: Song, Miller & Abbott, Nature Neuroscience 3 (2000), with their time constants and ratio
    of 1.05; the power mu: Gütig et al., Journal of Neuroscience 23 (2003); traces and nearest
    neighbours: Morrison, Diesmann & Gerstner, Biological Cybernetics 98 (2008).

    Args:
        readout: ``delta`` trains it by the delta rule; ``none`` leaves it alone.
        dt: Length of a step in milliseconds.
        pairing: Which spikes a trace remembers: ``all``, or the last one (``nearest``).
        mu: How changes depend on the weight: 0 is additive, 1 multiplicative.
        w_min: Least weight of a hidden synapse, kept after each step of the optimiser.
        w_max: Largest.
        a_plus: Gain of a pair without a lag.
        a_minus: Its loss.
        tau_plus: Time constant of the presynaptic trace in milliseconds.
        tau_minus: Of the postsynaptic one.
        coincident: Spikes of one step are a pair: traces are updated before the products.
    """

    traits: ClassVar[Traits] = Traits(
        time="yes: traces",
        space="yes",
        memory="T B N",
        exact="no gradient",
        network="spiking hidden layers, spikes as input",
        source="Song et al. 2000",
    )

    a_plus: float = 0.005
    a_minus: float = 0.00525
    tau_plus: PositiveFloat = 20.0
    tau_minus: PositiveFloat = 20.0
    coincident: bool = True

    def pairs(self, pre: Tensor, post: Tensor) -> Pairs:
        """Return traces and spikes."""
        x_pre = Trace(pre, self.tau_plus, self.dt, self.pairing)
        x_post = Trace(post, self.tau_minus, self.dt, self.pairing)
        if self.coincident:
            return Pairs(x_pre.after, self.a_plus * post, pre, self.a_minus * x_post.after)
        return Pairs(x_pre.before, self.a_plus * post, pre, self.a_minus * x_post.before)
