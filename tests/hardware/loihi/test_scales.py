"""Scales: bounds hold, none could be finer, and grids are what synaptic memories hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikecl_hardware.loihi.scales import (
    BIAS_EXPONENTS,
    EXPONENTS,
    Needs,
    RangeError,
    bias_registers,
    grid,
    sign_mode,
    solve,
)
from spikecl_hardware.loihi.semantics import DenseParameters, LIFParameters, SignMode

positive = st.floats(-4, 6).map(lambda power: 10.0**power)
some = st.one_of(st.just(0.0), positive)


@st.composite
def needs(draw):
    return Needs(draw(positive), draw(positive), *(draw(some) for _ in range(4)))


def fits(need, unit):
    """Whether registers hold everything when a membrane of 1 is ``unit``."""
    slack = 1 + 1e-9
    return (
        need.current * unit / 64 <= 32767 * slack
        and need.membrane * unit <= 131071 * 64 * slack
        and need.threshold * unit / 64 <= 131071 * slack
        and need.bias * unit <= 4095 * 128 * slack
        and need.recurrent * unit / 64 <= 128 * slack
    )


@settings(max_examples=300, deadline=None)
@given(needs(), st.sampled_from([127, 192, 254, 255]), positive, st.booleans())
def test_all_registers_hold_and_nothing_could_be_finer(need, high, unit_in, shift):
    clip = 0.7
    try:
        s, e, unit = solve(
            need, high=high, unit_in=unit_in, clip=clip, exponents=EXPONENTS if shift else (0,)
        )
    except RangeError:
        least = 2 / need.weight * unit_in * 64 * 2.0 ** (-7 if shift else 0)
        assert not fits(need, least * (1 + 1e-6))
        return
    assert unit == pytest.approx(64 * s * unit_in * 2.0**e)
    assert -7 <= e <= 7 if shift else e == 0
    assert fits(need, unit)
    assert s * need.weight >= 2 - 1e-9
    if s * need.weight * clip < high * (1 - 1e-9):  # weights are coarser than they could be
        assert e == (-7 if shift else 0) and not fits(need, unit * 1.001)
    else:
        assert s * need.weight * clip == pytest.approx(high)
        assert not shift or e == 7 or not fits(need, 2.001 * unit)


def test_numbers_by_hand():
    need = Needs(weight=2.0, current=10.0, membrane=3.0, threshold=1.0)
    # 64 * 32767 / 10 = 209708 is the tightest, 64 * 127 = 8128 a weight of 254: 2^4 is too much
    assert solve(need, high=254, unit_in=1.0, clip=1.0) == (127.0, 4, 130048.0)
    assert solve(need, high=254, unit_in=1.0, clip=0.5) == (254.0, 3, 130048.0)
    assert solve(need, high=127, unit_in=1.0, clip=1.0, exponents=(0,)) == (63.5, 0, 4064.0)


def test_no_weights():
    need = Needs(weight=0.0, current=0.0, membrane=2.0, threshold=1.0)
    s, e, unit = solve(need, high=254, unit_in=3.0, clip=1.0)
    assert unit == 131071 * 64 / 2 and unit == pytest.approx(64 * s * 3 * 2**e)
    nothing = solve(Needs(0.0, 0.0, 0.0), high=254, unit_in=1.0, clip=1.0)
    assert nothing == (1.0, 0, 64.0)
    assert Needs(0.0, 0.0, 0.0).largest_unit == math.inf


def test_refused_weights():
    need = Needs(weight=1e-6, current=1e-6, membrane=100.0, threshold=100.0)
    with pytest.raises(RangeError, match=r"of 254 possible and 2 needed.*thresholds 100,"):
        solve(need, high=254, unit_in=1.0, clip=1.0)
    need = Needs(weight=1.0, current=1.0, membrane=100_000.0)
    assert solve(need, high=128, unit_in=1.0, clip=1.0, step=64).weight >= 64
    need = Needs(weight=1.0, current=1.0, membrane=1_000_000.0)
    with pytest.raises(RangeError, match="64 needed"):  # all weights would become zero
        solve(need, high=128, unit_in=1.0, clip=1.0, step=64)
    assert solve(need, high=128, unit_in=1.0, clip=1.0, step=2).weight < 32


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("mode", SignMode)
def test_grids_are_what_the_memory_holds(mode, bits):
    everything = np.arange(-300, 301)[None]
    memory = DenseParameters(everything, num_weight_bits=bits, sign_mode=mode).effective
    points = grid(mode, bits)
    found = np.unique(points.round(np.linspace(-400, 400, 3201)))
    expected = np.unique(memory)
    if mode is SignMode.MIXED and bits > 1:
        expected = expected[expected > -256]  # signs are treated the same
    np.testing.assert_array_equal(found, expected)
    values = np.random.default_rng(bits).uniform(-300, 300, 500)
    nearest = abs(expected[:, None] - values).min(0)
    np.testing.assert_allclose(abs(points.round(values) - values), nearest, atol=1e-9)


def test_the_narrowest_mode():
    cases = {(0, 1): "EXCITATORY", (0, -1): "INHIBITORY", (1, -1): "MIXED", (0, 0): "EXCITATORY"}
    for weights, name in cases.items():
        assert sign_mode(np.array(weights)) is SignMode[name]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-(4095 << 7), 4095 << 7), min_size=1, max_size=5))
def test_biases(values):
    bias = np.array(values)
    mantissa, exponent = bias_registers(bias)
    LIFParameters(vth=1, bias_mant=mantissa, bias_exp=exponent)  # refuses what is out of range
    assert (abs(mantissa * 2.0**exponent - bias) <= 2.0**exponent / 2).all()
    if exponent:
        assert np.rint(abs(bias).max() / 2 ** (exponent - 1)) > 4095
    assert exponent in BIAS_EXPONENTS


def test_a_bias_that_is_too_large():
    with pytest.raises(RangeError, match="524160 is the largest"):
        bias_registers(np.array([4096.0 * 128]))
