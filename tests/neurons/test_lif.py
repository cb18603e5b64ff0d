"""LIF against analytic solutions, the printed equations in plain Python, and snnTorch."""

import itertools
import math
from dataclasses import replace

import pytest
import snntorch
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spikecl.errors import ConfigError, UsageError
from spikecl.neurons import ALIF, IF, LIF, PLIF, Arctan, LIFState, Reset, Sigmoid, step
from spikecl.neurons.values import ranges

quick = settings(max_examples=25, deadline=None, derandomize=True, database=None)
TIMES = ["same", "next", "after"]
SWITCHES = list(itertools.product(list(Reset), TIMES, [True, False], [True, False]))


def state_of(neuron, v, spikes):
    """Return a state in float64; the spikes count only where a reset waits for them."""
    return LIFState(v.double(), None if neuron.reset_time == "same" else spikes.double())


def run(x, neuron, state=None):
    """Return spikes and states [T, ...] of a loop over steps."""
    spikes, membranes = [], []
    for current in x:
        s, state = step(current, state, neuron)
        spikes.append(s)
        membranes.append(state.v)
    return torch.stack(spikes), torch.stack(membranes)


def constant(value, steps):
    return torch.full((steps, 1, 1), value, dtype=torch.float64)


def by_hand(xs, v, fired, neuron):
    """One neuron in plain Python floats, written from the docstring's equations."""
    c = 1 - neuron.beta if neuron.scale_input else 1.0
    low = neuron.v_reset if neuron.reset is Reset.VALUE else 0.0
    to_value = neuron.reset in (Reset.ZERO, Reset.VALUE)
    time, spikes, membranes = neuron.reset_time, [], []
    for x in xs:
        if time == "next" and to_value and fired:
            v = low
        v = neuron.v_rest + neuron.beta * (v - neuron.v_rest) + c * x
        if time != "same" and neuron.reset is Reset.SOFT and fired:
            v = v - neuron.v_th
        if time == "after" and to_value and fired:
            v = low
        fired = v > neuron.v_th if neuron.strict else v >= neuron.v_th
        spikes.append(float(fired))
        if time == "same" and fired:
            v = {Reset.SOFT: v - neuron.v_th, Reset.NONE: v}.get(neuron.reset, low)
        membranes.append(v)
    return spikes, membranes


@pytest.mark.parametrize(("reset", "time", "strict", "scale"), SWITCHES)
def test_every_switch_follows_the_printed_equations(reset, time, strict, scale):
    xs = (torch.randint(-4, 12, (40,), generator=torch.Generator().manual_seed(1)) / 8).double()
    xs[:2] = torch.tensor([2.0, 0.5]) if scale else 0.5  # meets the threshold exactly
    # the spike that waits is no function of v
    for v, fired, v_rest in ((0.0, False, 0.0), (0.375, True, 0.0), (0.375, True, -0.25)):
        neuron = LIF(
            beta=0.75, v_th=0.5, v_reset=-0.25, v_rest=v_rest, reset=reset, reset_time=time,
            strict=strict, scale_input=scale,
        )  # fmt: skip
        start = state_of(neuron, torch.full((1, 1), v), torch.full((1, 1), float(fired)))
        spikes, membranes = run(xs.view(-1, 1, 1), neuron, start)
        expected_spikes, expected = by_hand(
            xs.tolist(), v, fired and neuron.reset_time != "same", neuron
        )
        assert spikes.flatten().tolist() == expected_spikes
        assert membranes.flatten().tolist() == pytest.approx(expected, abs=1e-12)
        assert 0 < sum(expected_spikes) < 40


def test_the_comparison_matters_at_the_threshold():
    for strict, first in ((True, 0.0), (False, 1.0)):
        assert run(constant(1.0, 1), LIF(v_th=1.0, strict=strict))[0].item() == first


@quick
@given(st.floats(0.05, 0.98), st.floats(0.01, 0.99), st.booleans())
def test_below_threshold_the_membrane_relaxes_to_its_fixed_point(beta, fraction, scale):
    c = 1 - beta if scale else 1.0
    x = fraction * (1 - beta) / c  # fixed point below the threshold 1
    neuron = LIF(beta=beta, scale_input=scale)
    spikes, v = run(constant(x, 30), neuron)
    assert not spikes.any()
    n = torch.arange(1, 31, dtype=torch.float64)
    torch.testing.assert_close(v[:, 0, 0], c * x * (1 - beta**n) / (1 - beta))
    at_rest = LIFState(constant(c * x / (1 - beta), 1)[0])
    torch.testing.assert_close(step(constant(x, 1)[0], at_rest, neuron)[1], at_rest)


@quick
@given(st.floats(0.3, 0.97), st.floats(1.02, 6.0))
def test_interspike_interval_with_a_reset_to_zero(beta, drive):
    x = drive * (1 - beta)
    steps = math.log(1 - (1 - beta) / x) / math.log(beta)
    assume(abs(steps - round(steps)) > 1e-6)
    interval = math.ceil(steps)
    spikes, _ = run(constant(x, 60), LIF(beta=beta, reset=Reset.ZERO))
    at = (spikes.flatten().nonzero().flatten() + 1).tolist()
    assert at == [n for n in range(1, 61) if n % interval == 0]


@quick
@given(st.floats(0.02, 0.99))
def test_without_leak_a_soft_reset_counts_the_charge(x):
    spikes, v = run(constant(x, 50), LIF(beta=1.0))
    assert float(spikes.sum() + v[-1].sum()) == pytest.approx(50 * x, abs=1e-9)
    assert float(v.max()) <= 1.0


def psi_sigmoid(u, k=4.0):
    s = 1 / (1 + math.exp(-k * u))
    return k * s * (1 - s)


def slopes(u, beta, th, low, kept, reset):
    """Return d(next membrane)/du for a reset in the same step, and for one in the next."""
    z, psi = float(u > th), psi_sigmoid(u - th)
    if reset is Reset.NONE:
        return 1.0, beta
    if reset is Reset.SOFT:
        return 1 - kept * th * psi, beta - kept * th * psi  # the second is taken off after decay
    slope = 1 - z - kept * (u - low) * psi
    return slope, beta * slope


@pytest.mark.parametrize("v", [-0.3, 0.9, 1.4, 2.5])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("time", TIMES)
def test_gradient_through_the_reset(v, detach, reset, time):
    beta, th, low, x = 0.8, 1.1, -0.2, 0.35
    neuron = LIF(beta=beta, v_th=th, v_reset=low, reset=reset, reset_time=time, detach_reset=detach)
    low = low if reset is Reset.VALUE else 0.0
    before = torch.tensor([[v]], dtype=torch.float64, requires_grad=True)
    current = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
    state = state_of(neuron, before, torch.zeros_like(before))
    _, once = step(current, state, neuron)
    u = beta * v + x
    same, late = slopes(u, beta, th, low, 0.0 if detach else 1.0, reset)
    dv, dx = torch.autograd.grad(once.v.sum(), (before, current), retain_graph=True)
    expected = same if time == "same" else 1.0  # the other resets have yet to come
    assert once.v.item() == pytest.approx(
        u if time != "same" or u <= th else {Reset.SOFT: u - th, Reset.NONE: u}.get(reset, low)
    )
    assert dv.item() == pytest.approx(beta * expected, abs=1e-12)
    assert dx.item() == pytest.approx(expected, abs=1e-12)
    if time == "same":
        return
    _, twice = step(torch.zeros_like(current), once, neuron)
    (slope,) = torch.autograd.grad(twice.v.sum(), current)
    if time == "after" and reset in (Reset.ZERO, Reset.VALUE):  # s[t] resets beta u[t]
        z, psi = float(u > th), psi_sigmoid(u - th)
        late = beta * (1 - z) - (0.0 if detach else 1.0) * (beta * u - low) * psi
    assert slope.item() == pytest.approx(late, abs=1e-12)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("time", ["next", "after"])
@pytest.mark.parametrize("z", [0.0, 1.0])
def test_gradient_by_the_spike_that_waits(detach, reset, time, z):
    beta, th, low, v, x = 0.8, 1.1, -0.2, 1.4, 0.35
    neuron = LIF(beta=beta, v_th=th, v_reset=low, reset=reset, reset_time=time, detach_reset=detach)
    low = low if reset is Reset.VALUE else 0.0
    leaves = [torch.tensor([[n]], dtype=torch.float64, requires_grad=True) for n in (v, z, x)]
    after = step(leaves[2], LIFState(*leaves[:2]), neuron)[1].v
    dv, dz, dx = (
        0.0 if g is None else g.item()
        for g in torch.autograd.grad(after.sum(), leaves, allow_unused=True)
    )
    left = 1 - z if reset in (Reset.ZERO, Reset.VALUE) else 1.0
    assert dv == pytest.approx(beta * left, abs=1e-12)
    assert dx == pytest.approx(left if time == "after" else 1.0, abs=1e-12)
    pull = {Reset.SOFT: -th, Reset.NONE: 0.0}.get(
        reset, beta * (low - v) if time == "next" else low - beta * v - x
    )
    assert dz == pytest.approx(0.0 if detach else pull, abs=1e-12)


@pytest.mark.parametrize("strict", [True, False])
def test_gradient_of_the_spike(strict):
    x = torch.tensor([[0.3, 1.0, 1.2]], dtype=torch.float64, requires_grad=True)
    neuron = LIF(beta=0.5, strict=strict, scale_input=True, v_th=0.6, surrogate=Sigmoid(slope=3.0))
    step(x, None, neuron)[0].sum().backward()
    expected = [0.5 * psi_sigmoid(0.5 * u - 0.6, 3.0) for u in (0.3, 1.0, 1.2)]
    assert x.grad.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_soft_resets_at_the_two_times_differ_by_the_decayed_threshold():
    beta, th = 0.9, 1.0
    x = constant(0.05, 8)
    x[0] = 1.7  # one spike, then silence
    (s_now, v_now), (s_late, v_late) = (
        run(x, LIF(beta=beta, v_th=th, reset_time=time)) for time in ("same", "next")
    )
    assert s_now.flatten().tolist() == s_late.flatten().tolist() == [1.0] + [0.0] * 7
    assert (v_late - v_now)[0].item() == pytest.approx(th)
    n = torch.arange(7, dtype=torch.float64)
    torch.testing.assert_close((v_now - v_late)[1:, 0, 0], (1 - beta) * th * beta**n)


@quick
@given(st.integers(0, 10_000))
def test_without_leak_the_two_soft_resets_fire_alike(seed):
    x = torch.rand(40, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (now, v_now), (late, v_late) = (
        run(x, LIF(beta=1.0, reset_time=time)) for time in ("same", "next")
    )
    assert torch.equal(now, late)
    torch.testing.assert_close(v_late, v_now + now)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("zero", [False, True], ids=["subtract", "zero"])
@pytest.mark.parametrize("v_th", [1.0, 0.75])
def test_spike_for_spike_and_gradient_equal_to_snntorch(beta, zero, v_th):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 2, 7, dtype=torch.float64, generator=generator).mul_(0.6).add_(0.25)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    spikes, v = run(ours, LIF.snntorch(beta, v_th=v_th, zero=zero))
    leaky = snntorch.Leaky(
        beta=torch.tensor(beta, dtype=torch.float64),
        threshold=torch.tensor(v_th, dtype=torch.float64),
        reset_mechanism="zero" if zero else "subtract",
    )
    mem, expected, membranes = torch.zeros(2, 7, dtype=torch.float64), [], []
    for current in theirs:
        s, mem = leaky(current, mem)
        expected.append(s)
        membranes.append(mem)
    assert torch.equal(spikes, torch.stack(expected).double())
    assert 0 < float(spikes.detach().mean()) < 1
    torch.testing.assert_close(v, torch.stack(membranes), rtol=0, atol=1e-12)
    weight = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    (spikes * weight).sum().backward()
    (torch.stack(expected) * weight).sum().backward()
    # snnTorch's spikes are float32, so its gradients pass through float32
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_reset_in_the_same_step_equals_snntorch_without_delay():
    x = torch.rand(60, 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaky = snntorch.Leaky(beta=torch.tensor(0.8, dtype=torch.float64), reset_delay=False)
    mem, expected = torch.zeros(1, 9, dtype=torch.float64), []
    for current in x:
        s, mem = leaky(current, mem)
        expected.append(s.double())
    assert torch.equal(run(x, LIF(beta=0.8))[0], torch.stack(expected))


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_spikingjelly_mode_follows_its_update(decay_input, soft):
    tau, th = 2.5, 0.8
    xs = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 2
    v, expected = 0.0, []
    for x in xs.tolist():
        v = v + (x - v) / tau if decay_input else v - v / tau + x
        expected.append(float(v >= th))
        v = (v - th if soft else 0.0) if expected[-1] else v
    neuron = LIF.spikingjelly(tau, v_th=th, decay_input=decay_input, soft=soft)
    assert run(xs.view(-1, 1, 1), neuron)[0].flatten().tolist() == expected
    assert not neuron.detach_reset
    assert not neuron.strict
    assert neuron.surrogate == Sigmoid(slope=4.0)


def test_library_defaults():
    assert LIF.snntorch(0.9).surrogate == Arctan(slope=2.0)
    assert LIF.snntorch(0.9).detach_reset
    assert LIF.spikingjelly() == LIF.spikingjelly(2.0, v_th=1.0, decay_input=True, soft=False)


@pytest.mark.parametrize(("tau", "dt"), [(10.0, 1.0), (20.0, 0.5), (2.0, 2.0)])
def test_decay_from_a_time_constant(tau, dt):
    exact = LIF.from_tau(tau_mem=tau, dt=dt)
    assert exact.beta == pytest.approx(math.exp(-dt / tau))
    assert exact.tau_mem(dt=dt) == pytest.approx(tau)
    assert LIF.from_tau(tau_mem=tau, dt=dt, decay="euler").beta == pytest.approx(1 - dt / tau)


@pytest.mark.parametrize("model", [LIF, PLIF, ALIF])
def test_the_other_options_stand_beside_a_time_constant(model):
    options = {"v_th": 0.7, "reset": Reset.VALUE, "v_reset": -0.1, "refractory": 2}
    neuron = model.from_tau(tau_mem=5.0, dt=0.5, decay="euler", **options)
    assert type(neuron) is model
    assert neuron == model(beta=1 - 0.1, **options)
    assert ALIF.from_tau(tau_mem=5.0, rho=0.5).rho == 0.5
    with pytest.raises(ConfigError, match=f"{model.__name__}.v_tth.*did you mean 'v_th'"):
        model.from_tau(tau_mem=5.0, v_tth=0.7)
    with pytest.raises(TypeError, match="beta"):
        model.from_tau(tau_mem=5.0, beta=0.7)


def test_a_neuron_without_leak_has_no_time_constant():
    with pytest.raises(ConfigError, match="IF.beta: got 0.9.*an IF has no leak.*use LIF"):
        IF.from_tau(tau_mem=10.0)
    assert IF(beta=1) == IF() and isinstance(IF(beta=1).beta, float)


def test_exact_decay_of_an_interval_does_not_depend_on_the_step():
    one, half = (LIF.from_tau(tau_mem=7.0, dt=dt).beta for dt in (1.0, 0.5))
    assert half**2 == pytest.approx(one)


@pytest.mark.parametrize(
    ("tau", "dt", "decay"),
    [(0.0, 1.0, "exact"), (-1.0, 1.0, "exact"), (1.0, 0.0, "exact"), (1.0, 1.5, "euler"),
     (float("nan"), 1.0, "exact")],
)  # fmt: skip
def test_time_constants_that_make_no_sense(tau, dt, decay):
    with pytest.raises(
        ConfigError, match=r"LIF.from_tau: tau_mem=.* with dt=.*positive milliseconds"
    ):
        LIF.from_tau(tau_mem=tau, dt=dt, decay=decay)


def test_time_constant_at_the_edges():
    assert LIF(beta=1.0).tau_mem() == math.inf
    assert LIF(beta=0.0).tau_mem() == 0.0


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_decay_outside_zero_to_one(beta):
    with pytest.raises(ConfigError, match="LIF.beta"):
        LIF(beta=beta)


def test_input_scale_and_reset_value():
    assert LIF(beta=0.75).input_scale == 1
    assert LIF(beta=0.75, scale_input=True).input_scale == 0.25
    assert LIF(reset=Reset.VALUE, v_reset=-2.0).reset_value == -2
    assert LIF(reset=Reset.ZERO, v_reset=-2.0).reset_value == 0


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,), ()])
def test_a_state_of_another_shape_is_refused(shape):
    with pytest.raises(UsageError, match=r"state has shape .*one step of the input needs \(2, 3\)"):
        step(torch.zeros(2, 3), LIFState(torch.zeros(shape)), LIF())


@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("time", TIMES)
def test_a_step_changes_neither_input_nor_state(reset, time):
    neuron = LIF(reset=reset, reset_time=time, v_reset=0.3)
    x, v, waiting = (torch.full((2, 3), n, dtype=torch.float64) for n in (2.0, 1.5, 1.0))
    spikes, new = step(x, state_of(neuron, v, waiting), neuron)
    for tensor, value in ((x, 2.0), (v, 1.5), (waiting, 1.0)):
        assert torch.equal(tensor, torch.full_like(tensor, value))
    assert spikes.shape == new.v.shape == (2, 3)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("v_rest", [0.0, -0.5])
def test_no_state_means_rest(time, v_rest):
    neuron = LIF(reset_time=time, v_rest=v_rest)
    x = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)).double()
    rest = state_of(neuron, torch.full((2, 3), v_rest), torch.zeros(2, 3))
    a, b = step(x, None, neuron), step(x, rest, neuron)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1].v, b[1].v)
    quiet, still = step(torch.zeros_like(x), None, neuron)
    assert not quiet.any()
    torch.testing.assert_close(still.v, rest.v, rtol=0, atol=1e-15)


@pytest.mark.parametrize("reset", [Reset.ZERO, Reset.VALUE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_reset_to_a_value_is_exact_however_far_the_membrane_overshot(reset, dtype):
    neuron = LIF(reset=reset, v_reset=-70.6, v_th=-50.0)
    x = torch.tensor([[1.0, 1e3, 1e9, 1e30]], dtype=dtype)
    _, state = step(x, None, neuron)
    expected = torch.tensor(-70.6 if reset is Reset.VALUE else 0.0, dtype=dtype)
    assert torch.equal(state.v, expected.expand(1, 4))


def test_integrate_and_fire_does_not_leak():
    xs = torch.tensor([0.25, 0.5, 0.0, -0.25, 0.75, 0.5], dtype=torch.float64)
    spikes, v = run(xs.view(-1, 1, 1), IF())
    assert spikes.flatten().tolist() == [0, 0, 0, 0, 1, 0]
    assert v.flatten().tolist() == [0.25, 0.75, 0.75, 0.5, 0.25, 0.75]


def test_plif_follows_its_update_and_its_published_gradient():
    tau0 = 2.5
    neuron = PLIF(beta=1 - 1 / tau0)
    xs = (torch.rand(30, generator=torch.Generator().manual_seed(5)) * 2).double()
    v, spikes, membranes = 0.0, [], []
    for x in xs.tolist():
        v = v + (x - v) / tau0
        spikes.append(float(v >= 1.0))
        v = 0.0 if spikes[-1] else v
        membranes.append(v)
    ours, our_v = run(xs.view(-1, 1, 1), neuron)
    assert ours.flatten().tolist() == spikes
    assert our_v.flatten().tolist() == pytest.approx(membranes, abs=1e-12)
    assert 0 < sum(spikes) < 30
    assert neuron.learns == ("beta",)
    assert not neuron.detach_reset
    assert not neuron.strict
    # w = -ln(tau0 - 1) is minus what is stored; du/dw = sigmoid'(w) (x - v)
    allowed, before, x = ranges(PLIF)["beta"], 0.3, 0.7
    raw = allowed.to_raw(torch.tensor(neuron.beta, dtype=torch.float64)).requires_grad_()
    assert raw.item() == pytest.approx(math.log(tau0 - 1))
    state = LIFState(torch.full((1, 1), before, dtype=torch.float64))
    bound = replace(neuron, detach_reset=True).bind({"beta": allowed.from_raw(raw)})
    step(constant(x, 1)[0], state, bound)[1].v.sum().backward()
    assert -raw.grad.item() == pytest.approx((x - before) * (1 / tau0) * (1 - 1 / tau0), rel=1e-12)
