"""Norse networks become ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from spikecl.encoding.decoders import Decoder
from spikecl.interop.parts import Flatten, Neurons, Part
from spikecl.interop.site import Modules, Site, ends, library, number, sites
from spikecl.interop.surrogates import identify
from spikecl.interop.torch_in import assemble, read_torch, with_tensors
from spikecl.networks import Cells, Linear, Network, NoAutapses
from spikecl.neurons import (
    CUBA,
    IF,
    LIF,
    LeakyIntegrator,
    Neuron,
    Reset,
    Sigmoid,
    Surrogate,
    SynapticIntegrator,
)

_OVER_TIME = {"LIF", "LIFRecurrent", "LIFRefracRecurrent", "LI", "IAF", "Lift"}
_OTHERS = {
    "LSNN": (
        "its threshold decays to v_th from 0 and the membrane takes its input one step late, "
        "ALIF's adaptation decays to 0"
    ),
    "LIFAdEx": "its upswing is not cut off, AdEx ends it at v_peak, and in other units",
    "LIFEx": "its threshold lies on an exponential upswing",
    "Izhikevich": (
        "its recovery sees the old membrane, and the overshoot is not cut off; here the membrane "
        "takes half steps and the recovery sees it at its peak"
    ),
    "CobaLIF": (
        "its conductances are split by the sign of the summed input and take Euler steps, "
        "ConductanceLIF's are split by synapse and take exponential ones"
    ),
    "RecurrentSequential": "its output goes back to its input",
}


def from_norse(
    net: Modules, *, decoder: Decoder | None = None, spikes_only: bool = False
) -> Network:
    """Return a network with the spikes of a Norse network, from rest, and its gradients.

    Weights are copied; images are channel-first, [T, B, C, H, W]. ``Output.steps`` has the last
    layer at every step (the membranes of an integrator), :meth:`Network.record` the others.

    Args:
        net: ``SequentialState``, or modules in the order in which they are called: a list, or a
            mapping whose names the layers get. Cells, or layers over time; not both.
        decoder: From the last layer's output [T, B, C] to logits; by default the mean.
        spikes_only: Take neurons whose spikes are the same but whose gradients are not, too; a
            derivative that is unknown here becomes ``Sigmoid()``.

    Raises:
        InteropError: A module has no equal; it is named with the difference and what to do.
    """
    chains = (library("norse.torch").SequentialState, nn.Sequential)
    found = sites(net, chains=chains, spikes_only=spikes_only)
    over_time = [site for site in found if type(site.part).__name__ in _OVER_TIME]
    cells = [site for site in found if type(site.part).__name__ in _READERS.keys() - _OVER_TIME]
    if over_time and cells:
        cells[0].refuse(
            f"takes one step, '{over_time[0].name}' takes all: one of them sees time as a batch",
            "use cells throughout, or layers throughout",
        )
    return assemble(found, _read, decoder)


def _read(site: Site) -> list[Part]:
    kind = type(site.part)
    if isinstance(site.part, nn.Flatten) and (site.part.start_dim, site.part.end_dim) == (2, -1):
        return [Flatten()]  # behind time and batch
    if not kind.__module__.startswith("norse."):
        return read_torch(site)
    if kind.__name__ in _READERS:
        return _READERS[kind.__name__](site, site.part)
    for name, difference in _OTHERS.items():
        if kind.__name__.startswith(name):
            site.refuse(difference, f"use {', '.join(_READERS)}")
    site.refuse("has no counterpart here", f"use {', '.join(_READERS)}")


def _lift(site: Site, m: Any) -> list[Part]:
    if m.is_stateful:
        site.refuse("hands its state on along with its output", "use the layer over time instead")
    inner = m.lifted_module
    found = sites([inner], chains=(nn.Sequential,), spikes_only=site.spikes_only)
    return [part for each in found for part in read_torch(each)]


def _lif(site: Site, m: Any) -> list[Part]:
    return [Neurons(Cells(_cuba(site, m.p, m.dt, detach=False)))]


def _recurrent(site: Site, m: Any) -> list[Part]:
    return _onto(site, m, _cuba(site, m.p, m.dt, detach=True))


def _refractory(site: Site, m: Any) -> list[Part]:
    return [Neurons(Cells(_held(site, m, detach=False)))]


def _refractory_recurrent(site: Site, m: Any) -> list[Part]:
    return _onto(site, m, _held(site, m, detach=True))


def _cuba(site: Site, p: Any, dt: float, *, detach: bool, refractory: int = 0) -> CUBA:
    return CUBA(
        **_constants(site, p, dt),
        surrogate=_surrogate(site, p),
        reset=Reset.VALUE,
        scale_input=True,
        detach_reset=detach,
        refractory=refractory,
    )


def _held(site: Site, m: Any, *, detach: bool) -> CUBA:
    low, high = ends(m.p.rho_reset)
    if low != high:
        site.refuse("rho_reset differs between neurons, here it is one number", "use one number")
    steps = math.ceil(max(0.0, high))
    neuron = _cuba(site, m.p.lif, m.dt, detach=detach, refractory=steps)
    site.learns_otherwise(
        "its gradient also passes through the counter of refractory steps", "use LIF"
    )
    return neuron


def _onto(site: Site, m: Any, neuron: CUBA) -> list[Part]:
    """Return the synapses of a recurrent layer and its neurons."""
    back, inward = m.recurrent_weights, m.input_weights
    if not m.autapses and bool(back.diagonal().any()):
        site.refuse(
            "autapses=False, but the diagonal of its recurrent weights is not zero",
            "fill it with zeros, or build it with autapses=True",
        )
    maps = () if m.autapses else (NoAutapses(),)
    n, size = inward.shape
    onto = with_tensors(Linear(n, n, maps=maps), weight=back)
    return [with_tensors(Linear(size, n), weight=inward), Neurons(Cells(neuron), onto)]


def _box(site: Site, m: Any) -> list[Part]:
    from norse.torch import reset_subtract, reset_value

    resets = {reset_value: Reset.VALUE, reset_subtract: Reset.SOFT}
    if m.p.reset_method not in resets:
        site.refuse("its reset_method is not known", "use reset_value or reset_subtract")
    neuron = LIF(
        **_constants(site, m.p, m.dt),
        surrogate=_surrogate(site, m.p),
        reset=resets[m.p.reset_method],
        scale_input=True,
        detach_reset=False,
    )
    return [Neurons(Cells(neuron))]


def _iaf(site: Site, m: Any) -> list[Part]:
    values = _constants(site, m.p, m.dt)
    neuron = IF(
        **values,
        v_rest=values["v_reset"],  # where its membrane starts
        surrogate=_surrogate(site, m.p),
        reset=Reset.VALUE,
        detach_reset=False,
    )
    return [Neurons(Cells(neuron))]


def _integrator(site: Site, m: Any) -> list[Part]:
    values = _constants(site, m.p, m.dt)
    kappa, alpha, rest = values["beta"], values.get("alpha", 0.0), values["v_rest"]
    neuron: Neuron = SynapticIntegrator(alpha=alpha, kappa=kappa, v_rest=rest)
    if isinstance(alpha, float) and isinstance(rest, float) and alpha == rest == 0:
        neuron = LeakyIntegrator(kappa=kappa, scale_input=True)
    return [Neurons(Cells(neuron))]


def _linear_integrator(site: Site, m: Any) -> list[Part]:
    n, size = m.input_weights.shape
    return [with_tensors(Linear(size, n), weight=m.input_weights), *_integrator(site, m)]


_OURS = {
    "tau_mem_inv": "beta",
    "tau_syn_inv": "alpha",
    "v_leak": "v_rest",
    "v_th": "v_th",
    "v_reset": "v_reset",
}


def _constants(site: Site, p: Any, dt: float) -> dict[str, Any]:
    """Return our values of parameters; Euler decays are ``1 - dt / tau``."""
    found: dict[str, Any] = {}
    for theirs, ours in _OURS.items():
        if theirs not in p._fields:
            continue
        value = getattr(p, theirs)
        if isinstance(value, nn.Parameter):
            site.learns_otherwise(
                f"{theirs} learns, and belongs to no module there",
                "detach it and train the network's own (Cells.learns)",
            )
        found[ours] = number(value)
        if theirs.startswith("tau"):
            found[ours] = decay = 1 - dt * found[ours]
            if not 0 <= (low := ends(decay)[0]) <= ends(decay)[1] <= 1:
                site.refuse(
                    f"dt {theirs} = {1 - low:g}: the state changes sign or grows",
                    "use a dt from 0 to the time constant",
                )
    return found


def _surrogate(site: Site, p: Any) -> Surrogate:
    from norse.torch.functional.threshold import threshold

    if p.method == "adjoint":
        site.learns_otherwise("method 'adjoint' has gradients at spikes alone", "use 'super'")
        return Sigmoid()
    surrogate = identify(lambda x: threshold(x, p.method, p.alpha)).surrogate
    if surrogate is None:
        site.learns_otherwise(
            f"the derivative of method '{p.method}', alpha={ends(p.alpha)[0]:g} is none of "
            "spikecl.neurons.SURROGATES",
            "use 'super' or 'triangle'",
        )
    return surrogate or Sigmoid()


_READERS: Mapping[str, Callable[[Site, Any], list[Part]]] = {
    "LIF": _lif,
    "LIFCell": _lif,
    "LIFRecurrent": _recurrent,
    "LIFRecurrentCell": _recurrent,
    "LIFRefracCell": _refractory,
    "LIFRefracRecurrent": _refractory_recurrent,
    "LIFRefracRecurrentCell": _refractory_recurrent,
    "LIFBoxCell": _box,
    "IAF": _iaf,
    "IAFCell": _iaf,
    "LI": _integrator,
    "LICell": _integrator,
    "LIBoxCell": _integrator,
    "LILinearCell": _linear_integrator,
    "Lift": _lift,
}
