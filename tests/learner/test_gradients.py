"""From factors to the gradients of what is stored; and who may touch which of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from spikecl.continual import Finetune, Hlop, JointTraining, Method, MethodSpec
from spikecl.encoding import Direct
from spikecl.errors import PairingError, UsageError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    BatchNorm,
    Factor,
    NetworkSpec,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import LIF, PLIF, ConductanceLIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, Experience, Reveal, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CPU, N, T, CLASSES = torch.device("cpu"), 16, 4, 3


def stream_of(*sizes, image=False, reveal=DOMAIN_IL):
    sets = []
    for i, size in enumerate(sizes):
        shape = (size, 4, 4) if image else (size, N)
        x = torch.rand(shape, generator=torch.Generator().manual_seed(i))
        sets.append(Samples((Part(x, torch.arange(size) % CLASSES, torch.arange(size)),)))
    events = [Experience(i, s, (0, 1, 2), task=i) for i, s in enumerate(sets)]
    tests = {f"task{i}": EvalSet(s, (0, 1, 2), (i,)) for i, s in enumerate(sets)}
    shape = (4, 4) if image else (N,)
    return Stream("made", {}, 0, reveal, CLASSES, shape, len(events), lambda i: events[i], tests)


def learner_of(given, *methods, optimiser=None, image=False, reveal=DOMAIN_IL):
    stream = stream_of(12, 12, image=image, reveal=reveal)
    if isinstance(given, NetworkSpec):
        given = given.build(stream.input_shape, CLASSES)
    for layer in given.layers.values():
        if isinstance(layer.norm, BatchNorm):
            layer.norm.momentum = 1.0  # of so few steps, that what is held lets neurons fire
    return Learner(
        stream=stream,
        network=given,
        encoder=Direct(steps=T, centre=False),
        trainer=Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.2),
        plan=TrainPlan(batch=4, epochs=2),
        seeds=Seeds(1),
        device=CPU,
    )


def moved(learner):
    """Names of the parameters that moved in each experience."""
    found, before = [], None
    for tick in learner.ticks():
        if tick.kind == "event":
            now = {n: p.detach().clone() for n, p in learner.network.weights().items()}
            if before is not None:
                found.append({n for n in now if not torch.equal(now[n], before[n])})
            before = now
    return found


def test_every_parameter_has_a_gradient_and_a_changed_factor_counts():
    network = SpikingMlp(hidden=(6,), neuron=PLIF(v_th=0.2), bias=True, norm="batch").build((N,), 3)
    initialise(network, Seeds(0))
    x, y = torch.rand(T, 5, N), torch.arange(5) % 3
    factors = Bptt().factors(network, x, lambda z: functional.cross_entropy(z, y))
    found = form_gradients(network, factors.synapses, factors.direct)
    assert found.keys() == network.weights().keys()
    f = factors.synapses["readout"]
    other = {**factors.synapses, "readout": Factor(f.x, 2 * f.delta, f.transmitted)}
    twice = form_gradients(network, other, factors.direct)
    for name in found:
        times = 2 if name.startswith("readout") else 1
        torch.testing.assert_close(twice[name], times * found[name])
    assert all(p.grad is None for p in network.parameters())


LIVELY = LIF(beta=0.5, v_th=0.3)
TRAINABLE = {
    "plif": SpikingMlp(hidden=(9,), neuron=PLIF(v_th=0.2), bias=True),
    "norm": SpikingMlp(hidden=(9,), neuron=LIVELY, norm="batch"),
    "both": SpikingMlp(
        hidden=(9,), neuron=LIVELY, norm="batch", learns=("beta", "v_th"), per_neuron=True
    ),
    "conv": SpikingConvNet(
        channels=(4,), kernel=3, pool_size=1, neuron=PLIF(v_th=0.2), norm="batch"
    ),
}


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.2, momentum=0.9), Adam(lr=0.01)])
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("kind", TRAINABLE)
def test_hlop_freezes_what_is_no_weight_after_the_first_experience(kind, faithful, optimiser):
    method = Hlop(rows=(2,), faithful=faithful)
    learner = learner_of(TRAINABLE[kind], method, optimiser=optimiser, image=kind == "conv")
    weights = {f"{path}.weight" for path in learner.network.synapses}
    others = learner.network.weights().keys() - weights
    first, second = moved(learner)
    assert others and first >= others - {n for n in others if n.endswith("bias")}
    assert second == weights
    free = learner_of(TRAINABLE[kind], Finetune(), optimiser=optimiser, image=kind == "conv")
    assert moved(free)[1] >= others - {n for n in others if n.endswith("bias")}


MAPPED = {
    "Standardise": SpikingMlp(hidden=(9,), standardise=True),
    "Dale": SpikingMlp(hidden=(9,), excitatory=0.8),
    "SynapticDelays": SpikingMlp(hidden=(9,), delay=2),
    "NoAutapses": SpikingRecurrentNet(hidden=(9,)),
    "SplitSigns": SpikingMlp(hidden=(9,), neuron=ConductanceLIF()),
}


@pytest.mark.parametrize("optimiser", [Sgd(), Adam()])
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("kind", MAPPED)
def test_hlop_refuses_weights_behind_maps(kind, faithful, optimiser):
    if kind == "NoAutapses" and not faithful:
        learner_of(MAPPED[kind], Hlop(), optimiser=optimiser)  # projected with their zeros
        return
    with pytest.raises(PairingError, match=rf"method 'hlop' protects weights.*\({kind}\)"):
        learner_of(MAPPED[kind], Hlop(faithful=faithful), optimiser=optimiser)


def test_hlop_keeps_old_responses_of_a_convolution():
    """Rows are patches: what the first task's patches gave, they give after the second."""
    spec = SpikingConvNet(channels=(4,), kernel=2, pool_size=1, neuron=LIF(beta=0.5, v_th=0.2))
    for method, kept in ((Hlop(rows=(3,), rate=1.0, iterations=20), True), (Finetune(), False)):
        learner = learner_of(spec, method, image=True)
        weight = learner.network.weights()["conv1.weight"]
        after = []
        for tick in learner.ticks():
            if tick.kind == "event":
                after.append(weight.detach().clone())
        if not kept:
            baseline = (after[2] - after[1]).flatten(1)
            continue
        lateral = learner.methods.methods["hlop"].protection.lateral["conv1"]
        change = (after[2] - after[1]).flatten(1)
        old = lateral.old[:3]
        assert len(lateral.old) == 4  # all four directions of a 2x2 patch are taken in the end
        assert float((change @ old.T).abs().max()) < 1e-6 * float(change.abs().max()) + 1e-8
    assert float((baseline @ old.T).abs().max()) > 1e-3


DEEP = SpikingMlp(hidden=(9, 8), neuron=PLIF(v_th=0.2), bias=True, norm="batch")


def frozen(*names, kind=DEEP):
    """Return a network whose weights have values of their own, some of them frozen."""
    network = kind.build((N,), CLASSES)
    initialise(network, Seeds(7))
    with torch.no_grad():
        for name, p in network.weights().items():
            p.mul_(1.1)
            p.requires_grad_(not any(part in name for part in names))
    return network


class Restless(Method):
    """Moves whatever it can reach."""

    def update(self, update):
        return {name: change + 0.01 for name, change in update.items()}


class RestlessSpec(MethodSpec):
    def start(self, context):
        return Restless()


METHODS = {
    "finetune": Finetune(),
    "hlop": Hlop(rows=(2,)),
    "faithful": Hlop(rows=(2,), faithful=True),
    "restless": RestlessSpec(),
    "joint": JointTraining(),
}
OPTIMISERS = {
    "sgd": Sgd(lr=0.2, momentum=0.9, weight_decay=0.1),
    "plain": Sgd(lr=0.2),
    "adam": Adam(lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=list(OPTIMISERS))
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
@pytest.mark.parametrize(
    "names", [("hidden1.weight",), ("hidden2.", "readout.bias"), ("weight",), ("neuron", "norm")]
)
def test_frozen_parameters_stay_as_they_were_given(names, method, optimiser):
    network = frozen(*names)
    given = {n: p.detach().clone() for n, p in network.weights().items()}
    still = {n for n, p in network.weights().items() if not p.requires_grad}
    learner = learner_of(network, method, optimiser=optimiser, reveal=DOMAIN_IL | Reveal.OLD_DATA)
    weights = learner.network.weights()
    drawn = {n for n in given if n.endswith("weight")}
    assert all(torch.equal(weights[n], given[n]) == (n in still) for n in drawn)
    first, second = moved(learner)
    assert all(torch.equal(weights[n], given[n]) for n in still)
    assert not (first | second) & still
    loud = {n for n in given.keys() - still if not n.endswith("bias")}  # norms take biases out
    assert first >= loud
    assert second >= ({n for n in loud if n in drawn} if isinstance(method, Hlop) else loud)


def test_frozen_synapses_behind_maps_are_left_alone():
    kind = SpikingMlp(hidden=(9, 8), neuron=LIVELY, standardise=True, delay=2)
    network = frozen("hidden1.", "hidden2.gain", kind=kind)
    given = {n: p.detach().clone() for n, p in network.weights().items()}
    first, second = moved(learner_of(network, Finetune(), optimiser=OPTIMISERS["sgd"]))
    assert first == second == {"hidden2.weight", "hidden2.delay", "readout.weight"}
    assert all(torch.equal(network.weights()[n], given[n]) for n in given.keys() - first)


def test_a_frozen_layer_still_passes_gradients_on():
    network = frozen("hidden2.weight", "readout.weight")
    x, y = torch.rand(T, 5, N), torch.arange(5) % 3
    factors = Bptt().factors(network, x, lambda z: functional.cross_entropy(z, y))
    found = form_gradients(network, factors.synapses, factors.direct)
    assert found.keys() == {n for n, p in network.weights().items() if p.requires_grad}
    for p in network.parameters():
        p.requires_grad_()
    whole = form_gradients(network, factors.synapses, factors.direct)
    assert bool(found["hidden1.weight"].any())
    assert all(torch.equal(found[n], whole[n]) for n in found)


def test_a_network_without_anything_to_train_is_refused():
    network = frozen("")
    before = {n: p.detach().clone() for n, p in network.weights().items()}
    with pytest.raises(UsageError, match="all parameters of the network are frozen.*nothing is"):
        learner_of(network, Finetune())
    assert all(torch.equal(p, before[n]) for n, p in network.weights().items())


class Probe(Method):
    """Writes down all parameters and statistics when an experience begins."""

    def __init__(self, network):
        self.network, self.begun = network, []

    def begin(self, view):
        values = {**self.network.weights(), **self.network.statistics()}
        self.begun.append({n: t.detach().clone() for n, t in values.items()})


class ProbeSpec(MethodSpec):
    def start(self, context):
        return Probe(context.network)


LEARNING = SpikingMlp(
    hidden=(9,), neuron=PLIF(v_th=0.2), norm="batch", standardise=True, delay=2, bias=True
)


def test_joint_training_starts_over_with_everything():
    """Gains, delays, norms, their statistics and neurons, not weights alone."""
    learner = learner_of(LEARNING, JointTraining(), ProbeSpec(), reveal=DOMAIN_IL | Reveal.OLD_DATA)
    first = {**learner.network.weights(), **learner.network.statistics()}
    first = {n: t.detach().clone() for n, t in first.items()}
    for _ in learner.ticks():
        pass
    for begun in learner.methods.methods["probespec"].begun:
        assert begun.keys() == first.keys()
        assert all(torch.equal(t, first[n]) for n, t in begun.items())
    now = {**learner.network.weights(), **learner.network.statistics()}
    still = [n for n in first if torch.equal(now[n], first[n])]
    assert still in ([], ["hidden1.bias"])  # a norm takes a bias out again


def test_a_network_serves_one_run_after_the_other():
    ends = []
    network = LEARNING.build((N,), CLASSES)
    for _ in range(2):
        learner = learner_of(network, Finetune())
        for _ in learner.ticks():
            pass
        ends.append({n: t.clone() for n, t in network.state_dict().items()})
    assert all(torch.equal(t, ends[1][n]) for n, t in ends[0].items())
