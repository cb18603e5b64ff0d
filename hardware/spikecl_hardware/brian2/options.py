"""How time is cut, and names that Brian2 takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import numpy as np

from spikecl_hardware.brian2.description import Brian2Error, Description

Steps = Literal["discrete", "continuous"]
STEPS = ("discrete", "continuous")


@dataclass(frozen=True)
class Options:
    """How time is cut.

    Args:
        steps: ``discrete`` or ``continuous``.
        dt_ms: Milliseconds of Brian2's clock, for ``continuous``; by default a step.
        method: Integrator for ``continuous``; by default what fits each model.
    """

    steps: Steps = "discrete"
    dt_ms: float | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        """Refuse what nothing is known of, and what steps do not have."""
        if self.steps not in STEPS:
            raise Brian2Error(f"steps={self.steps!r}; {' or '.join(STEPS)} is allowed")
        for name in ("dt_ms", "method"):
            if self.steps == "discrete" and getattr(self, name) is not None:
                raise Brian2Error(
                    f"{name}={getattr(self, name)!r}: steps='discrete' has the steps of the "
                    "network; leave it out, or use steps='continuous'"
                )
        if not isinstance(self.dt_ms, Real | None):
            raise Brian2Error(f"dt_ms={self.dt_ms!r}; a number, of milliseconds, is allowed")

    def dt(self, step_ms: float) -> float:
        """Return the milliseconds of Brian2's clock."""
        if self.dt_ms is None:
            return step_ms
        parts = step_ms / self.dt_ms if self.dt_ms > 0 else 0.0
        if parts < 1 - 1e-9 or abs(parts - round(parts)) > 1e-9 * parts:
            raise Brian2Error(
                f"dt_ms={self.dt_ms}; a step of {step_ms} ms or a whole part of it is allowed"
            )
        return self.dt_ms


def check(about: Description, options: Options, samples: int) -> None:
    """Refuse what one simulation cannot hold."""
    for p in about.projections:
        if p.delay is not None and (p.delay < 0).any():
            raise Brian2Error(f"'{p.name}' has a delay of {p.delay.min()} steps; 0 or more")
    for q in about.populations:
        if q.bias is not None and not np.isfinite(q.bias).all():
            raise Brian2Error(f"'{q.name}' has a bias that is not finite; numbers are allowed")
    for p in about.projections:
        if not np.isfinite(p.weight).all():
            raise Brian2Error(f"'{p.name}' has weights that are not finite; numbers are allowed")
    if samples == 1:
        return
    held = options.steps == "continuous" and any(p.neurons.refractory for p in about.populations)
    for is_there, what in (
        (about.delays, "spikes that are still on their way when the next sample starts"),
        (any(p.plasticity for p in about.projections), "synapses that change"),
        (held, "refractory periods that reach into the next sample"),
    ):
        if is_there:
            raise Brian2Error(f"{samples} samples and {what}; give one sample at a time")


_HELPERS = re.compile(
    r"_(synapses_\w+|spikes|states|stateupdater|spike_(thresholder|resetter)|run_regularly(_\d+)?)$"
)
"""What ends the names of monitors, and of what Brian2 makes for groups and synapses."""


def identifier(path: str) -> str:
    """Return a name that Brian2 takes.

    >>> identifier("hidden1.recurrent"), identifier("0")
    ('hidden1_recurrent', 'layer_0')
    """
    made = re.sub(r"\W", "_", path, flags=re.ASCII)
    return made if made[:1].isalpha() else f"layer_{made.lstrip('_')}"


def identifiers(paths: Sequence[str]) -> dict[str, str]:
    """Return names that Brian2 takes, each once, none of which its helpers of another one have.

    >>> identifiers(["h", "h_spikes"])["h_spikes"]
    'layer_h_spikes'
    """
    found: dict[str, str] = {}
    plain = {identifier(path) for path in paths}
    for path in paths:
        name = identifier(path)
        while _HELPERS.sub("", name) in plain - {name}:
            name = f"layer_{name}"
        while name in found.values():
            name += "_"
        found[path] = name
    return found
