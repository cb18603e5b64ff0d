"""Our networks become Norse's."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from spikecl.errors import InteropError
from spikecl.interop.site import Site, library, number
from spikecl.interop.surrogates import agrees
from spikecl.interop.torch_in import copied
from spikecl.interop.torch_out import effective, learned, modules
from spikecl.networks import Layer, Linear, Network, NoAutapses
from spikecl.neurons import (
    CUBA,
    IF,
    LIF,
    PLIF,
    FastSigmoid,
    LeakyIntegrator,
    Rectified,
    Reset,
    Smooth,
    Surrogate,
    SynapticIntegrator,
    Triangle,
)
from spikecl.neurons.values import Value


def to_norse(network: Network, *, dt: float = 1e-3, spikes_only: bool = False) -> nn.Sequential:
    """Return Norse's ``SequentialState`` of cells with the network's spikes and gradients.

    Call it once per step with the state it returned: ``out, state = net(x, state)``. It is in
    evaluation mode: dropout and batch normalisation train otherwise there.

    Args:
        network: A chain of layers. Weights are copied; images are channel-first there.
        dt: Length of a step in seconds: what decays are turned into time constants with.
        spikes_only: Write neurons whose spikes are the same but whose gradients are not, too, and
            the weights that maps make in place of those that learn.

    Raises:
        InteropError: A layer has no equal; it is named with the difference and what to do.
    """
    if not 0 < dt < math.inf:
        raise InteropError(f"to_norse: got dt={dt}; give the seconds of a step, above 0")
    sequential = library("norse.torch").SequentialState

    def write(site: Site, layer: Layer, drive: list[nn.Module]) -> list[nn.Module]:
        return _write(site, layer, drive, dt)

    with torch.random.fork_rng(devices=()):  # constructors draw weights that are not used
        made = [module for _, module in modules(network, write, spikes_only=spikes_only)]
    net = sequential(*made).eval().to(next(network.parameters()).device)
    return cast(nn.Sequential, net)


def _write(site: Site, layer: Layer, drive: list[nn.Module], dt: float) -> list[nn.Module]:
    if layer.neuron is None:
        return drive
    made = _neurons(site, layer, drive, dt)
    learned(site, layer, ())  # after what spikes_only would not help
    return made


def _neurons(site: Site, layer: Layer, drive: list[nn.Module], dt: float) -> list[nn.Module]:
    import norse.torch as norse

    assert layer.neuron is not None
    n = layer.neuron.bound()
    if layer.recurrent is not None and not isinstance(n, CUBA):
        site.refuse("recurrent neurons have a synaptic current there", "use CUBA")
    if isinstance(n, Rectified):
        return [*drive, nn.ReLU()]
    if isinstance(n, LeakyIntegrator):
        if not n.scale_input:
            site.refuse("integrators scale their input by 1 - kappa there", "use scale_input=True")
        box = norse.LIBoxParameters(_rate(n.kappa, dt), _tensor(0.0))
        return [*drive, norse.LIBoxCell(box, dt=dt)]
    if isinstance(n, SynapticIntegrator):
        li = norse.LIParameters(_rate(n.alpha, dt), _rate(n.kappa, dt), _tensor(n.v_rest))
        return [*drive, norse.LICell(li, dt=dt)]
    if type(n) not in (LIF, IF, PLIF, CUBA):
        known = "LIF, IF, PLIF, CUBA, LeakyIntegrator or SynapticIntegrator"
        site.refuse("Norse has no such model with these dynamics", f"use {known}")
    assert isinstance(n, LIF)
    _check(site, n)
    made = (
        _cuba(site, layer, n, drive, dt) if isinstance(n, CUBA) else [*drive, _direct(site, n, dt)]
    )
    detached = layer.recurrent is not None
    if n.detach_reset != detached:
        site.learns_otherwise(
            f"detach_reset={n.detach_reset}: there recurrent neurons cut the gradient of the "
            "reset, others keep it",
            f"use detach_reset={detached}",
        )
    return made


def _check(site: Site, n: LIF) -> None:
    """Refuse options that no neuron there has."""
    if n.random or (n.refractory and (n.integrate_refractory or not isinstance(n, CUBA))):
        site.refuse(
            "noise, escape firing, and refractory periods other than CUBA's with "
            "integrate_refractory=False do not exist there",
            "do without",
        )
    if not n.strict:
        site.refuse("strict=False: neurons fire above their threshold there", "use strict=True")
    early = n.reset_time == "same" or (n.reset_time == "next" and n.reset is not Reset.SOFT)
    if n.reset is Reset.NONE or not early:
        site.refuse(
            f"Reset.{n.reset.name} with reset_time='{n.reset_time}': there a spike resets the "
            "membrane in its own step",
            "use reset_time='same' and a reset to a value",
        )
    if isinstance(n.surrogate, Smooth):
        site.refuse("Smooth is no spike", "use the surrogate itself")


def _direct(site: Site, n: LIF, dt: float) -> Any:
    """Return a neuron without synaptic current."""
    import norse.torch as norse

    method, alpha = _method(site, n.surrogate)
    soft, v_th, v_reset = n.reset is Reset.SOFT, _tensor(n.v_th), _tensor(n.reset_value)
    if n.scale_input:
        reset = norse.reset_subtract if soft else norse.reset_value
        p = norse.LIFBoxParameters(
            _rate(n.beta, dt), _tensor(n.v_rest), v_th, v_reset, method, alpha, reset
        )
        return norse.LIFBoxCell(p, dt=dt)
    if soft or not bool(((_tensor(n.beta) == 1) & (_tensor(n.v_rest) == v_reset)).all()):
        site.refuse(
            "without scale_input there is only IAF: no leak, a reset to the value at which the "
            "membrane starts",
            "use scale_input=True",
        )
    return norse.IAFCell(norse.IAFParameters(v_th, v_reset, method, alpha), dt=dt)


def _cuba(site: Site, layer: Layer, n: CUBA, drive: list[nn.Module], dt: float) -> list[nn.Module]:
    """Return a neuron with synaptic current, and its synapses if it is recurrent."""
    import norse.torch as norse

    if not n.scale_input or n.reset is Reset.SOFT:
        site.refuse(
            f"scale_input={n.scale_input}, Reset.{n.reset.name}: there the current is scaled by "
            "1 - beta and a spike resets to a value",
            "use scale_input=True and Reset.VALUE or Reset.ZERO",
        )
    p = norse.LIFParameters(
        _rate(n.alpha, dt),
        _rate(n.beta, dt),
        _tensor(n.v_rest),
        _tensor(n.v_th),
        _tensor(n.reset_value),
        *_method(site, n.surrogate),
    )
    if (n.refractory or layer.recurrent is not None) and p.v_leak.numel() > 1:
        site.refuse("v_rest differs between neurons, there it is one number", "use one number")
    name = "LIF"
    if n.refractory:
        site.learns_otherwise(
            "refractory: the gradient also passes through the counter there", "use refractory=0"
        )
        p, name = norse.LIFRefracParameters(p, _tensor(float(n.refractory))), "LIFRefrac"
    if layer.recurrent is None:
        return [*drive, getattr(norse, f"{name}Cell")(p, dt=dt)]
    return [_recurrent(site, layer, layer.recurrent, getattr(norse, f"{name}RecurrentCell"), p, dt)]


def _recurrent(site: Site, layer: Layer, onto: Linear, kind: Any, p: Any, dt: float) -> nn.Module:
    dense = type(layer.synapse) is Linear and layer.norm is None
    if not dense or layer.synapse.bias is not None or onto.bias is not None:
        site.refuse(
            "recurrent neurons have two dense weights without bias there, and nothing behind them",
            "use Linear synapses with bias=False and no norm",
        )
    back, inward = effective(site, onto, (NoAutapses(),)), effective(site, layer.synapse)
    n, size = inward.shape
    made = kind(
        size,
        n,
        p,
        input_weights=copied(inward),
        recurrent_weights=copied(back),
        autapses=onto.maps != (NoAutapses(),),
        dt=dt,
    )
    made.recurrent_weights.requires_grad_(back.requires_grad)
    return made  # type: ignore[no-any-return]


def _rate(decay: Value, dt: float) -> torch.Tensor:
    """Return the inverse time constant of an Euler decay."""
    return (1 - _tensor(decay)) / dt


def _tensor(value: Value) -> torch.Tensor:
    """Return a parameter; one number is exact beside tensors of any type."""
    own = number(value)
    return own if isinstance(own, torch.Tensor) else torch.tensor(own, dtype=torch.float64)


def _method(site: Site, surrogate: Surrogate) -> tuple[str, torch.Tensor]:
    """Return the method and ``alpha`` of a surrogate."""
    from norse.torch.functional.threshold import threshold

    known = [("tanh", 2.0), ("heavi_erfc", 2.0)]
    if isinstance(surrogate, FastSigmoid):
        known = [("super", surrogate.slope)]
    elif isinstance(surrogate, Triangle):
        known = [("triangle", surrogate.height)]
    for method, slope in known:
        alpha = _tensor(slope)
        if agrees(partial(threshold, method=method, alpha=alpha), surrogate):
            return method, alpha
    site.learns_otherwise(
        f"{surrogate} is no derivative of this Norse (1.1.0 takes 1 for every slope of 'super')",
        "use FastSigmoid(slope=1.0), Triangle(width=1.0), Sigmoid(slope=4.0) or Erf(slope=2.0)",
    )
    return "super", _tensor(100.0)
