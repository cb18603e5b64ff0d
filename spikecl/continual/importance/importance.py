"""The block under penalties on weights: importances and anchors by parameter.

A penalty ``strength/2 sum_i A_i (w_i - c_i)^2`` holds each parameter w_i near its anchor c_i by
its importance A_i. Its gradient is added to what the trainer and the methods before made; the loss
never sees it. What measures by single samples does so with the trainer, or with BPTT where the
trainer has no gradient of the loss.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.continual.method import Context, Method, Tensors
from spikecl.errors import PairingError, RunError
from spikecl.storage import State, nbytes

Strength = Annotated[float, Field(ge=0)]
Discount = Annotated[float, Field(gt=0, le=1)]
Others = Literal["protect", "learn"]
"""What becomes of learning parameters that are no weights (biases, thresholds, time constants,
delays, norms): ``protect`` gives them importances as weights have, ``learn`` leaves them free.
Running statistics of norms are no parameters and have none."""

Step = Literal["gradient", "implicit"]
"""How the penalty acts: its gradient is added to the loss's (``gradient``; with a plain optimiser
stable while ``lr strength A`` is below 2), or a step of its own follows the optimiser's, which is
stable for any strength and which Adam does not rescale (``implicit``)."""

_LEAST, _PER_DECADE, _BINS = -16, 4, 80  # histogram of log10: -16 to 4


class Importance:
    """Importances A and anchors c of the parameters that learn.

    Args:
        context: The run.
        name: Of the method.
        others: Which of the parameters that are no weights.

    Raises:
        PairingError: None of the parameters that the method is about learns.
    """

    def __init__(self, context: Context, name: str, others: Others):
        self._context, self._name = context, name
        weights = {f"{path}.weight" for path in context.network.synapses}
        self.names = [
            parameter
            for parameter, held in context.network.weights().items()
            if held.requires_grad and (others == "protect" or parameter in weights)
        ]
        if not self.names:
            raise PairingError(
                f"method '{name}' with others='{others}' holds weights, and none of the network's "
                "learns (requires_grad=False); use others='protect', or let weights learn"
            )
        self.values: dict[str, Tensor] = {}
        self.anchors: dict[str, Tensor] = {}

    def now(self) -> dict[str, Tensor]:
        """Return the parameters as they are; a view, not a copy."""
        weights = self._context.network.weights()
        return {name: weights[name].detach() for name in self.names}

    @torch.no_grad()
    def merge(
        self, new: Tensors, *, keep: float = 1.0, take: float = 1.0, mean_anchor: bool = False
    ) -> None:
        """Take new importances in: ``A <- relu(keep A + take A_new)``, and ``c <- w``.

        With ``keep = take = 1`` it is a sum, with keep = gamma a sum that forgets, with
        ``take = 1 - keep`` a moving average.

        Args:
            new: Importances by name, at the present weights.
            keep: Share of the old ones that stays.
            take: Share of the new ones that comes.
            mean_anchor: Move c to the mean of old and new anchors weighted by importances,
                ``c <- c + A_new / A (w - c)``: the two penalties as one, but for a constant.
        """
        for name, w in self.now().items():
            gain = take * new[name]
            if name not in self.values:
                self.values[name], self.anchors[name] = gain.clamp_min(0), w.clone()
                continue
            total = (keep * self.values[name] + gain).clamp_min_(0)
            if mean_anchor:
                share = torch.where(total > 0, gain / total, torch.ones_like(total))
                self.anchors[name] = self.anchors[name] + share * (w - self.anchors[name])
            else:
                self.anchors[name] = w.clone()
            self.values[name] = total

    @torch.no_grad()
    def subtract(self, old: Tensors, anchors: Tensors | None = None) -> None:
        """Take importances out again: ``A <- relu(A - A_old)``.

        Args:
            old: Importances by name, as they were merged.
            anchors: The weights at that time, where c is a weighted mean: they are taken out of it.
        """
        for name, gone in old.items():
            left = (self.values[name] - gone).clamp_min_(0)
            if anchors is not None:
                share = torch.where(left > 0, gone / left, torch.zeros_like(left))
                off = self.anchors[name] - anchors[name]
                self.anchors[name] = self.anchors[name] + share * off
            self.values[name] = left

    @torch.no_grad()
    def pull(self, gradients: Tensors, strength: float) -> Tensors:
        """Return gradients with ``strength A (w - c)``, of those parameters that have one."""
        if not self.values or strength == 0:
            return gradients
        made, weights = dict(gradients), self._context.network.weights()
        for name, value in self.values.items():
            if name in gradients:
                off = weights[name].detach() - self.anchors[name]
                torch.addcmul(gradients[name], value, off, value=strength, out=off)
                made[name] = off
        return made

    def pulled(self, update: Tensors, strength: float) -> Tensors:
        """Return an update that was applied, with the step of the penalty behind it.

        It ends where ``w = w' - strength A (w - c)`` with w' the weights now: what gradient descent
        on the penalty alone comes to in small steps, and stable for any strength.
        """
        if not self.values or strength == 0:
            return update
        made, weights = dict(update), self._context.network.weights()
        for name, value in self.values.items():
            if name in update:
                back = value * strength
                off = weights[name].detach() - self.anchors[name]
                made[name] = torch.addcmul(update[name], back.div_(1 + back), off, value=-1.0)
        return made

    def report(self) -> dict[str, dict[str, object]]:
        """Return what can be drawn of each parameter's importances."""
        return {name: summary(value) for name, value in self.values.items()}

    def state_dict(self) -> State:
        """Return importances and anchors."""
        return {"values": dict(self.values), "anchors": dict(self.anchors)}

    def load_state_dict(self, state: State) -> None:
        """Take them back, in the network's order."""
        self.values = self.fitting(state.get("values", {}))
        self.anchors = self.fitting(state.get("anchors", {}))

    def fitting(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by name in the network's order; refuse those of another network."""
        own = {name: list(w.shape) for name, w in self.now().items()}
        held = {name: list(each.shape) for name, each in found.items()}
        if held and held != own:
            differ = [n for n in {**own, **held} if own.get(n) != held.get(n)]
            shown = ", ".join(f"{n}: {held.get(n)} there, {own.get(n)} here" for n in differ[:3])
            raise RunError(
                f"method '{self._name}': the checkpoint is of another network ({shown}); resume "
                "with the configuration that it was made with"
            )
        return {name: found[name] for name in self.names if name in found}

    def nbytes(self) -> int:
        """Return the bytes of both."""
        return nbytes(*self.values.values(), *self.anchors.values())


class Measure(Method):
    """Measures importances, and holds nothing: what a method of strength 0 does.

    Args:
        context: The run.
        name: Of the method.
        others: Which of the parameters that are no weights.
        pull: What the penalty's gradient ``A (w - c)`` is multiplied by.

    Attributes:
        looks: Whether it shows samples to the network once more, at the weights that are stored.
    """

    looks: ClassVar[bool] = False
    gathers = "importances"

    def __init__(self, context: Context, name: str, others: Others, pull: float):
        self.context, self.name, self._pull = context, name, pull
        self.importance = Importance(context, name, others)

    def report(self) -> dict[str, object]:
        by = {"by": self.context.host.of_loss} if self.looks else {}
        return {name: {**said, **by} for name, said in self.importance.report().items()}

    def state_dict(self) -> State:
        return self.importance.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.importance.load_state_dict(state)

    def nbytes(self) -> int:
        return self.importance.nbytes()


class Hold(Measure):
    """Measures importances, and adds the penalty's gradient to what others made."""

    def gradients(self, gradients: Tensors) -> Tensors:
        return self.importance.pull(gradients, self._pull * self.context.host.portion())


class HoldAfter(Measure):
    """Measures importances, and takes the penalty's step behind the optimiser's.

    Raises:
        PairingError: Another method of the run does so: each would go the whole way.
    """

    def __init__(self, context: Context, name: str, others: Others, pull: float):
        super().__init__(context, name, others, pull)
        for method in context.before:
            if isinstance(method, HoldAfter):
                raise PairingError(
                    f"methods '{method.name}' and '{name}' both take a step of their own behind "
                    "the optimiser's; use step='gradient' in one of them"
                )
        self.own = f"method '{name}' with step='implicit' goes a way that is right for the rate"

    def leave(self, names: Collection[str]) -> None:
        self.importance.names = [n for n in self.importance.names if n not in names]

    @torch.no_grad()
    def update(self, update: Tensors) -> Tensors:
        host = self.context.host
        rate = self.context.optimiser.lr * host.share() * host.portion()
        return self.importance.pulled(update, self._pull * rate)


def summary(values: Tensor) -> dict[str, object]:
    """Return mean and largest of some importances, how they are shared out, and their histogram.

    ``top`` is the share of the sum that the highest 1 % have (at least one), ``zero`` the share
    of parameters without any. The histogram counts log10 of the others in bins of a quarter,
    ``low`` the lower edge of the first; what lies outside of -16 to 4 is in the last bins.

    Example:
        >>> said = summary(torch.tensor([0.0, 1.0, 1.0, 2.0]))
        >>> said["mean"], said["max"], said["top"], said["zero"]
        (1.0, 2.0, 0.5, 0.25)
        >>> said["histogram"]
        {'low': 0.0, 'width': 0.25, 'counts': [2, 1]}
    """
    flat = values.flatten().double()
    total, most = float(flat.sum()), max(1, len(flat) // 100)
    top = float(flat.topk(most).values.sum()) / total if total else 0.0
    some = flat[flat > 0]
    places = ((some.log10() - _LEAST) * _PER_DECADE).floor().clamp(0, _BINS - 1).long()
    counts = torch.bincount(places, minlength=_BINS).tolist()
    first = next((i for i, count in enumerate(counts) if count), 0)
    last = max((i for i, count in enumerate(counts) if count), default=-1)
    return {
        "mean": total / max(len(flat), 1),
        "max": float(flat.max()) if len(flat) else 0.0,
        "top": top,
        "zero": 1 - len(some) / max(len(flat), 1),
        "histogram": {
            "low": _LEAST + first / _PER_DECADE,
            "width": 1 / _PER_DECADE,
            "counts": counts[first : last + 1],
        },
    }
