"""Run a neuron over time: the reference loop, and the choice of a faster twin."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from spikecl.errors import UsageError
from spikecl.kernels.fused_lif import fused_lif, is_fusible
from spikecl.neurons import Neuron, State
from spikecl.neurons.neuron import check_like, checked_state


class Kernel(NamedTuple):
    """The kernel a scan uses, and why."""

    name: str
    reason: str


class Recurrence(NamedTuple):
    """Synapses of a layer onto itself: what fired one step ago is input now.

    Args:
        weight: [n, n].
        bias: [n].
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, spikes: Tensor) -> Tensor:
        """Return the current [B, *features] that spikes [B, *features] cause one step later."""
        return functional.linear(spikes.flatten(1), self.weight, self.bias).view(spikes.shape)


class RecurrentState(NamedTuple):
    """State of a layer that listens to itself: that of its neurons, and their last output."""

    neuron: State
    spikes: Tensor


def choose(neuron: Neuron, x: Tensor, recurrence: Recurrence | None = None) -> Kernel:
    """Return the kernel for an input; it depends on shapes, device and neuron, never on time."""
    if recurrence is not None:
        return Kernel("reference", "recurrent: the next input is not known before this step")
    if len(x) == 1:
        return Kernel("reference", "one step has nothing to fuse")
    if is_fusible(neuron):
        return Kernel("fused", "LIF: one autograd node for all steps, stores the membrane only")
    return Kernel("reference", f"{type(neuron).__name__} as it is parametrised has no fused twin")


def scan(
    x: Tensor,
    state: State,
    neuron: Neuron,
    *,
    recurrence: Recurrence | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, State]:
    """Run a layer of neurons over an input current.

    Args:
        x: Input current [T, B, *features].
        state: State before the first step; ``None`` means rest.
        neuron: The model.
        recurrence: Synapses of the layer onto itself; the state is then a :class:`RecurrentState`.
        generator: Where noise and escape firing draw from.

    Returns:
        Output [T, B, *features] (spikes, for most models) and the state after the last step.

    Raises:
        UsageError: What :func:`spikecl.neurons.step` refuses.
    """
    if x.dim() < 2:
        raise UsageError(f"input has shape {tuple(x.shape)}; it must be [T, B, *features]")
    state = _start(x, state, neuron, recurrence, generator)
    if choose(neuron, x, recurrence).name == "fused":
        return fused_lif(x, state, neuron)
    return reference(x, state, neuron, recurrence=recurrence, generator=generator)


def reference(
    x: Tensor,
    state: State,
    neuron: Neuron,
    *,
    recurrence: Recurrence | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, State]:
    """Loop over steps and let autograd do the rest; the other kernels are tested against it."""
    state = _start(x, state, neuron, recurrence, generator)
    outputs = []
    for current in x:
        if recurrence is None:
            spikes, state = neuron.advance(current, state, generator)
        else:
            inner, last = state
            spikes, inner = neuron.advance(current + recurrence(last), inner, generator)
            state = RecurrentState(inner, spikes)
        outputs.append(spikes)
    return torch.stack(outputs) if outputs else _nothing(x, neuron), state


def _start(
    x: Tensor,
    state: State,
    neuron: Neuron,
    recurrence: Recurrence | None,
    generator: torch.Generator | None,
) -> State:
    """Return the state to start from, checked against one step of the input."""
    one = x[0] if len(x) else x.new_zeros(x.shape[1:])
    if recurrence is None:
        return checked_state(one, state, neuron, generator)
    if state is not None and not isinstance(state, RecurrentState):
        raise UsageError(
            f"state is a {type(state).__name__}, a recurrent layer needs a RecurrentState; pass "
            "the state that a scan of the same layer returned, or None"
        )
    silence = torch.zeros_like(one)
    inner, last = state if state is not None else (None, silence)
    check_like(last, silence, "RecurrentState")
    inner = checked_state(one, inner, neuron, generator)
    _check_recurrence(recurrence, one, neuron)
    return RecurrentState(inner, last)


def _check_recurrence(recurrence: Recurrence, one: Tensor, neuron: Neuron) -> None:
    cells = neuron.cells(one)
    if cells != one.shape[1:]:
        raise UsageError(
            f"{type(neuron).__name__} turns {tuple(one.shape[1:])} inputs into {tuple(cells)} "
            "spikes, and a Recurrence adds its current to the input; loop over spikecl.neurons.step"
        )
    n = math.prod(cells)
    for name, shape in (("weight", (n, n)), ("bias", (n,))):
        part = getattr(recurrence, name)
        needed = (shape, one.dtype, one.device)
        if part is not None and (tuple(part.shape), part.dtype, part.device) != needed:
            raise UsageError(
                f"recurrence.{name} is {part.dtype} of shape {tuple(part.shape)} on {part.device}; "
                f"one step of the input needs {one.dtype} of shape {shape} on {one.device}"
            )


def _nothing(x: Tensor, neuron: Neuron) -> Tensor:
    """Return the output of no steps: [0, B, *features]."""
    out, _ = neuron.advance(
        x.new_zeros(x.shape[1:]), neuron.rest(x.new_zeros(x.shape[1:])), torch.Generator()
    )
    return out.new_zeros(0, *out.shape)
