"""Networks against a plain autograd loop over steps of the same spiking network."""

import math

import pytest
import torch
from torch.nn import functional

from spikecl.errors import UsageError
from spikecl.networks import (
    Cells,
    Layer,
    Linear,
    Mlp,
    Network,
    SpikingMlp,
    Tap,
    initialise,
)
from spikecl.networks.network import count_parameters, firing_rates
from spikecl.neurons import LIF, Rectified, Sigmoid
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt

BETA, TH, SLOPE, T, B, IN, CLASSES = 0.6, 0.4, 3.0, 7, 5, 6, 4
LABELS = torch.tensor([0, 3, 1, 1, 2])


class Fire(torch.autograd.Function):
    """Heaviside step with the derivative of a logistic function."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        e = torch.exp(-SLOPE * ctx.saved_tensors[0].abs())
        return grad * SLOPE * e / (1 + e) ** 2


def plain_loop(weights, x):
    """Logits of the network: one step at a time, one layer at a time, autograd for the rest."""
    names = sorted({key.split(".")[0] for key in weights})  # hidden1, hidden2, readout
    v = dict.fromkeys(names, 0.0)
    currents = []
    for step in x.flatten(2):
        a = step
        for name in names:
            a = functional.linear(a, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
            if name != "readout":
                u = BETA * v[name] + a
                a = Fire.apply(u - TH)
                v[name] = u - TH * a.detach()
        currents.append(a)
    return sum(currents) / len(currents)


def make(*, bias=False, readout="mean_rate", hidden=(9, 8)):
    neuron = LIF(beta=BETA, v_th=TH, surrogate=Sigmoid(slope=SLOPE))
    spec = SpikingMlp(hidden=hidden, neuron=neuron, bias=bias, readout=readout)
    network = spec.build((IN,), CLASSES).double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # enough drive for all layers to fire
    return network


def encoded(kind):
    generator = torch.Generator().manual_seed(1)
    if kind == "direct":
        x = torch.randn(B, IN, generator=generator, dtype=torch.float64)
        return x.expand(T, B, IN)
    x = torch.rand(T, B, IN, generator=generator, dtype=torch.float64)
    return (x < 0.5).double()


def loss_of(logits):
    return functional.cross_entropy(logits * 2, LABELS)


@pytest.mark.parametrize("kind", ["direct", "rate"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("readout", ["mean_rate", "mean_current"])
def test_forward_autograd_and_factors_equal_the_plain_loop(kind, bias, readout):
    network, x = make(bias=bias, readout=readout), encoded(kind)
    copies = {k: p.detach().clone().requires_grad_() for k, p in network.weights().items()}
    expected = plain_loop(copies, x)
    expected_gradients = dict(
        zip(copies, torch.autograd.grad(loss_of(expected), list(copies.values())))
    )
    assert all(bool(g.abs().max() > 1e-6) for g in expected_gradients.values())

    logits = network(x).logits
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(loss_of(logits), list(network.weights().values()))
    for ours, theirs in zip(gradients, expected_gradients.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)

    factors = Bptt().factors(network, x, loss_of)
    torch.testing.assert_close(factors.logits, expected, rtol=1e-10, atol=1e-12)
    for name, factor in factors.synapses.items():
        torch.testing.assert_close(
            factor.gradient(), expected_gradients[f"{name}.weight"], rtol=1e-10, atol=1e-12
        )
        if bias:
            torch.testing.assert_close(
                factor.bias_gradient(), expected_gradients[f"{name}.bias"], rtol=1e-10, atol=1e-12
            )


@pytest.mark.parametrize("kind", ["direct", "rate"])
def test_the_two_readouts_agree(kind):
    x = encoded(kind)
    a, b = (make(bias=True, readout=r)(x).logits for r in ("mean_rate", "mean_current"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_pass_in_two_parts_equals_one():
    network, x = make(), encoded("rate")
    first = network(x[:3])
    second = network(x[3:], first.state)
    whole = network(x)
    torch.testing.assert_close((3 * first.logits + 4 * second.logits) / 7, whole.logits)
    assert list(whole.state) == ["hidden1", "hidden2"]
    for name in whole.state:
        torch.testing.assert_close(second.state[name].v, whole.state[name].v)


def test_a_state_of_another_batch_is_refused():
    network, x = make(), encoded("rate")
    with pytest.raises(UsageError, match="state has shape"):
        network(x[:, :2], network(x).state)


def test_a_layer_missing_from_the_state_starts_from_rest():
    network, x = make(), encoded("rate")
    state = network(x).state
    partial = network(x, {"hidden1": state["hidden1"]})
    rest = type(state["hidden2"])(torch.zeros(B, 8).double())
    full = network(x, {"hidden1": state["hidden1"], "hidden2": rest})
    torch.testing.assert_close(partial.logits, full.logits)
    assert not torch.equal(partial.logits, network(x).logits)


def test_features_are_flattened_in_order():
    network, x = make(), encoded("rate")
    assert torch.equal(network(x.view(T, B, 2, 3)).logits, network(x).logits)


@pytest.mark.parametrize("kind", ["direct", "rate"])
def test_taps_hold_what_each_synapse_saw_and_made(kind):
    network, x = make(bias=True, readout="mean_current"), encoded(kind)
    taps: dict[str, Tap] = {}
    logits = network(x, taps=taps).logits
    currents = {}
    assert list(taps) == ["hidden1", "hidden2", "readout"]
    steps = 1 if kind == "direct" else T
    rows = {name: tap.rows for name, tap in taps.items()}
    assert torch.equal(rows["hidden1"], x[:steps].reshape(steps * B, IN))
    assert rows["hidden2"].shape == (T * B, 9)
    assert set(rows["hidden2"].unique().tolist()) == {0.0, 1.0}
    for name, tap in taps.items():
        synapse = network.synapses[name]
        currents[name] = tap.rows @ synapse.weight.T + synapse.bias
        assert currents[name].shape == tap.shape
        assert not tap.rows.requires_grad
    torch.testing.assert_close(currents["readout"].view(T, B, -1).mean(0), logits)


def test_with_taps_the_weights_are_constants():
    network = make(bias=True)
    network(encoded("rate"), taps={}).logits.sum().backward()
    assert all(p.grad is None for p in network.parameters())


def test_other_weights_can_be_used():
    network, other, x = make(bias=True), make(bias=True), encoded("rate")
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(-0.7)
    given = {name: p.detach() for name, p in other.weights().items()}
    assert torch.equal(network(x, weights=given).logits, other(x).logits)
    assert not torch.equal(network(x).logits, other(x).logits)


def test_nothing_is_kept_between_passes():
    network, x = make(), encoded("rate")
    first = network(x).logits
    network(1 - x)
    assert torch.equal(network(x).logits, first)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["direct", "rate"])
def test_the_twin_equals_a_plain_perceptron(bias, kind):
    network = Mlp(hidden=(9, 8), bias=bias).build((IN,), CLASSES).double()
    initialise(network, Seeds(0))
    x, w = encoded(kind), network.weights()
    h = x
    for name in ("hidden1", "hidden2"):
        h = functional.linear(h, w[f"{name}.weight"], w.get(f"{name}.bias")).relu()
    expected = functional.linear(h, w["readout.weight"], w.get("readout.bias")).mean(0)
    torch.testing.assert_close(network(x).logits, expected)
    assert network(x).state == {}


def test_units_without_memory_run_one_step_of_a_constant_input():
    network, taps = Mlp(hidden=(9,)).build((IN,), CLASSES).double(), {}
    network(encoded("direct"), taps=taps)
    assert [len(tap.rows) for tap in taps.values()] == [B, B]
    network(encoded("rate"), taps=taps)
    assert len(taps["hidden1"].rows) == T * B


def test_a_layer_listens_to_the_sum_of_its_inputs():
    def layer(n_out, inputs, neuron=None):
        return Layer(Linear(4, n_out), neuron, inputs=inputs)

    network = Network(
        {
            "a": layer(4, ("input",), Cells(LIF(v_th=0.1))),
            "b": layer(4, ("a", "input"), Cells(Rectified())),
            "out": layer(3, ("b", "a")),
        }
    )
    initialise(network, Seeds(1))
    x = torch.rand(5, 2, 4)
    w = network.weights()
    a = Cells(LIF(v_th=0.1))(x @ w["a.weight"].T)[0]
    b = ((a + x) @ w["b.weight"].T).relu()
    torch.testing.assert_close(network(x).logits, ((a + b) @ w["out.weight"].T).mean(0))
    assert network.is_spiking


def fan(neurons, readout):
    """Return three layers in a row with the given neurons."""
    names = ["input", "a", "b", "c"]
    network = Network(
        {
            names[i + 1]: Layer(Linear(4, 4), neuron, inputs=(names[i],))
            for i, neuron in enumerate(neurons)
        },
        mean_first=readout == "mean_rate",
    )
    initialise(network, Seeds(1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
    return network


@pytest.mark.parametrize("linear", [0, 1, 2, None])
def test_only_a_linear_readout_may_see_the_mean(linear):
    """A layer without neurons further down, and a readout with neurons, see every step."""
    neurons = [None if i == linear else Cells(LIF(v_th=0.3)) for i in range(3)]
    x = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0))
    rate, current = (fan(neurons, r)(x).logits for r in ("mean_rate", "mean_current"))
    torch.testing.assert_close(rate, current)
    assert bool(rate.any())


def test_the_weights_are_those_the_modules_own():
    network, x = make(bias=True), encoded("rate")
    twice = {name: 2 * value.detach() for name, value in network.state_dict().items()}
    network.load_state_dict(twice, assign=True)
    own = dict(network.named_parameters())
    assert len(own) == len(network.weights())
    for name, weight in network.weights().items():
        layer, key = name.split(".")
        assert weight is own[f"layers.{layer}.synapse.{key}"]
    expected = plain_loop({k: p.detach() for k, p in network.weights().items()}, x)
    torch.testing.assert_close(network(x).logits, expected)


def test_a_layer_cannot_listen_to_a_later_one():
    late = Layer(Linear(2, 2), None, inputs=("b",))
    with pytest.raises(UsageError, match=r"layer 'a' listens to \['b'\].*known: \['input'\]"):
        Network({"a": late, "b": Layer(Linear(2, 2), None, inputs=("input",))})


def test_weights_are_named_and_counted():
    network = make(bias=True)
    names = [f"{layer}.{p}" for layer in ("hidden1", "hidden2", "readout")
             for p in ("weight", "bias")]  # fmt: skip
    assert list(network.weights()) == names
    assert count_parameters(network) == 9 * (IN + 1) + 8 * 10 + CLASSES * 9
    assert network.weights()["hidden2.weight"] is network.layers["hidden2"].synapse.weight


def test_spiking_or_not():
    assert make().is_spiking
    assert not Mlp(hidden=(3,)).build((IN,), 2).is_spiking


def test_constructors_draw_nothing():
    linear = Linear(3, 2, bias=True)
    assert not linear.weight.any()
    assert not linear.bias.any()
    assert Linear(3, 2).bias is None


def test_firing_rates_are_means_of_presynaptic_activity():
    network, x = make(), encoded("rate")
    rates = firing_rates(network, x)
    spikes = Cells(network.layers["hidden1"].neuron.neuron)(
        x @ network.weights()["hidden1.weight"].T
    )[0]
    assert rates["hidden1"] == pytest.approx(float(x.mean()))
    assert rates["hidden2"] == pytest.approx(float(spikes.detach().mean()))
    assert 0 < rates["readout"] < 1


def test_silent_input_gives_the_bias_alone():
    network = make(bias=True)
    with torch.no_grad():
        for name, p in network.weights().items():
            if name != "readout.bias":
                p.zero_()
    logits = network(torch.zeros(T, B, IN, dtype=torch.float64)).logits
    torch.testing.assert_close(logits, network.weights()["readout.bias"].expand(B, CLASSES))
    assert math.isfinite(float(logits.detach().sum()))


def test_mixed_devices_are_refused():
    network = make()
    network.layers["readout"].to("meta")
    with pytest.raises(UsageError, match=r"'readout\.weight' is on meta.*whole network"):
        network(encoded("rate"))
    network.to("meta")
    with pytest.raises(UsageError, match="on cpu.*on meta"):
        network(encoded("rate"))
