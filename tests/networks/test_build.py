"""Builders: sizes, names, options that reach the neuron, refusals."""

import pytest
import torch

from spikecl.errors import ConfigError
from spikecl.networks import Mlp, NetworkSpec, Relu, Spiking, SpikingMlp
from spikecl.neurons import LIF, Arctan, FastSigmoid, Reset, Sigmoid


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
    for network, unit in ((spiking, Spiking), (twin, Relu)):
        units = [layer.neuron for layer in network.layers.values()]
        assert [type(u) for u in units[:-1]] == [unit, unit]
        assert units[-1] is None


def test_options_reach_every_neuron():
    spec = SpikingMlp(
        hidden=(5, 3), beta=0.3, v_th=0.7, reset="zero", surrogate="arctan", slope=6.0
    )
    expected = LIF(beta=0.3, v_th=0.7, reset=Reset.ZERO, surrogate=Arctan(slope=6.0))
    network = spec.build((6,), 4)
    assert spec.neuron() == expected
    assert [layer.neuron.neuron for layer in list(network.layers.values())[:2]] == [expected] * 2


@pytest.mark.parametrize(
    ("name", "kind"), [("sigmoid", Sigmoid), ("arctan", Arctan), ("fast_sigmoid", FastSigmoid)]
)
def test_surrogates_by_name(name, kind):
    assert SpikingMlp(surrogate=name, slope=2.5).neuron().surrogate == kind(slope=2.5)


@pytest.mark.parametrize("reset", ["soft", "zero", "none"])
def test_resets_by_name(reset):
    assert SpikingMlp(reset=reset).neuron().reset is Reset(reset)


@pytest.mark.parametrize("readout", ["mean_rate", "mean_current"])
def test_the_readout_is_passed_on(readout):
    assert SpikingMlp(hidden=(2,), readout=readout).build((3,), 2).readout == readout


@pytest.mark.parametrize("kind", [SpikingMlp, Mlp])
@pytest.mark.parametrize("hidden", [(), (3, 0), (-1,)])
def test_hidden_sizes_are_checked(kind, hidden):
    with pytest.raises(ConfigError, match=r"hidden.*(got|at least)"):
        kind(hidden=hidden).build((6,), 4)


@pytest.mark.parametrize(
    "options", [{"surrogate": "sigmod"}, {"reset": "value"}, {"v_th": 0.0}, {"beta": 1.5}]
)
def test_unknown_options_are_refused(options):
    with pytest.raises(ConfigError, match=f"SpikingMlp.{next(iter(options))}"):
        SpikingMlp(**options)


def test_building_draws_nothing():
    before = torch.get_rng_state()
    SpikingMlp(hidden=(5,)).build((6,), 4)
    assert torch.equal(torch.get_rng_state(), before)
