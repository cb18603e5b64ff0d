"""Heads: which outputs compete, who learns, and which head answers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn import functional

from spikecl.continual import ExperienceReplay, JointTraining, Ncl
from spikecl.continual.compose import method_name
from spikecl.continual.importance.ewc import Ewc
from spikecl.continual.importance.mas import Mas
from spikecl.encoding import Direct, StepCrossEntropy
from spikecl.errors import PairingError
from spikecl.learner import Heads, Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp, initialise
from spikecl.neurons import LIF
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import (
    CLASS_IL,
    DOMAIN_IL,
    TASK_FREE,
    TASK_IL,
    Adapt,
    Batch,
    Experience,
    Reveal,
    Samples,
    Stream,
)
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt, Hebb

CPU, N, CLASSES, T = torch.device("cpu"), 5, 6, 3
PAIRS = ((0, 1), (2, 3), (4, 5))


def samples(seed, size, classes):
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes)[torch.arange(size) % len(classes)]
    centres = torch.rand(CLASSES, N, generator=torch.Generator().manual_seed(99))
    x = centres[y] + 0.2 * torch.rand(size, N, generator=generator)
    return Samples((Part(x, y, torch.arange(size)),))


def stream_of(reveal=TASK_IL, *, classes=PAIRS, events=None):
    made = [Experience(i, samples(i, 8, c), c, task=i) for i, c in enumerate(classes)]
    events = events or made
    sets = {f"task{i}": EvalSet(samples(50 + i, 12, c), c, (i,)) for i, c in enumerate(classes)}
    return Stream("made", {}, 0, reveal, CLASSES, (N,), len(events), lambda i: events[i], sets)


def learner_of(stream, head, *, network=None, methods=(), loss=None, trainer=None, **plan):
    outputs = Heads(head, stream, CPU).outputs
    network = network or SpikingMlp(
        hidden=(9,), neuron=LIF(beta=0.5, v_th=0.2), readout="mean_current"
    )
    return Learner(
        stream=stream,
        network=network.build((N,), outputs),
        encoder=Direct(steps=T),
        trainer=trainer or Bptt(),
        methods=methods,
        optimiser=Sgd(lr=0.3),
        plan=TrainPlan(**{"batch": 4, "epochs": 2, **plan}),
        seeds=Seeds(3),
        device=CPU,
        loss=loss,
        head=head,
    )


def run(learner):
    return [row for tick in learner.ticks() for row in tick.rows]


def batch_of(y):
    return Batch(torch.zeros(len(y), N), torch.tensor(y), None)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- single -------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_step", [False, True])
def test_single_with_tasks_competes_within_the_sample_s_task(per_step):
    heads = Heads("single", stream_of(), CPU)
    heads.begin(stream_of()[1])
    outputs = random(*((T,) if per_step else ()), 4, CLASSES)
    logits = heads.train(outputs, batch_of([2, 0, 3, 1]))  # two of them from a memory
    for b, allowed in enumerate(((2, 3), (0, 1), (2, 3), (0, 1))):
        for c in range(CLASSES):
            wanted = outputs[..., b, c] if c in allowed else torch.tensor(-math.inf)
            assert torch.equal(logits[..., b, c], wanted.expand(outputs[..., b, c].shape))
    assert torch.equal(heads.test(outputs, 1), outputs)


@pytest.mark.parametrize("reveal", [CLASS_IL, DOMAIN_IL, TASK_FREE, TASK_IL & ~Reveal.CLASSES])
def test_single_without_tasks_leaves_the_outputs(reveal):
    heads = Heads("single", stream_of(reveal), CPU)
    heads.begin(stream_of()[0])
    outputs = random(4, CLASSES)
    assert heads.train(outputs, batch_of([0, 1, 0, 1])) is outputs
    assert heads.outputs == CLASSES


# ---- growing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reveal", [CLASS_IL, TASK_IL, TASK_FREE])
def test_growing_gives_unseen_classes_no_probability(reveal):
    stream = stream_of(reveal)
    heads = Heads("growing", stream, CPU)
    heads.begin(stream[0])
    outputs = random(2, CLASSES)
    assert torch.equal(heads.test(outputs, None), outputs)  # untrained: nothing to go by
    for _ in range(2):  # to look at samples is not to train on them
        p = heads.train(outputs, batch_of([0, 1])).softmax(1)
        assert not p[:, 2:].any() and torch.allclose(p.sum(1), torch.ones(2))
        assert not heads.seen.any()
    heads.show(batch_of([0, 1]))
    for y, seen in (([2, 2], 3), ([3, 0], 4)):
        if len({0, 1, *y}) > 3:
            heads.begin(stream[1])
        p = heads.train(outputs, batch_of(y)).softmax(1)
        assert not p[:, seen:].any()
        heads.show(batch_of(y))
        q = heads.test(outputs, None).softmax(1)
        assert not q[:, seen:].any() and bool((q[:, :seen] > 0).all())
        torch.testing.assert_close(q[:, :seen], outputs[:, :seen].softmax(1))
    assert heads.outputs == CLASSES


def test_growing_in_a_run_predicts_seen_classes_and_trains_their_rows_alone():
    learner = learner_of(stream_of(CLASS_IL), "growing")
    start = learner.network.weights()["readout.weight"].detach().clone()
    answers, seen = {}, {}
    plain = learner.heads.test

    def spy(outputs, task):
        logits = plain(outputs, task)
        answers.setdefault(learner.at.event, set()).update(logits.argmax(1).tolist())
        return logits

    learner.heads.test = spy
    for tick in learner.ticks():
        if tick.kind == "event":
            seen[tick.position.event] = learner.heads.seen.tolist()
            rows = learner.network.weights()["readout.weight"].detach() != start
            assert rows.any(1).tolist() == learner.heads.seen.tolist()
    assert [sum(s) for s in seen.values()] == [0, 2, 4, 6]
    assert answers[0] <= {0, 1} and answers[1] <= {0, 1, 2, 3}


def test_what_methods_look_at_does_not_open_a_growing_head():
    """Before a task begins, ncl asks for the factors of two of its samples."""
    first = []
    for methods in ((), (Ncl(pull=0.0),)):
        learner = learner_of(
            stream_of(CLASS_IL, classes=(tuple(range(6)),)), "growing", methods=methods, batch=2
        )
        learner.seeds = Seeds(0)  # the samples that are looked at are not those of the first batch
        for tick in learner.ticks():
            if tick.kind == "step":
                break
        first.append((learner.heads.seen.clone(), learner.network.weights()["readout.weight"]))
    assert 0 < int(first[0][0].sum()) <= 2
    for one, other in zip(*first):
        assert torch.equal(one, other)


def test_growing_cannot_be_right_about_what_it_has_not_seen():
    """All outputs closed: the first class is no answer, not even where it happens to be right."""
    stream = stream_of(CLASS_IL, classes=((2, 3), (0, 1), (4, 5)))
    learner = learner_of(stream, "growing", evaluate="all")
    run(learner)
    for matrix in learner.scores.matrices():
        assert (matrix.values[1, 1:] == 0).all() and matrix.values[2, 2] == 0
        assert matrix.values[1, 0] > 0


def test_what_was_seen_survives_the_state():
    learner, states = learner_of(stream_of(CLASS_IL), "growing"), []
    rows = []
    for tick in learner.ticks():
        rows += tick.rows
        if tick.kind == "step" and tick.position.event == 1 and not states:
            tensors, values = split(learner.state_dict())
            states.append((len(rows), {n: t.clone() for n, t in tensors.items()}, values))
    count, tensors, values = states[0]
    other = learner_of(stream_of(CLASS_IL), "growing")
    other.load_state_dict(join(tensors, json.loads(json.dumps(values))))
    assert other.heads.seen.tolist() == [True] * 4 + [False] * 2
    assert run(other) == rows[count:]
    a, b = (split(m.state_dict())[0] for m in (learner, other))
    assert all(torch.equal(a[n], b[n]) for n in a)


# ---- multi --------------------------------------------------------------------------------------


def test_multi_has_outputs_for_every_task_and_needs_their_identity():
    assert Heads("multi", stream_of(), CPU).outputs == 3 * CLASSES
    for missing in (Reveal.TASK_ID_TRAIN, Reveal.TASK_ID_EVAL):
        name = missing.name.lower()
        with pytest.raises(
            PairingError, match=f"head 'multi' needs {name}, which stream 'made' hides"
        ):
            Heads("multi", stream_of(TASK_IL & ~missing), CPU)
    with pytest.raises(PairingError, match="task_id_train, task_id_eval"):
        Heads("multi", stream_of(CLASS_IL), CPU)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("reveal", [TASK_IL, TASK_IL & ~Reveal.CLASSES])
def test_multi_is_heads_computed_apart(per_step, reveal):
    """One linear map for all heads equals one linear map for each."""
    stream = stream_of(reveal)
    heads = Heads("multi", stream, CPU)
    weight, h = random(3 * CLASSES, N, seed=1), random(*((T,) if per_step else ()), 4, N)
    for task in range(3):
        heads.begin(stream[task])
        own = h @ weight[task * CLASSES : (task + 1) * CLASSES].T
        y = [PAIRS[task][i % 2] for i in range(4)]
        logits = heads.train(h @ weight.T, batch_of(y))
        closed = [c for c in range(CLASSES) if Reveal.CLASSES in reveal and c not in PAIRS[task]]
        torch.testing.assert_close(
            logits, own.index_fill(-1, torch.tensor(closed).long(), -math.inf)
        )
        torch.testing.assert_close(heads.test(h @ weight.T, task), own)
    best = torch.stack([h @ weight[k : k + CLASSES].T for k in range(0, 18, 6)]).amax(0)
    torch.testing.assert_close(heads.test(h @ weight.T, None), best)


@pytest.mark.parametrize("per_step", [False, True])
def test_samples_of_a_memory_learn_at_their_own_head(per_step):
    """And at the present one where classes are hidden: nothing tells where they belong."""
    outputs, y = random(*((T,) if per_step else ()), 4, 18), [4, 0, 3, 5]
    for reveal, tasks in ((TASK_IL, [2, 0, 1, 2]), (TASK_IL & ~Reveal.CLASSES, [2, 2, 2, 2])):
        heads = Heads("multi", stream_of(reveal), CPU)
        heads.begin(stream_of(reveal)[2])
        logits = heads.train(outputs, batch_of(y))
        for b, task in enumerate(tasks):
            own = outputs[..., b, task * CLASSES : (task + 1) * CLASSES]
            allowed = list(PAIRS[task]) if Reveal.CLASSES in reveal else list(range(CLASSES))
            assert torch.equal(logits[..., b, allowed], own[..., allowed])
            assert int(logits[..., b, :].isfinite().sum()) == len(allowed) * (T if per_step else 1)


def test_joint_training_trains_all_heads():
    reveal = TASK_IL | Reveal.OLD_DATA
    learner = learner_of(stream_of(reveal), "multi", methods=(JointTraining(),), epochs=20)
    run(learner)
    assert (learner.scores.matrices()[0].final > 0.9).all()


@pytest.mark.parametrize(
    "method", [JointTraining(), JointTraining(restart=False), ExperienceReplay()]
)
def test_old_samples_whose_labels_tell_no_head_are_refused(method):
    """An old sample would train the head of whoever had its label last."""
    name, reveal = method_name(method), TASK_IL | Reveal.OLD_DATA
    for classes, told in (
        (((0, 1), (1, 2)), "tasks 0 and 1 share the label 1"),
        (
            ((0,), (1,), (1,)),
            "tasks 1 and 2 share the label 1",
        ),
    ):
        shared = stream_of(reveal, classes=classes)
        with pytest.raises(PairingError, match=f"'{name}' with head 'multi'.*{told}; use head"):
            learner_of(shared, "multi", methods=(method,))
        learner_of(shared, "single", methods=(method,))
    back = [
        Experience(i, samples(i, 8, PAIRS[t]), PAIRS[t], task=t) for i, t in enumerate((0, 1, 0))
    ]
    learner_of(stream_of(reveal, events=back), "multi", methods=(method,))
    hidden = stream_of(reveal & ~Reveal.CLASSES)
    with pytest.raises(PairingError, match=f"'{name}' with head 'multi'.*needs classes, which the"):
        learner_of(hidden, "multi", methods=(method,))
    learner_of(stream_of(reveal & ~Reveal.CLASSES, classes=PAIRS[:1]), "multi", methods=(method,))


@pytest.mark.parametrize("head", ["single", "multi"])
def test_a_sample_without_a_label_is_one_of_the_present_task(head):
    stream = stream_of(TASK_IL)
    heads = Heads(head, stream, CPU)
    heads.begin(stream[1])
    outputs = torch.randn(4, heads.outputs)
    unlabelled = heads.train(outputs, Batch(torch.zeros(4, N), None, None))
    own = outputs.view(4, -1, CLASSES)[:, -2 if head == "multi" else 0]
    wanted = torch.full((4, CLASSES), -torch.inf)
    wanted[:, 2:4] = own[:, 2:4]
    assert torch.equal(unlabelled, wanted)
    labelled = heads.train(outputs, Batch(torch.zeros(4, N), torch.tensor([2, 3, 2, 3]), None))
    assert torch.equal(unlabelled, labelled)


@pytest.mark.parametrize("measure", [Ewc(), Mas()])
@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
def test_importances_without_labels_are_of_the_present_head(measure):
    reveal = TASK_IL & ~Reveal.LABELS
    options = {"methods": (measure,), "trainer": Hebb(readout="none")}
    learner = learner_of(stream_of(reveal), "multi", **options)
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event == 1:
            break
    (method,) = learner.methods.methods.values()
    rows = method.importance.values["readout.weight"].abs().sum(1) > 0
    assert rows.tolist() == [True, True] + (3 * CLASSES - 2) * [False]


def test_rows_of_other_heads_get_no_gradient_at_all():
    learner = learner_of(stream_of(), "multi")
    weight = learner.network.weights()["readout.weight"]
    before = weight.detach().clone()
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event > 0:
            task = tick.position.event - 1
            moved = (weight.detach() != before).any(1).nonzero()[:, 0].tolist()
            assert moved == [task * CLASSES + c for c in PAIRS[task]]
            before = weight.detach().clone()


def test_multi_in_a_run_is_a_script_with_one_readout_per_task():
    spec = Mlp(hidden=(9,))
    learner = learner_of(stream_of(), "multi", network=spec)
    network = spec.build((N,), 3 * CLASSES)
    initialise(network, Seeds(3))
    hidden = network.weights()["hidden1.weight"].detach().clone().requires_grad_()
    all_rows = network.weights()["readout.weight"].detach().view(3, CLASSES, 9)
    readouts = [rows.clone().requires_grad_() for rows in all_rows]
    run(learner)
    mean, std = learner.statistics
    for task, event in enumerate(learner.stream):
        data = event.train.load()
        x = (data.x - mean) / std
        optimiser = torch.optim.SGD([hidden, readouts[task]], lr=0.3)
        closed = torch.tensor([c for c in range(CLASSES) if c not in PAIRS[task]])
        for epoch in range(2):
            generator = Seeds(3).generator("order", event=task, epoch=epoch)
            for picked in torch.randperm(8, generator=generator).split(4):
                z = (x[picked] @ hidden.T).relu() @ readouts[task].T
                loss = functional.cross_entropy(z.index_fill(1, closed, -math.inf), data.y[picked])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    found = learner.network.weights()
    torch.testing.assert_close(found["hidden1.weight"].detach(), hidden.detach())
    for task in range(3):
        rows = found["readout.weight"].detach().view(3, CLASSES, 9)[task]
        torch.testing.assert_close(rows, readouts[task].detach())

    aware, agnostic = (m.final for m in learner.scores.matrices())
    for j, test in enumerate(learner.stream.eval_sets.values()):
        data = test.samples.load()
        h = (((data.x - mean) / std) @ hidden.T).relu()
        own, every = h @ readouts[j].T, torch.stack([h @ r.T for r in readouts])
        among = own[:, list(test.classes)].argmax(1)
        right = torch.tensor(test.classes)[among] == data.y
        assert aware[j] == pytest.approx(float(right.double().mean()))
        best = every.amax(0).argmax(1)  # no task id: the best head of each class
        assert agnostic[j] == pytest.approx(float((best == data.y).double().mean()))
    assert (aware >= agnostic).all() and (aware > agnostic).any()


def test_the_agnostic_accuracy_does_not_use_the_task():
    """Heads that are right at home and loud abroad: aware all right, agnostic wrong."""
    stream = stream_of(classes=((0, 1), (0, 1)))
    heads = Heads("multi", stream, CPU)
    learner = learner_of(stream, "multi")
    run(learner)
    outputs = torch.full((12, 2 * CLASSES), -9.0)

    def answer(x, task, generator=None):
        y = torch.tensor((0, 1))[torch.arange(12) % 2]
        z = outputs.clone().view(12, 2, CLASSES)
        z[torch.arange(12), task, y] = 1.0
        z[torch.arange(12), 1 - task, 1 - y] = 2.0  # the other head is surer, and wrong
        return z.view(12, -1)

    learner.evaluation.answer = answer
    assert learner.evaluation.accuracies("task0") == (1.0, 0.0)
    assert heads.outputs == 2 * CLASSES


@pytest.mark.parametrize("head", ["growing", "multi"])
def test_unlabelled_data_are_scored_by_the_head(head):
    """An Adapt event without an adapting method is a test among all classes seen so far."""
    inputs = samples(70, 11, (0, 1, 2, 3))
    events = [Experience(i, samples(i, 8, PAIRS[i]), PAIRS[i], task=i) for i in (0, 1)]
    events += [Adapt(2, inputs, "noise", 2), Experience(3, samples(3, 8, (4, 5)), (4, 5), task=2)]
    learner = learner_of(stream_of(events=events), head)
    y = inputs.load().y
    outputs = torch.zeros(11, 3, CLASSES)
    if head == "multi":
        outputs[torch.arange(11), y // 2, y] = 1.0  # right at the best of its heads
    else:
        outputs = outputs[:, 0]
        outputs[torch.arange(11), y], outputs[:, 4:] = 1.0, 2.0  # louder where nothing was seen
    outputs[0] = 0
    outputs[0, ..., 1] = 1.0  # one mistake
    plain, start = learner.evaluation.answer, iter(range(0, 11, 4))

    def answer(x, task, generator=None):
        if learner.at.event != 2 or learner.at.stage != "train":
            return plain(x, task, generator)
        at = next(start)
        return outputs[at : at + x.shape[1]].flatten(1)

    learner.evaluation.answer = answer
    (row,) = [r for r in run(learner) if r["phase"] == "adapt"]
    assert row["value"] == 10 / 11


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_loss_over_time_sees_the_same_classes(head):
    """Per-step outputs [T, B, C], through the head."""
    shapes = []

    class Watched(StepCrossEntropy):
        def __call__(self, output, labels):
            shapes.append((tuple(output.shape), bool(output.isneginf().any())))
            return StepCrossEntropy.__call__(self, output, labels)

    learner = learner_of(stream_of(), head, loss=Watched())
    run(learner)
    assert set(shapes) == {((T, 4, CLASSES), True)}


def test_heads_start_from_the_same_hidden_weights():
    """The number of outputs changes the readout alone."""
    first = [
        learner_of(stream_of(), h).network.weights()["hidden1.weight"] for h in ("single", "multi")
    ]
    assert torch.equal(*first)


# ---- whose outputs are whose --------------------------------------------------------------------


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize(
    ("reveal", "classes", "tasks", "apart"),
    [
        (TASK_IL, PAIRS, (0, 1, 2), {"single", "growing", "multi"}),
        (TASK_IL, ((0, 1), (1, 2), (3, 4)), (0, 1, 2), {"multi"}),  # a class comes again
        (TASK_IL, ((0, 1), (2, 3), (0, 1)), (0, 1, 0), set()),  # a task comes again
        (TASK_IL, ((0, 1), (2, 3), (4, 5)), (0, 1, 0), {"single", "growing", "multi"}),
        (TASK_IL & ~Reveal.CLASSES, PAIRS, (0, 1, 2), {"multi"}),
        (TASK_IL & ~Reveal.CLASSES, ((0, 1), (2, 3), (4, 5)), (0, 1, 0), set()),
        (TASK_IL & ~Reveal.TASK_ID_TRAIN, PAIRS, (0, 1, 2), set()),
        (CLASS_IL, PAIRS, (0, 1, 2), set()),
        (DOMAIN_IL, PAIRS, (0, 1, 2), set()),
        (TASK_FREE, PAIRS, (0, 1, 2), set()),
    ],
)
def test_outputs_are_apart_where_none_learns_twice(head, reveal, classes, tasks, apart):
    """And they are the experience's own: the ones that a batch of it sends gradients to."""
    needed = Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL
    if head == "multi" and needed & ~reveal:
        return  # refused
    events = [
        Experience(i, samples(i, 8, c), c, task=t) for i, (c, t) in enumerate(zip(classes, tasks))
    ]
    stream = stream_of(reveal, classes=classes, events=events)
    heads = Heads(head, stream, CPU)
    assert heads.own.all() and len(heads.own) == heads.outputs  # before anything began
    assert heads.apart is (head in apart)
    learned = torch.zeros(heads.outputs, dtype=torch.int64)
    for event in stream:
        heads.begin(event)
        outputs = random(4, heads.outputs).requires_grad_()
        y = [event.classes[i % 2] for i in range(4)]
        functional.cross_entropy(heads.train(outputs, batch_of(y)), batch_of(y).y).backward()
        moved = (outputs.grad != 0).any(0)
        if head in apart:
            assert torch.equal(moved, heads.own)
        learned += moved
    if head in apart:
        assert int(learned.max()) == 1


def test_own_is_told_again_when_a_stopped_experience_goes_on():
    stream = stream_of()
    heads = Heads("multi", stream, CPU)
    for event in (stream[0], stream[2], stream[2]):
        heads.begin(event)
    assert heads.own.nonzero()[:, 0].tolist() == [2 * CLASSES + 4, 2 * CLASSES + 5]
