"""The host loop: a stream, a network, a trainer and methods make a generator of ticks.

The learner reads nothing, writes nothing and prints nothing. It can stop at any tick: its whole
state is in ``state_dict``, and a learner that takes it back goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikecl.continual.compose import Composition
from spikecl.continual.host import Seen
from spikecl.continual.method import Context, Lateral, MethodSpec, overrides
from spikecl.encoding import CrossEntropy, Encoder, Loss
from spikecl.errors import NonFiniteLossError, UsageError
from spikecl.interop.meta import meta_of, together
from spikecl.learner.activity import Activity
from spikecl.learner.chip import OnChip, check_export, feedback_of
from spikecl.learner.gradients import form_gradients, learning
from spikecl.learner.heads import Heads
from spikecl.learner.host import LearnerHost
from spikecl.learner.pairing import (
    check_average,
    check_experiences,
    check_input,
    check_loss,
    check_measures,
    check_membrane,
    check_network,
    check_pairings,
    check_rehearsal,
    check_schedule,
    check_tied,
    check_time,
)
from spikecl.learner.plan import ExportPlan, Initial, Position, Tick, TrainPlan
from spikecl.learner.scores import Scores
from spikecl.learner.statistics import first_statistics
from spikecl.networks import Network, initialise
from spikecl.networks.build import Head
from spikecl.neurons import State as NeuronState
from spikecl.neurons.neuron import carry, leaves, rebuild
from spikecl.optim import OptimiserSpec, Place
from spikecl.seeds import Seeds
from spikecl.storage import State, nbytes, to_device
from spikecl.streams import (
    Adapt,
    Batch,
    Experience,
    Export,
    Loaded,
    Reveal,
    Stream,
    Unlearn,
)
from spikecl.trainers import Call, Factors, PerStep, Trainer

WINDOW = 50  # steps between two looks at the loss: a look waits for the device
TEST_CACHE_BYTES = 2**28


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
        self.heads = Heads(head, stream, device)
        self.stream, self.network, self.encoder, self.trainer = stream, network, encoder, trainer
        self.plan, self.seeds, self.device = plan, seeds, device
        self._learning = learning(network)
        if initial == "drawn":
            initialise(network, seeds)
        network.to(device)
        self.at = Position()
        settles = type(trainer).settle is not Trainer.settle
        reveal, classes = stream.reveal, stream.classes
        context = Context(
            network, optimiser, seeds, reveal, classes, device, settles, host=self._host()
        )
        self.methods = Composition(methods, context)
        check_rehearsal(self.methods)
        check_measures(self.methods)
        check_experiences(stream, self.methods)
        check_membrane(stream, plan, self.methods)
        self._optimiser_spec = optimiser
        self._variables: dict[str, Tensor] = {}
        self._tied: dict[str, str] = {}
        self._moving: dict[str, Tensor] = dict(self._learning)
        self._prepared = False
        self.optimiser = optimiser.start(self._learning)
        self.statistics = first_statistics(stream)
        self.scores = Scores(stream, plan.evaluate)
        self._losses = torch.zeros(WINDOW, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self.activity = Activity(network)
        hooks = self.methods.hooks
        self._hooks = {name: hooks(name) for name in _STEP_HOOKS}
        self.heads.rehearsed = bool(hooks("extend_batch") or hooks("training_set"))
        self._predict = hooks("predict")
        self._seen = 0
        experiences = [event.index for event in stream if isinstance(event, Experience)]
        self._ends = (experiences[0], experiences[-1]) if experiences else (-1, -1)
        self._state: Mapping[str, NeuronState] | None = None  # where the last batch ended
        self._saved_state: list[Tensor] = []
        self._tests: dict[str, Loaded] = {}
        self.export = export
        self.chip: OnChip | None = None
        self._before = 0  # samples of earlier events
        self._calibration: dict[str, Tensor] = {}  # samples by event, that scales are measured on
        self._steps_per_epoch = 1
        self._portion = 1.0  # of a batch's steps, that gradients are of
        self.method_bytes = 0

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
            accuracy = self._adapt(event)
            self.at.stage = "test"  # stopped here, it does not adapt twice
            yield Tick("test", self.at, [accuracy])
        elif isinstance(event, Export):
            self.chip = self._exported()

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
            self.optimiser.renew(self._moving)
            self._state, self._saved_state = None, []
        samples = view.samples
        for choose in self.methods.hooks("training_set") if first else ():
            samples = choose(samples, view)
        loaded = samples.load().to(self.device)
        if self.export is not None:
            each = -(-self.export.calibrate // self.export.after)
            self._calibration[str(event.index)] = evenly(loaded, each)
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

    def _chip_step(self, batch: Batch, epoch: int, step: int) -> None:
        self.heads.show(batch)

        def errors(outputs: Tensor) -> Tensor:
            assert batch.y is not None
            with torch.enable_grad():
                outputs = outputs.detach().requires_grad_()
                loss = self.loss(self.heads.train(outputs, batch), batch.y)
                (gradient,) = torch.autograd.grad(loss, [outputs])
            self._losses[step % WINDOW] += loss.detach()
            return -len(outputs) * gradient

        assert self.chip is not None and batch.y is not None
        outputs = self.chip.learn(
            self._encode(batch.x, "encode", self.at.event, epoch, step), errors
        )
        self._correct += _hits(self.heads.train(outputs, batch), batch.y)
        self._seen += len(batch.y)

    def _exported(self, calibration: Tensor | None = None) -> OnChip:
        """Return the network on the chip, with what its methods and trainer take along."""
        assert self.export is not None

        def encode(x: Tensor, place: int) -> Tensor:
            return self._encode(x.to(self.device), "calibrate", place, 0, 0)

        kept = self._calibration if calibration is None else {"0": calibration}
        seen = together([encode(x, int(place)) for place, x in kept.items()])
        methods = self.methods.methods.values()
        travels = [method.travels() for method in methods if overrides(method, "travels")]
        return OnChip(
            self.export,
            self.network,
            seen,
            lateral=travels[0] if travels else Lateral(),
            feedback=feedback_of(
                self.export, self.network, self._variables, self.seeds, seen[:, :1]
            ),
            remaining=sum(
                isinstance(e, Experience) and e.index > self.at.event for e in self.stream
            ),
            rate=self.export.rate or self._optimiser_spec.lr,
            batch=self.plan.batch,
            seed=self.seeds.derive("chip") & 0xFFFFFFFF,
            meta=meta_of(
                seen,
                self.stream,
                self.encoder,
                self.statistics,
                encode=lambda x: encode(x, 0),
                outputs=self.heads.outputs,
            ),
            device=self.device,
        )

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
        self._steps_per_epoch = max(len(batches), 1)  # a method may choose no samples
        for step in range(self.at.step, len(batches)):
            batch = loaded.take(batches[step])
            learn = self._step if self.chip is None else self._chip_step
            learn(batch, epoch, step)
            self.at.step, self.at.samples = step + 1, self.at.samples + batch.x.shape[0]
            if (step + 1) % WINDOW == 0 or step + 1 == len(batches):
                yield Tick("window", self.at, self._look(step))
            else:
                yield Tick("step", self.at, [])

    def _step(self, batch: Batch, epoch: int, step: int) -> None:
        hooks, came = self._hooks, batch.x.shape[0]
        for extend in hooks["extend_batch"]:
            batch = extend(batch)
        self.heads.show(batch)
        seen = self._see(batch, step, epoch)
        weights = self._effective()
        draws = self.network.draws or self.trainer.random
        generator = self._generator("network", epoch, step) if draws else None
        call = self._call(seen._replace(generator=generator), weights or None, self._start(seen.x))
        if hooks["errors"]:
            call = replace(call, errors=self._errors)
        total: dict[str, Tensor] = {}
        with torch.no_grad():
            for part in self.trainer.parts(call):
                for look in hooks["fired"]:
                    look(part.activity, part.share)
                gradients = self._gradients(part, batch, weights or None)
                if self.trainer.every_part:
                    self._portion = part.share
                    self._apply(gradients)
                    weights.update(self._effective())  # the next part runs with what was learned
                else:
                    for name, gradient in gradients.items():
                        total[name] = total[name] + gradient if name in total else gradient
                self._losses[step % WINDOW] += part.loss
                self._variables |= part.variables
                self.network.set_statistics(part.statistics)
                self.activity.add(part.activity, part.share)
            if not self.trainer.every_part:
                self._apply(total)
            for after in hooks["after_step"]:
                after()
            self._state = carry(part.state, self.plan.membrane)
            if batch.y is not None:  # samples of a memory are no samples of this experience
                hits = _hits(self.heads.train(part.logits, batch)[:came], batch.y[:came])
                self._correct += hits
                self._seen += came

    def _effective(self) -> dict[str, Tensor]:
        """Return the effective weights; none where no method has a hand in them."""
        if not self._hooks["weights"]:
            return {}
        weights: Mapping[str, Tensor] = self.network.weights()
        for change in self._hooks["weights"]:
            weights = change(weights)
        return dict(weights)

    def _errors(self, fired: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Return the errors that methods add to those of hidden outputs."""
        total: dict[str, Tensor] = {}
        for send in self._hooks["errors"]:
            for name, error in send(fired, share).items():
                total[name] = total[name] + error if name in total else error
        return total

    def _see(self, batch: Batch, step: int, epoch: int, name: str = "encode") -> Seen:
        """Return a batch as the network gets it, with its loss."""
        return self._as(self._encode(batch.x, name, self.at.event, epoch, step), batch)

    def _as(self, x: Tensor, batch: Batch, *, terms: bool = True) -> Seen:
        """Return encoded samples with the loss of their labels, and terms of methods."""

        def logits_of(outputs: Tensor) -> Tensor:
            logits = self.heads.train(outputs, batch)
            for change in self._hooks["logits"]:
                logits = change(logits)
            return logits

        def output_loss(outputs: Tensor) -> Tensor:
            logits = logits_of(outputs)
            assert batch.y is not None
            loss = self.loss(logits, batch.y)
            for term in self._hooks["output_loss"] if terms else ():
                loss = term(loss, logits, batch)
            return loss

        return Seen(x, batch, output_loss, logits=logits_of)

    def _call(
        self,
        seen: Seen,
        weights: Mapping[str, Tensor] | None = None,
        state: Mapping[str, NeuronState] | None = None,
    ) -> Call:
        """Return what the trainer is called with."""
        return Call(
            self.network,
            seen.x,
            PerStep(seen.loss, self.loss.separable) if self.loss.per_step else seen.loss,
            weights,
            state=state,
            variables=self._variables,
            generator=seen.generator,
            labels=seen.batch.y,
        )

    def _host(self) -> LearnerHost:
        """Return what methods may ask."""

        def seen(batch: Batch, step: int) -> Seen:
            draws = self.network.draws or self.trainer.random
            generator = self._generator("look-network", 0, step) if draws else None
            return self._see(batch, step, 0, "look-encode")._replace(generator=generator)

        def relabel(seen: Seen, labels: Tensor) -> Seen:
            batch = seen.batch._replace(y=labels)
            return self._as(seen.x, batch, terms=False)._replace(generator=seen.generator)

        return LearnerHost(
            load=lambda samples: samples.load().to(self.device),
            order=lambda: self.seeds.generator("look", event=self.at.event),
            seen=seen,
            relabel=relabel,
            call=self._call,
            parts=self.trainer.parts,
            heads=self.heads,
            batch=self.plan.batch,
            progress=self._progress,
            share=self._share,
            portion=lambda: self._portion,
            restart=self._restart,
        )

    def _progress(self) -> float:
        """Return the share of the present experience's steps that are done."""
        done = self.at.epoch * self._steps_per_epoch + self.at.step
        return done / (self.plan.epochs * self._steps_per_epoch)

    def _start(self, x: Tensor) -> Mapping[str, NeuronState] | None:
        """Return the state to start a batch from; after a resume, put together again."""
        if self._saved_state:
            generator = torch.Generator()
            with torch.no_grad():
                template = self.network(x, generator=generator).state
            self._state = rebuild(template, iter(self._saved_state))
            self._saved_state = []
        return self._state

    def _gradients(
        self, factors: Factors, batch: Batch, weights: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Form gradients from factors, each with its hooks."""
        synapses = factors.synapses
        for change in self._hooks["factors"]:
            synapses = change(synapses, batch)
        return form_gradients(self.network, synapses, factors.direct, weights)

    def _apply(self, gradients: Mapping[str, Tensor]) -> None:
        """From gradients to the step: optimiser, update, each with its hooks."""
        hooks = self._hooks
        for change in hooks["gradients"]:
            gradients = change(gradients)
        tied = {
            variable: gradients[name] for variable, name in self._tied.items() if name in gradients
        }
        parameters = self.network.weights()
        old = {}
        if hooks["update"]:
            old = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.optimiser.step({**gradients, **tied}, self._share())
        for name, value in self.trainer.settle(parameters).items():
            parameters[name].copy_(value)
        if not hooks["update"]:
            return
        update: Mapping[str, Tensor] = {n: p - old[n] for n, p in parameters.items()}
        made = update
        for change in hooks["update"]:
            update = change(update)
        for name, parameter in self._learning.items():
            moved = old[name] + update[name]
            same = update[name] == parameter - old[name]  # old + (new - old) may round
            parameter.copy_(torch.where(same, parameter, moved))
        for variable, name in self._tied.items():  # what learns alike is projected alike
            self._moving[variable] += update[name] - made[name]

    def prepare(self) -> None:
        """Let the trainer refuse what it is not for, and draw what it remembers; once."""
        event = next((e for e in self.stream if isinstance(e, Experience)), None)
        if self._prepared or event is None:
            return
        check_average(self.stream, self._optimiser_spec, self.methods)
        x = self._probe(event)
        self.trainer.check(self.network, x, self.loss)
        self._variables = self.trainer.variables(self.network, self.seeds, x)
        tied = self.trainer.tied(self.network)
        if tied:
            check_tied(self.trainer, self._optimiser_spec)
            self._tied = {f"trainer:{variable}": name for variable, name in tied.items()}
            self._moving |= {f"trainer:{name}": self._variables[name] for name in tied}
            self.optimiser = self._optimiser_spec.start(self._moving)
        if self.export is not None:  # what the chip cannot take is refused here
            self._exported(evenly(event.train.load(), self.export.calibrate))
        self._prepared = True

    def _probe(self, event: Experience) -> Tensor:
        """Return one sample of an experience as the network gets it."""
        one = event.train.load().take(slice(0, 1)).x.to(self.device)
        generator = self.seeds.generator("probe") if self.encoder.random else None
        return self.encoder.encode(one, self.statistics, generator)

    @torch.no_grad()
    def _restart(self) -> None:
        """Take the network and what the trainer remembers back to where they started."""
        initialise(self.network, self.seeds)
        event = next(e for e in self.stream if isinstance(e, Experience))
        drawn = self.trainer.variables(self.network, self.seeds, self._probe(event))
        for name, value in drawn.items():
            self._variables[name].copy_(value)

    def _share(self) -> float:
        """Return the share of the learning rate that is left at this step."""
        done = self.at.epoch * self._steps_per_epoch + self.at.step
        place = Place(done, self.plan.epochs * self._steps_per_epoch, self.at.samples)
        return self._optimiser_spec.schedule.share(place)

    def check_finite(self) -> None:
        """Raise if a loss since the last look, or a weight, is not finite; the step is named."""
        finite = torch.isfinite(self._losses)
        if self.at.step and not bool(finite.all()):
            last = self.at.step - 1
            first = last - last % WINDOW
            bad = int((~finite).nonzero()[0])
            raise NonFiniteLossError(
                f"the loss is {float(self._losses[bad])} at event {self.at.event}, epoch "
                f"{self.at.epoch}, step {first + bad}; lower optimiser.lr, or look at the data"
            )
        weights = self.network.weights()
        if broken := [name for name, w in weights.items() if not bool(torch.isfinite(w).all())]:
            raise NonFiniteLossError(
                f"{', '.join(broken)} became infinite or NaN by event {self.at.event}, epoch "
                f"{self.at.epoch}, step {self.at.step}; lower optimiser.lr, or look at the data"
            )

    def _look(self, step: int) -> list[dict[str, Any]]:
        """Read the losses since the last look; the one wait for the device."""
        count = step % WINDOW + 1
        losses = self._losses[:count].clone()
        self.check_finite()
        self.activity.look()
        self._losses.zero_()
        rows = [self.row("train", "loss", float(losses.mean()))]
        if self._seen:  # labels were shown
            rows.append(self.row("train", "accuracy", int(self._correct) / self._seen))
        self._correct.zero_()
        self._seen = 0
        return rows

    # ---- tests ----------------------------------------------------------------------------------

    def _test(self) -> Iterator[Tick]:
        for name in self.scores.due(self.at.event):
            with self.optimiser.evaluating():
                aware, agnostic = self._accuracies(name)
            self.scores.add(name, aware, agnostic)
            rows = [self.row("test", "accuracy_task_aware", aware, name)]
            rows.append(self.row("test", "accuracy_task_agnostic", agnostic, name))
            yield Tick("test", self.at, rows)

    def _accuracies(self, name: str) -> tuple[float, float]:
        """Return accuracy among the task's classes, and among all."""
        test, loaded = self.stream.eval_sets[name], self._loaded_test(name)
        mask = self.heads.class_mask(test.classes)
        task, place = self.stream.task_of(name), list(self.stream.eval_sets).index(name)
        hits = torch.zeros(2, dtype=torch.int64, device=self.device)
        for step, start in enumerate(range(0, len(loaded), self.plan.eval_batch)):
            batch = loaded.take(slice(start, start + self.plan.eval_batch))
            x = self._encode(batch.x, "encode-test", self.at.event + 1, place, step)
            generator = None
            if self.network.is_random:
                generator = self._generator("network-test", place, step, event=self.at.event + 1)
            outputs = self._logits(x, task, generator)
            logits = self.heads.test(outputs, task)
            hits[0] += _hits(logits if mask is None else logits + mask, batch.y)
            if self._predict and task is not None:  # who knows the task may answer otherwise
                outputs = self._logits(x, None)
            hits[1] += _hits(self.heads.test(outputs, None), batch.y)
        counts = hits.tolist()
        return counts[0] / len(loaded), counts[1] / len(loaded)

    def _loaded_test(self, name: str) -> Loaded:
        """Return a test set in memory; the first ones are kept, up to ``TEST_CACHE_BYTES``."""
        if name in self._tests:
            return self._tests[name]
        loaded = self.stream.eval_sets[name].samples.load().to(self.device)
        if sum(nbytes(t.x) for t in self._tests.values()) + nbytes(loaded.x) <= TEST_CACHE_BYTES:
            self._tests[name] = loaded
        return loaded

    @torch.no_grad()
    def _logits(
        self, x: Tensor, task: int | None, generator: torch.Generator | None = None
    ) -> Tensor:
        if self.chip is not None:
            return self.chip.logits(x)
        for predict in self._predict:
            logits: Tensor = predict(x, task)
            return logits
        return self.network(x, generator=generator).logits  # type: ignore[no-any-return]

    def _adapt(self, event: Adapt) -> dict[str, Any]:
        """Score each batch with the logits given when it came (prequential)."""
        truth, view = event.inputs.load().to(self.device), self.stream.view(event)
        loaded = view.samples.load().to(self.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        adapt = self.methods.hooks("adapt")
        for step, start in enumerate(range(0, len(loaded), self.plan.batch)):
            rows = slice(start, start + self.plan.batch)
            x = self._encode(loaded.take(rows).x, "encode", self.at.event, 0, step)
            if adapt:
                logits = self.heads.test(adapt[0](x, view), None)
            else:
                generator = self._generator("network", 0, step) if self.network.is_random else None
                logits = self.heads.test(self._logits(x, None, generator), None)
            hits += _hits(logits, truth.take(rows).y)
        name = f"{event.corruption}-{event.severity}"
        return self.row("adapt", "accuracy", int(hits) / len(loaded), name)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Return everything needed to go on."""
        return {
            "position": asdict(self.at),
            "network": {name: p.detach() for name, p in self.network.weights().items()},
            "statistics": dict(self.network.statistics()),
            "membranes": dict(enumerate_tensors(self._saved_state or leaves(self._state))),
            "seen_classes": self.heads.seen,
            "optimiser": self.optimiser.state_dict(),
            "trainer": dict(self._variables),
            "methods": self.methods.state_dict(),
            **self.scores.state_dict(),
            "activity": self.activity.state_dict(),
            "losses": self._losses,
            "correct": self._correct,
            "seen": self._seen,
            "method_bytes": self.method_bytes,
            "before": self._before,
            "calibration": dict(self._calibration),
            "chip": {} if self.chip is None else self.chip.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        state = to_device(state, self.device)
        check_network(state["network"], self.network)
        self.at = Position(**state["position"])
        for name, parameter in self.network.weights().items():
            parameter.copy_(state["network"][name])
        self.network.set_statistics(state.get("statistics", {}))
        membranes = state.get("membranes", {})
        self._state, self._saved_state = None, [membranes[key] for key in sorted(membranes)]
        self.heads.seen.copy_(state["seen_classes"])
        self.prepare()
        for name, value in state.get("trainer", {}).items():
            self._variables[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.methods.load_state_dict(state.get("methods", {}))
        self.activity.load_state_dict(state.get("activity", {}))
        self.scores.load_state_dict(state)
        self._losses.copy_(state["losses"])
        self._correct.copy_(state["correct"])
        self._seen = state["seen"]
        self.method_bytes = state["method_bytes"]
        self._before = state.get("before", 0)
        self._calibration = dict(state.get("calibration", {}))
        if state.get("chip"):
            self.chip = self._exported()
            self.chip.load_state_dict(state["chip"])

    # ---- how far --------------------------------------------------------------------------------

    def fraction(self) -> float:
        """Return the part of the stream that is done, 0 to 1; every event counts the same."""
        at = self.at
        if at.event < 0:
            return 0.0
        epochs = at.epoch + min(at.step / self._steps_per_epoch, 1.0)
        inside = 1.0 if at.stage == "test" else epochs / self.plan.epochs
        return min((at.event + inside) / len(self.stream), 1.0)

    @property
    def samples_of_event(self) -> int:
        """Samples that the present event, or the one that just ended, has trained on."""
        return self.at.samples - self._before

    # ---- helpers --------------------------------------------------------------------------------

    def _encode(self, x: Tensor, name: str, event: int, epoch: int, step: int) -> Tensor:
        generator = None
        if self.encoder.random:
            generator = self._generator(name, epoch, step, event=event)
        return self.encoder.encode(x, self.statistics, generator)

    def _generator(
        self, name: str, epoch: int, step: int, *, event: int | None = None
    ) -> torch.Generator:
        event = self.at.event if event is None else event
        return self.seeds.generator(name, event=event, epoch=epoch, step=step)

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


_STEP_HOOKS = (
    "extend_batch",
    "weights",
    "logits",
    "output_loss",
    "errors",
    "fired",
    "factors",
    "gradients",
    "update",
    "after_step",
)


def evenly(loaded: Loaded, count: int) -> Tensor:
    """Return so many samples [N, *shape] from all over a set."""
    picked = np.linspace(0, len(loaded) - 1, min(count, len(loaded))).astype(int)
    return loaded.take(torch.from_numpy(picked).to(loaded.x.device)).x


def enumerate_tensors(tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Name tensors so that their order survives a file."""
    for i, tensor in enumerate(tensors):
        yield f"{i:04d}", tensor


def _hits(logits: Tensor, labels: Tensor | None) -> Tensor:
    assert labels is not None
    answered = ~logits.amax(1).isneginf()  # where no class may be named, the first is no answer
    return (logits.argmax(1).eq(labels) & answered).sum()


def model_nbytes(network: Network) -> int:
    """Return the bytes of the network's parameters."""
    return nbytes(*network.weights().values())
