"""Training on: a run's network as whole numbers, on the run's own data."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from spikecl_hardware.graph import Meta
from spikecl_hardware.loihi.quantise import Options, quantise

from spikecl.errors import Interrupted, UsageError
from spikecl.experiments.export import CALIBRATE, is_whole
from spikecl.experiments.runner import run
from spikecl.experiments.trained import Trained, job_of
from spikecl.interop.boundary import as_input, hardware_errors
from spikecl.interop.loihi_networks import quantised
from spikecl.interop.nir_out import to_nir
from spikecl.networks import Network
from spikecl.optim import OptimiserSpec
from spikecl.records import RunRecord


class Tuned(NamedTuple):
    """A network of whole numbers, the shape of its input, and what its file has to say."""

    network: Network
    shape: tuple[int, ...]
    meta: Meta


def fine_tuned(
    record: RunRecord,
    *,
    epochs: int = 1,
    optimiser: OptimiserSpec | None = None,
    calibrate: int = CALIBRATE,
    options: Options | None = None,
    data_dir: str | Path | None = None,
) -> Tuned:
    """Return a run's network, trained for some more epochs with the chip's integers in it.

    The run's own trainer, methods, encoder and batch size go on from its weights; the optimiser
    starts afresh.

    Args:
        record: A finished run with one experience: a sequence has to be trained with
            ``LIF.loihi(...)`` from its start, since its old data are gone.
        epochs: How many.
        optimiser: By default the run's own.
        calibrate: Training samples that the scales are chosen on.
        options: How numbers become integers.
        data_dir: Folder with data sets.

    Raises:
        UsageError: The run has several experiences, or its neurons are Loihi's already.
        InteropError: A layer has no whole numbers.
    """
    folder = None if data_dir is None else Path(data_dir)
    original, tests, config = Trained.of(record, data_dir=folder)
    if config is None:
        raise UsageError(f"run {record.id} was made from Python objects; use quantised(...)")
    job = job_of(config, folder)
    if epochs < 1:
        raise UsageError(f"epochs={epochs}; 1 or more are allowed")
    if len(job.stream) != 1:
        raise UsageError(
            f"run {record.id} learned {len(job.stream)} experiences, and the data of the earlier "
            "ones are gone; train the sequence with neurons of whole numbers, LIF.loihi(...)"
        )
    if is_whole(original):
        raise UsageError(
            f"run {record.id} was trained on whole numbers already; export it without fine-tuning"
        )
    seen = tests.calibration(max(calibrate, 1))
    meta = tests.meta(seen, config)
    with hardware_errors():
        graph = to_nir(original, tuple(seen.shape[2:]), meta=meta)
        taken = tuple(int(n) for n in graph.nodes["input"].input_type["input"])
        x = as_input(seen, taken).numpy() if calibrate else None
        program = quantise(graph, calibration=x, options=options)
    network = quantised(original, program)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run(
                job.stream,
                network,
                job.trainer,
                job.methods,
                encoder=job.encoder,
                loss=job.loss,
                optimiser=optimiser or job.optimiser,
                plan=replace(job.plan, epochs=epochs),
                seed=job.seed,
                threads=job.threads,
                device=job.device,
                initial="given",
                runs_dir=scratch,
            )
        except Interrupted:
            raise Interrupted("fine-tuning was stopped; nothing was written") from None
    return Tuned(network.cpu(), tuple(seen.shape[2:]), meta)
