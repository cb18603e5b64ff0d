"""Schedule-free steps equal a numpy loop of the paper's three sequences, whatever is projected."""

import numpy as np
import pytest
import torch
from torch import nn

from spikecl.optim import ScheduleFreeAdamW, ScheduleFreeSgd

SGD = ScheduleFreeSgd(lr=0.3)
CASES = [
    SGD,
    ScheduleFreeSgd(lr=0.3, beta=0.0),
    ScheduleFreeSgd(lr=0.3, beta=0.98, weight_decay=0.1),
    ScheduleFreeAdamW(lr=0.05),
    ScheduleFreeAdamW(lr=0.05, beta1=0.5, beta2=0.7, weight_decay=0.2),
]
each_rule = pytest.mark.parametrize("rule", CASES, ids=str)
SHARES = [0.0, 0.25, 0.5, *[1.0] * 10, *[0.3] * 7]  # warm-up, and a rate that falls again


class Sequences:
    """z, x and y of the paper, each kept; ``allow`` acts on the step of z."""

    def __init__(self, rule, start, allow=lambda step: step):
        self.rule, self.allow = rule, allow
        self.z, self.x, self.y = start.copy(), start.copy(), start.copy()
        self.v, self.k, self.total, self.highest = np.zeros_like(start), 0, 0.0, 0.0

    def step(self, gradient, share):
        rule, lr = self.rule, self.rule.lr * share
        adam = isinstance(rule, ScheduleFreeAdamW)
        beta = rule.beta1 if adam else rule.beta
        self.k += 1
        d = gradient
        if adam:
            self.v = rule.beta2 * self.v + (1 - rule.beta2) * gradient**2
            d = gradient / (np.sqrt(self.v / (1 - rule.beta2**self.k)) + 1e-8)
        self.z = self.z + self.allow(-lr * (d + rule.weight_decay * self.y))
        self.highest = max(self.highest, lr)
        self.total += self.highest**2
        c = self.highest**2 / self.total if self.total else 0.0
        self.x = (1 - c) * self.x + c * self.z
        self.y = (1 - beta) * self.z + beta * self.x


def started(seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    start = rng.standard_normal((5, 6))
    return rng, start, nn.Parameter(torch.tensor(start, dtype=dtype))


def average(optimiser, parameter):
    with optimiser.evaluating():
        return parameter.detach().numpy().copy()


def trained(parameter):
    return parameter.detach().numpy().copy()


@each_rule
def test_it_follows_the_three_sequences(rule):
    rng, start, w = started()
    plain, optimiser = Sequences(rule, start), rule.start({"w": w})
    for share in SHARES:
        gradient = rng.standard_normal(start.shape) + trained(w)
        optimiser.step({"w": torch.from_numpy(gradient)}, share)
        plain.step(gradient, share)
        np.testing.assert_allclose(trained(w), plain.y, rtol=0, atol=1e-12)
        np.testing.assert_allclose(average(optimiser, w), plain.x, rtol=0, atol=1e-12)
    assert np.abs(plain.x - start).max() > 0.01


def test_a_constant_rate_is_a_plain_mean():
    """Without interpolation the gradients are those of plain descent, and x is the mean of it."""
    rng, start, w = started()
    optimiser = ScheduleFreeSgd(lr=0.1, beta=0.0).start({"w": w})
    z, seen = start.copy(), []
    for _ in range(20):
        z = z - 0.1 * z
        seen.append(z)
        optimiser.step({"w": w.detach().clone()})
        np.testing.assert_allclose(trained(w), z, rtol=1e-12)
    np.testing.assert_allclose(average(optimiser, w), np.mean(seen, axis=0), rtol=1e-12)


@pytest.mark.parametrize("beta", [0.9, 0.98])
def test_in_single_precision_it_stays_near(beta):
    """The last z is read off y, so rounding of y reaches it 1 / (1 - beta) times as large."""
    rule = ScheduleFreeSgd(lr=0.02, beta=beta)
    rng, start, w = started(dtype=torch.float32)
    plain, optimiser = Sequences(rule, start), rule.start({"w": w})
    for _ in range(3000):
        gradient = rng.standard_normal(start.shape)
        optimiser.step({"w": torch.tensor(gradient, dtype=torch.float32)})
        plain.step(gradient, 1.0)
    assert np.abs(average(optimiser, w) - plain.x).max() < 1e-5 / (1 - beta)
    assert np.abs(plain.x - start).max() > 0.5


@each_rule
def test_tests_leave_the_parameters_bit_for_bit(rule):
    rng, start, w = started()
    optimiser = rule.start({"w": w})
    with optimiser.evaluating():
        assert np.array_equal(trained(w), start)  # nothing was moved yet
    for _ in range(3):
        optimiser.step({"w": torch.from_numpy(rng.standard_normal(start.shape))})
    before = trained(w)
    address, state = w.data_ptr(), {k: t.clone() for k, t in optimiser.state_dict()["w"].items()}
    with pytest.raises(RuntimeError, match="in a test"), optimiser.evaluating():
        assert np.abs(trained(w) - before).max() > 1e-3
        raise RuntimeError("in a test")
    assert np.array_equal(trained(w), before) and w.data_ptr() == address
    assert all(torch.equal(t, state[k]) for k, t in optimiser.state_dict()["w"].items())


@each_rule
def test_at_the_end_of_an_experience_all_three_meet(rule):
    rng, start, w = started()
    optimiser = rule.start({"w": w})
    for _ in range(4):
        optimiser.step({"w": torch.from_numpy(rng.standard_normal(start.shape))})
    x = average(optimiser, w)
    optimiser.settle()
    assert np.array_equal(trained(w), x) and np.array_equal(average(optimiser, w), x)
    optimiser.settle()
    assert np.array_equal(trained(w), x)


@each_rule
def test_carried_over_only_the_numbers_go_on(rule):
    """The sequences begin where the parameters are, though somebody set them anew."""
    rule = type(rule)(**{f: getattr(rule, f) for f in rule.__slots__} | {"state": "carried"})
    rng, start, w = started()
    plain, optimiser = Sequences(rule, start), rule.start({"w": w})
    for experience in range(3):
        optimiser.renew({"w": w})
        for _ in range(4):
            gradient = rng.standard_normal(start.shape)
            optimiser.step({"w": torch.from_numpy(gradient)})
            plain.step(gradient, 1.0)
        optimiser.settle()
        np.testing.assert_allclose(trained(w), plain.x, rtol=0, atol=1e-12)
        if experience == 1:
            w.data.mul_(0.5)
            plain.x = 0.5 * plain.x
        plain.z, plain.y = plain.x.copy(), plain.x.copy()


def projected(optimiser, parameter, gradient, allow):
    """Step, and let a projection act on the applied update, as the learner does."""
    old = parameter.detach().clone()
    optimiser.step({"w": torch.from_numpy(gradient)})
    update = torch.from_numpy(allow((parameter.detach() - old).numpy()))
    parameter.data.copy_(old + update)


@each_rule
def test_a_projection_of_updates_projects_the_average(rule):
    """To project what is applied to y is to project the steps of z: x does not leak."""
    rng, start, w = started()
    held = np.linalg.qr(rng.standard_normal((6, 2)))[0]

    def allow(step):
        return step - step @ held @ held.T

    plain, optimiser = Sequences(rule, start, allow), rule.start({"w": w})
    for _ in range(200):
        gradient = rng.standard_normal(start.shape) + trained(w)
        projected(optimiser, w, gradient, allow)
        plain.step(gradient, 1.0)
        np.testing.assert_allclose(trained(w), plain.y, rtol=0, atol=1e-11)
        np.testing.assert_allclose(average(optimiser, w), plain.x, rtol=0, atol=1e-11)
        assert np.abs((average(optimiser, w) - start) @ held).max() < 1e-12
    optimiser.settle()
    assert np.abs((trained(w) - start) @ held).max() < 1e-12
    assert np.abs(trained(w) - start).max() > 0.1


@each_rule
def test_what_is_masked_stays_to_the_last_bit(rule):
    rng, start, w = started()
    mask = rng.random(start.shape) < 0.5
    optimiser = rule.start({"w": w})
    for _ in range(30):
        projected(optimiser, w, rng.standard_normal(start.shape), lambda step: step * mask)
        for values in (trained(w), average(optimiser, w)):
            assert np.array_equal(values[~mask], start[~mask])
    assert (average(optimiser, w)[mask] != start[mask]).all()


def test_a_minimum_is_found_without_a_schedule():
    """Noisy gradients of a quadratic: the average is nearer to the minimum than the last steps."""
    rng, start, w = started()
    optimiser = ScheduleFreeSgd(lr=0.5).start({"w": w})
    last = []
    for step in range(2000):
        noise = torch.from_numpy(rng.standard_normal(start.shape))
        optimiser.step({"w": w.detach() + noise})
        if step >= 1900:
            last.append(np.abs(trained(w)).mean())
    assert np.abs(average(optimiser, w)).mean() < 0.5 * np.mean(last)
    assert np.abs(average(optimiser, w)).mean() < 0.05
