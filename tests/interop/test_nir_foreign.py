"""Files with numbers that we would not write: the equations of the hardware package hold."""

import nir
import numpy as np
import pytest
import torch
from spikecl_hardware.chain import chain
from spikecl_hardware.floating import simulate
from spikecl_hardware.graph import Meta
from torch import nn

from spikecl.encoding.decoders import FirstSpikeDecoder, MeanDecoder, SumDecoder
from spikecl.errors import InteropError
from spikecl.interop import from_nir
from spikecl.networks import AvgPool2d, Conv2d


def reference(graph, x):
    """Return what the chain of the hardware package computes in floating point."""
    _, found = chain(graph)
    return {layer.name: a.out for layer, a in zip(found, simulate(found, x.numpy()))}


def test_types_are_the_files():
    network = from_nir(written(np.float32))
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    network(torch.rand(3, 1, 2)).logits.sum().backward()  # and it learns
    assert network.layers["a"].synapse.weight.grad is not None


def written(dtype=np.float64, neurons=None, **nodes):
    one = np.ones(3)
    neurons = neurons or nir.LIF(tau=4e-4 * one, r=one, v_leak=0 * one, v_threshold=one)
    made = {
        "input": nir.Input(np.array([2])),
        "a.synapse": nir.Affine(np.ones((3, 2), dtype), np.ones(3, dtype)),
        "a.neuron": neurons,
        "output": nir.Output(np.array([3])),
        **nodes,
    }
    names = ["input", "a.synapse", *(n for n in nodes if n not in made), "a.neuron", "output"]
    return nir.NIRGraph(made, list(zip(names, names[1:])))


def of(**changes):
    """Return neurons of a file with numbers of any size."""
    each = {k: np.asarray(v, dtype=np.float64) * np.ones(3) for k, v in changes.items()}
    kind = "IF" if "tau" not in each and "tau_mem" not in each else "LIF"
    if "tau_mem" in each:
        kind = "Cuba" + ("LIF" if "v_threshold" in each else "LI")
    elif "v_threshold" not in each:
        kind = "LI"
    return getattr(nir, kind)(**each)


LEAK = {"v_leak": 0.1, "r": [1.0, 2.5, 3.0]}
FIRE = {"v_threshold": [0.5, 1.0, 1.5], "v_reset": [0.0, 0.2, -0.2]}
FOREIGN = {
    "LIF": of(tau=[3e-4, 2e-3, 1e-4], **LEAK, **FIRE),
    "IF": of(r=[0.1, 0.2, 0.3], **FIRE),
    "CubaLIF": of(tau_mem=7e-4, tau_syn=[3e-4, 1e-4, 1e-3], w_in=[0.5, 2.0, 3.0], **LEAK, **FIRE),
    "LI": of(tau=[3e-4, 2e-3, 1e-4], **LEAK),
    "LI at 0": of(tau=3e-4, v_leak=0.0, r=[1.0, 2.0, 0.5]),
    "CubaLI": of(tau_mem=7e-4, tau_syn=[3e-4, 1e-4, 1e-3], w_in=[0.5, 2.0, 3.0], **LEAK),
}


@pytest.mark.parametrize("case", FOREIGN)
@pytest.mark.parametrize("again", [False, True])
def test_numbers_that_we_would_not_write(lab, case, again):
    graph = written(neurons=FOREIGN[case])
    if again:
        graph.nodes["onto"] = nir.Affine(
            0.3 * lab.draw(1, 3, 3).numpy(), np.array([0.1, -0.2, 0.3])
        )
        graph.edges += [("a.neuron", "onto"), ("onto", "a.neuron")]
    x = lab.draw(2, 80, 2, 2)
    steps = from_nir(graph)(x).steps.detach().numpy()
    np.testing.assert_allclose(steps, reference(graph, x)["a"], rtol=1e-12, atol=1e-12)
    assert 0.01 < abs(steps).mean() < 9


POOLS = {
    "average": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
    "sum": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
    "whole": nir.SumPool2d(np.array([4, 6]), np.array([1, 1]), np.array([0, 0])),
    "one number": nir.AvgPool2d(2, 2, 0),
}


def pooled(pool, kernel=(1, 1)):
    weight = np.linspace(-1, 1, 3 * 2 * kernel[0] * kernel[1]).reshape(3, 2, *kernel)
    nodes = {
        "in": nir.Input(np.array([2, 4, 6])),
        "pool": pool,
        "0": nir.Conv2d(None, weight, 1, 0, 1, 1, np.zeros(3)),
        "out": nir.Output(np.array([3, 1, 1])),
    }
    edges = [("in", "pool"), ("pool", "0"), ("0", "out")]
    return nir.NIRGraph(nodes, edges, type_check=False)


@pytest.mark.parametrize("case", POOLS)
def test_pools(lab, case):
    graph, x = pooled(POOLS[case]), lab.draw(3, 5, 2, 2, 4, 6)
    network = from_nir(graph, decoder=MeanDecoder())
    assert list(network.layers) == ["layer0"]
    out = network.layers["layer0"].before["stage1"]
    assert isinstance(out, AvgPool2d) and isinstance(network.layers["layer0"].synapse, Conv2d)
    found = run_currents(network, x)
    np.testing.assert_allclose(found, reference(graph, x)["0"], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def run_currents(network, x):
    """Return the last layer's currents, maps too."""
    layer = network.layers["layer0"]
    h = layer.before["stage1"](x, "", None)
    return torch.stack([nn.functional.conv2d(row, layer.synapse.weight) for row in h]).numpy()


REFUSED = {
    "overlap": (
        pooled(nir.AvgPool2d(np.array([2, 2]), np.array([1, 1]), np.array([0, 0]))),
        r"'0\.pool' \(AvgPool2d\): kernel_size=\[2, 2\], stride=\[1, 1\].*lie side by side",
    ),
    "oblong": (
        pooled(nir.SumPool2d(np.array([2, 3]), np.array([2, 3]), np.array([0, 0]))),
        "windows here are square",
    ),
    "padded": (
        pooled(nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1]))),
        r"padding=\[1, 1\]",
    ),
    "kernel": (pooled(POOLS["average"], (1, 2)), r"'0' \(Conv2d\): its kernel is 1 by 2; use a"),
    "threshold": (
        written(**{"a.neuron": nir.Threshold(np.ones(3))}),
        "'a.neuron' is a Threshold",
    ),
    "fast": (written(neurons=FOREIGN["LIF"]), r"'a\.neuron': tau is 0\.0001 to 0\.002 s with dt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_networks_here_have_not(case):
    graph, message = REFUSED[case]
    with pytest.raises(InteropError, match=message) as caught:
        from_nir(graph, dt=1e-3 if case == "fast" else None)
    assert "\n" not in str(caught.value)


def test_gains_inside_a_channel_are_refused():
    nodes = {
        "input": nir.Input(np.array([1, 2, 2])),
        "c": nir.Conv2d((2, 2), np.ones((1, 1, 1, 1)), 1, 0, 1, 1, np.zeros(1)),
        "n": nir.IF(r=np.arange(1.0, 5).reshape(1, 2, 2), v_threshold=np.ones((1, 2, 2))),
        "output": nir.Output(np.array([1, 2, 2])),
    }
    graph = nir.NIRGraph(nodes, [("input", "c"), ("c", "n"), ("n", "output")])
    with pytest.raises(InteropError, match=r"'c\.neuron'.*: r differs between the places"):
        from_nir(graph)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "median"}, "decoder 'median'.*allowed: first_spike, last"),
        ({"name": "max", "units": 2}, "decoder 'max' with 2 units"),
        ({"name": "leaky", "kappa": 2.0}, "decoder.leaky.kappa: got 2.0"),
        ({"name": "sum", "tau": 2.0}, "unknown key decoder.sum.tau"),
    ],
)
def test_a_decoder_that_is_none_is_refused(table, message):
    graph = written()
    Meta(decoder=table).attach(graph)
    with pytest.raises(InteropError, match=f"metadata: {message}.*pass decoder") as caught:
        from_nir(graph)
    assert "\n" not in str(caught.value)
    assert type(from_nir(graph, decoder=SumDecoder()).decoder) is SumDecoder


def test_decoders_of_files():
    graph = written()
    assert type(from_nir(graph).decoder) is MeanDecoder
    Meta(decoder={"name": "first_spike", "xi": 3.0}).attach(graph)
    assert from_nir(graph).decoder == FirstSpikeDecoder(xi=3.0)


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.nir").write_text("no file")
    with pytest.raises(InteropError, match="no NIR file, or cut short"):
        from_nir(tmp_path / "a.nir")
    with pytest.raises(FileNotFoundError, match="no file"):
        from_nir(tmp_path / "b.nir")
