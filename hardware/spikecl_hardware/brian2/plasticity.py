"""Pair-based plasticity as statements of synapses.

With the traces ``apre`` and ``apost``, in order of execution where ``coincident``::

    apre  += 1 at a presynaptic spike,  decays with tau_plus     (= 1 where ``nearest``)
    apost += 1 at a postsynaptic spike, decays with tau_minus
    down += a_minus apost  at a presynaptic spike
    up   += a_plus apre    at a postsynaptic spike
    weight_after = weight + (w_max - weight)^mu up - (weight - w_min)^mu down

within ``w_min`` and ``w_max``; otherwise the traces follow the sums. ``weight`` transmits and
stays; ``online`` it is what changes, at each spike, in place of the sums.

Source: Song, Miller & Abbott, Nature Neuroscience 3 (2000); Morrison, Diesmann & Gerstner,
Biological Cybernetics 98 (2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spikecl_hardware.brian2.description import Stdp

LEARNING = ("pre_trace", "post_trace", "pre_change", "post_change")
"""Pathways in order of execution; the last two come first where pairs of one step do not count."""


@dataclass(frozen=True)
class Plastic:
    """What synapses that change are told besides ``weight``."""

    rule: Stdp
    model: tuple[str, ...]
    on_pre: dict[str, str]
    on_post: dict[str, str]

    def set_constants(self, synapses: Any, brian: Any) -> None:
        """Give synapses the numbers of the rule."""
        rule = self.rule
        synapses.tau_plus, synapses.tau_minus = rule.tau_plus * brian.ms, rule.tau_minus * brian.ms
        for name in ("a_plus", "a_minus", "w_min", "w_max"):
            setattr(synapses, name, getattr(rule, name))


def plastic(rule: Stdp, transmit: str) -> Plastic:
    """Return the model and the pathways of a rule.

    Args:
        rule: The rule.
        transmit: What a presynaptic spike does to the neuron behind the synapse.
    """
    room, over = _power("w_max - weight", rule.mu), _power("weight - w_min", rule.mu)
    numbers = [f"{name} : 1 (shared, constant)" for name in ("a_plus", "a_minus", "w_min", "w_max")]
    times = [f"{name} : second (shared, constant)" for name in ("tau_plus", "tau_minus")]
    traces = [
        "dapre/dt = -apre/tau_plus : 1 (event-driven)",
        "dapost/dt = -apost/tau_minus : 1 (event-driven)",
    ]
    if rule.online:
        sums: list[str] = []
        down = f"weight = clip(weight - a_minus*apost{over}, w_min, w_max)"
        up = f"weight = clip(weight + a_plus*apre{room}, w_min, w_max)"
    else:
        sums = [
            "up : 1",
            "down : 1",
            f"weight_after = clip(weight + up{room} - down{over}, w_min, w_max) : 1",
        ]
        down, up = "down = down + a_minus*apost", "up = up + a_plus*apre"
    spike = "1" if rule.nearest else "{0} + 1"
    return Plastic(
        rule,
        (*traces, *sums, *numbers, *times),
        {"transmit": transmit, "pre_trace": f"apre = {spike.format('apre')}", "pre_change": down},
        {"post_trace": f"apost = {spike.format('apost')}", "post_change": up},
    )


def _power(distance: str, mu: float) -> str:
    """Return the factor by which a distance to a bound slows a change."""
    return "" if mu == 0 else f"*clip({distance}, 0, 1e9)**{mu!r}"
