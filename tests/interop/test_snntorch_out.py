"""Our networks against their exports to snnTorch, and back again."""

import copy

import pytest
import snntorch
import snntorch.utils
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from spikecl.errors import InteropError
from spikecl.interop import OneToOne, from_snntorch, to_snntorch
from spikecl.interop.snntorch_in import RULES
from spikecl.networks import (
    Cells,
    Layer,
    Linear,
    Network,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    initialise,
)
from spikecl.neurons import CUBA, IF, LIF, PLIF, Arctan, FastSigmoid, MultiGaussian, Reset, Sigmoid
from spikecl.seeds import Seeds

quick = settings(
    max_examples=8, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
SURROGATES = [Arctan(), Sigmoid(), FastSigmoid(slope=3.0), MultiGaussian()]


@st.composite
def layers(draw, n, m, source):
    """Return a layer of any neurons that snnTorch has."""

    def value(low, high):
        numbers = st.sampled_from([low + (high - low) * k / 7 for k in range(8)])
        if draw(st.booleans()):
            return torch.tensor([draw(numbers) for _ in range(m)], dtype=torch.float64)
        return draw(numbers)

    kind = draw(st.sampled_from(sorted(RULES)))
    rule = draw(st.sampled_from(sorted(set(RULES[kind].values()))))
    again = kind.startswith("R")
    neuron = (CUBA if "Synaptic" in kind else draw(st.sampled_from([LIF, PLIF])))(
        beta=value(0.2, 0.95),
        v_th=value(0.4, 1.5),
        **({"alpha": value(0.1, 0.9)} if "Synaptic" in kind else {}),
        scale_input=kind == "Lapicque",
        reset=rule.reset,
        reset_time=rule.time,
        detach_reset=rule.detach,
        surrogate=draw(st.sampled_from(SURROGATES)),
        strict=draw(st.booleans()),
    )
    allowed = ["v_th"] if kind == "Lapicque" else ["v_th", "beta"]
    allowed += ["alpha"] * isinstance(neuron, CUBA)
    learns = draw(st.sets(st.sampled_from(allowed)))
    onto = None
    if again and draw(st.booleans()):
        onto = OneToOne(m, nn.Parameter(torch.zeros(draw(st.sampled_from([1, m])))))
    elif again:
        onto = Linear(m, m, bias=draw(st.booleans()))
    cells = Cells(neuron, learns=sorted(learns), size=(m,) if draw(st.booleans()) else ())
    return Layer(Linear(n, m, bias=draw(st.booleans())), cells, inputs=(source,), recurrent=onto)


@st.composite
def networks(draw):
    sizes = [draw(st.integers(2, 6)) for _ in range(draw(st.integers(2, 4)))]
    found, source = {}, "input"
    for i, (n, m) in enumerate(zip(sizes, sizes[1:])):
        found[f"layer{i}"] = draw(layers(n, m, source))
        source = f"layer{i}"
    if draw(st.booleans()):
        found["readout"] = Layer(Linear(sizes[-1], 3), None, inputs=(source,))
    return Network(found, mean_first=False)


def equal(one, other, x):
    """Compare spikes by layer, and parameters."""
    ours, theirs = one.record(x), other.record(x)
    assert list(ours) == list(theirs)
    for name in ours:
        assert (ours[name]["spikes"] == theirs[name]["spikes"]).all()
    named, others = (dict(network.named_parameters()) for network in (one, other))
    assert named.keys() == others.keys()
    for name, a in named.items():
        torch.testing.assert_close(a, others[name].view(a.shape), rtol=1e-13, atol=1e-13)
        assert a.requires_grad == others[name].requires_grad


@quick
@given(network=networks(), seed=st.integers(0, 2**20))
def test_random_networks_there_and_back(lab, network, seed):
    first = next(iter(network.layers.values()))
    x = 0.5 + lab.draw(seed, lab.STEPS, lab.BATCH, first.synapse.weight.shape[1])
    assume(lab.prepare_ours(network, x, seed))
    assume(all(0.01 < r["spikes"].mean() < 0.9 for r in network.record(x).values()))
    net = to_snntorch(network)
    lab.compare(lab.SNNTORCH, list(net), network, x)
    equal(network, from_snntorch(net), x)


def chain(*layers):
    """Return a network of layers without names and inputs of their own."""
    names = ["input", *(f"layer{i}" for i in range(len(layers)))]
    for source, layer in zip(names, layers):
        layer.inputs = (source,)
    return Network(dict(zip(names[1:], layers)), mean_first=False)


def dense(n, m, neuron, **options):
    return Layer(Linear(n, m, bias=True), Cells(neuron, learns=()), inputs=(), **options)


FOUR = torch.tensor([0.5, 0.1, 0.7, 0.3], dtype=torch.float64)
OTHER_WORDS = {
    "zero": [LIF(beta=0.7, reset=Reset.ZERO), LIF(reset=Reset.VALUE, reset_time="next")],
    "zero, kept": [LIF(beta=0.7, reset=Reset.VALUE, detach_reset=False), PLIF(scale_input=False)],
    "none": [LIF(beta=0.7, reset=Reset.NONE, reset_time="after", detach_reset=False)],
    "without leak": [IF(), IF(reset=Reset.ZERO), CUBA(beta=1.0)],
    "lowered": [LIF(beta=0.7, detach_reset=False, v_th=FOUR), LIF(detach_reset=False)],
    "Lapicque": [
        LIF(beta=0.7, scale_input=True, reset_time="next"),
        LIF(beta=FOUR, scale_input=True, reset=Reset.NONE),
        LIF(beta=0.5, scale_input=True, reset=Reset.ZERO, reset_time="after"),
    ],
    "second order": [CUBA(beta=0.6, alpha=0.2, reset=Reset.ZERO, detach_reset=False)],
    "not strict": [LIF(beta=0.7, strict=False, reset_time="next")],
}


@pytest.mark.parametrize(
    "neuron",
    [neuron for given in OTHER_WORDS.values() for neuron in given],
    ids=[f"{name} {i}" for name, given in OTHER_WORDS.items() for i in range(len(given))],
)
def test_other_words_for_the_same(lab, neuron):
    network = chain(dense(6, 4, neuron), Layer(Linear(4, 3), None, inputs=()))
    x = 0.5 + lab.draw(1, lab.STEPS, lab.BATCH, 6)
    assert lab.prepare_ours(network, x)
    net = to_snntorch(network)
    lab.compare(lab.SNNTORCH, list(net), network, x)
    equal(network, from_snntorch(net), x)


def drawn(spec, shape, classes=3):
    network = spec.build(shape, classes)
    initialise(network, Seeds(0))
    return network


def test_a_convolutional_network_there_and_back(lab):
    neuron = LIF(beta=0.7, detach_reset=False)
    spec = SpikingConvNet(
        channels=(3, 4), kernel=3, neuron=neuron, norm="batch", pool="average", hidden=(6,),
        dropout=0.3, bias=True,
    )  # fmt: skip
    network = spec.build((10, 10, 2), 3)
    x = 0.3 + lab.draw(2, lab.STEPS, lab.BATCH, 2, 10, 10)
    images = x.movedim(2, -1)  # ours has the channels last, its export first
    assert lab.prepare_ours(network, images, 3, steps=30)
    net = to_snntorch(network)
    assert not any(module.training for module in net.modules())
    assert [type(m).__name__ for m in net] == [
        *("Conv2d", "BatchNorm2d", "RLeaky", "AvgPool2d", "Dropout"),
        *("Conv2d", "BatchNorm2d", "RLeaky", "AvgPool2d", "Dropout"),
        *("Flatten", "Linear", "BatchNorm1d", "RLeaky", "Dropout", "Linear"),
    ]
    theirs = lab.SNNTORCH.run(list(net), x)
    spikes = [out for m, out in zip(net, theirs) if isinstance(m, snntorch.RLeaky)]
    recording = network.record(images)
    for name, expected in zip(recording, spikes):
        assert 0.02 < float(expected.detach().mean()) < 0.7
        assert torch.equal(torch.as_tensor(recording[name]["spikes"]), expected.detach())
    back = from_snntorch(net)
    assert list(back.layers) == list(network.layers)
    for name, expected in zip(back.record(x), spikes):
        assert torch.equal(torch.as_tensor(back.record(x)[name]["spikes"]), expected.detach())
    assert [p.shape for p in back.parameters()] == [p.shape for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), network.parameters()))


def test_currents_that_are_pooled_and_flattened(lab):
    given = nn.Sequential(
        *(nn.MaxPool2d(2), nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten()),
        *(snntorch.Leaky(0.8), nn.Linear(8, 3)),
    )
    network = from_snntorch(given)
    x = lab.draw(3, lab.STEPS, lab.BATCH, 1, 12, 12) - 0.2
    assert lab.prepare_ours(network, x, steps=30)
    net = to_snntorch(network)
    assert [type(m) for m in net] == [type(m) for m in given]
    lab.compare(lab.SNNTORCH, list(net), network, x)
    equal(network, from_snntorch(net), x)


def test_the_default_network_has_the_same_spikes(lab):
    for spec in (SpikingMlp(hidden=(9, 8)), SpikingConvNet(channels=(3,), kernel=3)):
        network = spec.build((8, 8), 3)
        x = 0.4 + lab.draw(3, lab.STEPS, lab.BATCH, 8, 8)
        assert lab.prepare_ours(network, x, steps=30)
        with pytest.raises(InteropError, match="becomes a constant connection.*spikes_only=True"):
            to_snntorch(network)
        net = to_snntorch(network, spikes_only=True)
        assert snntorch.RLeaky in {type(m) for m in net}
        images = x[:, :, None] if isinstance(spec, SpikingConvNet) else x
        out = torch.stack([net(step) for step in images])
        torch.testing.assert_close(out.mean(0), network(x).logits, rtol=0, atol=1e-10)


def test_how_it_is_used(monkeypatch):
    """The loop of the documentation: one network's neurons are set back, no other's."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])  # all that were ever built
    network = drawn(SpikingMlp(hidden=(5,), neuron=LIF.snntorch(0.5)), (4,))
    net, other = to_snntorch(network), snntorch.Leaky(0.5, init_hidden=True)
    other(torch.ones(1, 3))
    x = 5 * torch.rand(20, 2, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        for module in net:
            if isinstance(module, snntorch.SpikingNeuron):
                module.reset_mem()
        out = torch.stack([net(step) for step in x]).mean(0)
        torch.testing.assert_close(out, network(x).logits)
    assert bool(other.mem.any())
    snntorch.utils.reset(net)
    torch.testing.assert_close(torch.stack([net(step) for step in x]).mean(0), network(x).logits)


def test_it_copies_and_draws_nothing():
    network = drawn(SpikingMlp(hidden=(5,), neuron=LIF.snntorch(0.5), bias=True), (4,))
    network.layers["hidden1"].synapse.weight.requires_grad_(False)
    before = torch.random.get_rng_state()
    net = to_snntorch(network)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(1)
    assert not any(torch.equal(a, b) for a, b in zip(network.parameters(), net.parameters()))
    again = copy.deepcopy(net)
    assert torch.equal(again(torch.ones(1, 4)), net(torch.ones(1, 4)))


def test_what_is_frozen_stays_frozen():
    lif = snntorch.Leaky(0.5, learn_beta=True, learn_threshold=True)
    lif.beta.requires_grad_(False)
    network = from_snntorch([nn.Linear(4, 3), lif])
    cells = network.layers["layer0"].neuron
    assert (cells.beta.requires_grad, cells.v_th.requires_grad) == (False, True)
    back = to_snntorch(network).layer0_leaky
    assert (back.beta.requires_grad, back.threshold.requires_grad) == (False, True)
    assert isinstance(back.beta, nn.Parameter)


def test_the_device_is_kept():
    spec = SpikingConvNet(channels=(2,), neuron=LIF.snntorch(0.5), norm="batch", learns=("beta",))
    network = spec.build((8, 8), 3).to("meta")  # the device without numbers stands for any
    net = to_snntorch(network)
    tensors = [*net.parameters(), *net.buffers()]  # states too: snnTorch makes new ones like them
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    back = from_snntorch([nn.Linear(4, 3, device="meta"), snntorch.Leaky(0.5)])
    assert {tensor.device.type for tensor in back.parameters()} == {"meta"}


def test_weights_behind_maps_become_plain_ones(lab):
    spec = SpikingRecurrentNet(hidden=(6,), neuron=LIF.snntorch(0.7), excitatory=0.5)
    network = spec.build((5,), 3)
    x = 0.5 + lab.draw(4, lab.STEPS, lab.BATCH, 5)
    assert lab.prepare_ours(network, x)
    with pytest.raises(InteropError, match="Dale, NoAutapses stands between.*spikes_only=True"):
        to_snntorch(network)
    net = to_snntorch(network, spikes_only=True)
    assert not bool(net.hidden1_rleaky.recurrent.weight.diagonal().any())
    assert net.hidden1_rleaky.recurrent.weight.requires_grad
    expected = torch.as_tensor(network.record(x)["hidden1"]["spikes"])
    assert torch.equal(lab.SNNTORCH.run(list(net)[:3], x)[-1].detach(), expected)
