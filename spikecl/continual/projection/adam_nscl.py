"""Adam-NSCL: training in the null space of feature covariance (Wang et al., CVPR 2021)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveInt, component
from spikecl.continual.method import Context, Method, MethodSpec, Phase
from spikecl.continual.projection.moments import check_alive, moments
from spikecl.continual.projection.protection import (
    Others,
    ProjectUpdates,
    Protection,
    check_fits,
    in_order,
    sizes_of,
)
from spikecl.continual.projection.subspace import principal
from spikecl.networks import Complement, Outside
from spikecl.storage import State, nbytes
from spikecl.streams import LearnerView, Reveal


@component
class AdamNscl(MethodSpec):
    """Project what the optimiser did into the null space of all activity there was.

    At the end of an experience with n samples, for each synapse with C of N earlier samples::

        C <- (N C + n E[x x^T]) / (N + n),   N <- N + n
        U = eigenvectors of C with eigenvalue s <= a max(s_min, s_max rounding)

    and later ``ΔW <- ΔW U U^T``, after the optimiser's step: the method was made for Adam
    (``optimiser.name = "adam"``), whose own scaling would lead a projected gradient out of the null
    space again. C of a convolution is that of its patches.

    The share of C that is in the null space is in the record (``leak``). A neuron that was silent
    makes ``s_min`` 0, and so do pixels that never change: then what is free are directions without
    activity, and little is learned until a larger ``a`` (1000 and more) frees others.

    Args:
        a: How much more energy than the least a direction may have and count as null. Large is
            plastic.
        samples: Samples of an experience that C is gathered from, after training on it.
        others: What becomes of biases, thresholds, delays and norms (with their statistics) after
            the first experience: ``freeze``, or ``learn`` on.

    Source: Wang et al. 2021, equations 4 to 6 and algorithms 1 and 2; a = 10, and 30 for twenty
    tasks of CIFAR-100, all samples.
    Deviation: below the rounding of the network's precision all s count as equal, because the
    smallest is noise there; norms are no weights and freeze, where the paper has EWC for them. The
    authors' code takes C of batch means and divides the projector by its Frobenius norm, which is a
    lower learning rate after the first task; the paper does neither, nor does this.
    """

    needs: ClassVar[Reveal] = Reveal.BOUNDARY
    phase: ClassVar[Phase] = Phase.PROJECTION
    slot: ClassVar[str | None] = "projection"
    a: Annotated[float, Field(ge=1)] = 10.0
    samples: PositiveInt = 5000
    others: Others = "freeze"

    def start(self, context: Context) -> Method:
        """Return the running method."""
        return ProjectUpdates(_NullSpaces(self, context), context, self.others)


class _NullSpaces(Protection):
    projector = True

    def __init__(self, spec: AdamNscl, context: Context):
        self._spec, self._context = spec, context
        self.sizes = sizes_of(context, "adam_nscl")
        self.covariance: dict[str, Tensor] = {}
        self._outside: dict[str, Complement | None] = {}
        self._samples = 0
        self._report: dict[str, object] = {}

    def outside(self, name: str) -> Outside | None:
        return self._outside.get(name)

    def end(self, view: LearnerView) -> None:
        new = min(self._spec.samples, len(view.samples))
        found = moments(self._context, view, self.sizes, self._spec.samples)
        check_alive(found, "adam_nscl")
        share = new / (self._samples + new)
        for name, c in found.items():
            self.covariance[name] = torch.lerp(self.covariance.get(name, c), c, share)
        self._samples += new
        self._stand()

    def _stand(self) -> None:
        for name, c in self.covariance.items():
            like = self._context.network.synapses[name].weight
            values, vectors = principal(c)
            least = max(float(values[-1]), float(values[0]) * torch.finfo(like.dtype).eps)
            used = int((values > self._spec.a * least).sum())
            rows = vectors.to(like)
            held, free = rows[:used].clone(), rows[used:].clone().T.contiguous()
            self._outside[name] = Complement(held, free) if used else None
            leak = float(values[used:].sum()) / max(float(values.sum()), 1e-300)
            self._report[name] = {"free": len(values) - used, "leak": leak}

    def report(self) -> dict[str, object]:
        return self._report

    def state_dict(self) -> State:
        return {"samples": self._samples, "covariance": self.covariance}

    def load_state_dict(self, state: State) -> None:
        check_fits(state["covariance"], self.sizes, "adam_nscl")
        self._samples = state["samples"]
        self.covariance = in_order(state["covariance"], self.sizes)
        self._stand()

    def nbytes(self) -> int:
        kept = [part for each in self._outside.values() if each is not None for part in each]
        return nbytes(*self.covariance.values(), *kept)
