"""BPTT: a pure call whose factors are the gradient autograd finds."""

import pytest
import torch
from torch.nn import functional

from spikecl.encoding import Direct, InputStatistics, Rate
from spikecl.networks import Mlp, SpikingMlp, initialise
from spikecl.neurons import LIF, FastSigmoid, Reset
from spikecl.seeds import Seeds
from spikecl.streams.reveal import Reveal
from spikecl.trainers import Bptt, Trainer

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
