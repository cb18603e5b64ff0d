"""Names of components: name → ``module:attribute``, imported when asked for.

Other packages add their own through entry points of the group ``spikecl.<kind>s``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from spikecl.errors import UsageError, suggest


@dataclass(frozen=True, slots=True)
class Registry:
    """A table of one kind of component, for the command line and configuration files."""

    kind: str
    table: Mapping[str, str]

    def _all(self) -> dict[str, str]:
        found = dict(self.table)
        plural = f"{self.kind}es" if self.kind.endswith("s") else f"{self.kind}s"
        for point in entry_points(group=f"spikecl.{plural}"):
            if found.setdefault(point.name, point.value) != point.value:
                raise UsageError(
                    f"two packages offer the {self.kind} '{point.name}': {found[point.name]} and "
                    f"{point.value}; uninstall one"
                )
        return found

    def names(self) -> tuple[str, ...]:
        """Return every known name, sorted."""
        return tuple(sorted(self._all()))

    def get(self, name: str) -> Any:
        """Import and return what a name stands for."""
        table = self._all()
        if name not in table:
            raise UsageError(f"unknown {self.kind} '{name}'{suggest(name, table)}")
        module, attribute = table[name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def name_of(self, cls: type[Any]) -> str | None:
        """Return the name a class is registered under, or ``None``."""
        place = f"{cls.__module__}:{cls.__qualname__}"
        own = [name for name, value in self.table.items() if value == place]
        return own[0] if own else next((n for n, v in self._all().items() if v == place), None)


STREAMS = Registry(
    "stream",
    {
        "permuted": "spikecl.streams.scenarios:Permuted",
        "rotated": "spikecl.streams.scenarios:Rotated",
        "split_classes": "spikecl.streams.scenarios:SplitClasses",
        "joint": "spikecl.streams.scenarios:Joint",
        "domains": "spikecl.streams.domains:Domains",
        "concept_shift": "spikecl.streams.shifts:ConceptShift",
        "drifting": "spikecl.streams.mixtures:Drifting",
    },
)
ENCODINGS = Registry(
    "encoding",
    {
        "direct": "spikecl.encoding.encoders:Direct",
        "rate": "spikecl.encoding.encoders:Rate",
        "latency": "spikecl.encoding.timing:Latency",
        "phase": "spikecl.encoding.timing:Phase",
        "population": "spikecl.encoding.population:Population",
        "sequence": "spikecl.encoding.temporal:Sequence",
        "delta": "spikecl.encoding.temporal:Delta",
        "sigma_delta": "spikecl.encoding.temporal:SigmaDelta",
    },
)
LOSSES = Registry(
    "loss",
    {
        "cross_entropy": "spikecl.encoding.losses:CrossEntropy",
        "step_cross_entropy": "spikecl.encoding.losses:StepCrossEntropy",
        "tet": "spikecl.encoding.losses:Tet",
        "step_mse": "spikecl.encoding.losses:StepMse",
        "count_mse": "spikecl.encoding.losses:CountMse",
        "max_membrane": "spikecl.encoding.losses:MaxMembrane",
        "first_spike": "spikecl.encoding.losses:FirstSpike",
    },
)
NETWORKS = Registry(
    "network",
    {
        "spiking_mlp": "spikecl.networks.build:SpikingMlp",
        "mlp": "spikecl.networks.build:Mlp",
        "spiking_recurrent": "spikecl.networks.build:SpikingRecurrentNet",
        "recurrent": "spikecl.networks.build:RecurrentNet",
        "spiking_conv": "spikecl.networks.convolutional:SpikingConvNet",
        "conv": "spikecl.networks.convolutional:ConvNet",
        "spiking_resnet": "spikecl.networks.convolutional:SpikingResNet",
        "resnet": "spikecl.networks.convolutional:ResNet",
    },
)
TRAINERS = Registry(
    "trainer",
    {
        "bptt": "spikecl.trainers.bptt:Bptt",
        "tbptt": "spikecl.trainers.bptt:Tbptt",
        "eprop": "spikecl.trainers.eprop:Eprop",
        "eventprop": "spikecl.trainers.eventprop:EventProp",
        "ottt": "spikecl.trainers.ottt:Ottt",
        "sltt": "spikecl.trainers.ottt:Sltt",
        "ostl": "spikecl.trainers.ostl:Ostl",
        "osttp": "spikecl.trainers.ostl:Osttp",
        "decolle": "spikecl.trainers.decolle:Decolle",
        "spsa": "spikecl.trainers.zeroth.spsa:Spsa",
        "evolution": "spikecl.trainers.zeroth.evolution:Evolution",
        "forward_gradient": "spikecl.trainers.zeroth.forward_gradient:ForwardGradient",
        "stdp": "spikecl.trainers.local.stdp:Stdp",
        "triplet_stdp": "spikecl.trainers.local.triplet:TripletStdp",
        "reward_stdp": "spikecl.trainers.local.reward:RewardStdp",
        "hebb": "spikecl.trainers.local.hebb:Hebb",
        "oja": "spikecl.trainers.local.oja:Oja",
        "subspace": "spikecl.trainers.local.subspace:Subspace",
        "sanger": "spikecl.trainers.local.sanger:Sanger",
        "bcm": "spikecl.trainers.local.bcm:Bcm",
        "vogels": "spikecl.trainers.local.vogels:Vogels",
        "dsr": "spikecl.trainers.dsr:Dsr",
        "naca": "spikecl.trainers.naca:Naca",
    },
)
OPTIMISERS = Registry(
    "optimiser",
    {
        "sgd": "spikecl.optim.sgd:Sgd",
        "adam": "spikecl.optim.adam:Adam",
        "adamw": "spikecl.optim.adam:AdamW",
        "schedule_free_sgd": "spikecl.optim.schedule_free:ScheduleFreeSgd",
        "schedule_free_adamw": "spikecl.optim.schedule_free:ScheduleFreeAdamW",
    },
)
METHODS = Registry(
    "method",
    {
        "finetune": "spikecl.continual.finetune:Finetune",
        "joint": "spikecl.continual.joint:JointTraining",
        "geometry": "spikecl.continual.geometry:Geometry",
        "hlop": "spikecl.continual.projection.hlop:Hlop",
        "inhibition": "spikecl.continual.projection.inhibition:Inhibition",
        "er": "spikecl.continual.replay.er:ExperienceReplay",
        "gpm": "spikecl.continual.projection.gpm:Gpm",
        "sgp": "spikecl.continual.projection.sgp:Sgp",
        "owm": "spikecl.continual.projection.owm:Owm",
        "adam_nscl": "spikecl.continual.projection.adam_nscl:AdamNscl",
        "trgp": "spikecl.continual.projection.trgp:Trgp",
        "cuber": "spikecl.continual.projection.cuber:Cuber",
        "ncl": "spikecl.continual.projection.ncl:Ncl",
        "ewc": "spikecl.continual.importance.ewc:Ewc",
        "si": "spikecl.continual.importance.si:Si",
        "mas": "spikecl.continual.importance.mas:Mas",
        "l2": "spikecl.continual.importance.l2:L2",
        "two_sided": "spikecl.continual.projection.two_sided:TwoSided",
        "ogd": "spikecl.continual.projection.ogd:Ogd",
        "pca_ogd": "spikecl.continual.projection.ogd:PcaOgd",
        "if2net": "spikecl.continual.projection.if2net:If2Net",
        "laborieux": "spikecl.continual.metaplasticity.laborieux:Laborieux",
        "benna_fusi": "spikecl.continual.metaplasticity.benna_fusi:BennaFusi",
        "tacos": "spikecl.continual.metaplasticity.tacos:Tacos",
        "cascade": "spikecl.continual.metaplasticity.cascade:Cascade",
        "mesu": "spikecl.continual.metaplasticity.mesu:Mesu",
        "bimu": "spikecl.continual.metaplasticity.bimu:Bimu",
        "task_norms": "spikecl.continual.normalisation.task_norms:TaskNorms",
        "half": "spikecl.continual.metaplasticity.half:HalfFineTuning",
        "threshold": "spikecl.continual.homeostasis.threshold:Threshold",
        "scaling": "spikecl.continual.homeostasis.scaling:Scaling",
        "rates": "spikecl.continual.homeostasis.rates:FiringRates",
        "need": "spikecl.continual.homeostasis.need:Need",
        "gating": "spikecl.continual.homeostasis.gating:Gating",
        "dendrites": "spikecl.continual.homeostasis.dendrites:Dendrites",
        "sleep": "spikecl.continual.homeostasis.sleep:Sleep",
    },
)
