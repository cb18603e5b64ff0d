"""Norms of each task's own, against torch's batch norms, kept and put back by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from spikecl.continual import (
    ExperienceReplay,
    Finetune,
    Gpm,
    If2Net,
    JointTraining,
    Ogd,
    TaskNorms,
    Trgp,
)
from spikecl.data.arrays import checked
from spikecl.encoding import Encoder
from spikecl.errors import PairingError, UsageError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp
from spikecl.neurons import LIF, Escape
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, Experience, Reveal, Samples, Stream, permuted
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CPU, EPOCHS, BATCH, TASKS = torch.device("cpu"), 3, 6, 3
KNOWN = DOMAIN_IL | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL
NORMED = Mlp(hidden=(9, 7), norm="batch", bias=True)


class Once(Encoder):
    """The input in one step, in float64."""

    steps = 1

    def encode(self, x, statistics, generator):
        return x.double()[None]


def data():
    rng = np.random.default_rng(0)
    y = np.arange(66) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.2 * rng.standard_normal((66, 8)), 0, 1)
    x = x.astype(np.float32)
    return checked({"x_train": x[:36], "y_train": y[:36], "x_test": x[36:], "y_test": y[36:]}, "n")


def stream_of(reveal=KNOWN):
    return permuted(data(), experiences=TASKS, seed=1).with_reveal(reveal)


def again(reveal=KNOWN):
    """Return a stream of tasks 0, 1, 0."""
    events, tests = [], {}
    for i, task in enumerate((0, 1, 0)):
        generator = torch.Generator().manual_seed(task)
        x = 3 * task + torch.rand(18, 8, generator=generator)
        made = Samples((Part(x, torch.arange(18) % 3, 100 * i + torch.arange(18)),))
        events.append(Experience(i, made, (0, 1, 2), task=task))
        tests[f"task{task}"] = EvalSet(made, (0, 1, 2), (i,))
    return Stream("again", {}, 0, reveal, 3, (8,), 3, events.__getitem__, tests)


def learner_of(*methods, stream=None, network=NORMED, lr=0.2, head="single"):
    return Learner(
        stream=stream or stream_of(),
        network=network.build((8,), 3 * TASKS if head == "multi" else 3).double(),
        encoder=Once(),
        trainer=Bptt(),
        methods=methods,
        optimiser=Sgd(lr=lr),
        plan=TrainPlan(batch=BATCH, epochs=EPOCHS, evaluate="all"),
        seeds=Seeds(3),
        device=CPU,
        head=head,
    )


def finished(learner):
    for _ in learner.ticks():
        pass
    return learner


def state_of(learner):
    network = learner.network
    found = {n: p.detach() for n, p in network.weights().items()} | dict(network.statistics())
    return {name: tensor.clone() for name, tensor in found.items()}


# ---- what it is ---------------------------------------------------------------------------------


class Twin(nn.Sequential):
    """The network in torch's own modules, with the weights of a learner."""

    def __init__(self, start):
        layers = []
        for name, (n, m) in {"hidden1": (8, 9), "hidden2": (9, 7)}.items():
            layers += [nn.Linear(n, m), nn.BatchNorm1d(m, eps=1e-5, momentum=0.1), nn.ReLU()]
            with torch.no_grad():
                layers[-3].weight.copy_(start[f"{name}.weight"])
                layers[-3].bias.copy_(start[f"{name}.bias"])
                layers[-2].weight.copy_(start[f"{name}.norm.gain"])
        layers.append(nn.Linear(7, 3))
        with torch.no_grad():
            layers[-1].weight.copy_(start["readout.weight"])
            layers[-1].bias.copy_(start["readout.bias"])
        super().__init__(*layers)
        self.double()

    @property
    def norms(self):
        return [each for each in self if isinstance(each, nn.BatchNorm1d)]


def by_hand(learner):
    """Train torch's twin by a plain loop; return its accuracies by task, known and unknown."""
    twin, kept, matrices = Twin(state_of(learner)), {}, ([], [])
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.2)
    for event in learner.stream:
        loaded = event.train.load()
        for epoch in range(EPOCHS):
            generator = learner.seeds.generator("order", event=event.index, epoch=epoch)
            order = torch.randperm(len(loaded), generator=generator)
            for rows in order.split(BATCH):
                optimiser.zero_grad()
                functional.cross_entropy(twin(loaded.x[rows].double()), loaded.y[rows]).backward()
                optimiser.step()
        kept[event.task] = [copy.deepcopy(each.state_dict()) for each in twin.norms]
        now = kept[event.task]
        twin.eval()
        for known, matrix in zip((True, False), matrices, strict=True):
            row = []
            for name, test in learner.stream.eval_sets.items():
                task = learner.stream.task_of(name)
                for norm, state in zip(twin.norms, kept.get(task, now) if known else now):
                    norm.load_state_dict(state)
                samples = test.samples.load()
                hits = twin(samples.x.double()).argmax(1) == samples.y
                row.append(float(hits.double().mean()))
            matrix.append(row)
        for norm, state in zip(twin.norms, now, strict=True):
            norm.load_state_dict(state)
        twin.train()
    return [np.array(matrix) for matrix in matrices]


def test_a_task_is_tested_with_what_it_left():
    learner = learner_of(TaskNorms())
    expected = by_hand(learner)
    finished(learner)
    for found, matrix in zip(learner.scores.matrices(), expected, strict=True):
        np.testing.assert_array_equal(found.values[1:], matrix)
    aware, agnostic = (m.final for m in learner.scores.matrices())
    assert (aware != agnostic).any()  # or nothing was put back


def test_weights_learn_as_without():
    learner, plain = finished(learner_of(TaskNorms())), finished(learner_of())
    for name, value in state_of(plain).items():
        assert torch.equal(state_of(learner)[name], value), name


def test_a_test_leaves_the_network_as_it_is():
    learner = finished(learner_of(TaskNorms()))
    before, method = state_of(learner), learner.methods.methods["task_norms"]
    x = torch.rand(1, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    answers = [method.predict(x, task) for task in (0, 1, TASKS - 1, 99, None)]
    assert all(torch.equal(before[name], now) for name, now in state_of(learner).items())
    plain = learner.network(x).logits
    assert [torch.equal(each, plain) for each in answers] == [False, False, True, True, True]


def test_a_task_that_comes_again_goes_on_with_its_own():
    learner = learner_of(TaskNorms(), stream=again())
    ends, starts = {}, {}
    for tick in learner.ticks():
        at = tick.position
        if tick.kind == "event":
            ends[at.event - 1] = state_of(learner)
        if tick.kind == "step" and at.event == 2 and not starts:
            starts = state_of(learner)
    mean = "hidden1.norm.mean"
    first, second, now = ends[0][mean], ends[1][mean], starts[mean]
    assert float((now - first).abs().max()) < 0.2 * float((second - first).abs().max())
    kept = learner.methods.methods["task_norms"].state_dict()["kept"]
    assert sorted(kept) == ["0", "1"]
    assert torch.equal(kept["0"][mean], ends[2][mean]) and torch.equal(kept["1"][mean], second)


# ---- beside others ------------------------------------------------------------------------------


def outputs_of_first(learner):
    """Return what samples of the first task gave when it ended, and at the end of the run."""
    x, found = learner.stream[0].train.load().x.double()[None], []
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event in (1, TASKS):
            found.append(learner.evaluation.answer(x, 0, None))
    return found


def test_behind_a_projection_norms_learn_and_old_outputs_stay():
    """All directions that the first task used are protected: 8 inputs leave none of the first."""
    wide = Mlp(hidden=(60, 60), norm="batch", bias=False)
    gpm = Gpm(energy=1.0, growth=0.0, others="learn")
    with_own = learner_of(TaskNorms(), gpm, network=wide)
    old, now = outputs_of_first(with_own)
    torch.testing.assert_close(now, old, rtol=0, atol=1e-9)
    gain = "hidden2.norm.gain"
    kept = with_own.methods.methods["task_norms"].state_dict()["kept"]
    assert float((kept["0"][gain] - kept["2"][gain]).abs().max()) > 1e-3
    old, now = outputs_of_first(learner_of(gpm, network=wide))
    assert float((now - old).abs().max()) > 1e-2


def test_parameters_that_are_no_weights_move_old_outputs():
    """So it is documented: norms alone are kept."""
    biased = Mlp(hidden=(60, 60), norm="batch", bias=True)
    gpm = Gpm(energy=1.0, growth=0.0, others="learn")
    old, now = outputs_of_first(learner_of(TaskNorms(), gpm, network=biased))
    assert float((now - old).abs().max()) > 1e-2


def test_heads_of_tasks_have_their_norms_too():
    learner = finished(learner_of(TaskNorms(), head="multi"))
    expected = by_norms_of_tasks(learner)
    np.testing.assert_array_equal(learner.scores.matrices()[0].final, expected)


def by_norms_of_tasks(learner):
    """Return accuracies of a network that takes up each task's norms, with that task's outputs."""
    kept = learner.methods.methods["task_norms"].state_dict()["kept"]
    network, found = learner.network, []
    for task, test in enumerate(learner.stream.eval_sets.values()):
        network.set_parameters(state_of(learner) | kept[str(task)])
        loaded = test.samples.load()
        outputs = network(loaded.x.double()[None]).logits[:, 3 * task : 3 * task + 3]
        found.append(float((outputs.argmax(1) == loaded.y).double().mean()))
    return found


@pytest.mark.parametrize("event", [1, 2])
def test_resumed_in_a_task_it_goes_on_as_it_would(event):
    """In the second task, and in the first one that comes again."""
    whole, saved = learner_of(TaskNorms(), stream=again()), None
    for tick in whole.ticks():
        if saved is None and tick.kind == "step" and tick.position.event == event:
            saved = copy.deepcopy(whole.state_dict())
    part = learner_of(TaskNorms(), stream=again())
    part.load_state_dict(saved)
    finished(part)
    for name, value in state_of(whole).items():
        assert torch.equal(state_of(part)[name], value), name
    for a, b in zip(whole.scores.matrices(), part.scores.matrices(), strict=True):
        np.testing.assert_array_equal(a.values, b.values)


def test_random_neurons_answer_alike_each_time():
    neuron = LIF(beta=0.5, v_th=0.2, escape=Escape())
    spiking = SpikingMlp(hidden=(9,), norm="batch", neuron=neuron)
    learner = finished(learner_of(TaskNorms(), network=spiking))
    method = learner.methods.methods["task_norms"]
    x = torch.rand(4, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(method.predict(x, 0), method.predict(x, 0))


def test_a_test_that_fails_leaves_the_network_as_it_is():
    learner = finished(learner_of(TaskNorms()))
    before, method = state_of(learner), learner.methods.methods["task_norms"]
    with pytest.raises(UsageError):
        method.predict(torch.rand(1, 5, 9).double(), 0)  # 9 features
    assert all(torch.equal(before[name], now) for name, now in state_of(learner).items())


# ---- bad input ----------------------------------------------------------------------------------


def test_a_network_without_norms_is_refused():
    with pytest.raises(PairingError, match="task_norms.*norm='batch'"):
        learner_of(TaskNorms(), network=Mlp(hidden=(7,)))


@pytest.mark.parametrize("hidden", [Reveal.TASK_ID_TRAIN, Reveal.TASK_ID_EVAL, Reveal.BOUNDARY])
def test_a_stream_that_hides_tasks_is_refused(hidden):
    with pytest.raises(PairingError, match="task_norms"):
        learner_of(TaskNorms(), stream=stream_of(KNOWN & ~hidden))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ExperienceReplay(capacity=6), "'task_norms' tests old tasks.*'er'"),
        (Finetune(restart=True), "'task_norms'.*'finetune' with restart=true"),
        (JointTraining(), "'task_norms'.*'joint' with restart=true"),
        (JointTraining(restart=False), "'task_norms' tests old tasks.*'joint'"),
        (Gpm(), "'gpm' with others='freeze'.*method.gpm.others='learn'"),
        (
            Ogd(),
            "'ogd' lets none learn after the first, so all would be the same; leave 'task_norms'",
        ),
        (If2Net(), "'if2net' lets none learn after the first"),
        (Trgp(others="learn"), "'task_norms' and 'trgp' both answer"),
    ],
    ids=lambda each: "" if isinstance(each, str) else type(each).__name__,
)
@pytest.mark.parametrize("first", [True, False])
def test_what_would_make_its_copies_useless_is_refused(other, said, first):
    pair = (TaskNorms(), other) if first else (other, TaskNorms())
    with pytest.raises(PairingError, match=said):
        learner_of(*pair, stream=stream_of(KNOWN | Reveal.OLD_DATA))
