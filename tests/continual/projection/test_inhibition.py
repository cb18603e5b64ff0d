"""Soft projection: one matrix under several rules, against plain loops and closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional

from spikecl.continual import Finetune, Hlop, Inhibition
from spikecl.continual.projection import inhibition
from spikecl.continual.projection.circuits import spiking_one_shot, suppression
from spikecl.continual.projection.inhibition import alpha_for
from spikecl.continual.projection.moments import Moments
from spikecl.continual.projection.protection import ProjectFactors, ProjectUpdates
from spikecl.encoding import Encoder
from spikecl.errors import ConfigError, PairingError, RunError, UsageError
from spikecl.learner import Heads, Learner, TrainPlan
from spikecl.networks import Mlp, SpikingConvNet, SpikingMlp, SpikingRecurrentNet
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import (
    DOMAIN_IL,
    TASK_FREE,
    TASK_IL,
    Experience,
    Reveal,
    Samples,
    Stream,
    Unlearn,
)
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CPU, STEPS, N, CLASSES, V_TH = torch.device("cpu"), 3, 8, 4, 0.25
NEURON = LIF(beta=0.5, v_th=V_TH)
RULES = ("cab", "owm", "circuit", "spiking")
PAIRS = ((0, 1), (2, 3), (0, 2))
OPTIMISERS = {
    "sgd": (Sgd(lr=0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
    "momentum": (Sgd(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "adam": (
        Adam(lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    ),
}


class Double(Encoder):
    """The input in float64, another one each step with ``vary``."""

    def __init__(self, *, vary: bool = False):
        self.steps, self.vary = STEPS, vary

    def encode(self, x, statistics, generator):
        x = x.double()
        if not self.vary:
            return x.expand(STEPS, *x.shape)
        return torch.stack([x.roll(t, 1) for t in range(STEPS)])


class Single(Double):
    """The same in float32."""

    def encode(self, x, statistics, generator):
        return super().encode(x, statistics, generator).float()


def stream_of(reveal=DOMAIN_IL, *, size=10, shape=(N,), forget=None, tasks=3):
    """Tasks of two classes; ``forget`` puts a request for these ids behind the second."""
    generator, sets = torch.Generator().manual_seed(0), []
    for i in range(tasks):
        x = torch.rand(size, *shape, generator=generator)
        y = torch.tensor(PAIRS[i])[torch.arange(size) % 2]
        sets.append(Samples((Part(x, y, 100 * i + torch.arange(size)),)))
    events: list = [Experience(i, s, PAIRS[i], task=i) for i, s in enumerate(sets)]
    if forget is not None:
        events.insert(2, Unlearn(2, torch.tensor(forget)))
        events[3:] = [Experience(3, sets[2], PAIRS[2], task=2)]
    at = {e.task: i for i, e in enumerate(events) if isinstance(e, Experience)}
    tests = {f"task{i}": EvalSet(s, PAIRS[i], (at[i],)) for i, s in enumerate(sets)}
    return Stream("made", {}, 0, reveal, CLASSES, shape, len(events), events.__getitem__, tests)


def learner_of(*methods, stream=None, network=None, optimiser=None, head="single", **options):
    stream = stream or stream_of()
    spec = network or SpikingMlp(hidden=(9, 7), neuron=NEURON)
    dtype = options.pop("dtype", torch.float64)
    encoder = options.pop("encoder", Double() if dtype == torch.float64 else Single())
    network = spec.build(stream.input_shape, Heads(head, stream, CPU).outputs).to(dtype)
    return Learner(
        stream=stream,
        network=network,
        encoder=encoder,
        trainer=Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.3),
        plan=TrainPlan(**{"epochs": 2, "batch": 4, **options}),
        seeds=Seeds(5),
        device=CPU,
        head=head,
    )


def run(learner):
    for _ in learner.ticks():
        pass
    return learner


def until(learner, event):
    """Run to the end of an event."""
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event == event + 1:
            break
    return learner


def weights(learner):
    return {n: p.detach().clone() for n, p in learner.network.weights().items()}


def method_of(learner):
    return learner.methods.methods["inhibition"]


def inhibited(learner):
    return method_of(learner).protection


def matrices(learner):
    return {n: p.clone() for n, p in inhibited(learner).matrix.items()}


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# ---- by hand ------------------------------------------------------------------------------------


def activity(named, x):
    """Rows that each synapse of a spiking MLP passes on, by a plain loop over steps."""
    first = x[0] if all(torch.equal(step, x[0]) for step in x) else x.flatten(0, 1)
    rows, spikes = {"hidden1": first}, x
    layers = [n.removesuffix(".weight") for n in named if n.endswith(".weight")]
    for name, following in zip(layers, layers[1:]):
        v, out = 0.0, []
        for step in spikes:
            v = 0.5 * v + step @ named[f"{name}.weight"].T
            out.append((v > V_TH).double())
            v = v - V_TH * out[-1]
        spikes = torch.stack(out)
        rows[following] = spikes.mean(0) if following == layers[-1] else spikes.flatten(0, 1)
    return rows


def moment(rows):
    return {n: r.T @ r / len(r) for n, r in rows.items()}


def soft(c, alpha):
    """P by eigenvectors."""
    values, v = np.linalg.eigh(c.numpy())
    return torch.from_numpy(v @ np.diag(alpha / (alpha + values.clip(0))) @ v.T)


def by_hand(learner, peer, alpha):
    """Train with torch, multiply each applied update by P; yield weights, C and P at each end."""
    network, total, strength, p = learner.network, {}, {}, {}
    for task, event in enumerate(learner.stream):
        data, optimiser = event.train.load(), peer(list(network.parameters()))
        for epoch in range(2):
            generator = Seeds(5).generator("order", event=task, epoch=epoch)
            for picked in torch.randperm(len(data), generator=generator).split(4):
                x = learner.encoder.encode(data.x[picked], None, None)
                hand_step(network, optimiser, x, data.y[picked], p)
        named = {n: w.detach() for n, w in network.weights().items()}
        c = moment(activity(named, learner.encoder.encode(data.x, None, None)))
        for n in c:
            total[n] = total[n] + c[n] if n in total else c[n]
            strength.setdefault(n, alpha * float(c[n].diagonal().mean()))
            p[n] = soft(total[n], strength[n])
        yield {n: w.clone() for n, w in named.items()}, dict(total), dict(p)


def hand_step(network, optimiser, x, y, p):
    optimiser.zero_grad()
    functional.cross_entropy(network(x).logits, y).backward()
    named = dict(network.weights())
    old = {n: w.detach().clone() for n, w in named.items()}
    optimiser.step()
    with torch.no_grad():
        for n, w in named.items():
            if (path := n.removesuffix(".weight")) in p:
                w.copy_(old[n] + (w - old[n]) @ p[path])


@pytest.mark.parametrize(("optimiser", "peer"), OPTIMISERS.values(), ids=list(OPTIMISERS))
@pytest.mark.parametrize("vary", [False, True], ids=["static", "varying"])
def test_three_tasks_equal_a_plain_loop(optimiser, peer, vary):
    """``ΔW = -eta G P`` for SGD, the optimiser's update times P otherwise; once."""
    make = lambda: learner_of(  # noqa: E731
        Inhibition(alpha=0.3), optimiser=optimiser, encoder=Double(vary=vary)
    )
    learner, hand = make(), by_hand(make(), peer, 0.3)
    for tick in learner.ticks():
        if tick.kind != "event" or not tick.position.event:
            continue
        expected, c, p = next(hand)
        for n, w in weights(learner).items():
            close(w, expected[n], 1e-9)
        for n in c:
            close(inhibited(learner).covariance[n], c[n], 1e-9)
            close(inhibited(learner).matrix[n], p[n], 1e-8)
    assert next(hand, None) is None


# ---- one matrix, several rules ------------------------------------------------------------------


def rows_at_end(learner, task):
    data = learner.stream[task].train.load()
    named = {n: w.detach() for n, w in learner.network.weights().items()}
    return activity(named, learner.encoder.encode(data.x, None, None))


def recursive(rows, alpha, p):
    for x in rows.numpy():
        k = p @ x
        p = p - np.outer(k, k) / (alpha + x @ k)
    return p


@pytest.mark.parametrize("vary", [False, True], ids=["static", "varying"])
def test_cab_circuit_least_squares_and_ridge_are_one(vary):
    """On the same rows of a run, after two experiences, in float64."""
    ends = {}
    for rule in ("cab", "circuit"):
        learner = learner_of(Inhibition(rule=rule, alpha=0.2), encoder=Double(vary=vary))
        rows = [rows_at_end(until(learner, task), task) for task in (0, 1)]
        ends[rule] = matrices(learner)
    strength = {n: 0.2 * float(moment(rows[0])[n].diagonal().mean()) for n in rows[0]}
    for n, cab in ends["cab"].items():
        eye = np.eye(len(cab))
        close(ends["circuit"][n], cab)
        least = eye
        for each in rows:  # an experience counts as one, however many rows it has
            least = recursive(each[n], strength[n] * len(each[n]), least)
        close(torch.from_numpy(least), cab)
        x = np.concatenate([each[n].numpy() / len(each[n]) ** 0.5 for each in rows])
        ridge = eye - x.T @ np.linalg.solve(x @ x.T + strength[n] * np.eye(len(x)), x)
        close(torch.from_numpy(ridge), cab)


def test_one_matrix_for_convolutions_and_recurrent_weights():
    conv = SpikingConvNet(channels=(3,), kernel=2, hidden=(), neuron=LIF(beta=0.5, v_th=0.1))
    recurrent = SpikingRecurrentNet(hidden=(9,), neuron=NEURON)
    for spec, shape in ((conv, (4, 4)), (recurrent, (N,))):
        ends = []
        for rule in ("cab", "circuit"):
            stream = stream_of(shape=shape, tasks=2)
            learner = run(learner_of(Inhibition(rule=rule), stream=stream, network=spec))
            ends.append(matrices(learner))
        assert ends[0].keys() == set(learner.network.synapses)
        for n in ends[0]:
            close(*(end[n] for end in ends))


def test_owm_learns_from_means_of_batches():
    """Which leaves out what varies within a batch: another matrix."""
    learner = learner_of(Inhibition(rule="owm", alpha=0.2))
    p, strength = {}, {}
    for task in (0, 1):
        until(learner, task)
        data = learner.stream[task].train.load()
        chosen = torch.randperm(10, generator=Seeds(5).generator("look", event=task))
        named = weights(learner)
        for n, c in moment(rows_at_end(learner, task)).items():
            strength.setdefault(n, 0.2 * float(c.diagonal().mean()))
        batches = [
            activity(named, Double().encode(data.x[picked], None, None))
            for picked in chosen.split(4)
        ]
        for n in batches[0]:
            means = torch.stack([rows[n].mean(0) for rows in batches])
            p[n] = recursive(means, strength[n] * 3, p.get(n, np.eye(means.shape[1])))
            close(inhibited(learner).matrix[n], torch.from_numpy(p[n]))
    cab = matrices(until(learner_of(Inhibition(alpha=0.2)), 1))
    assert max(float((torch.from_numpy(p[n]) - cab[n]).norm()) for n in p) > 0.1


def test_spiking_comes_near_and_says_how_it_went():
    cab = until(learner_of(Inhibition(alpha=0.4)), 0)
    off = []
    for quantum, steps in ((1.0, 8), (0.1, 64)):
        spec = Inhibition(alpha=0.4, rule="spiking", quantum=quantum, steps=steps)
        learner = until(learner_of(spec), 0)
        said = method_of(learner).report()
        for n, p in matrices(learner).items():
            assert float(torch.linalg.eigvalsh(p)[0]) > 0
            assert said[n]["events"] > 0 and 0 < said[n]["error"] < 1
            assert said[n]["plasticity"] == pytest.approx(float(p.trace()) / len(p))
        pairs = [(p, matrices(cab)[n]) for n, p in matrices(learner).items()]
        off.append(max(float((a - b).norm() / b.norm()) for a, b in pairs))
    assert off[1] < 0.01 < off[0]


def test_spikes_are_counted_over_the_whole_experience(monkeypatch):
    """Batches are of different sizes: 4, 4 and 2."""
    parts = []

    def noted(*args, **kwargs):
        parts.append(spiking_one_shot(*args, **kwargs))
        return parts[-1]

    monkeypatch.setattr(inhibition, "spiking_one_shot", noted)
    learner = until(learner_of(Inhibition(rule="spiking", quantum=1.0)), 0)
    assert len(parts) == 9  # three synapses
    for i, said in enumerate(method_of(learner).report().values()):
        own = parts[i::3]
        rows, wrong, size = (sum(getattr(p, k) for p in own) for k in ("rows", "wrong", "size"))
        assert rows in (10, STEPS * 10)  # the input is the same in each step
        assert said["events"] == pytest.approx(sum(p.events * p.rows for p in own) / rows)
        assert said["error"] == pytest.approx((wrong / size) ** 0.5)
        assert said["error"] != pytest.approx(own[-1].error)


@pytest.mark.parametrize("rule", RULES)
def test_the_matrix_is_symmetric_with_eigenvalues_between_0_and_1(rule):
    learner = learner_of(Inhibition(rule=rule, alpha=0.05))
    for task in range(3):
        until(learner, task)
        for n, p in matrices(learner).items():
            assert float((p - p.T).abs().max()) < 1e-13
            values = torch.linalg.eigvalsh(p)
            assert float(values[0]) > 0 and float(values[-1]) <= 1 + 1e-12
            close(inhibited(learner).outside(n).rows(), p, 2e-3)
            said = method_of(learner).report()[n]
            assert said["plasticity"] == pytest.approx(float(values.mean()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_first_experience_is_fine_tuning_bit_for_bit(rule, name):
    spec, ends = SpikingMlp(hidden=(9,), bias=True, norm="batch", neuron=NEURON), []
    for method in (Inhibition(rule=rule), Finetune()):
        learner = learner_of(
            method, network=spec, optimiser=OPTIMISERS[name][0], dtype=torch.float32
        )
        ends.append(weights(until(learner, 0)))
        assert_equal(ends[0], ends[-1])


# ---- strength -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_what_a_step_does_to_old_currents_falls_with_alpha(name):
    """The first step of the second task, from the same weights and gradient."""
    leaks = []
    for alpha in (1e-4, 1e-2, 0.1, 1.0, 10.0, 1e6, None):
        method = Finetune() if alpha is None else Inhibition(alpha=alpha)
        learner = learner_of(method, optimiser=OPTIMISERS[name][0])
        for tick in learner.ticks():
            if tick.kind == "event" and tick.position.event == 1:
                before, rows = weights(learner), rows_at_end(learner, 0)
            if tick.kind == "step" and tick.position.event == 1:
                break
        after = weights(learner)
        leaks.append(
            [
                float((rows[n] @ (after[f"{n}.weight"] - before[f"{n}.weight"]).T).norm())
                for n in rows
            ]
        )
    for of_synapse in zip(*leaks):
        *soft_, hard_most, plain = of_synapse
        assert all(a < b for a, b in zip(soft_, [*soft_[1:], hard_most]))
        assert hard_most == pytest.approx(plain, rel=1e-4) and soft_[0] < 0.02 * plain


def test_no_alpha_left_is_a_projection_on_what_was_never_used():
    """Old responses stay; with few samples something is left to learn in."""
    spec, moved = SpikingMlp(hidden=(40, 35), neuron=NEURON), []
    for method in (Inhibition(alpha=1e-12), Finetune()):
        learner = learner_of(method, network=spec, stream=stream_of(shape=(40,), tasks=2))
        x = Double().encode(learner.stream[0].train.load().x, None, None)
        until(learner, 0)
        before, start = learner.network(x).logits.detach(), weights(learner)
        run(learner)
        moved.append(float((learner.network(x).logits.detach() - before).abs().max()))
        assert float((weights(learner)["hidden1.weight"] - start["hidden1.weight"]).norm()) > 1e-3
    assert moved[0] < 1e-8 and moved[1] > 1e-2


def test_alpha_is_relative_to_the_first_activity_of_each_synapse():
    given = (0.1, 0.5, 2.0)
    learner = until(learner_of(Inhibition(alpha=given)), 0)
    c = moment(rows_at_end(learner, 0))
    expected = {
        n: share * float(c[n].trace()) / len(c[n]) for n, share in zip(c, given, strict=True)
    }
    for task in (0, 1, 2):
        until(learner, task)
        said = method_of(learner).report()
        assert {n: s["alpha"] for n, s in said.items()} == pytest.approx(expected)
        assert json.loads(json.dumps(said)) == said


def test_decay_forgets_old_moments():
    learner, expected = learner_of(Inhibition(decay=0.5)), None
    for task in range(3):
        until(learner, task)
        c = moment(rows_at_end(learner, task))
        expected = c if expected is None else {n: 0.5 * expected[n] + c[n] for n in c}
    for n, e in expected.items():
        close(inhibited(learner).covariance[n], e)
        close(inhibited(learner).matrix[n], soft(e, inhibited(learner).alpha[n]), 1e-9)


def test_samples_bound_what_is_looked_at():
    learner = until(learner_of(Inhibition(samples=4)), 0)
    chosen = torch.randperm(10, generator=Seeds(5).generator("look", event=0))[:4]
    x = Double().encode(learner.stream[0].train.load().x[chosen], None, None)
    for n, c in moment(activity(weights(learner), x)).items():
        close(inhibited(learner).covariance[n], c)


# ---- a budget -----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.01, 0.3, 0.9])
def test_alpha_for_a_budget_is_the_root(budget):
    variances = np.random.default_rng(0).exponential(size=20) ** 3
    variances[:3] = 0  # plasticity that nothing can take
    found = alpha_for(torch.from_numpy(variances), budget)
    left = lambda a: np.mean(a / (a + variances)) - budget  # noqa: E731
    if left(1e-12) > 0:
        assert found < 1e-8
    else:
        assert found == pytest.approx(brentq(left, 1e-12, 1e6, xtol=1e-14), rel=1e-6)
    assert left(found) >= -1e-12
    assert alpha_for(torch.zeros(4), budget) < 1e-20


@pytest.mark.parametrize("budget", [0.3, 0.7])
def test_a_budget_keeps_plasticity(budget):
    free, learner = (
        learner_of(Inhibition(alpha=0.1)),
        learner_of(Inhibition(alpha=0.1, budget=budget)),
    )
    raised = 0
    for task in range(3):
        left = {n: float(p.trace()) / len(p) for n, p in matrices(until(free, task)).items()}
        until(learner, task)
        said = method_of(learner).report()
        for n, p in matrices(learner).items():
            own = float(p.trace()) / len(p)
            assert own >= budget - 1e-9 and said[n]["plasticity"] == pytest.approx(own)
            assert said[n]["alpha"] >= inhibited(learner).alpha[n]
            if said[n]["alpha"] > inhibited(learner).alpha[n]:
                raised += 1
                assert own == pytest.approx(budget, abs=1e-9)  # and no more than that
            if task == 0 and left[n] > budget:  # nothing to raise
                assert torch.equal(p, matrices(free)[n])
    assert raised > 0


def test_a_budget_that_is_never_short_changes_nothing():
    ends = [matrices(run(learner_of(Inhibition(budget=b)))) for b in (0.0, 1e-6)]
    assert_equal(*ends)


# ---- release ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"budget": 0.6}, {"alpha": 1e-3}], ids=str)
def test_what_is_released_was_never_there(options):
    """Add, then take out again: bit for bit what it was, with a raised alpha too."""
    learner = until(learner_of(Inhibition(keep=True, **options)), 0)
    before, report = matrices(learner), dict(method_of(learner).report())
    maps = {n: inhibited(learner).outside(n).rows().clone() for n in before}
    until(learner, 1)
    assert any(not torch.equal(p, before[n]) for n, p in matrices(learner).items())
    inhibited(learner).release(1)
    assert_equal(matrices(learner), before)
    for n in before:
        assert torch.equal(inhibited(learner).outside(n).rows(), maps[n])
    assert {n: dict(s) for n, s in method_of(learner).report().items()} == report


def test_the_others_stay_when_one_is_released():
    learner, c = learner_of(Inhibition(keep=True)), []
    for task in range(3):
        c.append(moment(rows_at_end(until(learner, task), task)))
    inhibited(learner).release(1)
    for n, p in matrices(learner).items():
        close(p, soft(c[0][n] + c[2][n], inhibited(learner).alpha[n]), 1e-9)
    assert list(inhibited(learner).stored) == ["0000", "0002"]


def test_all_released_is_plain_training_again():
    ends = []
    for method in (Inhibition(keep=True), Finetune()):
        learner = learner_of(method, stream=stream_of(tasks=2))
        until(learner, 0)
        if method == Inhibition(keep=True):
            inhibited(learner).release(0)
            assert not inhibited(learner).matrix and not inhibited(learner).alpha
            assert all(inhibited(learner).outside(n) is None for n in inhibited(learner).sizes)
        ends.append(weights(run(learner)))
    for n in ends[0]:
        assert torch.equal(ends[0][n], ends[1][n])


@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize("when", [0, 1, 2], ids="after {}".format)
@pytest.mark.parametrize("resumed", [False, True], ids=["", "resumed"])
def test_without_the_first_experience_alpha_is_that_of_the_next(decay, when, resumed):
    """Weights as good as stand still, so that all is as in a run that never had it."""
    options = {"keep": True, "decay": decay, "budget": 0.1}
    make = lambda: learner_of(Inhibition(**options), optimiser=Sgd(lr=1e-30))  # noqa: E731
    learner = until(make(), when)
    inhibited(learner).release(0)
    if resumed:
        tensors, values = frozen(learner)
        learner = make()
        learner.load_state_dict(join(tensors, json.loads(values)))
    run(learner)
    whole = stream_of()
    events = [Experience(i, whole[i + 1].train, PAIRS[i + 1], task=i) for i in (0, 1)]
    tests = {"task0": EvalSet(events[0].train, PAIRS[1], (0,))}
    args = (DOMAIN_IL, CLASSES, (N,), 2, events.__getitem__, tests)
    never = learner_of(
        Inhibition(**options),
        stream=Stream("made", {}, 0, *args),
        optimiser=Sgd(lr=1e-30),
    )
    run(never)
    a, b = inhibited(learner), inhibited(never)
    assert a.alpha == pytest.approx(b.alpha, rel=1e-12) and len(a.alpha) == 3
    for n, p in matrices(never).items():
        close(a.matrix[n], p, 1e-12)
    kept = run(make())
    assert any(abs(inhibited(kept).alpha[n] / alpha - 1) > 1e-3 for n, alpha in a.alpha.items())


def test_an_old_checkpoint_has_no_alphas():
    learner = run(learner_of(Inhibition(keep=True)))
    state, again = inhibited(learner).state_dict(), inhibited(learner_of(Inhibition(keep=True)))
    again.load_state_dict({n: v for n, v in state.items() if n != "alphas"})
    again.release(0)
    assert again.alpha == inhibited(learner).alpha


def test_kept_moments_decay_with_the_rest():
    learner = learner_of(Inhibition(keep=True, decay=0.5))
    run(learner)
    for n, c in inhibited(learner).covariance.items():
        a, b, last = (kept[n] for kept in inhibited(learner).stored.values())
        close(0.25 * a + 0.5 * b + last, c)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_others_decay_as_if_the_released_had_never_come(gone):
    learner = run(learner_of(Inhibition(keep=True, decay=0.5)))
    held = inhibited(learner)
    stored = {n: [kept[n] for kept in held.stored.values()] for n in held.sizes}
    held.release(gone)
    for n, each in stored.items():
        early, late = (c for i, c in enumerate(each) if i != gone)
        close(held.covariance[n], 0.5 * early + late)
        close(held.matrix[n], soft(0.5 * early + late, held.alpha[n]), 1e-9)


@pytest.mark.parametrize("decay", [0.9, 0.1])
def test_strength_is_that_of_the_first_samples_however_fast_it_forgets(decay):
    """Later tasks, of another scale, do not move it."""
    network = SpikingMlp(hidden=(9, 7), neuron=LIF(beta=0.5, v_th=0.2))
    learner, seen = learner_of(Inhibition(online=8, every=1, decay=decay), network=network), []
    for tick in learner.ticks():
        if tick.position.step:
            seen.append((learner.at.samples, dict(inhibited(learner).alpha)))
    fixed = [alpha for samples, alpha in seen if samples >= 8]
    assert len(fixed) > 4 and all(alpha == fixed[0] for alpha in fixed)


def test_weak_strengths_in_single_precision_hold_back_and_never_push():
    """Few directions are used; sums of products in 32 bits would have negative eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.rand(10, 200, generator=generator)
    x = torch.rand(60, 10, generator=generator) @ basis
    for alpha in (1e-4, 1e-5, 1e-6, 1e-7):
        found = Moments(200, torch.device("cpu"))
        found.add(x)
        c = found.mean()
        p = suppression(c, alpha * float(c.diagonal().mean()))
        values = torch.linalg.eigvalsh(p)
        assert float(values[-1]) <= 1 + 1e-6 and float(values[0]) > 0


@pytest.mark.parametrize(
    ("keep", "asked", "known"), [(True, 7, "stored are: 0, 1, 2"), (False, 0, "none .keep=true")]
)
def test_nothing_is_stored_by_that_number(keep, asked, known):
    learner = run(learner_of(Inhibition(keep=keep)))
    with pytest.raises(UsageError, match=f"no experience {asked} stored; .*{known}"):
        inhibited(learner).release(asked)


@pytest.mark.parametrize(
    ("forget", "left"), [([3], [1]), ([5, 103], []), ([100, 109], [0]), ([777], [0, 1])]
)
def test_a_request_releases_every_experience_that_held_a_sample(forget, left):
    reveal = DOMAIN_IL | Reveal.SAMPLE_IDS
    learner = learner_of(Inhibition(keep=True), stream=stream_of(reveal, forget=forget))
    c = []
    for event in (0, 1):
        c.append(moment(rows_at_end(until(learner, event), event)))
    until(learner, 2)
    held = inhibited(learner)
    assert [int(k) for k in held.stored] == [int(k) for k in held.owners] == left
    for n, p in matrices(learner).items():
        rest = sum((c[i][n] for i in left), torch.zeros_like(p))
        close(p, soft(rest, held.alpha[n]), 1e-9)
    for ids in held.owners.values():
        assert not torch.isin(ids, torch.tensor(forget)).any()
    run(learner)
    assert [int(k) for k in held.stored] == [*left, 2]


def test_without_ids_nobody_can_tell_which_experience():
    with pytest.raises(PairingError, match="'inhibition' needs sample_ids, which stream"):
        learner_of(Inhibition(keep=True), stream=stream_of(forget=[3]))
    held = inhibited(run(learner_of(Inhibition(keep=True))))
    with pytest.raises(UsageError, match=r"hides sample ids .*release\(experience\) takes"):
        held.forget(Unlearn(3, torch.tensor([3])))


def test_only_what_is_kept_can_be_forgotten():
    reveal = DOMAIN_IL | Reveal.SAMPLE_IDS
    assert Inhibition(keep=True).offers == {"unlearn"} and not Inhibition().offers
    with pytest.raises(PairingError, match="unlearning requests.*inhibition"):
        learner_of(Inhibition(), stream=stream_of(reveal, forget=[3]))


# ---- without boundaries -------------------------------------------------------------------------


@pytest.mark.parametrize(("optimiser", "peer"), OPTIMISERS.values(), ids=list(OPTIMISERS))
def test_online_equals_a_plain_loop_that_knows_of_no_boundary(optimiser, peer):
    """C grows by each batch, 12 samples making one experience; inverted every third step.

    The state of the optimiser goes on too: nobody is told of a new task.
    """
    spec = Inhibition(online=12, every=3, decay=0.7, alpha=0.2)
    make = lambda: learner_of(  # noqa: E731
        spec, stream=stream_of(TASK_FREE, tasks=2), optimiser=optimiser
    )
    learner, other = make(), make()
    kind = ProjectFactors if optimiser == Sgd(lr=0.3) else ProjectUpdates
    assert type(method_of(learner)) is kind  # momentum carries what older maps let through
    network, c, p, strength, step, weight = other.network, {}, {}, {}, 0, 0.0
    optimiser_ = peer(list(network.parameters()))
    for task, event in enumerate(other.stream):
        data = event.train.load()
        for epoch in range(2):
            generator = Seeds(5).generator("order", event=task, epoch=epoch)
            for picked in torch.randperm(10, generator=generator).split(4):
                x = Double().encode(data.x[picked], None, None)
                if step and step % 3 == 0:
                    p = {n: soft(c[n], strength[n]) for n in c}
                share, step = len(picked) / 12, step + 1
                weight = 0.7**share * weight + share
                named = {n: w.detach() for n, w in network.weights().items()}
                for n, found in moment(activity(named, x)).items():
                    c[n] = 0.7**share * c.get(n, 0) + share * found
                    if weight <= 1:  # the first experience's worth
                        strength[n] = 0.2 * float(c[n].diagonal().mean()) / weight
                hand_step(network, optimiser_, x, data.y[picked], p)
    run(learner)
    for n, w in weights(learner).items():
        close(w, network.weights()[n].detach(), 1e-9)
    for n in c:
        close(inhibited(learner).covariance[n], c[n], 1e-9)
        close(inhibited(learner).matrix[n], soft(c[n], strength[n]), 1e-8)


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("name", OPTIMISERS)
def test_online_before_the_first_inversion_is_fine_tuning_bit_for_bit(name):
    stream = stream_of(TASK_FREE)
    for every, same in ((18, True), (17, False)):  # 18 steps in all
        ends = [
            weights(
                run(
                    learner_of(
                        method,
                        stream=stream,
                        optimiser=OPTIMISERS[name][0],
                        dtype=torch.float32,
                    )
                )
            )
            for method in (Inhibition(online=10, every=every), Finetune())
        ]
        assert all(torch.equal(p, ends[1][n]) for n, p in ends[0].items()) is same


def test_boundaries_are_needed_unless_it_learns_online():
    stream = stream_of(TASK_FREE)
    with pytest.raises(PairingError, match="'inhibition' needs boundary, which stream 'made'"):
        learner_of(Inhibition(), stream=stream)
    spec = SpikingMlp(hidden=(9,), bias=True, norm="batch", neuron=NEURON)
    learner = learner_of(Inhibition(online=10, every=2), stream=stream, network=spec)
    before = weights(until(learner, 0))
    norm = learner.network.layers["hidden1"].norm
    mean = norm.mean.clone()
    run(learner)
    assert not torch.equal(weights(learner)["readout.bias"], before["readout.bias"])
    assert not norm.held and not torch.equal(norm.mean, mean)


def test_online_with_boundaries_does_not_gather_twice():
    ends = []
    for reveal in (TASK_FREE, DOMAIN_IL):
        learner = run(learner_of(Inhibition(online=10, every=2), stream=stream_of(reveal)))
        ends.append({**weights(learner), **inhibited(learner).covariance})
    assert_equal(*ends)


@pytest.mark.parametrize("alpha", [0.3, 1e-4])
@pytest.mark.parametrize("rule", RULES)
def test_rescaled_the_freest_direction_learns_at_the_full_rate(rule, alpha):
    """The same map but for one number, which makes its largest eigenvalue 1."""
    made = {
        rescale: inhibited(
            until(learner_of(Inhibition(alpha=alpha, rule=rule, rescale=rescale)), 0)
        )
        for rescale in (False, True)
    }
    for name, plain in made[False].matrix.items():
        largest = float(torch.linalg.eigvalsh(plain)[-1])
        close(made[True].matrix[name], plain / largest, 1e-9)
        left = made[True].report()[name]["plasticity"]
        assert left == pytest.approx(float(made[True].matrix[name].diagonal().mean()))
    if (rule, alpha) == ("cab", 1e-4):  # all directions are in use
        assert any(float(torch.linalg.eigvalsh(p)[-1]) < 0.9 for p in made[False].matrix.values())


def test_a_budget_holds_online_too():
    learner = learner_of(Inhibition(online=5, every=2, budget=0.5), stream=stream_of(TASK_FREE))
    for tick in learner.ticks():
        if tick.kind == "step":
            for p in inhibited(learner).matrix.values():
                assert float(p.trace()) / len(p) >= 0.5 - 1e-9


# ---- few columns --------------------------------------------------------------------------------


def test_a_map_that_is_all_but_closed_gets_a_root(monkeypatch):
    """As the whole matrix, up to the directions below ``CLOSED`` of the freest."""
    options = {"stream": stream_of(shape=(40,)), "network": SpikingMlp(hidden=(9,), neuron=NEURON)}
    spec, ends = Inhibition(alpha=1e-4), []
    for closed in (inhibition.CLOSED, 0.0):
        monkeypatch.setattr(inhibition, "CLOSED", closed)
        learner = learner_of(spec, **options)
        roots = []
        for task in range(3):
            for n, p in matrices(until(learner, task)).items():
                outside = inhibited(learner).outside(n)
                roots.append(outside.root is not None)
                off = float(torch.linalg.matrix_norm(outside.rows() - p, 2))
                freest = float(torch.linalg.eigvalsh(p)[-1])
                if roots[-1]:
                    close(outside.root @ outside.root.T, outside.rows(), 1e-14)
                    assert 2 * outside.root.shape[1] < len(p) and float(p.trace()) < len(p) / 2
                    assert off <= 1e-3 * freest
                else:
                    assert off == 0
        ends.append((weights(learner), roots))
    (a, some), (b, none) = ends
    assert any(some) and not any(none)
    scale = max(
        float((a[n] - p).abs().max()) for n, p in weights(learner_of(spec, **options)).items()
    )
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-2 * scale


# ---- heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["multi", "single"])
def test_a_head_of_its_own_costs_nothing(head):
    def bytes_of(reveal, head):
        stream = stream_of(reveal, tasks=2)
        learner = run(learner_of(Inhibition(), stream=stream, head=head, dtype=torch.float32))
        return inhibited(learner).sizes, learner.methods.nbytes()

    sizes, count = bytes_of(TASK_IL, head)
    assert sizes == {"hidden1": N, "hidden2": 9}
    assert count == (8 + 4) * (N * N + 9 * 9)  # C in double precision, P as used
    sizes, count = bytes_of(DOMAIN_IL, "single")
    assert sizes == {"hidden1": N, "hidden2": 9, "readout": 7}
    assert count == (8 + 4) * (N * N + 9 * 9 + 7 * 7)


def test_one_alpha_for_each_protected_synapse():
    stream = stream_of(TASK_IL, tasks=2)
    run(learner_of(Inhibition(alpha=(0.1, 0.2)), stream=stream, head="multi"))
    with pytest.raises(ConfigError, match=r"alpha: got 3 values .*2 synapses \(hidden1, hidden2\)"):
        learner_of(Inhibition(alpha=(0.1, 0.2, 0.3)), stream=stream, head="multi")


@pytest.mark.parametrize(
    ("spec", "per"),
    [
        (Inhibition(), 8 + 4),
        (Inhibition(rule="circuit"), 8 + 4),
        (Inhibition(keep=True), 8 + 4 + 3 * 8),
        (Inhibition(online=10, every=2), 8 + 4),
    ],
    ids=["cab", "circuit", "keep", "online"],
)
def test_bytes_are_what_is_kept(spec, per):
    stream = stream_of(DOMAIN_IL | Reveal.SAMPLE_IDS)
    learner = run(learner_of(spec, stream=stream, dtype=torch.float32))
    ids = 3 * 10 * 8 if spec.keep else 0
    assert learner.methods.nbytes() == per * (N * N + 9 * 9 + 7 * 7) + ids
    tensors = split(method_of(learner).state_dict())[0]
    saved = sum(t.numel() * t.element_size() for t in tensors.values())
    maps = 0 if spec.online else 4 * (N * N + 9 * 9 + 7 * 7)  # made again of what is saved
    assert saved == learner.methods.nbytes() - maps
    first = until(learner_of(spec, stream=stream, dtype=torch.float32), 0)
    addresses = {t.data_ptr() for t in _held(inhibited(first))}
    assert sum(1 for _ in _held(inhibited(first))) == len(addresses)  # nothing is counted twice


def _held(protection):
    yield from protection.covariance.values()
    yield from protection._learned.values()
    for each in protection.stored.values():
        yield from each.values()
    for outside in protection._outside.values():
        yield outside.matrix


# ---- resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        *(Inhibition(rule=rule) for rule in RULES),
        Inhibition(online=10, every=4, decay=0.9),
        Inhibition(keep=True, budget=0.5, alpha=(0.1, 0.2, 0.3)),
        Inhibition(alpha=1e-4, rescale=True),
    ],
    ids=[*RULES, "online", "keep", "few columns"],
)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_resumes_bit_for_bit(spec, name):
    """From any step or event, in single precision, norms and biases with it."""
    make = lambda: learner_of(  # noqa: E731
        spec,
        stream=stream_of(DOMAIN_IL | Reveal.SAMPLE_IDS, tasks=2),
        network=SpikingMlp(
            hidden=(9, 7), bias=True, norm="batch" if name == "sgd" else "none", neuron=NEURON
        ),
        optimiser=OPTIMISERS[name][0],
        dtype=torch.float32,
    )
    whole, states = make(), []
    for tick in whole.ticks():
        at = tick.position
        if (tick.kind, at.event, at.step) in (("step", 0, 2), ("step", 1, 1), ("event", 1, 0)):
            states.append(frozen(whole))
    assert len(states) == 5
    for tensors, values in states:
        again = make()
        again.load_state_dict(join(tensors, json.loads(values)))
        run(again)
        a, b = split(whole.state_dict()), split(again.state_dict())
        assert a[1] == b[1] and sorted(a[0]) == sorted(b[0])
        for key, tensor in a[0].items():
            assert torch.equal(tensor, b[0][key]), key
        assert whole.methods.nbytes() == again.methods.nbytes()


def frozen(learner):
    tensors, values = split(learner.state_dict())
    return {n: t.clone() for n, t in tensors.items()}, json.dumps(values)


def test_a_released_state_goes_round():
    stream = stream_of(DOMAIN_IL | Reveal.SAMPLE_IDS, forget=[3])
    whole, states = learner_of(Inhibition(keep=True), stream=stream), []
    for tick in whole.ticks():
        if tick.kind == "event" and tick.position.event in (2, 3):
            states.append(frozen(whole))
    for tensors, values in states:
        again = learner_of(Inhibition(keep=True), stream=stream)
        again.load_state_dict(join(tensors, json.loads(values)))
        assert_equal(weights(run(again)), weights(whole))
        assert_equal(matrices(again), matrices(whole))


@pytest.mark.parametrize("rule", ["cab", "circuit"])
@pytest.mark.parametrize("hidden", [(9, 6), (9,), (9, 7, 7)], ids=str)
def test_a_checkpoint_of_another_network_is_refused(rule, hidden):
    state = method_of(until(learner_of(Inhibition(rule=rule)), 0)).state_dict()
    spec = SpikingMlp(hidden=hidden, neuron=NEURON)
    other = method_of(learner_of(Inhibition(rule=rule), network=spec))
    with pytest.raises(RunError, match="'inhibition': the checkpoint is of another network"):
        other.load_state_dict(state)
    early = method_of(learner_of(Inhibition(rule=rule))).state_dict()
    other.load_state_dict(early)  # nothing was protected yet


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": -0.4},
        {"alpha": ()},
        {"alpha": (0.4, 0.0)},
        {"alpha": "strong"},
        {"rule": "hebb"},
        {"samples": 0},
        {"budget": 1.0},
        {"budget": -0.1},
        {"decay": 0.0},
        {"decay": 1.5},
        {"online": -1},
        {"every": 0},
        {"steps": 0},
        {"quantum": 0.0},
        {"others": "drop"},
        {"strength": 1.0},
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Inhibition(**wrong)


@pytest.mark.parametrize("rule", ["owm", "circuit", "spiking"])
@pytest.mark.parametrize("option", [{"budget": 0.1}, {"online": 10}, {"keep": True}], ids=str)
def test_what_needs_c_itself_needs_cab(rule, option):
    (name,) = option
    with pytest.raises(ConfigError, match=f"{name}=.*needs C itself.*'{rule}'.*use rule='cab'"):
        Inhibition(rule=rule, **option)
    with pytest.raises(ConfigError, match=f"decay=0.9 with rule='{rule}' .*without bound"):
        Inhibition(rule=rule, decay=0.9)


@pytest.mark.parametrize(
    "options",
    [{"steps": 64}, {"quantum": 0.2, "rule": "circuit"}, {"every": 2}, {"samples": 9, "online": 5}],
    ids=str,
)
def test_what_would_have_no_effect_is_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigError, match=f"{name}={value} has no effect.*leave one of them out"):
        Inhibition(**options)


def test_keeping_experiences_needs_experiences():
    """Else an unlearning request would be served by forgetting nothing."""
    with pytest.raises(ConfigError, match="keep=true stores C of each experience.*online=10"):
        Inhibition(keep=True, online=10)


@pytest.mark.parametrize("given", [(0.1,), (0.1, 0.2), (0.1, 0.2, 0.3, 0.4)], ids=len)
def test_a_wrong_number_of_alphas_is_refused_before_the_run(given):
    match = rf"method.inhibition.alpha: got {len(given)} values .*hidden1, hidden2, readout"
    with pytest.raises(ConfigError, match=match):
        learner_of(Inhibition(alpha=given))


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("rule", RULES)
def test_a_silent_layer_is_named(rule):
    spec = SpikingMlp(hidden=(9, 7), neuron=LIF(beta=0.5, v_th=50.0))
    learner = learner_of(Inhibition(rule=rule), network=spec)
    with pytest.raises(UsageError, match="'inhibition': nothing reached hidden2, readout"):
        run(learner)


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
def test_online_waits_for_a_silent_layer():
    spec = SpikingMlp(hidden=(9, 7), neuron=LIF(beta=0.5, v_th=50.0))
    learner = run(learner_of(Inhibition(online=10, every=2), network=spec))
    assert list(inhibited(learner).matrix) == list(method_of(learner).report()) == ["hidden1"]
    assert inhibited(learner).outside("readout") is None


@pytest.mark.parametrize("first", [True, False])
def test_two_projections_in_one_run_are_refused_and_named(first):
    pair = (Inhibition(), Hlop()) if first else (Hlop(), Inhibition())
    with pytest.raises(PairingError) as caught:
        learner_of(*pair)
    assert "'inhibition'" in str(caught.value) and "'hlop'" in str(caught.value)
    assert "'projection'" in str(caught.value)


def test_ordinary_networks_are_protected_too():
    learner = run(learner_of(Inhibition(), network=Mlp(hidden=(9,))))
    assert list(inhibited(learner).matrix) == ["hidden1", "readout"]
