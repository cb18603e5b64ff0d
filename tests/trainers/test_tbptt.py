"""Truncated BPTT: autograd of loops whose state is detached every k steps."""

import pytest
import torch
from torch.nn import functional

from spikecl.networks import (
    Mlp,
    Plasticity,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import ALIF, LIF, PLIF, LeakyIntegrator, Sigmoid
from spikecl.neurons.neuron import carry
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt, PerStep, Sltt, Tbptt

T, B, IN, CLASSES = 7, 4, 6, 3
BETA, V_TH, SLOPE = 0.8, 0.4, 2.0
CELL = LIF(beta=BETA, v_th=V_TH, surrogate=Sigmoid(slope=SLOPE))
LABELS = torch.arange(B) % CLASSES
NETWORKS = {
    "mlp": SpikingMlp(hidden=(8, 7), neuron=CELL, bias=True),
    "mean current": SpikingMlp(hidden=(8, 7), neuron=CELL, readout="mean_current"),
    "recurrent": SpikingRecurrentNet(hidden=(8, 7), neuron=CELL, readout="mean_current"),
    "alif": SpikingRecurrentNet(hidden=(8,), neuron=ALIF(v_th=0.3)),
    "plif": SpikingMlp(hidden=(8, 7), neuron=PLIF(v_th=0.2), per_neuron=True),
    "delays": SpikingMlp(hidden=(8, 7), neuron=CELL, delay=2, axonal_delay=3),
    "plasticity": SpikingMlp(hidden=(8, 7), neuron=CELL, stp=Plasticity(tau_d=5.0, tau_f=3.0)),
    "membranes": SpikingMlp(hidden=(8,), neuron=CELL, output=LeakyIntegrator(), readout="max"),
    "first spike": SpikingMlp(
        hidden=(8,), neuron=CELL, output=LIF(v_th=0.3), readout="first_spike"
    ),
    "dropout": SpikingMlp(hidden=(8, 7), neuron=CELL, dropout=0.3),
    "twin": Mlp(hidden=(8, 7)),
    "conv": SpikingConvNet(channels=(3,), kernel=2, neuron=CELL, hidden=(5,)),
    "resnet": SpikingResNet(width=3, blocks=(1, 1), neuron=CELL, norm="none"),
}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(name):
    shape = (6, 5) if name in ("conv", "resnet") else (IN,)
    network = NETWORKS[name].build(shape, CLASSES).double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(3)
    return network, (draw(T, B, *shape, seed=1) > 0).double()


def of_logits(logits):
    return functional.cross_entropy(2 * logits, LABELS)


def of_steps(steps):
    return (draw(*steps.shape, seed=7) * steps).sum() + (steps.sum(0) ** 2).mean()


def gradients_of(factors, network):
    return form_gradients(network, factors.synapses, factors.direct)


def detached(network, x, k, loss, state=None):
    """Autograd of the network's own passes; between parts the state is detached."""
    generator, held, made = torch.Generator().manual_seed(5), {}, []
    for part in torch.split(x, k):
        output = network(
            part, carry(state, "detach"), training=True, generator=generator, held=held
        )
        made.append(output.steps * (len(part) / len(x) if network.mean_first else 1.0))
        state = output.state
    steps = torch.stack(made).sum(0) if network.mean_first else torch.cat(made)
    value = loss(steps if loss is of_steps else network.decode(steps))
    weights = network.weights()
    found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    return value.detach(), {n: g for n, g in zip(weights, found) if g is not None}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", [of_logits, of_steps])
@pytest.mark.parametrize("k", [1, 2, 3, T])
def test_it_is_autograd_of_parts_with_detached_states(name, loss, k):
    network, x = build(name)
    given = PerStep(loss) if loss is of_steps else loss
    draws = torch.Generator().manual_seed(5)
    factors = Tbptt(steps=k).factors(network, x, given, generator=draws)
    value, expected = detached(network, x, k, loss)
    found = gradients_of(factors, network)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(factors.loss, value, rtol=1e-12, atol=1e-12)
    for path, gradient in expected.items():
        torch.testing.assert_close(
            found[path], gradient, rtol=1e-10, atol=1e-11, msg=lambda t, p=path: f"{p}: {t}"
        )


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > V_TH).to(u)

    @staticmethod
    def backward(ctx, grad):
        s = torch.sigmoid(SLOPE * (ctx.saved_tensors[0] - V_TH))
        return grad * SLOPE * s * (1 - s)


@pytest.mark.parametrize("k", [1, 2, 4, 6, T])
@pytest.mark.parametrize("name", ["mean current", "recurrent"])
def test_it_is_a_loop_written_out(name, k):
    """Step by step, layer by layer, with the whole state cut before every k-th step."""
    network, x = build(name)
    w = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    layers, sizes = ("hidden1", "hidden2"), (8, 7)
    v = {n: torch.zeros(B, m, dtype=torch.float64) for n, m in zip(layers, sizes)}
    last, outputs = dict(v), []
    for t, now in enumerate(x):
        if t % k == 0:
            v, last = ({n: s.detach() for n, s in d.items()} for d in (v, last))
        h = now
        for layer, n in zip(layers, sizes):
            current = h @ w[f"{layer}.weight"].T
            if name == "recurrent":
                loops = w[f"{layer}.recurrent.weight"] * (1 - torch.eye(n, dtype=torch.float64))
                current = current + last[layer] @ loops.T
            u = BETA * v[layer] + current
            h = last[layer] = Fire.apply(u)
            v[layer] = u - V_TH * h.detach()
        outputs.append(h @ w["readout.weight"].T)
    of_logits(torch.stack(outputs).mean(0)).backward()
    found = gradients_of(Tbptt(steps=k).factors(network, x, of_logits), network)
    for path, weight in w.items():
        assert bool(weight.grad.any())
        torch.testing.assert_close(found[path], weight.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_part_is_bptt(name):
    network, x = build(name)
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    ours = Tbptt(steps=T).factors(network, x, of_logits, generator=draws[0])
    theirs = Bptt().factors(network, x, of_logits, generator=draws[1])
    found, expected = gradients_of(ours, network), gradients_of(theirs, network)
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        torch.testing.assert_close(found[path], gradient, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ours.loss, theirs.loss)


@pytest.mark.parametrize("name", ["mean current", "recurrent", "conv", "plif", "mlp"])
def test_parts_of_one_step_are_spatial_learning(name):
    network, x = build(name)
    loss = of_logits if network.mean_first else PerStep(of_steps, separable=True)
    found = gradients_of(Tbptt(steps=1).factors(network, x, loss), network)
    expected = gradients_of(Sltt().factors(network, x, loss), network)
    whole = gradients_of(Bptt().factors(network, x, loss), network)
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        torch.testing.assert_close(
            found[path], gradient, rtol=1e-10, atol=1e-12, msg=lambda t, p=path: f"{p}: {t}"
        )
    assert not torch.allclose(found[next(iter(found))], whole[next(iter(found))], rtol=1e-3)


@pytest.mark.parametrize("feedback", ["random", "sign", "direct"])
def test_other_ways_back_stay_within_their_part(feedback):
    """Errors of outputs in a part change when what follows it is cut off, and no other does."""
    network, x = build("recurrent")
    trainer = Tbptt(steps=3, feedback=feedback)
    variables = trainer.variables(network, Seeds(2), x)
    parts = trainer.factors(network, x, PerStep(of_steps), variables=variables)
    whole = Bptt(feedback=feedback).factors(network, x, PerStep(of_steps), variables=variables)
    one = parts.synapses["hidden1"].delta.view(-1, B, 8)  # the last part of steps comes first
    all_ = whole.synapses["hidden1"].delta.view(T, B, 8)
    torch.testing.assert_close(one[0], all_[6], rtol=1e-11, atol=1e-13)
    assert not torch.allclose(one[1:4], all_[3:6], rtol=1e-6)
    again = trainer.factors(network, x[:6], loss_of_first(6), variables=variables)
    first = trainer.factors(network, x, loss_of_first(6), variables=variables)
    torch.testing.assert_close(
        again.synapses["hidden1"].gradient(),
        first.synapses["hidden1"].gradient(),
        rtol=1e-11,
        atol=1e-13,
    )


def loss_of_first(steps):
    return PerStep(lambda outputs: (draw(steps, B, CLASSES, seed=7) * outputs[:steps]).sum())
