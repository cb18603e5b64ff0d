"""Our networks become Brian2's."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from spikecl.errors import InteropError, UsageError
from spikecl.interop.parts import Currents, Flatten
from spikecl.interop.site import Site, number
from spikecl.kernels import AUTO
from spikecl.networks import (
    AvgPool2d,
    AxonalDelay,
    BatchNorm,
    Channels,
    Dropout,
    Gain,
    Layer,
    Linear,
    MaxPool2d,
    Network,
    NoAutapses,
    ShortTermPlasticity,
    TimeWindow,
)
from spikecl.networks.presynaptic import Pass
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    ConductanceLIF,
    Izhikevich,
    LeakyIntegrator,
    Reset,
    Smooth,
    SpikingNeuron,
    SynapticIntegrator,
)
from spikecl.neurons.neuron import Resetting

if TYPE_CHECKING:
    from spikecl_hardware.brian2.description import Description, Neurons, Projection, Stdp


@torch.no_grad()
def to_brian2(
    network: Network,
    x: Any = None,
    *,
    input_shape: Sequence[int] = (),
    step_ms: float | None = None,
    steps: str = "discrete",
    dt_ms: float | None = None,
    method: str | None = None,
    plasticity: Any = None,
    online: bool = False,
    record: Sequence[str] = ("spikes",),
) -> Any:
    """Return a ``brian2.Network`` that does what the network does in evaluation mode.

    A layer ``hidden1`` is the group ``net["hidden1"]``, its synapses are
    ``net["hidden1_synapses"]`` and ``net["hidden1_recurrent_synapses"]``, what its monitors saw
    ``net["hidden1_spikes"]`` and ``net["hidden1_states"]``; the input is ``net["input"]``.
    Convolutions and pooling become one synapse for each pair of neurons; batch normalisation is in
    weights and biases. Numbers are float64.

    Args:
        network: The network.
        x: Input [T, B, *features], the samples one after the other, each from rest. Zeros and ones
            become spikes of a ``SpikeGeneratorGroup``, others a ``TimedArray``. Without it
            the generator is silent; ``net["input"].set_spikes(...)`` fills it.
        input_shape: Features of the input, where there is no ``x`` and no dense layer to tell.
        step_ms: Milliseconds of a step; by default what the neurons say, or 1.
        steps: ``discrete`` has the steps of the network, spike for spike; ``continuous`` the
            differential equations that these come close to.
        dt_ms: Clock of ``continuous``; by default a step.
        method: Integrator of ``continuous``; by default the exact solution, where there is one.
        plasticity: A trainer ``stdp``: hidden synapses change as it would have them. What their
            weights become is ``weight_after``.
        online: Weights change at each spike instead.
        record: ``spikes``, and names of states, such as ``v``, or ``I_total`` for the current of a
            step of ``discrete``: what monitors record.

    Raises:
        InteropError: A layer has no equal, or Brian2 is not installed; the difference is named.

    Example:
        >>> from spikecl.networks import SpikingMlp
        >>> net = to_brian2(SpikingMlp(hidden=(3,)).build((4,), 2), steps="continuous")
        >>> net["hidden1"].N, net["input"].N
        (3, 4)
    """
    from spikecl_hardware.brian2.build import build
    from spikecl_hardware.brian2.description import Brian2Error, Stdp
    from spikecl_hardware.brian2.library import quiet
    from spikecl_hardware.brian2.options import Options

    if not isinstance(network, Network):
        raise UsageError(
            f"to_brian2 takes a Network of spikecl, not {type(network).__name__}; from_nir, "
            "from_snntorch and from_norse make one"
        )
    given = None if x is None else torch.as_tensor(x).double()
    if given is not None and (given.dim() < 3 or not given.numel()):
        raise UsageError(f"x has shape {tuple(given.shape)}; give [T, B, *features]")
    if given is not None and not given.isfinite().all():
        raise UsageError("x has values that are not finite; numbers are allowed")
    shape = _entering(network, given, tuple(input_shape))
    try:
        options = Options(steps, dt_ms, method)  # type: ignore[arg-type]
        rule = None if plasticity is None else Stdp.of(plasticity, online=online)
        about = described(network, shape, step_ms=step_ms, rule=rule)
        if rule is not None:
            rule.check_step(plasticity.dt, about.step_ms)
        rows = None if given is None else given.flatten(2).numpy()
        with quiet():
            made = build(about, rows, options=options, record=record)
            made.check(record)
            return made.network
    except Brian2Error as error:
        raise InteropError(str(error)) from None


def _entering(network: Network, x: Tensor | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the features of the input."""
    if x is not None:
        return tuple(x.shape[2:])
    first = cast(Layer, next(iter(network.layers.values())))
    windows = [s.longest + 1 for s in first.stages() if isinstance(s, TimeWindow)]
    if not shape and isinstance(first.synapse, Linear):
        return (first.synapse.inputs // math.prod(windows),)
    if not shape:
        raise UsageError("to_brian2: the features of the input are not known; give input_shape")
    return shape


# ---- layers -------------------------------------------------------------------------------------


def described(
    network: Network,
    shape: tuple[int, ...],
    *,
    step_ms: float | None = None,
    rule: Stdp | None = None,
) -> Description:
    """Return a network as populations and projections, in float64.

    Args:
        network: The network.
        shape: Features of the input.
        step_ms: Milliseconds of a step; by default what the neurons say, or 1.
        rule: Plasticity of hidden synapses.

    Raises:
        InteropError: A layer has no equal.
    """
    from spikecl_hardware.brian2.description import INPUT, Description, Neurons, Population

    net = copy.deepcopy(network).cpu().double().eval()
    layers = {name: cast(Layer, layer) for name, layer in net.layers.items()}
    shapes, populations, projections = {INPUT: shape}, [], []
    last, heard = list(layers)[-1], {s for layer in layers.values() for s in layer.inputs}
    found: dict[str, _Reach] = {}
    for name, layer in layers.items():
        site = Site(name, layer.neuron.neuron if layer.neuron else layer.synapse)
        learned = rule if name != last else None
        reach = found[name] = _reach(site, layer, net, shapes, found, learned)
        shapes[name] = reach.shape
        if layer.neuron is None and name != last and name not in heard:
            continue  # a shortcut: what listens to it has its synapses
        own = Neurons("current") if layer.neuron is None else neurons(site, layer, reach.shape)
        bias = reach.bias if np.any(reach.bias) else None
        populations.append(Population(name, reach.shape, own, bias))
        projections += reach.projections
    length = _step_ms(layers, step_ms)
    return Description(tuple(populations), tuple(projections), shape, length)


def _step_ms(layers: Mapping[str, Layer], given: float | None) -> float:
    if not isinstance(given, Real | None):
        raise UsageError(f"step_ms={given!r}; a number, of milliseconds, is allowed")
    own = {
        name: layer.neuron.neuron.dt
        for name, layer in layers.items()
        if layer.neuron is not None and hasattr(layer.neuron.neuron, "dt")
    }
    lengths = {float(torch.as_tensor(dt)) for dt in own.values()}
    if len(lengths | ({given} - {None})) > 1:
        raise InteropError(f"steps of {own} ms, step_ms={given}; use equal ones")
    return next(iter(lengths), 1.0 if given is None else given)


class _Reach(NamedTuple):
    """What leads into a layer: its features, a bias [n], synapses."""

    shape: tuple[int, ...]
    bias: Any
    projections: list[Projection]


def _reach(
    site: Site,
    layer: Layer,
    net: Network,
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, _Reach],
    rule: Stdp | None,
) -> _Reach:
    """Return what leads into a layer, from all sources."""
    from spikecl_hardware.brian2.description import Projection

    _check_parts(site, layer)
    sources = [shapes[source] for source in layer.inputs]
    same = all(s == sources[0] for s in sources)
    response = _Response(site, layer, net)
    projections: list[Projection] = []
    for source, own in zip(layer.inputs, sources, strict=True):
        path = site.name if len(layer.inputs) == 1 else f"{site.name}.{source}"
        given = own if same else (math.prod(own),)
        learns = rule if layer.synapse.weight.requires_grad else None
        projections += response.projections(path, source, given, learns)
    bias, features = response.silence(sources[0] if same else (math.prod(sources[0]),))
    if layer.currents and layer.synapse.pair:
        site.refuse(
            f"adds the current of {', '.join(layer.currents)} to conductances, excitatory and "
            "inhibitory ones",
            "use neurons that take a current",
        )
    for source in layer.currents:
        shortcut = found[source]
        if cast(Layer, net.layers[source]).neuron is None:
            bias = bias + shortcut.bias
            projections += [
                replace(p, name=f"{site.name}.{p.name}", target=site.name)
                for p in shortcut.projections
            ]
        else:
            every, ones = np.arange(len(bias)), np.ones(len(bias))
            path = f"{site.name}.{source}"
            projections.append(Projection(path, source, site.name, every, every, ones))
    if layer.recurrent is not None:
        path, back = f"{site.name}.recurrent", layer.recurrent
        learns = rule if back.weight.requires_grad else None
        made = _dense(Site(path, back), back, site.name, site.name, learns)
        projections.append(replace(made, name=path, recurrent=True))
        bias = bias if back.bias is None else bias + back.bias.numpy()
    return _Reach(features, bias, projections)


_PARTS = (Channels, AvgPool2d, Dropout, Flatten, AxonalDelay, TimeWindow, BatchNorm)
_REFUSED = {
    MaxPool2d: ("a maximum of spikes is no sum of synapses", "train with pool='average'"),
    ShortTermPlasticity: ("short-term plasticity is not written", "train without stp"),
}


def _check_parts(site: Site, layer: Layer) -> None:
    norms = layer.norm if isinstance(layer.norm, Currents) else [layer.norm]
    for part in (*layer.stages(), *norms):
        if part is None or isinstance(part, _PARTS):
            continue
        told = next((t for kind, t in _REFUSED.items() if isinstance(part, kind)), None)
        site.refuse(*told or (f"{type(part).__name__} is not known", "use a network without it"))
    for own in filter(None, (layer.synapse, layer.recurrent)):
        for name, values in own.named_parameters():
            if not values.isfinite().all():
                site.refuse(f"its {name} is not finite", "give it numbers")


class _Response:
    """The map from activity to current that a layer's stages, synapse and norm are."""

    def __init__(self, site: Site, layer: Layer, net: Network):
        self.site, self.layer = site, layer
        self.weights = net.weights()
        late = [s.longest + isinstance(s, AxonalDelay) for s in layer.stages() if s.memory]
        self.longest = sum(late)

    def __call__(self, x: Tensor) -> Tensor:
        """Return currents [T, B, ...] of activity [T, B, *features]."""
        run, name = Pass(self.weights, {}), self.site.name
        for key, stage in self.layer.before.items():
            x = stage(x, f"{name}.{key}", run)
        own = self.layer.synapse
        rows = own.rows(x.flatten(0, 1))
        if rows.shape[1] != own.inputs:
            self.site.refuse(
                f"takes {own.inputs} inputs (or channels), gets {tuple(x.shape[2:])}",
                "give the input its features",
            )
        parameters = dict(own.named_parameters())
        kept = own.keep(rows, AUTO, passing=True)
        made = own.product(rows, kept, own.effective(parameters), own.bias, AUTO)
        if self.layer.norm is not None:
            made = self.layer.norm(made, f"{name}.norm", run)
        return made.view(*x.shape[:2], *made.shape[1:])

    def silence(self, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
        """Return the current without input [n], and its features."""
        made = self(torch.zeros(1, 1, *shape).double())[0, 0]
        if self.layer.synapse.pair:
            return np.zeros(made[0].numel()), tuple(made.shape[1:])
        return made.flatten().numpy(), tuple(made.shape)

    def projections(
        self, path: str, source: str, shape: tuple[int, ...], rule: Stdp | None
    ) -> list[Projection]:
        """Return the synapses from a source with features."""
        from spikecl_hardware.brian2.description import Brian2Error, Projection
        from spikecl_hardware.brian2.unrolled import impulses

        if rule is not None:
            return [self._plastic(path, source, rule)]

        def respond(x: Any) -> Any:
            rows = torch.from_numpy(x)
            return self(rows.view(*rows.shape[:2], *shape)).flatten(2).numpy()

        try:
            pre, late, post, weight = impulses(respond, math.prod(shape), steps=self.longest + 1)
        except Brian2Error as error:
            what, _, remedy = str(error).partition("; ")
            self.site.refuse(f"has {what}", remedy)
        target, pair = self.site.name, self.layer.synapse.pair
        half, made = math.prod(self.silence(shape)[1]), []
        for k, channel in enumerate(("I_exc", "I_inh") if pair else ("I",)):
            own = post // half == k
            delay = late[own] if late.any() else None
            name = f"{path}.{channel[2:]}" if pair else path
            ends = pre[own], post[own] - k * half, weight[own]
            made.append(Projection(name, source, target, *ends, delay=delay, channel=channel))
        return made

    def _plastic(self, path: str, source: str, rule: Stdp) -> Projection:
        """Return synapses that change: weights as they are stored, whichever they are."""
        own, plain = self.layer.synapse, (Channels, Flatten, Dropout, AxonalDelay)
        if not isinstance(own, Linear) or self.layer.norm is not None:
            self.site.refuse("shares weights, or norms its current", "use a dense layer, no norm")
        if not all(isinstance(stage, plain) for stage in self.layer.stages()):
            self.site.refuse("pools, or has delays of connections", "leave out plasticity")
        made = replace(_dense(self.site, own, source, self.site.name, rule), name=path)
        delays = [s for s in self.layer.stages() if isinstance(s, AxonalDelay)]
        if not delays:
            return made
        stored = torch.stack([s.delay.clamp(0, s.longest) for s in delays]).sum(0)
        if any(s.learned for s in delays) and bool((stored != stored.round()).any()):
            self.site.refuse("delays between two steps split a spike", "round the delays")
        return replace(made, delay=stored.round().long().numpy()[made.pre])


def _dense(site: Site, own: Linear, source: str, target: str, rule: Stdp | None) -> Projection:
    """Return the synapses of a dense layer; of one that changes all of them, as stored."""
    from spikecl_hardware.brian2.description import Projection

    if rule is None:
        matrix = own.effective(dict(own.named_parameters())).numpy()
        return Projection.dense(site.name, source, target, matrix)
    if not all(type(each) in (Gain, NoAutapses) for each in own.maps):
        site.refuse(f"changes its weights through {own.maps}", "leave out plasticity")
    gain = math.prod(each.factor for each in own.maps if isinstance(each, Gain))
    there = np.ones(own.weight.shape, dtype=bool)
    if NoAutapses() in own.maps:
        np.fill_diagonal(there, False)
    post, pre = np.nonzero(there)
    weight = own.weight.numpy()[post, pre]
    return Projection(site.name, source, target, pre, post, weight, gain=gain, plasticity=rule)


# ---- neurons ------------------------------------------------------------------------------------


def neurons(site: Site, layer: Layer, shape: tuple[int, ...]) -> Neurons:
    """Return the neurons of a layer with features."""
    from spikecl_hardware.brian2.description import Neurons

    assert layer.neuron is not None
    n = layer.neuron.bound()
    values = _values(site, n)

    def each(value: Any) -> Any:
        own = number(value)
        if isinstance(own, float):
            return own
        wide = own.reshape(own.shape[-len(shape) :]).expand(shape)
        return wide.double().flatten().numpy()

    numbers = {name: each(value) for name, value in values.items()}
    return Neurons(_MODELS[type(n)], numbers, **_switches(site, n))  # type: ignore[arg-type]


_MODELS = {
    LIF: "lif",
    IF: "lif",
    PLIF: "lif",
    CUBA: "cuba",
    ALIF: "alif",
    ConductanceLIF: "conductance",
    AdEx: "adex",
    Izhikevich: "izhikevich",
    LeakyIntegrator: "li",
    SynapticIntegrator: "cuba_li",
}
_NAMES: dict[type[Any], tuple[str, ...]] = {
    ConductanceLIF: ("tau_mem", "tau_exc", "tau_inh", "v_rest", "e_exc", "e_inh", "v_th"),
    AdEx: ("capacitance", "g_leak", "e_leak", "v_t", "delta_t", "v_peak", "v_reset", "tau_w")
    + ("a", "b"),
    Izhikevich: ("a", "b", "c", "d", "v_peak"),
}


def _values(site: Site, n: Any) -> dict[str, Any]:
    """Return the parameters of a model, as Brian2's equations name them."""
    if type(n) not in _MODELS:
        known = ", ".join(kind.__name__ for kind in _MODELS)
        site.refuse("has no equations there: its output is no spikes in time", f"use {known}")
    if isinstance(n, LeakyIntegrator):
        return {"beta": n.kappa, "gain": 1 - n.kappa if n.scale_input else 1.0, "v_rest": 0.0}
    if isinstance(n, SynapticIntegrator):
        found = {"alpha": n.alpha, "current_gain": 1.0, "beta": n.kappa, "gain": 1 - n.kappa}
        return {**found, "v_rest": n.v_rest}
    if type(n) in _NAMES:
        found = {name: getattr(n, name) for name in _NAMES[type(n)]} | {"h": n.dt}
        return found | ({"v_reset": n.reset_value} if isinstance(n, ConductanceLIF) else {})
    found = {"beta": n.beta, "gain": n.input_scale, "v_rest": n.v_rest, "v_th": n.v_th}
    found["v_reset"] = n.reset_value
    if isinstance(n, CUBA):
        found |= {"alpha": n.alpha, "current_gain": 1.0}
    if isinstance(n, ALIF):
        jump = 1 - n.rho if n.normalise else 1.0
        found |= {"rho": n.rho, "adaptation": n.adaptation, "jump": jump}
    return found


def _switches(site: Site, n: Any) -> dict[str, Any]:
    """Return the switches of a model that fires."""
    from spikecl_hardware.brian2.description import Escape

    if not isinstance(n, SpikingNeuron):
        return {}
    if isinstance(n.surrogate, Smooth):
        site.refuse("Smooth is no spike", "use the surrogate itself")
    names = ("strict", "refractory", "integrate_refractory", "noise")
    found: dict[str, Any] = {name: getattr(n, name) for name in names}
    if n.escape is not None:
        scale = number(getattr(n, "v_scale", 1.0))
        if not isinstance(scale, float):
            site.refuse("escape firing with a v_scale for each neuron", "use one v_scale")
        e = n.escape
        found["escape"] = Escape(e.form, e.width, e.rate, scale)
    if isinstance(n, Izhikevich):
        found["substeps"] = n.substeps
    if isinstance(n, Resetting):
        kind = {Reset.SOFT: "soft", Reset.NONE: "none"}.get(n.reset, "value")
        found |= {"reset": kind, "reset_time": n.reset_time}
    return found
