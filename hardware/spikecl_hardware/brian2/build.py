"""A description becomes Brian2 objects, in the order in which a step of the network runs.

Discrete: everything of a step stands in the slot ``groups``, ordered layer by layer, so that a
spike is felt by the next layer in its own step::

    groups, order 1       states start anew, where a sample does
            order 2       input
            10 (k + 1)    of layer k: synapses onto it, +1 its step, which takes I and leaves 0,
                          +2 threshold, +3 reset, +4 to +7 plasticity of synapses onto it,
                          +8 synapses of it onto itself: I of the next step
    end                   monitors

What a spike adds to ``I`` once the layer's step is over counts in the next one. So it is with the
synapses of a layer onto itself, and with those that a user adds in the slot ``synapses``; nothing
is lost where one run ends and the next begins.

Continuous: Brian2's own order; a spike is felt one ``dt`` later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from spikecl_hardware.brian2.built import Built
from spikecl_hardware.brian2.continuous import continuous
from spikecl_hardware.brian2.description import (
    INPUT,
    Array,
    Brian2Error,
    Description,
    Population,
    Projection,
)
from spikecl_hardware.brian2.discrete import TOTAL, discrete
from spikecl_hardware.brian2.equations import Equations, Parameter
from spikecl_hardware.brian2.library import check_method, library, unit
from spikecl_hardware.brian2.options import Options, check, identifiers
from spikecl_hardware.brian2.plasticity import LEARNING, plastic

ANEW, ENTER, LAYER = 1, 2, 10
STEP, THRESHOLD, RESET, LEARN, RECURRENT = 1, 2, 3, 4, 8


def build(
    description: Description,
    x: Array | None = None,
    *,
    options: Options | None = None,
    record: Sequence[str] = ("spikes",),
) -> Built:
    """Return Brian2's objects of a network.

    Args:
        description: The network.
        x: Input [T, B, n]; samples come one after the other, each from rest. Zeros and ones become
            spikes, others a ``TimedArray``. Without it there is a generator that sends none.
        options: How time is cut.
        record: What monitors record: ``spikes`` (and what answers, where that are no spikes), and
            names of states.

    Raises:
        Brian2Error: Something has no equal, or Brian2 is missing.
    """
    made = _Builder(description, x, options or Options())
    made.enter()
    for population in description.populations:
        made.population(population)
    for projection in description.projections:
        if len(projection.pre):  # Brian2 knows no synapses without any
            made.projection(projection)
    for population in description.populations:
        made.watch(population, record)
    return made.built


class _Builder:
    """Objects of one network."""

    def __init__(self, description: Description, x: Array | None, options: Options):
        samples = 1 if x is None else x.shape[1]
        check(description, options, samples)
        self.brian, self.about, self.method = library(), description, options.method
        self.built = Built(self.brian.Network())
        self.in_steps, self.several, self.x = options.steps == "discrete", samples > 1, x
        dt = options.dt(description.step_ms)
        self.share = dt / description.step_ms
        self.step = description.step_ms * self.brian.ms
        self.clock = {"clock": self.brian.Clock(dt * self.brian.ms)}
        populations = {p.name: p for p in description.populations}
        self.populations = populations
        paths = [INPUT, *populations]
        self.names = identifiers([*paths, *(f"{p.name} synapses" for p in description.projections)])
        self.places = {name: LAYER * (k + 1) for k, name in enumerate(populations)}
        graded = {name for name, p in populations.items() if not p.neurons.fires}
        if x is not None and not np.isin(x, (0, 1)).all():
            graded.add(INPUT)
        self.graded = graded
        self.felt = self._felt()
        self.equations: dict[str, Equations] = {}

    def _felt(self) -> dict[str, str]:
        """Return the variables that take what sources without spikes send, by projection."""
        found: dict[str, str] = {}
        for p in self.about.projections:
            if p.source in self.graded:
                delayed = p.delay is not None and p.delay.any()
                if delayed or p.plasticity is not None:
                    what = "delays" if delayed else "learns from"
                    raise Brian2Error(
                        f"'{p.name}' {what} activity of '{p.source}', which is no spikes; give "
                        "zeros and ones, or a network without that"
                    )
                name = f"{p.channel}_{self.names[p.source]}"
                taken = {found[q.name] for q in self._onto(p.target) if q.name in found}
                taken.add(f"{p.channel}{TOTAL}")
                while name in taken:
                    name += "_"
                found[p.name] = name
        return found

    def _onto(self, target: str) -> list[Projection]:
        return [p for p in self.about.projections if p.target == target]

    def _add(self, made: Any) -> Any:
        self.built.network.add(made)
        return made

    def enter(self) -> None:
        """Add what sends the input."""
        b, n, name = self.brian, int(np.prod(self.about.inputs)), self.names[INPUT]
        rows = np.zeros((0, n)) if self.x is None else self.x.swapaxes(0, 1).reshape(-1, n)
        if INPUT in self.graded:
            space = {"stimulus": b.TimedArray(rows, dt=self.step)}
            made = b.NeuronGroup(n, "x : 1", name=name, namespace=space, **self.clock)
            when = {"when": "groups", "order": ENTER} if self.in_steps else {"when": "start"}
            made.run_regularly("x = stimulus(t, i)", **when, **self.clock)
            self.built.outputs[INPUT] = "x"
        else:
            when = {"when": "groups", "order": ENTER} if self.in_steps else {}
            step, who = np.nonzero(rows)
            made = b.SpikeGeneratorGroup(n, who, step * self.step, name=name, **when, **self.clock)
        self.built.groups[INPUT] = self._add(made)

    # ---- neurons --------------------------------------------------------------------------------

    def population(self, p: Population) -> None:
        """Add the neurons of a layer."""
        memoryless = p.neurons.model == "current"
        current = self.in_steps or memoryless  # I of a step; otherwise spikes move states
        graded = {c: self._felt_by(p, c) for c in p.neurons.channels}
        part = f"*{self.share!r}" if memoryless and self.share != 1 else ""
        bias = [] if p.bias is None else [f"bias{part}"]
        drive = {c: " + ".join([c] * current + bias + names) for c, names in graded.items()}
        eq = self._write(p, {c: text or "0" for c, text in drive.items()})
        self.equations[p.name] = eq
        lines = [*eq.model, *(f"{c} : 1" for c in p.neurons.channels if current)]
        lines += [f"{name} : 1" for names in graded.values() for name in names]
        lines += [f"y = {eq.output} : 1"] if memoryless else []
        self.built.outputs[p.name] = "y" if memoryless else eq.output
        group = self._group(p, eq, lines)
        if memoryless:
            group.run_regularly("I = 0", when="start", **self.clock)
        if eq.method and self.method:
            check_method(p.name, group, self.method)
        if eq.step:
            order = self.places[p.name] + STEP
            group.run_regularly("\n".join(eq.step), when="groups", order=order, **self.clock)
        if self.several:
            self._anew(eq, group, [f"{c} = 0" for c in p.neurons.channels if current])

    def _felt_by(self, p: Population, channel: str) -> list[str]:
        onto = [q for q in self._onto(p.name) if q.name in self.felt and q.channel == channel]
        return [self.felt[q.name] for q in onto]

    def _write(self, p: Population, drive: dict[str, str]) -> Equations:
        if self.in_steps:
            return discrete(p.neurons, drive)
        return continuous(p, drive, self.about.step_ms, self.method, share=self.share)

    def _group(self, p: Population, eq: Equations, lines: list[str]) -> Any:
        values = dict(eq.parameters)
        if p.bias is not None:
            values["bias"] = Parameter(p.bias)
        text = " ".join([*eq.model, *eq.step, eq.threshold, *eq.reset, *eq.kicks.values(), "bias"])
        values = {k: v for k, v in values.items() if re.search(rf"\b{k}(_post)?\b", text)}
        if self.several:
            values |= {f"{k}_start": v for k, v in eq.start.items()}
        lines = lines + [_declared(name, value) for name, value in values.items()]
        more: dict[str, Any] = {"method": eq.method} if eq.method else {}
        if eq.threshold:
            more |= {"threshold": eq.threshold, "reset": "\n".join(eq.reset) or None}
        if eq.refractory_ms:  # Brian2 counts from spike to spike: one more step
            more["refractory"] = eq.refractory_ms * self.brian.ms + self.share * self.step
        name = self.names[p.name]
        group = self.brian.NeuronGroup(p.size, "\n".join(lines), name=name, **more, **self.clock)
        for key, value in {**values, **eq.start}.items():
            setattr(group, key, np.asarray(value.value, dtype=np.float64)[()] * unit(value.unit))
        if self.in_steps:
            for order, parts in ((THRESHOLD, group.thresholder), (RESET, group.resetter)):
                for part in parts.values():
                    part.when, part.order = "groups", self.places[p.name] + order
        self.built.groups[p.name] = self._add(group)
        return group

    def _anew(self, eq: Equations, group: Any, clear: list[str]) -> None:
        """Let states start anew with each sample."""
        assert self.x is not None
        when = (
            {"when": "groups", "order": ANEW} if self.in_steps else {"when": "start", "order": -1}
        )
        lines = [*(f"{name} = {name}_start" for name in eq.start), *clear]
        group.run_regularly("\n".join(lines), dt=len(self.x) * self.step, **when)

    # ---- synapses -------------------------------------------------------------------------------

    def projection(self, p: Projection) -> None:
        """Add synapses."""
        if p.channel not in self.populations[p.target].neurons.channels:
            raise Brian2Error(
                f"'{p.name}' leads to '{p.channel}' of '{p.target}', which has "
                f"{' and '.join(self.populations[p.target].neurons.channels)}"
            )
        weight = "weight" if p.gain == 1 else "scale*weight"
        model = ["weight : 1"] + (["scale : 1 (shared, constant)"] if p.gain != 1 else [])
        if p.name in self.felt:
            memoryless = self.populations[p.target].neurons.model == "current"
            share = f"{self.share!r}*" if memoryless and self.share != 1 else ""
            value = f"{share}{weight}*{self.built.outputs[p.source]}_pre"
            model.append(f"{self.felt[p.name]}_post = {value} : 1 (summed)")
            made = self._synapses(p, model)
            for updater in made.summed_updaters.values() if self.in_steps else ():
                updater.when, updater.order = "groups", self.places[p.target]
        elif p.plasticity is None:
            kick = self.equations[p.target].kicks[p.channel].format(weight=weight)
            made = self._synapses(p, model, on_pre=kick)
            self._transmit(p, made.pre)
        else:
            kick = self.equations[p.target].kicks[p.channel].format(weight=weight)
            rule = plastic(p.plasticity, kick)
            model += rule.model
            made = self._synapses(p, model, on_pre=rule.on_pre, on_post=rule.on_post)
            rule.set_constants(made, self.brian)
            self._transmit(p, made.transmit)
            self._learn(p, made)
        made.weight = p.weight
        if p.gain != 1:
            made.scale = p.gain
        self.built.synapses[p.name] = self._add(made)

    def _synapses(self, p: Projection, model: list[str], **pathways: Any) -> Any:
        groups, name = self.built.groups, self.names[f"{p.name} synapses"]
        made = self.brian.Synapses(
            groups[p.source],
            groups[p.target],
            "\n".join(model),
            name=name,
            **pathways,
            **self.clock,
        )
        made.connect(i=p.pre, j=p.post)
        return made

    def _transmit(self, p: Projection, path: Any) -> None:
        """Put what a spike does to a neuron where its turn is, and set delays."""
        if p.delay is not None:
            path.delay = p.delay * self.step
        if self.in_steps:
            path.when, path.order = "groups", self.places[p.target] + RECURRENT * p.recurrent

    def _learn(self, p: Projection, made: Any) -> None:
        """Put what spikes do to weights behind the threshold of the neurons."""
        assert p.plasticity is not None
        late = np.zeros(len(p.pre)) if p.delay is None else p.delay
        order = LEARNING if p.plasticity.coincident else LEARNING[2:] + LEARNING[:2]
        for k, name in enumerate(order):
            path = getattr(made, name)
            path.when = "groups" if self.in_steps else "synapses"
            path.order = LEARN + k + (self.places[p.target] if self.in_steps else 0)
            if name.startswith("pre"):
                path.delay = (late + (p.recurrent and self.in_steps)) * self.step

    def watch(self, p: Population, record: Sequence[str]) -> None:
        """Add the monitors of a layer."""
        b, group, name = self.brian, self.built.groups[p.name], self.names[p.name]
        states = [state for state in record if state != "spikes" and state in group.variables]
        if "spikes" in record and p.neurons.fires:
            self.built.spikes[p.name] = self._add(b.SpikeMonitor(group, name=f"{name}_spikes"))
        elif "spikes" in record and p is self.about.populations[-1]:
            states = list(dict.fromkeys([*states, self.built.outputs[p.name]]))
        if states:
            name, when = f"{name}_states", {"when": "end", **self.clock}
            made = b.StateMonitor(group, states, record=True, name=name, **when)
            self.built.states[p.name] = self._add(made)


def _declared(name: str, value: Parameter) -> str:
    shared = "" if np.ndim(value.value) else "shared, "
    return f"{name} : {value.dimension} ({shared}constant)"
