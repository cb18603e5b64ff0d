"""Neuromodulation-assisted credit assignment: local errors from the expected class alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spikecl.components import PositiveFloat, component
from spikecl.encoding import Loss, PopulationDecoder
from spikecl.errors import PairingError, UsageError
from spikecl.networks import AnyFactor, Layer, Network, Output, Tap, Taps
from spikecl.neurons import IF, LIF, PLIF, Reset
from spikecl.seeds import Seeds
from spikecl.trainers.credit import activity_of
from spikecl.trainers.feedback import fired_sizes
from spikecl.trainers.needs import layers_of, need_no_batch_norm
from spikecl.trainers.trainer import Call, Factors, Trainer, Traits, loss_of

PREFIX = "neuromodulator."
STEEP = 1000.0  # slope of the gate


@component
class Naca(Trainer):
    """Levels of a neuromodulator decide the sign and size of a local spike-timing rule.

    The class that is expected, a code ``E`` with two entries of 1/2 among ``2C``, reaches each
    hidden neuron through fixed random weights ``N`` in [0, 1]. In order of execution, for the
    membrane ``u`` before its reset and a batch of B samples::

        n    = E N                                   level, 0 to 1
        d[t] = 1[u[t] > near] - s[t-1]               fires (nearly) now, did not before
        near = v_th - window (v_th - v_rest)
        e[T] = phi(n) d[T] gate / B
        e[t] = k[t] e[t+1]                           k = beta, times 1 - s[t] of a hard reset
        g_W  = c sum_t e[t]^T x[t]                   c is the scale of the input

    so that the gradient meets a trace of presynaptic spikes that the membrane's decay makes. With
    ``l = lambda_inv`` and ``h = theta_max``, ``phi`` is 1 without neuromodulator, ``h`` at most, 0
    at ``l``, and of opposite sign above::

        phi(n) = h - (h - 1) (4n - l)^2 / l^2            n <= l/2
               = 4 (n - l)^2 / l^2                       n <= l
               = -phi(max(2l - n, 0))                    n > l

    The readout follows its own error, the gradient of the loss at its current. Nothing goes
    backwards through a weight. Neurons learn where the mean input, stretched to the layer's size,
    is large: ``gate = sigmoid(1000 (mean - (max mean - gate)))``.

    Source: Zhang et al., Science Advances 9 (2023), and its public code (class-incremental part).
    Deviation: the gate acts on the change, not on the spikes themselves, which are the network's;
    errors pass the decay of the membrane but not the spike that resets it; currents are not
    squashed; the readout is linear, and its error is that of the run's loss (with ``count_mse``,
    rate minus target); errors are means over the batch. Parameters that no synapse
    holds have no rule and stay.

    Args:
        lambda_inv: Level at which the modulation changes its sign.
        theta_max: Largest modulation.
        distribution: Of the fixed weights: ``uniform``, ``normal`` (0.5 and 1, cut to the range),
            or ``beta`` (1/2, 1/2).
        window: How far below the threshold still counts as firing, as a share of the way from
            rest to it.
        gate: How far below the largest mean input neurons still learn; 0 has no gate.
    """

    has_gradient: ClassVar[bool] = False
    traits: ClassVar[Traits] = Traits(
        time="yes: traces of the membrane's decay",
        space="yes, and the expected class",
        memory="T B N without a graph, or traces B N",
        exact="no gradient",
        network="feed-forward lif, if or plif; linear readout; no batch norm",
        source="Zhang et al. 2023",
    )

    lambda_inv: Annotated[float, Field(gt=0, le=1)] = 0.5
    theta_max: Annotated[float, Field(ge=1)] = 1.2
    distribution: Literal["uniform", "normal", "beta"] = "uniform"
    window: PositiveFloat = 0.4
    gate: Annotated[float, Field(ge=0)] = 0.2

    def check(self, network: Network, x: Tensor, loss: Loss) -> None:
        """Refuse layers that have no local rule, and more classes than have codes."""
        need_no_batch_norm(self.name, network, "modulates currents as they are")
        layers = layers_of(network)
        last = next(reversed(layers))
        for name, layer in layers.items():
            if reason := _against(layer, last=name == last):
                raise PairingError(f"trainer '{self.name}' cannot take layer '{name}': {reason}")
        try:
            expectation(torch.arange(classes_of(network)), classes_of(network))
        except UsageError as error:
            raise PairingError(f"trainer '{self.name}': {error}") from None

    def variables(self, network: Network, seeds: Seeds, x: Tensor) -> dict[str, Tensor]:
        """Return the fixed weights [2C, n] from the code of a class to a layer."""
        rows, found = 2 * classes_of(network), {}
        for position, (name, size) in enumerate(fired_sizes(network, x)[0].items()):
            generator = seeds.generator("neuromodulator", event=position)
            drawn = self._draw((rows, size), generator)
            found[PREFIX + name] = drawn.to(network.synapses[name].weight.detach())
        return found

    def _draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        if self.distribution == "normal":
            return (0.5 + torch.randn(shape, generator=generator)).clamp_(0, 1)
        drawn = torch.rand(shape, generator=generator)
        if self.distribution == "uniform":
            return drawn
        return (drawn * (math.pi / 2)).sin_().square_()  # the beta of 1/2 and 1/2 by its inverse

    def modulation(self, level: Tensor) -> Tensor:
        """Return ``phi`` of levels."""
        inverse, most = self.lambda_inv, self.theta_max
        low = torch.minimum(level, 2 * inverse - level).clamp_min(0)  # phi is odd about lambda_inv
        weak = most - (most - 1) * (4 * low - inverse).square() / inverse**2
        strong = 4 * (low - inverse).square() / inverse**2
        phi = torch.where(low <= inverse / 2, weak, strong)
        return torch.where(level <= inverse, phi, -phi)

    def parts(self, call: Call) -> Iterator[Factors]:
        """Yield factors whose rows are the spikes that each synapse transmitted."""
        yield self._factors(call)

    @torch.no_grad()
    def _factors(self, call: Call) -> Factors:
        if call.labels is None:
            raise UsageError(f"trainer '{self.name}' expects classes; pass labels")
        network, x, taps = call.network, call.all_steps, Taps()
        output = network(
            x,
            call.state,
            taps=taps,
            weights=call.weights,
            training=call.training,
            generator=call.generator,
        )
        last = list(network.layers)[-1]
        loss, error = _readout(call, output)
        synapses: dict[str, AnyFactor] = {}
        code = expectation(call.labels, classes_of(network)).to(x.dtype)
        for name, layer in layers_of(network).items():
            if name == last:
                continue
            levels = code @ call.variables[PREFIX + name]
            signal = self.modulation(levels) * self._gate(x, levels.shape[1]) / len(levels)
            delta = self._local(call, name, layer, taps, signal)
            synapses[name] = _factor(network, name, taps[name], delta)
        synapses[last] = _factor(network, last, taps[last], error)
        return Factors(
            loss, output.logits, synapses, state=output.state, activity=activity_of(taps)
        )

    def _gate(self, x: Tensor, size: int) -> Tensor:
        """Return how much each neuron of a layer may learn [size]."""
        if not self.gate:
            return x.new_ones(size)
        mean = functional.interpolate(x.mean((0, 1)).view(1, 1, -1), size=size)[0, 0]
        return torch.sigmoid(STEEP * (mean - mean.max() + self.gate))

    def _local(self, call: Call, name: str, layer: Layer, taps: Taps, signal: Tensor) -> Tensor:
        """Return the errors [T, B, *features] of a layer's current."""
        assert layer.neuron is not None
        raw = {key: call.parameters[f"{name}.neuron.{key}"] for key in layer.neuron.ranges}
        neuron = layer.neuron.bound(raw)
        assert isinstance(neuron, LIF)
        currents, spikes = taps.driven[name], taps.fired[name]
        state = None if call.state is None else call.state.get(name)
        state = neuron.rest(currents[0]) if state is None else state
        before = torch.zeros_like(spikes[0])
        for current, fired in zip(currents, spikes):
            state = neuron.integrate(current, state)
            near = neuron.distance(state) > -self.window * (neuron.v_th - neuron.v_rest)
            paired = near.to(spikes.dtype) - before
            state, before = neuron.settle(state, fired), fired
        error = signal.view(spikes.shape[1:]) * paired
        errors = [error]
        hard = neuron.reset in (Reset.ZERO, Reset.VALUE)
        for fired in reversed(spikes[:-1]):
            error = neuron.beta * error * (1 - fired) if hard else neuron.beta * error
            errors.append(error)
        return neuron.input_scale * torch.stack(errors[::-1])


def expectation(labels: Tensor, classes: int) -> Tensor:
    """Return the codes [B, 2C] of classes: 1/2 at a place, 1/2 at the next.

    The places follow the quantiles of a normal density: ``2 (C - 1) sqrt(log(C/i) / log C)``, cut
    to whole numbers, for the i-th of C classes.

    Raises:
        UsageError: A single class, or so many that two share a place (from about 200 on).

    Example:
        >>> expectation(torch.tensor([0, 2]), 3).tolist()
        [[0.0, 0.0, 0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]
    """
    ranks = range(1, classes + 1)
    places = [
        int(2 * (classes - 1) * math.sqrt(math.log(classes / i) / math.log(max(classes, 2))))
        for i in ranks
    ]
    if classes < 2 or len(set(places)) < classes:
        raise UsageError(
            f"{classes} classes have no codes of their own; from 2 to about 200 classes have"
        )
    first = torch.tensor(places, device=labels.device)[labels]
    pair = functional.one_hot(first, 2 * classes) + functional.one_hot(first + 1, 2 * classes)
    return pair.to(torch.get_default_dtype()) / 2


def classes_of(network: Network) -> int:
    """Return the number of classes C."""
    decoder = network.decoder
    units = decoder.units if isinstance(decoder, PopulationDecoder) else 1
    return len(network.synapses[list(network.layers)[-1]].weight) // units


def _against(layer: Layer, *, last: bool) -> str | None:
    """Return why a layer has no local rule."""
    if last:
        return None if layer.neuron is None else "the readout is linear; use no output neurons"
    neuron = None if layer.neuron is None else layer.neuron.neuron
    if layer.recurrent is not None or layer.currents or neuron is None:
        return "the rule is for layers in a row; use a network without recurrence and shortcuts"
    simple = isinstance(neuron, LIF) and neuron.plain and neuron.reset_time == "same"
    if not simple or type(neuron) not in (LIF, IF, PLIF):
        return (
            "the rule is for plain LIF neurons; use model 'lif', 'if' or 'plif' with "
            "reset_time='same', without noise, escape or a refractory period"
        )
    return None


def _readout(call: Call, output: Output) -> tuple[Tensor, Tensor]:
    """Return the loss, and its gradient at the readout's current [T or 1, B, K]."""
    with torch.enable_grad():
        steps = output.steps.detach().requires_grad_()
        logits = call.network.decode(steps)
        loss = loss_of(Output(logits, {}, steps, {}), call.output_loss)
        (error,) = torch.autograd.grad(loss, [steps])
    return loss.detach(), error


def _factor(network: Network, path: str, tap: Tap, delta: Tensor) -> AnyFactor:
    """Return the factor of errors [T, B, ...]; of an input that is constant, of their sum."""
    same = delta.shape[0] * delta.shape[1] == tap.shape[0]
    rows = delta.flatten(0, 1) if same else delta.sum(0)
    return network.synapses[path].factor(tap.kept, rows.view(tap.shape))
