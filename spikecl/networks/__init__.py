"""Networks: synapses, layers, builders, and what a trainer reads off them."""

from spikecl.networks.build import (
    Mlp,
    NetworkSpec,
    RecurrentNet,
    SpikingMlp,
    SpikingRecurrentNet,
)
from spikecl.networks.conv_factor import ConvFactor
from spikecl.networks.convolutional import ConvNet, ResNet, SpikingConvNet, SpikingResNet
from spikecl.networks.explain import explain
from spikecl.networks.factor import Factor, GradientFactor, KeptFactor
from spikecl.networks.fixed_point import Graded, LoihiWeights, Shift
from spikecl.networks.gradients import form_gradients
from spikecl.networks.initialise import initialise
from spikecl.networks.layer import Cells, Layer
from spikecl.networks.network import Network, Output
from spikecl.networks.norm import BatchNorm
from spikecl.networks.outside import Complement, Outside, Suppression
from spikecl.networks.paths import Paths
from spikecl.networks.presynaptic import (
    AvgPool2d,
    AxonalDelay,
    Channels,
    Dropout,
    MaxPool2d,
    Plasticity,
    ShortTermPlasticity,
    TimeWindow,
)
from spikecl.networks.stateful import Stateful
from spikecl.networks.synapses import AnyFactor, Conv2d, Linear, Synapse
from spikecl.networks.tap import Tap, Taps
from spikecl.networks.trace import Recording
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

__all__ = [
    "AnyFactor",
    "KeptFactor",
    "AvgPool2d",
    "AxonalDelay",
    "BatchNorm",
    "Binarise",
    "Cells",
    "Channels",
    "Complement",
    "Conv2d",
    "ConvFactor",
    "ConvNet",
    "Dale",
    "Dropout",
    "Factor",
    "Gain",
    "Graded",
    "GradientFactor",
    "Layer",
    "Linear",
    "LoihiWeights",
    "MaxPool2d",
    "Mlp",
    "Network",
    "NetworkSpec",
    "NoAutapses",
    "Output",
    "Outside",
    "Paths",
    "Plasticity",
    "Recording",
    "RecurrentNet",
    "ResNet",
    "Shift",
    "ShortTermPlasticity",
    "SpikingConvNet",
    "SpikingMlp",
    "SpikingRecurrentNet",
    "SpikingResNet",
    "SplitSigns",
    "Standardise",
    "Stateful",
    "Synapse",
    "Suppression",
    "SynapticDelays",
    "Tap",
    "Taps",
    "TimeWindow",
    "WeightMap",
    "explain",
    "form_gradients",
    "initialise",
]
