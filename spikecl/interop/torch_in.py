"""Modules of torch become parts of layers, and parts a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikecl.encoding.decoders import Decoder
from spikecl.errors import ConfigError, InteropError
from spikecl.interop.parts import Currents, Flatten, Neurons, Part
from spikecl.interop.site import Site
from spikecl.networks import (
    AvgPool2d,
    BatchNorm,
    Cells,
    Conv2d,
    Dropout,
    Layer,
    Linear,
    MaxPool2d,
    Network,
    Synapse,
)
from spikecl.networks.norm import EPSILON, Postsynaptic
from spikecl.networks.presynaptic import Presynaptic
from spikecl.neurons import Neuron, Rectified


def copied(tensor: Tensor) -> nn.Parameter:
    """Return a parameter with storage of its own that learns if the tensor does."""
    return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)


def with_tensors(module: Any, **tensors: Tensor | None) -> Any:
    """Return a module with copies of some parameters in place of its own."""
    for name, tensor in tensors.items():
        setattr(module, name, None if tensor is None else copied(tensor))
    return module


def with_values(neuron: Neuron, learned: Mapping[str, Tensor]) -> Cells:
    """Return neurons that learn some parameters, from these values on."""
    cells = Cells(neuron, learns=tuple(learned))
    for name, value in learned.items():
        raw = cells.ranges[name].to_raw(value.detach().clone())
        setattr(cells, name, nn.Parameter(raw, requires_grad=value.requires_grad))
    return cells


class Assembly:
    """A network that grows part by part."""

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self._source = "input"
        self._clear()

    def _clear(self) -> None:
        self._name, self._synapse = "", cast(Synapse | None, None)
        self._before: dict[str, Presynaptic] = {}
        self._currents: list[nn.Module] = []
        self._loose: Site | None = None  # what waits for a synapse

    @property
    def features(self) -> int | None:
        """Outputs of the dense synapse that waits for its neurons."""
        return len(self._synapse.weight) if isinstance(self._synapse, Linear) else None

    def add(self, site: Site, part: Part) -> None:
        """Add a part; refuse one that has no place where it stands."""
        if isinstance(part, Synapse):
            if self._synapse is not None:
                self._close(Neurons(None))
            self._name, self._synapse, self._loose = self._new_name(site.name), part, None
        elif isinstance(part, Neurons):
            if self._synapse is None:
                site.refuse(
                    "no synapse comes before these neurons, and a layer here begins with one",
                    "put an nn.Linear or nn.Conv2d before them",
                )
            self._close(part)
        elif self._synapse is not None:
            if isinstance(part, Dropout):
                site.refuse("drops currents, here units are dropped", "put it before a synapse")
            self._currents.append(part)
        elif isinstance(part, BatchNorm):
            site.refuse(
                "normalises activity, here currents are normalised", "put it behind a synapse"
            )
        else:
            self._loose = site
            if not isinstance(part, Flatten):  # a dense synapse flattens by itself
                self._before[f"stage{len(self._before) + 1}"] = part

    def _new_name(self, key: str) -> str:
        name = key.replace(".", "_").replace("/", "_")
        reserved = name[0].isdigit() or name == "input" or hasattr(nn.ModuleDict(), name)
        name = f"layer{name}" if reserved else name
        while name in self.layers:
            name += "_"
        return name

    def _close(self, neurons: Neurons) -> None:
        assert self._synapse is not None
        norm: Postsynaptic | None = Currents(self._currents) if self._currents else None
        if len(self._currents) == 1 and isinstance(self._currents[0], BatchNorm):
            norm = self._currents[0]
        self.layers[self._name] = Layer(
            self._synapse,
            neurons.cells,
            inputs=(self._source,),
            before=self._before,
            norm=norm,
            recurrent=neurons.recurrent,
        )
        self._source = self._name
        self._clear()

    def network(self, decoder: Decoder | None) -> Network:
        """Return the network; its ``Output.steps`` has all steps of the last layer."""
        if self._loose is not None:
            self._loose.refuse("no synapse listens to it", "apply it to the network's output")
        if self._synapse is not None:
            self._close(Neurons(None))
        if not self.layers:
            raise InteropError("no layer: pass modules, such as [nn.Linear(4, 2), snn.Leaky(0.9)]")
        return Network(self.layers, decoder=decoder, mean_first=False)


def assemble(
    found: Iterable[Site], read: Callable[[Site], list[Part]], decoder: Decoder | None
) -> Network:
    """Return the network that a reader makes of modules, in order."""
    assembly = Assembly()
    for site in found:
        try:
            parts = read(site._replace(features=assembly.features))
        except ConfigError as error:  # a value that no component here takes, such as infinity
            site.refuse(str(error), "change it")
        for part in parts:
            assembly.add(site, part)
    return assembly.network(decoder)


def read_torch(site: Site) -> list[Part]:
    """Return the parts that a module of torch stands for."""
    reader = next((r for kind, r in _READERS.items() if type(site.part) is kind), None)
    if reader is None:
        known = ", ".join(sorted(kind.__name__ for kind in _READERS))
        site.refuse("has no counterpart here", f"use neurons of the library, or {known}")
    return reader(site, site.part)


def _read_linear(site: Site, m: nn.Linear) -> list[Part]:
    made = Linear(m.in_features, m.out_features, bias=m.bias is not None)
    return [with_tensors(made, weight=m.weight, bias=m.bias)]


def _read_conv(site: Site, m: nn.Conv2d) -> list[Part]:
    for name, needed in (("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")):
        if (given := getattr(m, name)) != needed:
            site.refuse(f"{name}={given}, convolutions here have {needed}", f"use {name}={needed}")
    kernel, stride = _square(site, "kernel_size"), _square(site, "stride")
    if m.padding == "same" and not kernel % 2:
        site.refuse(
            "padding='same' adds more zeros on one side where the kernel is even",
            "use an odd kernel or a number",
        )
    words = {"same": kernel // 2, "valid": 0}
    padding = words[m.padding] if isinstance(m.padding, str) else _square(site, "padding")
    made = Conv2d(
        m.in_channels,
        m.out_channels,
        kernel=kernel,
        stride=stride,
        padding=padding,
        bias=m.bias is not None,
    )
    return [with_tensors(made, weight=m.weight, bias=m.bias)]


def _square(site: Site, name: str) -> int:
    value = getattr(site.part, name)
    sides = set(value) if isinstance(value, tuple) else {value}
    if len(sides) > 1:
        site.refuse(f"{name}={value} differs in height and width", "use one number for both")
    return cast(int, sides.pop())


def _read_pool(site: Site, m: nn.AvgPool2d | nn.MaxPool2d) -> list[Part]:
    size = _square(site, "kernel_size")
    needed = {"stride": size, "padding": 0, "dilation": 1}
    other = {n: v for n, v in needed.items() if hasattr(m, n) and _square(site, n) != v}
    flags = ("ceil_mode", "return_indices", "divisor_override")
    if other or any(getattr(m, flag, None) for flag in flags):
        site.refuse(
            f"{m.extra_repr()}: windows here lie side by side within the map",
            f"use kernel_size={size} and nothing else",
        )
    return [AvgPool2d(size) if isinstance(m, nn.AvgPool2d) else MaxPool2d(size)]


def _read_mean(site: Site, m: nn.AdaptiveAvgPool2d) -> list[Part]:
    if _square(site, "output_size") != 1:
        site.refuse(f"output_size={m.output_size}: only the mean of a map exists here", "use 1")
    return [AvgPool2d(None)]


def _read_flatten(site: Site, m: nn.Flatten) -> list[Part]:
    if (m.start_dim, m.end_dim) != (1, -1):
        site.refuse(
            f"start_dim={m.start_dim}, end_dim={m.end_dim}: all features are flattened here",
            "use nn.Flatten()",
        )
    return [Flatten()]


def _read_dropout(site: Site, m: nn.Dropout) -> list[Part]:
    if not m.p:
        return []
    if m.training:
        site.refuse(
            "draws other units at every step, here a sample loses the same at all steps",
            "call eval() first: without training neither drops any",
        )
    return [Dropout(m.p)]


def _read_norm(site: Site, m: nn.BatchNorm1d | nn.BatchNorm2d) -> list[Part]:
    if m.training or m.running_mean is None or m.running_var is None:
        site.refuse(
            "takes the statistics of one step, here they are those of all steps",
            "call eval() first (with track_running_stats): running statistics mean the same",
        )
    if m.eps != EPSILON or m.momentum is None:
        site.refuse(
            f"eps={m.eps}, momentum={m.momentum}: here eps is {EPSILON}, momentum a number",
            "use these",
        )
    norm = BatchNorm(m.num_features, momentum=m.momentum)
    mean, ones = m.running_mean.detach().clone(), torch.ones_like(m.running_mean)
    gain, shift = (ones, 0 * ones) if m.weight is None else (m.weight, m.bias)
    with_tensors(norm, gain=gain, shift=shift)
    norm.mean, norm.variance = mean, m.running_var.detach().clone()
    return [norm]


_READERS: Mapping[type[nn.Module], Callable[[Site, Any], list[Part]]] = {
    nn.Linear: _read_linear,
    nn.Conv2d: _read_conv,
    nn.AvgPool2d: _read_pool,
    nn.MaxPool2d: _read_pool,
    nn.AdaptiveAvgPool2d: _read_mean,
    nn.Flatten: _read_flatten,
    nn.Dropout: _read_dropout,
    nn.BatchNorm1d: _read_norm,
    nn.BatchNorm2d: _read_norm,
    nn.Identity: lambda site, m: [],
    nn.ReLU: lambda site, m: [Neurons(Cells(Rectified()))],
}
