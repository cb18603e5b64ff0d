"""BPTT: a pure call whose factors are the gradient autograd finds."""

import pytest
import torch
from torch.nn import functional

from spikecl.encoding import Direct, InputStatistics, Rate
from spikecl.errors import UsageError
from spikecl.networks import Mlp, SpikingMlp, SpikingRecurrentNet, initialise
from spikecl.neurons import LIF, PLIF, FastSigmoid, Reset
from spikecl.neurons.neuron import leaves
from spikecl.seeds import Seeds
from spikecl.streams.reveal import Reveal
from spikecl.trainers import Bptt, PerStep, Trainer

B, IN, CLASSES = 6, 10, 3
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
SPECS = {
    "spiking": SpikingMlp(hidden=(8, 7), neuron=LIF(beta=0.5, v_th=0.4)),
    "biased": SpikingMlp(
        hidden=(8,), neuron=LIF(beta=0.5, v_th=0.4), bias=True, readout="mean_current"
    ),
    "hard": SpikingMlp(
        hidden=(8,),
        neuron=LIF(beta=0.5, v_th=0.4, reset=Reset.ZERO, surrogate=FastSigmoid(slope=5.0)),
    ),
    "twin": Mlp(hidden=(8, 7), bias=True),
}
ENCODERS = {"direct": Direct(steps=5), "rate": Rate(steps=5), "one": Rate(steps=1)}


@pytest.fixture(params=list(SPECS))
def network(request):
    network = SPECS[request.param].build((IN,), CLASSES).double()
    initialise(network, Seeds(2))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(3)
    return network


@pytest.fixture(params=list(ENCODERS))
def x(request):
    generator = torch.Generator().manual_seed(0)
    raw = torch.rand(B, IN, dtype=torch.float64, generator=generator)
    return ENCODERS[request.param].encode(raw, InputStatistics(0.5, 0.3), generator)


def loss_of(logits):
    return functional.cross_entropy(logits, LABELS)


def gradients(factors):
    """Gradients by parameter name of everything a trainer returned."""
    found = dict(factors.direct)
    for name, factor in factors.synapses.items():
        found[f"{name}.weight"] = factor.gradient()
        found[f"{name}.bias"] = factor.bias_gradient()
    return found


def test_gradients_equal_autograd(network, x):
    logits = network(x).logits
    loss = loss_of(logits)
    expected = torch.autograd.grad(loss, list(network.weights().values()))
    factors = Bptt().factors(network, x, loss_of)
    found = gradients(factors)
    for name, gradient in zip(network.weights(), expected, strict=True):
        assert bool(gradient.abs().max() > 0)
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(factors.loss, loss.detach())
    torch.testing.assert_close(factors.logits, logits.detach())


def test_the_gradient_is_the_finite_difference_of_the_twin():
    network = SPECS["twin"].build((IN,), CLASSES).double()
    initialise(network, Seeds(2))
    x = torch.randn(2, B, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = gradients(Bptt().factors(network, x, loss_of))
    h = 1e-6
    for name, weight in network.weights().items():
        flat, values = weight.detach().view(-1), []
        for sign in (1, -1):
            flat[0] += sign * h
            values.append(float(loss_of(network(x).logits.detach())))
            flat[0] -= sign * h
        assert float(found[name].view(-1)[0]) == pytest.approx(
            (values[0] - values[1]) / (2 * h), abs=1e-8
        )


def test_the_twin_equals_plain_backpropagation():
    network = SPECS["twin"].build((IN,), CLASSES).double()
    initialise(network, Seeds(2))
    w = {name: p.detach().clone().requires_grad_() for name, p in network.weights().items()}
    x = torch.rand(B, IN, dtype=torch.float64)
    h = x
    for name in ("hidden1", "hidden2"):
        h = torch.relu(functional.linear(h, w[f"{name}.weight"], w[f"{name}.bias"]))
    loss_of(functional.linear(h, w["readout.weight"], w["readout.bias"])).backward()
    found = gradients(Bptt().factors(network, x.expand(4, B, IN), loss_of))
    for name, weight in w.items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-10, atol=1e-13)


def test_nothing_is_left_behind(network, x):
    before = {name: p.detach().clone() for name, p in network.weights().items()}
    held = {name: set(vars(m)) for name, m in network.named_modules()}
    random = torch.get_rng_state()
    given = x.clone()
    factors = Bptt().factors(network, x, loss_of)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(p.detach(), before[name]) for name, p in network.weights().items())
    assert {name: set(vars(m)) for name, m in network.named_modules()} == held
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, given)
    tensors = [factors.loss, factors.logits]
    for factor in factors.synapses.values():
        tensors += [factor.x, factor.delta, factor.transmitted]
    assert all(t.grad_fn is None and not t.requires_grad for t in tensors)


def test_the_same_call_twice_gives_the_same_bits(network, x):
    a, b = (Bptt().factors(network, x, loss_of) for _ in range(2))
    assert torch.equal(a.loss, b.loss)
    for name in a.synapses:
        assert torch.equal(a.synapses[name].x, b.synapses[name].x)
        assert torch.equal(a.synapses[name].delta, b.synapses[name].delta)


def test_it_works_where_gradients_are_off(network, x):
    expected = gradients(Bptt().factors(network, x, loss_of))
    with torch.no_grad():
        found = gradients(Bptt().factors(network, x, loss_of))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_weights_are_used_in_place_of_the_network_s(network, x):
    other = {name: 0.5 * p.detach() for name, p in network.weights().items()}
    found = Bptt().factors(network, x, loss_of, weights=other)
    leaves = {name: w.clone().requires_grad_() for name, w in other.items()}
    logits = network(x, weights=leaves).logits
    expected = torch.autograd.grad(loss_of(logits), list(leaves.values()))
    torch.testing.assert_close(found.logits, logits.detach())
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(gradients(found)[name], gradient, rtol=1e-10, atol=1e-13)


def test_rows_are_the_activity_that_was_transmitted(network, x):
    for name, factor in Bptt().factors(network, x, loss_of).synapses.items():
        assert factor.transmitted is factor.x
        assert factor.outside is None
        assert len(factor.x) == len(factor.delta)
        assert factor.delta.shape[1] == network.synapses[name].weight.shape[0]
        assert factor.x.shape[1] == network.synapses[name].weight.shape[1]


def test_any_loss_of_the_logits_will_do(network, x):
    target = torch.linspace(-1, 1, B * CLASSES, dtype=torch.float64).view(B, CLASSES)
    factors = Bptt().factors(network, x, lambda logits: (logits - target).square().sum())
    readout = factors.synapses["readout"]
    torch.testing.assert_close(
        readout.bias_gradient(), (2 * (factors.logits - target)).sum(0), rtol=1e-10, atol=1e-12
    )


def test_it_needs_labels_and_nothing_else():
    assert issubclass(Bptt, Trainer)
    assert Bptt.needs == Reveal.LABELS


def made(spec):
    network = spec.build((IN,), CLASSES).double()
    initialise(network, Seeds(2))
    return network


def spikes(steps=5):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(steps, B, IN, generator=generator) < 0.5).double()


def test_units_are_dropped_in_training_alone_and_by_the_generator():
    network = made(SpikingMlp(hidden=(8,), neuron=LIF(beta=0.5, v_th=0.2), dropout=0.5))
    plain = made(SpikingMlp(hidden=(8,), neuron=LIF(beta=0.5, v_th=0.2)))
    with pytest.raises(UsageError, match=r"pass a torch\.Generator"):
        Bptt().factors(network, spikes(), loss_of)
    draws = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    a, b, c = (Bptt().factors(network, spikes(), loss_of, generator=g) for g in draws)
    assert torch.equal(a.logits, b.logits) and not torch.equal(a.logits, c.logits)
    tested = Bptt().factors(network, spikes(), loss_of, training=False)
    assert torch.equal(tested.logits, Bptt().factors(plain, spikes(), loss_of).logits)
    # rows that were dropped transmit nothing, so their weights get no gradient from the sample
    rows = a.synapses["readout"].transmitted
    assert bool((rows == 0).any()) and bool((rows[rows > 0] > 1 / 5).all())


def test_state_goes_in_and_comes_out():
    network = made(SpikingRecurrentNet(hidden=(8,), neuron=LIF(beta=0.9, v_th=0.2)))
    whole = network(spikes())
    first = Bptt().factors(network, spikes()[:2], loss_of)
    second = Bptt().factors(network, spikes()[2:], loss_of, state=first.state)
    torch.testing.assert_close((2 * first.logits + 3 * second.logits) / 5, whole.logits.detach())
    for a, b in zip(leaves(second.state), leaves(whole.state), strict=True):
        torch.testing.assert_close(a.detach(), b.detach())


def test_parameters_of_neurons_and_norms_are_direct():
    network = made(SpikingMlp(hidden=(8,), neuron=PLIF(v_th=0.1), norm="batch"))
    factors = Bptt().factors(network, spikes(), loss_of)
    assert list(factors.direct) == [
        "hidden1.norm.gain",
        "hidden1.norm.shift",
        "hidden1.neuron.beta",
    ]
    assert list(factors.synapses) == ["hidden1", "readout"]
    assert list(factors.statistics) == ["hidden1.norm.mean", "hidden1.norm.variance"]
    loss = loss_of(network(spikes(), training=True).logits)
    expected = torch.autograd.grad(loss, [network.weights()[name] for name in factors.direct])
    for found, gradient in zip(factors.direct.values(), expected, strict=True):
        assert bool(gradient.any()) and not found.requires_grad
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    assert not Bptt().factors(network, spikes(), loss_of, training=False).statistics


def test_a_parameter_that_nothing_depends_on_has_no_gradient():
    """An optimiser leaves it then, its weight decay too."""
    neuron = LIF(beta=0.5, v_th=0.2)
    network = made(SpikingMlp(hidden=(8,), neuron=neuron, learns=("beta",), axonal_delay=2))
    delays = network.layers["hidden1"].before["axon"]
    names = ["hidden1.neuron.beta", "hidden1.axon.delay"]
    assert list(Bptt().factors(network, spikes(), loss_of).direct) == names
    delays.learned = False  # rounded
    assert list(Bptt().factors(network, spikes(), loss_of).direct) == ["hidden1.neuron.beta"]


@pytest.mark.parametrize("readout", ["mean_rate", "mean_current", "max"])
def test_a_loss_of_every_step_gets_them(readout):
    network = made(SpikingMlp(hidden=(8,), neuron=LIF(beta=0.5, v_th=0.2), readout=readout))
    shapes = []

    def loss(steps):
        shapes.append(tuple(steps.shape))
        return steps.square().mean()

    factors = Bptt().factors(network, spikes(), PerStep(loss))
    assert shapes == [(1 if readout == "mean_rate" else 5, B, CLASSES)]
    assert factors.logits.shape == (B, CLASSES)
    value = network(spikes()).steps.square().mean()
    expected = torch.autograd.grad(value, list(network.weights().values()))
    for name, gradient in zip(network.weights(), expected, strict=True):
        torch.testing.assert_close(gradients(factors)[name], gradient, rtol=1e-9, atol=1e-12)
