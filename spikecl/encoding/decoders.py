"""Decoders: what the outputs said over time [T, B, C] becomes logits [B, C]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from spikecl.components import Fraction, PositiveFloat, PositiveInt, component
from spikecl.errors import UsageError


class Decoder(ABC):
    """A pure function of the outputs at every step: spikes, membranes or currents."""

    __slots__ = ()

    def __call__(self, steps: Tensor) -> Tensor:
        """Return logits [B, C] of outputs [T, B, C].

        Raises:
            UsageError: The outputs have another number of axes, or outputs that do not divide.
        """
        if steps.dim() != 3:
            raise UsageError(
                f"{type(self).__name__}: got outputs of shape {tuple(steps.shape)}; give the "
                "outputs at every step, [T, B, C]"
            )
        return self.decode(steps)

    @abstractmethod
    def decode(self, steps: Tensor) -> Tensor:
        """Return logits [B, C] of outputs [T, B, C], which are known to have three axes."""


@component
class MeanDecoder(Decoder):
    """Rate: ``mean_t z[t]``.

    Example:
        >>> MeanDecoder()(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]))
        tensor([[0.5000, 0.0000]])
    """

    def decode(self, steps: Tensor) -> Tensor:
        """Return the time mean."""
        return steps.mean(0)


@component
class SumDecoder(Decoder):
    """Count: ``sum_t z[t]``, T times the rate: a cross entropy becomes sharper with more steps.

    Example:
        >>> SumDecoder()(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]))
        tensor([[2., 0.]])
    """

    def decode(self, steps: Tensor) -> Tensor:
        """Return the sum over time."""
        return steps.sum(0)


@component
class MaxDecoder(Decoder):
    """Maximum of the membrane: ``max_t z[t]``; steps that tie share the gradient evenly.

    Example:
        >>> MaxDecoder()(torch.tensor([[[0.1, 0.3]], [[0.2, -0.5]]]))
        tensor([[0.2000, 0.3000]])
    """

    def decode(self, steps: Tensor) -> Tensor:
        """Return the maximum over time."""
        return steps.amax(0)


@component
class LastDecoder(Decoder):
    """The last step: ``z[T-1]``.

    Example:
        >>> LastDecoder()(torch.tensor([[[0.1, 0.3]], [[0.2, -0.5]]]))
        tensor([[ 0.2000, -0.5000]])
    """

    def decode(self, steps: Tensor) -> Tensor:
        """Return the last step."""
        return steps[-1]


@component
class LeakyDecoder(Decoder):
    """Mean that forgets: ``sum_t kappa^(T-1-t) z[t] / sum_t kappa^(T-1-t)``.

    What a leaky integrator holds at the end, scaled to the size of its input; ``kappa = 1`` is
    the mean, ``kappa = 0`` the last step.

    Args:
        kappa: Decay per step, ``exp(-dt/tau_out)``.

    Example:
        >>> LeakyDecoder(kappa=0.5)(torch.tensor([[[3.0, 0.0]], [[0.0, 3.0]]]))
        tensor([[1., 2.]])
    """

    kappa: Fraction = 0.9

    def decode(self, steps: Tensor) -> Tensor:
        """Return the weighted mean."""
        age = torch.arange(steps.shape[0] - 1, -1, -1, device=steps.device, dtype=steps.dtype)
        weight = torch.pow(self.kappa, age).view(-1, 1, 1)
        return (weight * steps).sum(0) / weight.sum()


@component
class FirstSpikeDecoder(Decoder):
    """The earlier, the more: ``-t_first / (xi tau_syn)``, t_first the step of the first spike.

    For spikes 0 or 1, in order of execution::

        q[t] = prod_(u <= t) (1 - s[u])       1 while the output is silent
        t_first = sum_t q[t]                  T if it never spikes

    The sum is a polynomial in each spike, so it has a gradient: the derivative by s[t] is what
    the time would change if that one spike were put there or taken away. A spike put before the
    first brings it forward, the first one taken away leaves the next, later ones do not matter.
    Silent outputs learn too. An output at ``-inf`` stays there.

    Source: the logits of Wunderlich & Pehle, Scientific Reports 11 (2021).
    Deviation: they differentiate the times by the threshold crossing (EventProp).

    Args:
        xi: Scale of the softmax.
        tau_syn: Synaptic time constant, in steps.

    Example:
        >>> spikes = torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 1.0, 0.0]]])
        >>> -FirstSpikeDecoder(xi=1.0, tau_syn=1.0)(spikes)
        tensor([[1., 0., 2.]])
    """

    xi: PositiveFloat = 0.4
    tau_syn: PositiveFloat = 5.0

    def decode(self, steps: Tensor) -> Tensor:
        """Return scaled negative times."""
        closed = steps.isneginf().any(0)
        silent = (1 - steps.masked_fill(closed, 0)).cumprod(0)
        return (silent.sum(0) / (-self.xi * self.tau_syn)).masked_fill(closed, -torch.inf)


@component
class PopulationDecoder(Decoder):
    """Several outputs for each class: the mean over time and over the class's own K outputs.

    Class c has the outputs c K to c K + K - 1: [T, B, C K] becomes [B, C].

    Args:
        units: Outputs K of one class.

    Example:
        >>> PopulationDecoder(units=2)(torch.tensor([[[1.0, 1.0, 0.0, 1.0]]]))
        tensor([[1.0000, 0.5000]])
    """

    units: PositiveInt = 1

    def decode(self, steps: Tensor) -> Tensor:
        """Return the mean over time and units."""
        *time, outputs = steps.shape
        if outputs % self.units:
            raise UsageError(
                f"PopulationDecoder.units: {outputs} outputs do not divide into groups of "
                f"{self.units}; give each class as many"
            )
        return steps.reshape(*time, outputs // self.units, self.units).mean((0, 3))


DECODERS: Mapping[str, type[Decoder]] = {
    "mean": MeanDecoder,
    "sum": SumDecoder,
    "max": MaxDecoder,
    "last": LastDecoder,
    "leaky": LeakyDecoder,
    "first_spike": FirstSpikeDecoder,
    "population": PopulationDecoder,
}
