"""The base class leaves everything as it is; a description says what it needs."""

from __future__ import annotations

import inspect

import pytest
import torch

from spikecl.continual import Finetune, Hlop, JointTraining, Method, MethodSpec, Phase
from spikecl.continual.method import check_reveal
from spikecl.errors import PairingError
from spikecl.streams import CLASS_IL, TASK_FREE, TASK_IL, Batch, Reveal

PASSED_ON = {
    "training_set": ("samples", "view"),
    "extend_batch": ("batch",),
    "weights": ("weights",),
    "logits": ("logits",),
    "output_loss": ("loss", "logits", "batch"),
    "factors": ("factors", "batch"),
    "gradients": ("gradients",),
    "update": ("update",),
}
HOOKS = {
    *PASSED_ON,
    *(
        "begin",
        "errors",
        "fired",
        "answered",
        "leave",
        "after_step",
        "end_epoch",
        "end",
        "predict",
        "unlearn",
        "adapt",
        "travels",
        "report",
    ),
    *("still", "state_dict", "load_state_dict", "nbytes"),
}
FACTS = {"gathers", "own", "multiplies", "opens", "room", "writes", "remembers", "needs_gradient"}


def test_the_hooks_are_those_of_the_design():
    public = {name for name in vars(Method) if not name.startswith("_")}
    assert public == HOOKS | FACTS


@pytest.mark.parametrize("hook", PASSED_ON)
def test_a_hook_that_takes_a_value_gives_it_back(hook):
    assert tuple(inspect.signature(getattr(Method(), hook)).parameters) == PASSED_ON[hook]
    values = [object() for _ in PASSED_ON[hook]]
    assert getattr(Method(), hook)(*values) is values[0]


def test_the_others_do_nothing_and_keep_nothing():
    method = Method()
    assert method.begin(None) is None and method.end(None) is None
    assert method.after_step() is None and method.end_epoch() is None
    assert method.state_dict() == {} and method.report() == {} and method.nbytes() == 0
    assert method.still() == {} and (method.gathers, method.own, method.room) == ("", "", None)
    assert not method.writes and not method.remembers and not method.needs_gradient
    assert not method.multiplies and not method.opens
    assert method.travels().rows == {} and method.travels().more(0) == {}
    method.load_state_dict({})


def test_what_a_method_does_not_offer_is_not_silently_done():
    method = Method()
    for call in (
        lambda: method.predict(torch.zeros(1), None),
        lambda: method.unlearn(None),
        lambda: method.adapt(torch.zeros(1), None),
    ):
        with pytest.raises(NotImplementedError):
            call()


def test_phases_stand_in_the_order_of_the_design():
    order = ["EXTRA_GRADIENT", "GATE", "OPTIMISER", "NOISE", "PROJECTION", "AVERAGING"]
    around = ["FIRST", "AROUND"]
    assert [phase.name for phase in sorted(Phase)] == [*around, *order, "OBSERVATION"]


def test_defaults_of_a_description():
    assert MethodSpec.needs == Reveal.NONE and MethodSpec.slot is None
    assert MethodSpec.phase is Phase.EXTRA_GRADIENT and MethodSpec.offers == frozenset()
    with pytest.raises(TypeError):
        MethodSpec()


def test_what_the_methods_need():
    assert Finetune.needs == Reveal.NONE
    assert JointTraining.needs == Reveal.BOUNDARY | Reveal.OLD_DATA
    assert Hlop.needs == Reveal.BOUNDARY and Hlop.phase is Phase.PROJECTION


def test_check_reveal_names_both_sides_and_what_is_missing():
    needs = Reveal.BOUNDARY | Reveal.OLD_DATA | Reveal.LABELS
    with pytest.raises(PairingError) as caught:
        check_reveal("method", "replay", needs, "split-digits", TASK_FREE)
    message = str(caught.value)
    assert "method 'replay' needs boundary, old_data," in message
    assert "stream 'split-digits' hides" in message
    assert "(it reveals labels)" in message
    with pytest.raises(PairingError, match=r"\(it reveals nothing\)"):
        check_reveal("trainer", "bptt", Reveal.LABELS, "s", Reveal.NONE)


@pytest.mark.parametrize("reveal", [TASK_FREE, CLASS_IL, TASK_IL])
def test_check_reveal_lets_through_what_is_shown(reveal):
    check_reveal("method", "m", Reveal.NONE, "s", reveal)
    check_reveal("method", "m", reveal, "s", reveal)
    check_reveal("method", "m", Reveal.LABELS, "s", reveal)


def test_the_example_of_the_docstring():
    class Clip(Method):
        def gradients(self, gradients):
            return {name: g.clamp(-1, 1) for name, g in gradients.items()}

    clipped = Clip().gradients({"a.weight": torch.tensor([3.0, 0.5, -2.0])})
    assert clipped["a.weight"].tolist() == [1.0, 0.5, -1.0]
    assert Clip().extend_batch(Batch(None, None, None)) == (None, None, None)
