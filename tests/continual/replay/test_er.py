"""Experience replay: a run equals a plain loop in torch; what is kept, replayed and forgotten."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.components import from_table
from spikecl.continual import Finetune, Hlop, Method, MethodSpec, Phase
from spikecl.continual.replay.er import ExperienceReplay
from spikecl.continual.replay.memory import chances
from spikecl.data import load
from spikecl.data.arrays import checked
from spikecl.encoding import Direct, Encoder
from spikecl.errors import ConfigError, PairingError
from spikecl.learner import Heads, Learner, TrainPlan
from spikecl.networks import Mlp, SpikingMlp, initialise
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import load_state, save_state, split
from spikecl.streams import (
    CLASS_IL,
    DOMAIN_IL,
    TASK_FREE,
    TASK_IL,
    Reveal,
    Unlearn,
    permuted,
    split_classes,
)
from spikecl.trainers import Bptt

CPU, SEED, IDS = torch.device("cpu"), 6, Reveal.SAMPLE_IDS
SPIKING = SpikingMlp(hidden=(9,), neuron=LIF(beta=0.5, v_th=0.3), readout="mean_current")


def images(classes=4, per=18, n=10, peak=255.0):
    """Noisy prototypes as whole numbers."""
    rng = np.random.default_rng(1)
    y = np.arange(classes * per) % classes
    x = rng.random((classes, n))[y] + 0.15 * rng.standard_normal((len(y), n))
    x = np.clip(x * peak, 0, peak).round().astype(np.uint8)
    cut = len(y) * 2 // 3
    arrays = {"x_train": x[:cut], "y_train": y[:cut], "x_test": x[cut:], "y_test": y[cut:]}
    return checked(arrays, "images", peak=peak)


class Double(Encoder):
    """The intensities in float64 at every step; each step a little different."""

    steps = 3

    def encode(self, x, statistics, generator):
        x = ((x - statistics.mean) / statistics.std).double()
        return torch.stack([x.roll(t, 1) for t in range(self.steps)])


def learner_of(stream, *methods, network=SPIKING, optimiser=None, head="single", **plan):
    double = type(network) is SpikingMlp
    made = network.build(stream.input_shape, Heads(head, stream, CPU).outputs)
    return Learner(
        stream=stream,
        network=made.double() if double else made,
        encoder=Double() if double else Direct(steps=2),
        trainer=Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.2),
        plan=TrainPlan(**{"batch": 8, "epochs": 2, **plan}),
        seeds=Seeds(SEED),
        device=CPU,
        head=head,
    )


def run(learner):
    return [row for tick in learner.ticks() for row in tick.rows]


def weights(learner):
    return {n: p.detach().clone() for n, p in learner.network.weights().items()}


def memory_of(learner):
    return learner.methods.methods["er"].memory


class Watch(MethodSpec):
    """Note every batch as it is learned, after replay has added to it, and what was in memory."""

    def start(self, context):
        return _Watch(context)


class _Watch(Method):
    def __init__(self, context):
        (self.er,) = [m for m in context.before if hasattr(m, "memory")] or [None]
        self.batches, self.logits, self.stored = [], [], []

    def extend_batch(self, batch):
        self.batches.append(batch)
        if self.er is not None:
            self.stored.append(self.er.memory.take())
        return batch

    def output_loss(self, loss, logits, batch):
        self.logits.append(logits.detach())
        return loss


Watch.phase = Phase.AVERAGING  # behind replay


def watched(learner):
    return learner.methods.methods["watch"]


# ---- the whole run ------------------------------------------------------------------------------


def by_hand(stream, spec, *, epochs=2, batch=8):
    """Return the weights after a stream, with a list for a memory."""
    seeds, first = Seeds(SEED), stream[0].train.load().take(slice(None)).x.double()
    network = SPIKING.build(stream.input_shape, stream.classes).double()
    initialise(network, seeds)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.2)
    rows: list[tuple[float, torch.Tensor, int]] = []  # key, raw x, label
    came = draws = 0
    for task, event in enumerate(stream):
        data = event.train.load()
        for epoch in range(epochs):
            generator = seeds.generator("order", event=task, epoch=epoch)
            for picked in torch.randperm(len(data), generator=generator).split(batch):
                x, y = data.x[picked], data.y[picked]
                if rows and not (spec.wait and task == 0):
                    generator = seeds.generator("er-draw", step=draws)
                    draws += 1
                    old = drawn(rows, spec.batch or len(picked), spec.draw, generator)
                    x = torch.cat([x, torch.stack([rows[i][1] for i in old])])
                    y = torch.cat([y, torch.tensor([rows[i][2] for i in old])])
                z = (x.float() / 255 - float(first.mean())) / float(first.std())
                z = torch.stack([z.double().roll(t, 1) for t in range(3)])
                optimiser.zero_grad()
                functional.cross_entropy(network(z).logits, y).backward()
                optimiser.step()
                if epoch == 0:
                    keys = chances(seeds, "er-keep", came, len(picked)).tolist()
                    if spec.policy in ("fifo", "ring"):
                        keys = [-float(came + i) for i in range(len(picked))]
                    came += len(picked)
                    put(rows, list(zip(keys, data.x[picked], data.y[picked].tolist())), spec)
    return dict(network.weights()), rows


def drawn(rows, count, how, generator):
    u = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    if how == "balanced":
        labels = [row[2] for row in rows]
        u = -torch.log1p(-u) * torch.tensor([labels.count(label) for label in labels])
    return u.argsort()[:count].tolist()


def put(rows, new, spec):
    """Keep the first of the order; who enters takes the place of one who goes."""
    both = [*rows, *new]
    rank = [0] * len(both)
    if spec.policy in ("balanced", "ring"):
        rank = [sum(b[0] < a[0] and b[2] == a[2] for b in both) for a in both]
    order = sorted(range(len(both)), key=lambda i: (rank[i], both[i][0]))
    stay = {both[i][0] for i in order[: spec.capacity]}
    entering = [row for row in new if row[0] in stay]
    for i, row in enumerate(rows):
        if row[0] not in stay:
            rows[i] = entering.pop(0)
    rows += entering


SPECS = {
    "default": ExperienceReplay(capacity=12),
    "balanced": ExperienceReplay(capacity=13, policy="balanced", draw="balanced", batch=5),
    "fifo": ExperienceReplay(capacity=9, policy="fifo", batch=9, wait=True),
    "ring": ExperienceReplay(capacity=10, policy="ring", draw="balanced"),
    "more than comes": ExperienceReplay(capacity=1000, batch=20),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@each_spec
@pytest.mark.parametrize("kind", ["permuted", "classes"])
def test_a_run_is_the_loop_by_hand(spec, kind):
    stream = permuted(images(), experiences=3, seed=2)
    if kind == "classes":
        stream = split_classes(images(), experiences=2, seed=2)
    learner = learner_of(stream, spec)
    run(learner)
    expected, rows = by_hand(stream, spec)
    for name, p in weights(learner).items():
        torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-10)
    found = memory_of(learner).take()
    assert torch.equal(found["x"], torch.stack([row[1] for row in rows]))
    assert found["y"].tolist() == [row[2] for row in rows]


# ---- what is replayed, and when -----------------------------------------------------------------


def test_replays_the_very_samples_that_were_seen_and_none_of_this_step():
    stream = permuted(images(), experiences=2, seed=2).with_reveal(DOMAIN_IL | IDS)
    learner = learner_of(stream, ExperienceReplay(capacity=15), Watch())
    run(learner)
    watch, shown, replayed = watched(learner), [], 0
    sets = [event.train.load() for event in stream]
    for step, (batch, stored) in enumerate(zip(watch.batches, watch.stored)):
        task, epoch = divmod(step // 6, 2)  # 48 samples are 6 batches of 8
        own = batch.uid[:8].tolist()
        if epoch == 0 and step % 6 == 0:
            shown.append(set())
        known = [(t, u) for t, us in enumerate(shown) for u in us]
        held = {tuple(x.tolist()): int(u) for x, u in zip(stored["x"], stored["uid"])}
        possible = {tuple(sets[t].x[u].tolist()): u for t, u in known}
        assert held.items() <= possible.items()  # all of it from earlier steps
        old = slice(8, None)
        assert len(batch.x) == 8 + min(8, len(stored["uid"]))
        for x, y, u in zip(batch.x[old], batch.y[old], batch.uid[old].tolist()):
            (raw,) = [raw for raw, uid in held.items() if uid == u and same(x, raw)][:1]
            assert int(y) == int(sets[0].y[u])
            replayed += 1
        assert len({tuple(x.tolist()) for x in batch.x[old]}) == len(batch.x) - 8
        shown[task].update(own)
    assert replayed > 100


def same(x, raw):
    """Whether intensities are those of raw values, to the last bit."""
    return torch.equal(x, torch.tensor(raw).float() / 255)


def test_samples_enter_once_and_replayed_ones_never_again():
    stream = permuted(images(), experiences=3, seed=2).with_reveal(DOMAIN_IL | IDS)
    learner = learner_of(stream, ExperienceReplay(capacity=1000), epochs=3)
    seen = []
    for tick in learner.ticks():
        if tick.kind == "epoch":
            seen.append((memory_of(learner).seen, memory_of(learner).size))
    assert seen == [(48 * n, 48 * n) for n in (1, 1, 1, 2, 2, 2, 3, 3, 3)]
    for uid in memory_of(learner).take()["uid"].bincount().tolist():
        assert uid == 3  # once of every experience


def test_the_first_experience_waits_bit_for_bit():
    stream = permuted(images(), experiences=2, seed=2)
    ends = {}
    for name, methods in {
        "plain": (Finetune(),),
        "wait": (ExperienceReplay(capacity=20, wait=True),),
        "at once": (ExperienceReplay(capacity=20),),
    }.items():
        learner = learner_of(stream, *methods)
        for tick in learner.ticks():
            if tick.kind == "event" and tick.position.event > 0:
                ends[name, tick.position.event - 1] = weights(learner)["hidden1.weight"]
    assert torch.equal(ends["plain", 0], ends["wait", 0])
    assert not torch.equal(ends["plain", 0], ends["at once", 0])
    assert not torch.equal(ends["plain", 1], ends["wait", 1])


def test_samples_seen_are_those_that_came():
    stream = permuted(images(), experiences=2, seed=2)
    ends = [run(learner_of(stream, m))[-1] for m in (Finetune(), ExperienceReplay())]
    assert ends[0]["samples_seen"] == ends[1]["samples_seen"] == 2 * 2 * 48


@pytest.mark.parametrize("reveal", [TASK_FREE, TASK_FREE | IDS])
def test_without_boundaries_it_remembers_across_them(reveal):
    stream = permuted(images(), experiences=3, seed=2).with_reveal(reveal)
    learner = learner_of(stream, ExperienceReplay(capacity=2000))
    run(learner)
    assert memory_of(learner).seen == 3 * 2 * 48  # in every epoch: nobody can tell the first
    raw = {tuple(x.tolist()) for x in memory_of(learner).take()["x"]}
    assert raw == {tuple(x.tolist()) for event in stream for x in event.train.load().x}


def test_forgets_less_than_fine_tuning():
    data = load("digits")
    arrays = {"x_train": data.x_train[:600], "y_train": data.y_train[:600]}
    arrays |= {"x_test": data.x_test[:200], "y_test": data.y_test[:200]}
    stream = split_classes(checked(arrays, "few", peak=16.0), experiences=5, order=range(10))
    network, acc = Mlp(hidden=(40,)), {}
    for policy in ("none", "reservoir", "balanced"):
        method = Finetune()
        if policy != "none":
            method = ExperienceReplay(capacity=100, policy=policy)
        learner = learner_of(stream, method, network=network, epochs=6)
        run(learner)
        acc[policy] = float(learner.scores.matrices()[1].final.mean())
    assert acc["none"] < 0.3 and acc["reservoir"] > 0.7 and acc["balanced"] > 0.7


# ---- memory -------------------------------------------------------------------------------------


@each_spec
def test_bytes_are_bounded_at_every_step(spec):
    stream = permuted(images(), experiences=2, seed=2).with_reveal(DOMAIN_IL | IDS)
    limit = 20 * (10 + 24) + 5
    spec = replace(spec, max_bytes=limit, capacity=min(spec.capacity, 15), batch=None)
    learner = learner_of(stream, spec)
    before = learner.methods.nbytes()
    found = set()
    for tick in learner.ticks():
        if tick.kind in ("step", "window"):
            found.add(learner.methods.nbytes())
    assert before == 0 and found == {spec.capacity * 34} and max(found) <= limit
    assert learner.method_bytes == spec.capacity * 34
    by_bytes = learner_of(stream, replace(spec, capacity=None))
    run(by_bytes)
    assert by_bytes.method_bytes == 20 * 34 <= limit


def test_a_memory_that_does_not_fit_is_refused():
    stream = permuted(images(), experiences=2, seed=2)
    learner = learner_of(stream, ExperienceReplay(capacity=20, max_bytes=519))
    with pytest.raises(ConfigError, match="max_bytes=519 has room for 19 samples of 26 bytes"):
        run(learner)
    assert learner.at.step == learner.at.samples == 0


@each_spec
def test_resumes_from_disk_in_the_middle_of_an_experience(spec, tmp_path):
    stream = permuted(images(), experiences=3, seed=2).with_reveal(DOMAIN_IL | IDS)
    whole, rows, cuts = learner_of(stream, spec), [], []
    for tick in whole.ticks():
        rows += tick.rows
        place = (tick.position.event, tick.position.epoch, tick.position.step)
        if place in ((0, 0, 1), (1, 0, 3), (1, 1, 2)) and tick.kind == "step":
            save_state(tmp_path / str(len(cuts)), whole.state_dict())
            cuts.append(len(rows))
    assert len(cuts) == 3
    for i, count in enumerate(cuts):
        again = learner_of(stream, spec)
        again.load_state_dict(load_state(tmp_path / str(i)))
        assert run(again) == rows[count:]
        a, b = (split(x.state_dict()) for x in (whole, again))
        assert json.dumps(a[1], sort_keys=True) == json.dumps(b[1], sort_keys=True)
        assert a[0].keys() == b[0].keys()
        assert all(torch.equal(t, b[0][name]) for name, t in a[0].items())


# ---- forgetting ---------------------------------------------------------------------------------


def with_request(stream, uids, at=1):
    """The stream with a request to forget put before event ``at``."""

    def make(i):
        if i == at:
            return Unlearn(i, uids)
        return stream[i] if i < at else replace(stream[i - 1], index=i)

    sets = {
        name: replace(s, taught=tuple(e + (e >= at) for e in s.taught))
        for name, s in stream.eval_sets.items()
    }
    return replace(stream, make=make, length=len(stream) + 1, eval_sets=sets)


@each_spec
def test_after_a_request_no_id_is_left(spec):
    base = permuted(images(), experiences=2, seed=2).with_reveal(DOMAIN_IL | IDS)
    gone = torch.arange(0, 48, 2)
    stream = with_request(base.take(2), gone)
    learner = learner_of(stream, spec, ForgetWatch())
    had = None
    for tick in learner.ticks():
        if tick.kind != "event":
            continue
        uids = memory_of(learner).take()["uid"] if tick.position.event > 0 else torch.zeros(0)
        if tick.position.event == 1:
            had = torch.isin(uids, gone).sum()
        if tick.position.event == 2:
            assert had > 0 and not torch.isin(uids, gone).any() and len(uids) > 0
            held = b"".join(t.numpy().tobytes() for t in memory_of(learner)._columns.values())
            for uid in gone[1:].tolist():
                assert uid.to_bytes(8, "little") not in held or uid < 4  # labels are 0 to 3
            raw = base[0].train.load().x[gone]
            stored = {tuple(x.tolist()) for x in memory_of(learner)._columns["x"]}
            assert not stored & {tuple(x.tolist()) for x in raw}
            assert learner.methods.report()["er"]["stored"] == len(uids)
            watched_forget(learner).batches.clear()
    first = watched_forget(learner).batches[0]
    assert not torch.isin(first.uid[8:], gone).any() and len(first.uid) > 8


class ForgetWatch(Watch):
    """Also offers what the learner asks of all methods."""

    offers = frozenset({"unlearn"})

    def start(self, context):
        return _ForgetWatch(context)


class _ForgetWatch(_Watch):
    def unlearn(self, request):
        pass


def watched_forget(learner):
    return learner.methods.methods["forgetwatch"]


def test_a_batch_that_there_is_no_room_for_is_refused():
    """Where the room is the default one, and where bytes say how much there is, too."""
    for options, room in (({"capacity": 3}, 3), ({}, 500)):
        with pytest.raises(ConfigError, match=f"cannot be drawn from capacity={room}; use a batch"):
            ExperienceReplay(batch=room + 1, **options)
        ExperienceReplay(batch=room, **options)
    stream = permuted(images(), experiences=2, seed=2)
    learner = learner_of(stream, ExperienceReplay(max_bytes=2000, batch=600))
    with pytest.raises(ConfigError, match="batch=600 samples cannot be drawn from capacity="):
        run(learner)
    assert not learner.at.samples


def test_ids_that_are_hidden_cannot_be_forgotten():
    stream = with_request(permuted(images(), experiences=2, seed=2), torch.arange(3))
    with pytest.raises(PairingError, match="'er' needs sample_ids"):
        learner_of(stream, ExperienceReplay())


# ---- heads --------------------------------------------------------------------------------------


def test_a_replayed_sample_learns_at_its_own_head():
    stream = split_classes(images(), experiences=2, order=(2, 0, 3, 1), reveal=TASK_IL)
    for methods, moves in (((Finetune(),), False), ((ExperienceReplay(capacity=30),), True)):
        learner = learner_of(stream, *methods, Watch(), head="multi")
        before = None
        for tick in learner.ticks():
            if tick.kind == "event" and tick.position.event == 1:
                before = weights(learner)["readout.weight"].view(2, 4, 9)
        after = weights(learner)["readout.weight"].view(2, 4, 9)
        moved = (after != before).any(-1)
        # the old head's two classes learn on, the classes that are not of a head never do
        assert moved.tolist() == [[moves, False, moves, False], [False, True, False, True]]
    own = {2: [0, 2], 0: [0, 2], 3: [1, 3], 1: [1, 3]}
    old = 0
    for step, (batch, logits) in enumerate(zip(watched(learner).batches, watched(learner).logits)):
        for y, finite in zip(batch.y.tolist(), logits.isfinite().tolist()):
            assert [c for c in range(4) if finite[c]] == own[y]
            old += step >= 6 and y in (0, 2)
    assert old > 20
    assert learner.scores.matrices()[0].final.min() > 0.5


def test_replay_at_heads_is_what_each_head_alone_would_learn():
    """The step on a joint batch, with autograd through readouts kept apart."""
    stream = split_classes(images(), experiences=2, order=(2, 0, 3, 1), reveal=TASK_IL)
    learner = learner_of(stream, ExperienceReplay(capacity=30), Watch(), head="multi", epochs=1)
    last = None
    for tick in learner.ticks():
        if tick.kind in ("step", "window") and tick.position.event == 1:
            now = weights(learner)
            if last is not None:
                expected = head_step(learner, last, watched(learner).batches[-1])
                torch.testing.assert_close(now["readout.weight"], expected, rtol=0, atol=1e-12)
            last = now


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.2), Adam(lr=0.01, weight_decay=0.1)], ids=str)
def test_on_top_of_a_projection_replay_teaches_old_heads(optimiser):
    """Heads apart: the projection holds still those that nothing teaches, and only those."""
    stream = split_classes(images(6), experiences=3, order=tuple(range(6)), reveal=TASK_IL)
    for methods, moves in (((), False), ((ExperienceReplay(capacity=30),), True)):
        learner = learner_of(stream, *methods, Hlop(rows=(2,)), head="multi", optimiser=optimiser)
        before = {}
        for tick in learner.ticks():
            if tick.kind == "event":
                before[tick.position.event] = weights(learner)["readout.weight"].view(3, 6, 9)
        moved = (before[2] != before[1]).any(-1).tolist()
        first, second = [moves] * 2 + [False] * 4, [False, False, True, True, False, False]
        assert moved == [first, second, [False] * 6]


def test_training_accuracy_is_of_the_samples_that_came():
    """Replayed ones are known by heart and say nothing of how the new ones are learned."""
    stream = split_classes(images(), experiences=2, order=(2, 0, 3, 1), reveal=TASK_IL)
    learner = learner_of(stream, ExperienceReplay(capacity=30), Watch(), epochs=1)
    said = []
    for tick in learner.ticks():
        said += [
            r["value"] for r in tick.rows if (r["phase"], r["metric"]) == ("train", "accuracy")
        ]
    steps = list(zip(watched(learner).batches, watched(learner).logits))
    assert len(steps) == 6 and all(len(batch.y) == 16 for batch, _ in steps[1:])
    for found, part in zip(said, (steps[:3], steps[3:]), strict=True):
        came = torch.cat([(z.argmax(1) == b.y)[:8] for b, z in part])
        assert found == float(came.double().mean())
    assert 0.3 < said[1] < 1


def head_step(learner, old, batch):
    made = SPIKING.build((10,), 8).double()
    made.set_parameters(old)
    z = made(learner.encoder.encode(batch.x, learner.statistics, None)).logits.view(-1, 2, 4)
    owner = torch.tensor([0, 1, 0, 1])[batch.y]  # classes 2 and 0 are of task 0
    open_ = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]).bool()[owner]
    logits = z[torch.arange(len(z)), owner].masked_fill(~open_, -torch.inf)
    functional.cross_entropy(logits, batch.y).backward()
    weight = made.weights()["readout.weight"]
    return (weight - 0.2 * weight.grad).detach()


def test_heads_that_labels_do_not_tell_are_refused():
    stream = permuted(images(), experiences=2, seed=2).with_reveal(TASK_IL)
    with pytest.raises(PairingError, match="'er' with head 'multi'.*tasks 0 and 1 share the label"):
        run(learner_of(stream, ExperienceReplay(), head="multi"))
    run(learner_of(stream, ExperienceReplay()))
    hidden = split_classes(images(), experiences=2, reveal=TASK_IL & ~Reveal.CLASSES)
    with pytest.raises(PairingError, match="so it needs classes, which the stream hides"):
        learner_of(hidden, ExperienceReplay(), head="multi")


# ---- with a projection --------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.1), Adam(lr=0.01)], ids=["sgd", "adam"])
def test_replay_on_top_of_hlop_leaves_what_it_protects(optimiser):
    """What replay adds is projected too: nothing moves along the rows of old tasks."""
    stream = permuted(images(), experiences=3, seed=2)
    hlop, er = Hlop(rows=(2,)), ExperienceReplay(capacity=30)
    ends, rows = {}, []
    for name, methods in {"hlop": (hlop,), "both": (hlop, er), "order": (er, hlop)}.items():
        learner = learner_of(stream, *methods, optimiser=optimiser)
        leak, rows, ends[name] = along(learner, [])
        assert leak < 1e-12
        # the cheap side stays open: replay has no hand in the update
        assert bool(learner.methods.hooks("update")) is not optimiser.keeps_row_space
    for name, p in ends["both"].items():
        assert torch.equal(p, ends["order"][name])
    assert not torch.equal(ends["both"]["hidden1.weight"], ends["hlop"]["hidden1.weight"])
    assert along(learner_of(stream, er, optimiser=optimiser), rows)[0] > 1e-3  # the control


def along(learner, given):
    """Return the most that a task moved along old rows, those rows by task, and the end."""
    leak, rows, before = 0.0, [], None
    for tick in learner.ticks():
        if tick.kind != "event" or tick.position.event < 1:
            continue
        now = weights(learner)
        if before is not None:
            for path, old in rows[-1].items():
                change = now[f"{path}.weight"] - before[f"{path}.weight"]
                assert float(change.abs().max()) > 1e-4
                leak = max(leak, float((change @ old.T).abs().max()))
        if "hlop" in learner.methods.methods:
            held = learner.methods.methods["hlop"].protection.lateral
            rows.append({path: lateral.old.clone() for path, lateral in held.items()})
        else:
            rows.append(given[len(rows)])
        before = now
    return leak, rows, now


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity: got 0; input should be greater than or equal to 1"),
        ({"capacity": -3}, "capacity: got -3"),
        ({"capacity": 2.5}, "capacity: got 2.5"),
        ({"max_bytes": 0}, "max_bytes: got 0"),
        ({"batch": 0}, "batch: got 0"),
        ({"policy": "resevoir"}, "policy: got 'resevoir'.*did you mean 'reservoir'"),
        ({"draw": "some"}, "draw: got 'some'"),
        ({"capacity": 5, "batch": 6}, "batch=6 samples cannot be drawn from capacity=5"),
        ({"size": 4}, "unknown key"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        ExperienceReplay(**options)
    with pytest.raises(ConfigError, match=message):
        from_table(ExperienceReplay, options, "method.er")


def test_what_it_needs():
    assert ExperienceReplay().needs == Reveal.NONE
    assert ExperienceReplay(wait=True).needs == Reveal.BOUNDARY
    for options in ({"policy": "balanced"}, {"policy": "ring"}, {"draw": "balanced"}):
        assert ExperienceReplay(**options).needs == Reveal.LABELS
    with pytest.raises(PairingError, match="'er' needs boundary"):
        learner_of(
            permuted(images(), experiences=2).with_reveal(TASK_FREE), ExperienceReplay(wait=True)
        )


def test_two_memories_are_refused():
    other = type("Other", (MethodSpec,), {"start": lambda self, c: Method(), "slot": "replay"})()
    with pytest.raises(PairingError, match="'er' and 'other' both take the slot 'replay'"):
        learner_of(permuted(images(), experiences=2), ExperienceReplay(), other)
    learner_of(split_classes(images(), experiences=2, reveal=CLASS_IL), ExperienceReplay(), Hlop())
