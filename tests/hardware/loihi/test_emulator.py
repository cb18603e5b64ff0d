"""The emulator against a loop over neurons in Python ints, one sample and step after the other."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.program import (
    INPUT,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
)
from spikecl_hardware.loihi.semantics import (
    ConvParameters,
    DenseParameters,
    LIFParameters,
    SignMode,
    wrapped,
)

M = 2**23


def stored_weights(synapses):
    """Return the rows that the memory of dense synapses holds."""
    rows = np.asarray(synapses.weights).tolist()
    flat = [w for row in rows for w in row]
    mode = synapses.sign_mode
    if mode is None:
        mode = SignMode.MIXED if min(flat) < 0 < max(flat) else None
        mode = mode or (SignMode.INHIBITORY if min(flat) < 0 else SignMode.EXCITATORY)
    grid = 2 ** (8 - synapses.num_weight_bits) * (2 if mode is SignMode.MIXED else 1)

    def stored(w):
        if mode is SignMode.INHIBITORY:
            return -(min(max(-w, 0), 255) // grid * grid)
        return min(max(w, -256 if mode is SignMode.MIXED else 0), 255) // grid * grid

    return [[stored(w) for w in row] for row in rows]


def dense_sums(synapses, message):
    """Return what dense synapses send a step later."""
    e = synapses.weight_exp
    sums = [sum(w * s for w, s in zip(row, message)) for row in stored_weights(synapses)]
    return [x * 2**e if e > 0 else x // 2**-e for x in sums]


def conv_sums(synapses, message, shape):
    """Return what a convolution sends a step later, wrapped to 24 bits; channels first."""
    c_in, height, width = shape
    stride, padding, weights = synapses.stride, synapses.padding, synapses.weights.tolist()
    rows, columns = len(weights[0][0]), len(weights[0][0][0])
    sums = []
    for kernel in weights:
        for y in range(-padding, height + padding - rows + 1, stride):
            for x in range(-padding, width + padding - columns + 1, stride):
                total = 0
                for c, k, m in itertools.product(range(c_in), range(rows), range(columns)):
                    if 0 <= y + k < height and 0 <= x + m < width:
                        total += kernel[c][k][m] * message[(c * height + y + k) * width + x + m]
                while total >= M:
                    total -= 2 * M
                while total < -M:
                    total += 2 * M
                sums.append(total)
    return sums


def towards_zero(product):
    """Divide by 4096, rounding towards zero."""
    return product // 4096 if product >= 0 else -(-product // 4096)


def lif(a, u, v, neuron):
    """Advance one neuron; the membrane before and after the reset, and whether u wrapped."""
    u = towards_zero(u * (4096 - (neuron["du"] + 1))) + 64 * a
    wraps = not -M < u <= M
    if wraps:
        u += -2 * M if u > 0 else 2 * M
    bias = neuron["bias_mant"] * 2 ** neuron["bias_exp"]
    before = min(max(towards_zero(v * (4096 - neuron["dv"])) + u + bias, 1 - M), M - 1)
    spike = int(before > 64 * neuron["vth"])
    return spike, u, before, 0 if spike else before, wraps


def registers_of(population):
    """Return the registers of each neuron."""
    n = int(np.prod(population.shape))
    names = [f.name for f in dataclasses.fields(LIFParameters)]
    values = {name: getattr(population.neurons, name) for name in names}
    values["start"] = population.start
    columns = {name: np.broadcast_to(value, n).tolist() for name, value in values.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(n)]


def slow(program, inputs, steps):
    """Run each sample by itself: activity [name][step][sample][neuron], and counts."""
    neurons = {name: registers_of(p) for name, p in program.populations.items()}
    made = {q: {name: [[] for _ in range(steps)] for name in neurons} for q in ("spikes", "u", "v")}
    notes = {q: dict.fromkeys(neurons, 0) for q in ("wrapped", "overflowed", "saturated")}
    for b in range(inputs.shape[1]):
        u = {name: [0] * len(neurons[name]) for name in neurons}
        v = {name: [neuron["start"] for neuron in neurons[name]] for name in neurons}
        sent = [[0] * len(neurons[c.target]) for c in program.connections]
        for t in range(steps):
            silence = [0] * int(np.prod(program.input_shape))
            fired = {INPUT: np.ravel(inputs[t, b]).tolist() if t < len(inputs) else silence}
            for name, population in neurons.items():
                into = [s for c, s in zip(program.connections, sent) if c.target == name]
                fired[name] = []
                for j, neuron in enumerate(population):
                    a = sum(s[j] for s in into)
                    made_of = lif(a, u[name][j], v[name][j], neuron)
                    spike, u[name][j], before, v[name][j], wraps = made_of
                    fired[name].append(spike)
                    notes["wrapped"][name] += wraps
                    notes["overflowed"][name] += not -M < u[name][j] < M
                    notes["saturated"][name] += before in (1 - M, M - 1)
                made["spikes"][name][t].append(fired[name])
                made["u"][name][t].append(list(u[name]))
                made["v"][name][t].append(list(v[name]))
            sent = [
                sums(c.synapses, fired[c.source], program.shape(c.source))
                for c in program.connections
            ]
    return made, notes


def sums(synapses, activity, shape):
    """Return what synapses send a step later."""
    message = [int(s) if synapses.num_message_bits else int(s != 0) for s in activity]
    if isinstance(synapses, ConvParameters):
        return conv_sums(synapses, message, shape)
    return dense_sums(synapses, message)


def too_large(program, inputs):
    """Whether sums of the input may leave the 32 bits in which Lava holds them."""
    bounds, largest = [0], max(abs(int(x)) for x in np.ravel(inputs))
    for c in (c for c in program.connections if c.source == INPUT):
        if isinstance(c.synapses, ConvParameters):
            rows, e = [np.ravel(kernel).tolist() for kernel in c.synapses.weights], 0
        else:
            rows, e = stored_weights(c.synapses), c.synapses.weight_exp
        reach = max(sum(abs(w) for w in row) for row in rows)
        bounds.append(reach * (largest if c.synapses.num_message_bits else 1) * 2 ** max(e, 0))
    return max(bounds) >= 2**31


@st.composite
def programs(draw):
    """Up to four populations, flat or maps, joined at random: loops, cycles, skips, all kinds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = draw(st.sampled_from([0, 0, 1, 4, 20]))
    low, high = draw(st.sampled_from([(-300, 300), (0, 300), (-300, 0), (-3, 3)]))
    size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    names = ["a", "b", "c", "d"][: draw(st.integers(1, 4))]

    def shape():
        if rng.random() < 0.5:
            return (int(rng.integers(1, 6)),)
        return (int(rng.integers(1, 3)), *(int(max(1, n - rng.integers(0, 2))) for n in size))

    def register(name, n):
        least, most = {
            "vth": (0, int(rng.choice([50, 5000, 131072]))),
            "bias_mant": (-4096, 4096) if rng.random() < 0.3 else (-3, 20),
            "bias_exp": (0, 8),
            "start": (1 - M, M) if rng.random() < 0.3 else (-5000, 5000),
        }.get(name, (0, 4096))
        values = rng.integers(least, most, n)
        return values if rng.random() < 0.5 else int(values[0])

    def population(shape):
        n = int(np.prod(shape))
        names = [f.name for f in dataclasses.fields(LIFParameters)]
        neurons = LIFParameters(**{name: register(name, n) for name in names})
        return Population(shape, neurons, register("start", n) if rng.random() < 0.5 else 0)

    def synapses(source, target, *, graded):
        kernels = [
            (k, m, s, p)
            for k, m, s, p in itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 3), (0, 1, 2))
            if len(source) == len(target) == 3
            and all(
                n + 2 * p >= k and (n + 2 * p - k) // s + 1 == out
                for n, k, out in zip(source[1:], (k, m), target[1:])
            )
        ]
        message = bits if graded else int(rng.choice([0, 0, 0, 8]))
        if kernels and rng.random() < 0.8:
            k, m, stride, padding = kernels[rng.integers(len(kernels))]
            weights = rng.integers(-128, 128, (target[0], source[0], k, m))
            return ConvParameters(weights, stride, padding, message)
        return DenseParameters(
            rng.integers(low, high + 1, (int(np.prod(target)), int(np.prod(source)))),
            weight_exp=int(rng.choice([0, 0, *range(-8, 8)])),
            num_weight_bits=int(rng.choice([8, 8, *range(1, 9)])),
            sign_mode=rng.choice([None, None, *SignMode]),
            num_message_bits=message,
        )

    shapes = {INPUT: shape()} | {name: shape() for name in names}
    share = draw(st.sampled_from([0.0, 0.3, 0.7]))
    pairs = list(zip([INPUT, *names], names))  # a chain, and what comes on top
    pairs += [p for p in itertools.product([INPUT, *names], names) if rng.random() < share]
    order = rng.permutation(len(pairs))
    program = Program(
        input_shape=shapes[INPUT],
        populations={name: population(shapes[name]) for name in rng.permutation(names).tolist()},
        connections=tuple(
            Connection(s, t, synapses(shapes[s], shapes[t], graded=s == INPUT))
            for s, t in (pairs[i] for i in order)
        ),
        readout=Readout(str(rng.choice(names)), str(rng.choice(["spikes", "u", "v"]))),
        steps=draw(st.integers(1, 8)),
    )
    samples = draw(st.integers(1, 3))
    half = 2 ** (bits - 1) if bits else 0
    values = (-half, half) if bits else (0, 2)
    return program, rng.integers(*values, (program.steps, samples, *program.input_shape))


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(case=programs())
def test_every_program_equals_the_loop(case):
    program, inputs = case
    if too_large(program, inputs):
        with pytest.raises(ProgramError, match=r"below 2\^31 is allowed"):
            emulate(program, inputs)
        return
    record = emulate(program, inputs, states=("u", "v"))
    latency = program.latency
    made, notes = slow(program, inputs, len(inputs) + latency)
    for name, population in program.populations.items():
        shape = (len(inputs) + latency, inputs.shape[1], *population.shape)
        for key, got in (("spikes", record.spikes[name]), *record.states[name].items()):
            assert got.shape == shape
            assert (got.reshape(*shape[:2], -1) == np.array(made[key][name])).all(), (name, key)
    assert record.notes == notes
    expected = made[program.readout.quantity][program.readout.population][latency:]
    assert record.outputs.tolist() == expected
    assert (record.inputs[: len(inputs)] == inputs).all()
    assert (
        record.inputs.shape[0] == len(inputs) + latency and not record.inputs[len(inputs) :].any()
    )


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(case=programs())
def test_an_input_that_repeats_equals_its_copies(case):
    program, inputs = case
    assume(not too_large(program, inputs))
    for static in (
        np.broadcast_to(inputs[0], inputs.shape),
        np.broadcast_to(inputs[:1, :1].astype(np.float32), inputs.shape),
    ):
        once, copied = (emulate(program, x, states="uv") for x in (static, static.copy()))
        assert once.spikes.keys() == copied.spikes.keys()
        for name, spikes in once.spikes.items():
            assert (spikes == copied.spikes[name]).all()
            for key in ("u", "v"):
                assert (once.states[name][key] == copied.states[name][key]).all()
        assert (once.outputs == copied.outputs).all()
        assert (once.inputs == copied.inputs).all()
        assert once.notes == copied.notes


def chain(*layers, steps=4, input_shape=(1,), quantity="spikes"):
    """Join synapses and neurons, one after the other."""
    names = [f"layer{i}" for i in range(len(layers))]
    sources = [INPUT, *names]
    return Program(
        input_shape,
        {n: Population(shape, lif) for n, (_, shape, lif) in zip(names, layers)},
        tuple(Connection(s, n, w) for s, n, (w, _, _) in zip(sources, names, layers)),
        Readout(names[-1], quantity),
        steps,
    )


def dense(*rows, **options):
    return DenseParameters(np.array(rows), **options)


RELAY = (dense([1]), (1,), LIFParameters(vth=0, du=4095, dv=4095))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_outputs_begin_with_the_answer_to_the_first_input(depth):
    program = chain(*[RELAY] * depth)
    inputs = np.array([1, 0, 1, 1]).reshape(4, 1, 1)
    record = emulate(program, inputs)
    assert record.outputs.ravel().tolist() == [1, 0, 1, 1]
    assert record.outputs.shape == (4, 1, 1)
    for i in range(depth):
        padded = [0] * (i + 1) + [1, 0, 1, 1] + [0] * (depth - i - 1)
        assert record.spikes[f"layer{i}"].ravel().tolist() == padded
    assert record.inputs.ravel().tolist() == [1, 0, 1, 1] + [0] * depth
    assert record.rates == {f"layer{i}": 3 / (4 + depth) for i in range(depth)}
    assert (record.backend, record.states) == ("emulator (numpy)", {})


def test_the_shortest_way_sets_the_latency():
    names = ["a", "b", "c"]
    edges = [("input", "a"), ("a", "b"), ("b", "c"), ("a", "c")]
    program = Program(
        (1,),
        {name: Population((1,), RELAY[2]) for name in names},
        tuple(Connection(s, t, RELAY[0]) for s, t in edges),
        Readout("c"),
        3,
    )
    record = emulate(program, np.array([1, 0, 0]).reshape(3, 1, 1))
    assert record.outputs.ravel().tolist() == [1, 1, 0]  # two steps on, and once more after three


def test_more_steps_than_planned_are_run():
    record = emulate(chain(RELAY, steps=1), np.ones((5, 2, 1), int))
    assert record.outputs.tolist() == [[[1], [1]]] * 5


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int8, np.int64, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_taken(kind):
    inputs = np.array([1, 0, 1, 0]).reshape(4, 1, 1).astype(kind)
    assert emulate(chain(RELAY), inputs).outputs.ravel().tolist() == [1, 0, 1, 0]


def test_maps_keep_their_shape():
    kernel = np.zeros((2, 1, 3, 3), int)
    kernel[0, 0, 0, 1], kernel[1, 0, 1, 0] = 1, 2  # the first looks up, the second to the left
    relay = LIFParameters(vth=1, du=4095, dv=4095)
    program = chain(
        (ConvParameters(kernel, padding=1), (2, 3, 4), relay), input_shape=(1, 3, 4), steps=1
    )
    inputs = np.zeros((1, 1, 1, 3, 4), int)
    inputs[0, 0, 0, 1, 2] = 1
    record = emulate(program, inputs, states=("u",))
    u = np.zeros((2, 3, 4), int)
    u[0, 2, 2], u[1, 1, 3] = 64, 128
    assert record.states["layer0"]["u"][1, 0].tolist() == u.tolist()
    assert record.outputs.shape == (1, 1, 24)
    assert record.spikes["layer0"][1, 0].tolist() == (u > 64).astype(int).tolist()


@pytest.mark.parametrize("others", [0, 1, 2])
def test_sums_beyond_single_precision_are_exact(others):
    value = 2**17 + 1  # 255 times it has 25 bits and is odd
    program = chain(
        (
            dense([255, *[0] * others], num_message_bits=20),
            (1,),
            LIFParameters(vth=0, du=4095),
        ),
        input_shape=(1 + others,),
        steps=1,
    )
    record = emulate(program, np.full((1, 1, 1 + others), value), states=("u",))
    assert record.states["layer0"]["u"].ravel().tolist() == [0, 64 * 255 * value - 2 * M]
    assert (255 * value) % 2 == 1 and 255 * value > 2**24


@pytest.mark.parametrize(
    ("value", "exponent", "refused"),
    [(2**24 - 1, 0, False), (-(2**24), 0, True), (2**23, 0, False), (2**23, 1, True)],
)
def test_sums_that_lava_has_no_room_for_are_refused(value, exponent, refused):
    weights = dense([128], num_message_bits=26, weight_exp=exponent)
    program = chain((weights, (1,), LIFParameters(vth=0)), steps=1)
    inputs = np.full((1, 1, 1), value)
    assert too_large(program, inputs) == refused
    if refused:
        with pytest.raises(ProgramError, match=r"'input' to 'layer0': .* below 2\^31 is allowed"):
            emulate(program, inputs)
    else:
        u = 64 * 128 * value * 2**exponent - 2 * M
        assert emulate(program, inputs, states="u").states["layer0"]["u"].ravel().tolist()[1] == u


@pytest.mark.parametrize(
    ("value", "weight", "u", "count"),
    [
        (2**14 - 1, 8, 64 * 8 * (2**14 - 1), 0),  # the last below the edge
        (2**14, 8, M, 1),  # the edge itself is outside 24 bits and does not wrap
        (-(2**14), 8, M, 1),  # its mirror wraps to it
        (2**14 + 1, 8, 64 * 8 - M, 0),  # beyond, one wrap suffices
        (3 * 2**14 + 1, 8, M + 64 * 8, 1),  # and here it does not
    ],
)
def test_currents_out_of_their_bits_are_counted(value, weight, u, count):
    program = chain(
        (dense([weight], num_message_bits=17), (1,), LIFParameters(vth=131071, du=4095)),
        steps=1,
    )
    record = emulate(program, np.full((1, 3, 1), value), states=("u",))
    assert record.states["layer0"]["u"][1].ravel().tolist() == [u] * 3
    assert record.notes["overflowed"] == {"layer0": 3 * count}


def test_currents_that_build_up_are_counted():
    # Each step brings 2^22, and what was there stays but for one part in 4096.
    program = chain(
        (dense([128], num_message_bits=11), (1,), LIFParameters(vth=0, du=0, dv=4095)), steps=3
    )
    exact = chain(
        (dense([1, 128], num_message_bits=11), (1,), LIFParameters(vth=0, du=0, dv=4095)),
        input_shape=(2,),
        steps=2,
    )
    record = emulate(program, np.full((3, 1, 1), 512), states=("u",))
    assert record.states["layer0"]["u"].ravel().tolist()[1:3] == [2**22, 2**23 - 1024]
    assert record.notes["overflowed"] == {"layer0": 0}
    inputs = np.array([[[0, 512]], [[16, 512]]])  # 16 units of 64 make up for the leak
    record = emulate(exact, inputs, states=("u",))
    assert record.states["layer0"]["u"].ravel().tolist() == [0, 2**22, M]
    assert record.notes["overflowed"] == {"layer0": 1}


def test_membranes_at_their_limit_are_counted_before_the_reset():
    lif = LIFParameters(
        vth=np.array([131071, 0, 131071]), dv=0, bias_mant=np.array([-4096, 4095, 0]), bias_exp=7
    )
    program = chain((dense([0], [0], [0]), (3,), lif), steps=15, quantity="v")
    record = emulate(program, np.zeros((15, 2, 1), int))
    # -2^19 a step reaches -2^23 at the sixteenth of sixteen; the second neuron is reset each time.
    assert record.notes["saturated"] == {"layer0": 2} and not record.notes["overflowed"]["layer0"]
    assert record.outputs[-1].tolist() == [[1 - M, 0, 0]] * 2
    assert record.outputs[-2].tolist() == [[-15 * 2**19, 0, 0]] * 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((4, 1)), r"\[steps, samples, 1\], no axis empty, is allowed"),
        (np.zeros((4, 1, 2)), r"\[steps, samples, 1\], no axis empty, is allowed"),
        (np.zeros((4, 1, 1, 1)), r"\[steps, samples, 1\], no axis empty, is allowed"),
        (np.zeros((0, 1, 1)), "no axis empty, is allowed"),
        (np.zeros((4, 0, 1)), "no axis empty, is allowed"),
        (np.full((4, 1, 1), 0.5), "no whole numbers"),
        (np.full((4, 1, 1), np.nan), "no whole numbers"),
        (np.broadcast_to(np.array([0.5]), (4, 1, 1)), "no whole numbers"),
        (np.full((4, 1, 1), np.inf), "0 to 1 is allowed for binary synapses"),
        (np.full((4, 1, 1), -1), "0 to 1 is allowed for binary synapses"),
        (np.full((4, 1, 1), 2), "0 to 1 is allowed for binary synapses"),
        (np.broadcast_to(np.array([2]), (4, 1, 1)), "0 to 1 is allowed for binary synapses"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(ProgramError, match=message):
        emulate(chain(RELAY), inputs)


@pytest.mark.parametrize(
    ("bits", "low", "high"), [(2, -2, 1), (8, -128, 127), (31, -(2**30), 2**30 - 1)]
)
def test_graded_inputs_have_widths(bits, low, high):
    program = chain((dense([1], num_message_bits=bits), (1,), LIFParameters(vth=0)), steps=1)
    for value in (low, high):
        emulate(program, np.full((1, 1, 1), value))
    for value in (low - 1, high + 1):
        with pytest.raises(ProgramError, match=f"{low} to {high} is allowed for messages"):
            emulate(program, np.full((1, 1, 1), value))


def test_one_binary_synapse_makes_the_input_binary():
    graded = dataclasses.replace(RELAY[0], num_message_bits=8)
    program = Program(
        (1,),
        {name: Population((1,), RELAY[2]) for name in "ab"},
        (Connection(INPUT, "a", graded), Connection(INPUT, "b", RELAY[0])),
        Readout("a"),
        1,
    )
    with pytest.raises(ProgramError, match="0 to 1 is allowed for binary synapses"):
        emulate(program, np.full((1, 1, 1), 3))


def test_only_u_and_v_are_states():
    with pytest.raises(ProgramError, match=r"states \['w'\]; u, v is allowed"):
        emulate(chain(RELAY), np.ones((1, 1, 1), int), states=("u", "w"))


@pytest.mark.parametrize(
    ("x", "expected"),
    [(0, 0), (M - 1, M - 1), (M, -M), (-M, -M), (-M - 1, M - 1), (3 * M, -M), (2 * M, 0)],
)
def test_sums_of_convolutions_wrap_to_24_bits(x, expected):
    assert wrapped(x) == expected
    assert wrapped(np.array([x, x])).tolist() == [expected] * 2


@pytest.mark.parametrize(
    ("maps", "kernel", "stride", "padding", "expected"),
    [
        ((2, 5, 7), (3, 2, 3, 3), 1, 0, (3, 3, 5)),
        ((2, 5, 7), (3, 2, 3, 3), 1, 1, (3, 5, 7)),
        ((2, 5, 7), (1, 2, 2, 3), 2, 1, (1, 3, 4)),
        ((1, 2, 2), (4, 1, 2, 2), 5, 0, (4, 1, 1)),
    ],
)
def test_sizes_of_maps(maps, kernel, stride, padding, expected):
    assert ConvParameters(np.zeros(kernel, int), stride, padding).out_shape(maps) == expected


@pytest.mark.parametrize("maps", [(), (8,), (2, 8), (1, 8, 8), (2, 2, 8), (2, 8, 2), (2, 8, 8, 1)])
def test_maps_that_do_not_fit_are_refused(maps):
    with pytest.raises(ValueError, match=r"2 channels and a kernel of 3 x 3; \[c_in, H, W\]"):
        ConvParameters(np.zeros((1, 2, 3, 3), int)).out_shape(maps)


def test_kernels_have_four_axes():
    with pytest.raises(ValueError, match=r"\[c_out, c_in, k, l\] is allowed"):
        ConvParameters(np.zeros((2, 3, 3), int)).out_shape((2, 8, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": np.array([[[[128]]]])},
        {"weights": np.array([[[[-129]]]])},
        {"stride": 0},
        {"stride": 128},
        {"padding": -1},
        {"padding": 128},
        {"num_message_bits": -1},
        {"num_message_bits": 32},
    ],
    ids=str,
)
def test_convolutions_have_widths(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"^{name} is .* is allowed: rescale"):
        ConvParameters(**({"weights": np.array([[[[1]]]])} | wrong))
