"""The order and the numbers of a chain's layers, against numbers by hand and a loop."""

import nir
import numpy as np
import pytest
from spikecl_hardware.chain import Dynamics, chain
from spikecl_hardware.graph import GraphError, Meta

N = 3


def of(kind, shape=(N,), **values):
    """Return neurons; numbers are for all of them."""
    known = {
        nir.LIF: {"tau": 4e-4, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0},
        nir.IF: {"r": 1.0, "v_threshold": 1.0, "v_reset": 0.0},
        nir.LI: {"tau": 4e-4, "r": 1.0, "v_leak": 0.0},
    }
    current = {"tau_syn": 2e-4, "tau_mem": 4e-4, "r": 1.0, "v_leak": 0.0, "w_in": 1.0}
    known |= {
        nir.CubaLI: current,
        nir.CubaLIF: {**current, "v_threshold": 1.0, "v_reset": 0.0},
    }
    full = {**known[kind], **values}
    return kind(**{key: np.broadcast_to(value, shape) * 1.0 for key, value in full.items()})


def dense(n, m=N, bias=False):
    weight = np.arange(1.0, n * m + 1).reshape(m, n)
    return nir.Affine(weight, np.ones(m)) if bias else nir.Linear(weight)


def row(*nodes, shape=(2,), around=None, edges=(), **more):
    """Return nodes 'n0', 'n1', ... in a row; ``around`` leads the last onto itself."""
    names = [f"n{i}" for i in range(len(nodes))]
    found = {"in": nir.Input(np.array(shape)), **dict(zip(names, nodes))}
    found |= {"out": nir.Output(np.array([N])), **more}
    line = ["in", *names, "out"]
    links = [*zip(line, line[1:]), *edges]
    if around is not None:
        found["onto"] = around
        links += [(names[-1], "onto"), ("onto", names[-1])]
    return nir.NIRGraph(found, links, type_check=False)


def dynamics(node, **options):
    _, (layer,) = chain(row(dense(2), node), **options)
    return layer.neurons


def test_numbers_by_hand():
    expected = [  # alpha, beta, current_gain, gain, v_rest, v_threshold, v_reset
        (of(nir.LIF, r=2.0, v_leak=0.5), (0, 0.75, 1, 0.5, 0.5, 1, 0)),
        (of(nir.IF, r=2.0, v_threshold=3.0, v_reset=-1.0), (0, 1, 1, 2, 0, 3, -1)),
        (of(nir.CubaLIF, w_in=3.0, r=2.0), (0.5, 0.75, 1.5, 0.5, 0, 1, 0)),
        (of(nir.LI, r=2.0), (0, 0.75, 1, 0.5, 0, None, None)),
        (of(nir.CubaLI, tau_syn=1e-4), (0, 0.75, 1, 0.25, 0, None, None)),
    ]
    for node, values in expected:
        found = dynamics(node)
        assert found.spiking is (values[-1] is not None)
        for name, got, value in zip(Dynamics._fields, found, values):
            if value is None:
                assert got is None
            else:
                np.testing.assert_allclose(got, np.full(N, value), rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(dynamics(of(nir.LIF), dt=2e-4).beta, 0.5)


def test_the_step_is_the_files():
    graph = row(dense(2), of(nir.LIF))
    Meta(dt=3e-4).attach(graph)
    np.testing.assert_allclose(chain(graph)[1][0].neurons.beta, 0.25)
    np.testing.assert_allclose(chain(graph, dt=1e-4)[1][0].neurons.beta, 0.75)


def test_values_of_each_neuron():
    taus = np.array([1e-4, 2e-4, 4e-4])
    np.testing.assert_allclose(dynamics(of(nir.LIF, tau=taus)).beta, [0, 0.5, 0.75], atol=1e-12)
    node = of(nir.LIF)
    for key in ("tau", "r", "v_leak", "v_threshold", "v_reset"):  # one number, as Norse writes
        setattr(node, key, np.asarray(getattr(node, key)[0]))
    assert dynamics(node).beta.shape == (N,)


def test_maps_have_values_by_place_or_channel():
    conv = nir.Conv2d((3, 3), np.ones((2, 1, 2, 2)), 1, 0, 1, 1, np.zeros(2))
    places = np.arange(1.0, 9).reshape(2, 2, 2)
    node = of(nir.LIF, (2, 2, 2), r=places)
    for key in ("tau", "v_leak", "v_threshold", "v_reset"):
        setattr(node, key, getattr(node, key)[:, :1, :1])
    node.tau = node.tau * np.array([1.0, 2.0]).reshape(2, 1, 1)
    _, (layer,) = chain(row(conv, node, shape=(1, 3, 3)))
    assert layer.out_shape == (2, 2, 2)
    np.testing.assert_allclose(layer.neurons.beta, [0.75] * 4 + [0.875] * 4)
    np.testing.assert_allclose(layer.neurons.gain, places.reshape(-1) * ([0.25] * 4 + [0.125] * 4))


def test_a_float32_tau_may_be_a_little_short():
    assert float(np.float32(1e-4)) < 1e-4
    np.testing.assert_array_equal(dynamics(of(nir.LIF, tau=float(np.float32(1e-4)))).beta, 0)


def test_layers_in_order():
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    conv = nir.Conv2d(None, np.ones((4, 1, 3, 3)), 2, 1, 1, 1, np.zeros(4))
    graph = nir.NIRGraph(
        {
            "z": nir.Input(np.array([1, 9, 9])),
            "fc.synapse": nir.Affine(np.ones((5, 16)), np.zeros(5)),
            "maps.synapse": conv,
            "maps.neuron": of(nir.IF, (4, 5, 5)),
            "fc.flatten": nir.Flatten(None, 0, -1),
            "fc.pool": pool,
            "a": nir.Output(np.array([5])),
        },
        [
            ("fc.synapse", "a"),
            ("fc.flatten", "fc.synapse"),
            ("fc.pool", "fc.flatten"),
            ("maps.neuron", "fc.pool"),
            ("maps.synapse", "maps.neuron"),
            ("z", "maps.synapse"),
        ],
        type_check=False,
    )
    shape, (maps, fc) = chain(graph)
    assert shape == maps.in_shape == (1, 9, 9)
    assert (maps.name, maps.out_shape, maps.before, maps.bias) == ("maps", (4, 5, 5), (), None)
    assert (fc.name, fc.in_shape, fc.out_shape) == ("fc", (4, 5, 5), (5,))
    assert fc.before == (pool, graph.nodes["fc.flatten"])
    assert fc.neurons is None and fc.recurrent is None and fc.bias is None


def test_a_recurrent_synapse_is_its_layers():
    onto = nir.Linear(np.arange(9.0).reshape(3, 3))
    _, (layer,) = chain(row(dense(2), of(nir.LIF), around=onto))
    np.testing.assert_array_equal(layer.recurrent.weight, onto.weight)
    assert layer.name == "n0" and layer.bias is None


@pytest.mark.parametrize("own", [False, True])
def test_a_bias_is_there_from_the_first_step(own):
    onto = nir.Affine(np.eye(3), np.array([1.0, 0.0, -2.0]))
    _, (layer,) = chain(row(dense(2, bias=own), of(nir.LIF), around=onto))
    assert type(layer.recurrent) is nir.Linear
    np.testing.assert_array_equal(layer.bias, np.array([1.0, 0.0, -2.0]) + own)
    np.testing.assert_array_equal(layer.synapse.weight, dense(2).weight)
    none = nir.Affine(np.eye(3), np.zeros(3))
    _, (layer,) = chain(row(dense(2), of(nir.LIF), around=none))
    assert type(layer.synapse) is type(layer.recurrent) is nir.Linear


def test_two_edges_for_one():
    graph = row(dense(2), of(nir.LIF))
    graph.edges = graph.edges * 2
    assert len(chain(graph)[1]) == 1


LIF, FC = of(nir.LIF), dense(2)
POOL = nir.AvgPool2d(np.array([4, 4]), np.array([4, 4]), np.array([0, 0]))
CONV = nir.Conv2d(None, np.ones((3, 2, 3, 3)), 1, 0, 1, 1, np.zeros(3))
REFUSED = {
    "two neurons": (row(FC, LIF, LIF), r"'n2' \(LIF\) stands where a synapse must be; allowed: L"),
    "two synapses": (row(FC, dense(3), LIF), r"'n1' \(Linear\) stands where neurons behind 'n0'"),
    "pooled currents": (row(CONV, POOL, shape=(2, 6, 6)), "stands where neurons behind 'n0' must"),
    "nothing": (row(), "no synapse lies between"),
    "branch": (
        row(FC, LIF, dense(3), edges=[("n0", "n2")]),
        "'n0' leads to n1, n2; one way is allowed: branches would arrive after",
    ),
    "sum": (row(FC, LIF, dense(3), other=dense(3), edges=[("other", "n2")]), "'n2' has 2 inputs"),
    "dead end": (
        nir.NIRGraph({"in": nir.Input(np.array([2])), "out": nir.Output(np.array([2]))}, [],
                     type_check=False),
        "'in' leads nowhere",
    ),
    "aside": (row(FC, LIF, other=LIF), "'other' does not lie on the way"),
    "two inputs": (row(FC, LIF, x=nir.Input(np.array([2]))), r"2 nodes of type Input \(in, x\)"),
    "no output": (
        nir.NIRGraph({"in": nir.Input(np.array([2]))}, [], type_check=False),
        "0 nodes of type Output",
    ),
    "no such node": (row(FC, LIF, edges=[("n1", "gone")]), "an edge leads from 'n1' to 'gone'"),
    "long cycle": (row(FC, LIF, edges=[("n1", "n0")]), "'n0' has 2 inputs"),
    "onto itself": (row(FC, LIF, edges=[("n1", "n1")]), "'n0' leads|'n1' has 2 inputs"),
    "twice around": (
        row(FC, LIF, around=dense(3), more=dense(3), edges=[("n1", "more"), ("more", "n1")]),
        "'n1' has two recurrent synapses",
    ),
    "around a wrong size": (row(FC, LIF, around=dense(3, 2)), r"'onto' has weights \(2, 3\); \(3,"),
    "a bias onto maps": (
        row(
            CONV,
            of(nir.LIF, (3, 1, 1)),
            shape=(2, 3, 3),
            around=nir.Affine(np.ones((3, 3)), np.ones(3)),
        ),
        "'onto' has a bias onto the maps",
    ),
    "inputs": (row(dense(4), LIF), r"'n0' takes 4 inputs, gets \(2,\)"),
    "channels": (row(CONV, LIF, shape=(1, 6, 6)), r"'n0' takes 2 channels, gets \(1, 6, 6\)"),
    "no maps": (row(CONV, LIF, shape=(72,)), r"'n0' takes maps \[C, H, W\], gets \(72,\)"),
    "small maps": (row(CONV, LIF, shape=(2, 2, 6)), "'n0' has a window of .*larger than its maps"),
    "small pools": (row(POOL, FC, LIF, shape=(2, 3, 3)), "'n0' has a window of"),
    "more axes": (
        row(nir.Linear(np.ones((2, 3, 2))), LIF),
        r"'n0' has weights \(2, 3, 2\); 2 axes are allowed",
    ),
    "fewer axes": (
        row(nir.Conv2d(None, np.ones((3, 2, 3)), 1, 0, 1, 1, np.zeros(3)), LIF, shape=(2, 6, 6)),
        "4 axes are allowed",
    ),
    "values": (row(FC, of(nir.LIF, (4,))), r"'n1' has parameters of shape \(4,\); the layer is"),
    "fast": (row(FC, of(nir.LIF, tau=9e-5)), "'n1': tau is 9e-05 to 9e-05 s with dt=0.0001 s"),
    "at once": (row(FC, of(nir.LI, tau=0.0)), "'n1': tau is 0 to 0 s"),
    "back in time": (row(FC, of(nir.CubaLIF, tau_mem=-1.0)), "'n1': tau_mem is -1 to -1 s"),
    "shapeless": (row(FC, LIF), "the input has no shape"),
}  # fmt: skip
REFUSED["shapeless"][0].nodes["in"].input_type = {"input": None}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_chain(case):
    graph, message = REFUSED[case]
    with pytest.raises(GraphError, match=message) as caught:
        chain(graph)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dt", [0.0, -1.0, np.inf, np.nan])
def test_a_step_without_length(dt):
    with pytest.raises(GraphError, match="seconds of a step, above 0"):
        chain(row(FC, LIF), dt=dt)
