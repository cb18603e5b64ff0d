"""Our files in snnTorch, Norse and NIRTorch: the same spikes, and where there are others."""

import nir
import nirtorch
import numpy as np
import pytest
import snntorch
import torch
from snntorch.import_nir import import_from_nir
from torch import nn

from spikecl.interop import first_difference, to_nir
from spikecl.networks import Cells, Layer, Linear, Network, SpikingConvNet, initialise
from spikecl.neurons import CUBA, IF, LIF, LeakyIntegrator, Reset
from spikecl.seeds import Seeds

norse = pytest.importorskip("norse.torch")
pytestmark = pytest.mark.filterwarnings("ignore:nirtorch.*deprecated:DeprecationWarning")
ZERO = {"reset": Reset.ZERO}


def snn_torch(graph, dtype=torch.float32):
    return import_from_nir(graph).to(dtype)


def norse_cells(graph, dtype=torch.float32):
    return norse.from_nir(graph, ignore_warnings=True, dt=1e-4).to(dtype)


class Cell(nn.Module):
    """What a user of NIRTorch writes: a node's equation."""

    def __init__(self, node):
        super().__init__()
        values = {k: torch.as_tensor(v) for k, v in vars(node).items() if np.ndim(v)}
        self.p = nn.ParameterDict({k: nn.Parameter(v) for k, v in values.items()})
        self.kind = type(node)

    def forward(self, x, state=None):
        p, dt = self.p, 1e-4
        i, v = (torch.zeros_like(x), torch.zeros_like(x)) if state is None else state
        if self.kind is nir.CubaLIF:
            i = i + dt / p["tau_syn"] * (p["w_in"] * x - i)
        x, tau = (i, p["tau_mem"]) if self.kind is nir.CubaLIF else (x, p.get("tau", None))
        v = v + p["r"] * x if tau is None else v + dt / tau * (p["v_leak"] - v + p["r"] * x)
        spikes = (v > p["v_threshold"]).to(v.dtype)
        return spikes, (i, torch.where(spikes > 0, p["v_reset"], v))


def nir_torch(graph, dtype=torch.float32):
    cells = dict.fromkeys((nir.LIF, nir.CubaLIF, nir.IF), Cell)
    return nirtorch.nir_to_torch(graph, cells, dtype=dtype)


READERS = {"snnTorch": snn_torch, "Norse": norse_cells, "NIRTorch": nir_torch}


@torch.no_grad()
def spikes_of(module, x):
    """Return what a module of a reader gives, [T, B, n]."""
    state, found = None, []
    for step in x:
        out, state = module(step, state)
        found.append(out)
    return torch.stack(found)


def stack(*neurons, bias=False, sizes=(9, 12, 10, 5), recurrent=False):
    layers, source = {}, "input"
    for i, (neuron, n, m) in enumerate(zip(neurons, sizes, sizes[1:])):
        onto = Linear(m, m) if recurrent else None
        cells = Cells(neuron, learns=())
        layer = Layer(Linear(n, m, bias=bias), cells, inputs=(source,), recurrent=onto)
        layers[source := f"layer{i}"] = layer
    return Network(layers, mean_first=False)


def loud(lab, network, seed=0, dtype=torch.float32, shape=(9,), steps=30):
    """Return a network whose neurons fire, an input and the spikes of the last layer."""
    x = (0.5 + lab.draw(seed, steps, 4, *shape)).clamp(0)
    assert lab.prepare_ours(network, x, seed, low=0.1, high=0.6, steps=30)
    network, x = network.to(dtype), x.to(dtype)
    out = network(x).steps.detach()
    assert 0.02 < float(out.mean()) < 0.9
    return network, x, out


def saved(network, tmp_path, shape=(9,)):
    nir.write(tmp_path / "net.nir", to_nir(network, shape))
    return nir.read(tmp_path / "net.nir")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.75, 0.9, 0.97])
def test_lif(lab, reader, beta, tmp_path):
    for seed, scaled in enumerate((False, True, False, True)):
        neurons = [LIF(beta=beta, v_th=v, scale_input=scaled, **ZERO) for v in (1.0, 0.7, 0.4)]
        network, x, spikes = loud(lab, stack(*neurons), seed)
        theirs = spikes_of(READERS[reader](saved(network, tmp_path)), x)
        assert theirs.dtype == torch.float32
        assert first_difference(spikes, theirs) is None


@pytest.mark.parametrize("reader", ["snnTorch", "Norse"])
def test_a_bias(lab, reader, tmp_path):
    neurons = [LIF(beta=b, **ZERO) for b in (0.5, 0.8)]
    network, x, spikes = loud(lab, stack(*neurons, bias=True), 7)
    assert network.layers["layer0"].synapse.bias.any()
    theirs = spikes_of(READERS[reader](saved(network, tmp_path)), x)
    assert first_difference(spikes, theirs) is None


@pytest.mark.parametrize("reader", READERS)
def test_cuba(lab, reader, tmp_path):
    for seed, (alpha, beta) in enumerate([(0.5, 0.75), (0.8, 0.9), (0.0, 0.6)]):
        network, x, spikes = loud(lab, stack(*[CUBA(alpha=alpha, beta=beta, **ZERO)] * 2), seed)
        theirs = spikes_of(READERS[reader](saved(network, tmp_path)), x)
        assert first_difference(spikes, theirs) is None


@pytest.mark.parametrize("reader", ["Norse", "NIRTorch"])
@pytest.mark.parametrize(
    "neuron",
    [LIF(beta=0.75, **ZERO), LIF(beta=0.9, scale_input=True, **ZERO), CUBA(**ZERO), IF(**ZERO)],
    ids=["LIF", "scaled", "CUBA", "IF"],
)
def test_recurrent_layers(lab, reader, neuron, tmp_path):
    for last in (False, True):  # Norse's executor answers with the node it came to last
        sizes = (9, 12) if last else (9, 12, 10)
        network = stack(*[neuron] * (len(sizes) - 1), sizes=sizes, recurrent=True)
        network, x, spikes = loud(lab, network, 3)
        theirs = spikes_of(READERS[reader](saved(network, tmp_path)), x)
        assert first_difference(spikes, theirs) is None


@pytest.mark.parametrize("reader", ["Norse", "NIRTorch"])
def test_if(lab, reader, tmp_path):
    network, x, spikes = loud(lab, stack(IF(v_th=0.7, **ZERO), IF(**ZERO)), 2)
    theirs = spikes_of(READERS[reader](saved(network, tmp_path)), x)
    assert first_difference(spikes, theirs) is None


@pytest.mark.parametrize("reader", ["Norse", "NIRTorch"])
def test_a_value_for_each_neuron(lab, reader, tmp_path):
    each = torch.linspace(0.2, 0.9, 12)
    network, x, spikes = loud(lab, stack(LIF(beta=each, v_th=each, **ZERO)), 5)
    theirs = spikes_of(READERS[reader](saved(network, tmp_path)), x)
    assert first_difference(spikes, theirs) is None


@pytest.mark.parametrize("reader", ["snnTorch", "NIRTorch"])
def test_maps_without_a_batch(lab, reader, tmp_path):
    """A file's Flatten starts at 0, where the readers' batch is: they take one sample."""
    spec = SpikingConvNet(
        channels=(3, 4), kernel=3, pool="average", neuron=LIF(**ZERO), output=LIF(**ZERO)
    )
    network, x, spikes = loud(lab, spec.build((12, 12), 5), 1, shape=(12, 12))
    module = READERS[reader](saved(network, tmp_path, (12, 12)))
    theirs = spikes_of(module, x[:, 0, None])
    assert first_difference(spikes[:, 0], theirs) is None
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        spikes_of(READERS[reader](saved(network, tmp_path, (12, 12))), x[:, :, None])


# traps: what the readers make of correct files


def test_norse_has_no_average_pooling(tmp_path):
    network = SpikingConvNet(channels=(3,), kernel=3, pool="average", neuron=LIF(**ZERO))
    graph = saved(network.build((8, 8), 5), tmp_path, (8, 8))
    names = {name for name, _ in norse_cells(graph).named_children()}
    assert names == {key.replace(".", "_") for key in graph.nodes} - {"readout_pool"}


def test_norse_steps_by_another_dt_unless_told(lab, tmp_path):
    network, x, spikes = loud(lab, stack(LIF(beta=0.97, **ZERO)), 5)
    module = norse.from_nir(saved(network, tmp_path), ignore_warnings=True)
    assert first_difference(spikes, spikes_of(module, x)) is not None


def test_norse_resets_to_zero_always(lab, tmp_path):
    network = stack(LIF(beta=0.9, v_reset=-0.7, reset=Reset.VALUE))
    network, x, spikes = loud(lab, network, 5)
    theirs = spikes_of(norse_cells(saved(network, tmp_path)), x)
    assert first_difference(spikes, theirs) is not None
    network.layers["layer0"].neuron = Cells(LIF(beta=0.9, **ZERO))
    again = network.record(x)["layer0"]["spikes"]
    assert first_difference(again, theirs) is None


def test_snntorch_reads_if_as_a_leaky_neuron_that_is_lowered(lab, tmp_path):
    network, x, spikes = loud(lab, stack(IF(v_th=0.7, **ZERO)), 2)
    module = snn_torch(saved(network, tmp_path))
    read = module.layer0_neuron
    assert (type(read), read.reset_mechanism, read.reset_delay) == (
        snntorch.Leaky,
        "subtract",
        False,
    )
    assert float(read.beta) == pytest.approx(0.9)
    found = [module(step)[0] for step in x]
    assert all(type(each) is tuple for each in found)  # its membrane, too: no layer can follow
    assert first_difference(spikes, torch.stack([each[0] for each in found])) is not None


def test_snntorch_sends_the_input_through_recurrent_weights(lab, tmp_path):
    network, x, spikes = loud(lab, stack(LIF(beta=0.75, **ZERO), recurrent=True), 3)
    graph = to_nir(network, (9,))
    inward, onto = (
        torch.as_tensor(graph.nodes[f"layer0.{k}"].weight) for k in ("synapse", "recurrent")
    )
    theirs = spikes_of(snn_torch(graph), x)
    assert first_difference(spikes, theirs) is not None
    s = v = torch.zeros(4, 12)
    for step, found in zip(x, theirs):
        v = 0.75 * v * (1 - s) + 0.25 * (step @ inward.T + s) @ onto.T
        s = (v > 1).float()
        assert torch.equal(s, found)


def test_snntorch_cannot_read_some_recurrent_files(lab, tmp_path):
    """Nodes come back in the order of their names; it fails where 'a.synapse' < 'input'."""
    network = Network({"a": stack(LIF(**ZERO), recurrent=True).layers["layer0"]})
    with pytest.raises(AttributeError, match="no attribute 'items'"):
        snn_torch(saved(network, tmp_path))


def test_snntorch_takes_one_threshold_for_neurons_that_leak_differently(lab, tmp_path):
    each = torch.linspace(0.2, 0.9, 12)
    network, x, spikes = loud(lab, stack(LIF(beta=each, **ZERO)), 5)
    module = snn_torch(saved(network, tmp_path))  # that of the slowest
    assert float(module.layer0_neuron.threshold) == pytest.approx(1 / (1 - 0.9), rel=1e-5)
    assert first_difference(spikes, spikes_of(module, x)) is not None


@pytest.mark.parametrize(
    ("neuron", "message"),
    [
        (LIF(v_th=torch.linspace(0.2, 0.9, 12), **ZERO), "v_threshold must be same"),
        (LIF(v_rest=0.1, **ZERO), "v_leak not supported"),
        (CUBA(scale_input=True, **ZERO), "r not supported in CubaLIF"),
    ],
)
def test_what_snntorch_refuses(neuron, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        snn_torch(saved(stack(neuron), tmp_path))


def test_snntorch_resets_to_zero_always(lab, tmp_path):
    network = stack(LIF(beta=0.9, v_reset=-0.7, reset=Reset.VALUE))
    network, x, spikes = loud(lab, network, 5)
    theirs = spikes_of(snn_torch(saved(network, tmp_path)), x)
    assert first_difference(spikes, theirs) is not None


def test_snntorch_and_norse_have_no_integrator(tmp_path):
    graph = saved(stack(LeakyIntegrator()), tmp_path)
    with pytest.raises(ValueError, match="Unknown node type.*LI"):
        snn_torch(graph)
    out = spikes_of(norse_cells(saved(stack(LeakyIntegrator()), tmp_path)), torch.ones(2, 1, 9))
    assert out.shape == (2, 1, 12)  # the current: the node is left out


def test_nirtorch_loses_a_bias(tmp_path):
    network = stack(LIF(**ZERO), bias=True)
    initialise(network, Seeds(0))
    network.layers["layer0"].synapse.bias.data.fill_(0.5)
    graph = saved(network, tmp_path)
    read = nir_torch(graph).layer0_synapse
    assert not np.allclose(read.bias.detach(), graph.nodes["layer0.synapse"].bias)
