"""One step: from a batch to changed weights, each stage with the hooks of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from spikecl.continual.compose import Composition
from spikecl.learner.calls import HOOKS, Calls
from spikecl.learner.pairing import check_tied
from spikecl.learner.plan import TrainPlan
from spikecl.learner.window import Window
from spikecl.networks import Network, form_gradients
from spikecl.neurons import State as NeuronState
from spikecl.neurons.neuron import carry, leaves, rebuild
from spikecl.optim import Optimiser, OptimiserSpec, Place
from spikecl.storage import State
from spikecl.streams import Batch
from spikecl.trainers import Factors, Trainer


class Training:
    """A network as it learns.

    Args:
        calls: The network with its input and its loss.
        optimiser: Description of the optimiser.
        learning: Parameters that are not frozen.
        plan: Epochs and batches.

    Attributes:
        optimiser: What moves the weights.
        window: What was noticed since the last look.
        state: Of neurons, where the last batch ended.
        portion: Share of a batch's steps that the present gradients are of.
        part: Share of a batch's steps that the present factors are of.
        steps_per_epoch: Of the present experience.
    """

    def __init__(
        self,
        calls: Calls,
        optimiser: OptimiserSpec,
        *,
        learning: Mapping[str, nn.Parameter],
        plan: TrainPlan,
    ):
        self._calls, self._spec, self._plan = calls, optimiser, plan
        self._at, self._learning = calls.at, dict(learning)
        self.network: Network = calls.network
        self.trainer: Trainer = calls.trainer
        self._moving: dict[str, Tensor] = dict(learning)
        self._tied: dict[str, str] = {}
        self.optimiser: Optimiser
        self.window = Window(self.network, calls.at, calls.inputs.device)
        self.portion = self.part = 1.0
        self.steps_per_epoch = 1
        self.state: Mapping[str, NeuronState] | None = None  # where the last batch ended
        self._saved: list[Tensor] = []

    def compose(self, methods: Composition) -> None:
        """Take the hooks of methods, and start from the weights as they left them."""
        self._calls.hooks.update({name: methods.hooks(name) for name in HOOKS})
        self.optimiser = self._spec.start(self._learning)

    def remember(self, variables: Mapping[str, Tensor]) -> None:
        """Take what the trainer remembers; what it ties to weights learns with them."""
        self._calls.variables.update(variables)
        tied = self.trainer.tied(self.network)
        if tied:
            check_tied(self.trainer, self._spec)
            self._tied = {f"trainer:{variable}": name for variable, name in tied.items()}
            self._moving |= {f"trainer:{name}": variables[name] for name in tied}
            self.optimiser = self._spec.start(self._moving)

    def renew(self) -> None:
        """An experience begins, and may be noticed."""
        self.optimiser.renew(self._moving)
        self.state, self._saved = None, []

    # ---- the step -------------------------------------------------------------------------------

    def step(self, batch: Batch, epoch: int, step: int) -> None:
        """Learn from a batch."""
        hooks, calls, came = self._calls.hooks, self._calls, batch.x.shape[0]
        for extend in hooks["extend_batch"]:
            batch = extend(batch)
        calls.heads.show(batch)
        seen = calls.see(batch, epoch, step)
        weights = calls.weights()
        call = calls.call(seen, weights or None, self._start(seen.x))
        if hooks["errors"]:
            call = replace(call, errors=calls.errors)
        total: dict[str, Tensor] = {}
        with torch.no_grad():
            for part in self.trainer.parts(call):
                for look in hooks["fired"]:
                    look(part.activity, part.share)
                if hooks["answered"]:
                    answer = seen.logits(part.logits)
                    for look in hooks["answered"]:
                        look(answer, batch)
                self.part = part.share
                gradients = self._gradients(part, batch, weights or None)
                if self.trainer.every_part:
                    self.portion = part.share
                    self.apply(gradients)
                    weights.update(calls.weights())  # the next part runs with what was learned
                else:
                    for name, gradient in gradients.items():
                        total[name] = total[name] + gradient if name in total else gradient
                calls.variables.update(part.variables)
                self.network.set_statistics(part.statistics)
                self.window.add_loss(part.loss, step)
                self.window.activity.add(part.activity, part.share)
            if not self.trainer.every_part:
                self.apply(total)
            for after in hooks["after_step"]:
                after()
            self.state = carry(part.state, self._plan.membrane)
            if batch.y is not None:  # samples of a memory are no samples of this experience
                logits = calls.heads.train(part.logits, batch)
                self.window.add_hits(logits[:came], batch.y[:came])

    def _start(self, x: Tensor) -> Mapping[str, NeuronState] | None:
        """Return the state to start a batch from; after a resume, put together again."""
        if self._saved:
            generator = torch.Generator()
            with torch.no_grad():
                template = self.network(x, generator=generator).state
            self.state = rebuild(template, iter(self._saved))
            self._saved = []
        return self.state

    def _gradients(
        self, factors: Factors, batch: Batch, weights: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Form gradients from factors, each with its hooks."""
        synapses = factors.synapses
        for change in self._calls.hooks["factors"]:
            synapses = change(synapses, batch)
        return form_gradients(self.network, synapses, factors.direct, weights)

    def apply(self, gradients: Mapping[str, Tensor]) -> None:
        """From gradients to the step: optimiser, update, each with its hooks."""
        hooks = self._calls.hooks
        for change in hooks["gradients"]:
            gradients = change(gradients)
        tied = {
            variable: gradients[name] for variable, name in self._tied.items() if name in gradients
        }
        parameters = self.network.weights()
        old = {}
        if hooks["update"]:
            old = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.optimiser.step({**gradients, **tied}, self.share())
        for name, value in self.trainer.settle(parameters).items():
            parameters[name].copy_(value)
        if not hooks["update"]:
            return
        update: Mapping[str, Tensor] = {n: p - old[n] for n, p in parameters.items()}
        made = update
        for change in hooks["update"]:
            update = change(update)
        for name, parameter in self._learning.items():
            same = update[name] == parameter - old[name]  # old + (new - old) may round
            moved = old[name].add_(update[name])
            parameter.copy_(torch.where(same, parameter, moved, out=moved))
        for variable, name in self._tied.items():  # what learns alike is projected alike
            self._moving[variable] += update[name] - made[name]

    # ---- how far --------------------------------------------------------------------------------

    def progress(self) -> float:
        """Return the share of the present experience's steps that are done."""
        done = self._at.epoch * self.steps_per_epoch + self._at.step
        return done / (self._plan.epochs * self.steps_per_epoch)

    def share(self) -> float:
        """Return the share of the learning rate that is left at this step."""
        done = self._at.epoch * self.steps_per_epoch + self._at.step
        place = Place(done, self._plan.epochs * self.steps_per_epoch, self._at.samples)
        return self._spec.schedule.share(place)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Return everything that learning needs to go on, but for methods."""
        return {
            "network": {name: p.detach() for name, p in self.network.weights().items()},
            "statistics": dict(self.network.statistics()),
            "membranes": named(self._saved or leaves(self.state)),
            "optimiser": self.optimiser.state_dict(),
            "trainer": dict(self._calls.variables),
            **self.window.state_dict(),
        }

    def load_network(self, state: State) -> None:
        """Take back the network's part of :meth:`state_dict`."""
        for name, parameter in self.network.weights().items():
            parameter.copy_(state["network"][name])
        self.network.set_statistics(state.get("statistics", {}))

    def load_state_dict(self, state: State) -> None:
        """Take back the rest; other keys are not read."""
        membranes = state.get("membranes", {})
        self.state, self._saved = None, [membranes[key] for key in sorted(membranes)]
        for name, value in state.get("trainer", {}).items():
            self._calls.variables[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.window.load_state_dict(state)


def named(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name tensors so that their order survives a file."""
    return {f"{i:04d}": tensor for i, tensor in enumerate(tensors)}
