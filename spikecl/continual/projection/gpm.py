"""GPM: gradient projection memory (Saha et al., ICLR 2021)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field, Strict
from torch import Tensor

from spikecl.components import PositiveInt, component
from spikecl.continual.method import Context, Method, MethodSpec, Phase
from spikecl.continual.projection.moments import check_alive, moments
from spikecl.continual.projection.protection import (
    Others,
    Protection,
    check_fits,
    per_synapse,
    project,
    refuse_unused,
    sizes_of,
)
from spikecl.continual.projection.subspace import Subspace, count_for_energy, principal
from spikecl.errors import ConfigError
from spikecl.networks import Complement, Outside
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal

if TYPE_CHECKING:
    from spikecl.continual.projection.sgp import Sgp

Energy = Annotated[float, Field(gt=0, le=1)]
Energies = Energy | Annotated[tuple[Energy, ...], Strict(False), Field(min_length=1)]
Row = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)]
Rows = Row | Annotated[tuple[Row, ...], Strict(False), Field(min_length=1)]
Growth = Annotated[float, Field(ge=0, lt=1)]


@component
class Gpm(MethodSpec):
    """Keep updates out of the principal directions of what old experiences transmitted.

    At the end of experience t, for each synapse with bases M [k, n] (none at first) and
    ``C = E[x x^T]`` of what it transmitted::

        Ĉ = (I - M^T M) C (I - M^T M)                    what is new
        r = least number with  tr(M C M^T) + sum of the r largest eigenvalues of Ĉ
                               >= min(1, energy + growth t) tr C
        M <- M and the r eigenvectors, made orthonormal

    and later ``ΔW = -eta G (I - M^T M)``. C of a convolution is that of its patches.

    Args:
        energy: Share of the activity's energy to protect; one number or one per synapse.
        growth: What is added to that share with each experience.
        rows: Size the bases by numbers instead: directions to add per experience, or below 1 a
            share of those still free; one for all synapses or one for each.
        samples: Samples of an experience that C is gathered from, after training on it.
        first_task_offbyone: Keep one direction less in the first experience, as the authors' code
            does: it then holds less than ``energy``.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: ``freeze``, or ``learn`` on.

    Source: Saha et al. 2021, equations 5 to 9, and their code. Published: 300 samples, energy
    (0.95, 0.99, 0.99) without growth (permuted MNIST); 125, 0.97 + 0.003 t (split CIFAR-100).
    Deviation: more samples and a lower share, because spikes have a broad spectrum; eigenvectors
    of C take the place of singular vectors of the rows, which are the same; the code takes patches
    of fewer samples than it takes rows.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
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
        return project(_Memory(sizing, context, "gpm"), context, self.others)


def check_sizing(spec: Gpm | Sgp) -> None:
    """Refuse what is about bases sized by energy where numbers size them."""
    if spec.rows is not None:
        beside = f"where rows={spec.rows!r} sizes the bases by numbers, not by energy"
        refuse_unused(spec, ("energy", "growth", "first_task_offbyone"), beside)


class Sizing(NamedTuple):
    """How bases grow: the options of :class:`Gpm` by these names."""

    energy: Energies
    growth: float
    rows: Rows | None
    samples: int
    offbyone: bool


class Bases(Protection):
    """Bases of what each synapse transmitted, which grow by what is new.

    Args:
        sizing: How they grow.
        context: The run.
        name: Of the method.
    """

    def __init__(self, sizing: Sizing, context: Context, name: str):
        self._sizing, self._context, self.name = sizing, context, name
        self.sizes = sizes_of(context, name)
        self._energy = per_synapse(sizing.energy, self.sizes, f"method.{name}.energy")
        self._rows = per_synapse(sizing.rows, self.sizes, f"method.{name}.rows")
        for path, rows in self._rows.items():
            if rows is not None and rows > self.sizes[path]:
                raise ConfigError(
                    f"method.{name}.rows: got {rows} rows for {path}, which has "
                    f"{self.sizes[path]} inputs; use at most {self.sizes[path]}, or a share of "
                    "what is free below 1"
                )
        self.memory = {
            path: Subspace(n, context.network.synapses[path].weight.detach())
            for path, n in self.sizes.items()
        }
        self._experience = 0
        self._report: dict[str, object] = {}

    @abstractmethod
    def stand(self) -> None:
        """Take up what follows from the bases."""

    def end(self, view: LearnerView) -> None:
        found = moments(self._context, view, self.sizes, self._sizing.samples)
        check_alive(found, self.name)
        self._report = {path: self.extend(path, c) for path, c in found.items()}
        self._experience += 1
        self.stand()

    def extend(self, path: str, covariance: Tensor) -> dict[str, object]:
        """Add what is new in a synapse's activity to its bases; return what to record."""
        memory, total = self.memory[path], float(covariance.trace())
        values, vectors = self.new(path, covariance)
        kept = total - float(values.sum())
        count = self._count(path, values, total, kept)
        memory.extend(vectors[:count].to(memory.rows))
        share = (kept + float(values[:count].sum())) / total if total else 1.0
        return {**memory.report(), "energy": share}

    def new(self, path: str, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the principal directions of what bases leave of an activity, as energy and rows.

        Energies below the rounding of the bases are zero.
        """
        memory, total = self.memory[path], float(covariance.trace())
        rows = memory.rows.double()
        left = covariance - (covariance @ rows.T) @ rows
        left = left - rows.T @ (rows @ left)
        values, vectors = principal((left + left.T) / 2)
        rounding = torch.finfo(memory.rows.dtype).eps * total
        return values.where(values > rounding, 0), vectors

    def _count(self, path: str, values: Tensor, total: float, kept: float) -> int:
        rows, sizing, new = self._rows[path], self._sizing, int((values > 0).sum())
        if rows is not None:
            wanted = round(rows * self.memory[path].free) if isinstance(rows, float) else rows
            return min(wanted, new)
        energy = min(1.0, self._energy[path] + sizing.growth * self._experience)
        if sizing.offbyone and not self._experience:
            return min(int((values.cumsum(0) < energy * total).sum()), new)
        return count_for_energy(values, energy, total, kept)

    def report(self) -> dict[str, object]:
        return self._report

    def state_dict(self) -> State:
        rows = {path: memory.rows for path, memory in self.memory.items()}
        return {"experience": self._experience, "rows": rows, "report": self._report}

    def load_state_dict(self, state: State) -> None:
        check_fits(state["rows"], self.sizes, self.name)
        self._experience, self._report = state["experience"], state["report"]
        for path, memory in self.memory.items():
            memory.rows = state["rows"][path]
        self.stand()


class _Memory(Bases):
    projector = True

    def __init__(self, sizing: Sizing, context: Context, name: str):
        super().__init__(sizing, context, name)
        self._outside: dict[str, Complement | None] = {}

    def stand(self) -> None:
        self._outside = {path: memory.complement() for path, memory in self.memory.items()}

    def outside(self, name: str) -> Outside | None:
        return self._outside.get(name)

    def nbytes(self) -> int:
        free = [each.free for each in self._outside.values() if each is not None]
        return nbytes(*free) + sum(memory.nbytes() for memory in self.memory.values())
