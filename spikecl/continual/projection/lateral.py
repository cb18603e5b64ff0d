"""Lateral weights of one synapse: subspaces learned by a Hebbian/anti-Hebbian rule.

Subspace neurons ``y = H x`` listen to the presynaptic neurons of a synapse and inhibit them in
turn, ``x̃ = x - H^T y``. Their weights learn by Oja's subspace rule, ``y x^T`` being the Hebbian
and ``-y (H^T y)^T`` the anti-Hebbian part. Rows of old tasks are frozen; rows of the present task
see what the old ones leave (deflation) and so find the directions that are new.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikecl.metrics import orthonormality_defect
from spikecl.networks import AnyFactor, Complement
from spikecl.storage import State, nbytes

MOMENTUM = 0.9
SILENCE = 1e-8  # share of the activity's variance below which a residual is rounding


class LateralWeights:
    """Frozen orthonormal rows of old tasks, and rows that learn, of one synapse.

    The rows that learn are kept in coordinates of the free complement once that is the smaller
    side; before, they are kept as they are. Both are exact: the complement is never left.

    Args:
        size: Number of presynaptic neurons n.
        like: Tensor whose type and device to use.
    """

    def __init__(self, size: int, like: Tensor):
        self.old = like.new_zeros(0, size)
        self.new = like.new_zeros(0, size)
        self.momentum = self.new
        self.outside: Complement | None = None
        self.compact = self.learning = False

    @property
    def free(self) -> int:
        """Number of directions that no old row takes."""
        return self.old.shape[1] - len(self.old)

    def begin(self, rows: int, generator: torch.Generator) -> None:
        """Add rows to learn, orthonormal and in the complement of the old ones.

        At most as many as directions are free: a full synapse learns no further row.
        """
        n, rows = self.old.shape[1], min(rows, self.free)
        self.learning = True
        self._complement()
        size = self.free if self.outside else n
        drawn = torch.randn(size, rows, generator=generator).to(self.old)
        start = torch.linalg.qr(drawn).Q.T if rows else drawn.T
        if self.outside and not self.compact:
            start = start @ self.outside.free.T
        self.new = start.contiguous()
        self.momentum = torch.zeros_like(self.new)

    def _complement(self) -> None:
        self.outside, self.compact = None, False
        if len(self.old):
            columns = torch.linalg.qr(self.old.T, mode="complete").Q[:, len(self.old) :]
            self.outside = Complement(self.old, columns.contiguous())
            self.compact = self.free <= 2 * len(self.old)

    def project(self, factor: AnyFactor, rows: Tensor | None) -> AnyFactor:
        """Project a factor out of the old rows, with the rows :meth:`seen` made if there are."""
        if self.outside is None:
            return factor
        if rows is None or not factor.sends_x:
            return factor.project(self.outside)
        if self.compact:
            return factor.project(self.outside, z=rows)
        return factor.project(self.outside, residual=rows)

    def seen(self, x: Tensor) -> Tensor:
        """Return what old rows leave of activity [R, n], in the coordinates of the new rows."""
        if self.outside is None:
            return x
        return self.outside.coordinates(x) if self.compact else self.outside.residual(x)

    def learn(self, rows: Tensor, activity: Tensor, *, rate: float, iterations: int) -> None:
        """Run the rule on rows [R, n or f] that :meth:`seen` made of activity [R, n].

        What old rows leave of activity that is all theirs is rounding; against the whole
        activity's variance it counts as silence.
        """
        self.new, self.momentum = hebbian(
            self.new,
            self.momentum,
            rows,
            rate=rate,
            iterations=iterations,
            silence=SILENCE * activity.square().sum() / len(activity),
        )

    def end(self) -> float:
        """Freeze the learned rows, made orthonormal; return their defect before."""
        defect, rows = orthonormality_defect(self.new), self.new
        if self.outside and not self.compact:
            rows = self.outside.residual(rows)
        if len(rows):
            rows = torch.linalg.qr(rows.T).Q.T
        if self.outside and self.compact:
            rows = rows @ self.outside.free.T
        self.old = torch.cat([self.old, rows])
        self.new = self.momentum = self.old.new_zeros(0, self.old.shape[1])
        self.outside, self.learning = None, False
        return defect

    def state_dict(self) -> State:
        """Return old and learning rows; the complement follows from them."""
        return {
            "old": self.old,
            "new": self.new,
            "momentum": self.momentum,
            "learning": self.learning,
        }

    def load_state_dict(self, state: State) -> None:
        """Take the rows back."""
        self.old, self.new, self.momentum = state["old"], state["new"], state["momentum"]
        self.learning, self.outside = state["learning"], None
        if self.learning:
            self._complement()

    def nbytes(self) -> int:
        """Return the bytes of all rows and of the complement's basis."""
        free = () if self.outside is None else (self.outside.free,)
        return nbytes(self.old, self.new, self.momentum, *free)


def hebbian(
    weights: Tensor,
    momentum: Tensor,
    x: Tensor,
    *,
    rate: float,
    iterations: int,
    silence: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Iterate Oja's subspace rule on one batch.

    ``C = x^T x / R``; then, ``iterations`` times::

        dH = (H C - (H C H^T) H) / tr C      Hebbian - anti-Hebbian, without unit
        m <- 0.9 m + 0.1 dH
        H <- H + rate m
        h <- h / max(1, |h|)                 each row; keeps the rule stable at any rate

    The rows' form (``y = x H^T``, ``H C = y^T x / R``) gives the same and is used where it is
    cheaper.

    Args:
        weights: H [k, n].
        momentum: m [k, n].
        x: Presynaptic rows [R, n].
        rate: Step relative to the total variance; small batches want a lower one.
        iterations: Repetitions on the batch.
        silence: Variance below which rows count for less than their share.

    Returns:
        New H and m.

    Source: specialised from Xiao et al. (ICLR 2024), HLOP; Oja (1989), subspace rule.
    Deviation: the change is relative to ``tr C``, else the rule's speed would depend on the square
    of the activity's scale, and rows are bounded instead of changes clipped.
    """
    (count, n), k = x.shape, len(weights)
    tiny = torch.finfo(x.dtype).tiny
    variance = (x.square().sum() / count).clamp_min(silence).clamp_min(tiny)
    covariance = count * n + iterations * k * n < 2 * iterations * count * k
    c = (x.T @ x) / count if covariance else None
    for _ in range(iterations):
        if c is None:
            y = x @ weights.T
            hebb, anti = (y.T @ x) / count, (y.T @ y) / count
        else:
            hebb = weights @ c
            anti = hebb @ weights.T
        momentum = torch.lerp((hebb - anti @ weights) / variance, momentum, MOMENTUM)
        weights = weights + rate * momentum
        weights = weights / weights.norm(dim=1, keepdim=True).clamp_min(1)
    return weights, momentum
