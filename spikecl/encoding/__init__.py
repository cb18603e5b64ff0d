"""From intensities to input over time, and from outputs to logits and a loss."""

from spikecl.encoding.decoders import (
    DECODERS,
    Decoder,
    FirstSpikeDecoder,
    LastDecoder,
    LeakyDecoder,
    MaxDecoder,
    MeanDecoder,
    PopulationDecoder,
    SumDecoder,
)
from spikecl.encoding.encoders import Direct, Encoder, InputStatistics, Rate
from spikecl.encoding.losses import (
    CountMse,
    CrossEntropy,
    FirstSpike,
    Loss,
    MaxMembrane,
    OutputLoss,
    StepCrossEntropy,
    StepMse,
    Tet,
    cross_entropy,
)
from spikecl.encoding.population import Population
from spikecl.encoding.temporal import Delta, Sequence, SigmaDelta
from spikecl.encoding.timing import Latency, Phase

__all__ = [
    "DECODERS",
    "CountMse",
    "CrossEntropy",
    "Decoder",
    "Delta",
    "Direct",
    "Encoder",
    "FirstSpike",
    "FirstSpikeDecoder",
    "InputStatistics",
    "LastDecoder",
    "Latency",
    "LeakyDecoder",
    "Loss",
    "MaxDecoder",
    "MaxMembrane",
    "MeanDecoder",
    "OutputLoss",
    "Phase",
    "Population",
    "PopulationDecoder",
    "Rate",
    "Sequence",
    "SigmaDelta",
    "StepCrossEntropy",
    "SumDecoder",
    "StepMse",
    "Tet",
    "cross_entropy",
]
