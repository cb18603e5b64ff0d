"""Neurons without a binary spike, against linear filters, a plain loop and a rectified network."""

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from torch.nn import functional

from spikecl.errors import ConfigError, UsageError
from spikecl.kernels import choose, scan
from spikecl.neurons import (
    LeakyIntegrator,
    LIFState,
    LIState,
    SigmaDelta,
    SigmaDeltaState,
    SynapticIntegrator,
    step,
)


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


# Leaky integrator


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("kappa", [0.0, 0.3, 0.9, 0.999, 1.0])
def test_leaky_integrator_is_a_filter_of_first_order(kappa, scale):
    x, neuron = noise(300, 2, 3), LeakyIntegrator(kappa=kappa, scale_input=scale)
    out, state = scan(x, None, neuron)
    c = 1 - kappa if scale else 1.0
    expected = lfilter([c], [1, -kappa], x.numpy(), axis=0)
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-11)
    assert torch.equal(state.v, out[-1])
    assert choose(neuron, x).name != "reference"


def test_leaky_integrator_in_closed_form():
    x = torch.zeros(30, 1, 2, dtype=torch.float64)
    x[0, 0, 0], x[:, 0, 1] = 2.0, 0.5
    out, _ = scan(x, None, LeakyIntegrator(kappa=0.8))
    n = torch.arange(30, dtype=torch.float64)
    torch.testing.assert_close(out[:, 0, 0], 2.0 * 0.8**n)  # it answers in the step of its input
    torch.testing.assert_close(out[:, 0, 1], 0.5 * (1 - 0.8 ** (n + 1)) / 0.2)
    scaled, _ = scan(x, None, LeakyIntegrator(kappa=0.8, scale_input=True))
    torch.testing.assert_close(scaled, 0.2 * out)
    assert scaled[-1, 0, 1].item() == pytest.approx(0.5, rel=2e-3)


def test_leaky_integrator_per_neuron():
    kappa, x = torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64), noise(50, 2, 3)
    out, _ = scan(x, None, LeakyIntegrator(kappa=kappa))
    for k in range(3):
        one, _ = scan(x[..., k : k + 1], None, LeakyIntegrator(kappa=float(kappa[k])))
        torch.testing.assert_close(out[..., k], one[..., 0])


def test_gradient_of_the_leaky_integrator_is_the_filter_backwards():
    x, weight = noise(80, 2, 3).requires_grad_(), noise(80, 2, 3, seed=1)
    start = noise(2, 3, seed=2).requires_grad_()
    out, _ = scan(x, LIState(start), LeakyIntegrator(kappa=0.7, scale_input=True))
    g_x, g_start = torch.autograd.grad((out * weight).sum(), (x, start))
    expected = lfilter([0.3], [1, -0.7], weight.numpy()[::-1], axis=0)[::-1]
    np.testing.assert_allclose(g_x.numpy(), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(g_start.numpy(), 0.7 / 0.3 * expected[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kappa", [-0.1, 1.1])
def test_decay_lies_between_zero_and_one(kappa):
    with pytest.raises(ConfigError, match="LeakyIntegrator.kappa: got"):
        LeakyIntegrator(kappa=kappa)


# Synaptic integrator


@pytest.mark.parametrize("rest", [0.0, -0.4])
@pytest.mark.parametrize(("alpha", "kappa"), [(0.0, 0.9), (0.6, 0.9), (0.9, 0.6), (0.8, 0.8)])
def test_synaptic_integrator_is_a_filter_of_second_order(alpha, kappa, rest):
    x = noise(300, 2, 3)
    out, state = scan(x, None, SynapticIntegrator(alpha=alpha, kappa=kappa, v_rest=rest))
    current = lfilter([1], [1, -alpha], x.numpy(), axis=0)
    expected = rest + lfilter([1 - kappa], [1, -kappa], current, axis=0)
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.i.numpy(), current[-1], rtol=0, atol=1e-12)
    assert torch.equal(state.v, out[-1])


def test_an_impulse_through_current_and_membrane():
    alpha, kappa, rest = 0.6, 0.9, -0.3
    x = torch.zeros(30, 1, 1, dtype=torch.float64)
    x[0] = 2.0
    v, state = scan(x, None, SynapticIntegrator(alpha=alpha, kappa=kappa, v_rest=rest))
    n = torch.arange(1, 31, dtype=torch.float64)
    expected = rest + 2 * (1 - kappa) * (kappa**n - alpha**n) / (kappa - alpha)
    torch.testing.assert_close(v.flatten(), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(state.i.flatten(), 2 * alpha ** (n[-1:] - 1))


def test_without_memory_of_the_current_it_is_the_scaled_leaky_integrator():
    x = noise(50, 2, 3)
    one, _ = scan(x, None, SynapticIntegrator(alpha=0.0, kappa=0.7))
    other, _ = scan(x, None, LeakyIntegrator(kappa=0.7, scale_input=True))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("neuron", [LeakyIntegrator(), SigmaDelta(), SynapticIntegrator()])
def test_the_state_of_another_neuron_is_refused(neuron):
    with pytest.raises(UsageError, match="state is a LIFState"):
        step(torch.zeros(2, 3), LIFState(torch.zeros(2, 3)), neuron)


# Sigma-delta


def by_hand(xs, v_th):
    """Run one neuron in plain Python floats, written from the docstring's equations."""
    sigma = act = residue = 0.0
    out = []
    for x in xs:
        sigma += x
        new = max(sigma, 0.0)
        delta = new - act + residue
        act = new
        sent = delta if abs(delta) >= v_th else 0.0
        residue = delta - sent
        out.append((sent, sigma, act, residue))
    return [list(part) for part in zip(*out)]


def messages(x, v_th):
    """Return messages and states [T, ...] of a sigma-delta neuron."""
    state, sent, sigma, act, residue = None, [], [], [], []
    for current in x:
        s, state = step(current, state, SigmaDelta(v_th=v_th))
        sent.append(s)
        sigma.append(state.sigma)
        act.append(state.act)
        residue.append(state.residue)
    sent = torch.stack(sent)
    assert torch.equal(scan(x, None, SigmaDelta(v_th=v_th))[0], sent)
    return sent, *(torch.stack(part) for part in (sigma, act, residue))


@pytest.mark.parametrize("v_th", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_sigma_delta_follows_the_printed_equations(seed, v_th):
    xs = (0.5 + noise(400, seed=seed)).diff()
    got = messages(xs.view(-1, 1, 1), v_th)
    for part, needed in zip(got, by_hand(xs.tolist(), v_th)):
        assert part.flatten().tolist() == pytest.approx(needed, abs=1e-13)
    quiet = float((got[0] == 0).double().mean())
    assert quiet < 0.95
    assert quiet > 0.05 or v_th == 0
    assert float(got[0].min()) < 0 < float(got[0].max())


def sixteenths(steps=500, features=6):
    """Return input whose sums are exact, also in float32."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-12, 14, (steps, 2, features), generator=generator).double() / 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("v_th", [0.0, 0.25, 1.0, 3.0])
def test_nothing_is_lost(v_th, dtype):
    x = sixteenths().to(dtype)
    sent, sigma, act, residue = messages(x, v_th)
    assert torch.equal(sigma, x.cumsum(0))
    assert torch.equal(act, x.cumsum(0).clamp_min(0))
    assert torch.equal(sent.cumsum(0) + residue, act)  # exactly, after every step
    nonzero = sent[sent != 0]
    assert bool((nonzero.abs() >= v_th).all())
    assert float(residue.abs().max()) < max(v_th, 1e-300)
    assert int((nonzero.abs() == v_th).sum()) > 0 or v_th == 0  # the threshold itself is sent
    assert 0 < len(nonzero) < sent.numel()


def test_without_a_threshold_the_running_sum_is_the_rectified_activation():
    x = noise(1000, 2, 5)
    sent, _, _, residue = messages(x, 0.0)
    assert not bool(residue.any())
    torch.testing.assert_close(sent.cumsum(0), x.cumsum(0).clamp_min(0), rtol=0, atol=1e-11)


def test_a_network_computes_what_its_rectified_twin_does():
    first, second = noise(7, 4, seed=1), noise(3, 7, seed=2)
    frames = noise(200, 2, 4, seed=4).cumsum(0) * 0.1
    changes = frames.diff(dim=0, prepend=frames.new_zeros(1, 2, 4))

    def network(v_th):
        hidden, _ = scan(changes @ first.T, None, SigmaDelta(v_th=v_th))
        return scan(hidden @ second.T, None, SigmaDelta(v_th=v_th))[0].cumsum(0), hidden

    twin = functional.relu(functional.relu(frames @ first.T) @ second.T)
    assert 0.1 < float((twin > 0).double().mean()) < 0.9
    out, every = network(0.0)
    torch.testing.assert_close(out, twin, rtol=0, atol=1e-11)
    out, few = network(0.05)
    bound = 0.05 * (1 + second.abs().sum(1))  # what can be waiting in the two layers
    assert bool(((out - twin).abs() <= bound).all())
    assert int((few != 0).sum()) < int((every != 0).sum())


def test_gradient_passes_the_comparison():
    x = noise(30, 2, 4).requires_grad_()
    sent, _, act, _ = messages(x, 0.6)
    assert 0 < int((sent == 0).sum()) < sent.numel()
    # what has been sent has the gradient of the activation, whatever waits
    for t in (0, 7, 29):
        total, expected = (
            torch.autograd.grad(part, x, retain_graph=True)[0]
            for part in (sent[: t + 1].sum(), act[t].sum())
        )
        torch.testing.assert_close(total, expected)
    weight = noise(30, 2, 4, seed=1)
    (gradient,) = torch.autograd.grad((sent * weight).sum(), x)
    step_of = (x.detach().cumsum(0) > 0).double()  # derivative of the rectifier
    ahead = torch.cat([weight[1:], torch.zeros(1, 2, 4, dtype=torch.float64)])
    expected = (step_of * (weight - ahead)).flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_sigma_delta_from_a_state():
    x = sixteenths(20)
    whole, last = scan(x, None, SigmaDelta(v_th=0.5))
    begun, middle = scan(x[:9], None, SigmaDelta(v_th=0.5))
    rest, end = scan(x[9:], middle, SigmaDelta(v_th=0.5))
    assert torch.equal(torch.cat([begun, rest]), whole)
    assert isinstance(end, SigmaDeltaState)
    assert all(torch.equal(a, b) for a, b in zip(end, last))


def test_the_smallest_change_is_not_negative():
    with pytest.raises(ConfigError, match="SigmaDelta.v_th: got -0.1"):
        SigmaDelta(v_th=-0.1)
