"""HLOP in the arithmetic of its authors' code, for comparison.

Differences from :mod:`spikecl.continual.projection.hlop`, all reproduced on purpose: new rows are
orthonormal among themselves but not to old rows, nothing is orthonormalised later, so ``H^T H`` is
a projector only nearly; rates are fixed (0.01, and 0.001 for a first synapse that is dense, as in
their networks for permuted MNIST), changes are clipped to ±10. What old rows make of a batch is
computed once, not in every iteration: they do not change.

Source: Xiao et al. (ICLR 2024) and their public code; constants as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from spikecl.continual.method import Context, Factors
from spikecl.continual.projection.heard import Heard
from spikecl.continual.projection.moments import Silent
from spikecl.continual.projection.protection import Protection, check_fits, in_order
from spikecl.continual.projection.sgp import Scaled
from spikecl.metrics import orthonormality_defect
from spikecl.networks import AnyFactor, GradientFactor, Linear, Outside
from spikecl.storage import State, nbytes
from spikecl.streams import Batch, LearnerView

RATE, FIRST_RATE, MOMENTUM, CLIP, ITERATIONS = 0.01, 0.001, 0.9, 10.0, 5


class FaithfulHlop(Protection):
    """What updates leave alone: old rows, one after the other.

    Args:
        rows_for: From the experience's number and the synapses' sizes to rows to add.
        entries: Number of entries of that schedule.
        sizes: Length of the rows of each synapse.
        context: The run.
    """

    def __init__(
        self,
        rows_for: Callable[[int, dict[str, int]], dict[str, int]],
        entries: int,
        sizes: dict[str, int],
        context: Context,
    ):
        self._rows_for, self._seeds = rows_for, context.seeds
        self.sizes = sizes
        for experience in range(entries):
            rows_for(experience, self.sizes)  # a list of the wrong length fails here
        self._old = dict.fromkeys(self.sizes, 0)
        self._experience = 0
        self.lateral = {
            name: context.network.synapses[name].weight.detach().new_zeros(0, n)
            for name, n in sizes.items()
        }
        self._momentum = dict(self.lateral)
        self._silent, self._heard = Silent("hlop", sizes), Heard(context)
        first, *_ = context.network.synapses.items()
        dense = {first[0]} if isinstance(first[1], Linear) else set()
        self._rates = {name: FIRST_RATE if name in dense else RATE for name in sizes}

    def outside(self, name: str) -> Outside | None:
        old = self._held(name)
        return Scaled(old, old.new_ones(len(old))) if len(old) else None

    def _held(self, name: str) -> Tensor:
        return self.lateral[name][: self._old[name]]

    def begin(self, view: LearnerView) -> None:
        self._silent.begin()
        rows = self._rows_for(self._experience, self.sizes)
        for position, (name, weights) in enumerate(self.lateral.items()):
            generator = self._seeds.generator("hlop", event=self._experience, epoch=position)
            count = min(rows[name], self.sizes[name] - len(weights))
            drawn = torch.randn(self.sizes[name], count, generator=generator).to(weights)
            block = torch.linalg.qr(drawn).Q.T if count else drawn.T
            self.lateral[name] = torch.cat([weights, block])
            self._momentum[name] = torch.cat([self._momentum[name], torch.zeros_like(block)])

    def learn(self, factors: Factors, batch: Batch) -> Mapping[str, Tensor]:
        for name, rate in self._rates.items():
            rows = self._heard.add(name, factors[name].transmitted)
            if rows is not None:
                self._learn(name, rows, rate)
        self._silent.hear(factors)
        return {}

    def project(self, name: str, factor: AnyFactor, seen: Tensor | None) -> AnyFactor:
        return _outside(factor, self._held(name))

    def _learn(self, name: str, x: Tensor, rate: float) -> None:
        old, weights = self.lateral[name].split_with_sizes(self._sizes_now(name))
        kept, momentum = self._momentum[name].split_with_sizes(self._sizes_now(name))
        left = x - (x @ old.T) @ old
        for _ in range(ITERATIONS):
            y = x @ weights.T
            change = (y.T @ (left - y @ weights) / len(x)).clamp_(-CLIP, CLIP)
            momentum = MOMENTUM * momentum + (1 - MOMENTUM) * change
            weights = weights + rate * momentum
        self.lateral[name], self._momentum[name] = (
            torch.cat([old, weights]),
            torch.cat([kept, momentum]),
        )

    def _sizes_now(self, name: str) -> list[int]:
        return [self._old[name], len(self.lateral[name]) - self._old[name]]

    def end(self, view: LearnerView) -> None:
        self._silent.end()
        self._old = {name: len(weights) for name, weights in self.lateral.items()}
        self._experience += 1

    def report(self) -> dict[str, object]:
        return {
            name: {
                "rows": self._old[name],
                "free": self.sizes[name] - self._old[name],
                "full": self.sizes[name] == self._old[name],
                "orthonormality_defect": orthonormality_defect(weights),
            }
            for name, weights in self.lateral.items()
        }

    def state_dict(self) -> State:
        return {
            "experience": self._experience,
            "old": self._old,
            "weights": self.lateral,
            "momentum": self._momentum,
            "silent": self._silent.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        check_fits(state["weights"], self.sizes, "hlop")
        self._experience, self._old = state["experience"], state["old"]
        self._silent.load_state_dict(state.get("silent", {}))
        self.lateral, self._momentum = (
            in_order(state[kind], self.sizes) for kind in ("weights", "momentum")
        )

    def nbytes(self) -> int:
        return nbytes(*self.lateral.values(), *self._momentum.values())


def _outside(factor: AnyFactor, old: Tensor) -> AnyFactor:
    """Return a factor whose rows (or gradient, where there are none) are ``x - (x H^T) H``."""
    if isinstance(factor, GradientFactor):
        gradient = factor.gradient()
        return factor.replaced(gradient - (gradient @ old.T) @ old)
    rows = factor.as_rows()
    return rows._replace(x=rows.x - (rows.x @ old.T) @ old)
