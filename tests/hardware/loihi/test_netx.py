"""``.net`` files: their layout by hand, our own reader, and what netx cannot hold."""

import os

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikecl_hardware.loihi import netx
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program, Readout
from spikecl_hardware.loihi.semantics import ConvParameters, DenseParameters, LIFParameters


def chain(input_shape, *layers, loops=None, **options):
    """Join ``(synapses, population)`` one after the other; ``loops`` are by layer."""
    names = [f"layer {i}" for i in range(len(layers))]
    connections = [
        Connection(source, name, synapses)
        for source, name, (synapses, _) in zip([INPUT, *names], names, layers)
    ]
    connections += [Connection(name, name, synapses) for name, synapses in (loops or {}).items()]
    populations = {name: population for name, (_, population) in zip(names, layers)}
    parts = {"readout": Readout(names[-1]), "steps": 5} | options
    return Program(input_shape, populations, tuple(connections), **parts)


@st.composite
def programs(draw):
    """Convolutions, then dense layers with loops, within what netx can hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = draw(st.sampled_from([0, 0, 8]))
    shape = (int(rng.integers(1, 3)), int(rng.integers(3, 7)), int(rng.integers(3, 7)))
    input_shape, layers, loops = shape, [], {}

    def population(shape):
        n = int(np.prod(shape))
        exponent = int(rng.integers(6, 8))
        bias = rng.integers(-30, 40, n) if rng.random() < 0.6 else int(rng.integers(-1, 3))
        registers = {
            "vth": int(rng.integers(0, 300)),
            "du": np.full(n, 3000) if rng.random() < 0.2 else int(rng.integers(0, 4096)),
            "dv": int(rng.integers(0, 4096)),
        }
        return Population(shape, LIFParameters(**registers, bias_mant=bias, bias_exp=exponent))

    def dense(n_out, n_in, message):
        exponent = int(rng.choice([-3, -1, 0, 0, 1]))
        low, high = [(-60, 60), (0, 120), (-60, 60)][rng.integers(3)]
        weights = rng.integers(low, high, (n_out, n_in)) * 2 // 8 * 8
        weights[0, 0] = 8
        return DenseParameters(
            weights if exponent < 1 else weights // 2, exponent, num_message_bits=message
        )

    for i in range(draw(st.integers(0, 2))):
        size = [int(rng.integers(1, 1 + min(3, n))) for n in shape[1:]]
        kernel = rng.integers(-40, 90, (int(rng.integers(1, 4)), shape[0], *size))
        stride, padding = int(rng.integers(1, 3)), int(rng.integers(0, 2))
        synapses = ConvParameters(kernel, stride, padding, bits if i == 0 else 0)
        shape = synapses.out_shape(shape)
        layers.append((synapses, population(shape)))
    for _ in range(draw(st.integers(0 if layers else 1, 2))):
        n_in, n_out = int(np.prod(shape)), int(rng.integers(1, 6))
        layers.append((dense(n_out, n_in, 0 if layers else bits), population((n_out,))))
        if rng.random() < 0.4:
            synapses = DenseParameters(rng.integers(-30, 31, (n_out, n_out)) * 2)
            loops[f"layer {len(layers) - 1}"] = synapses
        shape = (n_out,)
    program = chain(
        input_shape,
        *layers,
        loops=loops,
        readout=Readout(f"layer {len(layers) - 1}", str(rng.choice(["spikes", "u", "v"]))),
        manifest={"classes": ["é", 1]},
        steps=draw(st.integers(1, 8)),
    )
    values = (-128, 128) if bits else (0, 2)
    return program, rng.integers(*values, (program.steps, 2, *input_shape))


@settings(deadline=None, derandomize=True, database=None)
@given(case=programs())
def test_what_is_written_runs_the_same(case, tmp_path_factory):
    program, inputs = case
    path = tmp_path_factory.getbasetemp() / "any.net"
    loaded = netx.load(netx.save(program, path))
    once, again = (emulate(p, inputs, states=("u", "v")) for p in (program, loaded))
    assert list(loaded.populations) == list(program.populations)
    for name, spikes in once.spikes.items():
        assert (spikes == again.spikes[name]).all()
        for key in ("u", "v"):
            assert (once.states[name][key] == again.states[name][key]).all()
    assert (once.outputs == again.outputs).all()
    assert vars(loaded.readout) == vars(program.readout)
    assert (loaded.steps, loaded.manifest) == (program.steps, program.manifest)
    twice = netx.load(netx.save(loaded, path))
    assert twice.checksum == loaded.checksum


RNG = np.random.default_rng(0)
KERNEL = ConvParameters(RNG.integers(-9, 9, (2, 1, 3, 2)), stride=2, padding=1)  # to 2 x 2 x 3
MAPS = Population((2, 2, 3), LIFParameters(vth=7, du=9, dv=11, bias_mant=np.arange(12), bias_exp=6))
MATRIX = DenseParameters(RNG.integers(-60, 60, (3, 12)) * 2)
FLAT = Population((3,), LIFParameters(vth=5, du=4095, dv=0, bias_mant=3, bias_exp=7))
SQUARE = DenseParameters(RNG.integers(-60, 60, (3, 3)) * 2)


def contents(path):
    found = {}
    with h5py.File(path) as file:
        file["layer"].visititems(
            lambda key, item: found.update({key: item[()]}) if hasattr(item, "shape") else None
        )
    return {
        k: v.tolist() if isinstance(v, np.generic | np.ndarray) else v for k, v in found.items()
    }


def test_the_fields_of_a_file(tmp_path):
    program = chain((1, 3, 4), (KERNEL, MAPS), (MATRIX, FLAT), loops={"layer 1": SQUARE})
    found = contents(netx.save(program, tmp_path / "a.net"))
    neuron = {"neuron/type": b"CUBA", "neuron/refDelay": 1}
    expected = [
        {"type": [b"input"], "shape": [1, 3, 4]},
        {
            "type": [b"conv"],
            "shape": [2, 2, 3],
            "weight": KERNEL.weights.tolist(),
            "stride": [2, 2],
            "padding": [1, 1],
            "dilation": [1, 1],
            "groups": 1,
            # neuron (channel, row, column) = (1, 0, 2) is number 8; netx has (column, row, channel)
            "bias": [[[0, 6], [3, 9]], [[1, 7], [4, 10]], [[2, 8], [5, 11]]],
            "neuron/iDecay": 10,
            "neuron/vDecay": 11,
            "neuron/vThMant": 7,
            **neuron,
        },
        {"type": [b"flatten"], "shape": [12]},
        {
            "type": [b"dense_rec"],
            "shape": [3],
            "weight": MATRIX.effective.tolist(),
            "weight_rec": SQUARE.effective.tolist(),
            "bias": [6, 6, 6],
            "neuron/iDecay": 4096,
            "neuron/vDecay": 0,
            "neuron/vThMant": 5,
            **neuron,
        },
    ]
    assert found == {f"{i}/{k}": v for i, layer in enumerate(expected) for k, v in layer.items()}


def test_what_is_not_needed_is_not_written(tmp_path):
    plain = Population((3,), LIFParameters(vth=5))
    program = chain((12,), (MATRIX, plain), (SQUARE, plain))
    found = contents(netx.save(program, tmp_path / "a.net"))
    assert [found[f"{i}/type"] for i in range(3)] == [[b"input"], [b"dense"], [b"dense"]]
    assert not [key for key in found if "bias" in key or "rec" in key or "delay" in key]


def test_maps_are_flattened_once(tmp_path):
    program = chain((1, 3, 4), (KERNEL, MAPS), (MATRIX, FLAT), (SQUARE, FLAT), (SQUARE, FLAT))
    found = contents(netx.save(program, tmp_path / "a.net"))
    types = [found[f"{i}/type"][0].decode() for i in range(6)]
    assert types == ["input", "conv", "flatten", "dense", "dense", "dense"]
    program = chain((1, 3, 4), (MATRIX, FLAT), (SQUARE, FLAT))
    found = contents(netx.save(program, tmp_path / "a.net"))
    types = [found[f"{i}/type"][0].decode() for i in range(4)]
    assert types == ["input", "flatten", "dense", "dense"]


@pytest.mark.parametrize("exponent", [-2, 0, 1])
def test_weights_are_written_as_what_they_add(tmp_path, exponent):
    stored = DenseParameters(np.array([[8, -40, 100]]), weight_exp=exponent)
    program = chain((3,), (stored, Population((1,), LIFParameters(vth=5))))
    found = contents(netx.save(program, tmp_path / "a.net"))
    expected = {-2: [2, -10, 25], 0: [8, -40, 100], 1: [16, -80, 200]}[exponent]
    assert found["1/weight"] == [expected]


def write(path, *layers, about=None):
    with h5py.File(path, "w") as file:
        for i, layer in enumerate(layers):
            for key, value in layer.items():
                file[f"layer/{i}/{key}"] = value
        if about is not None:
            file["spikecl"] = np.frombuffer(about.encode(), "u1")
    return path


def kind(name):
    return {"type": np.array([name.encode()], dtype="S10")}


NEURON = {
    "neuron/type": "LOIHI",
    "neuron/iDecay": 1024,
    "neuron/vDecay": 128,
    "neuron/vThMant": 80,
    "neuron/refDelay": 1,
    "neuron/gradedSpike": False,
}
SPIKES = {**kind("input"), "shape": [1, 3, 4]}
CONV = {
    **kind("conv"),
    **NEURON,
    "shape": [2, 2, 3],
    "weight": KERNEL.weights[..., None].astype(np.float32),  # as lava-dl writes them
    "stride": [2, 2],
    "padding": [1, 1],
    "dilation": [1, 1],
    "groups": 1,
    "bias": np.array([-3.0, 5.0], dtype=np.float32),
}
DENSE = {
    **kind("dense"),
    **NEURON,
    "shape": [3, 1, 1],
    "weight": MATRIX.effective.astype(np.float32),
    "delay": np.zeros(3),
}


def test_files_of_others_are_read(tmp_path):
    one = {**DENSE, "shape": [1, 1, 1], "weight": np.float32([4, -2, 6]), "bias": np.float32([2])}
    layers = (SPIKES, CONV, {**kind("flatten"), "shape": [1, 1, 12]}, DENSE, one)
    program = netx.load(write(tmp_path / "a.net", *layers), steps=6)
    assert (program.input_shape, program.steps, program.latency) == ((1, 3, 4), 6, 3)
    assert list(program.populations) == ["layer1", "layer3", "layer4"]
    assert vars(program.readout) == vars(Readout("layer4"))
    maps = program.populations["layer1"]
    registers = (maps.shape, maps.neurons.du, maps.neurons.dv, maps.neurons.vth)
    assert registers == ((2, 2, 3), 1023, 128, 80)
    assert maps.neurons.bias_mant.tolist() == [-3] * 6 + [5] * 6 and maps.neurons.bias_exp == 6
    first, second, third = (c.synapses for c in program.connections)
    assert (first.weights == KERNEL.weights).all() and (first.stride, first.padding) == (2, 1)
    sums = second.effective * 2.0**second.weight_exp
    assert (sums == MATRIX.effective).all()
    assert (third.effective * 2.0**third.weight_exp).tolist() == [[4, -2, 6]]
    assert program.populations["layer4"].neurons.bias_mant.tolist() == [2]


@pytest.mark.parametrize(
    ("row", "weights", "exponent", "bits"),
    [  # of optimize_weight_bits in lava-dl 0.6.0
        ([3, -5], [96, -160], -5, 4),
        ([1, -1], [128, -128], -7, 2),
        ([100, -60], [200, -120], -1, 6),
        ([254, -256], [254, -256], 0, 8),
        ([64, -128], [128, -256], -1, 2),
        ([1, 2], [64, 128], -6, 2),
        ([255, 0], [255, 0], 0, 8),
        ([128, 64], [128, 64], 0, 2),
        ([-3, -200], [-3, -200], 0, 8),
        ([-6, -2], [-192, -64], -5, 2),
        ([0, -6], [0, -192], -5, 3),
        ([-200, -100], [-200, -100], 0, 6),
    ],
)  # fmt: skip
def test_weights_are_shifted_as_netx_does(tmp_path, row, weights, exponent, bits):
    layer = {**DENSE, "shape": [1], "weight": [row], "delay": 0}
    path = write(tmp_path / "a.net", {**kind("input"), "shape": [2]}, layer)
    synapses = netx.load(path, steps=1).connections[0].synapses
    found = (synapses.weights.tolist(), synapses.weight_exp, synapses.num_weight_bits)
    assert found == ([weights], exponent, bits)
    assert synapses.sign_mode is None


def test_the_input_may_be_graded(tmp_path):
    graded = DenseParameters(MATRIX.weights, num_message_bits=8)
    program = chain((12,), (graded, FLAT), (SQUARE, FLAT))
    loaded = netx.load(netx.save(program, tmp_path / "a.net"))
    assert [c.synapses.num_message_bits for c in loaded.connections] == [8, 0]


def test_given_steps_count(tmp_path):
    path = netx.save(chain((12,), (MATRIX, FLAT)), tmp_path / "a.net")
    assert netx.load(path).steps == 5
    assert netx.load(path, steps=9).steps == 9


def one_layer(**registers):
    return chain((12,), (MATRIX, Population((3,), LIFParameters(**({"vth": 5} | registers)))))


def extra(*more):
    program = chain((1, 3, 4), (KERNEL, MAPS), (MATRIX, FLAT), (SQUARE, FLAT))
    connections = (*program.connections, *(Connection(*c) for c in more))
    return Program((1, 3, 4), program.populations, connections, program.readout, 5)


def dense(row, exponent=0, **options):
    weights = DenseParameters(np.array([row]), exponent, **options)
    return chain((len(row),), (weights, Population((1,), LIFParameters(vth=5))))


WIDE = DenseParameters(np.full((3, 12), 2))
UP = DenseParameters(np.full((12, 3), 2))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (one_layer(vth=np.array([1, 2, 2])), "'layer 0': vth from 1 to 2; one number is allowed"),
        (one_layer(du=np.array([1, 2, 2])), "'layer 0': du from 1 to 2"),
        (one_layer(dv=np.array([1, 2, 0])), "'layer 0': dv from 0 to 2"),
        (
            one_layer(bias_mant=1, bias_exp=5),
            "'layer 0': a bias of 32; multiples of 64 from -262144 to",
        ),
        (one_layer(bias_mant=np.array([64, 0, 63])), "'layer 0': a bias of 63"),
        (one_layer(bias_mant=4095, bias_exp=7), "'layer 0': a bias of 524160"),
        (
            chain((12,), (MATRIX, Population((3,), LIFParameters(vth=5), 1))),
            "'layer 0': a membrane that does not",
        ),
        (dense([8, 4, 6], -2), "'layer 0': weight_exp -2 rounds sums down.*multiples of 4"),
        (dense([200, -10], 1), "'layer 0': weights from -20 to 400; .* rescale the layer"),
        (dense([200, 128], 1), "'layer 0': weights from 256 to 400"),
        (dense([0, 0]), "'layer 0': weights from 0 to 0"),
        (dense([-100, -128]), "'layer 0': netx would clip the weight -128"),
        (dense([0, -64]), "'layer 0': netx would clip the weight -64"),
        (dense([0, -1], num_message_bits=0), "'layer 0': netx would clip the weight -1"),
        (
            extra(("layer 0", "layer 2", WIDE)),
            "'layer 0' sends to 'layer 1', 'layer 2'; netx runs one",
        ),
        (extra(("input", "layer 1", WIDE)), "'input' sends to 'layer 0', 'layer 1'"),
        (extra(("input", "layer 0", KERNEL)), "'input' sends to 'layer 0', 'layer 0'"),
        (extra(("layer 2", "layer 1", SQUARE)), "'layer 2' to 'layer 1': a loop"),
        (
            extra(("layer 1", "layer 1", SQUARE), ("layer 1", "layer 1", SQUARE)),
            "'layer 1': a loop",
        ),
        (
            extra(("layer 0", "layer 0", DenseParameters(np.eye(12, dtype=int)))),
            "'layer 0': maps with a loop",
        ),
        (
            extra(
                ("layer 2", "layer 2", DenseParameters(np.eye(3, dtype=int), num_message_bits=4))
            ),
            "'layer 2': messages of 4 bits from 'layer 2'",
        ),
        (
            chain(
                (12,), (MATRIX, FLAT), (DenseParameters(SQUARE.weights, num_message_bits=8), FLAT)
            ),
            "'layer 1': messages of 8 bits from 'layer 0'; .* input only",
        ),
        (
            chain((1, 3, 4), (KERNEL, Population((12,), LIFParameters(vth=1)))),
            r"'layer 0': neurons are \(12,\), netx has maps \(2, 2, 3\)",
        ),
        (
            chain((3,), (UP, Population((1, 3, 4), LIFParameters(vth=1))), (KERNEL, MAPS)),
            "'layer 1': maps behind a dense layer",
        ),
        (
            Program(
                (12,),
                {"a": FLAT, "alone": FLAT},
                (Connection(INPUT, "a", MATRIX),),
                Readout("a"),
                1,
            ),
            "'alone': nothing leads to it",
        ),
        (
            Program(
                (12,),
                {"a": FLAT, "b": FLAT},
                (Connection(INPUT, "a", MATRIX), Connection("b", "a", SQUARE)),
                Readout("a"),
                1,
            ),
            "'b' to 'a': not part of one chain",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_written_is_refused(tmp_path, program, message):
    with pytest.raises(netx.NetxError, match=message):
        netx.save(program, tmp_path / "a.net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_nothing_is_half_written(tmp_path, monkeypatch, before):
    path = tmp_path / "a.net"
    if before:
        path.write_bytes(before)

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space left"):
        netx.save(chain((12,), (MATRIX, FLAT)), path)
    assert [p.name for p in tmp_path.iterdir()] == (["a.net"] if before else [])
    assert not before or path.read_bytes() == before


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            (SPIKES, {k: v for k, v in CONV.items() if k != "stride"}),
            r"'layer1' \(conv\): no stride",
        ),
        ((SPIKES, {k: v for k, v in CONV.items() if k != "neuron/type"}), "no neuron/type"),
        (
            (SPIKES, {k: v for k, v in DENSE.items() if k != "weight"}),
            r"'layer1' \(dense\): no weight",
        ),
        (
            (SPIKES, {k: v for k, v in DENSE.items() if k != "type"}),
            r"'layer1' \(nameless\): not supp",
        ),
        ((kind("input"), DENSE), r"'layer0' \(input\): no shape"),
        (({**SPIKES, **NEURON}, DENSE), "neurons of the input are not supported"),
        ((SPIKES, {**CONV, "groups": 2}), "groups 2 is not supported; 1 is"),
        ((SPIKES, {**CONV, "dilation": [2, 2]}), "dilation 2 is not supported; 1 is"),
        ((SPIKES, {**CONV, "stride": [2, 1]}), "stride from 1 to 2; one number is allowed"),
        ((SPIKES, {**CONV, "weight": KERNEL.weights * 100}), r"'layer1' \(conv\): weights is "),
        ((SPIKES, {**CONV, "bias": np.zeros(5)}), r"'layer1' \(conv\): .*broadcast"),
        ((SPIKES, {**DENSE, "delay": [0, 1, 0]}), "delay is not supported; 0 is"),
        ((SPIKES, {**DENSE, "neuron/messageBits": 8}), "neuron/messageBits is not supported; 0 is"),
        ((SPIKES, {**DENSE, "neuron/type": "SDNN"}), "neurons SDNN are not supported; CUBA, LOIHI"),
        ((SPIKES, {**DENSE, "neuron/iDecay": 0}), "du is -1 to -1"),
        ((SPIKES, {**DENSE, "neuron/vDecay": [1, 2, 3]}), "neuron/vDecay from 1 to 3; one number"),
        ((SPIKES, {**DENSE, "neuron/vThMant": 0.5}), "neuron/vThMant is not whole"),
        ((SPIKES, {**DENSE, "weight": MATRIX.effective + 0.5}), "weight is not whole"),
        ((SPIKES, {**DENSE, "weight": MATRIX.effective * np.nan}), "weight is not whole"),
        ((SPIKES, {**DENSE, "weight": MATRIX.effective * 9}), "is what netx stores: rescale"),
        ((SPIKES, {**DENSE, "weight": [[201, -201]] * 3}), "weights that netx does not store as"),
        ((SPIKES, {**DENSE, "weight": np.zeros((3, 5)) + 2}), "'input' to 'layer1': weights for 5"),
        ((SPIKES, {**DENSE, "bias": [1, 2]}), "bias_mant has shape"),
        ((SPIKES, {**DENSE, **kind("dense_rec")}), "no weight_rec"),
        ((SPIKES, {**kind("pool"), "shape": [1]}), r"'layer1' \(pool\): not supported; input, fl"),
        ((SPIKES,), "readout of 'input'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_read_is_refused(tmp_path, layers, message):
    path = write(tmp_path / "a.net", *layers)
    with pytest.raises(netx.NetxError, match=message) as caught:
        netx.load(path, steps=3)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        netx.load(tmp_path / "a.net")
    good = netx.save(chain((12,), (MATRIX, FLAT)), tmp_path / "a.net")
    raw = good.read_bytes()
    for content in (b"", b"{}", raw[:100], raw[: len(raw) // 2], bytes(1000)):
        good.write_bytes(content)
        with pytest.raises(netx.NetxError, match="no network file, or cut short"):
            netx.load(good)
    with pytest.raises(netx.NetxError, match="no network file"):
        netx.load(write(tmp_path / "b.net"))
    with pytest.raises(netx.NetxError, match="give steps"):
        netx.load(write(tmp_path / "c.net", SPIKES, CONV))
    for i, about in enumerate(
        ["[1]", "{", '{"names": 3}', '{"readout": {"more": 1}}', '{"steps": 0}']
    ):
        path = write(tmp_path / f"{i}.net", SPIKES, CONV, about=about)
        with pytest.raises(netx.NetxError, match=str(path)):
            netx.load(path)


def test_any_bit_may_flip(tmp_path):
    program = chain((1, 3, 4), (KERNEL, MAPS), (MATRIX, FLAT))
    path, rng = netx.save(program, tmp_path / "a.net"), np.random.default_rng(0)
    raw, refused = path.read_bytes(), 0
    used = [i for i, byte in enumerate(raw) if byte]
    for place in rng.choice(used, 300):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:  # there is no checksum: another number may come out, but no other error
            netx.load(path)
        except netx.NetxError:
            refused += 1
    assert refused > 30
