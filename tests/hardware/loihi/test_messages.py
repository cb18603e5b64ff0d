"""Encoded input as messages, value by value."""

import nir
import numpy as np
import pytest
from graphs import row
from spikecl_hardware.loihi.messages import cut
from spikecl_hardware.loihi.program import ProgramError
from spikecl_hardware.loihi.quantise import Options, quantise, quantise_input


def program(bits=8, **told):
    told = {"spikes": False, "low": -2.0, "high": 1.0, **told}
    graph = row((3,), nir.Linear(np.ones((1, 3))), input=told)
    return quantise(graph, options=Options(message_bits=bits))


@pytest.mark.parametrize("bits, kind", [(2, "int8"), (8, "int8"), (9, "int16"), (17, "int32")])
def test_graded(bits, kind):
    made, x = program(bits), np.random.default_rng(bits).uniform(-6, 6, (5, 4, 3))
    found = quantise_input(made, x)
    half, beyond = 2 ** (bits - 1), 0
    for ours, value in zip(found.ravel().tolist(), x.ravel().tolist(), strict=True):
        scaled = round(value * (half - 1) / 2)
        beyond += not -half <= scaled < half
        assert ours == min(max(scaled, -half), half - 1)
    assert found.dtype == kind and cut(made, x) == beyond > 0


def test_spikes():
    made, x = program(spikes=True), np.array([[[0.0, 1.0, 0.4]], [[2.0, -1.0, 1.0]]])
    assert quantise_input(made, x).tolist() == [[[0, 1, 0]], [[1, 0, 1]]]
    assert cut(made, x) == 3 and cut(made, x > 0.5) == 0


def test_a_repeated_step_stays_one():
    x = np.broadcast_to(np.array([[0.5, -2.0, 9.0]]), (7, 1, 3))
    for made, count in ((program(), 7), (program(spikes=True), 21)):
        found = quantise_input(made, x)
        assert found.shape == x.shape and found.strides[0] == 0
        np.testing.assert_array_equal(found, quantise_input(made, x.copy()))
        assert cut(made, x) == cut(made, x.copy()) == count


@pytest.mark.parametrize("spikes", [False, True])
def test_refused_values(spikes):
    for value in (np.nan, np.inf):
        with pytest.raises(ProgramError, match="not finite"):
            quantise_input(program(spikes=spikes), np.full((2, 1, 3), value))
