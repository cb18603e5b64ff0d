"""Lava against the emulator, and against a loop over neurons in Python ints."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from programs import KINDS, M, loop, random_program
from spikecl_hardware.loihi import lava
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.program import Connection, Population, Program, ProgramError, Readout
from spikecl_hardware.loihi.semantics import ConvParameters, DenseParameters, LIFParameters

PROGRAMS = 35
STATES = ("u", "v")
CONFIGS = ("Loihi1SimCfg", "Loihi2SimCfg")


def assert_same(record, expected):
    assert (record.inputs == expected.inputs).all()
    assert record.outputs.dtype == expected.outputs.dtype
    assert (record.outputs == expected.outputs).all()
    assert record.spikes.keys() == expected.spikes.keys()
    assert record.states.keys() == expected.states.keys()
    for name, spikes in expected.spikes.items():
        assert record.spikes[name].shape == spikes.shape
        assert (record.spikes[name] == spikes).all(), name
        for key, state in expected.states.get(name, {}).items():
            assert record.states[name][key].shape == state.shape
            assert (record.states[name][key] == state).all(), (name, key)


def assert_loop(record, found):
    for name, arrays in found.items():
        for key, expected in zip(("spikes", *STATES), arrays):
            got = record.spikes[name] if key == "spikes" else record.states[name][key]
            assert (got.reshape(expected.shape) == expected).all(), (name, key)


def two(n_in=3, **options):
    """Return a program of one population of two neurons."""
    weights = np.arange(2 * n_in).reshape(2, n_in) * 20
    return Program(
        (n_in,),
        {"out": Population((2,), LIFParameters(vth=20, du=2048, dv=100))},
        (Connection("input", "out", DenseParameters(weights)),),
        Readout("out", **options),
        10,
    )


@pytest.mark.parametrize("number", range(PROGRAMS))
def test_random_programs_do_the_same_in_lava_the_emulator_and_a_loop(number, installed):
    program, inputs = random_program(number)
    expected = emulate(program, inputs, states=STATES)
    assert not any(expected.notes["overflowed"].values())
    config = CONFIGS[number // len(KINDS) % 2]
    record = lava.run(program, inputs, states=STATES, config=config, python=installed.python)
    assert record.backend == f"lava 0.10.0 ({config}, fixed_pt)"
    assert_same(record, expected)
    assert_loop(record, loop(program, inputs))


def test_the_random_programs_use_all_that_programs_may_have():
    dense, conv, wraps, clips, spikes = [], [], 0, 0, 0
    for number in range(PROGRAMS):
        program, inputs = random_program(number)
        record = emulate(program, inputs, states=STATES)
        for name, states in record.states.items():
            wraps += int((abs(np.diff(states["u"], axis=0)) > M).sum())
            clips += record.notes["saturated"][name]
            spikes += int(record.spikes[name].sum())
        for c in program.connections:
            (dense if isinstance(c.synapses, DenseParameters) else conv).append(c.synapses)
    assert {s.weight_exp for s in dense} == set(range(-8, 8))
    assert {s.num_weight_bits for s in dense} == set(range(1, 9))
    assert len({s.sign_mode for s in dense}) == 4
    assert {min(s.num_message_bits, 1) for s in dense} == {0, 1}
    assert len({s.stride for s in conv}) > 1
    assert len({s.padding for s in conv}) > 1
    assert min(wraps, clips, spikes) > 100


def test_samples_start_from_rest(installed):
    program, inputs = random_program(3)
    many = np.concatenate([inputs[:20, :1]] * 3, axis=1)
    record = lava.run(program, many, states=STATES, python=installed.python)
    for states in record.states.values():
        for x in states.values():
            assert (x == x[:, :1]).all()
    assert any(s[-1].any() for x in record.states.values() for s in x.values())  # reset had work


def test_the_quantity_of_the_readout_comes_out_even_where_no_states_are_asked_for(installed):
    program, inputs = two(quantity="v"), np.ones((5, 1, 3), int)
    record = lava.run(program, inputs, python=installed.python)
    expected = emulate(program, inputs)
    assert record.states == {}
    assert_same(record, expected)


def test_a_convolution_is_laid_out_as_ours_on_a_map_that_has_no_symmetry(installed):
    weights = np.arange(1, 2 * 3 * 2 * 3 + 1).reshape(2, 3, 2, 3)
    shape = (2, 4, 2)  # of 3 x 6 x 6, stride 1 and padding 1 would be larger
    program = Program(
        (3, 5, 4),
        {"maps": Population(shape, LIFParameters(vth=131071, du=4095, dv=0))},
        (Connection("input", "maps", ConvParameters(weights)),),
        Readout("maps", quantity="u"),
        1,
    )
    inputs = np.zeros((1, 2, 3, 5, 4), int)
    inputs[0, 0, 1, 2, 3] = inputs[0, 1, 2, 0, 1] = 1
    record = lava.run(program, inputs, states=["u"], python=installed.python)
    sums = np.zeros((2, *shape), int)
    for sample, (c, y, x) in enumerate([(1, 2, 3), (2, 0, 1)]):
        for k in range(2):
            for m in range(3):
                if 0 <= y - k < 4 and 0 <= x - m < 2:
                    sums[sample, :, y - k, x - m] = weights[:, c, k, m]
    assert (record.states["maps"]["u"][1] == 64 * sums).all()


def test_without_rounding_the_same_numbers_stay_near(installed):
    program, inputs = two(), np.random.default_rng(0).integers(0, 2, (60, 2, 3))
    record = lava.run(
        program, inputs, states=STATES, arithmetic="floating_pt", python=installed.python
    )
    u, v = np.zeros((2, 2)), np.zeros((2, 2))
    weights = np.array([[0, 20, 40], [60, 80, 100]]) * 64.0
    for t in range(61):
        a = inputs[t - 1] @ weights.T if t else 0.0
        u = u * (1 - 2049 / 4096) + a
        v = v * (1 - 100 / 4096) + u
        spikes = v > 20 * 64
        v = v * ~spikes
        np.testing.assert_allclose(record.states["out"]["u"][t], u)
        np.testing.assert_allclose(record.states["out"]["v"][t], v)
        assert (record.spikes["out"][t] == spikes).all()
    expected = emulate(program, inputs, states=STATES)
    assert abs(record.states["out"]["u"] - expected.states["out"]["u"]).max() < 10
    assert record.backend == "lava 0.10.0 (Loihi2SimCfg, floating_pt)"


def test_what_does_not_fit_is_refused_before_lava_starts():
    program, inputs = two(), np.ones((5, 1, 3), int)
    with pytest.raises(ProgramError, match="2 to 2; 0 to 1 is allowed"):
        lava.run(program, 2 * inputs)
    with pytest.raises(ProgramError, match=r"states \['w'\]; u, v is allowed"):
        lava.run(program, inputs, states=["w"])
    with pytest.raises(lava.LavaError, match="config Loihi3 with fixed_pt; Loihi1SimCfg"):
        lava.run(program, inputs, config="Loihi3")
    with pytest.raises(lava.LavaError, match="with double; .* fixed_pt or floating_pt is allowed"):
        lava.run(program, inputs, arithmetic="double")


def test_a_board_that_is_not_there_is_refused(installed):
    with pytest.raises(lava.LavaError, match=r"no board: .* lacks lava-loihi; Loihi2SimCfg"):
        lava.run(two(), np.ones((5, 1, 3), int), config="Loihi2HwCfg", python=sys.executable)
