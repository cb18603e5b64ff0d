"""Files of snnTorch and Norse run here with their spikes; what their writers forget is shown."""

import nir
import numpy as np
import pytest
import snntorch
import torch
from snntorch.export_nir import export_to_nir
from torch import nn

from spikecl.errors import InteropError
from spikecl.interop import first_difference, from_nir

norse = pytest.importorskip("norse.torch")
pytestmark = pytest.mark.filterwarnings("ignore:nirtorch.*deprecated:DeprecationWarning")
ZERO = {"reset_mechanism": "zero", "init_hidden": True}


def full(n, value):
    return torch.full((n,), value)


def louder(net, scale):
    """Return the modules with weights drawn anew, so large that neurons fire."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (p for p in net.parameters() if p.dim() > 1):
        fan_in = tensor[0].numel()
        tensor.data = scale * torch.randn(tensor.shape, generator=generator) / fan_in**0.5
    return net


def same(ours, theirs):
    theirs = theirs.detach()
    assert 0.01 < float(theirs.mean()) < 0.9
    assert first_difference(ours, theirs) is None


def leaky(n, **options):
    return snntorch.Leaky(beta=full(n, 0.8), threshold=full(n, 1.0), **{**ZERO, **options})


@pytest.mark.parametrize("delay", [False, True])
def test_snntorch(lab, delay, tmp_path):
    both = {"alpha": full(6, 0.7), "beta": full(6, 0.6), "threshold": full(6, 0.5)}
    second = snntorch.Synaptic(**both, reset_delay=False, **ZERO)
    net = louder(nn.Sequential(nn.Linear(5, 8), leaky(8), nn.Linear(8, 6, bias=False), second), 2)
    net[1].reset_delay = delay
    net = nn.Sequential(net[0], leaky(8, reset_delay=delay), *net[2:])
    x = lab.draw(1, 100, 2, 5).float()
    spikes = lab.SNNTORCH.run(list(net), x)
    nir.write(tmp_path / "s.nir", export_to_nir(net, torch.rand(5)))
    network = from_nir(tmp_path / "s.nir")
    assert list(network.layers) == ["layer0", "layer2"]
    same(network.record(x)["layer0"]["spikes"], spikes[1])
    same(network(x).steps, spikes[3])


def test_snntorch_recurrence(lab, tmp_path):
    """Its recurrent synapse has a bias, which is there at the first step too."""
    options = {"beta": full(8, 0.8), "threshold": full(8, 1.0), "linear_features": 8}
    neurons = snntorch.RLeaky(**options, reset_delay=False, **ZERO)
    net = louder(nn.Sequential(nn.Linear(5, 8), neurons, nn.Linear(8, 3)), 2)
    neurons.recurrent.bias.data.fill_(0.6)
    x = lab.draw(1, 100, 2, 5).float()
    found = lab.SNNTORCH.run(list(net), x)
    nir.write(tmp_path / "s.nir", export_to_nir(net, torch.rand(5)))
    network = from_nir(tmp_path / "s.nir")
    same(network.record(x)["layer0"]["spikes"], found[1])
    torch.testing.assert_close(network(x).steps, found[2], rtol=1e-5, atol=1e-5)


def test_snntorch_maps(lab, tmp_path):
    shape = (2, 6, 6)
    neurons = snntorch.Leaky(beta=torch.full(shape, 0.8), threshold=torch.full(shape, 1.0), **ZERO)
    head = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 3), leaky(3)]
    net = louder(nn.Sequential(nn.Conv2d(1, 2, 3), neurons, *head), 3)
    x = lab.draw(1, 100, 2, 1, 8, 8).float()
    spikes = lab.SNNTORCH.run(list(net), x)
    graph = export_to_nir(net, torch.rand(1, 1, 8, 8), ignore_dims=[0])
    nir.write(tmp_path / "s.nir", graph)
    network = from_nir(tmp_path / "s.nir")
    same(network.record(x)["layer0"]["spikes"], spikes[1])
    same(network(x).steps, spikes[-1])


def test_snntorch_forgets_a_reset_by_subtraction(lab):
    net = louder(nn.Sequential(nn.Linear(5, 8), leaky(8, reset_mechanism="subtract")), 2)
    x = lab.draw(1, 100, 2, 5).float()
    spikes = lab.SNNTORCH.run(list(net), x)[-1].detach()
    graph = export_to_nir(net, torch.rand(5))
    assert (graph.nodes["1"].v_reset == 0).all()
    assert first_difference(from_nir(graph)(x).steps, spikes) is not None


def test_a_batch_axis_in_the_file(lab):
    net = louder(nn.Sequential(nn.Linear(5, 8), norse.LIFBoxCell()), 3)
    graph = norse.to_nir(net, torch.rand(1, 5), dt=1.0)
    assert tuple(graph.nodes["input"].input_type["input"]) == (1, 5)
    assert from_nir(graph, dt=1e-3)(torch.ones(3, 2, 5)).steps.shape == (3, 2, 8)


def cells(*neurons):
    return louder(norse.SequentialState(nn.Linear(5, 8), *neurons), 4)


def parameters(kind, **values):
    return kind(**{name: torch.as_tensor(value) for name, value in values.items()})


BOX = parameters(norse.LIFBoxParameters, tau_mem_inv=250.0, v_th=0.7)
NORSE = {
    "LIFBox": cells(norse.LIFBoxCell(BOX)),
    "IAF": cells(norse.IAFCell()),
    "two layers": cells(norse.LIFBoxCell(BOX), nn.Linear(8, 4), norse.IAFCell()),
}


@pytest.mark.parametrize("case", NORSE)
def test_norse(lab, case):
    """With dt=1 its writer gives seconds; else tau is dt times too short."""
    net, x = NORSE[case], 0.5 + lab.draw(1, 100, 2, 5).float()
    spikes = lab.NORSE.run(list(net), x)[-1]
    same(from_nir(norse.to_nir(net, torch.rand(1, 5), dt=1.0), dt=1e-3)(x).steps, spikes)
    same(from_nir(norse.to_nir(net, torch.rand(1, 5)), dt=1e-6)(x).steps, spikes)
    if case != "IAF":
        with pytest.raises(InteropError, match="tau is .* with dt=0.001 s; at least dt"):
            from_nir(norse.to_nir(net, torch.rand(1, 5)), dt=1e-3)


def test_norse_integrator(lab):
    net, x = cells(norse.LIFBoxCell(BOX), nn.Linear(8, 4), norse.LIBoxCell()), lab.draw(1, 50, 2, 5)
    network = from_nir(norse.to_nir(net, torch.rand(1, 5), dt=1.0), dt=1e-3)
    theirs = lab.NORSE.run(list(net), x.float())[-1]
    torch.testing.assert_close(network(x.float()).steps, theirs, rtol=1e-4, atol=1e-5)


def test_norse_forgets_the_gain_of_a_current(lab):
    """Its LIFCell adds its input to the current, CubaLIF multiplies by dt / tau_syn."""
    net, x = cells(norse.LIFCell()), 1 + lab.draw(1, 200, 2, 5).float()
    spikes = lab.NORSE.run(list(net), x)[-1].detach()
    graph = norse.to_nir(net, torch.rand(1, 5), dt=1.0)
    assert first_difference(from_nir(graph, dt=1e-3)(x).steps, spikes) is not None
    graph.nodes["1"].w_in = graph.nodes["1"].tau_syn / 1e-3
    same(from_nir(graph, dt=1e-3)(x).steps, spikes)


def test_norse_forgets_the_value_of_a_reset(lab):
    p = parameters(norse.LIFBoxParameters, v_reset=-0.7)
    graph = norse.to_nir(cells(norse.LIFBoxCell(p)), torch.rand(1, 5), dt=1.0)
    assert np.all(graph.nodes["1"].v_reset == 0)


def test_norse_leaves_out_what_it_does_not_know(lab):
    net = norse.SequentialState(nn.Linear(5, 8), norse.LIFRefracCell(), nn.Linear(8, 2))
    with pytest.raises(InteropError, match="'1' is a NoneType; allowed: Linear"):
        from_nir(norse.to_nir(net, torch.rand(1, 5), dt=1.0))
