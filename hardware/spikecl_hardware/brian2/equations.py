"""What both discretisations write: equations, parameters and statements of a population."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from spikecl_hardware.brian2.description import Neurons


class Parameter(NamedTuple):
    """A constant of a population: numbers in a unit, and their dimension as Brian2 writes it."""

    value: Any
    unit: str = "1"
    dimension: str = "1"


@dataclass(frozen=True)
class Equations:
    """What Brian2 is told of a population.

    Args:
        model: Lines of equations, parameters aside.
        parameters: Constants by name.
        start: Values of states before the first step.
        step: Statements of each step; empty where differential equations say it.
        threshold: Condition of a spike; empty where there is none.
        reset: Statements after it.
        kicks: What a spike does behind a synapse of weight ``{weight}``, by channel.
        output: Variable that is passed on where no spikes are.
        refractory_ms: Milliseconds after a spike without another, of differential equations.
        method: Integrator of differential equations.
    """

    model: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    start: Mapping[str, Parameter]
    kicks: Mapping[str, str]
    step: tuple[str, ...] = ()
    threshold: str = ""
    reset: tuple[str, ...] = ()
    output: str = "v"
    refractory_ms: float = 0.0
    method: str | None = None
    drive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_ZERO: dict[str, tuple[str, ...]] = {
    "cuba": ("i_syn",),
    "cuba_li": ("i_syn",),
    "alif": ("b",),
    "conductance": ("g_exc", "g_inh"),
}


def rest(neurons: Neurons) -> dict[str, Any]:
    """Return the states of silence: membranes at rest, everything else at zero.

    An Izhikevich membrane starts at its lower fixed point, or at ``c`` where there is none.
    """
    get = neurons.values.get
    if neurons.model == "adex":
        return {"v": get("e_leak"), "w": 0.0}
    if neurons.model == "izhikevich":
        b, c = np.asarray(get("b"), dtype=np.float64), np.asarray(get("c"), dtype=np.float64)
        root = (5 - b) ** 2 - 4 * 0.04 * 140
        v = np.where(root > 0, (b - 5 - np.sqrt(np.maximum(root, 0))) / 0.08, c)
        return {"v": v, "u": v * b}
    found = {"v": get("v_rest", 0.0)}
    return found | dict.fromkeys(_ZERO.get(neurons.model, ()), 0.0)


def is_zero(value: Any) -> bool:
    """Whether a parameter is zero for all neurons."""
    return not np.any(value)


def is_one(value: Any) -> bool:
    """Whether a parameter is one for all neurons."""
    return bool(np.all(np.asarray(value) == 1))


def sides(neurons: Neurons) -> tuple[str, str]:
    """Return the two sides of the comparison that makes a spike: membrane and threshold."""
    if neurons.model in ("adex", "izhikevich"):
        return "v", "v_peak"
    return "v", "v_th + adaptation*b" if neurons.model == "alif" else "v_th"
