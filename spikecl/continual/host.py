"""What a method may ask of whoever runs it, between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from spikecl.errors import UsageError
from spikecl.networks import Network, Taps
from spikecl.streams import Batch, Samples
from spikecl.trainers import Factors


def _same(outputs: Tensor) -> Tensor:
    return outputs


class Seen(NamedTuple):
    """Samples as the network gets them.

    Args:
        x: Encoded input [T, B, *features].
        batch: What they are made of.
        loss: From the network's outputs to the loss that training has of this batch: logits
            [B, classes], or the outputs at every step for a loss of steps.
        generator: Where random neurons draw from; ``None`` where there are none.
        logits: From the network's outputs to the logits of the classes that compete.
    """

    x: Tensor
    batch: Batch
    loss: Callable[[Tensor], Tensor]
    generator: torch.Generator | None = None
    logits: Callable[[Tensor], Tensor] = _same


class Host(Protocol):
    """The learner, as a method sees it: samples that its view shows, encoded; and the trainer.

    The same samples are chosen each time within an event, from the run's seed.
    """

    def look(self, samples: Samples, count: int, *, batch: int | None = None) -> Iterator[Seen]:
        """Yield at most ``count`` samples in batches, encoded; ``batch`` is the run's size."""

    def relabel(self, seen: Seen, labels: Tensor) -> Seen:
        """Return samples with other labels [B], and the loss of these, without methods' terms."""

    def credit(self, seen: Seen, *, training: bool = True, of_loss: bool = False) -> Factors:
        """Return what the trainer makes of samples that were looked at, at the present weights.

        With ``of_loss`` it is the gradient of the loss: where the trainer has none, BPTT's.
        """

    @property
    def of_loss(self) -> str:
        """Name of the rule that gives the gradient of the loss: the run's trainer, or ``bptt``."""

    def factors(
        self,
        samples: Samples,
        count: int,
        weights: Mapping[str, Tensor] | None = None,
        *,
        training: bool = True,
    ) -> Iterator[Factors]:
        """Yield what the trainer makes of at most ``count`` samples, at the present weights.

        ``weights`` are effective parameters by name to take in their place. The pass is one of
        training, or with ``training=False`` one of a test.
        """

    @property
    def apart(self) -> bool:
        """Whether every experience has outputs of its own: heads of tasks, or classes of tasks."""

    def outputs(self) -> Tensor | None:
        """Return which outputs [n] learn in this experience, where they are ``apart``."""

    def progress(self) -> float:
        """Return the share of this experience's steps that are done, 0 to 1."""

    def share(self) -> float:
        """Return the share of the learning rate that the present step takes."""

    def portion(self) -> float:
        """Return the share of a batch's steps that the present gradients are of: 1, or a part's."""

    def part(self) -> float:
        """Return the share of a batch's steps that the present factors are of: 1, or a part's."""

    def restart(self) -> None:
        """Take the network and what its trainer remembers back to where they started."""


class Nobody:
    """A host that shows nothing: for methods that are run by hand and never ask."""

    def look(self, samples: Samples, count: int, *, batch: int | None = None) -> Iterator[Seen]:
        """Refuse."""
        raise UsageError(
            "this method looks at samples through the network at the end of an experience, and "
            "its context has no host; run it in a Learner, or give Context a host"
        )

    def relabel(self, seen: Seen, labels: Tensor) -> Seen:
        """Refuse."""
        raise UsageError(
            "this method gives samples other labels, and its context has no host; run it in a "
            "Learner, or give Context a host"
        )

    def credit(self, seen: Seen, *, training: bool = True, of_loss: bool = False) -> Factors:
        """Refuse."""
        raise UsageError(
            "this method asks for gradients of samples, and its context has no host; run it in a "
            "Learner, or give Context a host"
        )

    def factors(
        self,
        samples: Samples,
        count: int,
        weights: Mapping[str, Tensor] | None = None,
        *,
        training: bool = True,
    ) -> Iterator[Factors]:
        """Refuse."""
        raise UsageError(
            "this method asks for gradients of samples, and its context has no host; run it in a "
            "Learner, or give Context a host"
        )

    @property
    def of_loss(self) -> str:
        """None does."""
        return ""

    @property
    def apart(self) -> bool:
        """Outputs are shared."""
        return False

    def outputs(self) -> Tensor | None:
        """All outputs learn."""
        return None

    def progress(self) -> float:
        """Refuse."""
        raise UsageError(
            "this method asks how far an experience has come, and its context has no host; run it "
            "in a Learner, or give Context a host"
        )

    def share(self) -> float:
        """All of it."""
        return 1.0

    def portion(self) -> float:
        """All of them."""
        return 1.0

    def part(self) -> float:
        """All of them."""
        return 1.0

    def restart(self) -> None:
        """Refuse."""
        raise UsageError(
            "this method begins anew, and its context has no host; run it in a Learner, or give "
            "Context a host"
        )


@torch.no_grad()
def transmitted(
    network: Network, seen: Seen, weights: Mapping[str, Tensor] | None = None
) -> Mapping[str, Tensor]:
    """Return the rows [R, fan_in] that each synapse passes forward, by path, as tests see them.

    Of a convolution they are patches. An input that does not change counts once, not at every
    step: the network computes it once. ``weights`` are effective parameters by name to take in
    place of the network's own.
    """
    taps = Taps()
    network(seen.x, taps=taps, weights=weights, generator=seen.generator)
    return {path: network.synapses[path].transmitted(tap.kept) for path, tap in taps.items()}
