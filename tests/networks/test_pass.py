"""Passes of whole networks: a loop with everything on, halves, constant input, true gradients."""

import copy

import pytest
import torch
from torch.nn import functional

from spikecl.errors import UsageError
from spikecl.networks import (
    BatchNorm,
    Cells,
    Conv2d,
    Layer,
    Linear,
    Network,
    SpikingMlp,
    SpikingRecurrentNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import LIF, Rectified, Smooth, carry
from spikecl.neurons.neuron import leaves
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt

T, B, IN, CLASSES = 6, 4, 5, 3
LABELS = torch.tensor([0, 2, 1, 1])


class Fire(torch.autograd.Function):
    """Heaviside step with the derivative of a logistic function of slope 4."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        s = torch.sigmoid(4 * ctx.saved_tensors[0])
        return grad * 4 * s * (1 - s)


def loss_of(logits):
    return functional.cross_entropy(2 * logits, LABELS)


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- everything on ------------------------------------------------------------------------------

LONGEST, P, SHARE = 2, 0.3, 0.6


def delayed_product(w, name, sent, *, first):
    """Current at each step: every connection reads its own moment, between two steps."""
    weight = w[f"{name}.weight"]
    delay = w.get(f"{name}.delay", torch.zeros_like(weight)).clamp(0, LONGEST)  # readout: none
    if not first:
        n = weight.shape[1]
        excite = round(SHARE * n)
        weight = weight.abs() * torch.tensor([1.0] * excite + [-1.0] * (n - excite)).double()
    silent = [torch.zeros_like(sent[0])] * (LONGEST + 1)
    padded, currents = silent + list(sent), []
    for t in range(len(sent)):
        now = t + LONGEST + 1
        total = 0.0
        for k in range(LONGEST + 1):
            share = (1 - (k - delay).abs()).clamp(min=0)
            total = total + padded[now - k] @ (weight * share).T
        currents.append(total + w[f"{name}.bias"])
    return torch.stack(currents)


def everything_by_hand(w, statistics, x, draw, *, training):
    """Two recurrent layers with norm, delays, dropout, Dale's law, bias; step by step."""
    sent, fresh = x, {}
    for name in ("hidden1", "hidden2"):
        if name != "hidden1" and training:
            keep = torch.rand(sent.shape[1:], generator=draw, dtype=torch.float64) >= P
            sent = sent * keep / (1 - P)
        current = delayed_product(w, name, sent, first=name == "hidden1")
        mean, variance = (statistics[f"{name}.norm.{k}"] for k in ("mean", "variance"))
        if training:
            rows = current.reshape(T * B, -1)
            fresh[f"{name}.norm.mean"] = 0.9 * mean + 0.1 * rows.mean(0)
            fresh[f"{name}.norm.variance"] = 0.9 * variance + 0.1 * rows.var(0)
            mean, variance = rows.mean(0), rows.var(0, correction=0)
        scaled = w[f"{name}.norm.gain"] * (current - mean) / (variance + 1e-5).sqrt()
        current = scaled + w[f"{name}.norm.shift"]
        own = w[f"{name}.recurrent.weight"].abs()
        n = len(own)
        excite = round(SHARE * n)
        own = own * torch.tensor([1.0] * excite + [-1.0] * (n - excite)).double()
        own = own * (1 - torch.eye(n).double())
        beta, v_th = torch.sigmoid(w[f"{name}.neuron.beta"]), w[f"{name}.neuron.v_th"]
        v, s, out = 0.0, torch.zeros(B, n).double(), []
        for step in current:
            u = beta * v + step + s @ own.T
            s = Fire.apply(u - v_th)
            v = u - v_th * s.detach()
            out.append(s)
        sent = torch.stack(out)
    if training:
        keep = torch.rand(sent.shape[1:], generator=draw, dtype=torch.float64) >= P
        sent = sent * keep / (1 - P)
    return delayed_product(w, "readout", sent, first=False).mean(0), fresh


def everything(readout="mean_current"):
    network = SpikingRecurrentNet(
        hidden=(8, 7),
        neuron=LIF(beta=0.6, v_th=0.5),
        learns=("beta", "v_th"),
        bias=True,
        norm="batch",
        excitatory=SHARE,
        dropout=P,
        delay=LONGEST,
        readout=readout,
    ).build((IN,), CLASSES)
    network = network.double()
    initialise(network, Seeds(5))
    with torch.no_grad():
        for name, value in network.statistics().items():
            value.add_(0.2 * random(*value.shape, seed=len(name)).abs())
        for name, p in network.weights().items():
            if name.endswith("weight"):
                p.mul_(4)
    return network


@pytest.mark.parametrize("readout", ["mean_current", "mean_rate"])
@pytest.mark.parametrize("training", [True, False])
def test_everything_on_equals_a_plain_loop(training, readout):
    network, x = everything(readout), random(T, B, IN)
    w = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    statistics = {n: s.clone() for n, s in network.statistics().items()}
    draws = [torch.Generator().manual_seed(7) for _ in range(3)]
    expected, fresh = everything_by_hand(w, statistics, x, draws[0], training=training)
    output = network(x, training=training, generator=draws[1])
    torch.testing.assert_close(output.logits, expected, rtol=1e-9, atol=1e-11)
    assert output.statistics.keys() == fresh.keys()
    for name, value in fresh.items():
        torch.testing.assert_close(output.statistics[name], value.detach())

    wanted = torch.autograd.grad(loss_of(expected), list(w.values()), allow_unused=True)
    factors = Bptt().factors(network, x, loss_of, generator=draws[2], training=training)
    found = form_gradients(network, factors.synapses, factors.direct)
    assert sorted(found) == sorted(w)
    for name, gradient in zip(w, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-10)
        if not (name.endswith("bias") and training):
            assert bool(gradient.abs().max() > 1e-6), name
    torch.testing.assert_close(factors.logits, expected.detach())
    for name, value in factors.statistics.items():
        assert torch.equal(value, output.statistics[name])


def test_other_weights_carry_their_own_gradients():
    """Maps, norms and neurons at weights that are handed in, not at the network's own."""
    network, x = everything(), random(T, B, IN)
    given = {
        n: p.detach() + 0.1 * random(*p.shape, seed=i)
        for i, (n, p) in enumerate(network.weights().items())
    }
    given |= {n: p.clamp(0.1, LONGEST - 0.1) for n, p in given.items() if n.endswith("delay")}
    w = {n: p.clone().requires_grad_() for n, p in given.items()}
    statistics = dict(network.statistics())
    draws = [torch.Generator().manual_seed(7) for _ in range(2)]
    expected, _ = everything_by_hand(w, statistics, x, draws[0], training=True)
    wanted = torch.autograd.grad(loss_of(expected), list(w.values()))
    factors = Bptt().factors(network, x, loss_of, given, generator=draws[1])
    found = form_gradients(network, factors.synapses, factors.direct, given)
    for name, gradient in zip(w, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-10)


# ---- every builder ------------------------------------------------------------------------------

VARIANTS = {
    "plain": {},
    "everything": {
        "norm": "batch", "delay": 2, "bias": True, "neuron": LIF(beta=0.6, v_th=0.4),
        "learns": ("beta",), "excitatory": 0.7, "dropout": 0.2,
    },
}  # fmt: skip


def options_of(case, variant):
    """Delays need a dense hidden layer, which a residual network does not have."""
    dense = "resnet" not in case.name
    return {k: v for k, v in VARIANTS[variant].items() if k != "delay" or dense}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_halves_are_one_whole(case, variant):
    network, x = case.network(**options_of(case, variant)), case.inputs(5)
    whole, first = network(x), network(x[:3])
    second = network(x[3:], first.state)
    torch.testing.assert_close((3 * first.logits + 2 * second.logits) / 5, whole.logits)
    assert list(second.state) == list(whole.state)
    for a, b in zip(leaves(second.state), leaves(whole.state), strict=True):
        torch.testing.assert_close(a, b)
    if case.spiking and any(t["spikes"].any() for t in network.record(x[3:]).values()):
        fresh = network(x[3:]).state
        assert not all(torch.equal(a, b) for a, b in zip(leaves(fresh), leaves(second.state)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("readout", ["mean_rate", "mean_current", "max"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_constant_input_is_its_copies(case, variant, readout, training):
    """In output, gradients and state, whatever is computed once for all steps."""
    network = case.network(**options_of(case, variant), readout=readout)
    one = case.inputs(1)[0]
    static, dense = one.expand(4, *one.shape), one.expand(4, *one.shape).clone()
    labels = case.labels()
    results = []
    for x in (static, dense):
        factors = Bptt().factors(
            network,
            x,
            lambda z: functional.cross_entropy(z, labels),
            generator=torch.Generator().manual_seed(1),
            training=training,
        )
        results.append((factors, form_gradients(network, factors.synapses, factors.direct)))
    (a, found), (b, wanted) = results
    torch.testing.assert_close(a.logits, b.logits)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)
    for p, q in zip(leaves(a.state), leaves(b.state), strict=True):
        torch.testing.assert_close(p, q)
    assert a.statistics.keys() == b.statistics.keys()
    for name in a.statistics:
        if name.endswith("mean"):  # the unbiased variance counts a repeated step once
            torch.testing.assert_close(a.statistics[name], b.statistics[name])


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1), (2, 2)])
def test_one_step_and_one_sample(case, shape):
    """Samples do not see each other, and a step does not see the future."""
    network, x = case.network(**options_of(case, "everything")), case.inputs()
    steps, batch = shape
    output = network(x[:steps, :batch])
    full = network(x[:steps]).logits[:batch]
    torch.testing.assert_close(output.logits, full)
    recorded, longer = network.record(x[:steps]), network.record(x)
    for name in recorded:
        torch.testing.assert_close(
            torch.tensor(recorded[name]["spikes"]), torch.tensor(longer[name]["spikes"][:steps])
        )
    if batch > 1:  # one value has no variance
        labels = case.labels(batch)
        factors = Bptt().factors(
            network,
            x[:steps, :batch],
            lambda z: functional.cross_entropy(z, labels),
            generator=torch.Generator(),
        )
        gradients = form_gradients(network, factors.synapses, factors.direct)
        assert all(bool(g.isfinite().all()) for g in gradients.values())


def test_a_copy_has_weights_of_its_own(case):
    network, x = case.network(), case.inputs()
    before = network(x).logits
    other = copy.deepcopy(network)
    assert torch.equal(other(x).logits, before)
    with torch.no_grad():
        for p in other.weights().values():
            p.mul_(0.5)
    assert torch.equal(network(x).logits, before)
    assert not torch.equal(other(x).logits, before)
    own = {id(p) for p in other.parameters()}
    assert all(id(p) in own for p in other.weights().values())


def test_a_pass_leaves_nothing_behind(case):
    network, x = case.network(**options_of(case, "everything")), case.inputs()
    held = {name: set(vars(m)) for name, m in network.named_modules()}
    before = {k: v.clone() for k, v in network.state_dict().items()}
    random_state = torch.get_rng_state()
    a, b = (
        Bptt().factors(network, x, lambda z: z.square().sum(), generator=torch.Generator())
        for _ in range(2)
    )
    assert torch.equal(a.logits, b.logits)
    assert {name: set(vars(m)) for name, m in network.named_modules()} == held
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None and p.is_leaf for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spiking_mlp", {"delay": 2, "bias": True}),
        ("spiking_mlp", {"standardise": True, "readout": "sum"}),
        ("spiking_recurrent", {"excitatory": 0.5, "readout": "mean_current"}),
        ("spiking_conv", {"pool": "average", "bias": True}),
        ("spiking_conv", {"norm": "batch", "standardise": True, "pool": "average"}),
        ("spiking_resnet", {}),
    ],
)
def test_the_gradient_of_a_smooth_network_is_its_true_gradient(cases, name, options):
    """Spikes replaced by their primitive: finite differences in every direction at random."""
    neuron = LIF(beta=0.6, v_th=0.4, surrogate=Smooth(), detach_reset=False)
    case = cases(name)
    network = case.network(neuron=neuron, learns=("beta", "v_th"), **options)
    x, labels = case.inputs(3), case.labels()
    weights = {n: p.detach() for n, p in network.weights().items()}

    def loss(z):
        return functional.cross_entropy(z, labels)

    factors = Bptt().factors(network, x, loss)
    found = form_gradients(network, factors.synapses, factors.direct)
    h = 1e-5
    for i, (key, weight) in enumerate(weights.items()):
        direction = random(*weight.shape, seed=i)
        ends = [
            loss(
                network(
                    x, weights={**weights, key: weight + s * h * direction}, training=True
                ).logits
            )
            for s in (1, -1)
        ]
        slope = float(ends[0] - ends[1]) / (2 * h)
        assert float((found[key] * direction).sum()) == pytest.approx(slope, rel=2e-5, abs=1e-8), (
            key
        )


# ---- by hand ------------------------------------------------------------------------------------


def test_currents_of_other_layers_join_behind_the_norm():
    neuron = LIF(beta=0.5, v_th=0.3)
    network = Network(
        {
            "a": Layer(Linear(4, 6), Cells(neuron), inputs=("input",)),
            "side": Layer(Linear(4, 6), None, inputs=("input",)),
            "b": Layer(
                Linear(6, 6),
                Cells(neuron),
                inputs=("a",),
                norm=BatchNorm(6, gain=0.7),
                currents=("a", "side"),
            ),
            "out": Layer(Linear(6, 3), None, inputs=("b", "a"), currents=()),
        }
    ).double()
    initialise(network, Seeds(0))
    w = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    x = 2 * random(T, B, 4)

    def lif(currents):
        v, out = 0.0, []
        for current in currents:
            u = 0.5 * v + current
            s = Fire.apply(u - 0.3)
            v = u - 0.3 * s.detach()
            out.append(s)
        return torch.stack(out)

    a = lif(x @ w["a.weight"].T)
    current = a @ w["b.weight"].T
    rows = current.flatten(0, 1)
    normed = w["b.norm.gain"] * (current - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    b = lif(normed + w["b.norm.shift"] + a + x @ w["side.weight"].T)
    expected = ((a + b) @ w["out.weight"].T).mean(0)
    assert all(0.1 < float(sent.detach().mean()) < 0.9 for sent in (a, b))
    torch.testing.assert_close(network(x, training=True).logits, expected)
    wanted = dict(zip(w, torch.autograd.grad(loss_of(expected), list(w.values()))))
    factors = Bptt().factors(network, x, loss_of)
    found = form_gradients(network, factors.synapses, factors.direct)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11)


def test_a_current_that_comes_later_is_refused():
    layer = Layer(Linear(2, 2), None, inputs=("input",), currents=("b",))
    with pytest.raises(UsageError, match=r"layer 'a' listens to \['b'\]"):
        Network({"a": layer, "b": Layer(Linear(2, 2), None, inputs=("input",))})


def test_a_readout_with_currents_or_a_norm_sees_every_step():
    """The mean over time and what follows do not commute there, or cost nothing to keep."""
    a = Layer(Linear(4, 3), Cells(LIF(v_th=0.2)), inputs=("input",))
    network = Network({"a": a, "out": Layer(Linear(3, 3), None, inputs=("a",), currents=("a",))})
    assert not network.mean_first
    initialise(network, Seeds(0))
    x = torch.rand(T, B, 4)
    spikes = torch.tensor(network.record(x)["a"]["spikes"])
    expected = (spikes @ network.weights()["out.weight"].T + spikes).mean(0)
    torch.testing.assert_close(network(x).logits, expected)


@pytest.mark.parametrize("bias", [False, True])
def test_a_recurrent_bias_is_part_of_every_step(bias):
    """Of the first step too, where nothing has fired yet."""
    layer = Layer(
        Linear(4, 5),
        Cells(LIF(beta=0.5, v_th=0.3)),
        inputs=("input",),
        recurrent=Linear(5, 5, bias=bias),
    )
    network = Network({"a": layer, "out": Layer(Linear(5, 3), None, inputs=("a",))}).double()
    initialise(network, Seeds(0))
    w = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    x = 2 * random(T, B, 4)
    v, s, total = 0.0, torch.zeros(B, 5).double(), 0.0
    for step in x:
        u = 0.5 * v + step @ w["a.weight"].T + s @ w["a.recurrent.weight"].T
        u = u + w["a.recurrent.bias"] if bias else u
        s = Fire.apply(u - 0.3)
        v = u - 0.3 * s.detach()
        total = total + s @ w["out.weight"].T / T
    torch.testing.assert_close(network(x).logits, total)
    wanted = torch.autograd.grad(loss_of(total), list(w.values()))
    factors = Bptt().factors(network, x, loss_of)
    found = form_gradients(network, factors.synapses, factors.direct)
    for name, gradient in zip(w, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11)


def test_from_a_state_the_last_spikes_reach_the_recurrent_gradient():
    """The first row that a recurrent synapse sends is what fired before the pass."""
    network = SpikingRecurrentNet(hidden=(6,), neuron=LIF(beta=0.6, v_th=0.3)).build((IN,), CLASSES)
    network = network.double()
    initialise(network, Seeds(0))
    with torch.no_grad():
        network.weights()["hidden1.weight"].mul_(4)
    x = random(T, B, IN)
    state = network(x[:3]).state
    detached = carry(state, "detach")
    assert bool(detached["hidden1"].spikes.any())
    names = list(network.weights())
    loss = loss_of(network(x[3:], detached).logits)
    wanted = torch.autograd.grad(loss, list(network.weights().values()))
    factors = Bptt().factors(network, x[3:], loss_of, state=detached)
    found = form_gradients(network, factors.synapses, factors.direct)
    for name, gradient in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    sent = factors.synapses["hidden1.recurrent"].x
    assert torch.equal(sent[:B], detached["hidden1"].spikes)


def test_an_input_that_wants_gradients_gets_them(case):
    network, x = case.network(), case.inputs().requires_grad_()
    (plain,) = torch.autograd.grad(network(x).logits.square().sum(), x)
    (tapped,) = torch.autograd.grad(network(x, taps={}).logits.square().sum(), x)
    torch.testing.assert_close(tapped, plain)
    assert bool(plain.any())


def test_an_expanded_input_reaches_a_convolution_once():
    conv = Layer(Conv2d(1, 2, kernel=3), Cells(Rectified()), inputs=("input",))
    network = Network(
        {"a": conv, "out": Layer(Linear(8, 2), None, inputs=("a",))}, mean_first=False
    )
    initialise(network, Seeds(0))
    taps = {}
    network(torch.rand(3, 1, 4, 4).expand(5, 3, 1, 4, 4), taps=taps)
    assert taps["a"].rows.shape == (3, 1, 4, 4) and taps["out"].rows.shape == (15, 8)


def test_layers_that_feed_two_readers_get_both_gradients():
    spec = SpikingMlp(hidden=(6, 5), neuron=LIF(beta=0.5, v_th=0.3))
    plain = spec.build((4,), 3).double()
    skip = Network(
        {
            "hidden1": plain.layers["hidden1"],
            "hidden2": plain.layers["hidden2"],
            "readout": Layer(Linear(5, 3), None, inputs=("hidden2",)),
            "other": Layer(Linear(6, 3), None, inputs=("hidden1",), currents=("readout",)),
        }
    ).double()
    initialise(skip, Seeds(0))
    x = 2 * random(T, B, 4)
    wanted = torch.autograd.grad(loss_of(skip(x).logits), list(skip.weights().values()))
    factors = Bptt().factors(skip, x, loss_of)
    found = form_gradients(skip, factors.synapses, factors.direct)
    for name, gradient in zip(skip.weights(), wanted, strict=True):
        assert bool(gradient.any())
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
