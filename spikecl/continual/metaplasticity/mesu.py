"""MESU: a Gaussian for each synapse, whose width is its plasticity."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spikecl.components import PositiveFloat, PositiveInt, component
from spikecl.continual.metaplasticity.sampled import Sampled, Voting
from spikecl.continual.method import Context, Method, MethodSpec, Phase, Tensors, some
from spikecl.storage import State, nbytes

NotNegative = Annotated[float, Field(ge=0)]


@component
class Mesu(MethodSpec):
    """Metaplasticity by uncertainty: mean mu and width sigma of each weight and bias.

    The parameter that is stored is mu; a pass uses ``w = mu + sigma e`` with e drawn from N(0, 1).
    With C the loss of a batch, averaged over draws, ``dC/dmu = <dC/dw>`` and
    ``dC/dsigma = <e dC/dw>``. In order::

        dmu = -sigma^2 dC/dmu + sigma^2 (mean - mu) / (N prior^2)
        dsigma = -sigma^2 / 2 dC/dsigma + sigma (prior^2 - sigma^2) / (2 N prior^2)

    This is the step, in place of the optimiser's, of which the schedule alone is used. What is
    certain (sigma small) hardly moves; N batches ago is forgotten. No boundary is needed.

    Args:
        window: Memory N in batches.
        prior: Width of the prior.
        mean: Mean of the prior.
        width: Initial sigma, times the root of the fan-in.
        samples: Draws of the weights in each step, one pass each.
        tests: Draws of the weights in tests, whose logits are averaged; 0 tests mu.
        evidence: Whether C is the ``sum`` over a batch, each sample being evidence of its own, or
            its ``mean``.
        clip: Bound of each gradient times its sigma; 0 is none.
        least: Smallest sigma.

    Source: Bonnet et al., arXiv:2504.13569, and their code: batches of 1, N 300,000, prior 1,
    initial sigma 2, 10 draws in training and in tests.
    Deviation: a step at most halves or doubles sigma, which could cross 0 otherwise. Norms,
    neurons and gains learn by the optimiser.
    """

    phase: ClassVar[Phase] = Phase.EXTRA_GRADIENT  # its step is there before gates act on it
    slot: ClassVar[str | None] = "step"
    window: PositiveFloat = 10_000.0
    prior: PositiveFloat = 0.2
    mean: float = 0.0
    width: PositiveFloat = 1.0
    samples: PositiveInt = 1
    tests: Annotated[int, Field(ge=0)] = 0
    evidence: Literal["sum", "mean"] = "sum"
    clip: NotNegative = 0.0
    least: PositiveFloat = 1e-5

    def start(self, context: Context) -> Method:
        """Return the running method."""
        if not self.tests:
            return _Mesu(self, context)
        voting = _Votes(self, context)
        voting.votes = self.tests
        return voting


class _Mesu(Sampled):
    remembers = True

    def __init__(self, spec: Mesu, context: Context):
        synapses = context.network.synapses
        names = [
            f"{path}.{key}"
            for path, synapse in synapses.items()
            for key in ("weight", "bias")
            if getattr(synapse, key) is not None and getattr(synapse, key).requires_grad
        ]
        super().__init__("mesu", context, some(names, "mesu"), spec.samples)
        self._spec = spec
        sizes = {path: each.weight[0].numel() for path, each in synapses.items()}
        self.sigma = {
            name: torch.full_like(value, spec.width / math.sqrt(sizes[name.rpartition(".")[0]]))
            for name, value in self.stored.items()
        }

    def draw(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        noise, drawn = dict[str, Tensor](), dict[str, Tensor]()
        for name, mu in self.stored.items():
            noise[name] = torch.randn(mu.shape, generator=generator, dtype=mu.dtype).to(mu.device)
            drawn[name] = mu + self.sigma[name] * noise[name]
        return drawn, noise

    def said(self, noise: Tensors, gradients: Tensors) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        scale = self.size if self._spec.evidence == "sum" else 1
        for name in self.names:
            slope = scale * gradients[name] if name in gradients else 0 * noise[name]
            if self._spec.clip:
                bound = self._spec.clip / self.sigma[name]
                slope = slope.clamp(-bound, bound)
            found[f"mu:{name}"], found[f"sigma:{name}"] = slope, noise[name] * slope
        return found

    def changed(self, name: str, update: Tensor, old: Tensor) -> Tensor:
        host, sigma = self._context.host, self.sigma[name]
        slopes = self._said[f"mu:{name}"], self._said[f"sigma:{name}"]
        dmu, dsigma = step(old, sigma, slopes, self._spec, host.portion())
        moved = torch.clamp(sigma + host.share() * dsigma, sigma / 2, 2 * sigma)
        self.sigma[name] = moved.clamp_min(self._spec.least)
        return host.share() * dmu

    def report(self) -> dict[str, object]:
        """Return histograms of mu and sigma, and the mean of sigma."""
        said: dict[str, Any] = self.described("sigma", self.sigma)
        for name, sigma in self.sigma.items():
            said[name]["mean_sigma"] = float(sigma.mean())
        return said

    def state_dict(self) -> State:
        return {**super().state_dict(), "sigma": self.sigma}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.sigma = {name: state["sigma"][name] for name in self.names}

    def nbytes(self) -> int:
        return nbytes(*self.sigma.values())


class _Votes(_Mesu, Voting):
    pass


def step(
    mu: Tensor, sigma: Tensor, slopes: tuple[Tensor, Tensor], rule: Mesu, portion: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the changes of mu and sigma.

    Args:
        mu: Means.
        sigma: Widths.
        slopes: dC/dmu and dC/dsigma.
        rule: The window and the prior.
        portion: Of a batch that the slopes are of.
    """
    variance, prior = sigma.square(), rule.prior**2
    pull = portion / (rule.window * prior)
    dmu = variance * (pull * (rule.mean - mu) - slopes[0])
    return dmu, (sigma * pull * (prior - variance) - variance * slopes[1]) / 2
