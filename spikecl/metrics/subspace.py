"""Geometry of subspaces given by rows ``H`` [k, n]."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormality_defect(rows: Tensor) -> float:
    """Return ``max |H H^T - I|``: zero for orthonormal rows."""
    if not len(rows):
        return 0.0
    gram = rows @ rows.T
    return float((gram - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).abs().max())


def row_basis(rows: Tensor) -> Tensor:
    """Return orthonormal columns [n, rank] that span the rows, dependent rows or not."""
    _, s, vh = torch.linalg.svd(rows, full_matrices=False)
    tolerance = s[:1] * max(rows.shape) * torch.finfo(rows.dtype).eps
    basis: Tensor = vh[s > tolerance].T
    return basis


def captured_energy(rows: Tensor, x: Tensor) -> float:
    """Return ``|x Q|^2 / |x|^2`` with Q an orthonormal basis of the rows' span; x is [R, n]."""
    total = float(x.square().sum())
    if not len(rows) or total == 0:
        return 0.0
    basis = row_basis(rows)
    return float((x @ basis).square().sum()) / total


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the principal angles between two row spaces in radians, ascending.

    Cosines are the singular values of ``Qa^T Qb`` (Björck & Golub 1973).
    """
    qa, qb = row_basis(a), row_basis(b)
    cosines: Tensor = torch.linalg.svdvals(qa.T @ qb)
    return cosines.clamp(-1, 1).acos()
