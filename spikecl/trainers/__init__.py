"""Trainers: rules of credit assignment. A trainer turns a batch into factors and keeps nothing."""

from spikecl.trainers.bptt import Bptt
from spikecl.trainers.trainer import Factors, PerStep, Trainer

__all__ = ["Bptt", "Factors", "PerStep", "Trainer"]
