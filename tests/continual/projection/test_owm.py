"""OWM: whole runs against a plain loop with rank-one updates; P against its closed form."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional

from spikecl.continual import Context, Finetune
from spikecl.continual.projection.owm import Owm
from spikecl.encoding import Encoder, StepCrossEntropy
from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Factor, Mlp, SpikingConvNet, SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, TASK_FREE, Experience, Reveal, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt, Ottt

CPU = torch.device("cpu")
LR, BATCH, EPOCHS, HIDDEN = 0.3, 4, 2, (16, 12)
CLOSE = {"rtol": 0, "atol": 1e-8}
TIGHT = {"rtol": 0, "atol": 1e-11}


class Varying(Encoder):
    """Current in float64, another one in each step."""

    def __init__(self, steps=1):
        self.steps = steps

    def encode(self, x, statistics, generator):
        x = ((x - statistics.mean) / statistics.std).double()
        return torch.stack([x.roll(t, -1) for t in range(self.steps)])


def stream_of(*sizes, shape=(10,), reveal=DOMAIN_IL):
    """Tasks of some samples each; the test sets are the training sets."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for size in sizes:
        x = torch.rand(size, *shape, generator=generator)
        sets.append(Samples((Part(x, torch.arange(size) % 3, torch.arange(size)),)))

    def make(i):
        return Experience(i, sets[i], (0, 1, 2), task=i)

    tests = {f"task{i}": EvalSet(s, (0, 1, 2), (i,)) for i, s in enumerate(sets)}
    return Stream("made", {}, 0, reveal, 3, shape, len(sets), make, tests)


def learner_of(stream, method, network=None, *, optimiser=None, steps=1, trainer=None, loss=None):
    network = network or Mlp(hidden=HIDDEN, bias=False)
    return Learner(
        stream=stream,
        network=network.build(stream.input_shape, 3).double(),
        encoder=Varying(steps),
        trainer=trainer or Bptt(),
        methods=(method,),
        optimiser=optimiser or Sgd(lr=LR),
        plan=TrainPlan(epochs=EPOCHS, batch=BATCH),
        seeds=Seeds(5),
        device=CPU,
        loss=loss,
    )


def owm_of(learner):
    return learner.methods.methods["owm"].protection


def ends(learner):
    """Run; return weights and P at the start and after each experience."""
    found = []
    for tick in learner.ticks():
        if tick.kind == "event":
            weights = {n: p.detach().clone() for n, p in learner.network.weights().items()}
            maps = {}
            if "owm" in learner.methods.methods:
                maps = {n: owm_of(learner)._matrix(n).clone() for n in owm_of(learner).lateral}
            found.append((weights, maps))
    return found


def standard(learner, event):
    x = learner.stream[event].train.load().x
    return ((x - learner.statistics.mean) / learner.statistics.std).double()


def orders(size, event):
    """Yield the batches of an experience's steps."""
    for epoch in range(EPOCHS):
        generator = Seeds(5).generator("order", event=event, epoch=epoch)
        yield from torch.split(torch.randperm(size, generator=generator), BATCH)


def learned(p, x, alpha):
    """The published update for one mean x [n]."""
    k = p @ x
    return p - torch.outer(k, k) / (alpha + x @ k)


# ---- a plain loop -------------------------------------------------------------------------------


def forward(w, x):
    rows, names = {}, list(w)
    for name in names:
        rows[name] = x.detach()
        x = x @ w[name].T
        x = torch.relu(x) if name != names[-1] else x
    return x, rows


def loop(learner, start, alpha, decay, when, samples):
    """OWM as published; yields weights and P after each task."""
    w, names = {n[:-7]: p.clone() for n, p in start.items()}, [n[:-7] for n in start]
    p = {n: torch.eye(w[n].shape[1]).double() for n in names}
    for task in range(len(learner.stream)):
        x, y = standard(learner, task), learner.stream[task].train.load().y
        steps = list(orders(len(x), task))
        for step, picked in enumerate(steps):
            leaves = {n: v.clone().requires_grad_() for n, v in w.items()}
            logits, rows = forward(leaves, x[picked])
            functional.cross_entropy(logits, y[picked]).backward()
            for i, n in enumerate(names):
                if when == "step":
                    now = alpha[i] * decay[i] ** (step / len(steps))
                    p[n] = learned(p[n], rows[n].mean(0), now)
                w[n] = w[n] - LR * leaves[n].grad @ p[n]
        if when == "after":
            generator = Seeds(5).generator("look", event=task)
            chosen = torch.randperm(len(x), generator=generator)[:samples]
            for at in range(0, len(chosen), BATCH):
                _, rows = forward(w, x[chosen[at : at + BATCH]])
                for i, n in enumerate(names):
                    now = alpha[i] * decay[i] ** (at / len(chosen))
                    p[n] = learned(p[n], rows[n].mean(0), now)
        yield dict(w), dict(p)


RUNS = {
    "step": {"alpha": 0.5},
    "step, falling": {"alpha": (1.0, 0.3, 2.0), "decay": (1e-3, 0.1, 1.0)},
    "after": {"alpha": 0.05, "when": "after"},
    "after, falling": {"alpha": 0.1, "decay": 0.01, "when": "after", "samples": 7},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_three_tasks_equal_a_plain_loop(options):
    learner = learner_of(stream_of(11, 13, 9), Owm(**options))
    found = ends(learner)
    plain = loop(
        learner,
        found[0][0],
        *(
            v if isinstance(v, tuple) else (v,) * 3
            for v in (options["alpha"], options.get("decay", 1.0))
        ),
        options.get("when", "step"),
        options.get("samples", 5000),
    )
    for task, (weights, maps) in enumerate(plain):
        for n, w in weights.items():
            torch.testing.assert_close(found[task + 1][0][f"{n}.weight"], w, **CLOSE)
            torch.testing.assert_close(found[task + 1][1][n], maps[n], **CLOSE)
    moved = [found[3][0][n] - found[1][0][n] for n in found[0][0]]
    assert min(float(change.abs().max()) for change in moved) > 1e-3


def test_the_plain_loop_can_tell():
    """The control: every option changes the outcome by far more than the loop may be off."""
    results = []
    for options in (*RUNS.values(), {"alpha": 1.0}, {"alpha": 0.5, "decay": 0.5}):
        results.append(ends(learner_of(stream_of(11, 13, 9), Owm(**options)))[-1][0])
    for i, one in enumerate(results):
        for other in results[:i]:
            assert not torch.allclose(one["hidden2.weight"], other["hidden2.weight"], atol=1e-4)


# ---- P ------------------------------------------------------------------------------------------


def test_p_is_ridges_complement_of_batch_means():
    """``(I + sum x x^T / alpha)^-1``, and rows instead of means give another one."""
    learner = learner_of(stream_of(12), Owm(alpha=0.3))
    (_, (_, maps)) = ends(learner)
    x = standard(learner, 0)
    means = torch.stack([x[picked].mean(0) for picked in orders(12, 0)])
    eye = torch.eye(10).double()
    expected = torch.linalg.inv(eye + means.T @ means / 0.3)
    torch.testing.assert_close(maps["hidden1"], expected, **TIGHT)
    rows = torch.linalg.inv(eye + EPOCHS * x.T @ x / BATCH / 0.3)
    assert not torch.allclose(rows, expected, atol=0.05)


def test_p_stays_between_closed_and_open():
    """Where alpha falls by ten thousand, over many steps."""
    network = Mlp(hidden=(16,), bias=False)
    learner = learner_of(stream_of(60, 60, 60), Owm(alpha=0.1, decay=1e-4), network)
    for _, maps in ends(learner)[1:]:
        for p in maps.values():
            assert torch.equal(p, p.T)
            values = torch.linalg.eigvalsh(p)
            assert -1e-12 < float(values[0]) < 0.1 and float(values[-1]) <= 1 + 1e-12


def test_a_long_past_is_protected():
    """Old means hardly reach an update, and the less the smaller alpha is."""
    leaks = []
    for alpha in (10.0, 1.0, 0.1, 0.001):
        _, (_, maps) = ends(learner_of(stream_of(8), Owm(alpha=alpha)))
        learner = learner_of(stream_of(8), Finetune())
        means = torch.stack([standard(learner, 0)[picked].mean(0) for picked in orders(8, 0)])
        leaks.append(float((means @ maps["hidden1"]).norm() / means.norm()))
    assert leaks == sorted(leaks, reverse=True) and leaks[-1] < 0.05 < leaks[0]


@pytest.mark.parametrize("steps", [1, 3])
def test_patches_are_taken_one_after_the_other(steps):
    """Of the mean map, as the authors do; its inputs are data, whatever the weights are."""
    network = SpikingConvNet(channels=(4,), kernel=3, pool_size=1, neuron=LIF(beta=0.5, v_th=0.1))
    learner = learner_of(stream_of(9, shape=(5, 5, 2)), Owm(alpha=0.2), network, steps=steps)
    conv = next(iter(learner.network.synapses))
    geometry = learner.network.synapses[conv].geometry
    (_, (_, maps)) = ends(learner)
    x, p = standard(learner, 0).permute(0, 3, 1, 2), torch.eye(18).double()
    for picked in orders(9, 0):
        mean = torch.stack([x[picked].roll(t, 1) for t in range(steps)]).mean((0, 1))
        padded = functional.pad(mean, [geometry.padding] * 4)
        for i in range(padded.shape[1] - 2):
            for j in range(padded.shape[2] - 2):
                p = learned(p, padded[:, i : i + 3, j : j + 3].flatten(), 0.2)
    torch.testing.assert_close(maps[conv], p, **TIGHT)
    assert not torch.allclose(p, torch.eye(18).double(), atol=0.1)


TRAINERS = {"bptt": Bptt(), "traces": Ottt(), "windows": Ottt(window=1)}


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_a_batch_is_what_the_trainer_gives_at_once(trainer):
    """All steps in time together; or each window by itself. Traces are not what was sent."""
    neuron, windows, loss = LIF(beta=0.5, v_th=0.1), 1, None
    network = SpikingMlp(hidden=(6,), neuron=neuron, readout="mean_current")
    if trainer == TRAINERS["windows"]:
        loss, windows = StepCrossEntropy(), 3
    learner = learner_of(stream_of(9), Owm(alpha=0.5), network, steps=3, trainer=trainer, loss=loss)
    (_, (_, maps)) = ends(learner)
    x, p = standard(learner, 0), torch.eye(10).double()
    for picked in orders(9, 0):
        means = torch.stack([x[picked].roll(t, -1).mean(0) for t in range(3)])
        for mean in means.view(windows, -1, 10).mean(1):
            p = learned(p, mean, 0.5)
    torch.testing.assert_close(maps["hidden1"], p, **TIGHT)


def test_adam_is_given_the_whole_gradient_and_its_update_is_multiplied():
    network = Mlp(hidden=(4,), bias=False).build((6,), 2).double()
    method = Owm(alpha=0.1).start(Context(network, Adam(), Seeds(0), DOMAIN_IL, 2, CPU))
    method.begin(None)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 6, generator=generator).double()
    factor = Factor(x, torch.ones(5, 4).double(), x)
    assert method.factors({"hidden1": factor}, None)["hidden1"] is factor
    update = torch.randn(4, 6, generator=generator).double()
    made = method.update({"hidden1.weight": update})["hidden1.weight"]
    p = learned(torch.eye(6).double(), x.mean(0), 0.1)
    torch.testing.assert_close(made, update @ p, **TIGHT)
    assert not torch.allclose(made, update, atol=0.05)


# ---- when ---------------------------------------------------------------------------------------


def test_after_leaves_the_first_experience_alone_and_step_does_not():
    plain = ends(learner_of(stream_of(9, 9), Finetune()))
    after = ends(learner_of(stream_of(9, 9), Owm(when="after")))
    step = ends(learner_of(stream_of(9, 9), Owm(when="step")))
    for name, w in plain[1][0].items():
        assert torch.equal(w, after[1][0][name])
        assert not torch.allclose(w, step[1][0][name], atol=1e-3)
        assert not torch.allclose(plain[2][0][name], after[2][0][name], atol=1e-3)


def test_it_asks_for_boundaries_where_it_uses_them():
    assert Owm().needs == Owm(when="after", others="learn").needs == Reveal.BOUNDARY
    assert Owm(decay=(1.0, 0.5), others="learn").needs == Reveal.BOUNDARY
    assert Owm(decay=(1.0, 1.0), others="learn").needs == Reveal.NONE
    stream = stream_of(9, 9, reveal=TASK_FREE)
    with pytest.raises(PairingError, match="'owm' needs boundary"):
        learner_of(stream, Owm())
    hidden = ends(learner_of(stream, Owm(others="learn"), Mlp(hidden=(6,), bias=True)))
    shown = ends(learner_of(stream_of(9, 9), Owm(others="learn"), Mlp(hidden=(6,), bias=True)))
    for name, w in shown[-1][0].items():
        assert torch.equal(w, hidden[-1][0][name])


def test_a_falling_alpha_needs_to_know_how_far_it_is():
    network = Mlp(hidden=(4,)).build((6,), 2).double()
    method = Owm(decay=0.1).start(Context(network, Sgd(), Seeds(0), DOMAIN_IL, 2, CPU))
    x = torch.ones(5, 6).double()
    with pytest.raises(UsageError, match="how far.*has no host"):
        method.factors({"hidden1": Factor(x, torch.ones(5, 4).double(), x)}, None)


# ---- what it says, keeps and refuses ------------------------------------------------------------


def test_report_and_bytes():
    learner = learner_of(stream_of(9, 9), Owm(alpha=0.1), Mlp(hidden=(8,), bias=False))
    said = []
    for tick in learner.ticks():
        said += [r["value"] for r in tick.rows if r["phase"] == "report"]
    assert json.loads(json.dumps(said)) == said
    for n in ("hidden1", "readout"):
        left = [s[n]["plasticity"] for s in said]
        assert 1 > left[0] > left[1] > 0
        p = owm_of(learner)._matrix(n)
        assert left[1] == pytest.approx(float(p.trace()) / len(p))
    assert learner.methods.nbytes() == 8 * (10 * 10 + 8 * 8)


def test_state_goes_round_to_the_last_bit():
    network = SpikingConvNet(channels=(4,), kernel=3, pool_size=1, neuron=LIF(v_th=0.1))
    make = lambda: learner_of(stream_of(9, shape=(5, 5, 2)), Owm(), network, steps=2)  # noqa: E731
    learner, again = make(), owm_of(make())
    ends(learner)
    tensors, values = split(owm_of(learner).state_dict())
    again.load_state_dict(join(tensors, json.loads(json.dumps(values))))
    for name in again.sizes:
        a, b = again.outside(name), owm_of(learner).outside(name)
        assert torch.equal(a.matrix, b.matrix) and a.matrix.stride() == b.matrix.stride()
    rows = torch.rand(5 * 9, 18).double()  # a resumed run knows where patches are taken
    for protection in (again, owm_of(learner)):
        protection._learn(next(iter(again.sizes)), rows, 0.0)
    for name in again.sizes:
        assert torch.equal(again.lateral[name], owm_of(learner).lateral[name])


def test_the_report_has_the_order_of_the_network_after_a_resume():
    learner = learner_of(stream_of(9), Owm())
    ends(learner)
    state = owm_of(learner).state_dict()
    turned = {**state, "lateral": dict(reversed(state["lateral"].items()))}
    again = owm_of(learner_of(stream_of(9), Owm()))
    again.load_state_dict(turned)
    assert list(again.report()) == list(owm_of(learner).report()) == list(again.sizes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": ()},
        {"alpha": (1.0, -1.0)},
        {"decay": 0.0},
        {"decay": 1.1},
        {"when": "before"},
        {"samples": 0},
        {"rate": 1.0},
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"Owm.{next(iter(wrong))}"):
        Owm(**wrong)


def test_samples_are_of_an_experience_that_is_over():
    assert Owm(samples=7, when="after").samples == 7
    with pytest.raises(ConfigError, match="samples=7 has no effect with when='step'"):
        Owm(samples=7)


@pytest.mark.parametrize("key", ["alpha", "decay"])
def test_a_list_of_another_length_is_refused_at_the_start(key):
    with pytest.raises(ConfigError, match=rf"method.owm.{key}: got 2 values .* for 3 synapses"):
        learner_of(stream_of(5), Owm(**{key: (0.9, 0.5)}))
