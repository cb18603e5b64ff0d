"""One pass forward and one back: what rules that follow errors through a network share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spikecl.errors import UsageError
from spikecl.networks import AnyFactor, Output, Paths, Tap, Taps
from spikecl.trainers.feedback import BROADCAST, Signal, along, broadcast
from spikecl.trainers.trainer import Call, Factors, loss_of

Signals = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""From outputs of hidden layers [T, B, *features] to errors of them, by layer."""
Form = Callable[[str, Tap, Tensor], AnyFactor]
"""From a synapse's path, tap and errors to its factor."""


def credit(
    call: Call,
    paths: Paths,
    *,
    feedback: Signal = "symmetric",
    extra: Signals | None = None,
    form: Form | None = None,
) -> Factors:
    """Return the factors of a pass.

    Args:
        call: What the trainer was called with.
        paths: Which ways errors take.
        feedback: Through which weights, or from the output to every layer.
        extra: More errors of outputs, added to those of the loss.
        form: Makes factors; by default of what was transmitted.
    """
    output, loss, taps = forward(call, paths, feedback)
    return credit_of(call, output, loss, taps, feedback=feedback, extra=extra, form=form)[0]


def forward(
    call: Call, paths: Paths, feedback: Signal = "symmetric"
) -> tuple[Output, Tensor, Taps]:
    """Run the network; return its output, the loss, and the taps that errors arrive at."""
    back = along(feedback, call.network, call.parameters, call.variables)
    space = "none" if feedback in (*BROADCAST, "none") else paths.space
    taps = Taps(replace(paths, feedback={**back, **paths.feedback}, space=space))
    with torch.enable_grad():
        output = call.network(
            call.all_steps,
            call.state,
            taps=taps,
            weights=call.weights,
            training=call.training,
            generator=call.generator,
            held=call.held,
        )
        return output, loss_of(output, call.output_loss), taps


def credit_of(
    call: Call,
    output: Output,
    loss: Tensor,
    taps: Taps,
    *,
    feedback: Signal = "symmetric",
    extra: Signals | None = None,
    form: Form | None = None,
    also: Sequence[Tensor] = (),
) -> tuple[Factors, list[Tensor]]:
    """Return the factors of a pass that was made, and the errors of other leaves of it."""
    outputs, errors = ends(call, loss, taps, feedback, with_errors(call, extra))
    wanted: list[Any] = [*(tap.edge for tap in taps.values()), *taps.direct.values(), *also]
    found = torch.autograd.grad(outputs, wanted, errors, allow_unused=True)
    direct = zip(taps.direct, found[len(taps) : len(wanted) - len(also)], strict=True)
    others = [
        torch.zeros_like(leaf) if error is None else error
        for leaf, error in zip(also, found[len(wanted) - len(also) :])
    ]
    synapses = {}
    for (path, tap), delta in zip(taps.items(), found):
        delta = tap.no_error() if delta is None else delta
        synapse = call.network.synapses[path]
        synapses[path] = synapse.factor(tap.kept, delta) if form is None else form(path, tap, delta)
    made = Factors(
        loss.detach(),
        output.logits.detach(),
        synapses,
        {name: gradient for name, gradient in direct if gradient is not None},
        output.statistics,
        output.state,
        {},
        activity_of(taps),
        call.share,
    )
    return made, others


def with_errors(call: Call, extra: Signals | None) -> Signals | None:
    """Return more errors of outputs, those that the call asks for with them."""
    asked = call.errors
    if asked is None:
        return extra

    def both(fired: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {} if extra is None else dict(extra(fired))
        for name, error in asked(fired, call.share).items():
            found[name] = found[name] + error if name in found else error
        return found

    return both


def ends(
    call: Call, loss: Tensor, taps: Taps, feedback: Signal, extra: Signals | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return where errors start: the loss, outputs of layers that are sent some; and the errors."""
    fired = hidden(call, taps)
    signals: dict[str, Tensor] = {}
    if feedback in BROADCAST:
        tap = taps[list(call.network.layers)[-1]]
        if feedback == "target":
            error = _targets(call, tap)
        else:
            edge: Any = tap.edge
            (error,) = torch.autograd.grad(loss, [edge], retain_graph=True)
            error = error.reshape(-1, call.all_steps.shape[1], tap.shape[1])
        signals |= broadcast(feedback, error, fired, call.variables)
    for name, signal in (extra(fired) if extra is not None else {}).items():
        signals[name] = signals[name] + signal if name in signals else signal
    outputs = [loss, *(taps.paths.choose(fired[name]) for name in signals)]
    return outputs, [torch.ones_like(loss), *signals.values()]


def _targets(call: Call, tap: Tap) -> Tensor:
    """Return what the targets are as errors [1, B, K] of the mean over samples and all steps."""
    if call.labels is None:
        raise UsageError("signals are targets here, and no labels were given; pass labels [B]")
    one_hot = functional.one_hot(call.labels, tap.shape[1]).to(tap.dtype)
    return -one_hot[None] * (call.share / len(call.labels))


def hidden(call: Call, taps: Taps) -> dict[str, Tensor]:
    """Return the outputs of the layers below the readout."""
    last = list(call.network.layers)[-1]
    return {name: out for name, out in taps.fired.items() if name != last}


def activity_of(taps: Taps) -> dict[str, Tensor]:
    """Return the mean output of each neuron [*features] of each layer."""
    return {name: out.detach().mean((0, 1)) for name, out in taps.fired.items()}
