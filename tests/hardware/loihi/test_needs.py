"""What calibration does not show still fits: programs whose states are those of the float loop."""

import nir
import numpy as np
import pytest
from graphs import cells, loop, row
from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.quantise import Options, quantise, quantise_input


def ran(graph, x, calibration=None, **options):
    """Return the program, and the record of encoded input."""
    program = quantise(graph, calibration=calibration, options=Options(**options))
    return program, emulate(program, quantise_input(program, x), states=("u", "v"))


def test_slow_currents_do_not_wrap():
    """All inputs at once, for all steps, and currents that decay in a thousand steps."""
    nodes = [nir.Linear(np.ones((1, 100))), cells(1, beta=0.5, alpha=0.999, threshold=1e4)]
    nodes[1].v_threshold[:] = 1.0
    x = np.ones((50, 1, 100))
    program, record = ran(row((100,), *nodes, steps=50), x)
    current = 100 * np.cumsum(0.999 ** np.arange(50))
    unit = program.manifest["scales"]["n0"]["unit"]
    found = record.states["n0"]["u"][1:51, 0, 0] / unit
    np.testing.assert_allclose(found, current, rtol=0.01)  # 4096 * 0.001 is no whole number
    assert record.notes["overflowed"]["n0"] == 0


def test_a_bias_hides_no_current():
    """A current of 513 beside a bias of -100 is 613 on the chip."""
    nodes = [nir.Affine(np.ones((1, 613)), np.array([-100.0])), cells(1, threshold=3.0)]
    x = np.ones((6, 1, 613))
    program, record = ran(row((613,), *nodes, steps=6), x, x, margin=1.0)
    assert 64 * 32767 / 2 < record.states["n0"]["u"].max() <= 64 * 32767
    np.testing.assert_array_equal(record.spikes["n0"][1:], loop(nodes, x)[0][1])


def test_one_message_fits_whatever_was_seen():
    told = {"low": 0.0, "high": 1.0, "spikes": False}
    nodes = [nir.Linear(np.ones((1, 2))), cells(1, beta=0.5, threshold=None)]
    x = np.zeros((3, 1, 2))
    x[0, 0, 0] = 1.0
    program, record = ran(row((2,), *nodes, steps=3, input=told), x, x * 1e-9)
    assert record.states["n0"]["u"].max() <= 64 * 32767
    found = record.states["n0"]["v"][1:, 0, 0] / program.manifest["scales"]["n0"]["unit"]
    np.testing.assert_allclose(found, [1.0, 0.5, 0.25], rtol=1e-3)


@pytest.mark.parametrize("bias", [0.0, -3.0])
def test_sums_have_room_for_all_steps(bias):
    """Few steps of calibration stand for a sample of many."""
    nodes = [nir.Affine(np.ones((2, 3)), np.full(2, bias))]
    x = np.ones((80, 1, 3)) * (bias == 0)
    for calibration in (x[:4], None):
        graph = row((3,), *nodes, steps=80, decoder={"name": "sum"})
        program, record = ran(graph, x, calibration)
        expected = 80.0 * (3 if bias == 0 else bias)
        np.testing.assert_allclose(logits(record.outputs, program.readout), expected, rtol=1e-3)
        assert record.notes["saturated"]["n0"] == 0


def test_integrators_have_room_for_the_worst_case():
    nodes = [nir.Affine(np.ones((1, 50)), np.array([200.0])), cells(1, beta=0.999, threshold=None)]
    x = np.ones((100, 1, 50))
    program, record = ran(row((50,), *nodes, steps=100, decoder={"name": "last"}), x)
    assert record.notes["saturated"]["n0"] == 0 and not record.spikes["n0"].any()
    found = logits(record.outputs, program.readout)
    np.testing.assert_allclose(found, loop(nodes, x)[0][1][-1], rtol=0.01)
