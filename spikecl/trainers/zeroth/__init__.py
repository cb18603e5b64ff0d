"""Trainers that look at the loss alone, from forward passes: no graph, no errors, no backward."""

from spikecl.trainers.zeroth.evolution import Evolution
from spikecl.trainers.zeroth.forward_gradient import ForwardGradient
from spikecl.trainers.zeroth.spsa import Spsa

__all__ = ["Evolution", "ForwardGradient", "Spsa"]
