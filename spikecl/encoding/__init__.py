"""From intensities to input currents over time, and from outputs to a loss."""

from spikecl.encoding.encoders import Direct, Encoder, InputStatistics, Rate
from spikecl.encoding.losses import OutputLoss, cross_entropy

__all__ = ["Direct", "Encoder", "InputStatistics", "OutputLoss", "Rate", "cross_entropy"]
