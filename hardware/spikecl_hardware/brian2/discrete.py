"""Neurons in steps: statements that do in each step what torch does, in its order.

Everything is plain numbers, as in the network that was trained. Synapses add to ``I``; a step takes
it, with all that is no spikes, as ``I_total``, and leaves 0. With ``c`` for ``gain`` and ``I`` for
that total, one step of the models is::

    lif          v = v_rest + beta (v - v_rest) + c I
    cuba         i_syn = alpha i_syn + current_gain I;  v = v_rest + beta (v - v_rest) + c i_syn
    alif         b = rho b + jump s;  v as in lif;  threshold v_th + adaptation b
    conductance  g = exp(-h/tau) g + I of both kinds;  v to v_inf by exp(-h (1 + g + g) / tau_mem)
    adex         forward Euler of both equations, both from the old state
    izhikevich   forward Euler of the membrane in substeps, then of the recovery

Sources stand with the models of ``spikecl.neurons``. ``s`` is 1 in the step after a spike, ``wait``
counts down from ``refractory + 1``.
"""

from __future__ import annotations

from spikecl_hardware.brian2.description import Neurons
from spikecl_hardware.brian2.equations import Equations, Parameter, is_one, is_zero, rest, sides

FAR = "1e9"
TOTAL = "_total"
"""Behind the name of a channel: all that arrives in a step."""
Lines = tuple[str, ...]


def discrete(neurons: Neurons, drive: dict[str, str]) -> Equations:
    """Return the statements of a model.

    Args:
        neurons: The model.
        drive: What arrives in a step, by channel: ``I``, or a sum of that, a bias, graded input.
    """
    if neurons.model == "current":
        return Equations((), {}, {}, {"I": "I_post += {weight}"}, output=drive["I"])
    start = {name: Parameter(value) for name, value in rest(neurons).items()}
    for name in ("s", "wait"):
        if name == "s" and _remembers(neurons) or name == "wait" and neurons.refractory:
            start[name] = Parameter(0.0)
    cut = _cut(neurons)
    if cut:
        start["top"] = start["v"]
    numbers = dict(neurons.values)
    numbers |= {"noise": neurons.noise} if neurons.noise else {}
    totals = {channel: channel + TOTAL for channel in neurons.channels}
    take = tuple(f"{totals[channel]} = {text}" for channel, text in drive.items())
    leave = tuple(f"{channel} = 0" for channel in neurons.channels)
    return Equations(
        model=tuple(f"{name} : 1" for name in (*start, *totals.values())),
        parameters={name: Parameter(value) for name, value in numbers.items()},
        start=start,
        kicks={channel: channel + "_post += {weight}" for channel in neurons.channels},
        step=take + _step(neurons, totals) + cut + leave,
        threshold=_threshold(neurons) if neurons.fires else "",
        reset=_reset(neurons) if neurons.fires else (),
    )


def _remembers(n: Neurons) -> bool:
    """Whether a step needs the last spikes."""
    return n.fires and (n.reset_time != "same" or n.model == "alif")


def _step(n: Neurons, drive: dict[str, str]) -> Lines:
    """Return the statements of one step from the current to the membrane before its reset.

    Where the membrane may be held it is computed beside the old one, as ``new``: a copy made before
    (``old = v``) is the same array to Brian2, and changes with it.
    """
    held = bool(n.refractory) and not n.integrate_refractory
    out = "new" if held else "v"
    lines: list[str] = []
    if n.refractory:
        lines.append(f"wait = clip(wait - 1, 0, {FAR})")
    if n.model == "alif":
        lines.append("b = rho*b + jump*s")
    lines += _early(n)
    models = {"conductance": _conductance, "adex": _adex, "izhikevich": _izhikevich}
    lines += models.get(n.model, _leaky)(n, drive, out)
    lines += _late(n)
    if _remembers(n):
        lines.append("s = 0")
    if n.noise:
        lines.append(f"{out} = {out} + noise*randn()")
    if held:
        lines.append("v = int(wait > 0)*v + int(wait == 0)*new")
    return tuple(lines)


def _early(n: Neurons) -> Lines:
    """Return a reset that waited for this step and comes before the decay."""
    if n.reset_time != "next" or n.reset != "value":
        return ()
    return ("v = (1 - s)*v + s*v_reset",)


def _late(n: Neurons) -> Lines:
    """Return a reset that comes behind the input."""
    if n.reset_time == "same" or n.reset == "none":
        return ()
    if n.reset == "soft":
        return ("v = v - v_th*s",)
    return ("v = (1 - s)*v + s*v_reset",) if n.reset_time == "after" else ()


def _leaky(n: Neurons, drive: dict[str, str], out: str) -> Lines:
    get, current, lines = n.values.get, drive["I"], []
    if n.model in ("cuba", "cuba_li"):
        taken = current if is_one(get("current_gain")) else f"current_gain*{current}"
        lines.append(f"i_syn = alpha*i_syn + {taken}")
        current = "i_syn"
    taken = current if is_one(get("gain")) else f"gain*{current}"
    decayed = "beta*v" if is_zero(get("v_rest", 0.0)) else "v_rest + beta*(v - v_rest)"
    lines.append(f"{out} = {decayed} + {taken}")
    return tuple(lines)


def _conductance(n: Neurons, drive: dict[str, str], out: str) -> Lines:
    return (
        f"g_exc = exp(-h/tau_exc)*g_exc + {drive['I_exc']}",
        f"g_inh = exp(-h/tau_inh)*g_inh + {drive['I_inh']}",
        "total = 1 + g_exc + g_inh",
        "v_inf = (v_rest + g_exc*e_exc + g_inh*e_inh)/total",
        f"{out} = v_inf + (v - v_inf)*exp(-h/tau_mem*total)",
    )


def _adex(n: Neurons, drive: dict[str, str], out: str) -> Lines:
    return (
        f"upswing = delta_t*exp(clip((v - v_t)/delta_t, -{FAR}, 60))",
        f"current = g_leak*(e_leak - v + upswing) - w + {drive['I']}",
        "w = w + h*((a*(v - e_leak) - w)/tau_w)",
        f"{out} = v + h/capacitance*current",
    )


def _izhikevich(n: Neurons, drive: dict[str, str], out: str) -> Lines:
    part = "h" if n.substeps == 1 else f"h/{n.substeps}"
    lines, now = [], "v"
    for _ in range(n.substeps):
        slope = f"0.04*{now}*{now} + 5*{now} + 140 - u + {drive['I']}"
        moved = f"clip({now} + {part}*({slope}), -1e4, 1e4)"
        lines.append(f"{out} = int({now} > v_peak)*{now} + int({now} <= v_peak)*{moved}")
        now = out
    return (*lines, f"u = u + h*a*(b*clip({out}, -{FAR}, v_peak) - u)")


def _cut(n: Neurons) -> Lines:
    """Return the cut of an upswing that no spike follows, and keep how far it went."""
    late = n.escape is not None or (n.refractory and n.integrate_refractory)
    if n.model not in ("adex", "izhikevich") or not late:
        return ()
    return ("top = v", f"v = clip(v, -{FAR}, v_peak)")


def _threshold(n: Neurons) -> str:
    membrane, limit = sides(n)
    membrane = "top" if _cut(n) else membrane
    if n.escape is None:
        fires = f"{membrane} {'>' if n.strict else '>='} {limit}"
    else:
        fires = _chance(n, f"({membrane} - ({limit}))")
    return f"({fires}) and wait == 0" if n.refractory else fires


def _chance(n: Neurons, distance: str) -> str:
    assert n.escape is not None
    width, rate = n.escape.width * n.escape.v_scale, n.escape.rate
    if n.escape.form == "sigmoid":
        return f"rand() < 1/(1 + exp(-{distance}/{width!r}))"
    return f"rand() < 1 - exp(-{rate!r}*exp({distance}/{width!r}))"


def _reset(n: Neurons) -> Lines:
    lines: list[str] = []
    if n.model == "adex":
        lines += ["v = v_reset", "w = w + b"]
    elif n.model == "izhikevich":
        lines += ["v = c", "u = u + d"]
    elif n.reset_time == "same" and n.reset != "none":
        lines.append("v = v - v_th" if n.reset == "soft" else "v = v_reset")
    if _remembers(n):
        lines.append("s = 1")
    if n.refractory:
        lines.append(f"wait = {n.refractory + 1}")
    return tuple(lines)
