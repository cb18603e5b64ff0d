"""A job: everything a run needs, and the name its results go under."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from spikecl.components import UnnamedError, to_table
from spikecl.continual import MethodSpec
from spikecl.continual.compose import method_name
from spikecl.data import Data, first_samples, fold, hold_out, load
from spikecl.encoding import CrossEntropy, Encoder, Loss
from spikecl.errors import ConfigError, KernelError, UsageError
from spikecl.experiments.config import CheckpointPolicy, Config, DataOptions
from spikecl.experiments.environment import choose_device
from spikecl.kernels import AUTO, Kernels
from spikecl.learner import ExportPlan, Heads, Learner, TrainPlan
from spikecl.learner.pairing import check_time
from spikecl.learner.plan import Initial
from spikecl.networks import Network, NetworkSpec
from spikecl.networks.build import Head
from spikecl.optim import OptimiserSpec
from spikecl.registry import (
    ENCODINGS,
    LOSSES,
    METHODS,
    NETWORKS,
    OPTIMISERS,
    TRAINERS,
    Registry,
)
from spikecl.seeds import Seeds
from spikecl.streams import Reveal, Stream
from spikecl.trainers import Trainer

LONGEST_NAME = 120  # of a run directory, before seed and hash


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What is to be run. ``config`` is the file's table where the run came from one."""

    stream: Stream
    network: NetworkSpec | Network
    encoder: Encoder
    trainer: Trainer
    methods: tuple[MethodSpec, ...]
    optimiser: OptimiserSpec
    plan: TrainPlan
    checkpoint: CheckpointPolicy
    seed: int
    threads: int
    device: str
    config: Mapping[str, Any] | None = None
    loss: Loss = CrossEntropy()
    kernels: Kernels | None = None
    initial: Initial = "drawn"
    export: ExportPlan | None = None

    @classmethod
    def from_config(cls, config: Config, *, data_dir: Path | None) -> Job:
        """Load the data and make the stream of a configuration."""
        data = chosen_data(config.data, data_dir)
        return cls(
            stream=exported(config.stream.make(data, config.run.seed), config.export),
            network=config.network,
            encoder=config.encoding,
            trainer=config.trainer,
            methods=config.methods,
            optimiser=config.optimiser,
            plan=config.train,
            checkpoint=config.checkpoint,
            seed=config.run.seed,
            threads=config.run.threads,
            device=config.run.device,
            config=config.table(),
            loss=config.loss,
            kernels=config.kernels,
            export=config.export,
        )

    def learner(self) -> Learner:
        """Return a learner at the start."""
        network, device = self.network, choose_device(self.device)
        check_time(self.stream, self.encoder)
        if isinstance(network, NetworkSpec):
            network = network.build(self.input_shape, self.outputs)
        if self.kernels is not None:
            network.kernels = self.kernels
        learner = Learner(
            stream=self.stream,
            network=network,
            encoder=self.encoder,
            trainer=self.trainer,
            methods=self.methods,
            optimiser=self.optimiser,
            plan=self.plan,
            seeds=Seeds(self.seed),
            device=device,
            loss=self.loss,
            head=self.head,
            initial=self.initial,
            export=self.export,
        )
        check_shapes(learner)
        learner.prepare()
        return learner

    @property
    def head(self) -> Head:
        """Whose outputs compete."""
        return self.network.head if isinstance(self.network, NetworkSpec) else "single"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one step of the network's input."""
        return self.encoder.shape(self.stream.input_shape)

    @property
    def outputs(self) -> int:
        """Number of outputs the network needs."""
        return Heads(self.head, self.stream, torch.device("cpu")).outputs

    def names(self) -> dict[str, str]:
        """Return the names that stand in the summary."""
        return {
            "method": "+".join(method_name(spec) for spec in self.methods),
            "network": _name(NETWORKS, self.network),
            "trainer": _name(TRAINERS, self.trainer),
            "encoding": _name(ENCODINGS, self.encoder),
            "loss": _name(LOSSES, self.loss),
            "optimiser": _name(OPTIMISERS, self.optimiser),
            "stream": self.stream.name,
        }

    def identity(self) -> dict[str, Any] | None:
        """Return what the results depend on, or ``None`` if a part cannot be described.

        Only registered components can: code typed into a notebook may change under the same name.
        """
        parts: list[tuple[Registry, Sequence[Any]]] = [
            (NETWORKS, [self.network]),
            (ENCODINGS, [self.encoder]),
            (LOSSES, [self.loss]),
            (TRAINERS, [self.trainer]),
            (OPTIMISERS, [self.optimiser]),
            (METHODS, self.methods),
        ]
        table: dict[str, Any] = {}
        for registry, components in parts:
            names = [registry.name_of(type(c)) for c in components]
            if None in names:
                return None
            try:
                table[registry.kind] = [[n, to_table(c)] for n, c in zip(names, components)]
            except UnnamedError:
                return None
        return {
            **table,
            "train": to_table(self.plan),
            "kernels": to_table(self.kernels or AUTO),
            "threads": self.threads,
            "device": self.device,
            "seed": self.seed,
            "stream": self.stream.fingerprint(),
            **({} if self.export is None else {"export": to_table(self.export)}),
        }

    def run_id(self) -> str:
        """Return ``<stream>-<method>-s<seed>-<hash8>``; an unnamed run gets a random end."""
        identity = self.identity()
        text = uuid4().hex if identity is None else json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        prefix = "unnamed-" if identity is None else ""
        stem = f"{prefix}{self.stream.name}-{self.names()['method']}"
        return f"{re.sub(r'[^A-Za-z0-9_+.-]', '_', stem)[:LONGEST_NAME]}-s{self.seed}-{digest}"

    @property
    def chosen_matrix(self) -> str:
        """Which accuracy is the run's own: task-aware where the task is revealed."""
        return "aware" if Reveal.TASK_ID_EVAL in self.stream.reveal else "agnostic"


def exported(stream: Stream, plan: ExportPlan | None) -> Stream:
    """Return a stream with the export that a plan asks for."""
    return stream if plan is None else stream.exported(plan.after)


def chosen_data(options: DataOptions, data_dir: Path | None) -> Data:
    """Return the data that options name: a fold, fewer samples, a validation split."""
    data = load(options.name, data_dir=data_dir, frames=options.frames)
    if options.folds:
        data = fold(data, options.fold, options.folds)
    if options.samples:
        data = first_samples(data, options.samples)
    return hold_out(data, options.validation) if options.validation else data


def first_batch(learner: Learner) -> torch.Tensor:
    """Return a first encoded test batch, to see shapes and kernels with."""
    test = next(iter(learner.stream.eval_sets.values()))
    x = test.samples.load().take(slice(0, learner.plan.eval_batch)).x.to(learner.device)
    generator = learner.seeds.generator("probe") if learner.encoder.random else None
    return learner.encoder.encode(x, learner.statistics, generator)


@torch.no_grad()
def check_shapes(learner: Learner) -> None:
    """Refuse a network whose input or output does not fit the stream."""
    x, network, stream = first_batch(learner)[:, :1], learner.network, learner.stream
    given, needed = f"input {list(x.shape[2:])}", learner.heads.outputs
    try:
        output = network(x, generator=torch.Generator())
        outputs = output.logits.shape[-1]
    except KernelError:
        raise
    except (RuntimeError, UsageError) as error:
        raise ConfigError(
            f"the network does not take the {given} of stream '{stream.name}': {error}"
        ) from None
    if outputs != needed:
        raise ConfigError(
            f"the network gives {outputs} outputs; stream '{stream.name}' needs {needed}"
        )


def _name(registry: Registry, component: object) -> str:
    return registry.name_of(type(component)) or type(component).__name__
