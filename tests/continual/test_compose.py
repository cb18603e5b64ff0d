"""Several methods as one: order, slots, and hooks that cost nothing."""

from __future__ import annotations

import pytest
import torch

from spikecl.continual import (
    Composition,
    Context,
    Finetune,
    Hlop,
    JointTraining,
    Method,
    MethodSpec,
    Phase,
)
from spikecl.continual.compose import check_slots, method_name
from spikecl.errors import PairingError
from spikecl.networks import SpikingMlp
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL


def context(optimiser=None) -> Context:
    network = SpikingMlp(hidden=(4,)).build((3,), 2)
    return Context(network, optimiser or Sgd(), Seeds(0), DOMAIN_IL, 2, torch.device("cpu"))


def spec_of(name: str, phase: Phase = Phase.GATE, slot: str | None = None, method=None):
    """A description whose running method writes its name down when called."""

    class Running(Method):
        def gradients(self, gradients):
            return [*gradients, name]

        def after_step(self):
            pass

    cls = type(name, (MethodSpec,), {"start": lambda self, context: (method or Running)()})
    cls.phase, cls.slot = phase, slot
    return cls()


def test_hooks_run_in_order_of_phase_whatever_the_order_given():
    specs = [spec_of(phase.name.lower(), phase) for phase in Phase]
    expected = [phase.name.lower() for phase in sorted(Phase)]
    for order in (specs, specs[::-1], specs[3:] + specs[:3]):
        composition = Composition(order, context())
        assert list(composition.methods) == expected
        said = []
        for hook in composition.hooks("gradients"):
            said = hook(said)
        assert said == expected


def test_one_phase_keeps_the_order_given():
    composition = Composition([spec_of(n) for n in "cab"], context())
    assert list(composition.methods) == ["c", "a", "b"]


def test_hooks_that_nobody_overrides_are_not_there():
    class Quiet(Method):
        def nbytes(self):
            return 3

    composition = Composition([spec_of("a"), spec_of("b", method=Quiet), Finetune()], context())
    assert len(composition.hooks("gradients")) == 1
    assert len(composition.hooks("after_step")) == 1
    rest = ("begin", "training_set", "extend_batch", "weights", "logits", "output_loss", "factors")
    for name in (*rest, "update", "end_epoch", "end", "predict", "unlearn", "adapt"):
        assert composition.hooks(name) == (), name
    assert composition.nbytes() == 3


def test_an_inherited_override_counts():
    class Base(Method):
        def end_epoch(self):
            pass

    class Child(Base):
        pass

    composition = Composition([spec_of("a", method=Child)], context())
    (hook,) = composition.hooks("end_epoch")
    assert hook.__self__ is composition.methods["a"]


def test_the_lower_bound_has_no_hook():
    composition = Composition([Finetune()], context())
    assert not any(composition.hooks(name) for name in vars(Method) if not name.startswith("_"))


@pytest.mark.parametrize(("optimiser", "expected"), [(Sgd(), 0), (Adam(), 1)])
def test_hlop_asks_for_the_update_only_where_it_must(optimiser, expected):
    assert len(Composition([Hlop()], context(optimiser)).hooks("update")) == expected


def test_two_of_one_slot_are_refused_and_named():
    specs = [spec_of("first", slot="memory"), spec_of("second", slot="memory")]
    message = "methods 'first' and 'second' both take the slot 'memory'; use one"
    with pytest.raises(PairingError, match=message):
        Composition(specs, context())
    check_slots(
        [spec_of("a", slot="memory"), spec_of("b", slot="gate"), spec_of("c"), spec_of("d")]
    )


def test_hlop_holds_the_projection():
    with pytest.raises(PairingError, match="'other' and 'hlop' both take the slot 'projection'"):
        Composition([Hlop(), spec_of("other", slot="projection")], context())


@pytest.mark.parametrize("specs", [[Finetune(), Finetune()], [Hlop(), Hlop(rows=(3,))]])
def test_one_method_twice_is_refused(specs):
    with pytest.raises(PairingError, match=f"'{method_name(specs[0])}' is named twice"):
        Composition(specs, context())


def test_nothing_is_started_when_refused():
    started = []

    class Loud(Method):
        def __init__(self):
            started.append(1)

    with pytest.raises(PairingError):
        Composition([spec_of("a", slot="s", method=Loud), spec_of("b", slot="s")], context())
    assert not started


def test_names():
    assert [method_name(s) for s in (Finetune(), JointTraining(), Hlop())] == [
        "finetune",
        "joint",
        "hlop",
    ]
    assert method_name(spec_of("MyOwn")) == "myown"


class Keeper(Method):
    """Has a state, bytes, and something to say once it was spoken to."""

    def __init__(self):
        self.value = torch.zeros(2)

    def report(self):
        return {"sum": float(self.value.sum())} if self.value.any() else {}

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]

    def nbytes(self):
        return 8


def test_states_go_to_their_owners():
    specs = [spec_of("a", method=Keeper), spec_of("b", method=Keeper), Finetune()]
    one, two = Composition(specs, context()), Composition(specs[::-1], context())
    one.methods["a"].value = torch.tensor([1.0, 2.0])
    two.load_state_dict(join(*split(one.state_dict())))
    assert two.methods["a"].value.tolist() == [1, 2]
    assert two.methods["b"].value.tolist() == [0, 0]
    assert one.nbytes() == 16
    assert two.report() == {"a": {"sum": 3.0}}  # b and the lower bound have nothing to say


@pytest.mark.parametrize("hook", ["predict", "adapt"])
def test_two_that_answer_are_refused(hook):
    both = type("Both", (Method,), {hook: lambda self, x, request: x})
    with pytest.raises(PairingError, match=rf"'a' and 'b' both answer .*\({hook}\)"):
        Composition([spec_of("a", method=both), spec_of("b", method=both)], context())
    Composition([spec_of("a", method=both), spec_of("b"), Finetune()], context())


def test_a_method_is_told_which_run_before_it():
    told = {}

    def start(self, given):
        told[method_name(self)] = given.before
        return Method()

    specs = [
        type(name, (MethodSpec,), {"start": start, "phase": phase})()
        for name, phase in (("late", Phase.AVERAGING), ("early", Phase.GATE), ("mid", Phase.NOISE))
    ]
    running = Composition(specs, context()).methods
    assert told["early"] == ()
    assert told["mid"] == (running["early"],)
    assert told["late"] == (running["early"], running["mid"])
