"""Zeroth-order trainers and forward gradients against autograd, closed forms and loops."""

import gc
import math
import re
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn import functional

from spikecl.data import load
from spikecl.encoding import Direct
from spikecl.errors import (
    ConfigError,
    KernelError,
    NonFiniteLossError,
    PairingError,
    UsageError,
)
from spikecl.kernels import Kernels
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    Complement,
    ConvNet,
    Mlp,
    RecurrentNet,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import LIF, PLIF, SURROGATES, Escape, Sigmoid, Smooth, spike
from spikecl.optim import Adam, Sgd
from spikecl.registry import TRAINERS
from spikecl.seeds import Seeds
from spikecl.streams import joint, permuted
from spikecl.trainers import Bptt, Call, Evolution, ForwardGradient, PerStep, Spsa
from spikecl.trainers.zeroth.evolution import centred_ranks
from spikecl.trainers.zeroth.forward_gradient import duals
from spikecl.trainers.zeroth.passes import Passes

B, T, CLASSES = 6, 4, 3
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
SMOOTH = LIF(beta=0.5, v_th=0.4, surrogate=Smooth(), detach_reset=False)
FIRES = LIF(beta=0.5, v_th=0.2)
SPECS = {
    "mlp": Mlp(hidden=(4,), bias=True),
    "spiking": SpikingMlp(hidden=(4, 3), neuron=FIRES, bias=True),
    "plif": SpikingMlp(hidden=(4,), neuron=PLIF(v_th=0.1), norm="batch"),
    "recurrent": SpikingRecurrentNet(hidden=(4,), neuron=FIRES),
    "recurrent-mlp": RecurrentNet(hidden=(4,)),
    "conv": SpikingConvNet(channels=(2,), kernel=2, pool_size=1, neuron=FIRES, bias=True),
    "conv-ann": ConvNet(channels=(2,), kernel=2, pool_size=1),
    "standardised": SpikingMlp(hidden=(4,), neuron=FIRES, standardise=True, excitatory=0.5),
    "scaled": SpikingMlp(hidden=(4,), neuron=LIF(beta=0.5, v_th=2.0), gain=8.0, bias=True),
    "delays": SpikingMlp(hidden=(4,), neuron=FIRES, delay=2, axonal_delay=2),
}
TRAINERS_HERE = {
    "spsa": Spsa(directions=2),
    "gaussian": Spsa(directions=2, distribution="gaussian"),
    "sign": Spsa(directions=2, variant="sign"),
    "conservative": Spsa(directions=2, variant="conservative"),
    "evolution": Evolution(pairs=3),
    "forward_gradient": ForwardGradient(directions=2),
}
each_network = pytest.mark.parametrize("name", SPECS)
each_trainer = pytest.mark.parametrize("trainer", TRAINERS_HERE.values(), ids=list(TRAINERS_HERE))


def made(spec, shape=(5,)):
    network = spec.build(shape, CLASSES).double()
    initialise(network, Seeds(2))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(2)
    return network


def named(name):
    shape = (3, 2) if name.startswith("conv") else (5,)
    return made(SPECS[name], shape), inputs(shape)


def inputs(shape=(5,)):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(T, B, *shape, dtype=torch.float64, generator=generator)


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


def loss_of(logits):
    return functional.cross_entropy(logits, LABELS)


def gradients(network, factors):
    return form_gradients(network, factors.synapses, factors.direct)


def flat(found):
    return torch.cat([found[name].flatten() for name in sorted(found)])


def autograd(network, x, loss=loss_of):
    parameters = dict(network.weights())
    value = loss(network(x).logits)
    found = torch.autograd.grad(value, list(parameters.values()))
    return flat(dict(zip(parameters, found, strict=True)))


def call(trainer, network, x, loss=loss_of, seed=7, **options):
    return trainer.factors(network, x, loss, generator=generator(seed), **options)


def within(mean, expected, errors, sigmas=5.0):
    assert bool(((mean - expected).abs() <= sigmas * errors + 1e-12).all())


def test_they_are_registered():
    for name, cls in (
        ("spsa", Spsa),
        ("evolution", Evolution),
        ("forward_gradient", ForwardGradient),
    ):
        assert TRAINERS.get(name) is cls
        assert cls().name == name and cls().random


# What the estimates are of


def samples(trainer, network, x, loss=loss_of, n=400):
    """Gradients [n, parameters] of independent calls."""
    given = generator(3)
    rows = [
        flat(gradients(network, trainer.factors(network, x, loss, generator=given)))
        for _ in range(n)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize(
    "trainer",
    [
        Spsa(epsilon=1e-4),
        Spsa(epsilon=1e-4, distribution="gaussian"),
        Evolution(pairs=1, sigma=1e-4, shaping="none"),
        ForwardGradient(),
        ForwardGradient(distribution="rademacher"),
    ],
    ids=["spsa", "spsa-gaussian", "evolution", "forward", "forward-rademacher"],
)
def test_the_mean_is_the_gradient_of_a_smooth_network(trainer):
    network, x = made(SpikingMlp(hidden=(3,), neuron=SMOOTH, bias=True)), inputs()
    found, expected = samples(trainer, network, x), autograd(network, x)
    errors = found.std(0) / len(found) ** 0.5
    within(found.mean(0), expected, errors)
    # the test would see a factor of two: the gradient is many standard errors long
    assert float((expected.square() / errors.square()).sum()) > 100
    mean = found.mean(0)
    assert 0.8 < float(mean @ expected / expected.square().sum()) < 1.2


def test_one_direction_by_hand():
    network, x = made(SpikingMlp(hidden=(3,), neuron=SMOOTH)), inputs()
    trainer = Spsa(directions=2, epsilon=0.01)
    found = gradients(network, call(trainer, network, x))
    drawn, expected = generator(), {n: torch.zeros_like(p) for n, p in network.weights().items()}
    for _ in range(2):
        z = {
            n: 2.0 * torch.randint(2, p.shape, generator=drawn).double() - 1
            for n, p in network.weights().items()
        }
        sides = []
        for sign in (1, -1):
            moved = {n: p.detach() + sign * 0.01 * z[n] for n, p in network.weights().items()}
            sides.append(float(loss_of(network(x, weights=moved).logits)))
        for n in expected:
            expected[n] += (sides[0] - sides[1]) / 0.02 * z[n] / 2
    for n, gradient in expected.items():
        torch.testing.assert_close(found[n], gradient, rtol=1e-10, atol=1e-12)


def test_the_variance_of_a_linear_loss():
    """Rademacher: ``(|a|^2 - a_i^2) / P``; normal: ``(|a|^2 + a_i^2) / P``."""
    network, x = made(Mlp(hidden=(2,))), inputs()
    for name, p in network.weights().items():
        p.requires_grad_(name == "readout.weight")
    slopes = torch.randn(B, CLASSES, dtype=torch.float64, generator=generator(1))

    def loss(logits):
        return (slopes * logits).sum()

    (a,) = torch.autograd.grad(loss(network(x).logits), [network.weights()["readout.weight"]])
    a = a.flatten()
    for distribution, sign in (("rademacher", -1), ("gaussian", 1)):
        trainer = Spsa(directions=2, epsilon=0.1, distribution=distribution)
        found = samples(trainer, network, x, loss, n=2000)
        expected = (a.square().sum() + sign * a.square()) / 2
        torch.testing.assert_close(found.var(0), expected, rtol=0.15, atol=0)
        assert bool((found.var(0) - expected).abs().max() < 0.15 * expected.max())


def test_a_quadratic_has_no_bias_however_wide_the_step():
    network, x = made(Mlp(hidden=(2,))), inputs()
    for name, p in network.weights().items():
        p.requires_grad_(name == "readout.weight")

    def loss(logits):
        return logits.square().sum()

    weight = network.weights()["readout.weight"]
    (expected,) = torch.autograd.grad(loss(network(x).logits), [weight])
    for trainer in (Spsa(epsilon=1.0), Evolution(pairs=1, sigma=1.0, shaping="none")):
        found = samples(trainer, network, x, loss, n=1000)
        within(found.mean(0), expected.flatten(), found.std(0) / 1000**0.5, sigmas=4)
        assert float(found.mean(0) @ expected.flatten() / expected.square().sum()) > 0.8


def test_evolution_sees_the_loss_of_the_network_that_fires():
    """A referee: its mean is the slope of the smoothed true loss, not the surrogate's."""
    neuron = LIF(beta=0.0, v_th=0.5, surrogate=Sigmoid(slope=1.0))
    network, x = made(SpikingMlp(hidden=(1,), neuron=neuron), (1,)), inputs((1,))
    with torch.no_grad():
        network.weights()["hidden1.weight"].fill_(0.8)
        network.weights()["readout.weight"].copy_(torch.tensor([[1.0], [0.0], [0.0]]))
    network.weights()["readout.weight"].requires_grad_(False)
    x = torch.ones_like(x)

    def loss(logits):
        return logits[:, 0].mean()

    sigma = 0.3  # the loss is 1[w > 0.5], smoothed: the density of a normal at 0.8 - 0.5
    density = torch.distributions.Normal(0.0, sigma).log_prob(torch.tensor(0.3)).exp()
    found = samples(Evolution(pairs=4, sigma=sigma, shaping="none"), network, x, loss, n=600)
    error = float(found.std() / 600**0.5)
    assert abs(float(found.mean()) - float(density)) < 4 * error
    surrogate = float(gradients(network, Bptt().factors(network, x, loss))["hidden1.weight"])
    assert abs(surrogate - float(density)) > 10 * error


def test_ranks_by_hand():
    losses = torch.tensor([5.0, 1.0, 2.0, 2.0, 9.0, 2.0], dtype=torch.float64)
    expected = torch.tensor([4, 0, 2, 2, 5, 2], dtype=torch.float64) / 5 - 0.5
    torch.testing.assert_close(centred_ranks(losses), expected)
    assert not bool(centred_ranks(torch.full((8,), 3.0)).any())


def test_losses_that_are_not_finite_are_the_worst():
    nan, inf = math.nan, math.inf
    expected = torch.tensor([0.0, 1, 3.5, 2, 3.5]) / 4 - 0.5
    for broken in ([nan, nan], [inf, inf], [nan, inf], [-inf, nan]):
        losses = torch.tensor([1.0, 2.0, broken[0], 3.0, broken[1]])
        torch.testing.assert_close(centred_ranks(losses), expected)
    assert bool(centred_ranks(torch.tensor([nan, inf, -inf])).isnan().all())


def given_losses(trainer, losses):
    """Gradients where the passes, in order, have these losses."""
    network, x = made(Mlp(hidden=(2,)), (1,)), inputs((1,))
    left = iter(losses)
    found = gradients(network, call(trainer, network, x, lambda z: z.sum() * 0 + next(left)))
    assert next(left, None) is None
    return flat(found)


def test_a_mutant_without_a_loss_does_not_win():
    found = given_losses(Evolution(pairs=2), [1.0, math.nan, 2.0, 1.0, 3.0])
    expected = given_losses(Evolution(pairs=2), [1.0, 9.0, 2.0, 1.0, 3.0])
    torch.testing.assert_close(found, expected)
    assert bool(given_losses(Evolution(pairs=1), [1.0, math.nan, math.inf]).isnan().all())


def test_a_candidate_without_a_loss_does_not_win():
    careful, plain = Spsa(variant="conservative"), given_losses(Spsa(), [1.0, 2.0, 1.0])
    for down, up, best in ((math.nan, 3.0, 0), (0.5, math.nan, 1), (math.nan, 0.5, -1)):
        found = given_losses(careful, [1.0, 2.0, 1.0, down, up])
        torch.testing.assert_close(found, best * plain)


def test_a_run_whose_mutants_have_no_loss_stops():
    learner = Learner(
        stream=joint(permuted(load("digits"), experiences=1)),
        network=Mlp(hidden=(4,)).build((8, 8), 10),
        encoder=Direct(steps=1),
        trainer=Evolution(pairs=2, sigma=1e30),
        methods=(),
        optimiser=Sgd(lr=0.01),
        plan=TrainPlan(batch=64, epochs=1),
        seeds=Seeds(0),
        device=torch.device("cpu"),
    )
    with pytest.raises(NonFiniteLossError, match="event 0, epoch 0, step 1"):
        for _ in learner.ticks():
            pass


def test_shaped_mutants_by_hand():
    network, x = made(SpikingMlp(hidden=(3,), neuron=SMOOTH)), inputs()
    found = gradients(network, call(Evolution(pairs=3, sigma=0.1), network, x))
    drawn, mutants, losses = generator(), [], []
    for _ in range(3):
        z = {
            n: torch.randn(p.shape, generator=drawn, dtype=p.dtype)
            for n, p in network.weights().items()
        }
        for sign in (1, -1):
            moved = {n: p.detach() + sign * 0.1 * z[n] for n, p in network.weights().items()}
            losses.append(float(loss_of(network(x, weights=moved).logits)))
            mutants.append((sign, z))
    order = sorted(range(6), key=lambda i: losses[i])
    for name in network.weights():
        expected = sum(
            (rank / 5 - 0.5) * mutants[i][0] * mutants[i][1][name] for rank, i in enumerate(order)
        )
        torch.testing.assert_close(found[name], expected / (2 * 3 * 0.1), rtol=1e-10, atol=1e-12)
    # a loss on any scale gives the same steps
    scaled = call(Evolution(pairs=3, sigma=0.1), network, x, lambda z: 1000 * loss_of(z))
    torch.testing.assert_close(flat(gradients(network, scaled)), flat(found))


def test_sign_and_conservative_by_hand():
    network, x = made(SpikingMlp(hidden=(3,), neuron=SMOOTH)), inputs()
    plain = flat(gradients(network, call(Spsa(), network, x)))
    sign = flat(gradients(network, call(Spsa(variant="sign"), network, x)))
    assert set(sign.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(sign * plain.abs(), plain)
    weights = {n: p.detach() for n, p in network.weights().items()}
    seen = set()
    for seed, step in ((1, 0.01), (1, 30.0), (2, 30.0), (3, 3.0), (4, 3.0), (5, 30.0), (6, 30.0)):
        trainer = Spsa(variant="conservative", step=step)
        found = gradients(network, call(trainer, network, x, seed=seed))
        plain = gradients(network, call(Spsa(), network, x, seed=seed))
        losses = {
            s: float(
                loss_of(
                    network(
                        x, weights={n: w - s * step * plain[n] for n, w in weights.items()}
                    ).logits.detach()
                )
            )
            for s in (0, 1, -1)
        }
        best = min(losses, key=lambda s: losses[s])
        seen.add(best)
        torch.testing.assert_close(flat(found), best * flat(plain))
    assert seen >= {0, 1}


def test_the_opposite_step_is_taken_where_it_is_better():
    """On ``-|w - c|`` with a wide perturbation the slope along z misleads, on purpose."""
    network, x = made(Mlp(hidden=(2,)), (1,)), inputs((1,))
    for name, p in network.weights().items():
        p.requires_grad_(name == "readout.bias" or name == "hidden1.weight")
    losses = iter([1.0, 2.0, 1.0, 5.0, 0.5])  # base, ahead, behind, down, up

    def loss(logits):
        return logits.sum() * 0 + next(losses)

    found = flat(
        gradients(network, call(Spsa(variant="conservative", epsilon=0.5), network, x, loss))
    )
    plain = iter([1.0, 2.0, 1.0])
    expected = call(Spsa(epsilon=0.5), network, x, lambda z: z.sum() * 0 + next(plain))
    torch.testing.assert_close(found, -flat(gradients(network, expected)))


# Forward gradients


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_spike_has_the_same_derivative_forward_and_back(surrogate):
    x = torch.linspace(-1.3, 1.4, 23, dtype=torch.float64)
    v = torch.linspace(1, 2, 23, dtype=torch.float64)
    shape = SURROGATES[surrogate]()
    with forward_ad.dual_level():
        out = spike(duals({"x": x}, {"x": v})["x"], shape)
        primal, tangent = forward_ad.unpack_dual(out)
    torch.testing.assert_close(tangent, v * shape(x))
    assert torch.equal(primal, (x > 0).double())


@pytest.mark.parametrize("name", ["mlp", "plif", "conv-ann"])
def test_the_slope_is_the_finite_difference(name):
    network, x = named(name)
    if name == "plif":
        network = made(replace(SPECS["plif"], neuron=PLIF(v_th=0.4, surrogate=Smooth())))
    found = gradients(network, call(ForwardGradient(distribution="rademacher"), network, x))
    z = {n: g.sign() for n, g in found.items()}  # of a Rademacher direction, up to one sign
    slope = float(next(iter(found.values())).abs().flatten()[0])
    sides = []
    for sign in (1, -1):
        moved = {n: p.detach() + sign * 1e-6 * z[n] for n, p in network.weights().items()}
        sides.append(float(loss_of(network(x, weights=moved, training=True).logits)))
    assert abs(slope) > 1e-3
    assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(slope, rel=1e-6)


@each_network
def test_the_slope_is_that_of_backpropagation(name):
    """Surrogates, cut resets and recurrence included: ``d = g_bptt . z`` in every call."""
    network, x = named(name)
    bptt = gradients(network, Bptt().factors(network, x, loss_of))
    factors = call(ForwardGradient(distribution="rademacher"), network, x)
    found = gradients(network, factors)
    if name == "scaled":  # the gradient of what is stored: the map is in it
        assert factors.synapses["hidden1"].stored is None
    z = {n: g.sign() for n, g in found.items()}
    expected = sum((bptt[n] * z[n]).sum() for n in bptt)
    values = flat(found).abs()
    assert abs(float(expected)) > 1e-6
    torch.testing.assert_close(values, expected.abs().expand_as(values), rtol=1e-9, atol=1e-12)
    assert float(expected) > 0  # found = slope z, so sign(found) = sign(slope) z


def test_its_mean_is_backpropagation_of_a_spiking_network():
    network, x = made(SPECS["recurrent"]), inputs()
    bptt = flat(gradients(network, Bptt().factors(network, x, loss_of)))
    found = samples(ForwardGradient(directions=2), network, x, n=300)
    within(found.mean(0), bptt, found.std(0) / len(found) ** 0.5)
    assert 0.8 < float(found.mean(0) @ bptt / bptt.square().sum()) < 1.2


def test_events_are_left_out_where_derivatives_go_forward():
    network, x = made(SPECS["spiking"]), inputs()
    x = (x > 0.7).double()
    network.kernels = Kernels(synapse="events")
    call(Spsa(), network, x)
    with pytest.raises(KernelError, match="derivatives are taken forward"):
        call(ForwardGradient(), network, x)


def test_a_step_without_a_forward_derivative_is_refused(monkeypatch):
    network, x = made(SPECS["spiking"]), inputs()
    ForwardGradient().check(network, x, None)

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    synapse = type(network.synapses["hidden1"])
    product = synapse.product
    monkeypatch.setattr(synapse, "product", lambda *a, **k: Opaque.apply(product(*a, **k)))
    with pytest.raises(PairingError, match="use trainer 'spsa'"):
        ForwardGradient().check(network, x, None)


# What all of them keep to


@each_network
@each_trainer
def test_every_network_has_gradients_of_all_that_learns(trainer, name):
    network, x = named(name)
    factors = call(trainer, network, x)
    found = gradients(network, factors)
    assert found.keys() == network.weights().keys()
    for n, p in network.weights().items():
        assert found[n].shape == p.shape and found[n].dtype == p.dtype
        assert bool(found[n].isfinite().all()) and not found[n].requires_grad
    bptt = Bptt().factors(network, x, loss_of)
    torch.testing.assert_close(factors.loss, bptt.loss)
    torch.testing.assert_close(factors.logits, bptt.logits)
    for path, factor in bptt.synapses.items():
        sent = factors.synapses[path].transmitted
        torch.testing.assert_close(sent, factor.transmitted)
    assert factors.statistics.keys() == bptt.statistics.keys()
    for key, mean in bptt.activity.items():
        torch.testing.assert_close(factors.activity[key], mean)
    assert len(factors.state) == len(bptt.state)


@each_trainer
def test_stored_gradients_do_not_go_through_the_map_again(trainer):
    """``Gain``: of the effective weight's gradient a projection is made, and it is scaled once."""
    network, x = made(SPECS["scaled"]), inputs()
    factors = call(trainer, network, x)
    rows = factors.synapses["hidden1"].gradient()
    found = gradients(network, factors)["hidden1.weight"]
    torch.testing.assert_close(found, 8.0 * rows)
    network, x = made(SPECS["standardised"]), inputs()
    factors = call(trainer, network, x)
    stored = factors.synapses["hidden1"].stored
    assert set(stored) == {"weight", "gain"}
    assert gradients(network, factors)["hidden1.weight"] is stored["weight"]
    with pytest.raises(UsageError, match="a weight map lies between"):
        factors.synapses["hidden1"].gradient()
    with pytest.raises(UsageError, match="a weight map lies between"):
        factors.synapses["hidden1"].project(Complement(torch.eye(5)[:1], torch.eye(5)[:, 1:]))
    joined = factors.synapses["hidden1"].join([factors.synapses["hidden1"]] * 2)
    torch.testing.assert_close(joined.stored["gain"], 2 * stored["gain"])


@each_trainer
def test_frozen_parameters_and_fixed_delays_are_left_alone(trainer):
    network, x = made(SPECS["spiking"]), inputs()
    network.weights()["hidden1.bias"].requires_grad_(False)
    network.weights()["hidden2.weight"].requires_grad_(False)
    losses = []

    def loss(logits):
        losses.append(logits)
        return loss_of(logits)

    found = gradients(network, call(trainer, network, x, loss))
    assert "hidden1.bias" not in found and "hidden2.weight" not in found
    assert bool(found["hidden2.bias"].any() or found["hidden1.weight"].any())
    network = made(SPECS["delays"])
    network.layers["hidden1"].before["axon"].learned = False
    found = gradients(network, call(trainer, network, x))
    assert "hidden1.axon.delay" not in found and "hidden1.delay" in found


@each_trainer
def test_the_network_draws_the_same_in_all_passes(trainer):
    """With the same dropout and noise on both sides, no difference is left where w is not felt."""
    neuron = LIF(beta=0.5, v_th=0.2, noise=0.5, escape=Escape(width=0.3))
    network = made(SpikingMlp(hidden=(4,), neuron=neuron, dropout=0.5))
    for name, p in network.weights().items():
        p.requires_grad_(name == "readout.weight")
    seen = []

    def loss(logits):
        seen.append(logits.detach().clone())
        return logits.sum() * 0 + 1.0

    x = inputs()
    factors = call(trainer, network, x, loss)
    assert not bool(flat(gradients(network, factors)).any())
    # the passes differ by the readout's weight alone: its input is the same in all
    rows = factors.synapses["readout"].transmitted
    basis = torch.linalg.pinv(rows)
    for logits in seen:
        torch.testing.assert_close(rows @ (basis @ logits), logits)


def test_passes_that_differ_in_nothing_have_the_same_loss():
    neuron = LIF(beta=0.5, v_th=0.2, noise=0.5)
    network = made(SpikingMlp(hidden=(4,), neuron=neuron, dropout=0.5))
    seen = []

    def loss(logits):
        seen.append(logits.detach().clone())
        return logits.square().sum()

    x, weights = inputs(), {n: 0.5 * p.detach() for n, p in network.weights().items()}
    network.weights()["hidden1.weight"].requires_grad_(False)
    start = network(x, generator=generator(1)).state
    given = {"weights": weights, "state": start}
    call(Spsa(directions=2, epsilon=1e-300), network, x, loss, **given)
    assert len(seen) == 5 and all(torch.equal(seen[0], other) for other in seen)
    a, b = (
        network(x, training=True, generator=generator(s), **given).logits.detach() for s in (7, 8)
    )
    assert torch.equal(seen[0], a) and not torch.equal(a, b)


def test_nothing_but_what_learns_is_moved():
    network = made(SPECS["delays"])
    network.weights()["readout.weight"].requires_grad_(False)
    network.layers["hidden1"].before["axon"].learned = False
    passes = Passes(Call(network, inputs(), loss_of, generator=generator()), "spsa")
    assert set(passes.at) == {"hidden1.weight", "hidden1.delay"}
    assert set(passes.draw("gaussian")) == set(passes.at)


@each_trainer
def test_a_seed_decides_and_nothing_is_left_behind(trainer):
    network, x = made(SPECS["plif"]), inputs()
    before = {n: p.detach().clone() for n, p in network.weights().items()}
    held = {n: set(vars(m)) for n, m in network.named_modules()}
    random = torch.get_rng_state()
    a, b, c = (flat(gradients(network, call(trainer, network, x, seed=s))) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(p.detach(), before[n]) for n, p in network.weights().items())
    assert {n: set(vars(m)) for n, m in network.named_modules()} == held
    with pytest.raises(UsageError, match=r"pass a torch\.Generator"):
        trainer.factors(network, x, loss_of)


@each_trainer
def test_other_weights_state_and_losses_of_steps_are_used(trainer):
    network, x = made(SPECS["recurrent"]), inputs()
    other = {n: 0.5 * p.detach() for n, p in network.weights().items()}
    a = gradients(network, call(trainer, network, x, weights=other))
    halved = made(SPECS["recurrent"])
    halved.set_parameters({**other, **halved.statistics()})
    b = gradients(halved, call(trainer, halved, x))
    torch.testing.assert_close(flat(a), flat(b))
    first = Bptt().factors(network, x[:2], loss_of)
    second = call(trainer, network, x[2:], state=first.state)
    whole = network(x).logits.detach()
    torch.testing.assert_close((first.logits + second.logits) / 2, whole)
    network = made(SpikingMlp(hidden=(4,), neuron=FIRES, readout="mean_current"))
    shapes = []

    def loss(steps):
        shapes.append(tuple(steps.shape))
        return steps.square().mean()

    call(trainer, network, x, PerStep(loss))
    assert set(shapes) == {(T, B, CLASSES)}


def peak_of_graphs(run):
    """Number of tensors with a graph behind them at the time of a loss, over those before."""

    def graphs():
        gc.collect()
        return sum(t.grad_fn is not None for t in gc.get_objects() if torch.is_tensor(t))

    counts, before = [], graphs()

    def loss(logits):
        counts.append(graphs() - before)
        return loss_of(logits)

    run(loss)
    return counts


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@each_trainer
def test_there_is_no_graph(trainer):
    network, x = made(SPECS["spiking"]), inputs()
    assert max(peak_of_graphs(lambda loss: call(trainer, network, x, loss))) == 0
    assert max(peak_of_graphs(lambda loss: Bptt().factors(network, x, loss))) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("trainer", [Spsa(), Evolution(pairs=1), ForwardGradient()])
def test_what_is_held_is_what_the_table_says(trainer):
    """Rows of the first pass, and copies of the parameters; whatever comes and goes within one."""
    network = made(replace(SPECS["spiking"], hidden=(160, 160)))
    x = torch.rand(20, B, 5, dtype=torch.float64, generator=generator())

    def alive():
        gc.collect()
        tensors = [t for t in gc.get_objects() if torch.is_tensor(t)]
        real = [t for t in tensors if not isinstance(t, FakeTensor)]  # other tests leave some
        tensors = [t.untyped_storage() for t in real]
        return sum({s.data_ptr(): s.nbytes() for s in tensors}.values())

    held, before = [], alive()

    def loss(logits):
        held.append(alive() - before)
        return loss_of(logits)

    factors = call(trainer, network, x, loss)
    rows = 8 * factors.synapses["hidden2"].transmitted.numel()  # the input is there anyway
    copies = int(re.search(r"T B N.* (\d) S", trainer.traits.memory)[1])
    weights = 8 * sum(p.numel() for p in network.weights().values())
    assert rows <= max(held[1:]) < rows + (copies + 0.5) * weights


def test_perturbations_that_rounding_swallows_are_refused():
    network, x = made(SPECS["mlp"]), inputs()
    for trainer, wide in ((Spsa(epsilon=1e-6), "epsilon"), (Evolution(sigma=1e-6), "sigma")):
        trainer.check(network, x, None)
        with pytest.raises(PairingError, match=rf"{wide}: got 1e-06.*float32.*1\.19\d*e-06"):
            trainer.check(network.float(), x.float(), None)
        replace(trainer, **{wide: 1.2e-6}).check(network.float(), x.float(), None)
        network.double()


def test_wrong_options_are_refused():
    for wrong in ({"directions": 0}, {"epsilon": 0.0}, {"variant": "best"}, {"step": 0.0}):
        with pytest.raises(ConfigError):
            Spsa(**wrong)
    for wrong in ({"pairs": 0}, {"sigma": 0.0}, {"shaping": "log"}):
        with pytest.raises(ConfigError):
            Evolution(**wrong)


# Learning


@pytest.mark.parametrize(
    ("trainer", "optimiser"),
    [
        (Spsa(directions=8, epsilon=0.01), Adam(lr=0.03)),
        (Spsa(directions=8, epsilon=0.01, variant="sign"), Adam(lr=0.03)),
        (Spsa(directions=8, epsilon=0.01, variant="conservative", step=0.3), Sgd(lr=0.3)),
        (Evolution(pairs=16, sigma=0.1), Adam(lr=0.05)),
        (ForwardGradient(directions=4), Adam(lr=0.03)),
    ],
    ids=["spsa", "sign", "conservative", "evolution", "forward"],
)
def test_exclusive_or(trainer, optimiser):
    network = SpikingMlp(
        hidden=(16,), neuron=LIF(beta=0.5, v_th=0.4, surrogate=Sigmoid()), bias=True
    ).build((2,), 2)
    initialise(network, Seeds(3))
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).expand(6, 4, 2)
    y = torch.tensor([0, 1, 1, 0])
    running = optimiser.start(dict(network.weights()))
    drawn = generator(0)
    for _ in range(300):
        factors = trainer.factors(
            network, x, lambda z: functional.cross_entropy(z, y), generator=drawn, labels=y
        )
        with torch.no_grad():
            running.step(gradients(network, factors), 1.0)
    assert bool(network(x).logits.argmax(1).eq(y).all())


@pytest.mark.parametrize("name", ["spsa", "evolution", "forward_gradient"])
def test_digits_are_learned_above_chance(name):
    trainer = {
        "spsa": Spsa(directions=4, epsilon=0.01),
        "evolution": Evolution(pairs=8, sigma=0.05),
        "forward_gradient": ForwardGradient(directions=4),
    }[name]
    learner = Learner(
        stream=joint(permuted(load("digits"), experiences=1)),
        network=SpikingMlp(hidden=(32,), neuron=LIF(beta=0.5)).build((8, 8), 10),
        encoder=Direct(steps=4),
        trainer=trainer,
        methods=(),
        optimiser=Adam(lr=0.01),
        plan=TrainPlan(batch=64, epochs=6),
        seeds=Seeds(0),
        device=torch.device("cpu"),
    )
    for _ in learner.ticks():
        pass
    assert learner.scores.matrices()[0].final[-1] > 0.3
