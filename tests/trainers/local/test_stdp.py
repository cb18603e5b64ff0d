"""Pairs of spikes: closed forms, a plain loop, Brian2, Norse, snnTorch, and Poisson drift."""

import math
import warnings

import numpy as np
import pytest
import torch
from meetings import build, off_diagonal, sides, synapses, trains

from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.networks import Mlp, SpikingMlp, form_gradients
from spikecl.neurons import LIF
from spikecl.trainers import Stdp

PYPARSING = r"'\w+' (argument is )?deprecated"  # Brian2 2.9 calls pyparsing by its old names
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", PYPARSING, DeprecationWarning)
    import brian2
    from brian2 import ms

pytestmark = pytest.mark.filterwarnings(f"ignore:{PYPARSING}:DeprecationWarning")

UNEVEN = {"a_plus": 0.3, "a_minus": 0.2, "tau_plus": 12.0, "tau_minus": 25.0, "dt": 0.5}


# ---- one pair -----------------------------------------------------------------------------------


def test_a_pair_changes_the_weight_by_an_exponential_of_its_lag():
    rule = Stdp(**UNEVEN)
    lags = [0.5, 1.0, 7.5, 40.0]
    after = rule.window(lags)
    before = rule.window([-lag for lag in lags])
    np.testing.assert_allclose(after, [0.3 * math.exp(-d / 12) for d in lags], rtol=1e-12)
    np.testing.assert_allclose(before, [-0.2 * math.exp(-d / 25) for d in lags], rtol=1e-12)


@pytest.mark.parametrize("pairing", ["all", "nearest"])
def test_a_coincident_pair_counts_in_both_orders_or_not_at_all(pairing):
    assert Stdp(**UNEVEN, pairing=pairing).window([0.0]) == [pytest.approx(0.3 - 0.2)]
    assert Stdp(**UNEVEN, pairing=pairing, coincident=False).window([0.0]) == [0.0]
    lags = [-3.0, 2.0]  # other pairs do not see the difference
    apart = Stdp(**UNEVEN, pairing=pairing, coincident=False).window(lags)
    assert apart == pytest.approx(Stdp(**UNEVEN, pairing=pairing).window(lags), rel=1e-12)


def test_the_power_of_the_room_left_scales_a_pair():
    rule = Stdp(**UNEVEN, mu=0.5, w_min=-1.0, w_max=3.0)
    gain, loss = 0.3 * math.exp(-5 / 12), 0.2 * math.exp(-5 / 25)
    for w in (-1.0, 0.0, 2.5, 3.0):
        expected = [-loss * (w + 1) ** 0.5, gain * (3 - w) ** 0.5]
        np.testing.assert_allclose(rule.window([-5.0, 5.0], weight=w), expected, rtol=1e-12)
    assert rule.window([5.0], weight=4.0) == [0.0]


def test_repeated_pairs_meet_each_other_unless_only_the_nearest_count():
    pair = Stdp(**UNEVEN).window([2.0])[0]
    near = Stdp(**UNEVEN, pairing="nearest").window([2.0], repeats=2, every=10.0)[0]
    across = -0.2 * math.exp(-8 / 25)
    assert near == pytest.approx(2 * pair + across)
    every = Stdp(**UNEVEN).window([2.0], repeats=2, every=10.0)[0]
    assert every == pytest.approx(2 * pair + across + 0.3 * math.exp(-12 / 12))


def test_lags_are_whole_steps():
    with pytest.raises(UsageError, match="got 0.3 ms, a step has 0.5 ms"):
        Stdp(**UNEVEN).window([0.3])
    for time in (math.nan, math.inf, -math.inf):
        with pytest.raises(UsageError, match="a step has 0.5 ms; use whole steps"):
            Stdp(**UNEVEN).window([time])
        with pytest.raises(UsageError, match="a step has 0.5 ms; use whole steps"):
            Stdp(**UNEVEN).window([2.0], repeats=2, every=time)
    with pytest.raises(UsageError, match="no lags"):
        Stdp().window([])


def test_pairs_are_whole_and_come_one_after_the_other():
    for repeats in (0, -1, 2.5, math.nan):
        with pytest.raises(UsageError, match=r"repeats: got .*; give a whole number of pairs"):
            Stdp().window([5.0], repeats=repeats)
    for every in (0.0, -100.0):
        with pytest.raises(UsageError, match="every: got .* ms; use at least one step, 0.5 ms"):
            Stdp(**UNEVEN).window([5.0], repeats=3, every=every)


# ---- a trainer's factors ------------------------------------------------------------------------


def loop(rule, pre, post):
    """Change of one weight by lists of spikes: gains and losses, from the times of the pairs."""
    nearest = rule.pairing == "nearest"
    times = [[t for t, z in enumerate(side) for _ in range(int(z))] for side in (pre, post)]
    first = 0 if rule.coincident else 1
    gain = loss = 0.0
    for own, others, tau, a in (
        (times[1], times[0], rule.tau_plus, rule.a_plus),
        (times[0], times[1], rule.tau_minus, -rule.a_minus),
    ):
        for t in own:
            seen = [s for s in others if t - s >= first]
            seen = seen[-1:] if nearest else seen
            total = sum(math.exp(-(t - s) * rule.dt / tau) for s in seen)
            if a > 0:
                gain += a * total
            else:
                loss -= a * total
    return gain, loss


RULES = {
    "all": Stdp(**UNEVEN),
    "before": Stdp(**UNEVEN, coincident=False),
    "nearest": Stdp(**UNEVEN, pairing="nearest"),
    "nearest_before": Stdp(**UNEVEN, pairing="nearest", coincident=False),
    "bounded": Stdp(**UNEVEN, mu=0.7, w_min=-2.0, w_max=2.0),
    "bounded_nearest": Stdp(**UNEVEN, mu=1.0, w_min=-2.0, w_max=2.0, pairing="nearest"),
}


@pytest.mark.parametrize("rule", list(RULES))
def test_factors_equal_a_loop_over_every_synapse(rule, network, x, loss):
    rule = RULES[rule]
    factors = rule.factors(network, x, loss)
    for path, (pre, post) in sides(network, x).items():
        stored = network.synapses[path].weight.detach().flatten(1)
        expected = torch.zeros_like(stored)
        for j, i, _, one, other in synapses(pre, post):
            gain, lost = loop(rule, one, other)
            w = float(stored[j, i])
            expected[j, i] += gain * (rule.w_max - w) ** rule.mu
            expected[j, i] -= lost * (w - rule.w_min) ** rule.mu
        expected /= pre.shape[1] * pre.shape[2]
        found, expected = off_diagonal(path, -factors.synapses[path].gradient(), expected)
        assert float(expected.abs().max()) > 1e-3, path
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_a_step_moves_the_stored_weight_by_the_window_whatever_its_gain(mu):
    rule, spec = Stdp(**UNEVEN, mu=mu), SpikingMlp(hidden=(1,), neuron=LIF(v_th=0.6), gain=10.0)
    network, x = build(spec, (1,)), torch.zeros(4, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        network.weights()["hidden1.weight"].fill_(0.1)
    x[1] = 1
    assert torch.equal(torch.as_tensor(network.record(x)["hidden1"]["spikes"]), x)
    factors = rule.factors(network, x, lambda z: z.sum())
    change = -form_gradients(network, factors.synapses, factors.direct)["hidden1.weight"]
    assert [float(change)] == pytest.approx(rule.window([0.0], weight=0.1))


def test_rows_are_given_where_the_rule_is_a_sum_of_products(network, x, loss):
    for path, factor in RULES["all"].factors(network, x, loss).synapses.items():
        torch.testing.assert_close(factor.delta.T @ factor.x, factor.gradient())
        assert len(factor.x) > 0, path
    bounded = RULES["bounded"].factors(network, x, loss)
    with pytest.raises(UsageError, match="trainer 'stdp' gives a gradient and no rows"):
        _ = next(iter(bounded.synapses.values())).x


# ---- other simulators ---------------------------------------------------------------------------


@pytest.fixture
def numpy_target():
    before = brian2.prefs.codegen.target
    brian2.prefs.codegen.target = "numpy"
    yield
    brian2.prefs.codegen.target = before


@pytest.fixture
def second():
    """A second of random input to a network, and what its neurons sent."""
    spec = SpikingMlp(hidden=(4,), neuron=LIF(beta=0.9, v_th=0.8))
    network = build(spec, (7,), seed=5, scale=3.0)
    x = trains(1000, 1, 7, p=0.08, seed=3)
    fired = torch.as_tensor(network.record(x)["hidden1"]["spikes"])
    counts = fired.sum((0, 1))
    assert counts.min() > 5 and counts.max() < 300
    assert float((x[:, 0].T @ fired[:, 0]).sum()) > 10  # some pairs are coincident
    return network, x, fired


def in_brian(rule, w, pre, post):
    """Weights [m, n] after trains [T, n] and [T, m]; traces before or behind the products."""
    brian2.defaultclock.dt = rule.dt * ms
    groups = []
    for train in (pre, post):
        when, who = np.nonzero(train.numpy())
        groups.append(brian2.SpikeGeneratorGroup(train.shape[1], who, when * rule.dt * ms))
    take = "= 1" if rule.pairing == "nearest" else "+= 1"
    fixed = {
        "up": rule.a_plus,
        "down": rule.a_minus,
        "tau_p": rule.tau_plus * ms,
        "tau_m": rule.tau_minus * ms,
        "low": rule.w_min,
        "high": rule.w_max,
        "mu": rule.mu,
    }
    synapses = brian2.Synapses(
        *groups,
        """w : 1
        start : 1
        dr/dt = -r/tau_p : 1 (event-driven)
        do/dt = -o/tau_m : 1 (event-driven)""",
        on_pre={"pre_take": f"r {take}", "pre_learn": "w -= down*(start - low)**mu*o"},
        on_post={"post_take": f"o {take}", "post_learn": "w += up*(high - start)**mu*r"},
        namespace=fixed,
    )
    synapses.connect()
    late = 1 if rule.coincident else -1
    for path in (synapses.pre_learn, synapses.post_learn):
        path.order = late
    synapses.w = synapses.start = w.T.numpy().flatten()
    net = brian2.Network(*groups, synapses)
    net.run(len(pre) * rule.dt * ms)
    return np.array(synapses.w).reshape(w.T.shape).T


@pytest.mark.usefixtures("numpy_target")
@pytest.mark.parametrize("rule", list(RULES))
def test_weights_after_a_second_equal_those_of_brian2(rule, second):
    rule, (network, x, fired) = RULES[rule], second
    w = network.synapses["hidden1"].weight.detach()
    factor = rule.factors(network, x, lambda z: z.sum()).synapses["hidden1"]
    expected = in_brian(rule, w, x[:, 0], fired[:, 0])
    assert np.abs(expected - w.numpy()).max() > 0.1
    np.testing.assert_allclose((w - factor.gradient()).numpy(), expected, rtol=0, atol=1e-6)


def test_weights_equal_those_of_norse(second):
    """Norse decays by ``1 - dt/tau`` and adds ``dt/tau a z``: other constants, the same rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from norse.torch.functional.stdp import STDPParameters, STDPState, stdp_step_linear
    network, x, fired = second
    tau, w = (12.0, 25.0), network.synapses["hidden1"].weight.detach()
    theirs = STDPParameters(
        a_pre=torch.tensor(tau[0], dtype=torch.float64),
        a_post=torch.tensor(tau[1], dtype=torch.float64),
        tau_pre_inv=torch.tensor(1 / tau[0], dtype=torch.float64),
        tau_post_inv=torch.tensor(1 / tau[1], dtype=torch.float64),
        eta_plus=0.3,
        eta_minus=0.2,
        hardbound=False,
    )
    state = STDPState(torch.zeros(1, 7).double(), torch.zeros(1, 4).double())
    for pre, post in zip(x, fired, strict=True):
        w, state = stdp_step_linear(pre, post, w, state, theirs, dt=1.0)
    rule = Stdp(a_plus=0.3, a_minus=0.2, **_matched(tau))
    factor = rule.factors(network, x, lambda z: z.sum()).synapses["hidden1"]
    start = network.synapses["hidden1"].weight.detach()
    torch.testing.assert_close(start - factor.gradient(), w, rtol=0, atol=1e-9)


def test_weights_equal_those_of_snntorch(second):
    """snnTorch decays by ``1 - 1/tau``."""
    from snntorch.functional.stdp_learner import stdp_linear_single_step

    network, x, fired = second
    tau, w = (12.0, 25.0), network.synapses["hidden1"].weight.detach()
    layer = torch.nn.Linear(7, 4, bias=False).double()
    r = o = None
    total = torch.zeros_like(w)
    for pre, post in zip(x, fired, strict=True):
        r, o, change = stdp_linear_single_step(
            layer, pre, post, r, o, *tau, f_pre=lambda w: 0.2, f_post=lambda w: 0.3
        )
        total += change
    rule = Stdp(a_plus=0.3, a_minus=0.2, **_matched(tau))
    factor = rule.factors(network, x, lambda z: z.sum()).synapses["hidden1"]
    torch.testing.assert_close(-factor.gradient(), total, rtol=0, atol=1e-9)


def _matched(tau):
    """Time constants with ``exp(-1/ours) = 1 - 1/theirs``."""
    names = ("tau_plus", "tau_minus")
    return {name: -1 / math.log(1 - 1 / t) for name, t in zip(names, tau, strict=True)}


# ---- drift --------------------------------------------------------------------------------------


@pytest.mark.parametrize("coincident", [True, False])
def test_independent_poisson_trains_drift_by_the_area_of_the_window(coincident):
    """In steps, the area of a side is ``sum_k exp(-k dt/tau)``, k from 0 or 1, and not tau."""
    steps, samples, p, q = 400, 4000, 0.02, 0.03
    rule = Stdp(a_plus=0.3, a_minus=0.1, tau_plus=12.0, tau_minus=25.0, coincident=coincident)
    found = rule.pairs(trains(steps, samples, 1, p=p), trains(steps, samples, 1, p=q, seed=9))
    each = (found.up_pre * found.up_post - found.down_pre * found.down_post).sum((0, 2))
    mean, error = float(each.mean()), float(each.std() / math.sqrt(samples))
    lags = np.arange(0 if coincident else 1, steps)
    area = 0.3 * np.exp(-lags / 12) - 0.1 * np.exp(-lags / 25)
    expected = p * q * ((steps - lags) * area).sum()  # the start sees fewer earlier spikes
    assert expected > 20 * error
    assert mean == pytest.approx(expected, abs=3 * error)


def test_the_drift_goes_to_the_formula_of_continuous_time():
    """``nu_pre nu_post (a_plus tau_plus - a_minus tau_minus)``: between both ways to count."""
    for dt in (1.0, 0.1):
        rates = []
        for coincident in (True, False):
            rule = Stdp(
                a_plus=0.3, a_minus=0.1, tau_plus=12.0, tau_minus=25.0, dt=dt, coincident=coincident
            )
            lags = [k * dt for k in range(int(-300 / dt), int(300 / dt) + 1)]
            rates.append(sum(rule.window(lags)) * dt)
        assert sum(rates) / 2 == pytest.approx(0.3 * 12 - 0.1 * 25, rel=3e-3 * dt**2 + 1e-5)
        assert rates[0] - rates[1] == pytest.approx(0.2 * dt)


# ---- what it refuses ----------------------------------------------------------------------------


def test_rates_and_graded_input_are_refused():
    with pytest.raises(PairingError, match="'stdp' is about the times of spikes, and layer 'hidd"):
        Stdp().check(build(Mlp(hidden=(4,)), (6,)), trains(3, 1, 6), None)
    spiking = build(SpikingMlp(hidden=(4,)), (6,))
    Stdp().check(spiking, 3 * trains(3, 1, 6), None)
    for x in (0.5 * trains(3, 1, 6), -trains(3, 1, 6)):
        with pytest.raises(PairingError, match="the input has other values; use an encoding"):
            Stdp().check(spiking, x, None)
        with pytest.raises(PairingError, match="the input has other values; use an encoding"):
            Stdp().factors(spiking, x, lambda z: z.sum())
    with pytest.raises(PairingError, match="layer 'hidden1' .* sends none"):
        Stdp().factors(build(Mlp(hidden=(4,)), (6,)), trains(3, 1, 6), lambda z: z.sum())


def test_bounds_leave_room():
    with pytest.raises(ConfigError, match=r"w_min=1.0 to w_max=1.0; w_max must be larger"):
        Stdp(w_min=1.0)
