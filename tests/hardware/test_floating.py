"""The float simulation against a loop that goes through all nodes in each step."""

import nir
import numpy as np
import pytest
from graphs import cells, conv, loop, pooled, row, spikes
from spikecl_hardware.chain import chain
from spikecl_hardware.floating import both, simulate

KINDS = {
    "IF": {},
    "LIF": {"beta": 0.8},
    "LIF at rest": {"beta": 0.8, "rest": -0.5, "reset": -0.25},
    "CubaLIF": {"beta": 0.8, "alpha": 0.6},
    "LI": {"beta": 0.9, "threshold": None},
    "CubaLI": {"beta": 0.9, "alpha": 0.3, "threshold": None, "rest": 0.5},
}


def same(nodes, x, shape, onto=None):
    """Compare all layers with the loop; return activities and layers."""
    _, layers = chain(row(shape, *nodes, onto=onto))
    found = simulate(layers, x)
    out, peaks = loop(nodes, x, onto)
    ends = [i for i in range(len(nodes)) if i in peaks]
    if len(ends) < len(layers):
        ends.append(len(nodes) - 1)
    for i, activity in zip(ends, found, strict=True):
        np.testing.assert_allclose(activity.out, out[i], rtol=1e-12, atol=1e-12)
        if i in peaks:
            rest = getattr(nodes[i], "v_leak", 0.0)
            assert activity.peak >= abs(peaks[i] - rest).max() - 1e-12
    return found, out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", [False, True])
def test_neurons(kind, around):
    rng = np.random.default_rng(len(kind))
    nodes = [
        nir.Linear(rng.normal(0.5, size=(7, 5))),
        cells(7, beta=0.7),
        nir.Affine(rng.normal(size=(4, 7)), rng.normal(size=4)),
        cells(4, **{**KINDS[kind], "gain": rng.uniform(0.5, 2, 4)}),
    ]
    onto = {3: nir.Linear(rng.normal(size=(4, 4)))} if around else None
    (first, last), out = same(nodes, spikes(rng, 25, 3, 5), (5,), onto)
    assert 0.02 < first.out.mean() < 0.98 and last.out.std() > 0
    expected = out[2].copy()
    if around:
        expected[1:] += out[3][:-1] @ onto[3].weight.T
    np.testing.assert_allclose(last.current, expected, atol=1e-12)


def test_maps():
    rng = np.random.default_rng(1)
    nodes = [
        conv(rng.normal(size=(3, 2, 3, 2)), (9, 8), stride=2, padding=1, bias=rng.normal(size=3)),
        cells((3, 5, 5), beta=0.5),
        pooled(nir.AvgPool2d, (2, 3), stride=(1, 2), padding=(1, 0)),
        pooled(nir.SumPool2d, 2, stride=(2, 1)),
        conv(rng.normal(size=(2, 3, 2, 1)), (3, 1)),
        cells((2, 2, 1)),
        nir.Flatten(np.array([2, 2, 1]), 0, -1),
        nir.Linear(rng.normal(size=(3, 4))),
    ]
    found, out = same(nodes, rng.normal(size=(6, 4, 2, 9, 8)), (2, 9, 8))
    np.testing.assert_array_equal(found[1].sent, out[1])  # what came in, before pooling
    np.testing.assert_allclose(found[1].current, out[4], atol=1e-12)
    assert found[2].sent.shape == (6, 4, 2, 2, 1)


def test_a_current_that_a_membrane_does_not_show_counts():
    nodes = [nir.Linear(np.array([[1.0, -2.0]])), cells(1, beta=1 - 1e-9, threshold=50.0)]
    _, layers = chain(row((2,), *nodes))
    (found,) = simulate(layers, np.array([[[0.0, 1.0]], [[3.0, 0.0]]]))
    assert found.peak == pytest.approx(3.0)  # membranes are -2 and 1


def test_numbers_of_both_axes():
    assert [both(v) for v in (2, np.array([3]), (1, 2), np.array([4, 5]))] == [
        (2, 2),
        (3, 3),
        (1, 2),
        (4, 5),
    ]
