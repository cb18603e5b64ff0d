"""Counts against loops over every connection, energies against sums by hand."""

import itertools

import numpy as np
import pytest
from spikecl_hardware import energy
from spikecl_hardware.energy import Operations, conv2d, count, estimate, events, linear

RNG = np.random.default_rng(0)


def sparse(*shape):
    """Integers of which about half are zero."""
    return RNG.integers(1, 9, shape) * (RNG.random(shape) < 0.5)


def test_linear_counts_equal_a_loop_over_the_connections():
    weights, spikes = sparse(4, 5), sparse(6, 3, 5)
    effective = sum(
        weights[o, i] != 0 and spikes[t, b, i] != 0
        for t, b, o, i in itertools.product(range(6), range(3), range(4), range(5))
    )
    binary = count(linear(weights), events(spikes), steps=6)
    graded = count(linear(weights), events(spikes), steps=6, graded=True)
    assert binary == Operations(6 * 4 * 5, 0, pytest.approx(effective / 3), 6 * 4)
    assert graded == Operations(6 * 4 * 5, pytest.approx(effective / 3), 0, 6 * 4)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3), 1, 0), ((3, 3), 1, 1), ((3, 2), 2, 1), ((1, 1), 3, 0), ((2, 3), 3, 2)],
)
def test_convolution_counts_equal_a_loop_over_the_windows(kernel, stride, padding):
    (height, width), (c_out, c_in) = (5, 7), (3, 2)
    weights, spikes = sparse(c_out, c_in, *kernel), sparse(4, 2, c_in, height, width)
    dense = effective = neurons = 0
    tops = range(-padding, height + padding - kernel[0] + 1, stride)
    lefts = range(-padding, width + padding - kernel[1] + 1, stride)
    for o, top, left in itertools.product(range(c_out), tops, lefts):
        neurons += 1
        for c, k, m in itertools.product(range(c_in), range(kernel[0]), range(kernel[1])):
            y, x = top + k, left + m
            if 0 <= y < height and 0 <= x < width:
                dense += 1
                effective += (weights[o, c, k, m] != 0) * np.count_nonzero(spikes[:, :, c, y, x])
    layer = conv2d(weights, (height, width), stride=stride, padding=padding)
    counted = count(layer, events(spikes), steps=4)
    assert counted == Operations(4 * dense, 0, pytest.approx(effective / 2), 4 * neurons)


def test_layers_add_up():
    assert Operations(1, 2, 3, 4) + Operations(10, 20, 30, 40) == Operations(11, 22, 33, 44)


def test_energies_by_hand():
    operations = Operations(dense=1000, effective_macs=10, effective_acs=100, membrane_updates=5)
    spent = estimate(operations, energy.FLOAT32_45NM)
    assert spent.synapses_pj == pytest.approx(10 * 4.6 + 100 * 0.9)
    assert spent.neurons_pj == pytest.approx(5 * 4.6)
    assert spent.total_pj == pytest.approx(46 + 90 + 23)
    clocked = estimate(operations, energy.FLOAT32_45NM, skips_zeros=False)
    assert clocked.synapses_pj == pytest.approx(4600)
    spikes_only = Operations(1000, 0, 100, 5)
    assert estimate(spikes_only, energy.LOIHI).synapses_pj == pytest.approx(2360)
    assert estimate(spikes_only, energy.LOIHI).neurons_pj == pytest.approx(405)
    assert estimate(spikes_only, energy.INT8_45NM).total_pj == pytest.approx(100 * 0.1 + 5 * 0.3)
    assert estimate(spikes_only, energy.FLOAT16_45NM).total_pj == pytest.approx(40 + 5 * 1.5)


def test_an_estimate_calls_itself_one_and_names_its_source():
    text = str(estimate(Operations(0, 0, 1, 0), energy.LOIHI))
    assert text.startswith("estimate: 23.6 pJ, Loihi")
    assert "Davies" in text


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"inputs have shape \(3,\); \(2,\) is allowed"):
        count(linear([[1, 2]]), events(np.ones((1, 1, 3))), steps=1)
    with pytest.raises(ValueError, match="only binary spikes are allowed"):
        estimate(Operations(8, 1, 0, 0), energy.LOIHI)
    with pytest.raises(ValueError, match="only binary spikes are allowed"):
        estimate(Operations(8, 0, 1, 0), energy.LOIHI, skips_zeros=False)
