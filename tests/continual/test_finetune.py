"""The lower bound forgets, and is nothing but the host loop."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional

from spikecl.continual import Finetune, Method, MethodSpec
from spikecl.data import load
from spikecl.data.arrays import checked
from spikecl.encoding import Direct
from spikecl.errors import ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp, initialise
from spikecl.neurons import PLIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import CLASS_IL, TASK_FREE, TASK_IL, permuted, split_classes
from spikecl.trainers import Bptt


def digits():
    """A few of the digits, five classes to a task."""
    data = load("digits")
    arrays = {"x_train": data.x_train[:400], "y_train": data.y_train[:400]}
    arrays |= {"x_test": data.x_test[:200], "y_test": data.y_test[:200]}
    return checked(arrays, "few-digits", peak=16.0)


def run(network, methods=(), reveal=CLASS_IL, epochs=3, tasks=2):
    stream = split_classes(digits(), experiences=2, order=range(10), reveal=reveal).take(tasks)
    learner = Learner(
        stream=stream,
        network=network.build(stream.input_shape, stream.classes),
        encoder=Direct(steps=4),
        trainer=Bptt(),
        methods=methods,
        optimiser=Sgd(lr=0.3),
        plan=TrainPlan(epochs=epochs, batch=10),
        seeds=Seeds(1),
        device=torch.device("cpu"),
    )
    for _ in learner.ticks():
        pass
    return learner


@pytest.mark.parametrize(
    "network", [SpikingMlp(hidden=(30,)), Mlp(hidden=(30,))], ids=["snn", "ann"]
)
def test_two_tasks_with_one_head_forget_the_first(network):
    """specs/ann_methods.md 2.1: class-IL to 0, masked logits stay above chance."""
    learner = run(network, (Finetune(),), epochs=6)
    aware, agnostic = (m.values for m in learner.scores.matrices())
    assert agnostic[1, 0] > 0.9  # learned ...
    assert agnostic[2, 0] <= 0.05  # ... and forgotten
    assert agnostic[2, 1] > 0.9
    assert aware[2, 0] > 0.4  # 0.2 is chance among five classes
    assert learner.scores.matrices()[1].bwt() < -0.85


@pytest.mark.parametrize(("reveal", "moved"), [(TASK_IL, False), (CLASS_IL, True)], ids=str)
def test_a_shown_task_masks_the_training_too(reveal, moved):
    """With the task shown only its outputs compete: the rows of the others stay where they were."""
    network = Mlp(hidden=(30,))
    start = network.build((8, 8), 10)
    initialise(start, Seeds(1))
    start = start.weights()["readout.weight"]
    end = run(network, reveal=reveal, epochs=1, tasks=1).network.weights()["readout.weight"]
    assert torch.equal(end[5:], start[5:]) is not moved
    assert not torch.equal(end[:5], start[:5])


def test_it_is_the_host_loop_without_methods():
    class Idle(MethodSpec):
        """Overrides everything in the step with what the base does."""

        def start(self, context):
            return _Idle()

    class _Idle(Method):
        def extend_batch(self, batch):
            return batch

        def weights(self, weights):
            return weights

        def logits(self, logits):
            return logits

        def output_loss(self, loss, logits, batch):
            return loss

        def factors(self, factors, batch):
            return factors

        def gradients(self, gradients):
            return gradients

    network = SpikingMlp(hidden=(10,), bias=True)
    ends = [run(network, methods, epochs=1) for methods in ((), (Finetune(),), (Idle(),))]
    for other in ends[1:]:
        for name, p in ends[0].network.weights().items():
            assert torch.equal(p, other.network.weights()[name])
    assert ends[1].method_bytes == 0


# ---- one network for each experience ------------------------------------------------------------


def few():
    data = digits()
    arrays = {"x_train": data.x_train[:60], "y_train": data.y_train[:60]}
    arrays |= {"x_test": data.x_test[:40], "y_test": data.y_test[:40]}
    return checked(arrays, "very-few-digits", peak=16.0)


def restarting(network, optimiser=None, restart=True, stream=None, trainer=None):
    stream = stream or permuted(few(), experiences=3)
    return Learner(
        stream=stream,
        network=network.build(stream.input_shape, stream.classes),
        encoder=Direct(steps=4),
        trainer=trainer or Bptt(),
        methods=(Finetune(restart=restart),),
        optimiser=optimiser or Sgd(lr=0.3, momentum=0.9),
        plan=TrainPlan(epochs=2, batch=20),
        seeds=Seeds(1),
        device=torch.device("cpu"),
    )


def held(learner):
    state = {**learner.network.weights(), **learner.network.statistics()}
    return {name: value.detach().clone() for name, value in state.items()}


def test_restart_is_one_network_for_each_experience():
    """By hand: initial weights, a fresh optimiser, one task; three times."""
    spec = Mlp(hidden=(20,), bias=True)
    learner = restarting(spec)
    ends = [held(learner) for tick in learner.ticks() if tick.kind == "event"][1:]
    mean, std = learner.statistics
    for task, event in enumerate(learner.stream):
        network, data = spec.build((8, 8), 10), event.train.load()
        initialise(network, Seeds(1))
        optimiser = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
        for epoch in range(2):
            generator = Seeds(1).generator("order", event=task, epoch=epoch)
            for picked in torch.randperm(len(data), generator=generator).split(20):
                x = (data.x[picked] / data.peak - mean) / std
                optimiser.zero_grad()
                logits = network(x.expand(4, *x.shape)).logits
                functional.cross_entropy(logits, data.y[picked]).backward()
                optimiser.step()
        for name, p in network.weights().items():
            torch.testing.assert_close(ends[task][name], p.detach(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("optimiser", [None, Adam(lr=0.01)], ids=["momentum", "adam"])
def test_restart_puts_back_all_that_learned(optimiser):
    """Norms with their statistics, neurons and optimiser too; only the data differ."""
    spec = SpikingMlp(hidden=(20,), norm="batch", neuron=PLIF(v_th=0.5))
    learner = restarting(spec, optimiser)
    start, begun = None, []
    for tick in learner.ticks():
        if tick.kind == "event" and start is None:
            start = held(learner)
        if tick.kind == "event" and len(begun) < 2:
            learner.methods.hooks("begin")[0](None)
            begun.append(held(learner))
    for found in begun:
        assert found.keys() == start.keys()
        assert all(torch.equal(start[name], value) for name, value in found.items())


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
def test_restart_puts_back_what_the_trainer_learned():
    """Feedback that learns as weights do (Kolen-Pollack)."""
    spec = SpikingMlp(hidden=(20, 9), neuron=PLIF(v_th=0.5))
    learner = restarting(spec, Sgd(lr=0.3, weight_decay=0.01), trainer=Bptt(feedback="adaptive"))
    begun = []
    for tick in learner.ticks():
        if tick.kind == "event":
            moved = {n: v.clone() for n, v in learner.state_dict()["trainer"].items()}
            learner.methods.hooks("begin")[0](None)
            begun.append(
                (moved, {n: v.clone() for n, v in learner.state_dict()["trainer"].items()})
            )
    start = begun[0][1]
    assert start
    for moved, found in begun[1:]:
        assert all(
            torch.equal(found[n], v) and not torch.equal(moved[n], v) for n, v in start.items()
        )


def test_restart_changes_nothing_in_the_first_experience():
    stream = permuted(few(), experiences=1)
    spec = SpikingMlp(hidden=(20,), bias=True)
    ends = []
    for restart in (True, False):
        learner = restarting(spec, restart=restart, stream=stream)
        for _ in learner.ticks():
            pass
        ends.append(held(learner))
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


def test_a_stopped_experience_goes_on_and_does_not_begin_anew():
    spec = SpikingMlp(hidden=(20,), bias=True)
    whole, states = restarting(spec), []
    for tick in whole.ticks():
        if tick.kind == "step" and tick.position.event and tick.position.step == 1:
            tensors, values = split(whole.state_dict())
            states.append(({n: t.clone() for n, t in tensors.items()}, json.dumps(values)))
    assert len(states) == 4
    for tensors, values in states:
        again = restarting(spec)
        again.load_state_dict(join(tensors, json.loads(values)))
        for _ in again.ticks():
            pass
        assert all(torch.equal(held(whole)[name], value) for name, value in held(again).items())


def test_restart_needs_boundaries_and_says_so():
    hidden = permuted(few(), experiences=2).with_reveal(TASK_FREE)
    with pytest.raises(PairingError, match=r"restart=true .* stream hides them; use restart=false"):
        restarting(Mlp(hidden=(5,)), stream=hidden)
    restarting(Mlp(hidden=(5,)), restart=False, stream=hidden)
    with pytest.raises(ConfigError, match="restart"):
        Finetune(restart="always")


def test_restart_keeps_nothing():
    learner = restarting(Mlp(hidden=(5,)))
    for _ in learner.ticks():
        pass
    assert learner.methods.nbytes() == 0 and learner.methods.state_dict() == {"finetune": {}}
