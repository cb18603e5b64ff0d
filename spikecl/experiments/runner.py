"""Run a job: from a configuration or from Python, to a directory with its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spikecl import encoding
from spikecl.continual import Finetune, MethodSpec
from spikecl.encoding import CrossEntropy, Direct, Encoder, Loss
from spikecl.errors import Interrupted, RunError, UsageError
from spikecl.experiments.config import CheckpointPolicy, Config, parse_config
from spikecl.experiments.cost import event_cost, measure_cost, tasks_cost
from spikecl.experiments.directory import RunDirectory
from spikecl.experiments.environment import check_format, check_same, describe
from spikecl.experiments.job import Job, exported, first_batch
from spikecl.experiments.progress import Show, Tracker
from spikecl.experiments.result import RunResult
from spikecl.kernels import Kernels, keep_freed_memory
from spikecl.learner import ExportPlan, Learner, TrainPlan
from spikecl.learner.plan import Initial
from spikecl.networks import Network, NetworkSpec, SpikingMlp
from spikecl.networks.network import count_parameters
from spikecl.optim import OptimiserSpec, Sgd
from spikecl.records import FORMAT_VERSION, RunRecord, event_name, matrix_table
from spikecl.signals import StopRequest, stop_on_signals
from spikecl.storage import save_state
from spikecl.streams import Export, Stream
from spikecl.trainers import Bptt, Trainer


def run(
    stream: Stream,
    network: NetworkSpec | Network | None = None,
    trainer: Trainer | None = None,
    methods: Sequence[MethodSpec] = (),
    *,
    encoder: Encoder | None = None,
    loss: Loss | None = None,
    optimiser: OptimiserSpec | None = None,
    plan: TrainPlan | None = None,
    checkpoint: CheckpointPolicy | None = None,
    seed: int = 0,
    threads: int = 1,
    device: str = "cpu",
    kernels: Kernels | None = None,
    initial: Initial = "drawn",
    export: ExportPlan | None = None,
    runs_dir: str | Path = "runs",
    show: Show | None = None,
) -> RunResult:
    """Train a network on a stream and return the result.

    The same call again returns the finished result, or goes on where it was interrupted. A run
    with a component of your own (one that is not registered) is always computed afresh.

    Args:
        stream: Tasks, e.g. ``spikecl.permuted(spikecl.load_data("digits"), experiences=4)``.
        network: Description of the network; default :class:`SpikingMlp`.
        trainer: Credit assignment; default :class:`Bptt`.
        methods: Continual-learning methods to compose; default fine-tuning.
        encoder: Intensities to input over time; default :class:`Direct`, or :class:`Sequence` for
            samples that have time.
        loss: Loss of the network's output; default :class:`CrossEntropy`.
        optimiser: Default :class:`Sgd`.
        plan: Epochs and batches.
        checkpoint: When to save.
        seed: Root of the run's randomness (the stream has a seed of its own).
        threads: Threads to compute with.
        device: ``"cpu"`` or ``"cuda"``.
        kernels: How layers are computed; ``None`` is as the network says (``auto``).
        initial: ``"given"`` goes on from the weights of a network that is handed in; otherwise
            they are drawn.
        export: Where in the stream the network is exported, and how the chip goes on learning.
        runs_dir: Where run directories go.
        show: Called with a :class:`Progress` now and then.

    Raises:
        PairingError: A component needs what the stream hides.
        Interrupted: Stopped by Ctrl-C or SIGTERM; state is saved.
        NonFiniteLossError: The loss became infinite or NaN.

    Example:
        >>> import spikecl, tempfile
        >>> stream = spikecl.permuted(spikecl.load_data("digits"), experiences=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = spikecl.run(stream, spikecl.SpikingMlp(hidden=(50,)), runs_dir=folder)
        ...     result.matrix.shape
        (3, 2)
    """
    job = Job(
        stream=exported(stream, export),
        network=network or SpikingMlp(),
        encoder=encoder or (encoding.Sequence() if stream.temporal else Direct()),
        loss=loss or CrossEntropy(),
        trainer=trainer or Bptt(),
        methods=tuple(methods) or (Finetune(),),
        optimiser=optimiser or Sgd(),
        plan=plan or TrainPlan(),
        checkpoint=checkpoint or CheckpointPolicy(),
        seed=seed,
        threads=threads,
        device=device,
        kernels=kernels,
        initial=initial,
        export=export,
    )
    if initial not in ("drawn", "given") or (
        initial == "given" and not isinstance(network, Network)
    ):
        raise UsageError(
            f"initial={initial!r}; 'drawn' is allowed, and 'given' with a Network that has weights"
        )
    return execute(job, Path(runs_dir), show=show)


def run_config(
    config: Config,
    *,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    show: Show | None = None,
) -> RunResult:
    """Run a configuration; see :func:`run`."""
    job = Job.from_config(config, data_dir=None if data_dir is None else Path(data_dir))
    return execute(job, Path(runs_dir), show=show)


def resume(
    record: RunRecord, *, data_dir: str | Path | None = None, show: Show | None = None
) -> RunResult:
    """Finish an interrupted run from its directory."""
    recorded = record.run
    check_format(recorded, record.id)
    if recorded["config"] is None:
        raise RunError(
            f"run {record.id} was made from Python objects; call spikecl.run with the same "
            "arguments to resume it"
        )
    table = {k: dict(v) for k, v in recorded["config"].items()}
    job = Job.from_config(
        parse_config(table), data_dir=None if data_dir is None else Path(data_dir)
    )
    if job.run_id() != record.id:
        raise RunError(
            f"run {record.id} would now be {job.run_id()}: its data or a component changed; "
            "start it again with 'spikecl run'"
        )
    return execute(job, record.path.parent, show=show)


def execute(job: Job, runs_dir: Path, *, show: Show | None = None) -> RunResult:
    """Run a job in its directory: start, resume, or return what is finished."""
    record = RunRecord(runs_dir / job.run_id())
    if record.finished:
        check_format(record.run, record.id)
        return RunResult(record)
    keep_freed_memory()
    with _threads(job.threads), stop_on_signals() as stop:
        learner = job.learner()
        directory = RunDirectory(record.path)
        try:
            if not (record.path / "summary.json").exists():  # nobody finished it meanwhile
                _open(job, learner, directory)
                _drive(job, learner, directory, stop, show)
                _finish(job, learner, directory)
        except Interrupted:
            directory.set_status("interrupted")
            raise
        except Exception as error:
            if not isinstance(error, RunError):  # of a run that cannot be written, say nothing
                directory.set_status("failed")
            raise
        finally:
            directory.close()
    return RunResult(record)


def _open(job: Job, learner: Learner, directory: RunDirectory) -> None:
    """Write ``run.json`` for a new run; check and restore an old one."""
    batch = first_batch(learner)
    now = describe(learner.network, batch, learner.device)
    if not (directory.path / "run.json").exists():
        directory.write("run.json", _run_json(job, now))
        return
    recorded = directory.read("run.json")
    check_format(recorded, directory.path.name)
    check_same(recorded["environment"], now, directory.path.name)
    state = directory.restore()
    if state is not None:
        try:
            learner.load_state_dict(state)
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise RunError(
                f"checkpoint {directory.checkpoints()[-1]} is damaged ({error!r}); delete this "
                "folder to resume from an earlier one"
            ) from None
    directory.set_status("running")


def _drive(
    job: Job, learner: Learner, directory: RunDirectory, stop: StopRequest, show: Show | None
) -> None:
    """Let the learner run; save at events, every n steps, and when asked to stop."""
    every, keep = job.checkpoint.every_steps, job.checkpoint.keep
    tracker = Tracker(directory.path.name, learner, show)
    batch, exports = first_batch(learner), exports_of(job.stream)
    for tick in learner.ticks():
        directory.steps.append(tick.rows)
        ended = tick.position.event - 1
        if tick.kind == "event" and learner.samples_of_event:
            made = event_cost(learner, batch, event_name(ended, exports))
            row = learner.row(COST, "operations", made)
            directory.steps.append([{**row, "event": ended}])
        if tick.kind != "step":
            directory.note_time(tick.position.event, tick.position.samples)
            tracker.update()
        due = every and tick.kind in ("step", "window") and tick.position.step % every == 0
        if tick.kind == "event" or due or stop.asked:
            learner.check_finite()
            directory.save(learner.state_dict(), keep=keep)
        if stop.asked:
            raise Interrupted(
                f"stopped; saved in {directory.path}; 'spikecl resume {directory.path}' or the "
                "same command again goes on"
            )


def _finish(job: Job, learner: Learner, directory: RunDirectory) -> None:
    """Write the final files; the summary last, since it says that the run is finished."""
    aware, agnostic = learner.scores.matrices()
    own = aware if job.chosen_matrix == "aware" else agnostic
    directory.steps.sync()
    directory.prune(keep=job.checkpoint.keep)  # a kill may have come before the last one's
    directory.write(
        "matrix.json",
        matrix_table(
            aware.values,
            agnostic.values,
            columns=list(job.stream.eval_sets),
            chosen=job.chosen_matrix,
            exports=exports_of(job.stream),
        ),
    )
    cost = measure_cost(learner, first_batch(learner))
    if learner.chip is not None:
        cost = {"of": "the network in floats, as it was exported", **cost}
    events = [row["value"] for row in RunRecord(directory.path).steps() if row["phase"] == COST]
    directory.write("cost.json", {**cost, "tasks": tasks_cost(events)})
    if learner.chip is not None:
        path = RunRecord(directory.path).chip_path
        path.parent.mkdir(exist_ok=True)
        learner.chip.named(job.config).save(path)
    network = learner.network
    save_state(directory.path / "weights", {**network.weights(), **network.statistics()})
    directory.set_status("finished")
    wall, cpu = directory.elapsed()
    directory.write(
        "summary.json",
        {
            "format_version": FORMAT_VERSION,
            "run": directory.path.name,
            **job.names(),
            "seed": job.seed,
            **own.summary(),
            "acc_task_aware": aware.acc(),
            "acc_task_agnostic": agnostic.acc(),
            "final_accuracies": [float(v) for v in own.final],
            "parameters": count_parameters(learner.network),
            "method_bytes": learner.method_bytes,
            "wall_s": wall,
            "cpu_s": cpu,
        },
    )


COST = "cost"


def exports_of(stream: Stream) -> list[int]:
    """Return the places of exports in a stream."""
    return [event.index for event in stream if isinstance(event, Export)]


def _run_json(job: Job, environment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "status": "running",
        **job.names(),
        "seed": job.seed,
        "stream_fingerprint": job.stream.fingerprint(),
        "reveal": job.stream.reveal.names(),
        "input_shape": list(job.input_shape),
        "outputs": job.outputs,
        "config": job.config,
        "identity": job.identity(),
        "environment": environment,
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
