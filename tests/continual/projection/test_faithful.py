"""Faithful HLOP against a numpy loop written from the description of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikecl.continual import Context, Hlop
from spikecl.networks import Factor, SpikingConvNet, SpikingMlp, initialise
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, Batch, LearnerView

SIZES = {"hidden1": 7, "hidden2": 6, "readout": 5}
BATCH = Batch(torch.zeros(1), None, None)
VIEW = LearnerView(DOMAIN_IL, {})


def context(seed: int = 3, optimiser=None) -> Context:
    network = SpikingMlp(hidden=(6, 5), bias=True).build((7,), 3).double()
    initialise(network, Seeds(seed))
    return Context(network, optimiser or Sgd(), Seeds(seed), DOMAIN_IL, 3, torch.device("cpu"))


def started(rows=(2,), **kwargs):
    return Hlop(rows=rows, faithful=True).start(context(**kwargs))


def factors(seed: int, *, scale: float = 1.0, traces: bool = False) -> dict[str, Factor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    made = {}
    for name, n in SIZES.items():
        x = draw(9, n) + scale  # some mean, so that the subspaces have something to find
        made[name] = Factor(x, draw(9, 3), draw(11, n) if traces else x)
    return made


class Loop:
    """specs/hlop.md, 1.1 to 1.3, one neuron and one sample at a time."""

    def __init__(self, rates):
        self.rates = rates
        self.h = {name: np.zeros((0, n)) for name, n in SIZES.items()}
        self.m = {name: np.zeros((0, n)) for name, n in SIZES.items()}
        self.old = dict.fromkeys(SIZES, 0)
        self.clipped = 0

    def add(self, name, block):
        self.h[name] = np.concatenate([self.h[name], block])
        self.m[name] = np.concatenate([self.m[name], np.zeros_like(block)])

    def merge(self):
        self.old = {name: len(h) for name, h in self.h.items()}

    def project(self, name, x):
        old = self.h[name][: self.old[name]]
        return np.stack([row - old.T @ (old @ row) for row in x])

    def learn(self, name, x):
        h, m = self.h[name], self.m[name]
        for _ in range(5):
            change = np.zeros_like(h)
            for row in x:
                y = h @ row
                reconstruction = y @ h  # all rows, the old ones too
                change += np.outer(y, row - reconstruction)
            change /= len(x)
            self.clipped += int((np.abs(change[self.old[name] :]) > 10).sum())
            change = np.clip(change, -10, 10)
            for i in range(self.old[name], len(h)):
                m[i] = 0.9 * m[i] + 0.1 * change[i]
                h[i] = h[i] + self.rates[name] * m[i]


@pytest.mark.parametrize("scale", [1.0, 6.0], ids=["small", "clipped"])
@pytest.mark.parametrize("traces", [False, True], ids=["spikes", "traces"])
def test_equals_the_loop_over_three_tasks(scale, traces):
    method = started(rows=((3, 2, 1), (2, 0, 2)))
    loop = Loop({"hidden1": 0.001, "hidden2": 0.01, "readout": 0.01})
    for task in range(3):
        method.begin(VIEW)
        for name in SIZES:
            loop.add(name, method.protection.lateral[name][len(loop.h[name]) :].numpy().copy())
        for step in range(4):
            given = factors(10 * task + step, scale=scale, traces=traces)
            projected = method.factors(given, BATCH)
            method.after_step()
            for name, factor in given.items():
                expected = factor.delta.numpy().T @ loop.project(name, factor.x.numpy())
                got = projected[name].gradient().numpy()
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10 * scale**2)
                assert torch.equal(projected[name].bias_gradient(), factor.delta.sum(0))
                loop.learn(name, factor.transmitted.numpy())
                np.testing.assert_allclose(
                    method.protection.lateral[name].numpy(), loop.h[name], rtol=0, atol=1e-10
                )
        method.end(VIEW)
        loop.merge()
    assert (loop.clipped > 0) == (scale == 6.0)
    assert [len(h) for h in loop.h.values()] == [7, 2, 5]


def test_old_rows_never_move():
    method = started()
    for task in range(3):
        method.begin(VIEW)
        before = {n: h.clone() for n, h in method.protection.lateral.items()}
        method.factors(factors(task), BATCH)
        method.after_step()
        for name, h in method.protection.lateral.items():
            assert torch.equal(h[: 2 * task], before[name][: 2 * task])
            assert not torch.equal(h[2 * task :], before[name][2 * task :]) or len(h) == 2 * task
            assert len(h) == min(2 * task + 2, SIZES[name])
        method.end(VIEW)


def test_new_rows_are_orthonormal_among_themselves_but_not_to_old_ones():
    method = started()
    for task in range(2):
        method.begin(VIEW)
        block = method.protection.lateral["hidden1"][2 * task :]
        torch.testing.assert_close(block @ block.T, torch.eye(2).double())
        method.end(VIEW)
    overlap = method.protection.lateral["hidden1"][:2] @ method.protection.lateral["hidden1"][2:].T
    assert overlap.abs().max() > 0.01
    assert method.report()["hidden1"]["orthonormality_defect"] > 0.01


def test_at_most_as_many_rows_as_inputs():
    method = started(rows=(4,))
    for _ in range(3):
        method.begin(VIEW)
        method.factors(factors(0), BATCH)
        method.after_step()
        method.end(VIEW)
    assert {n: len(h) for n, h in method.protection.lateral.items()} == SIZES
    assert method.report()["readout"] == {
        "rows": 5,
        "free": 0,
        "full": True,
        "orthonormality_defect": pytest.approx(
            np.abs(
                method.protection.lateral["readout"].numpy()
                @ method.protection.lateral["readout"].numpy().T
                - np.eye(5)
            ).max()
        ),
    }


def test_the_low_rate_is_of_a_first_synapse_that_is_dense():
    """specs/hlop.md, 1.1: 0.01 but for the 784-input layer of the networks for permuted MNIST."""
    conv = SpikingConvNet(channels=(2, 3), kernel=2, hidden=(), pool_size=1).build((5, 5, 1), 3)
    made = Context(conv, Sgd(), Seeds(3), DOMAIN_IL, 3, torch.device("cpu"))
    method = Hlop(rows=(1,), faithful=True).start(made)
    assert list(method.protection._rates.values()) == [0.01, 0.01, 0.01]
    assert list(started().protection._rates.values()) == [0.001, 0.01, 0.01]


def test_biases_are_frozen_after_the_first_task():
    method = started()
    gradients = {"hidden1.weight": torch.ones(1), "hidden1.bias": torch.ones(1)}
    method.begin(VIEW)
    assert set(method.gradients(gradients)) == set(gradients)
    method.end(VIEW)
    method.begin(VIEW)
    assert set(method.gradients(gradients)) == {"hidden1.weight"}


def test_the_optimiser_makes_no_difference():
    """The authors project gradients whatever comes behind; so does this."""
    assert type(started()) is type(started(optimiser=Adam()))


def test_state_goes_round_mid_task():
    methods = [started(), started()]
    first, second = methods
    first.begin(VIEW)
    first.factors(factors(0), BATCH)
    first.after_step()
    first.end(VIEW)
    first.begin(VIEW)
    first.factors(factors(1), BATCH)
    first.after_step()
    second.load_state_dict(join(*split(first.state_dict())))
    assert first.nbytes() == second.nbytes() == 2 * 8 * (4 * 7 + 4 * 6 + 4 * 5)
    for method in methods:
        method.factors(factors(2), BATCH)
        method.after_step()
        method.end(VIEW)
        method.begin(VIEW)
        method.factors(factors(3), BATCH)
        method.after_step()
    assert first.report() == second.report()
    for name in SIZES:
        assert torch.equal(first.protection.lateral[name], second.protection.lateral[name])
        a, b = (m.factors(factors(4), BATCH)[name].gradient() for m in methods)
        assert torch.equal(a, b)
    bias_and_weight = {"hidden1.bias": 1, "hidden1.weight": 2}
    assert set(second.gradients(bias_and_weight)) == {"hidden1.weight"}


def test_rows_are_drawn_alike_whatever_the_order_of_a_file():
    """Tensors come out of a file in any order."""
    first, second = started(), started()
    first.begin(VIEW)
    first.end(VIEW)
    state = first.state_dict()
    held = state["protection"]
    turned = {key: dict(reversed(held[key].items())) for key in ("weights", "momentum")}
    second.load_state_dict({**state, "protection": {**held, **turned}})
    for method in (first, second):
        method.begin(VIEW)
    for name in SIZES:
        assert torch.equal(first.protection.lateral[name], second.protection.lateral[name])
    assert list(first.report()) == list(second.report()) == list(SIZES)


def test_what_is_held_can_be_seen():
    method = started()
    method.begin(VIEW)
    assert method.protection.outside("hidden1") is None
    method.end(VIEW)
    x = factors(0)["hidden1"].x
    rows = method.protection.lateral["hidden1"]
    torch.testing.assert_close(
        method.protection.outside("hidden1").residual(x), x - x @ rows.T @ rows
    )


def test_norms_are_held_after_the_first_experience():
    network = SpikingMlp(hidden=(6,), norm="batch").build((7,), 3)
    method = Hlop(rows=(2,), faithful=True).start(
        Context(network, Sgd(), Seeds(0), DOMAIN_IL, 3, torch.device("cpu"))
    )
    norm, held = network.layers["hidden1"].norm, []
    for _ in range(2):
        method.begin(VIEW)
        held.append(norm.held)
        method.end(VIEW)
    assert held == [False, True]
