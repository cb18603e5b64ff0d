"""Half of the tensors stands still, to the last bit, with the optimiser's state of them."""

from __future__ import annotations

import pytest
import torch

from spikecl.continual import Finetune, Gpm, Ncl, Scaling, Sleep, Threshold, TwoSided
from spikecl.continual.metaplasticity.benna_fusi import BennaFusi
from spikecl.continual.metaplasticity.half import HalfFineTuning
from spikecl.continual.metaplasticity.mesu import Mesu
from spikecl.continual.metaplasticity.tacos import Tacos
from spikecl.errors import PairingError
from spikecl.networks import SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.streams import TASK_FREE

DEEP = {"hidden": (7, 6, 5, 4), "bias": True}
SPIKING = SpikingMlp(hidden=(7,), neuron=LIF(beta=0.5, v_th=0.1), learns=("v_th",), per_neuron=True)


@pytest.mark.parametrize("others", ["learn", "half"])
@pytest.mark.parametrize(
    "optimiser", [Adam(lr=0.02, weight_decay=0.1, state="carried"), Sgd(lr=0.3)]
)
def test_frozen_tensors_and_their_state_stay(lab, optimiser, others):
    learner = lab.learner(
        HalfFineTuning(others=others), optimiser=optimiser, stream=lab.stream(experiences=6), **DEEP
    )
    state = lambda: {  # noqa: E731
        n: {k: v.clone() for k, v in s.items()} for n, s in learner.optimiser.state_dict().items()
    }
    before, kept, chosen = lab.weights(learner), state(), []
    for tick in learner.ticks():
        if tick.kind != "event" or tick.position.event < 1:
            continue
        frozen = set(tick.rows[0]["value"]["frozen"])
        after, now = lab.weights(learner), state()
        for name in after:
            assert torch.equal(after[name], before[name]) == (name in frozen), name
            for key, value in kept.get(name, {}).items():
                same = torch.equal(now[name][key], value)
                assert same == (name in frozen)
        weights = sum(name.endswith("weight") for name in frozen)
        assert weights in (2, 3)  # of five
        assert len(frozen) - weights in ((2, 3) if others == "half" else (0,))
        chosen.append(key_of(frozen))
        before, kept = after, now
    assert len(chosen) == 6 and len(set(chosen)) > 3


def key_of(names):
    return tuple(sorted(names))


def test_a_share_of_none_is_plain_and_a_share_of_all_stands_still(lab):
    plain = lab.run(lab.learner(Finetune(), **DEEP))
    lab.equal(
        lab.weights(lab.run(lab.learner(HalfFineTuning(share=0.0), **DEEP))), lab.weights(plain)
    )
    still = lab.learner(HalfFineTuning(share=1.0, others="half"), **DEEP)
    start = lab.weights(still)
    lab.equal(lab.weights(lab.run(still)), start)


def test_a_rule_with_a_step_of_its_own_is_held_too(lab):
    learner = lab.learner(HalfFineTuning(), Mesu(), **DEEP)
    before = lab.weights(learner)
    lab.run(learner, until=0)
    frozen = lab.method(learner, "half").frozen
    after = lab.weights(learner)
    assert {n for n in after if torch.equal(after[n], before[n])} == set(frozen) != set()


def test_boundaries_have_to_be_shown(lab):
    with pytest.raises(PairingError, match="'half' needs boundary"):
        lab.learner(HalfFineTuning(), stream=lab.stream(TASK_FREE))


@pytest.mark.parametrize("gate", [BennaFusi(g=0.5), Tacos(beta=0.1, tau_ref=2.0)], ids=str)
def test_no_other_gate_moves_what_stands_still(lab, gate):
    for rules in ((HalfFineTuning(), gate), (gate, HalfFineTuning())):
        learner = lab.learner(*rules, stream=lab.stream(experiences=4), **DEEP)
        before = lab.weights(learner)
        for tick in learner.ticks():
            if tick.kind == "event" and tick.position.event > 0:
                frozen, after = lab.method(learner, "half").frozen, lab.weights(learner)
                still = {n for n in after if torch.equal(after[n], before[n])}
                assert still == set(frozen) != set()
                before = after


def test_it_says_what_stands_still(lab):
    learner = lab.learner(HalfFineTuning(), **DEEP)
    half = lab.method(learner, "half")
    assert half.still() == {}
    lab.run(learner, until=0)
    still, weights = half.still(), learner.network.weights()
    assert list(still) == half.frozen != []
    assert all(mask.all() and mask.shape == weights[name].shape for name, mask in still.items())


def test_projections_that_tie_rows_are_refused_and_others_leave_frozen_tensors(lab):
    for both in (TwoSided(), Ncl()):
        with pytest.raises(PairingError, match="holds entries of weights still"):
            lab.learner(HalfFineTuning(), both)
    learner = lab.learner(HalfFineTuning(), Gpm(), **DEEP)
    lab.run(learner, until=0)
    before = lab.weights(learner)
    lab.run(learner, until=1)
    after, frozen = lab.weights(learner), lab.method(learner, "half").frozen
    names = {n for n in after if n.endswith("weight")}
    assert {n for n in names if torch.equal(after[n], before[n])} == set(frozen) != set()


@pytest.mark.parametrize("method", [Scaling(), Sleep(steps=5)], ids=["scaling", "sleep"])
def test_who_writes_weights_beside_the_update_is_refused(lab, method):
    lab.learner(method, network=SPIKING)
    for both in ((HalfFineTuning(), method), (method, HalfFineTuning())):
        with pytest.raises(PairingError, match="'half' holds weights still, and method 's"):
            lab.learner(*both, network=SPIKING)


@pytest.mark.filterwarnings("ignore:layer .* cannot reach")
def test_thresholds_that_a_method_owns_are_not_drawn(lab):
    both = (HalfFineTuning(share=1.0, others="half"), Threshold(rate=0.05))
    learner = lab.learner(*both, network=SPIKING)
    before = lab.weights(learner)
    lab.run(learner)
    after = lab.weights(learner)
    own = {n for n in after if n.endswith("v_th")}
    assert {n for n in after if not torch.equal(after[n], before[n])} == own != set()
    assert set(lab.method(learner, "half").frozen) == set(after) - own
