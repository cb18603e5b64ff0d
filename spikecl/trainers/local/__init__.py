"""Local plasticity: changes of a synapse from what its two neurons do, without error signals."""

from spikecl.trainers.local.bcm import Bcm
from spikecl.trainers.local.hebb import Hebb
from spikecl.trainers.local.oja import Oja
from spikecl.trainers.local.reward import RewardStdp
from spikecl.trainers.local.sanger import Sanger
from spikecl.trainers.local.stdp import Stdp
from spikecl.trainers.local.subspace import Subspace
from spikecl.trainers.local.triplet import TripletStdp
from spikecl.trainers.local.vogels import Vogels

__all__ = [
    "Bcm",
    "Hebb",
    "Oja",
    "RewardStdp",
    "Sanger",
    "Stdp",
    "Subspace",
    "TripletStdp",
    "Vogels",
]
