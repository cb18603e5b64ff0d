"""Programs on disk and programs that are refused."""

import hashlib
import json
import os
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from spikecl_hardware.loihi.program import (
    FORMAT,
    INPUT,
    VERSION,
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
)

WIDTHS = {
    "vth": (0, 131071),
    "du": (0, 4095),
    "dv": (0, 4095),
    "bias_mant": (-4096, 4095),
    "bias_exp": (0, 7),
    "start": (1 - 2**23, 2**23 - 1),
}
SYNAPSES = {
    DenseParameters: ("weight_exp", "num_weight_bits", "sign_mode", "num_message_bits"),
    ConvParameters: ("stride", "padding", "num_message_bits"),
}


def content(program):
    """Everything that a program holds, as plain values, without a look at how it is saved."""

    def plain(value):
        if isinstance(value, np.ndarray):
            assert value.dtype == np.int64
            return (value.shape, value.tolist())
        assert value is None or type(value) in (int, str, SignMode)
        return value

    return {
        "input_shape": program.input_shape,
        "steps": program.steps,
        "manifest": program.manifest,
        "readout": vars(program.readout),
        "populations": [
            (
                name,
                p.shape,
                {k: plain(p.start if k == "start" else getattr(p.neurons, k)) for k in WIDTHS},
            )
            for name, p in program.populations.items()
        ],
        "connections": [
            (
                c.source,
                c.target,
                type(c.synapses).__name__,
                plain(c.synapses.weights),
                {k: plain(getattr(c.synapses, k)) for k in SYNAPSES[type(c.synapses)]},
            )
            for c in program.connections
        ],
    }


def ints(low, high, shape):
    return arrays(np.int64, shape, elements=st.integers(low, high))


@st.composite
def programs(draw):
    """A convolution or a dense layer, a dense layer with loops behind it, and any names."""
    names = draw(
        st.lists(st.text().filter(lambda n: n != INPUT), min_size=2, max_size=2, unique=True)
    )
    maps = draw(st.booleans())
    first = (2, 2, 3) if maps else (draw(st.integers(1, 4)),)
    sizes = {names[0]: int(np.prod(first)), names[1]: draw(st.integers(1, 3))}
    populations = {}
    for name, shape in zip(names, [first, (sizes[names[1]],)]):
        registers = {
            key: draw(st.integers(*width) | ints(*width, sizes[name]))
            for key, width in WIDTHS.items()
        }
        start = registers.pop("start")
        populations[name] = Population(shape, LIFParameters(**registers), start)
    bits = st.integers(0, 31)

    def dense(n_out, n_in):
        return DenseParameters(
            draw(ints(1 - 2**31, 2**31 - 1, (n_out, n_in))),
            draw(st.integers(-8, 7)),
            draw(st.integers(1, 8)),
            draw(st.sampled_from([None, *SignMode])),
            draw(bits),
        )

    kernel = ConvParameters(draw(ints(-128, 127, (2, 1, 3, 2))), 2, 1, draw(bits))
    edges = [Connection(INPUT, names[0], kernel if maps else dense(sizes[names[0]], 12))]
    for source in draw(st.permutations(names)):
        edges.append(Connection(source, names[1], dense(sizes[names[1]], sizes[source])))
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    )
    readout = Readout(
        names[1],
        draw(st.sampled_from(["spikes", "u", "v"])),
        draw(st.sampled_from(["mean", "sum", "max", "last", "leaky", "first_spike"])),
        units=sizes[names[1]] if draw(st.booleans()) else 1,
        scale=draw(st.floats(allow_nan=False)),
        constants=draw(st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=2)),
    )
    return Program(
        (1, 3, 4) if maps else (12,),
        populations,
        tuple(edges),
        readout,
        draw(st.integers(1, 1000)),
        draw(st.dictionaries(st.text(), json_values, max_size=2)),
    )


@settings(deadline=None, derandomize=True, database=None)
@given(program=programs())
def test_what_is_saved_is_loaded(program, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.h5"  # the same in all examples
    assert program.save(path) == path
    loaded = Program.load(path)
    assert content(loaded) == content(program)
    assert loaded.checksum == program.checksum
    assert [p for p in path.parent.iterdir() if p.suffix == ".tmp"] == []
    again = path.with_suffix(".again")
    loaded.save(str(again))
    with h5py.File(path) as a, h5py.File(again) as b:
        assert dict(a.attrs) == dict(b.attrs)


def small(**changes):
    """A convolution and a dense layer, of fixed numbers."""
    parts = {
        "input_shape": (1, 3, 4),
        "populations": {
            "maps": Population((2, 2, 3), LIFParameters(vth=7, du=np.arange(12))),
            "out": Population((3,), LIFParameters(vth=np.array([1, 2, 3])), 5),
        },
        "connections": (
            Connection(INPUT, "maps", ConvParameters(np.arange(12).reshape(2, 1, 3, 2), 2, 1)),
            Connection("maps", "out", DenseParameters(np.arange(36).reshape(3, 12) - 9)),
        ),
        "readout": Readout("out"),
        "steps": 4,
        "manifest": {"classes": ["a", "b", "c"]},
    }
    return Program(**(parts | changes))


def test_the_checksum_is_that_of_the_content():
    known = "675f06df9bdaf0dc1b27e3c9e448ccd06c583f3ed3fec23d433cab51912adb64"
    assert small().checksum == small().checksum == known
    weights = np.asfortranarray(np.arange(36).reshape(3, 12) - 9)  # the order in memory is nothing
    same = (small().connections[0], Connection("maps", "out", DenseParameters(weights)))
    assert small(connections=same).checksum == known
    manifest = {"classes": ("a", "b", "c")}  # JSON knows one kind of list
    assert small(manifest=manifest).checksum == known


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 5},
        {"manifest": {}},
        {"readout": Readout("out", scale=2.0)},
        {"readout": Readout("maps")},
        {"input_shape": (1, 4, 4)},
        {"connections": small().connections[::-1]},
        {"populations": dict(reversed(small().populations.items()))},
        {"populations": small().populations | {"out": Population((3,), LIFParameters(vth=1), 5)}},
        {
            "populations": small().populations
            | {"out": Population((1, 3), small().populations["out"].neurons, 5)}
        },
        {
            "populations": small().populations
            | {"out": Population((3,), small().populations["out"].neurons, 6)}
        },
    ],
    ids=str,
)
def test_another_content_has_another_checksum(changes):
    assert small(**changes).checksum != small().checksum


def test_each_weight_counts():
    checksums = {small().checksum}
    for i in range(36):
        weights = np.arange(36) - 9
        weights[i] += 1
        changed = Connection("maps", "out", DenseParameters(weights.reshape(3, 12)))
        checksums.add(small(connections=(small().connections[0], changed)).checksum)
    assert len(checksums) == 37


def test_numbers_of_numpy_are_numbers(tmp_path):
    two = np.int64(2)
    program = Program(
        (two,),
        {"a": Population((two,), LIFParameters(vth=two, du=np.array(3)), two)},
        (Connection(INPUT, "a", DenseParameters(np.eye(2, dtype=int), weight_exp=two)),),
        Readout("a", units=two),
        steps=two,
    )
    loaded = Program.load(program.save(tmp_path / "a.h5"))
    neurons, synapses = loaded.populations["a"].neurons, loaded.connections[0].synapses
    found = (neurons.vth, neurons.du, loaded.populations["a"].start, synapses.weight_exp)
    assert found == (2, 3, 2, 2) and {type(x) for x in found} == {int}
    assert (loaded.input_shape, loaded.steps, loaded.readout.units) == ((2,), 2, 2)


def test_a_long_manifest_is_kept(tmp_path):
    manifest = {"mean": np.linspace(0, 1, 20_000).tolist()}  # attributes of HDF5 end at 64 KiB
    assert Program.load(small(manifest=manifest).save(tmp_path / "a.h5")).manifest == manifest


@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize("fails", ["manifest", "replace", "write"])
def test_nothing_is_half_written(tmp_path, monkeypatch, before, fails):
    path = tmp_path / "a.h5"
    if before:
        path.write_bytes(before)
    manifest = {"set": {1, 2}} if fails == "manifest" else {}

    def broken(*args, **kwargs):
        raise OSError("no space left")

    if fails == "replace":
        monkeypatch.setattr(os, "replace", broken)
    elif fails == "write":
        monkeypatch.setattr(h5py.File, "create_dataset", broken)
    with pytest.raises((OSError, TypeError)):
        small(manifest=manifest).save(path)
    assert [p.name for p in tmp_path.iterdir()] == (["a.h5"] if before else [])
    assert not before or path.read_bytes() == before


def test_a_folder_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        small().save(tmp_path / "none" / "a.h5")
    with pytest.raises(FileNotFoundError, match="no file"):
        Program.load(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match="no file"):
        Program.load(tmp_path)


def replace_header(file, data):
    del file["header"]
    file["header"] = data


@pytest.fixture
def saved(tmp_path):
    """A good file, its bytes, and a way to change what is in it."""
    path = small().save(tmp_path / "good.h5")

    def edit(change):
        with h5py.File(path, "a") as file:
            change(file)

    def edit_header(change):
        def changed(file):
            header = json.loads(bytes(file["header"][()]))
            change(header)
            replace_header(file, np.frombuffer(json.dumps(header, sort_keys=True).encode(), "u1"))

        edit(changed)

    return SimpleNamespace(path=path, raw=path.read_bytes(), edit=edit, edit_header=edit_header)


def refused(path, message):
    with pytest.raises(ProgramError, match=message) as caught:
        Program.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kept", [0, 1, 8, 100, 0.25, 0.5, 0.9])
def test_a_file_cut_short(saved, kept):
    saved.path.write_bytes(
        saved.raw[: kept if isinstance(kept, int) else int(kept * len(saved.raw))]
    )
    refused(saved.path, "no HDF5 file, or cut short .* export again")


@pytest.mark.parametrize("what", [b"", b"{}", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_no_hdf5_file(tmp_path, what):
    path = tmp_path / "a.h5"
    path.write_bytes(what)
    refused(path, "no HDF5 file")


def test_another_hdf5_file(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["node/weights"] = np.zeros(3)
        file.attrs["version"] = "1.0"
    refused(path, "HDF5, but no Loihi program")


@pytest.mark.parametrize(
    "header", [b"[1, 2]", b"{", b"7", b"\xff", 7, "text", np.zeros(3), h5py.Empty("f")]
)
def test_a_header_that_is_none(saved, header):
    header = np.frombuffer(header, "u1") if isinstance(header, bytes) else header
    saved.edit(lambda file: replace_header(file, header))
    refused(saved.path, "export again")


@pytest.mark.parametrize(
    ("key", "value"), [("version", VERSION + 1), ("version", None), ("format", "something else")]
)
def test_another_version(saved, key, value):
    saved.edit_header(lambda header: header.update({key: value}))
    refused(saved.path, f"this release reads {FORMAT} version {VERSION}; export again")


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.attrs.__setitem__("sha256", "0" * 64),
        lambda file: file.attrs.__setitem__("sha256", np.arange(3)),
        lambda file: file.__delitem__("connections/1/weights"),
        lambda file: file.__delitem__("populations"),
        lambda file: file.__setitem__("more", np.arange(3)),
        lambda file: file.__setitem__("text", "some text"),
        lambda file: file.__setitem__(b"\xff", np.arange(3)),
        lambda file: file["connections/1/weights"].__setitem__((2, 11), 27),
        lambda file: file["populations/1/vth"].__setitem__(0, 0),
    ],
    ids=[
        "other checksum", "no checksum", "a missing array", "a missing folder", "one array more",
        "a text more", "a name more", "another weight", "another register",
    ],
)  # fmt: skip
def test_a_content_that_was_changed(saved, change):
    saved.edit(change)
    refused(saved.path, "the checksum does not fit its content; export again")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(steps=5),
        lambda header: header["manifest"].update(classes=["b", "a", "c"]),
        lambda header: header["populations"][1].update(start=0),
    ],
    ids=["steps", "manifest", "start"],
)
def test_a_header_that_was_changed(saved, change):
    saved.edit_header(change)
    refused(saved.path, "the checksum does not fit its content; export again")


def test_any_bit_may_flip(saved):
    known, rng, outcomes = small().checksum, np.random.default_rng(0), set()
    used = [i for i, byte in enumerate(saved.raw) if byte]
    places = [*rng.choice(used, 700), *rng.integers(len(saved.raw), size=100)]
    for place in places:
        damaged = bytearray(saved.raw)
        damaged[place] ^= 1 << rng.integers(8)
        saved.path.write_bytes(damaged)
        try:
            outcomes.add(Program.load(saved.path).checksum)
        except ProgramError as error:
            outcomes.add("refused")
            assert str(error).startswith(str(saved.path))
    assert saved.raw[8] >= 2  # since this version the structure of HDF5 has checksums
    assert outcomes == {known, "refused"}  # known where the bit means nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; at least 1 is allowed"),
        ({"steps": -3}, "steps is -3; at least 1 is allowed"),
        ({"readout": Readout("gone")}, "readout of 'gone'; there are maps, out"),
        ({"readout": Readout("out", "w")}, "readout of 'out': quantity 'w'; spikes, u, v"),
        ({"readout": Readout("out", reduction="median")}, "readout of 'out': reduction 'median'"),
        ({"readout": Readout("out", units=2)}, "readout of 'out': 3 neurons in units of 2"),
        ({"readout": Readout("out", units=0)}, "readout of 'out': 3 neurons in units of 0"),
        (
            {"connections": small().connections[1:], "readout": Readout("maps")},
            "no way leads from the input to 'maps'",
        ),
        ({"connections": ()}, "no way leads from the input to 'out'"),
        (
            {"connections": small().connections[:1]},
            "no way leads from the input to 'out'",
        ),
        ({"populations": {}}, "'input' to 'maps': no population 'maps'; there are no populations"),
        (
            {"populations": {"maps": small().populations["maps"]}},
            "'maps' to 'out': no population 'out'; there are maps",
        ),
        (
            {"populations": small().populations | {"input": small().populations["out"]}},
            "a population cannot be called 'input'",
        ),
        ({"input_shape": (12,)}, r"'input' to 'maps': maps \(12,\) for 1 channels"),
        ({"input_shape": (2, 3, 4)}, r"'input' to 'maps': maps \(2, 3, 4\) for 1 channels"),
        ({"input_shape": (1, 9, 9)}, r"'input' to 'maps': synapses reach \(2, 5, 5\), the neurons"),
    ],
    ids=str,
)  # fmt: skip
def test_programs_that_do_not_fit_together(change, message):
    with pytest.raises(ProgramError, match=message):
        small(**change)


@pytest.mark.parametrize(
    ("source", "target", "weights", "message"),
    [
        ("gone", "out", np.eye(3, dtype=int), "'gone' to 'out': no population 'gone'; there are"),
        ("out", "input", np.eye(3, dtype=int), "'out' to 'input': no population 'input'; there"),
        ("out", "out", np.ones((2, 3), int), r"'out' to 'out': synapses reach \(2,\), the neurons"),
        ("out", "out", np.ones((3, 2), int), "'out' to 'out': weights for 2 inputs, the source"),
        ("out", "out", np.ones(3, int), "'out' to 'out': weights are no matrix"),
        ("out", "maps", np.ones((12, 3, 1), int), "'out' to 'maps': weights are no matrix"),
    ],
)
def test_synapses_that_do_not_fit(source, target, weights, message):
    one_more = Connection(source, target, DenseParameters(weights))
    with pytest.raises(ProgramError, match=message):
        small(connections=(*small().connections, one_more))


def test_a_kernel_without_four_axes():
    wrong = Connection(INPUT, "maps", ConvParameters(np.ones((2, 3, 2), int)))
    with pytest.raises(ProgramError, match="'input' to 'maps': weights have no four axes"):
        small(connections=(wrong, small().connections[1]))


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("shape", [(2,), (4,), (1,), (3, 1), (1, 3)])
def test_registers_of_a_wrong_shape(name, shape):
    values = {"vth": 1, "start": 0, name: np.ones(shape, int)}
    start = values.pop("start")
    wrong = Population((3,), LIFParameters(**values), start)
    message = rf"'out': {name} has shape .*; one number or \[3\] is allowed"
    with pytest.raises(ProgramError, match=message):
        small(populations=small().populations | {"out": wrong})


@pytest.mark.parametrize(
    "start",
    [
        2**23,
        -(2**23),
        np.array([0, 0, 2**23]),
        0.5,
        float("nan"),
        np.ones(3),
        True,
        np.ones(3, np.int32),
    ],
)
def test_a_start_out_of_range_or_of_another_type(start):
    wrong = Population((3,), LIFParameters(vth=1), start)
    with pytest.raises(ProgramError, match="'out': start "):
        small(populations=small().populations | {"out": wrong})


@pytest.mark.parametrize(
    "weights", [np.full((1, 1), np.nan), np.ones((1, 1)), np.ones((1, 1), np.int32)]
)
def test_weights_are_whole(weights):
    with pytest.raises(TypeError, match="weights is (float64|int32); int64 is allowed"):
        DenseParameters(weights)
    with pytest.raises(TypeError, match="weights is (float64|int32); int64 is allowed"):
        ConvParameters(weights[None, None])


def seal(file):
    """Write the checksum that fits: of the header, then of each array's path, shape and bytes."""
    digest, names = hashlib.sha256(bytes(file["header"][()])), []
    file.visit(names.append)
    for name in sorted(n for n in set(names) - {"header"} if isinstance(file[n], h5py.Dataset)):
        digest.update(f"{name} {file[name].shape}".encode())
        digest.update(file[name][()].astype("<i8").tobytes())
    file.attrs["sha256"] = np.bytes_(digest.hexdigest())


def test_the_checksum_is_the_documented_one(saved):
    saved.edit(seal)
    assert content(Program.load(saved.path)) == content(small())
    with h5py.File(saved.path) as file:
        assert file.attrs["sha256"].decode() == small().checksum


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["populations"][0].update(start=2**23),
        lambda header: header["populations"][0].update(vth=-1),
        lambda header: header["populations"][0].update(vth=0.5),
        lambda header: header["populations"][0].update(shape=12),
        lambda header: header["populations"][0].update(name="out"),
        lambda header: header["populations"][0].pop("vth"),
        lambda header: header["populations"].append({"name": "more"}),
        lambda header: header["connections"][0].update(kind="pool"),
        lambda header: header["connections"][1].update(sign_mode="both"),
        lambda header: header["connections"][1].update(delay=3),
        lambda header: header["readout"].update(window=3),
        lambda header: header.pop("steps"),
        lambda header: header.update(steps=0),
    ],
)
def test_a_sealed_file_of_something_else(saved, change):
    saved.edit_header(change)
    saved.edit(seal)
    refused(saved.path, ": .")


def test_a_sealed_file_without_an_array(saved):
    saved.edit(lambda file: file.__delitem__("connections/1/weights"))
    saved.edit(seal)
    refused(saved.path, "connections/1/weights")
