"""SI: the path integral's sum rule, what it may not see, and a plain loop of the whole."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from spikecl.components import component
from spikecl.continual import (
    Composition,
    Context,
    ExperienceReplay,
    Finetune,
    Hlop,
    Inhibition,
    Method,
    MethodSpec,
)
from spikecl.continual.importance.ewc import Ewc
from spikecl.continual.importance.l2 import L2
from spikecl.continual.importance.si import Si
from spikecl.encoding import StepCrossEntropy
from spikecl.errors import ConfigError, PairingError
from spikecl.networks import Layer, Linear, Network, SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, ScheduleFreeSgd, Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, LearnerView, Reveal, Samples
from spikecl.streams.events import Part
from spikecl.trainers import Ottt

SPIKING = SpikingMlp(hidden=(8, 7), neuron=LIF(beta=0.5, v_th=0.25), bias=True)
HIDDEN = Reveal.LABELS


def si_of(learner):
    return learner.methods.methods["si"]


# ---- by hand: weights that go down a hill -------------------------------------------------------


def by_hand(spec, start, *others, lr=0.1):
    """Return parameter, composition and optimiser of a network that nobody runs."""
    network = Network({"readout": Layer(Linear(len(start), 1), None, inputs=("input",))}).double()
    weight = network.weights()["readout.weight"]
    with torch.no_grad():
        weight.copy_(start[None])
    context = Context(network, Sgd(lr=lr), Seeds(0), DOMAIN_IL, 1, torch.device("cpu"))
    run = Composition((spec, *others), context)
    view = LearnerView(DOMAIN_IL, {"samples": Samples((Part(torch.zeros(1, 1), None, None),))})
    for begin in run.hooks("begin"):
        begin(view)
    return weight, run, context.optimiser.start(network.weights()), view


@torch.no_grad()
def step(weight, run, optimiser, gradient):
    gradients = {"readout.weight": gradient}
    for change in run.hooks("gradients"):
        gradients = change(gradients)
    optimiser.step(gradients)
    for after in run.hooks("after_step"):
        after()


@pytest.mark.parametrize(("lr", "ratio"), [(0.1, 1.118), (0.01, 1.0106), (0.001, 1.00105)])
def test_what_parameters_did_adds_up_to_the_loss_that_was_lost(lr, ratio):
    """A parabola of curvature 2.1: for step size lr the ratio is ``1 / (1 - 2.1 lr / 2)``."""
    start = torch.tensor([1.0, -2.0, 0.5]).double()
    weight, run, optimiser, _ = by_hand(Si(strength=0.0), start, lr=lr)
    loss = lambda: float(2.1 / 2 * weight.detach().square().sum())  # noqa: E731
    first = loss()
    for _ in range(200):
        step(weight, run, optimiser, 2.1 * weight.detach())
    path = run.methods["si"].path["readout.weight"]
    found = float(path.sum()) / (first - loss())
    assert found == pytest.approx(1 / (1 - 2.1 * lr / 2), rel=1e-9)
    assert found == pytest.approx(ratio, abs=1e-3)
    assert bool((path > 0).all())


def test_importance_is_the_path_over_the_way_and_never_negative():
    """A parameter that was pushed uphill has none, and takes from what it had before."""
    weight, run, optimiser, view = by_hand(Si(strength=0.0, xi=0.1), torch.zeros(3).double())
    step(weight, run, optimiser, torch.tensor([1.0, -2.0, 0.0]).double())
    with torch.no_grad():
        weight[0, 2] += 3.0  # moved by somebody else, uphill
    run.hooks("end")[0](view)
    moved = torch.tensor([-0.1, 0.2, 3.0]).double()
    path = torch.tensor([0.1, 0.4, 0.0]).double()
    values = run.methods["si"].importance.values["readout.weight"][0]
    torch.testing.assert_close(values, path / (moved.square() + 0.1))

    class Push(Method):
        def after_step(self):
            with torch.no_grad():
                weight.add_(torch.tensor([[0.5, 0.0, 0.0]]).double())

    run.methods["push"] = Push()
    before = values.clone()
    step(weight, run, optimiser, torch.tensor([1.0, 0.0, 0.0]).double())  # in all + 0.4 uphill
    run.hooks("end")[0](view)
    values = run.methods["si"].importance.values["readout.weight"][0]
    assert float(before[0] - 0.4 / (0.16 + 0.1)) < 0  # what the sum would be
    torch.testing.assert_close(values, torch.tensor([0.0, before[1], 0.0]).double())


def test_it_comes_first_at_gradients_and_last_behind_steps():
    """Wherever it is named: gradients have no penalty yet, weights have moved for good."""
    order = []

    class Loud(Method):
        def gradients(self, gradients):
            order.append("other gradients")
            return {n: 2 * g for n, g in gradients.items()}

        def after_step(self):
            order.append("other after")

    @component
    class Louder(MethodSpec):
        def start(self, context):
            return Loud()

    for specs in ((Si(), Louder()), (Louder(), Si())):
        order.clear()
        weight, run, optimiser, _ = by_hand(*specs[:1], torch.ones(2).double(), *specs[1:])
        plain = type(run.methods["si"])

        class Spy(plain):
            def gradients(self, gradients):
                order.append("si gradients")
                return super().gradients(gradients)

            def after_step(self):
                order.append("si after")
                super().after_step()

        run.methods["si"].__class__ = Spy
        step(weight, run, optimiser, torch.ones(1, 2).double())
        assert order == ["si gradients", "other gradients", "other after", "si after"]
        path = run.methods["si"].path["readout.weight"]
        torch.testing.assert_close(path, torch.full((1, 2), 1.0 * 0.2).double())


# ---- the whole method against a plain loop ------------------------------------------------------


@pytest.mark.parametrize(
    ("optimiser", "decay", "beside"),
    [
        (Sgd(lr=0.2, momentum=0.9, weight_decay=0.01, state="carried"), None, False),
        (Adam(lr=0.02, state="carried"), None, False),
        (Sgd(lr=0.2), 0.7, False),
        (Sgd(lr=0.2), None, True),
    ],
)
def test_three_tasks_equal_a_plain_loop(made, optimiser, decay, beside):
    """With the penalties in the loss and two backward passes: one for the loss by itself."""
    sets, strength, xi = made.tasks(11, 13, 9), 0.7, 0.05
    methods = [Si(strength=strength, xi=xi, decay=decay)]
    if beside:
        methods.insert(0, L2(strength=0.3))
    learner = made.learner_of(sets, *methods, optimiser=optimiser)
    weights = made.weights_of(learner)
    anchor = {n: w.clone() for n, w in weights.items()}
    values = {n: torch.zeros_like(w) for n, w in weights.items()}
    leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
    if isinstance(optimiser, Adam):
        torchs = torch.optim.Adam(leaves.values(), lr=optimiser.lr)
    else:
        momentum, decayed = optimiser.momentum, optimiser.weight_decay
        torchs = torch.optim.SGD(leaves.values(), lr=0.2, momentum=momentum, weight_decay=decayed)
    for task in made.run(learner):
        x, y = sets[task][0].double(), sets[task][1]
        path = {n: torch.zeros_like(w) for n, w in weights.items()}
        for epoch in range(2):
            for picked in made.order(task, len(x), epoch=epoch).split(4):
                loss = functional.cross_entropy(made.passed(leaves, x[picked]), y[picked])
                own = dict(zip(leaves, torch.autograd.grad(loss, leaves.values())))
                before = {n: leaf.detach().clone() for n, leaf in leaves.items()}
                loss = functional.cross_entropy(made.passed(leaves, x[picked]), y[picked])
                for name, leaf in leaves.items():
                    loss = loss + strength * (values[name] * (leaf - anchor[name]) ** 2).sum()
                    if beside and task:
                        loss = loss + 0.15 * ((leaf - anchor[name]) ** 2).sum()
                torchs.zero_grad()
                loss.backward()
                torchs.step()
                for name, leaf in leaves.items():
                    path[name] -= own[name] * (leaf.detach() - before[name])
        for name, leaf in leaves.items():
            now = leaf.detach().clone()
            new = path[name] / ((now - anchor[name]) ** 2 + xi)
            mixed = values[name] + new if decay is None else decay * values[name] + 0.3 * new
            values[name], anchor[name] = mixed.clamp(min=0), now
            torch.testing.assert_close(made.weights_of(learner)[name], now, rtol=0, atol=1e-9)
            found = si_of(learner).importance
            torch.testing.assert_close(found.values[name], values[name], rtol=1e-6, atol=1e-9)
            assert not bool(si_of(learner).path[name].any())
    assert any(bool((v == 0).any()) for v in values.values())  # the relu had something to do


@pytest.mark.parametrize("step", ["gradient", "implicit"])
def test_strength_0_is_plain_to_the_bit_and_strong_ones_hold(made, step):
    sets, ends, far = made.tasks(11, 13), [], []
    for method in (Finetune(), Si(strength=0.0, step=step), Si(strength=50.0, step=step)):
        learner, start = made.learner_of(sets, method, optimiser=Adam(lr=0.02)), {}
        for task in made.run(learner):
            start = made.weights_of(learner) if task == 0 else start
        ends.append(made.weights_of(learner))
        far.append(sum(float((w - start[n]).norm()) for n, w in ends[-1].items()))
    assert all(torch.equal(w, ends[0][name]) for name, w in ends[1].items())
    assert far[2] < 0.9 * far[0]


@pytest.mark.parametrize("every", [1, 3])
def test_without_boundaries_it_consolidates_every_n_steps(made, every):
    """Against a loop: parabolas of all that was, anchors that follow."""
    sets, strength, xi, decay = made.tasks(10), 0.7, 0.05, 0.9
    spec = Si(strength=strength, xi=xi, every=every, decay=decay)
    learner = made.learner_of(sets, spec, reveal=HIDDEN)
    weights = made.weights_of(learner)
    anchor = {n: w.clone() for n, w in weights.items()}
    values, path = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
    x, y, steps = sets[0][0].double(), sets[0][1], 0
    for epoch in range(2):
        for picked in made.order(0, 10, epoch=epoch).split(4):
            leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
            functional.cross_entropy(made.passed(leaves, x[picked]), y[picked]).backward()
            steps += 1
            for name, leaf in leaves.items():
                back = 2 * strength * values[name] * (weights[name] - anchor[name])
                moved = -0.2 * (leaf.grad + back)
                path[name] -= leaf.grad * moved
                weights[name] = weights[name] + moved
                if steps % every == 0:
                    new = path[name] / ((weights[name] - anchor[name]) ** 2 + xi)
                    values[name] = (decay * values[name] + (1 - decay) * new).clamp(min=0)
                    anchor[name], path[name] = weights[name], torch.zeros_like(path[name])
    made.finished(learner)
    for name, w in weights.items():
        torch.testing.assert_close(made.weights_of(learner)[name], w, rtol=0, atol=1e-10)
        found = si_of(learner)
        torch.testing.assert_close(found.importance.values[name], values[name], rtol=1e-9, atol=0)
        torch.testing.assert_close(found.path[name], path[name], rtol=1e-9, atol=1e-18)
    assert steps == 6


def test_hidden_boundaries_leave_no_mark(made):
    """Two experiences behind one another are one long one."""
    ((x, y),) = made.tasks(16)
    ends = []
    for sets in ([(x[:8], y[:8]), (x[8:], y[8:])], [(x[:8], y[:8]), (x[8:], y[8:])][::-1]):
        learner = made.learner_of(sets, Si(every=2), reveal=HIDDEN, epochs=1)
        anchors = []
        for _ in made.run(learner):
            anchors.append(si_of(learner).importance.anchors["readout.weight"].clone())
        ends.append(anchors)
        assert si_of(learner)._steps == 4
    assert not torch.equal(ends[0][0], ends[0][1])


# ---- together with others -----------------------------------------------------------------------


@pytest.mark.parametrize("update", ["sequence", "window"])
def test_each_part_of_a_step_is_weighed_by_its_own_gradient(made, update):
    """Where weights change between parts, so does the gradient: the sum rule holds all the same."""
    sets, loss = made.tasks(8), StepCrossEntropy()
    network = SpikingMlp(hidden=(8,), neuron=LIF(beta=0.5, v_th=0.25), readout="mean_current")
    options = {"trainer": Ottt(window=1, update=update), "loss": loss, "network": network}
    learner = made.learner_of(sets, Si(strength=0.0), vary=True, epochs=1, **options)
    parts, plain = [], learner.training.apply

    def apply(gradients):
        before = made.weights_of(learner)
        plain(gradients)
        after = made.weights_of(learner)
        parts.append({n: g * (before[n] - after[n]) for n, g in gradients.items()})

    learner.training.apply = apply
    for tick in learner.ticks():
        if tick.kind == "window":
            break
    assert len(parts) == (2 if update == "sequence" else 4)
    for name, path in si_of(learner).path.items():
        torch.testing.assert_close(path, sum(each[name] for each in parts), rtol=1e-9, atol=1e-18)
        assert bool(path.any())


@pytest.mark.parametrize("others", [(Inhibition(),), (Hlop(),), (ExperienceReplay(capacity=6),)])
def test_the_way_is_what_was_applied_whoever_had_a_hand_in_it(made, others):
    """Behind a projection, Δw lies where it let it: with all directions closed nothing is left."""
    sets = made.tasks(11, 13)
    ends = []
    for methods in ((Si(), *others), (*others, Si())):
        learner = made.finished(made.learner_of(sets, *methods, network=SPIKING))
        ends.append((made.weights_of(learner), si_of(learner).importance.values))
    for a, b in zip(*ends):
        assert all(torch.equal(each, b[name]) for name, each in a.items())


def test_what_a_projection_forbids_counts_for_nothing(made):
    sets = made.tasks(11, 13)
    closed = Hlop(rows=((6, 8, 7),))  # every direction
    learner, before = made.learner_of(sets, Si(strength=0.0), closed, network=SPIKING), {}
    for task in made.run(learner):
        held = si_of(learner).importance.values
        before = {n: v.clone() for n, v in held.items()} if task == 0 else before
    for name in ("hidden1.weight", "hidden1.bias"):
        found = si_of(learner).importance.values[name]
        assert bool(before[name].any())
        torch.testing.assert_close(found, before[name], rtol=0, atol=1e-9)


def test_its_path_has_no_penalty_of_others(made):
    """Of two runs whose weights go the same way, importances are the same."""
    sets, found = made.tasks(11), []
    for methods in ((Si(strength=0.0),), (Ewc(strength=1e3), Si(strength=0.0))):
        learner = made.finished(made.learner_of(sets, *methods))  # EWC holds nothing yet
        found.append(si_of(learner).importance.values)
    assert all(torch.equal(v, found[1][name]) for name, v in found[0].items())


def test_an_average_of_steps_is_weighed_as_it_goes(made):
    learner = made.finished(
        made.learner_of(made.tasks(11), Si(), optimiser=ScheduleFreeSgd(lr=0.5))
    )
    assert all(bool(v.any()) for v in si_of(learner).importance.values.values())


# ---- what it refuses ----------------------------------------------------------------------------


def test_what_it_refuses(made):
    wrong = [{"strength": -0.1}, {"xi": 0.0}, {"xi": -1.0}, {"decay": 0.0}, {"decay": 1.0}]
    for options in (*wrong, {"every": -1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Si(**options)
    with pytest.raises(PairingError, match="'si' needs boundary"):
        made.learner_of(made.tasks(6), Si(), reveal=HIDDEN)


def test_two_learners_of_one_state_do_not_share_its_path(made):
    """What is loaded is added to in place: whoever gave it goes on with its own."""
    first, wanted = (made.learner_of(made.tasks(12, 12), Si()) for _ in range(2))
    ticks = first.ticks()
    next(tick for tick in ticks if tick.position.event == 0 and tick.position.step == 2)
    second = made.learner_of(made.tasks(12, 12), Si())
    second.load_state_dict(first.state_dict())
    made.finished(second)
    for _ in ticks:
        pass
    end = made.weights_of(made.finished(wanted))
    for learner in (first, second):
        assert all(torch.equal(w, end[name]) for name, w in made.weights_of(learner).items())
