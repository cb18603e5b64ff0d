"""TACOS: plain where it has no strength, a plain loop, and updates by probability in the mean."""

from __future__ import annotations

import math

import pytest
import torch

from spikecl.continual import Context, Finetune
from spikecl.continual.metaplasticity.tacos import Tacos
from spikecl.encoding import Direct
from spikecl.errors import ConfigError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import SpikingConvNet, SpikingMlp, initialise
from spikecl.neurons import LIF
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, TASK_FREE
from spikecl.trainers import Bptt, Tbptt


@pytest.mark.parametrize("updates", ["scaled", "probability"])
@pytest.mark.parametrize("optimiser", [Sgd(lr=0.3, momentum=0.5), Adam(lr=0.02)])
def test_without_growth_and_pull_it_is_the_optimiser_alone(lab, updates, optimiser):
    options = {"optimiser": optimiser, "bias": True, "dtype": torch.float32}
    plain = lab.run(lab.learner(Finetune(), **options))
    none = lab.run(lab.learner(Tacos(growth=0.0, beta=0.0, updates=updates), **options))
    some = lab.run(lab.learner(Tacos(growth=0.5, updates=updates), **options))
    lab.equal(lab.weights(none), lab.weights(plain))
    assert not torch.equal(
        lab.weights(some)["hidden1.weight"], lab.weights(plain)["hidden1.weight"]
    )


@pytest.mark.parametrize("updates", ["scaled", "probability"])
def test_a_run_is_a_plain_loop(lab, updates):
    spec = Tacos(growth=0.3, threshold=0.9, tau=4.0, beta=0.05, tau_ref=7.0, updates=updates)
    learner = lab.learner(spec, bias=True)
    w = lab.weights(learner)
    lab.run(learner)
    names = ["hidden1.weight", "readout.weight"]
    ref, m = {n: w[n].clone() for n in names}, {n: torch.zeros_like(w[n]) for n in names}
    traces = {"x": torch.zeros(8).double(), "h": torch.zeros(7).double()}
    for step, (_, x, y) in enumerate(lab.batches(learner)):
        gradients = lab.gradients(w, x, y)
        h = (x @ w["hidden1.weight"].T + w["hidden1.bias"]).relu()
        new = {n: w[n] - 0.3 * gradients[n] for n in w}
        for place, name in enumerate(names):
            pre, post = ("x", "h") if place == 0 else ("h", None)
            n_out, n_in = w[name].shape
            draw = Seeds(3).generator("tacos", event=place, step=step)
            drawn = torch.rand(n_out, n_in, generator=draw, dtype=torch.float64)
            grown = m[name].clone()
            for i in range(n_out):
                for j in range(n_in):
                    old = float(w[name][i, j])
                    f = math.exp(-abs(float(m[name][i, j]) * old))
                    if updates == "probability":
                        f = 1.0 if float(drawn[i, j]) < f else 0.0
                    made = -0.3 * float(gradients[name][i, j]) * f
                    made -= 0.05 * (old - float(ref[name][i, j]))
                    new[name][i, j] = old + made
                    hot = traces[pre][j] > 0.9 * traces[pre].mean()
                    if post is not None:
                        hot = hot and traces[post][i] > 0.9 * traces[post].mean()
                    grown[i, j] += 0.3 if hot else 0.0
            ref[name] = ref[name] + (w[name] - ref[name]) / 7
            m[name] = grown
        traces["x"] = traces["x"] + (x.abs().mean(0) - traces["x"]) / 4
        traces["h"] = traces["h"] + (h.abs().mean(0) - traces["h"]) / 4
        w = new
    lab.close(lab.weights(learner), w)
    method = lab.method(learner, "tacos")
    lab.close(method.m, m)
    lab.close(method.reference, ref)
    values = method.m["hidden1.weight"].unique()
    assert len(values) > 3 and float(values.max()) > 3


def test_updates_by_probability_are_the_gate_in_the_mean_and_whole(lab):
    learner = lab.learner(Tacos(growth=0.0, beta=0.0, updates="probability"))
    method, name, count = lab.method(learner, "tacos"), "hidden1.weight", 4000
    method.m[name] = torch.linspace(0, 12, 56).double().view(7, 8)
    weight = lab.weights(learner)[name]
    f = torch.exp(-(method.m[name] * weight).abs())
    update = {n: torch.full_like(w, 0.5) for n, w in lab.weights(learner).items()}
    total = torch.zeros_like(weight)
    for _ in range(count):
        method.gradients({})
        made = method.update(update)[name]
        assert bool(((made == 0) | (made == 0.5)).all())
        total += made
    spread = 0.5 * (f * (1 - f) / count).sqrt()
    assert float(f.min()) < 0.3 and float(f.max()) == 1
    assert bool(((total / count - 0.5 * f).abs() <= 4.5 * spread + 1e-9).all())


def test_a_convolution_takes_a_channel_for_a_neuron():
    network = SpikingConvNet(channels=(3,), kernel=2, hidden=(5,)).build((4, 4), 2)
    initialise(network, Seeds(0))
    context = Context(network, Sgd(), Seeds(0), DOMAIN_IL, 2, torch.device("cpu"))
    method = Tacos(tau=1.0, growth=1.0).start(context)
    from types import SimpleNamespace

    conv = next(n for n, p in network.weights().items() if p.dim() == 4)
    layer = conv.removesuffix(".weight")
    rows = {n: torch.rand(6, len(method.pre[n])) for n in method.names}
    rates = {layer: torch.zeros(3, 3, 3)}
    rates[layer][1] = 0.8
    for _ in range(2):  # traces first, then what they say
        method.fired(rates, 1.0)
        method.factors(
            {n.removesuffix(".weight"): SimpleNamespace(transmitted=r) for n, r in rows.items()},
            None,
        )
        method.gradients({})
        method.update({n: torch.zeros_like(p) for n, p in network.weights().items()})
    mean = rows[conv].mean(0)
    expected = torch.zeros(3, len(mean))
    expected[1] = (mean > mean.mean()).float()
    torch.testing.assert_close(method.m[conv].flatten(1), expected)


def test_no_boundary_is_needed_and_the_report_has_m(lab):
    learner = lab.run(lab.learner(Tacos(growth=0.3), stream=lab.stream(TASK_FREE)))
    said = learner.methods.report()["tacos"]
    for name, m in lab.method(learner, "tacos").m.items():
        assert sum(said[name]["m"]["positive"]) == int((m > 0).sum()) > 0
        assert not any(said[name]["m"]["negative"])


@pytest.mark.parametrize(
    "options",
    [{"growth": -0.1}, {"tau": -5.0}, {"tau_ref": 0.0}, {"beta": -0.1}, {"beta": 1.0}],
)
def test_numbers_that_make_no_rule_are_refused(options):
    with pytest.raises(ConfigError, match=f"Tacos.{next(iter(options))}: got"):
        Tacos(**options)


def test_parts_of_a_step_count_as_long_as_they_are(lab):
    def traces(trainer):
        spec = SpikingMlp(hidden=(7,), neuron=LIF(beta=0.5, v_th=0.1), readout="mean_current")
        learner = Learner(
            stream=lab.stream(),
            network=spec.build((8,), 3),
            encoder=Direct(steps=6),
            trainer=trainer,
            methods=(Tacos(tau=1.0),),
            optimiser=Sgd(lr=1e-12),
            plan=TrainPlan(batch=6),
            seeds=Seeds(3),
            device=torch.device("cpu"),
        )
        next(t for t in learner.ticks() if t.kind == "step")
        method = lab.method(learner, "tacos")
        return method.pre["readout.weight"], method.post["hidden1.weight"]

    for whole, parts in zip(traces(Bptt()), traces(Tbptt(steps=4)), strict=True):
        assert float(whole.max()) > 0.1
        torch.testing.assert_close(parts, whole)
