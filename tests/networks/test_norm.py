"""Batch normalisation against torch.nn.BatchNorm1d and 2d, with time and batch as one."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from spikecl.data.arrays import checked
from spikecl.encoding import Direct, Rate
from spikecl.errors import ConfigError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import BatchNorm, SpikingConvNet, SpikingMlp, form_gradients, initialise
from spikecl.networks.presynaptic import Pass
from spikecl.neurons import LIF, PLIF, ConductanceLIF
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import permuted
from spikecl.trainers import Bptt


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(shape):
    """Return ours and torch's with the same parameters and statistics."""
    size = shape[1]
    ours = BatchNorm(size, gain=0.7).double()
    theirs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(size).double()
    with torch.no_grad():
        ours.shift.copy_(random(size, seed=1))
        ours.mean.copy_(random(size, seed=2))
        ours.variance.copy_(random(size, seed=3).abs() + 0.1)
        theirs.weight.copy_(ours.gain)
        theirs.bias.copy_(ours.shift)
        theirs.running_mean.copy_(ours.mean)
        theirs.running_var.copy_(ours.variance)
    return ours, theirs


def normalise(norm, rows, *, training):
    run = Pass({f"n.{k}": p for k, p in norm.named_parameters()}, {}, training)
    return norm(rows, "n", run), run.statistics


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(12, 5), (6, 5, 4, 3), (2, 5), (1, 5, 2, 1)])
def test_is_torch_s(shape, training):
    ours, theirs = pair(shape)
    theirs.train(training)
    x = (2 * random(*shape, seed=5) + 1).requires_grad_()
    y, statistics = normalise(ours, x, training=training)
    expected = theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    delta = random(*shape, seed=6)
    found = torch.autograd.grad(y, [x, ours.gain, ours.shift], delta)
    wanted = torch.autograd.grad(expected, [x, theirs.weight, theirs.bias], delta)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    if training:
        torch.testing.assert_close(statistics["n.mean"], theirs.running_mean)
        torch.testing.assert_close(statistics["n.variance"], theirs.running_var)
        assert not any(s.requires_grad for s in statistics.values())
    else:
        assert not statistics
    assert torch.equal(ours.mean, pair(shape)[0].mean)  # nothing is written on the module


def test_one_value_has_no_variance_so_the_running_statistics_stand_in():
    norm, x = BatchNorm(3), torch.rand(1, 3)
    assert torch.equal(normalise(norm, x, training=True)[0], normalise(norm, x, training=False)[0])
    output = SpikingMlp(norm="batch", hidden=(3,)).build((4,), 2)(
        torch.rand(1, 1, 4), training=True
    )
    assert not output.statistics


@pytest.mark.parametrize(
    ("neuron", "gain"),
    [(LIF(v_th=0.3), 0.3), (PLIF(), 1.0), (LIF(v_th=-50.0, v_rest=-65.0), 15.0)],
)
def test_the_gain_starts_at_the_threshold(neuron, gain):
    network = SpikingMlp(norm="batch", hidden=(6,), neuron=neuron).build((4,), 2)
    assert network.weights()["hidden1.norm.gain"].tolist() == pytest.approx([gain] * 6)
    initialise(network, Seeds(0))
    current = network.layers["hidden1"].norm
    y, _ = normalise(current, 9 * torch.randn(500, 6, generator=torch.Generator()), training=True)
    torch.testing.assert_close(y.std(0), torch.full((6,), gain), rtol=0.01, atol=0)


@pytest.mark.parametrize("option", [{"norm": "batch"}, {"bias": True}])
def test_conductances_are_not_made_negative(option):
    with pytest.raises(ConfigError, match="both signs"):
        SpikingMlp(**option, neuron=ConductanceLIF())


class Several(Bptt):
    """Asks for factors three times in each step, as a method of gradient constraints would."""

    def factors(self, *args, **kwargs):
        for _ in range(2):
            super().factors(*args, **kwargs)
        return super().factors(*args, **kwargs)


def learner_of(network, trainer, encoder, epochs=2):
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{s}": rng.random((n, 6, 6)).astype(np.float32) for s, n in (("train", 20), ("test", 6))
    }
    arrays |= {f"y_{s}": np.arange(n) % 3 for s, n in (("train", 20), ("test", 6))}
    stream = permuted(checked(arrays, "c"), experiences=2, seed=1)
    return Learner(
        stream=stream,
        network=network,
        encoder=encoder,
        trainer=trainer,
        methods=(),
        optimiser=Sgd(lr=0.3),
        plan=TrainPlan(batch=8, epochs=epochs),
        seeds=Seeds(4),
        device=torch.device("cpu"),
    )


def spiking(kind):
    neuron = LIF(beta=0.5, v_th=0.5)
    if kind == "dense":
        return SpikingMlp(hidden=(7, 5), neuron=neuron, norm="batch").build((6, 6), 3)
    return SpikingConvNet(channels=(3,), kernel=3, neuron=neuron, norm="batch").build((6, 6), 3)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_running_statistics_move_once_per_step_through_a_learner(kind):
    """However often a trainer looks; torch.nn's module, fed the same currents, agrees."""
    once, often = (
        learner_of(spiking(kind), trainer, Rate(steps=3)) for trainer in (Bptt(), Several())
    )
    fed = []
    first = next(iter(once.network.layers.values()))
    forward = first.norm.forward

    def spy(rows, path, run):
        if run.training:
            fed.append(rows.detach().clone())
        return forward(rows, path, run)

    first.norm.forward = spy
    for learner in (once, often):
        for _ in learner.ticks():
            pass
    theirs = (nn.BatchNorm1d if kind == "dense" else nn.BatchNorm2d)(len(first.norm.gain))
    for rows in fed:
        theirs(rows)
    assert len(fed) == 2 * 2 * 3
    torch.testing.assert_close(first.norm.mean, theirs.running_mean)
    torch.testing.assert_close(first.norm.variance, theirs.running_var)
    for name, value in once.network.statistics().items():
        assert torch.equal(value, often.network.statistics()[name])
    for name, p in once.network.weights().items():
        assert torch.equal(p, often.network.weights()[name])


def test_the_layer_in_training_and_in_tests_is_a_torch_module():
    """A hidden layer by hand: linear, nn.BatchNorm1d over time and batch, a loop of LIF."""
    spec = SpikingMlp(
        hidden=(7,), neuron=LIF(beta=0.5, v_th=0.5), norm="batch", readout="mean_current"
    )
    network = spec.build((4,), 3).double()
    initialise(network, Seeds(0))
    theirs = nn.BatchNorm1d(7).double()
    theirs.weight.data.fill_(0.5)
    w = {n: p.detach() for n, p in network.weights().items()}
    for step in range(3):
        x = random(5, 6, 4, seed=step)
        for training in (True, False):
            theirs.train(training)
            currents = theirs((x @ w["hidden1.weight"].T).flatten(0, 1)).view(5, 6, 7)
            v, total = 0.0, 0.0
            for current in currents:
                v = 0.5 * v + current
                s = (v > 0.5).double()
                v = v - 0.5 * s
                total = total + s @ w["readout.weight"].T / 5
            output = network(x, training=training)
            torch.testing.assert_close(output.logits, total)
            network.set_statistics(output.statistics)
    torch.testing.assert_close(network.statistics()["hidden1.norm.mean"], theirs.running_mean)
    torch.testing.assert_close(network.statistics()["hidden1.norm.variance"], theirs.running_var)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_gradients_through_the_norm_are_autograd_s(kind):
    network = spiking(kind).double()
    initialise(network, Seeds(1))
    x = random(4, 5, 6, 6)
    y = torch.arange(5) % 3
    loss_of = lambda z: functional.cross_entropy(3 * z, y)  # noqa: E731
    factors = Bptt().factors(network, x, loss_of)
    found = form_gradients(network, factors.synapses, factors.direct)
    names = list(network.weights())
    loss = loss_of(network(x, training=True).logits)
    expected = torch.autograd.grad(loss, list(network.weights().values()))
    assert sorted(found) == sorted(names)
    for name, gradient in zip(names, expected):
        assert bool(gradient.any()), name
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11)


def test_tests_use_the_running_statistics_and_change_nothing():
    learner = learner_of(spiking("dense"), Bptt(), Direct(steps=3), epochs=1)
    held = None
    for tick in learner.ticks():
        now = {n: s.clone() for n, s in learner.network.statistics().items()}
        if tick.kind == "test" and held is not None:
            assert all(torch.equal(now[n], held[n]) for n in now)
        held = now if tick.kind in ("test", "epoch") else None
    x = torch.rand(3, 2, 6, 6)
    together = learner.network(x).logits
    alone = torch.cat([learner.network(x[:, i : i + 1]).logits for i in range(2)])
    torch.testing.assert_close(together, alone)  # no sample sees its neighbours


def test_a_normalised_run_resumes_bit_identically():
    def frozen(learner):
        tensors, values = split(learner.state_dict())
        return join({n: t.clone() for n, t in tensors.items()}, values)

    make = lambda: learner_of(spiking("dense"), Bptt(), Rate(steps=3))  # noqa: E731
    whole, state = make(), None
    for tick in whole.ticks():
        if tick.kind == "step" and tick.position.event == 1 and state is None:
            state = frozen(whole)
    again = make()
    again.load_state_dict(state)
    for _ in again.ticks():
        pass
    a, b = split(frozen(whole))[0], split(frozen(again))[0]
    assert sorted(a) == sorted(b) and all(torch.equal(a[n], b[n]) for n in a)
    assert any(n.startswith("statistics/") for n in a)


def test_a_norm_behind_dale_s_law_does_not_turn_signs():
    """A gain that training made negative counts by its size; without the law it may turn them."""
    rows = random(9, 4)
    for excitatory, same in ((0.7, True), (0.0, False)):
        spec = SpikingMlp(hidden=(4,), norm="batch", excitatory=excitatory)
        norm = spec.build((3,), 2).double().layers["hidden1"].norm
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                norm.gain.fill_(0.6 * sign)
            found.append(normalise(norm, rows, training=False)[0])
        assert torch.equal(*found) == same
