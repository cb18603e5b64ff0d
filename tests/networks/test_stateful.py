"""A network that remembers: what is carried, what is cut, and that nothing is shared."""

import pytest
import torch

from spikecl.networks import SpikingMlp, Stateful, initialise
from spikecl.neurons import LIF
from spikecl.neurons.neuron import leaves
from spikecl.seeds import Seeds


def make(seed=0):
    network = SpikingMlp(hidden=(5,), neuron=LIF(beta=0.9, v_th=0.3)).build((4,), 2).double()
    initialise(network, Seeds(seed))
    return network


def inputs(steps=6, seed=0):
    return torch.rand(steps, 3, 4, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("between", ["keep", "detach"])
def test_calls_in_a_row_are_one_pass(case, between):
    network, x = case.network(), case.inputs()
    stream = Stateful(network, between=between)
    parts = [stream(x[:2]), stream(x[2:3]), stream(x[3:])]
    whole = network(x)
    mean = (2 * parts[0].logits + parts[1].logits + 2 * parts[2].logits) / 5
    torch.testing.assert_close(mean, whole.logits)
    assert list(parts[2].state) == list(whole.state)
    for a, b in zip(leaves(parts[2].state), leaves(whole.state), strict=True):
        torch.testing.assert_close(a, b)


def test_reset_forgets():
    stream = Stateful(make(), between="reset")
    first = stream(inputs()).logits
    assert stream.state is None and torch.equal(stream(inputs()).logits, first)


def test_keep_carries_the_gradient_and_detach_cuts_it():
    """Gradients of the second half's output by the first half's input."""
    x = inputs().requires_grad_()
    for between in ("keep", "detach"):
        stream = Stateful(make(), between=between)
        stream(x[:3])
        (gradient,) = torch.autograd.grad(stream(x[3:]).logits.sum(), x)
        assert bool(gradient[3:].any())
        assert bool(gradient[:3].any()) == (between == "keep")
        assert all(t.requires_grad == (between == "keep") for t in leaves(stream.state))


def test_two_networks_never_share_their_state():
    """snnTorch issue 438: hidden states of one instance were those of another."""
    network, other = make(0), make(1)
    streams = [Stateful(network), Stateful(other), Stateful(network)]
    alone = []
    for net in (network, other, network):
        stream = Stateful(net)
        alone.append([stream(inputs(seed=s)).logits for s in range(3)])
    mixed = [[stream(inputs(seed=s)).logits for stream in streams] for s in range(3)]
    for i in range(3):
        for s in range(3):
            assert torch.equal(mixed[s][i], alone[i][s])
    assert not torch.equal(alone[0][2], Stateful(network)(inputs(seed=2)).logits)
    assert not any(isinstance(v, torch.Tensor) for v in vars(network).values())


def test_options_reach_the_network():
    stream, trace = Stateful(make()), {}
    stream(inputs(), taps=trace)
    assert list(trace) == ["hidden1", "readout"]
