"""The subspace of one synapse: orthonormal rows that old tasks use, and what is left free.

Rows come from different back-ends: Hebbian rules (:mod:`~spikecl.continual.projection.lateral`),
the covariance of activity (:func:`principal`), gradients. How many is a count, a share of the
inputs, an energy, or a share of what is left. A subspace never has more rows than inputs; one that
has all of them is ``full``, and the report says so: updates that stay out of it are none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikecl.networks import Complement
from spikecl.storage import nbytes


class Subspace:
    """Orthonormal rows H [k, n] of one synapse.

    Args:
        size: Number of inputs n.
        like: Tensor whose type and device to use.
    """

    def __init__(self, size: int, like: Tensor):
        self.rows = like.new_zeros(0, size)

    @property
    def free(self) -> int:
        """Number of directions that no row takes."""
        return self.rows.shape[1] - len(self.rows)

    @property
    def full(self) -> bool:
        """Whether nothing is left to learn in."""
        return self.free == 0

    def complement(self) -> Complement | None:
        """Return the directions left free; ``None`` while all are."""
        return complement(self.rows)

    def residual(self, x: Tensor) -> Tensor:
        """Return the part of rows [R, n] outside the subspace."""
        return x - (x @ self.rows.T) @ self.rows

    def extend(self, rows: Tensor) -> int:
        """Add the directions of rows [k, n] that are new, made orthonormal; return how many.

        A row is new by what earlier ones do not span of it, if that is more than 1e-6 of the
        longest row. Directions beyond what is free are dropped, the last ones first.
        """
        count = len(self.rows)
        held = torch.cat([self.rows, rows.new_zeros(min(len(rows), self.free), rows.shape[1])])
        least = 1e-6 * float(rows.norm(dim=1).max()) if len(rows) else 0.0
        for left in self.residual(rows):
            if count == len(held):
                break
            for _ in range(2):  # twice: rounding
                left = left - (held[:count] @ left) @ held[:count]
            if float(left.norm()) > least:
                held[count] = left / left.norm()
                count += 1
        added = count - len(self.rows)
        self.rows = held if count == len(held) else held[:count].clone()  # no more than is used
        return added

    def report(self) -> dict[str, object]:
        """Return sizes for the record."""
        return {"rows": len(self.rows), "free": self.free, "full": self.full}

    def nbytes(self) -> int:
        """Return the bytes of the rows."""
        return nbytes(self.rows)


def complement(rows: Tensor) -> Complement | None:
    """Return the directions that orthonormal rows [k, n] leave free; ``None`` where k is 0."""
    if not len(rows):
        return None
    columns = torch.linalg.qr(rows.T, mode="complete").Q[:, len(rows) :]
    return Complement(rows, columns.clone(memory_format=torch.contiguous_format))  # no view of Q


def principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, descending, and eigenvectors as rows of a covariance [n, n].

    Computed in double precision; eigenvalues below rounding are zero.
    """
    values, columns = torch.linalg.eigh(covariance.double())
    values = values.flip(0).clamp_min(0)
    floor = values[:1] * len(values) * torch.finfo(covariance.dtype).eps
    values = torch.where(values > floor, values, torch.zeros_like(values))
    return values, columns.flip(1).T


def count_for_energy(values: Tensor, energy: float, total: float, kept: float = 0.0) -> int:
    """Return the smallest number of directions with ``kept + sum(values[:k]) >= energy * total``.

    Args:
        values: Energies of new directions, descending.
        energy: Share to reach, in (0, 1].
        total: All energy.
        kept: Energy inside what is stored already.
    """
    if total <= 0 or kept >= energy * total:
        return 0
    reached = kept + values.cumsum(0)
    enough = (reached >= energy * total * (1 - 1e-12)).nonzero()
    positive = int((values > 0).sum())
    return min(int(enough[0]) + 1, positive) if len(enough) else positive
