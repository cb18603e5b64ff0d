"""Maps between layers against loops over windows, and against each other."""

import nir
import numpy as np
import pytest
from graphs import conv, loop, pooled
from spikecl_hardware.chain import Layer
from spikecl_hardware.loihi.linear_map import LinearMap, linear_map


def layer(shape, *before, synapse, out_shape=()):
    return Layer("x", tuple(before), synapse, None, None, shape, out_shape)


def applied(made, x):
    """Return a map's sums of maps [B, C, H, W], by loops."""
    if not made.is_conv:
        return x.reshape(len(x), -1) @ made.weights.T
    node = conv(made.weights, x.shape[2:], stride=made.stride, padding=made.padding)
    return loop([node], x[None])[0][0][0].reshape(len(x), -1)


POOLS = [
    (),
    (pooled(nir.AvgPool2d, 2),),
    (pooled(nir.SumPool2d, 3),),
    (pooled(nir.AvgPool2d, (2, 3)),),
    (pooled(nir.AvgPool2d, 2, stride=(2, 1)),),
    (pooled(nir.SumPool2d, 2, stride=1),),
    (pooled(nir.AvgPool2d, 2, padding=(0, 1)),),
    (pooled(nir.AvgPool2d, 2), pooled(nir.SumPool2d, 2, stride=1, padding=1)),
]
FOLDED = {0, 1, 2}  # equal windows that tile maps of 6 x 6


@pytest.mark.parametrize("number", range(len(POOLS)))
@pytest.mark.parametrize("stride, padding", [(1, 0), (2, 1), (1, 2), (3, 1)])
def test_pooling_and_a_convolution(number, stride, padding):
    rng = np.random.default_rng(number)
    x = rng.normal(size=(2, 3, 6, 6))
    synapse = conv(rng.normal(size=(4, 3, 2, 1)), 6, stride=stride, padding=padding)
    nodes = [*POOLS[number], synapse]
    expected = loop(nodes, x[None])[0][-1][0]
    one = layer((3, 6, 6), *POOLS[number], synapse=synapse)
    folded, matrix = linear_map(one), linear_map(one, unroll=True)
    assert folded.is_conv is (number in FOLDED) and not matrix.is_conv
    assert matrix.weights.shape == (expected[0].size, x[0].size)
    for made in (folded, matrix):
        found = applied(made, x)
        np.testing.assert_allclose(found, expected.reshape(2, -1), atol=1e-12)


def test_maps_that_windows_do_not_tile_are_not_folded():
    rng = np.random.default_rng(3)
    x, pool = rng.normal(size=(2, 1, 5, 7)), pooled(nir.AvgPool2d, 2)
    synapse = conv(rng.normal(size=(2, 1, 2, 2)), (2, 3))
    made = linear_map(layer((1, 5, 7), pool, synapse=synapse))
    expected = loop([pool, synapse], x[None])[0][-1][0]
    assert not made.is_conv
    np.testing.assert_allclose(applied(made, x), expected.reshape(2, -1), atol=1e-12)


def test_pooling_and_a_matrix():
    rng = np.random.default_rng(2)
    x, pool = rng.normal(size=(3, 2, 5, 4)), pooled(nir.AvgPool2d, 2, stride=1, padding=1)
    flat, dense = nir.Flatten(np.array([2, 6, 5]), 0, -1), nir.Linear(rng.normal(size=(3, 60)))
    made = linear_map(layer((2, 5, 4), pool, flat, synapse=dense))
    expected = loop([pool, flat, dense], x[None])[0][-1][0]
    np.testing.assert_allclose(applied(made, x), expected, atol=1e-12)
    plain = linear_map(layer((60,), synapse=dense))
    np.testing.assert_array_equal(plain.weights, dense.weight)


def test_a_gain_for_each_neuron():
    rng = np.random.default_rng(4)
    kernel, gain = rng.normal(size=(2, 1, 2, 2)), np.repeat([2.0, -3.0], 4)
    found = LinearMap(kernel, 2, 1).scaled(gain, (2, 2, 2))
    np.testing.assert_array_equal(found.weights, kernel * np.array([2, -3]).reshape(2, 1, 1, 1))
    assert (found.stride, found.padding) == (2, 1)
    gain[1] = 2.5
    assert LinearMap(kernel).scaled(gain, (2, 2, 2)) is None
    matrix = LinearMap(rng.normal(size=(8, 3)))
    np.testing.assert_array_equal(
        matrix.scaled(gain, (2, 2, 2)).weights, np.diag(gain) @ matrix.weights
    )


def test_reach_is_reached():
    rng = np.random.default_rng(5)
    for weights in (rng.normal(size=(4, 6)), rng.normal(size=(3, 2, 2, 2))):
        flat = weights.reshape(len(weights), -1)
        best = max(w @ np.sign(w) for w in flat)
        assert LinearMap(weights).reach == pytest.approx(best)
