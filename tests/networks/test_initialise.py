"""Initial weights: the documented distribution, a generator for each synapse."""

import pytest
import torch
from scipy.stats import kstest

from spikecl.networks import Mlp, SpikingMlp, SpikingRecurrentNet, initialise
from spikecl.neurons import PLIF
from spikecl.seeds import Seeds


def weights(seed=0, *, hidden=(8, 5), bias=False, shape=(6,), kind=SpikingMlp):
    network = kind(hidden=hidden, bias=bias).build(shape, 4)
    initialise(network, Seeds(seed))
    return {name: p.detach() for name, p in network.weights().items()}


@pytest.mark.parametrize("name", ["hidden1.weight", "hidden1.bias"])
def test_uniform_between_the_bounds_of_the_fan_in(name):
    values = weights(hidden=(1000,), bias=True, shape=(16,))[name].flatten()
    assert float(values.abs().max()) <= 0.25
    assert kstest(values.numpy(), "uniform", args=(-0.25, 0.5)).pvalue > 0.001


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    a, b, c = weights(1, bias=True), weights(1, bias=True), weights(2, bias=True)
    for name in a:
        assert torch.equal(a[name], b[name])
        assert not torch.equal(a[name], c[name])


def test_a_layer_does_not_depend_on_the_others():
    base = weights()
    deeper, wider = weights(hidden=(8, 5, 7)), weights(hidden=(8, 5), shape=(60,))
    for name in ("hidden1.weight", "hidden2.weight"):
        assert torch.equal(base[name], deeper[name])
    for name in ("hidden2.weight", "readout.weight"):
        assert torch.equal(base[name], wider[name])


def test_layers_of_one_shape_differ():
    same = weights(hidden=(6, 6))
    assert not torch.equal(same["hidden1.weight"], same["hidden2.weight"])


def test_weights_do_not_depend_on_the_bias_and_the_twin_starts_alike():
    plain, biased, twin = weights(), weights(bias=True), weights(kind=Mlp)
    for name in plain:
        assert torch.equal(plain[name], biased[name])
        assert torch.equal(plain[name], twin[name])


def test_the_type_changes_nothing_but_the_type():
    network = SpikingMlp(hidden=(8, 5)).build((6,), 4).double()
    initialise(network, Seeds(0))
    for name, expected in weights().items():
        assert torch.equal(network.weights()[name].detach(), expected.double())


def test_drawn_on_the_cpu_whatever_the_device():
    with torch.device("meta"):
        network = SpikingMlp(hidden=(8,)).build((6,), 4)
    initialise(network, Seeds(0))  # a generator of the wrong device would raise
    assert network.weights()["hidden1.weight"].device.type == "meta"


def test_the_global_generator_has_no_part_in_it():
    torch.manual_seed(0)
    a = weights()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    b = weights()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_parameters_stay_leaves_of_the_graph():
    network = SpikingMlp(hidden=(8,)).build((6,), 4)
    initialise(network, Seeds(0))
    assert all(p.is_leaf and p.requires_grad and p.grad is None for p in network.parameters())


OPTIONS = {"delay": 6, "norm": "batch", "standardise": True, "bias": True, "neuron": PLIF()}


def test_delays_are_drawn_evenly_over_the_range():
    network = SpikingMlp(hidden=(400,), delay=6).build((20,), 4)
    initialise(network, Seeds(0))
    delays = network.weights()["hidden1.delay"].detach().flatten()
    assert kstest(delays.numpy(), "uniform", args=(0, 6)).pvalue > 0.001
    again = SpikingMlp(hidden=(400,), delay=6).build((20,), 4)
    initialise(again, Seeds(1))
    assert not torch.equal(again.weights()["hidden1.delay"].detach().flatten(), delays)


def test_options_do_not_change_the_weights_that_are_drawn():
    plain = weights()
    network = SpikingMlp(hidden=(8, 5), **OPTIONS).build((6,), 4)
    initialise(network, Seeds(0))
    for name in plain:
        assert torch.equal(network.weights()[name].detach(), plain[name])


def test_a_recurrent_synapse_has_a_generator_of_its_own():
    network = SpikingRecurrentNet(hidden=(6,)).build((6,), 4)
    initialise(network, Seeds(0))
    w = network.weights()
    assert not torch.equal(w["hidden1.weight"], w["hidden1.recurrent.weight"])
    assert torch.equal(w["hidden1.weight"].detach(), weights(hidden=(6,))["hidden1.weight"])


def test_everything_starts_over():
    """Whatever a network went through: a second run on it begins as the first one did."""
    network = SpikingMlp(hidden=(8, 5), **OPTIONS).build((6,), 4)
    initialise(network, Seeds(0))
    first = {n: t.clone() for n, t in network.state_dict().items()}
    assert any("norm.variance" in n for n in first) and any("neuron.beta" in n for n in first)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.mul_(0.3).add_(1)
    initialise(network, Seeds(0))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, first[name]), name


@pytest.mark.parametrize("name", ["hidden1.gain", "hidden1.norm.gain"])
def test_gains_start_at_one(name):
    network = SpikingMlp(hidden=(8, 5), **OPTIONS).build((6,), 4)
    initialise(network, Seeds(0))
    assert network.weights()[name].tolist() == [1.0] * 8
