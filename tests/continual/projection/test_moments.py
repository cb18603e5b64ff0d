"""Second moments of what synapses transmit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikecl.continual import Context
from spikecl.continual.host import Seen
from spikecl.continual.projection.moments import Moments, check_alive, moments, products
from spikecl.errors import UsageError
from spikecl.networks import Mlp, SpikingMlp, initialise
from spikecl.neurons import LIF
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, Batch

CPU = torch.device("cpu")


def draw(count, n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, n)))


class Shelf:
    """A host with batches of inputs [T, B, n] to look at."""

    apart = False

    def __init__(self, *inputs):
        self.inputs, self.counts = inputs, []

    def look(self, samples, count):
        self.counts.append(count)
        for x in self.inputs:
            yield Seen(x, Batch(x, None, None), lambda outputs: outputs.sum())


class View:
    samples = None


def found(spec, host, sizes, weights=None, scale=1.0):
    network = spec.build((5,), 3).double()
    initialise(network, Seeds(0))
    with torch.no_grad():
        network.weights()["hidden1.weight"].mul_(scale)
    context = Context(network, Sgd(), Seeds(0), DOMAIN_IL, 3, CPU, host=host)
    return network, moments(context, View, sizes, 77, weights)


def test_a_mean_over_all_rows_however_they_come():
    x = draw(50, 6)
    for cuts in ((50,), (1, 49), (20, 0, 30)):
        made = Moments(6, CPU)
        for part in torch.split(x, cuts):
            made.add(part)
        torch.testing.assert_close(made.mean(), x.T @ x / 50, rtol=0, atol=1e-13)
        assert made.count == 50


def test_batches_of_single_precision_add_up_in_double():
    """A hundred batches: the error is that of one, not of their sum."""
    x = draw(5000, 3).float() + 10
    made = Moments(3, CPU)
    for part in x.split(50):
        made.add(part)
    exact = x.double().T @ x.double() / 5000
    assert made.mean().dtype == torch.float64
    torch.testing.assert_close(made.mean(), exact, rtol=2e-6, atol=0)


def test_of_nothing_is_nothing():
    assert torch.equal(Moments(3, CPU).mean(), torch.zeros(3, 3).double())


def test_of_each_synapse_that_is_asked_for_over_all_batches_and_steps():
    """Batches of different sizes: every row counts the same. Against a plain layer of LIF."""
    x = draw(3 * 11, 5).view(3, 11, 5)
    host = Shelf(x[:, :8], x[:, 8:])
    spec = SpikingMlp(hidden=(7,), neuron=LIF(beta=0.5, v_th=0.25), readout="mean_current")
    network, made = found(spec, host, {"readout": 7, "hidden1": 5})
    w, v, spikes = network.weights()["hidden1.weight"].detach(), 0.0, []
    for step in x:
        v = 0.5 * v + step @ w.T
        spikes.append((v > 0.25).double())
        v = v - 0.25 * spikes[-1]
    rows = {"hidden1": x.flatten(0, 1), "readout": torch.cat(spikes)}
    assert sorted(made) == sorted(rows) and host.counts == [77]
    for name, r in rows.items():
        torch.testing.assert_close(made[name], r.T @ r / 33, rtol=0, atol=1e-13)
    _, one = found(spec, host, {"readout": 7})
    assert list(one) == ["readout"]


def test_other_weights_can_stand_in():
    host, spec = Shelf(draw(8, 5)[None]), Mlp(hidden=(7,))
    network, own = found(spec, host, {"readout": 7})
    other = {n: 2 * p.detach() for n, p in network.weights().items()}
    _, made = found(spec, host, {"readout": 7}, other)
    torch.testing.assert_close(made["readout"], 4 * own["readout"], rtol=1e-12, atol=0)


def test_a_silent_synapse_is_named():
    spec = SpikingMlp(hidden=(7,), neuron=LIF(beta=0.5, v_th=0.25))
    _, made = found(spec, Shelf(draw(8, 5)[None]), {"hidden1": 5, "readout": 7}, scale=0.0)
    with pytest.raises(UsageError, match=r"method 'x': nothing reached readout in .* raise its"):
        check_alive(made, "x")
    check_alive({"hidden1": made["hidden1"]}, "x")
    one = torch.zeros(7, 7).double()
    one[3, 3] = 1e-9  # a single spike is enough
    check_alive({"readout": one}, "x")


@pytest.mark.parametrize("n", [1, 7, 200, 431])
def test_products_by_blocks_are_those_of_the_whole(n):
    x = torch.randn(13, n, generator=torch.Generator().manual_seed(n)).double()
    found = products(x)
    torch.testing.assert_close(found, x.T @ x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spikes", [True, False])
def test_sums_are_as_good_as_double_precision(spikes):
    """Of rows in single precision, which a product in single precision would round."""
    x = torch.rand(500, 30, generator=torch.Generator().manual_seed(0))
    x = (x < 0.3).float() if spikes else 0.1 + x
    found = Moments(30, torch.device("cpu"))
    found.add(x)
    torch.testing.assert_close(found.total, x.double().T @ x.double(), rtol=1e-14, atol=0)
    assert spikes == torch.equal((x.T @ x).double(), x.double().T @ x.double())
