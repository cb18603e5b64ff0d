"""The continual core: methods, and how they compose."""

from spikecl.continual.compose import Composition
from spikecl.continual.finetune import Finetune
from spikecl.continual.geometry import Geometry
from spikecl.continual.homeostasis.dendrites import Dendrites
from spikecl.continual.homeostasis.gating import Gating
from spikecl.continual.homeostasis.need import Need
from spikecl.continual.homeostasis.rates import FiringRates
from spikecl.continual.homeostasis.scaling import Scaling
from spikecl.continual.homeostasis.sleep import Sleep
from spikecl.continual.homeostasis.threshold import Threshold
from spikecl.continual.host import Host, Seen, transmitted
from spikecl.continual.importance.ewc import Ewc
from spikecl.continual.importance.l2 import L2
from spikecl.continual.importance.mas import Mas
from spikecl.continual.importance.si import Si
from spikecl.continual.joint import JointTraining
from spikecl.continual.metaplasticity.benna_fusi import BennaFusi
from spikecl.continual.metaplasticity.bimu import Bimu
from spikecl.continual.metaplasticity.cascade import Cascade
from spikecl.continual.metaplasticity.half import HalfFineTuning
from spikecl.continual.metaplasticity.laborieux import Laborieux
from spikecl.continual.metaplasticity.mesu import Mesu
from spikecl.continual.metaplasticity.tacos import Tacos
from spikecl.continual.method import Context, Method, MethodSpec, Phase
from spikecl.continual.normalisation.task_norms import TaskNorms
from spikecl.continual.projection.adam_nscl import AdamNscl
from spikecl.continual.projection.cuber import Cuber
from spikecl.continual.projection.gpm import Gpm
from spikecl.continual.projection.hlop import Hlop
from spikecl.continual.projection.if2net import If2Net
from spikecl.continual.projection.inhibition import Inhibition
from spikecl.continual.projection.ncl import Ncl
from spikecl.continual.projection.ogd import Ogd, PcaOgd
from spikecl.continual.projection.owm import Owm
from spikecl.continual.projection.sgp import Sgp
from spikecl.continual.projection.trgp import Trgp
from spikecl.continual.projection.two_sided import TwoSided
from spikecl.continual.replay.er import ExperienceReplay

__all__ = [
    "AdamNscl",
    "BennaFusi",
    "Bimu",
    "Cascade",
    "Composition",
    "Context",
    "Cuber",
    "Dendrites",
    "Ewc",
    "ExperienceReplay",
    "Finetune",
    "FiringRates",
    "Gating",
    "Geometry",
    "Gpm",
    "HalfFineTuning",
    "Hlop",
    "Host",
    "If2Net",
    "Inhibition",
    "JointTraining",
    "L2",
    "Laborieux",
    "Mas",
    "Mesu",
    "Method",
    "MethodSpec",
    "Ncl",
    "Need",
    "Ogd",
    "Owm",
    "PcaOgd",
    "Phase",
    "Scaling",
    "Seen",
    "Sgp",
    "Si",
    "Sleep",
    "Tacos",
    "TaskNorms",
    "Threshold",
    "Trgp",
    "TwoSided",
    "transmitted",
]
