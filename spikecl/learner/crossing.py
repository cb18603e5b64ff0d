"""From floats to the chip within a run: what is gathered for it, the export, and steps on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spikecl.continual.method import Lateral, Method, overrides
from spikecl.interop.meta import meta_of, together
from spikecl.learner.calls import Calls
from spikecl.learner.chip import OnChip, feedback_of
from spikecl.learner.plan import ExportPlan, TrainPlan
from spikecl.learner.window import Window
from spikecl.optim import OptimiserSpec
from spikecl.seeds import Seeds
from spikecl.storage import State
from spikecl.streams import Batch, Experience, Loaded, Stream


class Crossing:
    """Exports the network within a stream.

    Args:
        plan: How it is exported, and learns.
        stream: Events.
        calls: The network, its input and its loss.
        train: Sizes of batches.
        optimiser: Whose learning rate holds on the chip, if the plan has none.
        seeds: Root of all randomness.
    """

    def __init__(
        self,
        plan: ExportPlan,
        stream: Stream,
        calls: Calls,
        *,
        train: TrainPlan,
        optimiser: OptimiserSpec,
        seeds: Seeds,
    ):
        self._plan, self._stream, self._calls = plan, stream, calls
        self._batch, self._rate = train.batch, plan.rate or optimiser.lr
        self._seeds = seeds
        self.calibration: dict[str, Tensor] = {}  # samples by event, that scales are measured on

    def gather(self, event: Experience, loaded: Loaded) -> None:
        """Keep an experience's share of the samples that scales are measured on."""
        each = -(-self._plan.calibrate // self._plan.after)
        self.calibration[str(event.index)] = evenly(loaded, each)

    def rehearse(self, event: Experience, methods: Sequence[Method]) -> None:
        """Refuse what the chip cannot take, before anything is learned."""
        self._cross({"0": evenly(event.train.load(), self._plan.calibrate)}, methods)

    def cross(self, methods: Sequence[Method]) -> OnChip:
        """Return the network on the chip, with what its methods and trainer take along."""
        return self._cross(self.calibration, methods)

    def _cross(self, kept: dict[str, Tensor], methods: Sequence[Method]) -> OnChip:
        calls = self._calls
        inputs, network, seeds = calls.inputs, calls.network, self._seeds

        def encode(x: Tensor, place: int) -> Tensor:
            x = x.to(inputs.device)
            return inputs.encode(x, "calibrate", event=place, epoch=0, step=0)

        seen = together([encode(x, int(place)) for place, x in kept.items()])
        travels = [method.travels() for method in methods if overrides(method, "travels")]
        later = [e for e in self._stream if e.index > calls.at.event]
        return OnChip(
            self._plan,
            network,
            seen,
            lateral=travels[0] if travels else Lateral(),
            feedback=feedback_of(self._plan, network, calls.variables, seeds, seen[:, :1]),
            remaining=sum(isinstance(event, Experience) for event in later),
            rate=self._rate,
            batch=self._batch,
            seed=seeds.derive("chip") & 0xFFFFFFFF,
            meta=meta_of(
                seen,
                self._stream,
                inputs.encoder,
                inputs.statistics,
                encode=lambda x: encode(x, 0),
                outputs=calls.heads.outputs,
            ),
            device=inputs.device,
        )

    def state_dict(self) -> State:
        """Return the samples that were kept."""
        return {"calibration": dict(self.calibration)}

    def load_state_dict(self, state: State) -> None:
        """Take them back; other keys are not read."""
        self.calibration = dict(state.get("calibration", {}))


def chip_step(
    chip: OnChip, calls: Calls, window: Window, batch: Batch, epoch: int, step: int
) -> None:
    """Let the chip learn from a batch."""
    calls.heads.show(batch)

    def errors(outputs: Tensor) -> Tensor:
        assert batch.y is not None
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            loss = calls.loss(calls.heads.train(outputs, batch), batch.y)
            (gradient,) = torch.autograd.grad(loss, [outputs])
        window.add_loss(loss.detach(), step)
        return -len(outputs) * gradient

    assert batch.y is not None
    at = calls.at.event
    outputs = chip.learn(
        calls.inputs.encode(batch.x, "encode", event=at, epoch=epoch, step=step), errors
    )
    window.add_hits(calls.heads.train(outputs, batch), batch.y)


def evenly(loaded: Loaded, count: int) -> Tensor:
    """Return so many samples [N, *shape] from all over a set."""
    picked = np.linspace(0, len(loaded) - 1, min(count, len(loaded))).astype(int)
    return loaded.take(torch.from_numpy(picked).to(loaded.x.device)).x
