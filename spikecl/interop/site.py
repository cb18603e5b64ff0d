"""The place of a network that is being translated, and how it is refused."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from spikecl.errors import InteropError
from spikecl.neurons.values import Value


class Site(NamedTuple):
    """A module of their network or a layer of ours.

    Args:
        name: Its name in the network.
        part: What stands there.
        spikes_only: Whether networks that learn differently will do.
        features: Outputs of the dense synapse before it, where there is one.
    """

    name: str
    part: object
    spikes_only: bool = False
    features: int | None = None

    def refuse(self, difference: str, remedy: str) -> NoReturn:
        """Say which dynamics differ and what to do."""
        kind = self.part.__name__ if isinstance(self.part, type) else type(self.part).__name__
        raise InteropError(f"'{self.name}' ({kind}): {difference}; {remedy}")

    def learns_otherwise(self, difference: str, remedy: str) -> None:
        """Refuse equal spikes whose gradients differ, unless spikes are all that is wanted."""
        if not self.spikes_only:
            self.refuse(difference, f"{remedy}, or pass spikes_only=True: the spikes are the same")


def library(name: str) -> Any:
    """Import an optional library."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.split(".")[0]):
            raise
        raise InteropError(f"{name} is not installed; pip install 'spikecl[interop]'") from error


def number(value: Value) -> Value:
    """Return a parameter as a number, or a copy where it has one per neuron."""
    if not isinstance(value, Tensor):
        return float(value)
    return value.detach().clone() if value.numel() > 1 else float(value.detach())


def ends(value: Value) -> tuple[float, float]:
    """Return the lowest and the highest of a parameter's values."""
    low, high = torch.as_tensor(value, dtype=torch.float64).detach().aminmax()
    return float(low), float(high)


Modules = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]


def sites(net: Modules, *, chains: tuple[type[nn.Module], ...], spikes_only: bool) -> list[Site]:
    """Return the modules of a chain in order, those of nested chains too.

    Args:
        net: A chain, or modules in the order in which they are called.
        chains: Types that call their modules one after the other.
        spikes_only: See :class:`Site`.
    """
    found = [Site(name, part, spikes_only) for name, part in _walk(net, chains, "")]
    seen: dict[int, str] = {}
    for site in found:
        assert isinstance(site.part, nn.Module)
        if any(m._forward_hooks or m._forward_pre_hooks for m in site.part.modules()):
            site.refuse("has hooks, which may change what it computes", "remove them first")
        tensors = [*site.part.parameters(), *site.part.buffers()]
        for tensor in {id(t): t for t in tensors if t.numel()}.values():
            if (first := seen.setdefault(id(tensor), site.name)) != site.name:
                site.refuse(
                    f"shares parameters or state with '{first}', and copies would not",
                    "give each place a module of its own",
                )
    return found


def _walk(
    net: Modules, chains: tuple[type[nn.Module], ...], prefix: str
) -> list[tuple[str, nn.Module]]:
    if isinstance(net, nn.Module):
        if not any(type(net) is chain for chain in (*chains, nn.ModuleList, nn.ModuleDict)):
            raise InteropError(
                f"{type(net).__name__}: its forward is code, which cannot be read; pass the "
                "modules in the order in which it calls them, such as [net.fc1, net.lif1, net.fc2]"
            )
        named = {name: module for name, module in net._modules.items() if module is not None}
    else:
        named = dict(net) if isinstance(net, Mapping) else {str(i): m for i, m in enumerate(net)}
    found = []
    for key, module in named.items():
        if not isinstance(module, nn.Module):
            raise InteropError(f"'{prefix}{key}' is a {type(module).__name__}; pass nn.Modules")
        nested = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        found += (
            _walk(module, chains, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", module)]
        )
    return found
