"""TRGP: the run equals a plain loop with autograd; old tasks answer as before, with their Q."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import Finetune
from spikecl.continual.projection.gpm import Gpm
from spikecl.continual.projection.trgp import Trgp, TrustRegions
from spikecl.encoding import Encoder, StepCrossEntropy
from spikecl.errors import ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp, form_gradients
from spikecl.networks.build import SpikingRecurrentNet
from spikecl.networks.convolutional import SpikingConvNet
from spikecl.neurons import LIF
from spikecl.optim import Adam, Place, ScheduleFreeSgd, Sgd
from spikecl.optim.schedules import Constant, Linear
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, TASK_IL, Experience, Reveal, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt, Ottt
from spikecl.trainers.zeroth.spsa import Spsa

CPU = torch.device("cpu")
STEPS, V_TH, LR = 3, 0.25, 0.2
SHOWN = DOMAIN_IL | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL
SPIKING = SpikingMlp(hidden=(16, 12), neuron=LIF(beta=0.5, v_th=V_TH))


class Double(Encoder):
    """Constant current in float64; a different one each step with ``vary``."""

    def __init__(self, *, vary: bool = False):
        self.steps, self.vary = STEPS, vary

    def encode(self, x, statistics, generator):
        x = ((x - statistics.mean) / statistics.std).double()
        if not self.vary:
            return x.expand(STEPS, *x.shape)
        return torch.stack([x.roll(t, 1) for t in range(STEPS)])


def stream_of(*sizes: int, shape=(10,), classes: int = 3, reveal=SHOWN, apart=False) -> Stream:
    """Tasks that have something in common; the test sets are the training sets."""
    generator = torch.Generator().manual_seed(0)
    common = torch.rand(classes, *shape, generator=generator)
    sets = []
    for size in sizes:
        y = torch.arange(size) % classes
        x = (common[y] + torch.rand(size, *shape, generator=generator)) / 2
        sets.append(Samples((Part(x, y, torch.arange(size)),)))

    def make(i):
        return Experience(i, sets[i], tuple(range(classes)), task=i)

    tests = {f"task{i}": EvalSet(s, tuple(range(classes)), (i,)) for i, s in enumerate(sets)}
    return Stream("made", {}, 0, reveal, classes, shape, len(sets), make, tests)


def learner_of(stream, method, network=SPIKING, *, optimiser=None, vary=False, head="single", **of):
    outputs = stream.classes * (len(stream) if head == "multi" else 1)
    network = network.build(stream.input_shape, outputs).double()
    for name in of.get("frozen", ()):
        network.weights()[name].requires_grad_(False).normal_(generator=torch.Generator())
    return Learner(
        stream=stream,
        network=network,
        encoder=Double(vary=vary),
        trainer=of.get("trainer", Bptt()),
        methods=(method,),
        optimiser=optimiser or Sgd(lr=LR),
        plan=TrainPlan(epochs=2, batch=4),
        seeds=Seeds(5),
        device=CPU,
        head=head,
        loss=of.get("loss"),
    )


def method_of(learner):
    return learner.methods.methods["trgp"]


def run(learner):
    """Run, and yield at the end of each experience."""
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event:
            yield tick.position.event - 1


# ---- the whole method against a plain loop ------------------------------------------------------


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).double()

    @staticmethod
    def backward(ctx, g):
        s = 1 / (1 + torch.exp(-4 * ctx.saved_tensors[0]))
        return g * 4 * s * (1 - s)


def forward(weights, inputs):
    """Logits of a spiking MLP, and the rows that each weight met."""
    *hidden, last = weights
    spikes, rows = list(inputs), {}
    for name in hidden:
        rows[name], out = torch.cat(spikes).detach(), []
        v = torch.zeros(len(spikes[0]), len(weights[name])).double()
        for current in spikes:
            v = 0.5 * v + current @ weights[name].T
            s = _Fire.apply(v - V_TH)
            v = v - V_TH * s.detach()
            out.append(s)
        spikes = out
    mean = sum(spikes) / len(spikes)
    rows[last] = mean.detach()
    return mean @ weights[last].T, rows


def scaled(weights, trusted, q):
    """Effective weights ``W + sum W B Q B^T - W B B^T``, B with orthonormal columns."""
    made = {}
    for name, w in weights.items():
        made[name] = w
        for j, b in trusted[name].items():
            made[name] = made[name] + w @ b @ q[name, j] @ b.T - w @ b @ b.T
    return made


def loop(stream, start, encode, *, energy, growth, threshold, most, rate, momentum):
    """TRGP as the paper writes it; yields weights, trust regions, Q and bases of each task."""
    weights = {name: w.clone() for name, w in start.items()}
    memory = {name: torch.zeros(w.shape[1], 0).double() for name, w in weights.items()}
    spaces = []
    for task, event in enumerate(stream):
        data = event.train.load()
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        functional.cross_entropy(forward(leaves, encode(data.x))[0], data.y).backward()
        trusted = {name: {} for name in weights}
        for name, leaf in leaves.items():
            norms = [(leaf.grad @ space[name]).norm() for space in spaces]
            order = np.argsort([-float(n) for n in norms], kind="stable")[:most]
            for j in sorted(j for j in order if norms[j] >= threshold * leaf.grad.norm()):
                trusted[name][j] = spaces[j][name]
        q = {(n, j): torch.eye(b.shape[1]).double() for n in trusted for j, b in trusted[n].items()}
        speed = {key: 0.0 for key in (*weights, *q)}
        for epoch in range(2):
            generator = Seeds(5).generator("order", event=task, epoch=epoch)
            for picked in torch.randperm(len(data), generator=generator).split(4):
                leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
                turns = {key: value.clone().requires_grad_() for key, value in q.items()}
                logits, _ = forward(scaled(leaves, trusted, turns), encode(data.x[picked]))
                functional.cross_entropy(logits, data.y[picked]).backward()
                for name, leaf in leaves.items():
                    speed[name] = momentum * speed[name] + leaf.grad
                    free = speed[name] - speed[name] @ memory[name] @ memory[name].T
                    weights[name] = weights[name] - LR * free
                for key, leaf in turns.items():
                    speed[key] = momentum * speed[key] + leaf.grad
                    q[key] = q[key] - rate * LR * speed[key]
        _, rows = forward(scaled(weights, trusted, q), encode(data.x))
        space = {}
        for name, x in rows.items():
            m = memory[name]
            left, values, _ = np.linalg.svd((x - x @ m @ m.T).T.numpy(), full_matrices=False)
            pool = torch.cat([m, torch.from_numpy(left)], 1)
            used = torch.cat([(x @ m).square().sum(0), torch.from_numpy(values) ** 2])
            order = used.argsort(descending=True)
            share = used[order].cumsum(0) / x.square().sum()
            taken = order[: int((share < min(1, energy + growth * task)).sum()) + 1]
            space[name] = pool[:, taken]
            memory[name] = torch.cat([m, pool[:, taken[taken >= m.shape[1]]]], 1)
        spaces.append(space)
        yield dict(weights), trusted, q, dict(memory)


@pytest.mark.parametrize(
    ("vary", "threshold", "most", "momentum"),
    [(False, 0.0, 2, 0.0), (True, 0.0, 3, 0.5), (True, 0.9, 2, 0.0)],
    ids=["two of three", "all", "those above a threshold"],
)
def test_four_tasks_equal_a_plain_loop(vary, threshold, most, momentum):
    stream = stream_of(11, 13, 9, 12)
    method = Trgp(
        energy=0.85, growth=0.02, threshold=threshold, tasks=most, rate=0.5, samples=99, probe=99
    )
    learner = learner_of(stream, method, optimiser=Sgd(lr=LR, momentum=momentum), vary=vary)
    start = {n[:-7]: p.detach().clone() for n, p in learner.network.weights().items()}
    options = {"energy": 0.85, "growth": 0.02, "threshold": threshold, "most": most, "rate": 0.5}
    encode = lambda x: learner.encoder.encode(x, learner.statistics, None)  # noqa: E731
    expected = loop(stream, start, encode, momentum=momentum, **options)
    regions, chosen = method_of(learner).regions, []
    for task, (weights, trusted, q, memory) in zip(run(learner), expected, strict=True):
        close = {"rtol": 0, "atol": 1e-9}
        for name, w in weights.items():
            torch.testing.assert_close(learner.network.weights()[f"{name}.weight"], w, **close)
            m = regions.memory[name].rows
            torch.testing.assert_close(m.T @ m, memory[name] @ memory[name].T, **close)
            scales = regions.scales[str(task)].get(name, {})
            assert [int(key) for key in scales] == list(trusted[name])
            assert regions.report()[name]["trusted"] == list(trusted[name])
            for key, scale in scales.items():
                basis, b = regions.basis(name, key), trusted[name][int(key)]
                turned = b @ (q[name, int(key)] - torch.eye(b.shape[1])) @ b.T
                assert float(turned.abs().max()) > 1e-4
                torch.testing.assert_close(basis.T @ scale @ basis, turned, **close)
            chosen.append(len(scales))
        x = encode(stream[task].train.load().x)
        logits, _ = forward(scaled(weights, trusted, q), x)
        torch.testing.assert_close(method_of(learner).predict(x, task), logits, **close)
    assert max(chosen) == {0.0: most, 0.9: 2}[threshold]
    assert threshold == 0 or 0 in chosen[6:]  # some were not near enough


# ---- old tasks ----------------------------------------------------------------------------------

OPTIMISERS = {
    "sgd": Sgd(lr=0.2),
    "momentum": Sgd(lr=0.1, momentum=0.9),
    "decay": Sgd(lr=0.2, weight_decay=0.05),
    "adam": Adam(lr=0.01),
    "schedule_free": ScheduleFreeSgd(lr=0.5),
}
NETWORKS = {
    "static": (SpikingMlp(hidden=(40, 30), neuron=LIF(v_th=V_TH), bias=True), (30,)),
    "norm": (SpikingMlp(hidden=(40,), neuron=LIF(v_th=V_TH), norm="batch"), (30,)),
    "ordinary": (Mlp(hidden=(40, 30), bias=True), (30,)),
    "recurrent": (SpikingRecurrentNet(hidden=(40,), neuron=LIF(v_th=V_TH), gain=2.0), (30,)),
    "conv": (SpikingConvNet(channels=(6,), kernel=4, pool_size=1, neuron=LIF(v_th=V_TH)), (6, 6)),
}


def old_answers(method, optimiser, network="static", head="single"):
    """How far the first two tasks' answers moved later on, and how far weights did."""
    spec, shape = NETWORKS[network]
    few = {"conv": (1, 1, 2, 2), "recurrent": (3, 3, 4, 4)}.get(network, (4, 4, 5, 5))
    stream = stream_of(*few, shape=shape, reveal=SHOWN if head == "single" else TASK_IL)
    learner = learner_of(stream, method, spec, optimiser=optimiser, head=head)
    before, moved = {}, 0.0

    def answer(task):
        x = learner.encoder.encode(stream[task].train.load().x, learner.statistics, None)
        return learner.heads.test(learner._answer(x, task, None), task)

    for task in run(learner):
        for old, (logits, _) in before.items():
            moved = max(moved, float((answer(old) - logits).abs().max()))
        if task < 2:
            own = learner.network.weights().items()
            before[task] = answer(task), {n: p.detach().clone() for n, p in own}
    start, own = before[1][1], learner.network.weights().items()
    change = {n: float((p.detach() - start[n]).abs().max()) for n, p in own}
    return moved, change, learner


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
def test_old_tasks_answer_as_before(optimiser):
    moved, change, learner = old_answers(Trgp(energy=1.0, threshold=0.0, rate=1.0), optimiser)
    assert moved < 1e-9
    assert change["hidden1.weight"] > 1e-3 and change["hidden1.bias"] == 0
    regions = method_of(learner).regions
    assert all(float(s.abs().max()) > 1e-4 for s in regions.scales["1"]["hidden1"].values())
    x = learner.encoder.encode(learner.stream[1].train.load().x, learner.statistics, None)
    asked = method_of(learner)
    assert float((asked.predict(x, 1) - asked.predict(x, 0)).abs().max()) > 1e-3


@pytest.mark.parametrize("network", ["norm", "ordinary", "recurrent", "conv"])
def test_old_tasks_answer_as_before_in_every_network(network):
    moved, change, _ = old_answers(Trgp(energy=1.0, threshold=0.0), Sgd(lr=0.2), network)
    assert moved < 1e-9
    assert max(change.values()) > 1e-3


def test_old_tasks_answer_as_before_with_heads_of_their_own():
    method = Trgp(energy=1.0, threshold=0.0)
    moved, change, learner = old_answers(method, Adam(lr=0.01), head="multi")
    assert moved < 1e-9 and change["readout.weight"] > 1e-3
    assert "readout" not in method_of(learner).regions.scales["3"]


def test_without_it_they_do_not():
    """The control: what the tests above would see."""
    moved, _, _ = old_answers(Finetune(), Sgd(lr=0.2))
    assert moved > 1e-2


def test_the_memory_holds_all_that_is_used():
    """The authors' code leaves out the first new direction of each later experience."""
    learner = learner_of(stream_of(11, 13, 9), Trgp(energy=0.9))
    for _ in run(learner):
        pass
    regions = method_of(learner).regions
    for path, memory in regions.memory.items():
        used = torch.cat([regions.used[key][path] for key in regions.used]).unique()
        assert used.tolist() == list(range(len(memory.rows)))
        eye = torch.eye(len(memory.rows)).double()
        torch.testing.assert_close(memory.rows @ memory.rows.T, eye, rtol=0, atol=1e-12)


# ---- the chain rule -----------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["static", "recurrent", "conv"])
@pytest.mark.parametrize("trainer", [Bptt(), Bptt(checkpoint=2)], ids=["whole", "parts"])
def test_gradients_are_those_of_autograd(network, trainer):
    """Of W and of Q, behind weight maps and through patches."""
    spec, shape = NETWORKS[network]
    stream = stream_of(5, 5, 5, shape=shape)
    learner = learner_of(stream, Trgp(threshold=0.0), spec, trainer=trainer, vary=False)
    ends = run(learner)
    next(ends), next(ends)
    method, regions = method_of(learner), method_of(learner).regions
    method.begin(stream.view(stream[2]))
    generator = torch.Generator().manual_seed(1)
    for of in regions.scales["2"].values():
        for scale in of.values():
            scale.copy_(0.3 * torch.randn(scale.shape, generator=generator).double())
    batch = stream[2].train.load().take(slice(0, 5))
    x = learner.encoder.encode(batch.x, learner.statistics, None)
    own = learner.network.weights()

    leaves = {name: p.detach().clone().requires_grad_() for name, p in own.items()}
    turns = {
        (path, key): scale.clone().requires_grad_()
        for path, of in regions.scales["2"].items()
        for key, scale in of.items()
    }
    made = dict(leaves)
    for (path, key), turn in turns.items():
        basis, w = regions.basis(path, key), leaves[f"{path}.weight"]
        change = w.flatten(1) @ basis.T @ turn @ basis
        made[f"{path}.weight"] = made[f"{path}.weight"] + change.view_as(w)
    logits = learner.network(x, weights=made, training=True).logits
    functional.cross_entropy(logits, batch.y).backward()

    weights = method.weights(own)
    seen = learner.calls.see(batch, 0, 0)
    with torch.no_grad():
        parts = trainer.parts(learner.calls.call(seen, weights))
        found = {}
        for part in parts:
            formed = form_gradients(
                learner.network, method.factors(part.synapses, batch), part.direct, weights
            )
            for name, g in formed.items():
                found[name] = found.get(name, 0) + g
    for name, leaf in leaves.items():
        torch.testing.assert_close(found[name], leaf.grad, rtol=0, atol=1e-10)
    assert sorted(regions._changes) == sorted(f"{path}:{key}" for path, key in turns)
    for (path, key), turn in turns.items():
        assert float(turn.grad.abs().max()) > 1e-5
        torch.testing.assert_close(regions._changes[f"{path}:{key}"], turn.grad, rtol=0, atol=1e-10)


def test_the_gradient_that_chooses_is_that_of_all_samples():
    """Batches of 4, 4 and 3: each sample counts alike."""
    learner = learner_of(stream_of(11), Trgp())
    data = learner.stream[0].train.load()
    learner.at.event = 0
    learner.heads.begin(learner.stream[0])
    found = method_of(learner).regions.gradients(learner.stream.view(learner.stream[0]))
    leaves = {n[:-7]: p.detach().clone() for n, p in learner.network.weights().items()}
    leaves = {name: w.requires_grad_() for name, w in leaves.items()}
    logits, _ = forward(leaves, learner.encoder.encode(data.x, learner.statistics, None))
    functional.cross_entropy(logits, data.y, reduction="sum").backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(found[name], leaf.grad, rtol=0, atol=1e-12)


def test_an_optimiser_that_averages_leaves_the_average_of_q():
    """Of two steps with one gradient each: the mean of where z has been, by the steps' weights."""
    optimiser = ScheduleFreeSgd(lr=0.1, beta=0.9)
    learner = learner_of(stream_of(8, 16), Trgp(threshold=0.0, rate=1.0), optimiser=optimiser)
    regions, noted = method_of(learner).regions, []
    step = regions.step
    regions.step = lambda: (noted.append(regions._changes.get("hidden2:0000")), step())
    for _ in run(learner):
        pass
    z, total = 0.0, 0.0
    noted = [change for change in noted if change is not None]
    for change in noted:
        z = z - 0.1 * change
        total = total + z / len(noted)
    scale = regions.scales["1"]["hidden2"]["0000"]
    torch.testing.assert_close(scale, total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [Constant(), Linear()], ids=["constant", "linear"])
def test_q_takes_the_share_of_the_learning_rate_that_weights_take(schedule):
    """Q is what all gradients that were noted make of it, each with its step's share."""
    method, optimiser = Trgp(threshold=0.0, rate=0.5), Sgd(lr=LR, schedule=schedule)
    learner = learner_of(stream_of(8, 16), method, optimiser=optimiser)
    regions, noted = method_of(learner).regions, []
    step = regions.step
    regions.step = lambda: (noted.append(regions._changes.get("hidden2:0000")), step())
    for _ in run(learner):
        pass
    noted = [change for change in noted if change is not None]
    shares = [schedule.share(Place(done, 8)) for done in range(8)]
    total = sum(share * change for share, change in zip(shares, noted, strict=True))
    scale = regions.scales["1"]["hidden2"]["0000"]
    torch.testing.assert_close(scale, -0.5 * LR * total, rtol=0, atol=1e-14)


# ---- neutral elements ---------------------------------------------------------------------------


def weights_of(method, **options):
    learner = learner_of(stream_of(11, 13, 9), method, **options)
    for _ in run(learner):
        pass
    return learner, {n: p.detach().clone() for n, p in learner.network.weights().items()}


def test_q_that_stays_is_as_no_trust_region():
    still, a = weights_of(Trgp(threshold=0.0, rate=0.0))
    alone, b = weights_of(Trgp(threshold=1.0))
    assert sum(map(len, method_of(still).regions.scales["2"].values())) == 6
    assert not sum(map(len, method_of(alone).regions.scales["2"].values()))
    for name, w in a.items():
        assert torch.equal(w, b[name])
    a, b = (learner.scores.matrices()[0].values for learner in (still, alone))
    np.testing.assert_array_equal(a, b)


def test_without_trust_regions_two_tasks_are_those_of_gpm():
    """From the third on it keeps more: what GPM adds is what all old directions leave out."""
    ends = []
    for method in (Trgp(threshold=1.0), Gpm()):
        learner = learner_of(stream_of(11, 13), method)
        for _ in run(learner):
            pass
        ends.append(learner.network.weights())
    for name, p in ends[0].items():
        torch.testing.assert_close(p, ends[1][name], rtol=0, atol=1e-12)


def test_the_first_task_is_plain():
    ends = []
    for method in (Trgp(), Finetune()):
        learner = learner_of(stream_of(11), method)
        for _ in run(learner):
            pass
        ends.append(learner.network.weights())
    for name, p in ends[0].items():
        assert torch.equal(p, ends[1][name])


# ---- tests of tasks -----------------------------------------------------------------------------


def test_without_a_known_task_it_answers_with_the_weights_themselves():
    learner, _ = weights_of(Trgp(threshold=0.0))
    x = learner.encoder.encode(learner.stream[2].train.load().x, learner.statistics, None)
    plain, ask = learner.network(x).logits, method_of(learner).predict
    for task in (None, 7, 0):  # the first has no Q
        assert torch.equal(ask(x, task), plain)
    assert not torch.equal(ask(x, 2), plain)


def test_agnostic_accuracy_does_not_know_the_task():
    learner, _ = weights_of(Trgp(threshold=0.0, rate=3.0))
    aware, agnostic = (m.values[-1] for m in learner.scores.matrices())
    for i in range(3):
        data = learner.stream[i].train.load()
        x = learner.encoder.encode(data.x, learner.statistics, None)
        for accuracy, task in ((aware[i], i), (agnostic[i], None)):
            hits = method_of(learner).predict(x, task).argmax(1) == data.y
            assert accuracy == pytest.approx(float(hits.double().mean()))
    assert aware.tolist() != agnostic.tolist()


def test_a_task_that_comes_back_learns_its_q_anew():
    stream = stream_of(11, 13, 9, 13)
    again = Stream(
        "again", {}, 0, SHOWN, 3, (10,), 4,
        lambda i: Experience(i, stream[i].train, (0, 1, 2), task=(0, 1, 2, 1)[i]),
        {name: stream.eval_sets[name] for name in ("task0", "task1", "task2")},
    )  # fmt: skip
    learner = learner_of(again, Trgp(threshold=0.0))
    seen = []
    for _ in run(learner):
        scales = method_of(learner).regions.scales
        seen.append(list(scales.get("1", {}).get("hidden1", {})))
    assert set(scales) == {"0", "1", "2"}
    assert seen[1] == seen[2] == ["0000"] and len(seen[3]) == 2


def test_noise_in_tests_is_its_own():
    noisy = SpikingMlp(hidden=(16,), neuron=LIF(beta=0.5, v_th=V_TH, noise=0.1))
    learner = learner_of(stream_of(11, 13), Trgp(threshold=0.0), noisy)
    assert learner.network.is_random
    generator = torch.get_rng_state()
    for _ in run(learner):
        pass
    x = learner.encoder.encode(learner.stream[1].train.load().x, learner.statistics, None)
    assert torch.equal(method_of(learner).predict(x, 1), method_of(learner).predict(x, 1))
    assert torch.equal(torch.get_rng_state(), generator)


# ---- windows of steps, frozen synapses ----------------------------------------------------------


@pytest.mark.parametrize("update", ["sequence", "window"])
def test_windows_that_learn_run_with_what_the_ones_before_learned(update):
    """With Q at I the effective weights are the weights, trusted or not, in every window."""
    network = SpikingMlp(hidden=(8,), neuron=LIF(beta=0.5, v_th=V_TH), readout="mean_current")
    ends = []
    for threshold in (0.0, 1.0):
        learner = learner_of(
            stream_of(8, 8),
            Trgp(threshold=threshold, rate=0.0, energy=0.6, tasks=1),
            network,
            vary=True,
            trainer=Ottt(window=1, update=update),
            loss=StepCrossEntropy(),
        )
        for _ in run(learner):
            pass
        trusted = method_of(learner).regions.scales["1"]["hidden1"]
        assert bool(trusted) is (threshold == 0)
        ends.append({n: p.detach().clone() for n, p in learner.network.weights().items()})
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=0, atol=1e-12)


class Rowless(Spsa):
    """Stands for a rule whose gradients have no rows."""

    has_gradient = True


@pytest.mark.parametrize("trainer", [Bptt(), Rowless()], ids=["bptt", "rowless"])
def test_frozen_synapses_have_no_trust_region(trainer):
    """A network for them alone would change what is not to change."""
    network = SpikingRecurrentNet(hidden=(8,), neuron=LIF(beta=0.5, v_th=V_TH))
    frozen = ("hidden1.weight", "hidden1.recurrent.weight")
    learner = learner_of(
        stream_of(8, 8),
        Trgp(threshold=0.0, energy=0.6),
        network,
        trainer=trainer,
        frozen=frozen,
    )
    for _ in run(learner):
        pass
    weights, regions = learner.network.weights(), method_of(learner).regions
    effective = regions.effective(weights, "1")
    assert all(torch.equal(effective[name], weights[name]) for name in frozen)
    assert not torch.equal(effective["readout.weight"], weights["readout.weight"])
    assert list(regions.scales["1"]) == ["readout"]


# ---- state and errors ---------------------------------------------------------------------------


def test_resumes_at_a_boundary_behind_norms(monkeypatch):
    """The gradient that chooses goes through the statistics that are held, stopped or not."""
    network = SpikingMlp(hidden=(12,), neuron=LIF(beta=0.5, v_th=V_TH), norm="batch")
    chosen, choose = [], TrustRegions.choose

    def spy(self, gradients):
        chosen.append(gradients)
        choose(self, gradients)

    monkeypatch.setattr(TrustRegions, "choose", spy)
    make = lambda: learner_of(stream_of(12, 12), Trgp(), network)  # noqa: E731
    whole, saved = make(), None
    for tick in whole.ticks():
        if tick.kind == "event" and tick.position.event == 1:
            tensors, values = split(whole.state_dict())
            saved = join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))
    again = make()
    again.load_state_dict(saved)
    for _ in run(again):
        pass
    _, uninterrupted, resumed = chosen
    assert len(uninterrupted) == 2
    assert all(torch.equal(g, resumed[path]) for path, g in uninterrupted.items())


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
def test_resumes_within_a_trust_region(optimiser):
    make = lambda: learner_of(  # noqa: E731
        stream_of(11, 13, 9), Trgp(threshold=0.0, rate=0.5), optimiser=optimiser
    )
    whole, saved = make(), None
    for tick in whole.ticks():
        place = (tick.position.event, tick.position.epoch, tick.position.step)
        if tick.kind == "step" and place == (2, 1, 1):
            tensors, values = split(whole.state_dict())
            saved = join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))
    again = make()
    again.load_state_dict(saved)
    for _ in run(again):
        pass
    (a, va), (b, vb) = split(whole.state_dict()), split(again.state_dict())
    assert va == vb and sorted(a) == sorted(b)
    assert all(torch.equal(t, b[name]) for name, t in a.items())
    assert any("scales/2/" in name for name in a)


def test_what_it_refuses():
    with pytest.raises(ConfigError, match="threshold"):
        Trgp(threshold=1.5)
    with pytest.raises(ConfigError, match=r"method.trgp.energy: got 2 values.*3 synapses"):
        learner_of(stream_of(8), Trgp(energy=(0.9, 0.95)))
    with pytest.raises(PairingError, match="'trgp' needs task_id_eval"):
        learner_of(stream_of(8, reveal=SHOWN & ~Reveal.TASK_ID_EVAL), Trgp())
