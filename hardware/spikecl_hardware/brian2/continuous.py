"""Neurons in time: differential equations that a step of the network solves, or comes close to.

A decay ``beta`` per step of ``h`` milliseconds is a time constant, ``tau = -h / log(beta)``. A
spike moves a membrane by what it moved it in a step. What is there at every step (a bias, an input
that is no spikes) becomes a current, so strong that over one step it does what it did. With
``rate(x, beta) = -x log(beta) / ((1 - beta) h)``::

    lif          dv/dt = (v_rest - v)/tau + rate(gain, beta) x
    cuba         di/dt = -i/tau_syn,  dv/dt = (v_rest - v)/tau + rate(gain, beta) i
    alif         db/dt = -b/tau_b, threshold v_th + adaptation b
    conductance  dg/dt = -g/tau of both kinds,
                 dv/dt = (v_rest - v + g_exc (e_exc - v) + g_inh (e_inh - v)) / tau_mem
    adex         Brette & Gerstner 2005, izhikevich: Izhikevich 2003; see ``spikecl.neurons``

Behind a spike, a synaptic current or a conductance acts as ``1 + alpha + alpha^2 + ...`` steps of
the network do, which is ``1 / (1 - alpha)``; in time as ``tau / h = -1 / log(alpha)``. So a spike
of weight 1 moves it by ``jump(alpha)``, which makes the charges equal::

    jump(alpha) = -log(alpha) / (1 - alpha)                  it goes to 1 as steps become short
                = (1 - alpha^s) / (s (1 - alpha))            where an integrator holds currents for
                                                             a part s of a step: exponential_euler

A refractory period of n steps is one of ``n h``, in which the membrane and its kicks are held.
Membranes of the last three are in millivolts, the others plain numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import numpy as np

from spikecl_hardware.brian2.description import Array, Brian2Error, Neurons, Population
from spikecl_hardware.brian2.equations import Equations, Parameter, is_one, is_zero, rest, sides

METHODS = {
    "lif": "exact",
    "li": "exact",
    "cuba": "exact",
    "cuba_li": "exact",
    "alif": "exact",
    "conductance": "exponential_euler",
    "adex": "euler",
    "izhikevich": "euler",
}
UNITS = {  # unit and dimension of parameters and states that are no plain numbers
    "conductance": dict.fromkeys(
        ("v", "v_rest", "e_exc", "e_inh", "v_th", "v_reset"), ("mV", "volt")
    )
    | dict.fromkeys(("tau_mem", "tau_exc", "tau_inh"), ("ms", "second")),
    "adex": dict.fromkeys(("v", "e_leak", "v_t", "delta_t", "v_peak", "v_reset"), ("mV", "volt"))
    | dict.fromkeys(("w", "b"), ("pA", "amp"))
    | dict.fromkeys(("g_leak", "a"), ("nS", "siemens"))
    | {"capacitance": ("pF", "farad"), "tau_w": ("ms", "second")},
    "izhikevich": dict.fromkeys(("v", "v_peak", "c"), ("mV", "volt"))
    | dict.fromkeys(("u", "d"), ("mV/ms", "volt/second"))
    | dict.fromkeys(("a", "b"), ("1/ms", "hertz")),
}


def continuous(
    population: Population,
    drive: dict[str, str],
    step_ms: float,
    method: str | None = None,
    *,
    share: float = 1.0,
) -> Equations:
    """Return the differential equations of a population.

    Args:
        population: The population.
        drive: What acts at every step besides spikes, by channel: an expression, or ``0``.
        step_ms: Milliseconds of a step of the network.
        method: Integrator; by default the exact solution where there is one.
        share: Brian2's clock, in steps of the network.

    Raises:
        Brian2Error: A switch that has no meaning without steps.
    """
    n = population.neurons
    if n.model == "current":
        return Equations((), {}, {}, {"I": "I_post += {weight}"}, output=drive["I"])
    _check(population)
    method = method or _method(n)
    clock = Clock(step_ms, share if method == "exponential_euler" else 0.0)
    write = {"conductance": _conductance, "adex": _adex, "izhikevich": _izhikevich}
    model, parameters, kicks = write.get(n.model, _leaky)(n, drive, clock)
    units = UNITS.get(n.model, {})
    plain = {name: _of(units, name, value) for name, value in _kept(n).items()}
    hold = bool(n.refractory) and not n.integrate_refractory
    if hold:
        model = tuple(_held(line) for line in model)
        kicks = {channel: _held_kick(kick) for channel, kick in kicks.items()}
        parameters["dead"] = Parameter(n.refractory * step_ms, "ms", "second")
    membrane, limit = sides(n)
    return Equations(
        model=model,
        parameters={**plain, **parameters},
        start={name: _of(units, name, value) for name, value in rest(n).items()},
        kicks=kicks,
        threshold=f"{membrane} {'>' if n.strict else '>='} {limit}" if n.fires else "",
        reset=_reset(n) if n.fires else (),
        refractory_ms=n.refractory * step_ms,
        method=method,
    )


def _method(n: Neurons) -> str:
    """Return the integrator; without leak Euler's rule is exact, and Brian2's solver has none."""
    return "euler" if n.model in ("lif", "li") and is_one(n.values["beta"]) else METHODS[n.model]


def _check(population: Population) -> None:
    n = population.neurons

    def refuse(what: str, why: str) -> NoReturn:
        raise Brian2Error(f"'{population.name}': {what}; {why}, use steps='discrete'")

    if n.noise or n.escape is not None:
        refuse("noise and escape firing", "what is drawn in each step has no limit in time")
    if n.fires and n.reset == "none" and not n.refractory:
        refuse("no reset", "above the threshold it fires in every step, however short")
    for name in ("beta", "alpha", "rho"):
        if name in n.values and is_zero(np.asarray(n.values[name]) > 0):
            refuse(f"{name}=0", "what is gone in one step has no time constant")
        if name in n.values and not np.all(np.asarray(n.values[name]) > 0):
            refuse(f"{name}=0 in some neurons", "what is gone in one step has no time constant")


def _held(line: str) -> str:
    return f"{line} (unless refractory)" if line.startswith("dv/dt") else line


def _held_kick(kick: str) -> str:
    if not kick.startswith("v_"):
        return kick
    return kick.replace("{weight}", "{weight}*int(t - lastspike_post > dead_post - dt/2)")


def _of(units: dict[str, tuple[str, str]], name: str, value: Any) -> Parameter:
    return Parameter(value, *units.get(name, ("1", "1")))


def _kept(n: Neurons) -> dict[str, Any]:
    """Return the parameters that equations in time share with those in steps."""
    gone = {"beta", "alpha", "rho", "h", "gain", "current_gain"}
    return {name: value for name, value in n.values.items() if name not in gone}


def _reset(n: Neurons) -> tuple[str, ...]:
    if n.model == "adex":
        return ("v = v_reset", "w += b")
    if n.model == "izhikevich":
        return ("v = c", "u += d")
    membrane = {"soft": ("v -= v_th",), "value": ("v = v_reset",), "none": ()}[n.reset]
    return (*membrane, "b += jump") if n.model == "alif" else membrane


def tau(decay: Any, step_ms: float) -> Array:
    """Return the time constant in milliseconds of a decay per step; that of 1 is very long."""
    with np.errstate(divide="ignore"):
        return np.minimum(np.asarray(-step_ms / np.log(decay), dtype=np.float64), 1e15)


def rate(gain: Any, decay: Any, step_ms: float) -> Array:
    """Return what acts for a millisecond so that over a step with decay it adds ``gain``."""
    kept = np.asarray(decay, dtype=np.float64)
    lost = np.where(kept < 1, 1 - kept, 1.0)
    factor = np.where(kept < 1, -np.log(kept) / lost, 1.0)
    return np.asarray(gain * factor / step_ms)


def jump(decay: Any, held: float) -> Array:
    """Return how far a spike of weight 1 moves what decays, for a charge equal to that of steps.

    >>> float(jump(0.5, 0.0)), float(jump(0.5, 1.0))
    (1.3862943611198906, 1.0)
    """
    if not held:
        return rate(1.0, decay, 1.0)
    return rate(1.0, decay, 1.0) / rate(1.0, np.asarray(decay) ** held, 1.0)


class Clock(NamedTuple):
    """Milliseconds of a step, and the part of it for which a current is held by the integrator."""

    step_ms: float
    held: float


Written = tuple[tuple[str, ...], dict[str, Parameter], dict[str, str]]


def _leaky(n: Neurons, drive: dict[str, str], clock: Clock) -> Written:
    step_ms = clock.step_ms
    get, second = n.values.get, n.model in ("cuba", "cuba_li")
    beta, current = get("beta"), "i_syn" if second else drive["I"]
    flow = (
        [] if is_one(beta) else [f"{'-v' if is_zero(get('v_rest', 0.0)) else '(v_rest - v)'}/tau"]
    )
    found: dict[str, Parameter] = {}
    if flow:
        found["tau"] = Parameter(tau(beta, step_ms), "ms", "second")
    if current != "0":
        flow.append(f"strength*{_term(current)}")
        found["strength"] = Parameter(rate(get("gain"), beta, step_ms), "1/ms", "hertz")
    lines = [f"dv/dt = {' + '.join(flow)} : 1" if flow else "v : 1"]
    if n.model == "alif":
        lines.append("db/dt = -b/tau_b : 1")
        found["tau_b"] = Parameter(tau(get("rho"), step_ms), "ms", "second")
    if not second:
        if not is_one(get("gain")):
            found["gain"] = Parameter(get("gain"))
        return (
            tuple(lines),
            found,
            {"I": f"v_post += {_factor(get('gain'), 'gain_post')}{{weight}}"},
        )
    alpha, taken = get("alpha"), get("current_gain")
    found["tau_syn"] = Parameter(tau(alpha, step_ms), "ms", "second")
    steady = ""
    if drive["I"] != "0":
        steady = f" + strength_syn*{_term(drive['I'])}"
        found["strength_syn"] = Parameter(rate(taken, alpha, step_ms), "1/ms", "hertz")
    found["jump"] = Parameter(np.asarray(taken) * jump(alpha, clock.held))
    lines.append(f"di_syn/dt = -i_syn/tau_syn{steady} : 1")
    return tuple(lines), found, {"I": "i_syn_post += jump_post*{weight}"}


def _factor(value: Any, name: str) -> str:
    return "" if is_one(value) else f"{name}*"


def _term(expression: str) -> str:
    return f"({expression})" if "+" in expression else expression


def _conductance(n: Neurons, drive: dict[str, str], clock: Clock) -> Written:
    lines = ["dv/dt = (v_rest - v + g_exc*(e_exc - v) + g_inh*(e_inh - v))/tau_mem : volt"]
    found, kicks = {}, {}
    for kind in ("exc", "inh"):
        steady = drive[f"I_{kind}"]
        decay = np.exp(-clock.step_ms / np.asarray(n.values[f"tau_{kind}"]))
        found[f"jump_{kind}"] = Parameter(jump(decay, clock.held))
        if steady != "0":
            found[f"strength_{kind}"] = Parameter(rate(1.0, decay, clock.step_ms), "1/ms", "hertz")
        more = "" if steady == "0" else f" + strength_{kind}*{_term(steady)}"
        lines.append(f"dg_{kind}/dt = -g_{kind}/tau_{kind}{more} : 1")
        kicks[f"I_{kind}"] = f"g_{kind}_post += jump_{kind}_post*{{weight}}"
    return tuple(lines), found, kicks


def _adex(n: Neurons, drive: dict[str, str], clock: Clock) -> Written:
    steady = "" if drive["I"] == "0" else f" + unit*{_term(drive['I'])}"
    upswing = "delta_t*exp(clip((v - v_t)/delta_t, -1e9, 60))"
    lines = (
        f"dv/dt = (g_leak*(e_leak - v + {upswing}) - w{steady})/capacitance : volt",
        "dw/dt = (a*(v - e_leak) - w)/tau_w : amp",
    )
    capacitance = np.asarray(n.values["capacitance"], dtype=np.float64)
    found = {"jump": Parameter(clock.step_ms / capacitance, "mV", "volt")}  # pA ms / pF is mV
    if steady:
        found["unit"] = Parameter(1.0, "pA", "amp")
    return lines, found, {"I": "v_post += jump_post*{weight}"}


def _izhikevich(n: Neurons, drive: dict[str, str], clock: Clock) -> Written:
    steady = "" if drive["I"] == "0" else f" + unit*{_term(drive['I'])}"
    lines = (
        f"dv/dt = 0.04*v**2/(ms*mV) + 5*v/ms + 140*mV/ms - u{steady} : volt",
        "du/dt = a*(b*v - u) : volt/second",
    )
    found = {"jump": Parameter(clock.step_ms, "mV", "volt")}
    if steady:
        found["unit"] = Parameter(1.0, "mV/ms", "volt/second")
    return lines, found, {"I": "v_post += jump_post*{weight}"}
