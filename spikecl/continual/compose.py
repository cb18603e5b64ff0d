"""Several methods as one: hooks resolved once, run in the order of their phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from spikecl.continual.method import Context, Method, MethodSpec, Phase, overrides
from spikecl.errors import PairingError
from spikecl.registry import METHODS
from spikecl.storage import State


class Composition:
    """Running methods in order of phase."""

    def __init__(self, specs: Sequence[MethodSpec], context: Context):
        # within a phase, whoever holds an exclusive slot comes last: one projector ends all
        ordered = sorted(specs, key=lambda spec: (spec.phase, spec.slot is not None))
        names = [method_name(spec) for spec in ordered]
        check_slots(ordered)
        self.methods: dict[str, Method] = {}
        self._around = [n for n, s in zip(names, ordered) if s.phase == Phase.AROUND]
        for name, spec in zip(names, ordered, strict=True):
            started = tuple(self.methods.values())
            self.methods[name] = spec.start(replace(context, before=started))
        self._check_answers()

    def hooks(self, name: str) -> tuple[Callable[..., Any], ...]:
        """Return the bound hooks of a name, of those methods alone that override it."""
        methods = dict(self.methods)
        if name == "begin":
            opening = [each for each, method in methods.items() if method.opens]
            methods = {each: methods[each] for each in dict.fromkeys([*opening, *methods])}
        if name == "after_step":
            methods |= {each: methods.pop(each) for each in self._around}  # come last
        return tuple(
            getattr(method, name) for method in methods.values() if overrides(method, name)
        )

    def _check_answers(self) -> None:
        for hook in ("predict", "adapt"):
            names = [name for name, method in self.methods.items() if overrides(method, hook)]
            if len(names) > 1:
                raise PairingError(
                    f"methods '{names[0]}' and '{names[1]}' both answer with their own logits "
                    f"({hook}); use one"
                )

    def state_dict(self) -> State:
        """Return the state of every method by name."""
        return {name: method.state_dict() for name, method in self.methods.items()}

    def load_state_dict(self, state: State) -> None:
        """Take the states back."""
        for name, method in self.methods.items():
            method.load_state_dict(state.get(name, {}))

    def nbytes(self) -> int:
        """Return the bytes all methods keep."""
        return sum(method.nbytes() for method in self.methods.values())

    def report(self) -> dict[str, dict[str, object]]:
        """Return what the methods have to say after an event."""
        said = {name: method.report() for name, method in self.methods.items()}
        return {name: values for name, values in said.items() if values}


def method_name(spec: MethodSpec) -> str:
    """Return the registered name of a method, or its class name."""
    return METHODS.name_of(type(spec)) or type(spec).__name__.lower()


def check_slots(specs: Sequence[MethodSpec]) -> None:
    """Refuse two methods of one exclusive slot, or one method twice."""
    taken: dict[str, str] = {}
    for spec in specs:
        name = method_name(spec)
        for slot in (name, spec.slot):
            if slot is not None and taken.setdefault(slot, name) != name:
                raise PairingError(
                    f"methods '{taken[slot]}' and '{name}' both take the slot '{slot}'; use one"
                )
    names = [method_name(spec) for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise PairingError(
                f"method '{name}' is named twice; name it once: one method has one set of settings"
            )
