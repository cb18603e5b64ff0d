"""Simultaneous perturbation: the gradient from differences of the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.encoding import Loss
from spikecl.networks import Network
from spikecl.trainers.trainer import Call, Factors, Trainer, Traits
from spikecl.trainers.zeroth.passes import Direction, Distribution, Passes, need_felt


@component
class Spsa(Trainer):
    """Two losses for each random direction of all stored parameters.

    With ``P`` directions ``z`` of the parameters ``w``, in order of execution::

        d_p = (L(w + e z_p) - L(w - e z_p)) / 2e           slope along a direction
        g   = 1/P sum_p d_p z_p                            plain
        g   = 1/P sum_p sign(d_p) z_p                      sign
        g   = s g_plain, s of {0, 1, -1} with the least    conservative
              L(w - step s g_plain)

    With ``E[z z^T] = 1`` the mean of ``g`` is the gradient, up to ``O(e^2)``. On a linear loss with
    slopes ``a`` and Rademacher directions the variance of ``g_i`` is ``(|a|^2 - a_i^2) / P``: it
    grows with the number of parameters. The network draws the same numbers (dropout, noise) in
    all passes of a call. A step takes ``2 P + 1`` passes (``conservative`` two more) without a
    graph, and the memory of two. Adam (ZO-Adam) is ``plain`` with optimiser ``adam``.

    Source: Spall, IEEE Transactions on Automatic Control 37 (1992); the variants: Feng et al.,
    ICML 2025 (ZeroFlow: ZO-SGD, ZO-SGD-Sign, ZO-SGD-Conserve), and its public code.
    Deviation: ``conservative`` compares the candidates at a step size of its own, since the
    optimiser's is not known here, and stays where it is on a tie; the public code takes the
    optimiser's steps. With ``sgd`` without momentum and ``step = optimiser.lr`` they are the same.

    Args:
        directions: Directions P.
        epsilon: Distance e of a perturbation; at least 10 times the precision of the network's
            type (about 1.2e-6 in float32).
        distribution: Each number of a direction is -1 or 1 (``rademacher``), or normal.
        variant: How the gradient is made of slopes.
        step: Size of the steps that ``conservative`` compares.
    """

    has_gradient: ClassVar[bool] = False
    traits: ClassVar[Traits] = Traits(
        time="forward passes alone",
        space="one number for all: a difference of the loss",
        memory="T B N and 3 S, no graph",
        exact="unbiased up to e^2, of the network that fires; variance ~ S/P; 'sign': biased",
        network="any",
        source="Spall 1992; Feng et al. 2025",
    )

    directions: PositiveInt = 1
    epsilon: PositiveFloat = 1e-3
    distribution: Distribution = "rademacher"
    variant: Literal["plain", "sign", "conservative"] = "plain"
    step: PositiveFloat = 0.01

    @property
    def random(self) -> bool:
        """Directions are drawn."""
        return True

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse perturbations that are lost in rounding."""
        need_felt(self.name, "epsilon", self.epsilon, x)

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield gradients of the stored parameters; there are no rows."""
        yield self._factors(call)

    @torch.no_grad()
    def _factors(self, call: Call) -> Factors:
        passes = Passes(call, self.name)
        gradient = passes.nothing()
        for _ in range(self.directions):
            z = passes.draw(self.distribution)
            ahead = passes.loss(passes.moved(z, self.epsilon))
            behind = passes.loss(passes.moved(z, -self.epsilon))
            slope = (ahead - behind) / (2 * self.epsilon)
            slope = slope.sign() if self.variant == "sign" else slope
            for name, part in gradient.items():
                part.add_(z[name] * (slope / self.directions).to(part.dtype))
        if self.variant == "conservative":
            sign = self._best(passes, gradient)
            gradient = {name: part * sign.to(part.dtype) for name, part in gradient.items()}
        return passes.factors(gradient)

    def _best(self, passes: Passes, gradient: Direction) -> Tensor:
        """Return 0, 1 or -1: the multiple of a gradient whose step has the least finite loss."""
        down = passes.loss(passes.moved(gradient, -self.step))
        up = passes.loss(passes.moved(gradient, self.step))
        signs = down.new_tensor([0.0, 1.0, -1.0])
        losses = torch.stack([passes.base, down, up])
        return signs[losses.where(losses.isfinite(), torch.inf).argmin()]
