"""SGP: whole runs against a plain loop in the authors' order of computing; importances by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import Context
from spikecl.continual.projection.gpm import Gpm
from spikecl.continual.projection.sgp import Scaled, Sgp
from spikecl.encoding import Encoder
from spikecl.errors import ConfigError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CPU = torch.device("cpu")
LR, BATCH, EPOCHS, HIDDEN = 0.3, 4, 2, (16, 12)
CLOSE = {"rtol": 0, "atol": 1e-8}


class Double(Encoder):
    """Constant current in float64."""

    steps = 1

    def encode(self, x, statistics, generator):
        return ((x - statistics.mean) / statistics.std).double()[None]


def stream_of(*sizes, n=10, same=False):
    """Tasks of some samples each; the test sets are the training sets."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for size in sizes:
        x = torch.rand(size, n, generator=generator)
        made = Samples((Part(x, torch.arange(size) % 3, torch.arange(size)),))
        sets.append(sets[0] if same and sets else made)

    def make(i):
        return Experience(i, sets[i], (0, 1, 2), task=i)

    tests = {f"task{i}": EvalSet(s, (0, 1, 2), (i,)) for i, s in enumerate(sets)}
    return Stream("made", {}, 0, DOMAIN_IL, 3, (n,), len(sets), make, tests)


def learner_of(stream, method, *, optimiser=None, hidden=HIDDEN):
    return Learner(
        stream=stream,
        network=Mlp(hidden=hidden, bias=False).build(stream.input_shape, 3).double(),
        encoder=Double(),
        trainer=Bptt(),
        methods=(method,),
        optimiser=optimiser or Sgd(lr=LR),
        plan=TrainPlan(epochs=EPOCHS, batch=BATCH),
        seeds=Seeds(5),
        device=CPU,
    )


def sgp_of(learner):
    return learner.methods.methods["sgp"].protection


def ends(learner):
    """Run; return weights, bases and importances at the start and after each experience."""
    found = []
    for tick in learner.ticks():
        if tick.kind == "event":
            weights = {n[:-7]: p.detach().clone() for n, p in learner.network.weights().items()}
            bases, importance = {}, {}
            if "sgp" in learner.methods.methods:
                protection = sgp_of(learner)
                bases = {n: m.rows.clone() for n, m in protection.memory.items()}
                importance = {n: i.clone() for n, i in protection.importance.items()}
            found.append((weights, bases, importance))
    return found


# ---- a plain loop -------------------------------------------------------------------------------


def forward(w, x):
    """Return logits and the rows of every synapse."""
    rows, names = {}, list(w)
    for name in names:
        rows[name] = x.detach()
        x = x @ w[name].T
        x = torch.relu(x) if name != names[-1] else x
    return x, rows


def remember(m, old, activity, threshold, scale):
    """The authors' rule on activity [n, R], bases in columns: two decompositions and a stack."""
    total = (np.linalg.svd(activity)[1] ** 2).sum()
    inside = m @ (m.T @ activity)
    uc, sc, _ = np.linalg.svd(inside, full_matrices=False)
    k = m.shape[1]
    again = np.sqrt((m.T @ uc[:, :k]) ** 2 @ sc[:k] ** 2)
    u, s, _ = np.linalg.svd(activity - inside)
    r, reached = 0, (total - (s**2).sum()) / total
    while reached < threshold:
        reached += s[r] ** 2 / total
        r += 1
    used = np.hstack((again, s[:r]))
    importance = (scale + 1) * used / (scale * used + used.max())
    importance[:k] = np.clip(importance[:k] + old, 0, 1)
    return np.hstack((m, u[:, :r])), importance


def loop(stream, start, statistics, thresholds, scale):
    """SGP with textbook projections; yields weights, bases (columns) and importances."""
    w, names = {n: p.clone() for n, p in start.items()}, list(start)
    held = {n: (np.zeros((start[n].shape[1], 0)), np.zeros(0)) for n in names}
    for task, event in enumerate(stream):
        data = event.train.load()
        x = ((data.x - statistics.mean) / statistics.std).double()
        for epoch in range(EPOCHS):
            generator = Seeds(5).generator("order", event=task, epoch=epoch)
            order = torch.randperm(len(data), generator=generator)
            for picked in torch.split(order, BATCH):
                leaves = {n: p.clone().requires_grad_() for n, p in w.items()}
                logits, _ = forward(leaves, x[picked])
                functional.cross_entropy(logits, data.y[picked]).backward()
                for n in names:
                    m, importance = held[n]
                    matrix = torch.from_numpy(m @ np.diag(importance) @ m.T)
                    gradient = leaves[n].grad
                    w[n] = w[n] - LR * (gradient - gradient @ matrix)
        _, rows = forward(w, x)
        for n in names:
            held[n] = remember(*held[n], rows[n].numpy().T, thresholds[task], scale)
        yield dict(w), dict(held)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_three_tasks_equal_a_plain_loop(scale):
    stream = stream_of(11, 13, 9)
    learner = learner_of(stream, Sgp(energy=0.7, growth=0.1, scale=scale))
    found = ends(learner)
    plain = loop(stream, found[0][0], learner.statistics, (0.7, 0.8, 0.9), scale)
    for task, (expected, held) in enumerate(plain):
        weights, bases, importance = found[task + 1]
        for n in weights:
            torch.testing.assert_close(weights[n], expected[n], **CLOSE)
            m, lam = held[n]
            torch.testing.assert_close(importance[n], torch.from_numpy(lam), **CLOSE)
            ours = bases[n].T @ importance[n].diag() @ bases[n]
            torch.testing.assert_close(ours, torch.from_numpy(m @ np.diag(lam) @ m.T), **CLOSE)
    everything = torch.cat(list(found[3][2].values()))
    assert float(everything.min()) < 0.9 and float(everything.max()) == 1
    assert len(found[3][1]["hidden1"]) > len(found[1][1]["hidden1"])


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.1, momentum=0.9), Adam(lr=0.01)], ids=str)
def test_a_steep_scale_is_gpm(optimiser):
    options = {"energy": 0.7, "growth": 0.0}
    results = [
        ends(learner_of(stream_of(11, 13, 9), spec, optimiser=optimiser))[-1][0]
        for spec in (Sgp(scale=1e12, **options), Gpm(**options), Sgp(scale=10.0, **options))
    ]
    for n, w in results[0].items():
        torch.testing.assert_close(w, results[1][n], **CLOSE)
    assert not torch.allclose(results[0]["hidden2"], results[2]["hidden2"], atol=1e-4)


# ---- importance ---------------------------------------------------------------------------------


def importances(spec, *spectra):
    network = Mlp(hidden=(4,)).build((len(spectra[0]),), 2).double()
    found = spec.start(Context(network, Sgd(), Seeds(0), DOMAIN_IL, 2, CPU)).protection
    said = []
    for values in spectra:
        report = found.extend("hidden1", torch.tensor(values, dtype=torch.float64).diag())
        found._experience += 1
        said.append((found.importance["hidden1"].tolist(), report))
    return said, found


def test_importance_in_closed_form():
    """Standard deviations 4, 2, 1: (a + 1) s / (a s + 4), then clipped sums."""
    (first, second), found = importances(Sgp(energy=1.0, scale=3.0), (16, 4, 1), (1, 1, 1))
    once = [4 * s / (3 * s + 4) for s in (4, 2, 1)]
    assert first[0] == pytest.approx(once) and once[0] == 1
    assert second[0] == pytest.approx([min(1.0, value + 1) for value in once])
    assert first[1]["importance"] == pytest.approx(sum(once) / 3)
    assert first[1]["plasticity"] == pytest.approx(1 - sum(once) / 3)
    assert float(found.outside("hidden1").diagonal().abs().max()) < 1e-12  # all used twice


def test_old_bases_gain_without_new_ones():
    said, _ = importances(Sgp(energy=0.9, growth=0.0, scale=1.0), (90, 9, 1), (80, 20, 0))
    assert [len(values) for values, _ in said] == [1, 2]
    once = 2 * 3 / (3 + 90**0.5)
    said, _ = importances(Sgp(energy=0.99, growth=0.0, scale=1.0), (90, 9, 1), (90, 9, 0))
    assert [len(values) for values, _ in said] == [2, 2]
    assert said[0][0] == pytest.approx([1.0, once]) and once < 0.5
    assert said[1][0] == pytest.approx([1.0, 2 * once])


def test_it_does_not_depend_on_the_size_of_activity():
    spectra = ((30, 20, 7, 2, 1), (3, 9, 1, 4, 4))
    one, _ = importances(Sgp(energy=0.8), *spectra)
    other, _ = importances(Sgp(energy=0.8), *[[1e6 * v for v in values] for values in spectra])
    assert [len(values) for values, _ in one] == [len(values) for values, _ in other]
    for (a, _), (b, _) in zip(one, other, strict=True):
        assert a == pytest.approx(b)


def test_silence_changes_nothing():
    said, _ = importances(Sgp(energy=0.9), (0, 0, 0), (5, 2, 1), (0, 0, 0))
    assert said[0][0] == []
    assert said[2][0] == said[1][0] != []


def test_the_leak_falls_with_the_scale():
    """What a random update does to old currents; GPM is the limit."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50, 6, generator=generator).double() * torch.arange(1.0, 7).double()
    update, leaks = torch.randn(4, 6, generator=generator).double(), []
    for scale in (0.1, 1.0, 10.0, 100.0, 1e9):
        network = Mlp(hidden=(4,)).build((6,), 2).double()
        spec = Sgp(energy=1.0, scale=scale)
        found = spec.start(Context(network, Sgd(), Seeds(0), DOMAIN_IL, 2, CPU)).protection
        found.extend("hidden1", x.T @ x / 50)
        leaks.append(float((found.outside("hidden1").residual(update) @ x.T).norm()))
    assert leaks == sorted(leaks, reverse=True)
    assert leaks[0] > 10 * leaks[3] and leaks[4] < 1e-6 * float((update @ x.T).norm())


# ---- the map ------------------------------------------------------------------------------------


def test_the_map_is_its_matrix():
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(7, 4, generator=generator).double()).Q.T
    importance = torch.tensor([1.0, 0.7, 0.25, 0.0]).double()
    outside = Scaled(basis, importance)
    matrix = torch.eye(7).double() - basis.T @ importance.diag() @ basis
    x = torch.randn(5, 7, generator=generator).double()
    tight = {"rtol": 0, "atol": 1e-14}
    torch.testing.assert_close(outside.residual(x), x @ matrix, **tight)
    torch.testing.assert_close(outside.rows(), matrix, **tight)
    torch.testing.assert_close(outside.diagonal(), matrix.diagonal(), **tight)
    expected = [0.0, 0.3, 0.75, 1.0, 1.0, 1.0, 1.0]
    values = torch.linalg.eigvalsh(outside.rows()).tolist()
    assert values == pytest.approx(expected, abs=1e-7)
    assert outside.columns is None and outside.work == 2 * 4 * 7


# ---- what it keeps and refuses ------------------------------------------------------------------


def test_report_and_bytes():
    learner = learner_of(stream_of(9, 9), Sgp(rows=3), hidden=(8,))
    said = []
    for tick in learner.ticks():
        said += [r["value"] for r in tick.rows if r["phase"] == "report"]
    assert json.loads(json.dumps(said)) == said
    assert [s["hidden1"]["rows"] for s in said] == [3, 6]
    for s in said:
        for n, size in (("hidden1", 10), ("readout", 8)):
            held = s[n]["importance"] * s[n]["rows"]
            assert s[n]["plasticity"] == pytest.approx(1 - held / size)
            assert 0 < s[n]["plasticity"] < 1
    assert learner.methods.nbytes() == 8 * (6 * (10 + 8) + 6 + 6)


def test_state_goes_round_to_the_last_bit():
    learner = learner_of(stream_of(20, 20), Sgp(energy=0.7))
    ends(learner)
    tensors, values = split(sgp_of(learner).state_dict())
    again = sgp_of(learner_of(stream_of(20, 20), Sgp(energy=0.7)))
    assert again.outside("hidden1") is None
    again.load_state_dict(join(tensors, json.loads(json.dumps(values))))
    assert again.report() == sgp_of(learner).report()
    for name in again.memory:
        for a, b in zip(again.outside(name), sgp_of(learner).outside(name), strict=True):
            assert len(a) and torch.equal(a, b)


@pytest.mark.parametrize(
    "wrong",
    [{"scale": 0.0}, {"energy": 1.5}, {"growth": 1.0}, {"rows": -2}, {"samples": 0}, {"alpha": 1}],
    ids=str,
)
def test_what_means_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"Sgp.{next(iter(wrong))}"):
        Sgp(**wrong)


def test_one_less_is_about_energies():
    with pytest.raises(ConfigError, match="first_task_offbyone=true.*rows=3"):
        Sgp(rows=3, first_task_offbyone=True)
    for name, value in (("energy", 0.9), ("growth", 0.0)):
        with pytest.raises(ConfigError, match=f"{name}={value} .*where rows=3 sizes.*leave one"):
            Sgp(rows=3, **{name: value})


def test_a_list_of_another_length_is_refused_at_the_start():
    with pytest.raises(ConfigError, match=r"method.sgp.energy: got 2 values .* for 3 synapses"):
        learner_of(stream_of(5), Sgp(energy=(0.9, 0.5)))
