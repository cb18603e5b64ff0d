"""What every trainer offers: factors of the gradient of each synapse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from spikecl.encoding import Loss, OutputLoss
from spikecl.networks import AnyFactor, Network, Output
from spikecl.neurons import State
from spikecl.registry import TRAINERS
from spikecl.seeds import Seeds
from spikecl.streams.reveal import Reveal

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Factors(NamedTuple):
    """Result of one call of a trainer, or of one part of its steps.

    Args:
        loss: Scalar loss of the batch (the share of these steps), detached.
        logits: Logits [B, classes] before the loss, detached; of the steps so far.
        synapses: Factor by synapse.
        direct: Gradients by parameter name of parameters that have no factor; one that nothing
            depends on (a fixed delay) has none.
        statistics: New running statistics of normalisation by name.
        state: State of the neurons after the last step by path.
        variables: What the rule remembers, where it has changed.
        activity: Mean output of each neuron [*features] over steps and samples, by layer.
        share: Share of all steps that these are.
    """

    loss: Tensor
    logits: Tensor
    synapses: Mapping[str, AnyFactor]
    direct: Mapping[str, Tensor] = MappingProxyType({})
    statistics: Mapping[str, Tensor] = MappingProxyType({})
    state: Mapping[str, State] = MappingProxyType({})
    variables: Mapping[str, Tensor] = MappingProxyType({})
    activity: Mapping[str, Tensor] = MappingProxyType({})
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class PerStep:
    """An output loss that takes the outputs at every step [T, B, classes] instead of logits.

    ``separable`` says that it is the mean over steps of a loss of each.
    """

    loss: OutputLoss
    separable: bool = False

    def __call__(self, steps: Tensor) -> Tensor:
        """Return the scalar loss."""
        return self.loss(steps)


def loss_of(output: Output, output_loss: OutputLoss) -> Tensor:
    """Return the loss of a pass, from what the loss wants to see."""
    return output_loss(output.steps if isinstance(output_loss, PerStep) else output.logits)


class Traits(NamedTuple):
    """What a rule is like, for the table of ``spikecl trainers``.

    Args:
        time: Whether an update needs other steps than the present one, and traces.
        space: Whether an update of a synapse needs more than its two neurons and a broadcast.
        memory: What is held besides the weights; T steps, B samples, N neurons, S synapses.
        exact: Which gradient it is.
        network: Which networks it is defined for.
        source: Where the rule was published.
    """

    time: str
    space: str
    memory: str
    exact: str
    network: str
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """An encoded batch that is made while it is used: for rules that need one step at a time.

    Args:
        count: Number of steps T.
        make: Returns the steps [B, *features], in order: a function, since a rule may go through
            them more than once.

    Example:
        >>> steps = Steps(3, lambda: (torch.full((1, 2), float(t)) for t in range(3)))
        >>> [part.shape[0] for part in steps.split(2)]
        [2, 1]
    """

    count: int
    make: Callable[[], Iterable[Tensor]]

    def __len__(self) -> int:
        return self.count

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield parts [size, B, *features]."""
        held: list[Tensor] = []
        for step in self.make():
            held.append(step)
            if len(held) == size:
                yield torch.stack(held)
                held = []
        if held:
            yield torch.stack(held)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a trainer is called with.

    Args:
        network: The network; nothing is left on it.
        x: Encoded batch [T, B, *features].
        output_loss: From logits [B, classes] to a scalar; a :class:`PerStep` gets the outputs at
            every step instead.
        weights: Effective weights to run with, in place of the network's own.
        state: State of the neurons to start from; ``None`` is rest.
        variables: What the rule remembers.
        generator: Where dropout, random neurons and the rule itself draw from.
        training: Drop units, and normalise by the statistics of the batch.
        labels: Labels [B], for rules that are not made of an error alone.
        share: Share of all steps that these are, where they are a part.
        held: What dropout drew for these samples in earlier parts, by path; filled in.
        errors: From outputs of hidden layers [T, B, *features] and the share of all steps that they
            are to errors that are added to theirs, by layer.
    """

    network: Network
    x: Tensor | Steps
    output_loss: OutputLoss
    weights: Mapping[str, Tensor] | None = None
    state: Mapping[str, State] | None = None
    variables: Mapping[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator | None = None
    training: bool = True
    labels: Tensor | None = None
    share: float = 1.0
    held: dict[str, Tensor] | None = None
    errors: Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]] | None = None

    @property
    def all_steps(self) -> Tensor:
        """All steps at once."""
        if isinstance(self.x, Tensor):
            return self.x
        return next(self.x.split(len(self.x)))

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The parameters to run with."""
        return self.network.weights() if self.weights is None else self.weights


class Trainer(ABC):
    """A rule of credit assignment: a pure call from a batch to factors.

    What a rule remembers from batch to batch (feedback weights, a mean reward) goes in and comes
    out as ``variables``.

    Attributes:
        needs: What the stream must reveal.
        traits: What the rule is like, for the table.
        sends_errors: Whether it sends errors to hidden outputs, and with them those that a call
            asks for (:attr:`Call.errors`).
        has_gradient: Whether what it gives for a sample is, or stands for, the gradient of the loss
            of that sample. What a rule with changes of its own gives is none, nor is an estimate
            that is mostly noise.
    """

    __slots__ = ()
    needs: ClassVar[Reveal] = Reveal.LABELS
    traits: ClassVar[Traits]
    sends_errors: ClassVar[bool] = False
    has_gradient: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name it is registered under, or that of its class."""
        return TRAINERS.name_of(type(self)) or type(self).__name__.lower()

    @property
    def of_loss(self) -> Trainer:
        """The same rule without costs of its own: of the loss alone."""
        return self

    @property
    def random(self) -> bool:
        """Whether a call draws random numbers of its own."""
        return False

    @property
    def every_part(self) -> bool:
        """Whether weights are to change after every part of the steps, not after the last alone."""
        return False

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:  # noqa: B027
        """Refuse, before anything starts, a network, input [T, B, ...] or loss it is not for.

        Raises:
            PairingError: The rule is not defined for it; the reason is given.
        """

    def variables(self, network: Network, seeds: Seeds, x: Tensor) -> dict[str, Tensor]:
        """Return what the rule remembers, at the start of a run.

        Args:
            network: The network.
            seeds: Where it is drawn from.
            x: Some encoded input [T, B, *features], for its shape.
        """
        return {}

    def tied(self, network: Network) -> Mapping[str, str]:
        """Return the variables that take the same updates as a parameter: name to name."""
        return {}

    @abstractmethod
    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield the factors of parts of the steps; most rules have one part, all steps."""

    def settle(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the parameters that the rule itself changes after a step (bounds), by name."""
        return {}

    def factors(
        self,
        network: Network,
        x: Tensor | Steps,
        output_loss: OutputLoss,
        weights: Mapping[str, Tensor] | None = None,
        *,
        state: Mapping[str, State] | None = None,
        variables: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        training: bool = True,
        labels: Tensor | None = None,
    ) -> Factors:
        """Return factors for an encoded batch [T, B, *features], parts put together.

        The arguments are those of :class:`Call`; ``variables=None`` draws those of a new run from
        ``Seeds(0)``.
        """
        if variables is None:
            one = x if isinstance(x, Tensor) else next(x.split(1))
            variables = self.variables(network, Seeds(0), one)
        call = Call(network, x, output_loss, weights, state, variables, generator, training, labels)
        return joined(list(self.parts(call)))


def joined(parts: list[Factors]) -> Factors:
    """Return the factors of all steps from those of parts, in whatever order they came."""
    if len(parts) == 1:
        return parts[0]
    last = parts[-1]
    synapses = {
        path: factor.join([part.synapses[path] for part in parts])
        for path, factor in last.synapses.items()
    }
    direct: dict[str, Tensor] = {}
    for part in parts:
        for name, gradient in part.direct.items():
            direct[name] = direct[name] + gradient if name in direct else gradient
    activity = {
        name: torch.stack([part.activity[name] * part.share for part in parts]).sum(0)
        for name in last.activity
    }
    loss = torch.stack([part.loss for part in parts]).sum()
    share = sum(part.share for part in parts)
    activity = {name: total / share for name, total in activity.items()}
    return last._replace(
        loss=loss, synapses=synapses, direct=direct, activity=activity, share=share
    )
