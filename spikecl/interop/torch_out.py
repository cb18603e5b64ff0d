"""Layers become modules of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikecl.interop.parts import Currents, Flatten
from spikecl.interop.site import Site
from spikecl.interop.torch_in import with_tensors
from spikecl.networks import (
    AvgPool2d,
    BatchNorm,
    Channels,
    Conv2d,
    Dropout,
    Layer,
    Linear,
    MaxPool2d,
    Network,
    Synapse,
)
from spikecl.networks.norm import EPSILON

Write = Callable[[Site, Layer, list[nn.Module]], list[nn.Module]]


def modules(
    network: Network, write: Write, *, spikes_only: bool
) -> Iterator[tuple[str, nn.Module]]:
    """Return the modules of a chain of layers, with names.

    Args:
        network: The network.
        write: From a layer, and the modules of its synapse and currents, to these and the neurons.
        spikes_only: See :class:`Site`.
    """
    source, flat, taken = "input", False, set[str]()
    for name, module in network.layers.items():
        layer = cast(Layer, module)
        site = Site(name, layer.neuron.neuron if layer.neuron else layer.synapse, spikes_only)
        if layer.inputs != (source,) or layer.currents:
            site.refuse(
                f"listens to {[*layer.inputs, *layer.currents]}, there each module listens to the "
                f"one before it ('{source}')",
                "use a network without shortcuts",
            )
        parts = [made for stage in layer.stages() for made in _stage(site, stage)]
        if isinstance(layer.synapse, Linear) and not flat:
            parts.append(nn.Flatten())
        flat = isinstance(layer.synapse, Linear)
        norms = layer.norm if isinstance(layer.norm, Currents) else [layer.norm]
        drive = [synapse(site, layer.synapse)]
        for part in norms:
            drive += [] if part is None else _stage(site, part, dense=flat)
            flat = flat or isinstance(part, Flatten)
        parts += write(site, layer, drive)
        for made in parts:
            key = name if made is drive[0] else f"{name}_{type(made).__name__.lower()}"
            while key in taken:  # two pools, before and behind a synapse
                key += "_"
            taken.add(key)
            yield key, made
        source = name


def synapse(site: Site, own: Synapse) -> nn.Module:
    """Return nn.Linear or nn.Conv2d."""
    bias, weight = own.bias is not None, effective(site, own)
    made: nn.Module
    if type(own) is Linear:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    elif type(own) is Conv2d:
        kernel, stride, padding = own.geometry
        made = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, stride, padding, bias=bias)
    else:
        site.refuse(f"{type(own).__name__} has no counterpart there", "use Linear or Conv2d")
    return cast(nn.Module, with_tensors(made, weight=weight, bias=own.bias))


def effective(site: Site, own: Synapse, allowed: tuple[object, ...] = ()) -> Tensor:
    """Return the weight that a synapse uses, with the learning of the one it stores."""
    if not own.maps or own.maps == allowed:
        return own.weight
    names = ", ".join(type(each).__name__ for each in own.maps)
    site.learns_otherwise(
        f"{names} stands between the weight that learns and the one that is used",
        "use a synapse without maps",
    )
    with torch.no_grad():
        weight = own.effective(dict(own.named_parameters()))
    return weight.requires_grad_(own.weight.requires_grad)


def _stage(site: Site, part: Any, *, dense: bool = False) -> list[nn.Module]:
    """Return the modules of a change of activity or current."""
    if isinstance(part, Channels):  # images are channel-first there
        return []
    if isinstance(part, AvgPool2d):
        return [nn.AdaptiveAvgPool2d(1) if part.size is None else nn.AvgPool2d(part.size)]
    if isinstance(part, MaxPool2d):
        return [nn.MaxPool2d(part.size)]
    if isinstance(part, Flatten):
        return [nn.Flatten()]
    if isinstance(part, Dropout):
        return [nn.Dropout(part.p)]
    if isinstance(part, BatchNorm):
        made = (nn.BatchNorm1d if dense else nn.BatchNorm2d)(
            len(part.mean), eps=EPSILON, momentum=part.momentum
        )
        made.running_mean, made.running_var = part.mean.clone(), part.variance.clone()
        return [with_tensors(made, weight=part.gain, bias=part.shift)]
    site.refuse(f"{type(part).__name__} has no counterpart there", "use a network without it")


def learned(site: Site, layer: Layer, allowed: Collection[str]) -> dict[str, nn.Parameter]:
    """Return the values of what the neurons learn; refuse what learns on one side alone."""
    cells = layer.neuron
    assert cells is not None
    bound, found = cells.bound(), {}
    for name in cells.ranges:
        if name not in allowed:
            site.learns_otherwise(
                f"{name} learns, there it is constant", f"build it with learns={list(allowed)}"
            )
            continue
        value, learns = getattr(bound, name).detach().clone(), getattr(cells, name).requires_grad
        found[name] = nn.Parameter(value, requires_grad=learns)
    return found
