"""Optimisers: rules that move parameters by gradients that are handed in.

The arithmetic of SGD, Adam and AdamW is ``torch.optim``'s functions. Its classes would import the
compiler of torch, which takes longer than a short run.
"""

from spikecl.optim.adam import Adam, AdamW
from spikecl.optim.optimiser import Moving, Optimiser, OptimiserSpec
from spikecl.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSgd
from spikecl.optim.schedules import (
    SCHEDULES,
    AnySchedule,
    Constant,
    Cosine,
    Infinite,
    Linear,
    Place,
    Schedule,
    Step,
)
from spikecl.optim.sgd import Sgd

__all__ = [
    "SCHEDULES",
    "Adam",
    "AdamW",
    "AnySchedule",
    "Constant",
    "Cosine",
    "Infinite",
    "Linear",
    "Moving",
    "Optimiser",
    "OptimiserSpec",
    "Place",
    "Schedule",
    "ScheduleFreeAdamW",
    "ScheduleFreeSgd",
    "Sgd",
    "Step",
]
