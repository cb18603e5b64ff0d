"""What imported networks are made of works in trainers, states and initialisation."""

import pytest
import snntorch
import torch
from torch import nn

from spikecl.interop import OneToOne, SpikeGrad, from_snntorch
from spikecl.networks import initialise
from spikecl.neurons import Arctan
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt

GRAD = SpikeGrad(Arctan())
LABELS = torch.tensor([0, 2, 1])


def pooled():
    norm = nn.BatchNorm2d(4).eval()
    return [
        *(nn.Conv2d(1, 4, 3), norm, nn.MaxPool2d(2), snntorch.Leaky(0.7, spike_grad=GRAD)),
        *(nn.Conv2d(4, 4, 2), nn.Flatten(), snntorch.Leaky(0.7, spike_grad=GRAD)),
        *(nn.Linear(4, 3), snntorch.RLeaky(0.5, all_to_all=False, spike_grad=GRAD)),
    ]


@pytest.fixture
def network(lab):
    made = from_snntorch(pooled())
    x = 0.3 + lab.draw(0, 20, 3, 1, 6, 6)
    assert lab.prepare_ours(made, x, steps=20)
    return made, x


@pytest.mark.parametrize("training", [False, True])
def test_factors_give_the_gradient(network, training):
    net, x = network

    def loss(logits):
        return nn.functional.cross_entropy(3 * logits, LABELS)

    output = net(x, training=training)
    weights = dict(net.weights())
    expected = dict(zip(weights, torch.autograd.grad(loss(output.logits), list(weights.values()))))
    assert all(bool(g.any()) for g in expected.values())
    factors = Bptt().factors(net, x, loss, training=training)
    torch.testing.assert_close(factors.logits, output.logits.detach())
    found = dict(factors.direct)
    for path, factor in factors.synapses.items():
        synapse = net.synapses[path]
        own = dict(synapse.named_parameters())
        bias = None if synapse.bias is None else factor.bias_gradient()
        found |= {
            f"{path}.{key}": g for key, g in synapse.pull_back(own, factor.gradient(), bias).items()
        }
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)
    assert factors.statistics.keys() == (net.statistics().keys() if training else set())
    net.set_statistics(factors.statistics)
    for name, value in factors.statistics.items():
        assert torch.equal(net.statistics()[name], value)


def test_a_pass_in_two_parts_equals_one(network):
    net, x = network
    first = net(x[:7])
    second = net(x[7:], first.state)
    whole = net(x)
    assert torch.equal(torch.cat([first.steps, second.steps]), whole.steps)
    assert bool(whole.steps.any())


def test_initialisation_starts_afresh(network):
    net, x = network
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.set_statistics({name: 2 + value for name, value in net.statistics().items()})
    initialise(net, Seeds(1))
    assert all(not bool(value.any()) for name, value in net.statistics().items() if "mean" in name)
    changed = [name for name, p in net.named_parameters() if not torch.equal(p, before[name])]
    assert any("recurrent" in name for name in changed)
    assert net(x).logits.isfinite().all()


def test_one_weight_for_all_or_for_each():
    for weight in (torch.tensor([0.5]), torch.tensor([0.5, -1.0, 2.0])):
        synapse = OneToOne(3, nn.Parameter(weight))
        assert torch.equal(
            synapse.effective(dict(synapse.named_parameters())), torch.diag(weight.expand(3))
        )
        gradient = torch.arange(9.0).view(3, 3)  # what is off the diagonal is no synapse
        back = synapse.pull_back({"weight": synapse.weight}, gradient, None)["weight"]
        assert back.tolist() == ([12.0] if len(weight) == 1 else [0.0, 4.0, 8.0])
