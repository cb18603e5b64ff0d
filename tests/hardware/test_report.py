"""Differences between backends: hand-made records, loops, and networks with a planted change."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.program import (
    INPUT,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
)
from spikecl_hardware.loihi.semantics import DenseParameters, LIFParameters
from spikecl_hardware.record import Record
from spikecl_hardware.report import aligned, compare, difference, markdown


def chain(*sizes, quantity="spikes", steps=5, seed=0):
    """Layers one after the other, ``hidden1`` and so on, the last called ``out``."""
    rng = np.random.default_rng(seed)
    names = [f"hidden{i}" for i in range(1, len(sizes) - 1)] + ["out"]
    return Program(
        (sizes[0],),
        {n: Population((s,), LIFParameters(vth=3, du=4095)) for n, s in zip(names, sizes[1:])},
        tuple(
            Connection(a, b, DenseParameters(rng.integers(-3, 9, (m, n))))
            for a, b, n, m in zip([INPUT, *names], names, sizes, sizes[1:])
        ),
        Readout("out", quantity=quantity),
        steps,
    )


def simulated(program, x):
    """Return a record of the same layers without delays, written here for feed-forward chains."""
    s, spikes = x, {}
    for c in program.connections:
        v = np.zeros((x.shape[1], program.populations[c.target].size))
        fired = np.zeros((len(x), *v.shape), dtype=int)
        for t in range(len(x)):
            v = v + 64 * (s[t] @ c.synapses.effective.T)
            fired[t] = v > 64 * program.populations[c.target].neurons.vth
            v = v * (1 - fired[t])
        s = spikes[c.target] = fired
    return Record("float", x, spikes, s)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), depth=st.integers(1, 3))
def test_alignment_takes_the_delays_away(seed, depth):
    program = chain(6, *[5] * (depth - 1), 4, seed=seed)
    x = np.random.default_rng(seed).integers(0, 2, (7, 3, 6))
    slow, fast = emulate(program, x), simulated(program, x)
    for name, spikes in aligned(slow, program).items():
        np.testing.assert_array_equal(spikes, aligned(fast, program)[name])
    report = compare(program, [fast, slow], labels=[0, 1, 2])
    assert all(layer.difference.first is None for layer in report.layers if layer.difference)
    assert [o.agreement for o in report.outputs] == [None, 1.0]
    assert report.outputs[0].accuracy == report.outputs[1].accuracy


def test_a_planted_change_is_found_in_the_steps_of_the_sample():
    program = chain(6, 5, 4)
    x = np.random.default_rng(1).integers(0, 2, (5, 3, 6))
    record = emulate(program, x)
    changed = {name: spikes.copy() for name, spikes in record.spikes.items()}
    changed["out"][2 + 3, 1, 2] ^= 1
    changed["out"][2 + 4, 0, 0] ^= 1
    report = compare(program, [record, replace(record, backend="other", spikes=changed)])
    found = {(x.population, x.backend): x.difference for x in report.layers}
    assert found["hidden1", "other"].first is None
    assert found["out", "other"].first == (3, 1, 2)
    assert found["out", "other"].differing == 2
    assert found["out", record.backend] is None


def test_differences_by_hand():
    a = np.array([[[1, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 0]]])
    b = np.array([[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 0, 1]]])
    found = difference(a, b)
    assert (found.first, found.differing) == ((1, 0, 0), 3)
    assert found.percent == pytest.approx(100 * 3 / 5)
    assert found.count_error == pytest.approx((1 + 1 + 1) / 6)
    counts = [2, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 2]
    assert found.correlation == pytest.approx(np.corrcoef(*counts)[0, 1])


@settings(max_examples=100, deadline=None)
@given(
    a=arrays(np.uint8, (4, 2, 3), elements=st.integers(0, 1)),
    b=arrays(np.uint8, (4, 2, 3), elements=st.integers(0, 1)),
)
def test_differences_equal_a_loop(a, b):
    found = difference(a, b)
    places = [p for p in np.ndindex(*a.shape) if a[p] != b[p]]
    assert found.first == (places[0] if places else None)
    assert found.differing == len(places)
    either = sum(a[p] + b[p] > 0 for p in np.ndindex(*a.shape))
    assert found.percent == pytest.approx(100 * len(places) / either if either else 0)
    counts = a.sum(0).ravel().astype(int), b.sum(0).ravel().astype(int)
    assert found.count_error == pytest.approx(abs(counts[0] - counts[1]).mean())
    if min(len(set(c.tolist())) for c in counts) == 1:
        assert found.correlation is None
    else:
        assert found.correlation == pytest.approx(np.corrcoef(*counts)[0, 1])


def test_maps_are_counted_through_all_features():
    a = np.zeros((2, 1, 2, 3, 4), dtype=int)
    b = a.copy()
    b[1, 0, 1, 2, 3] = 1
    assert difference(a, b).first == (1, 0, 23)
    assert difference(a[:1], b).first is None


def hand_made():
    """Two records of the same samples: float without delays, hardware one step later."""
    program = chain(2, 3, steps=2)
    x = np.ones((2, 2, 2), dtype=int)
    spikes = np.array([[[1, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 1, 0]]])
    late = np.concatenate([np.ones((1, 2, 3), dtype=int), spikes])
    late[2, 1] = [0, 0, 1]
    fast = Record("float", x, {"out": spikes}, spikes)
    slow = Record(
        "chip",
        np.ones((3, 2, 2)),
        {"out": late},
        late[1:],
        notes={"overflowed": {"out": 4}, "saturated": {"out": 0}, "other": {"gone": 1}},
    )
    return program, fast, slow


def test_layers_and_answers_by_hand():
    program, fast, slow = hand_made()
    report = compare(program, [fast, slow], labels=[0, 1])
    first, second = report.layers
    assert (first.neurons, first.silent, first.rate) == (3, 1, pytest.approx(3 / 12))
    assert (second.silent, second.rate) == (1, pytest.approx(3 / 12))
    assert (first.notes, second.notes) == ({}, {"overflowed": 4, "saturated": 0})
    assert second.difference.first == (1, 1, 1)
    assert second.difference.percent == pytest.approx(100 * 2 / 4)
    assert [(o.agreement, o.accuracy) for o in report.outputs] == [(None, 1.0), (0.5, 0.5)]
    assert compare(program, [fast, slow]).outputs[1].accuracy is None


def test_silent_layers_are_named():
    program, fast, slow = hand_made()
    quiet = replace(slow, backend="quiet", spikes={"out": np.zeros((3, 2, 3))})
    report = compare(program, [fast, slow, quiet])
    assert report.silent_layers == [("quiet", "out")]
    assert report.layers[2].difference.correlation is None
    assert "Silent: out in quiet" in report.markdown()


def test_rows_text_and_json():
    program, fast, slow = hand_made()
    report = compare(program, [fast, slow], labels=[0, 1])
    rows = report.rows()
    assert len({tuple(row) for row in rows}) == 1
    assert rows[0]["overflowed"] is None
    assert rows[1]["overflowed"] == 4
    assert rows[1]["first difference"] == "step 1, sample 1, neuron 1"
    assert rows[1]["percent"] == pytest.approx(50)
    text = report.markdown()
    assert "| out | chip | 3 | 0.25 | 1 | step 1, sample 1, neuron 1 | 2 | 50 |" in text
    made = report.as_dict()
    assert json.loads(json.dumps(made)) == made
    assert made["layers"][1]["difference"]["first"] == [1, 1, 1]
    assert made["samples"] == 2
    assert markdown([]) == ""


def test_a_readout_by_membrane_may_have_no_spikes():
    program, fast, slow = hand_made()
    program = replace(program, readout=Readout("out", quantity="v"))
    report = compare(program, [replace(fast, spikes={}), slow])
    assert [(x.backend, x.difference) for x in report.layers] == [("chip", None)]


def test_a_population_deeper_than_the_readout_is_cut():
    program = chain(4, 3, 2)
    program = replace(program, readout=Readout("hidden1"))
    x = np.random.default_rng(0).integers(0, 2, (5, 2, 4))
    record = emulate(program, x)
    spikes = aligned(record, program)
    assert [len(spikes[name]) for name in ("hidden1", "out")] == [5, 4]
    report = compare(program, [simulated(program, x), record])
    assert all(layer.difference.first is None for layer in report.layers if layer.difference)


def test_records_that_do_not_fit_are_refused():
    program, fast, slow = hand_made()
    with pytest.raises(ProgramError, match="chip: 3 steps for 1 answers; 1 .* or 2 is allowed"):
        aligned(replace(slow, outputs=slow.outputs[1:]), program)
    with pytest.raises(ProgramError, match=r"float: no spikes of 'out'; \(2, 2, 3\) is needed"):
        aligned(replace(fast, spikes={}), program)
    with pytest.raises(ProgramError, match=r"chip: spikes \(2, 2, 3\) of 'out'"):
        aligned(replace(slow, spikes=fast.spikes), program)
    one = replace(fast, inputs=fast.inputs[:, :1], outputs=fast.outputs[:, :1])
    with pytest.raises(ProgramError, match=r"\[\(2, 1\), \(2, 2\)\]; the same for all"):
        compare(program, [fast, one])
    with pytest.raises(ProgramError, match="the same for all"):
        compare(program, [])
