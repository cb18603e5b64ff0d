"""Builders: a description and the shape of the data make a network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

from spikecl.components import Fraction, PositiveFloat, Sizes, component
from spikecl.errors import ConfigError
from spikecl.networks.layer import Layer, Linear, Relu, Spiking
from spikecl.networks.network import Network
from spikecl.neurons import LIF, Arctan, FastSigmoid, Reset, Sigmoid

SURROGATES: dict[str, type[Sigmoid | Arctan | FastSigmoid]] = {
    "sigmoid": Sigmoid,
    "arctan": Arctan,
    "fast_sigmoid": FastSigmoid,
}


class NetworkSpec(ABC):
    """Describes a network; ``build`` makes one with zero weights."""

    __slots__ = ()

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], classes: int) -> Network:
        """Return a network for inputs [T, B, *input_shape] and a number of classes."""


def mlp(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    hidden: tuple[int, ...],
    neuron: LIF | None,
    bias: bool = False,
    readout: Literal["mean_rate", "mean_current"] = "mean_rate",
) -> Network:
    """Return a multi-layer perceptron: spiking with a neuron, its rectified twin without."""
    if not hidden or min(hidden) < 1:
        raise ConfigError(f"network.hidden: got {list(hidden)}; give at least one size, each >= 1")
    sizes = [math.prod(input_shape), *hidden, classes]
    names = [*(f"hidden{i + 1}" for i in range(len(hidden))), "readout"]
    layers: dict[str, Layer] = {}
    for i, name in enumerate(names):
        units = None if name == "readout" else Spiking(neuron) if neuron else Relu()
        source = names[i - 1] if i else "input"
        synapse = Linear(sizes[i], sizes[i + 1], bias=bias)
        layers[name] = Layer(synapse, units, inputs=(source,))
    return Network(layers, readout=readout)


@component
class SpikingMlp(NetworkSpec):
    """Dense layers of LIF neurons with a linear readout of their time mean.

    Args:
        hidden: Neurons of each hidden layer.
        beta: Membrane decay per step.
        v_th: Threshold.
        reset: Reset of the membrane.
        surrogate: Derivative of the spike; ``slope`` is its parameter.
        slope: Slope of the surrogate.
        bias: Give every synapse a bias.
        readout: Where the time mean is taken (see :class:`Network`).
    """

    hidden: Sizes = (400, 400)
    beta: Fraction = 0.5
    v_th: PositiveFloat = 1.0
    reset: Literal["soft", "zero", "none"] = "soft"
    surrogate: Literal["sigmoid", "arctan", "fast_sigmoid"] = "sigmoid"
    slope: PositiveFloat = 4.0
    bias: bool = False
    readout: Literal["mean_rate", "mean_current"] = "mean_rate"

    def neuron(self) -> LIF:
        """Return the parameters of every hidden neuron."""
        return LIF(
            beta=self.beta,
            v_th=self.v_th,
            reset=Reset(self.reset),
            surrogate=SURROGATES[self.surrogate](slope=self.slope),
        )

    def build(self, input_shape: tuple[int, ...], classes: int) -> Network:
        """Return the network."""
        return mlp(
            input_shape,
            classes,
            hidden=self.hidden,
            neuron=self.neuron(),
            bias=self.bias,
            readout=self.readout,
        )


@component
class Mlp(NetworkSpec):
    """The ordinary twin of :class:`SpikingMlp`: rectified units, the same sizes and readout.

    Args:
        hidden: Units of each hidden layer.
        bias: Give every synapse a bias.
    """

    hidden: Sizes = (400, 400)
    bias: bool = False

    def build(self, input_shape: tuple[int, ...], classes: int) -> Network:
        """Return the network."""
        return mlp(input_shape, classes, hidden=self.hidden, neuron=None, bias=self.bias)
