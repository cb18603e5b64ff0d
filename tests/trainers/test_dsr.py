"""DSR against clamp networks in plain torch, and its neurons against their rate maps."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from spikecl.data import load
from spikecl.encoding import CrossEntropy, Direct, StepCrossEntropy
from spikecl.errors import ConfigError, PairingError
from spikecl.kernels import choose, reference, scan
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    Cells,
    Layer,
    Linear,
    Network,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import LIF, RateIF, RateLIF
from spikecl.optim import Adam, Sgd
from spikecl.registry import TRAINERS
from spikecl.seeds import Seeds
from spikecl.streams import joint, permuted
from spikecl.trainers import Bptt, Dsr, PerStep

B, CLASSES = 6, 3
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
IF_ = RateIF(v_th=0.4)
LIF_ = RateLIF(v_th=0.1, tau_mem=2.0, dt=0.5)
NEURONS = {"if": IF_, "lif": LIF_}
each_neuron = pytest.mark.parametrize("neuron", NEURONS.values(), ids=list(NEURONS))


def made(spec, shape=(5,), scale=3.0):
    network = spec.build(shape, CLASSES).double()
    initialise(network, Seeds(2))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(scale)
    return network


def inputs(steps, shape=(5,), *, spikes=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(steps, B, *shape, dtype=torch.float64, generator=generator)
    return (x < 0.5).double() if spikes else x


def loss_of(logits):
    return functional.cross_entropy(logits, LABELS)


def gradients(network, factors):
    return form_gradients(network, factors.synapses, factors.direct)


def mean(y, neuron):
    """Weighted mean over steps, from the definition."""
    beta = math.exp(-neuron.dt / neuron.tau_mem) if isinstance(neuron, RateLIF) else 1.0
    w = torch.tensor([beta ** (len(y) - t) for t in range(1, len(y) + 1)], dtype=y.dtype)
    return torch.einsum("t,t...->...", w, y) / w.sum()


def ends(neuron):
    """Slope and largest rate, as a multiple of the threshold."""
    if isinstance(neuron, RateIF):
        return 1.0, 1.0
    beta = math.exp(-neuron.dt / neuron.tau_mem)
    return (1 - beta) / neuron.dt, 1 / neuron.dt


# The neurons


@pytest.mark.parametrize("drive", [-0.4, 0.0, 0.13, 0.5, 0.87, 1.0, 1.6])
def test_the_rate_of_an_integrator_is_a_clamp(drive):
    out, _ = scan(torch.full((1000, 1, 1), drive, dtype=torch.float64), None, RateIF(v_th=1.0))
    assert float(out.mean()) == pytest.approx(min(max(drive, 0.0), 1.0), abs=1e-3)


@pytest.mark.parametrize("drive", [-0.4, 0.0, 0.13, 0.5, 0.87, 1.6])
@pytest.mark.parametrize("dt", [0.01, 0.05])
def test_the_weighted_rate_of_a_leaky_neuron_is_a_clamp(drive, dt):
    """Up to what is left on the membrane, which is at most a threshold."""
    neuron = RateLIF(v_th=dt, tau_mem=1.0, dt=dt)  # rates up to 1
    x = torch.full((int(20 / dt), 1, 1), drive, dtype=torch.float64)
    out, state = scan(x, None, neuron)
    slope, top = ends(neuron)
    rate = float(mean(out, neuron))
    weights = sum(neuron.decay**k for k in range(len(x)))
    left = float(state.v) / (dt * weights)
    if 0 <= slope * drive <= top * dt:
        assert rate + left == pytest.approx(slope * drive, abs=1e-12)
        assert abs(left) <= 1 / weights
    else:
        assert rate == pytest.approx(min(max(slope * drive, 0.0), 1.0), abs=1e-9)
    assert slope == pytest.approx(1.0, abs=dt)  # the source's, 1/tau_mem, for small steps
    torch.testing.assert_close(
        mean(out, neuron), torch.tensordot(neuron.step_weights(len(out), out), out, 1)
    )


def test_the_error_of_a_mean_is_bounded_for_inputs_up_to_a_threshold():
    neuron, steps = RateIF(v_th=0.7), 8
    x = 0.7 * torch.rand(steps, 500, 1, dtype=torch.float64, generator=torch.Generator())
    out, _ = scan(x, None, neuron)
    errors = (out.mean(0) - x.mean(0)).abs()
    assert 0.9 < float(errors.max()) / (0.7 / (2 * steps)) < 1 + 1e-9
    out, _ = scan(torch.tensor([0.0, 1.4]).view(2, 1, 1), None, neuron)  # twice a threshold
    assert float(out.mean()) == pytest.approx(0.35)  # not 0.7, though 0.7 / 4 is the bound


def test_a_threshold_next_to_its_bound_hardly_moves():
    for v_th in (0.01, 0.011, 0.05, 0.5):
        cells = Cells(RateIF(v_th=v_th)).double()
        cells.restart()
        (slope,) = torch.autograd.grad(cells.bound().v_th, list(cells.parameters()))
        assert float(slope) == pytest.approx(1 - math.exp(0.01 - v_th), abs=1e-6)


@each_neuron
def test_a_step_by_hand(neuron):
    x = inputs(30, spikes=False)[:, 0] - 0.2
    out, _ = scan(x[:, None], None, neuron)
    slope, top = ends(neuron)
    v, total = torch.zeros(5, dtype=torch.float64), 0
    for t in range(30):
        v = (
            v + x[t]
            if isinstance(neuron, RateIF)
            else math.exp(-0.25) * v + (1 - math.exp(-0.25)) * x[t]
        )
        fired = v >= neuron.fire * neuron.v_th
        v = v - neuron.v_th * fired
        torch.testing.assert_close(out[t, 0], top * neuron.v_th * fired.double())
        total += fired.sum()
    assert total > 5


@each_neuron
def test_kernels_know_their_equations(neuron):
    x = inputs(12, spikes=False).requires_grad_()
    assert choose(neuron, x).name == "compiled"
    found = []
    for run in (scan, reference):
        v_th = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        out, state = run(x, None, neuron.bind({"v_th": v_th}))
        loss = (out * x.detach()).sum() + state.v.square().sum()
        found.append((out, *torch.autograd.grad(loss, [x, v_th])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert bool(a.any())


@each_neuron
def test_no_step_takes_a_threshold_below_its_bound(neuron):
    network = made(SpikingMlp(hidden=(4,), neuron=neuron))
    with pytest.raises(ConfigError, match=r"at least 0\.01"):
        replace(neuron, v_th=0.005)
    stored = network.weights()["hidden1.neuron.v_th"]
    start = float(network.layers["hidden1"].neuron.bound().v_th.detach())
    assert start == pytest.approx(neuron.v_th, rel=1e-12)
    running = Sgd(lr=1e3).start({"v": stored})
    for _ in range(5):
        with torch.no_grad():
            running.step({"v": torch.ones_like(stored)}, 1.0)
        value = network.layers["hidden1"].neuron.bound().v_th.detach()
        assert 0.01 <= float(value) < 0.011
    with torch.no_grad():
        running.step({"v": torch.full_like(stored, -10.0)}, 1.0)  # and it comes back
    assert float(network.layers["hidden1"].neuron.bound().v_th.detach()) > 1


# The gradient


def clamped(network, x, neuron, below):
    """The rate map, layer by layer, at the means that were really transmitted; plain torch."""
    weights = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    slope, top = ends(neuron)
    names = [n for n in network.layers if n != "readout"]
    y = mean(x, neuron)
    for name in names:
        current = functional.linear(y, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
        v_th = 0.01 + functional.softplus(weights[f"{name}.neuron.v_th"])
        rate = torch.clamp(slope * current, min=0)
        rate = torch.where(rate > top * v_th, top * v_th, rate)
        plain = name == names[-1]
        sent = below[name].mean(0) if plain else mean(below[name], neuron)
        y = sent + rate - rate.detach()
    logits = functional.linear(y, weights["readout.weight"], weights.get("readout.bias"))
    loss = loss_of(logits)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@each_neuron
@pytest.mark.parametrize("steps", [1, 4, 40])
def test_gradients_are_those_of_the_map_between_means(neuron, steps):
    scale = 3.0 if neuron is IF_ else 8.0  # some rates are at their upper end
    network = made(SpikingMlp(hidden=(7, 6), neuron=neuron, bias=True), scale=scale)
    x = inputs(steps)
    factors = Dsr().factors(network, x, loss_of)
    sent = {n: torch.from_numpy(t["spikes"]) for n, t in network.record(x).items()}
    expected = clamped(network, x, neuron, sent)
    found = gradients(network, factors)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    if steps > 1:
        assert all(bool(g.any()) for g in found.values())
    torch.testing.assert_close(factors.logits, network(x).logits.detach())
    torch.testing.assert_close(factors.loss, loss_of(network(x).logits).detach())


def test_with_many_steps_it_is_the_gradient_of_a_clamp_network():
    """Nothing measured: a network of clamps and its autograd."""
    network = made(SpikingMlp(hidden=(7, 6), neuron=IF_, bias=True))
    x = inputs(1, spikes=False).expand(4000, B, 5)
    found = gradients(network, Dsr().factors(network, x, loss_of))
    weights = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    y = x[0]
    for name in ("hidden1", "hidden2"):
        current = functional.linear(y, weights[f"{name}.weight"], weights[f"{name}.bias"])
        v_th = 0.01 + functional.softplus(weights[f"{name}.neuron.v_th"])
        y = torch.minimum(torch.relu(current), v_th)
    logits = functional.linear(y, weights["readout.weight"], weights["readout.bias"])
    expected = torch.autograd.grad(loss_of(logits), list(weights.values()))
    for name, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=0.02, atol=1e-3)
        assert float((found[name] * gradient).sum() / gradient.square().sum()) == pytest.approx(
            1, abs=0.01
        )


@each_neuron
def test_rows_are_one_for_a_sample_and_transmitted_ones_the_spikes(neuron):
    network = made(SpikingMlp(hidden=(7,), neuron=neuron))
    for steps in (4, 8):
        x = inputs(steps)
        factors = Dsr().factors(network, x, loss_of)
        hidden, readout = factors.synapses["hidden1"], factors.synapses["readout"]
        assert hidden.x.shape == (B, 5) and hidden.delta.shape == (B, 7)
        torch.testing.assert_close(hidden.x, mean(x, neuron))
        torch.testing.assert_close(hidden.transmitted, x.flatten(0, 1))
        sent = torch.from_numpy(network.record(x)["hidden1"]["spikes"])
        torch.testing.assert_close(readout.x, sent.mean(0))
        tensors = (hidden.x, hidden.delta, readout.delta, factors.loss, factors.logits)
        assert not any(t.requires_grad for t in tensors)


def test_maps_and_pools_by_autograd():
    """Convolution, average pooling and dropout: linear in the means, so autograd of the means."""
    spec = SpikingConvNet(
        channels=(2, 3), kernel=2, pool="average", pool_size=2, neuron=IF_, bias=True, dropout=0.3
    )
    network, x = made(spec, (9, 8), scale=1.5), inputs(6, (9, 8))
    factors = Dsr().factors(network, x, loss_of, generator=torch.Generator().manual_seed(1))
    drawn = torch.Generator().manual_seed(1)
    weights = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    y = x.mean(0)[:, None]
    steps = x[:, :, None]
    for name in ("conv1", "conv2"):
        if name == "conv2":
            keep = torch.rand(y.shape, generator=drawn, dtype=y.dtype) >= 0.3
            y, steps = y * keep / 0.7, steps * keep / 0.7
        w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
        current = functional.conv2d(y, w, b)
        v_th = 0.01 + functional.softplus(weights[f"{name}.neuron.v_th"])
        drive = functional.conv2d(steps.flatten(0, 1), w, b).detach()
        out, _ = scan(
            drive.view(6, B, *drive.shape[1:]), None, replace(IF_, v_th=float(v_th.detach()))
        )
        rate = torch.where(current > v_th, v_th, torch.relu(current))
        y = functional.avg_pool2d(out.mean(0) + rate - rate.detach(), 2)
        steps = functional.avg_pool2d(out.flatten(0, 1), 2).view(6, *y.shape)
    keep = torch.rand(y.shape, generator=drawn, dtype=y.dtype) >= 0.3
    logits = functional.linear(
        (y * keep / 0.7).flatten(1), weights["readout.weight"], weights["readout.bias"]
    )
    torch.testing.assert_close(factors.logits, logits.detach())
    expected = torch.autograd.grad(loss_of(logits), list(weights.values()))
    found = gradients(network, factors)
    for name, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
        assert bool(gradient.any())
    assert factors.synapses["conv2"].maps.shape[0] == B
    assert len(factors.synapses["conv2"].transmitted) == 6 * len(factors.synapses["conv2"].x)


def test_shortcuts_output_neurons_and_thresholds_of_each_neuron():
    spec = SpikingResNet(width=2, blocks=(1, 1), norm="none", neuron=IF_)
    network = made(spec, (6, 6))
    found = gradients(network, Dsr().factors(network, inputs(5, (6, 6)), loss_of))
    assert found.keys() == network.weights().keys()
    assert all(bool(found[f"{n}.weight"].any()) for n in network.layers)
    spec = SpikingMlp(hidden=(7,), neuron=IF_, per_neuron=True, output=RateIF(v_th=2.0))
    network = made(spec)
    factors = Dsr().factors(network, inputs(5), loss_of)
    assert factors.direct["hidden1.neuron.v_th"].shape == (7,)
    assert set(factors.direct) == {"hidden1.neuron.v_th", "readout.neuron.v_th"}
    static = made(replace(spec, learns=(), per_neuron=False, output=None))
    assert not Dsr().factors(static, inputs(5), loss_of).direct


class Bridged:
    """Two layers of neurons; the second also feels the input itself."""

    def __init__(self, neuron):
        self.neuron = neuron

    def build(self, shape, classes):
        (n,), cells = shape, self.neuron
        return Network(
            {
                "first": Layer(Linear(n, n), Cells(cells), inputs=("input",)),
                "second": Layer(Linear(n, n), Cells(cells), inputs=("first",), currents=("input",)),
                "readout": Layer(Linear(n, classes), None, inputs=("second",)),
            }
        )


def added(network, x, neuron):
    """The rate map with shortcuts, layer by layer, at the means that were really transmitted."""
    weights = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    fired = {n: torch.from_numpy(t["spikes"]) for n, t in network.record(x).items()}
    fired["input"], rates = x, {}
    slope, top = ends(neuron)

    def felt(source, plain):
        if source not in fired:
            return rates[source]
        y = fired[source].mean(0) if plain else mean(fired[source], neuron)
        return y + rates[source] - rates[source].detach() if source in rates else y

    for name, layer in network.layers.items():
        plain, w = name == "readout", weights[f"{name}.weight"]
        h = sum(felt(source, plain) for source in layer.inputs)
        if w.dim() == 4:
            space = layer.synapse.geometry
            h = h if h.dim() == 4 else h[:, None]
            current = functional.conv2d(h, w, stride=space.stride, padding=space.padding)
        else:
            current = functional.linear(h.mean((2, 3)) if h.dim() == 4 else h, w)
        for source in layer.currents:
            current = current + felt(source, plain)
        if layer.neuron is not None:
            v_th = 0.01 + functional.softplus(weights[f"{name}.neuron.v_th"])
            rate = torch.relu(slope * current)
            current = torch.where(rate > top * v_th, top * v_th, rate)
        rates[name] = current
    logits = network(x).logits.detach() + current - current.detach()
    found = torch.autograd.grad(loss_of(logits), list(weights.values()))
    return dict(zip(weights, found, strict=True))


@pytest.mark.parametrize(
    ("spec", "neuron", "shape"),
    [
        (SpikingResNet(width=3, blocks=(2, 1), norm="none", neuron=IF_), IF_, (6, 6)),
        (Bridged(IF_), IF_, (5,)),
        (Bridged(LIF_), LIF_, (5,)),
    ],
    ids=["residual", "input", "input-lif"],
)
def test_shortcuts_add_what_was_really_sent(spec, neuron, shape):
    network, x = made(spec, shape, scale=2.0), inputs(4, shape)
    expected = added(network, x, neuron)
    found = gradients(network, Dsr().factors(network, x, loss_of))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert all(bool(found[f"{name}.weight"].any()) for name in network.layers)


def saved(network, x, trainer):
    """Bytes that graphs hold for the way back."""
    held = {}

    def pack(t):
        held[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    def loss(logits):
        return loss_of(logits)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        trainer.factors(network, x, loss)
    return sum(held.values())


def test_the_memory_of_the_way_back_does_not_grow_with_the_steps():
    network = made(SpikingMlp(hidden=(40, 40), neuron=IF_))
    few, many = (saved(network, inputs(steps), Dsr()) for steps in (4, 64))
    assert few == many
    few, many = (saved(network, inputs(steps), Bptt()) for steps in (4, 64))
    assert many > 4 * few


def test_nothing_is_left_behind_and_the_same_call_gives_the_same_bits():
    network, x = made(SpikingMlp(hidden=(7,), neuron=LIF_)), inputs(5)
    before = {n: p.detach().clone() for n, p in network.weights().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        a, b = (gradients(network, Dsr().factors(network, x, loss_of)) for _ in range(2))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(p.detach(), before[n]) for n, p in network.weights().items())
    other = {n: 0.5 * p.detach() for n, p in network.weights().items()}
    changed = gradients(network, Dsr().factors(network, x, loss_of, weights=other))
    network.set_parameters(other)
    expected = gradients(network, Dsr().factors(network, x, loss_of))
    assert all(torch.equal(changed[n], expected[n]) for n in changed)


# What it is not for


@pytest.mark.parametrize(
    ("spec", "shape", "reason"),
    [
        (SpikingMlp(hidden=(4,), neuron=LIF(beta=0.5)), (5,), "use neuron='rate_if'"),
        (SpikingRecurrentNet(hidden=(4,), neuron=IF_), (5,), "it listens to itself"),
        (SpikingMlp(hidden=(4,), neuron=IF_, norm="batch"), (5,), "norm='none'"),
        (SpikingConvNet(channels=(2,), kernel=2, neuron=IF_), (6, 6), "pool='average'"),
        (SpikingMlp(hidden=(4,), neuron=IF_, axonal_delay=2), (5,), "neither delays"),
        (SpikingMlp(hidden=(4,), neuron=IF_, readout="max"), (5,), "the means over steps alone"),
        (
            SpikingMlp(hidden=(4,), neuron=IF_, output=RateLIF(v_th=0.3)),
            (5,),
            "several time constants",
        ),
    ],
)
def test_what_is_no_map_between_means_is_refused(spec, shape, reason):
    with pytest.raises(PairingError, match=reason):
        Dsr().check(made(spec, shape), inputs(2, shape), CrossEntropy())


def test_losses_of_steps_are_refused():
    network = made(SpikingMlp(hidden=(4,), neuron=IF_, readout="mean_current"))
    Dsr().check(network, inputs(2), CrossEntropy())
    with pytest.raises(PairingError, match="a loss of the logits"):
        Dsr().check(network, inputs(2), StepCrossEntropy())
    with pytest.raises(PairingError, match="a loss of the logits"):
        Dsr().factors(network, inputs(2), PerStep(lambda steps: steps.sum()))


# Learning


@pytest.mark.parametrize("name", ["dsr", "dsr-lif", "bptt"])
def test_digits_are_learned(name):
    neuron = RateLIF(v_th=0.3) if name == "dsr-lif" else RateIF(v_th=1.0)
    network = SpikingMlp(hidden=(64,), neuron=neuron).build((8, 8), 10)
    trainer = Bptt() if name == "bptt" else TRAINERS.get("dsr")()
    learner = Learner(
        stream=joint(permuted(load("digits"), experiences=1)),
        network=network,
        encoder=Direct(steps=8),
        trainer=trainer,
        methods=(),
        optimiser=Adam(lr=0.01),
        plan=TrainPlan(batch=32, epochs=5),
        seeds=Seeds(0),
        device=torch.device("cpu"),
    )
    start = neuron.v_th
    for _ in learner.ticks():
        pass
    assert learner.scores.matrices()[0].final[-1] > 0.9
    assert float(network.layers["hidden1"].neuron.bound().v_th.detach()) != pytest.approx(
        start, abs=1e-3
    )
