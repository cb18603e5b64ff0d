"""Metaplasticity of hidden weights: the further one is from zero, the slower it goes back."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import component
from spikecl.continual.metaplasticity.gates import Gate, binary_weights, weights_of
from spikecl.continual.method import Context, Method, MethodSpec, Phase


@component
class Laborieux(MethodSpec):
    """Hold back steps that would bring a hidden weight nearer to zero.

    ``W`` is the hidden weight of a binary synapse, which passes ``sign(W)`` on, and ``dW`` what the
    optimiser applied::

        f = 1 - tanh(m |W|)^2  where sign(W) dW < 0,  else 1
        W <- W + f dW

    No state and no boundary; weights alone, never biases, gains or norms.

    Args:
        m: Strength; 0 is the optimiser alone, bit for bit.
        on: Which weights: those of ``binary`` synapses (a network without any is refused), or
            ``all``. The size of a weight that is used as it is says how strong it is, not how often
            it was confirmed, and the rule means nothing there (figure 2f of the paper).

    Source: Laborieux et al., Nature Communications 12:2549 (2021), algorithm 1 and their code: m is
    1.35 for six permutations of MNIST.
    Deviation: any optimiser, of which the applied step is taken for the direction; for Adam this is
    the sign of the first moment, as in the code, but for a weight decay that is decoupled. Norms
    are shared by all tasks and tests use the running statistics: the code's ``domain`` scenario.
    Beside ``task_norms`` it is the ``task`` scenario.
    """

    phase: ClassVar[Phase] = Phase.GATE
    m: Annotated[float, Field(ge=0)] = 1.35
    on: Literal["binary", "all"] = "binary"

    def start(self, context: Context) -> Method:
        """Return the running method."""
        if self.on == "all":
            return _Laborieux(self.m, context, weights_of(context, "laborieux"))
        names = binary_weights(context, "laborieux", "or method.laborieux.on='all' all the same")
        return _Laborieux(self.m, context, names)


class _Laborieux(Gate):
    def __init__(self, m: float, context: Context, names: list[str]):
        super().__init__(context, names)
        self._m = m

    def changed(self, name: str, update: Tensor, old: Tensor) -> Tensor:
        return update * gate(old, update, self._m)


def gate(weight: Tensor, update: Tensor, m: float) -> Tensor:
    """Return f: which part of an update of a hidden weight is applied.

    Example:
        >>> w = torch.tensor([0.5, 0.5, -0.5])
        >>> [round(f, 3) for f in gate(w, torch.tensor([-0.1, 0.1, 0.1]), 1.35).tolist()]
        [0.654, 1.0, 0.654]
    """
    shrinks = weight.sign() * update < 0
    return torch.where(shrinks, 1 - torch.tanh(m * weight.abs()).square(), 1.0)
