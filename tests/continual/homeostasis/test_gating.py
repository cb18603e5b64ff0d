"""Gated units: a plain loop, disjoint contexts that forget nothing, and who is asked for tasks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import Context, Finetune, Hlop
from spikecl.continual.homeostasis.gating import Gating
from spikecl.data.arrays import checked
from spikecl.encoding import Direct
from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.learner import Heads, Learner, TrainPlan
from spikecl.networks import (
    BatchNorm,
    Cells,
    Layer,
    Linear,
    Mlp,
    Network,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
)
from spikecl.neurons import LIF, PLIF
from spikecl.optim import Adam, AdamW, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, TASK_IL, Reveal, permuted
from spikecl.trainers import Bptt

CPU = torch.device("cpu")
NEURON = LIF(beta=0.5, v_th=0.3)
SPECS = {
    "dense": (SpikingMlp(hidden=(12, 10), neuron=NEURON, bias=True), (8,)),
    "twin": (Mlp(hidden=(12, 10), bias=True), (8,)),
    "recurrent": (SpikingRecurrentNet(hidden=(12,), neuron=NEURON, bias=True), (8,)),
    "conv": (
        SpikingConvNet(channels=(8,), kernel=2, pool_size=1, hidden=(10,), neuron=NEURON),
        (2, 4),
    ),
    "own": (
        SpikingMlp(hidden=(12,), neuron=NEURON, learns=("v_th",), per_neuron=True, bias=True),
        (8,),
    ),
    "delays": (SpikingMlp(hidden=(8,), neuron=LIF(beta=0.5, v_th=0.1), axonal_delay=3), (8,)),
    "scalar": (SpikingMlp(hidden=(12,), neuron=NEURON, output=PLIF(v_th=0.02), bias=True), (8,)),
    "norm": (
        SpikingMlp(hidden=(12, 10), neuron=NEURON, norm="batch", readout="mean_current"),
        (8,),
    ),
    "conv norm": (
        SpikingConvNet(
            channels=(8,), kernel=2, pool_size=1, hidden=(10,), neuron=NEURON, norm="batch"
        ),
        (2, 4),
    ),
}


def data(shape=(8,)):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.1 * rng.standard_normal((60, 8)), 0, 1)
    x = x.astype(np.float32).reshape(60, *shape)
    return checked({"x_train": x[:36], "y_train": y[:36], "x_test": x[36:], "y_test": y[36:]}, "c")


def learner_of(
    *methods, kind="dense", optimiser=None, reveal=TASK_IL, experiences=3, head="single"
):
    spec, shape = SPECS[kind]
    stream = permuted(data(shape), experiences=experiences, seed=1).with_reveal(reveal)
    return Learner(
        stream=stream,
        network=spec.build(shape, Heads(head, stream, CPU).outputs),
        head=head,
        encoder=Direct(steps=3),
        trainer=Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.2),
        plan=TrainPlan(batch=6, epochs=2),
        seeds=Seeds(4),
        device=CPU,
    )


def running(learner):
    (method,) = learner.methods.methods.values()
    return method


def answers(learner, task, told=None):
    x = learner.encoder.encode(
        list(learner.stream.eval_sets.values())[task].samples.load().x, learner.statistics, None
    )
    return running(learner).predict(x, told)


@pytest.mark.parametrize("kind", list(SPECS))
@pytest.mark.parametrize("optimiser", [Sgd(lr=0.2, momentum=0.9), Adam(lr=0.02), AdamW(lr=0.02)])
def test_disjoint_contexts_forget_nothing_to_the_last_bit(kind, optimiser):
    learner = learner_of(
        Gating(share=0.7, disjoint=True, context="task"), kind=kind, optimiser=optimiser
    )
    said = []
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event > 0:
            said.append([answers(learner, t, t) for t in range(tick.position.event)])
            overlap = [r["value"] for r in tick.rows if r["metric"] == "gating"][0]
            assert all(not any(each["shared"]) for each in overlap.values())
    for task in range(3):
        for later in said[task:]:
            assert torch.equal(later[task], said[task][task])
    assert not torch.equal(said[0][0], said[1][1])
    matrix = learner.scores.matrices()[0]
    assert matrix.final.mean() > 0.5


@pytest.mark.parametrize("disjoint", [True, False])
def test_running_statistics_of_silent_units_stand_still_to_the_last_bit(disjoint):
    method = Gating(share=0.6, disjoint=disjoint)
    learner = learner_of(method, kind="norm", experiences=2)
    before = None
    for tick in learner.ticks():
        now = {n: s.clone() for n, s in learner.network.statistics().items()}
        if before is not None and tick.kind in ("step", "window"):
            for name, old in before.items():
                awake = running(learner)._gates[-1][name.split(".")[0]] > 0
                assert torch.equal(now[name] == old, ~awake), name
        before = now
    assert len(before) == 4


def test_norms_that_are_not_of_units_are_refused():
    class Whole(BatchNorm):
        def __init__(self):
            super().__init__(1)

    network = Network(
        {
            "a": Layer(Linear(4, 3), Cells(NEURON), inputs=("input",), norm=Whole()),
            "out": Layer(Linear(3, 2), None, inputs=("a",)),
        }
    )
    with pytest.raises(PairingError, match=r"'a.norm.mean' has no number of each unit"):
        Gating().start(context_of(network))


def test_contexts_that_share_units_do_forget():
    learner, said = learner_of(Gating(share=0.2, context="task")), []
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event > 0:
            said.append(answers(learner, 0, 0))
    assert not torch.equal(said[0], said[1])


def test_a_plain_loop_on_the_ordinary_twin():
    """Silent units are multiplied by 0; autograd does the rest, masks hold back the rest of SGD."""
    learner = learner_of(
        Gating(share=0.5), kind="twin", optimiser=Sgd(lr=0.2, momentum=0.5), experiences=2
    )
    w = {n: p.detach().clone() for n, p in learner.network.weights().items()}
    gates, statistics = [], learner.statistics
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event > 0:
            gates.append({n: g.clone() for n, g in running(learner)._gates[-1].items()})
    assert [int(g.sum()) for each in gates for g in each.values()] == [6, 5, 6, 5]
    for event, gate in enumerate(gates):
        momentum = {n: torch.zeros_like(p) for n, p in w.items()}
        loaded = learner.stream[event].train.load()
        for epoch in range(2):
            generator = Seeds(4).generator("order", event=event, epoch=epoch)
            for rows in torch.randperm(36, generator=generator).split(6):
                x = (loaded.x[rows].flatten(1) - statistics.mean) / statistics.std
                leaves = {n: p.clone().requires_grad_() for n, p in w.items()}
                h = x
                for name in ("hidden1", "hidden2"):
                    h = torch.relu(h @ leaves[f"{name}.weight"].T + leaves[f"{name}.bias"])
                    h = h * gate[name]
                logits = h @ leaves["readout.weight"].T + leaves["readout.bias"]
                loss = functional.cross_entropy(logits, loaded.y[rows])
                gradients = torch.autograd.grad(loss, list(leaves.values()))
                for (name, p), g in zip(w.items(), gradients):
                    if event == 1 and name == "readout.bias":
                        continue
                    momentum[name] = 0.5 * momentum[name] + g
                    w[name] = p - 0.2 * momentum[name]
    for name, p in learner.network.weights().items():
        torch.testing.assert_close(p.detach(), w[name], rtol=1e-4, atol=1e-6)


def test_the_context_is_guessed_from_the_input_sample_by_sample():
    learner = learner_of(Gating(share=0.5), reveal=DOMAIN_IL)
    for _ in learner.ticks():
        pass
    method = running(learner)
    mixed, told = [], []
    for task, own in enumerate(learner.stream.eval_sets.values()):
        x = learner.encoder.encode(own.samples.load().x, learner.statistics, None)
        far = [(x.mean(0) - mean).square().sum(1) for mean in method._contexts.means]
        guessed = method._contexts.of(x, None)
        assert torch.equal(guessed, torch.stack(far).argmin(0))
        assert (guessed == task).float().mean() > 0.4
        mixed.append(x)
        told.append(method.predict(x, None))
    together = method.predict(torch.cat(mixed, 1), None)
    torch.testing.assert_close(together, torch.cat(told))


def test_the_mean_of_the_input_is_that_of_the_samples():
    learner = learner_of(Gating(samples=10_000), reveal=DOMAIN_IL, experiences=2)
    for _ in learner.ticks():
        pass
    for event in (0, 1):
        x = learner.stream[event].train.load().x
        x = learner.encoder.encode(x, learner.statistics, None).mean((0, 1)).flatten()
        torch.testing.assert_close(running(learner)._contexts.means[event], x)


def test_without_share_it_is_a_plain_run_to_the_last_bit():
    ends = []
    for spec in (Finetune(), Gating(share=0.0)):
        learner = learner_of(spec)
        rows = [row for tick in learner.ticks() for row in tick.rows]
        ends.append((rows, {n: p.detach().clone() for n, p in learner.network.weights().items()}))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(p, ends[1][1][n]) for n, p in ends[0][1].items())


@pytest.mark.parametrize("kind", ["dense", "delays", "scalar", "twin"])
@pytest.mark.parametrize("optimiser", [Sgd(lr=0.2, momentum=0.9), AdamW(lr=0.02, weight_decay=0.5)])
def test_heads_of_other_tasks_stay(kind, optimiser):
    """What belongs to no output in particular learns in the first context alone."""
    spec = Gating(share=0.7, disjoint=True, context="task")
    learner, said, held = learner_of(spec, kind=kind, optimiser=optimiser, head="multi"), [], []
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event > 0:
            done = tick.position.event
            said.append([answers(learner, t, t)[:, 3 * t : 3 * t + 3] for t in range(done)])
            held.append({n: p.detach().clone() for n, p in learner.network.weights().items()})
    for t in range(3):
        assert all(torch.equal(later[t], said[t][t]) for later in said[t:])
    for task in (1, 2):
        for name, p in held[task].items():
            if name == "readout.bias":
                rows = (p != held[task - 1][name]).view(3, 3).any(1)
                assert rows.tolist() == [t == task for t in range(3)]
            if name.startswith("readout.neuron"):
                assert torch.equal(p, held[task - 1][name])


def test_a_task_that_comes_again_has_its_units_again():
    method = Gating(context="task").start(context_of(SPECS["dense"][0].build((8,), 3)))
    stream = permuted(data(), experiences=2, seed=1).with_reveal(TASK_IL)

    class Host:
        apart = False

        def look(self, samples, count):
            return iter([Seen(torch.rand(2, 4, 8))])

    class Seen:
        def __init__(self, x):
            self.x = x

    object.__setattr__(method._context, "host", Host())
    drawn = []
    for event in (0, 1, 0):
        method.begin(stream.view(stream[event]))
        drawn.append(method._contexts.now)
    assert drawn == [0, 1, 0] and len(method._gates) == 2


def test_a_checkpoint_has_all_there_is():
    spec, half, rows = Gating(share=0.5), None, []
    whole = learner_of(spec)
    for tick in whole.ticks():
        rows += tick.rows
        if half is None and tick.position.event == 1 and tick.position.step == 2:
            tensors, values = split(whole.state_dict())
            half = ({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))
            count = len(rows)
    again = learner_of(spec)
    again.load_state_dict(join(*half))
    assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]


# ---- what is refused ----------------------------------------------------------------------------


def context_of(network):
    return Context(network, Sgd(), Seeds(0), Reveal.LABELS, 3, CPU)


def test_tasks_are_asked_for_where_they_are_the_context():
    with pytest.raises(PairingError, match="'gating' needs task_id_train, task_id_eval"):
        learner_of(Gating(context="task"), reveal=DOMAIN_IL)
    with pytest.raises(PairingError, match="'gating' needs boundary"):
        learner_of(Gating(), reveal=Reveal.LABELS)


def test_projections_shortcuts_and_maps_are_refused():
    with pytest.raises(PairingError, match="slot 'projection'"):
        learner_of(Gating(), Hlop())
    with pytest.raises(PairingError, match="'gating' gates units.*shortcut"):
        Gating().start(context_of(SpikingResNet(width=2).build((8, 8), 3)))
    network = SpikingMlp(hidden=(5,), standardise=True).build((8,), 3)
    with pytest.raises(PairingError, match="'hidden1' pass through Standardise"):
        Gating().start(context_of(network))


def test_more_disjoint_contexts_than_units_are_refused_before_the_start():
    with pytest.raises(UsageError, match="units for 2 contexts.*disjoint=true.*has 3; silence"):
        learner_of(Gating(share=0.5, disjoint=True))
    learner_of(Gating(share=0.7, disjoint=True))


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"share": -0.1}, {"samples": 0}])
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Gating(**wrong)
