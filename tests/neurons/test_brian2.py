"""Every model against Brian2: the same discretisation, spike for spike, and the states to 1e-9.

Brian2 runs a step in slots: start, groups (state update, from the old values), thresholds,
synapses, resets, end. Our step t does what its groups, thresholds and resets do, so a membrane
recorded at the end of step t is ours after step t. Two things are shifted, and the tests hold them
to it:

* A synapse acts after the state update, ours before it: an event of Brian2's step t - 1 is our
  input of step t.
* A refractory period of ``refractory`` steps without a spike is Brian2's ``(refractory + 1) dt``:
  it counts from spike to spike.

Where Brian2 has no such discretisation, a fine solution of its own is what we converge to.
"""

import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch

from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    AdExState,
    ConductanceLIF,
    Escape,
    Izhikevich,
    IzhikevichState,
    LeakyIntegrator,
    Refractory,
    Reset,
    step,
)

PYPARSING = r"'\w+' (argument is )?deprecated"  # Brian2 2.9 calls pyparsing by its old names
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", PYPARSING, DeprecationWarning)
    import brian2
    from brian2 import ms

pytestmark = pytest.mark.filterwarnings(f"ignore:{PYPARSING}:DeprecationWarning")

STEPS, CELLS = 600, 6


@pytest.fixture(autouse=True)
def numpy_target():
    before = brian2.prefs.codegen.target
    brian2.prefs.codegen.target = "numpy"
    yield
    brian2.prefs.codegen.target = before


@pytest.fixture
def rng():
    return np.random.default_rng(20260)


class Recording(NamedTuple):
    """Spikes [T, N], and what else was recorded, by name."""

    spikes: np.ndarray
    states: dict


def in_brian(
    model,
    x,
    *,
    record,
    dt=1.0,
    method="euler",
    values=None,
    start=None,
    threshold=None,
    reset=None,
    refractory=False,
    code=None,
    code_at="groups",
    arrays=None,
    events=None,
):
    """Run Brian2 on input ``x`` [T, N]; ``record`` maps slots to names of variables.

    Args:
        values: Parameters, one number for each neuron.
        start: Values before the first step.
        code: Statements of every step, in the slot ``code_at``.
        arrays: More arrays [T, N] that the equations may read.
        events: Spikes [T, M] and weights {variable: [M, N]}: what is added at each.
    """
    steps, n = x.shape
    brian2.defaultclock.dt = dt * ms
    values, start = values or {}, start or {}
    space = {
        name: brian2.TimedArray(array, dt=dt * ms)
        for name, array in {"drive": x, **(arrays or {})}.items()
    }
    constants = "".join(f"\n{name} : 1 (constant)" for name in values)
    group = brian2.NeuronGroup(
        n,
        f"{model}\nx = drive(t, i) : 1{constants}",
        method=method,
        threshold=threshold,
        reset=reset,
        refractory=refractory,
        namespace=space,
    )
    for name, value in {**values, **start}.items():
        setattr(group, name, value)
    if code:
        group.run_regularly(code, when=code_at)
    parts = [group, *_synapses(group, events)]
    spiking = [brian2.SpikeMonitor(group)] if threshold else []
    monitors = {
        slot: brian2.StateMonitor(group, names, record=True, when=slot)
        for slot, names in record.items()
    }
    network = brian2.Network(*parts, *monitors.values(), *spiking)
    network.run(steps * dt * ms, namespace={})  # nothing from this function's variables
    spikes = np.zeros((steps, n))
    for monitor in spiking:
        spikes[np.rint(monitor.t / ms / dt).astype(int), monitor.i] = 1
    found = {k: getattr(monitors[slot], k).T for slot, names in record.items() for k in names}
    return Recording(spikes, found)


def _synapses(group, events):
    if events is None:
        return
    fired, weights = events
    when, who = np.nonzero(fired)
    source = brian2.SpikeGeneratorGroup(fired.shape[1], who, when * brian2.defaultclock.dt)
    yield source
    for name, weight in weights.items():
        synapses = brian2.Synapses(source, group, "w : 1", on_pre=f"{name}_post += w")
        synapses.connect()
        synapses.w = weight.flatten()
        yield synapses


def in_ours(neuron, x, state=None, generator=None):
    """Run our model on ``x`` [T, ...] as a batch of one; the states by their fields' names."""
    outputs, states = [], []
    for current in torch.as_tensor(x)[:, None]:
        out, state = step(current, state, neuron, generator)
        outputs.append(out[0])
        states.append(getattr(state, "neuron", state))
    names = [k for k in states[0]._fields if getattr(states[0], k) is not None]
    return Recording(
        torch.stack(outputs).numpy(),
        {k: torch.stack([getattr(s, k)[0] for s in states]).numpy() for k in names},
    )


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def assert_twins(ours, theirs, *, least=5, **expected):
    """Every neuron fires, now and then; the spikes agree, and the states named in ``expected``."""
    counts = theirs.spikes.sum(0)
    assert counts.min() >= least and counts.max() < len(theirs.spikes) / 2, counts
    np.testing.assert_array_equal(ours.spikes, theirs.spikes)
    for name, value in expected.items():
        np.testing.assert_allclose(ours.states[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def noise(rng, mean, sd, steps=STEPS, cells=CELLS):
    return rng.normal(mean, sd, (steps, cells))


LEAK = "dv/dt = (v_rest - v + x) / (tau*ms) : 1"
RESETS = {Reset.SOFT: "v -= v_th", Reset.VALUE: "v = v_reset", Reset.ZERO: "v = 0"}


@pytest.fixture
def leaky(rng):
    """Return parameters of leaky neurons, by Brian2's names."""
    return {
        "tau": rng.uniform(5, 30, CELLS),
        "v_rest": rng.uniform(-0.3, 0.2, CELLS),
        "v_th": rng.uniform(0.6, 1, CELLS),
        "v_reset": rng.uniform(-0.4, 0.3, CELLS),
    }


def lif(values, decay=lambda tau: np.exp(-1 / tau), model=LIF, **switches):
    """Return our neuron with those parameters."""
    ours = {name: tensor(value) for name, value in values.items() if name != "tau"}
    return model(beta=tensor(decay(values["tau"])), scale_input=True, **ours, **switches)


@pytest.mark.parametrize("reset", list(RESETS))
def test_lif_with_exact_decay(rng, leaky, reset):
    x = noise(rng, 1.3, 1.5)
    theirs = in_brian(
        LEAK,
        x,
        method="exact",
        threshold="v > v_th",
        reset=RESETS[reset],
        values=leaky,
        start={"v": leaky["v_rest"]},
        record={"end": ["v"]},
    )
    assert_twins(in_ours(lif(leaky, reset=reset), x), theirs, v=theirs.states["v"])


def test_lif_with_euler_decay(rng, leaky):
    x = noise(rng, 1.3, 1.5)
    theirs = in_brian(
        LEAK,
        x,
        threshold="v > v_th",
        reset="v = v_reset",
        values=leaky,
        start={"v": leaky["v_rest"]},
        record={"end": ["v"]},
    )
    neuron = lif(leaky, lambda tau: 1 - 1 / tau, reset=Reset.VALUE)
    assert_twins(in_ours(neuron, x), theirs, v=theirs.states["v"])


def test_if(rng):
    x, v_th = noise(rng, 0.1, 0.3), rng.uniform(0.5, 1, CELLS)
    theirs = in_brian(
        "dv/dt = x / ms : 1",
        x,
        threshold="v > v_th",
        reset="v -= v_th",
        values={"v_th": v_th},
        record={"end": ["v"]},
    )
    assert_twins(in_ours(IF(v_th=tensor(v_th)), x), theirs, v=theirs.states["v"])


def test_plif_fires_at_threshold_itself(rng):
    x, tau = noise(rng, 1.5, 2.0), rng.uniform(1.5, 8, CELLS)
    x[100] = 500.0  # a spike for certain; after it the membrane is zero
    x[101] = tau  # and this brings it to the threshold, up to rounding
    theirs = in_brian(
        "dv/dt = (x - v) / (tau*ms) : 1",
        x,
        threshold="v >= 1 - 1e-9",
        reset="v = 0",
        values={"tau": tau},
        record={"end": ["v"]},
    )
    ours = in_ours(PLIF(beta=tensor(1 - 1 / tau), v_th=1 - 1e-9), x)
    assert ours.spikes[100:102].all()
    assert_twins(ours, theirs, v=theirs.states["v"])


@pytest.mark.parametrize("normalise", [True, False])
def test_alif(rng, leaky, normalise):
    """A spike adds ``g / rho`` in Brian2, which decays before it is seen; ours adds ``g`` then."""
    x, rho = noise(rng, 2.0, 1.5), np.exp(-1 / rng.uniform(20, 200, CELLS))
    gain = 1 - rho if normalise else np.ones(CELLS)
    adaptation = rng.uniform(0.5, 2, CELLS) * (1 if normalise else 0.02)
    theirs = in_brian(
        f"{LEAK}\ndb/dt = b * log(rho) / ms : 1",
        x,
        method="exact",
        threshold="v > v_th + adaptation*b",
        reset="v -= v_th; b += gain / rho",
        values={**leaky, "rho": rho, "gain": gain, "adaptation": adaptation},
        start={"v": leaky["v_rest"]},
        record={"end": ["v"], "after_thresholds": ["b"]},
    )
    neuron = lif(
        leaky,
        model=ALIF,
        rho=tensor(rho),
        adaptation=tensor(adaptation),
        normalise=normalise,
    )
    assert_twins(in_ours(neuron, x), theirs, **theirs.states)
    assert theirs.states["b"].max() * adaptation.min() > 0.05


def test_cuba(rng, leaky):
    """Exponential Euler holds the current for a step; it jumps before the update, as ours does."""
    x, tau_syn = noise(rng, 0.6, 1.0), rng.uniform(2, 10, CELLS)
    theirs = in_brian(
        "dv/dt = (v_rest - v + current) / (tau*ms) : 1\ndcurrent/dt = -current/(tau_syn*ms) : 1",
        x,
        method="exponential_euler",
        threshold="v > v_th",
        reset="v = v_reset",
        code="current += x",
        code_at="before_groups",
        values={**leaky, "tau_syn": tau_syn},
        start={"v": leaky["v_rest"]},
        record={"end": ["v", "current"]},
    )
    alpha = np.exp(-1 / tau_syn)
    ours = in_ours(lif(leaky, model=CUBA, alpha=tensor(alpha), reset=Reset.VALUE), x)
    assert_twins(ours, theirs, v=theirs.states["v"], i=theirs.states["current"] / alpha)


@pytest.mark.parametrize("refractory", [0, 5])
def test_conductances_with_synapses(rng, refractory):
    """Brian2's synapses act after the update: its spikes of step t - 1 are our input of step t."""
    sources, dt = 40, 0.5
    fired = rng.random((STEPS, sources)) < 0.08
    is_inhibitory = np.arange(sources)[:, None] >= 30
    weights = rng.uniform(0.05, 0.25, (sources, CELLS))
    exc, inh = weights * ~is_inhibitory, 2 * weights * is_inhibitory
    values = {
        "tau_mem": rng.uniform(10, 30, CELLS),
        "tau_exc": rng.uniform(2, 8, CELLS),
        "tau_inh": rng.uniform(5, 15, CELLS),
        "v_rest": rng.uniform(-70, -60, CELLS),
        "e_exc": rng.uniform(-5, 5, CELLS),
        "e_inh": rng.uniform(-90, -75, CELLS),
        "v_th": rng.uniform(-55, -50, CELLS),
        "v_reset": rng.uniform(-70, -60, CELLS),
    }
    theirs = in_brian(
        """
        total = v_rest - v + g_exc*(e_exc - v) + g_inh*(e_inh - v) : 1
        dv/dt = total / (tau_mem*ms) : 1 (unless refractory)
        dg_exc/dt = -g_exc / (tau_exc*ms) : 1
        dg_inh/dt = -g_inh / (tau_inh*ms) : 1
        """,
        np.zeros((STEPS, CELLS)),
        dt=dt,
        method="exponential_euler",
        threshold="v > v_th",
        reset="v = v_reset",
        refractory=(refractory + 1) * dt * ms,
        events=(fired, {"g_exc": exc, "g_inh": inh}),
        values=values,
        start={"v": values["v_rest"]},
        record={"end": ["v", "g_exc", "g_inh"]},
    )
    x = np.zeros((STEPS, 2, CELLS))
    x[1:, 0], x[1:, 1] = (fired @ exc)[:-1], (fired @ inh)[:-1]
    neuron = ConductanceLIF(
        dt=dt, refractory=refractory, **{name: tensor(value) for name, value in values.items()}
    )
    ours = in_ours(neuron, x)
    assert_twins(ours, theirs, v=theirs.states["v"])
    for name in ("g_exc", "g_inh"):
        np.testing.assert_allclose(ours.states[name][1:], theirs.states[name][:-1], rtol=1e-9)
        assert ours.states[name].mean() > 0.3


@pytest.mark.parametrize("substeps", [1, 2, 5])
def test_izhikevich(rng, substeps):
    """As statements, for the order counts: the recovery sees the new membrane, cut at the peak."""
    dt, x = 1.0, noise(rng, 10, 6)
    values = {
        "a": rng.uniform(0.02, 0.1, CELLS),
        "b": rng.uniform(0.2, 0.25, CELLS),
        "c": rng.uniform(-65, -50, CELLS),
        "d": rng.uniform(2, 8, CELLS),
        "peak": rng.uniform(25, 35, CELLS),
    }
    v, u = rng.uniform(-75, -55, CELLS), rng.uniform(-16, -10, CELLS)
    membrane = "v += int(v <= peak) * dt/ms/substeps * (0.04*v**2 + 5*v + 140 - u + x)\n"
    theirs = in_brian(
        "v : 1\nu : 1",
        x,
        dt=dt,
        threshold="v >= peak",
        reset="v = c; u += d",
        code=f"{membrane * substeps}u += dt/ms * a * (b*clip(v, -1e9, peak) - u)",
        values={**values, "substeps": np.full(CELLS, substeps)},
        start={"v": v, "u": u},
        record={"end": ["v", "u"]},
    )
    ours = {name: tensor(value) for name, value in values.items()}
    neuron = Izhikevich(dt=dt, substeps=substeps, v_peak=ours.pop("peak"), **ours)
    found = in_ours(neuron, x, IzhikevichState(tensor(v)[None], tensor(u)[None]))
    assert_twins(found, theirs, **theirs.states)


@pytest.mark.parametrize("refractory", [0, 20])
def test_adex(rng, refractory):
    dt, x = 0.1, noise(rng, 1500, 2000, steps=2000)
    values = {
        "capacitance": rng.uniform(150, 300, CELLS),
        "g_leak": rng.uniform(10, 30, CELLS),
        "e_leak": rng.uniform(-72, -65, CELLS),
        "v_t": rng.uniform(-52, -48, CELLS),
        "delta_t": rng.uniform(1.5, 3, CELLS),
        "v_peak": rng.uniform(0, 20, CELLS),
        "v_reset": rng.uniform(-72, -55, CELLS),
        "tau_w": rng.uniform(20, 150, CELLS),
        "a": rng.uniform(-1, 5, CELLS),
        "b": rng.uniform(10, 90, CELLS),
    }
    v, w = rng.uniform(-72, -65, CELLS), rng.uniform(0, 50, CELLS)
    theirs = in_brian(
        """
        total = g_leak*(e_leak - v + delta_t*exp((v - v_t)/delta_t)) - w + x : 1
        dv/dt = total / (capacitance*ms) : 1 (unless refractory)
        dw/dt = (a*(v - e_leak) - w) / (tau_w*ms) : 1
        """,
        x,
        dt=dt,
        threshold="v > v_peak",
        reset="v = v_reset; w += b",
        refractory=(refractory + 1) * dt * ms,
        values=values,
        start={"v": v, "w": w},
        record={"end": ["v", "w"]},
    )
    neuron = AdEx(
        dt=dt, refractory=refractory, **{name: tensor(value) for name, value in values.items()}
    )
    ours = in_ours(neuron, x, _start(neuron, AdExState(tensor(v)[None], tensor(w)[None])))
    assert_twins(ours, theirs, **theirs.states)


def _start(neuron, state):
    if not neuron.refractory:
        return state
    return Refractory(state, torch.zeros_like(state.v))


@pytest.mark.parametrize("scale", [True, False])
def test_leaky_integrator(rng, scale):
    x, tau = noise(rng, 0.5, 1.0), rng.uniform(2, 30, CELLS)
    theirs = in_brian(
        "dv/dt = (x - v) / (tau*ms) : 1" if scale else "dv/dt = -v / (tau*ms) : 1",
        x,
        method="exact",
        code=None if scale else "v += x",
        code_at="after_groups",
        values={"tau": tau},
        record={"end": ["v"]},
    )
    ours = in_ours(LeakyIntegrator(kappa=tensor(np.exp(-1 / tau)), scale_input=scale), x)
    np.testing.assert_allclose(ours.states["v"], theirs.states["v"], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(ours.spikes, ours.states["v"])
    assert np.abs(ours.spikes).mean() > 0.3


@pytest.mark.parametrize("refractory", [1, 4])
@pytest.mark.parametrize("integrate", [True, False])
def test_refractory_period(rng, leaky, refractory, integrate):
    x = noise(rng, 5.0, 5.0)
    theirs = in_brian(
        LEAK + ("" if integrate else " (unless refractory)"),
        x,
        method="exact",
        threshold="v > v_th",
        reset="v = v_reset",
        refractory=(refractory + 1) * ms,
        values=leaky,
        start={"v": leaky["v_rest"]},
        record={"end": ["v"]},
    )
    neuron = lif(leaky, reset=Reset.VALUE, refractory=refractory, integrate_refractory=integrate)
    assert_twins(in_ours(neuron, x), theirs, v=theirs.states["v"])
    times = [np.flatnonzero(train) for train in theirs.spikes.T]
    assert min(np.diff(t).min() for t in times) == refractory + 1


def test_noise_is_added_before_the_threshold(rng, leaky):
    x, generator = noise(rng, 0.8, 0.1), torch.Generator().manual_seed(3)
    drawn = [torch.randn(1, CELLS, generator=generator, dtype=torch.float64) for _ in x]
    theirs = in_brian(
        LEAK,
        x,
        method="exact",
        threshold="v > v_th",
        reset="v = v_reset",
        code="v += 0.2*drawn(t, i)",
        code_at="after_groups",
        arrays={"drawn": torch.cat(drawn).numpy()},
        values=leaky,
        start={"v": leaky["v_rest"]},
        record={"end": ["v"]},
    )
    ours = in_ours(lif(leaky, reset=Reset.VALUE, noise=0.2), x, generator=generator.manual_seed(3))
    assert_twins(ours, theirs, v=theirs.states["v"])


@pytest.mark.parametrize(
    "escape, fires",
    [
        (Escape("sigmoid", width=0.2), "chance < 1 / (1 + exp(-(v - v_th)/0.2))"),
        (Escape("exponential", width=0.2, rate=0.3), "chance > exp(-0.3 * exp((v - v_th)/0.2))"),
    ],
)
def test_escape_firing(rng, leaky, escape, fires):
    """The same uniform numbers in both; the exponential form fires at the upper end."""
    x, generator = noise(rng, 0.6, 0.5), torch.Generator().manual_seed(5)
    drawn = [torch.rand(1, CELLS, generator=generator, dtype=torch.float64) for _ in x]
    theirs = in_brian(
        f"{LEAK}\nchance = drawn(t, i) : 1",
        x,
        method="exact",
        threshold=fires,
        reset="v = v_reset",
        arrays={"drawn": torch.cat(drawn).numpy()},
        values=leaky,
        start={"v": leaky["v_rest"]},
        record={"end": ["v"]},
    )
    ours = in_ours(
        lif(leaky, reset=Reset.VALUE, escape=escape), x, generator=generator.manual_seed(5)
    )
    assert_twins(ours, theirs, v=theirs.states["v"])


# ---- other discretisations: what we converge to -------------------------------------------------


def assert_first_order(ours_at, reference, steps_ms=(0.5, 0.25, 0.125)):
    """Halving dt halves the largest error; ``reference`` is on a grid of 0.125 ms."""
    errors = []
    for dt in steps_ms:
        every = round(dt / 0.125)
        errors.append(np.abs(ours_at(dt) - reference[every - 1 :: every]).max())
    ratios = np.array(errors[:-1]) / errors[1:]
    assert errors[0] > 1e-4 and np.all((ratios > 1.8) & (ratios < 2.25)), (errors, ratios)


def fine(model, start, *, x=0.0, length=50, **options):
    """Return Brian2's membrane [T] on a grid of 0.125 ms; ``start`` fixes all else."""
    steps = round(length / 0.125)
    found = in_brian(
        model, np.full((steps, 1), x), dt=0.125, start=start, record={"end": ["v"]}, **options
    )
    return found.states["v"][:, 0]


def test_euler_lif_converges_to_the_exact_one():
    reference = fine("dv/dt = (x - v) / (10*ms) : 1", {"v": 0.0}, x=1.0, method="exact")

    def ours(dt):
        neuron = LIF(beta=1 - dt / 10, scale_input=True, v_th=9.0)
        return in_ours(neuron, np.ones((round(50 / dt), 1))).states["v"][:, 0]

    assert_first_order(ours, reference)


def test_cuba_converges_to_the_exact_solution():
    """Brian2 solves the two equations as one linear system; ours holds the current for a step."""
    reference = fine(
        "dv/dt = (current - v) / (20*ms) : 1\ndcurrent/dt = -current / (5*ms) : 1",
        {"current": 1.0},
        method="exact",
    )

    def ours(dt):
        x = np.zeros((round(50 / dt), 1))
        x[0] = 1.0
        taus = CUBA.from_tau(tau_mem=20.0, tau_syn=5.0, dt=dt)
        neuron = CUBA(alpha=taus.alpha, beta=taus.beta, scale_input=True, v_th=9.0)
        return in_ours(neuron, x).states["v"][:, 0]

    assert_first_order(ours, reference)


def test_decaying_conductances_converge():
    reference = fine(
        """
        dv/dt = (-60 - v + g_exc*(0 - v) + g_inh*(-80 - v)) / (20*ms) : 1
        dg_exc/dt = -g_exc / (5*ms) : 1
        dg_inh/dt = -g_inh / (10*ms) : 1
        """,
        {"v": -60.0, "g_exc": 0.8, "g_inh": 2.0},
        method="rk4",
    )

    def ours(dt):
        x = np.zeros((round(50 / dt), 2, 1))
        x[0, :, 0] = 0.8, 2.0
        return in_ours(ConductanceLIF(dt=dt, v_th=0.0), x).states["v"][:, 0]

    assert_first_order(ours, reference)


@pytest.mark.parametrize("substeps", [1, 2])
def test_izhikevich_converges(substeps):
    reference = fine(
        """
        dv/dt = (0.04*v**2 + 5*v + 140 - u + x) / ms : 1
        du/dt = 0.02*(0.2*v - u) / ms : 1
        """,
        {"v": -70.0, "u": -14.0},
        x=2.0,
        method="rk4",
    )

    def ours(dt):
        neuron = Izhikevich(dt=dt, substeps=substeps)
        return in_ours(neuron, np.full((round(50 / dt), 1), 2.0)).states["v"][:, 0]

    assert_first_order(ours, reference)


def test_adex_converges():
    reference = fine(
        """
        dv/dt = (30*(-70.6 - v + 2*exp((v + 50.4)/2)) - w + x) / (281*ms) : 1
        dw/dt = (4*(v + 70.6) - w) / (144*ms) : 1
        """,
        {"v": -70.6},
        x=400.0,
        method="rk4",
    )

    def ours(dt):
        return in_ours(AdEx(dt=dt), np.full((round(50 / dt), 1), 400.0)).states["v"][:, 0]

    assert_first_order(ours, reference)
