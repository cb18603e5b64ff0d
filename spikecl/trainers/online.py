"""Steps one part after the other, forward in time alone: what online rules have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from spikecl.encoding.decoders import MeanDecoder
from spikecl.networks import Network
from spikecl.neurons.neuron import carry
from spikecl.trainers.needs import need_separable_call
from spikecl.trainers.trainer import Call, Factors, PerStep, Steps


def in_parts(
    call: Call, rule: str, window: int, credit: Callable[[Call], Factors]
) -> Iterator[Factors]:
    """Yield what ``credit`` makes of parts of ``window`` steps; 0 is all at once.

    A part's share of the loss is that of its steps. State goes from part to part as values; logits
    are those of the steps so far.
    """
    if not window:
        yield credit(call)
        return
    need_separable_call(rule, call)
    steps, state, said = len(call.x), call.state, Logits(call.network)
    held: dict[str, Tensor] = {}
    parts = call.x.split(window) if isinstance(call.x, Steps) else torch.split(call.x, window)
    for x in parts:
        share = len(x) / steps

        def output_loss(outputs: Tensor, share: float = share) -> Tensor:
            said.add(outputs)
            return call.output_loss(outputs) * share

        errors = PerStep(output_loss, True)
        part = replace(
            call, x=x, state=state, output_loss=errors, share=call.share * share, held=held
        )
        made = credit(part)
        state = carry({**(state or {}), **made.state}, "detach")
        yield made._replace(logits=said.logits(), state=state or {})


class Logits:
    """Logits of outputs that come in parts; a mean is kept as a sum.

    Args:
        network: Says how they are decoded.
    """

    def __init__(self, network: Network):
        self.network = network
        self._steps: list[Tensor] = []
        self._count = 0

    def add(self, outputs: Tensor) -> None:
        """Take the outputs [T, B, C] of a part."""
        outputs = outputs.detach()
        if not isinstance(self.network.decoder, MeanDecoder):
            self._steps.append(outputs)
            return
        total = outputs.sum(0)
        self._steps = [self._steps[0] + total if self._steps else total]
        self._count += len(outputs)

    def logits(self) -> Tensor:
        """Return the logits [B, C] of all steps so far."""
        if isinstance(self.network.decoder, MeanDecoder):
            return self._steps[0] / self._count
        return self.network.decode(torch.cat(self._steps))
