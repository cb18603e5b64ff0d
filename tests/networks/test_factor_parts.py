"""Factors of parts of the steps put together, traces of 1, and gradients without rows."""

import pytest
import torch
from torch.nn import functional

from spikecl.errors import UsageError
from spikecl.kernels import Kernels
from spikecl.kernels.events import Events
from spikecl.networks import (
    Complement,
    Conv2d,
    ConvFactor,
    Factor,
    GradientFactor,
    KeptFactor,
    Linear,
    SpikingMlp,
    SplitSigns,
    form_gradients,
    initialise,
)
from spikecl.networks.conv_factor import Geometry
from spikecl.seeds import Seeds
from spikecl.trainers import Factors
from spikecl.trainers.trainer import joined

R, N, M = 6, 5, 4


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def spikes(*shape, seed=0):
    return (draw(*shape, seed=seed) > 0.3).double()


def complement(n, k=2):
    q = torch.linalg.qr(draw(n, n, seed=9)).Q
    return Complement(q[:, :k].T, q[:, k:])


def cuts(x, sizes):
    return torch.split(x, sizes)


def make_rows(x, delta, ones):
    return Factor(x, delta, 2 * x, ones=ones)


def make_kept(x, delta, ones):
    synapse = Linear(x.shape[1], delta.shape[1])
    kept = synapse.keep(x, Kernels(synapse="events"))
    assert isinstance(kept, Events)
    return KeptFactor(kept, delta)


def make_gradient(x, delta, ones):
    bias = delta.sum(0) if ones is None else ones @ delta
    return GradientFactor(delta.T @ x, bias, x, "test")


def make_lazy(x, delta, ones):
    return GradientFactor(delta.T @ x, delta.sum(0), lambda: x, "test")


ROWS = {"rows": make_rows, "events": make_kept, "gradient": make_gradient, "lazy": make_lazy}
SIZES = pytest.mark.parametrize("sizes", [(6,), (2, 4), (1, 3, 2), (1,) * 6])


@pytest.mark.parametrize("kind", ROWS)
@SIZES
def test_parts_of_rows_together_are_all_rows(kind, sizes):
    x, delta = spikes(R, N), draw(R, M, seed=1)
    parts = [
        ROWS[kind](a, b, None) for a, b in zip(cuts(x, sizes), cuts(delta, sizes), strict=True)
    ]
    made = parts[-1].join(parts)
    torch.testing.assert_close(made.gradient(), delta.T @ x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.bias_gradient(), delta.sum(0), rtol=1e-12, atol=1e-12)
    sent = 2 * x if kind == "rows" else x
    assert torch.equal(made.transmitted, sent)
    outside = complement(N)
    expected = delta.T @ (x - x @ outside.basis.T @ outside.basis)
    torch.testing.assert_close(made.project(outside).gradient(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(made.project(outside).bias_gradient(), delta.sum(0))
    if kind in ("rows", "events"):
        assert torch.equal(made.x, x) and torch.equal(made.delta, delta)


@pytest.mark.parametrize("mixed", [False, True])
@SIZES
def test_traces_of_one_go_along(mixed, sizes):
    """A part without a trace of 1 has ones."""
    x, delta, ones = spikes(R, N), draw(R, M, seed=1), draw(R, seed=2)
    traces = list(cuts(ones, sizes))
    if mixed:
        traces[0] = None
    pairs = zip(cuts(x, sizes), cuts(delta, sizes), traces, strict=True)
    parts = [make_rows(*part) for part in pairs]
    made = parts[-1].join(parts)
    if mixed:
        ones = ones.clone()
        ones[: sizes[0]] = 1
    torch.testing.assert_close(made.bias_gradient(), ones @ delta, rtol=1e-12, atol=1e-12)
    projected = made.project(complement(N))
    torch.testing.assert_close(projected.bias_gradient(), ones @ delta, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.gradient(), delta.T @ x, rtol=1e-12, atol=1e-12)


GEOMETRIES = [Geometry(3, 1, 1), Geometry(2, 2, 0), Geometry(3, 2, 1)]
geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


def maps_of(geometry):
    maps = spikes(R, 2, 6, 5)
    kernel, stride, padding = geometry
    weight = draw(3, 2, kernel, kernel, seed=3).requires_grad_()
    bias = draw(3, seed=4).requires_grad_()
    current = functional.conv2d(maps, weight, bias, stride=stride, padding=padding)
    errors = draw(*current.shape, seed=5)
    return maps, errors, torch.autograd.grad((current * errors).sum(), [weight, bias])


@geometries
@SIZES
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_parts_of_maps_together_are_all_maps(geometry, sizes, traced, mixed):
    maps, errors, (weight, bias) = maps_of(geometry)
    sent, ones = (2 * maps, draw(R, seed=6)) if traced else (None, None)
    several = [None] * len(sizes)
    pairs = zip(
        cuts(maps, sizes), cuts(errors, sizes),
        cuts(sent, sizes) if traced else several,
        list(cuts(ones, sizes)) if traced else several, strict=True,
    )  # fmt: skip
    parts = [
        ConvFactor(m, e, geometry, transmitted=s, ones=None if mixed and not k else o)
        for k, (m, e, s, o) in enumerate(pairs)
    ]
    made = parts[-1].join(parts)
    torch.testing.assert_close(made.gradient(), weight.flatten(1), rtol=1e-11, atol=1e-11)
    kernel, stride, padding = geometry
    patches = functional.unfold(maps, kernel, stride=stride, padding=padding)
    patches = patches.transpose(1, 2).flatten(0, 1)
    assert torch.equal(made.transmitted, 2 * patches if traced else patches)
    assert torch.equal(made.x, patches)
    if traced:
        ones = ones.clone()
        if mixed:
            ones[: sizes[0]] = 1
        bias = torch.einsum("r,rchw->c", ones, errors)
    torch.testing.assert_close(made.bias_gradient(), bias, rtol=1e-11, atol=1e-11)


@geometries
@pytest.mark.parametrize("traced", [False, True])
def test_a_convolution_that_is_projected_leaves_its_bias_alone(geometry, traced):
    maps, errors, (weight, bias) = maps_of(geometry)
    ones = draw(R, seed=6) if traced else None
    factor = ConvFactor(maps, errors, geometry, ones=ones)
    outside = complement(weight[0].numel())
    projected = factor.project(outside)
    expected = weight.flatten(1) - weight.flatten(1) @ outside.basis.T @ outside.basis
    torch.testing.assert_close(projected.gradient(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        projected.bias_gradient(), factor.bias_gradient(), rtol=1e-10, atol=1e-10
    )


# What a synapse makes of traces


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kept", ["rows", "events"])
def test_a_dense_synapse_forms_its_gradient_from_traces(split, kept):
    synapse = Linear(N, M, bias=True, maps=(SplitSigns(),) if split else ()).double()
    x, sent, ones = draw(R, N, seed=7), spikes(R, N), draw(R, seed=2)
    delta = draw(R, 2, M, seed=1) if split else draw(R, M, seed=1)
    rows = synapse.keep(sent, Kernels(synapse="events" if kept == "events" else "dense"))
    factor = synapse.traced(x, rows, delta, ones)
    flat = delta.flatten(1)
    assert torch.equal(factor.transmitted, sent)
    torch.testing.assert_close(factor.gradient(), flat.T @ x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(factor.bias_gradient(), ones @ flat, rtol=1e-12, atol=1e-12)
    assert torch.equal(synapse.traced(x, rows, delta, None).bias_gradient(), flat.sum(0))


@pytest.mark.parametrize("split", [False, True])
def test_a_convolution_forms_its_gradient_from_traces(split):
    synapse = Conv2d(2, 3, kernel=3, padding=1, bias=True, maps=(SplitSigns(),) if split else ())
    synapse = synapse.double()
    x, sent, ones = draw(R, 2, 6, 5, seed=7), spikes(R, 2, 6, 5), draw(R, seed=2)
    count = 6 if split else 3
    delta = draw(R, count, 6, 5, seed=1)
    given = delta.view(R, 2, 3, 6, 5) if split else delta
    factor = synapse.traced(x, sent, given, ones)
    weight = torch.zeros(count, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    current = functional.conv2d(x, weight, padding=1)
    (expected,) = torch.autograd.grad((current * delta).sum(), [weight])
    torch.testing.assert_close(factor.gradient(), expected.flatten(1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(factor.bias_gradient(), torch.einsum("r,rchw->c", ones, delta))
    assert torch.equal(factor.transmitted, functional.unfold(sent, 3, padding=1).mT.flatten(0, 1))


# Gradients without rows


def test_rows_that_are_not_there_are_asked_for_in_vain():
    factor = GradientFactor(draw(M, N), draw(M), draw(R, N), "some rule")
    for name in ("x", "delta"):
        with pytest.raises(UsageError, match=rf"'some rule'.*no rows '{name}'"):
            getattr(factor, name)
    assert not hasattr(factor, "ones")


def test_what_was_transmitted_is_taken_out_once_and_late():
    asked = []
    factor = GradientFactor(draw(M, N), None, lambda: asked.append(1) or draw(R, N), "rule")
    assert not asked
    assert factor.transmitted is factor.transmitted and asked == [1]


def test_gradients_of_what_is_stored_are_summed_by_name():
    parts = [
        GradientFactor(
            None, None, spikes(2, N, seed=k), "rule",
            stored={"weight": draw(M, N, seed=k), "gain": draw(M, seed=10 + k)},
        )
        for k in range(3)
    ]  # fmt: skip
    made = parts[0].join(parts)
    for name in ("weight", "gain"):
        assert torch.equal(made.stored[name], sum(p.stored[name] for p in parts))
    assert len(made.transmitted) == 6
    with pytest.raises(UsageError, match="weight map"):
        made.gradient()


@pytest.mark.parametrize("mapped", [False, True])
def test_a_gradient_takes_the_way_of_rows_to_what_is_stored(mapped):
    spec = SpikingMlp(hidden=(M,), bias=True, standardise=mapped)
    network = spec.build((N,), 3).double()
    initialise(network, Seeds(1))
    rows, plain = {}, {}
    for k, (path, synapse) in enumerate(network.synapses.items()):
        n_out, n_in = synapse.weight.shape
        x, delta = spikes(R, n_in, seed=k), draw(R, n_out, seed=10 + k)
        rows[path] = Factor(x, delta, x)
        plain[path] = make_gradient(x, delta, None)
    expected, found = (form_gradients(network, factors, {}) for factors in (rows, plain))
    assert found.keys() == expected.keys() == set(network.weights())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)
    own = {
        "weight": draw(M, N, seed=20),
        "bias": draw(M, seed=21),
        **({"gain": draw(M, seed=22)} if mapped else {}),
    }
    plain["hidden1"] = GradientFactor(None, None, spikes(R, N), "rule", stored=own)
    if mapped:
        # what a rule gives for what is stored goes by no map, and needs no gradient of the bias
        network.synapses["hidden1"].bias = None
        own.pop("bias")
        network = SpikingMlp(hidden=(M,), standardise=True).build((N,), 3).double()
    else:
        network = SpikingMlp(hidden=(M,)).build((N,), 3).double()
        own.pop("bias")
    found = form_gradients(network, plain, {})
    for name, gradient in own.items():
        assert found[f"hidden1.{name}"] is gradient


def test_the_factors_of_parts_are_put_together():
    x, delta = spikes(R, N), draw(R, M, seed=1)
    parts = []
    for k, (a, b) in enumerate(zip(cuts(x, (2, 4)), cuts(delta, (2, 4)), strict=True)):
        direct = {"both": torch.tensor(1.0 + k), **({"first": torch.tensor(5.0)} if not k else {})}
        parts.append(
            Factors(
                torch.tensor(0.25 * (k + 1)), draw(2, 3, seed=k), {"a": Factor(a, b, a)}, direct,
                activity={"a": torch.tensor(0.5)},
            )
        )  # fmt: skip
    made = joined(parts)
    assert float(made.loss) == 0.75
    assert made.logits is parts[-1].logits
    assert made.direct == {"both": torch.tensor(3.0), "first": torch.tensor(5.0)}
    torch.testing.assert_close(made.synapses["a"].gradient(), delta.T @ x)
    assert float(made.activity["a"]) == 0.5
    assert joined(parts[:1]) is parts[0]
