"""What a method is shown of the neurons: the mean output of each, once for every part of a step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spikecl.components import component
from spikecl.continual import Method, MethodSpec
from spikecl.data import load
from spikecl.encoding import Direct
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, TASK_FREE, permuted
from spikecl.trainers import Bptt, Tbptt

SHOWN = []


@component
class Watch(MethodSpec):
    """Keep what is shown, with the weights of that moment."""

    def start(self, context):
        return Watching(context.network)


class Watching(Method):
    def __init__(self, network):
        self.network = network

    def fired(self, rates, share):
        weights = {name: w.detach().clone() for name, w in self.network.weights().items()}
        SHOWN.append((dict(rates), share, weights))


def learner(trainer, lr=0.1):
    SHOWN.clear()
    return Learner(
        stream=permuted(load("digits"), experiences=1, seed=1),
        network=SpikingMlp(hidden=(7, 5), neuron=LIF(beta=0.7, v_th=0.3)).build((8, 8), 10),
        encoder=Direct(steps=6),
        trainer=trainer,
        methods=[Watch()],
        optimiser=Sgd(lr=lr),
        plan=TrainPlan(batch=32),
        seeds=Seeds(2),
        device=torch.device("cpu"),
    )


def test_the_mean_of_each_neuron_before_the_weights_change():
    made = learner(Bptt())
    ticks = made.ticks()
    while len(SHOWN) < 3:
        next(ticks)
    event = made.stream[0].train.load()
    order = torch.randperm(len(event), generator=made.seeds.generator("order", event=0, epoch=0))
    for step, (rates, share, weights) in enumerate(SHOWN):
        x = event.take(order[32 * step : 32 * step + 32]).x
        x = made.encoder.encode(x, made.statistics, None)
        made.network.set_parameters(weights)
        expected = made.network.record(x, variables=["spikes"])
        assert share == 1
        assert rates.keys() == {"hidden1", "hidden2"}
        for name, found in rates.items():
            want = torch.from_numpy(expected[name]["spikes"]).mean((0, 1))
            torch.testing.assert_close(found, want)
            assert found.shape == (7,) if name == "hidden1" else (5,)
    assert not torch.equal(SHOWN[0][2]["hidden1.weight"], SHOWN[1][2]["hidden1.weight"])


def test_parts_of_a_step_are_shares_of_it():
    whole = learner(Bptt(), lr=1e-12)
    next(t for t in whole.ticks() if t.kind == "step" and t.position.step == 1)
    ((expected, _, _),) = SHOWN
    parts = learner(Tbptt(steps=4), lr=1e-12)
    next(t for t in parts.ticks() if t.kind == "step" and t.position.step == 1)
    assert sum(share for _, share, _ in SHOWN) == 1
    assert len(SHOWN) == 2
    for name, rate in expected.items():
        torch.testing.assert_close(sum(r[name] * share for r, share, _ in SHOWN), rate)


def small(stream):
    return Learner(
        stream=stream,
        network=SpikingMlp(hidden=(7,), neuron=LIF(beta=0.7, v_th=0.3)).build((8, 8), 10),
        encoder=Direct(steps=2),
        trainer=Bptt(),
        methods=[],
        optimiser=Sgd(lr=0.1),
        plan=TrainPlan(batch=256, evaluate="present"),
        seeds=Seeds(2),
        device=torch.device("cpu"),
    )


def test_long_streams_test_what_was_taught_and_what_comes_next_alone():
    made = small(permuted(load("digits"), experiences=4, seed=1))
    for _ in made.ticks():
        pass
    matrix = made.scores.matrices()[1]
    tested = ~np.isnan(matrix.values)
    assert tested.tolist() == [
        [True] * 4,
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
        [True] * 4,
    ]
    assert np.isfinite([matrix.acc(), matrix.bwt(), matrix.fwt(), matrix.learning_accuracy()]).all()


def test_progress_of_long_streams_shows_the_last_test_of_each_set():
    made, shown = small(permuted(load("digits"), experiences=4, seed=1)), []
    for tick in made.ticks():
        if tick.kind == "event":
            shown.append(made.scores.so_far())
    v = made.scores.matrices()[1].values
    assert shown[3] == pytest.approx((v[1, 0] + v[2, 1] + v[3, 2]) / 3)
    assert shown[4] == pytest.approx(v[4].mean())


@pytest.mark.parametrize("reveal", [DOMAIN_IL, TASK_FREE], ids=["domain", "free"])
def test_no_event_is_made_once_for_each_of_the_others(reveal):
    stream, made = permuted(load("digits"), experiences=12, seed=1, reveal=reveal), []

    def make(i):
        made.append(i)
        return stream[i]

    learner = small(replace(stream, make=make))
    made.clear()
    for _ in learner.ticks():
        pass
    assert len(made) <= 3 * 12
