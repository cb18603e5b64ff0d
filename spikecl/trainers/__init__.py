"""Trainers: rules of credit assignment. A trainer turns a batch into factors and keeps nothing."""

from spikecl.trainers.bptt import Bptt, Tbptt
from spikecl.trainers.decolle import Decolle
from spikecl.trainers.dsr import Dsr
from spikecl.trainers.eprop import Eprop
from spikecl.trainers.eventprop import EventProp
from spikecl.trainers.local import (
    Bcm,
    Hebb,
    Oja,
    RewardStdp,
    Sanger,
    Stdp,
    Subspace,
    TripletStdp,
    Vogels,
)
from spikecl.trainers.naca import Naca
from spikecl.trainers.ostl import Ostl, Osttp
from spikecl.trainers.ottt import Ottt, Sltt
from spikecl.trainers.trainer import Call, Factors, PerStep, Steps, Trainer, Traits
from spikecl.trainers.zeroth import Evolution, ForwardGradient, Spsa

__all__ = [
    "Bcm",
    "Bptt",
    "Call",
    "Decolle",
    "Dsr",
    "Eprop",
    "EventProp",
    "Evolution",
    "Factors",
    "ForwardGradient",
    "Hebb",
    "Naca",
    "Oja",
    "Ostl",
    "Osttp",
    "Ottt",
    "PerStep",
    "RewardStdp",
    "Sanger",
    "Sltt",
    "Spsa",
    "Stdp",
    "Steps",
    "Subspace",
    "Tbptt",
    "Trainer",
    "Traits",
    "TripletStdp",
    "Vogels",
]
