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
    from spikecl.data import load as load_data
    from spikecl.encoding import Direct as Direct
    from spikecl.encoding import Rate as Rate
    from spikecl.experiments import RunResult as RunResult
    from spikecl.experiments import load as load
    from spikecl.experiments import load_config as load_config
    from spikecl.experiments import run as run
    from spikecl.experiments import run_config as run_config
    from spikecl.experiments import run_seeds as run_seeds
    from spikecl.experiments.config import CheckpointPolicy as CheckpointPolicy
    from spikecl.learner import TrainPlan as TrainPlan
    from spikecl.networks import Mlp as Mlp
    from spikecl.networks import Network as Network
    from spikecl.networks import SpikingMlp as SpikingMlp
    from spikecl.networks import explain as explain
    from spikecl.neurons import LIF as LIF
    from spikecl.optim import Adam as Adam
    from spikecl.optim import Sgd as Sgd
    from spikecl.plots import plot_comparison as plot_comparison
    from spikecl.report import write_report as write_report
    from spikecl.seeds import Seeds as Seeds
    from spikecl.streams import Stream as Stream
    from spikecl.streams import joint as joint
    from spikecl.streams import permuted as permuted
    from spikecl.streams import rotated as rotated
    from spikecl.streams import split_classes as split_classes
    from spikecl.trainers import Bptt as Bptt

__version__ = "0.1.0"

_HOMES = {
    "Adam": "optim",
    "Bptt": "trainers",
    "CheckpointPolicy": "experiments.config",
    "Data": "data",
    "Direct": "encoding",
    "Finetune": "continual",
    "Hlop": "continual",
    "JointTraining": "continual",
    "LIF": "neurons",
    "Method": "continual",
    "MethodSpec": "continual",
    "Mlp": "networks",
    "Network": "networks",
    "Rate": "encoding",
    "RunResult": "experiments",
    "Seeds": "seeds",
    "Sgd": "optim",
    "SpikingMlp": "networks",
    "Stream": "streams",
    "TrainPlan": "learner",
    "component": "components",
    "explain": "networks",
    "joint": "streams",
    "load": "experiments",
    "load_config": "experiments",
    "load_data": "data:load",
    "permuted": "streams",
    "plot_comparison": "plots",
    "rotated": "streams",
    "run": "experiments",
    "run_config": "experiments",
    "run_seeds": "experiments",
    "split_classes": "streams",
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
