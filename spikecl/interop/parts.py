"""What imported networks have and the builders' networks have not."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from spikecl.components import component
from spikecl.networks import BatchNorm, Cells, Linear, WeightMap
from spikecl.networks.norm import Postsynaptic
from spikecl.networks.presynaptic import Pass, Presynaptic
from spikecl.networks.synapses import Synapse


class Flatten(Presynaptic):
    """Maps [C, H, W] to one axis."""

    def forward(self, x: Tensor, path: str, run: Pass) -> Tensor:
        """Return [T, B, n]."""
        return x.flatten(2)


class Currents(Postsynaptic, nn.ModuleList):
    """Changes of the current between a synapse and its neurons, in order; stands for the norm.

    Pooling here is of currents: ``Conv2d, MaxPool2d, Leaky``. A layer's synapse is tapped before
    it, so trainers see the convolution as it is.
    """

    def forward(self, rows: Tensor, path: str, run: Pass) -> Tensor:
        """Return the changed rows [R, ...]."""
        for key, part in self.named_children():
            if isinstance(part, BatchNorm):
                rows = part(rows, f"{path}.{key}", run)
            else:
                rows = part(rows[None], f"{path}.{key}", run)[0]
        return rows

    def restart(self) -> None:
        """Put back the initial values of norms."""
        for part in self:
            if isinstance(part, BatchNorm):
                part.restart()


@component
class Diagonal(WeightMap):
    """One weight for each neuron, or one for all, on the diagonal of a matrix.

    Args:
        size: Neurons.
    """

    size: Annotated[int, Field(ge=1)] = 1

    def __call__(self, weight: Tensor, own: object) -> Tensor:
        """Return [size, size]."""
        return torch.diag(weight.expand(self.size))


class OneToOne(Linear):
    """Synapses of neurons onto themselves, each onto its own: ``w`` [n], or [1] for all.

    Args:
        size: Neurons.
        weight: Their weights.
    """

    def __init__(self, size: int, weight: nn.Parameter):
        Synapse.__init__(self, (weight.numel(),), bias=False, maps=(Diagonal(size=size),))
        self.weight = weight


class Neurons(NamedTuple):
    """Neurons of a layer, and their synapses onto themselves."""

    cells: Cells | None
    recurrent: Linear | None = None


Part = Synapse | Presynaptic | BatchNorm | Neurons
