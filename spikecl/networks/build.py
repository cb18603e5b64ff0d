"""Builders: a description and the shape of the data make a network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, Sizes, component
from spikecl.encoding.decoders import DECODERS, MeanDecoder, PopulationDecoder
from spikecl.errors import ConfigError
from spikecl.networks.fixed_point import LoihiWeights
from spikecl.networks.layer import Cells, Layer
from spikecl.networks.network import Network
from spikecl.networks.norm import BatchNorm
from spikecl.networks.presynaptic import (
    AxonalDelay,
    Dropout,
    Plasticity,
    Presynaptic,
    ShortTermPlasticity,
    TimeWindow,
)
from spikecl.networks.synapses import Linear
from spikecl.networks.weight_maps import (
    Binarise,
    Dale,
    Gain,
    NoAutapses,
    SplitSigns,
    Standardise,
    SynapticDelays,
    WeightMap,
)
from spikecl.neurons import (
    LIF,
    AnyNeuron,
    ConductanceLIF,
    LoihiLIF,
    Rectified,
    SigmaDelta,
    SpikingNeuron,
)

Names = Annotated[tuple[Annotated[str, Strict()], ...], Strict(False)]
Readout = Literal["mean_rate", "mean_current", "sum", "max", "last", "leaky", "first_spike"]
MEANS = ("mean_rate", "mean_current")
Head = Literal["single", "growing", "multi"]
Binary = Literal["none", "fixed", "rows"]


class NetworkSpec(ABC):
    """Describes a network; ``build`` makes one with zero weights.

    ``head`` says whose outputs compete: of all classes (``single``), of those seen so far
    (``growing``), or of one task, each having outputs of its own (``multi``).
    """

    __slots__ = ()
    head: Head = "single"

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], classes: int) -> Network:
        """Return a network for inputs [T, B, *input_shape] and a number of outputs."""


@component
class LayeredSpec(NetworkSpec):
    """What all builders share.

    Args:
        neuron: Model of the hidden neurons.
        output: Model of the readout's neurons; without one the readout's current is decoded.
        learns: Parameters of the neurons to train; by default those the model names.
        per_neuron: Train one value for each neuron (or channel's place) instead of one per layer.
        bias: Give every synapse a bias; recurrent synapses and shortcuts, whose current is added
            to another's, have none.
        norm: ``batch`` normalises the currents of hidden layers over time and batch.
        gain: Current that a weight of 1 into a hidden layer stands for; models in millivolts and
            picoampere need tens (``izhikevich``) to hundreds (``adex``, ``loihi``). With ``loihi``
            neurons it is the scale of their integer weights
            (:class:`~spikecl.networks.LoihiWeights`).
        standardise: Standardise the weights of hidden layers: mean 0 and variance 1 / fan-in in
            each row, times a trained gain.
        binary: Weights are signs of hidden weights that learn, readout and recurrence too
            (:class:`~spikecl.networks.Binarise`): of one size, 1 / sqrt(fan-in) (``fixed``), or
            times a trained gain of each output (``rows``). ``gain`` scales those of hidden layers.
        excitatory: Fraction of neurons of each layer that excite, the others inhibit (Dale's law,
            from the second layer on); 0 leaves the signs free.
        dropout: Probability that a hidden neuron is dropped for a sample in training.
        delay: Longest learned delay of each connection into a dense hidden layer in steps; 0 has
            none.
        axonal_delay: Longest learned delay of each neuron's output on its way to a dense hidden
            layer in steps, the same for all its connections; 0 has none.
        stp: Depression and facilitation of spikes on their way to the next layer (from the second
            on); by default none.
        population: Outputs of each class; its logit is their mean.
        readout: How the readout's output over time becomes logits: the mean, taken before
            (``mean_rate``) or behind the synapse (``mean_current``), or another decoder.
        head: Whose outputs compete: of all classes (``single``), of those seen so far
            (``growing``), or of one task, each having outputs of its own (``multi``).
    """

    neuron: AnyNeuron = Rectified()
    output: AnyNeuron | None = None
    learns: Names | None = None
    per_neuron: bool = False
    bias: bool = False
    norm: Literal["none", "batch"] = "none"
    gain: PositiveFloat = 1.0
    standardise: bool = False
    binary: Binary = "none"
    excitatory: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    delay: Annotated[int, Field(ge=0)] = 0
    axonal_delay: Annotated[int, Field(ge=0)] = 0
    stp: Plasticity | None = None
    population: PositiveInt = 1
    readout: Readout = "mean_rate"
    head: Head = "single"

    def __post_init__(self) -> None:
        """Refuse options that fit no neuron of the network."""
        name = type(self.neuron).__name__
        if isinstance(self.neuron, ConductanceLIF) and (self.bias or self.norm == "batch"):
            raise ConfigError(
                f"bias and norm='batch' give currents of both signs, which {name} cannot take as "
                "conductances; use neither, or another neuron"
            )
        if self.per_neuron and not (self.neuron.learns if self.learns is None else self.learns):
            raise ConfigError(
                f"per_neuron=true, but no parameter of {name} learns; name some with learns"
            )
        if isinstance(self.neuron, SigmaDelta) and (self.bias or self.norm == "batch"):
            raise ConfigError(
                "sigma-delta neurons sum their input over time, so bias and norm='batch' would be "
                "added at every step; use neither"
            )
        if isinstance(self.output, ConductanceLIF):
            raise ConfigError(
                "output: conductance neurons need excitation and inhibition apart, which a readout "
                "does not give; use another model"
            )
        if self.readout == "first_spike" and not isinstance(self.output, SpikingNeuron):
            raise ConfigError(
                "readout='first_spike' decodes spikes, and the readout has no spiking neurons; "
                "give it some with output"
            )
        if self.population > 1 and self.readout not in MEANS:
            raise ConfigError(
                f"population={self.population} takes the mean of each class's outputs over time, "
                f"not readout='{self.readout}'; use one of {', '.join(MEANS)}"
            )
        if self.stp is not None and not isinstance(self.neuron, SpikingNeuron):
            raise ConfigError(
                f"stp is about spikes, and {name} sends none; use a neuron that spikes, or no stp"
            )

    def cells(self, size: tuple[int, ...]) -> Cells:
        """Return the hidden neurons of a layer."""
        return Cells(self.neuron, learns=self.learns, size=size if self.per_neuron else ())

    def maps(self, *, first: bool, dense: bool, hidden: bool = True) -> tuple[WeightMap, ...]:
        """Return the weight maps of a layer."""
        whole = isinstance(self.neuron, LoihiLIF)
        wanted: dict[WeightMap, bool] = {
            Binarise(rows=self.binary == "rows"): self.binary != "none",
            Standardise(): self.standardise and hidden,
            Gain(factor=self.gain): self.gain != 1 and hidden and not whole,
            Dale(excitatory=self.excitatory): bool(self.excitatory) and not first,
            LoihiWeights(scale=self.gain, shared=not dense): hidden and whole,
            SynapticDelays(longest=max(self.delay, 1)): bool(self.delay) and dense,
            SplitSigns(): hidden and isinstance(self.neuron, ConductanceLIF),
        }
        return tuple(each for each, use in wanted.items() if use)

    def before(self, *, first: bool, dense: int = 0) -> dict[str, Presynaptic]:
        """Return what comes before a layer's synapse; ``dense`` is the size of its input."""
        stages: dict[str, Presynaptic] = {}
        if self.dropout and not first:
            stages["dropout"] = Dropout(self.dropout)
        if self.stp is not None and not first:
            stages["stp"] = ShortTermPlasticity(**asdict(self.stp))
        if self.axonal_delay and dense:
            # spread evenly, and those of neighbours far apart: multiples of the golden ratio
            start = self.axonal_delay * (torch.arange(dense) * 0.6180339887 % 1)
            stages["axon"] = AxonalDelay(dense, self.axonal_delay, learned=True, delay=start)
        if self.delay and dense:
            stages["window"] = TimeWindow(self.delay)
        return stages

    def refuse_delays(self, why: str) -> None:
        """Refuse delays where no layer could have them."""
        for name in ("delay", "axonal_delay"):
            if getattr(self, name):
                raise ConfigError(f"network.{name}: {why}")

    def normalise(self, size: int) -> BatchNorm | None:
        """Return the norm of a hidden layer; its gain starts at the way from rest to threshold."""
        if self.norm == "none":
            return None
        ends = getattr(self.neuron, "v_th", 1.0), getattr(self.neuron, "v_rest", 0.0)
        tensors = any(isinstance(end, Tensor) for end in ends)
        start = 1.0 if tensors else float(ends[0] - ends[1])
        return BatchNorm(size, gain=self.gain * start, positive=bool(self.excitatory))

    def dense(
        self,
        n_in: int,
        n_out: int,
        source: str,
        *,
        first: bool,
        recurrent: bool = False,
        before: Mapping[str, Presynaptic] | None = None,
    ) -> Layer:
        """Return a hidden dense layer."""
        maps = self.maps(first=first, dense=True)
        whole = isinstance(self.neuron, LoihiLIF)
        own: tuple[WeightMap, ...] = (Dale(excitatory=self.excitatory),) if self.excitatory else ()
        if self.gain != 1 and not whole:
            own = (Gain(factor=self.gain), *own)
        own = (*own, NoAutapses(), LoihiWeights(scale=self.gain)) if whole else (*own, NoAutapses())
        if self.binary != "none":
            own = (Binarise(rows=self.binary == "rows"), *own)
        onto = Linear(n_out, n_out, maps=own) if recurrent else None
        return Layer(
            Linear(n_in, n_out, bias=self.bias, maps=maps),
            self.cells((n_out,)),
            inputs=(source,),
            before={**(before or {}), **self.before(first=first, dense=n_in)},
            norm=self.normalise(n_out),
            recurrent=onto,
        )

    def readout_layer(
        self, n_in: int, n_out: int, source: str, before: Mapping[str, Presynaptic] | None = None
    ) -> Layer:
        """Return the readout."""
        maps = self.maps(first=False, dense=False, hidden=False)
        if isinstance(self.output, LoihiLIF):
            maps = (*maps, LoihiWeights(scale=self.gain))
        return Layer(
            Linear(n_in, n_out * self.population, bias=self.bias, maps=maps),
            None if self.output is None else Cells(self.output),
            inputs=(source,),
            before={**(before or {}), **self.before(first=False)},
        )

    def network(self, layers: Mapping[str, Layer]) -> Network:
        """Return the network of some layers."""
        if self.readout in MEANS:
            decoder = MeanDecoder() if self.population == 1 else PopulationDecoder(self.population)
            return Network(layers, decoder=decoder, mean_first=self.readout == "mean_rate")
        return Network(layers, decoder=DECODERS[self.readout](), mean_first=False)


@component
class Mlp(LayeredSpec):
    """Dense layers: the ordinary twin of :class:`SpikingMlp`, with rectified units.

    Args:
        hidden: Units of each hidden layer.

    The other arguments are those of every builder (:class:`LayeredSpec`).
    """

    hidden: Sizes = (400, 400)

    def build(self, input_shape: tuple[int, ...], classes: int) -> Network:
        """Return the network."""
        sizes = [math.prod(input_shape), *self.hidden]
        layers: dict[str, Layer] = {}
        source = "input"
        for i, n in enumerate(self.hidden):
            name = f"hidden{i + 1}"
            layers[name] = self.dense(sizes[i], n, source, first=not i, recurrent=self.recurs)
            source = name
        layers["readout"] = self.readout_layer(sizes[-1], classes, source)
        return self.network(layers)

    @property
    def recurs(self) -> bool:
        """Whether hidden layers listen to themselves."""
        return False


@component
class SpikingMlp(Mlp):
    """Dense layers of spiking neurons with a linear readout, of their time mean by default.

    Args:
        hidden: Neurons of each hidden layer.
        neuron: Model of the hidden neurons.
    """

    neuron: AnyNeuron = LIF(beta=0.5)


@component
class RecurrentNet(Mlp):
    """Dense layers that also listen to themselves, one step later; no unit to itself.

    The ordinary twin of :class:`SpikingRecurrentNet`: ``h[t] = max(W x[t] + R h[t-1], 0)``.

    Args:
        hidden: Units of each hidden layer.
    """

    hidden: Sizes = (128,)

    @property
    def recurs(self) -> bool:
        """Whether hidden layers listen to themselves."""
        return True


@component
class SpikingRecurrentNet(RecurrentNet):
    """Recurrent layers of spiking neurons.

    Args:
        hidden: Neurons of each hidden layer.
        neuron: Model of the hidden neurons.
    """

    neuron: AnyNeuron = LIF(beta=0.9)


def image_shape(input_shape: tuple[int, ...], what: str) -> tuple[int, int, int]:
    """Return channels, height and width of images [H, W] or [H, W, C]."""
    if len(input_shape) not in (2, 3):
        raise ConfigError(
            f"{what} needs images [H, W] or [H, W, C]; a step of the data has shape "
            f"{list(input_shape)}; use spiking_mlp or spiking_recurrent"
        )
    height, width, channels = (*input_shape, 1)[:3]
    if len(input_shape) == 3 and height <= 4 < channels:
        raise ConfigError(
            f"{what} needs channels last, [H, W, C]; a step of the data has shape "
            f"{list(input_shape)}, which looks like [C, H, W]; move the axis where the data enter"
        )
    return channels, height, width
