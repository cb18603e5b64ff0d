"""Circuits that compute and learn ``P = (I + C/alpha)^-1``, which holds used directions back.

``C = sum_k x_k x_k^T`` over what was transmitted. All of these have been found before under other
names: P is the regressor of recursive least squares (orthogonal weights modification, Zeng et al.
2019), ridge regression's complement ``I - X^T (X X^T + alpha I)^-1 X``, and the free conceptor of
aperture ``alpha^-1/2`` (conceptor-aided backpropagation, He & Jaeger 2018).

Three circuits of lateral neurons come to it:

one-shot
    ``x̃ = x - L x`` with ``L = I - P``, one pass, no settling; learned by its own output,
    ``dL = x̃ x̃^T / (alpha + x^T x̃)``: anti-Hebbian with one divisive gain. Exact after each row.
spiking
    the same with lateral neurons that send signed spikes of one size in a number of steps.
recurrent
    ``tau dr/dt = x - r - M r``, ``M = C/alpha``; settles to ``P x``, slowly where M is large.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.errors import UsageError


def suppression(covariance: Tensor, alpha: float) -> Tensor:
    """Return ``(I + C/alpha)^-1`` [n, n], symmetric, eigenvalues in (0, 1]."""
    n = len(covariance)
    eye = torch.eye(n, dtype=covariance.dtype, device=covariance.device)
    factor = root(eye + (covariance + covariance.T) / (2 * alpha))
    return torch.cholesky_inverse(factor).contiguous()


def root(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor of a symmetric matrix [n, n].

    Raises:
        UsageError: It is not positive definite, but for rounding.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise UsageError(
            "the activity of a synapse is so large beside the strength of its projection (alpha, "
            "precision) that rounding leaves no inverse, or it is not finite; scale the input "
            "down (to about 1), or raise the strength"
        )
    return factor


def one_shot(lateral: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """Return L after rows [R, n], one after the other: ``L += x̃ x̃^T / (alpha + x^T x̃)``.

    Rows of a batch are taken together where that is the same arithmetic and fewer products
    (Woodbury): ``P - P X^T (alpha I + X P X^T)^-1 X P``.
    """
    for block in torch.split(rows, _BLOCK):
        held = block - block @ lateral  # X P
        inner = held @ block.T
        inner.diagonal().add_(alpha)
        factor = root((inner + inner.T) / 2)
        half = torch.linalg.solve_triangular(factor, held, upper=False)
        lateral = lateral + half.T @ half
    return (lateral + lateral.T) / 2


_BLOCK = 128


class Spiking(NamedTuple):
    """What spiking lateral neurons made of rows.

    Args:
        lateral: L afterwards.
        rows: How many they were.
        sent: Signed spikes that lateral neurons sent.
        wrong: Sum of ``|x̃_spiking - x̃|^2`` of the same L.
        size: Sum of ``|x̃|^2``.
    """

    lateral: Tensor
    rows: int = 0
    sent: float = 0.0
    wrong: float = 0.0
    size: float = 0.0

    @property
    def events(self) -> float:
        """Spikes for a row, mean."""
        return self.sent / max(self.rows, 1)

    @property
    def error(self) -> float:
        """``|x̃_spiking - x̃| / |x̃|``, root mean square over rows."""
        return float((self.wrong / max(self.size, 1e-30)) ** 0.5)

    def after(self, before: Spiking) -> Spiking:
        """Return what both made, these rows after others."""
        return Spiking(
            self.lateral,
            before.rows + self.rows,
            before.sent + self.sent,
            before.wrong + self.wrong,
            before.size + self.size,
        )


def spiking_one_shot(
    lateral: Tensor, rows: Tensor, alpha: float, *, steps: int, quantum: float
) -> Spiking:
    """Learn L with lateral neurons that spike, row by row.

    Presynaptic neurons inhibit lateral ones through L, each is driven by its own input besides. A
    lateral neuron gathers ``x̃ / steps`` at each of ``steps`` steps and sends a spike of size
    ``quantum`` and of the sign of what it has gathered wherever that exceeds half of it, which is
    then taken off (an integrate-and-fire neuron with soft reset and two signs). With ``ŷ`` the sum
    of its spikes, synapses change at the end of the row by::

        dL = (ŷ x̃^T + x̃ ŷ^T - ŷ ŷ^T) / (alpha + x^T x̃)

    Each term has a spike of one side and a spike or the drive of the other, so what has sent no
    spike has no event. For ``ŷ = x̃`` it is the exact rule. Otherwise it leaves
    ``(ŷ - x̃)(ŷ - x̃)^T / (alpha + x^T x̃)`` too much of P: of second order in the error of spikes,
    and P stays positive semidefinite whatever they were (Joseph's form of the update of a
    covariance; with ``ŷ ŷ^T`` alone, P becomes negative where it is small, and grows without
    bound). ``|ŷ_i - x̃_i| <= quantum / 2`` where spikes keep up with the drive, ``|x̃_i| <= steps
    quantum``.

    Args:
        lateral: L [n, n].
        rows: What was transmitted [R, n].
        alpha: Strength.
        steps: Time steps of a row.
        quantum: Size of a spike.
    """
    events, wrong, size = 0.0, 0.0, 0.0
    lateral = lateral.clone()
    for x in rows:
        drive = x - lateral @ x
        sent, count = spike_counts(drive, steps, quantum)
        gain = alpha + float(x @ drive)
        lateral += (torch.outer(sent, drive) + torch.outer(drive - sent, sent)) / gain
        events += count
        wrong += float((sent - drive).square().sum())
        size += float(drive.square().sum())
    return Spiking(lateral, len(rows), events, wrong, size)


def spike_counts(drive: Tensor, steps: int, quantum: float) -> tuple[Tensor, float]:
    """Return the sums of signed spikes [n] that a constant drive makes, and how many there were."""
    gathered, sent, count = torch.zeros_like(drive), torch.zeros_like(drive), 0.0
    for _ in range(steps):
        gathered = gathered + drive / steps
        spikes = torch.where(gathered.abs() > quantum / 2, gathered.sign() * quantum, 0.0)
        gathered, sent = gathered - spikes, sent + spikes
        count += float((spikes != 0).sum())
    return sent, count


class Settled(NamedTuple):
    """What the recurrent circuit came to.

    Args:
        response: r after the last step [R, n].
        error: ``|r - P x| / |P x|`` after each step.
        steps: First step with an error of at most 1 %; ``None`` if there is none.
    """

    response: Tensor
    error: list[float]
    steps: int | None


def settle(rows: Tensor, covariance: Tensor, alpha: float, *, step: float, steps: int) -> Settled:
    """Let the recurrent circuit settle: ``r <- r + step (x - r - r M)`` from ``r = 0``.

    Stable for ``step < 2 / (1 + lambda_max(M))`` and slow: the slowest part shrinks by
    ``1 - step (1 + lambda_min)`` in a step.

    Args:
        rows: Input x [R, n].
        covariance: C [n, n].
        alpha: Strength; ``M = C / alpha``.
        step: ``dt / tau``.
        steps: Number of steps.
    """
    m = covariance / alpha
    aim = rows @ suppression(covariance, alpha)
    r, errors = torch.zeros_like(rows), []
    for _ in range(steps):
        r = r + step * (rows - r - r @ m)
        errors.append(float((r - aim).norm() / aim.norm()))
    near = next((i + 1 for i, error in enumerate(errors) if error <= 0.01), None)
    return Settled(r, errors, near)
