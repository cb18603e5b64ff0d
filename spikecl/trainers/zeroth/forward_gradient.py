"""Forward gradients: directional derivatives by forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spikecl.components import PositiveInt, component
from spikecl.encoding import Loss
from spikecl.errors import PairingError
from spikecl.kernels.tangent import Dual
from spikecl.networks import Network
from spikecl.trainers.trainer import Call, Factors, Trainer, Traits
from spikecl.trainers.zeroth.passes import Direction, Distribution, Passes


@component
class ForwardGradient(Trainer):
    """The surrogate gradient's component along random directions, without going back.

    With ``P`` directions ``z`` of the stored parameters, in order of execution::

        d_p = grad L . z_p          one pass forward that carries a tangent
        g   = 1/P sum_p d_p z_p

    With ``E[z z^T] = 1`` the mean of ``g`` is the gradient of :class:`~spikecl.trainers.Bptt`,
    surrogates, cut resets and all; its variance is that of :class:`Spsa` in the limit of small
    steps. A step takes ``P`` passes with tangents (about three times the work of a plain one) and
    one without, none with a graph; memory is that of two passes and a tangent.

    Source: Baydin et al., arXiv 2202.08587 (2022), algorithm 1.

    Args:
        directions: Directions P.
        distribution: Each number of a direction is normal (as in the source), or -1 or 1
            (``rademacher``), whose variance is a little less.
    """

    has_gradient: ClassVar[bool] = False
    traits: ClassVar[Traits] = Traits(
        time="forward passes alone",
        space="one number for all: a slope of the loss",
        memory="T B N, 2 S and tangents, no graph",
        exact="unbiased for the surrogate gradient; variance ~ S/P",
        network="any",
        source="Baydin et al. 2022",
    )

    directions: PositiveInt = 1
    distribution: Distribution = "gaussian"

    @property
    def random(self) -> bool:
        """Directions are drawn."""
        return True

    @torch.no_grad()
    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse networks with a step that has no forward derivative."""
        weights = {name: p.detach() for name, p in network.weights().items()}
        still = {name: torch.zeros_like(w) for name, w in weights.items()}
        try:
            with forward_ad.dual_level():
                network(x[:1], weights=duals(weights, still), generator=torch.Generator())
        except NotImplementedError as error:
            raise PairingError(
                f"trainer '{self.name}' takes derivatives forward, which a part of the network "
                f"does not know: {error}; use trainer 'spsa' or 'bptt'"
            ) from None

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield gradients of the stored parameters; there are no rows."""
        yield self._factors(call)

    @torch.no_grad()
    def _factors(self, call: Call) -> Factors:
        passes = Passes(call, self.name)
        gradient = passes.nothing()
        for _ in range(self.directions):
            z = passes.draw(self.distribution)
            slope = slope_along(passes, z) / self.directions
            for name, part in gradient.items():
                part.add_(z[name] * slope.to(part.dtype))
        return passes.factors(gradient)


def slope_along(passes: Passes, direction: Direction) -> Tensor:
    """Return the derivative of the loss along a direction; 0 where nothing depends on it."""
    with forward_ad.dual_level():
        loss = passes.loss(duals(passes.at, direction))
        primal, tangent = Dual.of(loss)
        return torch.zeros_like(primal) if tangent is None else tangent.clone()


def duals(at: Direction, direction: Direction) -> dict[str, Tensor]:
    """Return parameters that carry a direction as their tangent, within a level of duals."""
    return {name: Dual(value, direction[name]).number() for name, value in at.items()}
