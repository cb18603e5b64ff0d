"""Norms of each task's own, put back where the task is known."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from spikecl.components import component
from spikecl.continual.method import Context, Method, MethodSpec
from spikecl.errors import PairingError
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal


@component
class TaskNorms(MethodSpec):
    """Test each task with the norms that it left.

    Norms learn on from task to task. At the end of a task a copy of all of them is kept: gain,
    shift, and running mean and variance. A test of that task takes the copy; so the stream has to
    reveal the task. A test of an unknown or untaught task takes the norms as they are. A task that
    comes again goes on with its own; as long as none does, weights learn as they would without.

    Behind a projection with ``others = "learn"`` norms learn in every task, and what the projection
    protects stays where it was. Biases, thresholds and other parameters that are no weights are not
    kept, and move old outputs then.

    Refused beside methods that train old samples, begin anew, or stop norms from learning.

    Source: the scenario ``task`` in the code of Laborieux et al., Nature Communications 12:2549
    (2021); without this method it is their scenario ``domain``.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL
    keeps: ClassVar[str] = "norms"

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _TaskNorms(context)


class _TaskNorms(Method):
    def __init__(self, context: Context):
        self._context, self._network = context, context.network
        statistics = self._network.statistics()
        paths = {name.rpartition(".")[0] for name in statistics}
        if not paths:
            raise PairingError(
                "method 'task_norms' keeps the norms of each task, and the network has none; build "
                "it with norm='batch'"
            )
        own = [name for name in self._network.weights() if name.rpartition(".")[0] in paths]
        self._names, self._statistics = own, list(statistics)
        self._kept: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def begin(self, view: LearnerView) -> None:
        if (kept := self._kept.get(str(view.task))) is None:
            return
        weights = self._network.weights()
        for name in self._names:
            weights[name].copy_(kept[name])
        self._network.set_statistics({name: kept[name] for name in self._statistics})

    def end(self, view: LearnerView) -> None:
        weights = self._network.weights()
        now = {name: weights[name] for name in self._names} | dict(self._network.statistics())
        self._kept[str(view.task)] = {name: tensor.detach().clone() for name, tensor in now.items()}

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None) -> Tensor:
        network, kept = self._network, self._kept.get(str(task))
        generator = None
        if network.is_random:
            generator = self._context.seeds.generator("task_norms-test", event=len(self._kept))
        if kept is None:
            return network(x, generator=generator).logits  # type: ignore[no-any-return]
        weights = {**network.weights(), **{name: kept[name] for name in self._names}}
        now = {name: tensor.clone() for name, tensor in network.statistics().items()}
        network.set_statistics({name: kept[name] for name in now})
        try:
            return network(x, weights=weights, generator=generator).logits  # type: ignore[no-any-return]
        finally:
            network.set_statistics(now)

    def state_dict(self) -> State:
        return {"kept": {task: dict(norms) for task, norms in self._kept.items()}}

    def load_state_dict(self, state: State) -> None:
        self._kept = {task: dict(norms) for task, norms in state.get("kept", {}).items()}

    def nbytes(self) -> int:
        return nbytes(*(tensor for norms in self._kept.values() for tensor in norms.values()))
