"""BiMU: a coin for each binary synapse, whose bias is its memory and its metaplasticity."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.metaplasticity.gates import binary_weights
from spikecl.continual.metaplasticity.sampled import Sampled, Voting
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors


@component
class Bimu(MethodSpec):
    """Binary metaplasticity by uncertainty: each weight is +1 with probability ``s(2 l)``.

    What is stored is l; the mean weight is ``tanh(l)``. A pass draws, with L a logistic number::

        r = tanh((l + L / 2) / temperature),   w = sign(r),   g = likelihood <dC/dw dr/dl>
        dl = -(lr g + l h / N) / (kl h + 2 g tanh(l) + 2 |g| + 1 / lr_max),   h = 1 - tanh(l)^2

    This is the step, in place of the optimiser's, of which the schedule alone is used. A step
    against a certain synapse (of a large l of either sign) is short, one along with it is not; what
    was N batches ago is forgotten. A batch whose gradients are all 0 changes nothing. No boundary
    is needed.

    Args:
        window: Memory N in batches.
        likelihood: Weight of the mean loss of a batch; large, since gradients behind synapses of
            size 1 / sqrt(fan-in) are small.
        lr: Factor of the gradient.
        lr_max: Largest learning rate of a synapse.
        kl: Weight of the curvature of the prior's term.
        temperature: Of the relaxed draw r that the gradient is taken at.
        samples: Draws of the weights in each step, one pass each.
        tests: Draws of the weights in tests, whose logits are averaged; 0 tests the likelier sign
            of each.

    Source: Cottart et al., arXiv:2605.30198, and their code (likelihood 17 to 250 with lr up to 20
    and batches of 1, lr_max 0.02 to 0.08, kl 0.3 to 4, N 1,600 to 18,000 by task).
    Deviation: a training pass uses the sign of the relaxed draw, a draw from the coin itself, in
    place of r, with r's gradient (straight through). Biases, norms, neurons and gains learn by the
    optimiser.
    """

    phase: ClassVar[Phase] = Phase.EXTRA_GRADIENT  # its step is there before gates act on it
    slot: ClassVar[str | None] = "step"
    window: PositiveFloat = 10_000.0
    likelihood: PositiveFloat = 3000.0
    lr: PositiveFloat = 1.0
    lr_max: PositiveFloat = 0.3
    kl: Annotated[float, Field(ge=0)] = 1.0
    temperature: PositiveFloat = 1.0
    samples: PositiveInt = 1
    tests: Annotated[int, Field(ge=0)] = 0

    def start(self, context: Context) -> Method:
        """Return the running method."""
        if not self.tests:
            return _Bimu(self, context)
        voting = _Votes(self, context)
        voting.votes = self.tests
        return voting


class _Bimu(Sampled):
    def __init__(self, spec: Bimu, context: Context):
        names = binary_weights(context, "bimu", "or method 'mesu'")
        super().__init__("bimu", context, names, spec.samples)
        self._spec = spec

    def draw(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        drawn: dict[str, Tensor] = {}
        for name, stored in self.stored.items():
            u = torch.rand(stored.shape, generator=generator, dtype=torch.float64)
            logistic = torch.logit(u, eps=1e-12).to(stored)
            drawn[name] = torch.tanh((stored + logistic / 2) / self._spec.temperature)
        return drawn, drawn

    def said(self, noise: Tensors, gradients: Tensors) -> dict[str, Tensor]:
        scale = self._spec.likelihood / self._spec.temperature
        return {
            name: scale * (1 - relaxed.square()) * gradients.get(name, torch.zeros_like(relaxed))
            for name, relaxed in noise.items()
        }

    def changed(self, name: str, update: Tensor, old: Tensor) -> Tensor:
        host, silent = self._context.host, all(not bool(g.any()) for g in self._said.values())
        if silent:
            return torch.zeros_like(update)
        return host.share() * step(old, self._said[name], self._spec, host.portion())


class _Votes(_Bimu, Voting):
    pass


def step(stored: Tensor, gradient: Tensor, rule: Bimu, portion: float = 1.0) -> Tensor:
    """Return the change of l.

    Args:
        stored: l of each synapse.
        gradient: g of each synapse.
        rule: The constants.
        portion: Of a batch that the gradient is of.
    """
    mean = torch.tanh(stored)
    h = 1 - mean.square()
    curve = rule.kl * h + 2 * gradient * mean + 2 * gradient.abs() + 1 / rule.lr_max
    return -(rule.lr * gradient + portion * stored * h / rule.window) / curve
