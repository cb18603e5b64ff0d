"""The ways of errors back through a network, against the equations of LIF layers by hand."""

import itertools

import pytest
import torch
from torch.nn import functional

from spikecl.kernels import Kernels, compiler
from spikecl.networks import (
    BatchNorm,
    Cells,
    Conv2d,
    Layer,
    Linear,
    Network,
    Paths,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    Taps,
    initialise,
)
from spikecl.networks.paths import ALL, turned
from spikecl.networks.weight_maps import SplitSigns
from spikecl.neurons import LIF, PLIF, LeakyIntegrator, Sigmoid
from spikecl.seeds import Seeds

T, B, IN, CLASSES = 5, 3, 6, 4
BETA, V_TH, SLOPE, KAPPA = 0.7, 0.4, 2.0, 0.8
SIZES = (7, 5)
needs_compiler = pytest.mark.skipif(compiler.compiler() is None, reason="no C compiler here")
KERNELS = ["reference", "fused", pytest.param("compiled", marks=needs_compiler)]
kernels = pytest.mark.parametrize("kernel", KERNELS)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(*, recurrent, readout="mean_current", kept=False, kernel="reference", output=None):
    neuron = LIF(beta=BETA, v_th=V_TH, surrogate=Sigmoid(slope=SLOPE), detach_reset=not kept)
    spec = SpikingRecurrentNet if recurrent else SpikingMlp
    network = spec(hidden=SIZES, neuron=neuron, readout=readout, output=output, bias=True)
    network = network.build((IN,), CLASSES).double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(2)
    network.kernels = Kernels(scan=kernel)
    return network


def loss_of(logits):
    return functional.cross_entropy(3 * logits, torch.arange(B) % CLASSES)


def errors_of(network, x, paths, *, loss=loss_of, sent=None):
    """Return the error of each synapse's current, and the taps."""
    taps = Taps(paths)
    output = network(x, taps=taps)
    ends = [loss(output.logits)]
    weights = [torch.ones_like(ends[0])]
    for name, error in (sent or {}).items():
        ends.append(taps.fired[name])
        weights.append(error)
    edges = [tap.edge for tap in taps.values()]
    found = torch.autograd.grad(ends, edges, weights, allow_unused=True)
    return {
        path: tap.no_error() if error is None else error
        for (path, tap), error in zip(taps.items(), found)
    }, taps


def weights_by_hand(network):
    found = {n: p.detach().clone() for n, p in network.weights().items()}
    for name in list(found):
        if name.endswith("recurrent.weight"):
            found[name].fill_diagonal_(0)
    return found


def forward_by_hand(network, x):
    """Return spikes and derivatives of each hidden layer, and the logits."""
    w, h, spikes, slopes = weights_by_hand(network), x, {}, {}
    for name in ("hidden1", "hidden2"):
        current = functional.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])
        v = last = torch.zeros_like(current[0])
        outs, psis = [], []
        for now in current:
            heard = last @ w[f"{name}.recurrent.weight"].T if f"{name}.recurrent.weight" in w else 0
            u = BETA * v + now + heard
            last = (u > V_TH).double()
            s = torch.sigmoid(SLOPE * (u - V_TH))
            outs.append(last)
            psis.append(SLOPE * s * (1 - s))
            v = u - V_TH * last
        h = spikes[name] = torch.stack(outs)
        slopes[name] = torch.stack(psis)
    steps = functional.linear(h, w["readout.weight"], w["readout.bias"])
    return spikes, slopes, steps


def by_hand(network, x, paths, *, mean_first, leaky=False):
    """Return the error of each synapse's current, layer by layer from the top."""
    w = weights_by_hand(network)
    _, psi, steps = forward_by_hand(network, x)
    back = {p: paths.feedback.get(p, w[f"{p}.weight"]) for p in network.synapses}
    chosen = torch.ones(T) if paths.chosen is None else paths.chosen.double()
    mask = chosen.view(T, 1, 1)
    reset = paths.reset
    if reset is None:
        reset = not network.layers["hidden1"].neuron.neuron.detach_reset
    outputs, found = steps, {}
    if leaky:  # y[t] = KAPPA y[t-1] + steps[t]
        rows = [steps[0]]
        for now in steps[1:]:
            rows.append(KAPPA * rows[-1] + now)
        outputs = torch.stack(rows)
    logits = outputs.mean(0).requires_grad_()
    (e,) = torch.autograd.grad(loss_of(logits), [logits])
    if mean_first:
        found["readout"] = e
        sent = (e @ back["readout"] / T).expand(T, -1, -1)
    else:
        e = (e / T) * mask
        if leaky:
            total, rows = torch.zeros_like(e[0]), []
            for now in reversed(e):
                total = now + (KAPPA * total if paths.time == "full" else 0)
                rows.append(total)
            e = torch.stack(rows[::-1])
        found["readout"] = e.flatten(0, 1)
        sent = e @ back["readout"]
    for name in ("hidden2", "hidden1"):
        if paths.space == "none":
            sent = torch.zeros_like(sent)
        sent = sent * mask
        once = psi[name] * sent
        full, later = [], torch.zeros_like(sent[0])
        for t in reversed(range(T)):
            heard = 0
            if paths.recurrent and f"{name}.recurrent" in back:
                heard = later @ back[f"{name}.recurrent"]
            through = BETA * later * (1 - (V_TH * psi[name][t] if reset else 0))
            later = psi[name][t] * (sent[t] + heard) + through
            full.append(later)
        full = torch.stack(full[::-1])
        own = full if paths.time == "full" else once
        found[name] = own.flatten(0, 1)
        if f"{name}.recurrent" in back:
            found[f"{name}.recurrent"] = own.flatten(0, 1)
        passed = once if "instant" in (paths.space, paths.time) else full
        sent = passed @ back[name]
    return found


def feedback_of(network, *, recurrent):
    found = {}
    for k, (path, synapse) in enumerate(network.synapses.items()):
        if path != "hidden1" and (recurrent or "recurrent" not in path):
            found[path] = draw(*synapse.weight.shape, seed=30 + k)
    return found


def close(found, expected, *, tight=1e-11):
    assert found.keys() == expected.keys()
    for path, error in expected.items():
        torch.testing.assert_close(
            found[path], error, rtol=tight, atol=tight, msg=lambda text, p=path: f"{p}: {text}"
        )


@pytest.mark.parametrize(
    ("kernel", "readout"),
    [
        ("reference", "mean_current"),
        ("fused", "mean_current"),
        pytest.param("compiled", "mean_current", marks=needs_compiler),
        ("auto", "mean_rate"),
        ("auto", "leaky"),
    ],
)
@pytest.mark.parametrize("recurrent", [False, True], ids=["dense", "recurrent"])
@pytest.mark.parametrize("kept", [False, True])
def test_every_combination_of_ways_is_that_of_the_equations(kernel, recurrent, readout, kept):
    leaky = readout == "leaky"
    network = build(
        recurrent=recurrent,
        readout="mean_current" if leaky else readout,
        kept=kept,
        kernel=kernel,
        output=LeakyIntegrator(kappa=KAPPA) if leaky else None,
    )
    x = draw(T, B, IN, seed=1)
    some = torch.tensor([True, False, True, True, False])
    back = feedback_of(network, recurrent=recurrent)
    ways = itertools.product(
        ("full", "instant"), ("full", "instant", "none"), (True, False), (None, True, False),
        ({}, back), (None, some),
    )  # fmt: skip
    seen = []
    for time, space, loops, reset, feedback, chosen in ways:
        paths = Paths(time, space, loops, reset, feedback=feedback, chosen=chosen)
        found, taps = errors_of(network, x, paths)
        expected = by_hand(network, x, paths, mean_first=readout == "mean_rate", leaky=leaky)
        close(found, expected)
        seen.append(found["hidden1"])
        for name, spikes in forward_by_hand(network, x)[0].items():
            assert torch.equal(taps.fired[name].detach(), spikes)
    different = {tuple(error.flatten().tolist()) for error in seen}
    assert len(different) > 12


def test_the_problem_is_no_trivial_one():
    network, x = build(recurrent=True), draw(T, B, IN, seed=1)
    spikes, _, steps = forward_by_hand(network, x)
    assert all(0.1 < float(s.mean()) < 0.9 for s in spikes.values())
    torch.testing.assert_close(network(x).logits.detach(), steps.mean(0), rtol=1e-12, atol=1e-12)


def test_by_default_all_ways_are_open():
    network, x = build(recurrent=True, kept=True), draw(T, B, IN, seed=1)
    expected, _ = errors_of(network, x, Paths())
    taps = {}
    loss = loss_of(network(x, taps=taps).logits)
    for tap, error in zip(
        taps.values(), torch.autograd.grad(loss, [t.edge for t in taps.values()]), strict=True
    ):
        assert torch.equal(error, expected[next(n for n in taps if taps[n] is tap)])
    assert Paths() == ALL and not ALL.parted(last=False)
    assert Paths(space="instant").parted(last=False)
    assert not Paths(space="instant").parted(last=True)
    assert not Paths("instant", "instant").parted(last=False)


@kernels
@pytest.mark.parametrize("space", ["full", "instant", "none"])
def test_errors_that_are_sent_to_a_layer_take_the_same_ways(kernel, space):
    """With the way down closed, what is sent to a layer reaches its own synapses alone."""
    network, x = build(recurrent=True, kernel=kernel), draw(T, B, IN, seed=1)
    sent = {"hidden2": draw(T, B, SIZES[1], seed=4)}
    found, _ = errors_of(network, x, Paths(space=space), sent=sent, loss=lambda z: 0 * z.sum())
    w = weights_by_hand(network)
    _, psi, _ = forward_by_hand(network, x)
    later, full = torch.zeros(B, SIZES[1], dtype=torch.float64), []
    for t in reversed(range(T)):
        heard = later @ w["hidden2.recurrent.weight"]
        later = psi["hidden2"][t] * (sent["hidden2"][t] + heard) + BETA * later
        full.append(later)
    torch.testing.assert_close(
        found["hidden2"], torch.cat(full[::-1]).view_as(found["hidden2"]), rtol=1e-11, atol=1e-12
    )
    assert bool(found["hidden1"].any()) == (space != "none")


@pytest.mark.parametrize("time", ["full", "instant"])
@pytest.mark.parametrize("space", ["full", "instant"])
def test_an_input_that_is_constant_may_be_asked_step_by_step(time, space):
    network = build(recurrent=False)
    x = draw(1, B, IN, seed=1).expand(T, B, IN)
    once, taps = errors_of(network, x, Paths(time, space))
    each, stepwise = errors_of(network, x, Paths(time, space, stepwise=True))
    same, moving = errors_of(network, x.clone(), Paths(time, space))
    assert len(once["hidden1"]) == B and len(each["hidden1"]) == T * B
    torch.testing.assert_close(each["hidden1"].view(T, B, -1).sum(0), once["hidden1"])
    torch.testing.assert_close(each["hidden1"], same["hidden1"])
    assert torch.equal(stepwise["hidden1"].rows, moving["hidden1"].rows)
    assert torch.equal(stepwise["hidden1"].rows, x.flatten(0, 1))
    assert torch.equal(taps["hidden1"].rows, x[0])


def test_what_drove_the_layers_and_what_they_fired_is_there():
    network, x = build(recurrent=True), draw(T, B, IN, seed=1)
    _, taps = errors_of(network, x, Paths())
    w = weights_by_hand(network)
    spikes, _, _ = forward_by_hand(network, x)
    assert list(taps.fired) == list(taps.driven) == ["hidden1", "hidden2"]
    for name, below in (("hidden1", x), ("hidden2", spikes["hidden1"])):
        expected = functional.linear(below, w[f"{name}.weight"], w[f"{name}.bias"])
        torch.testing.assert_close(taps.driven[name], expected, rtol=1e-12, atol=1e-12)
        assert taps.driven[name].grad_fn is None and taps.fired[name].grad_fn is not None


# What lies beside neurons: norms, parameters, layers without neurons, shortcuts


def made(layers, **options):
    network = Network(layers, mean_first=False, **options).double()
    initialise(network, Seeds(5))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(2)
    return network


def direct_of(network, x, paths):
    taps = Taps(paths)
    output = network(x, taps=taps, training=True)
    found = torch.autograd.grad(loss_of(output.logits), list(taps.direct.values()))
    return dict(zip(taps.direct, found, strict=True))


CELL = LIF(beta=BETA, v_th=V_TH, surrogate=Sigmoid(slope=SLOPE))


@kernels
@pytest.mark.parametrize("space", ["instant", "none"])
def test_parameters_of_a_norm_have_the_error_of_their_layer_once(kernel, space):
    """Where one hidden layer is all there is, what goes further down can change nothing."""
    network = made(
        {
            "a": Layer(Linear(IN, 7), Cells(CELL), inputs=("input",), norm=BatchNorm(7)),
            "out": Layer(Linear(7, CLASSES), None, inputs=("a",)),
        }
    )
    network.kernels = Kernels(scan=kernel)
    x = draw(T, B, IN, seed=1)
    expected = direct_of(network, x, Paths())
    assert all(bool(g.any()) for g in expected.values())
    if space == "none":
        assert not any(bool(g.any()) for g in direct_or_zero(network, x, Paths(space=space)))
        return
    found = direct_of(network, x, Paths(space=space))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def direct_or_zero(network, x, paths):
    taps = Taps(paths)
    loss = loss_of(network(x, taps=taps, training=True).logits)
    leaves = list(taps.direct.values())
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found)]


@kernels
def test_parameters_of_neurons_have_the_error_of_their_layer_once(kernel):
    cell = PLIF(v_th=V_TH, surrogate=Sigmoid(slope=SLOPE))
    network = made(
        {
            "a": Layer(Linear(IN, 7), Cells(cell, size=(7,)), inputs=("input",)),
            "out": Layer(Linear(7, CLASSES), None, inputs=("a",)),
        }
    )
    network.kernels = Kernels(scan=kernel)
    x = draw(T, B, IN, seed=1)
    expected = direct_of(network, x, Paths())
    found = direct_of(network, x, Paths(space="instant"))
    assert bool(expected["a.neuron.beta"].any())
    torch.testing.assert_close(
        found["a.neuron.beta"], expected["a.neuron.beta"], rtol=1e-10, atol=1e-12
    )


def slopes_of(network, x, name):
    """Return psi of a layer of CELLs from the current that drove it."""
    taps = Taps(Paths())
    network(x, taps=taps)
    v, found = 0.0, []
    for now in taps.driven[name]:
        u = BETA * v + now
        s = torch.sigmoid(SLOPE * (u - V_TH))
        found.append(SLOPE * s * (1 - s))
        v = u - V_TH * (u > V_TH).double()
    return torch.stack(found)


@pytest.mark.parametrize("where", ["between", "shortcut", "identity"])
@pytest.mark.parametrize("paths", [Paths(space="instant"), Paths("instant", "instant")])
def test_errors_pass_layers_without_neurons_and_shortcuts(where, paths):
    """They have no memory: what goes through them in a step is all there is."""
    between = Layer(Linear(7, 7), None, inputs=("a",))
    layers = {"a": Layer(Linear(IN, 7), Cells(CELL), inputs=("input",))}
    if where != "identity":
        layers["line"] = between
    source = "line" if where == "between" else "a"
    extra = {"shortcut": ("line",), "identity": ("a",)}.get(where, ())
    layers["b"] = Layer(Linear(7, 7), Cells(CELL), inputs=(source,), currents=extra)
    layers["out"] = Layer(Linear(7, CLASSES), None, inputs=("b",))
    network = made(layers)
    x = 2 * draw(T, B, IN, seed=1)
    taps = Taps(paths)
    output = network(x, taps=taps)
    paired = [taps[n].edge for n in ("out", "b", "a")]
    e, _, own = torch.autograd.grad(loss_of(output.logits), paired, allow_unused=True)
    w = {n: p.detach() for n, p in network.weights().items()}
    once = slopes_of(network, x, "b") * (e.view(T, B, -1) @ w["out.weight"])
    sent = once @ w["b.weight"]
    if where == "between":
        sent = sent @ w["line.weight"]
    elif where == "shortcut":
        sent = sent + once @ w["line.weight"]
    else:
        sent = sent + once
    psi, later, expected = slopes_of(network, x, "a"), 0.0, []
    for t in reversed(range(T)):
        later = psi[t] * sent[t] + (BETA * later if paths.time == "full" else 0.0)
        expected.append(later)
    assert own is not None, "no error reached the layer below"
    torch.testing.assert_close(own, torch.cat(expected[::-1]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_errors_of_their_step_reach_every_layer_of_a_residual_network(norm):
    network = SpikingResNet(width=3, blocks=(1, 1), neuron=CELL, norm=norm).build((6, 5), CLASSES)
    network = network.double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(3)
    x = 2 * draw(T, B, 6, 5, seed=1)
    parted, _ = errors_of(network, x, Paths(space="instant"))
    instant, _ = errors_of(network, x, Paths("instant", "instant"))
    for path in network.synapses:
        assert bool(instant[path].any()) and bool(parted[path].any()), path
    # a last step has no later one: there, errors of their step are all that arrives
    rows = {p: t.view(-1, B, *t.shape[1:])[-1] for p, t in parted.items() if p != "readout"}
    for path, last in rows.items():
        expected = instant[path].view(-1, B, *instant[path].shape[1:])[-1]
        torch.testing.assert_close(
            last, expected, rtol=1e-10, atol=1e-12, msg=lambda t, p=path: f"{p}: {t}"
        )


@pytest.mark.parametrize("kind", ["dense", "split", "conv", "conv split", "conv strided"])
def test_a_current_that_is_turned_sends_errors_through_the_other_weight(kind):
    maps = (SplitSigns(),) if "split" in kind else ()
    if "conv" in kind:
        options = {"stride": 2, "padding": 1} if "strided" in kind else {}
        synapse = Conv2d(2, 3, kernel=3, **options, maps=maps).double()
        rows = draw(4, 2, 7, 6, seed=1)
    else:
        synapse, rows = Linear(5, 3, maps=maps).double(), draw(4, 5, seed=1)
    with torch.no_grad():
        synapse.weight.copy_(draw(*synapse.weight.shape, seed=2))
    own = dict(synapse.named_parameters())
    weight = synapse.effective(own).detach()
    back = synapse.effective({"weight": draw(*synapse.weight.shape, seed=3)})
    plain = Kernels(synapse="dense")

    def current_of(leaf, effective):
        kept = synapse.keep(leaf.detach(), plain)
        return synapse.product(leaf, kept, effective, None, plain)

    leaf = rows.clone().requires_grad_()
    current = current_of(rows, weight)
    error = draw(*current.shape, seed=4)
    made_ = turned(leaf, current, synapse, back)
    assert torch.equal(made_.detach(), current)
    (found,) = torch.autograd.grad((made_ * error).sum(), [leaf])
    other = rows.clone().requires_grad_()
    (expected,) = torch.autograd.grad((current_of(other, back) * error).sum(), [other])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert turned(rows, current, synapse, back) is current
    with torch.no_grad():
        assert turned(leaf, current, synapse, back) is current
