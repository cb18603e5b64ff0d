"""The upper bound: all data so far, from the initial weights or going on."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from spikecl.continual import Finetune, JointTraining, Method, MethodSpec
from spikecl.data import load
from spikecl.data.arrays import checked
from spikecl.encoding import Direct
from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp, initialise
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import CLASS_IL, DOMAIN_IL, TASK_FREE, TASK_IL, Reveal, permuted, split_classes
from spikecl.trainers import Bptt


def clusters(classes: int = 4, per: int = 30, n: int = 12):
    rng = np.random.default_rng(0)
    centres = rng.random((classes, n))
    y = np.arange(classes * per) % classes
    x = np.clip(centres[y] + 0.08 * rng.standard_normal((len(y), n)), 0, 1).astype(np.float32)
    cut = len(y) * 2 // 3
    arrays = {"x_train": x[:cut], "y_train": y[:cut], "x_test": x[cut:], "y_test": y[cut:]}
    return checked(arrays, "clusters")


def learner_of(stream, methods, *, network=None, optimiser=None, epochs=2, **options):
    network = network or SpikingMlp(hidden=(16,))
    return Learner(
        stream=stream,
        network=network.build(stream.input_shape, stream.classes),
        encoder=Direct(steps=4),
        trainer=Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.2, momentum=0.5),
        plan=TrainPlan(epochs=epochs, batch=10),
        seeds=Seeds(3),
        device=torch.device("cpu"),
        **options,
    )


def run(stream, methods, **kwargs):
    learner = learner_of(stream, methods, **kwargs)
    for _ in learner.ticks():
        pass
    return learner


def weights(learner):
    return {n: p.detach() for n, p in learner.network.weights().items()}


def assert_same(a, b):
    for name, p in weights(a).items():
        assert torch.equal(p, weights(b)[name]), name


class Count(MethodSpec):
    """Note the ids of every batch."""

    def start(self, context):
        return _Count()


class _Count(Method):
    def __init__(self):
        self.seen = [[]]

    def extend_batch(self, batch):
        self.seen[-1].extend(batch.uid.tolist())
        return batch

    def end_epoch(self):
        self.seen.append([])


@pytest.mark.parametrize("reveal", [DOMAIN_IL, CLASS_IL, TASK_FREE | Reveal.OLD_DATA])
def test_needs_old_data_and_boundaries(reveal):
    stream = split_classes(clusters(), experiences=2, reveal=reveal)
    missing = (Reveal.BOUNDARY | Reveal.OLD_DATA) & ~reveal
    with pytest.raises(PairingError) as caught:
        learner_of(stream, (JointTraining(),))
    message = str(caught.value)
    assert f"method 'joint' needs {', '.join(missing.names())}, which" in message
    assert "stream 'split_classes-clusters' hides" in message


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize(
    "optimiser", [Sgd(lr=0.2, momentum=0.5), Adam(lr=0.01)], ids=["sgd", "adam"]
)
def test_one_experience_equals_fine_tuning_bit_for_bit(restart, optimiser):
    stream = permuted(clusters(), experiences=1, old_data=True)
    joint = run(stream, (JointTraining(restart=restart),), optimiser=optimiser)
    plain = run(stream, (Finetune(),), optimiser=optimiser)
    assert_same(joint, plain)
    assert np.array_equal(joint.scores.matrices()[0].values, plain.scores.matrices()[0].values)


def test_trains_on_the_union_of_all_so_far():
    reveal = DOMAIN_IL | Reveal.OLD_DATA | Reveal.SAMPLE_IDS
    stream = split_classes(clusters(), experiences=4, reveal=reveal)
    learner = run(stream, (JointTraining(), Count()), epochs=1)
    seen = learner.methods.methods["count"].seen[:-1]
    so_far = []
    for i, event in enumerate(stream):
        so_far += event.train.load().uid.tolist()
        assert sorted(seen[i]) == sorted(so_far)
    assert len(seen) == 4 and len(so_far) == 80


def test_restart_begins_each_experience_from_the_initial_weights():
    """So the last row is joint training proper: it does not depend on how often one stopped."""
    stream = permuted(clusters(), experiences=3, old_data=True)
    learner = learner_of(stream, (JointTraining(),))
    ends = []
    for tick in learner.ticks():
        if tick.kind == "event":
            ends.append({n: p.clone() for n, p in weights(learner).items()})
    initial = learner_of(stream, ())
    initialise(initial.network, Seeds(3))
    for name, p in weights(initial).items():
        assert torch.equal(ends[0][name], p)

    by_hand = _JointByHand.run(stream, Seeds(3))
    for name, p in by_hand.items():
        torch.testing.assert_close(ends[3][name], p, rtol=0, atol=1e-5)


class _Built:
    """A network that is there already."""

    def __init__(self, network):
        self.network = network

    def build(self, shape, classes):
        return self.network


@pytest.mark.parametrize("method", [JointTraining(), Finetune(restart=True)])
def test_initial_weights_are_those_that_were_given(method):
    """Norms, their statistics and what neurons learn, too; and behind a stop."""
    network = SpikingMlp(hidden=(16,), norm="batch", learns=("v_th",)).build((12,), 4)
    initialise(network, Seeds(7))
    with torch.no_grad():
        for each in (*network.weights().values(), *network.statistics().values()):
            each.add_(0.1)
    wanted = {**network.weights(), **network.statistics()}
    wanted = {name: each.detach().clone() for name, each in wanted.items()}
    stopped, stream = copy.deepcopy(network), permuted(clusters(), experiences=3, old_data=True)

    def started(network):
        return learner_of(stream, (method, Watch()), network=_Built(network), initial="given")

    learner, half = started(network), None
    for tick in learner.ticks():
        if half is None and tick.position.event == 0 and tick.position.step == 2:
            half = copy.deepcopy(learner.state_dict())
    again = started(stopped)
    again.load_state_dict(half)
    for _ in again.ticks():
        pass
    for run, count in ((learner, 3), (again, 2)):
        begun = run.methods.methods["watch"].begun
        assert len(begun) == count
        assert all(torch.equal(each, wanted[n]) for found in begun for n, each in found.items())
        assert not torch.equal(weights(run)["hidden1.weight"], wanted["hidden1.weight"])


@pytest.mark.parametrize("method", [JointTraining(), Finetune(restart=True)])
def test_beginning_anew_forgets_what_the_optimiser_knows(method):
    stream = permuted(clusters(), experiences=2, old_data=True)
    with pytest.raises(PairingError, match="restart=true.*optimiser.state='carried'.*use 'fresh'"):
        learner_of(stream, (method,), optimiser=Adam(state="carried"))
    learner_of(stream, (type(method)(restart=False),), optimiser=Adam(state="carried"))


class _JointByHand:
    """Plain torch: fresh weights, fresh optimiser, the union of all three tasks."""

    @staticmethod
    def run(stream, seeds):
        network = SpikingMlp(hidden=(16,)).build((12,), 4)
        initialise(network, seeds)
        loaded = [event.train.load() for event in stream]
        x, y = (torch.cat(parts) for parts in ([d.x for d in loaded], [d.y for d in loaded]))
        mean, std = loaded[0].x.double().mean(), loaded[0].x.double().std()
        x = (x - float(mean)) / float(std)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.5)
        for epoch in range(2):
            order = torch.randperm(len(x), generator=seeds.generator("order", event=2, epoch=epoch))
            for picked in order.split(10):
                optimiser.zero_grad()
                logits = network(x[picked].repeat(4, 1, 1)).logits
                torch.nn.functional.cross_entropy(logits, y[picked]).backward()
                optimiser.step()
        return {n: p.detach() for n, p in network.weights().items()}


@pytest.mark.parametrize("method", [JointTraining(), Finetune(restart=True)])
def test_others_begin_behind_a_restart(method):
    """Whoever takes down the weights where it begins has those that are trained, in any order."""
    stream = permuted(clusters(), experiences=2, old_data=True)
    learner = learner_of(stream, (Watch(), method))
    for _ in learner.ticks():
        pass
    first, second = learner.methods.methods["watch"].begun
    assert all(torch.equal(each, second[name]) for name, each in first.items())


def test_without_restart_training_goes_on():
    stream = permuted(clusters(), experiences=2, old_data=True)
    learner = learner_of(stream, (JointTraining(restart=False), Watch()))
    at_event = {}
    for tick in learner.ticks():
        if tick.kind == "event":
            at_event[tick.position.event] = {n: p.clone() for n, p in weights(learner).items()}
    begun = learner.methods.methods["watch"].begun
    restarted = learner_of(stream, (JointTraining(), Watch()))
    for _ in restarted.ticks():
        pass
    for name, p in at_event[1].items():
        assert torch.equal(begun[1][name], p)
        assert not torch.equal(restarted.methods.methods["watch"].begun[1][name], p)
        assert torch.equal(restarted.methods.methods["watch"].begun[1][name], begun[0][name])


class Watch(MethodSpec):
    """Copy the weights after every begin."""

    def start(self, context):
        return _Watch(context.network)


class _Watch(Method):
    def __init__(self, network):
        self.network, self.begun = network, []

    def begin(self, view):
        held = {**self.network.weights(), **self.network.statistics()}
        self.begun.append({name: each.detach().clone() for name, each in held.items()})


def test_does_not_forget_where_fine_tuning_does():
    data = load("digits")
    arrays = {"x_train": data.x_train[:300], "y_train": data.y_train[:300]}
    arrays |= {"x_test": data.x_test[:150], "y_test": data.y_test[:150]}
    few = checked(arrays, "few-digits", peak=16.0)
    stream = split_classes(few, experiences=2, order=range(10), old_data=True)
    accuracies = [
        run(stream, (method,), network=Mlp(hidden=(30,)), epochs=6).scores.matrices()[1].final[0]
        for method in (JointTraining(), Finetune())
    ]
    assert accuracies[0] > 0.7 and accuracies[1] < 0.1


def test_runs_where_the_task_id_is_shown():
    stream = split_classes(clusters(), experiences=2, reveal=TASK_IL, old_data=True)
    learner = run(stream, (JointTraining(),), network=Mlp(hidden=(30,)), epochs=8)
    assert learner.scores.matrices()[0].final.min() > 0.9


def test_old_samples_compete_with_the_classes_of_their_own_task():
    allowed = []

    class Look(Method):
        def output_loss(self, loss, logits, batch):
            allowed.extend(zip(batch.y.tolist(), logits.isfinite().tolist()))
            return loss

    stream = split_classes(
        clusters(), experiences=2, order=(2, 0, 3, 1), reveal=TASK_IL, old_data=True
    )
    look = type("Look", (MethodSpec,), {"start": lambda self, context: Look()})()
    run(stream, (JointTraining(), look), network=Mlp(hidden=(8,)), epochs=1)
    own = {2: [0, 2], 0: [0, 2], 3: [1, 3], 1: [1, 3]}
    assert {y for y, _ in allowed[40:]} == {0, 1, 2, 3}
    for y, finite in allowed:
        assert [c for c in range(4) if finite[c]] == own[y]


def test_keeps_nothing_of_its_own():
    stream = permuted(clusters(), experiences=2, old_data=True)
    learner = run(stream, (JointTraining(),), epochs=1)
    assert learner.methods.nbytes() == 0 and learner.methods.state_dict() == {"joint": {}}


# ---- waiting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimiser", [Sgd(lr=0.2, momentum=0.5), Adam(lr=0.01)], ids=["sgd", "adam"]
)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_trained_once_on_everything_is_the_last_row_of_joint_training(optimiser, norm):
    """Bit for bit: weights and accuracies; before that nothing was trained."""
    stream = permuted(clusters(), experiences=3)
    stream = stream.with_reveal(DOMAIN_IL | Reveal.OLD_DATA | Reveal.SAMPLE_IDS)
    spec = SpikingMlp(hidden=(16,), norm=norm)
    every = run(stream, (JointTraining(),), network=spec, optimiser=optimiser)
    once = learner_of(stream, (JointTraining(wait=2), Count()), network=spec, optimiser=optimiser)
    start = {n: p.clone() for n, p in weights(once).items()}
    for tick in once.ticks():
        if tick.kind == "event" and tick.position.event < 3:
            assert all(torch.equal(start[n], p) for n, p in weights(once).items())
    assert_same(once, every)
    a, b = (learner.network.statistics() for learner in (once, every))
    assert all(torch.equal(s, b[n]) for n, s in a.items())
    for ours, theirs in zip(once.scores.matrices(), every.scores.matrices()):
        assert np.array_equal(ours.values[-1], theirs.values[-1])
        for row in ours.values[1:3]:  # untrained still
            known = ~np.isnan(row)
            assert np.array_equal(row[known], ours.values[0][known])
    seen = [len(epoch) for epoch in once.methods.methods["count"].seen]
    assert seen == [0, 0, 0, 0, 240, 240, 0]


@pytest.mark.parametrize("restart", [True, False])
def test_it_waits_for_so_many_experiences(restart):
    """Then it goes on as joint training does, with all that was gathered."""
    reveal = DOMAIN_IL | Reveal.OLD_DATA | Reveal.SAMPLE_IDS
    stream = split_classes(clusters(), experiences=4, reveal=reveal)
    sizes = {}
    for wait in (0, 1, 3):
        method = JointTraining(wait=wait, restart=restart)
        learner = run(stream, (method, Count()), epochs=1)
        sizes[wait] = [len(epoch) for epoch in learner.methods.methods["count"].seen[:-1]]
    assert sizes == {
        0: [20, 40, 60, 80],
        1: [0, 40, 60, 80],
        3: [0, 0, 0, 80],
    }
    with pytest.raises(UsageError, match="nothing was learned"):
        run(stream, (JointTraining(wait=9, restart=restart),), epochs=1)


def test_a_wait_is_resumed_bit_for_bit():
    stream = permuted(clusters(), experiences=3, old_data=True)
    whole, states = learner_of(stream, (JointTraining(wait=2),)), []
    for tick in whole.ticks():
        at = tick.position
        if (tick.kind == "event" and at.event in (1, 2)) or (tick.kind, at.step) == ("step", 4):
            tensors, values = split(whole.state_dict())
            states.append(({n: t.clone() for n, t in tensors.items()}, json.dumps(values)))
    assert len(states) == 4
    for tensors, values in states:
        again = learner_of(stream, (JointTraining(wait=2),))
        again.load_state_dict(join(tensors, json.loads(values)))
        for _ in again.ticks():
            pass
        assert_same(again, whole)


@pytest.mark.parametrize("wait", [-1, 0.5, "all"])
def test_a_wait_that_means_nothing_is_refused(wait):
    with pytest.raises(ConfigError, match="wait"):
        JointTraining(wait=wait)
