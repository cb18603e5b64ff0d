"""Adam-NSCL: whole runs against a plain loop with Adam and singular values; null spaces by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.continual import Context, Finetune, Method
from spikecl.continual.projection.adam_nscl import AdamNscl
from spikecl.encoding import Encoder
from spikecl.errors import ConfigError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import Mlp, SpikingConvNet, SpikingMlp
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, Experience, Samples, Stream
from spikecl.streams.events import Part
from spikecl.streams.stream import EvalSet
from spikecl.trainers import Bptt

CPU = torch.device("cpu")
BATCH, EPOCHS, HIDDEN = 4, 2, (16, 12)
CLOSE = {"rtol": 0, "atol": 1e-10}
OPTIMISERS = {
    "sgd": Sgd(lr=0.2),
    "momentum and decay": Sgd(lr=0.1, momentum=0.9, weight_decay=0.02),
    "adam": Adam(lr=0.01),
    "adam and decay": Adam(lr=0.01, weight_decay=0.1),
}


class Varying(Encoder):
    """Current in float64, another one in each step."""

    def __init__(self, steps=1):
        self.steps = steps

    def encode(self, x, statistics, generator):
        x = ((x - statistics.mean) / statistics.std).double()
        return torch.stack([x.roll(t, -1) for t in range(self.steps)])


def stream_of(*sizes, shape=(10,)):
    """Tasks of some samples each, of which some inputs hardly vary; tested on the same."""
    generator = torch.Generator().manual_seed(0)
    sets, scales = [], torch.logspace(0, -1.5, shape[-1])
    for size in sizes:
        x = torch.rand(size, *shape, generator=generator) * scales
        sets.append(Samples((Part(x, torch.arange(size) % 3, torch.arange(size)),)))

    def make(i):
        return Experience(i, sets[i], (0, 1, 2), task=i)

    tests = {f"task{i}": EvalSet(s, (0, 1, 2), (i,)) for i, s in enumerate(sets)}
    return Stream("made", {}, 0, DOMAIN_IL, 3, shape, len(sets), make, tests)


def learner_of(stream, method, network=None, *, optimiser="adam", steps=1):
    network = network or Mlp(hidden=HIDDEN, bias=False)
    return Learner(
        stream=stream,
        network=network.build(stream.input_shape, 3).double(),
        encoder=Varying(steps),
        trainer=Bptt(),
        methods=(method,),
        optimiser=OPTIMISERS[optimiser],
        plan=TrainPlan(epochs=EPOCHS, batch=BATCH),
        seeds=Seeds(5),
        device=CPU,
    )


def nscl_of(learner):
    return learner.methods.methods["adam_nscl"].protection


def copies(learner):
    return {n: p.detach().clone() for n, p in learner.network.weights().items()}


def ends(learner):
    """Run; return the weights at the start and after each experience."""
    return [copies(learner) for tick in learner.ticks() if tick.kind == "event"]


def standard(learner, event):
    x = learner.stream[event].train.load().x
    return ((x - learner.statistics.mean) / learner.statistics.std).double()


# ---- a plain loop -------------------------------------------------------------------------------


def forward(w, x):
    rows, names = {}, list(w)
    for name in names:
        rows[name] = x.detach()
        x = x @ w[name].T
        x = torch.relu(x) if name != names[-1] else x
    return x, rows


def loop(learner, start, optimiser, a, samples):
    """The published algorithms with torch's optimisers; yields weights after each task."""
    w = {n[:-7]: p.clone().requires_grad_() for n, p in start.items()}
    covariance = {n: np.zeros((p.shape[1],) * 2) for n, p in w.items()}
    null, seen = {n: torch.eye(p.shape[1]).double() for n, p in w.items()}, 0
    for task in range(len(learner.stream)):
        x, y = standard(learner, task), learner.stream[task].train.load().y
        step = optimiser(w.values())
        for epoch in range(EPOCHS):
            generator = Seeds(5).generator("order", event=task, epoch=epoch)
            for picked in torch.split(torch.randperm(len(x), generator=generator), BATCH):
                before = {n: p.detach().clone() for n, p in w.items()}
                step.zero_grad()
                logits, _ = forward(w, x[picked])
                functional.cross_entropy(logits, y[picked]).backward()
                step.step()
                with torch.no_grad():
                    for n, p in w.items():
                        p.copy_(before[n] + (p - before[n]) @ null[n])
        generator = Seeds(5).generator("look", event=task)
        chosen = torch.randperm(len(x), generator=generator)[:samples]
        _, rows = forward(w, x[chosen])
        new = len(chosen)
        for n in w:
            one = sum(np.outer(r, r) for r in rows[n].numpy()) / new
            covariance[n] = seen / (seen + new) * covariance[n] + new / (seen + new) * one
            u, s, _ = np.linalg.svd(covariance[n])
            small = torch.from_numpy(u[:, s <= a * max(s[-1], s[0] * 2.2e-16)])
            null[n] = small @ small.T
        seen += new
        yield {n: p.detach().clone() for n, p in w.items()}, null


TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.2),
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam and decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_three_tasks_equal_a_plain_loop(optimiser):
    a, samples = 50.0, 23
    network = Mlp(hidden=HIDDEN, bias=False)
    stream = stream_of(31, 21, 26)  # more samples than are looked at, and fewer
    learner = learner_of(stream, AdamNscl(a=a, samples=samples), network, optimiser=optimiser)
    found = ends(learner)
    plain = list(loop(learner, found[0], TORCH[optimiser], a, samples))
    for task, (weights, _) in enumerate(plain):
        for n, w in weights.items():
            torch.testing.assert_close(found[task + 1][f"{n}.weight"], w, **CLOSE)
    for n, expected in plain[-1][1].items():
        outside = nscl_of(learner).outside(n)
        torch.testing.assert_close(outside.rows(), expected, **CLOSE)
        assert 0 < outside.free.shape[1] < len(expected)
    moved = [found[3][n] - found[1][n] for n in found[0]]
    assert min(float(change.abs().max()) for change in moved) > 1e-6


def test_the_plain_loop_can_tell():
    """The control: other numbers come out with another a, or other samples."""
    results = []
    for spec in (AdamNscl(a=50.0), AdamNscl(a=20.0), AdamNscl(a=50.0, samples=12)):
        results.append(ends(learner_of(stream_of(31, 21, 26), spec))[-1])
    for i, one in enumerate(results):
        for other in results[:i]:
            assert not torch.allclose(one["hidden2.weight"], other["hidden2.weight"], atol=1e-4)


# ---- the projection comes last ------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_old_outputs_stay_where_there_is_a_null_space(optimiser):
    """Few samples leave one, and everything that is new lies in it."""
    network = SpikingMlp(hidden=(40, 30), bias=True, neuron=LIF(beta=0.5, v_th=0.25))
    stream = stream_of(3, 40, shape=(30,))
    learner = learner_of(stream, AdamNscl(), network, optimiser=optimiser, steps=4)
    old = learner.encoder.encode(stream[0].train.load().x, learner.statistics, None)
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event == 1:
            taps = {}
            logits, before = learner.network(old, taps=taps).logits.detach(), copies(learner)
            rows = {n: tap.rows for n, tap in taps.items()}
    now = copies(learner)
    change = {n: now[n] - before[n] for n in now}
    assert max(float((x @ change[f"{n}.weight"].T).abs().max()) for n, x in rows.items()) < 1e-9
    assert float((learner.network(old).logits.detach() - logits).abs().max()) < 1e-9
    for n, c in change.items():
        moves = float(c.abs().max())
        assert moves > 1e-3 if n.endswith("weight") else moves == 0


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_update_is_projected_never_the_gradient(optimiser):
    learner = learner_of(stream_of(9), AdamNscl(), optimiser=optimiser)
    assert learner.methods.hooks("update")
    (method,) = learner.methods.methods.values()
    assert type(method).update is not Method.update
    factors = {"hidden1": object()}
    assert method.factors(factors, None) is factors


def test_a_convolution_has_patches():
    network = SpikingConvNet(channels=(4,), kernel=3, pool_size=1, neuron=LIF(beta=0.5, v_th=0.1))
    learner = learner_of(stream_of(9, shape=(5, 5, 2)), AdamNscl(), network, steps=2)
    ends(learner)
    conv = next(iter(learner.network.synapses))
    x = standard(learner, 0)
    maps = torch.cat([x, x.roll(1, -1)]).permute(0, 3, 1, 2)
    padding = learner.network.synapses[conv].geometry.padding
    patches = functional.unfold(maps, 3, padding=padding).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(
        nscl_of(learner).covariance[conv], patches.T @ patches / len(patches), **CLOSE
    )


# ---- null spaces by hand ------------------------------------------------------------------------


def null_space(values, a, *, dtype=torch.float64):
    """Return which directions of a diagonal covariance are free, and the report."""
    network = Mlp(hidden=(4,)).build((len(values),), 2).to(dtype)
    method = AdamNscl(a=a).start(Context(network, Sgd(), Seeds(0), DOMAIN_IL, 2, CPU))
    diagonal = torch.tensor(values, dtype=torch.float64).diag()
    covariance = {"hidden1": diagonal, "readout": torch.eye(4, dtype=torch.float64)}
    method.protection.load_state_dict({"samples": 1, "covariance": covariance})
    outside = method.protection.outside("hidden1")
    if outside is None:
        return None, method.report()["hidden1"]
    free = outside.diagonal()
    assert outside.free.dtype == dtype
    assert bool(((free - free.round()).abs() < 1e-6).all())
    return free.round().int().tolist(), method.report()["hidden1"]


@pytest.mark.parametrize(
    ("a", "free", "leak"),
    [
        (1.0, [0, 0, 1, 0], 1 / 115),
        (4.9, [0, 0, 1, 0], 1 / 115),
        (5.0, [0, 0, 1, 1], 6 / 115),
        (9.0, [0, 1, 1, 1], 15 / 115),
        (99.0, [0, 1, 1, 1], 15 / 115),
        (100.0, None, 1.0),
    ],
)
def test_a_times_the_least(a, free, leak):
    found, said = null_space((100, 9, 1, 5), a)
    assert found == free
    assert said == {"free": 4 if free is None else sum(free), "leak": pytest.approx(leak)}


def test_below_rounding_all_are_equal():
    """A neuron that is silent leaves what has no activity, in either precision."""
    assert null_space((1, 1e-3, 0), 10.0)[0] == [0, 0, 1]
    assert null_space((1, 1e-7, 0), 10.0)[0] == [0, 0, 1]
    assert null_space((1, 1e-7, 0), 10.0, dtype=torch.float32)[0] == [0, 1, 1]
    assert null_space((1, 1e-4, 0), 1e4, dtype=torch.float32)[0] == [0, 1, 1]
    assert null_space((1, 1e-2, 0), 1e4, dtype=torch.float32)[0] == [0, 0, 1]


def test_silence_closes_nothing():
    assert null_space((0, 0, 0), 10.0)[0] is None


def test_what_is_all_null_is_the_plain_run():
    stream, bias = stream_of(20, 20, 20), Mlp(hidden=(8,), bias=True)
    plain = ends(learner_of(stream, Finetune(), bias))
    open_ = ends(learner_of(stream, AdamNscl(a=1e30, others="learn"), bias))
    for a, b in zip(plain, open_, strict=True):
        for name in a:  # what was applied is taken apart and put together: rounding
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-13)


# ---- what it keeps and refuses ------------------------------------------------------------------


def test_report_and_bytes():
    learner = learner_of(stream_of(20, 20), AdamNscl(a=20.0), Mlp(hidden=(8,), bias=False))
    said = []
    for tick in learner.ticks():
        said += [r["value"] for r in tick.rows if r["phase"] == "report"]
    assert json.loads(json.dumps(said)) == said
    for s in said:
        assert 0 < s["hidden1"]["free"] < 10 and 0 < s["hidden1"]["leak"] < 0.5
    bases = [10 * 10, 8 * 8]
    assert learner.methods.nbytes() == 8 * 2 * sum(bases)


def test_state_goes_round_to_the_last_bit():
    learner = learner_of(stream_of(20, 20), AdamNscl(a=20.0))
    ends(learner)
    tensors, values = split(nscl_of(learner).state_dict())
    again = nscl_of(learner_of(stream_of(20, 20), AdamNscl(a=20.0)))
    again.load_state_dict(join(tensors, json.loads(json.dumps(values))))
    assert again.report() == nscl_of(learner).report() != {}
    assert again.state_dict()["samples"] == 40
    for name in again.sizes:
        for a, b in zip(again.outside(name), nscl_of(learner).outside(name), strict=True):
            assert len(a) and torch.equal(a, b) and a.stride() == b.stride()


def test_the_report_has_the_order_of_the_network_after_a_resume():
    learner = learner_of(stream_of(9), AdamNscl())
    ends(learner)
    state = nscl_of(learner).state_dict()
    turned = {**state, "covariance": dict(reversed(state["covariance"].items()))}
    again = nscl_of(learner_of(stream_of(9), AdamNscl()))
    again.load_state_dict(turned)
    assert list(again.report()) == list(nscl_of(learner).report()) == list(again.sizes)


@pytest.mark.parametrize(
    "wrong", [{"a": 0.5}, {"a": "10"}, {"samples": 0}, {"others": ""}, {"alpha": 1.0}], ids=str
)
def test_what_means_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"AdamNscl.{next(iter(wrong))}"):
        AdamNscl(**wrong)
