"""EWC: Fisher information in closed form, a plain loop of the whole, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import ExperienceReplay, Finetune, Hlop, Inhibition
from spikecl.continual.compose import method_name
from spikecl.continual.importance.ewc import Ewc
from spikecl.continual.importance.l2 import L2
from spikecl.continual.importance.mas import Mas
from spikecl.encoding import CrossEntropy, StepCrossEntropy
from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.networks import Layer, Linear, Mlp, Network, SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.streams import CLASS_IL, TASK_IL, Reveal
from spikecl.trainers import Decolle, Eprop, Hebb, Ottt

SPIKING = SpikingMlp(hidden=(8, 7), neuron=LIF(beta=0.5, v_th=0.25), bias=True)


def importance_of(learner, name="ewc"):
    return learner.methods.methods[name].importance


# ---- the Fisher information ---------------------------------------------------------------------


def logistic(classes=2):
    """Logits ``W x + b`` and nothing else: with two classes, logistic regression of z1 - z0."""
    return Network(
        {"readout": Layer(Linear(6, classes, bias=True), None, inputs=("input",))}
    ).double()


def measured(made, sets, spec, *, weights=None, times=1, **options):
    """Return F of each of some ends of the first experience, without any step."""
    learner = made.learner_of(sets, spec, **options)
    with torch.no_grad():
        for name, value in (weights or {}).items():
            learner.network.weights()[name].copy_(value)
    method, view = learner.methods.methods["ewc"], learner.stream.view(learner.stream[0])
    learner.at.event = 0
    learner.heads.begin(learner.stream[0])
    method.begin(view)
    found = []
    for _ in range(times):
        method.importance.values, method.importance.anchors = {}, {}
        method.end(view)
        found.append(method.importance.values)
    return found


@pytest.fixture
def regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 6, generator=generator) - 0.3
    weight = torch.randn(2, 6, generator=generator).double()
    bias = torch.randn(2, generator=generator).double()
    p = (x.double() @ weight.T + bias).softmax(1)
    return x, torch.arange(40) % 2, {"readout.weight": weight, "readout.bias": bias}, p


def test_empirical_fisher_of_logistic_regression(made, regression):
    """``mean (p - y)^2 x^2``."""
    x, y, weights, p = regression
    options = {"network": logistic(), "built": True, "classes": 2, "weights": weights}
    (found,) = measured(made, [(x, y)], Ewc(fisher="empirical", samples=40), **options)
    off = (p - functional.one_hot(y, 2)).square()
    wanted = torch.einsum("bo,bi->oi", off, x.double().square()) / 40
    torch.testing.assert_close(found["readout.weight"], wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["readout.bias"], off.mean(0), rtol=1e-12, atol=0)


def test_true_fisher_of_logistic_regression(made, regression):
    """A label y gives ``(p - y)^2 x^2``: by p of labels, exactly ``p (1 - p) x^2``."""
    x, y, weights, p = regression
    options = {"network": logistic(), "built": True, "classes": 2, "weights": weights}
    one, p1, draws = [(x[:1], y[:1])], float(p[0, 1]), 400
    found = measured(made, one, Ewc(), times=draws, **options)
    kinds = [(1 - p1) ** 2, p1**2]  # of the labels 1 and 0
    assert p1 * kinds[0] + (1 - p1) * kinds[1] == pytest.approx(p1 * (1 - p1))
    counts, square = [0, 0], x[0].double().square()
    for each in found:
        ratios = each["readout.weight"] / square
        torch.testing.assert_close(ratios, ratios[0, 0].expand(2, 6), rtol=1e-9, atol=0)
        kind = int(np.argmin([abs(float(ratios[0, 0]) - k) for k in kinds]))
        assert float(ratios[0, 0]) == pytest.approx(kinds[kind])
        counts[kind] += 1
    assert abs(counts[0] / draws - p1) < 3 * (p1 * (1 - p1) / draws) ** 0.5
    # many samples at once: the mean over them, within three standard errors
    many = [(x.repeat(100, 1), y.repeat(100))]
    (found,) = measured(made, many, Ewc(samples=4000), batch=1000, **options)
    wanted = torch.einsum("b,bi->i", p[:, 0] * p[:, 1], x.double().square()) / 40
    error = 1 / 4000**0.5 * x.double().pow(4).mean(0).sqrt()
    assert bool(((found["readout.weight"][1] - wanted).abs() < 3 * error).all())


def test_drawn_labels_are_those_of_the_data_for_nobody(made):
    """Other labels, the same true Fisher information; not so the empirical one."""
    ((x, y),) = made.tasks(12)
    for fisher, same in (("true", True), ("empirical", False)):
        a, b = (
            measured(made, [(x, labels)], Ewc(fisher=fisher), network=SPIKING)[0]
            for labels in (y, (y + 1) % 3)
        )
        assert all(torch.equal(f, b[name]) for name, f in a.items()) == same


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_batches_do_not_change_the_fisher_information(made, fisher):
    found = []
    for batch in (1, 4, 11):
        spec = Ewc(fisher=fisher, samples=9)
        found += measured(made, made.tasks(11), spec, network=SPIKING, batch=batch)
    for name, f in found[0].items():
        assert float(f.max()) > 1e-4
        for other in found[1:]:
            torch.testing.assert_close(f, other[name], rtol=1e-10, atol=1e-16)


def test_of_several_heads_only_those_of_the_experience_have_any(made):
    learner = made.learner_of(made.tasks(9, 9), Ewc(), reveal=TASK_IL, head="multi")
    for task in made.run(learner):
        rows = importance_of(learner).values["readout.weight"].amax(1)
        assert bool((rows[: 3 * (task + 1)] > 0).all()) and not bool(rows[3 * (task + 1) :].any())


def test_labels_are_drawn_among_the_classes_that_compete(made):
    """Classes that have not come yet have no output in a growing head: nothing is known of them."""
    x, y = made.tasks(12)[0]
    sets = [(x[y < 2], y[y < 2]), (x, y)]
    learner = made.learner_of(sets, Ewc(), reveal=CLASS_IL, head="growing", own=[(0, 1), (0, 1, 2)])
    for task in made.run(learner):
        rows = importance_of(learner).values["readout.weight"].amax(1) > 0
        assert rows.tolist() == [True, True, task == 1]


# ---- the whole method against a plain loop ------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "optimiser"),
    [
        ({"fisher": "empirical", "mode": "separate"}, Sgd(lr=0.2, momentum=0.5)),
        ({"fisher": "true", "mode": "separate"}, Adam(lr=0.01)),
        ({"fisher": "true", "mode": "online", "gamma": 0.6}, Sgd(lr=0.2)),
        ({"fisher": "empirical", "mode": "online", "others": "learn"}, Sgd(lr=0.2)),
    ],
)
def test_three_tasks_equal_a_plain_loop(made, options, optimiser):
    """With a list of Fisher informations and anchors, and the penalty in the loss, by autograd."""
    sets, strength = made.tasks(11, 13, 9), 3.0
    spec = Ewc(strength=strength, samples=8, **options)
    learner = made.learner_of(sets, spec, optimiser=optimiser)
    weights = made.weights_of(learner)
    kept = []  # of each experience: F and w
    for task in made.run(learner):
        x, y = sets[task][0].double(), sets[task][1]
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        if isinstance(optimiser, Adam):
            step = torch.optim.Adam(leaves.values(), lr=optimiser.lr)
        else:
            step = torch.optim.SGD(leaves.values(), lr=0.2, momentum=optimiser.momentum)
        for epoch in range(2):
            for picked in made.order(task, len(x), epoch=epoch).split(4):
                loss = functional.cross_entropy(made.passed(leaves, x[picked]), y[picked])
                for fisher, anchor in kept:
                    for name, f in fisher.items():
                        loss = loss + strength / 2 * (f * (leaves[name] - anchor[name]) ** 2).sum()
                step.zero_grad()
                loss.backward()
                step.step()
        weights = {n: w.detach().clone() for n, w in leaves.items()}
        for name, w in weights.items():
            torch.testing.assert_close(made.weights_of(learner)[name], w, rtol=0, atol=1e-10)
        fisher = {n: torch.zeros_like(w) for n, w in weights.items()}
        drawn = torch.rand(8, generator=Seeds(5).generator("ewc", event=task), dtype=torch.float64)
        for number, i in enumerate(made.order(task, len(x), "look")[:8]):
            logits, label = made.passed(leaves, x[i : i + 1]), y[i : i + 1]
            if options["fisher"] == "true":
                below = logits.detach().softmax(1).cumsum(1)[0]
                label = torch.tensor([int(np.searchsorted(below.numpy(), float(drawn[number])))])
            for leaf in leaves.values():
                leaf.grad = None
            functional.cross_entropy(logits, label).backward()
            for name, leaf in leaves.items():
                fisher[name] += leaf.grad.square() / 8
        if options.get("others") == "learn":
            fisher = {n: f for n, f in fisher.items() if n.endswith("weight")}
        if options["mode"] == "online":
            gamma = options.get("gamma", 1.0)
            old = kept[0][0] if kept else dict.fromkeys(fisher, 0.0)
            kept = [({n: gamma * old[n] + f for n, f in fisher.items()}, weights)]
        else:
            kept.append((fisher, weights))


def test_strength_0_is_plain_to_the_bit_also_beside_a_projection(made):
    sets = made.tasks(11, 13)
    for beside in ((), (Hlop(rows=((2, 2, 2),)),), (Inhibition(),)):
        ends = [
            made.weights_of(made.finished(made.learner_of(sets, *methods, network=SPIKING)))
            for methods in ((Ewc(strength=0.0), *beside), beside or (Finetune(),))
        ]
        assert all(torch.equal(w, ends[1][name]) for name, w in ends[0].items())


def test_of_infinite_strength_only_what_does_not_matter_moves(made):
    """An input that was always 0 in the first task has no Fisher information."""
    sets = made.tasks(12, 12)
    sets[0][0][:, 2] = 0.0
    spec = Ewc(strength=1e13, fisher="empirical", step="implicit")
    options = {"network": logistic(3), "built": True, "epochs": 20}
    learner, start = made.learner_of(sets, spec, **options), {}
    for task in made.run(learner):
        start = made.weights_of(learner) if task == 0 else start
    moved = {n: (w - start[n]).abs() for n, w in made.weights_of(learner).items()}
    assert float(moved["readout.weight"][:, 2].min()) > 1e-2
    assert float(moved["readout.weight"][:, [0, 1, 3, 4, 5]].max()) < 1e-11
    assert float(moved["readout.bias"].max()) < 1e-11


def test_a_strong_pull_stays_finite_behind_the_optimiser_and_holds(made):
    sets, far = made.tasks(11, 13), []
    for strength in (1e-9, 1e2, 1e6):
        learner, start = made.learner_of(sets, Ewc(strength=strength, step="implicit")), {}
        for task in made.run(learner):
            start = made.weights_of(learner) if task == 0 else start
        far.append(sum(float((w - start[n]).norm()) for n, w in made.weights_of(learner).items()))
    assert far[0] > far[1] > far[2] > 0 and far[2] < 0.3 * far[0]


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("step", ["gradient", "implicit"])
@pytest.mark.parametrize("update", ["sequence", "window"])
def test_the_pull_is_that_of_a_batch_however_many_parts_it_has(made, update, step):
    """Nothing fires, so no other gradient arrives: the weight comes back by ``lr strength A``."""
    sets = made.tasks(8)
    network = SpikingMlp(hidden=(8,), neuron=LIF(v_th=1e6), readout="mean_current")
    options = {"trainer": Ottt(window=1, update=update), "loss": StepCrossEntropy(), "batch": 8}
    learner = made.learner_of(sets, Ewc(strength=1e-3, step=step), network=network, **options)
    held, name = importance_of(learner), "hidden1.weight"
    held.merge({n: torch.ones_like(w) for n, w in held.now().items()})
    with torch.no_grad():
        learner.network.weights()[name].add_(2.0)
    for tick in learner.ticks():
        if tick.kind == "window":
            break
    gone = 2.0 - (learner.network.weights()[name].detach() - held.anchors[name])
    assert int(learner.at.step) == 1
    torch.testing.assert_close(gone, torch.full_like(gone, 2 * 0.2 * 1e-3), rtol=1e-3, atol=0)


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize(
    ("trainer", "loss", "by"),
    [
        (Ottt(), StepCrossEntropy(), "ottt"),
        (Hebb(readout="delta"), CrossEntropy(), "bptt"),
    ],
)
def test_the_record_says_what_gave_the_gradients(made, trainer, loss, by):
    network = SpikingMlp(hidden=(8,), readout="mean_current")
    options = {"network": network, "trainer": trainer, "loss": loss}
    learner = made.learner_of(made.tasks(6), Ewc(samples=6), **options)
    assert "ewc" not in learner.methods.report()
    made.finished(learner)
    assert {said["by"] for said in learner.methods.report()["ewc"].values()} == {by}


@pytest.mark.parametrize("measure", [Ewc(samples=20, fisher="empirical"), Mas(samples=20)])
@pytest.mark.parametrize("rule", [Eprop, Decolle])
def test_costs_of_the_trainer_s_own_have_no_importance(made, measure, rule):
    """So the batch does not matter either: a cost of mean rates is no sum over samples."""
    network = SpikingMlp(hidden=(8,), neuron=LIF(v_th=0.2), readout="mean_current")
    found, name = [], method_name(measure)
    for cost, batch in ((0.0, 5), (1.0, 5), (1.0, 20)):
        options = {"trainer": rule(rate_cost=cost), "loss": StepCrossEntropy(), "batch": batch}
        learner = made.learner_of(
            made.tasks(20), measure, network=network, optimiser=Sgd(lr=1e-12), **options
        )
        made.finished(learner)
        found.append(learner.methods.methods[name].importance.values)
    for other in found[1:]:
        for weight, values in found[0].items():
            assert bool(values.any())
            torch.testing.assert_close(other[weight], values, rtol=1e-6, atol=1e-12)


def test_it_composes_with_replay_and_projection(made):
    """In any order of names to the bit; and what a projection keeps is kept."""
    sets = made.tasks(11, 13)
    for others in ((ExperienceReplay(capacity=6),), (Inhibition(),), (ExperienceReplay(), L2())):
        ends = []
        for methods in ((Ewc(strength=5.0), *others), (*others, Ewc(strength=5.0)), others):
            learner = made.finished(made.learner_of(sets, *methods, network=SPIKING))
            ends.append(made.weights_of(learner))
        assert any(not torch.equal(w, ends[2][n]) for n, w in ends[0].items())
        for name, w in ends[0].items():
            torch.testing.assert_close(w, ends[1][name], rtol=0, atol=1e-12)


def test_frozen_parameters_have_none_and_stay(made):
    network = SPIKING.build((6,), 3).double()
    network.weights()["hidden1.weight"].requires_grad_(False)
    learner = made.learner_of(made.tasks(11, 13), Ewc(), network=network, built=True)
    start = made.weights_of(learner)["hidden1.weight"]
    made.finished(learner)
    assert torch.equal(made.weights_of(learner)["hidden1.weight"], start)
    assert "hidden1.weight" not in importance_of(learner).values
    assert "hidden1.bias" in importance_of(learner).values


def test_dropout_and_batches_norms_are_those_of_a_test(made):
    """The same Fisher information twice, whatever would be dropped or normalised in training."""
    network = SpikingMlp(hidden=(8,), neuron=LIF(v_th=0.25), dropout=0.5, norm="batch")
    found = [
        measured(made, made.tasks(11), Ewc(samples=9, others="learn"), network=network, batch=b)[0]
        for b in (3, 9)
    ]
    for name, f in found[0].items():
        assert float(f.max()) > 1e-6
        torch.testing.assert_close(f, found[1][name], rtol=1e-10, atol=1e-16)


# ---- what it refuses ----------------------------------------------------------------------------


def test_an_experience_without_samples_is_refused_before_the_start(made):
    x, y = made.tasks(6)[0]
    with pytest.raises(UsageError, match="'ewc' gathers importances.*experience 1 .*leave it out"):
        made.learner_of([(x, y), (x[:0], y[:0])], Ewc())


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
def test_what_it_refuses(made):
    wrong = [{"strength": -1.0}, {"gamma": 0.0, "mode": "online"}, {"gamma": 1.5}, {"samples": 0}]
    for options in (*wrong, {"fisher": "p_weighted"}, {"mode": "both"}, {"step": "x"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Ewc(**options)
    with pytest.raises(ConfigError, match="gamma=0.5.*mode='separate'.*use mode='online'"):
        Ewc(gamma=0.5)
    with pytest.raises(PairingError, match="'ewc' needs boundary"):
        made.learner_of(made.tasks(6), Ewc(), reveal=Reveal.LABELS)
    learner = lambda spec: made.learner_of(  # noqa: E731
        made.tasks(6), spec, reveal=Reveal.BOUNDARY, trainer=Hebb(readout="none")
    )
    with pytest.raises(PairingError, match="'empirical' needs labels.*fisher='true'"):
        learner(Ewc(fisher="empirical"))
    made.finished(learner(Ewc()))
    with pytest.raises(PairingError, match="'ewc' and 'l2' both take a step"):
        made.learner_of(made.tasks(6), Ewc(step="implicit"), L2(step="implicit"))


def test_an_ordinary_network_learns_less_and_forgets_less(made):
    far = []
    for strength in (0.0, 30.0):
        learner, start = (
            made.learner_of(
                made.tasks(24, 24), Ewc(strength=strength), network=Mlp(hidden=(16,)), epochs=10
            ),
            {},
        )
        for task in made.run(learner):
            start = made.weights_of(learner) if task == 0 else start
        values = importance_of(learner).values
        far.append(
            sum(
                float((values[n] * (w - start[n]) ** 2).sum())
                for n, w in made.weights_of(learner).items()
            )
        )
    assert far[1] < 0.3 * far[0]
