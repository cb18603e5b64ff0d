"""Run a neuron over time: the reference loop, and the choice of a faster twin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.errors import UsageError
from spikecl.kernels.fused_lif import fused_lif
from spikecl.neurons import LIF, LIFState, lif_step
from spikecl.neurons.lif import check_state


class Kernel(NamedTuple):
    """The kernel a scan uses, and why."""

    name: str
    reason: str


def choose(neuron: LIF, x: Tensor) -> Kernel:
    """Return the kernel for an input; it depends on shapes, device and neuron, never on time."""
    if not x.dtype.is_floating_point:
        raise UsageError(f"input current is {x.dtype}; convert it to a floating type first")
    if len(x) == 1:
        return Kernel("reference", "one step has nothing to fuse")
    return Kernel("fused", "LIF: one autograd node for all steps, stores the membrane only")


def scan(x: Tensor, state: LIFState | None, neuron: LIF) -> tuple[Tensor, LIFState]:
    """Run a layer of neurons over an input current.

    Args:
        x: Input current [T, B, *features].
        state: State before the first step; ``None`` means zeros.
        neuron: Parameters.

    Returns:
        Spikes [T, B, *features] and the state after the last step.
    """
    if choose(neuron, x).name == "fused":
        return fused_lif(x, state, neuron)
    return reference(x, state, neuron)


def reference(x: Tensor, state: LIFState | None, neuron: LIF) -> tuple[Tensor, LIFState]:
    """Loop over steps and let autograd do the rest; the other kernels are tested against it."""
    if not len(x):
        v = x.new_zeros(x.shape[1:]) if state is None else state.v
        check_state(v, x.shape[1:])
        return x, LIFState(v)
    spikes = []
    for current in x:
        s, state = lif_step(current, state, neuron)
        spikes.append(s)
    assert state is not None
    return torch.stack(spikes), state
