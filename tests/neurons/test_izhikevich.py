"""Izhikevich's neuron against its published program, its fixed points and its firing patterns."""

import numpy as np
import pytest
import torch

from spikecl.errors import ConfigError, UsageError
from spikecl.kernels import scan
from spikecl.neurons import Izhikevich, IzhikevichState, StraightThrough, step

REGULAR = {"a": 0.02, "b": 0.2, "c": -65.0, "d": 8.0}
BURSTING = {"a": 0.02, "b": 0.2, "c": -55.0, "d": 4.0}
CHATTERING = {"a": 0.02, "b": 0.2, "c": -50.0, "d": 2.0}
FAST = {"a": 0.1, "b": 0.2, "c": -65.0, "d": 2.0}
LOW_THRESHOLD = {"a": 0.02, "b": 0.25, "c": -65.0, "d": 2.0}
PATTERNS = [REGULAR, BURSTING, CHATTERING, FAST, LOW_THRESHOLD]


def run(x, neuron, state=None):
    """Return the spikes [T] of one neuron for inputs ``x`` [T]."""
    x = torch.as_tensor(x, dtype=torch.float64)
    return scan(x[:, None, None], state, neuron)[0][:, 0, 0].numpy()


def intervals(neuron, current, length=1000.0):
    """Return the inter-spike intervals in ms for a constant current."""
    spikes = run(np.full(round(length / neuron.dt), current), neuron)
    return np.diff(np.flatnonzero(spikes)) * neuron.dt


def published(x, v, u, a, b, c, d, dt=1.0):
    """The program of the paper: it resets at the beginning of the next step."""
    fired = []
    for current in x:
        fired.append(v >= 30)
        if v >= 30:
            v, u = c, u + d
        v = v + 0.5 * dt * (0.04 * v**2 + 5 * v + 140 - u + current)
        v = v + 0.5 * dt * (0.04 * v**2 + 5 * v + 140 - u + current)
        u = u + dt * a * (b * v - u)
    return np.array(fired)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_first_spikes_are_those_of_the_published_program(pattern):
    """Up to the first spike nothing is cut off; the program sees a spike one iteration later."""
    rng = np.random.default_rng(0)
    start = IzhikevichState(*(torch.full((1, 1), z, dtype=torch.float64) for z in (-65, -13)))
    for _ in range(10):
        x = 5 * rng.normal(size=300) + 3
        ours = run(x, Izhikevich(**pattern), start)
        theirs = published(x, -65.0, -13.0, **pattern)
        assert ours.any() and np.argmax(ours) == np.argmax(theirs) - 1


def test_rates_are_those_of_the_published_program_for_short_steps():
    """At 0.1 ms the overshoot of the program is small; the two differ by a spike or so."""
    values = {k: torch.tensor([p[k] for p in PATTERNS], dtype=torch.float64) for k in REGULAR}
    x = torch.full((4000, 1, 5), 10.0, dtype=torch.float64)
    ours = scan(x, None, Izhikevich(dt=0.1, **values))[0].sum((0, 1)).numpy()
    b = values["b"]
    v = Izhikevich(b=b).rest(x[0]).v[0]
    theirs = [
        published(x[:, 0, 0].numpy(), float(v[k]), float(v[k] * b[k]), dt=0.1, **PATTERNS[k]).sum()
        for k in range(5)
    ]
    assert ours.min() >= 5
    np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=1)


@pytest.mark.parametrize("substeps", [1, 2, 4, 16])
def test_regular_spiking_adapts(substeps):
    found = intervals(Izhikevich(dt=0.25, substeps=substeps), 10.0, 600.0)
    assert len(found) >= 10
    assert np.all(np.diff(found) >= -0.25)  # one step: a spike falls on the grid
    assert found[-1] > 1.3 * found[0]
    assert np.ptp(found[-4:]) <= 0.25  # then regular


def test_default_step_adapts_too():
    found = intervals(Izhikevich(), 10.0)
    assert len(found) >= 15 and np.all(np.diff(found) >= -1) and found[-1] > found[0]


def test_patterns():
    values = {k: torch.tensor([p[k] for p in PATTERNS], dtype=torch.float64) for k in REGULAR}
    x = torch.full((5000, 2, 5), 10.0, dtype=torch.float64)
    x[:, 1] = 3.0  # only the low-threshold one goes on firing
    spikes, _ = scan(x, None, Izhikevich(dt=0.2, **values))
    regular, bursting, chattering, fast, _ = (
        np.diff(np.flatnonzero(train)) * 0.2 for train in spikes[:, 0].T
    )
    assert len(fast) > 3 * len(regular)
    assert fast[-1] < 1.2 * fast[2]  # hardly adapts, its onset aside
    assert bursting[0] < 0.4 * bursting[-1]  # a burst, then single spikes
    short = chattering < 10
    assert 0.5 < short.mean() < 0.95 and chattering[~short].min() > 15  # bursts and pauses
    lasting = spikes[2500:, 1].any(0)  # for half a second and more
    assert lasting.tolist() == [False, False, False, False, True]


def test_silent_neuron_stays_at_rest():
    state = None
    for _ in range(1000):
        spikes, state = step(torch.zeros(1, 1, dtype=torch.float64), state, Izhikevich())
        assert spikes == 0
        assert state.v == pytest.approx(-70, rel=1e-12) and state.u == pytest.approx(-14, rel=1e-12)


@pytest.mark.parametrize("b", [-0.5, 0.0, 0.1, 0.2, 0.25, 0.267])
def test_rest_is_the_lower_root(b):
    v, u = Izhikevich(b=b).silence(torch.zeros(1, 1, dtype=torch.float64))
    roots = np.roots([0.04, 5 - b, 140])
    np.testing.assert_allclose([float(v), float(u)], [roots.min(), b * roots.min()], rtol=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rest_of_the_known_patterns_is_stable(pattern):
    a, b = pattern["a"], pattern["b"]
    v = float(Izhikevich(**pattern).silence(torch.zeros(1, 1, dtype=torch.float64)).v)
    jacobian = [[0.08 * v + 5, -1], [a * b, -a]]
    assert np.linalg.eigvals(jacobian).real.max() < 0


def test_without_a_fixed_point_it_starts_at_c():
    b = torch.tensor([0.2, 0.3], dtype=torch.float64)
    c = torch.tensor([-60.0, -55.0], dtype=torch.float64)
    v, u = Izhikevich(b=b, c=c).silence(torch.zeros(3, 2, dtype=torch.float64))
    np.testing.assert_allclose(v, [[-70.0, -55.0]] * 3, rtol=1e-12)
    np.testing.assert_allclose(u, [[-14.0, -16.5]] * 3, rtol=1e-12)
    spikes = run(np.zeros(500), Izhikevich(b=0.3))
    assert spikes.any()  # and fires without input, for there is nowhere to stay


def test_rheobase_is_where_the_fixed_point_becomes_unstable():
    """The trace of the Jacobian vanishes at ``0.08 v + 5 = a``; slow currents reach it silently."""
    a, b = 0.02, 0.2
    v = (a - 5) / 0.08
    threshold = -(0.04 * v**2 + (5 - b) * v + 140)
    assert 3.7 < threshold < 3.9
    ramp = torch.linspace(0, 2, 16_000, dtype=torch.float64).clamp_max(1) * threshold
    x = ramp[:, None, None] * torch.tensor([0.9, 1.06])
    spikes, _ = scan(x, None, Izhikevich(dt=0.1, substeps=1))
    assert spikes.any(0).tolist() == [[False, True]]


def test_a_spike_is_cut_off_and_kicks_the_recovery():
    state = IzhikevichState(*(torch.tensor([[z, z]], dtype=torch.float64) for z in (25.0, 2.0)))
    neuron = Izhikevich(c=torch.tensor([-65.0, -50.0]).double(), d=3.0)
    spikes, (v, u) = step(
        torch.zeros(1, 2, dtype=torch.float64), state._replace(u=state.u * 0), neuron
    )
    assert spikes.tolist() == [[1, 1]] and v.tolist() == [[-65, -50]]
    np.testing.assert_allclose(u, 0.02 * 0.2 * 30 + 3.0, rtol=1e-12)  # the recovery saw the peak


def test_a_membrane_past_its_peak_waits_for_the_end_of_the_step():
    state = IzhikevichState(*(torch.full((1, 1), z, dtype=torch.float64) for z in (25.0, 0.0)))
    after = Izhikevich(substeps=4).integrate(torch.zeros(1, 1, dtype=torch.float64), state)
    assert float(after.v) == pytest.approx(25 + (0.04 * 25**2 + 5 * 25 + 140) / 4, rel=1e-12)


@pytest.mark.parametrize("substeps", [1, 2, 8])
def test_rounding_errors_die_out(substeps):
    """They do not where the recovery sees how far a membrane overshot (in the program)."""
    rng = np.random.default_rng(1)
    x = torch.as_tensor(rng.normal(10, 6, (600, 1, 40)))
    neuron = Izhikevich(substeps=substeps)
    rest = neuron.rest(x[0])
    ours, last = scan(x, rest, neuron)
    other, shifted = scan(x, rest._replace(v=rest.v + 1e-9), neuron)
    assert ours.sum(0).min() >= 10
    assert torch.equal(ours, other)
    np.testing.assert_allclose(last.v, shifted.v, rtol=0, atol=1e-9)


@pytest.mark.parametrize("current", [1e3, 1e6, 1e20, -1e20])
@pytest.mark.parametrize("substeps", [1, 2, 16])
def test_float32_never_overflows(current, substeps):
    neuron = Izhikevich(substeps=substeps)
    x = torch.full((50, 1, 1), current)
    spikes, state = scan(x, None, neuron)
    assert torch.isfinite(state.v).all() and torch.isfinite(state.u).all()
    assert current < 0 or spikes.any()


def test_float32_fires_like_float64():
    rng = np.random.default_rng(2)
    x = torch.as_tensor(rng.normal(10, 3, (500, 1, 20)))
    double, _ = scan(x, None, Izhikevich())
    single, _ = scan(x.float(), None, Izhikevich())
    assert double.sum() > 200
    assert (double != single).double().mean() < 0.01


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("neuron", [Izhikevich(), Izhikevich(substeps=8)])
def test_gradients_are_finite_over_spikes(neuron, detach_reset):
    values = {name: torch.tensor([z, z], requires_grad=True) for name, z in REGULAR.items()}
    x = torch.full((200, 3, 2), 10.0, requires_grad=True)
    surrogate = StraightThrough() if detach_reset else neuron.surrogate
    bound = Izhikevich(
        substeps=neuron.substeps, detach_reset=detach_reset, surrogate=surrogate
    ).bind(values)
    spikes, state = scan(x, None, bound)
    assert spikes.sum() >= 12
    (spikes.sum() + state.v.sum()).backward()
    for tensor in (x, *values.values()):
        assert torch.isfinite(tensor.grad).all() and tensor.grad.abs().max() > 0


@pytest.mark.parametrize("shape", [(1, 4), (5, 3), (2, 3, 4, 4)])
def test_shapes(shape):
    spikes, state = step(torch.full(shape, 10.0), None, Izhikevich())
    assert spikes.shape == state.v.shape == state.u.shape == shape


def test_wrong_state_and_parameters_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(UsageError, match="IzhikevichState"):
        step(x, x, Izhikevich())
    with pytest.raises(UsageError, match="shape"):
        step(x, Izhikevich().rest(x[:1]), Izhikevich())
    with pytest.raises(ConfigError, match="substeps"):
        Izhikevich(substeps=0)
    with pytest.raises(ConfigError, match="Izhikevich.a"):
        Izhikevich(a=0.0)
