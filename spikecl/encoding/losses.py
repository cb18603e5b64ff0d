"""Losses of the network's output: of its logits, or of its outputs at every step.

Every loss is a mean over the batch, and over time where it sees time: the number of steps does not
change its size. Classes at ``-inf`` are left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from spikecl.components import Fraction, PositiveFloat, component
from spikecl.encoding.decoders import FirstSpikeDecoder, MaxDecoder, MeanDecoder
from spikecl.errors import UsageError

OutputLoss = Callable[[Tensor], Tensor]
"""Takes logits [B, classes], returns a scalar."""


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return ``mean_b(-log p_b[label_b])``, ``p = softmax(logits)``.

    With ``label_smoothing = e`` it is ``(1 - e)`` of that and ``e mean_b mean_c(-log p_b[c])``,
    c over the classes that are not at ``-inf``.

    Args:
        logits: [B, classes]; classes that are not allowed may be at ``-inf``.
        labels: [B], integers.
        label_smoothing: Share of the target that goes to all classes evenly.

    Example:
        >>> round(cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp().item(), 4)
        4.0
    """
    loss = functional.cross_entropy(logits, labels)
    if label_smoothing == 0:
        return loss
    closed = logits.isneginf()
    log_p = logits.log_softmax(1).masked_fill(closed, 0)
    even = -(log_p.sum(1) / (~closed).sum(1)).mean()
    return (1 - label_smoothing) * loss + label_smoothing * even


class Loss(ABC):
    """A pure function of the output and the labels.

    ``per_step`` says what it wants to see: logits [B, C], or outputs at every step [T, B, C].
    ``separable``: it is the mean over steps of a loss of each, so a step's error is known in it.
    """

    __slots__ = ()
    per_step: ClassVar[bool] = False
    separable: ClassVar[bool] = False

    def __call__(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of outputs and labels [B].

        Raises:
            UsageError: The output has time where none is wanted, or none where it is.
        """
        if output.dim() != (3 if self.per_step else 2):
            wanted = "outputs at every step, [T, B, C]" if self.per_step else "logits, [B, C]"
            raise UsageError(
                f"{type(self).__name__}: got shape {tuple(output.shape)}; give {wanted}"
            )
        return self.loss(output, labels)

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of outputs that are known to have the right number of axes."""


@component
class CrossEntropy(Loss):
    """``CE(logits)``; with the mean or the sum over time as logits, rate or count cross entropy.

    Args:
        label_smoothing: Share of the target that goes to all classes evenly.

    Example:
        >>> round(CrossEntropy()(torch.zeros(1, 2), torch.tensor([0])).item(), 4)
        0.6931
    """

    label_smoothing: Fraction = 0.0

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of logits."""
        return cross_entropy(output, labels, label_smoothing=self.label_smoothing)


@component
class StepCrossEntropy(Loss):
    """``mean_t CE(z[t])``: every step is to know the answer (snnTorch's ``ce_rate_loss``).

    Args:
        label_smoothing: Share of the target that goes to all classes evenly.

    Example:
        >>> round(StepCrossEntropy()(torch.zeros(5, 1, 2), torch.tensor([0])).item(), 4)
        0.6931
    """

    per_step: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    label_smoothing: Fraction = 0.0

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy of the steps."""
        labels = labels.repeat(output.shape[0])
        return cross_entropy(output.flatten(0, 1), labels, label_smoothing=self.label_smoothing)


@component
class Tet(Loss):
    """``(1 - lam) mean_t CE(z[t]) + lam mean_tbc (z[t] - target)^2``.

    Source: Deng et al., Temporal Efficient Training, ICLR 2022; the form is that of their code.

    Args:
        lam: Share of the second term, which keeps single steps from running away; 0.001 in the
            authors' script for events.
        target: Where it pulls all outputs.

    Example:
        >>> round(Tet(lam=0.5, target=1.0)(torch.zeros(3, 1, 2), torch.tensor([0])).item(), 4)
        0.8466
    """

    per_step: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    lam: Fraction = 0.05
    target: float = 1.0

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the mixture of the two."""
        target = torch.full_like(output, self.target)
        every_step = StepCrossEntropy().loss(output, labels)
        return (1 - self.lam) * every_step + self.lam * _mean_square(output, target)


@component
class StepMse(Loss):
    """``mean_tbc (z[t] - y)^2``, y = ``correct`` for the label, else ``incorrect``: regression.

    Args:
        correct: Output of the right class at every step.
        incorrect: Output of the others.

    Example:
        >>> StepMse()(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]), torch.tensor([0]))
        tensor(0.2500)
    """

    per_step: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    correct: float = 1.0
    incorrect: float = 0.0

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared distance of the outputs."""
        target = torch.full_like(output[0], self.incorrect)
        target = target.scatter(1, labels[:, None], self.correct)
        return _mean_square(output, target.expand_as(output))


@component
class CountMse(Loss):
    """``mean_bc (mean_t z[t] - r)^2``, r = ``correct`` for the label, else ``incorrect``.

    Of spikes it is the distance of their rates, of membranes that of their means.

    snnTorch's ``mse_count_loss`` compares counts with ``int(T r)`` and divides by T: T times this
    when T r is whole.

    Args:
        correct: Rate of the right class, spikes per step.
        incorrect: Rate of the others; above 0 keeps them from falling silent for good.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
        >>> CountMse()(spikes, torch.tensor([0]))
        tensor(0.1250)
    """

    per_step: ClassVar[bool] = True
    correct: Fraction = 1.0
    incorrect: Fraction = 0.0

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared distance of the rates."""
        rates = MeanDecoder().decode(output)
        target = torch.full_like(rates, self.incorrect)
        return _mean_square(rates, target.scatter(1, labels[:, None], self.correct))


@component
class MaxMembrane(Loss):
    """``CE(max_t z[t])``: one moment is enough (snnTorch's ``ce_max_membrane_loss``).

    Example:
        >>> membrane = torch.tensor([[[0.0, 0.0]], [[-1.0, -9.0]]])
        >>> round(MaxMembrane()(membrane, torch.tensor([0])).item(), 4)
        0.6931
    """

    per_step: ClassVar[bool] = True

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of the maxima."""
        return cross_entropy(MaxDecoder().decode(output), labels)


@component
class FirstSpike(Loss):
    """``CE(-t_first / (xi tau_syn))``: the right class is to spike first.

    Times and gradients are those of :class:`FirstSpikeDecoder`.

    Source: Wunderlich & Pehle, Scientific Reports 11 (2021), without their term for late spikes.

    Args:
        xi: Scale of the softmax.
        tau_syn: Synaptic time constant, in steps.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> round(FirstSpike(xi=1.0, tau_syn=1.0)(spikes, torch.tensor([0])).item(), 4)
        0.3133
    """

    per_step: ClassVar[bool] = True
    xi: PositiveFloat = 0.4
    tau_syn: PositiveFloat = 5.0

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of the first spikes."""
        return cross_entropy(FirstSpikeDecoder(self.xi, self.tau_syn).decode(output), labels)


def _mean_square(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared distance, of the outputs that are not at ``-inf``."""
    closed = output.isneginf()
    return (output - target).masked_fill(closed, 0).square().sum() / (~closed).sum()
