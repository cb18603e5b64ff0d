"""Feedback weights that learn: what a learner does with them, and how they come back."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch

from spikecl.components import component
from spikecl.continual import Hlop, Method, MethodSpec, Phase
from spikecl.encoding import Direct
from spikecl.errors import PairingError
from spikecl.experiments import run
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import SpikingMlp, SpikingRecurrentNet
from spikecl.neurons import LIF
from spikecl.optim import Adam, AdamW, Cosine, ScheduleFreeSgd, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, load_state, save_state, split
from spikecl.streams import DOMAIN_IL, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt, Tbptt

CPU, N, T, CLASSES = torch.device("cpu"), 5, 4, 3
QUICK = LIF(beta=0.8, v_th=0.1)
NETWORKS = {
    "mlp": SpikingMlp(hidden=(8, 6), neuron=QUICK),
    "recurrent": SpikingRecurrentNet(hidden=(8,), neuron=QUICK),
}


def stream_of(*sizes):
    sets = []
    for i, size in enumerate(sizes):
        x = torch.rand(size, N, generator=torch.Generator().manual_seed(i))
        sets.append(Samples((Part(x, torch.arange(size) % CLASSES, torch.arange(size)),)))
    events = [Experience(i, s, (0, 1, 2), task=i) for i, s in enumerate(sets)]
    tests = {f"task{i}": EvalSet(s, (0, 1, 2), (i,)) for i, s in enumerate(sets)}
    return Stream("made", {}, 0, DOMAIN_IL, CLASSES, (N,), len(events), lambda i: events[i], tests)


def learner_of(network="mlp", *methods, optimiser=None, trainer=None, frozen=()):
    built = NETWORKS[network].build((N,), CLASSES)
    for name in frozen:
        dict(built.weights())[name].requires_grad_(False)
    learner = Learner(
        stream=stream_of(24, 24),
        network=built,
        encoder=Direct(steps=T),
        trainer=trainer or Bptt(feedback="adaptive"),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.1, weight_decay=0.1),
        plan=TrainPlan(batch=4, epochs=2),
        seeds=Seeds(4),
        device=CPU,
    )
    learner.prepare()
    return learner


def distances(learner):
    """Return ``B - W`` by synapse."""
    state = learner.state_dict()
    weights = state["network"]
    return {
        name: (back - weights[f"{name.removeprefix('feedback.')}.weight"]).clone()
        for name, back in state["trainer"].items()
    }


def steps_of(learner):
    """Yield after each step of training."""
    for tick in learner.ticks():
        if tick.kind in ("step", "window"):
            yield tick.position


def near(found, expected, name, tight=3e-6):
    torch.testing.assert_close(
        found, expected, rtol=0, atol=tight, msg=lambda text: f"{name}: {text}"
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "trainer", [Bptt(feedback="adaptive"), Tbptt(steps=2, feedback="adaptive")]
)
def test_the_distance_to_the_weights_decays_geometrically(network, trainer):
    """Kolen & Pollack: both take one update and lose the same share of themselves."""
    lr, decay = 0.1, 0.5
    learner = learner_of(network, optimiser=Sgd(lr=lr, weight_decay=decay), trainer=trainer)
    start = distances(learner)
    weights = {n: p.detach().clone() for n, p in learner.network.weights().items()}
    for count, _ in enumerate(steps_of(learner), start=1):
        for name, gap in distances(learner).items():
            near(gap, (1 - lr * decay) ** count * start[name], name)
    assert count == 2 * 2 * 6
    moved = learner.network.weights()
    for name, gap in start.items():
        weight = f"{name.removeprefix('feedback.')}.weight"
        learned = moved[weight].detach() - (1 - lr * decay) ** count * weights[weight]
        assert float(learned.abs().max()) > 1e-2 and float(gap.abs().max()) > 0.1


def test_with_next_to_no_decay_they_stay_as_far_apart_as_they_were():
    learner = learner_of(optimiser=Sgd(lr=0.1, momentum=0.9, weight_decay=1e-12))
    start = distances(learner)
    back = {n: v.clone() for n, v in learner.state_dict()["trainer"].items()}
    for _ in steps_of(learner):
        pass
    for name, gap in distances(learner).items():
        near(gap, start[name], name)
        assert float((learner.state_dict()["trainer"][name] - back[name]).abs().max()) > 1e-2


@pytest.mark.parametrize("state", ["fresh", "carried"])
def test_with_momentum_and_a_schedule_it_is_that_of_the_decay_alone(state):
    """``m <- mu m + wd d; d <- d - lr share m``, m of the gap; at a boundary m may begin afresh."""
    lr, mu, decay = 0.1, 0.9, 0.2
    spec = Sgd(lr=lr, momentum=mu, weight_decay=decay, schedule=Cosine(), state=state)
    learner = learner_of(optimiser=spec)
    gaps, shares = distances(learner), []
    share = learner.training.share
    learner.training.share = lambda: shares.append(share()) or shares[-1]
    moments, event = {name: 0.0 for name in gaps}, 0
    for position in steps_of(learner):
        if position.event != event and state == "fresh":
            moments = {name: 0.0 for name in gaps}
        event = position.event
        for name, gap in distances(learner).items():
            moments[name] = mu * moments[name] + decay * gaps[name]
            gaps[name] = gaps[name] - lr * shares[-1] * moments[name]
            near(gap, gaps[name], name)
    assert len(set(shares)) > 5


@component
class Halve(MethodSpec):
    """Halves every update, and turns the readout's over."""

    phase: ClassVar[Phase] = Phase.NOISE

    def start(self, context):
        return Halving()


class Halving(Method):
    def update(self, update):
        found = {name: 0.5 * u for name, u in update.items()}
        return {**found, "readout.weight": found["readout.weight"].flip(0)}


@pytest.mark.parametrize("methods", [(Hlop(rows=(2,)),), (Halve(),), (Halve(), Hlop(rows=(2,)))])
def test_what_changes_the_updates_of_a_weight_changes_those_of_its_feedback_alike(methods):
    lr, decay = 0.1, 0.5
    learner = learner_of("mlp", *methods, optimiser=Sgd(lr=lr, weight_decay=decay))
    start, weights = distances(learner), {}
    for count, position in enumerate(steps_of(learner), start=1):
        for name, gap in distances(learner).items():
            near(gap, (1 - lr * decay) ** count * start[name], name)
        if position.event == 1 and not weights:
            weights = {n: p.detach().clone() for n, p in learner.network.weights().items()}
    assert any(
        not torch.equal(p.detach(), weights[n]) for n, p in learner.network.weights().items()
    )


def test_the_feedback_of_a_weight_that_is_frozen_is_frozen():
    learner = learner_of("recurrent", frozen=("readout.weight",))
    before = {n: v.clone() for n, v in learner.state_dict()["trainer"].items()}
    for _ in steps_of(learner):
        pass
    after = learner.state_dict()["trainer"]
    assert torch.equal(after["feedback.readout"], before["feedback.readout"])
    name = "feedback.hidden1.recurrent"
    assert not torch.equal(after[name], before[name])


def test_the_same_seed_gives_the_same_feedback_another_root_another():
    a, b = learner_of(), learner_of()
    for name, back in a.state_dict()["trainer"].items():
        assert torch.equal(back, b.state_dict()["trainer"][name])
        assert back.dtype == torch.float32 and float(back.abs().max()) > 0


# State

OPTIMISERS = {
    "sgd": Sgd(lr=0.1, weight_decay=0.1),
    "momentum": Sgd(lr=0.1, momentum=0.9, weight_decay=0.1, state="carried"),
    "adam": Adam(lr=0.01, weight_decay=0.1),
    "adamw": AdamW(lr=0.01),
    "schedule free": ScheduleFreeSgd(lr=0.1, weight_decay=0.1),
}
PLACES = ((0, 0, 2), (0, 1, 3), (1, 0, 1), (1, 1, 4))


def frozen(learner):
    tensors, values = split(learner.state_dict())
    return join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))


def assert_states_equal(a, b):
    (ta, va), (tb, vb) = split(a), split(b)
    assert va == vb and sorted(ta) == sorted(tb)
    for name in ta:
        assert torch.equal(ta[name], tb[name]), name


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("feedback", ["adaptive", "random", "sign_random", "direct"])
def test_a_run_goes_on_as_if_it_had_never_stopped(optimiser, network, feedback, tmp_path):
    if feedback != "adaptive" and optimiser != "momentum":
        pytest.skip("no state of its own")

    def make():
        trainer = Bptt(feedback=feedback)
        return learner_of(network, optimiser=OPTIMISERS[optimiser], trainer=trainer)

    whole, rows, counts = make(), [], []
    for tick in whole.ticks():
        rows += tick.rows
        place = (tick.position.event, tick.position.epoch, tick.position.step)
        if tick.kind == "step" and place in PLACES:
            save_state(tmp_path / str(len(counts)), whole.state_dict())
            counts.append(len(rows))
    assert len(counts) == 4
    for k, count in enumerate(counts):
        again = make()
        again.load_state_dict(load_state(tmp_path / str(k)))
        assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]
        assert_states_equal(frozen(again), frozen(whole))


@pytest.mark.parametrize("method", [(), (Hlop(rows=(2,)),)])
def test_feedback_that_comes_back_is_that_of_the_state(method):
    whole = learner_of("mlp", *method, optimiser=Sgd(lr=0.1, momentum=0.5, weight_decay=0.1))
    for count, _ in enumerate(steps_of(whole)):
        if count == 5:
            break
    state = frozen(whole)
    again = learner_of("mlp", *method, optimiser=Sgd(lr=0.1, momentum=0.5, weight_decay=0.1))
    again.load_state_dict(state)
    for name, back in state["trainer"].items():
        assert torch.equal(again.state_dict()["trainer"][name], back)


def test_feedback_that_cannot_meet_its_weights_is_refused():
    for optimiser in (Sgd(lr=0.1), Adam(lr=0.01), AdamW(lr=0.01, weight_decay=0.0)):
        with pytest.raises(PairingError, match=r"feedback='adaptive'.*weight_decay is 0"):
            learner_of(optimiser=optimiser)
        learner_of(optimiser=optimiser, trainer=Bptt(feedback="random"))


# Before a run


@pytest.mark.parametrize(
    ("trainer", "spec", "match"),
    [
        (Bptt(checkpoint=T + 1), NETWORKS["mlp"], rf"bptt\.checkpoint: got {T + 1}"),
        (Tbptt(steps=T + 1), NETWORKS["mlp"], rf"tbptt\.steps: got {T + 1}"),
        (Tbptt(steps=2), SpikingMlp(hidden=(8,), norm="batch"), "normalised"),
        (Bptt(checkpoint=2), SpikingMlp(hidden=(8,), norm="batch"), "normalised"),
        (Bptt(feedback="global"), NETWORKS["mlp"], "sum to zero"),
    ],
)
def test_what_a_trainer_is_not_for_is_refused_before_there_is_a_directory(
    trainer, spec, match, tmp_path
):
    runs = tmp_path / "runs"
    with pytest.raises(PairingError, match=match):
        run(stream_of(8), spec, trainer, encoder=Direct(steps=T), runs_dir=runs)
    assert not runs.exists() or not list(runs.iterdir())
    run(
        stream_of(8),
        NETWORKS["mlp"],
        Bptt(checkpoint=T),
        encoder=Direct(steps=T),
        plan=TrainPlan(batch=4),
        runs_dir=runs,
    )
    assert len(list(runs.iterdir())) == 1
