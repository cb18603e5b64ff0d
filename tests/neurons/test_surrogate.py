"""Surrogates against their primitives, their areas and snnTorch."""

import math

import pytest
import snntorch.surrogate
import torch
from scipy.integrate import quad

from spikecl.errors import ConfigError
from spikecl.neurons import Arctan, FastSigmoid, Sigmoid, spike

PRIMITIVES = {
    Sigmoid: lambda x, k: torch.sigmoid(k * x),
    Arctan: lambda x, a: torch.atan(math.pi * a * x / 2) / math.pi,
    FastSigmoid: lambda x, k: x / (1 + k * x.abs()),
}
KINDS = list(PRIMITIVES)
SLOPES = [0.5, 2.0, 25.0]
SNNTORCH = {
    Sigmoid: snntorch.surrogate.sigmoid,
    Arctan: snntorch.surrogate.atan,
    FastSigmoid: snntorch.surrogate.fast_sigmoid,
}
x = torch.linspace(-3, 3, 401, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", SLOPES)
def test_equals_the_finite_difference_of_its_primitive(kind, slope):
    away = x[x.abs() > 1e-3]  # the fast sigmoid has a corner at 0
    h = 1e-6
    primitive = PRIMITIVES[kind]
    difference = (primitive(away + h, slope) - primitive(away - h, slope)) / (2 * h)
    torch.testing.assert_close(kind(slope=slope)(away), difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", SLOPES)
def test_area(kind, slope):
    surrogate = kind(slope=slope)

    def h(value):
        return float(surrogate(torch.tensor([value], dtype=torch.float64)))

    area = 2 * (quad(h, 0, 1)[0] + quad(h, 1, math.inf)[0])
    assert area == pytest.approx(2 / slope if kind is FastSigmoid else 1, rel=1e-6)


@pytest.mark.parametrize(
    ("surrogate", "peak"),
    [
        (Sigmoid(), 1.0), (Sigmoid(slope=25.0), 6.25), (Arctan(), 1.0), (Arctan(slope=5.0), 2.5),
        (FastSigmoid(), 1.0), (FastSigmoid(slope=100.0), 1.0),
    ],
)  # fmt: skip
def test_value_at_threshold(surrogate, peak):
    assert float(surrogate(torch.zeros(1))) == peak


@pytest.mark.parametrize("kind", KINDS)
def test_even_pure_and_of_the_same_shape_and_type(kind):
    surrogate = kind()
    torch.testing.assert_close(surrogate(x), surrogate(-x), rtol=1e-12, atol=1e-14)
    for given in (x.float().view(1, -1).clone(), torch.tensor([-1e4, 0.0, 1e4])):
        before = given.clone()
        out = surrogate(given)
        assert torch.equal(given, before)
        assert (out.shape, out.dtype) == (given.shape, given.dtype)
        assert bool(out.isfinite().all() & (out >= 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_slope_must_be_positive(kind):
    with pytest.raises(ConfigError, match="slope: got 0.0"):
        kind(slope=0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", SLOPES)
def test_spike_and_gradient_equal_snntorch(kind, slope):
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.cos(7 * x)
    a, b = spike(ours, kind(slope=slope)), SNNTORCH[kind](slope)(theirs)
    assert torch.equal(a, b.double())
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    # snnTorch's spikes are float32, so the incoming gradient is rounded to float32
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("strict", [True, False])
def test_comparison(strict):
    at = torch.tensor([-1e-30, 0.0, 1e-30])
    assert spike(at, Sigmoid(), strict=strict).tolist() == [0.0, 0.0 if strict else 1.0, 1.0]
    assert spike(at.double(), Sigmoid(), strict=strict).dtype == torch.float64


def test_backward_is_the_incoming_gradient_times_the_surrogate():
    at = torch.tensor([-0.2, 0.0, 0.4], dtype=torch.float64, requires_grad=True)
    incoming = torch.tensor([2.0, -3.0, 5.0], dtype=torch.float64)
    spike(at, Arctan(slope=3.0)).backward(incoming)
    expected = [
        g * 1.5 / (1 + (math.pi * 1.5 * u) ** 2) for g, u in zip([2, -3, 5], [-0.2, 0, 0.4])
    ]
    assert at.grad.tolist() == pytest.approx(expected, rel=1e-12)
