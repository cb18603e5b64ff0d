"""Run a neuron over time: the reference loop, and the choice of a faster twin."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spikecl.errors import KernelError, UsageError
from spikecl.kernels import c_code, inductor, triton_code
from spikecl.kernels.backend import Backend, TorchBackend
from spikecl.kernels.generated import generated
from spikecl.kernels.options import AUTO, Kernels
from spikecl.kernels.program import Program, program
from spikecl.kernels.recurrence import EVERY_WAY, Recurrence, RecurrentState, Ways
from spikecl.kernels.tangent import ahead
from spikecl.neurons import Neuron, State
from spikecl.neurons.neuron import carry, check_like, checked_state, leaves, tensors_of


class Kernel(NamedTuple):
    """The kernel a scan uses, and why."""

    name: str
    reason: str


BACKENDS: dict[str, Backend] = {
    "fused": TorchBackend(),
    "compiled": c_code.CBackend(),
    "inductor": inductor.InductorBackend(),
    "triton": triton_code.TritonBackend(),
}


def choose(
    neuron: Neuron, x: Tensor, *, kernels: Kernels = AUTO, recurrent: bool = False
) -> Kernel:
    """Return the kernel for an input [T, B, *features]; a clock has no say in it.

    ``recurrent`` says that the layer listens to itself.

    Raises:
        KernelError: The kernel that ``kernels`` names cannot run here.
    """
    rest = neuron.rest(x.new_zeros(x.shape[1:]))
    if _at_once(neuron, rest, recurrent, kernels):
        return Kernel("reference", "no memory: one call for all steps")
    found = None if neuron.random else program(neuron, rest)
    return _kernel(neuron, found, x, rest, kernels, EVERY_WAY)


def _at_once(neuron: Neuron, state: State, recurrent: bool, kernels: Kernels) -> bool:
    """Whether steps do not know of each other."""
    free = not (recurrent or neuron.random or leaves(state))
    return free and kernels.scan in ("auto", "reference")


def _kernel(
    neuron: Neuron, found: Program | None, x: Tensor, state: State, kernels: Kernels, ways: Ways
) -> Kernel:
    against, forward = None, forward_ad._current_level >= 0
    if found is None or not found.exact:
        against = _unfit(neuron, found)
    elif any([part.dtype != x.dtype or part.shape != x.shape[1:] for part in leaves(state)]):
        against = f"{type(neuron).__name__} has a state of another type or shape than the input"
    elif any([getattr(neuron, name).dtype != x.dtype for name in tensors_of(neuron)]):
        against = f"{type(neuron).__name__} has parameters of another type than the input"
    elif forward and (torch.is_grad_enabled() or ways != EVERY_WAY):
        against = "derivatives are taken forward and back, which the reference alone can do"
    return _choose(against, x.dtype, x.device.type, kernels.scan, forward)


def _unfit(neuron: Neuron, found: Program | None) -> str:
    """Return why a neuron has no generated kernel."""
    model = type(neuron).__name__
    if neuron.random:
        return f"{model} draws random numbers"
    if found is None:
        return f"{model} has a step that no kernel can be generated from"
    return f"{model} as it is set up uses exp or its like, which every compiler rounds its way"


@functools.cache
def _choose(
    unfit: str | None, dtype: torch.dtype, device: str, asked: str, forward: bool
) -> Kernel:
    ahead = "derivatives are taken forward" if forward else None
    against: dict[str, str | None] = {
        "reference": None,
        "fused": unfit,
        "compiled": unfit or ahead or c_code.against(dtype, device),
        "inductor": unfit or ahead or inductor.against(device),
        "triton": unfit or ahead or triton_code.against(dtype, device),
    }
    if asked != "auto":
        if against[asked] is None:
            return Kernel(asked, "asked for")
        able = ", ".join(name for name, reason in against.items() if reason is None)
        raise KernelError(f"kernel '{asked}' cannot run here: {against[asked]}; these can: {able}")
    if unfit is not None:
        return Kernel("reference", unfit)
    if forward:
        return Kernel("fused", "values and derivatives go forward together")
    fast = "compiled" if device == "cpu" else "triton"
    if against[fast] is not None:
        return Kernel("fused", f"one autograd node for all steps; not {fast}: {against[fast]}")
    return Kernel(fast, "one autograd node for all steps, one pass over the memory")


def scan(
    x: Tensor,
    state: State,
    neuron: Neuron,
    *,
    recurrence: Recurrence | None = None,
    generator: torch.Generator | None = None,
    kernels: Kernels = AUTO,
    ways: Ways = EVERY_WAY,
) -> tuple[Tensor, State]:
    """Run a layer of neurons over an input current.

    Args:
        x: Input current [T, B, *features].
        state: State before the first step; ``None`` means rest.
        neuron: The model.
        recurrence: Synapses of the layer onto itself; the state is then a :class:`RecurrentState`.
        generator: Where noise and escape firing draw from.
        kernels: Which kernel computes it.
        ways: Which ways errors take back.

    Returns:
        Output [T, B, *features] (spikes, for most models) and the state after the last step.

    Raises:
        UsageError: What :func:`spikecl.neurons.step` refuses.
        KernelError: The kernel that ``kernels`` names cannot run here.
    """
    if x.dim() < 2:
        raise UsageError(f"input has shape {tuple(x.shape)}; it must be [T, B, *features]")
    state = _start(x, state, neuron, recurrence, generator)
    inner = state if recurrence is None else state.neuron
    if x.numel() and _at_once(neuron, inner, recurrence is not None, kernels):
        x = x if ways.through is None else _both(x, ways.through)
        out, state = neuron.advance(x.flatten(0, 1), inner, generator)
        return out.view(*x.shape[:2], *out.shape[1:]), state
    found = None if neuron.random else program(neuron, inner)
    name = _kernel(neuron, found, x, inner, kernels, ways).name
    if found is None or name == "reference" or not x.numel():
        return reference(x, state, neuron, recurrence=recurrence, generator=generator, ways=ways)
    if forward_ad._current_level >= 0:
        return ahead(x, state, neuron, found, recurrence)
    return generated(
        x,
        state,
        neuron,
        BACKENDS[name],
        recurrence=recurrence,
        memory=kernels.memory,
        ways=ways,
    )


def reference(
    x: Tensor,
    state: State,
    neuron: Neuron,
    *,
    recurrence: Recurrence | None = None,
    generator: torch.Generator | None = None,
    ways: Ways = EVERY_WAY,
) -> tuple[Tensor, State]:
    """Loop over steps and let autograd do the rest; the other kernels are tested against it."""
    state = _start(x, state, neuron, recurrence, generator)
    fixed = neuron.bind({name: getattr(neuron, name).detach() for name in tensors_of(neuron)})
    outputs = []
    for t, current in enumerate(x):
        before, draws = state, None if generator is None else generator.get_state()
        state = carry(state, "detach") if ways.instant else state
        if recurrence is None:
            spikes, state = neuron.advance(current, state, generator)
        else:
            inner, last = state
            heard = recurrence.current(last, ways)
            spikes, inner = neuron.advance(current + heard, inner, generator)
            state = RecurrentState(inner, spikes)
        if ways.through is not None:
            now = ways.through[t]
            inner = before if recurrence is None else before.neuron
            now = now if recurrence is None else now + heard.detach()
            again = None
            if generator is not None and draws is not None:
                again = torch.Generator(generator.device).set_state(draws)
            passed, _ = fixed.advance(now, carry(inner, "detach"), again)
            spikes = spikes + (passed - passed.detach())
        outputs.append(spikes)
    return torch.stack(outputs) if outputs else _nothing(x, neuron), state


def _both(x: Tensor, through: Tensor) -> Tensor:
    """Return the input; its error goes to both."""
    return x + (through - through.detach())


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
