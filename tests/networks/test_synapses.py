"""Synapses against torch.nn and autograd: the product, and the way of gradients back."""

import math

import pytest
import torch
from torch import nn

from spikecl.errors import ConfigError
from spikecl.kernels import AUTO
from spikecl.networks import (
    Binarise,
    Complement,
    Conv2d,
    ConvFactor,
    Dale,
    Factor,
    Gain,
    Linear,
    NoAutapses,
    SplitSigns,
    Standardise,
    SynapticDelays,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def filled(synapse, seed=1):
    """Return the synapse in float64 with random parameters."""
    synapse.double()
    g = generator(seed)
    with torch.no_grad():
        for parameter in synapse.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return synapse


def own(synapse):
    return dict(synapse.named_parameters())


def current_of(synapse, x):
    rows = synapse.rows(x)
    kept = synapse.keep(rows, AUTO)
    return synapse.product(rows, kept, synapse.effective(own(synapse)), synapse.bias, AUTO)


GEOMETRIES = [(3, 1, 0), (3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 1, 2), (2, 3, 1), (4, 2, 0)]


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_torch_s(bias):
    synapse, twin = filled(Linear(6, 4, bias=bias)), nn.Linear(6, 4, bias=bias).double()
    twin.load_state_dict({name: p.detach() for name, p in own(synapse).items()})
    x = random(5, 6)
    torch.testing.assert_close(current_of(synapse, x), twin(x))
    torch.testing.assert_close(current_of(synapse, x.view(5, 2, 3)), twin(x))
    assert synapse.fan_in == 6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), GEOMETRIES)
def test_conv_is_torch_s(kernel, stride, padding, bias):
    synapse = filled(Conv2d(3, 4, kernel=kernel, stride=stride, padding=padding, bias=bias))
    twin = nn.Conv2d(3, 4, kernel, stride=stride, padding=padding, bias=bias).double()
    twin.load_state_dict({name: p.detach() for name, p in own(synapse).items()})
    x = random(2, 3, 7, 6)
    torch.testing.assert_close(current_of(synapse, x), twin(x))
    assert synapse.fan_in == 3 * kernel * kernel


@pytest.mark.parametrize(("kernel", "stride", "padding"), GEOMETRIES)
def test_a_conv_factor_is_autograd_and_its_rows(kernel, stride, padding):
    """Three ways to one gradient: autograd, the maps, and patches cut out by hand."""
    synapse = filled(Conv2d(3, 4, kernel=kernel, stride=stride, padding=padding, bias=True))
    x = random(2, 3, 7, 6)
    current = current_of(synapse, x)
    delta = random(*current.shape, seed=3)
    expected = torch.autograd.grad(current, [synapse.weight, synapse.bias], delta)
    factor = synapse.factor(synapse.rows(x), delta)
    assert isinstance(factor, ConvFactor)
    torch.testing.assert_close(factor.gradient().view_as(synapse.weight), expected[0])
    torch.testing.assert_close(factor.bias_gradient(), expected[1])

    padded = nn.functional.pad(x, [padding] * 4)
    patches, errors = [], []
    for r in range(2):
        for i in range(current.shape[2]):
            for j in range(current.shape[3]):
                a, b = i * stride, j * stride
                patches.append(padded[r, :, a : a + kernel, b : b + kernel].flatten())
                errors.append(delta[r, :, i, j])
    assert torch.equal(factor.x, torch.stack(patches))
    assert torch.equal(factor.delta, torch.stack(errors))
    assert factor.transmitted is factor.x
    rows = Factor(factor.x, factor.delta, factor.x)
    torch.testing.assert_close(rows.gradient(), factor.gradient())
    torch.testing.assert_close(rows.bias_gradient(), factor.bias_gradient())


def test_a_projected_conv_factor_leaves_old_patches_alone():
    synapse = filled(Conv2d(2, 3, kernel=3, padding=1))
    x = random(2, 2, 5, 5)
    delta = random(2, 3, 5, 5, seed=4)
    factor = synapse.factor(x, delta)
    q = torch.linalg.qr(random(18, 18, seed=5)).Q
    basis, free = q[:, :7].T, q[:, 7:]
    gradient = factor.project(Complement(basis, free)).gradient()
    full = factor.gradient()
    torch.testing.assert_close(gradient, full - full @ basis.T @ basis)
    assert float((gradient @ basis.T).abs().max()) < 1e-10
    assert float(full.abs().max()) > 1e-3


SQUARE = {
    "standardise": (Standardise(),),
    "binary": (Binarise(),),
    "binary rows, no autapses, split": (Binarise(rows=True), NoAutapses(), SplitSigns()),
    "gain": (Gain(factor=7.5),),
    "dale": (Dale(excitatory=0.6),),
    "no autapses": (NoAutapses(),),
    "dale, no autapses": (Dale(excitatory=0.6), NoAutapses()),
    "split": (SplitSigns(),),
    "standardise, split": (Standardise(), SplitSigns()),
    "delays": (SynapticDelays(longest=3),),
    "wide delays": (SynapticDelays(longest=3, width=1.7),),
    "dale, delays": (Dale(), SynapticDelays(longest=2)),
    "delays, split": (SynapticDelays(longest=2), SplitSigns()),
    "all": (
        Standardise(),
        Gain(factor=0.3),
        NoAutapses(),
        SynapticDelays(longest=2),
        SplitSigns(),
    ),
}


def rows_of(synapse, seed=2):
    return random(7, synapse.fan_in, seed=seed)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("maps", SQUARE)
def test_gradients_through_every_map_are_autograd_s(maps, bias):
    """Factor, then pull_back, against one backward pass through everything."""
    synapse = filled(Linear(5, 5, bias=bias, maps=SQUARE[maps]))
    if "delay" in own(synapse):
        with torch.no_grad():  # inside the range, off the whole steps
            synapse.delay.copy_(0.2 + 1.6 * torch.rand(5, 5, generator=generator(5)))
    x = rows_of(synapse)
    current = current_of(synapse, x)
    delta = random(*current.shape, seed=3)
    names = list(own(synapse))
    expected = dict(zip(names, torch.autograd.grad(current, list(own(synapse).values()), delta)))
    factor = synapse.factor(synapse.rows(x), delta)
    found = synapse.pull_back(
        {n: p for n, p in own(synapse).items() if n != "bias"},
        factor.gradient(),
        factor.bias_gradient() if bias else None,
    )
    assert sorted(found) == sorted(expected)
    for name, gradient in expected.items():
        assert bool(gradient.any())
        assert found[name].grad_fn is None
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "maps", [(Standardise(),), (Dale(excitatory=0.5),), (SplitSigns(),), (Dale(), SplitSigns())]
)
def test_gradients_of_mapped_convolutions_are_autograd_s(maps):
    synapse = filled(Conv2d(3, 4, kernel=3, stride=2, padding=1, bias=True, maps=maps))
    x = random(2, 3, 6, 6)
    current = current_of(synapse, x)
    assert current.shape == ((2, 2, 4, 3, 3) if SplitSigns() in maps else (2, 4, 3, 3))
    delta = random(*current.shape, seed=3)
    expected = dict(
        zip(own(synapse), torch.autograd.grad(current, list(synapse.parameters()), delta))
    )
    factor = synapse.factor(x, delta)
    found = synapse.pull_back(own(synapse), factor.gradient(), factor.bias_gradient())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_gradients_are_taken_at_the_weights_that_are_given():
    synapse = filled(Linear(4, 3, maps=(Standardise(),)))
    other = {name: p.detach() + 0.3 for name, p in own(synapse).items()}
    leaves = {name: p.clone().requires_grad_() for name, p in other.items()}
    delta = random(3, 4)
    expected = torch.autograd.grad(synapse.effective(leaves), list(leaves.values()), delta)
    found = synapse.pull_back(other, delta, None)
    here = synapse.pull_back(own(synapse), delta, None)
    for gradient, wanted in zip(found.values(), expected):
        torch.testing.assert_close(gradient, wanted)
    assert not torch.allclose(here["weight"], found["weight"])


def test_pull_back_works_where_gradients_are_off():
    synapse = filled(Linear(4, 3, maps=(Standardise(),)))
    delta = random(3, 4)
    expected = synapse.pull_back(own(synapse), delta, None)
    with torch.no_grad():
        found = synapse.pull_back(own(synapse), delta, None)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(p.grad is None for p in synapse.parameters())


def test_split_signs_sends_both_parts_apart():
    synapse = filled(Linear(6, 4, maps=(SplitSigns(),)))
    x = random(5, 6).abs()
    current, weight = current_of(synapse, x), synapse.weight
    assert current.shape == (5, 2, 4)
    torch.testing.assert_close(current[:, 0], x @ weight.clamp(min=0).T)
    torch.testing.assert_close(current[:, 1], x @ (-weight).clamp(min=0).T)
    torch.testing.assert_close(current[:, 0] - current[:, 1], x @ weight.T)

    conv = filled(Conv2d(2, 3, kernel=3, maps=(SplitSigns(),)))
    maps = random(4, 2, 5, 5).abs()
    both = current_of(conv, maps)
    assert both.shape == (4, 2, 3, 3, 3)
    torch.testing.assert_close(both[:, 1], nn.functional.conv2d(maps, (-conv.weight).clamp(min=0)))


def test_what_is_registered():
    plain = Linear(4, 3, bias=True, maps=(Standardise(), SynapticDelays(longest=2)))
    assert list(own(plain)) == ["weight", "gain", "delay", "bias"]
    assert plain.fan_in == 12
    assert Linear(4, 3, bias=True, maps=(SplitSigns(),)).bias.shape == (6,)
    assert Conv2d(2, 3, kernel=5).weight.shape == (3, 2, 5, 5)
    assert math.isclose(Linear(4, 3, maps=(Standardise(),)).gain.sum().item(), 3)


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        ((Standardise(), Dale()), "both signs"),
        ((SynapticDelays(), Dale()), "SynapticDelays changes the shape"),
        ((SynapticDelays(), NoAutapses()), "SynapticDelays changes the shape"),
        ((SplitSigns(), Dale()), "SplitSigns changes the shape"),
        ((SplitSigns(), SynapticDelays()), "SplitSigns changes the shape"),
    ],
)
def test_maps_that_undo_each_other_are_refused(maps, text):
    with pytest.raises(ConfigError, match=text):
        Linear(4, 4, maps=maps)
