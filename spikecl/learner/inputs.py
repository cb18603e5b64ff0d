"""Samples as the network gets them: encoded, each draw from a generator of its own place."""

from __future__ import annotations

import torch
from torch import Tensor

from spikecl.encoding import Encoder, InputStatistics
from spikecl.seeds import Seeds
from spikecl.streams import Experience


class Inputs:
    """Encodes samples.

    Args:
        encoder: Intensities to input over time.
        seeds: Root of all randomness.
        device: Where to compute.

    Attributes:
        statistics: By which intensities are scaled.
    """

    def __init__(self, encoder: Encoder, seeds: Seeds, device: torch.device):
        self.encoder, self._seeds, self.device = encoder, seeds, device
        self.statistics = InputStatistics()

    def encode(self, x: Tensor, name: str, *, event: int, epoch: int, step: int) -> Tensor:
        """Return samples [B, *shape] over time [T, B, *features]."""
        generator = None
        if self.encoder.random:
            generator = self.generator(name, event=event, epoch=epoch, step=step)
        return self.encoder.encode(x, self.statistics, generator)

    def generator(self, name: str, *, event: int, epoch: int, step: int) -> torch.Generator:
        """Return what is drawn from at one place of the run."""
        return self._seeds.generator(name, event=event, epoch=epoch, step=step)

    def probe(self, event: Experience) -> Tensor:
        """Return one sample of an experience as the network gets it."""
        one = event.train.load().take(slice(0, 1)).x.to(self.device)
        generator = self._seeds.generator("probe") if self.encoder.random else None
        return self.encoder.encode(one, self.statistics, generator)
