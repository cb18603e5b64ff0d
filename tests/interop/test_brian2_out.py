"""Our networks in Brian2: spike for spike in steps, and in time the order of what is left."""

import sys
import warnings

import numpy as np
import pytest
import torch

from spikecl.errors import InteropError, UsageError
from spikecl.interop import to_brian2
from spikecl.networks import (
    AxonalDelay,
    Cells,
    Gain,
    Layer,
    Linear,
    Network,
    NoAutapses,
    Plasticity,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    SplitSigns,
    form_gradients,
)
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    ConductanceLIF,
    Escape,
    Izhikevich,
    LeakyIntegrator,
    LoihiLIF,
    Reset,
    SigmaDelta,
    Smooth,
    SynapticIntegrator,
)
from spikecl.trainers import Stdp, TripletStdp

PYPARSING = r"'\w+' (argument is )?deprecated"  # Brian2 2.9 calls pyparsing by its old names
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", PYPARSING, DeprecationWarning)
    import brian2
    from brian2 import ms

pytestmark = pytest.mark.filterwarnings(f"ignore:{PYPARSING}:DeprecationWarning")
STEPS = 500
NAMES = {"i": "i_syn"}  # of states: in Brian2 i is the index of a neuron


@pytest.fixture(autouse=True)
def numpy_target():
    before = brian2.prefs.codegen.target
    brian2.prefs.codegen.target = "numpy"
    yield
    brian2.prefs.codegen.target = before


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def trains(*shape, p=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) < p).double()


def filled(network, *, scale=1.2, mean=0.15, seed=1):
    """Return a network in float64 with weights drawn."""
    with torch.no_grad():
        network.double()
        for k, synapse in enumerate(network.synapses.values()):
            rows = synapse.weight[0].numel()
            drawn = draw(seed + k, *synapse.weight.shape)
            synapse.weight.copy_(scale * drawn / rows**0.5 + mean)
            if synapse.bias is not None:
                synapse.bias.copy_(0.2 * draw(100 + k, *synapse.bias.shape))
    return network


def run(net, x):
    """Run a Brian2 network over the length of its input."""
    net.run(x.shape[0] * x.shape[1] * net["input"].clock.dt, namespace={})
    return net


def spikes_of(net, name, x, size):
    """Return spikes [T, B, n] of a layer."""
    steps, samples = x.shape[:2]
    made, monitor = np.zeros((steps * samples, size)), net[f"{name}_spikes"]
    made[np.rint(monitor.t_ / net["input"].clock.dt_).astype(int), monitor.i] = 1
    return made.reshape(samples, steps, size).swapaxes(0, 1)


def state_of(net, name, variable, x):
    """Return a state [T, B, n] of a layer."""
    rows = np.asarray(getattr(net[f"{name}_states"], f"{variable}_")).T
    return rows.reshape(x.shape[1], len(x), -1).swapaxes(0, 1)


def assert_twins(network, x, *, least=0.004, tolerance=1e-12, quiet=()):
    """Spikes and states of all layers and what the readout says are the same."""
    recording = network.record(x)
    names = sorted({NAMES.get(k, k) for found in recording.values() for k in found} - {"left"})
    net = run(to_brian2(network, x, record=names), x)
    for name, found in recording.items():
        for variable, values in found.items():
            if variable == "left":  # of a refractory period; Brian2's count is one ahead
                continue
            flat = values.reshape(*x.shape[:2], -1)
            if variable != "spikes":
                own = state_of(net, name, NAMES.get(variable, variable), x)
                bound = tolerance * max(1.0, np.abs(flat).max())
                np.testing.assert_allclose(own, flat, rtol=0, atol=bound, err_msg=name)
            elif network.layers[name].neuron.is_spiking:
                rate = flat.mean()
                assert name in quiet or least < rate < 0.95, (name, rate)
                np.testing.assert_array_equal(spikes_of(net, name, x, flat.shape[2]), flat, name)
    last = list(network.layers)[-1]
    if network.layers[last].neuron is None:
        out = network(x).steps.detach().numpy()
        found = state_of(net, last, "y", x)
        found = found.mean(0, keepdims=True) if len(out) == 1 else found
        np.testing.assert_allclose(found, out, rtol=0, atol=1e-11)
    return net


EACH = torch.linspace(0.6, 0.95, 9, dtype=torch.float64)
MODELS = {
    "lif": (LIF(beta=0.8), 1.0),
    "lif of each neuron": (
        LIF(
            beta=EACH, v_th=EACH, v_rest=0.1 * EACH, v_reset=-EACH, reset="value", scale_input=True
        ),
        4.0,
    ),
    "if": (IF(strict=False), 0.5),
    "plif": (PLIF(), 2.0),
    "cuba": (CUBA(alpha=0.6, beta=0.8), 0.5),
    "alif": (ALIF(beta=0.8, rho=0.95), 1.0),
    "alif as in 2020": (ALIF(beta=0.8, rho=0.95, normalise=False, adaptation=0.1), 1.0),
    "conductance": (ConductanceLIF(), 0.2),
    "adex": (AdEx(), 4000.0),
    "izhikevich": (Izhikevich(), 20.0),
    "izhikevich in one step": (Izhikevich(substeps=1, dt=0.5), 20.0),
}


@pytest.mark.parametrize("model", list(MODELS))
def test_two_layers_spike_for_spike(model):
    """The second listens to itself; only conductances do not, which spikecl has not recurrent.

    The upswings of AdEx and Izhikevich let rounding grow, to 1e-10 of a membrane in 500 steps.
    """
    neuron, gain = MODELS[model]
    steep = isinstance(neuron, (AdEx, Izhikevich))
    split = isinstance(neuron, ConductanceLIF)
    spec = SpikingMlp(hidden=(9, 9), neuron=neuron, gain=gain, bias=not split)
    layers = dict(spec.build((7,), 3).layers.items())
    if not split:
        back = Linear(9, 9, bias=True, maps=(Gain(factor=gain), NoAutapses()))
        own = layers["hidden2"]
        layers["hidden2"] = Layer(own.synapse, own.neuron, inputs=own.inputs, recurrent=back)
    network = filled(Network(layers, mean_first=False))
    tolerance, least = (1e-10, 0.001) if steep else (1e-12, 0.004)
    x = trains(STEPS, 1, 7)
    assert_twins(network, x, least=least, tolerance=tolerance, quiet=("hidden2",) * steep)


def beside(neurons, *, size=6, n_in=7):
    """A network of layers side by side, and a readout that listens to all of them."""
    layers = {
        f"n{k}": Layer(Linear(n_in, size), Cells(neuron), inputs=("input",))
        for k, neuron in enumerate(neurons)
    }
    layers["readout"] = Layer(Linear(size, 2, bias=True), None, inputs=tuple(layers))
    return filled(Network(layers, mean_first=False))


def test_every_reset_at_every_time():
    neurons = [
        LIF(beta=0.8, v_rest=0.1, v_reset=-0.3, reset=reset, reset_time=time)
        for reset in Reset
        for time in ("same", "next", "after")
    ]
    assert_twins(beside(neurons), trains(STEPS, 1, 7))


def test_refractory_periods_hold_the_membrane_or_do_not():
    options = {"refractory": 3}
    neurons = [
        kind(**options, **more)
        for kind in (LIF, CUBA, ALIF)
        for more in ({}, {"integrate_refractory": True}, {"reset": "none"})
    ]
    neurons.append(LIF(refractory=1, integrate_refractory=True, reset_time="next"))
    assert_twins(beside(neurons), trains(STEPS, 1, 7))


@pytest.mark.parametrize("integrate", [False, True])
@pytest.mark.parametrize("kind, gain", [(AdEx, 4000), (Izhikevich, 20), (ConductanceLIF, 0.5)])
def test_refractory_periods_in_millivolts(kind, gain, integrate):
    neuron = kind(refractory=4, integrate_refractory=integrate)
    spec = SpikingMlp(hidden=(9,), neuron=neuron, gain=float(gain))
    assert_twins(filled(spec.build((7,), 2)), trains(STEPS, 1, 7), tolerance=1e-10, least=0.001)


DELAYS = {
    "of axons": {"axonal_delay": 4},
    "of connections": {"delay": 3},
    "of both": {"axonal_delay": 2, "delay": 2},
}


@pytest.mark.parametrize("which", list(DELAYS))
def test_delays(which):
    """Learned delays lie between two steps: a spike arrives in two parts."""
    spec = SpikingMlp(hidden=(9, 8), neuron=LIF(beta=0.8), **DELAYS[which])
    network = filled(spec.build((7,), 3))
    with torch.no_grad():
        for name, parameter in network.weights().items():
            if name.endswith("hidden2.delay") or name == "hidden1.delay":
                parameter.copy_(3 * trains(*parameter.shape) + 0.3)
    assert_twins(network, trains(STEPS, 1, 7))


READOUTS = [
    LeakyIntegrator(),
    LeakyIntegrator(scale_input=True),
    SynapticIntegrator(v_rest=0.3),
    LIF(),
]


@pytest.mark.parametrize("output", READOUTS)
def test_samples_one_after_the_other_and_readouts(output):
    spec = SpikingRecurrentNet(hidden=(9,), neuron=LIF(beta=0.8), output=output, bias=True)
    assert_twins(filled(spec.build((7,), 3)), trains(100, 4, 7))


def test_input_that_is_no_spikes():
    spec = SpikingRecurrentNet(hidden=(9,), neuron=CUBA(alpha=0.3, beta=0.8), bias=True)
    assert_twins(filled(spec.build((2, 3), 3)), draw(3, 100, 3, 2, 3))


def test_maps_become_synapses_and_norms_weights():
    spec = SpikingConvNet(
        channels=(3, 4), kernel=3, hidden=(8,), neuron=LIF(beta=0.7), pool="average", norm="batch",
        bias=True, dropout=0.2,
    )  # fmt: skip
    network = filled(spec.build((12, 11, 2), 3), scale=2, mean=0.0)
    for layer in list(network.layers.values())[:-1]:
        layer.norm.mean.copy_(0.1 * draw(5, *layer.norm.mean.shape))
        layer.norm.variance.copy_(0.5 + trains(*layer.norm.variance.shape))
    assert_twins(network, trains(120, 2, 12, 11, 2))


def test_shortcuts():
    spec = SpikingResNet(width=3, blocks=(1, 1), neuron=LIF(beta=0.7))
    network = filled(spec.build((6, 6), 3), scale=1.5, mean=0.0)
    assert_twins(network, trains(60, 2, 6, 6))


def test_what_is_random_is_the_same_in_distribution():
    neurons = [LIF(beta=0.8, noise=0.3), LIF(beta=0.8, escape=Escape("sigmoid", width=0.3)),
               LIF(beta=0.8, escape=Escape("exponential", width=0.3, rate=0.2))]  # fmt: skip
    size, x = 300, trains(120, 1, 4, p=0.5, seed=4)
    network = beside(neurons, size=size, n_in=4)
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.fill_(0.08)
    brian2.seed(1)
    net = run(to_brian2(network, x), x)
    ours = network.record(x, generator=torch.Generator().manual_seed(0))
    for name in ("n0", "n1", "n2"):
        one, other = ours[name]["spikes"][:, 0].sum(0), spikes_of(net, name, x, size)[:, 0].sum(0)
        spread = np.hypot(one.std(), other.std()) / size**0.5
        assert one.mean() > 1 and abs(one.mean() - other.mean()) < 4 * spread, name
        assert one.std() == pytest.approx(other.std(), rel=0.2), name


PARTS = (7, 20, 1, 3, 29)
SPLIT = {
    "lif": (SpikingRecurrentNet(hidden=(6, 6), neuron=LIF(beta=0.8)), 1.2),
    "cuba": (SpikingRecurrentNet(hidden=(6, 6), neuron=CUBA(alpha=0.6, beta=0.8), bias=True), 0.6),
    "conductance": (SpikingMlp(hidden=(6, 6), neuron=ConductanceLIF(), gain=0.3), 1.2),
}


@pytest.mark.parametrize("steps", ["discrete", "continuous"])
@pytest.mark.parametrize("model", list(SPLIT))
def test_runs_in_parts_are_one_run(model, steps):
    """A layer feels its spikes of the last step of a part in the first one of the next."""
    spec, scale = SPLIT[model]
    network, found = filled(spec.build((7,), 2), scale=scale), []
    x = trains(30, 2, 7)  # a sample ends where no part does
    for parts in ((60,), PARTS):
        net = to_brian2(network, x, steps=steps, record=("spikes", "v"))
        for part in parts:
            net.run(part * ms, namespace={})
        found.append([spikes_of(net, name, x, 6) for name in ("hidden1", "hidden2")])
        found[-1].append(state_of(net, "hidden2", "v", x))
    assert 0.02 < np.mean(found[0][:2]) < 0.9
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_of_one_step_each_have_the_spikes_of_the_network():
    network, x = filled(SPLIT["cuba"][0].build((7,), 2)), trains(80, 1, 7)
    net = to_brian2(network, x)
    for _ in range(80):
        net.run(1 * ms, namespace={})
    for name, ours in network.record(x, variables=["spikes"]).items():
        np.testing.assert_array_equal(spikes_of(net, name, x, 6), ours["spikes"])


@pytest.mark.parametrize("graded", [False, True])
def test_the_current_of_a_step_has_everything_in_it(graded):
    network = filled(SpikingMlp(hidden=(6,), neuron=LIF(beta=0.8), bias=True).build((7,), 2))
    x = draw(1, 40, 2, 7) if graded else trains(40, 2, 7)
    net = run(to_brian2(network, x, record=("I_total",)), x)
    synapse = network.layers["hidden1"].synapse
    current = (x @ synapse.weight.T + synapse.bias).detach()
    np.testing.assert_allclose(state_of(net, "hidden1", "I_total", x), current, atol=1e-12)


def test_synapses_of_ones_own_count_in_the_next_step():
    network = filled(SpikingMlp(hidden=(3,), neuron=LIF(beta=0.5, v_th=9.0)).build((4,), 2))
    net = to_brian2(network, record=("v",))
    source = brian2.SpikeGeneratorGroup(1, [0, 0], [2, 5] * ms, clock=net["input"].clock)
    own = brian2.Synapses(source, net["hidden1"], on_pre="I_post += 0.8", clock=net["input"].clock)
    own.connect(j="1")
    net.add(source, own)
    net.run(8 * ms, namespace={})
    v = net["hidden1_states"].v
    np.testing.assert_allclose(v[1], [0, 0, 0, 0.8, 0.4, 0.2, 0.9, 0.45], atol=1e-12)
    assert not v[[0, 2]].any()


# ---- plasticity ---------------------------------------------------------------------------------

UNEVEN = {"a_plus": 0.003, "a_minus": 0.002, "tau_plus": 12.0, "tau_minus": 25.0, "readout": "none"}
RULES = {
    "all": Stdp(**UNEVEN),
    "before": Stdp(**UNEVEN, coincident=False),
    "nearest": Stdp(**UNEVEN, pairing="nearest"),
    "bounded": Stdp(**UNEVEN, mu=0.7, w_min=-2.0, w_max=2.0),
    "bounded before": Stdp(**UNEVEN, mu=1.0, w_max=0.5, pairing="nearest", coincident=False),
}
FORMS = {"dense": {}, "gain": {"gain": 2.0}, "axons": {"axonal_delay": 3}}


def after(network, rule, x):
    """Return the hidden weights that one step of the trainer makes."""
    weights = {n: w.detach() for n, w in network.weights().items()}
    factors = rule.factors(network, x, lambda z: z.sum())
    gradients = form_gradients(network, factors.synapses, factors.direct)
    for name, gradient in gradients.items():
        weights[name] = weights[name] - gradient
    return rule.settle(weights)


MET = [*((rule, "dense") for rule in RULES), ("all", "gain"), ("before", "axons")]


@pytest.mark.parametrize("rule, form", MET)
def test_weights_become_what_the_trainer_makes_of_them(rule, form):
    rule = RULES[rule]
    spec = SpikingRecurrentNet(hidden=(6,), neuron=LIF(beta=0.8), **FORMS[form])
    network, x = filled(spec.build((7,), 2)), trains(STEPS, 1, 7)
    if form == "axons":
        network.layers["hidden1"].before["axon"] = AxonalDelay(
            7, 3, delay=[0, 1, 2, 3, 0, 1, 2]
        ).double()
    before = {name: w.detach().clone() for name, w in network.weights().items()}
    net = run(to_brian2(network, x, plasticity=rule), x)
    fired = network.record(x)["hidden1"]["spikes"]
    np.testing.assert_array_equal(spikes_of(net, "hidden1", x, 6), fired)
    for name, expected in after(network, rule, x).items():
        synapses = net[name.removesuffix("weight").replace(".", "_") + "synapses"]
        found = before[name].numpy().clip(rule.w_min, rule.w_max)
        found[synapses.j, synapses.i] = synapses.weight_after
        assert np.abs(found - before[name].numpy()).max() > 0.01
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("coincident", [True, False])
def test_weights_that_change_at_each_spike(coincident):
    """A loop over steps: changes of a step are made at its end, where the next one feels them."""
    rule = Stdp(**{**UNEVEN, "a_plus": 0.02, "a_minus": 0.03}, mu=0.5, coincident=coincident)
    network = filled(SpikingMlp(hidden=(5,), neuron=LIF(beta=0.8)).build((7,), 2))
    x = trains(STEPS, 1, 7)
    net = run(to_brian2(network, x, plasticity=rule, online=True), x)
    w = network.weights()["hidden1.weight"].detach().numpy().copy()
    start, r, o, v, sent = w.copy(), np.zeros(7), np.zeros(5), np.zeros(5), []
    for pre in x[:, 0].numpy():
        v = 0.8 * v + w @ pre
        post = (v > 1).astype(float)
        v -= post
        r, o = r * np.exp(-1 / 12), o * np.exp(-1 / 25)
        late = (r + pre, o + post)
        r_seen, o_seen = late if coincident else (r, o)
        low = w - 0.03 * np.clip(w, 0, None) ** 0.5 * np.outer(o_seen, pre)
        w = np.where(pre[None] > 0, np.clip(low, 0, 1), w)
        high = w + 0.02 * np.clip(1 - w, 0, None) ** 0.5 * np.outer(post, r_seen)
        w = np.where(post[:, None] > 0, np.clip(high, 0, 1), w)
        r, o = late
        sent.append(post)
    np.testing.assert_array_equal(spikes_of(net, "hidden1", x, 5)[:, 0], np.array(sent))
    found = np.zeros_like(w)
    found[net["hidden1_synapses"].j, net["hidden1_synapses"].i] = net["hidden1_synapses"].weight
    np.testing.assert_allclose(found, w, rtol=0, atol=1e-10)
    assert np.abs(found - start).max() > 0.1


# ---- in time ------------------------------------------------------------------------------------

DTS = (0.5, 0.25, 0.125, 0.0625)


def order(errors):
    """Return the slope of errors over steps, both on logarithmic axes."""
    assert min(errors) > 1e-14, errors
    return np.polyfit(np.log(DTS), np.log(errors), 1)[0]


def in_time(dt):
    """Neurons of all models side by side, on which a spike does the same whatever a step is."""
    taus = {"tau_mem": 20.0, "dt": dt, "reset": Reset.VALUE, "v_reset": -0.3}
    slow = float(np.exp(-dt / 40))
    cases = {
        "lif": (LIF.from_tau(**taus), 0.7),
        "cuba": (CUBA.from_tau(tau_syn=5.0, scale_input=True, v_th=9.0, **taus), 3.0),
        "alif": (ALIF(beta=float(np.exp(-dt / 20)), rho=slow, normalise=False), 0.7),
        "conductance": (ConductanceLIF(dt=dt, v_th=0.0), 0.4),
        "adex": (AdEx(dt=dt), 1000.0 / dt),
        "izhikevich": (Izhikevich(dt=dt), 12.0 / dt),
    }
    layers = {}
    for name, (neuron, weight) in cases.items():
        maps = (SplitSigns(),) if name == "conductance" else ()
        layers[name] = Layer(Linear(1, 1, maps=maps), Cells(neuron), inputs=("input",))
        torch.nn.init.constant_(layers[name].synapse.weight, weight)
    layers["readout"] = Layer(Linear(1, 1), None, inputs=("lif",))
    return Network(layers).double()


def test_steps_and_time_come_closer_with_the_first_order():
    """Steps of the network against differential equations on the same clock, after 30 ms."""
    errors: dict[str, list[float]] = {}
    for dt in DTS:
        network, x = in_time(dt), torch.zeros(round(30 / dt), 1, 1, dtype=torch.float64)
        x[[round(t / dt) for t in (2, 6, 8, 17)]] = 1
        ours = network.record(x, variables=["v"])
        method = "rk4"  # one for all; kicks come between its steps
        net = run(to_brian2(network, x, steps="continuous", step_ms=dt, method=method), x)
        for name, found in ours.items():
            scale = 1 if name in ("lif", "cuba", "alif") else 1000  # volt
            errors.setdefault(name, []).append(abs(scale * net[name].v_[0] - found["v"][-1, 0, 0]))
    orders = {name: order(found) for name, found in errors.items()}
    assert {k: v for k, v in orders.items() if not 0.85 < v < 1.2} == {}, errors


ORDERS = {
    "euler": {"adex": 1, "izhikevich": 1},
    "exponential_euler": {"conductance": 1},
    "rk4": {"adex": 4, "izhikevich": 4, "conductance": 4},
}
DRIVEN = {
    "adex": (AdEx(dt=1.0), 400.0),
    "izhikevich": (Izhikevich(), 3.0),
    "conductance": (ConductanceLIF(v_th=0.0), 0.0),
}


@pytest.mark.parametrize("method", list(ORDERS))
def test_integrators_have_their_order(method):
    layers = {}
    for name in ORDERS[method]:
        neuron, current = DRIVEN[name]
        split = (SplitSigns(),) if name == "conductance" else ()
        synapse = Linear(1, 1, bias=not split, maps=split)
        if not split:
            torch.nn.init.constant_(synapse.bias, current)
        layers[name] = Layer(synapse, Cells(neuron), inputs=("input",))
    network = Network({**layers, "readout": Layer(Linear(1, 1), None, inputs=(name,))})

    def membranes(dt, method):
        net = to_brian2(network, steps="continuous", dt_ms=dt, method=method, record=())
        if "conductance" in layers:
            net["conductance"].g_exc, net["conductance"].g_inh = 0.8, 2.0
        net.run(8 * ms, namespace={})
        return np.array([1000 * net[name].v_[0] for name in layers])

    fine = membranes(1 / 128, method if method == "exponential_euler" else "rk4")
    if method == "exponential_euler":  # of the first order, so it is no reference: extrapolate
        fine = 2 * membranes(1 / 256, method) - fine
    errors = np.abs([membranes(dt, method) - fine for dt in DTS])
    for k, (name, expected) in enumerate(ORDERS[method].items()):
        assert order(errors[:, k]) == pytest.approx(expected, abs=0.3), (name, errors[:, k])


def test_linear_models_are_solved_exactly():
    """A constant current: steps of the network and Brian2's solution at any clock are the same."""
    neurons = [
        LIF(beta=0.8, v_rest=0.3, v_th=9.0),
        LIF(beta=0.9, scale_input=True, v_th=9.0),
        IF(v_th=9),
    ]
    layers = {
        f"n{k}": Layer(Linear(1, 2, bias=True), Cells(n), inputs=("input",))
        for k, n in enumerate(neurons)
    }
    layers["readout"] = Layer(Linear(2, 2, bias=True), Cells(LeakyIntegrator()), inputs=("n0",))
    network, x = filled(Network(layers)), torch.zeros(25, 1, 1, dtype=torch.float64)
    recorded = network.record(x)
    for dt in (1.0, 0.25):
        net = to_brian2(network, x, steps="continuous", dt_ms=dt)
        net.run(25 * ms, namespace={})
        for name in layers:
            ours = recorded[name]["v"][-1, 0]
            assert np.abs(ours).min() > 1e-3
            np.testing.assert_allclose(net[name].v_, ours, rtol=1e-10)


def test_a_network_in_time_fires_at_the_rates_of_its_steps():
    spec = SpikingMlp(hidden=(30, 30), neuron=LIF(beta=0.97, refractory=2))
    network, x = filled(spec.build((40,), 2), mean=0.03, scale=0.3), trains(1000, 1, 40, p=0.05)
    net = to_brian2(network, x, steps="continuous", dt_ms=0.125)
    net.run(1000 * ms, namespace={})
    for name, found in network.record(x, variables=["spikes"]).items():
        ours, theirs = (
            found["spikes"].sum((0, 1)),
            np.bincount(net[f"{name}_spikes"].i, minlength=30),
        )
        assert ours.sum() > 300 and theirs.sum() == pytest.approx(ours.sum(), rel=0.1)
        assert np.corrcoef(ours, theirs)[0, 1] > 0.98


FAST = {
    "cuba 0.5": (CUBA(alpha=0.5, beta=0.95), 1.0, 0.05),
    "cuba 0.3": (CUBA(alpha=0.3, beta=0.95), 1.4, 0.05),
    "conductance": (ConductanceLIF(tau_exc=1.4, tau_inh=2.8, dt=1.0), 5.0, 0.12),
}


@pytest.mark.parametrize("dt", [1.0, 0.125])
@pytest.mark.parametrize("model", list(FAST))
def test_short_currents_bring_the_charge_of_steps(model, dt):
    neuron, gain, bound = FAST[model]
    network = SpikingMlp(hidden=(30,), neuron=neuron, gain=gain).build((40,), 2)
    filled(network, mean=0.03, scale=0.3)
    x = trains(1000, 1, 40, p=0.05)
    net = to_brian2(network, x, steps="continuous", dt_ms=dt)
    net.run(1000 * ms, namespace={})
    ours = network.record(x, variables=["spikes"])["hidden1"]["spikes"].sum()
    assert ours > 1000 and net["hidden1_spikes"].num_spikes == pytest.approx(ours, rel=bound)


# ---- what users meet ----------------------------------------------------------------------------


def test_objects_have_the_names_of_layers_and_readable_equations():
    network = filled(SpikingRecurrentNet(hidden=(3,), neuron=LIF(beta=0.9)).build((4,), 2))
    net = to_brian2(network, steps="continuous", record=("spikes", "v"))
    names = {"input", "hidden1", "readout", "hidden1_synapses", "hidden1_recurrent_synapses",
             "readout_synapses", "hidden1_spikes", "hidden1_states", "readout_states"}  # fmt: skip
    assert names <= {o.name for o in net.objects}
    assert str(net["hidden1"].equations["v"]).startswith("dv/dt = -v/tau : 1")
    assert float(net["hidden1"].tau / ms) == pytest.approx(-1 / np.log(0.9))
    net["input"].set_spikes([0, 1], [2, 3] * ms)  # without x: spikes of one's own
    net.run(5 * ms, namespace={})
    assert net["readout_states"].y.shape == (2, 5)


def test_nothing_of_brian2_is_changed():
    before = (
        [brian2.prefs[name] for name in brian2.prefs],
        brian2.get_device(),
        brian2.defaultclock.dt,
    )
    to_brian2(filled(SpikingMlp(hidden=(3,)).build((4,), 2)), steps="continuous")
    after = (
        [brian2.prefs[name] for name in brian2.prefs],
        brian2.get_device(),
        brian2.defaultclock.dt,
    )
    assert before == after


def dense(**options):
    return SpikingMlp(hidden=(3,), **options).build((4,), 2)


TIME = {"steps": "continuous"}
REFUSED = {
    "sigma-delta": (lambda: dense(neuron=SigmaDelta()), {}, "'hidden1' .SigmaDelta.*use LIF"),
    "integers": (lambda: dense(neuron=LoihiLIF()), {}, "'hidden1' .LoihiLIF"),
    "smooth": (lambda: dense(neuron=LIF(surrogate=Smooth())), {}, "Smooth is no spike"),
    "maximum": (
        lambda: SpikingConvNet(channels=(2,), kernel=3, hidden=(3,)).build((8, 8), 2),
        {"input_shape": (8, 8)},
        "pool='average'",
    ),
    "plasticity of spikes": (
        lambda: SpikingMlp(hidden=(3, 3), stp=Plasticity()).build((4,), 2), {}, "train without stp"
    ),
    "steps": (dense, {"steps": "fine"}, "steps='fine'; discrete or continuous"),
    "clock": (dense, {"dt_ms": 0.1}, "steps='discrete' has the steps of the network"),
    "fraction": (dense, {**TIME, "dt_ms": 0.3}, "dt_ms=0.3; a step of 1.0 ms or a whole part"),
    "noise": (lambda: dense(neuron=LIF(noise=0.1)), TIME, "noise.*use steps='discrete'"),
    "no reset": (lambda: dense(neuron=LIF(reset=Reset.NONE)), TIME, "no reset.*every step"),
    "no memory": (lambda: dense(neuron=LIF(beta=0.0)), TIME, "beta=0.*no time constant"),
    "two steps": (lambda: dense(neuron=AdEx()), {"step_ms": 1.0}, "step_ms=1.0; use equal ones"),
    "length": (dense, {"step_ms": -1.0}, "step_ms=-1.0"),
    "triplets": (dense, {"plasticity": TripletStdp()}, "TripletStdp.*use spikecl.trainers.Stdp"),
    "its steps": (dense, {"plasticity": Stdp(dt=0.5)}, "0.5 ms, the network of 1.0 ms"),
    "its norm": (lambda: dense(norm="batch"), {"plasticity": Stdp()}, "norms its current"),
    "its samples": (dense, {"x": trains(9, 2, 4), "plasticity": Stdp()}, "2 samples and synapses"),
    "its input": (dense, {"x": draw(1, 9, 1, 4), "plasticity": Stdp()}, "'hidden1'.*no spikes"),
    "late samples": (lambda: dense(axonal_delay=3), {"x": trains(9, 2, 4)}, "2 samples and spikes"),
    "late input": (lambda: dense(axonal_delay=3), {"x": draw(1, 9, 1, 4)}, "'hidden1'.*no spikes"),
    "features": (dense, {"x": trains(9, 1, 5)}, "takes 4 inputs"),
    "no state": (dense, {"record": ("v", "bogus")}, "record=.'bogus'.; there are spikes, I,.*, v"),
    "a word": (dense, {"record": "spikes"}, "record='spikes'; give names"),
    "no integrator": (dense, {**TIME, "method": "bogus"}, "'bogus'; .*rk4.* are allowed"),
    "integrator": (
        lambda: dense(neuron=Izhikevich()), {**TIME, "method": "exact"}, "'hidden1': method='exact'"
    ),
    "clock in words": (dense, {**TIME, "dt_ms": "0.1"}, "dt_ms='0.1'; a number, of milliseconds"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_refusals_say_what_to_do(case):
    build, options, words = REFUSED[case]
    network = build()
    if "plasticity" not in options and case != "its norm":
        filled(network)
    with pytest.raises(InteropError, match=words):
        to_brian2(network, **options)


@pytest.mark.parametrize("where", ["weight", "bias"])
def test_weights_that_are_no_numbers_are_refused(where):
    network = filled(dense(bias=True))
    getattr(network.layers["hidden1"].synapse, where).data[0] = float("nan")
    with pytest.raises(InteropError, match=f"'hidden1' .*: its {where} is not finite"):
        to_brian2(network)


def test_a_current_onto_conductances_is_refused():
    layers = {
        "side": Layer(Linear(4, 3), None, inputs=("input",)),
        "hidden": Layer(
            Linear(4, 3, maps=(SplitSigns(),)), Cells(ConductanceLIF()), inputs=("input",),
            currents=("side",),
        ),
        "readout": Layer(Linear(3, 2), None, inputs=("hidden",)),
    }  # fmt: skip
    with pytest.raises(InteropError, match="'hidden' .*: adds the current of side to conductances"):
        to_brian2(Network(layers).double())


def test_names_of_layers_that_brian2_has_for_others():
    names = ("h", "h_spikes", "h_run_regularly", "h_synapses_pre")
    layers = {n: Layer(Linear(4, 3), Cells(LIF()), inputs=("input",)) for n in names}
    layers["readout"] = Layer(Linear(3, 2), None, inputs=names)
    net = to_brian2(filled(Network(layers)), trains(5, 1, 4))
    net.run(5 * ms, namespace={})
    assert net["layer_h_spikes"].N == 3 and net["h_spikes"].source is net["h"]


def test_too_many_synapses_are_refused(monkeypatch):
    monkeypatch.setattr("spikecl_hardware.brian2.unrolled.SYNAPSES", 10)
    with pytest.raises(InteropError, match="'hidden1'.*more than 10 synapses.*use smaller"):
        to_brian2(filled(dense()))


def test_input_that_cannot_be_meant():
    with pytest.raises(UsageError, match=r"x has shape \(4, 2\); give \[T, B"):
        to_brian2(dense(), torch.zeros(4, 2))
    with pytest.raises(UsageError, match="x has values that are not finite"):
        to_brian2(dense(), torch.full((3, 1, 4), torch.inf))
    with pytest.raises(UsageError, match="step_ms='1'; a number, of milliseconds"):
        to_brian2(dense(), step_ms="1")
    with pytest.raises(UsageError, match="takes a Network of spikecl, not ReLU; from_nir"):
        to_brian2(torch.nn.ReLU())
    network = SpikingConvNet(channels=(2,), kernel=3, pool="average").build((8, 8), 2)
    with pytest.raises(UsageError, match="give input_shape"):
        to_brian2(network)


def test_a_missing_brian2_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "brian2", None)
    with pytest.raises(InteropError, match="brian2 is not installed; pip install"):
        to_brian2(filled(dense()))
