"""Backpropagation part by part of the steps: with the errors of states (checkpoints), or without.

First all steps run without a graph; the state at the start of each part is kept, the loss is taken,
and with it the error of each output. Then each part runs again with its graph, the last one first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from spikecl.networks import Network, Output, Paths, Taps
from spikecl.neurons import State
from spikecl.neurons.neuron import carry, leaves, rebuild
from spikecl.trainers.credit import credit_of
from spikecl.trainers.feedback import BROADCAST, Feedback, along
from spikecl.trainers.trainer import Call, Factors, loss_of


class Part(NamedTuple):
    """Where a part starts: its input, state, and what random draws start from."""

    x: Tensor
    state: Mapping[str, State]
    draws: Tensor | None
    held: dict[str, Tensor]


def segmented(
    call: Call, size: int, *, feedback: Feedback, carry_errors: bool
) -> Iterator[Factors]:
    """Yield the factors of parts of ``size`` steps.

    Args:
        call: What the trainer was called with.
        size: Steps of a part.
        feedback: Through which weights errors reach lower layers.
        carry_errors: Errors go from the state at the start of a part to the part before.
    """
    network, x = call.network, call.all_steps
    parts, outputs, state = _forward(call, torch.split(x, size))
    whole = torch.cat(outputs) if not network.mean_first else _mean(parts, outputs, len(x))
    loss, error = _loss(call, network, whole)
    back = along(feedback, network, call.parameters, call.variables)
    paths = Paths(feedback=back, space="none" if feedback in BROADCAST else "full")
    logits, shares = network.decode(whole).detach(), loss / len(parts)
    later: list[Tensor] | None = None
    names: list[str] = []
    after = len(whole)
    for part in reversed(parts):
        if network.mean_first:
            own = error * (len(part.x) / len(x))
        else:
            own, after = error[after - len(part.x) : after], after - len(part.x)
        start, output, taps = _again(call, part, paths)
        with torch.enable_grad():
            ends = (output.steps * own).sum()
            if later is not None and carry_errors:
                ends = ends + _meet(leaves({n: output.state[n] for n in names}), later)
        part_call = replace(call, x=part.x, share=len(part.x) / len(x))
        made, later = credit_of(
            part_call, output, ends, taps, feedback=feedback, also=leaves(start)
        )
        names = list(start)
        yield made._replace(loss=shares, logits=logits, state=state)


def _forward(
    call: Call, xs: tuple[Tensor, ...]
) -> tuple[list[Part], list[Tensor], Mapping[str, State]]:
    """Run all parts without a graph; return where each starts, and the outputs."""
    parts, outputs = [], []
    state: Mapping[str, State] = dict(call.state or {})
    held: dict[str, Tensor] = {}
    for x in xs:
        draws = None if call.generator is None else call.generator.get_state()
        parts.append(Part(x, state, draws, dict(held)))
        with torch.no_grad():
            output = call.network(
                x,
                state,
                weights=call.weights,
                training=call.training,
                generator=call.generator,
                held=held,
            )
        outputs.append(output.steps)
        state = {**state, **output.state}
    return parts, outputs, state


def _mean(parts: list[Part], outputs: list[Tensor], steps: int) -> Tensor:
    return torch.stack([o * (len(p.x) / steps) for p, o in zip(parts, outputs)]).sum(0)


def _loss(call: Call, network: Network, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss, and its error at the readout's output."""
    with torch.enable_grad():
        steps = whole.detach().requires_grad_()
        output = Output(network.decode(steps), {}, steps, {})
        loss = loss_of(output, call.output_loss)
        (error,) = torch.autograd.grad(loss, [steps])
    return loss.detach(), error


def _again(call: Call, part: Part, paths: Paths) -> tuple[Mapping[str, State], Output, Taps]:
    """Run a part with its graph, from leaves that the errors of its start arrive at."""
    generator = call.generator
    if part.draws is not None and generator is not None:
        generator = torch.Generator(generator.device).set_state(part.draws)
    values = carry(part.state, "detach") or {}
    start = rebuild(values, iter([t.clone().requires_grad_() for t in leaves(values)]))
    taps = Taps(paths)
    with torch.enable_grad():
        output = call.network(
            part.x,
            start,
            taps=taps,
            weights=call.weights,
            training=call.training,
            generator=generator,
            held=dict(part.held),
        )
    return start, output, taps


def _meet(state: list[Tensor], errors: list[Tensor]) -> Tensor:
    """Return what has these errors as its derivatives by a state."""
    pairs = [(part, error) for part, error in zip(state, errors, strict=True) if part.requires_grad]
    found = torch.stack([(part * error).sum() for part, error in pairs]).sum() if pairs else None
    return torch.zeros(()) if found is None else found
