"""MAS: importances of a linear model in closed form, a plain loop of the whole."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from spikecl.continual import Finetune, Hlop, Inhibition
from spikecl.continual.importance.mas import Mas
from spikecl.encoding import StepCrossEntropy
from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.networks import Layer, Linear, Network, SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.streams import CLASS_IL, DOMAIN_IL, TASK_IL, Reveal
from spikecl.trainers import Bptt, Hebb, Ottt

SPIKING = SpikingMlp(hidden=(8, 7), neuron=LIF(beta=0.5, v_th=0.25), bias=True)


def linear():
    layer = Layer(Linear(6, 3, bias=True), None, inputs=("input",))
    return Network({"readout": layer}).double()


def importance_of(learner):
    return learner.methods.methods["mas"].importance


def measured(made, sets, spec=None, *, scale=1.0, **options):
    """Return importances of the first experience, without any step."""
    learner = made.learner_of(sets, spec or Mas(samples=99), **options)
    readout = learner.network.synapses["readout"]
    with torch.no_grad():
        for held in readout.parameters():
            held.mul_(scale)
    method, view = learner.methods.methods["mas"], learner.stream.view(learner.stream[0])
    learner.at.event = 0
    learner.heads.begin(learner.stream[0])
    method.begin(view)
    method.end(view)
    return made.weights_of(learner), method.importance.values


def test_importances_of_a_linear_model(made):
    """``mean 2 |(W x + b)_i x_j|``, and 2 |(W x + b)_i| of biases."""
    sets = made.tasks(11)
    weights, found = measured(made, sets, network=linear(), built=True)
    x = sets[0][0].double()
    z = x @ weights["readout.weight"].T + weights["readout.bias"]
    wanted = 2 * torch.einsum("bi,bj->ij", z.abs(), x.abs()) / 11
    torch.testing.assert_close(found["readout.weight"], wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["readout.bias"], 2 * z.abs().mean(0), rtol=1e-12, atol=0)
    batch = 2 * (z.T @ x).abs() / 11  # of the mean norm: something else
    assert float((wanted - batch).norm()) > 0.2 * float(wanted.norm())


def test_outputs_that_are_c_times_as_large_count_c_squared(made):
    """Below the readout; normalised, not at all."""
    sets = made.tasks(11)
    a, b = (measured(made, sets, network=SPIKING, scale=s)[1] for s in (1.0, 3.0))
    for name in ("hidden1.weight", "hidden2.bias"):
        assert bool(a[name].any())
        torch.testing.assert_close(b[name], 9 * a[name])
    torch.testing.assert_close(b["readout.weight"], 3 * a["readout.weight"])
    spec = Mas(samples=99, normalise=True)
    (_, found), (_, large) = (
        measured(made, sets, spec, network=SPIKING, scale=s) for s in (1.0, 1e4)
    )
    for each in (found, large):
        total = sum(float(v.sum()) for v in each.values())
        assert total == pytest.approx(sum(v.numel() for v in each.values()))


def test_batches_do_not_matter_and_labels_neither(made):
    ((x, y),) = made.tasks(11)
    (_, one), (_, other), (_, relabelled) = (
        measured(made, [(x, labels)], network=SPIKING, batch=batch)
        for batch, labels in ((1, y), (4, y), (4, (y + 1) % 3))
    )
    for name, value in one.items():
        assert bool(value.any())
        torch.testing.assert_close(value, other[name], rtol=1e-10, atol=1e-16)
        assert torch.equal(relabelled[name], other[name])


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("trainer", [Hebb(readout="none"), Bptt()])
def test_under_rules_without_gradients_it_measures_by_bptt(made, trainer):
    """By autograd on the weights, sample by sample; nothing shows a label."""
    sets, labels = made.tasks(11), Reveal.LABELS if trainer.needs else Reveal.NONE
    learner = made.learner_of(sets, Mas(), reveal=Reveal.BOUNDARY | labels, trainer=trainer)
    made.finished(learner)
    wanted = {name: torch.zeros_like(w) for name, w in learner.network.weights().items()}
    for seen in learner.host.look(learner.stream[0].train, 11, batch=1):
        leaves = {n: w.detach().requires_grad_() for n, w in learner.network.weights().items()}
        learner.network(seen.x, weights=leaves).logits.square().sum().backward()
        for name, leaf in leaves.items():
            wanted[name] += leaf.grad.abs() / 11
    found = importance_of(learner).values
    assert {said["by"] for said in learner.methods.report()["mas"].values()} == {"bptt"}
    assert float(wanted["hidden1.weight"].max()) > 0
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each, rtol=1e-4, atol=1e-6)


def test_only_logits_that_compete_count(made):
    multi = made.learner_of(made.tasks(9, 9), Mas(), reveal=TASK_IL, head="multi")
    for task in made.run(multi):
        rows = importance_of(multi).values["readout.bias"] > 0
        assert rows.tolist() == 3 * (task + 1) * [True] + 3 * (1 - task) * [False]
    x, y = made.tasks(12)[0]
    sets, own = [(x[y < 2], y[y < 2]), (x, y)], [(0, 1), (0, 1, 2)]
    growing = made.learner_of(sets, Mas(), reveal=CLASS_IL, head="growing", own=own)
    for task in made.run(growing):
        rows = importance_of(growing).values["readout.bias"] > 0
        assert rows.tolist() == [True, True, task == 1]


def test_with_a_loss_of_steps_the_norm_is_a_mean_over_them(made):
    network = SpikingMlp(hidden=(8,), neuron=LIF(v_th=0.25), readout="mean_current")
    sets, found = made.tasks(11), []
    for trainer in (Ottt(window=1), Ottt()):
        options = {"network": network, "trainer": trainer, "loss": StepCrossEntropy()}
        weights, values = measured(made, sets, **options)
        found.append(values)
    learner = made.learner_of(sets, Finetune(), network=network)
    x = learner.encoder.encode(sets[0][0], None, None)
    wanted = torch.zeros_like(weights["readout.weight"])
    for b in range(11):
        leaf = weights["readout.weight"].clone().requires_grad_()
        steps = learner.network(x[:, b : b + 1], weights={**weights, "readout.weight": leaf}).steps
        steps.square().sum(-1).mean().backward()
        wanted += leaf.grad.abs() / 11
    for each in found:
        torch.testing.assert_close(each["readout.weight"], wanted)


@pytest.mark.parametrize(
    ("options", "optimiser"),
    [
        ({"merge": "sum"}, Sgd(lr=0.2, momentum=0.5)),
        ({"merge": "mean", "normalise": True, "others": "learn"}, Adam(lr=0.01)),
    ],
)
def test_three_tasks_equal_a_plain_loop(made, options, optimiser):
    sets, strength = made.tasks(11, 13, 9), 0.3
    spec = Mas(strength=strength, samples=8, **options)
    learner = made.learner_of(sets, spec, optimiser=optimiser)
    weights = made.weights_of(learner)
    found, anchor = [], weights
    for task in made.run(learner):
        x, y = sets[task][0].double(), sets[task][1]
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        if isinstance(optimiser, Adam):
            step = torch.optim.Adam(leaves.values(), lr=optimiser.lr)
        else:
            step = torch.optim.SGD(leaves.values(), lr=0.2, momentum=optimiser.momentum)
        share = len(found) if options["merge"] == "mean" else 1
        for epoch in range(2):
            for picked in made.order(task, len(x), epoch=epoch).split(4):
                loss = functional.cross_entropy(made.passed(leaves, x[picked]), y[picked])
                for each in found:
                    for name, value in each.items():
                        off = leaves[name] - anchor[name]
                        loss = loss + strength * (value / share * off**2).sum()
                step.zero_grad()
                loss.backward()
                step.step()
        weights = anchor = {n: w.detach().clone() for n, w in leaves.items()}
        for name, w in weights.items():
            torch.testing.assert_close(made.weights_of(learner)[name], w, rtol=0, atol=1e-10)
        new = {n: torch.zeros_like(w) for n, w in weights.items()}
        for i in made.order(task, len(x), "look")[:8]:
            norm = made.passed(leaves, x[i : i + 1]).square().sum()
            for name, grad in zip(leaves, torch.autograd.grad(norm, leaves.values())):
                new[name] += grad.abs() / 8
        if options.get("others") == "learn":
            new = {n: v for n, v in new.items() if n.endswith("weight")}
        if options.get("normalise"):
            every = torch.cat([v.flatten() for v in new.values()]).mean()
            new = {n: v / every for n, v in new.items()}
        found.append(new)


def test_strength_0_is_plain_to_the_bit_also_beside_a_projection(made):
    sets = made.tasks(11, 13)
    for beside in ((), (Hlop(),), (Inhibition(),)):
        ends = [
            made.weights_of(made.finished(made.learner_of(sets, *methods, network=SPIKING)))
            for methods in ((Mas(strength=0.0), *beside), beside or (Finetune(),))
        ]
        assert all(torch.equal(w, ends[1][name]) for name, w in ends[0].items())


def test_what_it_refuses(made):
    for options in ({"strength": -1.0}, {"merge": "max"}, {"samples": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Mas(**options)
    with pytest.raises(PairingError, match="'mas' needs boundary"):
        made.learner_of(made.tasks(6), Mas(), reveal=DOMAIN_IL & ~Reveal.BOUNDARY)
    x, y = made.tasks(6)[0]
    with pytest.raises(UsageError, match="'mas'.*experience 1 .* has none"):
        made.learner_of([(x, y), (x[:0], y[:0])], Mas())
