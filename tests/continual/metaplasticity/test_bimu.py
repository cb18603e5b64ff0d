"""BiMU: coins and their gradients, the step number by number, a plain loop, who is refused."""

from __future__ import annotations

import math

import pytest
import torch

from spikecl.continual.metaplasticity.bimu import Bimu, step
from spikecl.errors import ConfigError, PairingError
from spikecl.seeds import Seeds
from spikecl.streams import TASK_FREE


def test_a_draw_is_a_coin_and_its_gradient_is_that_of_the_relaxed_draw(lab):
    learner = lab.learner(Bimu(temperature=0.7, likelihood=3.0), binary="fixed")
    method, name, count = lab.method(learner, "bimu"), "hidden1.weight", 3000
    with torch.no_grad():
        stored = learner.network.weights()[name]
        stored.copy_(torch.linspace(-2, 2, 56).view(7, 8))
    plus = torch.zeros_like(stored)
    for seed in range(count):
        plus += (method.draw(torch.Generator().manual_seed(seed))[0][name] > 0) / count
    p = torch.sigmoid(2 * stored)
    assert bool(((plus - p).abs() <= 4.5 * (p * (1 - p) / count).sqrt()).all())

    draw = Seeds(0).generator("x")
    u = torch.rand(stored.shape, generator=draw, dtype=torch.float64)
    leaf = stored.detach().clone().requires_grad_()
    relaxed = torch.tanh((leaf + (u / (1 - u)).log() / 2) / 0.7)
    slope = torch.randn(stored.shape, generator=draw, dtype=torch.float64)
    (expected,) = torch.autograd.grad((relaxed * slope).sum(), leaf)
    found, noise = method.draw(Seeds(0).generator("x"))
    torch.testing.assert_close(found[name], relaxed.detach())
    torch.testing.assert_close(method.said(noise, {name: slope})[name], 3 * expected)


@pytest.mark.parametrize("g", [-2.0, -0.01, 0.0, 0.3, 5.0])
@pytest.mark.parametrize("lam", [-3.0, -0.2, 0.0, 1.5])
def test_the_step_is_the_equation(lam, g):
    rule = Bimu(window=70.0, lr=0.9, lr_max=0.08, kl=0.4)
    found = float(step(*(torch.tensor(v, dtype=torch.float64) for v in (lam, g)), rule))
    h = 1 / math.cosh(lam) ** 2
    curve = 0.4 * h + 2 * g * math.tanh(lam) + 2 * abs(g) + 1 / 0.08
    assert curve > 0
    assert found == pytest.approx(-(0.9 * g + lam * h / 70) / curve, rel=1e-12)
    assert abs(float(step(torch.tensor(lam), torch.tensor(g), rule))) <= 0.08 * (abs(g) + 1)


def test_going_on_is_easier_than_turning_back():
    """At a certain synapse the step against it is the shorter one."""
    rule, lam = Bimu(window=1e12, lr_max=10.0), torch.tensor(2.0)
    along, against = (abs(float(step(lam, torch.tensor(g), rule))) for g in (-1.0, 1.0))
    assert along > 3 * against


def test_memory_fades_by_the_window_and_not_without_a_gradient(lab):
    rule = Bimu(window=25.0, kl=0.0, lr_max=1.0)
    lam = torch.tensor(1e-3, dtype=torch.float64)
    found = float(step(lam, torch.tensor(0.0, dtype=torch.float64), rule) / lam)
    assert found == pytest.approx(-1 / 25, rel=1e-5)
    learner = lab.learner(Bimu(window=2.0), binary="fixed")
    method, weights = lab.method(learner, "bimu"), lab.weights(learner)
    for fill, moves in ((0.0, False), (1e-9, True)):
        method.weights(weights)
        method.gradients({n: torch.full_like(w, fill) for n, w in weights.items()})
        made = method.update({n: torch.ones_like(w) for n, w in weights.items()})
        assert all(bool(each.any()) == moves for each in made.values())


@pytest.mark.parametrize("samples", [1, 3])
def test_a_run_is_a_plain_loop(lab, samples):
    spec = Bimu(window=20.0, likelihood=30.0, lr_max=0.3, kl=0.5, temperature=0.8, samples=samples)
    learner = lab.learner(spec, binary="fixed", bias=True)
    w = lab.weights(learner)
    names = ["hidden1.weight", "readout.weight"]
    lab.run(learner)
    count = 0
    for _, x, y in lab.batches(learner):
        total, first = {n: 0.0 for n in names}, {}
        for _ in range(samples):
            draw = Seeds(3).generator("bimu-weights", step=count)
            count += 1
            relaxed = {}
            for n in names:
                u = torch.rand(w[n].shape, generator=draw, dtype=torch.float64)
                relaxed[n] = torch.tanh((w[n] + (u / (1 - u)).log() / 2) / 0.8)
            found = lab.gradients({**w, **relaxed}, x, y, binary=True)
            first = first or found
            for n in names:
                total[n] = total[n] + 30 * found[n] * (1 - relaxed[n] ** 2) / 0.8 / samples
        for n in w:
            if n not in names:
                w[n] = w[n] - 0.3 * first[n]
                continue
            g, t = total[n], torch.tanh(w[n])
            h = 1 - t**2
            curve = 0.5 * h + 2 * g * t + 2 * g.abs() + 1 / 0.3
            w[n] = w[n] - (g + w[n] * h / 20) / curve
    lab.close(lab.weights(learner), w, atol=1e-9)


def test_tests_by_draws_are_mean_logits(lab):
    learner = lab.run(lab.learner(Bimu(tests=3), binary="fixed", stream=lab.stream(TASK_FREE)))
    method, w = lab.method(learner, "bimu"), lab.weights(learner)
    x, total = torch.rand(5, 8, dtype=torch.float64), 0.0
    draw = Seeds(3).generator("bimu-test", step=method._count)
    for _ in range(3):
        drawn = {}
        for n, lam in w.items():
            u = torch.rand(lam.shape, generator=draw, dtype=torch.float64)
            drawn[n] = torch.where(u < torch.sigmoid(-2 * lam), -1.0, 1.0).double()
        total = total + lab.forward(drawn, x, binary=True) / 3
    torch.testing.assert_close(method.predict(x[None], None), total)


def test_a_real_network_and_numbers_without_sense_are_refused(lab):
    with pytest.raises(PairingError, match=r"'bimu' is about hidden weights.*or method 'mesu'"):
        lab.learner(Bimu())
    for options in ({"window": -1.0}, {"lr_max": 0.0}, {"kl": -0.1}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match=f"Bimu.{next(iter(options))}: got"):
            Bimu(**options)
