"""The lower bound forgets, and is nothing but the host loop."""

from __future__ import annotations

import pytest
import torch

from spikecl.continual import Finetune, Method, MethodSpec
from spikecl.data import load
from spikecl.data.arrays import checked
from spikecl.encoding import Direct
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp, initialise
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import CLASS_IL, TASK_IL, split_classes
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
    aware, agnostic = (m.values for m in learner.matrices())
    assert agnostic[1, 0] > 0.9  # learned ...
    assert agnostic[2, 0] <= 0.05  # ... and forgotten
    assert agnostic[2, 1] > 0.9
    assert aware[2, 0] > 0.4  # 0.2 is chance among five classes
    assert learner.matrices()[1].bwt() < -0.85


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
