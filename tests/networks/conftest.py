"""One small network of every registered builder, strong enough for all its layers to fire."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from spikecl.networks import Network, NetworkSpec, initialise
from spikecl.registry import NETWORKS
from spikecl.seeds import Seeds

CLASSES = 3
MAPS: dict[str, Any] = {"channels": (3, 4), "kernel": 3, "hidden": (6,)}
BUILDERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "spiking_mlp": ({"hidden": (9, 8)}, (6,)),
    "mlp": ({"hidden": (9, 8)}, (6,)),
    "spiking_recurrent": ({"hidden": (8, 7)}, (6,)),
    "recurrent": ({"hidden": (8, 7)}, (6,)),
    "spiking_conv": (MAPS, (10, 10, 2)),
    "conv": (MAPS, (10, 10, 2)),
    "spiking_resnet": ({"width": 3, "blocks": (1, 1)}, (6, 5)),
    "resnet": ({"width": 3, "blocks": (1, 1)}, (6, 5)),
}


@dataclass(frozen=True)
class Case:
    """A builder, small options for it, and what data it takes."""

    name: str
    options: dict[str, Any]
    shape: tuple[int, ...]

    @property
    def spiking(self) -> bool:
        return self.name.startswith("spiking")

    def spec(self, **options: Any) -> NetworkSpec:
        return NETWORKS.get(self.name)(**{**self.options, **options})

    def twin(self) -> Case:
        other = self.name.removeprefix("spiking_") if self.spiking else f"spiking_{self.name}"
        return replace(self, name=other)

    def network(self, *, scale: float = 3.0, seed: int = 3, **options: Any) -> Network:
        """Return the network in float64, its initial weights ``scale`` times as large."""
        network = self.spec(**options).build(self.shape, CLASSES).double()
        initialise(network, Seeds(seed))
        with torch.no_grad():
            for synapse in network.synapses.values():
                synapse.weight.mul_(scale)
        return network

    def inputs(self, steps: int = 5, batch: int = 4, *, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(steps, batch, *self.shape, generator=generator, dtype=torch.float64)

    def labels(self, batch: int = 4) -> torch.Tensor:
        return torch.arange(batch) % CLASSES


@pytest.fixture(params=list(NETWORKS.names()))
def case(request) -> Case:
    """Every registered builder; a new one needs a small description here."""
    return Case(request.param, *BUILDERS[request.param])


@pytest.fixture
def cases():
    """Return the case of a name."""
    return lambda name: Case(name, *BUILDERS[name])
