"""Projection acts once, on what is applied, whoever moves the weights; heads of tasks are free."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl import load_data, split_classes
from spikecl.continual import (
    AdamNscl,
    Context,
    Cuber,
    Finetune,
    Gpm,
    HalfFineTuning,
    Hlop,
    If2Net,
    Inhibition,
    Method,
    MethodSpec,
    Ncl,
    Ogd,
    Owm,
    PcaOgd,
    Phase,
    Sgp,
    Trgp,
    TwoSided,
)
from spikecl.continual.host import transmitted
from spikecl.continual.projection.ogd import _ProjectAll
from spikecl.continual.projection.protection import (
    ProjectFactors,
    ProjectUpdates,
    Protection,
    check_fits,
    in_order,
    per_synapse,
    project,
    sizes_of,
    without_diagonal,
    without_entries,
)
from spikecl.encoding import Encoder
from spikecl.errors import ActivityWarning, ConfigError, PairingError, RunError, UsageError
from spikecl.learner import Heads, Learner, TrainPlan
from spikecl.networks import (
    Complement,
    Factor,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    Suppression,
)
from spikecl.neurons import LIF, PLIF, LoihiLIF
from spikecl.optim import Adam, AdamW, ScheduleFreeAdamW, ScheduleFreeSgd, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import (
    CLASS_IL,
    DOMAIN_IL,
    TASK_IL,
    Experience,
    Reveal,
    Samples,
    Stream,
)
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CPU, STEPS, N, CLASSES = torch.device("cpu"), 3, 8, 4
NEURON = LIF(beta=0.5, v_th=0.25)
PAIRS = ((0, 1), (2, 3))
OPTIMISERS = {
    "sgd": (Sgd(lr=0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
    "momentum": (Sgd(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "decay": (
        Sgd(lr=0.3, weight_decay=0.05),
        lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.05),
    ),
    "adam": (Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "adam with decay": (
        Adam(lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    ),
}
each_optimiser = pytest.mark.parametrize(
    ("optimiser", "peer"), OPTIMISERS.values(), ids=list(OPTIMISERS)
)


class Double(Encoder):
    """The input in float64, another one each step with ``vary``."""

    def __init__(self, *, vary: bool = False):
        self.steps, self.vary = STEPS, vary

    def encode(self, x, statistics, generator):
        x = x.double()
        if not self.vary:
            return x.expand(STEPS, *x.shape)
        return torch.stack([x.roll(t, 1) for t in range(STEPS)])


def stream_of(reveal=DOMAIN_IL, classes=PAIRS, size=10, n=N, tasks=None):
    generator, sets = torch.Generator().manual_seed(0), []
    for c in classes:
        x, y = torch.rand(size, n, generator=generator), torch.tensor(c)[torch.arange(size) % 2]
        sets.append(Samples((Part(x, y, torch.arange(size)),)))
    tasks = tasks or list(range(len(classes)))
    events = [Experience(i, s, c, task=tasks[i]) for i, (s, c) in enumerate(zip(sets, classes))]
    tests = {}
    for i, (task, s, c) in enumerate(zip(tasks, sets, classes)):
        tests.setdefault(f"task{task}", EvalSet(s, c, (i,)))
    return Stream("made", {}, 0, reveal, CLASSES, (n,), len(events), events.__getitem__, tests)


class Fixed(Protection):
    """Maps of every synapse, readout or not, from the second experience on."""

    def __init__(self, kind, context):
        self.kind, self.context, self.on = kind, context, False
        self.learned, self.asked = [], []
        weights = {n: s.weight.flatten(1) for n, s in context.network.synapses.items()}
        self.maps = {n: made(kind, w.shape[1], i) for i, (n, w) in enumerate(weights.items())}

    def outside(self, name):
        return self.maps[name] if self.on else None

    def learn(self, factors, batch):
        self.learned.append(sorted(factors))
        return {name: factor.transmitted for name, factor in factors.items()}

    def project(self, name, factor, seen):
        self.asked.append((name, seen is factor.transmitted))
        return super().project(name, factor, seen)

    def end(self, view):
        self.on = True

    def report(self):
        return {}

    def state_dict(self):
        return {"on": self.on}

    def load_state_dict(self, state):
        self.on = state["on"]

    def nbytes(self):
        return 0


def made(kind, n, seed):
    rng = np.random.default_rng(seed)
    v, _ = np.linalg.qr(rng.standard_normal((n, n)))
    if kind == "hard":
        k = n // 2
        return Complement(torch.from_numpy(v[:, :k].T.copy()), torch.from_numpy(v[:, k:].copy()))
    return Suppression(torch.from_numpy(v * rng.uniform(0.05, 1, n) @ v.T))


class Recorded(Fixed):
    """Closes all that an experience transmitted, which has to leave something."""

    def __init__(self, kind, context):
        super().__init__(kind, context)
        self.maps = dict.fromkeys(self.maps)

    def end(self, view):
        found = {}
        for seen in self.context.host.look(view.samples, 999):
            for name, rows in transmitted(self.context.network, seen).items():
                found.setdefault(name, []).append(rows)
        for name, rows in found.items():
            _, s, v = np.linalg.svd(torch.cat(rows).numpy())
            k = int((s > 1e-10 * s[0]).sum())
            assert 0 < k < len(v)
            old, free = torch.from_numpy(v[:k].copy()), torch.from_numpy(v[k:].T.copy())
            self.maps[name] = Complement(old, free)
        self.on = True


class Shield(MethodSpec):
    phase, slot = Phase.PROJECTION, "projection"

    def __init__(self, kind="soft", others="freeze", protection=Fixed):
        self.kind, self.others, self.protection = kind, others, protection

    def start(self, context):
        return project(self.protection(self.kind, context), context, self.others)


def learner_of(methods, *, stream=None, network=None, optimiser=None, head="single", **options):
    stream = stream or stream_of()
    network = network or SpikingMlp(hidden=(9, 7), bias=True, neuron=NEURON)
    if isinstance(network, SpikingMlp | SpikingRecurrentNet | SpikingConvNet):
        network = network.build(stream.input_shape, Heads(head, stream, CPU).outputs).double()
    return Learner(
        stream=stream,
        network=network,
        encoder=options.pop("encoder", Double()),
        trainer=options.pop("trainer", Bptt()),
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


def weights(learner):
    return {n: p.detach().clone() for n, p in learner.network.weights().items()}


def ends_of(learner):
    """Run; return the weights at the start and at the end of each experience."""
    return [weights(learner) for tick in learner.ticks() if tick.kind == "event"]


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def protection_of(learner):
    return learner.methods.methods["shield"].protection


# ---- once, on what is applied -------------------------------------------------------------------


def by_hand(learner, peer, *, power=1, protected=None, own=None):
    """The whole run in torch: its optimiser, autograd, and its update times P.

    ``protected`` names synapses (by default all), ``own(task)`` the outputs that may move.
    """
    network, stream = learner.network, learner.stream
    named = dict(network.named_parameters())
    synapses = dict(network.synapses)
    readout = list(synapses)[-1]
    maps = {f"{n}.weight": p.rows() for n, p in protection_of(learner).maps.items()}
    names = [f"{n}.weight" for n in (synapses if protected is None else protected)]
    for task, event in enumerate(stream):
        data = event.train.load()
        moving = dict(network.weights())
        if task:
            free = [f"{readout}.bias"] if own else []
            moving = {n: p for n, p in moving.items() if n.endswith(".weight") or n in free}
        optimiser = peer(list(moving.values()))
        for epoch in range(2):
            order = torch.randperm(
                len(data), generator=Seeds(5).generator("order", event=task, epoch=epoch)
            )
            for picked in order.split(4):
                for p in named.values():
                    p.grad = None
                logits = network(Double().encode(data.x[picked], None, None)).logits
                if own:
                    closed = [i for i in range(logits.shape[1]) if i not in own(task)]
                    logits = logits.index_fill(1, torch.tensor(closed), -math.inf)
                labels = data.y[picked]
                if logits.shape[1] > CLASSES:
                    labels = labels + task * CLASSES
                functional.cross_entropy(logits, labels).backward()
                old = {n: p.detach().clone() for n, p in moving.items()}
                optimiser.step()
                with torch.no_grad():
                    for n, p in moving.items():
                        step = p - old[n]
                        if task and n in names:
                            for _ in range(power):
                                step = (step.flatten(1) @ maps[n]).view_as(p)
                        if own and n.startswith(readout):
                            rows = torch.zeros(len(p)).double()
                            rows[list(own(task))] = 1
                            step = step * rows.view(-1, *[1] * (p.dim() - 1))
                        p.copy_(old[n] + step)
        yield {n: p.detach().clone() for n, p in network.weights().items()}


@each_optimiser
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_applied_update_is_projected_once(optimiser, peer, kind):
    """Against torch's optimisers, with plain SGD on the factors, otherwise on the update."""
    make = lambda: learner_of((Shield(kind),), optimiser=optimiser)  # noqa: E731
    start, *ends = ends_of(make())
    for power in (1,) if kind == "hard" else (1, 2):
        other = make()
        hand = list(by_hand(other, peer, power=power))
        for name in start:
            close(hand[0][name], ends[0][name], 1e-11)
        apart = max(float((hand[1][n] - ends[1][n]).abs().max()) for n in start)
        assert apart < 1e-11 if power == 1 else apart > 1e-4


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("conv", [False, True], ids=["dense", "convolution"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_factor_path_equals_update_path(monkeypatch, kind, conv, momentum):
    ends = []
    for keeps in (True, False):
        monkeypatch.setattr(Sgd, "keeps_row_space", property(lambda self, k=keeps: k))
        stream, network = stream_of(), SpikingMlp(hidden=(9, 7), bias=True, neuron=NEURON)
        if conv:
            network = SpikingConvNet(channels=(3,), kernel=2, hidden=(), neuron=NEURON)
            network = network.build((4, 4), CLASSES).double()
            stream = image_stream()
        learner = learner_of(
            (Shield(kind),),
            network=network,
            stream=stream,
            optimiser=Sgd(lr=0.1, momentum=momentum),
            encoder=Double() if conv else Double(vary=True),
        )
        assert bool(learner.methods.hooks("update")) is not keeps
        ends.append(weights(run(learner)))
    for name, p in ends[0].items():
        close(p, ends[1][name], 1e-11)


def image_stream():
    plain = stream_of(n=16)

    def make(i):
        (part,) = plain[i].train.parts
        image = Samples((Part(part.x.view(-1, 4, 4), part.y, part.uid),))
        return Experience(i, image, plain[i].classes, task=i)

    tests = {
        n: EvalSet(make(i).train, s.classes, s.taught)
        for i, (n, s) in enumerate(plain.eval_sets.items())
    }
    return Stream("image", {}, 0, DOMAIN_IL, CLASSES, (4, 4), 2, make, tests)


@each_optimiser
@pytest.mark.parametrize("vary", [False, True], ids=["static", "varying"])
def test_a_hard_complement_keeps_old_responses(optimiser, peer, vary):
    network = SpikingMlp(hidden=(40, 35), bias=True, neuron=NEURON)
    control = ((Finetune(), False),) if optimiser == Sgd(lr=0.3) else ()
    for shield, stays in ((Shield(protection=Recorded), True), *control):
        learner = learner_of(
            (shield,),
            network=network,
            optimiser=optimiser,
            stream=stream_of(n=40),
            encoder=Double(vary=vary),
        )
        x = learner.encoder.encode(learner.stream[0].train.load().x, None, None)
        answers = [
            learner.network(x).logits.detach()
            for tick in learner.ticks()
            if tick.kind == "event" and tick.position.event
        ]
        moved = float((answers[1] - answers[0]).abs().max())
        assert moved < 1e-10 if stays else moved > 1e-2


class Mask(MethodSpec):
    """Holds some entries of every weight still, and says so or not."""

    phase = Phase.GATE

    def __init__(self, *, says=True):
        self.says = says

    def start(self, context):
        return (_Mask if self.says else _Quiet)(context)


class _Quiet(Method):
    def __init__(self, context):
        synapses = context.network.synapses.items()
        generator = torch.Generator().manual_seed(1)
        self.held = {
            f"{path}.weight": torch.rand(s.weight.shape, generator=generator) < 0.2
            for path, s in synapses
        }

    def update(self, update):
        return {
            n: u.masked_fill(self.held[n], 0) if n in self.held else u for n, u in update.items()
        }


class _Mask(_Quiet):
    def still(self):
        return self.held


@each_optimiser
def test_masks_and_a_projection_hold_both(optimiser, peer):
    """Masked entries stay to the last bit, old responses to rounding, and the rest learns."""
    for says in (True, False):
        learner = learner_of(
            (Mask(says=says), Shield(protection=Recorded)),
            network=SpikingMlp(hidden=(40, 35), bias=True, neuron=NEURON),
            optimiser=optimiser,
            stream=stream_of(n=40),
        )
        mask = learner.methods.methods["mask"]
        x = learner.encoder.encode(learner.stream[0].train.load().x, None, None)
        ends, answers = [], []
        for tick in learner.ticks():
            if tick.kind == "event":
                ends.append(weights(learner))
                answers.append(learner.network(x).logits.detach())
        held, moved = 0.0, 0.0
        for name, still in mask.held.items():
            change = ends[2][name] - ends[1][name]
            held = max(held, float(change[still].abs().max()))
            moved = max(moved, float(change[~still].abs().max()))
        assert float((answers[2] - answers[1]).abs().max()) < 1e-10
        assert moved > 1e-4
        assert held == 0 if says else held > 1e-5


PLAIN = DOMAIN_IL | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL
MASKED = {
    "hlop": Hlop(rows=(3,)),
    "gpm": Gpm(energy=1.0),
    "sgp": Sgp(energy=1.0, scale=1e9),
    "owm": Owm(alpha=1e-9),
    "adam_nscl": AdamNscl(a=1.0),
    "inhibition": Inhibition(alpha=1e-9),
    "trgp": Trgp(energy=1.0),
    "cuber": Cuber(energy=1.0, alignment=1.0),
    "if2net": If2Net(alpha=1e-9),
    "ogd": Ogd(samples=10),
    "pca_ogd": PcaOgd(samples=10, directions=6),
}


class Half(Mask):
    """Holds the whole first tensor still."""

    def start(self, context):
        method = _Mask(context)
        method.held = {
            n: torch.full_like(h, i == 0) for i, (n, h) in enumerate(method.held.items())
        }
        return method


def seen_by_old(method, change):
    """How much of a change of parameters what is protected sees, relative to all that moved."""
    protection = method.protection
    moved = torch.cat([change[n].flatten() for n in change])
    if isinstance(method, _ProjectAll):
        assert list(change) == list(protection.sizes)
        return float((protection.basis.rows @ moved).norm() / moved.norm())
    found = []
    for name in protection.sizes:
        values, vectors = torch.linalg.eigh(protection.outside(name).rows())
        closed = vectors[:, values < 1e-6]
        assert 0 < closed.shape[1] < len(values)
        found.append(float((change[f"{name}.weight"] @ closed).norm() / moved.norm()))
    return max(found)


@pytest.mark.parametrize("mask", [Mask, Half])
@pytest.mark.parametrize("name", ["sgd", "adam with decay"])
@pytest.mark.parametrize("spec", MASKED.values(), ids=list(MASKED))
def test_masks_hold_before_every_projection(spec, name, mask):
    """What is held stays to the last bit; what is protected sees nothing of what was moved."""
    learner = learner_of(
        (mask(), spec),
        network=SpikingMlp(hidden=(40, 35), bias=True, neuron=NEURON),
        optimiser=OPTIMISERS[name][0],
        stream=stream_of(PLAIN & ~Reveal.CLASSES, n=40),
    )
    held, method = learner.methods.methods.values()
    ends, moved = [], []
    for tick in learner.ticks():
        if tick.position.event == 1 and tick.kind in ("step", "window"):
            ends.append(weights(learner))
            if len(ends) > 1:
                moved.append({n: ends[-1][n] - ends[-2][n] for n in ends[-1]})
                assert seen_by_old(method, moved[-1]) < 1e-5
    assert any(float(each["readout.weight"].abs().max()) > 1e-6 for each in moved)
    for n, still in held.held.items():
        assert torch.equal(ends[-1][n][still], ends[0][n][still])


@pytest.mark.parametrize("spec", [Ogd(samples=10), PcaOgd(samples=10, directions=6)])
def test_gradients_are_kept_out_of_what_half_lets_move(spec):
    learner = learner_of((HalfFineTuning(others="half"), spec), optimiser=Adam(lr=0.01))
    half, method = learner.methods.methods.values()
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event == 1:
            before, rows = weights(learner), method.protection.basis.rows.clone()
    change = {n: w - before[n] for n, w in weights(learner).items()}
    assert {n for n, c in change.items() if not c.any()} == set(half.frozen) != set()
    moved = torch.cat([change[n].flatten() for n in method.protection.sizes])
    assert float((rows @ moved).norm()) < 1e-12 * float(moved.norm())
    assert method.nbytes() == 8 * (
        method.protection.basis.rows.numel() + len(rows) ** 2 + len(moved)
    )


def test_rows_that_are_held_whole_need_no_solution(monkeypatch):
    monkeypatch.setattr(torch.linalg, "pinv", None)
    still = torch.tensor([[True] * 5, [False] * 5])
    rows = torch.rand(2, 5)
    made_ = without_entries(rows, made("soft", 5, 0), still)
    assert not made_[0].any() and torch.equal(made_[1], rows[1])


def test_masks_and_a_projection_of_both_sides_are_refused():
    for both in (TwoSided(), Ncl()):
        with pytest.raises(PairingError, match="ties rows to one another"):
            learner_of((Mask(), both))


@pytest.mark.parametrize(
    ("name", "head"),
    [(n, "single") for n in OPTIMISERS]
    # heads of others do not decay here
    + [(n, "multi") for n, (o, _) in OPTIMISERS.items() if not getattr(o, "weight_decay", 0)],
)
def test_until_something_is_protected_it_is_fine_tuning_bit_for_bit(name, head):
    """In single precision, where ``old + (new - old)`` rounds; nothing is projected yet."""
    optimiser, _ = OPTIMISERS[name]
    reveal = TASK_IL if head == "multi" else DOMAIN_IL
    stream = stream_of(reveal, size=30)
    ends = []
    for method in (Shield(), Finetune()):
        spec = SpikingMlp(hidden=(9,), bias=True, norm="batch", neuron=NEURON)
        network = spec.build((N,), Heads(head, stream, CPU).outputs)
        learner = learner_of(
            (method,),
            stream=stream,
            network=network,
            optimiser=optimiser,
            head=head,
            encoder=Single(),
        )
        for tick in learner.ticks():
            if tick.kind == "event" and tick.position.event == 1:
                ends.append({**weights(learner), **network.statistics()})
                break
    for name, p in ends[0].items():
        assert torch.equal(p, ends[1][name]), name


class Single(Double):
    """The input in float32."""

    def encode(self, x, statistics, generator):
        return super().encode(x, statistics, generator).float()


def test_where_nobody_projects_an_update_its_rounding_is_not_ours():
    """``old + (new - old)`` is not always ``new``."""
    learner = learner_of((Shield(),), optimiser=Sgd(lr=0.3, weight_decay=0.05))
    parameter = learner.network.weights()["hidden1.bias"]
    start = torch.randn(9, generator=torch.Generator().manual_seed(0)).double()
    alone = torch.nn.Parameter(1e-3 * start)
    alone.grad = torch.full_like(alone, 1 / 3e3)
    rounds = 0
    with torch.no_grad():
        parameter.copy_(alone)
        for _ in range(100):
            before = alone.clone()
            OPTIMISERS["decay"][1]([alone]).step()
            gradients = {n: torch.zeros_like(p) for n, p in learner.network.weights().items()}
            learner.training.apply({**gradients, "hidden1.bias": alone.grad})
            assert torch.equal(parameter, alone)
            rounds += int((before + (alone - before) != alone).sum())
    assert rounds > 0  # there was something to see


# ---- the side -----------------------------------------------------------------------------------


def context_of(network=None, optimiser=None, before=(), **options):
    network = network or SpikingMlp(hidden=(4,)).build((N,), 3)
    return Context(
        network, optimiser or Sgd(), Seeds(0), DOMAIN_IL, 3, CPU, before=before, **options
    )


def side(context, steady=True):
    protection = Fixed("soft", context)
    protection.steady = steady
    return type(project(protection, context))


@pytest.mark.parametrize(
    ("optimiser", "factors", "unsteady"),
    [
        (Sgd(), True, True),
        (Sgd(momentum=0.9), True, False),
        (Sgd(momentum=0.9, state="carried"), False, False),
        (Sgd(weight_decay=0.1), False, False),
        (Adam(), False, False),
        (AdamW(), False, False),
        (ScheduleFreeSgd(), True, False),
    ],
    ids=str,
)
def test_factors_are_projected_where_that_is_projecting_the_update(optimiser, factors, unsteady):
    """Where maps change within an experience, momentum carries what older ones let through."""
    assert side(context_of(optimiser=optimiser)) is (ProjectFactors if factors else ProjectUpdates)
    expected = ProjectFactors if unsteady else ProjectUpdates
    assert side(context_of(optimiser=optimiser), steady=False) is expected


@pytest.mark.parametrize("hook", ["factors", "gradients", "update"])
def test_who_has_a_hand_in_the_update_sends_it_to_the_update(hook):
    other = type("Other", (Method,), {hook: lambda self, *args: args[0]})()
    assert side(context_of(before=(other,))) is ProjectUpdates
    quiet = type("Quiet", (Method,), {"after_step": lambda self: None})()
    assert side(context_of(before=(quiet,))) is ProjectFactors


def test_a_trainer_that_settles_and_a_diagonal_go_to_the_update():
    assert side(context_of(settles=True)) is ProjectUpdates
    recurrent = SpikingRecurrentNet(hidden=(4,)).build((N,), 3)
    assert side(context_of(recurrent)) is ProjectUpdates
    gain = SpikingMlp(hidden=(4,), gain=3.0).build((N,), 3)
    assert side(context_of(gain)) is ProjectFactors  # one number more or less


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.1), Adam(lr=0.01)], ids=["factors", "updates"])
def test_every_step_is_learned_from_and_learned_rows_can_be_used_again(optimiser):
    learner = run(learner_of((Shield(),), optimiser=optimiser))
    protection = protection_of(learner)
    names = ["hidden1", "hidden2", "readout"]
    assert protection.learned == [names] * 12
    asked = [(n, True) for n in names] * 12 if isinstance(optimiser, Sgd) else []
    assert protection.asked == asked


# ---- recurrent weights without a diagonal -------------------------------------------------------


def constrained(target, p, i):
    """Minimise ``(u - target) P^+ (u - target)^T`` with ``u_i = 0`` over the range of P."""
    values, v = np.linalg.eigh(p)
    open_ = values > 1e-10
    q, cost = v[:, open_], 1 / values[open_]
    z0, n = q.T @ target, int(open_.sum())  # u = Q z
    kkt = np.zeros((n + 1, n + 1))
    kkt[:n, :n] = np.diag(2 * cost)
    kkt[:n, n] = kkt[n, :n] = q[i]
    right = np.concatenate([2 * cost * z0, [0.0]])
    return q @ np.linalg.lstsq(kkt, right, rcond=None)[0][:n]


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("n", [2, 5, 9])
def test_without_a_diagonal_is_the_constrained_least_squares(kind, n):
    outside = made(kind, n, 3)
    p = outside.rows().numpy()
    u = np.random.default_rng(1).standard_normal((n, n))
    found = without_diagonal(torch.from_numpy(u @ p), outside).numpy()
    assert not found.diagonal().any()
    expected = np.stack([constrained(u[i] @ p, p, i) for i in range(n)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    # for the soft map the same as the best step that keeps the diagonal
    if kind == "soft":
        inverse = np.linalg.inv(p)
        for i in range(n):
            keep = [j for j in range(n) if j != i]
            rest = np.linalg.solve(inverse[np.ix_(keep, keep)], u[i][keep])
            np.testing.assert_allclose(found[i, keep], rest, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_without_entries_of_a_soft_map_is_the_constrained_least_squares(n):
    outside, rng = made("soft", n, 3), np.random.default_rng(1)
    p, u, still = outside.rows().numpy(), rng.standard_normal((7, n)), rng.random((7, n)) < 0.4
    still[1], still[2], still[3] = still[0], True, False
    found = without_entries(torch.from_numpy(u @ p), outside, torch.from_numpy(still)).numpy()
    inverse = np.linalg.inv(p)
    for row, free, made_ in zip(u, ~still, found):
        assert not made_[~free].any()
        expected = np.linalg.solve(inverse[np.ix_(free, free)], row[free])
        np.testing.assert_allclose(made_[free], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [5, 12])
def test_without_entries_of_a_projector_is_the_projection_on_both(n):
    outside, rng = made("hard", n, 3), np.random.default_rng(1)
    u, still = rng.standard_normal((9, n)), rng.random((9, n)) < 0.4
    rows = outside.residual(torch.from_numpy(u))
    found = without_entries(rows, outside, torch.from_numpy(still)).numpy()
    for row, held, made_ in zip(u, still, found):
        closed = np.concatenate([outside.basis.numpy(), np.eye(n)[held]])
        free = np.eye(n) - np.linalg.pinv(closed) @ closed
        np.testing.assert_allclose(made_, free @ row, rtol=0, atol=1e-9)


def test_without_entries_of_the_diagonal_is_without_the_diagonal():
    for kind in ("hard", "soft"):
        outside = made(kind, 9, 3)
        rows = outside.residual(torch.from_numpy(np.random.default_rng(1).standard_normal((9, 9))))
        close(
            without_entries(rows, outside, torch.eye(9, dtype=torch.bool)),
            without_diagonal(rows, outside),
        )


@pytest.mark.parametrize("share", [0.0, 1e-9, 1e-5, 1e-3, 1.0])
def test_a_direction_of_its_own_that_is_all_but_closed(share):
    """Old rows stay answered as they were, however little of ``e_0`` is free."""
    rng, n = np.random.default_rng(2), 7
    free = rng.standard_normal((n, 3))
    free[0] = share * free[0]
    q, r = np.linalg.qr(free)
    closed = np.linalg.svd(q.T)[2][3:]
    outside = Complement(torch.from_numpy(closed.copy()), torch.from_numpy(q.copy()))
    update = outside.residual(torch.from_numpy(rng.standard_normal((n, n))))
    found = without_diagonal(update, outside)
    assert not found.diagonal().any()
    assert float((found @ outside.basis.T).abs().max()) < 1e-8
    assert float(found.norm()) <= float(update.norm()) * (1 + 1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-18])
def test_how_small_a_soft_map_is_does_not_matter(scale):
    """All of it may be all but closed: what counts is one direction beside the others."""
    p = made("soft", 9, 3).rows()
    rows = torch.from_numpy(np.random.default_rng(1).standard_normal((9, 9))) @ p
    found = without_diagonal(scale * rows, Suppression(scale * p))
    torch.testing.assert_close(found / scale, without_diagonal(rows, Suppression(p)))


def test_nothing_free_and_all_free():
    u = torch.from_numpy(np.random.default_rng(3).standard_normal((4, 4)))
    whole = Complement(u[:0], torch.eye(4).double())
    close(without_diagonal(u, whole), u - torch.diag(u.diagonal()), 1e-15)
    none = Complement(torch.eye(4).double(), u[:, :0])
    assert not without_diagonal(none.residual(u), none).any()


@each_optimiser
def test_recurrent_layers_keep_old_responses_and_their_diagonal(optimiser, peer):
    network = SpikingRecurrentNet(hidden=(40,), neuron=NEURON, readout="mean_current")
    control = ((Finetune(), False),) if optimiser == Sgd(lr=0.3) else ()
    for shield, stays in ((Shield(protection=Recorded), True), *control):
        learner = learner_of(
            (shield,),
            network=network,
            optimiser=optimiser,
            stream=stream_of(n=40),
            encoder=Double(vary=True),
        )
        x = learner.encoder.encode(learner.stream[0].train.load().x, None, None)
        answers, found = [], []
        for tick in learner.ticks():
            if tick.kind == "event" and tick.position.event:
                answers.append(learner.network(x).logits.detach())
                found.append(weights(learner)["hidden1.recurrent.weight"])
        moved = float((answers[1] - answers[0]).abs().max())
        assert moved < 1e-10 if stays else moved > 1e-2
        assert float((found[1] - found[0]).abs().max()) > 1e-4
        if stays:
            assert torch.equal(found[1].diagonal(), found[0].diagonal())


# ---- heads --------------------------------------------------------------------------------------

APART = {
    "heads": (TASK_IL, "multi", lambda task: [CLASSES * task + c for c in PAIRS[task]]),
    "masks": (TASK_IL, "single", lambda task: PAIRS[task]),
    "growing masks": (TASK_IL, "growing", lambda task: PAIRS[task]),
}


@pytest.mark.parametrize(("reveal", "head", "own"), APART.values(), ids=APART)
@pytest.mark.parametrize("name", ["momentum", "decay", "adam with decay"])
def test_the_head_of_the_task_learns_freely_and_no_other_moves(reveal, head, own, name):
    """The body is projected, the head is not; weight decay does not reach the heads of others."""
    optimiser, peer = OPTIMISERS[name]
    make = lambda: learner_of(  # noqa: E731
        (Shield(),), stream=stream_of(reveal), head=head, optimiser=optimiser
    )
    start, *ends = ends_of(make())
    hand = list(by_hand(make(), peer, protected=["hidden1", "hidden2"], own=own))
    before = start
    for task, (end, expected) in enumerate(zip(ends, hand)):
        for n in end:
            close(end[n], expected[n], 1e-11)
        for n in ("readout.weight", "readout.bias"):
            moved = (end[n] != before[n]).flatten(1 if end[n].dim() > 1 else 0)
            rows = moved.any(1) if moved.dim() > 1 else moved
            assert rows.nonzero()[:, 0].tolist() == list(own(task))
        before = end


@pytest.mark.parametrize(("reveal", "head", "own"), APART.values(), ids=APART)
@pytest.mark.parametrize("optimiser", [Sgd(lr=0.1), Adam(lr=0.01)], ids=["factors", "updates"])
def test_the_head_is_not_learned_about_and_takes_no_room(reveal, head, own, optimiser):
    learner = learner_of((Shield(),), stream=stream_of(reveal), head=head, optimiser=optimiser)
    context = protection_of(learner).context
    assert sizes_of(context, "shield") == {"hidden1": N, "hidden2": 9}
    run(learner)
    assert protection_of(learner).learned == [["hidden1", "hidden2"]] * 12


@pytest.mark.parametrize(
    ("stream", "head"),
    [
        (stream_of(DOMAIN_IL), "single"),
        (stream_of(CLASS_IL), "single"),
        (stream_of(TASK_IL & ~Reveal.CLASSES), "single"),
        (stream_of(TASK_IL, ((0, 1), (1, 2))), "single"),  # a class that comes again
        (stream_of(TASK_IL, ((0, 1), (2, 3), (0, 1)), tasks=[0, 1, 0]), "multi"),  # a task
        (stream_of(TASK_IL & ~Reveal.CLASSES, ((0, 1), (2, 3)), tasks=[0, 0]), "multi"),
    ],
    ids=["domain", "class", "classes hidden", "class again", "task again", "task again, hidden"],
)
def test_outputs_that_learn_twice_are_protected(stream, head):
    learner = learner_of((Shield("hard"),), stream=stream, head=head, optimiser=Adam(lr=0.01))
    assert learner.heads.apart is False
    assert list(sizes_of(protection_of(learner).context, "x")) == ["hidden1", "hidden2", "readout"]
    ends = ends_of(learner)
    closed = protection_of(learner).maps["readout"].basis
    for before, after in zip(ends[1:], ends[2:]):
        change = after["readout.weight"] - before["readout.weight"]
        assert float(change.abs().max()) > 1e-4
        assert float((change @ closed.T).abs().max()) < 1e-14
        assert torch.equal(after["readout.bias"], before["readout.bias"])


@pytest.mark.parametrize("name", ["sgd", "adam with decay"])
def test_several_outputs_of_a_class_are_all_its_own(name):
    """``population``: each class has outputs c K to c K + K - 1."""
    spec = SpikingMlp(hidden=(9,), bias=True, neuron=NEURON, population=3)
    learner = learner_of(
        (Shield(),),
        network=spec,
        stream=stream_of(TASK_IL),
        head="multi",
        optimiser=OPTIMISERS[name][0],
    )
    ends = ends_of(learner)
    for task, (before, after) in enumerate(zip(ends, ends[1:])):
        rows = (after["readout.weight"] != before["readout.weight"]).any(1)
        own = [3 * (CLASSES * task + c) + k for c in PAIRS[task] for k in range(3)]
        assert rows.nonzero()[:, 0].tolist() == own
        assert (after["readout.bias"] != before["readout.bias"]).nonzero()[:, 0].tolist() == own


@pytest.mark.parametrize("head", ["multi", "single"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam with decay"])
def test_a_run_stopped_within_a_task_goes_on_bit_for_bit(head, name):
    """Heads of others included: which are the task's own is not in the state."""
    make = lambda: learner_of(  # noqa: E731
        (Shield(),),
        stream=stream_of(TASK_IL),
        head=head,
        optimiser=OPTIMISERS[name][0],
        network=SpikingMlp(hidden=(9,), bias=True, norm="batch", neuron=NEURON),
    )
    whole, states = make(), []
    for tick in whole.ticks():
        if (tick.kind, tick.position.event, tick.position.step) == ("step", 1, 1):
            tensors, values = split(whole.state_dict())
            states.append(({n: t.clone() for n, t in tensors.items()}, json.dumps(values)))
    assert len(states) == 2  # one in each epoch
    for tensors, values in states:
        again = make()
        again.load_state_dict(join(tensors, json.loads(values)))
        run(again)
        for n, p in {**weights(whole), **whole.network.statistics()}.items():
            assert torch.equal(p, {**weights(again), **again.network.statistics()}[n]), n


# ---- what is no weight --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("others", ["freeze", "learn"])
@pytest.mark.parametrize("norm", [False, True], ids=["biases", "norms"])
@pytest.mark.parametrize("name", ["sgd", "adam with decay"])
def test_others_freeze_or_learn(others, norm, name):
    options = {"norm": "batch"} if norm else {"bias": True}
    spec = SpikingMlp(hidden=(20, 15), neuron=PLIF(v_th=1.0 if norm else 0.1), **options)
    optimiser = Sgd(lr=0.05) if name == "sgd" else OPTIMISERS[name][0]
    shield = Shield(others=others)
    learner = learner_of((shield,), network=spec, optimiser=optimiser)
    start, first, second = ends_of(learner)
    kept = {n for n in start if not n.endswith(".weight")}
    ends = {n.rsplit(".", 1)[-1] for n in kept}
    assert ends == ({"gain", "shift", "beta"} if norm else {"bias", "beta"})
    for n in kept:
        assert not torch.equal(start[n], first[n]), n  # in the first experience all learn
        assert torch.equal(first[n], second[n]) is (others == "freeze"), n
    assert not torch.equal(first["hidden1.weight"], second["hidden1.weight"])


@pytest.mark.parametrize("others", ["freeze", "learn"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_norms_are_held_after_the_first_experience(others, name):
    """Then training and tests normalise alike, by statistics that stay."""
    spec = SpikingMlp(hidden=(20, 15), norm="batch", neuron=LIF(beta=0.5, v_th=0.1))
    learner = learner_of((Shield(others=others),), network=spec, optimiser=OPTIMISERS[name][0])
    x, found, alike = Double().encode(learner.stream[1].train.load().x, None, None), [], []
    for tick in learner.ticks():
        if tick.kind in ("step", "window"):
            found.append({n: s.clone() for n, s in learner.network.statistics().items()})
            a, b = (learner.network(x, training=t).logits for t in (True, False))
            alike.append(torch.equal(a, b))
    assert len(found) == 12 and len(found[0]) == 4
    for i, (before, after) in enumerate(zip(found, found[1:]), start=1):
        held = i >= 6 and others == "freeze"
        assert all(torch.equal(before[n], after[n]) is held for n in before)
        assert alike[i] is held


def test_a_network_that_is_used_again_is_not_held_any_more():
    spec = SpikingMlp(hidden=(9,), norm="batch", neuron=NEURON)
    learner = run(learner_of((Shield(),), network=spec))
    norm = learner.network.layers["hidden1"].norm
    assert norm.held
    again = run(learner_of((Finetune(),), network=learner.network))
    fresh = run(learner_of((Finetune(),), network=spec))
    assert not norm.held
    for n, p in weights(again).items():
        assert torch.equal(p, weights(fresh)[n])
    method = learner_of((Shield(),), network=learner.network).methods.methods["shield"]
    norm.held = True  # whoever was here before
    method.begin(None)
    assert not norm.held


class Probing(Fixed):
    """Notes whether norms are held when an experience begins: probes go through them."""

    held = ()

    def begin(self, view):
        self.held += (self.context.network.layers["hidden1"].norm.held,)


def test_norms_are_held_before_a_protection_looks_at_an_experience():
    spec = SpikingMlp(hidden=(9,), norm="batch", neuron=NEURON)
    learner = run(learner_of((Shield(protection=Probing),), network=spec))
    assert protection_of(learner).held == (False, True)


# ---- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimiser", [ScheduleFreeSgd(lr=0.1, weight_decay=0.1), ScheduleFreeAdamW()]
)
@pytest.mark.parametrize("projector", [False, True])
def test_what_is_held_back_in_part_is_not_averaged(optimiser, projector, monkeypatch):
    """An average moves by parts of updates that were held back before."""
    monkeypatch.setattr(Fixed, "projector", projector)
    learner = learner_of((Shield("hard" if projector else "soft"),), optimiser=optimiser)
    if projector:
        run(learner)
        return
    start = weights(learner)
    with pytest.raises(PairingError, match="'schedule_free_.*'shield' holds back a part.*twice"):
        run(learner)
    assert all(torch.equal(w, start[n]) for n, w in weights(learner).items())


def test_gradients_that_are_projected_may_be_averaged():
    run(learner_of((Shield("soft"),), optimiser=ScheduleFreeSgd(lr=0.1)))


@pytest.mark.parametrize(
    ("spec", "projector"),
    [
        (Hlop(), True),
        (Gpm(), True),
        (AdamNscl(), True),
        (Trgp(), True),
        (Cuber(), True),
        (Ogd(), True),
        (Sgp(), False),
        (Owm(), False),
        (Inhibition(), False),
        (TwoSided(), False),
        (Ncl(), False),
        (If2Net(), False),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_projectors_are_those_that_act_once_however_often(spec, projector):
    """What a run leaves is a projector, or is not, as the method says."""
    shown = DOMAIN_IL | Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL
    stream = stream_of(shown & ~Reveal.CLASSES, classes=((0, 1, 2, 3),))
    learner = run(learner_of((spec,), stream=stream))
    (method,) = learner.methods.methods.values()
    assert method.protection.projector is projector
    outside = method.protection.outside("readout")
    if outside is not None:  # ogd has one for all
        p = outside.rows()
        assert torch.allclose(p @ p, p, atol=1e-9) is projector


@pytest.mark.parametrize(
    ("options", "map_"),
    [
        ({"standardise": True}, "Standardise"),
        ({"excitatory": 0.8}, "Dale"),
        ({"delay": 2}, "SynapticDelays"),
    ],
    ids=str,
)
def test_weights_that_are_not_stored_as_used_are_refused(options, map_):
    network = SpikingMlp(hidden=(6, 5), **options).build((N,), 3)
    with pytest.raises(PairingError, match=rf"'mine' protects weights .*pass through.*{map_}"):
        sizes_of(context_of(network), "mine")


def test_sizes_are_those_of_rows():
    def sizes(spec, shape=(N,)):
        return sizes_of(context_of(spec.build(shape, 3)), "mine")

    assert sizes(SpikingMlp(hidden=(6, 5))) == {"hidden1": N, "hidden2": 6, "readout": 5}
    assert sizes(SpikingMlp(hidden=(6,), gain=3.0)) == {"hidden1": N, "readout": 6}
    assert sizes(SpikingMlp(hidden=(6,), neuron=LoihiLIF(), gain=64.0))["hidden1"] == N
    conv = sizes(SpikingConvNet(channels=(3, 4), kernel=3, pool_size=1, hidden=()), (7, 7, 2))
    assert conv["conv1"] == 18 and conv["conv2"] == 27
    recurrent = SpikingRecurrentNet(hidden=(6,))
    assert sizes(recurrent)["hidden1.recurrent"] == 6
    with pytest.raises(PairingError, match=r"hidden1.recurrent.*NoAutapses"):
        sizes_of(context_of(recurrent.build((N,), 3)), "mine", autapses=False)


def test_an_option_for_all_or_for_each():
    sizes = {"a": 3, "b": 4}
    assert per_synapse(0.5, sizes, "key") == {"a": 0.5, "b": 0.5}
    assert per_synapse((1, 2), sizes, "key") == {"a": 1, "b": 2}
    assert per_synapse(None, sizes, "key") == {"a": None, "b": None}
    for wrong in ((1,), (1, 2, 3)):
        with pytest.raises(ConfigError, match=rf"key: got {len(wrong)} values .* 2 syn.*\(a, b\)"):
            per_synapse(wrong, sizes, "key")


@pytest.mark.parametrize("found", [{"a": 3}, {"a": 3, "b": 5}, {"a": 3, "b": 4, "c": 4}, {"x": 3}])
def test_what_is_of_another_network_is_refused(found):
    tensors = {name: torch.zeros(2, n) for name, n in found.items()}
    with pytest.raises(RunError, match="'mine': the checkpoint is of another network: .*'b': 4"):
        check_fits(tensors, {"a": 3, "b": 4}, "mine")


def test_what_a_file_holds_comes_in_the_order_of_the_network():
    assert list(in_order({"b": 1, "a": 2}, {"a": 5, "c": 3, "b": 4}).items()) == [
        ("a", 2),
        ("b", 1),
    ]


def test_what_fits_is_not():
    sizes = {"a": 3, "b": 4}
    check_fits({}, sizes, "mine")
    check_fits({"b": torch.zeros(4, 4), "a": torch.zeros(0, 3)}, sizes, "mine")


def test_directions_that_samples_share_cannot_be_taken_out():
    method = project(Fixed("soft", context_of()), context_of())
    with pytest.raises(UsageError, match=r"cannot take single ones out; .*keep=true"):
        method.unlearn(SimpleNamespace(uids=torch.arange(3)))


@pytest.mark.parametrize("optimiser", [Sgd(), Adam()], ids=["factors", "updates"])
def test_synapses_without_a_map_learn_freely(optimiser):
    context = context_of(optimiser=optimiser)
    method = project(Fixed("soft", context), context)
    method.protection.maps = {n: None for n in method.protection.maps}
    method.begin(None)
    method.end(None)
    factors = {
        n: Factor(torch.rand(3, s.fan_in), torch.rand(3, len(s.weight)), torch.rand(3, s.fan_in))
        for n, s in context.network.synapses.items()
    }
    assert all(f is factors[n] for n, f in method.factors(factors, None).items())
    if isinstance(method, ProjectUpdates):
        update = {n: torch.rand_like(p) for n, p in context.network.weights().items()}
        assert all(u is update[n] for n, u in method.update(update).items())


# ---- what all of them refuse --------------------------------------------------------------------

PROJECTIONS = {
    "hlop": Hlop(rows=(2,)),
    "faithful": Hlop(rows=(2,), faithful=True),
    "gpm": Gpm(),
    "sgp": Sgp(),
    "owm": Owm(),
    "owm after": Owm(when="after"),
    "adam_nscl": AdamNscl(),
    "inhibition": Inhibition(),
    "two_sided": TwoSided(),
    "ncl": Ncl(),
    "trgp": Trgp(),
    "cuber": Cuber(),
    "inhibition owm": Inhibition(rule="owm"),
    "inhibition circuit": Inhibition(rule="circuit"),
    "inhibition spiking": Inhibition(rule="spiking"),
}
each_projection = pytest.mark.parametrize("spec", PROJECTIONS.values(), ids=list(PROJECTIONS))


@each_projection
def test_a_layer_that_never_fires_is_refused(spec):
    network = SpikingMlp(hidden=(9, 7), bias=True, neuron=LIF(beta=0.5, v_th=500.0))
    reveal = TASK_IL if isinstance(spec, Trgp | Cuber) else DOMAIN_IL
    learner = learner_of((spec,), network=network, stream=stream_of(reveal=reveal))
    with (
        pytest.warns(ActivityWarning, match="silent"),
        pytest.raises(UsageError, match="nothing reached hidden2.*never fires.*lower v_th"),
    ):
        run(learner)


EVERY = {**PROJECTIONS, "if2net": If2Net(), "ogd": Ogd(samples=3), "pca_ogd": PcaOgd(samples=3)}


@pytest.mark.filterwarnings("ignore::spikecl.errors.ActivityWarning")
@pytest.mark.parametrize("spec", EVERY.values(), ids=list(EVERY))
def test_a_later_experience_in_which_nothing_fires_is_refused(spec):
    """What an earlier one transmitted is in the matrices still, and is no excuse."""
    stream = stream_of(TASK_IL & ~Reveal.CLASSES)
    stream[1].train.parts[0].x.zero_()
    learner = learner_of((spec,), stream=stream, network=SpikingMlp(hidden=(9, 7), neuron=NEURON))
    if isinstance(spec, Ogd | PcaOgd):
        run(learner)  # looks at gradients
        return
    name = "readout" if isinstance(spec, If2Net) else "hidden1"
    with pytest.raises(UsageError, match=f"nothing reached .*{name}.*never fires"):
        run(learner)
    assert learner.at.event == 1


@pytest.mark.parametrize("spec", EVERY.values(), ids=list(EVERY))
def test_experiences_without_samples_are_refused_before_the_run(spec):
    what = "gradients" if isinstance(spec, Ogd | PcaOgd) else "the activity that it protects"
    digits = load_data("digits")
    keep = (digits.y_train != 2) & (digits.y_train != 3)
    some = replace(digits, x_train=digits.x_train[keep], y_train=digits.y_train[keep])
    reveal = TASK_IL if isinstance(spec, Trgp | Cuber) else CLASS_IL
    stream = split_classes(some, experiences=5, order=list(range(10)), reveal=reveal)
    network = SpikingMlp(hidden=(5,)).build(stream.input_shape, 10)
    with pytest.raises(UsageError, match=f"gathers {what} from .*experience 1 of .* has none"):
        learner_of((spec,), stream=stream, network=network, encoder=Single())


def test_online_nothing_is_gathered():
    stream = stream_of(size=10)
    (part,) = stream[1].train.parts
    none = Samples((Part(part.x[:0], part.y[:0], part.uid[:0]),))
    events = [
        stream[0],
        Experience(1, none, PAIRS[1], task=1),
        Experience(2, stream[1].train, PAIRS[1], task=2),
    ]
    made_ = Stream("made", {}, 0, DOMAIN_IL, CLASSES, (N,), 3, events.__getitem__, {})
    run(learner_of((Inhibition(online=10, every=2),), stream=made_))


@each_projection
@pytest.mark.parametrize("hidden", [(6, 7), (9, 7, 7)])
def test_a_subspace_that_does_not_fit_is_refused(spec, hidden):
    stream = stream_of(reveal=TASK_IL if isinstance(spec, Trgp | Cuber) else DOMAIN_IL)
    there = learner_of((spec,), stream=stream)
    there = run(there)
    here = learner_of((spec,), stream=stream, network=SpikingMlp(hidden=hidden, neuron=NEURON))
    (one,), (other,) = there.methods.methods.values(), here.methods.methods.values()
    with pytest.raises(RunError, match="the checkpoint is of another network"):
        other.load_state_dict(one.state_dict())


def test_experiences_are_released_where_they_are_stored():
    kept, not_kept = Inhibition(keep=True), Gpm()
    learner = run(learner_of((kept,)))
    (method,) = learner.methods.methods.values()
    before = set(method.protection.stored)
    method.release(0)
    assert before - set(method.protection.stored) == {"0000"}
    (method,) = learner_of((not_kept,)).methods.methods.values()
    with pytest.raises(UsageError, match="of all experiences as one; use method 'inhibition'"):
        method.release(0)
