"""Programs against a float loop: equal where integers are exact, else within bounds that follow."""

import nir
import numpy as np
import pytest
from graphs import cells, conv, loop, pooled, row, spikes, whole
from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.program import Program
from spikecl_hardware.loihi.quantise import Options, quantise, quantise_input
from spikecl_hardware.loihi.semantics import ConvParameters, DenseParameters


def run(graph, x, *, calibration=None, **options):
    """Return the program, its record, and spikes by layer without delays."""
    program = quantise(graph, calibration=calibration, options=Options(**options))
    record = emulate(program, quantise_input(program, x), states=("u", "v"))
    depths = program.depths
    found = {n: s[depths[n] : depths[n] + len(x)] for n, s in record.spikes.items()}
    return program, record, found


def exact(program, name, threshold):
    """Check that a layer's weights and threshold are integers; return units of a membrane of 1."""
    scale = program.manifest["scales"][name]
    assert scale["exponent"] >= 0  # else sums are rounded down
    assert (threshold * scale["unit"] / 64) % 1 == 0
    return scale["unit"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("calibrated", [False, True])
def test_exact_networks_spike_in_the_same_steps(seed, calibrated):
    """IF neurons add integers up; the bias is an integer, too."""
    rng = np.random.default_rng(seed)
    bias = rng.integers(-8, 9, 8) / 64
    nodes = [
        nir.Affine(whole(rng, (8, 6)), bias),
        cells(8, threshold=3.0),
        nir.Linear(whole(rng, (5, 8), share=0.6)),
        cells(5, threshold=rng.integers(1, 4, 5) + 0.25),
        nir.Linear(whole(rng, (4, 5))),
        cells(4, threshold=2.0),
    ]
    onto = {3: nir.Linear(whole(rng, (5, 5)))}
    x = spikes(rng, 60, 5, 6)
    graph = row((6,), *nodes, onto=onto, steps=60)
    program, record, found = run(graph, x, calibration=x if calibrated else None)
    out, _ = loop(nodes, x, onto)
    for name, i, th in (("n0", 1, 3.0), ("n2", 3, 0.25), ("n4", 5, 2.0)):
        exact(program, name, th)
        assert 0.01 < out[i].mean() < 0.9
        np.testing.assert_array_equal(found[name], out[i])
    if calibrated:  # else a neuron that is inhibited all the time ends 16 thresholds below rest
        assert not any(sum(counts.values()) for counts in record.notes.values())
    np.testing.assert_allclose(logits(record.outputs, program.readout), out[5].mean(0))


def test_exact_decays():
    """Halves of membranes and currents are integers while units last."""
    rng = np.random.default_rng(7)
    nodes = [
        nir.Linear(whole(rng, (9, 6))),
        cells(9, beta=0.5, alpha=0.5, threshold=4.25, rest=0.25),
        nir.Affine(whole(rng, (5, 9)), rng.integers(-20, 21, 5) / 64),
        cells(5, beta=0.5, threshold=2.5),
    ]
    x = spikes(rng, 7, 40, 6, rate=0.5)
    program, _, found = run(row((6,), *nodes, steps=7), x, calibration=x)
    out, _ = loop(nodes, x)
    for name, i, th in (("n0", 1, 4.0), ("n2", 3, 2.5)):
        unit = exact(program, name, th)
        assert unit / 64 * 2**6 % 2**7 == 0  # membranes are multiples of 2 * unit / 64 at first
        np.testing.assert_array_equal(found[name], out[i])
        assert 0.01 < out[i].mean() < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_decays_differ_by_rounding_only(seed):
    """Registers are exact, products round down: less than ``error`` units, so spikes are equal."""
    rng = np.random.default_rng(seed)
    alpha, beta = 1 - rng.integers(200, 4000, 12) / 4096, 1 - rng.integers(30, 4000, 12) / 4096
    nodes = [
        nir.Linear(whole(rng, (12, 6))),
        cells(12, beta=beta, alpha=alpha, threshold=rng.integers(2, 9, 12) / 2),
    ]
    x = spikes(rng, 50, 6, 6)
    program, record, found = run(row((6,), *nodes, steps=50), x, calibration=x)
    out, peaks = loop(nodes, x)
    unit = exact(program, "n0", 0.5)
    error, current, compared = np.zeros((6, 12)), np.zeros((6, 12)), np.ones((6, 12), bool)
    steps = 0
    for t, (v, fired) in enumerate(zip(peaks[1], out[1])):
        current = alpha * current + 1
        error = beta * error + 1 + current
        compared &= unit * abs(v - nodes[1].v_threshold) > error  # who is unclear stays so
        np.testing.assert_array_equal(found["n0"][t][compared], fired[compared])
        error[fired > 0] = 0
        steps += compared.sum()
    assert steps > 0.9 * out[1].size and out[1].mean() > 0.02


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("signs", ["mixed", "excitatory", "inhibitory"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_membranes_of_integrators_stay_within_bounds(bits, signs, calibrated):
    """The bound adds up rounding of weights, decays and sums, step by step."""
    rng = np.random.default_rng(bits)
    w = {"mixed": lambda x: x, "excitatory": abs, "inhibitory": lambda x: -abs(x)}[signs](
        rng.normal(size=(4, 20))
    )
    if bits == 1 and signs == "mixed":
        w = np.minimum(w, 0.4 * -w.min())  # one bit and a sign have 0 and -256 only
    alpha, beta = rng.uniform(0.05, 0.95, 4), rng.uniform(0.05, 0.99, 4)
    nodes = [nir.Linear(w), cells(4, beta=beta, alpha=alpha, threshold=None)]
    x = spikes(rng, 30, 5, 20)
    graph = row((20,), *nodes, steps=30)
    program, record, _ = run(graph, x, calibration=x if calibrated else None, weight_bits=bits)
    scale = program.manifest["scales"]["n0"]
    mixed = (w < 0).any() and (w > 0).any()
    step = 2 ** (8 - bits + mixed)
    top = {False: 256 - step, True: 256 - step if bits > 1 else 256}[mixed]
    gap = abs(w) if bits == 1 and mixed else step / 2 / scale["weight"]
    gap = np.where(w > 0, gap, step / 2 / scale["weight"]) + np.zeros_like(w)
    assert abs(program.connections[0].synapses.weights).max() == top
    floor = 64 / scale["unit"] * (scale["exponent"] < 0)  # a sum is rounded down by less
    i, v, di, dv = (np.zeros((5, 4)) for _ in range(4))
    near = 1 / 8192 + 1e-12
    for t in range(30):
        di = (alpha + near) * di + near * abs(i) + x[t] @ gap.T + floor + 1 / scale["unit"]
        i = alpha * i + x[t] @ w.T
        dv = (beta + near) * dv + near * abs(v) + di + 1 / scale["unit"]
        v = beta * v + i
        ours = record.states["n0"]["v"][t + 1] / scale["unit"]
        assert (abs(ours - v) <= dv).all()
    np.testing.assert_allclose(loop(nodes, x)[0][1][-1], v, atol=1e-9)
    assert not any(sum(counts.values()) for counts in record.notes.values())


@pytest.mark.parametrize("decoder, function", [("mean", np.mean), ("sum", np.sum)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_accumulators_of_exact_networks(decoder, function, calibrated):
    rng = np.random.default_rng(11)
    nodes = [
        nir.Linear(whole(rng, (8, 6))),
        cells(8, threshold=2.0),
        nir.Affine(whole(rng, (6, 8)), rng.integers(-100, 100, 6) / 64),
    ]
    x = spikes(rng, 25, 4, 6)
    told = {"name": decoder, "units": 2}
    graph = row((6,), *nodes, steps=25, decoder=told)
    program, record, _ = run(graph, x, calibration=x if calibrated else None)
    expected = function(loop(nodes, x)[0][2], axis=0).reshape(4, 3, 2).mean(2)
    found = logits(record.outputs, program.readout)
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0)


def graded_inputs(rng, shape, bits):
    """Return inputs that messages hold exactly, the largest among them."""
    half = 2 ** (bits - 1) - 1
    x = rng.integers(-half, half + 1, shape) / half
    x.flat[0] = 1.0
    return x


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("calibrated", [False, True])
def test_graded_inputs(bits, calibrated):
    """A membrane of one input of 1 is a whole number; deeper layers get spikes, not messages."""
    rng = np.random.default_rng(bits)
    x = 4.0 * graded_inputs(rng, (20, 3, 5), bits)
    told = {"low": -4.0, "high": 4.0, "spikes": False}
    nodes = [nir.Linear(whole(rng, (3, 5), scale=1024.0))]
    graph = row((5,), *nodes, steps=20, input=told, decoder={"name": "sum"})
    calibration = x if calibrated else None
    program, record, _ = run(graph, x, calibration=calibration, message_bits=bits)
    assert program.manifest["input"]["scale"] * 4 == 2 ** (bits - 1) - 1
    assert program.connections[0].synapses.num_message_bits == bits
    scale = program.manifest["scales"]["n0"]
    bound = 20 * 64 * (1 - 2.0 ** min(scale["exponent"], 0)) / scale["unit"] + 1e-9
    difference = logits(record.outputs, program.readout) - loop(nodes, x)[0][0].sum(0)
    assert (difference <= 1e-9).all() and (difference >= -bound).all()


def test_the_range_of_the_input_ends_at_the_first_layer():
    """With the same weights, later layers have the same scales whatever the input's range is."""
    rng = np.random.default_rng(0)
    nodes = [nir.Linear(whole(rng, (4, 5))), cells(4), nir.Linear(whole(rng, (3, 4))), cells(3)]
    scales = [
        quantise(row((5,), *nodes, input={"low": 0.0, "high": high, "spikes": False}))
        for high in (0.01, 1.0, 255.0)
    ]
    later = [program.manifest["scales"]["n2"] for program in scales]
    assert later[0] == later[1] == later[2]


@pytest.mark.parametrize("kind, size", [(nir.AvgPool2d, 2), (nir.SumPool2d, 2), (None, 1)])
def test_shared_and_unrolled_convolutions_are_the_float_ones(kind, size):
    rng = np.random.default_rng(size)
    kernel = whole(rng, (3, 2, 2, 2), scale=128.0)
    kernel = np.clip(kernel, -127 / 64, 127 / 64)  # eight bits with the sign
    before = [] if kind is None else [pooled(kind, size)]
    side = 8 // size
    nodes = [
        *before,
        conv(kernel, side, padding=1, bias=np.array([0.0, 0.25, -0.25])),
        cells((3, side + 1, side + 1), threshold=1.5),
        nir.Flatten(np.array([3, side + 1, side + 1]), 0, -1),
        nir.Linear(whole(rng, (4, 3 * (side + 1) ** 2), share=0.3)),
        cells(4, threshold=4.0),
    ]
    x, n = spikes(rng, 20, 3, 2, 8, 8, rate=0.15), len(before)
    out, _ = loop(nodes, x)
    assert 0.02 < out[n + 1].mean() < 0.9 and 0.02 < out[n + 4].mean() < 0.9
    kinds = []
    for convolutions in ("shared", "unrolled", "auto"):
        program, _, found = run(row((2, 8, 8), *nodes), x, calibration=x, convolutions=convolutions)
        np.testing.assert_array_equal(found[f"n{n}"], out[n + 1])
        np.testing.assert_array_equal(found[f"n{n + 3}"], out[n + 4])
        kinds.append(type(program.connections[0].synapses))
    assert kinds == [ConvParameters, DenseParameters, ConvParameters]


def test_shared_weights_that_would_be_coarse_are_unrolled():
    """A small kernel beside large currents: no exponent helps shared weights."""
    rng = np.random.default_rng(1)
    nodes = [conv(rng.normal(size=(2, 1, 3, 3)) * 1e-3, 6), cells((2, 4, 4), threshold=300.0)]
    x = 1.0 * spikes(rng, 10, 2, 1, 6, 6)
    program, _, _ = run(row((1, 6, 6), *nodes), x, calibration=x)
    assert isinstance(program.connections[0].synapses, DenseParameters)
    with pytest.raises(ValueError, match="'n0': weights would be"):
        run(row((1, 6, 6), *nodes), x, calibration=x, convolutions="shared")


@pytest.mark.parametrize("onto", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("calibrated", [False, True])
def test_recurrent_weights_of_any_size_fit(onto, calibrated):
    rng = np.random.default_rng(1)
    nodes = [nir.Linear(rng.uniform(0, 1, (4, 3))), cells(4, beta=0.5)]
    around = {1: nir.Linear(rng.normal(size=(4, 4)) * onto)}
    silent = np.zeros((2, 1, 3)) if calibrated else None
    program = quantise(row((3,), *nodes, onto=around), calibration=silent)
    (_, c) = program.connections
    unit = program.manifest["scales"]["n0"]["unit"]
    made = c.synapses.effective * 64 * 2.0**c.synapses.weight_exp / unit
    step = 2 * 64 * 2.0**c.synapses.weight_exp / unit
    assert abs(made - around[1].weight).max() <= step / 2 * (1 + 1e-9)
    assert step <= abs(around[1].weight).max() / 63 or c.synapses.weight_exp == -7


def test_no_weights_and_one_neuron():
    """A layer without weights still fires by its bias; one neuron is a layer, too."""
    nodes = [nir.Affine(np.zeros((1, 1)), np.array([0.125])), cells(1, threshold=0.3)]
    x = np.zeros((12, 1, 1))
    for calibration in (None, x):
        _, _, found = run(row((1,), *nodes, steps=12), x, calibration=calibration)
        np.testing.assert_array_equal(found["n0"], loop(nodes, x)[0][1])
        assert found["n0"].sum() == 4


def test_what_calibration_did_not_show_is_counted():
    nodes = [nir.Linear(np.ones((2, 100))), cells(2, beta=0.99, threshold=None)]
    graph = row((100,), *nodes, steps=40, decoder={"name": "last"})
    weak, strong = np.zeros((40, 1, 100)), np.ones((40, 1, 100))
    weak[:, :, 0] = 1
    _, record, _ = run(graph, weak, calibration=weak)
    assert record.notes["saturated"]["n0"] == record.notes["overflowed"]["n0"] == 0
    _, record, _ = run(graph, strong, calibration=weak)
    assert record.notes["saturated"]["n0"] > 0


def random_graph(number):
    """Return a graph of any kind, and inputs."""
    rng = np.random.default_rng(number)
    graded = number % 3 == 0
    bits = int(rng.integers(1, 9))
    scale = 10.0 ** rng.uniform(-2, 2)
    n = [int(k) for k in rng.integers(1, 12, 3)]
    alpha = rng.choice([0.0, 0.5, 0.97, 0.9999], n[1]) if number % 2 else None
    beta = rng.choice([0.0, 0.3, 0.9, 0.9999], n[1])
    first = rng.normal(size=(n[1], n[0])) * scale
    bias = None if number % 2 else rng.normal(size=n[1]) * scale * 0.3
    threshold = scale * rng.uniform(0.5, 2, n[1])
    nodes = [
        nir.Linear(first) if bias is None else nir.Affine(first, bias),
        cells(n[1], beta=beta, alpha=alpha, threshold=threshold),
        nir.Affine(abs(rng.normal(size=(n[2], n[1]))), rng.normal(size=n[2])),
        [cells(n[2]), cells(n[2], beta=0.95, threshold=None), None][number % 3],
    ]
    onto = {1: nir.Linear(rng.normal(size=(n[1], n[1])) * scale)} if number % 5 == 0 else None
    x = rng.normal(size=(20, 3, n[0])) if graded else spikes(rng, 20, 3, n[0])
    told = {"low": float(x.min()), "high": float(x.max()), "spikes": not graded}
    graph = row((n[0],), *[node for node in nodes if node], onto=onto, steps=20, input=told)
    return graph, x, bits


@pytest.mark.parametrize("number", range(40))
def test_all_registers_hold_what_they_get(number, tmp_path):
    """Programs of random graphs are in range, on disk as in memory, and quiet on what they know."""
    graph, x, bits = random_graph(number)
    for calibration in (None, x):
        program, record, _ = run(graph, x, calibration=calibration, weight_bits=bits)
        loaded = Program.load(program.save(tmp_path / "program.h5"))
        assert loaded.checksum == program.checksum
        again = emulate(loaded, quantise_input(loaded, x))
        np.testing.assert_array_equal(again.outputs, record.outputs)
        for name, states in record.states.items():
            assert abs(states["u"]).max() < 2**23 and abs(states["v"]).max() < 2**23
            if bits == 8:
                assert _current(program, name, record).max() <= 32767
        assert not any(record.notes["overflowed"].values())
        if calibration is not None and bits == 8:
            assert not any(record.notes["saturated"].values())


def _current(program, name, record):
    """Return sizes of what arrives at a layer, from its current."""
    du = program.populations[name].neurons.du
    u = record.states[name]["u"].astype(float)
    before = np.concatenate([np.zeros_like(u[:1]), u[:-1]])
    return abs(u - before * (4095 - du) / 4096) / 64 - 1


W = nir.Linear(np.ones((2, 2)))


@pytest.mark.parametrize(
    "nodes, options, message",
    [
        ([W], {"calibration": np.ones((3, 2, 5))}, r"shape \(3, 2, 5\); \[T, B, 2\] is allowed"),
        ([W], {"calibration": np.ones((0, 2, 2))}, r"shape \(0, 2, 2\)"),
        ([W], {"calibration": np.ones(2)}, r"shape \(2,\); \[T, B, 2\]"),
        ([W], {"calibration": np.full((1, 1, 2), np.nan)}, "values that are not finite"),
        ([W], {"calibration": np.full((1, 1, 2), 0.5)}, "says that its input is spikes"),
        ([W], {"options": Options(clips=(1.0, 0.5))}, "several clips are compared on calibration"),
        ([W, cells(2, beta=0.5, threshold=None), W], {}, "'n0': its neurons do not fire"),
        ([nir.Linear(np.ones((2, 2)) * 1e-9), cells(2)], {}, "'n0': weights would be .* larger we"),
        (
            [nir.Linear(np.ones((2, 2)) * 1e-6), cells(2)],
            {"options": Options(weight_bits=1)},
            "'n0': weights would be .* of 128 possible and 128 needed",
        ),
    ],
)
def test_refused(nodes, options, message):
    with pytest.raises(ValueError, match=message):
        quantise(row((2,), *nodes), **options)


@pytest.mark.parametrize(
    "told, message",
    [
        ({}, "does not say which values its input has; give calibration data"),
        ({"low": 0.0}, "'spikes', 'low' and 'high' are needed"),
        ({"spikes": False, "low": 0.0}, "'spikes', 'low' and 'high' are needed"),
        ({"spikes": False, "low": 0.0, "high": float("inf")}, "the input reaches inf"),
    ],
)
def test_refused_ranges(told, message):
    with pytest.raises(ValueError, match=message):
        quantise(row((2,), W, input=told))


def test_two_layers_of_one_name():
    """Files of nested graphs have several nodes before one dot."""
    names = ["in", "a.x", "a.cells", "a.y", "out"]
    nodes = [nir.Input(np.array([2])), W, cells(2), W, nir.Output(np.array([2]))]
    graph = nir.NIRGraph(dict(zip(names, nodes)), list(zip(names, names[1:])), type_check=False)
    with pytest.raises(ValueError, match="two layers are called 'a'; rename"):
        quantise(graph, calibration=np.ones((1, 1, 2)))


def test_a_recurrent_bias_is_that_of_the_layer():
    rng = np.random.default_rng(0)
    weights, bias = whole(rng, (3, 3)), np.array([0.25, 0.5, -0.25])
    first, x = nir.Linear(whole(rng, (3, 2))), spikes(rng, 20, 4, 2)
    around = {1: nir.Affine(weights, bias)}
    _, _, found = run(row((2,), first, cells(3, threshold=2.0), onto=around), x)
    nodes = [nir.Affine(first.weight, bias), cells(3, threshold=2.0)]
    np.testing.assert_array_equal(found["n0"], loop(nodes, x, {1: nir.Linear(weights)})[0][1])


def test_shared_weights_are_refused_where_they_cannot_be():
    rng = np.random.default_rng(0)
    kernel, pool = rng.normal(size=(1, 1, 2, 2)), pooled(nir.AvgPool2d, 2, stride=1)
    differ = cells((1, 3, 3), gain=rng.uniform(1, 2, (1, 3, 3)))
    cases = {
        "pooling does not divide it": [pool, conv(kernel, 3), cells((1, 2, 2))],
        "parameters differ within a map": [conv(kernel, 4), differ],
    }
    for message, nodes in cases.items():
        graph = row((1, 4, 4), *nodes)
        with pytest.raises(ValueError, match=f"{message}, shared weights cannot"):
            quantise(graph, options=Options(convolutions="shared"))
        (c,) = quantise(graph).connections
        assert isinstance(c.synapses, DenseParameters)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_bits": 0},
        {"weight_bits": 9},
        {"message_bits": 1},
        {"message_bits": 25},
        {"convolutions": "dense"},
        {"clips": ()},
        {"clips": (0.0,)},
        {"clips": (4.5,)},
        {"margin": 0.9},
        {"margin": float("nan")},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Options(**options)
