"""What an optimiser keeps over a boundary, and which weights are trained, tested and saved."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from spikecl.components import component
from spikecl.continual import Finetune, Hlop, JointTraining, Method, MethodSpec, Phase
from spikecl.encoding import Direct
from spikecl.errors import PairingError
from spikecl.experiments import run
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp
from spikecl.optim import (
    Adam,
    AdamW,
    Constant,
    Infinite,
    Optimiser,
    Place,
    ScheduleFreeAdamW,
    ScheduleFreeSgd,
    Sgd,
)
from spikecl.seeds import Seeds
from spikecl.storage import join, load_state, split
from spikecl.streams import DOMAIN_IL, TASK_FREE, Adapt, Experience, Reveal, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

N, CLASSES, SIZES = 30, 3, (9, 12, 7)
INFINITE = Infinite(warmup_samples=10, cooldown_samples=20, constant=0.5)


def samples(seed, size):
    generator = torch.Generator().manual_seed(seed)
    return Samples(
        (
            Part(
                torch.rand(size, N, generator=generator),
                torch.arange(size) % CLASSES,
                torch.arange(size),
            ),
        )
    )


def stream_of(reveal=DOMAIN_IL, *, adapt=False):
    everything = tuple(range(CLASSES))
    events = [Experience(i, samples(i, n), everything, i) for i, n in enumerate(SIZES)]
    if adapt:
        events[1:1] = [Adapt(1, samples(9, 6), "noise", 1)]
    tests = {f"task{i}": EvalSet(samples(50 + i, 40), everything, (i,)) for i in range(len(SIZES))}
    return Stream("made", {}, 0, reveal, CLASSES, (N,), len(events), events.__getitem__, tests)


def learner_of(optimiser, *methods, reveal=DOMAIN_IL, stream=None, evaluate="all"):
    stream = stream or stream_of(reveal)
    return Learner(
        stream=stream,
        network=Mlp(hidden=(12, 9), bias=True).build((N,), CLASSES).double(),
        encoder=Double(),
        trainer=Bptt(),
        methods=methods or (Finetune(),),
        optimiser=optimiser,
        plan=TrainPlan(epochs=3, batch=4, evaluate=evaluate),
        seeds=Seeds(5),
        device=torch.device("cpu"),
    )


class Double(Direct):
    def encode(self, x, statistics, generator):
        return ((x - statistics.mean) / statistics.std).double().expand(2, *x.shape)


def finish(learner):
    return [row for tick in learner.ticks() for row in tick.rows]


def weights(learner):
    return {n: p.detach().clone() for n, p in learner.network.weights().items()}


def frozen(learner):
    tensors, values = split(learner.state_dict())
    return join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))


def assert_same(a, b):
    (ta, va), (tb, vb) = split(a), split(b)
    assert va == vb and sorted(ta) == sorted(tb)
    for name in ta:
        assert torch.equal(ta[name], tb[name]), name


# ---- fresh or carried ---------------------------------------------------------------------------


def by_hand(learner, make, *, carried):
    """Train a perceptron of torch on the same batches, with an optimiser of torch."""
    start = weights(learner)
    layers = [nn.Linear(N, 12), nn.Linear(12, 9), nn.Linear(9, CLASSES)]
    plain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double()
    for layer, name in zip(layers, ("hidden1", "hidden2", "readout")):
        layer.weight.data.copy_(start[f"{name}.weight"])
        layer.bias.data.copy_(start[f"{name}.bias"])
    optimiser, seeds = make(plain.parameters()), Seeds(5)
    for event in learner.stream:
        if not carried:
            optimiser = make(plain.parameters())
        data = event.train.load()
        for epoch in range(3):
            generator = seeds.generator("order", event=event.index, epoch=epoch)
            for rows in torch.randperm(len(data), generator=generator).split(4):
                x = ((data.x[rows] - learner.statistics.mean) / learner.statistics.std).double()
                optimiser.zero_grad()
                functional.cross_entropy(plain(x), data.y[rows]).backward()
                optimiser.step()
    return layers


TORCH = {
    "momentum": (Sgd, {"lr": 0.1, "momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "adam": (Adam, {"lr": 0.02}, torch.optim.Adam, {}),
    "adamw": (
        AdamW,
        {"lr": 0.02, "weight_decay": 0.1},
        torch.optim.AdamW,
        {"weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("state", ["fresh", "carried"])
def test_a_run_equals_a_plain_loop_in_torch(name, state):
    kind, options, torchs, more = TORCH[name]
    learner = learner_of(kind(**options, state=state))

    def make(parameters):
        return torchs(parameters, lr=options["lr"], **more)

    layers = by_hand(learner, make, carried=state == "carried")
    other = by_hand(learner, make, carried=state != "carried")
    finish(learner)
    for layer, wrong, name in zip(layers, other, ("hidden1", "hidden2", "readout")):
        ours = learner.network.weights()[f"{name}.weight"]
        torch.testing.assert_close(ours, layer.weight, rtol=1e-9, atol=1e-10)
        assert not torch.allclose(ours, wrong.weight, rtol=1e-3)


@pytest.mark.parametrize("kind", [Sgd, Adam, AdamW])
def test_carried_over_shown_boundaries_is_as_if_they_were_hidden(kind):
    options = {"momentum": 0.9, "lr": 0.1} if kind is Sgd else {}
    shown = learner_of(kind(**options, state="carried"))
    hidden = learner_of(kind(**options), reveal=TASK_FREE)
    finish(shown), finish(hidden)
    assert_same(shown.state_dict()["network"], hidden.state_dict()["network"])
    assert_same(shown.state_dict()["optimiser"], hidden.state_dict()["optimiser"])


def test_weights_that_are_drawn_anew_are_where_an_average_begins():
    """Joint training restarts: an average must not look back to the old weights."""
    lr = 1e-12  # nothing moves by itself
    old_data = DOMAIN_IL | Reveal.OLD_DATA
    learner = learner_of(ScheduleFreeSgd(lr=lr), JointTraining(restart=True), reveal=old_data)
    start = weights(learner)
    for tick in learner.ticks():
        if tick.kind == "step" and tick.position.event == 0:
            for p in learner.network.weights().values():
                p.data.mul_(3)  # as if the first task had gone far
        if tick.kind == "event" and tick.position.event == 1:
            far = weights(learner)["hidden1.weight"] - start["hidden1.weight"]
            assert float(far.abs().max()) > 0.1
    for name, p in learner.network.weights().items():
        torch.testing.assert_close(p.detach(), start[name], rtol=0, atol=1e-9)


# ---- schedules over a run -----------------------------------------------------------------------


@pytest.mark.parametrize("reveal", [TASK_FREE, DOMAIN_IL], ids=["hidden", "shown"])
def test_infinite_counts_the_samples_of_the_run(reveal, monkeypatch):
    seen, step = [], Optimiser.step

    def spy(self, gradients, share=1.0):
        seen.append(share)
        step(self, gradients, share)

    monkeypatch.setattr(Optimiser, "step", spy)
    finish(learner_of(Sgd(lr=0.1, schedule=INFINITE), reveal=reveal))
    counts, n = [], 0
    for size in SIZES:
        for _ in range(3):
            for start in range(0, size, 4):
                counts.append(n)
                n += min(4, size - start)
    assert seen == [INFINITE.share(Place(0, 1, n)) for n in counts]
    assert seen[0] == 0 and seen[-1] == 0.5 and max(seen) > 0.9


def test_a_warmup_is_refused_where_boundaries_are_hidden():
    with pytest.raises(PairingError, match="schedule='constant'.*'made' hides.*without warmup"):
        learner_of(Sgd(schedule=Constant(warmup=0.1)), reveal=TASK_FREE)


# ---- what tests see -----------------------------------------------------------------------------

AVERAGES = {
    "sgd": ScheduleFreeSgd(lr=0.5, weight_decay=0.01),
    "adamw": ScheduleFreeAdamW(lr=0.05, weight_decay=0.01),
    "carried": ScheduleFreeAdamW(lr=0.05, state="carried"),
    "infinite": ScheduleFreeSgd(lr=0.5, schedule=INFINITE),
}
each_average = pytest.mark.parametrize("optimiser", AVERAGES.values(), ids=list(AVERAGES))
each_reveal = pytest.mark.parametrize("reveal", [DOMAIN_IL, TASK_FREE], ids=["shown", "hidden"])


class Means:
    """The mean of the parameters z of the paper, from the gradients that a run hands in."""

    def __init__(self, spec, parameters):
        self.spec, self.z = spec, parameters
        self.x, self.k, self.s, self.h = dict(parameters), 0, 0.0, 0.0
        self.y, self.v = dict(parameters), {n: 0 * p for n, p in parameters.items()}

    def step(self, gradients, share):
        spec, lr = self.spec, self.spec.lr * share
        adam = isinstance(spec, ScheduleFreeAdamW)
        beta = spec.beta1 if adam else spec.beta
        self.k, self.h = self.k + 1, max(self.h, lr)
        self.s += self.h**2
        c = self.h**2 / self.s if self.s else 0.0
        for n, g in gradients.items():
            if adam:
                self.v[n] = spec.beta2 * self.v[n] + (1 - spec.beta2) * g**2
                g = g / ((self.v[n] / (1 - spec.beta2**self.k)).sqrt() + 1e-8)
            self.z[n] = self.z[n] - lr * (g + spec.weight_decay * self.y[n])
            self.x[n] = (1 - c) * self.x[n] + c * self.z[n]
            self.y[n] = (1 - beta) * self.z[n] + beta * self.x[n]


@each_average
@each_reveal
def test_training_is_at_y_and_tests_are_at_x(optimiser, reveal, monkeypatch):
    handed, step = [], Optimiser.step

    def spy(self, gradients, share=1.0):
        handed.append(({n: g.detach().clone() for n, g in gradients.items()}, share))
        step(self, gradients, share)

    monkeypatch.setattr(Optimiser, "step", spy)
    learner = learner_of(optimiser, reveal=reveal)
    tested, accuracies = [], learner.evaluation.accuracies

    def look(name):
        tested.append(weights(learner))
        return accuracies(name)

    monkeypatch.setattr(learner.evaluation, "accuracies", look)
    plain = Means(optimiser, weights(learner))
    for tick in learner.ticks():
        while handed:
            plain.step(*handed.pop(0))
        shown = reveal is DOMAIN_IL and tick.kind in ("test", "event")
        for name, p in learner.network.weights().items():
            expected = plain.x if shown or tick.position.event == 3 else plain.y
            if tick.kind != "test" or shown:
                close(p, expected[name])
        if tick.kind == "test":
            for name, x in plain.x.items():
                close(tested[-1][name], x)
        if tick.kind == "event" and reveal is DOMAIN_IL:
            kept = (plain.v, plain.k, plain.s, plain.h)
            plain = Means(optimiser, dict(plain.x))
            if optimiser.state == "carried":
                plain.v, plain.k, plain.s, plain.h = kept
    assert len(tested) == len(SIZES) * (len(SIZES) + 1)
    for name, p in learner.network.weights().items():
        assert torch.equal(p, tested[-1][name])  # what is saved is what was tested last


def close(a, b):
    torch.testing.assert_close(a.detach(), b, rtol=0, atol=1e-10)


@each_average
def test_tests_leave_no_trace(optimiser):
    """In the middle of an average, tests on more sets change nothing that is trained."""
    ends = []
    for evaluate in ("all", "seen_and_next"):
        learner = learner_of(optimiser, reveal=TASK_FREE, evaluate=evaluate)
        before = None
        for tick in learner.ticks():
            now = {k: v for k, v in frozen(learner).items() if k in ("network", "optimiser")}
            if tick.kind in ("test", "event") and before is not None:
                assert_same(now, before)
            before = now if tick.kind in ("test", "event") else None
        ends.append(now)
    assert_same(*ends)


def test_adaptation_begins_at_the_average():
    learner = learner_of(ScheduleFreeSgd(lr=0.5), stream=stream_of(TASK_FREE, adapt=True))
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event == 1:
            trained = weights(learner)
            with learner.optimiser.evaluating():
                tested = weights(learner)
        if tick.kind == "test" and tick.position.event == 1:
            break
    assert not torch.equal(trained["hidden1.weight"], tested["hidden1.weight"])
    assert_same(weights(learner), tested)


# ---- resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimiser",
    [
        *AVERAGES.values(),
        Adam(lr=0.02, state="carried"),
        AdamW(lr=0.02, schedule=INFINITE),
        Sgd(lr=0.1, momentum=0.9, state="carried", schedule=INFINITE),
    ],
    ids=[*AVERAGES, "adam", "adamw", "momentum"],
)
@each_reveal
def test_it_resumes_from_every_tick_bit_for_bit(optimiser, reveal):
    def make():
        method = Hlop() if reveal is DOMAIN_IL else Finetune()
        return learner_of(optimiser, method, reveal=reveal)

    whole, rows, states = make(), [], []
    for tick in whole.ticks():
        rows += tick.rows
        states.append((len(rows), frozen(whole)))
    for count, state in states[:: 1 if reveal is TASK_FREE else 3]:
        again = make()
        again.load_state_dict(state)
        assert finish(again) == rows[count:]
        assert_same(frozen(again), frozen(whole))


# ---- projections --------------------------------------------------------------------------------


@component
class Shield(MethodSpec):
    """From the second experience on, keep updates of the first layer out of some directions."""

    phase: ClassVar[Phase] = Phase.PROJECTION

    def start(self, context):
        return _Shield()


class _Shield(Method):
    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        raw = torch.randn(N, 8, generator=generator, dtype=torch.float64)
        self.held, self.begun = torch.linalg.qr(raw).Q, 0

    def begin(self, view):
        self.begun += 1

    def update(self, update):
        if self.begun < 2:
            return update
        step = update["hidden1.weight"]
        return {**update, "hidden1.weight": step - step @ self.held @ self.held.T}


PROJECTED = {
    **AVERAGES,
    "momentum": Sgd(lr=0.1, momentum=0.9, state="carried"),
    "adam": Adam(lr=0.02, state="carried"),
    "adamw": AdamW(lr=0.02, weight_decay=0.1, state="carried"),
}


@pytest.mark.parametrize("optimiser", PROJECTED.values(), ids=list(PROJECTED))
def test_a_projection_holds_in_what_is_tested(optimiser, monkeypatch):
    learner = learner_of(optimiser, Shield())
    held, seen, accuracies = _Shield().held, [], learner.evaluation.accuracies

    def look(name):
        seen.append((learner.at.event, weights(learner)["hidden1.weight"]))
        return accuracies(name)

    monkeypatch.setattr(learner.evaluation, "accuracies", look)
    finish(learner)
    before = next(w for event, w in seen if event == 0)
    first = next(w for event, w in seen if event == -1)
    assert float(((before - first) @ held).abs().max()) > 1e-3  # not protected yet
    for event, w in seen:
        if event > 0:
            assert float(((w - before) @ held).abs().max()) < 1e-12
            assert float((w - before).abs().max()) > 1e-3


@pytest.mark.parametrize("optimiser", PROJECTED.values(), ids=list(PROJECTED))
def test_hlop_keeps_the_average_out_of_old_rows(optimiser):
    learner = learner_of(optimiser, Hlop(rows=(4,)))
    hlop = learner.methods.methods["hlop"]
    before, old = None, {}
    for tick in learner.ticks():
        if tick.kind != "event":
            continue
        if before is not None:
            for name, lateral in old.items():
                change = learner.network.weights()[f"{name}.weight"].detach() - before[name]
                assert float((change @ lateral.T).abs().max()) < 1e-12
                assert float(change.abs().max()) > 1e-4
            assert torch.equal(learner.network.weights()["readout.bias"], before["bias"])
        if tick.position.event > 0:
            old = {n: lateral.old.clone() for n, lateral in hlop.protection.lateral.items()}
            before = {n: weights(learner)[f"{n}.weight"] for n in old}
            before["bias"] = weights(learner)["readout.bias"]


@pytest.mark.parametrize("optimiser", [ScheduleFreeSgd(), ScheduleFreeAdamW()], ids=str)
def test_an_average_over_a_projection_is_refused_where_boundaries_are_hidden(optimiser):
    learner = learner_of(optimiser, Shield(), reveal=TASK_FREE)
    with pytest.raises(PairingError, match=r"'schedule_free_.*'shield'.*'made' hides.*use 'sgd'"):
        next(learner.ticks())
    assert learner.state_dict()["position"]["event"] == -1
    next(learner_of(optimiser, reveal=TASK_FREE).ticks())
    next(learner_of(Adam(), Shield(), reveal=TASK_FREE).ticks())


# ---- a whole run --------------------------------------------------------------------------------


def test_what_a_run_saves_is_the_average(tmp_path):
    """The last row of its matrix is that of the weights in its directory."""
    options = {"encoder": Direct(steps=2), "plan": TrainPlan(epochs=2, batch=4)}
    result = run(
        stream_of(TASK_FREE),
        Mlp(hidden=(12,)),
        optimiser=ScheduleFreeAdamW(lr=0.05),
        runs_dir=tmp_path,
        **options,
    )
    (folder,) = (path.parent for path in tmp_path.glob("*/weights"))
    saved = load_state(folder / "weights")
    first = stream_of()[0].train.load().x.double()
    mean, std = float(first.mean()), float(first.std())
    hits = []
    for test in stream_of().eval_sets.values():
        data = test.samples.load()
        h = ((data.x - mean) / std) @ saved["hidden1.weight"].T + saved.get("hidden1.bias", 0)
        out = h.relu() @ saved["readout.weight"].T + saved.get("readout.bias", 0)
        hits.append(float((out.argmax(1) == data.y).float().mean()))
    np.testing.assert_allclose(result.matrix[-1], hits, atol=1e-6)
