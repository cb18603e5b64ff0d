"""Operations of a run against loops over every connection and spike; prices by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikecl_hardware import energy
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.operations import count, estimate, estimate_rows
from spikecl_hardware.loihi.program import (
    INPUT,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
)
from spikecl_hardware.loihi.semantics import ConvParameters, DenseParameters, LIFParameters
from spikecl_hardware.record import Record


def neurons(*shape, vth=5):
    return Population(shape, LIFParameters(vth=vth, du=4095, dv=0))


def dense(rng, n_out, n_in, **options):
    weights = rng.integers(-40, 60, (n_out, n_in)) * (rng.random((n_out, n_in)) < 0.6)
    return DenseParameters(weights, **options)


def mixed_program(rng, *, stride=1, padding=1, graded=0):
    """A convolution, a dense layer onto itself as well, and a way past the convolution."""
    kernel = rng.integers(-30, 60, (2, 2, 3, 2)) * (rng.random((2, 2, 3, 2)) < 0.7)
    conv = ConvParameters(kernel, stride=stride, padding=padding, num_message_bits=graded)
    maps = conv.out_shape((2, 5, 4))
    n = int(np.prod(maps))
    return Program(
        input_shape=(2, 5, 4),
        populations={"maps": neurons(*maps), "out": neurons(3)},
        connections=(
            Connection(INPUT, "maps", conv),
            Connection("maps", "out", dense(rng, 3, n, num_weight_bits=5)),
            Connection("out", "out", dense(rng, 3, 3)),
            Connection(INPUT, "out", dense(rng, 3, 40)),
        ),
        readout=Readout("out"),
        steps=4,
    )


def reached(synapses, shape, place):
    """Return the non-zero weights that one event at a place [features] reaches, in a loop."""
    if isinstance(synapses, DenseParameters):
        return sum(row[np.ravel_multi_index(place, shape)] != 0 for row in synapses.effective)
    (c, y, x), (c_out, *size) = place, synapses.out_shape(shape)
    found = 0
    for o, row, column in itertools.product(range(c_out), *map(range, size)):
        k = y - (row * synapses.stride - synapses.padding)
        m = x - (column * synapses.stride - synapses.padding)
        if 0 <= k < synapses.weights.shape[2] and 0 <= m < synapses.weights.shape[3]:
            found += synapses.weights[o, c, k, m] != 0
    return found


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0), (2, 2), (3, 1)])
def test_counts_equal_a_loop_over_spikes_and_connections(stride, padding):
    rng = np.random.default_rng(stride)
    program = mixed_program(rng, stride=stride, padding=padding)
    record = emulate(program, rng.integers(0, 2, (4, 3, 2, 5, 4)))
    counts = count(program, record)
    activity = {INPUT: record.inputs, **record.spikes}
    steps, samples = record.inputs.shape[:2]
    assert counts.steps == steps == 4 + program.latency
    for c, found in zip(program.connections, counts.connections, strict=True):
        sent = activity[c.source]
        loop = sum(
            reached(c.synapses, program.shape(c.source), place[2:]) for place in np.argwhere(sent)
        )
        assert (found.source, found.target, found.graded) == (c.source, c.target, False)
        assert found.synaptic_events == pytest.approx(loop / samples)
        assert found.messages == pytest.approx(np.count_nonzero(sent) / samples)
        assert loop > 0
    assert counts.synaptic_events == pytest.approx(
        sum(c.synaptic_events for c in counts.connections)
    )
    assert [n.updates for n in counts.neurons] == [
        steps * p.size for p in program.populations.values()
    ]
    assert counts.neuron_updates == steps * sum(p.size for p in program.populations.values())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.integers(1, 8))
def test_dense_events_count_what_the_memory_holds(seed, bits):
    """Weights that storage makes zero reach nothing."""
    rng = np.random.default_rng(seed)
    synapses = DenseParameters(rng.integers(-9, 10, (4, 6)), num_weight_bits=bits)
    program = Program(
        (6,), {"out": neurons(4)}, (Connection(INPUT, "out", synapses),), Readout("out"), 3
    )
    record = emulate(program, rng.integers(0, 2, (3, 2, 6)))
    loop = sum(
        int(s) * int(w != 0)
        for spikes in record.inputs.reshape(-1, 6)
        for row in synapses.effective
        for s, w in zip(spikes, row)
    )
    assert count(program, record).synaptic_events == pytest.approx(loop / 2)


def one_neuron(num_message_bits=0):
    """Two inputs, weights 4 and 0, to one neuron."""
    synapses = DenseParameters(np.array([[4, 0]]), num_message_bits=num_message_bits)
    return Program(
        (2,), {"out": neurons(1)}, (Connection(INPUT, "out", synapses),), Readout("out"), 2
    )


def test_prices_by_hand():
    program = one_neuron()
    counts = count(program, emulate(program, [[[1, 1]], [[1, 0]]]))
    assert counts.operations == energy.Operations(2 * 3, 0, 2, 3)
    spent = estimate(counts)
    assert spent.synapses_pj == pytest.approx(2 * 23.6)
    assert spent.neurons_pj == pytest.approx(3 * 81)
    assert spent.table == energy.LOIHI
    assert estimate(counts, energy.INT8_45NM).total_pj == pytest.approx(2 * 0.1 + 3 * 0.3)


def test_graded_messages_are_priced_as_spikes_and_say_so():
    program = one_neuron(num_message_bits=8)
    counts = count(program, emulate(program, [[[9, 5]], [[-3, 0]]]))
    assert counts.graded_events == counts.synaptic_events == 2
    assert counts.operations == energy.Operations(6, 2, 0, 3)
    spent = estimate(counts)
    assert spent.synapses_pj == pytest.approx(2 * 23.6)
    assert "graded messages as spikes" in str(spent)
    assert "Loihi 2" in spent.table.assumption
    (row,) = estimate_rows(counts)
    assert "graded messages as spikes" in row["table"]
    assert row["total nJ"] == pytest.approx((2 * 23.6 + 3 * 81) / 1000)
    macs = estimate(counts, energy.INT8_45NM)
    assert macs.table == energy.INT8_45NM
    assert macs.synapses_pj == pytest.approx(2 * 0.3)


def test_graded_and_binary_connections_are_kept_apart():
    rng = np.random.default_rng(3)
    program = mixed_program(rng, graded=6)
    graded = Program(
        program.input_shape,
        program.populations,
        program.connections[:3],
        program.readout,
        program.steps,
    )
    counts = count(graded, emulate(graded, rng.integers(-9, 9, (4, 2, 2, 5, 4))))
    assert [c.graded for c in counts.connections] == [True, False, False]
    assert counts.graded_events == counts.connections[0].synaptic_events
    made = counts.operations
    assert made.effective_acs == pytest.approx(
        sum(c.synaptic_events for c in counts.connections[1:])
    )
    assert estimate(counts).synapses_pj == pytest.approx(counts.synaptic_events * 23.6)


def test_rows_and_text():
    program = one_neuron()
    counts = count(program, emulate(program, [[[1, 1]], [[1, 0]]]))
    rows = counts.rows()
    assert [row["part"] for row in rows] == ["input to out", "out", "total"]
    assert rows[0]["synaptic_events"] == rows[2]["synaptic_events"] == 2
    assert rows[1]["updates"] == rows[2]["updates"] == 3
    assert len({tuple(row) for row in rows}) == 1
    assert "| input to out | False | 3 | 2 | 6 |" in str(counts)


def test_records_that_do_not_fit_are_refused():
    program = one_neuron()
    record = Record("lava", np.zeros((3, 1, 2)), {}, np.zeros((2, 1, 1)))
    with pytest.raises(ProgramError, match=r"lava: no activity \(3, 1, 1\) of 'out'"):
        count(program, record)
    with pytest.raises(ProgramError, match=r"inputs \(0, 1, 2\)"):
        count(program, Record("lava", np.zeros((0, 1, 2)), {}, np.zeros((0, 1, 1))))
