"""A trained network with the data it was trained and tested on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from spikecl_hardware.graph import Meta
from torch import Tensor

from spikecl.components import from_table
from spikecl.encoding import Encoder
from spikecl.encoding.encoders import InputStatistics
from spikecl.errors import RunError, UsageError
from spikecl.experiments.config import parse_config
from spikecl.experiments.job import Job
from spikecl.experiments.result import RunResult
from spikecl.interop.meta import meta_of, together
from spikecl.learner import Heads
from spikecl.learner.statistics import first_statistics
from spikecl.networks import Network
from spikecl.networks.build import Head
from spikecl.records import RunRecord
from spikecl.registry import ENCODINGS, NETWORKS
from spikecl.seeds import Seeds
from spikecl.streams import Experience, Reveal, Stream


class EncodedBatch(NamedTuple):
    """Encoded test samples [T, B, *features], their labels, and where they begin in their set."""

    x: Tensor
    y: Tensor
    start: int


class TaskData:
    """The data of a stream as an encoder gives them, and what counts as a right answer.

    Args:
        stream: Tasks.
        encoder: Of their samples.
        statistics: What it centres by; by default those of the first experience.
        seed: Root of what a random encoder draws: the same each time.
        head: Whose outputs compete.
    """

    def __init__(
        self,
        stream: Stream,
        encoder: Encoder,
        *,
        statistics: InputStatistics | None = None,
        seed: int = 0,
        head: Head = "single",
    ):
        self.stream, self.encoder, self.seed = stream, encoder, seed
        self.statistics = first_statistics(stream) if statistics is None else statistics
        self.heads = Heads(head, stream, torch.device("cpu"))
        self.heads.seen[:] = True
        self.aware = Reveal.TASK_ID_EVAL in stream.reveal

    @classmethod
    def of_config(
        cls,
        config: Mapping[str, Any],
        *,
        statistics: InputStatistics | None = None,
        data_dir: Path | None = None,
    ) -> TaskData:
        """Return the data of a configuration, given as a table."""
        job = job_of(config, data_dir)
        return cls(job.stream, job.encoder, statistics=statistics, seed=job.seed, head=job.head)

    @property
    def sets(self) -> list[str]:
        """Names of the test sets, one for each task."""
        return list(self.stream.eval_sets)

    def size(self, name: str) -> int:
        """Return the number of samples of a test set."""
        return len(self.stream.eval_sets[name].samples.load())

    def batches(
        self, name: str, *, size: int = 250, samples: int | None = None
    ) -> Iterator[EncodedBatch]:
        """Yield the encoded samples of a test set; random encoders draw the same each time."""
        loaded = self.stream.eval_sets[name].samples.load()
        total = len(loaded) if samples is None else min(samples, len(loaded))
        place = self.sets.index(name)
        for start in range(0, total, size):
            batch = loaded.take(slice(start, min(start + size, total)))
            assert batch.y is not None
            yield EncodedBatch(self.encode(batch.x, "simulate", place, start), batch.y, start)

    def hits(self, logits: Tensor, y: Tensor, name: str) -> int:
        """Return how many answers are right; among the task's classes where a run knew the task."""
        if logits.shape[1] != self.heads.outputs:
            raise UsageError(
                f"the network has {logits.shape[1]} answers, the data have {self.heads.outputs} "
                "classes; use data with the same"
            )
        test = self.stream.eval_sets[name]
        made = self.heads.test(logits, self.stream.task_of(name))
        mask = self.heads.class_mask(test.classes)
        if self.aware and mask is not None:
            made = made + mask
        return int((made.argmax(1) == y).sum())

    def calibration(self, samples: int) -> Tensor:
        """Return encoded training samples [T, B, *features], as many of each experience."""
        events = [e for e in self.stream if isinstance(e, Experience)]
        each = -(-samples // len(events))
        parts = []
        for event in events:
            loaded = event.train.load()
            picked = np.linspace(0, len(loaded) - 1, min(each, len(loaded))).astype(int)
            rows = torch.from_numpy(picked)
            parts.append(self.encode(loaded.take(rows).x, "calibrate", event.index))
        return together(parts)

    def encode(self, x: Tensor, name: str, event: int, step: int = 0) -> Tensor:
        """Return samples as input over time."""
        generator = None
        if self.encoder.random:
            generator = Seeds(self.seed).generator(name, event=event, step=step)
        return self.encoder.encode(x, self.statistics, generator)

    def meta(self, calibration: Tensor, config: Mapping[str, Any] | None = None) -> Meta:
        """Return what a file says beside the network."""
        return meta_of(
            calibration,
            self.stream,
            self.encoder,
            self.statistics,
            encode=lambda x: self.encode(x, "calibrate", 0),
            outputs=self.heads.outputs,
            config=config,
        )


class Trained(NamedTuple):
    """What a run ended with: the network, its data, and the configuration it came from."""

    network: Network
    tests: TaskData
    config: Mapping[str, Any] | None

    @classmethod
    def of(
        cls, record: RunRecord, *, stream: Stream | None = None, data_dir: Path | None = None
    ) -> Trained:
        """Return what a finished run ended with.

        Args:
            record: The run.
            stream: Of a run that was made from Python objects, which has no configuration.
            data_dir: Folder with data sets, of one that has.

        Raises:
            RunError: The run is not finished, or its stream is needed or another one.
            UsageError: What it learned is on the chip.
        """
        run = record.run
        if not record.finished:
            raise RunError(
                f"run {record.id} is not finished (status {run['status']}); resume it first"
            )
        if record.on_chip:
            raise UsageError(
                f"run {record.id} went on on the chip, and its weights in floats are those of its "
                f"export; what it learned is the program {record.chip_path}, which simulate takes"
            )
        if run["config"] is not None and stream is None:
            tests = TaskData.of_config(run["config"], data_dir=data_dir)
        elif stream is None:
            raise RunError(
                f"run {record.id} was made from Python objects; hand in its stream as well "
                "(stream=...)"
            )
        else:
            tests = cls._of_identity(record, stream)
        return cls(RunResult(record).network(), tests, run["config"])

    @staticmethod
    def _of_identity(record: RunRecord, stream: Stream) -> TaskData:
        run, identity = record.run, record.run["identity"]
        if stream.fingerprint() != run["stream_fingerprint"]:
            raise UsageError(f"run {record.id} was trained on another stream; hand in that one")
        if identity is None:
            raise RunError(
                f"run {record.id} used a component that is not registered; pass its network to "
                "spikecl.export(network, path, ...)"
            )
        (name, table), (network, options) = identity["encoding"][0], identity["network"][0]
        spec = from_table(NETWORKS.get(network), options, f"network.{network}")
        encoder = from_table(ENCODINGS.get(name), table, f"encoding.{name}")
        return TaskData(stream, encoder, seed=identity["seed"], head=spec.head)


def job_of(config: Mapping[str, Any], data_dir: Path | None) -> Job:
    """Return the job of a configuration, given as a table."""
    table = {k: dict(v) for k, v in config.items()}
    return Job.from_config(parse_config(table), data_dir=data_dir)
