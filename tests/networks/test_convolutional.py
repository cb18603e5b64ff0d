"""Convolutional builders: sizes by hand, and the published networks among them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from spikecl.errors import ConfigError
from spikecl.networks import (
    Conv2d,
    ConvNet,
    Dale,
    ResNet,
    SpikingConvNet,
    SpikingResNet,
    initialise,
)
from spikecl.networks.network import count_parameters
from spikecl.neurons import LIF
from spikecl.seeds import Seeds


def sizes(network, shape):
    """Return the map of each layer with neurons, [C, H, W]."""
    return {
        name: t["spikes"].shape[2:] for name, t in network.record(torch.rand(2, 1, *shape)).items()
    }


def test_1_12_64_on_mnist():
    """28 -> 24 -> 12 -> 8 -> 4, and 1024 inputs of the readout."""
    network = SpikingConvNet().build((28, 28), 10)
    assert sizes(network, (28, 28)) == {"conv1": (12, 24, 24), "conv2": (64, 8, 8)}
    assert {n: tuple(p.shape) for n, p in network.weights().items()} == {
        "conv1.weight": (12, 1, 5, 5),
        "conv2.weight": (64, 12, 5, 5),
        "readout.weight": (10, 64 * 16),
    }


@pytest.mark.parametrize(
    ("options", "shape", "expected", "readout"),
    [
        ({"padding": "same"}, (28, 28), [(12, 28, 28), (64, 14, 14)], 64 * 49),
        ({"kernel": 3}, (12, 9, 3), [(12, 10, 7), (64, 3, 1)], None),
        ({"kernel": 3, "pool_size": 1}, (8, 8), [(12, 6, 6), (64, 4, 4)], 64 * 16),
        ({"channels": (2,), "kernel": 3, "pool_size": 3}, (8, 8, 2), [(2, 6, 6)], 2 * 4),
        ({"channels": (2,), "kernel": 3, "hidden": (7, 6)}, (8, 8), [(2, 6, 6), (7,), (6,)], 6),
    ],
)
def test_sizes(options, shape, expected, readout):
    if readout is None:
        with pytest.raises(ConfigError, match="after conv2 no pixel"):
            SpikingConvNet(**options).build(shape, 4)
        return
    network = SpikingConvNet(**options).build(shape, 4)
    assert list(sizes(network, shape).values()) == expected
    assert network.weights()["readout.weight"].shape == (4, readout)
    first = network.weights()["conv1.weight"]
    assert first.shape[1] == (shape[2] if len(shape) == 3 else 1)


@pytest.mark.parametrize("pool", ["max", "average"])
def test_the_twin_is_a_torch_network(pool):
    network = ConvNet(channels=(3, 4), kernel=3, pool=pool, hidden=(6,), bias=True)
    network = network.build((12, 12, 2), 5).double()
    initialise(network, Seeds(0))
    w = {n: p.detach() for n, p in network.weights().items()}
    plain = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
    ).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), w.values(), strict=True)))
    x = torch.rand(1, 3, 12, 12, 2).double()
    expected = plain(x[0].permute(0, 3, 1, 2))
    torch.testing.assert_close(network(x).logits, expected)
    torch.testing.assert_close(network(x.expand(6, *x.shape[1:])).logits, expected)


@pytest.mark.parametrize("kind", [SpikingConvNet, ConvNet, SpikingResNet, ResNet])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 4, 5), ()])
def test_what_is_no_image_is_refused(kind, shape):
    with pytest.raises(ConfigError, match=r"needs images.*use spiking_mlp"):
        kind().build(shape, 2)


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (5, 9), (11, 28)])
@pytest.mark.parametrize("per_neuron", [False, True])
def test_images_too_small_are_refused(shape, per_neuron):
    spec = SpikingConvNet(neuron=LIF(), learns=("beta",), per_neuron=per_neuron)
    with pytest.raises(ConfigError, match=r"no pixel of .* is left; use fewer convolutions"):
        spec.build(shape, 2)


def resnet18_parameters(width, classes):
    """Stem and 16 convolutions of 3x3, three of 1x1, two numbers of each norm, the readout."""
    channels, count = [width, 2 * width, 4 * width, 8 * width], 0
    count += 3 * width * 9 + 2 * width
    n = width
    for m in channels:
        for _ in range(2):
            count += n * m * 9 + 2 * m + m * m * 9 + 2 * m
            if n != m:
                count += n * m + 2 * m
            n = m
    return count + 8 * width * classes


def test_resnet_18_of_the_projection_literature():
    network = SpikingResNet(width=20).build((32, 32, 3), 100)
    convolutions = {n: s for n, s in network.synapses.items() if isinstance(s, Conv2d)}
    main = [n for n in convolutions if not n.endswith("shortcut")]
    shortcuts = [n for n in convolutions if n.endswith("shortcut")]
    assert (len(main), shortcuts) == (
        17, ["stage2block1shortcut", "stage3block1shortcut", "stage4block1shortcut"]
    )  # fmt: skip
    assert list(network.layers)[-1] == "readout"
    assert count_parameters(network) == resnet18_parameters(20, 100)
    assert count_parameters(network) == 1_109_240 - 100  # as published; their readout has a bias
    maps = sizes(network, (32, 32, 3))
    for stage, (channels, side) in enumerate([(20, 32), (40, 16), (80, 8), (160, 4)]):
        for block in (1, 2):
            for part in "ab":
                assert maps[f"stage{stage + 1}block{block}{part}"] == (channels, side, side)
    assert network.weights()["readout.weight"].shape == (100, 160)


def test_resnet_with_64_channels_has_torchvision_s_size():
    """11.2 million; with the stem of 7x7 and 1000 classes it is the 11 689 512 of the paper."""
    ours = count_parameters(ResNet(width=64).build((32, 32, 3), 1000))
    stem = 64 * 3 * (49 - 9)
    assert ours + stem + 1000 == 11_689_512  # their readout has a bias


def block_by_hand(w, norms, x, name, stride, training):
    def conv(h, layer, stride=1):
        weight = w[f"{layer}.weight"]
        h = functional.conv2d(h, weight, stride=stride, padding=weight.shape[-1] // 2)
        return functional.batch_norm(
            h, *norms[layer], w[f"{layer}.norm.gain"], w[f"{layer}.norm.shift"], training
        )

    h = conv(x, f"{name}a", stride).relu()
    short = conv(x, f"{name}shortcut", stride) if f"{name}shortcut.weight" in w else x
    return (conv(h, f"{name}b") + short).relu()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_the_twin_is_a_residual_network_by_hand(training, size):
    network = ResNet(width=3, blocks=(1, 2, 1)).build((*size, 2), 4).double()
    initialise(network, Seeds(0))
    w = {n: p.detach() for n, p in network.weights().items()}
    statistics = {n: s.clone() for n, s in network.statistics().items()}
    norms = {
        name: (statistics[f"{name}.norm.mean"], statistics[f"{name}.norm.variance"])
        for name in network.layers
        if name != "readout"
    }
    x = torch.rand(1, 5, *size, 2, generator=torch.Generator().manual_seed(1)).double()
    h = functional.conv2d(x[0].permute(0, 3, 1, 2), w["stem.weight"], padding=1)
    h = functional.batch_norm(
        h, *norms["stem"], w["stem.norm.gain"], w["stem.norm.shift"], training
    ).relu()
    for name, stride in (
        ("stage1block1", 1),
        ("stage2block1", 2),
        ("stage2block2", 1),
        ("stage3block1", 2),
    ):
        h = block_by_hand(w, norms, h, name, stride, training)
    expected = h.mean((2, 3)) @ w["readout.weight"].T
    output = network(x, training=training)
    torch.testing.assert_close(output.logits, expected)
    for name, value in output.statistics.items():
        torch.testing.assert_close(value, statistics[name])  # batch_norm wrote them in place


def test_a_shortcut_adds_spikes_to_the_current():
    """Without norm, and with a first convolution of zero, a block passes its input's spikes on."""
    network = SpikingResNet(width=2, blocks=(1,), norm="none", neuron=LIF(beta=0.0, v_th=0.5))
    network = network.build((4, 4), 2).double()
    initialise(network, Seeds(0))
    with torch.no_grad():
        network.weights()["stem.weight"].mul_(5)
        network.weights()["stage1block1b.weight"].zero_()
    x = torch.rand(3, 2, 4, 4).double()
    traces = network.record(x, variables=["spikes", "current"])
    assert traces["stem"]["spikes"].any() and traces["stage1block1a"]["spikes"].any()
    block = traces["stage1block1b"]
    assert (block["current"] == traces["stem"]["spikes"]).all()
    assert (block["spikes"] == traces["stem"]["spikes"]).all()


@pytest.mark.parametrize("shape", [(9, 7, 3), (32, 32, 3), (1, 1)])
def test_values_per_neuron_fit_strided_maps(shape):
    spec = SpikingResNet(width=2, blocks=(1, 1, 1), neuron=LIF(), learns=("v_th",), per_neuron=True)
    network = spec.build(shape, 3)
    assert bool(network(torch.rand(2, 2, *shape)).logits.isfinite().all())
    for name, size in sizes(network, shape).items():
        assert network.weights()[f"{name}.neuron.v_th"].shape == size


def test_dale_s_law_holds_over_shortcuts():
    """An inhibitory unit's spikes must not be added to a current as they are."""
    free, signed = (
        SpikingResNet(width=3, blocks=(2, 1), excitatory=share).build((6, 6), 2)
        for share in (0.0, 0.6)
    )
    assert free.layers["stage1block1b"].currents == ("stem",)
    for name, layer in signed.layers.items():
        assert all(source.endswith("shortcut") for source in layer.currents)
        assert (Dale(excitatory=0.6) in layer.synapse.maps) == (name != "stem")
