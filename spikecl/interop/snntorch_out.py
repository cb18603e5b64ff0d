"""Our networks become snnTorch's."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, cast

import torch
from torch import nn

from spikecl.interop.parts import OneToOne
from spikecl.interop.site import Site, ends, library
from spikecl.interop.snntorch_in import RULES, THEIRS, Rule, lowering
from spikecl.interop.surrogates import SpikeGrad
from spikecl.interop.torch_in import copied, with_tensors
from spikecl.interop.torch_out import effective, learned, modules
from spikecl.networks import Layer, Linear, Network
from spikecl.neurons import CUBA, IF, LIF, PLIF, Rectified, Reset, Smooth


def to_snntorch(network: Network, *, spikes_only: bool = False) -> nn.Sequential:
    """Return ``nn.Sequential`` of snnTorch neurons with the network's spikes and gradients.

    Neurons keep their state (``init_hidden=True``): call the result once per step, and
    ``reset_mem()`` of every neuron before a new sample. It is in evaluation mode: dropout and batch
    normalisation train otherwise there.

    Args:
        network: A chain of layers. Weights are copied; images are channel-first there.
        spikes_only: Write neurons whose spikes are the same but whose gradients are not, too, and
            the weights that maps make in place of those that learn.

    Raises:
        InteropError: A layer has no equal; it is named with the difference and what to do.

    Example:
        >>> from spikecl.networks import SpikingMlp
        >>> net = to_snntorch(SpikingMlp(hidden=(3,), neuron=LIF.snntorch(0.5)).build((4,), 2))
        >>> [type(module).__name__ for module in net]
        ['Flatten', 'Linear', 'Leaky', 'Linear']
        >>> net(torch.ones(1, 4)).shape
        torch.Size([1, 2])
    """
    with torch.random.fork_rng(devices=()):  # constructors draw weights that are not used
        made = OrderedDict(modules(network, _write, spikes_only=spikes_only))
    return nn.Sequential(made).eval().to(next(network.parameters()).device)


def _write(site: Site, layer: Layer, drive: list[nn.Module]) -> list[nn.Module]:
    if layer.neuron is None:
        return drive
    n, onto = layer.neuron.bound(), layer.recurrent
    if isinstance(n, Rectified) and onto is None:
        return [*drive, nn.ReLU()]
    if type(n) not in (LIF, IF, PLIF, CUBA):
        site.refuse("snnTorch has no such model", "use LIF, IF, PLIF or CUBA")
    assert isinstance(n, LIF)
    _check(site, n)
    second = isinstance(n, CUBA)
    if n.scale_input and (second or onto is not None):
        site.refuse(
            "scale_input: in snnTorch only Lapicque does that, without synaptic current or "
            "recurrence",
            "use scale_input=False",
        )
    if n.scale_input:
        return [*drive, _lapicque(site, layer, n)]
    if onto is not None:
        return [*drive, _recurrent(site, layer, n, onto, drive)]
    if n.reset is Reset.SOFT and n.reset_time == "same" and not second and ends(n.beta) != (1, 1):
        return [*drive, _lowered(site, layer, n)]
    return [*drive, _build(site, layer, n, "Synaptic" if second else "Leaky")]


def _check(site: Site, n: LIF) -> None:
    """Refuse options that no neuron there has."""
    if not n.plain:
        site.refuse("noise, escape firing and refractory periods do not exist there", "do without")
    if isinstance(n.surrogate, Smooth):
        site.refuse("Smooth is no spike", "use the surrogate itself")
    if ends(n.v_rest) != (0, 0):
        site.refuse("v_rest: membranes rest at 0 there", "use v_rest=0")
    lowest, _ = ends(n.v_th)
    if lowest < 0 or (lowest == 0 and not n.strict):
        site.refuse(
            f"v_th={lowest:g}: a membrane at rest fires, and is reset there before the first step",
            "use a threshold above 0",
        )


def _reset(site: Site, n: LIF, kind: str) -> tuple[str, bool]:
    """Return ``reset_mechanism`` and ``reset_delay``."""
    ours = _normal(Rule(n.reset, n.reset_time, n.detach_reset))
    if n.reset is Reset.VALUE:
        if ends(n.v_reset) != (0, 0):
            site.refuse("v_reset: membranes are reset to 0 there, or lowered", "use v_reset=0")
        ours = _normal(ours._replace(reset=Reset.ZERO))
    if n.reset is Reset.SOFT and n.reset_time == "same" and ends(n.beta) == (1, 1):
        ours = ours._replace(time="next")  # without leak the order does not matter
    rules = {option: _normal(rule) for option, rule in RULES[kind].items()}
    for option, rule in rules.items():
        if rule == ours:
            return option
    for option, rule in rules.items():
        if rule[:2] == ours[:2]:
            site.learns_otherwise(
                f"detach_reset={n.detach_reset}, snnTorch's {kind} has {rule.detach} here",
                f"use detach_reset={rule.detach}",
            )
            return option
    known = dict.fromkeys(f"{r.reset.name} with '{r.time}'" for r in RULES[kind].values())
    site.refuse(
        f"snnTorch's {kind} has no Reset.{n.reset.name} with reset_time='{n.reset_time}'",
        f"use one that it has: {', '.join(known)}",
    )


def _normal(rule: Rule) -> Rule:
    """Return one of several equal rules."""
    if rule.reset is Reset.NONE:
        return Rule(Reset.NONE, "same", True)
    if rule.reset is Reset.SOFT:
        return rule if rule.time == "same" else rule._replace(time="next")
    return rule if rule.time == "after" else rule._replace(time="same")


def _build(site: Site, layer: Layer, n: LIF, kind: str, **options: Any) -> Any:
    """Return a neuron of a kind; parameters get the type and the device of the weights."""
    mechanism, delay = _reset(site, n, kind)
    names = [name for name in THEIRS if hasattr(n, name) and (kind, name) != ("Lapicque", "beta")]
    like, found = layer.synapse.weight, learned(site, layer, names)
    for ours in names:
        value = torch.as_tensor(getattr(n, ours), dtype=like.dtype, device=like.device)
        options |= {THEIRS[ours]: value.detach().clone(), f"learn_{THEIRS[ours]}": ours in found}
    if kind != "Lapicque":
        options["reset_delay"] = delay
    grad = SpikeGrad(n.surrogate, n.strict)
    made = getattr(library("snntorch"), kind)(
        **options, reset_mechanism=mechanism, spike_grad=grad, init_hidden=True
    )
    for ours in found:
        getattr(made, THEIRS[ours]).requires_grad_(found[ours].requires_grad)
    return made


def _lapicque(site: Site, layer: Layer, n: LIF) -> nn.Module:
    made = _build(site, layer, n, "Lapicque", R=1.0, C=1.0)
    like = layer.synapse.weight
    beta = torch.as_tensor(n.beta, dtype=like.dtype, device=like.device).detach()
    made.R, made.C, made.beta = torch.ones_like(beta), 1 / (1 - beta), torch.exp(beta - 1)
    return cast(nn.Module, made)


def _lowered(site: Site, layer: Layer, n: LIF) -> nn.Module:
    """Return a neuron that no spike resets: each lowers the next membrane by ``beta v_th``.

    That is a soft reset in the same step: ``beta (u - v_th s) + x = beta u + x - beta v_th s``.
    """
    assert layer.neuron is not None
    if n.detach_reset or layer.neuron.ranges:
        site.learns_otherwise(
            "a soft reset in the same step becomes a constant connection of each neuron onto "
            "itself, and its gradient is kept",
            "use reset_time='next'",
        )
    bare = dataclasses.replace(n, reset=Reset.NONE)
    made = _build(site, layer, bare, "RLeaky", all_to_all=False, learn_recurrent=False)
    made.V = made.recurrent.V = lowering(made)
    return cast(nn.Module, made)


def _recurrent(site: Site, layer: Layer, n: LIF, onto: Linear, drive: list[nn.Module]) -> nn.Module:
    kind = "RSynaptic" if isinstance(n, CUBA) else "RLeaky"
    if not any(isinstance(module, (nn.Linear, nn.Flatten)) for module in drive):
        site.refuse(
            "all its maps listen to each other, there a dense recurrence sees one axis",
            "flatten the current",
        )
    if type(onto) is OneToOne:
        v, learns = copied(onto.weight), onto.weight.requires_grad
        one = {"all_to_all": False, "V": v, "learn_recurrent": learns}
        return cast(nn.Module, _build(site, layer, n, kind, **one))
    made = _build(site, layer, n, kind, linear_features=len(onto.weight))
    weight = effective(site, onto)
    own = nn.Linear(len(weight), len(weight), bias=onto.bias is not None)
    made.recurrent = with_tensors(own, weight=weight, bias=onto.bias)
    return cast(nn.Module, made)
