"""NACA against its curve at known points, and against loops written from its equations."""

import math

import pytest
import torch
from torch.nn import functional

from spikecl.data import load
from spikecl.encoding import CrossEntropy, Direct
from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    Mlp,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import ALIF, CUBA, LIF, PLIF, Reset
from spikecl.optim import Adam
from spikecl.registry import TRAINERS
from spikecl.seeds import Seeds
from spikecl.streams import joint, permuted
from spikecl.trainers import Bptt, Naca
from spikecl.trainers.naca import expectation

B, CLASSES = 6, 3
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
SOFT = LIF(beta=0.5, v_th=0.4)
HARD = LIF(beta=0.7, v_th=0.3, reset=Reset.ZERO, scale_input=True, strict=False)


def made(spec, shape=(5,), scale=3.0):
    network = spec.build(shape, CLASSES).double()
    initialise(network, Seeds(2))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(scale)
    return network


def inputs(steps=5, shape=(5,)):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(steps, B, *shape, dtype=torch.float64, generator=generator)
    return (x < 0.5).double()


def loss_of(logits):
    return functional.cross_entropy(logits, LABELS)


def call(trainer, network, x, **options):
    return trainer.factors(network, x, loss_of, labels=LABELS, **options)


# The curve


def test_known_points_of_the_modulation():
    levels = torch.tensor([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 1.2, 1.0, 0.0, -1.0, -1.2, -1.0], dtype=torch.float64)
    torch.testing.assert_close(Naca().modulation(levels), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("inverse", [0.3, 0.5])
@pytest.mark.parametrize("most", [1.0, 1.2, 2.0])
def test_the_modulation_is_odd_and_continuous(inverse, most):
    trainer = Naca(lambda_inv=inverse, theta_max=most)
    d = torch.linspace(0, inverse, 101, dtype=torch.float64)
    torch.testing.assert_close(
        trainer.modulation(inverse + d), -trainer.modulation(inverse - d), rtol=0, atol=1e-12
    )
    for level, value in ((inverse / 2, 1.0), (inverse, 0.0), (1.5 * inverse, -1.0)):
        at = torch.tensor([level - 1e-9, level, level + 1e-9], dtype=torch.float64)
        torch.testing.assert_close(
            trainer.modulation(at), torch.full((3,), value).double(), rtol=0, atol=1e-7
        )
    assert float(trainer.modulation(d).max()) <= most + 1e-12


@pytest.mark.parametrize("lam", [0.25, 0.3, 0.4, 0.5])
def test_the_curve_piece_by_piece(lam):
    """The four pieces as the source writes them; above them the modulation stays."""

    def phi(n, most=1.5):
        if n <= lam / 2:
            return most - (most - 1) * (4 * n - lam) ** 2 / lam**2
        if n <= lam:
            return 4 * (n - lam) ** 2 / lam**2
        if n <= 1.5 * lam:
            return -4 * ((2 * lam - n) - lam) ** 2 / lam**2
        if n <= 2 * lam:
            return (most - 1) * (4 * (2 * lam - n) - lam) ** 2 / lam**2 - most
        return -1.0

    levels = torch.linspace(0, 1, 201, dtype=torch.float64)
    expected = torch.tensor([phi(float(n)) for n in levels], dtype=torch.float64)
    found = Naca(lambda_inv=lam, theta_max=1.5).modulation(levels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert float(found.abs().max()) <= 1.5 + 1e-12


def test_codes_of_classes():
    for classes in (2, 10, 100):
        codes = expectation(torch.arange(classes), classes)
        assert codes.shape == (classes, 2 * classes)
        assert torch.equal(codes.sum(1), torch.ones(classes))
        assert set(codes.unique().tolist()) == {0.0, 0.5}
        first = codes.argmax(1)
        assert bool((codes.gather(1, first[:, None] + 1) == 0.5).all())
        assert len(set(first.tolist())) == classes
        spread = [math.sqrt(2 * math.log(classes / i)) for i in range(1, classes + 1)]
        places = [int(a / spread[0] * 2 * (classes - 1)) for a in spread]
        assert sum(a != b for a, b in zip(places, first.tolist(), strict=True)) == 0
    for classes in (1, 400):
        with pytest.raises(UsageError, match="no codes of their own"):
            expectation(torch.zeros(1, dtype=torch.long), classes)


@pytest.mark.parametrize("distribution", ["uniform", "normal", "beta"])
def test_levels_reach_neurons_through_fixed_weights(distribution):
    network = made(SpikingMlp(hidden=(400, 7), neuron=SOFT))
    trainer = Naca(distribution=distribution)
    drawn = trainer.variables(network, Seeds(0), inputs())
    again = trainer.variables(network, Seeds(0), inputs())
    first = drawn["neuromodulator.hidden1"]
    assert first.shape == (6, 400) and drawn["neuromodulator.hidden2"].shape == (6, 7)
    assert all(torch.equal(drawn[n], again[n]) for n in drawn)
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    assert float(first.mean()) == pytest.approx(0.5, abs=0.04)
    below = {"uniform": 0.1, "normal": 0.3446, "beta": 2 / math.pi * math.asin(0.1**0.5)}
    share = float((first <= 0.1).double().mean())
    assert share == pytest.approx(below[distribution], abs=0.04)
    assert not call(trainer, network, inputs()).variables


# Factors


def looped(network, x, trainer, variables, neuron):
    """Gradients of the first layer, sample by sample, neuron by neuron."""
    w = network.weights()["hidden1.weight"].detach()
    steps, n = len(x), len(w)
    sums = torch.zeros_like(w)
    beta, c = float(neuron.beta), float(neuron.input_scale)
    mean = x.mean((0, 1))
    for b in range(B):
        code = expectation(LABELS[b : b + 1], CLASSES).double()[0]
        for j in range(n):
            level = float(code @ variables["neuromodulator.hidden1"][:, j])
            phi = float(trainer.modulation(torch.tensor(level, dtype=torch.float64)))
            gate = 1.0
            if trainer.gate:
                place = mean[j * len(mean) // n]
                gate = 1 / (1 + math.exp(-1000 * (float(place - mean.max()) + trainer.gate)))
            v, s, fire, trace = 0.0, 0.0, 0.0, torch.zeros(x.shape[2]).double()
            for t in range(steps):
                hard = neuron.reset is Reset.ZERO
                trace = trace * beta * ((1 - s) if hard and t else 1.0) + c * x[t, b]
                before = s
                u = beta * v + c * float(w[j] @ x[t, b])
                near = 1.0 if u > neuron.v_th * (1 - trainer.window) else 0.0
                s = 1.0 if (u > neuron.v_th if neuron.strict else u >= neuron.v_th) else 0.0
                v = u * (1 - s) if hard else u - s * neuron.v_th
                fire = near - before
            sums[j] += phi * gate * fire * trace / B
    return sums


@pytest.mark.parametrize("neuron", [SOFT, HARD], ids=["soft", "hard"])
@pytest.mark.parametrize("gate", [0.0, 0.2])
def test_the_factor_of_a_hidden_layer_against_a_loop(neuron, gate):
    network, x = made(SpikingMlp(hidden=(9,), neuron=neuron)), inputs()
    x[:, 0, 0] = 0.0
    trainer = Naca(gate=gate)
    variables = trainer.variables(network, Seeds(1), x)
    factor = call(trainer, network, x, variables=variables).synapses["hidden1"]
    expected = looped(network, x, trainer, variables, neuron)
    assert bool(expected.any())
    torch.testing.assert_close(factor.gradient(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(factor.transmitted, x.flatten(0, 1))
    static = x[:1].expand(5, B, 5)
    a = call(trainer, network, static, variables=variables).synapses["hidden1"]
    b = call(trainer, network, static.clone(), variables=variables).synapses["hidden1"]
    assert len(a.x) == B and len(b.x) == 5 * B
    torch.testing.assert_close(a.gradient(), b.gradient())


def test_where_a_membrane_rests_makes_no_difference():
    """In millivolts, and counted from rest: the same dynamics, the same gradient."""
    millivolts = LIF(beta=0.8, v_rest=-65.0, v_th=-50.0, reset=Reset.VALUE, v_reset=-65.0)
    found, spikes = [], []
    for neuron in (millivolts, LIF(beta=0.8, v_th=15.0, reset=Reset.ZERO)):
        network = made(SpikingMlp(hidden=(20,), neuron=neuron, gain=20.0), scale=2.0)
        spikes.append(torch.from_numpy(network.record(inputs(10))["hidden1"]["spikes"]))
        factors = call(Naca(gate=0.0), network, inputs(10))
        found.append(factors.synapses["hidden1"].gradient())
    assert torch.equal(*spikes) and 0 < float(spikes[0].mean()) < 0.5
    assert bool(found[0].any())
    torch.testing.assert_close(*found)


def test_the_readout_follows_its_own_error():
    for readout in ("mean_rate", "mean_current"):
        network = made(SpikingMlp(hidden=(9,), neuron=SOFT, bias=True, readout=readout))
        ours, bptt = call(Naca(), network, inputs()), Bptt().factors(network, inputs(), loss_of)
        a, b = ours.synapses["readout"], bptt.synapses["readout"]
        torch.testing.assert_close(a.gradient(), b.gradient())
        torch.testing.assert_close(a.bias_gradient(), b.bias_gradient())
        torch.testing.assert_close(ours.loss, bptt.loss)
        torch.testing.assert_close(ours.logits, bptt.logits)


def test_no_weight_goes_back():
    """What lies above a hidden layer has no say in its gradient; the label does."""
    network, x = made(SpikingMlp(hidden=(9, 8), neuron=SOFT)), inputs()
    trainer = Naca()
    variables = trainer.variables(network, Seeds(1), x)
    before = call(trainer, network, x, variables=variables).synapses["hidden1"].gradient()
    with torch.no_grad():
        network.synapses["readout"].weight.neg_()
        network.synapses["hidden2"].weight.mul_(2)
    after = call(trainer, network, x, variables=variables).synapses["hidden1"].gradient()
    assert torch.equal(before, after) and bool(before.any())
    other = trainer.factors(network, x, loss_of, variables=variables, labels=LABELS.flip(0) * 0)
    assert not torch.equal(before, other.synapses["hidden1"].gradient())


def test_convolutions_are_dense_layers_with_shared_weights():
    spec = SpikingConvNet(channels=(2,), kernel=2, pool_size=2, neuron=SOFT, bias=True)
    network, x = made(spec, (4, 5)), inputs(4, (4, 5))
    trainer = Naca(gate=0.0)
    variables = trainer.variables(network, Seeds(1), x)
    factors = call(trainer, network, x, variables=variables)
    synapse = network.synapses["conv1"]
    # the same layer as a dense one: its matrix column by column
    eye = torch.eye(20, dtype=torch.float64).view(20, 1, 4, 5)
    matrix = functional.conv2d(eye, synapse.weight.detach()).flatten(1).T
    bias = synapse.bias.detach().repeat_interleave(12)
    dense = made(SpikingMlp(hidden=(24,), neuron=SOFT, bias=True), (20,))
    with torch.no_grad():
        dense.synapses["hidden1"].weight.copy_(matrix)
        dense.synapses["hidden1"].bias.copy_(bias)
    same = {"neuromodulator.hidden1": variables["neuromodulator.conv1"]}
    full = call(trainer, dense, x.flatten(2), variables=same).synapses["hidden1"]
    folded = torch.autograd.grad(
        functional.conv2d(eye, w := synapse.weight.detach().requires_grad_()).flatten(1).T,
        w,
        full.gradient(),
    )[0]
    found = factors.synapses["conv1"]
    torch.testing.assert_close(found.gradient().view(folded.shape), folded)
    torch.testing.assert_close(found.bias_gradient(), full.bias_gradient().view(2, 12).sum(1))
    assert bool(folded.any())


def test_state_weights_and_determinism():
    network, x = made(SpikingMlp(hidden=(9,), neuron=PLIF(v_th=0.2))), inputs(6)
    trainer = Naca()
    random = torch.get_rng_state()
    a, b = (call(trainer, network, x) for _ in range(2))
    for name in a.synapses:
        assert torch.equal(a.synapses[name].gradient(), b.synapses[name].gradient())
    assert torch.equal(torch.get_rng_state(), random)
    other = {n: 0.5 * p.detach() for n, p in network.weights().items()}
    changed = call(trainer, network, x, weights=other)
    network.set_parameters(other)
    again = call(trainer, network, x)
    for name, factor in changed.synapses.items():
        assert torch.equal(factor.gradient(), again.synapses[name].gradient())
        assert not factor.delta.requires_grad
    open_, slow = Naca(gate=0.0), made(SpikingMlp(hidden=(9,), neuron=LIF(beta=0.9)))
    start = slow(x[:5]).state
    warm, whole = call(open_, slow, x[5:], state=start), call(open_, slow, x)
    late = whole.synapses["hidden1"].delta[5 * B :]  # but for spikes just before: none is known
    quiet = torch.from_numpy(slow.record(x)["hidden1"]["spikes"])[4] == 0
    torch.testing.assert_close(warm.synapses["hidden1"].delta[quiet], late[quiet])
    cold = call(open_, slow, x[5:]).synapses["hidden1"].delta
    assert bool(late[quiet].any()) and not torch.equal(cold[quiet], late[quiet])
    warm = call(trainer, network, x)
    found = form_gradients(network, warm.synapses, warm.direct)
    assert set(found) == {"hidden1.weight", "readout.weight"}


# What it is not for


def test_labels_are_needed():
    network = made(SpikingMlp(hidden=(9,), neuron=SOFT))
    with pytest.raises(UsageError, match="pass labels"):
        Naca().factors(network, inputs(), loss_of)


@pytest.mark.parametrize(
    ("spec", "shape", "reason"),
    [
        (Mlp(hidden=(4,)), (5,), "plain LIF neurons"),
        (SpikingMlp(hidden=(4,), neuron=ALIF()), (5,), "plain LIF neurons"),
        (SpikingMlp(hidden=(4,), neuron=CUBA()), (5,), "plain LIF neurons"),
        (SpikingMlp(hidden=(4,), neuron=LIF(noise=0.1)), (5,), "without noise"),
        (SpikingMlp(hidden=(4,), neuron=LIF(reset_time="next")), (5,), "reset_time='same'"),
        (SpikingRecurrentNet(hidden=(4,), neuron=SOFT), (5,), "without recurrence"),
        (SpikingMlp(hidden=(4,), neuron=SOFT, norm="batch"), (5,), "norm='none'"),
        (SpikingMlp(hidden=(4,), neuron=SOFT, output=SOFT), (5,), "the readout is linear"),
        (SpikingResNet(width=2, blocks=(1, 1), norm="none", neuron=SOFT), (6, 6), "shortcuts"),
    ],
)
def test_layers_without_a_local_rule_are_refused(spec, shape, reason):
    with pytest.raises(PairingError, match=reason):
        Naca().check(made(spec, shape), inputs(2, shape), CrossEntropy())


def test_options_and_classes_are_checked():
    for wrong in ({"lambda_inv": 0.0}, {"theta_max": 0.5}, {"window": 0.0}, {"gate": -1.0}):
        with pytest.raises(ConfigError):
            Naca(**wrong)
    network = SpikingMlp(hidden=(4,), neuron=SOFT).build((5,), 500)
    with pytest.raises(PairingError, match="no codes of their own"):
        Naca().check(network, torch.zeros(1, 1, 5), CrossEntropy())
    Naca().check(made(SpikingMlp(hidden=(4,), neuron=SOFT)), inputs(), CrossEntropy())


# Learning


@pytest.mark.parametrize("gate", [0.0, 0.2])
def test_digits_are_learned(gate):
    learner = Learner(
        stream=joint(permuted(load("digits"), experiences=1)),
        network=SpikingMlp(hidden=(64,), neuron=LIF(beta=0.5)).build((8, 8), 10),
        encoder=Direct(steps=6),
        trainer=TRAINERS.get("naca")(gate=gate),
        methods=(),
        optimiser=Adam(lr=0.002),
        plan=TrainPlan(batch=32, epochs=5),
        seeds=Seeds(0),
        device=torch.device("cpu"),
    )
    start = learner.network.weights()["hidden1.weight"].detach().clone()
    for _ in learner.ticks():
        pass
    assert learner.scores.matrices()[0].final[-1] > 0.6
    assert not torch.equal(start, learner.network.weights()["hidden1.weight"])
