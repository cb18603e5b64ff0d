"""What a continual-learning method is: a description, and hooks that run."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from spikecl.continual.host import Host, Nobody
from spikecl.errors import PairingError
from spikecl.networks import AnyFactor, Network
from spikecl.optim import OptimiserSpec
from spikecl.seeds import Seeds
from spikecl.storage import State
from spikecl.streams import Batch, LearnerView, Reveal, Samples, Unlearn

Factors = Mapping[str, AnyFactor]
Tensors = Mapping[str, Tensor]


class Phase(enum.IntEnum):
    """When a method acts within a step; methods run in this order.

    ``FIRST`` gives others what they start from: gradients of stored weights, in the place of those
    of effective ones. ``AROUND`` is about whole steps: it gets gradients as the loss has them,
    before any other method adds to them, and its ``after_step`` comes last, when all others have
    changed the weights.
    """

    FIRST = -2
    AROUND = -1
    EXTRA_GRADIENT = 0
    GATE = 1
    OPTIMISER = 2
    NOISE = 3
    PROJECTION = 4
    AVERAGING = 5
    OBSERVATION = 6


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a method works with, given once when a run starts.

    ``settles`` says that the trainer changes weights behind the optimiser; ``before`` are the
    running methods of earlier phases; ``host`` answers what a method asks between steps.
    """

    network: Network
    optimiser: OptimiserSpec
    seeds: Seeds
    reveal: Reveal
    classes: int
    device: torch.device
    settles: bool = False
    before: tuple[Method, ...] = ()
    host: Host = field(default_factory=Nobody)


class Lateral(NamedTuple):
    """Lateral weights that travel along when a network is exported; none, by default.

    Args:
        rows: Rows [k, n] by synapse, orthonormal: what updates have to stay out of.
        more: From an experience (0: the first one after the export) to new rows by synapse.
    """

    rows: Mapping[str, Tensor] = MappingProxyType({})
    more: Callable[[int], Mapping[str, int]] = lambda experience: {}


class Method:
    """A running method. Override the hooks you need; the others cost nothing.

    A hook that takes a value returns the value to go on with. Order within a step:
    ``extend_batch, weights, logits, output_loss, errors, fired, answered, factors, gradients,
    update, after_step``.

    Example:
        >>> class Clip(Method):
        ...     def gradients(self, gradients):
        ...         return {name: g.clamp(-1, 1) for name, g in gradients.items()}

    Attributes:
        gathers: What it makes of the samples of each experience, in words; an experience without
            any is refused before the start.
        own: What its ``update`` brings beside a part of the optimiser's step, in words: nobody
            may multiply that.
        multiplies: Whether its ``update`` multiplies the optimiser's, which has to be a step then.
        opens: Whether its ``begin`` changes weights; it comes before that of others.
        room: How many contexts it has room for; ``None`` is any number.
        writes: Whether it changes weights beside ``update``, which nobody can hold still then.
        remembers: Whether it goes on from what it keeps of old weights, so that nobody may begin
            anew; projections and methods with importances do without being asked.
        needs_gradient: Whether it makes more of the gradients of training than steps, so that they
            have to be those of the loss.
    """

    gathers: str = ""
    own: str = ""
    multiplies: bool = False
    opens: bool = False
    room: int | None = None
    writes: bool = False
    remembers: bool = False
    needs_gradient: bool = False

    def begin(self, view: LearnerView) -> None:
        """A new experience begins (once per run when boundaries are hidden)."""

    def training_set(self, samples: Samples, view: LearnerView) -> Samples:
        """Choose the samples of this experience's epochs; called again on resume, so pure."""
        return samples

    def extend_batch(self, batch: Batch) -> Batch:
        """Add samples to a batch."""
        return batch

    def weights(self, weights: Tensors) -> Tensors:
        """Return the effective weights of this step; gradients are taken at them."""
        return weights

    def logits(self, logits: Tensor) -> Tensor:
        """Change logits [B, classes] before the loss."""
        return logits

    def output_loss(self, loss: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """Add terms at the output to the loss. Penalties on weights belong in ``gradients``."""
        return loss

    def errors(self, fired: Tensors, share: float) -> Tensors:
        """Return errors to add to those of hidden outputs [T, B, *features], by layer.

        They are derivatives of a cost by each output; ``fired`` has the outputs of a share of the
        steps. Asked for by trainers that follow errors through the neurons.
        """
        return {}

    def fired(self, rates: Tensors, share: float) -> None:
        """Look at the mean output of each neuron [*features] by layer in this step.

        A trainer may show the time steps of a batch in parts; these are the means of one.
        """

    def answered(self, logits: Tensor, batch: Batch) -> None:
        """Look at the logits [B, classes] that the network gives a batch in this step.

        A trainer may show the time steps of a batch in parts; these are the logits so far.
        """

    def factors(self, factors: Factors, batch: Batch) -> Factors:
        """Change the factors before gradients are formed."""
        return factors

    def gradients(self, gradients: Tensors) -> Tensors:
        """Change the gradients by parameter name."""
        return gradients

    def update(self, update: Tensors) -> Tensors:
        """Change the update the optimiser has applied, by parameter name."""
        return update

    def still(self) -> Tensors:
        """Return which entries of parameters its ``update`` holds still (True), by name.

        A projection behind it then finds, row by row, the nearest update that leaves these entries
        as they are and stays out of what it protects; without being told it would move them.
        """
        return {}

    def leave(self, names: Collection[str]) -> None:
        """Let go of parameters, by name: neither move nor hold them.

        A method of a later phase that moves them in its own way, as ``threshold`` does, asks for it
        when it starts.
        """

    def after_step(self) -> None:
        """The weights have changed."""

    def end_epoch(self) -> None:
        """All samples have been seen once more (not called where boundaries are hidden)."""

    def end(self, view: LearnerView) -> None:
        """An experience ends (once per run when boundaries are hidden)."""

    def predict(self, x: Tensor, task: int | None) -> Tensor:
        """Return logits of an encoded batch in place of the network's own.

        ``task`` is ``None`` unless the stream reveals it at evaluation.
        """
        raise NotImplementedError

    def unlearn(self, request: Unlearn) -> None:
        """Forget samples; every store of this method must drop them."""
        raise NotImplementedError

    def adapt(self, x: Tensor, view: LearnerView) -> Tensor:
        """Adapt to an encoded unlabelled batch and return its logits."""
        raise NotImplementedError

    def travels(self) -> Lateral:
        """Return what goes along when the network is exported; nothing, by default."""
        return Lateral()

    def report(self) -> dict[str, object]:
        """Return JSON values for the record of the event that just ended."""
        return {}

    def state_dict(self) -> State:
        """Return everything needed to go on."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take back what :meth:`state_dict` gave."""

    def nbytes(self) -> int:
        """Return the bytes the method keeps between steps."""
        return 0


class MethodSpec(ABC):
    """Describes a method; ``start`` makes a running one for one run.

    ``needs``: what the stream must reveal, ``needs_to_unlearn``: and what where it has unlearning
    requests. ``phase``: when the hooks run. ``slot``: two methods of
    one slot exclude each other. ``offers``: the event kinds it can handle beside learning
    (``unlearn``, ``adapt``; ``export``: learning goes on on the chip, see :meth:`Method.travels`).
    ``keeps``: what of the network it keeps for the tests of each task, in words; nobody may train
    an old task with another, begin anew, or stop that from learning.
    """

    __slots__ = ()
    needs: ClassVar[Reveal] = Reveal.NONE
    needs_to_unlearn: ClassVar[Reveal] = Reveal.NONE
    phase: ClassVar[Phase] = Phase.EXTRA_GRADIENT
    slot: ClassVar[str | None] = None
    offers: ClassVar[frozenset[str]] = frozenset()
    keeps: ClassVar[str] = ""

    @abstractmethod
    def start(self, context: Context) -> Method:
        """Return the running method."""


def overrides(method: Method, hook: str) -> bool:
    """Whether a method has a hook of its own."""
    return getattr(type(method), hook) is not getattr(Method, hook)


def check_reveal(kind: str, name: str, needs: Reveal, stream: str, reveal: Reveal) -> None:
    """Refuse a component that needs what the stream hides."""
    if missing := needs & ~reveal:
        raise PairingError(
            f"{kind} '{name}' needs {', '.join(missing.names())}, which stream '{stream}' hides "
            f"(it reveals {', '.join(reveal.names()) or 'nothing'}); choose another {kind} or a "
            "stream that reveals it"
        )


def some(names: list[str], method: str) -> list[str]:
    """Return the names of what a method is about; refuse to do nothing, silently, without any."""
    if not names:
        raise PairingError(
            f"method '{method}' is about weights that learn, and none of the network's does "
            "(requires_grad=False); let weights learn, or leave the method out"
        )
    return names
