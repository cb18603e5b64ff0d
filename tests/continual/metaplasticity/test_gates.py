"""What all these rules share: which weights they take, parts of steps, and resuming among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spikecl.components import component
from spikecl.continual import (
    Context,
    Cuber,
    Dendrites,
    Gating,
    Method,
    MethodSpec,
    Phase,
    Trgp,
)
from spikecl.continual.compose import method_name
from spikecl.continual.importance.ewc import Ewc
from spikecl.continual.importance.l2 import L2
from spikecl.continual.importance.mas import Mas
from spikecl.continual.importance.si import Si
from spikecl.continual.metaplasticity.benna_fusi import BennaFusi
from spikecl.continual.metaplasticity.bimu import Bimu
from spikecl.continual.metaplasticity.cascade import Cascade
from spikecl.continual.metaplasticity.gates import binary_weights, weights_of
from spikecl.continual.metaplasticity.half import HalfFineTuning
from spikecl.continual.metaplasticity.laborieux import Laborieux
from spikecl.continual.metaplasticity.mesu import Mesu
from spikecl.continual.metaplasticity.tacos import Tacos
from spikecl.encoding import Direct, StepCrossEntropy
from spikecl.errors import PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Binarise, Layer, Linear, Mlp, Network, SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, TASK_FREE, TASK_IL
from spikecl.trainers import Ottt

RULES = {
    "laborieux": (Laborieux(m=5.0),),
    "tacos": (Tacos(growth=0.5),),
    "probability": (Tacos(growth=0.5, updates="probability"),),
    "benna_fusi": (BennaFusi(g=0.5),),
    "cascade": (Cascade(),),
    "mesu": (Mesu(),),
    "bimu": (Bimu(),),
    "together": (Tacos(growth=0.5), BennaFusi(g=0.5), Laborieux(), Bimu()),
}


def windowed(lab, methods):
    """A spiking network whose weights change in every second step, without boundaries."""
    spec = SpikingMlp(
        hidden=(7,),
        neuron=LIF(beta=0.5, v_th=0.1),
        binary="fixed",
        readout="mean_current",
        bias=True,
    )
    return Learner(
        stream=lab.stream(TASK_FREE),
        network=spec.build((8,), 3),
        encoder=Direct(steps=4),
        trainer=Ottt(window=2, update="window"),
        methods=methods,
        optimiser=Adam(lr=0.01),
        plan=TrainPlan(batch=6, epochs=2),
        seeds=Seeds(3),
        device=torch.device("cpu"),
        loss=StepCrossEntropy(),
    )


@pytest.mark.parametrize("name", RULES)
def test_rules_work_in_parts_of_steps_and_resume_there(lab, name):
    whole, states, rows = windowed(lab, RULES[name]), [], []
    for tick in whole.ticks():
        rows += tick.rows
        if tick.kind == "step" and tick.position.step == 3:
            tensors, values = split(whole.state_dict())
            states.append((len(rows), join({n: t.clone() for n, t in tensors.items()}, values)))
            saved = sum(t.nbytes for t in split(whole.methods.state_dict())[0].values())
            assert whole.methods.nbytes() == saved
    count, state = states[2]
    again = windowed(lab, RULES[name])
    again.load_state_dict(state)
    assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]
    lab.equal(lab.weights(again), lab.weights(whole))
    start = lab.weights(windowed(lab, RULES[name]))
    assert all(not torch.equal(w, start[n]) for n, w in lab.weights(whole).items())


def mixed():
    """A binary layer before a readout that is not."""
    return Network(
        {
            "a": Layer(Linear(4, 3, maps=(Binarise(),), bias=True), None, inputs=("input",)),
            "out": Layer(Linear(3, 2), None, inputs=("a",)),
        }
    )


def context(network):
    return Context(network, Sgd(), Seeds(0), DOMAIN_IL, 2, torch.device("cpu"))


def test_binary_weights_alone_that_learn():
    network = mixed()
    assert weights_of(context(network), "x") == ["a.weight", "out.weight"]
    assert binary_weights(context(network), "x", "or not") == ["a.weight"]
    network.weights()["a.weight"].requires_grad_(False)
    assert weights_of(context(network), "x") == ["out.weight"]
    with pytest.raises(PairingError, match=r"'x' is about hidden weights.*\['a', 'out'\].*or not"):
        binary_weights(context(network), "x", "or not")


def test_frozen_weights_stay(lab):
    for rules in RULES.values():
        learner = lab.learner(*rules, binary="fixed", bias=True)
        # frozen before the run is described, as a network that is given
        network = learner.network
        network.weights()["hidden1.weight"].requires_grad_(False)
        stay = network.weights()["hidden1.weight"].detach().clone()
        spec = type("Given", (), {"build": lambda self, *a, network=network: network})()
        lab.run(lab.learner(*rules, network=spec))
        assert torch.equal(network.weights()["hidden1.weight"].detach(), stay)


def test_parts_of_whole_levels_are_refused(lab):
    for gate in (Laborieux(), Tacos(), BennaFusi()):
        with pytest.raises(PairingError, match="'cascade' moves synapses by whole levels"):
            lab.learner(gate, Cascade(), binary="fixed")
    lab.learner(HalfFineTuning(), Cascade(), binary="fixed")


@pytest.mark.parametrize("rule", [Mesu(), Bimu()])
@pytest.mark.parametrize("penalty", [Ewc, Si, Mas, L2])
def test_a_step_that_a_rule_would_not_take_is_refused(lab, rule, penalty):
    """It went unheard: the run was that of the rule alone."""
    with pytest.raises(PairingError, match="in place of the optimiser's.*use step='gradient'"):
        lab.learner(penalty(step="implicit", strength=1.0), rule, binary="fixed")
    one, strong = (
        lab.weights(lab.run(lab.learner(penalty(strength=s), rule, binary="fixed")))
        for s in (0.0, 30.0)
    )
    assert any(not torch.equal(one[name], strong[name]) for name in one)


NOTHING = [BennaFusi(), HalfFineTuning(), Laborieux(on="all"), Laborieux(), Mesu(), Tacos(), Bimu()]


@pytest.mark.parametrize("rule", NOTHING, ids=str)
def test_where_no_weight_learns_nothing_is_done_silently(rule):
    network = mixed()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(PairingError, match=f"method '{method_name(rule)}' is about weights that"):
        rule.start(context(network))
    network.weights()["a.weight"].requires_grad_(True)
    rule.start(context(network))


@pytest.mark.parametrize("rule", [Mesu(samples=2), Bimu(samples=2)], ids=["mesu", "bimu"])
def test_weights_that_are_drawn_leave_nothing_of_an_earlier_method_s(lab, rule):
    network = Mlp(hidden=(7,), binary="fixed" if isinstance(rule, Bimu) else "none")
    name = method_name(rule)
    for one in (rule, replace(rule, samples=1)):
        with pytest.raises(PairingError, match=f"'{name}' draws weights anew.*'shrunk'.*lost"):
            lab.learner(Shrunk(), one, network=network)
    late = Shrunk(later=True)
    with pytest.raises(PairingError, match=f"'{name}' with samples=2.*'shrunk'.*first alone"):
        lab.learner(late, rule, network=network)
    learner = lab.learner(late, replace(rule, samples=1), network=network)
    assert [*learner.methods.methods] == [name, "shrunk"]
    lab.run(learner)


@pytest.mark.parametrize("rule", [Mesu(), Mesu(samples=2)], ids=["one", "two"])
@pytest.mark.parametrize("other", [Dendrites(), Gating(), Trgp(), Cuber()], ids=method_name)
def test_drawn_weights_beside_those_of_contexts(lab, rule, other):
    stream = lab.stream(TASK_IL)
    refused = not isinstance(other, Gating) or rule.samples > 1  # others learn by its gradient
    if not refused:
        lab.learner(rule, other, stream=stream)
        return
    with pytest.raises(
        PairingError, match="would get lost|in the first alone|draws weights anew in"
    ):
        lab.learner(other, rule, stream=stream)


@component
class Shrunk(MethodSpec):
    """Weights of a step are smaller than those stored."""

    later: bool = False

    @property
    def phase(self):
        return Phase.NOISE if self.later else Phase.FIRST

    def start(self, context):
        return _Shrunk()


class _Shrunk(Method):
    def weights(self, weights):
        return {name: 0.5 * w for name, w in weights.items()}
