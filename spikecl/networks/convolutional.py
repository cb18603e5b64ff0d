"""Convolutional builders."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from spikecl.components import PositiveInt, Sizes, component
from spikecl.errors import ConfigError
from spikecl.networks.build import LayeredSpec, image_shape
from spikecl.networks.layer import Layer
from spikecl.networks.network import Network
from spikecl.networks.presynaptic import AvgPool2d, Channels, MaxPool2d, Presynaptic
from spikecl.networks.synapses import Conv2d
from spikecl.neurons import LIF, AnyNeuron, ConductanceLIF

OptionalSizes = Annotated[tuple[Annotated[int, Strict(), Field(ge=1)], ...], Strict(False)]


@component
class ConvNet(LayeredSpec):
    """Convolutions with pooling behind each, then dense layers: twin of :class:`SpikingConvNet`.

    Images are [H, W] or [H, W, C]. The defaults make 1-12-64 on 28x28: 24x24, 12x12, 8x8, 4x4.

    Args:
        channels: Channels of each convolution.
        kernel: Side of the kernels.
        padding: ``same`` keeps the size of a map (odd kernels), ``valid`` does without zeros.
        pool: Kind of pooling behind each convolution.
        pool_size: Side of the pooled windows.
        hidden: Neurons of dense layers behind the convolutions.
    """

    channels: Sizes = (12, 64)
    kernel: PositiveInt = 5
    padding: Literal["same", "valid"] = "valid"
    pool: Literal["max", "average"] = "max"
    pool_size: PositiveInt = 2
    hidden: OptionalSizes = ()

    def build(self, input_shape: tuple[int, ...], classes: int) -> Network:
        """Return the network."""
        n, height, width = image_shape(input_shape, "a convolutional network")
        if self.padding == "same" and self.kernel % 2 == 0:
            raise ConfigError(
                f"network.padding: 'same' needs an odd kernel, got {self.kernel}; use 'valid'"
            )
        if not self.hidden:
            self.refuse_delays("there is no dense hidden layer; set hidden, or 0")
        layers: dict[str, Layer] = {}
        source = "input"
        before: dict[str, Presynaptic] = {"channels": Channels()}
        for i, m in enumerate(self.channels):
            name, grow = f"conv{i + 1}", 2 * (self.kernel // 2) if self.padding == "same" else 0
            height, width = (side + grow - self.kernel + 1 for side in (height, width))
            if min(height, width) < self.pool_size:
                raise ConfigError(
                    f"network.channels: after {name} no pixel of {list(input_shape)} is left; use "
                    "fewer convolutions, a smaller kernel or padding 'same'"
                )
            layers[name] = Layer(
                Conv2d(
                    n,
                    m,
                    kernel=self.kernel,
                    padding=grow // 2,
                    bias=self.bias,
                    maps=self.maps(first=not i, dense=False),
                ),
                self.cells((m, height, width)),
                inputs=(source,),
                before={**before, **self.before(first=not i)},
                norm=self.normalise(m),
            )
            height, width = height // self.pool_size, width // self.pool_size
            pool = MaxPool2d(self.pool_size) if self.pool == "max" else AvgPool2d(self.pool_size)
            source, n, before = name, m, {"pool": pool}
        size = n * height * width
        for i, m in enumerate(self.hidden):
            name = f"hidden{i + 1}"
            layers[name] = self.dense(size, m, source, first=False, before=before)
            source, size, before = name, m, {}
        layers["readout"] = self.readout_layer(size, classes, source, before)
        return self.network(layers)


@component
class SpikingConvNet(ConvNet):
    """Convolutions of spiking neurons.

    Args:
        channels: Channels of each convolution.
        neuron: Model of the hidden neurons.
    """

    neuron: AnyNeuron = LIF(beta=0.5)


@component
class ResNet(LayeredSpec):
    """Residual network for small images, the twin of :class:`SpikingResNet`; by default ResNet-18.

    A convolution, then stages of blocks of two 3x3 convolutions with 1, 2, 4, 8 times ``width``
    channels; each stage after the first halves the map. A block's input is added to the current of
    its second convolution, through a 1x1 convolution where sizes
    differ (or signs are fixed). The readout sees the mean
    over the map. With ``width = 20`` it is the network of the projection literature.

    Source: He et al., CVPR 2016; 20 filters: Lopez-Paz & Ranzato, NeurIPS 2017.

    Args:
        width: Channels of the first stage.
        blocks: Blocks of each stage.
        norm: ``batch`` normalises the currents over time and batch.
    """

    width: PositiveInt = 20
    blocks: Sizes = (2, 2, 2, 2)
    norm: Literal["none", "batch"] = "batch"

    def build(self, input_shape: tuple[int, ...], classes: int) -> Network:
        """Return the network."""
        n, height, width = image_shape(input_shape, "a residual network")
        self.refuse_delays("a residual network has no dense hidden layer; use 0")
        if isinstance(self.neuron, ConductanceLIF):
            raise ConfigError(
                "a residual network adds a block's input to currents of both signs, which "
                "ConductanceLIF cannot take as conductances; use a convolutional network"
            )
        layers: dict[str, Layer] = {}
        layers["stem"] = self._conv(n, self.width, "input", size=(height, width), first=True)
        source, n = "stem", self.width
        for stage, count in enumerate(self.blocks):
            m = self.width * 2**stage
            for block in range(count):
                stride = 2 if stage and not block else 1
                height, width = ((side - 1) // stride + 1 for side in (height, width))
                name = f"stage{stage + 1}block{block + 1}"
                source = self._block(layers, name, source, (n, m), (height, width), stride)
                n = m
        pool: dict[str, Presynaptic] = {"pool": AvgPool2d(None)}
        layers["readout"] = self.readout_layer(n, classes, source, pool)
        return self.network(layers)

    def _block(
        self,
        layers: dict[str, Layer],
        name: str,
        source: str,
        channels: tuple[int, int],
        size: tuple[int, int],
        stride: int,
    ) -> str:
        """Add a block; return the name of its output."""
        n, m = channels
        layers[f"{name}a"] = self._conv(n, m, source, size=size, stride=stride)
        shortcut = source
        if stride != 1 or n != m or self.excitatory:  # an inhibitory unit must not excite
            shortcut = f"{name}shortcut"
            layers[shortcut] = Layer(
                Conv2d(n, m, kernel=1, stride=stride, maps=self.maps(first=False, dense=False)),
                None,
                inputs=(source,),
                norm=self.normalise(m),
            )
        layers[f"{name}b"] = self._conv(m, m, f"{name}a", size=size, shortcut=shortcut)
        return f"{name}b"

    def _conv(
        self,
        n: int,
        m: int,
        source: str,
        *,
        size: tuple[int, int],
        stride: int = 1,
        first: bool = False,
        shortcut: str | None = None,
    ) -> Layer:
        stages: dict[str, Presynaptic] = {"channels": Channels()} if first else {}
        return Layer(
            Conv2d(
                n,
                m,
                kernel=3,
                stride=stride,
                padding=1,
                bias=self.bias,
                maps=self.maps(first=first, dense=False),
            ),
            self.cells((m, *size)),
            inputs=(source,),
            before={**stages, **self.before(first=first)},
            norm=self.normalise(m),
            currents=() if shortcut is None else (shortcut,),
        )


@component
class SpikingResNet(ResNet):
    """Residual network of spiking neurons.

    Args:
        width: Channels of the first stage.
        blocks: Blocks of each stage.
        neuron: Model of the hidden neurons.
    """

    neuron: AnyNeuron = LIF(beta=0.5)
