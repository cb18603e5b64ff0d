"""Evolution strategies: the gradient of a loss that is smoothed by noise on the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.encoding import Loss
from spikecl.networks import Network
from spikecl.trainers.trainer import Call, Factors, Trainer, Traits
from spikecl.trainers.zeroth.passes import Passes, need_felt


@component
class Evolution(Trainer):
    """Pairs of opposite mutants, weighted by the ranks of their losses.

    With ``P`` normal mutations ``z`` of the stored parameters ``w``, in order of execution::

        L+_p, L-_p = L(w + sigma z_p), L(w - sigma z_p)    2P losses
        u = rank / (2P - 1) - 1/2                          centred ranks, equal losses share one
        g = sum_p (u+_p - u-_p) z_p / (2 P sigma)

    With ``shaping="none"`` the losses stand for ``u``: ``g`` is then an unbiased estimate of the
    gradient of ``E_z[L(w + sigma z)]``, the true loss of the network that fires, whatever the
    surrogate says: a referee for surrogates. Ranks take any scale out of the losses, so outliers
    do not count more than others, and losses that are not finite are the largest; where no mutant
    has a finite one the gradient is NaN, which stops a run. A step takes ``2 P + 1`` passes without
    a graph, and the memory of two; the mutations are drawn twice instead of kept.

    Source: Salimans et al., arXiv 1703.03864 (2017), algorithm 1.

    Args:
        pairs: Pairs of mutants P.
        sigma: Standard deviation of a mutation; at least 10 times the precision of the network's
            type (about 1.2e-6 in float32).
        shaping: ``ranks``, or the losses as they are (``none``).
    """

    has_gradient: ClassVar[bool] = False
    traits: ClassVar[Traits] = Traits(
        time="forward passes alone",
        space="one number for all: the rank of a loss",
        memory="T B N and 2 S, no graph",
        exact="shaping 'none': unbiased for the loss smoothed by sigma; variance ~ S/P",
        network="any",
        source="Salimans et al. 2017",
    )

    pairs: PositiveInt = 100
    sigma: PositiveFloat = 0.05
    shaping: Literal["ranks", "none"] = "ranks"

    @property
    def random(self) -> bool:
        """Mutations are drawn."""
        return True

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse mutations that are lost in rounding."""
        need_felt(self.name, "sigma", self.sigma, x)

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield gradients of the stored parameters; there are no rows."""
        yield self._factors(call)

    @torch.no_grad()
    def _factors(self, call: Call) -> Factors:
        passes = Passes(call, self.name)
        drawn = passes.generator.get_state()
        losses = []
        for _ in range(self.pairs):
            z = passes.draw("gaussian")
            losses += [passes.loss(passes.moved(z, sign * self.sigma)) for sign in (1, -1)]
        found = torch.stack(losses)
        ahead, behind = (centred_ranks(found) if self.shaping == "ranks" else found).view(-1, 2).T
        shares = (ahead - behind) / (2 * self.pairs * self.sigma)
        again = torch.Generator(passes.generator.device).set_state(drawn)
        gradient = passes.nothing()
        for share in shares:
            z = passes.draw("gaussian", again)
            for name, part in gradient.items():
                part.add_(z[name] * share.to(part.dtype))
        return passes.factors(gradient)


def centred_ranks(losses: Tensor) -> Tensor:
    """Return the ranks of n losses, from -1/2 to 1/2; equal losses share the mean of theirs.

    Losses that are not finite are the largest; where all are, the ranks are NaN.

    Example:
        >>> centred_ranks(torch.tensor([3.0, 1.0, 3.0])).tolist()
        [0.25, -0.5, 0.25]
    """
    finite = losses.isfinite()
    losses = losses.where(finite, torch.inf)
    below = (losses[:, None] > losses).sum(1)
    equal = (losses[:, None] == losses).sum(1) - 1
    rank = below.to(losses.dtype) + equal.to(losses.dtype) / 2
    return (rank / (len(losses) - 1) - 0.5).where(finite.any(), torch.nan)
