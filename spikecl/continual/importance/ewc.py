"""EWC: elastic weight consolidation (Kirkpatrick et al., PNAS 2017), and its online form."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from spikecl.components import PositiveInt, component
from spikecl.continual.host import Seen
from spikecl.continual.importance.importance import (
    Discount,
    Hold,
    HoldAfter,
    Measure,
    Others,
    Step,
    Strength,
)
from spikecl.continual.importance.per_sample import mean_powers
from spikecl.continual.method import Context, Method, MethodSpec
from spikecl.errors import ConfigError, PairingError
from spikecl.storage import State
from spikecl.streams import LearnerView, Reveal


@component
class Ewc(MethodSpec):
    """Hold each parameter by the Fisher information that old experiences have of it.

    In each step, to the gradient G of the loss, with A and c of the experiences before::

        G <- G + strength A (w - c)

    Behind an experience, at its last weights, with log p(y|x) of the network's output::

        F = mean_n (dlog p(y_n | x_n) / dw)^2         of each sample by itself
        y_n ~ p(. | x_n)                              fisher = "true"
        y_n = the label of x_n                        fisher = "empirical"
        A <- A + F,        c <- c + F / A (w - c)     mode = "separate"
        A <- gamma A + F,  c <- w                     mode = "online"

    The mean of anchors weighted by F is the sum of one penalty for each experience, each with F and
    w of its own, but for a constant: it takes no more memory with more of them.

    Args:
        strength: Of the penalty, ``lambda``. With a plain optimiser its gradient is followed
            stably while ``lr strength A`` stays below 2 everywhere.
        fisher: Whose labels: ``true`` draws them from the network, ``empirical`` has the data's.
        mode: One anchor for each experience (``separate``), or the last alone (``online``).
        gamma: What stays of A from experience to experience in mode ``online``; 1 is a sum.
        samples: Samples of an experience that F is a mean over.
        step: Add the penalty's ``gradient``, or take a step of its own behind the optimiser's,
            stable for any strength (``implicit``).
        others: Whether biases, neurons' parameters and norms are held (``protect``) or ``learn``.

    Source: Kirkpatrick et al. 2017, equation 3; online: Schwarz et al., Progress & compress, ICML
    2018, equation 9, whose further gamma in the penalty is in ``strength`` here.
    Deviation: log p is minus the loss of training (with a loss that is no cross entropy the squares
    are those of its gradients). With surrogate gradients F is of these: its size depends on the
    surrogate's width, and so does the strength that fits. Under trainers without a gradient of the
    loss (``has_gradient``) BPTT measures.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    strength: Strength = 10.0
    fisher: Literal["true", "empirical"] = "true"
    mode: Literal["separate", "online"] = "separate"
    gamma: Discount = 1.0
    samples: PositiveInt = 1000
    step: Step = "gradient"
    others: Others = "protect"

    def __post_init__(self) -> None:
        if self.mode == "separate" and self.gamma != 1:
            raise ConfigError(
                f"gamma={self.gamma} forgets old importances, and mode='separate' keeps those of "
                "every experience; use mode='online', or gamma=1"
            )

    def start(self, context: Context) -> Method:
        """Return the running method; one of strength 0 measures and holds nothing."""
        if self.fisher == "empirical" and Reveal.LABELS not in context.reveal:
            raise PairingError(
                "method 'ewc' with fisher='empirical' needs labels, which the stream hides; use "
                "fisher='true', which draws them"
            )
        if self.strength == 0:
            return _Run(self, context)
        return (_Gradient if self.step == "gradient" else _Implicit)(self, context)


class _Run(Measure):
    looks = True

    def __init__(self, spec: Ewc, context: Context):
        super().__init__(context, "ewc", spec.others, spec.strength)
        self._spec, self._events = spec, 0

    def end(self, view: LearnerView) -> None:
        spec, names = self._spec, self.importance.names
        count = min(spec.samples, len(view.samples))
        generator = self.context.seeds.generator("ewc", event=self._events)
        draws = torch.rand(count, generator=generator, dtype=torch.float64)

        def ask(seen: Seen, before: int) -> Seen:
            labels = seen.batch.y
            if spec.fisher == "true" or labels is None:
                labels = self._drawn(seen, draws[before : before + seen.x.shape[1]])
            return self.context.host.relabel(seen, labels)

        found = mean_powers(self.context, view.samples, count, names, power=2, ask=ask)
        self.importance.merge(found, keep=spec.gamma, mean_anchor=spec.mode == "separate")
        self._events += 1

    def _drawn(self, seen: Seen, draws: Tensor) -> Tensor:
        """Return labels [B] that the network's own probabilities give to numbers from 0 to 1."""
        network = self.context.network
        logits = seen.logits(network(seen.x, generator=seen.generator).logits)
        below = logits.double().softmax(-1).cumsum(-1)
        places = draws.to(below.device)[:, None] * below[:, -1:]  # sums to 1 but for rounding
        return (below <= places).sum(-1).clamp_max(logits.shape[-1] - 1)

    def state_dict(self) -> State:
        return {**super().state_dict(), "events": self._events}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._events = state["events"]


class _Gradient(_Run, Hold):
    pass


class _Implicit(_Run, HoldAfter):
    pass
