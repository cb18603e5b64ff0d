"""The cascade of Fusi, Drew and Abbott: binary synapses, ever harder to change when confirmed."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.metaplasticity.gates import Gate, binary_weights
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors
from spikecl.storage import State
from spikecl.streams import LearnerView


@component
class Cascade(MethodSpec):
    """Binary synapses with n levels of plasticity, moved by chance in place of the optimiser.

    What is stored is ``s i``, the sign s being the weight and i = 1 .. n its level. A batch whose
    update, as the optimiser would apply it, is ``dW``, asks a synapse for ``sign(dW)`` with
    probability ``min(1, |dW| / size)``. What it asks for happens with probability::

        the other sign:  s -> -s, i -> 1    q_i = x^(i-1),        q_n = x^(n-1) / (1 - x)
        the same:        i -> i + 1         p_i = x^i / (1 - x),  p_n = 0

    The trace of one memory among many falls by a power of their number up to about ``x^-n`` of
    them, then exponentially: with ten levels by -0.7 from 10 to 100, by -1.1 from 100 to 1000. One
    level is a plain binary synapse, exponential from the start. No boundary is needed.

    Args:
        levels: Number n of levels of each sign.
        x: How much harder each level is to leave than the one before.
        size: Update that asks for sure.

    Source: Fusi, Drew & Abbott, Neuron 45 (2005). The constants are from memory of it.
    Deviation: asked by the updates of a network in training, by their size; there all synapses are
    asked by each memory.
    """

    phase: ClassVar[Phase] = Phase.EXTRA_GRADIENT  # its step is there before gates act on it
    slot: ClassVar[str | None] = "step"
    levels: PositiveInt = 6
    x: Annotated[float, Field(gt=0, le=0.5)] = 0.5
    size: PositiveFloat = 0.1

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return _Cascade(self, context)


class _Cascade(Gate):
    own, whole = "method 'cascade' moves synapses by whole levels", True
    remembers = True  # that levels have begun
    opens = True  # with levels, which others begin from

    def __init__(self, spec: Cascade, context: Context):
        super().__init__(context, binary_weights(context, "cascade", "or another method"))
        self._spec, self._step, self._begun = spec, 0, False

    @torch.no_grad()
    def begin(self, view: LearnerView) -> None:
        """Begin the run at the first level of the drawn signs."""
        if not self._begun:
            for weight in self.stored.values():
                weight.copy_(torch.where(weight < 0, -1.0, 1.0))
        self._begun = True

    def update(self, update: Tensors) -> Tensors:
        made = super().update(update)
        self._step += 1
        return made

    def changed(self, name: str, update: Tensor, old: Tensor) -> Tensor:
        spec, place = self._spec, self.names.index(name)
        generator = self._context.seeds.generator("cascade", event=place, step=self._step)
        asked, drawn = torch.rand(2, *old.shape, generator=generator, dtype=torch.float64)
        asks = asked.to(old.device) < update.abs() / spec.size
        # an averaging optimiser leaves means of states behind
        state = old.abs().round().clamp(1, spec.levels) * torch.where(old < 0, -1.0, 1.0).to(old)
        found = moved(state, update.sign() * asks, drawn.to(old.device), spec.levels, spec.x)
        return found - old

    def report(self) -> dict[str, object]:
        """Return how many synapses are in each state: -n .. -1, 1 .. n."""
        n = self._spec.levels
        states = [*range(-n, 0), *range(1, n + 1)]
        rounded = {name: weight.round() for name, weight in self.stored.items()}
        return {
            name: {"states": states, "count": [int((w == state).sum()) for state in states]}
            for name, w in rounded.items()
        }

    def state_dict(self) -> State:
        return {"step": self._step, "begun": self._begun}

    def load_state_dict(self, state: State) -> None:
        self._step, self._begun = state["step"], state["begun"]


def chances(levels: int, x: float) -> tuple[list[float], list[float]]:
    """Return the probabilities of a flip and of going deeper, level by level.

    Example:
        >>> chances(3, 0.5)
        ([1.0, 0.5, 0.5], [1.0, 0.5, 0.0])
    """
    flip = [x ** (i - 1) for i in range(1, levels)] + [min(1.0, x ** (levels - 1) / (1 - x))]
    return flip, [x**i / (1 - x) for i in range(1, levels)] + [0.0]


def moved(state: Tensor, candidate: Tensor, drawn: Tensor, levels: int, x: float) -> Tensor:
    """Return the states ``s i`` of synapses behind one candidate each.

    Args:
        state: Sign times level, 1 to ``levels``.
        candidate: 1 asks for potentiation, -1 for depression, 0 for nothing.
        drawn: Numbers drawn evenly from 0 to 1.
        levels: Number of levels of each sign.
        x: Ratio of probabilities.
    """
    place = state.abs().long() - 1
    flip, deepen = (drawn.new_tensor(p)[place] for p in chances(levels, x))
    flips = (candidate * state < 0) & (drawn < flip)
    deeper = (candidate * state > 0) & (drawn < deepen)
    state = torch.where(flips, -state.sign(), state)
    return torch.where(deeper, state + state.sign(), state)
