"""Places of layers against a loop over every synapse and core; cases counted by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikecl_hardware.loihi import library
from spikecl_hardware.loihi.limits import LOIHI1, LOIHI2, Chip, Placement, check, place
from spikecl_hardware.loihi.program import (
    INPUT,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
)
from spikecl_hardware.loihi.semantics import ConvParameters, DenseParameters, LIFParameters

ROOMY = Chip("roomy", 128, 10**6, 10**9, 64, None, None, False, True, "", "")


def neurons(*shape, **registers):
    return Population(shape, LIFParameters(**{"vth": 5, **registers}))


def single(n_in, n_out, *, fill=4, **options):
    """One dense layer."""
    synapses = DenseParameters(np.full((n_out, n_in), fill), **options)
    connections = (Connection(INPUT, "out", synapses),)
    return Program((n_in,), {"out": neurons(n_out)}, connections, Readout("out"), 1)


def random_program(rng):
    """A convolution, a layer onto itself, and a way back to it."""
    conv = ConvParameters(
        rng.integers(1, 9, (3, 2, 2, 3)) * (rng.random((3, 2, 2, 3)) < 0.5),
        stride=int(rng.integers(1, 3)),
        padding=int(rng.integers(0, 2)),
    )
    maps = conv.out_shape((2, 4, 5))
    n = math.prod(maps)

    def dense(n_out, n_in):
        weights = rng.integers(-90, 90, (n_out, n_in)) * (rng.random((n_out, n_in)) < 0.3)
        return DenseParameters(weights, num_weight_bits=int(rng.integers(1, 9)))

    return Program(
        (2, 4, 5),
        {"maps": neurons(*maps, vth=np.arange(n)), "mid": neurons(7), "out": neurons(3)},
        (
            Connection(INPUT, "maps", conv),
            Connection("maps", "mid", dense(7, n)),
            Connection("mid", "mid", dense(7, 7)),
            Connection("mid", "out", dense(3, 7)),
            Connection("out", "mid", dense(7, 3)),
        ),
        Readout("out"),
        1,
    )


def matrix(synapses, shape):
    """Return which weight [n_out, n_in] stands between two neurons: None, or its number."""
    if isinstance(synapses, DenseParameters):
        n_out, n_in = synapses.effective.shape
        return [
            [i * n_in + j if synapses.effective[i, j] else None for j in range(n_in)]
            for i in range(n_out)
        ]
    w, rows = synapses.weights, []
    for o, y, x in np.ndindex(*synapses.out_shape(shape)):
        row = [None] * math.prod(shape)
        for c, k, m in np.ndindex(*w.shape[1:]):
            at = y * synapses.stride + k - synapses.padding, x * synapses.stride + m
            at = at[0], at[1] - synapses.padding
            if 0 <= at[0] < shape[1] and 0 <= at[1] < shape[2] and w[o, c, k, m]:
                row[np.ravel_multi_index((c, *at), shape)] = (o, c, k, m)
        rows.append(row)
    return rows


def parts(size, cores):
    """Return the neurons of each core."""
    return [range(i * size // cores, (i + 1) * size // cores) for i in range(cores)]


def up(bits, word):
    return math.ceil(bits / word) * word


def core_bits(synapses, weights, core, index, word):
    """Return what one connection takes on one core."""
    if isinstance(synapses, ConvParameters):
        area = math.prod(synapses.out_shape((2, 4, 5))[1:])
        channels = {i // area for i in core}
        stored = sum(np.count_nonzero(synapses.weights[o]) for o in channels)
        return up(stored * (8 + index), word)
    bits, total = synapses.num_weight_bits, 0
    for source in range(len(weights[0])):
        held = sum(weights[i][source] is not None for i in core)
        total += up(min(held * (bits + index), len(core) * bits), word) if held else 0
    return total


def needs(program, chip, name, cores):
    """Return neurons, bits, input axons and output axons of each core of a layer, in loops."""
    population, found = program.populations[name], []
    split = parts(population.size, cores[name])
    index = math.ceil(math.log2(max(len(core) for core in split)))
    registers = [np.ndim(v) for v in vars(population.neurons).values()]
    for core in split:
        bits = 32 * (2 + sum(registers)) * len(core) * chip.shared
        axons_in = axons_out = 0
        for c in program.connections:
            weights = matrix(c.synapses, program.shape(c.source))
            if c.target == name:
                bits += core_bits(c.synapses, weights, core, index, chip.word_bits)
                axons_in += sum(
                    any(weights[i][j] is not None for i in core) for j in range(len(weights[0]))
                )
            if c.source == name:
                there = parts(program.populations[c.target].size, cores[c.target])
                axons_out += sum(
                    any(weights[i][j] is not None for i in other) for j in core for other in there
                )
        found.append((len(core), bits, axons_in, axons_out))
    return found


def fits(use, chip):
    limits = chip.neurons, chip.memory_bits, chip.axons_in, chip.axons_out
    return all(most is None or n <= most for n, most in zip(use, limits))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    most=st.integers(1, 40),
    bits=st.integers(500, 9000),
    axons_in=st.none() | st.integers(5, 60),
    axons_out=st.none() | st.integers(2, 40),
    shared=st.booleans(),
    word=st.sampled_from([1, 8, 64]),
)
def test_every_core_holds_its_part_and_one_core_fewer_would_not_do(
    seed, most, bits, axons_in, axons_out, shared, word
):
    program = random_program(np.random.default_rng(seed))
    chip = Chip("small", 128, most, bits, word, axons_in, axons_out, shared, True, "", "")
    try:
        placements = place(program, chip)
    except ProgramError as error:
        assert "one neuron needs" in str(error)
        lone = {name: p.size for name, p in program.populations.items()}
        worst = [use for name in lone for use in needs(program, chip, name, lone)]
        assert not all(fits(use, chip) for use in worst)
        return
    cores = {p.population: p.cores for p in placements}
    assert list(cores) == list(program.populations)
    for p in placements:
        use = needs(program, chip, p.population, cores)
        assert (p.neurons, p.bits, p.axons_in, p.axons_out) == tuple(map(max, zip(*use)))
        assert all(fits(core, chip) for core in use)
        if p.cores > 1:
            fewer = needs(program, chip, p.population, {**cores, p.population: p.cores - 1})
            assert not all(fits(core, chip) for core in fewer)
    assert place(program, chip) == placements


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_synapses_and_fan_in_equal_a_loop(seed):
    program = random_program(np.random.default_rng(seed))
    for p in place(program, ROOMY):
        rows = [0] * program.populations[p.population].size
        for c in program.connections:
            if c.target == p.population:
                for i, row in enumerate(matrix(c.synapses, program.shape(c.source))):
                    rows[i] += sum(w is not None for w in row)
        assert (p.synapses, p.fan_in) == (sum(rows), max(rows))
        assert p.cores == 1


def test_a_dense_layer_by_hand():
    """784 lists of 128 weights with 8 bits: 1024 bits, 16 words, each."""
    (p,) = place(single(784, 128), LOIHI1)
    assert p == Placement("out", 1, 128, 784 * 128, 784 * 1024, 784, 784, 0)
    (p,) = place(single(784, 256), LOIHI1)
    assert (p.cores, p.neurons, p.bits) == (2, 128, 784 * 1024)
    (p,) = place(single(784, 256, fill=16, num_weight_bits=4), LOIHI1)
    assert (p.cores, p.bits) == (1, 784 * 1024)


def test_neurons_share_the_memory_of_loihi_2_only():
    program = single(10, 100)
    (one,), (two,) = place(program, LOIHI1), place(program, LOIHI2)
    assert one.bits == 10 * 832
    assert two.bits == 10 * 800 + 100 * 64
    vector = replace(program, populations={"out": neurons(100, bias_mant=np.arange(100))})
    assert place(vector, LOIHI2)[0].bits == two.bits + 100 * 32


def test_sparse_lists_are_shorter():
    weights = np.zeros((100, 10), dtype=np.int64)
    weights[7] = 4
    program = single(10, 100)
    connection = Connection(INPUT, "out", DenseParameters(weights))
    (p,) = place(replace(program, connections=(connection,)), LOIHI1)
    assert (p.bits, p.synapses, p.fan_in) == (10 * 64, 10, 10)


def test_a_convolution_stores_its_weights_once_per_core():
    """Two channels of 900 outputs: one each on Loihi 1, both on one core of Loihi 2."""
    conv = ConvParameters(np.ones((2, 3, 3, 3), dtype=np.int64))
    program = Program(
        (3, 32, 32),
        {"out": neurons(2, 30, 30)},
        (Connection(INPUT, "out", conv),),
        Readout("out"),
        1,
    )
    (one,), (two,) = place(program, LOIHI1), place(program, LOIHI2)
    assert (one.cores, one.neurons, one.bits) == (2, 900, up(27 * (8 + 10), 64))
    assert (two.cores, two.neurons) == (1, 1800)
    assert two.bits == up(54 * (8 + 11), 8) + 1800 * 64
    assert one.synapses == two.synapses == 1800 * 27
    assert one.axons_in == 3 * 32 * 32


def test_the_numbers_of_the_chips():
    assert (LOIHI1.cores, LOIHI1.neurons, LOIHI1.memory_bits) == (128, 1024, 1048576)
    assert (LOIHI1.axons_in, LOIHI1.axons_out) == (4096, 4096)
    assert (LOIHI2.cores, LOIHI2.memory_bits) == (128, 1572864)
    assert LOIHI2.cores * LOIHI2.neurons == 2**20
    assert all("2018" in c.source or "2021" in c.source for c in (LOIHI1, LOIHI2))


def test_too_many_cores_name_the_widest_layer_and_the_chips_that_would_do():
    chip = replace(ROOMY, cores=2, neurons=10)
    program = single(4, 45)
    with pytest.raises(ProgramError, match="'out' 5 cores: 5 in all; 1 x roomy has 2: .* 3 chips"):
        check(program, chip)
    assert check(program, chip, chips=3) == place(program, chip)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"axons_in": 3}, "'out': one neuron needs 4 input axons; a core of roomy has 3: prune"),
        ({"memory_bits": 200}, "'out': .* needs 256 bits of memory; a core of roomy has 200: use"),
    ],
)
def test_what_no_split_helps_against_is_refused(limits, message):
    with pytest.raises(ProgramError, match=message):
        check(single(4, 6), replace(ROOMY, **limits))


def test_too_many_destinations_are_refused():
    """Each of the three sources reaches nine cores."""
    first = Connection(INPUT, "mid", DenseParameters(np.full((3, 2), 4)))
    second = Connection("mid", "out", DenseParameters(np.full((9, 3), 4)))
    populations = {"mid": neurons(3), "out": neurons(9)}
    program = Program((2,), populations, (first, second), Readout("out"), 1)
    chip = replace(ROOMY, axons_out=9)
    wide, narrow = place(program, replace(chip, neurons=1)), place(program, chip)
    assert [p.axons_out for p in wide] == [9, 0]
    assert [(p.cores, p.axons_out) for p in narrow] == [(1, 3), (1, 0)]
    with pytest.raises(ProgramError, match="'mid': .* needs 9 output axons; .* has 8: narrow"):
        place(program, replace(chip, neurons=1, axons_out=8))


def test_graded_messages_are_refused_on_loihi_1():
    program = single(4, 6, num_message_bits=8)
    with pytest.raises(ProgramError, match="'input' to 'out': messages of 8 bits; Loihi 1"):
        check(program, LOIHI1)
    assert check(program, LOIHI2)[0].cores == 1


def test_synapses_that_learn_take_more_room():
    """All weights, a tag each, and a trace in every list; and a core can be too small for them."""
    weights = np.zeros((100, 50), np.int64)
    weights[:, 0] = 10
    rule = library.reward_stdp()

    def made(learning, n_out=100, n_in=50):
        held = np.resize(weights, (n_out, n_in))
        return Program(
            (n_in,),
            {"out": Population((n_out,), LIFParameters(vth=10))},
            (Connection(INPUT, "out", DenseParameters(held), learning),),
            Readout("out"),
            5,
        )

    (plain,), (plastic,) = (place(made(learning), LOIHI1) for learning in (None, rule))
    assert (plain.synapses, plastic.synapses) == (100, 5000)
    assert (plain.fan_in, plastic.fan_in) == (1, 50)
    lists = -(-(100 * (8 + 8) + 7) // 64) * 64
    assert plastic.bits == 50 * lists
    with pytest.raises(ProgramError, match="cores: .* in all; 1 x Loihi 1 has 128"):
        check(made(library.stdp(), n_out=6000, n_in=4000), LOIHI1)
