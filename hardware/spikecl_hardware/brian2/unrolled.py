"""A linear map with memory, taken apart into synapses: one for each pair of neurons and delay."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from spikecl_hardware.brian2.description import Array, Brian2Error, Whole

SYNAPSES = 5_000_000
"""Synapses of one layer: lists of that many take a few hundred megabytes."""


class Impulses(NamedTuple):
    """What each input does to each output, and how many steps later, [S] each."""

    pre: Whole
    delay: Whole
    post: Whole
    weight: Array


def impulses(
    respond: Callable[[Array], Array], inputs: int, *, steps: int = 1, limit: int | None = None
) -> Impulses:
    """Return all synapses of a map; weights of zero are none.

    Args:
        respond: From activity [T, B, inputs] to currents [T, B, outputs]; linear, up to what it
            answers to silence.
        inputs: Number of inputs.
        steps: How many steps an input is felt.
        limit: Largest number of synapses; by default :data:`SYNAPSES`.

    Raises:
        Brian2Error: There are more.
    """
    limit = SYNAPSES if limit is None else limit
    still = respond(np.zeros((steps, 1, inputs)))
    size = max(1, limit // (steps * max(still.shape[2], inputs)))
    parts: list[Impulses] = []
    for first in range(0, inputs, size):
        some = np.arange(first, min(first + size, inputs))
        x = np.zeros((steps, len(some), inputs))
        x[0, np.arange(len(some)), some] = 1
        found = respond(x) - still
        late, who, post = np.nonzero(found)
        parts.append(Impulses(who + first, late, post, found[late, who, post]))
        if sum(len(part.pre) for part in parts) > limit:
            raise Brian2Error(
                f"more than {limit} synapses, one for each pair of neurons; use smaller maps, or "
                "the backend torch"
            )
    return Impulses(*(np.concatenate(column) for column in zip(*parts, strict=True)))
