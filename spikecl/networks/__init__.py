"""Networks: synapses, layers, builders, and what a trainer reads off them."""

from spikecl.networks.build import Mlp, NetworkSpec, SpikingMlp
from spikecl.networks.explain import explain
from spikecl.networks.factor import Complement, Factor
from spikecl.networks.initialise import initialise
from spikecl.networks.layer import Layer, Linear, Relu, Spiking
from spikecl.networks.network import Network, Output, Tap

__all__ = [
    "Complement",
    "Factor",
    "Layer",
    "Linear",
    "Mlp",
    "Network",
    "NetworkSpec",
    "Output",
    "Relu",
    "Spiking",
    "SpikingMlp",
    "Tap",
    "explain",
    "initialise",
]
