"""What makes synapses learn on Loihi: rules, traces, epochs.

The equations are those of `engine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.rules import TRACES, Rule, RuleError, parse
from spikecl_hardware.loihi.semantics import SignMode

Array = npt.NDArray[Any]

TRACE_MAX, FRACTION = 127, 256
LONGEST = 2.0**62  # a time constant that keeps all of a trace; Lava holds it in 64 bits
STILL = float(np.iinfo(np.uint16).max)  # time constant of traces that come from outside
WEIGHTS = {
    SignMode.MIXED: (-256, 255),
    SignMode.EXCITATORY: (0, 255),
    SignMode.INHIBITORY: (-255, 0),
}


@dataclass(frozen=True)
class Trace:
    """How a trace goes on: what a spike adds (0 to 127), and its time constant in steps.

    A time constant of 0 keeps nothing from one step to the next.
    """

    impulse: float = 0.0
    tau: float = 0.0

    def __post_init__(self) -> None:
        """Raise RuleError for numbers out of range."""
        if not (0 <= self.impulse <= TRACE_MAX and 0 <= self.tau <= LONGEST):
            raise RuleError(
                f"impulse {self.impulse:g}, tau {self.tau:g}; 0 to {TRACE_MAX}, and 0 to "
                f"{LONGEST:.3g} steps, are allowed"
            )

    @property
    def parts(self) -> tuple[int, int]:
        """The impulse in whole numbers and in parts of 256."""
        whole = int(np.floor(self.impulse))
        return whole, int(np.round((self.impulse - whole) * FRACTION))


@dataclass(frozen=True)
class Learning:
    """What makes synapses learn.

    Args:
        dw: Rule of weights (:func:`spikecl_hardware.loihi.rules.parse`); empty for none.
        dt: Rule of tags.
        dd: Rule of delays, which are a second tag here: they do not delay.
        traces: ``x1 x2 y1 y2 y3``; of modulated rules not the last two, and whole impulses of
            ``y1``.
        epoch: Steps of an epoch, 1 to 63.
        seed: Of the generators that round traces; weights are rounded with Lava's own seed.
        modulated: ``y2 y3`` come from outside: a rule of three factors.

    Raises:
        RuleError: A rule is outside of Loihi's form, or reads a trace that nothing drives.
    """

    dw: str = ""
    dt: str = ""
    dd: str = ""
    traces: Mapping[str, Trace] = field(default_factory=dict)
    epoch: int = 1
    seed: int = 1
    modulated: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not self.rules:
            raise RuleError("no rule; dw, dt or dd must be one")
        if not 1 <= self.epoch <= 63:
            raise RuleError(f"epoch={self.epoch}; 1 to 63 steps are allowed")
        if self.seed < 0:
            raise RuleError(f"seed={self.seed}; 0 or more is allowed")
        if unknown := set(self.traces) - set(TRACES):
            raise RuleError(f"traces {sorted(unknown)}; {', '.join(TRACES)} are allowed")
        if self.modulated and (given := sorted({"y2", "y3"} & set(self.traces))):
            raise RuleError(f"traces {', '.join(given)} are set, and come from outside")
        if self.modulated and self.own.impulse % 1:
            raise RuleError(f"y1 has an impulse of {self.own.impulse}; a whole number is allowed")
        every = {rule.every for rule in self.rules.values() if rule.every is not None}
        if len(every) > 1:
            raise RuleError(f"rules with u{', u'.join(map(str, sorted(every)))}; one is allowed")
        read = set().union(*(rule.names for rule in self.rules.values())) & set(TRACES)
        driven = {*self.traces, *(("y2", "y3") if self.modulated else ())}
        if still := sorted(read - driven):
            raise RuleError(f"rules read {', '.join(still)}, which nothing drives; set its trace")

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """Rules by the variable they change, in the order in which they are applied."""
        texts = {"w": self.dw, "d": self.dd, "t": self.dt}
        return {name: parse(text) for name, text in texts.items() if text}

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Learning:
        """Return what ``dataclasses.asdict`` gave, as files hold it."""
        traces = {name: Trace(**values) for name, values in table["traces"].items()}
        return cls(**{**table, "traces": traces})

    @property
    def every(self) -> int | None:
        """The k of ``u``, where a rule has one."""
        return next((r.every for r in self.rules.values() if r.every is not None), None)

    @property
    def own(self) -> Trace:
        """The trace that targets keep of their own spikes, for rules of three factors."""
        return self.traces.get("y1", Trace())

    @property
    def decay(self) -> int:
        """The register by which that trace decays, of 4096."""
        return 4096 - round(4096 * np.exp(-1 / self.own.tau)) if self.own.tau else 4096

    def trace(self, name: str) -> Trace:
        """Return how a trace goes on in the learning engine."""
        if self.modulated and name[0] == "y":
            return Trace(0.0, STILL)
        return self.traces.get(name, Trace())


def own_trace(trace: Array, fired: Array, learning: Learning) -> Array:
    """Return the next trace [n] that targets keep of their spikes."""
    risen = (trace * (4096 - learning.decay) >> 12) + int(learning.own.impulse) * (fired != 0)
    found: Array = np.minimum(risen, TRACE_MAX)
    return found
