"""The host loop against plain loops in torch; resuming, leaks, purity, events."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import Finetune, Hlop, JointTraining, Method, MethodSpec, Phase
from spikecl.encoding import Direct, Encoder, Rate
from spikecl.errors import HiddenFieldError, NonFiniteLossError, PairingError
from spikecl.learner import WINDOW, Learner, TrainPlan
from spikecl.networks import Factor, Mlp, SpikingMlp, initialise
from spikecl.neurons import LIF
from spikecl.optim import Adam, Optimiser, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, load_state, save_state, split
from spikecl.streams import (
    CLASS_IL,
    DOMAIN_IL,
    TASK_FREE,
    TASK_IL,
    Adapt,
    Batch,
    Evaluate,
    Experience,
    Reveal,
    Samples,
    Stream,
    Unlearn,
)
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CPU = torch.device("cpu")
ROOT, T, N, CLASSES, V_TH = 11, 4, 8, 4, 0.1
ALL = tuple(range(CLASSES))


# ---- material -----------------------------------------------------------------------------------


def samples(seed: int, size: int, classes=ALL) -> Samples:
    """Noisy samples around one centre per class; ids tell everything apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(CLASSES, N, generator=torch.Generator().manual_seed(99))
    y = torch.tensor(classes)[torch.arange(size) % len(classes)]
    x = centres[y] + 0.2 * torch.rand(size, N, generator=generator)
    return Samples((Part(x, y, 1000 * seed + torch.arange(size)),))


def stream_of(events, *, reveal=DOMAIN_IL, tests=None, name="made") -> Stream:
    """A stream of events given as they are; tests: name -> (samples, classes, taught)."""
    tests = tests or {"task0": (samples(50, 20), ALL, (0,))}
    sets = {name: EvalSet(*values) for name, values in tests.items()}
    return Stream(name, {}, 0, reveal, CLASSES, (N,), len(events), lambda i: events[i], sets)


def tasks(*sizes: int, reveal=DOMAIN_IL, split_classes=False) -> Stream:
    """One experience per size, and a test set for each."""
    per = [(0, 1), (2, 3)] * 3 if split_classes else [ALL] * len(sizes)
    events = [
        Experience(i, samples(i + 1, size, per[i]), per[i], task=i) for i, size in enumerate(sizes)
    ]
    tests = {f"task{i}": (samples(50 + i, 20, per[i]), per[i], (i,)) for i in range(len(sizes))}
    return stream_of(events, reveal=reveal, tests=tests)


class Double(Encoder):
    """An encoder's output in float64, so that comparisons can be sharp."""

    def __init__(self, inner: Encoder):
        self.inner, self.steps, self.random = inner, inner.steps, inner.random

    def encode(self, x, statistics, generator):
        return self.inner.encode(x, statistics, generator).double()


def learner_of(
    stream,
    methods=(),
    *,
    network=None,
    optimiser=None,
    encoder=None,
    double=False,
    seed=ROOT,
    **plan,
) -> Learner:
    network = (network or SpikingMlp(hidden=(16, 12), neuron=LIF(beta=0.5, v_th=V_TH))).build(
        stream.input_shape, CLASSES
    )
    encoder = encoder or Direct(steps=T)
    return Learner(
        stream=stream,
        network=network.double() if double else network,
        encoder=Double(encoder) if double else encoder,
        trainer=Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.2),
        plan=TrainPlan(**{"batch": 5, **plan}),
        seeds=Seeds(seed),
        device=CPU,
    )


def run(learner) -> list:
    """Run to the end; return the rows of all ticks."""
    return [row for tick in learner.ticks() for row in tick.rows]


def weights(learner) -> dict:
    return {n: p.detach().clone() for n, p in learner.network.weights().items()}


def assert_same(a, b) -> None:
    assert sorted(a) == sorted(b)
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def spec_of(running, *, named="probe", **attributes) -> MethodSpec:
    """A description that starts what ``running(context)`` returns."""
    return type(named, (MethodSpec,), {"start": lambda self, c: running(c), **attributes})()


# ---- the loop, by hand --------------------------------------------------------------------------


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, g):
        s = 1 / (1 + torch.exp(-4 * ctx.saved_tensors[0]))
        return g * 4 * s * (1 - s)


def forward(w, x, *, spiking):
    """Logits of input [T, B, n]; one step after the other."""
    names = [n[:-7] for n in w if n.endswith(".weight")]
    total = 0
    membrane = dict.fromkeys(names, 0)
    for h in x:
        for name in names:
            h = functional.linear(h, w[f"{name}.weight"], w.get(f"{name}.bias"))
            if name == names[-1]:
                total = total + h
            elif spiking:
                u = 0.5 * membrane[name] + h
                h = Fire.apply(u - V_TH)
                membrane[name] = u - V_TH * h.detach()
            else:
                h = h.clamp(min=0)
    return total / len(x)


def by_hand(
    stream,
    start,
    *,
    make_optimiser,
    spiking,
    rate=False,
    batch=5,
    epochs=1,
    fresh=True,
    mask=False,
    effective=lambda w: w,
    logits_of=lambda z: z,
    extra=lambda z: 0.0,
):
    """Train as a script would; return weights, and losses and hits by step."""
    w = {n: p.clone().requires_grad_() for n, p in start.items()}
    optimiser, losses, hits = make_optimiser(list(w.values())), [], []
    first = stream[0].train.load().x.double()
    mean, std = float(first.mean()), float(first.std())
    for event in stream:
        data = event.train.load()
        if fresh:
            optimiser = make_optimiser(list(w.values()))
        for epoch in range(epochs):
            at = {"event": event.index, "epoch": epoch}
            order = torch.randperm(len(data.x), generator=Seeds(ROOT).generator("order", **at))
            for step, picked in enumerate(order.split(batch)):
                x, y = data.x[picked], data.y[picked]
                if rate:
                    g = Seeds(ROOT).generator("encode", **at, step=step)
                    x = (torch.rand(T, *x.shape, generator=g) < x).double()
                else:
                    x = ((x - mean) / std).double().repeat(T, 1, 1)
                optimiser.zero_grad()
                used = effective(w)
                leaves = {n: p.detach().requires_grad_() for n, p in used.items()}
                z = forward(leaves, x, spiking=spiking)
                if mask:
                    banned = [c for c in ALL if c not in event.classes]
                    z = z.index_fill(1, torch.tensor(banned), -math.inf)
                z = logits_of(z)
                loss = functional.cross_entropy(z, y) + extra(z)
                gradients = torch.autograd.grad(loss, list(leaves.values()))
                for p, g in zip(w.values(), gradients):
                    p.grad = g
                optimiser.step()
                losses.append(float(loss.detach()))
                hits.append(int((z.argmax(1) == y).sum()))
    return {n: p.detach() for n, p in w.items()}, losses, hits


def sgd(**options):
    return lambda parameters: torch.optim.SGD(parameters, **options)


def adam(**options):
    return lambda parameters: torch.optim.Adam(parameters, **options)


OPTIMISERS = {
    "sgd": (Sgd(lr=0.2), sgd(lr=0.2)),
    "momentum": (
        Sgd(lr=0.1, momentum=0.8, weight_decay=0.01),
        sgd(lr=0.1, momentum=0.8, weight_decay=0.01),
    ),
    "adam": (
        Adam(lr=0.02, beta1=0.8, beta2=0.95, weight_decay=0.01),
        adam(lr=0.02, betas=(0.8, 0.95), weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("spiking", [True, False], ids=["snn", "ann"])
@pytest.mark.parametrize("rate", [True, False], ids=["rate", "direct"])
@pytest.mark.parametrize("reveal", [DOMAIN_IL, TASK_FREE, TASK_IL], ids=["domain", "free", "task"])
def test_equals_a_plain_loop(optimiser, spiking, rate, reveal):
    described, plain = OPTIMISERS[optimiser]
    network = SpikingMlp(hidden=(16, 12), neuron=LIF(beta=0.5, v_th=V_TH), bias=True)
    if not spiking:
        network = Mlp(hidden=(16, 12), bias=True)
    stream = tasks(12, 9, reveal=reveal, split_classes=True)
    learner = learner_of(
        stream,
        (Finetune(),),
        network=network,
        optimiser=described,
        encoder=Rate(steps=T) if rate else Direct(steps=T),
        double=True,
        epochs=2,
    )
    start = weights(learner)
    fresh = network.build((N,), CLASSES)
    initialise(fresh, Seeds(ROOT))
    assert_same(start, {n: p.detach().double() for n, p in fresh.weights().items()})
    rows = run(learner)
    expected, losses, hits = by_hand(
        stream,
        start,
        make_optimiser=plain,
        spiking=spiking,
        rate=rate,
        epochs=2,
        fresh=reveal is not TASK_FREE,
        mask=reveal is TASK_IL,
    )
    for name, p in weights(learner).items():
        torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-10)
    # the record: one look per epoch here, the mean loss and the share of hits
    steps = [range(0, 3), range(3, 6), range(6, 8), range(8, 10)]
    sizes = [12, 12, 9, 9]
    train = [r for r in rows if r["phase"] == "train"]
    for metric, wanted in (
        ("loss", [np.mean([losses[i] for i in s]) for s in steps]),
        ("accuracy", [sum(hits[i] for i in s) / n for s, n in zip(steps, sizes)]),
    ):
        got = [r["value"] for r in train if r["metric"] == metric]
        assert got == pytest.approx(wanted, rel=1e-6), metric
    assert [r["samples_seen"] for r in train[::2]] == [12, 24, 33, 42]


def test_accuracies_are_counted_by_hand():
    stream = tasks(16, 16, split_classes=True, reveal=CLASS_IL)
    learner = learner_of(stream, double=True, epochs=4, eval_batch=7)
    at_event = []
    for tick in learner.ticks():
        if tick.kind == "event":
            at_event.append(weights(learner))
    aware, agnostic = (m.values for m in learner.scores.matrices())
    assert aware.shape == agnostic.shape == (3, 2)
    for i, w in enumerate(at_event):
        for j, test in enumerate(stream.eval_sets.values()):
            data = test.samples.load()
            x = (data.x - learner.statistics.mean) / learner.statistics.std
            z = forward(w, x.double().repeat(T, 1, 1), spiking=True)
            assert agnostic[i, j] == float((z.argmax(1) == data.y).double().mean())
            among = z[:, list(test.classes)].argmax(1)
            assert aware[i, j] == float(
                (torch.tensor(test.classes)[among] == data.y).double().mean()
            )
    assert (aware > agnostic).any()


def hook_method(name, function):
    return spec_of(lambda context: type("Running", (Method,), {name: function})())


HOOKS = {
    "extend_batch": (
        lambda self, b: Batch(torch.cat([b.x, b.x]), torch.cat([b.y, b.y]), None),
        {},
    ),
    "weights": (
        lambda self, w: {n: 1.5 * p for n, p in w.items()},
        {"effective": lambda w: {n: 1.5 * p for n, p in w.items()}},
    ),
    "logits": (lambda self, z: 3 * z, {"logits_of": lambda z: 3 * z}),
    "output_loss": (
        lambda self, loss, z, b: loss + 0.3 * z.square().sum() / len(b.x),
        {"extra": lambda z: 0.3 * z.square().sum() / len(z)},
    ),
    "gradients": (
        lambda self, gs: {n: 0.25 * g for n, g in gs.items()},
        {"make_optimiser": sgd(lr=0.05)},
    ),
    "update": (
        lambda self, u: {n: 0.25 * g for n, g in u.items()},
        {"make_optimiser": sgd(lr=0.05)},
    ),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_acts_as_written_by_hand(hook):
    function, changes = HOOKS[hook]
    stream = tasks(13, 8)
    learner = learner_of(stream, (hook_method(hook, function),), double=True, epochs=2)
    start = weights(learner)
    run(learner)
    options = {"make_optimiser": sgd(lr=0.2), "spiking": True, "epochs": 2, **changes}
    expected, _, _ = by_hand(stream, start, **options)
    plain, _, _ = by_hand(stream, start, **{**options, "make_optimiser": sgd(lr=0.2)})
    for name, p in weights(learner).items():
        torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-10)
    if hook in ("gradients", "update"):
        assert any(not torch.allclose(p, plain[n]) for n, p in weights(learner).items())


def test_a_gradient_that_is_left_out_leaves_its_parameter():
    for optimiser in (Sgd(lr=0.2, momentum=0.9, weight_decay=0.1), Adam(lr=0.1, weight_decay=0.1)):
        drop = hook_method(
            "gradients", lambda self, g: {n: v for n, v in g.items() if n != "hidden2.weight"}
        )
        learner = learner_of(tasks(13), (drop,), optimiser=optimiser)
        start = weights(learner)
        run(learner)
        moved = {n for n, p in weights(learner).items() if not torch.equal(p, start[n])}
        assert moved == {"hidden1.weight", "readout.weight"}


def test_hooks_come_in_order():
    calls = []

    def note(name):
        def hook(self, value=None, *rest):
            calls.append(name)
            return value

        return hook

    running = type("Running", (Method,), {name: note(name) for name in ORDER})
    learner = learner_of(tasks(10, 10), (spec_of(lambda c: running()),), epochs=2)
    run(learner)
    step = list(ORDER[2:10])
    epoch = step * 2 + ["end_epoch"]
    assert calls == (["begin", "training_set"] + epoch * 2 + ["end"]) * 2


def test_a_changed_factor_changes_its_synapse_alone():
    def silence(self, factors, batch):
        f = factors["hidden2"]
        return {**factors, "hidden2": Factor(f.x, torch.zeros_like(f.delta), f.transmitted)}

    learner = learner_of(tasks(13), (hook_method("factors", silence),))
    start = weights(learner)
    run(learner)
    moved = {n for n, p in weights(learner).items() if not torch.equal(p, start[n])}
    assert moved == {"hidden1.weight", "readout.weight"}


ORDER = (
    "begin",
    "training_set",
    "extend_batch",
    "weights",
    "logits",
    "output_loss",
    "factors",
    "gradients",
    "update",
    "after_step",
    "end_epoch",
    "end",
)


# ---- order and initial weights ------------------------------------------------------------------


class Ids(Method):
    """Writes down the ids of each batch, and the weights at begin."""

    def __init__(self, context):
        self.network, self.batches, self.begun, self.ended = context.network, [], [], 0

    def begin(self, view):
        self.begun.append({n: p.detach().clone() for n, p in self.network.weights().items()})

    def end(self, view):
        self.ended += 1

    def extend_batch(self, batch):
        self.batches.append(None if batch.uid is None else batch.uid.tolist())
        return batch


def ids_of(learner) -> Ids:
    return learner.methods.methods["ids"]


def with_ids(stream, *methods, **kwargs):
    learner = learner_of(stream, (*methods, spec_of(Ids, named="Ids")), **kwargs)
    return learner, run(learner)


def test_every_sample_comes_once_per_epoch_in_an_order_of_its_own():
    stream = tasks(12, 12, reveal=DOMAIN_IL | Reveal.SAMPLE_IDS)
    learner, _ = with_ids(stream, epochs=2)
    batches = ids_of(learner).batches
    assert [len(b) for b in batches] == [5, 5, 2] * 4
    passes = [sum(batches[i : i + 3], []) for i in range(0, 12, 3)]
    for i, ids in enumerate(passes):
        assert sorted(ids) == [1000 * (1 + i // 2) + j for j in range(12)]
    relative = [tuple(i % 1000 for i in ids) for ids in passes]
    assert len(set(relative)) == 4  # another order in every epoch and event


@pytest.mark.parametrize(
    "other", [Hlop(), Hlop(faithful=True), JointTraining(restart=False)], ids=str
)
def test_methods_of_one_root_see_the_same_order_and_initial_weights(other):
    reveal = DOMAIN_IL | Reveal.SAMPLE_IDS | Reveal.OLD_DATA
    first, _ = with_ids(tasks(12, 9, reveal=reveal), Finetune())
    second, _ = with_ids(tasks(12, 9, reveal=reveal), other)
    third, _ = with_ids(tasks(12, 9, reveal=reveal), Finetune(), seed=ROOT + 1)
    assert_same(ids_of(first).begun[0], ids_of(second).begun[0])
    count = 3 if isinstance(other, JointTraining) else 5  # joint has more samples in the second
    assert ids_of(first).batches[:count] == ids_of(second).batches[:count]
    assert ids_of(first).batches != ids_of(third).batches
    assert not torch.equal(
        ids_of(first).begun[0]["readout.weight"], ids_of(third).begun[0]["readout.weight"]
    )


# ---- stop and go --------------------------------------------------------------------------------

METHODS = {
    "finetune": ((Finetune(),), Sgd(lr=0.1, momentum=0.9), Direct(steps=T)),
    "hlop": ((Hlop(rows=(2, 1), rate=0.1),), Sgd(lr=0.1, momentum=0.9), Direct(steps=T)),
    "hlop every": ((Hlop(rows=(3,), every=3, rate=0.1),), Sgd(lr=0.1), Direct(steps=T)),
    "hlop adam": ((Hlop(rows=(0.4,), rate=0.1),), Adam(lr=0.01), Direct(steps=T)),
    "faithful": ((Hlop(rows=(2,), faithful=True),), Sgd(lr=0.1), Direct(steps=T)),
    "joint": ((JointTraining(),), Adam(lr=0.01), Direct(steps=T)),
    "rate": ((Hlop(rows=(2,), rate=0.1),), Sgd(lr=0.1), Rate(steps=T)),
    "rate adam": ((Finetune(),), Adam(lr=0.01), Rate(steps=T)),
}


def frozen(learner):
    """The state as a disk would give it back: copies, and JSON."""
    tensors, values = split(learner.state_dict())
    return join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))


def assert_states_equal(a, b):
    (ta, va), (tb, vb) = split(a), split(b)
    assert va == vb
    assert_same(ta, tb)


def resumable(kind, batch):
    methods, optimiser, encoder = METHODS[kind]
    stream = tasks(14, 12, reveal=DOMAIN_IL | Reveal.OLD_DATA)
    events = [*stream, Evaluate(2, ("task0",))]
    stream = stream_of(
        events,
        reveal=stream.reveal,
        tests={n: (s.samples, s.classes, s.taught) for n, s in stream.eval_sets.items()},
    )

    def make():
        return learner_of(
            stream,
            methods,
            network=SpikingMlp(hidden=(16, 12), neuron=LIF(beta=0.5, v_th=V_TH), bias=True),
            optimiser=optimiser,
            encoder=encoder,
            batch=batch,
            epochs=2,
        )

    return make


def assert_resumes(make, pick=lambda i, tick: True):
    """Stop at picked ticks; every continuation must end in the same state, with the same rows."""
    whole, saved, rows = make(), [], []
    for i, tick in enumerate(whole.ticks()):
        rows.extend(tick.rows)
        if pick(i, tick):
            saved.append((tick.kind, len(rows), frozen(whole)))
    end = frozen(whole)
    matrices = [m.values for m in whole.scores.matrices()]
    assert {kind for kind, *_ in saved} >= {"epoch", "test", "event"}
    for kind, count, state in saved:
        again = make()
        again.load_state_dict(state)
        assert run(again) == rows[count:], kind
        assert_states_equal(frozen(again), end)
        for a, b in zip(again.scores.matrices(), matrices):
            assert np.array_equal(a.values, b, equal_nan=True)
        assert again.methods.report() == whole.methods.report()
    return saved


@pytest.mark.parametrize("kind", METHODS)
def test_resumes_bit_identically_from_every_tick(kind):
    saved = assert_resumes(resumable(kind, batch=10))
    assert {"window", "step"} <= {k for k, *_ in saved}


@pytest.mark.parametrize("kind", METHODS)
def test_resumes_bit_identically_at_batch_one(kind):
    assert_resumes(
        resumable(kind, batch=1), lambda i, tick: i in (0, 2, 9, 16, 17, 38, 45) or i > 60
    )


def test_resumes_inside_and_between_two_looks_at_the_loss():
    def make():
        return learner_of(tasks(2 * WINDOW + 7), (Finetune(),), batch=1)

    saved = assert_resumes(
        make, lambda i, t: t.kind != "step" or t.position.step in (30, 49, 51, 90)
    )
    assert [k for k, *_ in saved].count("window") == 3


def test_resumes_from_disk(tmp_path):
    make = resumable("hlop adam", 10)
    whole = make()
    ticks = whole.ticks()
    for i, _ in enumerate(ticks):
        if i == 12:
            save_state(tmp_path / "state", whole.state_dict())
    again = make()
    again.load_state_dict(load_state(tmp_path / "state"))
    run(again)
    assert_states_equal(frozen(again), frozen(whole))


def test_two_runs_are_bit_identical_and_nothing_global_matters():
    make = resumable("rate", 10)
    first = make()
    run(first)
    torch.manual_seed(12345)
    torch.rand(3)
    second = make()
    run(second)
    assert_states_equal(frozen(first), frozen(second))


# ---- leaks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["finetune", "hlop", "joint"])
@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_hidden_task_ids_do_not_matter(kind, scenario):
    """Other ids (and classes, where hidden): the same weights, rows and matrices."""
    reveal = (DOMAIN_IL if scenario == "domain" else CLASS_IL) | Reveal.OLD_DATA
    honest = tasks(12, 12, 8, reveal=reveal, split_classes=scenario == "class")

    def lie(event):
        classes = event.classes if scenario == "class" else (0,)
        return Experience(event.index, event.train, classes, task=7 - event.task)

    events = [lie(event) for event in honest]
    shuffled = stream_of(
        events,
        reveal=reveal,
        tests={n: (s.samples, s.classes, s.taught) for n, s in honest.eval_sets.items()},
    )
    methods, optimiser, _ = METHODS[kind]
    learners = [learner_of(s, methods, optimiser=optimiser) for s in (honest, shuffled)]
    rows = [run(learner) for learner in learners]
    assert rows[0] == rows[1]
    assert_same(weights(learners[0]), weights(learners[1]))
    moved = learner_of(honest, methods).network.weights()
    assert not torch.equal(weights(learners[0])["readout.weight"], moved["readout.weight"])


FIELDS = {
    "index": Reveal.BOUNDARY,
    "task": Reveal.TASK_ID_TRAIN,
    "classes": Reveal.CLASSES,
    "old": Reveal.OLD_DATA,
}


class Prober(Method):
    """Reads whatever it can."""

    def __init__(self):
        self.got, self.uids, self.tasks = [], [], []

    def begin(self, view):
        self._read(view)

    def training_set(self, samples, view):
        self._read(view)
        self.uids.append(samples.load().uid)
        return samples

    def end(self, view):
        self._read(view)

    def _read(self, view):
        found = {}
        for name in FIELDS:
            try:
                found[name] = getattr(view, name)
            except HiddenFieldError as error:
                assert f"'{name}'" in str(error)
        self.got.append(found)
        for wrong in ("train", "event", "labels", "_x"):
            with pytest.raises(HiddenFieldError):
                getattr(view, wrong)

    def extend_batch(self, batch):
        self.uids.append(batch.uid)
        assert batch.y is not None
        return batch

    def predict(self, x, task):
        self.tasks.append(task)
        return torch.zeros(x.shape[1], CLASSES)


@pytest.mark.parametrize(
    "reveal",
    [
        TASK_FREE,
        DOMAIN_IL,
        CLASS_IL,
        TASK_IL,
        TASK_FREE | Reveal.TASK_ID_EVAL,
        DOMAIN_IL | Reveal.OLD_DATA,
        DOMAIN_IL | Reveal.SAMPLE_IDS,
    ],
    ids=lambda r: "+".join(r.names()),
)
def test_a_method_sees_what_is_revealed_and_nothing_else(reveal):
    prober = Prober()
    stream = tasks(5, 5, reveal=reveal, split_classes=True)
    run(learner_of(stream, (spec_of(lambda c: prober),), batch=5))
    allowed = {name for name, flag in FIELDS.items() if flag in reveal}
    assert all(set(got) == allowed for got in prober.got)
    last = prober.got[-1]
    values = {"index": 1, "task": 1, "classes": (2, 3)}
    for name in allowed & set(values):
        assert last[name] == values[name]
    if "old" in allowed:
        assert [s.load().x.shape for s in last["old"]] == [(5, N)]
        assert all(s.load().uid is None for s in last["old"])
    assert all((uid is not None) == (Reveal.SAMPLE_IDS in reveal) for uid in prober.uids)
    assert len(prober.uids) == (4 if Reveal.BOUNDARY in reveal else 3)
    shown = {0, 1, None} if Reveal.TASK_ID_EVAL in reveal else {None}
    assert set(prober.tasks) == shown


@pytest.mark.parametrize(
    "read",
    [
        lambda samples: samples.show(labels=True, ids=True).load().uid,
        lambda samples: samples.parts[0].uid,
    ],
    ids=["show", "parts"],
)
def test_samples_of_a_view_keep_what_is_hidden(read):
    stream = tasks(5)
    assert read(stream.view(stream[0]).samples) is None


def test_adaptation_sees_no_labels():
    seen = []

    class Adapting(Method):
        def adapt(self, x, view):
            seen.append(view.samples.load().y)
            for field in ("inputs", "task", "classes", "old"):
                with pytest.raises(HiddenFieldError):
                    getattr(view, field)
            return torch.zeros(x.shape[1], CLASSES)

    stream = stream_of([Adapt(0, samples(3, 9), "noise", 1)], reveal=DOMAIN_IL)
    run(learner_of(stream, (spec_of(lambda c: Adapting(), offers=frozenset({"adapt"})),)))
    assert seen == [None, None]


@pytest.mark.parametrize("hook", ["begin", "training_set", "end"])
def test_hidden_boundaries_cannot_be_counted(hook):
    assert hidden_calls(hook) <= 1


def test_the_end_of_an_epoch_does_not_tell_a_hidden_boundary():
    """As the hook says: not called where boundaries are hidden."""
    assert hidden_calls("end_epoch") == 0


def hidden_calls(hook):
    calls = []

    def note(self, samples=None, view=None):
        calls.append(hook)
        return samples

    run(learner_of(tasks(5, 5, 5, reveal=TASK_FREE), (hook_method(hook, note),), epochs=2))
    return len(calls)


# ---- pairings -----------------------------------------------------------------------------------


def test_refused_before_anything_starts_with_both_named():
    started = []
    stream = tasks(5, reveal=TASK_FREE)
    network = SpikingMlp(hidden=(5,)).build((N,), CLASSES)
    need = spec_of(lambda c: started.append(1), named="Greedy", needs=Reveal.TASK_ID_EVAL)
    other = spec_of(lambda c: started.append(1), named="Fine")
    with pytest.raises(PairingError) as caught:
        Learner(
            stream=stream,
            network=network,
            encoder=Direct(),
            trainer=Bptt(),
            methods=(other, need),
            optimiser=Sgd(),
            plan=TrainPlan(),
            seeds=Seeds(0),
            device=CPU,
        )
    assert "method 'greedy' needs task_id_eval, which stream 'made' hides" in str(caught.value)
    assert not started
    assert not any(bool(p.any()) for p in network.weights().values())


def test_a_trainer_that_needs_labels_is_refused_without():
    with pytest.raises(
        PairingError, match="trainer 'bptt' needs labels, which stream 'made' hides"
    ):
        learner_of(tasks(5, reveal=Reveal.BOUNDARY))


def test_exclusive_methods_are_refused():
    with pytest.raises(PairingError, match="'finetune' is named twice; name it once: one method"):
        learner_of(tasks(5), (Finetune(), Finetune()))


def test_the_learning_rate_falls_anew_in_each_experience(monkeypatch):
    shares, step = [], Optimiser.step

    def spy(self, gradients, share=1.0):
        shares.append(share)
        step(self, gradients, share)

    monkeypatch.setattr(Optimiser, "step", spy)
    learner = learner_of(tasks(8, 3), optimiser=Sgd(schedule="linear"), epochs=2)
    for _ in learner.ticks():
        pass
    assert shares == [1, 0.75, 0.5, 0.25, 1, 0.5]  # batches of 5 of 8 and of 3 samples, twice


def test_a_learning_rate_that_falls_is_refused_where_boundaries_are_hidden():
    with pytest.raises(PairingError, match="schedule='cosine'.*hides where one ends"):
        learner_of(tasks(5, reveal=TASK_FREE), optimiser=Sgd(schedule="cosine"))


UNLEARN = Unlearn(1, torch.tensor([1000, 1003]))


@pytest.mark.parametrize(
    "methods", [(), (Finetune(),), (Hlop(),)], ids=["none", "finetune", "hlop"]
)
def test_unlearning_needs_methods_that_can(methods):
    stream = stream_of([Experience(0, samples(1, 5), ALL, 0), UNLEARN], name="forgetful")
    with pytest.raises(PairingError, match="'forgetful' has unlearning requests"):
        learner_of(stream, methods)


def test_one_deaf_method_is_named_and_a_hearing_one_is_asked():
    got = []

    class Forgets(Method):
        def unlearn(self, request):
            got.append(request)

    hearing = spec_of(lambda c: Forgets(), named="Hearing", offers=frozenset({"unlearn"}))
    stream = stream_of([Experience(0, samples(1, 5), ALL, 0), UNLEARN])
    with pytest.raises(PairingError, match=r"\['finetune'\]"):
        learner_of(stream, (hearing, Finetune()))
    learner = learner_of(stream, (hearing,))
    run(learner)
    assert got == [UNLEARN]
    assert learner.scores.matrices()[0].values.shape == (3, 1)


# ---- purity and failures ------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [Direct(steps=T), Rate(steps=T)], ids=["direct", "rate"])
def test_evaluation_is_pure(encoder):
    torch.manual_seed(3)
    learner = learner_of(tasks(10, 10), (Hlop(),), encoder=encoder)
    before, generator, tests = frozen(learner), torch.get_rng_state(), 0
    numbers = np.random.get_state()[1].copy()
    held = None
    for tick in learner.ticks():
        if tick.kind in ("test", "event"):
            tests += 1
            now = frozen(learner)
            if held is not None:
                for part in ("network", "optimiser", "methods"):
                    assert_states_equal(now[part], held[part])
        if tick.kind == "epoch":
            held = None
        elif tick.kind == "test" and held is None:
            held = frozen(learner)
        if tick.position.event <= 0 and tick.kind == "event":
            assert_states_equal(frozen(learner)["network"], before["network"])
    assert tests == 9
    assert torch.equal(torch.get_rng_state(), generator)
    assert np.array_equal(np.random.get_state()[1], numbers)
    assert all(p.grad is None for p in learner.network.weights().values())


@pytest.mark.parametrize("encoder", [Direct(steps=T), Rate(steps=T)], ids=["direct", "rate"])
def test_what_is_tested_changes_no_training_and_no_other_test(encoder):
    stream = tasks(10, 10, 10, 10)
    backwards = dict(reversed(stream.eval_sets.items()))  # so that what is left out comes first
    stream = replace(stream, eval_sets=backwards)
    some, every = (
        learner_of(stream, (Hlop(rows=(1,)),), encoder=encoder, epochs=2, evaluate=e)
        for e in ("seen_and_next", "all")
    )
    run(some), run(every)
    assert_same(weights(some), weights(every))
    for a, b in zip(some.scores.matrices(), every.scores.matrices()):
        measured = ~np.isnan(a.values)
        # untrained: all; then those taught so far and the next; at the end all
        assert measured[:, ::-1].tolist() == [
            [True, True, True, True],
            [True, True, False, False],
            [True, True, True, False],
            [True, True, True, True],
            [True, True, True, True],
        ]
        assert not np.isnan(b.values).any()
        assert np.array_equal(a.values[measured], b.values[measured])
        assert a.summary() == b.summary() or a.forgetting() <= b.forgetting()


@pytest.mark.parametrize("step", [0, 3, WINDOW - 1, WINDOW, WINDOW + 4])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_step(step, value):
    class Breaks(Method):
        steps = 0

        def output_loss(self, loss, logits, batch):
            self.steps += 1
            return loss * value if self.steps == 2 * WINDOW + step + 1 else loss

    learner = learner_of(tasks(1, WINDOW * 2), (spec_of(lambda c: Breaks()),), batch=1, epochs=1)
    learner.methods.methods["probe"].steps = 2 * WINDOW - 1  # the first task has one step
    with pytest.raises(NonFiniteLossError, match=rf"event 1, epoch 0, step {step};"):
        run(learner)


def test_a_loss_that_is_not_finite_is_found_when_asked():
    class Breaks(Method):
        def output_loss(self, loss, logits, batch):
            return loss * math.nan

    learner = learner_of(tasks(20), (spec_of(lambda c: Breaks()),), batch=1)
    for tick in learner.ticks():
        if tick.kind == "step":
            break
        learner.check_finite()
    with pytest.raises(NonFiniteLossError, match="step 0;"):
        learner.check_finite()


def test_tests_leave_the_data_as_they_were():
    """Floats whose peak is not 1: scaling a batch must not scale what it was cut from."""
    part = samples(1, 10).parts[0]
    data = Samples((part,), peak=2.0)
    stream = stream_of([Experience(0, data, ALL, 0)], tests={"task0": (data, ALL, (0,))})
    before = part.x.clone()
    run(learner_of(stream))
    assert torch.equal(part.x, before)


# ---- boundaries ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reveal", "times"), [(TASK_FREE, 1), (DOMAIN_IL, 3)], ids=["free", "shown"]
)
def test_begin_and_end(reveal, times):
    learner, _ = with_ids(tasks(5, 5, 5, reveal=reveal), epochs=2)
    assert len(ids_of(learner).begun) == times and ids_of(learner).ended == times


@pytest.mark.parametrize("place", ["first", "last"])
def test_hidden_boundaries_with_other_events_around(place):
    experiences = [Experience(i, samples(i, 5), ALL, i) for i in (0, 1)]
    events = [*experiences, Evaluate(2, ())]
    if place == "first":
        events = [Evaluate(0, ()), *(Experience(i + 1, samples(i, 5), ALL, i) for i in (0, 1))]
    stream = stream_of(events, reveal=TASK_FREE)
    learner, _ = with_ids(stream)
    assert len(ids_of(learner).begun) == 1 and ids_of(learner).ended == 1


def test_the_optimiser_starts_afresh_at_shown_boundaries_only():
    """Where it does not, momentum reaches over the boundary (the plain loop checks both)."""
    ends = [
        learner_of(tasks(9, 9, reveal=r), optimiser=Adam(lr=0.02)) for r in (DOMAIN_IL, TASK_FREE)
    ]
    for learner in ends:
        run(learner)
    steps = [
        {float(entry["step"]) for entry in learner.optimiser.state_dict().values()}
        for learner in ends
    ]
    assert steps == [{2.0}, {4.0}]


# ---- other events -------------------------------------------------------------------------------


class Counts(Method):
    """Answers class k to its k-th batch: only scores given in order can be right."""

    def __init__(self):
        self.calls = 0

    def adapt(self, x, view):
        assert len(view.samples) == 17 and x.shape[0] == T
        logits = functional.one_hot(torch.full((x.shape[1],), self.calls % CLASSES), CLASSES)
        self.calls += 1
        return logits.float()

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def adapt_stream():
    inputs = samples(3, 17, classes=(0, 0, 1, 2, 1, 1, 1, 1, 3, 1, 2, 2, 0, 2, 2, 3, 0))
    events = [Experience(0, samples(1, 10), ALL, 0), Adapt(1, inputs, "noise", 3)]
    return stream_of(events), inputs


def test_adaptation_is_scored_batch_by_batch_as_it_comes():
    stream, inputs = adapt_stream()
    spec = spec_of(lambda c: Counts(), offers=frozenset({"adapt"}))
    rows = run(learner_of(stream, (spec,)))
    (row,) = [r for r in rows if r["phase"] == "adapt"]
    y = inputs.load().y.tolist()
    right = sum(label == i // 5 for i, label in enumerate(y))
    assert row["value"] == right / 17 and 0 < right < 17
    assert row["eval_set"] == "noise-3" and row["event"] == 1 and row["metric"] == "accuracy"


def test_adaptation_without_an_adapting_method_is_a_test():
    stream, inputs = adapt_stream()
    learner = learner_of(stream, double=True)
    (row,) = [r for r in run(learner) if r["phase"] == "adapt"]
    data = inputs.load()
    x = ((data.x - learner.statistics.mean) / learner.statistics.std).double().repeat(T, 1, 1)
    z = forward(weights(learner), x, spiking=True)
    assert row["value"] == float((z.argmax(1) == data.y).double().mean())


def test_adaptation_resumes():
    def make():
        return learner_of(
            adapt_stream()[0], (spec_of(lambda c: Counts(), offers=frozenset({"adapt"})),)
        )

    assert_resumes(make)


def test_an_evaluation_tests_the_sets_it_names():
    events = [Experience(0, samples(1, 5), ALL, 0), Evaluate(1, ("task2",))]
    events += [Experience(i, samples(i, 5), ALL, i - 1) for i in (2, 3)]
    tests = {f"task{i}": (samples(60 + i, 8), ALL, (t,)) for i, t in enumerate((0, 2, 3))}
    learner = learner_of(stream_of(events, tests=tests))
    at_event = []
    for tick in learner.ticks():
        if tick.kind == "event":
            at_event.append(weights(learner))
    measured = ~np.isnan(learner.scores.matrices()[0].values)
    assert measured.tolist() == [
        [True, True, True],  # untrained
        [True, False, False],
        [True, True, True],  # taught, next, and named
        [True, True, True],
        [True, True, True],
    ]
    assert_same(at_event[1], at_event[2])
    assert not torch.equal(at_event[2]["readout.weight"], at_event[3]["readout.weight"])


def test_a_set_taught_twice():
    first, second = samples(1, 10), samples(2, 10)
    ids = DOMAIN_IL | Reveal.SAMPLE_IDS
    events = [
        Experience(i, s, ALL, t) for i, (s, t) in enumerate(zip((first, second, first), (0, 1, 0)))
    ]
    tests = {"a": (samples(60, 20), ALL, (0, 2)), "b": (samples(61, 20), ALL, (1,))}
    learner, _ = with_ids(stream_of(events, reveal=ids, tests=tests), Hlop(rows=(1,)))
    batches = ids_of(learner).batches
    passes = [sum(batches[i : i + 2], []) for i in (0, 2, 4)]
    assert sorted(passes[0]) == sorted(passes[2]) != sorted(passes[1])
    assert passes[0] != passes[2]  # its own order each time
    matrix = learner.scores.matrices()[1]
    values = matrix.values
    assert values.shape == (4, 2) and not np.isnan(values).any()
    assert matrix.bwt() == pytest.approx(values[3, 1] - values[2, 1])  # only b is old at the end
    assert matrix.learning_accuracy() == pytest.approx((values[1, 0] + values[2, 1]) / 2)
    assert matrix.fwt() == pytest.approx(values[1, 1] - values[0, 1])


# ---- relabelling --------------------------------------------------------------------------------


@pytest.mark.parametrize("reveal", [DOMAIN_IL, TASK_IL], ids=["domain", "task"])
@pytest.mark.parametrize("kind", ["finetune", "hlop", "hlop adam", "faithful"])
def test_relabelled_classes_permute_the_logits(kind, reveal):
    renamed = torch.tensor([2, 0, 3, 1])  # class c is called renamed[c]
    stream = tasks(12, 12, reveal=reveal, split_classes=True)

    def rename(s):
        (part,) = s.parts
        return Samples((Part(part.x, renamed[part.y], part.uid),))

    def name_of(classes):
        return tuple(int(renamed[c]) for c in classes)

    events = [Experience(e.index, rename(e.train), name_of(e.classes), e.task) for e in stream]
    tests = {
        n: (rename(s.samples), name_of(s.classes), s.taught) for n, s in stream.eval_sets.items()
    }
    other = stream_of(events, reveal=reveal, tests=tests)
    methods, optimiser, _ = METHODS[kind]
    learners = []
    for s in (stream, other):
        learner = learner_of(s, methods, optimiser=optimiser, double=True, epochs=2)
        if s is other:
            with torch.no_grad():
                head = learner.network.weights()["readout.weight"]
                head[renamed] = head.clone()
        run(learner)
        learners.append(learner)
    a, b = learners
    x = torch.rand(T, 9, N, generator=torch.Generator().manual_seed(1)).double()
    za, zb = (m.network(x).logits.detach() for m in (a, b))
    torch.testing.assert_close(zb[:, renamed], za, rtol=0, atol=1e-9)
    assert float(za.std()) > 0.01


# ---- the record ---------------------------------------------------------------------------------


def test_ticks_and_positions():
    learner = learner_of(tasks(12, 6), epochs=2)
    seen = [
        (t.kind, t.position.event, t.position.epoch, t.position.step, t.position.stage)
        for t in _copied(learner)
    ]
    assert seen == [
        *[("test", -1, 0, 0, "test")] * 2,
        ("event", 0, 0, 0, "train"),
        ("step", 0, 0, 1, "train"),
        ("step", 0, 0, 2, "train"),
        ("window", 0, 0, 3, "train"),
        ("epoch", 0, 1, 0, "train"),
        ("step", 0, 1, 1, "train"),
        ("step", 0, 1, 2, "train"),
        ("window", 0, 1, 3, "train"),
        ("epoch", 0, 2, 0, "train"),
        *[("test", 0, 0, 0, "test")] * 2,
        ("event", 1, 0, 0, "train"),
        ("step", 1, 0, 1, "train"),
        ("window", 1, 0, 2, "train"),
        ("epoch", 1, 1, 0, "train"),
        ("step", 1, 1, 1, "train"),
        ("window", 1, 1, 2, "train"),
        ("epoch", 1, 2, 0, "train"),
        *[("test", 1, 0, 0, "test")] * 2,
        ("event", 2, 0, 0, "train"),
    ]


def _copied(learner):
    for tick in learner.ticks():
        yield tick._replace(position=replace(tick.position))


def test_progress_grows_from_nothing_to_everything():
    learner = learner_of(tasks(12, 6), epochs=2)
    fractions = [learner.fraction()]
    accuracies = []
    for tick in learner.ticks():
        fractions.append(learner.fraction())
        if tick.kind == "event":
            accuracies.append(learner.scores.so_far())
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0 and fractions[-1] == 1.0
    assert fractions[4:6] == pytest.approx([1 / 12, 2 / 12])  # step 1 and 2 of 3, epoch 1 of 2
    agnostic = learner.scores.matrices()[1].values
    assert accuracies == [None, agnostic[1, 0], pytest.approx(agnostic[2].mean())]


def test_the_accuracy_shown_is_the_one_the_stream_allows():
    learner = learner_of(tasks(8, 8, split_classes=True, reveal=TASK_IL))
    run(learner)
    aware, agnostic = (m.final.mean() for m in learner.scores.matrices())
    assert learner.scores.so_far() == pytest.approx(aware) and aware != agnostic


def test_the_window_of_losses_is_the_last_one():
    losses = []

    class Watch(Method):
        def output_loss(self, loss, logits, batch):
            losses.append(float(loss.detach()))
            return loss

    n = WINDOW + 10
    rows = run(learner_of(tasks(n), (spec_of(lambda c: Watch()),), batch=1))
    got = [r["value"] for r in rows if r["phase"] == "train" and r["metric"] == "loss"]
    assert got == pytest.approx([np.mean(losses[:WINDOW]), np.mean(losses[WINDOW:])], rel=1e-6)


def test_a_report_is_of_the_event_that_ended():
    class Says(Method):
        begun = -1

        def begin(self, view):
            self.begun += 1

        def report(self):
            return {"begun": self.begun}

    rows = run(learner_of(tasks(5, 5, 5), (spec_of(lambda c: Says()),)))
    said = [(r["event"], r["metric"], r["value"]) for r in rows if r["phase"] == "report"]
    assert said == [(i, "probe", {"begun": i}) for i in range(3)]


def test_training_accuracy_with_added_samples_is_a_share():
    function, _ = HOOKS["extend_batch"]
    rows = run(learner_of(tasks(20), (hook_method("extend_batch", function),), epochs=20))
    values = [r["value"] for r in rows if r["phase"] == "train" and r["metric"] == "accuracy"]
    assert max(values) <= 1


def test_bytes_of_methods_are_the_most_they_held():
    class Grows(Method):
        held = 0

        def end_epoch(self):
            self.held = (70, 30)[self.held > 0]

        def nbytes(self):
            return self.held

    learner = learner_of(tasks(5, 5), (spec_of(lambda c: Grows()),))
    run(learner)
    assert learner.method_bytes == 70


def test_statistics_are_those_of_the_first_training_set():
    learner = learner_of(tasks(9, 7))
    x = learner.stream[0].train.load().x.double()
    assert learner.statistics == (float(x.mean()), float(x.std()))


def test_phases_order_the_step():
    said = []

    def make(name, phase):
        running = type("R", (Method,), {"gradients": lambda s, g: (said.append(name), g)[1]})
        return spec_of(lambda c: running(), named=name, phase=phase)

    methods = (make("last", Phase.AVERAGING), make("first", Phase.GATE))
    run(learner_of(tasks(5), methods))
    assert said == ["first", "last"]
