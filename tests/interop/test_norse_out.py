"""Our networks against their exports to Norse, and back again."""

import copy
import warnings

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from spikecl.errors import InteropError
from spikecl.interop import from_norse, to_norse
from spikecl.networks import Cells, Layer, Linear, Network, NoAutapses, SpikingConvNet, SpikingMlp
from spikecl.neurons import (
    CUBA,
    IF,
    LIF,
    Erf,
    FastSigmoid,
    LeakyIntegrator,
    Rectified,
    Reset,
    Sigmoid,
    SynapticIntegrator,
    Triangle,
)

with warnings.catch_warnings():
    warnings.filterwarnings(
        "ignore", message=".torch.jit.script. is deprecated", category=DeprecationWarning
    )

quick = settings(
    max_examples=8, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
KEPT = {"reset": Reset.VALUE, "detach_reset": False}
SURROGATES = [FastSigmoid(slope=1.0), Triangle(height=0.4, width=1.0), Sigmoid()]


@st.composite
def layers(draw, n, m, source):
    """Return a layer of any neurons that Norse has."""

    def value(low, high, vector=True):
        numbers = st.sampled_from([low + (high - low) * k / 7 for k in range(8)])
        if vector and draw(st.booleans()):
            return torch.tensor([draw(numbers) for _ in range(m)], dtype=torch.float64)
        return draw(numbers)

    kind = draw(st.sampled_from(["current", "direct", "counter", "recurrent", "li", "box"]))
    rest = draw(st.sampled_from([0.0, -0.25, 0.125]))  # Norse starts from float32
    beta, alpha = value(0.1, 0.99), value(0.1, 0.9)
    options = {"v_th": value(0.4, 1.5), "v_reset": value(-0.5, 0.2), "reset": Reset.VALUE}
    options |= {"surrogate": draw(st.sampled_from(SURROGATES)), "detach_reset": False}
    bias, onto = draw(st.booleans()), None
    if kind == "li":
        neuron = SynapticIntegrator(alpha=alpha, kappa=beta, v_rest=rest)
    elif kind == "box":
        neuron = LeakyIntegrator(kappa=beta, scale_input=True)
    elif kind == "counter":
        neuron = IF(**options | {"v_rest": options["v_reset"]})
    elif kind == "direct":
        options["reset"] = draw(st.sampled_from([Reset.VALUE, Reset.SOFT, Reset.ZERO]))
        neuron = LIF(beta=beta, v_rest=rest, scale_input=True, **options)
    else:
        options["detach_reset"] = kind == "recurrent"
        neuron = CUBA(beta=beta, alpha=alpha, v_rest=rest, scale_input=True, **options)
    if kind == "recurrent":
        onto, bias = Linear(m, m, maps=(NoAutapses(),) if draw(st.booleans()) else ()), False
    return Layer(Linear(n, m, bias=bias), Cells(neuron), inputs=(source,), recurrent=onto)


@st.composite
def networks(draw):
    sizes = [draw(st.integers(2, 6)) for _ in range(draw(st.integers(2, 4)))]
    found, source = {}, "input"
    for i, (n, m) in enumerate(zip(sizes, sizes[1:])):
        found[f"layer{i}"] = draw(layers(n, m, source))
        source = f"layer{i}"
    return Network(found, mean_first=False)


def equal(one, other, x):
    """Compare outputs by layer, and parameters."""
    ours, theirs = one.record(x).values(), other.record(x).values()
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(
            torch.as_tensor(a["spikes"]), torch.as_tensor(b["spikes"]), rtol=0, atol=1e-10
        )
    assert len(list(one.parameters())) == len(list(other.parameters()))
    for a, b in zip(one.parameters(), other.parameters()):
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad


@quick
@given(network=networks(), seed=st.integers(0, 2**20), dt=st.sampled_from([1e-3, 0.5]))
def test_random_networks_there_and_back(lab, network, seed, dt):
    first = next(iter(network.layers.values()))
    x = 0.5 + lab.draw(seed, lab.STEPS, lab.BATCH, first.synapse.weight.shape[1])
    assume(lab.prepare_ours(network, x, seed))
    for layer in network.layers.values():
        if layer.recurrent is not None and layer.recurrent.maps:
            layer.recurrent.weight.data.fill_diagonal_(0)  # what Norse stores
    net = to_norse(network, dt=dt)
    lab.compare(lab.NORSE, list(net), network, x)
    equal(network, from_norse(net), x)


def chain(*layers):
    """Return a network of layers without inputs of their own."""
    names = ["input", *(f"layer{i}" for i in range(len(layers)))]
    for source, layer in zip(names, layers):
        layer.inputs = (source,)
    return Network(dict(zip(names[1:], layers)), mean_first=False)


def test_a_soft_reset_there_and_back(lab):
    neuron = LIF(beta=0.8, scale_input=True, detach_reset=False, v_rest=-0.25)
    network = chain(Layer(Linear(6, 8, bias=True), Cells(neuron), inputs=()))
    x = lab.draw(2, lab.STEPS, lab.BATCH, 6)
    assert lab.prepare_ours(network, x)
    net = to_norse(network)
    lab.compare(lab.NORSE, list(net), network, x)
    equal(network, from_norse(net), x)


def test_what_a_network_becomes():
    direct = LIF(beta=0.75, scale_input=True, v_rest=0.25, **KEPT)
    current = CUBA(beta=0.9, alpha=0.8, scale_input=True, surrogate=Erf(slope=2.0), **KEPT)
    network = chain(
        Layer(Linear(4, 3, bias=True), Cells(current), inputs=()),
        Layer(Linear(3, 3), Cells(Rectified()), inputs=()),
        Layer(Linear(3, 2), Cells(direct), inputs=()),
        Layer(Linear(2, 2), None, inputs=()),
    )
    net = to_norse(network)
    assert [type(m).__name__ for m in net] == [
        *("Flatten", "Linear", "LIFCell", "Linear", "ReLU", "Linear", "LIFBoxCell", "Linear"),
    ]
    assert net[2].dt == 1e-3
    assert net[2].p.method == "heavi_erfc"
    assert float(net[2].p.tau_mem_inv) == pytest.approx(100)
    assert float(net[2].p.tau_syn_inv) == pytest.approx(200)
    assert net[6].p.method == "tanh"
    assert float(net[6].p.tau_mem_inv) == pytest.approx(250)
    assert float(to_norse(network, dt=0.1)[6].p.tau_mem_inv) == pytest.approx(2.5)


def test_a_convolutional_network_there_and_back(lab):
    neuron = LIF(beta=0.7, scale_input=True, **KEPT)
    spec = SpikingConvNet(
        channels=(3, 4), kernel=3, neuron=neuron, norm="batch", pool="average", hidden=(6,),
        dropout=0.3, output=LeakyIntegrator(scale_input=True),
    )  # fmt: skip
    network = spec.build((10, 10, 2), 3)
    x = 0.3 + lab.draw(2, lab.STEPS, lab.BATCH, 2, 10, 10)
    images = x.movedim(2, -1)  # ours has the channels last, its export first
    assert lab.prepare_ours(network, images, 3, steps=30)
    net = to_norse(network)
    back = from_norse(net)
    out = lab.NORSE.run(list(net), x)[-1]
    torch.testing.assert_close(out.mean(0), network(images).logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(back(x).logits, network(images).logits, rtol=0, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), network.parameters()))


@pytest.mark.parametrize("recurrent", [False, True])
def test_refractory_neurons_have_the_same_spikes(lab, recurrent):
    neuron = CUBA(
        beta=0.8, scale_input=True, reset=Reset.ZERO, detach_reset=recurrent, refractory=3
    )
    onto = Linear(8, 8) if recurrent else None
    network = chain(Layer(Linear(6, 8), Cells(neuron), inputs=(), recurrent=onto))
    x = 1 + lab.draw(6, lab.STEPS, lab.BATCH, 6)
    assert lab.prepare_ours(network, x)
    with pytest.raises(InteropError, match=r"passes through the counter.*spikes_only=True"):
        to_norse(network)
    net = to_norse(network, spikes_only=True)
    expected = torch.as_tensor(network.record(x)["layer0"]["spikes"])
    assert torch.equal(lab.NORSE.run(list(net), x)[-1].detach(), expected)
    equal(network, from_norse(net, spikes_only=True), x)


def test_single_precision_and_how_it_is_used(lab):
    network = SpikingMlp(hidden=(8,), neuron=LIF(beta=0.9, scale_input=True, **KEPT)).build((4,), 3)
    x = 1 + lab.draw(7, lab.STEPS, lab.BATCH, 4)
    assert lab.prepare_ours(network, x)
    network, x = network.float(), x.float()
    net, state, outs = to_norse(network), None, []
    for step in x:
        out, state = net(step, state)
        outs.append(out)
    assert out.dtype == torch.float32
    difference = torch.stack(outs).mean(0) - network(x).logits
    assert float(difference.detach().abs().max()) < 0.05  # a membrane at its threshold may differ


def test_it_copies_and_draws_nothing():
    onto = Linear(3, 3, maps=(NoAutapses(),))
    neuron = CUBA(scale_input=True, reset=Reset.ZERO)
    network = chain(Layer(Linear(4, 3), Cells(neuron), inputs=(), recurrent=onto))
    onto.weight.requires_grad_(False)
    with torch.no_grad():
        onto.weight.fill_(0.5)
    before = torch.random.get_rng_state()
    net = to_norse(network)
    assert torch.equal(before, torch.random.get_rng_state())
    cell = net[1]
    assert not cell.recurrent_weights.requires_grad
    assert cell.input_weights.requires_grad
    assert cell.recurrent_weights.diagonal().tolist() == [0, 0, 0]
    assert onto.weight.diagonal().tolist() == [0.5] * 3  # Norse zeroes its own
    x = torch.ones(1, 4)
    assert torch.equal(copy.deepcopy(net)(x)[0], net(x)[0])
