"""MESU: fixed points, a plain loop with one draw and with several, tests by draws, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from spikecl.components import component
from spikecl.continual import Method, MethodSpec
from spikecl.continual.metaplasticity.mesu import Mesu, step
from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.optim import Adam
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import TASK_FREE


def scalar(value):
    return torch.tensor(float(value), dtype=torch.float64)


@pytest.mark.parametrize(("mu", "sigma"), [(2.0, 0.05), (-1.0, 1.5)])
def test_without_a_loss_it_relaxes_to_the_prior(mu, sigma):
    rule = Mesu(window=40.0, prior=0.7, mean=0.3)
    mu, sigma, none = scalar(mu), scalar(sigma), (scalar(0), scalar(0))
    for _ in range(4000):
        dmu, dsigma = step(mu, sigma, none, rule)
        mu, sigma = mu + dmu, sigma + dsigma
    assert float(mu) == pytest.approx(0.3, abs=1e-6)
    assert float(sigma) == pytest.approx(0.7, abs=1e-6)


def test_near_the_prior_the_rate_is_one_over_the_window():
    rule = Mesu(window=50.0, prior=0.7, mean=0.3)
    dmu, dsigma = step(scalar(0.4), scalar(0.7), (scalar(0), scalar(0)), rule)
    assert float(dmu) == pytest.approx(-0.1 / 50, rel=1e-12) and float(dsigma) == 0
    _, dsigma = step(scalar(0.4), scalar(0.7 + 1e-6), (scalar(0), scalar(0)), rule)
    assert float(dsigma) == pytest.approx(-1e-6 / 50, rel=1e-5)


@pytest.mark.parametrize(("n", "h", "prior"), [(100.0, 2.0, 1.0), (1000.0, 0.1, 0.5), (10.0, 5, 2)])
def test_a_quadratic_loss_has_the_width_of_its_posterior(n, h, prior):
    """With curvature h, centred at 0.8: dC/dsigma = h sigma in the mean over draws."""
    rule = Mesu(window=n, prior=float(prior), mean=0.0)
    mu, sigma = scalar(0.0), scalar(0.3)
    for _ in range(20_000):
        dmu, dsigma = step(mu, sigma, (h * (mu - 0.8), h * sigma), rule)
        mu, sigma = mu + dmu, sigma + dsigma
    precision = 1 / prior**2 + n * h
    assert float(sigma) ** 2 == pytest.approx(prior**2 / (1 + n * h * prior**2), abs=1e-6)
    assert float(mu) == pytest.approx(0.8 * n * h / precision, abs=1e-6)


def test_draws_give_the_slope_of_a_quadratic(lab):
    """<e dC/dw> of C = h w^2 / 2 is h sigma."""
    learner = lab.learner(Mesu())
    method, h, name, total = lab.method(learner, "mesu"), 3.0, "hidden1.weight", 0.0
    for seed in range(400):
        drawn, noise = method.draw(torch.Generator().manual_seed(seed))
        total = total + noise[name] * h * drawn[name] / 400
    expected = h * method.sigma[name].mean()
    assert float(total.mean()) == pytest.approx(float(expected), rel=0.05)


@pytest.mark.parametrize("evidence", ["sum", "mean"])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_run_is_a_plain_loop(lab, samples, evidence):
    spec = Mesu(window=30.0, prior=0.8, mean=0.1, width=0.6, samples=samples, evidence=evidence)
    learner = lab.learner(spec, bias=True, optimiser=Adam(lr=0.1))
    mu = lab.weights(learner)
    fan_in = {"hidden1": 8, "readout": 7}
    sigma = {n: torch.full_like(w, 0.6 / fan_in[n.split(".")[0]] ** 0.5) for n, w in mu.items()}
    lab.run(learner)
    count, doubled = 0, 0
    for _, x, y in lab.batches(learner):
        slopes = {n: [0.0, 0.0] for n in mu}
        for _ in range(samples):
            draw = Seeds(3).generator("mesu-weights", step=count)
            noise = {
                n: torch.randn(w.shape, generator=draw, dtype=torch.float64) for n, w in mu.items()
            }
            count += 1
            found = lab.gradients({n: mu[n] + sigma[n] * noise[n] for n in mu}, x, y)
            for n, g in found.items():
                g = g * (len(x) if evidence == "sum" else 1) / samples
                slopes[n] = [slopes[n][0] + g, slopes[n][1] + noise[n] * g]
        for n in mu:
            m, s = mu[n], sigma[n]
            mu[n] = m - s**2 * slopes[n][0] + s**2 * (0.1 - m) / (30 * 0.64)
            ds = -(s**2) / 2 * slopes[n][1] + s * (0.64 - s**2) / (2 * 30 * 0.64)
            doubled += int((ds.abs() > s / 2).sum())
            sigma[n] = torch.minimum(torch.maximum(s + ds, s / 2), 2 * s)
    lab.close(lab.weights(learner), mu)
    lab.close(lab.method(learner, "mesu").sigma, sigma)
    assert float((sigma["hidden1.weight"] - sigma["hidden1.weight"].mean()).abs().max()) > 1e-3


def test_sigma_stays_positive_whatever_the_gradient_is(lab):
    learner = lab.learner(Mesu(width=3.0, least=0.01))
    method, name = lab.method(learner, "mesu"), "hidden1.weight"
    start = {n: w.clone() for n, w in method.sigma.items()}
    method.weights(dict(learner.network.weights()))
    for sign, bound in ((1.0, 0.5), (-1.0, 2.0)):
        method.sigma = {n: w.clone() for n, w in start.items()}
        method._said = {f"mu:{n}": torch.zeros_like(w) for n, w in start.items()}
        method._said |= {f"sigma:{n}": torch.full_like(w, sign * 1e6) for n, w in start.items()}
        method.changed(name, torch.zeros_like(start[name]), lab.weights(learner)[name])
        torch.testing.assert_close(method.sigma[name], bound * start[name])
    for _ in range(20):
        method._said[f"sigma:{name}"] = torch.full_like(start[name], 1e9)
        method.changed(name, torch.zeros_like(start[name]), lab.weights(learner)[name])
    assert float(method.sigma[name].min()) == float(method.sigma[name].max()) == 0.01


def test_gradients_are_clipped_by_the_width(lab):
    learner = lab.learner(Mesu(clip=0.5))
    method = lab.method(learner, "mesu")
    method._batch = type("Batch", (), {"x": torch.zeros(4, 8)})()
    noise = {n: torch.ones_like(w) for n, w in method.sigma.items()}
    said = method.said(noise, {n: torch.full_like(w, 1e4) for n, w in noise.items()})
    for n, sigma in method.sigma.items():
        torch.testing.assert_close(said[f"mu:{n}"], 0.5 / sigma)


def test_tests_by_draws_are_mean_logits_and_change_nothing(lab):
    one, many = (lab.run(lab.learner(Mesu(tests=tests))) for tests in (0, 4))
    lab.equal(lab.weights(one), lab.weights(many))
    method, mu = lab.method(many, "mesu"), lab.weights(many)
    x = torch.rand(5, 8, dtype=torch.float64)
    draw, total = Seeds(3).generator("mesu-test", step=method._count), 0.0
    for _ in range(4):
        w = {
            n: m + method.sigma[n] * torch.randn(m.shape, generator=draw, dtype=torch.float64)
            for n, m in mu.items()
        }
        total = total + lab.forward(w, x) / 4
    torch.testing.assert_close(method.predict(x[None], None), total)
    assert not hasattr(type(lab.method(one, "mesu")), "votes")


def test_several_draws_resume_mid_task(lab):
    make = lambda: lab.learner(Mesu(samples=3, tests=2), stream=lab.stream(TASK_FREE))  # noqa: E731
    whole, states, rows = make(), [], []
    for tick in whole.ticks():
        rows += tick.rows
        if tick.kind == "step" and tick.position.step == 2:
            tensors, values = split(whole.state_dict())
            states.append((len(rows), join({n: t.clone() for n, t in tensors.items()}, values)))
    assert len(states) > 3
    for count, state in states[1::2]:
        again = make()
        again.load_state_dict(state)
        assert [row for tick in again.ticks() for row in tick.rows] == rows[count:]
        lab.equal(lab.weights(again), lab.weights(whole))
        lab.equal(lab.method(again, "mesu").sigma, lab.method(whole, "mesu").sigma)


@pytest.mark.parametrize("options", [{"window": -1.0}, {"prior": 0.0}, {"width": -2.0}])
def test_numbers_that_make_no_prior_are_refused(options):
    with pytest.raises(ConfigError, match=f"Mesu.{next(iter(options))}: got"):
        Mesu(**options)


def test_two_rules_with_steps_of_their_own_are_refused(lab):
    from spikecl.continual.metaplasticity.bimu import Bimu

    with pytest.raises(PairingError, match="both take the slot 'step'"):
        lab.learner(Mesu(), Bimu(), binary="fixed")


def test_several_draws_beside_a_penalty_are_refused(lab):
    @component
    class Pull(MethodSpec):
        """Pull weights to zero."""

        def start(self, context):
            return Pulling(context)

    class Pulling(Method):
        def __init__(self, context):
            self.network = context.network

        def gradients(self, gradients):
            return {n: g + 0.1 * self.network.weights()[n] for n, g in gradients.items()}

    lab.run(lab.learner(Pull(), Mesu()))
    with pytest.raises(PairingError, match="'mesu' with samples=2 averages.*use samples=1"):
        lab.learner(Pull(), Mesu(samples=2))


def test_several_draws_of_parts_of_a_batch_are_refused(lab, monkeypatch):
    learner = lab.learner(Mesu(samples=2))
    monkeypatch.setattr(learner.training, "portion", 0.5)
    with pytest.raises(UsageError, match="samples=2 shows whole batches.*use samples=1"):
        lab.run(learner)


def test_the_report_has_mu_and_sigma(lab):
    learner = lab.run(lab.learner(Mesu(), bias=True))
    said = learner.methods.report()["mesu"]
    assert sorted(said) == sorted(lab.weights(learner))
    for name, values in said.items():
        sigma = lab.method(learner, "mesu").sigma[name]
        assert sum(values["sigma"]["positive"]) == sigma.numel()
        assert math.isclose(values["mean_sigma"], float(sigma.mean()))
