"""Where updates may go: maps ``u -> u P`` of rows, and what they cost."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Outside(Protocol):
    """A symmetric map P [n, n] of rows that keeps what is free and takes out what is in use.

    Where ``P = Q Q^T`` with fewer columns than half of n, ``columns`` are Q [n, f]: products with
    them are the cheaper ones.
    """

    @property
    def columns(self) -> Tensor | None:
        """Q [n, f] with ``P = Q Q^T``, or ``None`` where nobody has it."""

    @property
    def work(self) -> int:
        """Multiplications of :meth:`residual` for one row."""

    def residual(self, x: Tensor) -> Tensor:
        """Return rows [R, n] times P."""

    def diagonal(self) -> Tensor:
        """Return the diagonal of P [n]."""

    def rows(self) -> Tensor:
        """Return P [n, n] itself."""


class Complement(NamedTuple):
    """The directions left free by a subspace: ``P = I - H^T H = Q Q^T``.

    Args:
        basis: Orthonormal rows H [k, n] of the subspace.
        free: Orthonormal columns Q [n, f] of its complement, k + f = n.
    """

    basis: Tensor
    free: Tensor

    @property
    def columns(self) -> Tensor:
        """The free columns."""
        return self.free

    @property
    def work(self) -> int:
        """Multiplications for a row, on the cheaper side."""
        n, f = self.free.shape
        return 2 * n * min(f, n - f)

    def residual(self, x: Tensor) -> Tensor:
        """Return the part of rows [R, n] outside the subspace, on the cheaper side."""
        if self.basis.shape[0] <= self.free.shape[1]:
            return x - (x @ self.basis.T) @ self.basis
        return (x @ self.free) @ self.free.T

    def coordinates(self, x: Tensor) -> Tensor:
        """Return rows [R, n] in coordinates of the complement [R, f]."""
        return x @ self.free

    def diagonal(self) -> Tensor:
        """Return the diagonal of ``Q Q^T``."""
        return self.free.square().sum(1)

    def rows(self) -> Tensor:
        """Return ``Q Q^T``."""
        return self.free @ self.free.T


class Suppression(NamedTuple):
    """Directions held back in proportion to their use: any symmetric P with eigenvalues in (0, 1].

    Args:
        matrix: P [n, n].
        root: Q [n, f] with ``P = Q Q^T``, where few columns make it.
    """

    matrix: Tensor
    root: Tensor | None = None

    @property
    def columns(self) -> Tensor | None:
        """The columns of the root."""
        return self.root

    @property
    def work(self) -> int:
        """Multiplications for a row."""
        n = len(self.matrix)
        return n * n if self.root is None else 2 * n * self.root.shape[1]

    def residual(self, x: Tensor) -> Tensor:
        """Return ``x P``."""
        return x @ self.matrix if self.root is None else (x @ self.root) @ self.root.T

    def diagonal(self) -> Tensor:
        """Return the diagonal of P."""
        return self.matrix.diagonal()

    def rows(self) -> Tensor:
        """Return P."""
        return self.matrix
