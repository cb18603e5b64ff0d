"""What synapses transmit in a step of training, from all parts in which a trainer shows it."""

from __future__ import annotations

import torch
from torch import Tensor

from spikecl.continual.method import Context


class Heard:
    """Rows by synapse, until all parts of a step have come.

    A readout behind a mean over time transmits one row for each sample: the mean over all parts.

    Args:
        context: The run.
    """

    def __init__(self, context: Context):
        self._context = context
        self._mean = list(context.network.synapses)[-1] if context.network.mean_first else None
        self._rows: dict[str, list[Tensor]] = {}
        self._share: dict[str, float] = {}

    def add(self, name: str, rows: Tensor) -> Tensor | None:
        """Take what a synapse transmits in a part, as rows [R, n]; return those of the whole step.

        ``None`` before the last part.
        """
        part = self._context.host.part()
        if part == 1:
            return rows
        held, share = self._rows.pop(name, []), self._share.pop(name, 0.0) + part
        if name != self._mean:
            held.append(rows)
        else:
            held = [held[0] + part * rows] if held else [part * rows]
        if share > 1 - 1e-6:
            return torch.cat(held)
        self._rows[name], self._share[name] = held, share
        return None
