"""Surrogates against their primitives, their areas, snnTorch, Norse and SpikingJelly."""

import math
import warnings
from statistics import NormalDist

import pytest
import snntorch.surrogate
import torch
from scipy.integrate import quad
from torch.autograd import gradcheck

from spikecl.errors import ConfigError
from spikecl.kernels import scan
from spikecl.neurons import (
    LIF,
    SURROGATES,
    Arctan,
    Boxcar,
    Erf,
    FastSigmoid,
    MultiGaussian,
    Reset,
    Sigmoid,
    Smooth,
    StraightThrough,
    Triangle,
    spike,
    step,
)

with warnings.catch_warnings():
    warnings.filterwarnings(
        "ignore", message=".torch.jit.script. is deprecated", category=DeprecationWarning
    )
    from norse.torch.functional.threshold import threshold as norse_threshold


def gaussians(h, s, wide, v):
    """Return the surrogate of Yin et al. at ``v`` in plain Python."""
    flanks = NormalDist(s, wide * s).pdf(v) + NormalDist(-s, wide * s).pdf(v)
    return (1 + h) * NormalDist(0, s).pdf(v) - h * flanks


TABLE = [  # surrogate, value at 0, area: the table of docs, and other parameters
    (Arctan(), 1.0, 1.0),
    (Arctan(slope=5.0), 2.5, 1.0),
    (FastSigmoid(), 1.0, 0.08),
    (FastSigmoid(slope=100.0), 1.0, 0.02),
    (FastSigmoid(slope=10.0), 1.0, 0.2),
    (FastSigmoid(slope=1.0), 1.0, 2.0),
    (Sigmoid(), 1.0, 1.0),
    (Sigmoid(slope=25.0), 6.25, 1.0),
    (Triangle(), 0.3, 0.3),
    (Triangle(height=0.3, width=0.6), 0.3, 0.18),
    (Triangle(height=0.5, width=0.6), 0.5, 0.3),  # e-prop: gamma 0.3 over the threshold 0.6
    (Triangle(height=1.0, width=1.0), 1.0, 1.0),
    (Boxcar(), 1.0, 1.0),
    (Boxcar(width=2.0), 0.25, 1.0),
    (Erf(), 2 / math.sqrt(math.pi), 1.0),
    (Erf(slope=0.5), 0.5 / math.sqrt(math.pi), 1.0),
    (MultiGaussian(), gaussians(0.15, 0.5, 6.0, 0.0), 0.85),
    (MultiGaussian(height=0.3, width=0.4, flank=3.0), gaussians(0.3, 0.4, 3.0, 0.0), 0.7),
    (StraightThrough(), 1.0, math.inf),
]
ALL = [row[0] for row in TABLE]
CORNERS = {Triangle: lambda s: s.width, Boxcar: lambda s: s.width}
x = torch.linspace(-3, 3, 402, dtype=torch.float64)  # 0 is not among them


def inside(surrogate):
    """Return points away from the corners of a surrogate."""
    corner = CORNERS.get(type(surrogate), lambda s: 0.0)(surrogate)
    return x[((x.abs() - corner).abs() > 1e-3) & (x.abs() > 1e-3)]


def at(surrogate, value):
    return float(surrogate(torch.tensor([value], dtype=torch.float64)))


def test_the_table_has_every_surrogate():
    assert {type(s) for s in ALL} == set(SURROGATES.values())


@pytest.mark.parametrize(("surrogate", "peak", "area"), TABLE, ids=str)
def test_value_at_threshold_and_area(surrogate, peak, area):
    assert at(surrogate, 0.0) == pytest.approx(peak, abs=5e-7)
    corner = CORNERS.get(type(surrogate), lambda s: 1.0)(surrogate)
    if area == math.inf:
        assert quad(lambda v: at(surrogate, v), -50, 50)[0] == pytest.approx(100)
        return
    measured = 2 * sum(
        quad(lambda v: at(surrogate, v), *ends)[0] for ends in ((0, corner), (corner, math.inf))
    )
    assert measured == pytest.approx(area, rel=1e-6)
    far = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    assert surrogate.primitive(far).diff().item() == pytest.approx(area, rel=1e-6)


@pytest.mark.parametrize("surrogate", ALL, ids=str)
def test_equals_the_derivative_of_its_primitive(surrogate):
    points = inside(surrogate).clone().requires_grad_()
    (derivative,) = torch.autograd.grad(surrogate.primitive(points).sum(), points)
    points = points.detach()
    torch.testing.assert_close(surrogate(points), derivative, rtol=1e-12, atol=1e-14)
    h = 1e-6
    difference = (surrogate.primitive(points + h) - surrogate.primitive(points - h)) / (2 * h)
    torch.testing.assert_close(surrogate(points), difference, rtol=1e-5, atol=1e-8)
    assert surrogate.primitive(torch.zeros(1)).item() == pytest.approx(0.5, abs=1e-7)


@pytest.mark.parametrize("surrogate", ALL, ids=str)
def test_even_pure_and_of_the_same_shape_and_type(surrogate):
    torch.testing.assert_close(surrogate(x), surrogate(-x), rtol=1e-12, atol=1e-14)
    for given in (x.float().view(1, -1).clone(), torch.tensor([-1e4, 0.0, 1e4])):
        before = given.clone()
        for out in (surrogate(given), surrogate.primitive(given)):
            assert torch.equal(given, before)
            assert (out.shape, out.dtype) == (given.shape, given.dtype)
            assert bool(out.isfinite().all())
    lowest = -0.2 if isinstance(surrogate, MultiGaussian) else 0.0
    assert float(surrogate(x).min()) >= lowest


def test_multi_gaussian_follows_the_paper():
    for v in (-2.0, -0.7, 0.0, 0.3, 1.4):
        assert at(MultiGaussian(), v) == pytest.approx(gaussians(0.15, 0.5, 6.0, v), rel=1e-12)
    assert at(MultiGaussian(), 0.0) == pytest.approx(0.878, abs=5e-4)
    assert float(MultiGaussian()(x).min()) == pytest.approx(-0.032, abs=5e-4)


def test_corners():
    edge = torch.tensor([-0.6, -0.5, 0.5, 0.6], dtype=torch.float64)
    assert Boxcar(width=0.5)(edge).tolist() == [0.0, 1.0, 1.0, 0.0]
    assert Triangle(height=2.0, width=0.5)(edge).tolist() == [0.0, 0.0, 0.0, 0.0]
    assert Triangle(height=2.0, width=1.0)(edge).tolist() == pytest.approx([0.8, 1.0, 1.0, 0.8])


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(Sigmoid, "slope", 0.0), (Arctan, "slope", 0.0), (FastSigmoid, "slope", 0.0),
     (Erf, "slope", -1.0), (Triangle, "height", 0.0), (Triangle, "width", 0.0),
     (Boxcar, "width", 0.0), (MultiGaussian, "height", 1.5), (MultiGaussian, "width", 0.0)],
)  # fmt: skip
def test_parameters_out_of_range(kind, name, value):
    with pytest.raises(ConfigError, match=f"{name}: got {value}"):
        kind(**{name: value})


# The parameters of other libraries, as the docstrings translate them


SNNTORCH = [
    (Sigmoid, snntorch.surrogate.sigmoid, 1.0),
    (Arctan, snntorch.surrogate.atan, 1.0),
    (FastSigmoid, snntorch.surrogate.fast_sigmoid, 1.0),
]


def equal_to(ours, theirs, gain=1.0, rtol=1e-10):
    """Compare spikes and gradients of ours, times a gain, and of another library's function."""
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = (torch.cos(7 * x) * 256).round() / 256  # float32 holds it, as snnTorch needs
    mine, other = spike(a, ours), theirs(b)
    assert torch.equal(mine, other.double())
    (mine * weight).sum().backward()
    (other * weight).sum().backward()
    torch.testing.assert_close(gain * a.grad, b.grad, rtol=rtol, atol=1e-13)


@pytest.mark.parametrize("slope", [0.5, 2.0, 25.0])
@pytest.mark.parametrize(("kind", "theirs", "gain"), SNNTORCH)
def test_snntorch_by_slope(kind, theirs, gain, slope):
    equal_to(kind(slope=slope), theirs(slope), gain)


def test_snntorch_defaults():
    equal_to(Arctan(), snntorch.surrogate.atan())
    equal_to(FastSigmoid(), snntorch.surrogate.fast_sigmoid())
    equal_to(Sigmoid(slope=25.0), snntorch.surrogate.sigmoid())
    equal_to(StraightThrough(), snntorch.surrogate.straight_through_estimator())


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_norse_triangle(alpha):
    equal_to(Triangle(height=alpha, width=1.0), lambda v: norse_threshold(v, "triangle", alpha))


def test_norse_superspike():
    # Norse 1.1.0 ignores alpha (fixed by norse/norse#403): its slope is 1, that of others alpha
    def slope(alpha):
        v = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
        norse_threshold(v, "super", alpha).backward()
        return (float(v.grad) ** -0.5 - 1) / 0.01

    for alpha in (1.0, 10.0, 100.0):
        used = slope(alpha)
        assert min(abs(used - alpha), abs(used - 1.0)) < 1e-9
        k = float(round(used))
        equal_to(FastSigmoid(slope=k), lambda v, a=alpha: norse_threshold(v, "super", a))


@pytest.mark.parametrize("k", [0.5, 2.0, 10.0])
def test_norse_functions_that_are_multiples_of_ours(k):
    # Norse takes the root of a float32 pi
    equal_to(Erf(slope=k), lambda v: norse_threshold(v, "heavi_erfc", k), 2 / k, rtol=1e-7)
    equal_to(Sigmoid(slope=2 * k), lambda v: norse_threshold(v, "tanh", k), 2 / k)


@pytest.fixture
def jelly():
    """SpikingJelly's surrogates, which are no dependency."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".torch.jit.script. is deprecated", category=DeprecationWarning
        )
        return pytest.importorskip(
            "spikingjelly.activation_based.surrogate",
            reason="spikingjelly is not installed (pip install --no-deps spikingjelly loguru)",
        )


@pytest.mark.parametrize("alpha", [0.5, 2.0, 4.0])
def test_spikingjelly(jelly, alpha):
    equal_to(Sigmoid(slope=alpha), jelly.Sigmoid(alpha))
    equal_to(Arctan(slope=alpha), jelly.ATan(alpha))
    equal_to(Erf(slope=alpha), jelly.Erf(alpha))
    equal_to(Triangle(height=alpha, width=1 / alpha), jelly.PiecewiseQuadratic(alpha))
    if hasattr(jelly, "SuperSpike"):  # not in 0.0.0.0.14
        equal_to(FastSigmoid(slope=1.0), jelly.SuperSpike(alpha), alpha)
    equal_to(FastSigmoid(slope=alpha), jelly.SoftSign(alpha), alpha / 2)


# The spike


@pytest.mark.parametrize("strict", [True, False])
def test_comparison(strict):
    at = torch.tensor([-1e-30, 0.0, 1e-30])
    assert spike(at, Sigmoid(), strict=strict).tolist() == [0.0, 0.0 if strict else 1.0, 1.0]
    assert spike(at.double(), Sigmoid(), strict=strict).dtype == torch.float64


def test_backward_by_hand():
    at = torch.tensor([-0.2, 0.0, 0.4], dtype=torch.float64, requires_grad=True)
    incoming = torch.tensor([2.0, -3.0, 5.0], dtype=torch.float64)
    spike(at, Arctan(slope=3.0)).backward(incoming)
    expected = [
        g * 1.5 / (1 + (math.pi * 1.5 * u) ** 2) for g, u in zip([2, -3, 5], [-0.2, 0, 0.4])
    ]
    assert at.grad.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("surrogate", ALL, ids=str)
@pytest.mark.parametrize("strict", [True, False])
def test_backward_is_the_incoming_gradient_times_the_surrogate(surrogate, strict):
    points = torch.cat([x, x.new_zeros(1)]).requires_grad_()
    incoming = torch.randn(points.shape, dtype=torch.float64, generator=torch.Generator())
    shift = torch.randn(points.shape, dtype=torch.float64, generator=torch.Generator())
    for moved in (None, shift):
        points.grad = None
        out = spike(points, surrogate, strict=strict, shift=moved)
        where = points.detach() if moved is None else points.detach() + moved
        assert torch.equal(out, ((where > 0) if strict else (where >= 0)).double())
        out.backward(incoming)  # at the distance itself: a jitter moves the comparison alone
        assert torch.equal(points.grad, incoming * surrogate(points.detach()))


def test_a_shift_is_no_part_of_the_gradient():
    at = torch.tensor([0.3, -0.3], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([-0.4, 0.4], dtype=torch.float64, requires_grad=True)
    out = spike(at, Sigmoid(), shift=shift)
    assert out.tolist() == [0.0, 1.0]
    out.sum().backward()
    assert shift.grad is None
    torch.testing.assert_close(at.grad, Sigmoid()(at.detach()))


@pytest.mark.parametrize("surrogate", ALL, ids=str)
def test_smooth_puts_the_primitive_in_place_of_the_spike(surrogate):
    smooth, points = Smooth(of=surrogate), inside(surrogate)
    assert torch.equal(smooth(points), surrogate(points))
    assert torch.equal(smooth.primitive(points), surrogate.primitive(points))
    points = points.clone().requires_grad_()
    out = spike(points, smooth)
    assert torch.equal(out, surrogate.primitive(points))
    out.sum().backward()
    torch.testing.assert_close(points.grad, surrogate(points.detach()), rtol=1e-12, atol=1e-14)


# A network in which the spike is smooth: its surrogate gradient is its gradient


KINDS = [Sigmoid(), Arctan(), FastSigmoid(slope=3.0), Triangle(height=0.7, width=1.5),
         Boxcar(width=3.0), Erf(), MultiGaussian()]  # fmt: skip
RESETS = [(Reset.SOFT, "same"), (Reset.ZERO, "same"), (Reset.SOFT, "next"), (Reset.VALUE, "after")]


def two_layers(surrogate, reset, time):
    """Return neurons of two layers that keep the gradient of the reset."""
    options = {
        "reset": reset, "reset_time": time, "v_reset": -0.2, "detach_reset": False,
        "surrogate": surrogate,
    }  # fmt: skip
    return LIF(beta=0.8, v_th=0.6, **options), LIF(beta=0.6, v_rest=0.1, **options)


def output(neurons, first, second, current, beta):
    """Return the output of two layers after six steps, [B, 2]."""
    hidden, _ = scan(current @ first.T, None, neurons[0].bind({"beta": beta}))
    return scan(hidden @ second.T, None, neurons[1])[0].sum(0)


def leaves():
    generator = torch.Generator().manual_seed(2)
    shapes = [(4, 3), (2, 4), (6, 2, 3)]
    made = [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]
    return [leaf.requires_grad_() for leaf in (*made, made[0].new_tensor(0.8))]


@pytest.mark.parametrize(("reset", "time"), RESETS)
@pytest.mark.parametrize("surrogate", KINDS, ids=lambda s: type(s).__name__)
def test_gradient_of_a_smooth_network(surrogate, reset, time):
    neurons = two_layers(Smooth(of=surrogate), reset, time)
    inputs = leaves()
    out = output(neurons, *inputs)
    assert float(out.detach().std()) > 0.01
    assert gradcheck(lambda *tensors: output(neurons, *tensors), inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(("reset", "time"), RESETS)
def test_backward_of_the_smooth_network_is_that_of_the_spiking_one(reset, time):
    # one step: the same membrane, so the gradients agree although the outputs do not
    spiking, smooth = (two_layers(s, reset, time)[0] for s in (Sigmoid(), Smooth(of=Sigmoid())))
    current = x.clone().view(1, -1).requires_grad_()
    a, b = (step(current, None, neuron)[0] for neuron in (spiking, smooth))
    assert not torch.equal(a, b)
    torch.testing.assert_close(
        torch.autograd.grad(a.sum(), current), torch.autograd.grad(b.sum(), current)
    )
