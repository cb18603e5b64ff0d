"""Training that starts from where the last batch ended: a manual loop, resuming, boundaries."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional

from spikecl.encoding import Direct, Rate
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp, SpikingRecurrentNet
from spikecl.neurons import ALIF, LIF
from spikecl.neurons.neuron import leaves
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, load_state, save_state, split
from spikecl.streams import DOMAIN_IL, TASK_FREE, Evaluate, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CPU, N, T, B, CLASSES, ROOT = torch.device("cpu"), 5, 4, 4, 3, 2
NETWORKS = {
    "lif": SpikingMlp(hidden=(8, 6), neuron=LIF(beta=0.9, v_th=0.4)),
    "alif, delays": SpikingMlp(hidden=(8,), neuron=ALIF(beta=0.9, v_th=0.4), delay=2),
    "recurrent": SpikingRecurrentNet(
        hidden=(8,), neuron=LIF(beta=0.9, v_th=0.4, reset_time="next")
    ),
    "refractory": SpikingMlp(hidden=(8,), neuron=LIF(beta=0.9, v_th=0.4, refractory=2)),
    "noise, dropout": SpikingMlp(hidden=(8,), neuron=LIF(v_th=0.4, noise=0.1), dropout=0.3),
    "twin": Mlp(hidden=(8,)),
}


def stream_of(*sizes, reveal=DOMAIN_IL, extra=()):
    sets = []
    for i, size in enumerate(sizes):
        x = torch.rand(size, N, generator=torch.Generator().manual_seed(i))
        sets.append(Samples((Part(x, torch.arange(size) % CLASSES, torch.arange(size)),)))
    events = [Experience(i, s, (0, 1, 2), task=i) for i, s in enumerate(sets)] + list(extra)
    tests = {f"task{i}": EvalSet(s, (0, 1, 2), (i,)) for i, s in enumerate(sets)}
    return Stream("made", {}, 0, reveal, CLASSES, (N,), len(events), lambda i: events[i], tests)


def learner_of(stream, spec, *, membrane="detach", encoder=None, epochs=2):
    return Learner(
        stream=stream,
        network=spec.build((N,), CLASSES),
        encoder=encoder or Direct(steps=T),
        trainer=Bptt(),
        methods=(),
        optimiser=Sgd(lr=0.1, momentum=0.9),
        plan=TrainPlan(batch=B, epochs=epochs, membrane=membrane),
        seeds=Seeds(ROOT),
        device=CPU,
    )


def weights(learner):
    return {n: p.detach().clone() for n, p in learner.network.weights().items()}


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        s = torch.sigmoid(4 * ctx.saved_tensors[0])
        return grad * 4 * s * (1 - s)


def by_hand(stream, start, statistics, *, carried, boundaries):
    """The lif network, trained as a script would; membranes go on from batch to batch."""
    w = {n: p.clone().requires_grad_() for n, p in start.items()}
    names = ("hidden1", "hidden2")
    v = dict.fromkeys(names, torch.zeros(()))
    optimiser = torch.optim.SGD(list(w.values()), lr=0.1, momentum=0.9)
    for event in stream:
        data = event.train.load()
        if boundaries:
            optimiser = torch.optim.SGD(list(w.values()), lr=0.1, momentum=0.9)
            v = dict.fromkeys(names, torch.zeros(()))
        for epoch in range(2):
            g = Seeds(ROOT).generator("order", event=event.index, epoch=epoch)
            for picked in torch.randperm(len(data.x), generator=g).split(B):
                x = (data.x[picked] - statistics.mean) / statistics.std
                if not carried:
                    v = dict.fromkeys(names, torch.zeros(()))
                v = {n: m.detach() for n, m in v.items()}
                total = 0.0
                for _ in range(T):
                    h = x
                    for name in names:
                        u = 0.9 * v[name] + h @ w[f"{name}.weight"].T
                        h = Fire.apply(u - 0.4)
                        v[name] = u - 0.4 * h.detach()
                    total = total + h @ w["readout.weight"].T / T
                optimiser.zero_grad()
                functional.cross_entropy(total, data.y[picked]).backward()
                optimiser.step()
    return {n: p.detach() for n, p in w.items()}


@pytest.mark.parametrize("reveal", [DOMAIN_IL, TASK_FREE], ids=["boundaries", "free"])
@pytest.mark.parametrize("membrane", ["reset", "detach"])
def test_equals_a_manual_loop(membrane, reveal):
    """Carried over epochs, and over experiences where nobody may notice them."""
    stream = stream_of(12, 8, reveal=reveal)
    learner = learner_of(stream, NETWORKS["lif"], membrane=membrane)
    start = weights(learner)
    list(learner.ticks())
    options = {"carried": membrane == "detach", "boundaries": reveal is DOMAIN_IL}
    expected = by_hand(stream, start, learner.statistics, **options)
    options["carried"] = not options["carried"]
    other = by_hand(stream, start, learner.statistics, **options)
    for name, p in weights(learner).items():
        torch.testing.assert_close(p, expected[name], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(p, other[name], rtol=1e-4, atol=1e-6)


def frozen(learner):
    tensors, values = split(learner.state_dict())
    return join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))


def assert_same(a, b):
    (ta, va), (tb, vb) = split(a), split(b)
    assert va == vb and sorted(ta) == sorted(tb)
    for name in ta:
        assert torch.equal(ta[name], tb[name]), name


@pytest.mark.parametrize("reveal", [DOMAIN_IL, TASK_FREE], ids=["boundaries", "free"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_resumes_bit_identically_from_every_tick(kind, reveal):
    """Also from a state that was taken right after a resume, before any step."""

    def make():
        stream = stream_of(12, 8, reveal=reveal, extra=[Evaluate(2, ())])
        encoder = Rate(steps=T) if kind == "recurrent" else None
        return learner_of(stream, NETWORKS[kind], encoder=encoder)

    whole, rows, saved = make(), [], []
    for tick in whole.ticks():
        rows += tick.rows
        saved.append((len(rows), frozen(whole)))
    end = frozen(whole)
    assert bool(split(end)[0].keys() & {"membranes/0000"}) == (kind != "twin")
    for count, state in saved:
        again = make()
        again.load_state_dict(state)
        twice = make()
        twice.load_state_dict(frozen(again))
        assert_same(frozen(twice), state)
        assert [row for tick in twice.ticks() for row in tick.rows] == rows[count:]
        assert_same(frozen(twice), end)


def test_resumes_from_disk(tmp_path):
    make = lambda: learner_of(stream_of(48), NETWORKS["alif, delays"])  # noqa: E731
    whole = make()
    for tick in whole.ticks():
        if tick.position == whole.at and tick.kind == "step" and tick.position.step == 5:
            save_state(tmp_path / "state", whole.state_dict())
    again = make()
    again.load_state_dict(load_state(tmp_path / "state"))
    list(again.ticks())
    assert_same(frozen(again), frozen(whole))


def test_a_learner_that_takes_back_an_earlier_state_forgets_its_own():
    learner, first = learner_of(stream_of(12, 8), NETWORKS["lif"]), None
    for tick in learner.ticks():
        if tick.kind == "step" and first is None:
            first = frozen(learner)
    end = frozen(learner)
    learner.load_state_dict(first)
    assert_same(frozen(learner), first)
    list(learner.ticks())
    assert_same(frozen(learner), end)


def test_tests_start_from_rest_and_leave_the_membranes():
    learner = learner_of(stream_of(12, 8), NETWORKS["lif"])
    starts = []
    learner.network.register_forward_pre_hook(
        lambda module, args, kwargs: starts.append(
            (kwargs.get("training", False), (*args[1:], kwargs.get("state"))[0] is None)
        ),
        with_kwargs=True,
    )
    before = None
    for tick in learner.ticks():
        now = [t.clone() for t in leaves(learner.training.state)]
        if tick.kind == "test" and before is not None:
            assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
        before = now
    assert {rest for training, rest in starts if not training} == {True}
    trained = [rest for training, rest in starts if training]
    assert [i for i, rest in enumerate(trained) if rest] == [0, 6]  # where each experience begins


@pytest.mark.parametrize("kind", ["lif", "recurrent"])
def test_no_graph_is_carried(kind):
    learner = learner_of(stream_of(12), NETWORKS[kind])
    for tick in learner.ticks():
        if tick.kind == "step":
            assert leaves(learner.training.state)
            assert not any(t.requires_grad for t in leaves(learner.training.state))
    reset = learner_of(stream_of(12), NETWORKS[kind], membrane="reset")
    for tick in reset.ticks():
        assert reset.training.state is None
        assert tick.kind != "step" or not reset.state_dict()["membranes"]
