"""snnTorch networks become ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from spikecl.encoding.decoders import Decoder
from spikecl.interop.parts import Neurons, OneToOne, Part
from spikecl.interop.site import Modules, Site, ends, number, sites
from spikecl.interop.surrogates import identify
from spikecl.interop.torch_in import assemble, copied, read_torch, with_tensors, with_values
from spikecl.networks import Linear, Network
from spikecl.neurons import CUBA, LIF, Arctan, Reset


class Rule(NamedTuple):
    """When a reset comes, and whether its gradient is cut."""

    reset: Reset
    time: Literal["same", "next", "after"]
    detach: bool


_SUBTRACT = {("subtract", True): Rule(Reset.SOFT, "next", True)}
_NONE = {("none", True): Rule(Reset.NONE, "same", True)}
_EARLY = {("zero", True): Rule(Reset.ZERO, "next", True)}
_LATE = {("zero", True): Rule(Reset.ZERO, "after", True)}
_AT_ONCE = {
    ("zero", False): Rule(Reset.ZERO, "same", False),
    ("none", False): Rule(Reset.NONE, "same", True),
}
RULES: Mapping[str, Mapping[tuple[str, bool], Rule]] = {
    "Leaky": _SUBTRACT | _EARLY | _NONE | _AT_ONCE,
    "Synaptic": _SUBTRACT | _LATE | _NONE | _AT_ONCE,
    "RLeaky": _SUBTRACT | _LATE | _NONE | _AT_ONCE,
    "RSynaptic": _SUBTRACT | _LATE | _NONE,
    "Lapicque": _SUBTRACT | _LATE | _NONE,
}
"""What ``reset_mechanism`` and ``reset_delay`` of each neuron mean here."""

_MECHANISMS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
THEIRS = {"beta": "beta", "alpha": "alpha", "v_th": "threshold"}
_OTHERS = {
    "Alpha": "its membrane is the difference of two currents",
    "DeltaLeaky": "it fires at changes of the membrane",
    "LinearLeaky": "its membrane has no reset and is convolved over all steps at once",
    "StateLeaky": "its membrane has no reset and is convolved over all steps at once",
    "LeakyParallel": "its membrane is rectified and has no reset",
    "AssociativeLeaky": "its state is a matrix",
    "SLSTM": "its cells have gates",
    "SConv2dLSTM": "its cells have gates",
}


def from_snntorch(
    net: Modules, *, decoder: Decoder | None = None, spikes_only: bool = False
) -> Network:
    """Return a network with the spikes of a snnTorch network, from rest, and its gradients.

    Weights are copied; images are channel-first, [T, B, C, H, W]. ``Output.steps`` has the last
    layer at every step, :meth:`Network.record` the others.

    Args:
        net: ``nn.Sequential``, or modules in the order in which they are called: a list, or a
            mapping whose names the layers get.
        decoder: From the last layer's output [T, B, C] to logits; by default the mean.
        spikes_only: Take neurons whose spikes are the same but whose gradients are not, too; a
            derivative that is unknown here becomes ``Arctan()``.

    Raises:
        InteropError: A module has no equal; it is named with the difference and what to do.

    Example:
        >>> import snntorch
        >>> net = [nn.Linear(4, 3), snntorch.Leaky(beta=0.5)]
        >>> from_snntorch(net)(torch.ones(6, 1, 4)).steps.shape
        torch.Size([6, 1, 3])
    """
    found = sites(net, chains=(nn.Sequential,), spikes_only=spikes_only)
    return assemble(found, _read, decoder)


def _read(site: Site) -> list[Part]:
    kind = type(site.part)
    if not kind.__module__.startswith("snntorch."):
        return read_torch(site)
    if kind.__name__ not in RULES:
        difference = _OTHERS.get(kind.__name__, "has no counterpart here")
        site.refuse(difference, f"use {', '.join(RULES)}")
    m: Any = site.part
    _check(site, m)
    rule = _rule(site, m)
    strict, surrogate = identify(m.spike_grad)
    if strict is None:
        site.refuse("its spike_grad is no step from 0 to 1 at the threshold", "use another")
    values, learns = _values(site, m)
    recurrent = _recurrent(site, m)
    if surrogate is None:  # last: spikes_only would not help against the others
        site.learns_otherwise(
            "the derivative of its spike_grad is none of spikecl.neurons.SURROGATES",
            "give it another, such as snntorch.surrogate.atan()",
        )
    neuron = (CUBA if "alpha" in values else LIF)(
        **values,
        reset=rule.reset,
        reset_time=rule.time,
        detach_reset=rule.detach,
        strict=strict,
        surrogate=surrogate or Arctan(),
    )
    return [Neurons(with_values(neuron, learns), recurrent)]


def _values(site: Site, m: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return parameters, and those that learn."""
    values: dict[str, Any] = {}
    learns: dict[str, Tensor] = {}
    lapicque = type(m).__name__ == "Lapicque"
    for ours, theirs in THEIRS.items():
        if hasattr(m, theirs) and not (lapicque and ours == "beta"):
            tensor = getattr(m, theirs)
            value = tensor.detach() if ours == "v_th" else tensor.detach().clamp(0, 1)
            values[ours] = number(value)
            if isinstance(tensor, nn.Parameter):
                learns[ours] = value.clone().requires_grad_(tensor.requires_grad)
    return values | (_lapicque(site, m) if lapicque else {}), learns


def _check(site: Site, m: Any) -> None:
    """Refuse options that no neuron here has."""
    if m.inhibition:
        site.refuse("inhibition lets only the strongest neuron fire", "use inhibition=False")
    if m.state_quant:
        site.refuse("state_quant rounds the membrane at every step", "use state_quant=False")
    factor = m.graded_spikes_factor
    if isinstance(factor, nn.Parameter) or bool((factor != 1).any()):
        site.refuse(
            "graded_spikes_factor scales its spikes, here they are 0 or 1",
            "multiply the weights behind it",
        )
    if bool((m.threshold < 0).any()):
        site.refuse(
            "a membrane at rest is above a negative threshold, and is reset before the first step",
            "use a threshold of at least 0",
        )


def _rule(site: Site, m: Any) -> Rule:
    mechanism = _MECHANISMS[m.state_function.__name__]
    if mechanism != ("subtract", "zero", "none")[int(m.reset_mechanism_val)]:
        site.refuse(
            f"reset_mechanism was changed, and it still computes '{mechanism}'", "build it anew"
        )
    kind, delay = type(m).__name__, getattr(m, "reset_delay", True)
    rule = RULES[kind].get((mechanism, delay))
    if _lowers(m):
        return Rule(Reset.SOFT, "same", False)
    if rule is None and kind == "RSynaptic":
        site.refuse(
            "reset_delay=False resets a copy of its membrane, or fails (snnTorch 1.0)",
            "use reset_delay=True",
        )
    if rule is None:
        site.refuse(
            "with reset_mechanism='subtract' and reset_delay=False, a membrane that is still above "
            "its threshold after a reset is lowered before the next spike and raised after it",
            "use reset_delay=True or reset_mechanism='zero'",
        )
    return rule


def lowering(m: Any) -> Any:
    """Return what each spike adds to the next membrane if it is reset softly in its own step."""
    return -m.beta.detach().clamp(0, 1) * m.threshold.detach()


def _lowers(m: Any) -> bool:
    """Whether a neuron's soft reset in the same step is written as a connection onto itself."""
    v = getattr(getattr(m, "recurrent", None), "V", None)
    if type(m).__name__ != "RLeaky" or not isinstance(v, Tensor):
        return False
    learns = any(isinstance(t, nn.Parameter) for t in (v, m.beta, m.threshold))
    mechanism = _MECHANISMS[m.state_function.__name__]
    return not learns and mechanism == "none" and torch.equal(v, lowering(m))


def _lapicque(site: Site, m: Any) -> dict[str, Any]:
    """Return decay and scale: ``u = (1 - dt/RC) u + dt/C x``."""
    dt, r, c = (number(value) for value in (m.time_step, m.R, m.C))
    decay = 1 - dt / (r * c)
    if not 0 <= (low := ends(decay)[0]) <= ends(decay)[1] <= 1:
        site.refuse(f"its decay 1 - time_step/(R C) is {low:g}", "use a time_step of 0 to R C")
    if ends(r) != (1, 1):
        site.refuse(
            f"R={ends(r)[0]:g} scales its input by R (1 - decay), here by 1 - decay",
            f"multiply its synapse's weights and bias by R and use R=1, C={ends(r * c)[0]:g}",
        )
    if isinstance(m.beta, nn.Parameter):
        site.learns_otherwise("learn_beta: C keeps the graph to beta of its construction", "fix it")
    return {"beta": decay, "scale_input": True}


def _recurrent(site: Site, m: Any) -> Linear | None:
    own = getattr(m, "recurrent", None)
    if own is None or _lowers(m):
        return None
    if type(own) is nn.Linear:
        made = Linear(own.in_features, own.out_features, bias=own.bias is not None)
        return cast(Linear, with_tensors(made, weight=own.weight, bias=own.bias))
    if isinstance(own, nn.Module) and hasattr(own, "V"):
        v = torch.as_tensor(own.V)
        if site.features is None or v.numel() not in (1, site.features):
            site.refuse(
                "all_to_all=False: the number of its neurons is not known",
                "put it right behind an nn.Linear with as many outputs",
            )
        return OneToOne(site.features, copied(v.reshape(-1)))
    site.refuse(
        f"recurrent is {type(own).__name__}, here it is dense",
        "use linear_features behind nn.Flatten",
    )
