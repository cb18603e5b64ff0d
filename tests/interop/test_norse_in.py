"""Norse networks against their imports: spikes of all layers, outputs and gradients."""

import warnings

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from spikecl.encoding.decoders import LastDecoder
from spikecl.errors import InteropError
from spikecl.interop import from_norse
from spikecl.networks import NoAutapses
from spikecl.neurons import (
    CUBA,
    IF,
    LIF,
    FastSigmoid,
    LeakyIntegrator,
    Reset,
    SynapticIntegrator,
    Triangle,
)

with warnings.catch_warnings():
    warnings.filterwarnings(
        "ignore", message=".torch.jit.script. is deprecated", category=DeprecationWarning
    )
    import norse.torch as norse

quick = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)


def exact(value):
    return torch.tensor(value, dtype=torch.float64)


def lif(**options):
    values = {"tau_syn_inv": 230.0, "tau_mem_inv": 130.0, "v_leak": -0.25, "v_th": 0.9}
    return norse.LIFParameters(**{k: exact(v) for k, v in values.items()}, **options)


def box(**options):
    values = {"tau_mem_inv": 130.0, "v_leak": -0.25, "v_th": 0.9, "v_reset": -0.4}
    return norse.LIFBoxParameters(**{k: exact(v) for k, v in values.items()}, **options)


IAF = norse.IAFParameters(exact(0.8), exact(-0.25))
LI = norse.LIParameters(exact(210.0), exact(90.0), exact(0.25))


@st.composite
def neurons(draw, n, *, cells):
    """Return modules with neurons for n inputs, of any kind with any parameters."""

    def value(low, high, vector=True):
        numbers = st.sampled_from([low + (high - low) * k / 7 for k in range(8)])
        if vector and draw(st.booleans()):
            return exact([draw(numbers) for _ in range(n)])
        return exact(draw(numbers))

    dt = draw(st.sampled_from([1e-3, 5e-4]))
    method, alpha = draw(st.sampled_from([("super", 100.0), ("triangle", 0.5), ("tanh", 2.0)]))
    kinds = ["LIF", "LIFRecurrent", "IAF", "LI"] + ["LIFBox", "LIBox", "LILinear"] * cells
    kind = draw(st.sampled_from(kinds))
    same = {"v_leak": exact(draw(st.sampled_from([0.0, -0.25, 0.125])))}  # states are float32
    same |= {"tau_mem_inv": value(40.0, 1000.0)}
    if "Box" not in kind:
        same["tau_syn_inv"] = value(40.0, 1000.0)
    fires = {"v_th": value(0.4, 1.5), "v_reset": value(-0.5, 0.2), "method": method}
    fires["alpha"] = alpha
    make = getattr(norse, kind + "Cell" * cells)
    if kind == "IAF":
        return make(norse.IAFParameters(**fires | {"v_reset": value(-0.5, 0.5, cells)}), dt)
    if kind == "LIBox":
        return make(norse.LIBoxParameters(**same), dt=dt)
    if kind == "LI":
        return make(norse.LIParameters(**same), dt=dt)
    if kind == "LILinear":
        return make(n, n, norse.LIParameters(**same), dt=dt)
    if kind == "LIFBox":
        reset = draw(st.sampled_from([norse.reset_value, norse.reset_subtract]))
        return make(norse.LIFBoxParameters(**same, **fires, reset_method=reset), dt=dt)
    p = norse.LIFParameters(**same, **fires)
    if kind == "LIFRecurrent":
        return make(n, n, p, autapses=draw(st.booleans()), dt=dt)
    return make(p, dt=dt)


@st.composite
def chains(draw):
    cells, modules = draw(st.booleans()), []
    sizes = [draw(st.integers(2, 6)) for _ in range(draw(st.integers(2, 4)))]
    for n, m in zip(sizes, sizes[1:]):
        modules += [nn.Linear(n, m, bias=draw(st.booleans())), draw(neurons(m, cells=cells))]
    return [*modules, nn.Linear(sizes[-1], 3)]


@quick
@given(modules=chains(), seed=st.integers(0, 2**20))
def test_random_networks(lab, modules, seed):
    x = 0.5 + lab.draw(seed, lab.STEPS, lab.BATCH, modules[0].in_features)
    assume(lab.prepare(lab.NORSE, modules, x, seed))
    lab.compare(lab.NORSE, modules, from_norse(modules), x)


CELLS = {
    "LIFCell": lambda: [norse.LIFCell(lif())],
    "LIFRecurrentCell": lambda: [norse.LIFRecurrentCell(8, 8, lif())],
    "with autapses": lambda: [norse.LIFRecurrentCell(8, 8, lif(), autapses=True)],
    "LIFBoxCell": lambda: [norse.LIFBoxCell(box())],
    "lowered": lambda: [norse.LIFBoxCell(box(reset_method=norse.reset_subtract))],
    "IAFCell": lambda: [norse.IAFCell(IAF)],
    "LICell": lambda: [norse.LIFCell(lif()), nn.Linear(8, 8), norse.LICell(LI)],
    "LILinearCell": lambda: [norse.LIFCell(lif()), norse.LILinearCell(8, 8, LI)],
    "LIF": lambda: [norse.LIF(lif())],
    "LIFRecurrent": lambda: [norse.LIFRecurrent(8, 8, lif())],
    "IAF": lambda: [norse.IAF(IAF)],
    "LI": lambda: [norse.LIF(lif()), nn.Linear(8, 8), norse.LI(LI)],
}


@pytest.mark.parametrize("name", CELLS)
def test_every_neuron(lab, name):
    modules = [nn.Linear(6, 8), *CELLS[name](), nn.Linear(8, 3, bias=False)]
    x = 0.5 + lab.draw(1, lab.STEPS, lab.BATCH, 6)
    assert lab.prepare(lab.NORSE, modules, x, 2)
    lab.compare(lab.NORSE, modules, from_norse(modules), x)


def convolutional(lift, flat, over_time):
    one, other = (norse.LIF, norse.LI) if over_time else (norse.LIFCell, norse.LICell)
    return [
        lift(nn.Conv2d(2, 3, 3)),
        lift(nn.MaxPool2d(2)),
        one(lif()),
        lift(nn.Conv2d(3, 4, 2)),
        one(lif(method="tanh", alpha=2.0)),
        lift(nn.AvgPool2d(2)),
        nn.Flatten(flat),
        nn.Linear(4, 3),
        other(LI),
    ]


@pytest.mark.parametrize("over_time", [False, True])
def test_convolutional_networks(lab, over_time):
    modules = convolutional(norse.Lift if over_time else lambda m: m, 1 + over_time, over_time)
    x = 0.3 + lab.draw(3, lab.STEPS, lab.BATCH, 2, 8, 8)
    assert lab.prepare(lab.NORSE, modules, x, 4, steps=30)
    lab.compare(lab.NORSE, modules, from_norse(norse.SequentialState(*modules)), x)


def test_a_lifted_block(lab):
    block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2))
    modules = [norse.Lift(block), norse.LIF(lif())]
    with torch.no_grad():
        for i, tensor in enumerate(block.double().parameters()):
            tensor.copy_(lab.draw(i, *tensor.shape) / 4)
    x = lab.draw(5, lab.STEPS, lab.BATCH, 1, 6, 6)
    net = from_norse(modules)
    expected = lab.NORSE.run(modules, x)[-1].detach()
    assert 0.02 < float(expected.mean()) < 0.7
    assert torch.equal(net(x).steps.detach(), expected)


@pytest.mark.parametrize("period", [0.0, 1.0, 2.5, 5.0])
@pytest.mark.parametrize("recurrent", [False, True])
def test_refractory_neurons_have_the_same_spikes(lab, recurrent, period):
    p = norse.LIFRefracParameters(lif(), exact(period))
    kinds = norse.LIFRefracCell, norse.LIFRefracRecurrentCell
    modules = [nn.Linear(6, 8), kinds[1](8, 8, p) if recurrent else kinds[0](p)]
    x = 1 + lab.draw(6, lab.STEPS, lab.BATCH, 6)
    assert lab.prepare(lab.NORSE, modules, x, 7)
    with pytest.raises(InteropError, match=r"counter of refractory steps.*spikes_only=True"):
        from_norse(modules)
    expected = lab.NORSE.run(modules, x)[-1].detach()
    net = from_norse(modules, spikes_only=True)
    assert torch.equal(net(x).steps.detach(), expected)
    assert expected.any()


def test_what_a_network_becomes():
    p = norse.LIFParameters(method="triangle", alpha=exact(0.5))
    modules = {
        "in": nn.Linear(4, 3),
        "lif": norse.LIFCell(p),
        "loop": norse.LIFRecurrentCell(3, 2),
        "fc": nn.Linear(2, 2),
        "box": norse.LIFBoxCell(),
        "fc2": nn.Linear(2, 2),
        "iaf": norse.IAFCell(norse.IAFParameters(v_reset=exact(-0.5))),
        "out": nn.Linear(2, 2),
        "li": norse.LICell(),
        "out2": nn.Linear(2, 1),
        "last": norse.LIBoxCell(),
    }
    net = from_norse(modules, decoder=LastDecoder())
    assert list(net.layers) == ["in", "loop", "fc", "fc2", "out", "out2"]
    first, loop, direct, counter, current, last = (
        layer.neuron.neuron for layer in net.layers.values()
    )
    assert type(first) is CUBA
    assert (first.beta, first.alpha) == pytest.approx((0.9, 0.8))
    assert (first.reset, first.reset_time, first.detach_reset) == (Reset.VALUE, "same", False)
    assert first.surrogate == Triangle(height=0.5, width=1.0)
    assert loop.detach_reset
    assert loop.surrogate == FastSigmoid(slope=1.0)  # alpha=100 is ignored by Norse 1.1.0
    assert net.layers["loop"].recurrent.maps == (NoAutapses(),)
    assert type(direct) is LIF and direct.scale_input
    assert type(counter) is IF and counter.v_rest == counter.v_reset == -0.5
    assert type(current) is SynapticIntegrator
    assert last == LeakyIntegrator(kappa=last.kappa, scale_input=True)
    x = torch.ones(7, 2, 4)
    assert torch.equal(net(x).logits, net(x).steps[-1])


def test_nothing_is_shared():
    loop = norse.LIFRecurrentCell(4, 3)
    net = from_norse([loop])
    before = net(torch.ones(9, 1, 4)).steps
    with torch.no_grad():
        for tensor in (*loop.parameters(), loop.p.v_th):
            tensor.add_(7)
    loop.p.v_th.sub_(7)  # the default of every LIFParameters()
    assert torch.equal(net(torch.ones(9, 1, 4)).steps, before)
    assert net.layers["layer0"].synapse.weight.requires_grad
    plain = norse.LIFRecurrentCell(4, 3, input_weights=torch.ones(3, 4))
    assert not from_norse([plain]).layers["layer0"].synapse.weight.requires_grad


def over(cell):
    return [nn.Linear(4, 3), cell]


def diagonal():
    cell = norse.LIFRecurrentCell(4, 3)
    with torch.no_grad():
        cell.recurrent_weights.fill_diagonal_(0.5)
    return [cell]


REFUSED = {
    "LSNN": (over(norse.LSNNCell()), r"LSNNCell\): its threshold decays to v_th from 0"),
    "LSNN with time": ([norse.LSNNRecurrent(4, 3)], "one step late"),
    "AdEx": (over(norse.LIFAdExCell()), "upswing is not cut off"),
    "Ex": (over(norse.LIFExCell()), "exponential upswing"),
    "Izhikevich": (over(norse.IzhikevichCell(norse.tonic_spiking)), "recovery sees the old"),
    "Coba": ([norse.CobaLIFCell(4, 3)], "sign of the summed input"),
    "loop": ([norse.RecurrentSequential(nn.Linear(4, 4))], "goes back to its input"),
    "encoder": ([norse.PoissonEncoder(5)], "PoissonEncoder.*: has no counterpart here"),
    "large steps": (over(norse.LIFCell(dt=0.02)), r"dt tau_mem_inv = 2: the state changes sign"),
    "cells among layers": (
        [*over(norse.LIF()), nn.Linear(3, 3), norse.LIFBoxCell()],
        r"'3' \(LIFBoxCell\): takes one step, '1' takes all",
    ),
    "lifted cell": ([norse.Lift(norse.LIFBoxCell())], "hands its state on"),
    "lifted code": ([norse.Lift(nn.Tanh())], r"'0' \(Tanh\): has no counterpart"),
    "diagonal": (diagonal(), "the diagonal of its recurrent weights is not zero"),
    "reset method": (over(norse.LIFBoxCell(box(reset_method=max))), "reset_method is not known"),
    "periods": (
        over(norse.LIFRefracCell(norse.LIFRefracParameters(lif(), exact([1.0, 2.0, 3.0])))),
        "rho_reset differs",
    ),
}


@pytest.mark.parametrize("spikes_only", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_what_differs_is_refused(case, spikes_only):
    net, message = REFUSED[case]
    with pytest.raises(InteropError, match=message):
        from_norse(net, spikes_only=spikes_only)


GRADIENTS = {
    "heaviside": (lif(method="heaviside"), "derivative of method 'heaviside', alpha=100"),
    "circ": (lif(method="circ", alpha=exact(0.5)), r"derivative of method 'circ', alpha=0\.5"),
    "adjoint": (lif(method="adjoint"), "gradients at spikes alone"),
    "learns": (lif()._replace(v_th=nn.Parameter(exact(0.9))), "v_th learns"),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_other_gradients_are_refused_unless_spikes_are_enough(lab, case):
    p, message = GRADIENTS[case]
    modules = [nn.Linear(4, 3), norse.LIFCell(p)]
    with pytest.raises(InteropError, match=f"{message}.*spikes_only=True"):
        from_norse(modules)
    modules[1] = norse.LIFCell(p._replace(method="super"))  # the adjoint one cannot run here
    x = 1 + lab.draw(9, lab.STEPS, 1, 4)
    assert lab.prepare(lab.NORSE, modules, x)
    expected = lab.NORSE.run(modules, x)[-1].detach()
    modules[1] = norse.LIFCell(p)
    assert torch.equal(from_norse(modules, spikes_only=True)(x).steps.detach(), expected)
