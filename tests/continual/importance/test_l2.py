"""L2: a plain loop, EWC with F = 1, the proximal step."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from spikecl.continual import Finetune, Hlop
from spikecl.continual.importance import ewc
from spikecl.continual.importance.ewc import Ewc
from spikecl.continual.importance.l2 import L2
from spikecl.errors import ConfigError, PairingError
from spikecl.optim import Adam, Sgd
from spikecl.streams import DOMAIN_IL, Reveal


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.2, momentum=0.5), Adam(lr=0.01)])
@pytest.mark.parametrize("anchor", ["previous", "initial"])
def test_three_tasks_equal_a_plain_loop(made, anchor, optimiser):
    sets, strength = made.tasks(11, 13, 9), 0.4
    spec = L2(strength=strength, anchor=anchor)
    learner = made.learner_of(sets, spec, optimiser=optimiser)
    weights = made.weights_of(learner)
    held = weights if anchor == "initial" else None
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
                for name, leaf in leaves.items() if held else ():
                    loss = loss + strength / 2 * ((leaf - held[name]) ** 2).sum()
                step.zero_grad()
                loss.backward()
                step.step()
        weights = {n: leaf.detach().clone() for n, leaf in leaves.items()}
        held = weights if anchor == "previous" else held
        for name, w in weights.items():
            torch.testing.assert_close(made.weights_of(learner)[name], w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", ["gradient", "implicit"])
def test_it_is_ewc_where_all_information_is_1(made, step, monkeypatch):
    def ones(context, samples, count, names, **options):
        weights = context.network.weights()
        return {name: torch.ones_like(weights[name]) for name in names}

    monkeypatch.setattr(ewc, "mean_powers", ones)
    ends = []
    for spec in (L2(strength=0.7, step=step), Ewc(strength=0.7, step=step)):
        ends.append(made.weights_of(made.finished(made.learner_of(made.tasks(11, 13), spec))))
    assert all(torch.equal(w, ends[1][name]) for name, w in ends[0].items())


def test_a_step_of_its_own_is_the_proximal_one(made):
    """``(w - lr g + lr strength c) / (1 + lr strength)`` for plain gradient descent."""
    sets, strength, lr = made.tasks(11, 13), 0.7, 0.2
    learner = made.learner_of(sets, L2(strength=strength, step="implicit"), batch=99, epochs=3)
    for task in made.run(learner):
        if task == 0:
            weights = anchor = made.weights_of(learner)
    x, y = sets[1][0].double(), sets[1][1]
    for _ in range(3):
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        functional.cross_entropy(made.passed(leaves, x), y).backward()
        weights = {
            n: (w - lr * leaves[n].grad + lr * strength * anchor[n]) / (1 + lr * strength)
            for n, w in weights.items()
        }
    for name, w in weights.items():
        torch.testing.assert_close(made.weights_of(learner)[name], w, rtol=0, atol=1e-12)


def test_initial_weights_need_no_boundaries(made):
    hidden = DOMAIN_IL & ~Reveal.BOUNDARY
    start = made.learner_of(made.tasks(11, 13), L2(anchor="initial"), reveal=hidden)
    first = made.weights_of(start)
    held = made.finished(start).methods.methods["l2"].importance
    assert all(torch.equal(held.anchors[name], w) for name, w in first.items())
    with pytest.raises(PairingError, match="'l2' needs boundary"):
        made.learner_of(made.tasks(11), L2(), reveal=hidden)


def test_weights_alone_can_be_held(made):
    learner = made.finished(made.learner_of(made.tasks(11), L2(others="learn")))
    names = learner.methods.methods["l2"].importance.values
    assert list(names) == ["hidden1.weight", "hidden2.weight", "readout.weight"]


def test_strength_0_is_plain_to_the_bit_also_beside_a_projection(made):
    sets = made.tasks(11, 13)
    for beside in ((), (Hlop(),)):
        ends = [
            made.weights_of(made.finished(made.learner_of(sets, *methods)))
            for methods in ((L2(strength=0.0), *beside), beside or (Finetune(),))
        ]
        assert all(torch.equal(w, ends[1][name]) for name, w in ends[0].items())


def test_what_it_refuses():
    for options in ({"strength": -1.0}, {"anchor": "first"}, {"others": "freeze"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            L2(**options)
