"""Neurons: state, parameters and pure steps. Nothing here loops over time."""

from collections.abc import Mapping
from typing import Annotated

from spikecl.components import named
from spikecl.neurons.adex import AdEx, AdExState
from spikecl.neurons.alif import ALIF, ALIFState
from spikecl.neurons.conductance import ConductanceLIF, ConductanceState
from spikecl.neurons.cuba import CUBA, CUBAState
from spikecl.neurons.graded import (
    LeakyIntegrator,
    LIState,
    SigmaDelta,
    SigmaDeltaState,
    SynapticIntegrator,
    SynapticIntegratorState,
)
from spikecl.neurons.izhikevich import Izhikevich, IzhikevichState
from spikecl.neurons.lif import IF, LIF, PLIF, LIFState
from spikecl.neurons.loihi import LoihiLIF, LoihiState
from spikecl.neurons.neuron import (
    Escape,
    Neuron,
    Refractory,
    Reset,
    SpikingNeuron,
    State,
    carry,
    step,
)
from spikecl.neurons.rate import RateIF, RateLIF, RateNeuron
from spikecl.neurons.rectified import NoState, Rectified
from spikecl.neurons.surrogate import (
    SURROGATES,
    Arctan,
    Boxcar,
    Erf,
    FastSigmoid,
    MultiGaussian,
    Sigmoid,
    Smooth,
    StraightThrough,
    Surrogate,
    Triangle,
    spike,
)

MODELS: Mapping[str, type[Neuron]] = {
    "lif": LIF,
    "if": IF,
    "plif": PLIF,
    "alif": ALIF,
    "cuba": CUBA,
    "conductance": ConductanceLIF,
    "izhikevich": Izhikevich,
    "adex": AdEx,
    "leaky_integrator": LeakyIntegrator,
    "synaptic_integrator": SynapticIntegrator,
    "sigma_delta": SigmaDelta,
    "loihi": LoihiLIF,
    "rectified": Rectified,
    "rate_if": RateIF,
    "rate_lif": RateLIF,
}
AnyNeuron = Annotated[Neuron, *named(MODELS, "model", "lif")]
"""A field of a component that takes any model, by name in a configuration."""

__all__ = [
    "ALIF",
    "ALIFState",
    "AdEx",
    "AdExState",
    "AnyNeuron",
    "Arctan",
    "Boxcar",
    "CUBA",
    "CUBAState",
    "ConductanceLIF",
    "ConductanceState",
    "Erf",
    "Escape",
    "FastSigmoid",
    "IF",
    "Izhikevich",
    "IzhikevichState",
    "LIF",
    "LIFState",
    "LIState",
    "LeakyIntegrator",
    "LoihiLIF",
    "LoihiState",
    "MODELS",
    "MultiGaussian",
    "Neuron",
    "NoState",
    "PLIF",
    "RateIF",
    "RateLIF",
    "RateNeuron",
    "Rectified",
    "Refractory",
    "Reset",
    "SURROGATES",
    "SigmaDelta",
    "SigmaDeltaState",
    "Sigmoid",
    "Smooth",
    "SpikingNeuron",
    "State",
    "StraightThrough",
    "Surrogate",
    "SynapticIntegrator",
    "SynapticIntegratorState",
    "Triangle",
    "carry",
    "spike",
    "step",
]
