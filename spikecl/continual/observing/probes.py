"""Probes: samples of an experience, kept as the network got them, and how it answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.continual.host import Seen
from spikecl.networks import Network, Taps
from spikecl.networks.presynaptic import is_static
from spikecl.storage import State, nbytes


class Activity(NamedTuple):
    """What a network does with a probe.

    Args:
        rows: What each synapse transmits, rows [R, fan_in] by path; at most a given number of
            them, evenly spaced.
        outputs: Output [T, B, *features] of each layer with neurons.
    """

    rows: dict[str, Tensor]
    outputs: dict[str, Tensor]


class Probe:
    """Encoded samples, the same at every look, and the activity they made when they were learned.

    Args:
        x: Input [T, B, *features], or [1, B, *features] where all steps are alike; spikes as
            booleans.
        steps: Number of steps T.
        uid: Ids of the samples [B]; ``None`` where the stream hides them.
    """

    def __init__(self, x: Tensor, steps: int, uid: Tensor | None):
        self.x, self.steps, self.uid = x, steps, uid
        self.learned: dict[str, Tensor] = {}

    @classmethod
    def of(cls, seen: Iterable[Seen]) -> Probe | None:
        """Return the probe of samples in batches; ``None`` where there are no samples."""
        batches = list(seen)
        if not batches:
            return None
        parts = [batch.x[:1] if is_static(batch.x) else batch.x for batch in batches]
        ids = [batch.batch.uid for batch in batches if batch.batch.uid is not None]
        uid = torch.cat(ids) if len(ids) == len(batches) else None
        return cls(packed(torch.cat(parts, dim=1)), len(batches[0].x), uid)

    def __len__(self) -> int:
        return self.x.shape[1]

    @torch.no_grad()
    def show(self, network: Network, most: int, generator: torch.Generator | None) -> Activity:
        """Show the samples to a network, as tests do: no dropout, running statistics in norms."""
        like = next(iter(network.weights().values()))
        x, taps = self.x.to(like.dtype), Taps()
        network(x.expand(self.steps, *x.shape[1:]), taps=taps, generator=generator)
        synapses = network.synapses
        rows = {p: thinned(synapses[p].transmitted(tap.kept), most) for p, tap in taps.items()}
        return Activity(rows, taps.fired)

    def learn(self, outputs: Mapping[str, Tensor]) -> None:
        """Keep outputs of layers to compare later ones with."""
        self.learned = {name: packed(output) for name, output in outputs.items()}

    def drop(self, ids: Tensor) -> None:
        """Forget the samples with some ids, and what they made."""
        assert self.uid is not None
        keep = ~torch.isin(self.uid, ids.to(self.uid.device))
        self.x, self.uid = self.x[:, keep], self.uid[keep]
        self.learned = {name: output[:, keep] for name, output in self.learned.items()}

    def state_dict(self) -> State:
        """Return what it holds."""
        ids = {} if self.uid is None else {"uid": self.uid}
        return {"x": self.x, "steps": self.steps, "learned": dict(self.learned), **ids}

    @classmethod
    def from_state(cls, state: State) -> Probe:
        """Return the probe that gave a state."""
        probe = cls(state["x"], state["steps"], state.get("uid"))
        probe.learned = dict(state["learned"])
        return probe

    def nbytes(self) -> int:
        """Return the bytes it holds."""
        return nbytes(self.x, *([] if self.uid is None else [self.uid]), *self.learned.values())


def packed(x: Tensor) -> Tensor:
    """Return a copy, of zeros and ones as ``bool``."""
    binary = bool(((x == 0) | (x == 1)).all())
    return x.to(torch.bool) if binary else x.clone(memory_format=torch.contiguous_format)


def thinned(rows: Tensor, most: int) -> Tensor:
    """Return at most ``most`` of the rows [R, n], evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most, dtype=torch.float64).long().to(rows.device)]
