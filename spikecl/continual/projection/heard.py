"""What synapses transmit in a step of training, from all parts in which a trainer shows it."""

from __future__ import annotations

import torch
from torch import Tensor

from spikecl.continual.method import Context


class Heard:
    """Rows by synapse, until the step is done.

    A readout behind a mean over time transmits one row for each sample: the mean over all parts.

    Args:
        context: The run.
    """

    def __init__(self, context: Context):
        self._host = context.host
        self._mean = list(context.network.synapses)[-1] if context.network.mean_first else None
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Take what a synapse transmits in a part, as rows [R, n]."""
        held = self._rows.setdefault(name, [])
        if name != self._mean or self._host.part() == 1:
            held.append(rows)
            return
        rows = self._host.part() * rows
        held[:] = [held[0] + rows] if held else [rows]

    def take(self) -> dict[str, Tensor]:
        """Return the rows of the whole step, and begin anew."""
        rows, self._rows = self._rows, {}
        return {n: torch.cat(each) if len(each) > 1 else each[0] for n, each in rows.items()}
