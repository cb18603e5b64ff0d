"""AdEx against its fixed point, its rheobase, quadrature of the f-I curve, and float32."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from spikecl.errors import UsageError
from spikecl.kernels import scan
from spikecl.neurons import AdEx, AdExState, Refractory, step

EXPONENTIAL = {"a": 0.0, "b": 0.0}  # no adaptation: the exponential integrate-and-fire neuron


def spikes_of(neuron, current, length):
    """Return the spikes [T, N] of constant currents in pA."""
    current = torch.atleast_1d(torch.as_tensor(current, dtype=torch.float64))
    x = current.expand(round(length / neuron.dt), 1, len(current))
    return scan(x, None, neuron)[0][:, 0].numpy()


def intervals(neuron, current, length):
    return np.diff(np.flatnonzero(spikes_of(neuron, current, length)[:, 0])) * neuron.dt


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def upswing(neuron, v):
    return neuron.g_leak * neuron.delta_t * np.exp((v - neuron.v_t) / neuron.delta_t)


def test_defaults_are_the_published_constants():
    """Brette & Gerstner 2005, a layer-5 pyramidal cell."""
    n = AdEx()
    assert (n.capacitance, n.g_leak, n.e_leak, n.v_t, n.delta_t) == (281, 30, -70.6, -50.4, 2)
    assert (n.tau_w, n.a, n.b, n.v_reset, n.v_peak) == (144, 4, 80.5, -70.6, 20)


@pytest.mark.parametrize("current", [0.0, 200.0, -300.0])
def test_it_rests_at_the_fixed_point(current):
    """Just above ``e_leak`` without input: the upswing is never quite nothing."""
    neuron = AdEx(dt=1.0)

    def total(v):
        adaptation = neuron.a * (v - neuron.e_leak)
        leak = neuron.g_leak * (neuron.e_leak - v)
        return leak + upswing(neuron, v) - adaptation + current

    v = brentq(total, -100, neuron.v_t, xtol=1e-13)
    x = torch.full((6000, 1, 1), current, dtype=torch.float64)
    _, state = scan(x, None, neuron)
    np.testing.assert_allclose(float(state.v), v, rtol=1e-11)
    np.testing.assert_allclose(float(state.w), neuron.a * (v - neuron.e_leak), atol=1e-8)
    if not current:
        expected = upswing(neuron, neuron.e_leak) / (neuron.g_leak + neuron.a)  # to first order
        np.testing.assert_allclose(v - neuron.e_leak, expected, rtol=1e-3)
        assert 5e-5 < v - neuron.e_leak < 1e-4


def test_rheobase_without_adaptation():
    """The fixed points vanish at ``g_leak (v_t - e_leak - delta_t)``."""
    neuron = AdEx(**EXPONENTIAL)
    rheobase = neuron.g_leak * (neuron.v_t - neuron.e_leak - neuron.delta_t)
    spikes = spikes_of(neuron, [0.995 * rheobase, 1.005 * rheobase], 500.0)
    assert spikes.any(0).tolist() == [False, True]


def test_rheobase_with_adaptation():
    """A slow current fires where the fixed point loses its stability (Touboul & Brette 2008).

    The trace of the Jacobian vanishes first, as ``a / g_leak`` exceeds ``tau_mem / tau_w``.
    """
    n = AdEx()
    ratio = n.capacitance / n.g_leak / n.tau_w
    assert n.a / n.g_leak > ratio
    v = n.v_t + n.delta_t * np.log(1 + ratio)
    threshold = (n.g_leak + n.a) * (v - n.e_leak) - upswing(n, v)
    ramp = torch.linspace(0, 1.25, 20_000, dtype=torch.float64).clamp_max(1) * threshold
    spikes, _ = scan(ramp[:, None, None] * torch.tensor([0.97, 1.03]), None, n)
    assert spikes.any(0).tolist() == [[False, True]]


@pytest.mark.parametrize("dt", [0.08, 0.04, 0.02])
def test_intervals_without_adaptation_converge_to_quadrature(dt):
    """The interval is ``C`` times the integral of one over the current, from reset to peak.

    Euler is late in the upswing by a few steps, whatever their length: first order.
    """
    neuron = AdEx(dt=dt, **EXPONENTIAL)

    def slowness(v):
        return neuron.capacitance / (neuron.g_leak * (neuron.e_leak - v) + upswing(neuron, v) + 1e3)

    exact = quad(slowness, neuron.v_reset, -40)[0] + quad(slowness, -40, neuron.v_peak)[0]
    found = intervals(neuron, 1000.0, 100.0)
    assert 11.7 < exact < 11.8 and len(found) >= 6 and np.ptp(found) < 1e-9
    assert 2 < (found.mean() - exact) / dt < 5


def test_adaptation_lengthens_intervals():
    both = {"a": tensor(4.0, 0.0, 4.0), "b": tensor(80.5, 0.0, 0.0)}
    spikes = spikes_of(AdEx(**both), [1000.0] * 3, 800.0)
    full, alone, slow = (np.diff(np.flatnonzero(train)) * 0.1 for train in spikes.T)
    assert len(full) >= 10
    assert np.all(np.diff(full) > -0.11)  # one step: a spike falls on the grid
    assert full[-1] > 2 * full[0] and np.ptp(full[-3:]) < 0.21
    assert np.ptp(alone) < 0.11 and alone[0] < full[0]
    assert alone[-1] < slow[-1] < full[-1]  # a alone adapts a little


def test_mean_adaptation_of_regular_firing():
    """Over a period w returns: its mean is ``a (mean v - e_leak) + b tau_w rate``, also in Euler.

    A state before each step counts, and b is added at the spike.
    """
    neuron, state, kept, fired = AdEx(), None, [], []
    x = torch.full((1, 1), 1000.0, dtype=torch.float64)
    state = scan(x.expand(4000, 1, 1), None, neuron)[1]
    for _ in range(4000):
        kept.append((float(state.v), float(state.w)))
        spikes, state = step(x, state, neuron)
        fired.append(bool(spikes))
    first, last = np.flatnonzero(fired)[[0, -1]] + 1
    v, w = np.array(kept[first:last]).mean(0)
    rate = (np.sum(fired[first:last])) / ((last - first) * neuron.dt)
    drift = neuron.tau_w * (kept[last][1] - kept[first][1]) / ((last - first) * neuron.dt)
    expected = neuron.a * (v - neuron.e_leak) + neuron.b * neuron.tau_w * rate - drift
    assert np.sum(fired) >= 5 and abs(drift) < 0.5 * w
    np.testing.assert_allclose(w, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reset_is_exact_however_far_the_membrane_overshot(dtype):
    """One Euler step past the threshold may end at 1e11 mV, where float32 has gaps of 8192."""
    neuron = AdEx(v_reset=-63.25)
    x, state, overshot = torch.full((1, 3), 1500.0, dtype=dtype), None, 0.0
    for _ in range(1000):
        before = state
        spikes, state = step(x, state, neuron)
        if spikes.any():
            overshot = max(overshot, float(neuron.integrate(x, before).v.max()))
            assert state.v.tolist() == [[-63.25] * 3]
            _, w = neuron.integrate(x, before)
            np.testing.assert_allclose(state.w, w + neuron.b, rtol=1e-6)
    assert overshot > 1e4


@pytest.mark.parametrize("delta_t", [0.05, 0.3, 2.0, 10.0])
@pytest.mark.parametrize("current", [0.0, 2e3, 1e6, 1e20, -1e20])
def test_float32_never_overflows(delta_t, current):
    neuron = AdEx(delta_t=delta_t)
    x = torch.full((300, 1, 1), current, requires_grad=True)
    spikes, state = scan(x, None, neuron)
    assert bool(spikes.any()) == (current > 0)
    (state.v + state.w + spikes.sum()).sum().backward()
    for found in (state.v, state.w, x.grad):
        assert torch.isfinite(found).all()


def test_float32_fires_like_float64():
    current = torch.linspace(700, 2000, 20, dtype=torch.float64).expand(4000, 1, 20)
    double, _ = scan(current, None, AdEx())
    single, _ = scan(current.float(), None, AdEx())
    assert double.sum() > 150
    assert (double.sum(0) - single.sum(0)).abs().max() <= 1
    assert (double != single).double().mean() < 2e-3


def test_membrane_that_must_not_fire_stays_below_the_peak():
    """Otherwise the overshoot drives the adaptation to 1e8 pA, and silence for seconds."""
    neuron = AdEx(refractory=50, integrate_refractory=True)
    x = torch.full((1, 1), 3000.0, dtype=torch.float64)
    state, most, spikes = None, 0.0, 0
    for _ in range(2000):
        fired, state = step(x, state, neuron)
        assert isinstance(state, Refractory) and state.neuron.v <= neuron.v_peak
        most, spikes = max(most, float(state.neuron.w)), spikes + int(fired)
    assert spikes > 20 and most < 3000


def test_held_membrane_is_the_reset():
    neuron = AdEx(refractory=30)
    x, state = torch.full((1, 1), 1500.0, dtype=torch.float64), None
    since = None
    for _ in range(1500):
        before = state
        fired, state = step(x, state, neuron)
        if fired:
            assert since is None or since > 30
            since = 0
        if since is not None:
            if since <= 30:
                assert state.neuron.v == neuron.v_reset
            else:
                assert state.neuron.v > neuron.v_reset
            assert state.neuron.w != before.neuron.w  # the adaptation goes on
            since += 1
    assert since is not None


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_over_spikes(detach_reset, dtype):
    names = ("capacitance", "g_leak", "e_leak", "v_t", "delta_t", "v_reset", "tau_w", "a", "b")
    default = AdEx(detach_reset=detach_reset)
    values = {
        name: torch.full((3,), getattr(default, name), dtype=dtype, requires_grad=True)
        for name in names
    }
    x = torch.linspace(1000, 2000, 3, dtype=dtype).repeat(600, 2, 1).requires_grad_()
    spikes, state = scan(x, None, default.bind(values))
    assert spikes.sum(0).min() >= 3
    (spikes.sum() + state.v.sum() + state.w.sum()).backward()
    for name, tensor in (("x", x), *values.items()):
        assert torch.isfinite(tensor.grad).all() and tensor.grad.abs().max() > 0, name


@pytest.mark.parametrize("shape", [(1, 4), (5, 3), (2, 3, 4, 4)])
def test_shapes(shape):
    spikes, state = step(torch.full(shape, 10.0), None, AdEx())
    assert spikes.shape == state.v.shape == state.w.shape == shape


def test_wrong_state_is_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(UsageError, match="AdExState"):
        step(x, x, AdEx())
    with pytest.raises(UsageError, match="shape"):
        step(x, AdExState(x[:1], x), AdEx())
