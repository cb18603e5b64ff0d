"""Lateral neurons against products in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.lateral import Rows, fitting, responses, sent, with_lateral
from spikecl_hardware.loihi.program import (
    INPUT,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
)
from spikecl_hardware.loihi.semantics import DenseParameters, LIFParameters

STEPS, N, HIDDEN = 9, 12, 20


def network(bits=0, seed=0):
    """Two layers behind spikes or graded messages."""
    rng = np.random.default_rng(seed)
    into = DenseParameters(2 * rng.integers(-60, 90, (HIDDEN, N)), num_message_bits=bits)
    out = DenseParameters(2 * rng.integers(-60, 60, (3, HIDDEN)))
    cells = LIFParameters(vth=300 if bits == 0 else 9000, du=4095, dv=400)
    return Program(
        (N,),
        {"hidden": Population((HIDDEN,), cells), "out": Population((3,), cells)},
        (Connection(INPUT, "hidden", into), Connection("hidden", "out", out)),
        Readout("out"),
        STEPS,
    )


def orthonormal(k, n, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, k)))[0].T


def test_rows_are_even_and_near():
    h = orthonormal(5, N)
    rows = Rows.of(h)
    assert (rows.weights % 2 == 0).all() and abs(rows.weights).max() == 254
    assert abs(rows.values - h).max() <= 1 / rows.scale
    assert abs(Rows.of(h, largest=2.0).weights).max() < 128
    assert Rows.of(np.zeros((0, 4))).weights.shape == (0, 4)


@pytest.mark.parametrize("bits", [0, 8])
def test_membranes_hold_the_product(bits):
    program, rng = network(bits), np.random.default_rng(2)
    x = rng.integers(0, 2, (STEPS, 6, N)) if not bits else rng.integers(-90, 127, (STEPS, 6, N))
    rows = {INPUT: Rows.of(orthonormal(4, N)), "hidden": Rows.of(orthonormal(7, HIDDEN))}
    listening = with_lateral(program, rows)
    record = emulate(listening, x, states=("v",))
    assert record.spikes["hidden"].any() and not record.spikes["hidden.lateral"].any()
    assert (record.outputs == emulate(program, x).outputs).all()  # nobody hears them
    for source, each in rows.items():
        heard = sent(record, source)
        wanted = heard @ each.values.T
        found = responses(listening, record, source, each)
        (connection,) = (c for c in listening.connections if c.target == f"{source}.lateral")
        least = 2.0**-connection.dense.weight_exp / each.scale  # each step rounds down by less
        assert (found <= wanted + 1e-9).all()
        assert abs(found - wanted).max() <= len(record.inputs) * least
        if connection.dense.weight_exp == 0:
            assert abs(found - wanted).max() < 1e-9
    assert (sent(record, INPUT) == x.sum(0)).all()


@pytest.mark.parametrize(("n", "steps"), [(784, 10), (784, 30)])
def test_rows_of_wide_inputs_lose_bits_where_sums_are_large(n, steps):
    rng = np.random.default_rng(3)
    out = DenseParameters(np.ones((1, n), int), num_message_bits=8)
    cells = {"out": Population((1,), LIFParameters(vth=(1 << 17) - 1, du=4095))}
    wide = Program((n,), cells, (Connection(INPUT, "out", out),), Readout("out"), steps)
    x, rows = rng.integers(-127, 128, (steps, 3, n)), Rows.of(orthonormal(6, n))
    held, exponent = fitting(wide, INPUT, rows)
    assert exponent == -8 and held.scale < rows.scale
    listening = with_lateral(wide, {INPUT: rows})
    record = emulate(listening, x, states=("v",))
    wanted = sent(record, INPUT) @ held.values.T
    least = 2.0**8 / held.scale  # each step rounds down by less
    error = wanted - responses(listening, record, INPUT, rows)
    assert error.min() > -1e-9 and error.max() <= len(record.inputs) * least
    assert error.max() < 0.03 * abs(wanted).max()


def test_no_rows_need_no_neurons():
    program = network()
    same = with_lateral(program, {"hidden": Rows.of(np.zeros((0, HIDDEN)))})
    assert list(same.populations) == list(program.populations)
    record = emulate(same, np.zeros((STEPS, 2, N), int), states=("v",))
    assert responses(same, record, "hidden", Rows.of(np.zeros((0, HIDDEN)))).shape == (2, 0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"nobody": orthonormal(2, N)}, "no population 'nobody'"),
        ({"hidden": orthonormal(2, N)}, r"\[rows, 20\]"),
    ],
)
def test_rows_that_fit_nothing_are_refused(rows, words):
    with pytest.raises(ProgramError, match=words):
        with_lateral(network(), {name: Rows.of(h) for name, h in rows.items()})


def test_sums_that_no_membrane_holds_are_refused():
    wide = Program(
        (60_000,),
        {"out": Population((1,), LIFParameters(vth=5))},
        (Connection(INPUT, "out", DenseParameters(np.ones((1, 60_000), int))),),
        Readout("out"),
        steps=100,
    )
    with pytest.raises(ProgramError, match="fewer steps or inputs"):
        with_lateral(wide, {INPUT: Rows(np.full((1, 60_000), 254), 254.0)})
