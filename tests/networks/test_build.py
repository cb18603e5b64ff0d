"""Builders: sizes, names, options that reach the neuron, refusals."""

import pytest
import torch

from spikecl.errors import ConfigError
from spikecl.networks import Mlp, NetworkSpec, SpikingMlp
from spikecl.neurons import LIF, Arctan, Rectified, Reset


def shapes(network):
    return {name: tuple(p.shape) for name, p in network.weights().items()}


@pytest.mark.parametrize("spec", [SpikingMlp(hidden=(5, 3)), Mlp(hidden=(5, 3))])
def test_sizes_and_names(spec):
    network = spec.build((2, 3, 1), 4)
    assert isinstance(spec, NetworkSpec)
    assert shapes(network) == {
        "hidden1.weight": (5, 6),
        "hidden2.weight": (3, 5),
        "readout.weight": (4, 3),
    }
    assert [layer.inputs for layer in network.layers.values()] == [
        ("input",), ("hidden1",), ("hidden2",)
    ]  # fmt: skip
    assert all(not p.any() for p in network.parameters())


@pytest.mark.parametrize("kind", [SpikingMlp, Mlp])
def test_bias_is_asked_for(kind):
    assert not any("bias" in name for name in kind(hidden=(5,)).build((6,), 4).weights())
    biased = shapes(kind(hidden=(5,), bias=True).build((6,), 4))
    assert biased["hidden1.bias"] == (5,)
    assert biased["readout.bias"] == (4,)


def test_neurons_and_readout():
    spiking, twin = SpikingMlp(hidden=(5, 3)).build((6,), 4), Mlp(hidden=(5, 3)).build((6,), 4)
    for network, neuron in ((spiking, LIF(beta=0.5)), (twin, Rectified())):
        units = [layer.neuron for layer in network.layers.values()]
        assert [u.neuron for u in units[:-1]] == [neuron, neuron]
        assert units[-1] is None


def test_the_neuron_reaches_every_layer():
    neuron = LIF(beta=0.3, v_th=0.7, reset=Reset.ZERO, surrogate=Arctan(slope=6.0))
    network = SpikingMlp(hidden=(5, 3), neuron=neuron).build((6,), 4)
    assert [layer.neuron.neuron for layer in list(network.layers.values())[:2]] == [neuron] * 2


@pytest.mark.parametrize("readout", ["mean_rate", "mean_current"])
def test_the_readout_is_passed_on(readout):
    network = SpikingMlp(hidden=(2,), readout=readout).build((3,), 2)
    assert network.mean_first == (readout == "mean_rate")


@pytest.mark.parametrize("kind", [SpikingMlp, Mlp])
@pytest.mark.parametrize("hidden", [(), (3, 0), (-1,)])
def test_hidden_sizes_are_checked(kind, hidden):
    with pytest.raises(ConfigError, match=r"hidden.*(got|at least)"):
        kind(hidden=hidden).build((6,), 4)


@pytest.mark.parametrize(
    "options", [{"neuron": "lif"}, {"neuron": 3}, {"dropout": 1.0}, {"learns": ("alpha",)}]
)
def test_unknown_options_are_refused(options):
    options = {k: {"model": "liff"} if v == "lif" else v for k, v in options.items()}
    with pytest.raises(ConfigError):
        SpikingMlp(**options).build((6,), 4)


def test_building_draws_nothing():
    before = torch.get_rng_state()
    SpikingMlp(hidden=(5,)).build((6,), 4)
    assert torch.equal(torch.get_rng_state(), before)
