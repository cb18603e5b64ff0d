from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import Function

from spikecl.errors import ConfigError
from spikecl.networks import Cells, Graded, Layer, Linear, LoihiWeights, Network, Shift
from spikecl.networks.presynaptic import Pass
from spikecl.neurons import LoihiLIF

RUN = Pass({}, {}, False, None, None)


def nearest(x: float, points: list[int]) -> int:
    """Return the point next to a number; a tie goes to the even multiple, as everywhere."""
    step = points[1] - points[0]
    return min(points, key=lambda p: (abs(p - x), (p // step) % 2))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scale", [1.0, 90.5, 4000.0])
def test_weights_are_the_nearest_integers_that_the_memory_holds(bits, scale):
    step = 2 ** (9 - bits)
    points = list(range(step - 256, 257 - step, step))
    weight = torch.linspace(-3, 3, 41, requires_grad=True)
    made = LoihiWeights(scale=scale, bits=bits)(weight, {})
    assert made.tolist() == [nearest(w * scale, points) for w in weight.tolist()]
    made.sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, scale))  # beyond the range, too


def test_shared_weights_have_seven_bits_and_a_sign():
    made = LoihiWeights(scale=100.0, shared=True, factor=4)(torch.tensor([-9.0, 0.126, 1.27]), {})
    assert made.tolist() == [-508.0, 52.0, 508.0]


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 9}, {"scale": 0.0}, {"factor": 0}])
def test_weights_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"LoihiWeights.{next(iter(wrong))}"):
        LoihiWeights(**wrong)


def test_messages_are_clipped_and_pass_no_gradient_where_they_are():
    x = torch.tensor([[[-2.0, -1.0, 0.1, 0.99, 1.5]]], requires_grad=True)
    made = Graded(100.0, bits=8)(x, "", RUN)
    assert made.tolist() == [[[-128.0, -100.0, 10.0, 99.0, 127.0]]]
    made.sum().backward()
    assert x.grad.tolist() == [[[0.0, 100.0, 100.0, 100.0, 0.0]]]


def test_a_repeated_step_stays_one():
    x = torch.rand(1, 2, 3).expand(7, 2, 3)
    assert Graded(9.0)(x, "", RUN).stride(0) == 0


@pytest.mark.parametrize("exponent", [-7, -1, 0, 3])
@pytest.mark.parametrize("unit", [1.0, 0.125])
def test_shifts_round_down(exponent, unit):
    rows = torch.arange(-300.0, 300.0, 7.0, requires_grad=True)
    made = Shift(exponent, unit)(rows, "", RUN)
    assert made.tolist() == [unit * math.floor(r * 2.0**exponent) for r in rows.tolist()]
    made.sum().backward()
    assert torch.equal(rows.grad, torch.full_like(rows, unit * 2.0**exponent))


class Rounded(Function):
    """A value that was computed otherwise, with the gradient of the real one."""

    @staticmethod
    def forward(ctx, real, whole):
        return whole.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def trunc(x, kept):
    """Return what 24-bit state keeps, with the gradient of ``x kept``."""
    return Rounded.apply(x * kept, torch.trunc(x.detach() * kept))


def by_hand(x, w1, w2, neuron, *, scale, message, exponent):
    """Return membranes [T, B, n] and logits of two dense layers, step by step."""

    def integers(w, s):
        return Rounded.apply(w * s, torch.round(w.detach() * s / 2) * 2)

    w1, w2 = integers(w1, scale), integers(w2, 50.0)
    x = Rounded.apply(x * message, torch.round(x * message))
    u = v = torch.zeros(x.shape[1], len(w1), dtype=x.dtype)
    membranes, sums = [], 0
    for row in x:
        a = row @ w1.T * 2.0**exponent
        a = Rounded.apply(a, torch.floor(a.detach()))
        u = trunc(u, (4095 - neuron.du) / 4096) + 64 * a
        v = trunc(v, (4096 - neuron.dv) / 4096) + u + neuron.bias_mant * 2**neuron.bias_exp
        distance = v / (64 * neuron.vth) - 1
        smooth = torch.sigmoid(4 * distance)
        s = Rounded.apply(smooth, (distance > 0).to(x.dtype))
        v = v * (1 - s.detach())
        membranes.append(v)
        sums = sums + s @ w2.T
    return torch.stack(membranes), sums / len(x)


def test_forward_and_backward_are_those_of_a_loop():
    torch.manual_seed(0)
    neuron = LoihiLIF(vth=60, du=1500, dv=300, bias_mant=-20, bias_exp=3)
    w1, w2 = (torch.randn(shape, dtype=torch.float64) for shape in ((7, 5), (3, 7)))
    x = torch.rand(6, 4, 5, dtype=torch.float64)
    hidden = Layer(
        Linear(5, 7, maps=(LoihiWeights(scale=30.0),)),
        Cells(neuron),
        inputs=("input",),
        before={"graded": Graded(20.0)},
        norm=Shift(-4),
    )
    readout = Linear(7, 3, maps=(LoihiWeights(scale=50.0),))
    network = Network({"a": hidden, "b": Layer(readout, None, inputs=("a",))}, mean_first=False)
    network = network.double()
    with torch.no_grad():
        hidden.synapse.weight.copy_(w1)
        readout.weight.copy_(w2)
    v = network.record(x, variables=["v"])["a"]["v"]
    ours = network(x).logits
    w1.requires_grad_(), w2.requires_grad_()
    membranes, logits = by_hand(x, w1, w2, neuron, scale=30.0, message=20.0, exponent=-4)
    assert v.tolist() == membranes.tolist()
    assert (logits.detach() != 0).double().mean() > 0.05
    torch.testing.assert_close(ours, logits, rtol=1e-12, atol=0)
    target = torch.randn(4, 3, dtype=torch.float64)
    (ours * target).sum().backward()
    (logits * target).sum().backward()
    assert w1.grad.abs().min() > 0
    torch.testing.assert_close(hidden.synapse.weight.grad, w1.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(readout.weight.grad, w2.grad, rtol=1e-9, atol=1e-9)
