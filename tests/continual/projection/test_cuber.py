"""CUBER: the run equals a plain loop with autograd; its regimes are those of the paper."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual.projection.cuber import Cuber
from spikecl.continual.projection.trgp import Trgp
from spikecl.encoding import Encoder
from spikecl.errors import ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, Experience, Reveal, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CPU = torch.device("cpu")
LR, CLASSES, N = 0.2, 3, 10
SHOWN = DOMAIN_IL | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL


class Double(Encoder):
    """Two steps of the same input, as it is, in float64."""

    steps = 2

    def encode(self, x, statistics, generator):
        return x.double().expand(2, *x.shape)


def tasks(*sizes, noise=0.5):
    """Samples of tasks that have something in common."""
    generator = torch.Generator().manual_seed(0)
    common, sets = torch.rand(CLASSES, N, generator=generator) - 0.5, []
    for size in sizes:
        y = torch.arange(size) % CLASSES
        x = common[y] + noise * (torch.rand(size, N, generator=generator) - 0.5)
        sets.append((x, y))
    return sets


def stream_of(sets, reveal=SHOWN):
    samples = [Samples((Part(x, y, torch.arange(len(x))),)) for x, y in sets]
    classes = tuple(range(CLASSES))
    tests = {f"task{i}": EvalSet(s, classes, (i,)) for i, s in enumerate(samples)}
    make = lambda i: Experience(i, samples[i], classes, task=i)  # noqa: E731
    return Stream("made", {}, 0, reveal, CLASSES, (N,), len(sets), make, tests)


def learner_of(sets, method, *, optimiser=None, epochs=2, reveal=SHOWN):
    stream = stream_of(sets, reveal)
    return Learner(
        stream=stream,
        network=Mlp(hidden=(16, 12)).build((N,), CLASSES).double(),
        encoder=Double(),
        trainer=Bptt(),
        methods=(method,),
        optimiser=optimiser or Sgd(lr=LR),
        plan=TrainPlan(epochs=epochs, batch=4),
        seeds=Seeds(5),
        device=CPU,
    )


def regions_of(learner):
    return next(iter(learner.methods.methods.values())).regions


def run(learner):
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event:
            yield tick.position.event - 1


def weights_of(learner):
    return {n[:-7]: p.detach().clone() for n, p in learner.network.weights().items()}


# ---- the whole method against a plain loop ------------------------------------------------------


def forward(weights, x):
    """Logits of a network of rectifiers, and the rows that each weight met."""
    *hidden, last = weights
    rows = {}
    for name in hidden:
        rows[name] = x.detach()
        x = functional.relu(x @ weights[name].T)
    rows[last] = x.detach()
    return x @ weights[last].T, rows


def gradients(weights, trusted, q, x, y):
    """dL/dW and dL/dQ of the loss at W̃, by autograd."""
    w = {name: each.clone().requires_grad_() for name, each in weights.items()}
    turns = {key: each.clone().requires_grad_() for key, each in q.items()}
    made = {
        n: w[n] + sum(w[n] @ b @ (turns[n, j] - torch.eye(b.shape[1])) @ b.T for j, b in of.items())
        for n, of in trusted.items()
    }
    logits, rows = forward(made, x)
    functional.cross_entropy(logits, y).backward()
    return {n: t.grad for n, t in w.items()}, {k: t.grad for k, t in turns.items()}, rows


def points_as(a, b, alignment):
    return bool((a * b).sum() > alignment * a.norm() * b.norm())


def span(spaces, name):
    """The projector on all that some spaces hold."""
    columns = torch.cat([torch.zeros(len(spaces[0][name]), 1).double()] * bool(spaces), 1)
    columns = torch.cat([columns, *(space[name] for space in spaces)], 1)
    left, values, _ = np.linalg.svd(columns.numpy(), full_matrices=False)
    left = torch.from_numpy(left[:, values > 1e-8])
    return left @ left.T


def loop(sets, start, *, energy, threshold, alignment, penalty, rate, momentum):
    """CUBER as algorithm 1; yields weights, and for each weight the tasks that began and ended
    in regimes 2 and 3, and Q.
    """
    weights, spaces, slopes = dict(start), [], []
    memory = {name: torch.zeros(w.shape[1], 0).double() for name, w in weights.items()}
    for task, (x, y) in enumerate(sets):
        x, first = x.double(), dict(weights)
        none = {name: {} for name in weights}
        slope, _, _ = gradients(weights, none, {}, x, y)
        trusted, regime3 = {}, {}
        for name, g in slope.items():
            norms = [(g @ space[name]).norm() for space in spaces]
            order = np.argsort([-float(n) for n in norms], kind="stable")[:2]
            near = sorted(int(j) for j in order if norms[j] >= threshold * g.norm())
            trusted[name] = {j: spaces[j][name] for j in near}
            regime3[name] = [j for j in near if points_as(slopes[j][name], g, alignment)]
        began = {name: list(of) for name, of in regime3.items()}
        q = {(n, j): torch.eye(b.shape[1]).double() for n in trusted for j, b in trusted[n].items()}
        speed = {key: 0.0 for key in (*weights, *q)}
        for epoch in range(2):
            generator = Seeds(5).generator("order", event=task, epoch=epoch)
            for rows in torch.randperm(len(x), generator=generator).split(4):
                found, turned, _ = gradients(weights, trusted, q, x[rows], y[rows])
                for name, g in found.items():
                    regime3[name] = [
                        j for j in regime3[name] if points_as(slopes[j][name], g, alignment)
                    ]
                    total = g.clone()
                    for j in regime3[name]:
                        b = trusted[name][j]
                        moved = (weights[name] - first[name]) @ b @ b.T
                        if moved.norm() > 0:
                            total += penalty * moved / moved.norm()
                    speed[name] = momentum * speed[name] + total
                    closed = [s for j, s in enumerate(spaces) if j not in regime3[name]]
                    held = span(closed, name) if closed else 0 * g.T @ g
                    weights[name] = weights[name] - LR * (speed[name] - speed[name] @ held)
                for key, g in turned.items():
                    speed[key] = momentum * speed[key] + g
                    q[key] = q[key] - rate * LR * speed[key]
        slope, _, rows = gradients(weights, trusted, q, x, y)
        slopes.append(slope)
        space = {}
        for name, r in rows.items():
            m = memory[name]
            left, values, _ = np.linalg.svd((r - r @ m @ m.T).T.numpy(), full_matrices=False)
            pool = torch.cat([m, torch.from_numpy(left)], 1)
            used = torch.cat([(r @ m).square().sum(0), torch.from_numpy(values) ** 2])
            order = used.argsort(descending=True)
            share = used[order].cumsum(0) / r.square().sum()
            taken = order[: int((share < energy).sum()) + 1]
            space[name] = pool[:, taken]
            memory[name] = torch.cat([m, pool[:, taken[taken >= m.shape[1]]]], 1)
        spaces.append(space)
        yield dict(weights), trusted, began, regime3, q


@pytest.mark.parametrize(
    ("alignment", "penalty", "momentum", "threshold"),
    [(0.0, 0.3, 0.0, 0.0), (-1.0, 0.1, 0.5, 0.0), (0.3, 0.1, 0.0, 0.85)],
    ids=["as in the paper", "all open", "some near enough"],
)
def test_four_tasks_equal_a_plain_loop(alignment, penalty, momentum, threshold):
    sets = tasks(11, 13, 9, 12)
    sets[2] = (sets[2][0], (sets[2][1] + 1) % CLASSES)  # of one task the labels are others
    options = {"alignment": alignment, "penalty": penalty, "threshold": threshold, "rate": 0.5}
    method = Cuber(energy=0.8, growth=0.0, samples=99, probe=99, **options)
    learner = learner_of(sets, method, optimiser=Sgd(lr=LR, momentum=momentum))
    expected = loop(sets, weights_of(learner), energy=0.8, momentum=momentum, **options)
    regimes = set()
    for task, (weights, trusted, began, ended, q) in zip(run(learner), expected, strict=True):
        close = {"rtol": 0, "atol": 1e-9}
        for name, w in weights_of(learner).items():
            torch.testing.assert_close(w, weights[name], **close)
            said = regions_of(learner).report()[name]
            assert said["trusted"] == list(trusted[name])
            assert (said["opened"], said["open"]) == (began[name], ended[name])
            for key, scale in regions_of(learner).scales[str(task)].get(name, {}).items():
                basis, b = regions_of(learner).basis(name, key), trusted[name][int(key)]
                turned = b @ (q[name, int(key)] - torch.eye(b.shape[1])) @ b.T
                torch.testing.assert_close(basis.T @ scale @ basis, turned, **close)
            for j in range(task):
                near, opened, left = (j in of[name] for of in (trusted, began, ended))
                regimes.add((1 + near + opened) * 10 + 1 + near + left)
    # how they began and ended: 1 is regime 1, and so on
    assert regimes == {0.0: {11, 22, 33}, -1.0: {11, 33}, 0.3: {11, 22, 32, 33}}[alignment]


# ---- regimes ------------------------------------------------------------------------------------


def test_the_same_task_again_is_in_regime_3_and_gets_better():
    sets = tasks(24) * 2
    learner = learner_of(sets, Cuber(penalty=0.0), epochs=4)
    losses = []
    x, y = learner.encoder.encode(sets[0][0], None, None), sets[0][1]
    for _ in run(learner):
        method = next(iter(learner.methods.methods.values()))
        losses.append(float(functional.cross_entropy(method.predict(x, 0), y)))
    for said in regions_of(learner).report().values():
        assert said["trusted"] == said["opened"] == [0]
    assert losses[1] < losses[0] - 0.01


def test_opposed_tasks_are_in_regime_2():
    """The same inputs, the other labels."""
    ((x, y),) = tasks(24)
    learner = learner_of([(x, y), (x, (y + 1) % CLASSES)], Cuber(energy=1.0, growth=0.0), epochs=8)
    before = None
    for task in run(learner):
        if task == 0:
            before = weights_of(learner)
    for said in regions_of(learner).report().values():
        assert said["trusted"] == [0] and said["opened"] == []
    old = regions_of(learner).basis("hidden1", "0000")
    change = weights_of(learner)["hidden1"] - before["hidden1"]
    assert float((change @ old.T).abs().max()) < 1e-12


def test_tasks_with_other_inputs_are_in_regime_1():
    ((x, y),) = tasks(24)
    apart = torch.arange(N) < 5
    learner = learner_of([(x * apart, y), (x * ~apart, y)], Cuber())
    for _ in run(learner):
        pass
    said = regions_of(learner).report()["hidden1"]
    assert (
        said["trusted"] == said["opened"] == [] and regions_of(learner).scales["1"]["hidden1"] == {}
    )


@pytest.mark.parametrize(
    "optimiser", [Sgd(lr=LR, momentum=0.5), Adam(lr=0.01)], ids=["sgd", "adam"]
)
def test_nobody_is_aligned_beyond_1_which_is_trgp(optimiser):
    ends = []
    for method in (Cuber(alignment=1.0, threshold=0.0), Trgp(threshold=0.0)):
        learner = learner_of(tasks(11, 13, 9, 12), method, optimiser=optimiser)
        for _ in run(learner):
            pass
        ends.append((weights_of(learner), regions_of(learner).scales))
    (a, scales), (b, others) = ends
    assert all(torch.equal(w, b[name]) for name, w in a.items())
    assert scales["3"].keys() == others["3"].keys()
    for path, of in scales["3"].items():
        assert len(of) == 2 and all(torch.equal(s, others["3"][path][key]) for key, s in of.items())


def test_a_penalty_holds_what_is_open():
    """The larger it is, the less weights move inside what the old task used."""
    moved = []
    for penalty in (0.0, 0.02, 0.1):
        method = Cuber(penalty=penalty, alignment=-1.0, rate=0.0)
        learner, before = learner_of(tasks(12, 12), method, optimiser=Sgd(lr=0.02)), None
        for task in run(learner):
            before = weights_of(learner) if task == 0 else before
        change = weights_of(learner)["hidden1"] - before["hidden1"]
        moved.append(float((change @ regions_of(learner).basis("hidden1", "0000").T).norm()))
    assert moved[0] > 1.1 * moved[1] > 1.5 * moved[2] > 0


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_penalty_of_a_batch_is_the_same_in_parts(parts, monkeypatch):
    """A trainer may change weights behind every part of the steps."""
    learner = learner_of(tasks(8, 8), Cuber(threshold=0.0, alignment=-1.0, penalty=0.7))
    for tick in learner.ticks():
        if tick.kind == "step" and tick.position.event == 1:
            break
    regions = regions_of(learner)
    zeros = {n: torch.zeros_like(p) for n, p in learner.network.weights().items()}
    # an open basis is closed where nothing points along it: let it point along its own
    monkeypatch.setattr(regions, "_aligned", lambda key, path, rows: rows.new_ones(()))
    whole = regions.enter(zeros)
    monkeypatch.setattr(learner.training, "portion", 1 / parts)
    part = regions.enter(zeros)
    assert any(bool(each.any()) for each in whole.values())
    for name, each in whole.items():
        torch.testing.assert_close(parts * part[name], each)


def test_nothing_of_an_experience_that_has_ended_stays_open():
    learner = learner_of(tasks(12, 12), Cuber(alignment=-1.0))
    for _ in run(learner):
        pass
    regions = regions_of(learner)
    assert regions.report()["hidden1"]["open"] == [0] and not regions.open and not regions.anchors
    assert set(regions.slopes) == {"0000", "0001"}
    assert bool((regions.held("hidden1") == 1).all())


# ---- state and errors ---------------------------------------------------------------------------


def test_resumes_where_something_is_open():
    make = lambda: learner_of(tasks(11, 13, 9), Cuber(threshold=0.0, alignment=-0.9))  # noqa: E731
    whole, saved = make(), None
    for tick in whole.ticks():
        place = (tick.position.event, tick.position.epoch, tick.position.step)
        if tick.kind == "step" and place == (2, 0, 2):
            tensors, values = split(whole.state_dict())
            saved = join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))
            assert any(float(on) for of in regions_of(whole).open.values() for on in of.values())
    again = make()
    again.load_state_dict(saved)
    for _ in run(again):
        pass
    (a, va), (b, vb) = split(whole.state_dict()), split(again.state_dict())
    assert va == vb and sorted(a) == sorted(b)
    assert all(torch.equal(t, b[name]) for name, t in a.items())


def test_what_it_refuses():
    with pytest.raises(ConfigError, match="alignment"):
        Cuber(alignment=1.5)
    with pytest.raises(ConfigError, match="penalty"):
        Cuber(penalty=-0.1)
    with pytest.raises(PairingError, match="'cuber' needs task_id_train"):
        learner_of(tasks(8), Cuber(), reveal=SHOWN & ~Reveal.TASK_ID_TRAIN)
