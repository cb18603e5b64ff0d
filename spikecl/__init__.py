"""spikecl: spiking networks that keep learning without forgetting.

Names are imported when they are first used, so ``import spikecl`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikecl.components import component as component
    from spikecl.continual import Finetune as Finetune
    from spikecl.continual import Hlop as Hlop
    from spikecl.continual import JointTraining as JointTraining
    from spikecl.continual import Method as Method
    from spikecl.continual import MethodSpec as MethodSpec
    from spikecl.data import Data as Data
    from spikecl.data import Frames as Frames
    from spikecl.data import load as load_data
    from spikecl.encoding import CrossEntropy as CrossEntropy
    from spikecl.encoding import Delta as Delta
    from spikecl.encoding import Direct as Direct
    from spikecl.encoding import Latency as Latency
    from spikecl.encoding import Phase as Phase
    from spikecl.encoding import Population as Population
    from spikecl.encoding import Rate as Rate
    from spikecl.encoding import Sequence as Sequence
    from spikecl.experiments import RunResult as RunResult
    from spikecl.experiments import load as load
    from spikecl.experiments import load_config as load_config
    from spikecl.experiments import resume as resume
    from spikecl.experiments import run as run
    from spikecl.experiments import run_config as run_config
    from spikecl.experiments import run_seeds as run_seeds
    from spikecl.experiments.config import CheckpointPolicy as CheckpointPolicy
    from spikecl.experiments.export import export as export
    from spikecl.experiments.simulate import simulate as simulate
    from spikecl.interop import to_brian2 as to_brian2
    from spikecl.kernels import scan as scan
    from spikecl.learner import TrainPlan as TrainPlan
    from spikecl.networks import ConvNet as ConvNet
    from spikecl.networks import Mlp as Mlp
    from spikecl.networks import Network as Network
    from spikecl.networks import Recording as Recording
    from spikecl.networks import RecurrentNet as RecurrentNet
    from spikecl.networks import ResNet as ResNet
    from spikecl.networks import SpikingConvNet as SpikingConvNet
    from spikecl.networks import SpikingMlp as SpikingMlp
    from spikecl.networks import SpikingRecurrentNet as SpikingRecurrentNet
    from spikecl.networks import SpikingResNet as SpikingResNet
    from spikecl.networks import Stateful as Stateful
    from spikecl.networks import explain as explain
    from spikecl.networks import initialise as initialise
    from spikecl.neurons import ALIF as ALIF
    from spikecl.neurons import CUBA as CUBA
    from spikecl.neurons import IF as IF
    from spikecl.neurons import LIF as LIF
    from spikecl.neurons import PLIF as PLIF
    from spikecl.neurons import AdEx as AdEx
    from spikecl.neurons import ConductanceLIF as ConductanceLIF
    from spikecl.neurons import Izhikevich as Izhikevich
    from spikecl.neurons import LeakyIntegrator as LeakyIntegrator
    from spikecl.neurons import LoihiLIF as LoihiLIF
    from spikecl.neurons import Reset as Reset
    from spikecl.neurons import SigmaDelta as SigmaDelta
    from spikecl.neurons import carry as carry
    from spikecl.neurons import step as step
    from spikecl.optim import Adam as Adam
    from spikecl.optim import AdamW as AdamW
    from spikecl.optim import ScheduleFreeAdamW as ScheduleFreeAdamW
    from spikecl.optim import ScheduleFreeSgd as ScheduleFreeSgd
    from spikecl.optim import Sgd as Sgd
    from spikecl.plots import plot_comparison as plot_comparison
    from spikecl.report import write_report as write_report
    from spikecl.seeds import Seeds as Seeds
    from spikecl.streams import CLASS_IL as CLASS_IL
    from spikecl.streams import DOMAIN_IL as DOMAIN_IL
    from spikecl.streams import TASK_IL as TASK_IL
    from spikecl.streams import Reveal as Reveal
    from spikecl.streams import Stream as Stream
    from spikecl.streams import concept_shift as concept_shift
    from spikecl.streams import domains as domains
    from spikecl.streams import drifting as drifting
    from spikecl.streams import joint as joint
    from spikecl.streams import permuted as permuted
    from spikecl.streams import rotated as rotated
    from spikecl.streams import split_classes as split_classes
    from spikecl.trainers import Bptt as Bptt

__version__ = "0.1.0"

_HOMES = {
    "ALIF": "neurons",
    "AdEx": "neurons",
    "Adam": "optim",
    "AdamW": "optim",
    "Bptt": "trainers",
    "CLASS_IL": "streams",
    "CUBA": "neurons",
    "CheckpointPolicy": "experiments.config",
    "ConductanceLIF": "neurons",
    "ConvNet": "networks",
    "CrossEntropy": "encoding",
    "DOMAIN_IL": "streams",
    "Data": "data",
    "Delta": "encoding",
    "Direct": "encoding",
    "Finetune": "continual",
    "Frames": "data",
    "Hlop": "continual",
    "IF": "neurons",
    "Izhikevich": "neurons",
    "JointTraining": "continual",
    "LIF": "neurons",
    "Latency": "encoding",
    "LeakyIntegrator": "neurons",
    "LoihiLIF": "neurons",
    "Method": "continual",
    "MethodSpec": "continual",
    "Mlp": "networks",
    "Network": "networks",
    "PLIF": "neurons",
    "Phase": "encoding",
    "Population": "encoding",
    "Rate": "encoding",
    "Recording": "networks",
    "RecurrentNet": "networks",
    "ResNet": "networks",
    "Reset": "neurons",
    "Reveal": "streams",
    "RunResult": "experiments",
    "ScheduleFreeAdamW": "optim",
    "ScheduleFreeSgd": "optim",
    "Seeds": "seeds",
    "Sequence": "encoding",
    "Sgd": "optim",
    "SigmaDelta": "neurons",
    "SpikingConvNet": "networks",
    "SpikingMlp": "networks",
    "SpikingRecurrentNet": "networks",
    "SpikingResNet": "networks",
    "Stateful": "networks",
    "Stream": "streams",
    "TASK_IL": "streams",
    "TrainPlan": "learner",
    "carry": "neurons",
    "component": "components",
    "concept_shift": "streams",
    "domains": "streams",
    "drifting": "streams",
    "explain": "networks",
    "export": "experiments.export",
    "initialise": "networks",
    "joint": "streams",
    "load": "experiments",
    "load_config": "experiments",
    "load_data": "data:load",
    "permuted": "streams",
    "plot_comparison": "plots",
    "resume": "experiments",
    "rotated": "streams",
    "run": "experiments",
    "run_config": "experiments",
    "run_seeds": "experiments",
    "scan": "kernels",
    "simulate": "experiments.simulate",
    "split_classes": "streams",
    "step": "neurons",
    "to_brian2": "interop",
    "write_report": "report",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spikecl' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(f"spikecl.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
