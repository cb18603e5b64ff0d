"""Sleep replay consolidation: noise and Hebbian plasticity after a task (Tadros et al. 2022)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, Strict
from torch import Tensor, nn

from spikecl.components import Fraction, PositiveFloat, PositiveInt, component
from spikecl.continual.homeostasis.layers import distribution, moved
from spikecl.continual.host import transmitted
from spikecl.continual.method import Context, Factors, Method, MethodSpec, Phase, Tensors, some
from spikecl.errors import ConfigError, PairingError
from spikecl.networks import Linear, NoAutapses
from spikecl.storage import State, nbytes
from spikecl.streams import Batch, LearnerView, Reveal
from spikecl.trainers.needs import layers_of

SOFTNESS = 0.001  # of the sign of a weight
Thresholds = (
    PositiveFloat
    | Annotated[
        tuple[Annotated[float, Strict(), Field(gt=0)], ...], Field(min_length=1), Strict(False)
    ]
)


@component
class Sleep(MethodSpec):
    """At the end of an experience let the dense layers run on noise and learn from it.

    The input fires at random, unit i of it with probability ``min(max_rate m_i, 1)`` in a step,
    ``m`` being what it was in the mean over all experiences so far, largest 1. With ``s`` the
    spikes and v the potentials, in order of execution, layer by layer in each step::

        v  <- decay v + gain W s_below / c        c: largest current of the layer when awake
        s  <- 1[v >= threshold];  v <- (1 - s) v
        w_ij <- w_ij + increase g(w_ij)  where s_i = 1 and s_below_j = 1
        w_ij <- w_ij - decrease g(w_ij)  where s_i = 1 and s_below_j = 0

    and ``g(w) = 2 / (1 + exp(w / 0.001))``: nearly 2 for a negative weight, nearly 0 for a positive
    one. Layers before the last convolution, recurrent and frozen weights sleep without a change.

    Where boundaries are hidden it sleeps once, at the end of the stream; m and c are then those of
    all training batches, as they came, and ``samples`` is not used.

    It comes before what importances and projections learn of the experience, and is not held back
    by one: ``moved`` in the report is how far it has taken the weights, relative to their size.

    Source: Tadros, Krishnan, Ramyaa & Bazhenov, Nature Communications 13 (2022); numbers of the
    authors' code for MNIST, where ``gain=55.88``, ``threshold=[14.5, 44.6, 38.0]``, 15,000 steps
    for the first task and a third more for each later one. They were searched for, for one data
    set, and hold for no other. Deviation: no part of the input is masked, its mean is that of all
    samples and not of each class, and currents are scaled by their maximum when awake.

    Args:
        steps: Steps of sleep after the first experience; with 0 the method does nothing at all.
        more: So many more after each later one, as a part of ``steps``.
        max_rate: Spikes per step of the most active input.
        decay: Of a potential in a step.
        gain: Of currents, relative to the largest.
        threshold: One for each dense layer, or one for all.
        increase: Of weights from neurons that fired.
        decrease: Of weights from neurons that did not.
        samples: Samples of an experience that means and maxima are taken of.
    """

    phase: ClassVar[Phase] = Phase.FIRST  # what others measure at the end is behind it

    steps: Annotated[int, Field(ge=0)] = 100
    more: Fraction = 1 / 3
    max_rate: Fraction = 0.2395
    decay: Fraction = 0.999
    gain: PositiveFloat = 55.88
    threshold: Thresholds = 40.0
    increase: Annotated[float, Field(ge=0)] = 0.032064
    decrease: Annotated[float, Field(ge=0)] = 0.003344
    samples: PositiveInt = 1000

    def start(self, context: Context) -> Method:
        """Return the running method."""
        chain = _chain(context)
        given = self.threshold if isinstance(self.threshold, tuple) else None
        if given and len(given) != len(chain):
            raise ConfigError(
                f"method.sleep.threshold: got {len(given)} values for {len(chain)} dense layers "
                f"({', '.join(chain)}); give one for each or one number"
            )
        if not self.steps:
            return Method()
        some([name for name, weight in chain.items() if weight.requires_grad], "sleep")
        told = Reveal.BOUNDARY in context.reveal
        return (_Sleep if told else _Unaware)(self, context, chain)


def _chain(context: Context) -> dict[str, nn.Parameter]:
    """Return the weights of the dense layers at the end that follow one another, in order."""
    found: dict[str, nn.Parameter] = {}
    wanted: str | None = None
    for name, layer in reversed(list(layers_of(context.network).items())):
        linear = isinstance(layer.synapse, Linear) and not layer.currents
        if (wanted not in (None, name)) or not linear or len(layer.inputs) > 1:
            break
        for each in layer.synapse.maps:
            if not (each.scales or isinstance(each, NoAutapses)):
                raise PairingError(
                    f"method 'sleep' changes weights one by one, and those of '{name}' pass "
                    f"through {type(each).__name__}; use a network without"
                )
        found[name] = layer.synapse.weight
        wanted = layer.inputs[0]
    return dict(reversed(found.items()))


class _Sleep(Method):
    gathers = "the mean input that it dreams of"
    writes = remembers = True

    def __init__(self, spec: Sleep, context: Context, chain: dict[str, nn.Parameter]):
        self._spec, self._context, self._chain = spec, context, chain
        self._mean = torch.zeros(0, device=context.device)  # of the input, over experiences
        self._experience = 0
        self._report: dict[str, object] = {}

    def _awake(self, view: LearnerView) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the input, and the largest current of each layer."""
        first = next(iter(self._chain))
        rows: list[Tensor] = []
        tops: dict[str, Tensor] = {}
        for seen in self._context.host.look(view.samples, self._spec.samples):
            sent = transmitted(self._context.network, seen)
            rows.append(sent[first].mean(0) * len(seen.batch.x))
            for name, weight in self._chain.items():
                top = (sent[name] @ weight.T).max()
                tops[name] = torch.maximum(tops.get(name, top), top)
        return torch.stack(rows).sum(0), tops

    @torch.no_grad()
    def end(self, view: LearnerView) -> None:
        total, tops = self._awake(view)
        mean, n = total / total.max().clamp_min(1e-12), self._experience
        self._mean = mean if n == 0 else (n * self._mean + mean) / (n + 1)
        before = {name: weight.detach().clone() for name, weight in self._chain.items()}
        fired = self._sleep({name: float(top) if top > 0 else 1.0 for name, top in tops.items()})
        self._experience += 1
        self._report = {
            name: {
                "rate": distribution(fired[name]),
                "moved": moved(before[name], weight.detach()),
            }
            for name, weight in self._chain.items()
        }

    def _sleep(self, tops: dict[str, float]) -> dict[str, Tensor]:
        """Run on noise; return the rate of each neuron by layer."""
        spec = self._spec
        steps = round(spec.steps * (1 + spec.more * self._experience))
        generator = self._context.seeds.generator("sleep", event=self._experience)
        given = spec.threshold
        thresholds = given if isinstance(given, tuple) else (given,) * len(self._chain)
        mean = self._mean / self._mean.max().clamp_min(1e-12)
        chance = (spec.max_rate * mean).clamp(0, 1)
        v = {name: weight.new_zeros(len(weight)) for name, weight in self._chain.items()}
        fired = {name: torch.zeros_like(each) for name, each in v.items()}
        for _ in range(steps):
            drawn = torch.rand(len(chance), generator=generator).to(chance)
            s = (drawn < chance).to(chance)
            for (name, weight), threshold in zip(self._chain.items(), thresholds):
                v[name] = spec.decay * v[name] + spec.gain / tops[name] * (weight @ s)
                spikes = v[name] >= threshold
                v[name] = v[name].masked_fill(spikes, 0)
                who = spikes.nonzero()[:, 0]
                if len(who) and weight.requires_grad:
                    w = weight[who]
                    change = torch.where(s > 0, spec.increase, -spec.decrease)
                    weight[who] = w + change.to(w) * 2 * torch.sigmoid(-w / SOFTNESS)
                s = spikes.to(chance)
                fired[name] += s / steps
        return fired

    def report(self) -> dict[str, object]:
        return self._report

    def state_dict(self) -> State:
        return {"mean": self._mean, "experience": self._experience, "report": self._report}

    def load_state_dict(self, state: State) -> None:
        self._mean, self._experience = state["mean"], state["experience"]
        self._report = state["report"]

    def nbytes(self) -> int:
        return nbytes(self._mean)


class _Unaware(_Sleep):
    """Gathers input and currents as they come: the last view alone is not what it was awake for."""

    gathers = ""

    def __init__(self, spec: Sleep, context: Context, chain: dict[str, nn.Parameter]):
        super().__init__(spec, context, chain)
        self._total: Tensor = torch.zeros((), dtype=torch.float64, device=context.device)
        self._share = 1.0  # of a step that the present factors are of
        self._tops: dict[str, Tensor] = {}

    def fired(self, rates: Tensors, share: float) -> None:
        self._share = share

    @torch.no_grad()
    def factors(self, factors: Factors, batch: Batch) -> Factors:
        for name, weight in self._chain.items():
            sent = factors[name].transmitted.to(weight)
            top = (sent @ weight.T).max()
            self._tops[name] = torch.maximum(self._tops.get(name, top), top)
            if name == next(iter(self._chain)):
                self._total = self._total + self._share * len(batch.x) * sent.mean(0).double()
        return factors

    def _awake(self, view: LearnerView) -> tuple[Tensor, dict[str, Tensor]]:
        return self._total.to(next(iter(self._chain.values()))), self._tops

    def state_dict(self) -> State:
        return {**super().state_dict(), "total": self._total, "tops": dict(self._tops)}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._total, self._tops = state["total"], dict(state["tops"])

    def nbytes(self) -> int:
        return super().nbytes() + nbytes(self._total)
