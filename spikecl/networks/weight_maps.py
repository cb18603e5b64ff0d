"""From stored weights to the weights a synapse uses: constraints as smooth or fixed maps.

A map has a few parameters beside the weight and a derivative: a trainer gives the gradient of the
effective weight, and :meth:`Synapse.pull_back` carries it to what is stored.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spikecl.components import Fraction, PositiveFloat, component
from spikecl.errors import ConfigError

EDGE = 1e-3  # steps from a kink at which a delay's gradient is taken


class WeightMap(ABC):
    """A pure function of a stored weight [n_out, ...] and of parameters of its own.

    ``scales`` says that its gradient is that of one constant factor: what was projected before
    stays projected behind it.
    """

    __slots__ = ()
    scales: ClassVar[bool] = False

    def parameters(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Return the initial values of the parameters beside the weight."""
        return {}

    def draw(self, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
        """Return the value that :func:`spikecl.networks.initialise` gives a parameter."""
        return parameter

    @abstractmethod
    def __call__(self, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Return the effective weight."""


@component
class Standardise(WeightMap):
    """``w_eff = gain (w - mean(w)) / (sqrt(fan_in) std(w))``, for each output neuron.

    Currents then keep their size from layer to layer without statistics over the batch; ``gain``
    [n_out] is trained.

    Source: Qiao et al., arXiv:1903.10520; scaled as in Brock et al., ICLR 2021.

    Args:
        epsilon: Least value of the variance times the fan-in.
    """

    epsilon: PositiveFloat = 1e-4

    def parameters(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Return ``gain``, all 1."""
        return {"gain": torch.ones(len(weight))}

    def __call__(self, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Return the standardised weight."""
        rows = weight.flatten(1)
        variance, mean = torch.var_mean(rows, dim=1, correction=0, keepdim=True)
        scale = torch.rsqrt((variance * rows.shape[1]).clamp_min(self.epsilon))
        return ((rows - mean) * scale * own["gain"][:, None]).view(weight.shape)


@component
class Gain(WeightMap):
    """``w_eff = factor w``: weights drawn for currents of about 1 drive models in other units.

    Args:
        factor: Current that a stored weight of 1 stands for.
    """

    scales: ClassVar[bool] = True
    factor: PositiveFloat = 1.0

    def __call__(self, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Return the scaled weight."""
        return self.factor * weight


@component
class Binarise(WeightMap):
    """``w_eff = scale / sqrt(fan_in) sign(w)``, times a trained gain of each output with ``rows``.

    What is stored is a hidden weight that learns in small steps; the current has its sign alone,
    that of 0 being +1. The gradient takes the sign for the identity (straight through), however
    large the hidden weight is.

    Source: Courbariaux et al. 2016; Laborieux et al. 2021, where the scale is 1 and a norm follows.

    Args:
        scale: Size of an effective weight, times the root of the fan-in.
        rows: Train a ``gain`` [n_out] as well, 1 at the start.
    """

    scale: PositiveFloat = 1.0
    rows: bool = False

    def parameters(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Return ``gain``, all 1, where rows have one."""
        return {"gain": torch.ones(len(weight))} if self.rows else {}

    def __call__(self, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Return the binary weight."""
        size = self.scale / math.sqrt(weight[0].numel())
        signs = torch.where(weight.detach() < 0, -1.0, 1.0).to(weight)
        made = size * (signs + (weight - weight.detach()))
        return made * own["gain"].view(-1, *[1] * (weight.dim() - 1)) if self.rows else made


@component
class Dale(WeightMap):
    """Each presynaptic neuron excites or inhibits: ``w_eff = |w| sign_j`` (Dale's law).

    The first ``round(excitatory n)`` inputs (or channels) excite, the others inhibit.

    Args:
        excitatory: Fraction of excitatory presynaptic neurons.
    """

    excitatory: Fraction = 0.8

    def signs(self, inputs: int, like: Tensor) -> Tensor:
        """Return +1 or -1 for each presynaptic neuron."""
        return torch.where(torch.arange(inputs) < round(self.excitatory * inputs), 1.0, -1.0).to(
            like
        )

    def __call__(self, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Return the signed weight."""
        n = weight.shape[1]
        return weight.abs() * self.signs(n, weight).view(1, n, *[1] * (weight.dim() - 2))


@component
class NoAutapses(WeightMap):
    """No neuron listens to itself: the diagonal is zero and stays so."""

    def __call__(self, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Return the weight with a zero diagonal."""
        return weight * (1 - torch.eye(len(weight), dtype=weight.dtype, device=weight.device))


@component
class SplitSigns(WeightMap):
    """Positive and negative weights apart: ``w_eff = [max(w, 0); max(-w, 0)]`` [2 n_out, n_in].

    What a conductance-based neuron needs: excitation and inhibition arrive separately.
    """

    def __call__(self, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Return both parts, one below the other."""
        return torch.cat([weight.relu(), (-weight).relu()])


@component
class SynapticDelays(WeightMap):
    """A delay of its own for each connection, in steps; fixed or learned.

    Works on a :class:`TimeWindow` of the input, k = 0 being now::

        w_eff[i, (k, j)] = w[i, j] phi(k - d[i, j]),   d clipped to 0 .. longest

    with ``phi(z) = max(0, 1 - |z| / width)``, scaled to sum to 1 over k. ``width = 1`` interpolates
    linearly between the two nearest steps, exact at whole delays; wider ones spread the gradient.

    Source: Hammouamri et al., ICLR 2024 (there with Gaussian ``phi``).

    Args:
        longest: Longest delay in steps.
        learned: Train the delays; otherwise they are rounded to whole steps.
        width: Half width of ``phi`` in steps; below 1 it could miss every step.
    """

    longest: Annotated[int, Field(ge=1)] = 8
    learned: bool = True
    width: Annotated[float, Field(ge=1)] = 1.0

    def parameters(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Return ``delay``, all 0 until drawn."""
        return {"delay": torch.zeros_like(weight)}

    def draw(self, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
        """Draw delays evenly from 0 to the longest."""
        drawn = torch.empty(parameter.shape).uniform_(0, self.longest, generator=generator)
        return drawn if self.learned else drawn.round()

    def __call__(self, weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """Return the weight at every delay, [n_out, (longest + 1) n_in]."""
        delay = own["delay"]
        inside = delay.detach().clamp(0, self.longest)
        if not self.learned:
            return (weight[:, None] * self._phi(inside.round())).flatten(1)
        # the gradient is that of a delay within the range, so one at its end can come back, and
        # between two steps: at a whole one phi has a kink, whose derivative would be 0
        between = inside + EDGE * (inside == inside.round())
        nudged = delay + (between.clamp(EDGE, self.longest - EDGE) - delay).detach()
        slope = self._phi(nudged)
        phi = self._phi(inside) + slope - slope.detach()
        return (weight[:, None] * phi).flatten(1)

    def _phi(self, delay: Tensor) -> Tensor:
        steps = torch.arange(self.longest + 1, dtype=delay.dtype, device=delay.device)
        phi = functional.relu(1 - (steps[:, None] - delay[:, None]).abs() / self.width)
        return phi / phi.sum(1, keepdim=True)


def check_maps(maps: tuple[WeightMap, ...]) -> None:
    """Refuse two maps of which the second would undo the first."""
    kinds = [type(m) for m in maps]
    if Binarise in kinds and (Standardise in kinds or Dale in kinds):
        other = "Standardise" if Standardise in kinds else "Dale"
        why = "has values of its own" if other == "Standardise" else "has the sign of its neuron"
        raise ConfigError(f"Binarise and {other}: a weight that {why} is no free sign; use one")
    if Binarise in kinds[1:]:
        raise ConfigError("Binarise takes the signs of what is stored; name it first")
    if Standardise in kinds and Dale in kinds:
        raise ConfigError(
            "Standardise and Dale: a standardised weight has both signs in every row; use one"
        )
    if SplitSigns in kinds[:-1]:
        raise ConfigError("SplitSigns changes the shape of the weight; name it last")
    if SynapticDelays in [kind for kind in kinds if kind is not SplitSigns][:-1]:
        raise ConfigError(
            "SynapticDelays changes the shape of the weight; name it last, or before SplitSigns"
        )
