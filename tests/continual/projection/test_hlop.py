"""HLOP: old outputs stay, whatever the optimiser; and the run equals a plain loop in torch."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.components import component
from spikecl.continual import Context, Finetune, Hlop, Inhibition, Method, MethodSpec, Phase
from spikecl.continual.host import Nobody
from spikecl.continual.projection.lateral import LateralWeights
from spikecl.encoding import Encoder
from spikecl.errors import ConfigError, PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    Factor,
    Mlp,
    SpikingConvNet,
    SpikingMlp,
    initialise,
)
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import CLASS_IL, DOMAIN_IL, TASK_FREE, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt
from spikecl.trainers.local.oja import Oja

CPU = torch.device("cpu")
STEPS, V_TH = 4, 0.25


class Double(Encoder):
    """Constant current in float64; a different one each step with ``vary``."""

    def __init__(self, *, vary: bool = False):
        self.steps, self.vary = STEPS, vary

    def encode(self, x, statistics, generator):
        x = ((x - statistics.mean) / statistics.std).double()
        if not self.vary:
            return x.expand(STEPS, *x.shape)
        return torch.stack([x.roll(t, 1) for t in range(STEPS)])


def stream_of(*sizes: int, n: int = 10, classes: int = 3, reveal=DOMAIN_IL) -> Stream:
    """Tasks of some samples each; the test sets are the training sets."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for size in sizes:
        x, y = torch.rand(size, n, generator=generator), torch.arange(size) % classes
        sets.append(Samples((Part(x, y, torch.arange(size)),)))

    def make(i):
        return Experience(i, sets[i], tuple(range(classes)), task=i)

    tests = {f"task{i}": EvalSet(s, tuple(range(classes)), (i,)) for i, s in enumerate(sets)}
    return Stream("made", {}, 0, reveal, classes, (n,), len(sets), make, tests)


def learner_of(
    stream, methods, network, *, optimiser=None, encoder=None, batch=4, epochs=2, trainer=None
):
    return Learner(
        stream=stream,
        network=network.build(stream.input_shape, stream.classes).double(),
        encoder=encoder or Double(),
        trainer=trainer or Bptt(),
        methods=methods,
        optimiser=optimiser or Sgd(lr=0.3),
        plan=TrainPlan(epochs=epochs, batch=batch),
        seeds=Seeds(5),
        device=CPU,
    )


def run(learner) -> None:
    for _ in learner.ticks():
        pass


def hlop_of(learner):
    return learner.methods.methods["hlop"].protection


def full(lateral):
    """Learning rows in presynaptic coordinates."""
    compact = lateral.outside is not None and lateral.compact
    return lateral.new @ lateral.outside.free.T if compact else lateral.new


# ---- projection is exact ------------------------------------------------------------------------

OPTIMISERS = {
    "sgd": Sgd(lr=0.3),
    "momentum": Sgd(lr=0.1, momentum=0.9),
    "decay": Sgd(lr=0.3, weight_decay=0.05),
    "adam": Adam(lr=0.01),
    "adam with decay": Adam(lr=0.01, weight_decay=0.1),
}


def activity(learner, x):
    taps: dict = {}
    out = learner.network(learner.encoder.encode(x, learner.statistics, None), taps=taps)
    return {name: tap.rows for name, tap in taps.items()}, out.logits.detach()


def second_task(methods, optimiser, network, encoder=None):
    """Run task 1, make old rows span all old activity, run on; return before and after."""
    stream = stream_of(5, 40, 40, n=30)
    learner = learner_of(stream, methods, network, optimiser=optimiser, encoder=encoder)
    old = stream[0].train.load().take(slice(None)).x
    before = None
    for tick in learner.ticks():
        if tick.kind != "event" or tick.position.event != 1:
            continue
        rows, logits = activity(learner, old)
        weights = {n: p.detach().clone() for n, p in learner.network.weights().items()}
        before = rows, logits, weights
        if "hlop" in learner.methods.methods:
            state = hlop_of(learner).state_dict()
            for name, x in rows.items():
                _, s, v = np.linalg.svd(x.numpy(), full_matrices=False)
                state["lateral"][name]["old"] = torch.from_numpy(v[s > 1e-10 * s[0]].copy())
                assert len(state["lateral"][name]["old"]) < x.shape[1]  # something is free
            hlop_of(learner).load_state_dict(state)
    assert before is not None
    rows, logits, weights = before
    change = {n: p.detach() - weights[n] for n, p in learner.network.weights().items()}
    leak = max(float((x @ change[f"{n}.weight"].T).abs().max()) for n, x in rows.items())
    return leak, float((activity(learner, old)[1] - logits).abs().max()), change


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("vary", [False, True], ids=["static", "varying"])
def test_old_outputs_stay(optimiser, vary):
    network = SpikingMlp(
        hidden=(40, 30),
        bias=True,
        neuron=LIF(beta=0.5, v_th=V_TH),
        readout="mean_current" if vary else "mean_rate",
    )
    leak, moved, change = second_task(
        (Hlop(rows=(1,)),), optimiser, network, encoder=Double(vary=vary)
    )
    assert leak < 1e-12
    assert moved < 1e-12
    assert all((float(c.abs().max()) == 0) == name.endswith(".bias") for name, c in change.items())
    assert float(change["hidden1.weight"].abs().max()) > 1e-3


def test_without_projection_old_outputs_move():
    """The control: what the test above would see if nothing projected."""
    network = SpikingMlp(hidden=(40, 30), bias=True, neuron=LIF(beta=0.5, v_th=V_TH))
    leak, moved, change = second_task((Finetune(),), Sgd(lr=0.3), network)
    assert leak > 1e-2 and moved > 1e-2
    assert min(float(c.abs().max()) for c in change.values()) > 0


@pytest.mark.parametrize("compact", [False, True], ids=["wide", "compact"])
def test_gradient_path_equals_update_path_for_sgd(monkeypatch, compact):
    """Weight decay of nothing sends SGD down either path."""
    results = []
    rows = (0.4,) if compact else (0.15,)
    for keeps in (True, False):
        monkeypatch.setattr(Sgd, "keeps_row_space", property(lambda self, k=keeps: k))
        network = SpikingMlp(hidden=(20, 14), bias=True, neuron=LIF(beta=0.5, v_th=V_TH))
        learner = learner_of(
            stream_of(20, 20, 20), (Hlop(rows=rows),), network, optimiser=Sgd(lr=0.2, momentum=0.9)
        )
        assert bool(learner.methods.hooks("update")) is not keeps
        run(learner)
        results.append(learner)
    a, b = results
    for name, p in a.network.weights().items():
        torch.testing.assert_close(p, b.network.weights()[name], rtol=0, atol=1e-11)
    for name, lateral in hlop_of(a).lateral.items():
        torch.testing.assert_close(lateral.old, hlop_of(b).lateral[name].old, rtol=0, atol=1e-11)


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.2), Adam(lr=0.01)], ids=["sgd", "adam"])
def test_biases_move_in_the_first_task_only(optimiser):
    network = SpikingMlp(hidden=(8,), bias=True, neuron=LIF(beta=0.5, v_th=V_TH))
    learner = learner_of(stream_of(12, 12), (Hlop(),), network, optimiser=optimiser)
    seen = []
    for tick in learner.ticks():
        if tick.kind == "event":
            seen.append({n: p.detach().clone() for n, p in learner.network.weights().items()})
    start, first, second = seen
    for name in ("hidden1.bias", "readout.bias"):
        assert not torch.equal(start[name], first[name])
        assert torch.equal(first[name], second[name])
    assert not torch.equal(first["hidden1.weight"], second["hidden1.weight"])


def test_the_path_follows_the_optimiser():
    def path(optimiser):
        network = SpikingMlp(hidden=(4,)).build((5,), 2)
        context = Context(network, optimiser, Seeds(0), DOMAIN_IL, 2, CPU)
        method = Hlop().start(context)
        return type(method).update is not Method.update

    assert [path(o) for o in OPTIMISERS.values()] == [False, False, True, True, True]


def test_adam_is_given_the_whole_gradient_and_its_update_is_projected():
    network = SpikingMlp(hidden=(6,), bias=True).build((8,), 3).double()
    method = Hlop(rows=(3,)).start(Context(network, Adam(), Seeds(0), DOMAIN_IL, 3, CPU))
    generator = torch.Generator().manual_seed(1)
    update = {
        n: torch.randn(p.shape, generator=generator).double() for n, p in network.weights().items()
    }
    for task in range(2):
        method.begin(None)
        factors = {
            name: Factor(x, torch.ones(5, len(s.weight)).double(), x)
            for name, s in network.synapses.items()
            for x in [torch.rand(5, s.weight.shape[1], generator=generator).double()]
        }
        for name, factor in method.factors(factors, None).items():
            assert torch.equal(factor.gradient(), factors[name].delta.T @ factors[name].x)
        projected = method.update(update)
        assert list(projected) == list(update)
        for name, u in update.items():
            expected = u
            if task and name.endswith(".bias"):
                expected = torch.zeros_like(u)
            elif task:
                old = method.protection.lateral[name[:-7]].old
                assert len(old) == 3
                expected = u - (u @ old.T) @ old
            torch.testing.assert_close(projected[name], expected, rtol=0, atol=1e-12)
        method.end(None)


@pytest.mark.parametrize("hook", ["gradients", "factors", "update"])
@pytest.mark.parametrize("phase", [Phase.EXTRA_GRADIENT, Phase.NOISE])
@pytest.mark.parametrize("first", [True, False], ids=["named first", "named last"])
def test_what_other_methods_add_is_projected_too(hook, phase, first):
    network = SpikingMlp(hidden=(40, 30), neuron=LIF(beta=0.5, v_th=V_TH))
    methods = (pull(hook, phase), Hlop(rows=(1,)))
    leak, moved, change = second_task(
        methods if first else methods[::-1], Sgd(lr=0.3, momentum=0.5), network
    )
    assert leak < 1e-12 and moved < 1e-12
    _, _, alone = second_task((Hlop(rows=(1,)),), Sgd(lr=0.3, momentum=0.5), network)
    assert any(not torch.allclose(c, alone[name]) for name, c in change.items())


def pull(hook, phase):
    """A method that pulls on the weights, wherever it can."""

    def on_tensors(self, values):
        weights = self.network.weights()
        return {name: v - 0.05 * weights[name].detach() for name, v in values.items()}

    def on_factors(self, factors, batch):
        return {n: Factor(f.x.sign() + 0.1, f.delta, f.transmitted) for n, f in factors.items()}

    function = on_factors if hook == "factors" else on_tensors
    running = type("Running", (Method,), {hook: function})

    def start(self, context):
        method = running()
        method.network = context.network
        return method

    return type("Pull", (MethodSpec,), {"start": start, "phase": phase})()


# ---- the whole run against a plain loop ---------------------------------------------------------


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).double()

    @staticmethod
    def backward(ctx, g):
        s = 1 / (1 + torch.exp(-4 * ctx.saved_tensors[0]))
        return g * 4 * s * (1 - s)


def reference(
    stream, start, old_rows, first_rows, statistics, *, lr, batch, epochs, every, vary, **spikes
):
    """HLOP on a spiking MLP: autograd, textbook projection, Oja's rule with all rows in it.

    ``old_rows(task)`` and ``first_rows(task)`` give the rows at a task's beginning; yields the
    weights and the rows learned at its end. With ``code`` lateral neurons answer with it, and rows
    are projected before they meet errors; ``rule`` may be Sanger's then.
    """
    weights = {name: w.clone() for name, w in start.items()}
    names = list(weights)
    for task, event in enumerate(stream):
        data = event.train.load()
        old, new = old_rows(task), {n: h.clone() for n, h in first_rows(task).items()}
        momentum, count = {n: torch.zeros_like(h) for n, h in new.items()}, 0
        for epoch in range(epochs):
            order = torch.randperm(
                len(data), generator=Seeds(5).generator("order", event=task, epoch=epoch)
            )
            for at in range(0, len(data), batch):
                picked = order[at : at + batch]
                x = ((data.x[picked] - statistics.mean) / statistics.std).double()
                w = {n: p.clone().requires_grad_() for n, p in weights.items()}
                sent = [x.roll(t, 1) if vary else x for t in range(STEPS)]
                rows, currents = {}, {name: [] for name in names}
                for name in names[:-1]:
                    rows[name] = torch.cat(sent).detach()
                    v, out = torch.zeros(len(x), len(w[name])).double(), []
                    for spike in sent:
                        currents[name].append(spike @ w[name].T)
                        currents[name][-1].retain_grad()
                        v = 0.5 * v + currents[name][-1]
                        s = _Fire.apply(v - V_TH)
                        v = v - V_TH * s.detach()
                        out.append(s)
                    sent = out
                mean = sum(sent) / STEPS
                rows[names[-1]] = mean.detach()
                currents[names[-1]] = [mean @ w[names[-1]].T]
                currents[names[-1]][0].retain_grad()
                functional.cross_entropy(currents[names[-1]][0], data.y[picked]).backward()
                for name in names:
                    h, k = old[name], len(old[name])
                    x, left = rows[name], rows[name] - rows[name] @ h.T @ h
                    gradient = w[name].grad - w[name].grad @ h.T @ h
                    if spikes:
                        errors = torch.cat([c.grad for c in currents[name]])
                        gradient = errors.T @ (x - spikes["code"](x @ h.T) @ h)
                    weights[name] = weights[name] - lr * gradient
                    if count % every:
                        continue
                    if spikes:
                        learned = new[name], momentum[name]
                        new[name], momentum[name] = with_spikes(*learned, left, x, **spikes)
                        continue
                    for _ in range(5):
                        every_row = torch.cat([h, new[name]])
                        y = x @ every_row.T
                        change = (y.T @ (x - y @ every_row))[k:]
                        if x.any():  # a silent batch has nothing to say
                            change = change / left.square().sum()
                        momentum[name] = 0.9 * momentum[name] + 0.1 * change
                        new[name] = new[name] + momentum[name]
                        new[name] = new[name] / new[name].norm(dim=1, keepdim=True).clamp(min=1)
                count += 1
        yield weights, new


def with_spikes(h, m, left, x, *, code, rule):
    """Learn from what old rows leave, by Oja's rule or Sanger's, from coded responses."""
    for _ in range(5):
        y = code(left @ h.T)
        power = y.T @ y
        change = y.T @ left - (power.tril() if rule == "sanger" else power) @ h
        if x.any():
            whole = left.square().sum()
            own = power.diagonal().clamp(min=float(whole) / 1000)[:, None]
            change = change / (own if rule == "sanger" else whole)
        m = 0.9 * m + 0.1 * change
        h = h + (0.03 if rule == "sanger" else 1) * m
        h = h / h.norm(dim=1, keepdim=True).clamp(min=1)
    return h, m


class Watch(MethodSpec):
    """Keep copies of the rows right after HLOP's begin, and before its end."""

    phase = Phase.AVERAGING

    def start(self, context):
        return _Watch()


class _Watch(Method):
    def __init__(self):
        self.old, self.first, self.last, self.target = [], [], [], None

    def begin(self, view):
        laterals = self.target.lateral.items()
        self.old.append({n: v.old.clone() for n, v in laterals})
        self.first.append({n: full(v).clone() for n, v in laterals})

    def end_epoch(self):
        self.last.append({n: full(v).clone() for n, v in self.target.lateral.items()})


LOOPS = {
    "wide": ((0.15,), False, 1, {}),
    "compact": ((0.4,), True, 1, {}),
    "every third": (((4, 3, 5), 3), True, 3, {}),
    "quantised": ((0.15,), False, 1, {"lateral": "quantised"}),
    "quantised, compact": ((0.4,), True, 1, {"lateral": "quantised"}),
    "spiking": ((0.4,), True, 2, {"lateral": "spiking", "rule": "sanger"}),
}


@pytest.mark.parametrize(("rows", "vary", "every", "options"), LOOPS.values(), ids=LOOPS)
def test_three_tasks_equal_a_plain_loop(rows, vary, every, options):
    spikes: dict = {}
    if "lateral" in options:  # steps of 1/16 of length 0.1875, which no drive is halfway between
        options = {"lateral_scale": 3.0, "lateral_steps": 16, **options}
        spikes["code"] = lambda y: (y.clamp(-3, 3) * 16 / 3).round() * 3 / 16
        spikes["rule"] = options.get("rule", "oja")
    stream, network = (
        stream_of(11, 13, 9),
        SpikingMlp(hidden=(16, 12), neuron=LIF(beta=0.5, v_th=V_TH)),
    )
    learner = learner_of(
        stream,
        (Hlop(rows=rows, every=every, **options), Watch()),
        network,
        encoder=Double(vary=vary),
    )
    watch = learner.methods.methods["watch"]
    watch.target = hlop_of(learner)
    start = {n[:-7]: p.detach().clone() for n, p in learner.network.weights().items()}
    ends = []
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event:
            ends.append({n[:-7]: p.detach().clone() for n, p in learner.network.weights().items()})
    loop = reference(
        stream,
        start,
        watch.old.__getitem__,
        watch.first.__getitem__,
        learner.statistics,
        lr=0.3,
        batch=4,
        epochs=2,
        every=every,
        vary=vary,
        **spikes,
    )
    for task, (weights, new) in enumerate(loop):
        for name in weights:
            close = {"rtol": 0, "atol": 1e-8}
            torch.testing.assert_close(ends[task][name], weights[name], **close)
            torch.testing.assert_close(watch.last[2 * task + 1][name], new[name], **close)
            old = watch.old[task + 1][name] if task < 2 else hlop_of(learner).lateral[name].old
            basis = torch.linalg.qr(new[name].T).Q  # what is frozen spans what was learned
            both = torch.cat([watch.old[task][name], basis.T])
            torch.testing.assert_close(old.T @ old, both.T @ both, **close)
            start_rows = watch.first[task][name]
            gram = start_rows @ start_rows.T
            torch.testing.assert_close(gram, torch.eye(len(gram)).double(), rtol=0, atol=1e-12)
    assert all(float((ends[2][n] - start[n]).abs().max()) > 1e-3 for n in start)


@pytest.mark.parametrize("side", ["rows", "gradient", "coordinates"])
@pytest.mark.parametrize("rows", [0.15, 0.4], ids=["wide", "compact"])
def test_the_side_makes_no_difference(monkeypatch, side, rows):
    network = SpikingMlp(hidden=(16, 12), neuron=LIF(beta=0.5, v_th=V_TH))

    def weights():
        learner = learner_of(stream_of(12, 12, 12), (Hlop(rows=(rows,)),), network)
        run(learner)
        return learner.network.weights()

    free = weights()
    monkeypatch.setattr(Factor, "cheapest", lambda self: side)
    for name, p in weights().items():
        torch.testing.assert_close(p, free[name], rtol=0, atol=1e-10)


# ---- parameters ---------------------------------------------------------------------------------

SIZES = {"hidden1": 10, "hidden2": 20, "readout": 30}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((3,), [(3, 3, 3)] * 3),
        ((0.25,), [(2, 5, 8)] * 3),
        ((4, 2), [(4, 4, 4), (2, 2, 2), (2, 2, 2)]),
        (((1, 0.5, 0), 1, (2, 3, 4)), [(1, 10, 0), (1, 1, 1), (2, 3, 4)]),
        ([[1, 2, 3], 0], [(1, 2, 3), (0, 0, 0), (0, 0, 0)]),
    ],
)
def test_schedule_of_rows(rows, expected):
    spec = Hlop(rows=rows)
    for experience, counts in enumerate(expected):
        assert tuple(spec.rows_for(experience, SIZES).values()) == counts


@pytest.mark.parametrize("faithful", [False, True])
def test_a_size_per_synapse_must_fit_the_network(faithful):
    with pytest.raises(ConfigError, match=r"2 sizes.*2, 3.*hidden1, hidden2, readout"):
        network = SpikingMlp(hidden=(6, 5))
        learner_of(stream_of(5), (Hlop(rows=((2, 3),), faithful=faithful),), network)


@pytest.mark.parametrize("faithful", [False, True])
def test_later_sizes_are_checked_before_the_run_too(faithful):
    with pytest.raises(ConfigError):
        network = SpikingMlp(hidden=(6, 5))
        learner_of(stream_of(5, 5), (Hlop(rows=(2, (2, 3)), faithful=faithful),), network)


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("rows", [(2, (2, 7, 2)), (7,)])
def test_more_rows_than_inputs_are_refused_before_the_run(rows, faithful):
    with pytest.raises(ConfigError, match=r"got 7 rows for hidden2, which has 6 inputs; use at m"):
        network = SpikingMlp(hidden=(6, 7))
        learner_of(stream_of(5, 5), (Hlop(rows=rows, faithful=faithful),), network)


@pytest.mark.parametrize("rows", [(), (-1,), (1.5,), (0.0,), (1.0,), ((2, -1),), ("3",), (True,)])
def test_sizes_that_mean_nothing_are_refused(rows):
    with pytest.raises(ConfigError, match="Hlop.rows"):
        Hlop(rows=rows)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0},
        {"iterations": 0},
        {"every": 0},
        {"row": (1,)},
        {"rule": "hebb"},
        {"lateral": "rate"},
        {"lateral_scale": 0.0},
        {"lateral_scale": ()},
        {"lateral_scale": (1.0, -1.0)},
        {"lateral_steps": 0},
    ],
    ids=str,
)
def test_other_parameters_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Hlop(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "sanger"},
        {"lateral": "spiking"},
        {"others": "learn"},
        {"rate": 0.5},
        {"iterations": 3},
        {"every": 10},
    ],
    ids=str,
)
def test_the_authors_arithmetic_has_one_rule_and_linear_neurons_and_freezes(wrong):
    with pytest.raises(ConfigError, match="faithful=true.*leave one side out"):
        Hlop(faithful=True, **wrong)


def test_a_scale_per_synapse_must_fit_the_network():
    network = SpikingMlp(hidden=(6, 5))
    with pytest.raises(ConfigError, match=r"lateral_scale: got 2.*3 synapses \(hidden1, hidden2"):
        learner_of(stream_of(5), (Hlop(lateral="spiking", lateral_scale=(1.0, 2.0)),), network)
    scales = Hlop(lateral="quantised", lateral_scale=(1.0, 2.0, 4.0), lateral_steps=1)
    lateral = hlop_of(learner_of(stream_of(5), (scales,), network)).lateral
    big = torch.full((1, 1), 9.0)
    assert [float(each._response(big)) for each in lateral.values()] == [1, 2, 4]


class Parts(Nobody):
    """A host whose trainer shows a step in parts."""

    def __init__(self, count):
        self.count = count

    def part(self):
        return 1 / self.count


@pytest.mark.parametrize("parts", [1, 2])
def test_every_counts_the_steps_of_an_experience(parts):
    """Where a trainer shows a step in parts, the rule runs once, on the rows of all."""
    calls = []
    network = Mlp(hidden=(6,)).build((5,), 2).double()
    initialise(network, Seeds(0))
    context = Context(network, Sgd(), Seeds(0), DOMAIN_IL, 2, CPU, host=Parts(parts))
    method = Hlop(rows=(2,), every=3).start(context)
    x = torch.rand(4, 5).double(), torch.rand(4, 6).double()
    for _ in range(2):
        method.begin(None)
        for step in range(7):
            before = method.protection.lateral["hidden1"].new
            for rows in zip(*(each.chunk(parts) for each in x)):
                factors = {
                    name: Factor(part, torch.ones(len(part), 2).double(), part)
                    for name, part in zip(("hidden1", "readout"), rows)
                }
                method.factors(factors, None)
            method.after_step()
            calls.append((step, method.protection.lateral["hidden1"].new))
            if torch.equal(before, calls[-1][1]):
                calls.pop()
        method.end(None)
    assert [step for step, _ in calls] == [0, 3, 6, 0, 3, 6]
    lateral = LateralWeights(5, x[0])
    lateral.begin(2, Seeds(0).generator("hlop", event=0, epoch=0))
    for _, found in calls[:3]:
        lateral.learn(x[0], x[0], rate=method.protection._spec.rate, iterations=5)
        torch.testing.assert_close(found, lateral.new, rtol=0, atol=1e-12)


@pytest.mark.parametrize("readout", ["mean_rate", "mean_current"])
@pytest.mark.parametrize(
    "method",
    [Hlop(rows=(2, 2)), Hlop(rows=(2, 2), faithful=True), Inhibition(online=8, every=2)],
    ids=["hlop", "faithful", "online"],
)
def test_how_a_trainer_cuts_a_step_changes_nothing(readout, method):
    """Checkpoints save memory. Parts of one step and of two; the readout hears one mean of all."""
    found = []
    for trainer in (Bptt(), Bptt(checkpoint=1), Bptt(checkpoint=2)):
        network = SpikingMlp(hidden=(9, 7), neuron=LIF(beta=0.5, v_th=0.2), readout=readout)
        learner = learner_of(stream_of(8, 8), (method,), network, trainer=trainer)
        for _ in learner.ticks():
            pass
        protection = next(iter(learner.methods.methods.values())).protection
        rows = {n: p.detach() for n, p in learner.network.weights().items()}
        if isinstance(method, Hlop):
            held = protection.lateral.items()
            rows |= {n: getattr(each, "old", each) for n, each in held}
        else:
            rows |= dict(protection.covariance)
        found.append(rows)
    for other in found[1:]:
        for name, each in found[0].items():
            torch.testing.assert_close(other[name], each, rtol=0, atol=1e-9)


@pytest.mark.parametrize("faithful", [False, True], ids=["hlop", "faithful"])
def test_rows_start_from_the_seed_the_synapse_and_the_experience(faithful):
    def starts(seed):
        network = SpikingMlp(hidden=(8, 8)).build((8,), 3)
        context = Context(network, Sgd(), Seeds(seed), DOMAIN_IL, 3, CPU)
        method, rows = Hlop(rows=(2,), faithful=faithful).start(context), []
        for _ in range(2):
            method.begin(None)
            for lateral in method.protection.lateral.values():
                rows.append(lateral[-2:] if faithful else full(lateral))
            method.end(None)
        return rows

    one, again, other = starts(0), starts(0), starts(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again))
    every = [*one, *other]  # 2 roots, 2 experiences, 3 synapses of the same size
    assert len(every) == 12
    for i, a in enumerate(every):
        assert not any(torch.allclose(a, b, atol=1e-3) for b in every[:i])


@pytest.mark.parametrize("faithful", [False, True], ids=["hlop", "faithful"])
def test_report_after_each_event(faithful):
    network = SpikingMlp(hidden=(8,), neuron=LIF(beta=0.5, v_th=V_TH))
    learner = learner_of(stream_of(9, 9), (Hlop(rows=(3, (9, 2)), faithful=faithful),), network)
    said = [r for tick in learner.ticks() for r in tick.rows if r["phase"] == "report"]
    assert [r["metric"] for r in said] == ["hlop", "hlop"]
    sizes = [{n: (v["rows"], v["free"]) for n, v in r["value"].items()} for r in said]
    assert sizes[0] == {"hidden1": (3, 7), "readout": (3, 5)}
    assert sizes[1] == {"hidden1": (10, 0), "readout": (5, 3)}
    defects = [v["orthonormality_defect"] for r in said for v in r["value"].values()]
    assert all(isinstance(d, float) and d >= 0 and math.isfinite(d) for d in defects)
    assert max(defects) > 0


def test_bytes_are_what_is_kept():
    network = SpikingMlp(hidden=(8,), neuron=LIF(beta=0.5, v_th=V_TH))
    learner = learner_of(stream_of(9, 9), (Hlop(rows=(3,)),), network)
    sizes = {}
    for tick in learner.ticks():
        sizes[tick.kind, tick.position.event] = learner.methods.nbytes()
    assert sizes["epoch", 0] == 8 * 2 * (3 * 10 + 3 * 8)  # rows and momentum
    assert sizes["event", 1] == 8 * (3 * 10 + 3 * 8)  # frozen rows alone
    # old, learning rows and momentum in coordinates where compact, free basis
    wide, compact = 30 + 2 * 30 + 10 * 7, 24 + 2 * 3 * 5 + 8 * 5
    assert sizes["epoch", 1] == 8 * (wide + compact)
    assert learner.method_bytes == sizes["epoch", 1]


def test_boundaries_must_be_shown():
    with pytest.raises(PairingError, match=r"'hlop' needs boundary, which stream 'made' hides"):
        learner_of(stream_of(5, reveal=TASK_FREE), (Hlop(),), SpikingMlp(hidden=(6,)))
    learner_of(stream_of(5, reveal=CLASS_IL), (Hlop(),), SpikingMlp(hidden=(6,)))


def test_one_projection_at_a_time():
    @component
    class Other(MethodSpec):
        slot = "projection"

        def start(self, context):
            return Method()

    with pytest.raises(PairingError, match=r"'other' and 'hlop' both take the slot 'projection'"):
        learner_of(stream_of(5), (Other(), Hlop()), SpikingMlp(hidden=(6,)))


# ---- lateral neurons that spike -----------------------------------------------------------------

SPIKES = {
    "quantised": {"lateral": "quantised"},
    "spiking": {"lateral": "spiking"},
    "spiking sanger": {"lateral": "spiking", "rule": "sanger"},
    "quantised foldiak": {"lateral": "quantised", "rule": "foldiak"},
    "foldiak": {"rule": "foldiak"},
    "sanger": {"rule": "sanger"},
}


def spec_of(name, **options):
    spikes = {"lateral_scale": 3.0, "lateral_steps": 20} if "lateral" in SPIKES[name] else {}
    return Hlop(rows=(0.3,), **spikes, **{**SPIKES[name], **options})


@pytest.mark.parametrize("option", [{"lateral_scale": 3.0}, {"lateral_steps": 20}], ids=str)
def test_linear_neurons_have_no_size_of_spikes(option):
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=f"{name}={value} has no effect with lateral='linear'"):
        Hlop(**option)


@pytest.mark.parametrize("optimiser", ["decay", "adam", "adam with decay"])
@pytest.mark.parametrize("lateral", ["quantised", "spiking"])
def test_spikes_act_on_rows_and_no_update(optimiser, lateral):
    network, spec = SpikingMlp(hidden=(6,)), Hlop(lateral=lateral)
    with pytest.raises(PairingError, match=rf"lateral='{lateral}' inhibits rows.*plain sgd"):
        learner_of(stream_of(5), (spec,), network, optimiser=OPTIMISERS[optimiser])
    learner_of(stream_of(5), (spec,), network, optimiser=OPTIMISERS["momentum"])


@pytest.mark.parametrize("hook", ["gradients", "factors", "update"])
def test_spikes_and_whoever_changes_gradients_exclude_each_other(hook):
    methods = (pull(hook, Phase.EXTRA_GRADIENT), Hlop(lateral="spiking"))
    with pytest.raises(PairingError, match="inhibits rows.*another method"):
        learner_of(stream_of(5), methods, SpikingMlp(hidden=(6,)))


@pytest.mark.parametrize("lateral", ["quantised", "spiking"])
def test_trainers_without_rows_are_refused_at_the_first_step(lateral):
    network = SpikingMlp(hidden=(6,), neuron=LIF(beta=0.5, v_th=V_TH))
    learners = [
        learner_of(stream_of(8, 8), (Hlop(lateral=kind),), network, trainer=Oja())
        for kind in (lateral, "linear")
    ]
    start = {n: p.detach().clone() for n, p in learners[0].network.weights().items()}
    with pytest.raises(PairingError, match=r"trainer 'oja' gives synapse 'hidden1' a gradient"):
        run(learners[0])
    assert all(torch.equal(p, start[n]) for n, p in learners[0].network.weights().items())
    run(learners[1])  # what is linear may be projected as a gradient


@pytest.mark.parametrize("name", SPIKES)
def test_resumes_mid_task_bit_identically(name):
    def make():
        network = SpikingMlp(hidden=(12, 9), neuron=LIF(beta=0.5, v_th=V_TH))
        return learner_of(stream_of(12, 12, 12), (spec_of(name),), network)

    def frozen(learner):
        tensors, values = split(learner.state_dict())
        return join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))

    whole, states, rows = make(), [], []
    for tick in whole.ticks():
        rows += tick.rows
        if tick.kind == "step" and (tick.position.event, tick.position.step) in ((0, 2), (1, 1)):
            states.append((len(rows), frozen(whole)))
    assert len(states) == 4
    for count, state in states:
        again = make()
        again.load_state_dict(state)
        assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]
        (a, _), (b, _) = split(frozen(again)), split(frozen(whole))
        assert sorted(a) == sorted(b) and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("name", SPIKES)
def test_errors_are_reported_of_neurons_that_spike(name):
    network = SpikingMlp(hidden=(12,), neuron=LIF(beta=0.5, v_th=V_TH))
    learner = learner_of(stream_of(12, 12), (spec_of(name),), network)
    said = [r["value"] for tick in learner.ticks() for r in tick.rows if r["phase"] == "report"]
    assert json.loads(json.dumps(said)) == said
    for event, values in enumerate(said):
        for value in values.values():
            errors = {k: v for k, v in value.items() if k.endswith("_error")}
            if "lateral" not in SPIKES[name]:
                assert errors == {}
                continue
            assert sorted(errors) == ["projection_error", "response_error"]
            assert 0 < errors["response_error"] < 0.7
            assert (0 < errors["projection_error"] < 0.7) == (event > 0)


@pytest.mark.parametrize("name", SPIKES)
def test_convolutions_too(name):
    """Rows are patches, which lateral neurons meet one by one."""
    network = SpikingConvNet(channels=(6,), kernel=2, pool_size=1, neuron=LIF(beta=0.5, v_th=V_TH))
    flat = stream_of(12, 12, n=8)
    parts = []
    for event in flat:
        (part,) = event.train.parts
        parts.append(Samples((Part(part.x.view(-1, 2, 4), part.y, part.uid),)))
    tests = {f"task{i}": EvalSet(p, (0, 1, 2), (i,)) for i, p in enumerate(parts)}

    def make(i):
        return Experience(i, parts[i], (0, 1, 2), task=i)

    stream = Stream("made", {}, 0, DOMAIN_IL, 3, (2, 4), 2, make, tests)
    learner = learner_of(stream, (spec_of(name),), network)
    start = {n: p.detach().clone() for n, p in learner.network.weights().items()}
    run(learner)
    for n, p in learner.network.weights().items():
        assert p.isfinite().all() and not torch.equal(p, start[n])
    for lateral in hlop_of(learner).lateral.values():
        gram = lateral.old @ lateral.old.T
        torch.testing.assert_close(gram, torch.eye(len(gram)).double(), rtol=0, atol=1e-12)


def test_what_old_activity_keeps_shrinks_with_the_size_of_spikes():
    """The leak of a second task into rows that span all old activity."""
    leaks = []
    for steps in (20, 200, 2000):
        network = SpikingMlp(hidden=(40, 30), neuron=LIF(beta=0.5, v_th=V_TH))
        spec = Hlop(rows=(1,), lateral="quantised", lateral_scale=10.0, lateral_steps=steps)
        leak, _, _ = second_task((spec,), Sgd(lr=0.3), network)
        leaks.append(leak)
    assert leaks[0] > 3 * leaks[1] > 9 * leaks[2] > 1e-9, leaks
