"""Files and their metadata; what cannot be used is named."""

import json

import h5py
import nir
import numpy as np
import pytest
from spikecl_hardware import graph as module
from spikecl_hardware.graph import KEY, GraphError, Meta, check_node, flattened, read

ONE = np.ones(3)


def lif(n=3):
    one = np.ones(n)
    return nir.LIF(tau=4e-4 * one, r=one, v_leak=0 * one, v_threshold=one)


def graph(**changes):
    nodes = {
        "input": nir.Input(np.array([2])),
        "a": nir.Linear(np.ones((3, 2))),
        "b": lif(),
        "output": nir.Output(np.array([3])),
        **changes,
    }
    return nir.NIRGraph(nodes, [("input", "a"), ("a", "b"), ("b", "output")])


def one_line(caught):
    return "\n" not in str(caught.value)


def test_what_a_file_says_comes_back(tmp_path):
    made = graph()
    meta = Meta(
        steps=30,
        dt=1e-3,
        decoder={"name": "leaky", "kappa": 0.5, "units": 2},
        encoder={"name": "rate", "gain": 0.5},
        input={"low": 0.0, "high": 1.0, "spikes": True},
        classes=("zero", "one"),
        config={"run": {"seed": 1}},
    )
    made.metadata["other"] = "stays"
    meta.attach(made)
    nir.write(tmp_path / "a.nir", made)
    found = read(tmp_path / "a.nir")
    assert Meta.of(found) == meta
    assert found.metadata["other"] == "stays"
    assert sorted(found.edges) == sorted(made.edges)
    np.testing.assert_array_equal(found.nodes["b"].tau, made.nodes["b"].tau)


def test_a_file_that_says_nothing_has_defaults():
    assert Meta.of(graph()) == Meta(steps=1, dt=1e-4, decoder={"name": "mean", "units": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "metadata 'spikecl'.*written by another version"),
        ("[1]", "metadata 'spikecl'"),
        ("3", "metadata 'spikecl'"),
        ('{"colour": 1, "area": 2}', r"unknown entries \['area', 'colour'\]"),
        ('{"steps": 0}', "steps=0, 1 or more is allowed"),
        ('{"steps": "many"}', "steps=many"),
        ('{"steps": true}', "steps=True"),
        ('{"dt": 0}', "dt=0, seconds above 0"),
        ('{"dt": "1"}', "dt=1, seconds above 0"),
        ('{"dt": NaN}', "dt=nan, seconds above 0"),
        ('{"decoder": "mean"}', "decoder=mean, a name and constants"),
        ('{"decoder": {"units": 1}}', "a name and constants"),
        ('{"classes": 3}', "metadata 'spikecl'"),
    ],
)
def test_metadata_that_are_none(text, message):
    made = graph()
    made.metadata[KEY] = text
    with pytest.raises(GraphError, match=message) as caught:
        Meta.of(made)
    assert one_line(caught)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "a.nir"
    with pytest.raises(FileNotFoundError, match=r"no file .*a\.nir"):
        read(path)
    for content in (b"", b"\x89HDF\r\n\x1a\n", b"text"):
        path.write_bytes(content)
        with pytest.raises(GraphError, match=r"a\.nir: no NIR file, or cut short") as caught:
            read(path)
        assert one_line(caught)
    nir.write(path, graph())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(GraphError, match="cut short"):
        read(path)
    nir.write(path, lif())
    with pytest.raises(GraphError, match=r"a\.nir: no NIR file"):
        read(path)


def test_a_batch_axis_in_a_file_is_no_reason_to_refuse_it(tmp_path):
    made = graph()
    made.nodes["input"] = nir.Input(np.array([1, 2]))
    nir.write(tmp_path / "a.nir", made)
    assert tuple(read(tmp_path / "a.nir").nodes["input"].input_type["input"]) == (1, 2)


def test_graphs_inside_are_opened():
    inner = nir.NIRGraph(
        {"in": nir.Input(np.array([3])), "lif": lif(), "w": nir.Linear(np.eye(3)),
         "out": nir.Output(np.array([3]))},
        [("in", "lif"), ("lif", "w"), ("w", "lif"), ("lif", "out")],
    )  # fmt: skip
    middle = nir.NIRGraph(
        {"in": nir.Input(np.array([3])), "rnn": inner, "out": nir.Output(np.array([3]))},
        [("in", "rnn"), ("rnn", "out")],
        type_check=False,
    )
    outer = graph()
    outer.nodes["b"] = middle
    outer.metadata["kept"] = "yes"
    found = flattened(outer)
    assert set(found.nodes) == {"input", "a", "b.rnn.lif", "b.rnn.w", "output"}
    assert set(found.edges) == {
        ("input", "a"),
        ("a", "b.rnn.lif"),
        ("b.rnn.lif", "b.rnn.w"),
        ("b.rnn.w", "b.rnn.lif"),
        ("b.rnn.lif", "output"),
    }
    assert found.metadata["kept"] == "yes"


def test_graphs_inside_have_one_door_on_each_side():
    outer = graph()
    outer.nodes["b"] = nir.NIRGraph({"x": lif()}, [], type_check=False)
    with pytest.raises(GraphError, match="'b' is a graph without one input and one output"):
        flattened(outer)
    ends = {"in": nir.Input(np.array([3])), "out": nir.Output(np.array([3]))}
    edges = [("in", "x"), ("in", "y"), ("x", "out"), ("y", "out")]
    outer.nodes["b"] = nir.NIRGraph({**ends, "x": lif(), "y": lif()}, edges, type_check=False)
    with pytest.raises(GraphError, match="'b' is a graph whose input or output branches"):
        flattened(outer)


def conv(**changes):
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **changes}
    return nir.Conv2d(None, np.ones((3, 2, 3, 3)), *options.values(), np.zeros(3))


def with_nan():
    node = lif()
    node.tau[1] = np.nan
    return node


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (nir.Threshold(ONE), "'x' is a Threshold; allowed: Linear, Affine, Conv2d"),
        (nir.Delay(ONE), "'x' is a Delay"),
        (nir.Scale(ONE), "'x' is a Scale"),
        (nir.I(ONE), "'x' is a I"),
        (None, "'x' is a NoneType"),
        (nir.Linear(np.full((2, 2), np.inf)), "'x': weight has values that are not finite; train"),
        (with_nan(), "'x': tau has values that are not finite"),
        (conv(padding="same"), "'x': padding 'same'; numbers are allowed"),
        (conv(stride=(1, 2)), r"'x': stride \[1, 2\]; equal in both axes"),
        (conv(padding=(1, 2)), r"'x': padding \[1, 2\]; equal in both axes"),
        (conv(dilation=2), "dilation .*groups 1; 1 is allowed"),
        (conv(groups=2), "groups 2; 1 is allowed"),
    ],
)
def test_nodes_that_cannot_be_used(node, message):
    with pytest.raises(GraphError, match=message) as caught:
        check_node("x", node)
    assert one_line(caught)


def test_nodes_that_can():
    for node in (*graph().nodes.values(), conv(), conv(stride=2, padding=(1, 1))):
        check_node("x", node)


def test_metadata_are_text_that_others_can_read():
    made = graph()
    Meta(steps=3).attach(made)
    assert json.loads(made.metadata[KEY])["steps"] == 3


def test_a_sealed_file_is_whole_or_refused(tmp_path):
    path = module.write(small(), tmp_path / "a.nir")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nir"]
    again = module.read(path)
    assert module.checksum(again) == again.metadata[module.SEAL] == module.checksum(small())
    module.write(again, path)
    assert module.read(path).metadata == again.metadata
    with h5py.File(path, "r+") as file:
        weights = file["node/nodes/a.synapse/weight"]
        weights[0, 0] = np.nextafter(weights[0, 0], 1)
    with pytest.raises(GraphError, match="a.nir: the checksum does not fit"):
        module.read(path)


def test_the_checksum_sees_every_part():
    sums = {module.checksum(small())}
    for change in ("bias", "tau", "edge", "name", "meta"):
        made = small()
        if change == "edge":
            made.edges.append(("a.neuron", "a.synapse"))
        elif change == "name":
            made.nodes["b"] = made.nodes.pop("a.neuron")
        elif change == "meta":
            made.metadata = {"a": "b"}
        else:
            node = made.nodes["a.synapse" if change == "bias" else "a.neuron"]
            setattr(node, change, getattr(node, change) * 1.5)
        sums.add(module.checksum(made))
    assert len(sums) == 6


def small():
    one = np.ones(2)
    nodes = {
        "input": nir.Input(np.array([3])),
        "a.synapse": nir.Affine(np.arange(6.0).reshape(2, 3), one),
        "a.neuron": nir.LIF(tau=one, r=one, v_leak=one, v_threshold=one, v_reset=one),
        "output": nir.Output(np.array([2])),
    }
    edges = [("input", "a.synapse"), ("a.synapse", "a.neuron"), ("a.neuron", "output")]
    return nir.NIRGraph(nodes, edges)
