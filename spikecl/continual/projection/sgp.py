"""SGP: scaled gradient projection (Saha & Roy, AAAI 2023)."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.method import Context, Method, MethodSpec, Phase
from spikecl.continual.projection.gpm import Bases, Energies, Growth, Rows, Sizing, check_sizing
from spikecl.continual.projection.protection import Others, project
from spikecl.networks import Outside
from spikecl.storage import State, nbytes
from spikecl.streams import Reveal


@component
class Sgp(MethodSpec):
    """Scale updates down along the bases of GPM by how much old experiences used each.

    Bases M grow as those of method ``gpm`` do. Then each basis m, old or new, used by the
    experience's activity with ``s = sqrt(m C m^T)``, gets an importance::

        lambda = (scale + 1) s / (scale s + max s)      in [0, 1]
        lambda <- min(1, lambda + what it was before)   of old bases

    and later ``ΔW = -eta G (I - M^T diag(lambda) M)``: old outputs move, the less the more
    important a direction is.

    Args:
        scale: Steepness, alpha in the paper. Large is rigid: every basis counts as much.
        energy: Share of the activity's energy that bases hold; one number or one per synapse.
        growth: What is added to that share with each experience.
        rows: Size the bases by numbers instead: directions to add per experience, or below 1 a
            share of those still free; one for all synapses or one for each.
        samples: Samples of an experience that C is gathered from, after training on it.
        first_task_offbyone: Keep one direction less in the first experience, as the authors' code
            does: the bases then hold less than ``energy``.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: ``freeze``, or ``learn`` on.

    Source: Saha & Roy 2023, equations 2, 4 and 5, and their code (split CIFAR-100: scale 10,
    energy 0.97 + 0.003 t, 125 samples). There s of old bases comes from singular vectors of the
    activity inside M, which is the same number.
    Deviation: samples and energy as in method ``gpm``.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    scale: PositiveFloat = 10.0
    energy: Energies = 0.95
    growth: Growth = 0.003
    rows: Rows | None = None
    samples: PositiveInt = 2000
    first_task_offbyone: bool = False
    others: Others = "freeze"

    def __post_init__(self) -> None:
        check_sizing(self)

    def start(self, context: Context) -> Method:
        """Return the running method."""
        sizing = Sizing(self.energy, self.growth, self.rows, self.samples, self.first_task_offbyone)
        return project(_Scaled(self.scale, sizing, context), context, self.others)


class Scaled(NamedTuple):
    """Directions held back by importance: ``P = I - M^T diag(lambda) M``.

    Args:
        basis: Orthonormal rows M [k, n].
        importance: lambda [k] in [0, 1].
    """

    basis: Tensor
    importance: Tensor

    @property
    def columns(self) -> Tensor | None:
        """Nobody has a root."""
        return None

    @property
    def work(self) -> int:
        """Multiplications for a row."""
        return 2 * self.basis.numel()

    def residual(self, x: Tensor) -> Tensor:
        """Return ``x P``."""
        return x - ((x @ self.basis.T) * self.importance) @ self.basis

    def diagonal(self) -> Tensor:
        """Return the diagonal of P."""
        return 1 - self.importance @ self.basis.square()

    def rows(self) -> Tensor:
        """Return P."""
        eye = torch.eye(self.basis.shape[1], dtype=self.basis.dtype, device=self.basis.device)
        return self.residual(eye)


class _Scaled(Bases):
    def __init__(self, scale: float, sizing: Sizing, context: Context):
        super().__init__(sizing, context, "sgp")
        self._scale = scale
        self.importance = {path: m.rows.new_zeros(0) for path, m in self.memory.items()}

    def stand(self) -> None:
        """Nothing is kept beside bases and importances."""

    def outside(self, name: str) -> Outside | None:
        rows = self.memory[name].rows
        return Scaled(rows, self.importance[name]) if len(rows) else None

    def extend(self, path: str, covariance: Tensor) -> dict[str, object]:
        said, old = super().extend(path, covariance), self.importance[path]
        rows = self.memory[path].rows.double()
        used = ((rows @ covariance) * rows).sum(1).clamp_min(0).sqrt()
        most = used.amax() if len(used) else 0.0
        now = (self._scale + 1) * used / (self._scale * used + most).clamp_min(1e-300)
        now[: len(old)] = (now[: len(old)] + old).clamp_max(1)
        self.importance[path] = now.to(old)
        held = float(now.sum())
        return {
            **said,
            "importance": held / max(len(now), 1),
            "plasticity": 1 - held / rows.shape[1],
        }

    def state_dict(self) -> State:
        return {**super().state_dict(), "importance": self.importance}

    def load_state_dict(self, state: State) -> None:
        self.importance = dict(state["importance"])
        super().load_state_dict(state)

    def nbytes(self) -> int:
        rows = sum(memory.nbytes() for memory in self.memory.values())
        return rows + nbytes(*self.importance.values())
