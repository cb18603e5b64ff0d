"""Inhibitory plasticity: a plain loop, drift of Poisson trains, and a neuron held at its target."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from meetings import SPECS, build, off_diagonal, sides, synapses, trains

from spikecl.encoding import CrossEntropy
from spikecl.errors import ActivityWarning, ConfigError, PairingError
from spikecl.networks import (
    Layer,
    Linear,
    Mlp,
    Network,
    SpikingMlp,
    SpikingRecurrentNet,
    form_gradients,
)
from spikecl.networks.layer import Cells
from spikecl.neurons import LIF
from spikecl.trainers import Vogels

UNEVEN = {"rate": 0.3, "tau": 12.0, "target": 30.0, "dt": 0.5}
ALL = Vogels(**UNEVEN, synapses=("*",), readout="none")


def loop(rule, pre, post):
    """Change of one strength by two spike trains, step by step as printed."""
    decay, alpha = math.exp(-rule.dt / rule.tau), 2 * rule.target / 1000 * rule.tau
    x_pre = x_post = change = 0.0
    for i, j in zip(pre, post):
        x_pre *= decay
        x_post = x_post * decay + j
        change += i * (x_post - alpha) + j * x_pre
        x_pre += i
    return rule.rate * change


def change_of(rule, pre, post):
    """Change of a strength by trains [T, B]: a neuron that passes spikes on, and another input."""
    layers = {
        "hidden1": Layer(Linear(2, 1), Cells(LIF(beta=0.0, v_th=0.5)), inputs=("input",)),
        "readout": Layer(Linear(1, 2), None, inputs=("hidden1",)),
    }
    network = Network(layers).double()
    with torch.no_grad():
        network.weights()["hidden1.weight"].copy_(torch.tensor([[0.0, 1.0]]))
    made = rule.factors(network, torch.stack([pre, post], 2), lambda z: 0 * z.sum())
    change = -form_gradients(network, made.synapses, made.direct)["hidden1.weight"]
    return -float(change[0, 0])  # a strength is minus a weight


@pytest.mark.parametrize("kind", ["dense", "recurrent", "conv"])
def test_factors_equal_a_loop_over_every_synapse(kind):
    spec, shape = SPECS[kind]
    network, x = build(spec, shape), trains(20, 3, *shape)
    factors = ALL.factors(network, x, lambda z: 0 * z.sum())
    for path, (pre, post) in sides(network, x).items():
        expected = torch.zeros(post.shape[3], pre.shape[3], dtype=torch.float64)
        for j, i, _, one, other in synapses(pre, post):
            expected[j, i] -= loop(ALL, one, other)
        expected /= pre.shape[1] * pre.shape[2]
        found, expected = off_diagonal(path, -factors.synapses[path].gradient(), expected)
        assert float(expected.abs().max()) > 1e-3, path
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_pair_grows_it_in_either_order_and_a_lone_spike_shrinks_it():
    rule, alpha = Vogels(rate=1.0, synapses=("*",)), 2 * 0.005 * 20
    for lag in (0, 3, 11):
        for first, second in ((10, 10 + lag), (10 + lag, 10)):
            pre, post = torch.zeros(2, 40, 1, dtype=torch.float64)
            pre[first], post[second] = 1, 1
            assert change_of(rule, pre, post) == pytest.approx(math.exp(-lag / 20) - alpha)
    pre, post = torch.zeros(2, 40, 1, dtype=torch.float64)
    pre[10] = 1
    assert change_of(rule, pre, post) == pytest.approx(-alpha)
    assert change_of(rule, post, pre) == 0


def test_drift_is_down_below_the_target_up_above_and_none_at_it():
    """Poisson trains at 10 Hz before, with a rate of 1: 0.01 (2 tau nu - 0.2) per millisecond."""
    rule, generator = Vogels(rate=1.0, synapses=("*",)), torch.Generator().manual_seed(0)
    steps, samples, found = 2000, 400, {}
    for hertz in (2.5, 5.0, 10.0):
        draw = [torch.rand(steps, samples, generator=generator, dtype=torch.float64) for _ in "ab"]
        pre, post = (d < p / 1000 for d, p in zip(draw, (10.0, hertz)))
        found[hertz] = change_of(rule, pre.double(), post.double()) / steps
    assert found[2.5] == pytest.approx(-1.0e-3, abs=1.5e-4)
    assert found[5.0] == pytest.approx(0, abs=1.5e-4)
    assert found[10.0] == pytest.approx(2.0e-3, abs=2.5e-4)


def test_a_driven_neuron_comes_to_its_target():
    """Excitation that would make it fire several times as often is balanced by twenty inputs."""
    network = SpikingMlp(hidden=(1,), neuron=LIF(beta=0.9)).build((21,), 2).double()
    rule = Vogels(rate=2e-4, target=20.0, synapses=("hidden1",), readout="none")
    generator, rates = torch.Generator().manual_seed(0), []
    weight = network.weights()["hidden1.weight"]
    with torch.no_grad():
        weight.zero_()
    for _ in range(150):
        with torch.no_grad():
            weight[0, 0] = 0.45  # this one excites, and stays
        x = (torch.rand(200, 8, 21, generator=generator, dtype=torch.float64) < 0.3).double()
        made = rule.factors(network, x, lambda z: 0 * z.sum())
        rates.append(1000 * float(made.activity["hidden1"]))
        with torch.no_grad():
            weight -= form_gradients(network, made.synapses, made.direct)["hidden1.weight"]
            weight.copy_(rule.settle(network.weights())["hidden1.weight"])
    assert rates[0] > 60
    # its spikes are a little rarer behind spikes that inhibit it, so it rests a little above
    assert np.mean(rates[-75:]) == pytest.approx(20, rel=0.15)
    assert (weight[0, 1:] < -0.005).all()


def test_those_that_are_not_told_stay_and_bounds_are_kept():
    network = build(SpikingRecurrentNet(hidden=(5, 4), neuron=LIF(beta=0.8, v_th=0.4)), (6,))
    rule, x = Vogels(**UNEVEN, w_max=0.4), trains(20, 3, 6)
    made = rule.factors(network, x, lambda z: z.sum())
    with torch.no_grad():
        found = form_gradients(network, made.synapses, made.direct)
    assert not found["hidden1.weight"].any() and not found["hidden2.weight"].any()
    assert found["hidden1.recurrent.weight"].any() and found["readout.weight"].any()
    moved = rule.settle(network.weights())
    assert list(moved) == ["hidden1.recurrent.weight", "hidden2.recurrent.weight"]
    for name, value in moved.items():
        assert torch.equal(value, network.weights()[name].detach().clamp(-0.4, 0))
    network.weights()["hidden1.recurrent.weight"].requires_grad_(False)
    assert list(rule.settle(network.weights())) == ["hidden2.recurrent.weight"]


def test_a_target_that_neurons_cannot_reach_is_warned_of():
    x, loss = trains(5, 1, 6), CrossEntropy()
    spec = SpikingRecurrentNet(hidden=(5,), neuron=LIF(beta=0.5, refractory=4))
    network = build(spec, (6,))
    message = "'hidden1' cannot reach trainer.vogels.target=250.0 hertz: 0.2 spikes"
    with pytest.warns(ActivityWarning, match=message):
        Vogels(target=250.0).check(network, x, loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Vogels(target=250.0, dt=0.5).check(network, x, loss)
        Vogels(target=200.0).check(network, x, loss)


def test_what_cannot_be_is_refused():
    x, loss = trains(5, 1, 6), CrossEntropy()
    network = build(SpikingMlp(hidden=(5,)), (6,))
    with pytest.raises(PairingError, match=r"'\*.recurrent'.*trainer.vogels.synapses"):
        Vogels().check(network, x, loss)
    with pytest.raises(PairingError, match="did you mean 'hidden1'"):
        Vogels(synapses=("hiden1",)).check(network, x, loss)
    with pytest.raises(PairingError, match="other values"):
        Vogels(synapses=("*",)).check(network, x / 2, loss)
    with pytest.raises(PairingError, match="times of spikes"):
        Vogels(synapses=("*",)).check(Mlp(hidden=(5,)).build((6,), 3), x, loss)
    for wrong in ({"tau": -1.0}, {"target": 0.0}, {"rate": 0.0}, {"w_max": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Vogels(**wrong)
