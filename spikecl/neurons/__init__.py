"""Neurons: state, parameters and pure steps. Nothing here loops over time."""

from spikecl.neurons.lif import LIF, LIFState, Reset, lif_step
from spikecl.neurons.surrogate import Arctan, FastSigmoid, Sigmoid, Surrogate, spike

__all__ = [
    "LIF",
    "Arctan",
    "FastSigmoid",
    "LIFState",
    "Reset",
    "Sigmoid",
    "Surrogate",
    "lif_step",
    "spike",
]
