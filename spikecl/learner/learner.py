"""The host loop: a stream, a network, a trainer and methods make a generator of ticks.

The learner reads nothing, writes nothing and prints nothing. It can stop at any tick: its whole
state is in ``state_dict``, and a learner that takes it back goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from spikecl.continual.compose import Composition
from spikecl.continual.method import Context, Method, MethodSpec
from spikecl.encoding import CrossEntropy, Encoder, Loss
from spikecl.errors import UsageError
from spikecl.learner.calls import Calls
from spikecl.learner.chip import OnChip, check_export
from spikecl.learner.crossing import Crossing, chip_step
from spikecl.learner.evaluation import Evaluation
from spikecl.learner.heads import Heads
from spikecl.learner.host import LearnerHost
from spikecl.learner.inputs import Inputs
from spikecl.learner.pairing import (
    check_average,
    check_credit,
    check_draws,
    check_experiences,
    check_frozen,
    check_heads,
    check_input,
    check_loss,
    check_measures,
    check_membrane,
    check_network,
    check_pairings,
    check_rehearsal,
    check_restart,
    check_schedule,
    check_still,
    check_time,
)
from spikecl.learner.plan import ExportPlan, Initial, Position, Tick, TrainPlan
from spikecl.learner.scores import Scores
from spikecl.learner.statistics import first_statistics
from spikecl.learner.training import Training
from spikecl.learner.window import WINDOW
from spikecl.networks import BatchNorm, Layer, Network, initialise
from spikecl.networks.build import Head
from spikecl.networks.gradients import learning
from spikecl.optim import Optimiser, OptimiserSpec
from spikecl.seeds import Seeds
from spikecl.storage import State, nbytes, to_device
from spikecl.streams import Adapt, Experience, Export, Loaded, Reveal, Stream, Unlearn
from spikecl.trainers import Trainer


class Learner:
    """Runs a stream through a network.

    Args:
        stream: Events.
        network: The network; its weights are drawn from ``seeds`` here.
        encoder: Intensities to input over time.
        trainer: Credit assignment.
        methods: Descriptions of the methods to compose.
        optimiser: Description of the optimiser; at each revealed boundary its state begins afresh
            or is carried over, as it says.
        plan: Epochs and batches.
        seeds: Root of all randomness.
        device: Where to compute.
        loss: Loss of the network's output.
        head: Whose outputs compete.
        initial: Whether the weights of the start are ``drawn``, or those ``given`` with the
            network.
        export: How the network is exported, where the stream says that it is.

    Attributes:
        at: Where it stands.
        calls: The network with its input and its loss.
        training: The network as it learns.
        evaluation: The network as it is tested.
        methods: Running methods.
        scores: Accuracies so far.
        chip: The network on the chip, behind an export.
        method_bytes: Most bytes that methods have kept.

    Raises:
        PairingError: A part needs what the stream hides or another part does not give; nothing was
            started.
        UsageError: All parameters of the network are frozen.
    """

    def __init__(
        self,
        *,
        stream: Stream,
        network: Network,
        encoder: Encoder,
        trainer: Trainer,
        methods: Sequence[MethodSpec],
        optimiser: OptimiserSpec,
        plan: TrainPlan,
        seeds: Seeds,
        device: torch.device,
        loss: Loss | None = None,
        head: Head = "single",
        initial: Initial = "drawn",
        export: ExportPlan | None = None,
    ):
        self.loss = CrossEntropy() if loss is None else loss
        check_pairings(stream, trainer, methods)
        check_time(stream, encoder)
        check_input(network, encoder)
        check_loss(network, self.loss)
        check_schedule(stream, optimiser)
        check_export(stream, export, methods, self.loss, plan, optimiser)
        self.stream, self.network, self.encoder, self.trainer = stream, network, encoder, trainer
        self.plan, self.seeds, self.device = plan, seeds, device
        self.heads = Heads(head, stream, device)
        self.at = Position()
        self._optimiser_spec = optimiser
        self._inputs = Inputs(encoder, seeds, device)
        self.calls = Calls(
            network,
            trainer,
            loss=self.loss,
            heads=self.heads,
            inputs=self._inputs,
            at=self.at,
        )
        self.training = Training(self.calls, optimiser, learning=learning(network), plan=plan)
        for layer in network.layers.values():
            assert isinstance(layer, Layer)
            if isinstance(layer.norm, BatchNorm):
                layer.norm.held = False  # by whoever had the network before
        self._given: dict[str, Tensor] = {}
        if initial == "drawn":
            initialise(network, seeds)
        elif any(getattr(spec, "restart", False) for spec in methods):
            self._given = {name: each.clone() for name, each in _all_of(network).items()}
        network.to(device)
        self.host = LearnerHost(
            self.calls, self.training, batch=plan.batch, seeds=seeds, restart=self._restart
        )
        settles = type(trainer).settle is not Trainer.settle
        reveal, classes = stream.reveal, stream.classes
        context = Context(
            network, optimiser, seeds, reveal, classes, device, settles, host=self.host
        )
        self.methods = Composition(methods, context)
        check_rehearsal(self.methods, methods)
        check_heads(stream, self.heads, self.methods)
        check_frozen(self.methods, methods)
        check_credit(trainer, self.methods)
        check_measures(self.methods)
        check_restart(self.methods, methods, optimiser)
        check_still(self.methods)
        check_draws(self.methods)
        check_experiences(stream, self.methods)
        check_membrane(stream, plan, self.methods)
        self.training.compose(self.methods)
        hooks = self.methods.hooks
        self.heads.rehearsed = bool(hooks("extend_batch") or hooks("training_set"))
        self._predict = hooks("predict")
        self.statistics = self._inputs.statistics = first_statistics(stream)
        self.scores = Scores(stream, plan.evaluate)
        self.evaluation = Evaluation(
            stream,
            self.calls,
            plan=plan,
            answer=self._answer,
            by_task=bool(self._predict),
        )
        experiences = [event.index for event in stream if isinstance(event, Experience)]
        self._ends = (experiences[0], experiences[-1]) if experiences else (-1, -1)
        self.chip: OnChip | None = None
        self._crossing: Crossing | None = None
        if export is not None:
            self._crossing = Crossing(
                export,
                stream,
                self.calls,
                train=plan,
                optimiser=optimiser,
                seeds=seeds,
            )
        self._before = 0  # samples of earlier events
        self._prepared = False
        self.method_bytes = 0

    @property
    def optimiser(self) -> Optimiser:
        """What moves the weights."""
        return self.training.optimiser

    # ---- the loop -------------------------------------------------------------------------------

    def ticks(self) -> Iterator[Tick]:
        """Yield a tick after every step, look at the loss, epoch, test and event."""
        self.prepare()
        while self.at.event < len(self.stream):
            if self.at.stage == "train":
                if self.at.epoch == self.at.step == 0:
                    self._before = self.at.samples
                yield from self._handle()
                self.at.stage, self.at.epoch, self.at.step = "test", 0, 0
            yield from self._test()
            self.scores.close()
            said = self._said() if self.at.event >= 0 else {}
            reports = [self.row("report", name, said[name]) for name in said]
            self.at.event, self.at.stage = self.at.event + 1, "train"
            yield Tick("event", self.at, reports)
            if self.at.event == len(self.stream):
                return

    def _handle(self) -> Iterator[Tick]:
        event = self.stream[self.at.event]
        if isinstance(event, Experience):
            yield from self._learn(event)
        elif isinstance(event, Unlearn):
            self.optimiser.settle()
            for forget in self.methods.hooks("unlearn"):
                forget(event)
        elif isinstance(event, Adapt):
            self.optimiser.settle()
            adapting = self.methods.hooks("adapt")
            accuracy = self.evaluation.prequential(event, adapting[0] if adapting else None)
            self.at.stage = "test"  # stopped here, it does not adapt twice
            name = f"{event.corruption}-{event.severity}"
            yield Tick("test", self.at, [self.row("adapt", "accuracy", accuracy, name)])
        elif isinstance(event, Export):
            assert self._crossing is not None
            self.chip = self._crossing.cross(self._running)

    def _said(self) -> Mapping[str, Mapping[str, object]]:
        """Return what methods, or the chip, have to say after an event."""
        return self.methods.report() if self.chip is None else {"chip": self.chip.report()}

    def _learn(self, event: Experience) -> Iterator[Tick]:
        if self.chip is not None:
            yield from self._learn_on_chip(event, self.chip)
            return
        view = self.stream.view(event)
        first, last = self._shown_ends(event)
        boundary = Reveal.BOUNDARY in self.stream.reveal
        self.heads.begin(event)
        if first and self.at.epoch == self.at.step == 0:
            for begin in self.methods.hooks("begin"):
                begin(view)
            self.training.renew()
        samples = view.samples
        for choose in self.methods.hooks("training_set") if first else ():
            samples = choose(samples, view)
        loaded = samples.load().to(self.device)
        if self._crossing is not None:
            self._crossing.gather(event, loaded)
        for epoch in range(self.at.epoch, self.plan.epochs):
            yield from self._epoch(loaded, epoch)
            for end_epoch in self.methods.hooks("end_epoch") if boundary else ():
                end_epoch()
            self.at.epoch, self.at.step = epoch + 1, 0
            yield Tick("epoch", self.at, [])
        if last:
            self.optimiser.settle()
        if not self.at.samples and event.index == self._ends[1]:
            raise UsageError(
                "nothing was learned: the methods chose no samples of any experience; if one waits "
                "(method.joint.wait), let it wait for fewer experiences than there are"
            )
        self.method_bytes = max(self.method_bytes, self.methods.nbytes())
        for end in self.methods.hooks("end") if last else ():
            end(view)
        self.method_bytes = max(self.method_bytes, self.methods.nbytes())

    def _learn_on_chip(self, event: Experience, chip: OnChip) -> Iterator[Tick]:
        self.heads.begin(event)
        if self.at.epoch == self.at.step == 0:
            chip.begin()
        loaded = self.stream.view(event).samples.load().to(self.device)
        for epoch in range(self.at.epoch, self.plan.epochs):
            yield from self._epoch(loaded, epoch)
            self.at.epoch, self.at.step = epoch + 1, 0
            yield Tick("epoch", self.at, [])
        chip.end()
        self.method_bytes = max(self.method_bytes, chip.nbytes())

    def _shown_ends(self, event: Experience) -> tuple[bool, bool]:
        """Whether the beginning and the end of an experience may be noticed.

        Where boundaries are hidden, only those of the whole stream are.
        """
        if Reveal.BOUNDARY in self.stream.reveal:
            return True, True
        return event.index == self._ends[0], event.index == self._ends[1]

    def _epoch(self, loaded: Loaded, epoch: int) -> Iterator[Tick]:
        generator = self.seeds.generator("order", event=self.at.event, epoch=epoch)
        order = torch.randperm(len(loaded), generator=generator).to(self.device)
        starts = range(0, len(loaded), self.plan.batch)
        batches = [order[i : i + self.plan.batch] for i in starts]
        self.training.steps_per_epoch = max(len(batches), 1)  # a method may choose no samples
        for step in range(self.at.step, len(batches)):
            batch = loaded.take(batches[step])
            if self.chip is None:
                self.training.step(batch, epoch, step)
            else:
                chip_step(self.chip, self.calls, self.training.window, batch, epoch, step)
            self.at.step, self.at.samples = step + 1, self.at.samples + batch.x.shape[0]
            if (step + 1) % WINDOW == 0 or step + 1 == len(batches):
                seen = self.training.window.look(step)
                rows = [self.row("train", metric, value) for metric, value in seen.items()]
                yield Tick("window", self.at, rows)
            else:
                yield Tick("step", self.at, [])

    def prepare(self) -> None:
        """Let the trainer refuse what it is not for, and draw what it remembers; once."""
        event = next((e for e in self.stream if isinstance(e, Experience)), None)
        if self._prepared or event is None:
            return
        check_average(self.stream, self._optimiser_spec, self.methods)
        x = self._inputs.probe(event)
        self.trainer.check(self.network, x, self.loss)
        self.training.remember(self.trainer.variables(self.network, self.seeds, x))
        if self._crossing is not None:
            self._crossing.rehearse(event, self._running)
        self._prepared = True

    @torch.no_grad()
    def _restart(self) -> None:
        """Take the network and what the trainer remembers back to where they started."""
        if self._given:
            for name, each in _all_of(self.network).items():
                each.copy_(self._given[name])
        else:
            initialise(self.network, self.seeds)
        event = next(e for e in self.stream if isinstance(e, Experience))
        drawn = self.trainer.variables(self.network, self.seeds, self._inputs.probe(event))
        for name, value in drawn.items():
            self.calls.variables[name].copy_(value)

    @property
    def _running(self) -> list[Method]:
        return list(self.methods.methods.values())

    def check_finite(self) -> None:
        """Raise if a loss since the last look, or a weight, is not finite; the step is named."""
        self.training.window.check_finite()

    # ---- tests ----------------------------------------------------------------------------------

    def _test(self) -> Iterator[Tick]:
        for name in self.scores.due(self.at.event):
            with self.optimiser.evaluating():
                aware, agnostic = self.evaluation.accuracies(name)
            self.scores.add(name, aware, agnostic)
            rows = [self.row("test", "accuracy_task_aware", aware, name)]
            rows.append(self.row("test", "accuracy_task_agnostic", agnostic, name))
            yield Tick("test", self.at, rows)

    @torch.no_grad()
    def _answer(self, x: Tensor, task: int | None, generator: torch.Generator | None) -> Tensor:
        if self.chip is not None:
            return self.chip.logits(x)
        for predict in self._predict:
            logits: Tensor = predict(x, task)
            return logits
        return self.network(x, generator=generator).logits  # type: ignore[no-any-return]

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Return everything needed to go on."""
        return {
            "position": asdict(self.at),
            "seen_classes": self.heads.seen,
            "methods": self.methods.state_dict(),
            "method_bytes": self.method_bytes,
            "before": self._before,
            "chip": {} if self.chip is None else self.chip.state_dict(),
            **self.training.state_dict(),
            **self.scores.state_dict(),
            **({} if self._crossing is None else self._crossing.state_dict()),
        }

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        state = to_device(state, self.device)
        check_network(state["network"], self.network)
        self.at.move_to(state["position"])
        self.training.load_network(state)
        self.heads.seen.copy_(state["seen_classes"])
        self.prepare()
        self.training.load_state_dict(state)
        self.methods.load_state_dict(state.get("methods", {}))
        self.scores.load_state_dict(state)
        self.method_bytes = state["method_bytes"]
        self._before = state.get("before", 0)
        if self._crossing is not None:
            self._crossing.load_state_dict(state)
        if state.get("chip"):
            assert self._crossing is not None
            self.chip = self._crossing.cross(self._running)
            self.chip.load_state_dict(state["chip"])

    # ---- how far --------------------------------------------------------------------------------

    def fraction(self) -> float:
        """Return the part of the stream that is done, 0 to 1; every event counts the same."""
        at = self.at
        if at.event < 0:
            return 0.0
        epochs = at.epoch + min(at.step / self.training.steps_per_epoch, 1.0)
        inside = 1.0 if at.stage == "test" else epochs / self.plan.epochs
        return min((at.event + inside) / len(self.stream), 1.0)

    @property
    def samples_of_event(self) -> int:
        """Samples that the present event, or the one that just ended, has trained on."""
        return self.at.samples - self._before

    def row(
        self, phase: str, metric: str, value: object, eval_set: str | None = None
    ) -> dict[str, Any]:
        """Return a measurement made now, as a row of ``steps.jsonl``."""
        return {
            "event": self.at.event,
            "phase": phase,
            "epoch": self.at.epoch,
            "step": self.at.step,
            "samples_seen": self.at.samples,
            "eval_set": eval_set,
            "metric": metric,
            "value": value,
        }


def _all_of(network: Network) -> dict[str, Tensor]:
    """Return the parameters and the running statistics of a network, by name."""
    weights = {name: weight.detach() for name, weight in network.weights().items()}
    return {**weights, **network.statistics()}


def model_nbytes(network: Network) -> int:
    """Return the bytes of the network's parameters."""
    return nbytes(*network.weights().values())
