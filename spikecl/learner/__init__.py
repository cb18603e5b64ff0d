"""The host loop: a stream, a network, a trainer and methods make a generator of ticks."""

from spikecl.learner.heads import Heads
from spikecl.learner.learner import Learner, model_nbytes
from spikecl.learner.pairing import check_pairings
from spikecl.learner.plan import ExportPlan, Position, Tick, TrainPlan
from spikecl.learner.window import WINDOW

__all__ = [
    "WINDOW",
    "ExportPlan",
    "Heads",
    "Learner",
    "Position",
    "Tick",
    "TrainPlan",
    "check_pairings",
    "model_nbytes",
]
