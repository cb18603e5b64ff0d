"""The integer equations against a loop over Python ints that knows no shift and no array."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spikecl_hardware.loihi.semantics import (
    DenseParameters,
    DenseState,
    LIFParameters,
    LIFState,
    SignMode,
    dense_step,
    integrate,
    lif_step,
    overflowed,
)

M = 2**23


def reference_weight(w, mode, bits):
    """Store one weight: clip, then round down to the grid that the bits leave."""
    if mode is SignMode.INHIBITORY:
        return -reference_weight(-w, SignMode.EXCITATORY, bits)
    lowest = -256 if mode is SignMode.MIXED else 0
    grid = 2 ** (9 - bits if mode is SignMode.MIXED else 8 - bits)
    return math.floor(Fraction(min(max(w, lowest), 255), grid)) * grid


def reference_mode(weights):
    """Derive the sign mode, zero counting as both signs."""
    flat = [w for row in weights for w in row]
    if min(flat) >= 0:
        return SignMode.EXCITATORY
    return SignMode.INHIBITORY if max(flat) <= 0 else SignMode.MIXED


def reference_dense(spikes, row, exponent, graded):
    """Sum one row and scale it, rounding down."""
    total = sum(w * (s if graded else int(s != 0)) for w, s in zip(row, spikes, strict=True))
    return math.floor(total * Fraction(2) ** exponent)


def reference_integrate(a, u, v, neuron):
    """Advance current and membrane up to the spike, with exact fractions truncated toward zero."""
    u = math.trunc(Fraction(u * (4095 - neuron["du"]), 4096)) + 64 * a
    if u > M:
        u -= 2 * M
    elif u <= -M:
        u += 2 * M
    bias = neuron["bias_mant"] * 2 ** neuron["bias_exp"]
    v = math.trunc(Fraction(v * (4096 - neuron["dv"]), 4096)) + u + bias
    return u, max(1 - M, min(M - 1, v))


def reference_lif(a, u, v, neuron):
    """Advance one neuron."""
    u, v = reference_integrate(a, u, v, neuron)
    fires = v > 64 * neuron["vth"]
    return int(fires), u, 0 if fires else v


def registers(vth):
    """One neuron's registers over their declared widths."""
    return st.fixed_dictionaries(
        {
            "vth": vth,
            "du": st.integers(0, 4095),
            "dv": st.integers(0, 4095),
            "bias_mant": st.integers(-4096, 4095),
            "bias_exp": st.integers(0, 7),
        }
    )


LOW_OR_ANY = st.integers(0, 300) | st.integers(0, 131071)


@st.composite
def layers(draw):
    """A dense layer, the neurons behind it and an input; graded messages reach the wrap."""
    n_in, n_out = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    low, high = draw(st.sampled_from([(-300, 300), (0, 300), (-300, 0)]))
    row = st.lists(st.integers(low, high), min_size=n_in, max_size=n_in)
    largest = draw(st.sampled_from([1, 30, 5000]))
    spikes = st.lists(st.integers(-largest, largest), min_size=n_in, max_size=n_in)
    return {
        "weights": draw(st.lists(row, min_size=n_out, max_size=n_out)),
        "sign_mode": draw(st.sampled_from([None, *SignMode])),
        "num_weight_bits": draw(st.integers(1, 8)),
        "weight_exp": draw(st.integers(-8, 7)),
        "num_message_bits": draw(st.sampled_from([0, 1, 16])),
        "neurons": draw(st.lists(registers(LOW_OR_ANY), min_size=n_out, max_size=n_out)),
        "input": draw(st.lists(spikes, min_size=1, max_size=8)),
    }


@given(layer=layers())
def test_layer_equals_the_loop_at_every_step(layer):
    mode = layer["sign_mode"] or reference_mode(layer["weights"])
    bits, graded = layer["num_weight_bits"], layer["num_message_bits"] > 0
    rows = [[reference_weight(w, mode, bits) for w in row] for row in layer["weights"]]
    neurons = layer["neurons"]
    dense = DenseParameters(
        np.array(layer["weights"]),
        weight_exp=layer["weight_exp"],
        num_weight_bits=bits,
        sign_mode=layer["sign_mode"],
        num_message_bits=layer["num_message_bits"],
    )
    lif = LIFParameters(**{name: np.array([n[name] for n in neurons]) for name in neurons[0]})
    assert dense.effective.tolist() == rows

    sent, u, v = ([0] * len(rows) for _ in range(3))
    dense_state = lif_state = None
    for spikes in layer["input"]:
        a, dense_state = dense_step(np.array(spikes), dense_state, dense)
        fired, lif_state = lif_step(a, lif_state, lif)
        assert a.tolist() == sent
        expected = [reference_lif(*args) for args in zip(sent, u, v, neurons, strict=True)]
        sent = [reference_dense(spikes, row, layer["weight_exp"], graded) for row in rows]
        s, u, v = (list(part) for part in zip(*expected, strict=True))
        assert dense_state.a_buff.tolist() == sent
        assert (fired.tolist(), lif_state.u.tolist(), lif_state.v.tolist()) == (s, u, v)


@given(
    a=st.integers(-(2**18), 2**18),
    u=st.integers(1 - M, M),
    v=st.integers(1 - M, M - 1),
    neuron=registers(st.integers(0, 131071)),
)
def test_scalar_registers_equal_the_loop_from_any_state(a, u, v, neuron):
    spikes, state = lif_step(
        np.array([a]), LIFState(np.array([u]), np.array([v])), LIFParameters(**neuron)
    )
    assert (spikes.item(), state.u.item(), state.v.item()) == reference_lif(a, u, v, neuron)


@given(
    a=st.integers(-(2**18), 2**18),
    u=st.integers(1 - M, M),
    v=st.integers(1 - M, M - 1),
    neuron=registers(LOW_OR_ANY),
)
def test_integration_stops_before_the_spike(a, u, v, neuron):
    arrays, parameters = (np.array([a]), np.array([u]), np.array([v])), LIFParameters(**neuron)
    before = integrate(arrays[0], LIFState(*arrays[1:]), parameters)
    assert (before.u.item(), before.v.item()) == reference_integrate(a, u, v, neuron)
    assert [part.item() for part in arrays] == [a, u, v]  # pure
    spikes, after = lif_step(arrays[0], LIFState(*arrays[1:]), parameters)
    assert spikes.item() == int(before.v.item() > 64 * neuron["vth"])
    assert (after.u.item(), after.v.item()) == (
        before.u.item(),
        0 if spikes.item() else before.v.item(),
    )


@pytest.mark.parametrize("vth", [0, 5, 131071])
def test_integration_from_rest_and_whatever_the_threshold(vth):
    parameters = LIFParameters(vth=vth, du=100, dv=7, bias_mant=-3, bias_exp=4)
    a, zeros = np.array([[-5, 0, 10]]), np.zeros((1, 3), int)
    for state in (None, LIFState(zeros, zeros)):
        before = integrate(a, state, parameters)
        assert before.u.tolist() == [[-320, 0, 640]]
        assert before.v.tolist() == [[-368, -48, 592]]


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        (M, M),
        (M + 64, 64 - M),
        (-M, M),
        (64 - M, 64 - M),
        (-M - 64, M - 64),
        (3 * M + 64, M + 64),
        (-3 * M - 64, -M - 64),
    ],
)
def test_current_wraps_once_and_only_beyond_the_edges(u, expected):
    _, state = lif_step(np.array([u // 64]), None, LIFParameters(vth=0, du=4095))
    assert state.u.tolist() == [expected]
    assert overflowed(state.u).tolist() == [abs(expected) >= M]


def test_membrane_clips_and_threshold_is_strict():
    at_edges = LIFState(np.array([0, 0]), np.array([M - 1, 1 - M]))
    parameters = LIFParameters(vth=131071, bias_mant=np.array([0, -4096]), bias_exp=7)
    edge = 131071 * 64
    spikes, state = lif_step(np.array([0, 0]), at_edges, parameters)
    assert (spikes.tolist(), state.v.tolist()) == ([1, 0], [0, 1 - M])
    resting = LIFState(np.array([0, 0]), np.array([edge, edge + 1]))
    spikes, state = lif_step(np.array([0, 0]), resting, LIFParameters(vth=131071))
    assert (spikes.tolist(), state.v.tolist()) == ([0, 1], [edge, 0])


def test_a_spike_resets_the_membrane_and_keeps_the_current():
    spikes, state = lif_step(np.array([10]), None, LIFParameters(vth=9))
    assert (spikes.tolist(), state.u.tolist(), state.v.tolist()) == ([1], [640], [0])


@pytest.mark.parametrize("sign", [1, -1])
def test_leaks_settle_where_rounding_meets_the_input(sign):
    # x = trunc(x (1 - 1/64)) + c rests first at |x| = 64 (|c| - 1) + 1: u forgets du + 1 parts of
    # 4096 and v forgets dv parts, so du = 63 and dv = 64 are both one in 64.
    current = LIFParameters(vth=131071, du=63, dv=4095)
    membrane = LIFParameters(vth=131071, dv=64, bias_mant=sign * 25, bias_exp=2)
    u_state = v_state = None
    for _ in range(1000):
        _, u_state = lif_step(np.array([sign]), u_state, current)
        _, v_state = lif_step(np.array([0]), v_state, membrane)
    assert u_state.u.tolist() == [sign * (64 * 63 + 1)]
    assert v_state.v.tolist() == [sign * (64 * 99 + 1)]


def test_integrator_fires_with_the_period_of_a_division():
    parameters = LIFParameters(vth=100, du=4095)
    state, fired = None, []
    for step in range(60):
        spikes, state = lif_step(np.array([7]), state, parameters)
        fired += [step + 1] * spikes.item()
    assert fired == [15, 30, 45, 60]  # 15 = floor(100 / 7) + 1 steps


@pytest.mark.parametrize(
    ("mode", "bits", "expected"),
    [
        (None, 8, [-256, -4, -2, 0, 2, 254]),
        (SignMode.MIXED, 6, [-256, -8, -8, 0, 0, 248]),
        (SignMode.EXCITATORY, 8, [0, 0, 0, 0, 3, 255]),
        (SignMode.INHIBITORY, 8, [-255, -4, -1, 0, 0, 0]),
        (SignMode.INHIBITORY, 6, [-252, -4, 0, 0, 0, 0]),
        (SignMode.EXCITATORY, 1, [0, 0, 0, 0, 0, 128]),
    ],
)
def test_stored_weights_by_hand(mode, bits, expected):
    weights = np.array([[-400, -4, -1, 0, 3, 400]])
    parameters = DenseParameters(weights, sign_mode=mode, num_weight_bits=bits)
    assert parameters.effective.tolist() == [expected]
    assert weights.tolist() == [[-400, -4, -1, 0, 3, 400]]


@pytest.mark.parametrize(
    ("row", "stored"),
    [([0, 3], [0, 3]), ([0, -3], [0, -3]), ([0, 0], [0, 0]), ([3, -3], [2, -4])],
)
def test_signs_are_read_off_the_weights(row, stored):
    assert DenseParameters(np.array([row])).effective.tolist() == [stored]


def test_graded_messages_multiply_and_binary_ones_count():
    weights, spikes = np.array([[2, 10]]), np.array([5, -1])
    for bits, total in [(0, 12), (8, 0)]:
        parameters = DenseParameters(weights, num_message_bits=bits)
        first, state = dense_step(spikes, None, parameters)
        assert (first.tolist(), state.a_buff.tolist()) == ([0], [total])


def test_batches_run_row_by_row():
    rng = np.random.default_rng(0)
    spikes = rng.integers(-3, 4, (5, 4, 6))
    dense = DenseParameters(rng.integers(-200, 200, (3, 6)), num_message_bits=8)
    lif = LIFParameters(vth=np.array([1, 10, 100]), du=2000, dv=100)

    def run(sequence):
        dense_state, lif_state, fired = None, None, []
        for step in sequence:
            a, dense_state = dense_step(step, dense_state, dense)
            s, lif_state = lif_step(a, lif_state, lif)
            fired.append(s)
        return np.stack(fired)

    together = run(spikes)
    assert together.any()
    assert (together == np.stack([run(spikes[:, b]) for b in range(4)], axis=1)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"vth": -1},
        {"vth": 131072},
        {"du": -1},
        {"du": 4096},
        {"dv": np.array([0, 4096])},
        {"dv": np.array([-1, 0])},
        {"bias_mant": -4097},
        {"bias_mant": 4096},
        {"bias_exp": -1},
        {"bias_exp": 8},
    ],
    ids=str,
)
def test_neuron_registers_have_widths(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"^{name} is .* is allowed: rescale"):
        LIFParameters(**({"vth": 1} | wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": np.array([[2**31]])},
        {"weight_exp": -9},
        {"weight_exp": 8},
        {"num_weight_bits": 0},
        {"num_weight_bits": 9},
        {"num_message_bits": -1},
        {"num_message_bits": 32},
    ],
    ids=str,
)
def test_synapse_registers_have_widths(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"^{name} is .* is allowed: rescale"):
        DenseParameters(**({"weights": np.array([[1]])} | wrong))


def test_the_full_widths_are_accepted():
    edges = {"vth": 131071, "du": 4095, "dv": 4095, "bias_mant": -4096, "bias_exp": 7}
    assert LIFParameters(**edges).vth == 131071
    parameters = DenseParameters(np.array([[1 - 2**31]]), -7, 1, num_message_bits=31)
    assert parameters.effective.tolist() == [[-128]]


@pytest.mark.parametrize("value", [1.0, np.array([1.0]), np.array([1], dtype=np.int32)])
def test_only_int64_is_taken(value):
    with pytest.raises(TypeError, match="vth is (float|float64|int32); int64 is allowed"):
        LIFParameters(vth=value)


def test_weights_form_a_matrix():
    with pytest.raises(ValueError, match="weights are no matrix"):
        _ = DenseParameters(np.array([1, 2])).effective


def test_wrong_shapes_raise():
    two, three, matrix = np.zeros(2, int), np.zeros(3, int), np.zeros((4, 2), int)
    parameters = LIFParameters(vth=1)
    with pytest.raises(ValueError, match="equal shapes are allowed"):
        lif_step(matrix, LIFState(two, two), parameters)
    with pytest.raises(ValueError, match="equal shapes are allowed"):
        lif_step(np.zeros((4, 1), int), None, LIFParameters(vth=three))
    with pytest.raises(ValueError, match="equal shapes are allowed"):
        dense_step(two, DenseState(two), DenseParameters(np.zeros((3, 2), int)))
