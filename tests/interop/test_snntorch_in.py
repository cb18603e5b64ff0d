"""snnTorch networks against their imports: spikes of all layers, outputs and gradients."""

import pytest
import snntorch
import snntorch.surrogate as theirs
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from spikecl.encoding.decoders import SumDecoder
from spikecl.interop import SpikeGrad, from_snntorch
from spikecl.interop.snntorch_in import RULES
from spikecl.networks import AvgPool2d, BatchNorm, Dropout
from spikecl.neurons import CUBA, LIF, Arctan, FastSigmoid, Reset, Triangle

KINDS = {name: getattr(snntorch, name) for name in RULES}
quick = settings(
    max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
GRAD = SpikeGrad(Arctan())


@st.composite
def neurons(draw, n, surrogates):
    """Return a neuron for n inputs, any kind with any of its options."""
    kind = draw(st.sampled_from(sorted(RULES)))
    mechanism, delay = draw(st.sampled_from(sorted(RULES[kind])))
    options = {"reset_mechanism": mechanism, "spike_grad": draw(st.sampled_from(surrogates))}

    def value(low, high, extremes=()):
        numbers = st.sampled_from([*extremes, *(low + (high - low) * k / 7 for k in range(8))])
        if draw(st.booleans()):
            return torch.tensor([draw(numbers) for _ in range(n)], dtype=torch.float64)
        return torch.tensor(draw(numbers), dtype=torch.float64)

    options |= {"threshold": value(0.3, 1.5), "learn_threshold": draw(st.booleans())}
    if kind == "Lapicque":
        return snntorch.Lapicque(R=1, C=1 + float(value(0.2, 5.0).flatten()[0]), **options)
    options["reset_delay"] = delay
    if kind == "RSynaptic":
        del options["reset_delay"]
    learns = draw(st.booleans())
    options |= {"beta": value(0.2, 0.95, () if learns else (0.0, 1.0, 1.4)), "learn_beta": learns}
    if "Synaptic" in kind:
        options |= {"alpha": value(0.1, 0.9), "learn_alpha": draw(st.booleans())}
    if kind.startswith("R"):
        options["learn_recurrent"] = draw(st.booleans())
        if draw(st.booleans()):
            options["linear_features"] = n
        else:
            options |= {"all_to_all": False, "V": value(-0.5, 0.5)}
    return KINDS[kind](**options)


@st.composite
def chains(draw, surrogates):
    sizes = [draw(st.integers(2, 6)) for _ in range(draw(st.integers(2, 4)))]
    modules = []
    for n, m in zip(sizes, sizes[1:]):
        modules.append(nn.Linear(n, m, bias=draw(st.booleans())))
        modules[-1].weight.requires_grad_(draw(st.booleans()))
        if draw(st.booleans()):
            modules.append(nn.Identity())
        modules.append(draw(neurons(m, surrogates)))
    if draw(st.booleans()):
        modules += [nn.Dropout(0.4).eval(), nn.Linear(sizes[-1], 3)]
    return modules


@quick
@given(data=st.data(), seed=st.integers(0, 2**20))
def test_random_networks(lab, data, seed):
    surrogates = [
        lab.double(theirs.ATan, 2.0),
        lab.double(theirs.FastSigmoid, 5.0),
        lab.double(theirs.Sigmoid, 1.0),  # steeper ones overflow, see below
        SpikeGrad(Triangle(height=0.5, width=2.0)),
    ]
    modules = data.draw(chains(surrogates))
    assume(any(p.requires_grad for m in modules for p in m.parameters()))
    x = 0.5 + lab.draw(seed, lab.STEPS, lab.BATCH, modules[0].in_features)
    assume(lab.prepare(lab.SNNTORCH, modules, x, seed))
    lab.compare(lab.SNNTORCH, modules, from_snntorch(modules), x)


def every(kind, mechanism, delay, **options):
    options |= {"reset_mechanism": mechanism, "spike_grad": GRAD}
    if kind == "Lapicque":
        return snntorch.Lapicque(R=1, C=3.0, **options)
    if kind != "RSynaptic":
        options["reset_delay"] = delay
    if kind.startswith("R"):
        options["linear_features"] = 8
    first = (0.4,) if "Synaptic" in kind else ()
    return KINDS[kind](*first, 0.7, **options)


@pytest.mark.parametrize(
    ("kind", "mechanism", "delay"),
    [(kind, *option) for kind, rules in RULES.items() for option in rules],
)
def test_every_neuron_with_every_reset(lab, kind, mechanism, delay):
    modules = [nn.Linear(6, 8), every(kind, mechanism, delay), nn.Linear(8, 3, bias=False)]
    x = 0.5 + lab.draw(1, lab.STEPS, lab.BATCH, 6)
    assert lab.prepare(lab.SNNTORCH, modules, x, 2)
    lab.compare(lab.SNNTORCH, modules, from_snntorch(modules), x)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(
    "v", [-0.6, [0.4, -0.3, 0.2, -0.1, 0.5, 0.1, -0.4, 0.3]], ids=["one", "each"]
)
def test_neurons_that_listen_to_themselves_alone(lab, v, learns):
    neuron = snntorch.RLeaky(
        0.7,
        V=torch.tensor(v, dtype=torch.float64),
        all_to_all=False,
        learn_recurrent=learns,
        spike_grad=GRAD,
    )
    modules = [nn.Linear(6, 8), neuron, nn.Linear(8, 3, bias=False)]
    x = 0.5 + lab.draw(1, lab.STEPS, lab.BATCH, 6)
    assert lab.prepare(lab.SNNTORCH, modules, x, 2)
    lab.compare(lab.SNNTORCH, modules, from_snntorch(modules), x)


def pooled(norm):
    """Pooling of currents and of spikes, with normalised currents."""
    return [
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.MaxPool2d(2),
        snntorch.Leaky(0.8, spike_grad=GRAD, threshold=torch.full((4, 1, 1), 0.75)),
        nn.Conv2d(4, 3, 3, stride=2, padding=1, bias=False),
        norm,
        snntorch.Synaptic(0.3, 0.7, spike_grad=GRAD, learn_beta=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(3, 5),
        snntorch.Leaky(0.5, spike_grad=GRAD),
    ]


def flattened():
    """Neurons behind nn.Flatten, among them recurrent ones."""
    return [
        nn.MaxPool2d(2),
        nn.Conv2d(2, 2, 3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        snntorch.RLeaky(0.7, linear_features=2, spike_grad=GRAD),
        nn.Linear(2, 4),
        nn.ReLU(),
        nn.Linear(4, 3),
        snntorch.Lapicque(R=1, C=2.0, spike_grad=GRAD),
    ]


def normalising():
    norm = nn.BatchNorm2d(3, momentum=0.3, dtype=torch.float64)
    with torch.no_grad():
        for i, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            tensor.copy_(0.3 + torch.arange(3) / 7 + i / 9)
    return norm.eval()


CONVOLUTIONAL = {
    "pooled": lambda: pooled(normalising()),
    "without a norm": lambda: pooled(nn.Identity()),
    "flattened": flattened,
}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks(lab, name):
    modules = CONVOLUTIONAL[name]()
    x = 0.3 + lab.draw(3, lab.STEPS, lab.BATCH, 2, 8, 8)
    assert lab.prepare(lab.SNNTORCH, modules, x, 4, steps=30)
    lab.compare(lab.SNNTORCH, modules, from_snntorch(modules), x)


def test_networks_that_keep_their_state(lab):
    torch.manual_seed(0)
    modules = [nn.Linear(6, 8), snntorch.Leaky(0.8, init_hidden=True, spike_grad=GRAD)]
    modules += [
        nn.Linear(8, 4),
        snntorch.Leaky(0.9, init_hidden=True, output=True, spike_grad=GRAD),
    ]
    net = nn.Sequential(*modules).double()
    x = 2 * lab.draw(5, lab.STEPS, lab.BATCH, 6)
    expected = torch.stack([net(step)[0] for step in x]).detach()
    assert 0.02 < float(expected.mean()) < 0.7
    assert torch.equal(from_snntorch(net)(x).steps, expected)  # from rest, not from its state


def test_single_precision(lab):
    modules = [nn.Linear(6, 8), snntorch.Leaky(0.8), nn.Linear(8, 4), snntorch.Synaptic(0.3, 0.7)]
    x = (2 * lab.draw(6, 50, 1, 6)).float()
    with torch.no_grad():
        for module in (modules[0], modules[2]):
            module.weight.copy_(3 * lab.draw(7, *module.weight.shape))
        expected = lab.SNNTORCH.run(modules, x)[-1]
    out = from_snntorch(modules)(x).steps.detach()
    assert out.dtype == torch.float32
    assert 0.02 < float(expected.mean()) < 0.9
    assert float((out - expected).abs().mean()) < 0.02  # a membrane at its threshold may differ


def test_what_a_network_becomes():
    modules = {
        "fc1": nn.Linear(4, 3),
        "lif1": snntorch.Leaky(0.9, threshold=0.5, learn_threshold=True),
        "input": nn.Linear(3, 3),  # a name that networks use themselves
        "keys": nn.Linear(3, 2, bias=False),  # and one that dictionaries of modules have
        "last": snntorch.RSynaptic(
            0.4, 0.6, linear_features=2, spike_grad=theirs.fast_sigmoid(9), learn_recurrent=False
        ),
    }
    modules["fc1"].weight.requires_grad_(False)
    net = from_snntorch(modules, decoder=SumDecoder())
    assert list(net.layers) == ["fc1", "layerinput", "layerkeys"]
    first, middle, last = net.layers.values()
    assert first.neuron.neuron == LIF(
        beta=float(torch.tensor(0.9)), v_th=0.5, reset_time="next", surrogate=Arctan()
    )
    assert list(first.neuron.ranges) == ["v_th"]
    assert first.neuron.v_th.tolist() == 0.5
    assert middle.neuron is None
    neuron = last.neuron.neuron
    assert isinstance(neuron, CUBA)
    assert (neuron.reset, neuron.reset_time) == (Reset.SOFT, "next")
    assert neuron.surrogate == FastSigmoid(slope=9.0)
    assert not last.recurrent.weight.requires_grad
    assert not first.synapse.weight.requires_grad
    assert first.synapse.bias.requires_grad
    assert last.synapse.bias is None
    x = torch.ones(7, 2, 4)
    assert torch.equal(net(x).logits, net(x).steps.sum(0))


def test_nothing_is_shared():
    fc, lif = nn.Linear(4, 3), snntorch.Leaky(torch.full((3,), 0.5), learn_threshold=True)
    net = from_snntorch([fc, lif])
    before = net(torch.ones(9, 1, 4)).steps
    with torch.no_grad():
        for tensor in (*fc.parameters(), lif.beta, lif.threshold):
            tensor.add_(7)
    assert torch.equal(net(torch.ones(9, 1, 4)).steps, before)


def test_the_type_is_kept():
    net = from_snntorch([nn.Linear(4, 3).double(), snntorch.Leaky(0.5, learn_beta=True)])
    assert net.layers["layer0"].synapse.weight.dtype == torch.float64
    assert net.layers["layer0"].neuron.beta.dtype == torch.float32  # a number: it changes no type
    assert net(torch.ones(3, 1, 4, dtype=torch.float64)).steps.dtype == torch.float64


def test_modules_in_modules(lab):
    block = nn.Sequential(nn.Linear(6, 8), snntorch.Leaky(0.8, spike_grad=GRAD))
    named = nn.ModuleDict({"body": block, "head": nn.Linear(8, 2)}).double()
    net = from_snntorch(named)
    assert list(net.layers) == ["body_0", "head"]
    flat = [*block, named["head"]]
    x = lab.draw(8, 9, 1, 6)
    torch.testing.assert_close(net(x).steps, lab.SNNTORCH.run(flat, x)[-1])
    assert list(from_snntorch(nn.Sequential(block)).layers) == ["layer0_0"]


def test_dropout_and_norm_train_as_here():
    modules = [nn.Linear(4, 3), nn.BatchNorm1d(3), snntorch.Leaky(0.5), nn.Dropout(0.25)]
    modules += [nn.AdaptiveAvgPool2d(1), nn.Linear(3, 2)]
    net = from_snntorch(nn.Sequential(*modules).eval())
    first, last = net.layers.values()
    assert isinstance(first.norm, BatchNorm)
    drop, pool = last.before.values()
    assert isinstance(drop, Dropout) and drop.p == 0.25
    assert isinstance(pool, AvgPool2d) and pool.size is None
    assert isinstance(
        from_snntorch([nn.Linear(2, 1), nn.Dropout(0.0)]).layers["layer0"].norm, type(None)
    )


def test_the_gradient_of_a_sigmoid_far_from_threshold_is_small_not_missing(lab):
    x = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    spk, _ = snntorch.Leaky(0.5, spike_grad=theirs.sigmoid(800))(x, torch.zeros_like(x))
    assert torch.autograd.grad(spk.sum(), x)[0].isnan().all()  # exp(1600) over itself squared
    weight = torch.ones(1, 1, dtype=torch.float64)
    modules = [nn.Linear(1, 1, bias=False), snntorch.Leaky(0.5, spike_grad=theirs.sigmoid(800))]
    modules[0].weight = nn.Parameter(weight)
    out = from_snntorch(modules)(x[None]).steps
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [[0.0]]
