"""Conductance LIF against closed forms, an ODE solver, and the bounds that biology sets."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from spikecl.errors import UsageError
from spikecl.kernels import scan
from spikecl.neurons import ConductanceLIF, ConductanceState, Reset, step

quick = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SILENT = {"v_th": 1e6}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def standing(g_exc, g_inh, neuron, v):
    """Return a state and the input that keeps its conductances where they are."""
    g = tensor(g_exc, g_inh)
    taus = tensor(neuron.tau_exc, neuron.tau_inh)
    x = ((1 - torch.exp(-neuron.dt / taus)) * g)[None, :, None]
    return x, ConductanceState(*(z.view(1, 1) for z in (g[0], g[1], tensor(v))))


def membranes(x, state, neuron):
    found = []
    for current in x:
        spikes, state = step(current, state, neuron)
        found.append(float(state.v))
    return np.array(found)


def limit(neuron, g_exc, g_inh):
    total = neuron.v_rest + g_exc * neuron.e_exc + g_inh * neuron.e_inh
    return total / (1 + g_exc + g_inh)


def test_defaults_are_the_published_constants():
    """Vogels & Abbott 2005; conductances in units of the leak. Their refractory period is apart."""
    n = ConductanceLIF()
    assert (n.tau_mem, n.tau_exc, n.tau_inh) == (20, 5, 10)
    assert (n.v_rest, n.e_exc, n.e_inh, n.v_th, n.v_reset) == (-60, 0, -80, -50, -60)
    assert n.reset is Reset.VALUE


@pytest.mark.parametrize("dt", [0.1, 1.0, 7.0, 50.0])
@pytest.mark.parametrize("g_exc, g_inh", [(0.0, 0.0), (0.7, 0.2), (0.0, 3.0), (12.0, 30.0)])
def test_exact_at_any_step_while_conductances_stand_still(dt, g_exc, g_inh):
    """``v(t) = v_inf + (v0 - v_inf) exp(-t (1 + g_exc + g_inh) / tau_mem)``."""
    neuron = ConductanceLIF(dt=dt, **SILENT)
    x, state = standing(g_exc, g_inh, neuron, -72.0)
    found = membranes([x] * 30, state, neuron)
    v_inf, total = limit(neuron, g_exc, g_inh), 1 + g_exc + g_inh
    t = dt * np.arange(1, 31)
    expected = v_inf + (-72.0 - v_inf) * np.exp(-t * total / neuron.tau_mem)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_steps_of_another_length_agree():
    """Ten steps of 0.5 ms are one of 5 ms."""
    ends = []
    for dt, steps in ((5.0, 4), (0.5, 40)):
        neuron = ConductanceLIF(dt=dt, **SILENT)
        x, state = standing(0.9, 0.4, neuron, -60.0)
        ends.append(membranes([x] * steps, state, neuron)[-1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)
    assert abs(ends[0] + 60) > 5


@pytest.mark.parametrize("dt", [0.1, 1.0])
def test_intervals_of_a_constant_conductance(dt):
    """``T = tau / G log((v_inf - v_reset) / (v_inf - v_th))``, up to the next step."""
    neuron = ConductanceLIF(dt=dt)
    x, state = standing(0.8, 0.5, neuron, neuron.v_reset)
    spikes, _ = scan(x.expand(round(300 / dt), 1, 2, 1), state, neuron)
    v_inf, total = limit(neuron, 0.8, 0.5), 2.3
    exact = neuron.tau_mem / total
    exact *= math.log((v_inf - neuron.v_reset) / (v_inf - neuron.v_th))
    found = np.diff(np.flatnonzero(spikes[:, 0, 0]))
    assert len(found) >= 10 and (found == math.ceil(exact / dt)).all()


def test_conductances_decay_and_add():
    neuron = ConductanceLIF(dt=0.5, tau_exc=3.0, tau_inh=8.0)
    x = torch.rand(40, 2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, state = scan(x, None, neuron)
    age = torch.arange(39, -1, -1, dtype=torch.float64) * 0.5
    for which, tau, found in ((0, 3.0, state.g_exc), (1, 8.0, state.g_inh)):
        expected = torch.einsum("t,tbn->bn", torch.exp(-age / tau), x[:, :, which])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_psp_converges_to_the_differential_equation():
    """An event at time 0 seen by SciPy's Runge-Kutta; first order, as conductances stand in a step.

    The event acts in its own step: after step n it is ``(n + 1) dt`` old.
    """

    def slope(t, v):
        g_exc, g_inh = 0.6 * math.exp(-t / 5), 0.9 * math.exp(-t / 10)
        return (-60 - v + g_exc * (0 - v) + g_inh * (-80 - v)) / 20

    exact = solve_ivp(slope, (0, 60), [-60.0], rtol=1e-10, atol=1e-10, dense_output=True).sol
    errors = []
    for dt in (0.4, 0.2, 0.1):
        x = torch.zeros(round(60 / dt), 1, 2, 1, dtype=torch.float64)
        x[0, 0, :, 0] = tensor(0.6, 0.9)
        found = membranes(x, None, ConductanceLIF(dt=dt, **SILENT))
        errors.append(np.abs(found - exact(dt * np.arange(1, len(x) + 1))[0]).max())
    assert errors[-1] < 0.05
    assert 1.9 < errors[0] / errors[1] < 2.1 and 1.9 < errors[1] / errors[2] < 2.1


@quick
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([0.01, 1.0, 100.0, 1e30]),
    dt=st.sampled_from([0.1, 1.0, 100.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_reversal_potentials_bound_the_membrane(seed, size, dt, dtype):
    x = size * torch.rand(30, 2, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    neuron, state = ConductanceLIF(dt=dt, reset=Reset.NONE), None
    for current in x:
        _, state = step(current, state, neuron)
        assert (state.v >= neuron.e_inh - 1e-4).all() and (state.v <= neuron.e_exc + 1e-4).all()


def test_shunting_inhibition_divides():
    """Inhibition that reverses at rest moves nothing by itself, and weakens excitation."""
    neuron = ConductanceLIF(e_inh=-60.0, **SILENT)
    ends = []
    for g_exc, g_inh in ((0.0, 4.0), (0.5, 0.0), (0.5, 4.0)):
        x, state = standing(g_exc, g_inh, neuron, -60.0)
        ends.append(membranes([x] * 400, state, neuron)[-1])
    np.testing.assert_allclose(ends, [-60, -60 + 30 / 1.5, -60 + 30 / 5.5], rtol=1e-10)


@pytest.mark.parametrize("which, reversal", [(0, 0.0), (1, -80.0)])
def test_strong_input_drives_to_the_reversal_potential(which, reversal):
    x = torch.zeros(1, 2, 1, dtype=torch.float64)
    x[0, which] = 1e9
    _, state = step(x, None, ConductanceLIF(reset=Reset.NONE))
    assert float(state.v) == pytest.approx(reversal, abs=1e-5)


def test_reset_is_to_the_value_and_leaves_the_channels_open():
    x = tensor(50.0, 1.0)[None, :, None]
    spikes, state = step(x, None, ConductanceLIF(v_reset=-66.0))
    assert spikes == 1 and state.v == -66
    assert (state.g_exc, state.g_inh) == (50, 1)


def test_refractory_period_of_the_paper():
    """The membrane is held, the channels go on; five steps of 1 ms without a spike."""
    x = torch.full((100, 1, 2, 1), 0.6, dtype=torch.float64)
    x[:, :, 1] = 0.0
    neuron, state, since = ConductanceLIF(refractory=5), None, 99
    intervals = []
    for current in x:
        spikes, state = step(current, state, neuron)
        if spikes:
            intervals.append(since + 1)
            since = 0
            continue
        since += 1
        assert (state.neuron.v == -60) == (since <= 5)
    assert len(intervals) > 5 and min(intervals[1:]) > 5
    assert state.neuron.g_exc > 3


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_over_spikes(detach_reset, dtype):
    names = ("tau_mem", "tau_exc", "tau_inh", "v_rest", "e_exc", "e_inh", "v_th", "v_reset")
    default = ConductanceLIF(detach_reset=detach_reset)
    values = {
        name: torch.full((3,), getattr(default, name), dtype=dtype, requires_grad=True)
        for name in names
    }
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(100, 2, 2, 3, generator=generator, dtype=dtype)
    x = (x * torch.tensor([[0.4], [0.1]], dtype=dtype)).requires_grad_()
    spikes, state = scan(x, None, default.bind(values))
    assert spikes.sum(0).min() >= 3
    (spikes.sum() + state.v.sum()).backward()
    for name, value in (("x", x), *values.items()):
        assert torch.isfinite(value.grad).all() and value.grad.abs().max() > 0, name
    assert (x.grad[:, :, 0].sum() > 0) and (x.grad[:, :, 1].sum() < 0)  # what each is for


@pytest.mark.parametrize("features", [(4,), (3, 5), (2, 4, 4)])
def test_shapes(features):
    x = torch.rand(6, 5, 2, *features)
    spikes, state = scan(x, None, ConductanceLIF())
    assert spikes.shape == (6, 5, *features)
    assert state.v.shape == state.g_exc.shape == state.g_inh.shape == (5, *features)
    again, _ = scan(x[3:], scan(x[:3], None, ConductanceLIF())[1], ConductanceLIF())
    assert torch.equal(again, spikes[3:])


@pytest.mark.parametrize("shape", [(3, 4), (3, 1, 4), (3, 3, 4), (2,), (2, 4), (4, 3, 2)])
def test_input_of_another_second_axis_is_refused(shape):
    with pytest.raises(UsageError, match=r"\[B, 2, \*features\]"):
        step(torch.rand(shape), None, ConductanceLIF())
    with pytest.raises(UsageError, match=r"\[B, 2, \*features\]"):
        scan(torch.rand(5, *shape), None, ConductanceLIF())


def test_wrong_state_is_refused():
    x = torch.rand(3, 2, 4)
    with pytest.raises(UsageError, match="ConductanceState"):
        step(x, x, ConductanceLIF())
    with pytest.raises(UsageError, match="shape"):
        step(x, ConductanceLIF().rest(x[:2]), ConductanceLIF())
