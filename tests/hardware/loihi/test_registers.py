"""Registers of neurons: numbers by hand, and rest when the first input comes."""

import nir
import numpy as np
import pytest
from graphs import cells, loop, row, spikes
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.quantise import quantise


def test_numbers_by_hand():
    nodes = [
        nir.Affine(np.full((4, 2), 127.0), np.array([0.0, 1.0, -2.0, 0.5])),
        cells(4, beta=[0.0, 0.75, 0.5, 1 - 1e-6], threshold=[100.0, 200.0, 300.25, 150.0]),
    ]
    program = quantise(row((2,), *nodes, steps=4))
    found, scale = program.populations["n0"].neurons, program.manifest["scales"]["n0"]
    assert scale["weight"] == 255 / 127 and found.du == 4095
    assert found.dv.tolist() == [4095, 1024, 2048, 0]
    expected = np.array([100.0, 200.0, 300.25, 150.0]) * scale["unit"] / 64
    assert (abs(found.vth - expected) <= 0.5).all()
    bias = np.array([0.0, 1.0, -2.0, 0.5]) * scale["unit"]
    assert (abs(found.bias_mant * 2.0**found.bias_exp - bias) <= 2.0**found.bias_exp / 2).all()


@pytest.mark.parametrize("alpha, du", [(0.0, 4095), (0.5, 2047), (0.9, 409), (1 - 1e-6, 0)])
def test_decay_of_currents(alpha, du):
    nodes = [nir.Linear(np.ones((2, 2))), cells(2, beta=0.5, alpha=alpha)]
    assert quantise(row((2,), *nodes)).populations["n0"].neurons.du == du


def deep(bias, betas, *thresholds, weight=127 / 64):
    """Return a chain of one neuron each, all with a bias; the last threshold is the last's."""
    nodes = []
    for i, beta in enumerate(betas):
        nodes.append(nir.Affine(np.array([[weight]]), np.array([bias])))
        nodes.append(cells(1, beta=beta, threshold=thresholds[i == len(betas) - 1]))
    return nodes


@pytest.mark.parametrize("bias", [0.25, -0.25])
@pytest.mark.parametrize("beta", [None, 0.5, 0.875])
@pytest.mark.parametrize("calibrated", [False, True])
def test_biases_wait_for_the_first_input(bias, beta, calibrated):
    """Without input nothing fires, and an integrator at depth 4 is where a float one is."""
    nodes = deep(bias, [beta] * 3 + [beta or 0.75], 8.0, None, weight=1 / 64)
    x = np.zeros((3, 1, 1))
    graph = row((1,), *nodes, steps=3, decoder={"name": "last"})
    program = quantise(graph, calibration=x if calibrated else None)
    record = emulate(program, x.astype(int), states=("v",))
    out, peaks = loop(nodes, x)
    for i, name in enumerate(program.populations):
        unit, depth = program.manifest["scales"][name]["unit"], i + 1
        assert not record.spikes[name].any()
        v = record.states[name]["v"][:, 0, 0]
        assert abs(v[depth - 1]) <= depth + 1  # at rest but for rounding, a unit a step
        shift = 64 if program.populations[name].neurons.bias_exp else 1
        np.testing.assert_allclose(
            v[depth : depth + 3] / unit, peaks[2 * i + 1][:, 0, 0], atol=shift * 4 / unit
        )


def test_a_negative_bias_does_not_fire_before_the_first_input():
    """To be at rest at depth 6 the membrane would have to start at four thresholds."""
    nodes = deep(-0.5, [0.9] * 6, 1.0, 1.0)
    program = quantise(row((1,), *nodes, steps=5))
    record = emulate(program, np.zeros((5, 1, 1), int), states=("v",))
    assert not any(s.any() for s in record.spikes.values())
    last = list(program.populations)[-1]
    unit = program.manifest["scales"][last]["unit"]
    assert program.populations[last].start / unit == pytest.approx((1 + 0.5) / 0.9, abs=1e-3)
    assert -0.5 / 0.1 <= record.states[last]["v"][5, 0, 0] / unit < 0


def test_what_does_not_wait():
    """Membranes that keep nothing have no past; the next step is right."""
    nodes = deep(0.25, [0.0] * 3, 1.0, 1.0)
    program = quantise(row((1,), *nodes, steps=3))
    assert [p.start for p in program.populations.values()] == [0, 0, 0]
    x = spikes(np.random.default_rng(0), 8, 4, 1)
    record = emulate(program, x.astype(int))
    np.testing.assert_array_equal(record.outputs.reshape(8, 4, 1), loop(nodes, x)[0][-1])


def refused(*nodes, message, **more):
    with pytest.raises(ValueError, match=message):
        quantise(row((2,), *nodes, **more))


def test_what_neurons_cannot_do():
    w, b = nir.Linear(np.ones((2, 2))), nir.Affine(np.ones((2, 2)), np.array([0.0, 1.0]))
    refused(w, cells(2, beta=0.5, reset=-0.5), message=r"'n0': a spike resets .* -0\.5, it rests")
    refused(w, cells(2, threshold=[1.0, -1.0]), message="'n0': a threshold is not above rest")
    refused(w, cells(2, beta=0.5, rest=2.0), message="'n0': a threshold is not above rest")
    refused(b, cells(2, beta=0.5, alpha=0.5), message="'n0': a bias goes through the synaptic")
    refused(w, cells(2, beta=0.5, rest=0.5, threshold=None), message="'n0': an integrator rests")
    refused(w, cells(2, threshold=[1e9, 1.0]), message=r"'n0': weights would be .* train with")
    many = cells(2, threshold=[1e5, 1e-2])
    refused(w, many, message=r"'n0': a threshold of 0\.01 above rest is less than one unit")
