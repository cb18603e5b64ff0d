"""Experiments: configuration, runs on disk, groups of seeds."""

from spikecl.experiments.config import Config, load_config, parse_config
from spikecl.experiments.group import GroupResult, run_seeds
from spikecl.experiments.result import RunResult, load
from spikecl.experiments.runner import resume, run, run_config

__all__ = [
    "Config",
    "GroupResult",
    "RunResult",
    "load",
    "load_config",
    "parse_config",
    "resume",
    "run",
    "run_config",
    "run_seeds",
]
