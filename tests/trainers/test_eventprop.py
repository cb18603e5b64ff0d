"""EventProp: its gradient is that of a simulation without steps, up to the length of the steps."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from spikecl.components import from_table, to_table
from spikecl.continual.finetune import Finetune
from spikecl.continual.projection.hlop import Hlop
from spikecl.data import checked
from spikecl.encoding import (
    CountMse,
    CrossEntropy,
    FirstSpike,
    Latency,
    MaxMembrane,
    StepCrossEntropy,
    StepMse,
    Tet,
)
from spikecl.encoding.decoders import FirstSpikeDecoder, LastDecoder, MeanDecoder
from spikecl.errors import PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    AvgPool2d,
    AxonalDelay,
    Cells,
    Complement,
    Conv2d,
    Dropout,
    Layer,
    Linear,
    Mlp,
    Network,
    Plasticity,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import ALIF, CUBA, LIF, LeakyIntegrator, Reset, SynapticIntegrator
from spikecl.neurons.surrogate import Smooth
from spikecl.optim import Adam
from spikecl.registry import TRAINERS
from spikecl.seeds import Seeds
from spikecl.streams import DOMAIN_IL, permuted
from spikecl.trainers import Bptt, EventProp, PerStep, Steps
from spikecl.trainers.adjoint import Membrane

TAU_MEM, TAU_SYN, END = 20.0, 10.0, 60.0  # tau_mem = 2 tau_syn: a crossing is a root of a square
INPUTS = 3
EXACT = EventProp(least_slope=1e-9)


# ---- a simulation without steps ------------------------------------------------------------------


def voltage(t, v, i):
    """Membrane t ms after it was v and the current i."""
    y = np.exp(-t / TAU_MEM)
    return (v + i) * y - i * y * y


def crossings(v, i, th=1.0):
    """Time to the threshold, inf where there is none."""
    root = (v + i) ** 2 - 4 * i * th
    y = np.where(root >= 0, (v + i + np.sqrt(np.maximum(root, 0))) / np.where(i > 0, 2 * i, 1), 0)
    rises = (i > np.maximum(v, 0)) & (y > 0) & (y < 1)
    return np.where(rises, -TAU_MEM * np.log(np.where(rises, y, 1)), np.inf)


def simulate(into, onto, inputs):
    """Spikes (time, neuron) in order, of neurons that hear inputs and each other at once."""
    v, i, now, spikes = np.zeros(len(into)), np.zeros(len(into)), 0.0, []
    for at, source in [*sorted(inputs), (END, None)]:
        while True:
            wait = crossings(v, i)
            who = int(wait.argmin())
            step = min(wait[who], at - now)
            v, i, now = voltage(step, v, i), i * np.exp(-step / TAU_SYN), now + step
            if now >= at:
                break
            spikes.append((now, who))
            v[who] = 0.0
            i = i + onto[:, who]
        if source is not None:
            i = i + into[:, source]
    return spikes


def differences(loss, values):
    """Central differences of a loss of several arrays."""
    found = {}
    for name, value in values.items():
        found[name] = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * 1e-6
                ends.append(loss(**{**values, name: moved}))
            found[name][index] = (ends[0] - ends[1]) / 2e-6
    return found


# ---- the same networks, with and without steps ---------------------------------------------------


def draw(seed, hidden, outputs):
    rng = np.random.default_rng(seed)
    values = {
        "hidden": rng.normal(1.0, 0.6, (hidden, INPUTS)),
        "readout": rng.normal(1.2, 0.6, (outputs, hidden)),
    }
    times = np.round(rng.uniform(0, 30, 9) / 0.8) * 0.8  # on the coarsest grid
    inputs = [(float(t), int(s)) for t, s in zip(times, rng.integers(0, INPUTS, 9))]
    return values, inputs, rng


def first_spikes(spikes, offset, outputs):
    times = np.full(outputs, END)
    for t, n in reversed(spikes):
        if n >= offset:
            times[n - offset] = t
    return times


def cross_entropy(z, label=1):
    return float(np.log(np.exp(z).sum()) - z[label])


def exact_loss(case, inputs, *, hidden, readout, second=None, recurrent=None):
    """The loss of the simulation without steps, for a case's network."""
    n, outputs = len(hidden), len(readout)
    stack = 2 * n if case == "shortcut" else n
    spiking = case not in MEMBRANES
    size = stack + (outputs if spiking else 0)
    into, onto = np.zeros((size, INPUTS)), np.zeros((size, size))
    into[:n] = hidden
    if case == "shortcut":
        onto[n:stack, :n] = second + np.eye(n)
    if case == "recurrent":
        onto[:n, :n] = recurrent
    if spiking:
        onto[stack:, stack - n : stack] = readout
        times = first_spikes(simulate(into, onto, inputs), stack, outputs)
        return cross_entropy(-times / TAU_SYN)
    spikes = simulate(into, onto, inputs)
    if case == "jumps":
        left = [1 - np.exp((at - END) / TAU_MEM) for at, _ in spikes]
        mean = TAU_MEM / END * sum(x * readout[:, n] for x, (_, n) in zip(left, spikes))
        return cross_entropy(mean)
    times = np.array([END]) if case == "last" else (np.arange(4000) + 0.5) * END / 4000
    v = np.zeros((len(times), outputs))
    for at, who in spikes:
        later = times > at
        v[later] += voltage(times[later] - at, 0.0, 1.0)[:, None] * readout[:, who]
    return cross_entropy(v[-1]) if case == "last" else float(((v - 0.5) ** 2).mean())


MEMBRANES = ("last", "every_step", "jumps")


def neurons(dt, **options):
    return CUBA.from_tau(
        tau_mem=TAU_MEM, tau_syn=TAU_SYN, dt=dt, reset=Reset.ZERO, scale_input=True, **options
    )


def network_of(case, dt, values, options=None):
    """The network with steps."""
    neuron = neurons(dt, **(options or {}))
    n, outputs = len(values["hidden"]), len(values["readout"])
    onto = Linear(n, n) if case == "recurrent" else None
    layers = {"hidden": Layer(Linear(INPUTS, n), Cells(neuron), inputs=("input",), recurrent=onto)}
    top = "hidden"
    if case == "shortcut":
        top = "second"
        layers[top] = Layer(Linear(n, n), Cells(neuron), inputs=("hidden",), currents=("hidden",))
    out = neuron
    if case in MEMBRANES:
        out = SynapticIntegrator(alpha=neuron.alpha, kappa=neuron.beta)
    if case == "jumps":
        out = LeakyIntegrator(kappa=neuron.beta)
    layers["readout"] = Layer(Linear(n, outputs), Cells(out), inputs=(top,))
    decoder = {"last": LastDecoder(), "jumps": MeanDecoder()}.get(case, FirstSpikeDecoder())
    network = Network(layers, decoder=decoder, mean_first=False).double()
    names = {"recurrent": "hidden.recurrent"}
    parameters = {f"{names.get(k, k)}.weight": torch.tensor(v) for k, v in values.items()}
    network.set_parameters(parameters)
    return network


def on_grid(inputs, dt):
    x = torch.zeros(round(END / dt), 1, INPUTS, dtype=torch.float64)
    for at, source in inputs:
        x[round(at / dt), 0, source] += 1
    return x


def loss_on_grid(case, dt):
    label = torch.tensor([1])
    if case in ("last", "jumps"):
        return lambda logits: functional.cross_entropy(logits, label)
    if case == "every_step":
        return PerStep(lambda v: (v - 0.5).square().mean())
    return PerStep(lambda s: FirstSpike(xi=1.0, tau_syn=TAU_SYN / dt)(s, label))


def found_on_grid(case, dt, values, inputs):
    network = network_of(case, dt, values)
    factors = EXACT.factors(network, on_grid(inputs, dt), loss_on_grid(case, dt))
    names = {"recurrent": "hidden.recurrent"}
    return {name: factors.synapses[names.get(name, name)].gradient().numpy() for name in values}


def problem(case, seed):
    values, inputs, rng = draw(seed, 4, 2)
    if case == "shortcut":
        values["second"] = rng.normal(0.8, 0.5, (4, 4))
    if case == "recurrent":
        values["recurrent"] = rng.normal(0.0, 0.4, (4, 4))
    return values, inputs, differences(partial(exact_loss, case, inputs), values)


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("case", ["first", "last", "every_step", "jumps", "recurrent", "shortcut"])
def test_halving_the_step_halves_the_distance_to_the_exact_gradient(case):
    steps = np.array([0.4, 0.2, 0.1, 0.05, 0.025])
    far = []
    for seed in (0, 2):
        values, inputs, exact = problem(case, seed)
        assert all(np.linalg.norm(e) > 1e-3 for e in exact.values())
        found = [found_on_grid(case, dt, values, inputs) for dt in steps]
        far.append([[distance(f[name], exact[name]) for name in exact] for f in found])
    mean = np.exp(np.log(far).mean((0, 2)))
    order = np.polyfit(np.log(steps), np.log(mean), 1)[0]
    assert 0.75 < order < 1.6
    assert mean[-1] < 0.01


def test_one_spike_has_the_derivative_of_its_closed_form():
    """d t/d w for one input spike and one neuron, at three synaptic time constants."""
    dt, w, seen = 0.002, 6.0, []
    for tau in (2.0, 5.0, 10.0):
        neuron = CUBA.from_tau(tau_mem=2 * tau, tau_syn=tau, dt=dt, reset="zero", scale_input=True)
        network = Network({"readout": Layer(Linear(1, 1), Cells(neuron), inputs=("input",))})
        network = network.double()
        network.set_parameters({"readout.weight": torch.tensor([[w]])})
        x = torch.zeros(round(2 * tau / dt), 1, 1, dtype=torch.float64)
        x[0] = 1
        loss = PerStep(lambda s: dt * (1 - s).cumprod(0).sum())
        found = EXACT.factors(network, x, loss)
        # threshold: w y - w y^2 = 1 with y = exp(-t / (2 tau)), so dy/dw = (y^2 - y) / (w - 2 w y)
        y = (w + math.sqrt(w * w - 4 * w)) / (2 * w)
        expected = -2 * tau / y * (y * y - y) / (w - 2 * w * y)
        seen.append(expected)
        assert float(found.synapses["readout"].gradient()) == pytest.approx(expected, rel=5e-3)
        assert float(found.loss) == pytest.approx(-2 * tau * math.log(y), abs=2 * dt)
    assert seen[2] == pytest.approx(5 * seen[0])  # proportional to tau_syn


def test_the_scale_of_the_input_is_that_of_the_weights():
    values, inputs, _ = draw(2, 4, 2)
    plain = network_of("first", 0.4, values)
    beta = plain.layers["hidden"].neuron.neuron.beta
    scaled = {name: (1 - beta) * value for name, value in values.items()}
    other = network_of("first", 0.4, scaled, {})
    for layer in other.layers.values():
        object.__setattr__(layer.neuron.neuron, "scale_input", False)
    x, loss = on_grid(inputs, 0.4), loss_on_grid("first", 0.4)
    a, b = (EXACT.factors(network, x, loss) for network in (plain, other))
    for name in values:
        expected = a.synapses[name].gradient()
        assert expected.any()
        torch.testing.assert_close((1 - beta) * b.synapses[name].gradient(), expected)


def test_rest_and_reset_elsewhere_are_a_shift():
    values, inputs, _ = draw(2, 4, 2)
    x, loss = on_grid(inputs, 0.4), loss_on_grid("first", 0.4)
    found = []
    for rest in (0.0, -0.7):
        network = network_of("first", 0.4, values)
        neuron = CUBA(
            alpha=network.layers["hidden"].neuron.neuron.alpha,
            beta=network.layers["hidden"].neuron.neuron.beta,
            scale_input=True,
            reset="value",
            v_rest=rest,
            v_reset=rest + 0.25,
            v_th=rest + 1.0,
        )
        for layer in network.layers.values():
            layer.neuron.neuron = neuron
        found.append(EXACT.factors(network, x, loss))
    for name in values:
        expected = found[0].synapses[name].gradient()
        assert expected.any()
        torch.testing.assert_close(found[1].synapses[name].gradient(), expected, rtol=1e-6, atol=0)


def test_a_reset_between_rest_and_threshold_has_the_exact_gradient():
    """The second spike of a neuron driven by one input: v starts again from r."""
    dt, r, w = 0.004, 0.3, 9.0
    neuron = CUBA.from_tau(
        tau_mem=TAU_MEM, tau_syn=TAU_SYN, dt=dt, reset="value", v_reset=r, scale_input=True
    )
    network = Network(
        {
            "hidden": Layer(Linear(1, 1), Cells(neuron), inputs=("input",)),
            "readout": Layer(
                Linear(1, 1),
                Cells(SynapticIntegrator(alpha=neuron.alpha, kappa=neuron.beta)),
                inputs=("hidden",),
            ),
        },
        decoder=LastDecoder(),
        mean_first=False,
    ).double()
    x = torch.zeros(round(12 / dt), 1, 1, dtype=torch.float64)
    x[0] = 1

    def last(weight):
        v, i, now, out = 0.0, weight, 0.0, 0.0
        while now + (wait := float(crossings(v, i))) < 12.0:
            v, i, now = r, i * math.exp(-wait / TAU_SYN), now + wait
            out += voltage(12.0 - now, 0.0, 1.0)
        return out

    network.set_parameters(
        {"hidden.weight": torch.tensor([[w]]), "readout.weight": torch.tensor([[1.0]])}
    )
    found = EXACT.factors(network, x, lambda logits: logits.sum())
    assert int(network.record(x)["hidden"]["spikes"].sum()) >= 2
    expected = (last(w + 1e-6) - last(w - 1e-6)) / 2e-6
    assert float(found.loss) == pytest.approx(last(w), rel=5e-3)
    assert float(found.synapses["hidden"].gradient()) == pytest.approx(expected, rel=1e-2)


def test_delays_have_the_gradient_of_spike_times():
    dt, delays = 0.05, np.array([1.0, 2.4, 0.6])
    values, inputs, _ = draw(2, 4, 2)

    def exact(delays):
        late = [(at + delays[source], source) for at, source in inputs]
        return exact_loss("first", late, **values)

    expected = differences(exact, {"delays": delays})["delays"]
    network = network_of("first", dt, values)
    axon = AxonalDelay(INPUTS, 60, learned=True, delay=(delays / dt).tolist())
    network = Network(
        {
            "hidden": Layer(
                network.layers["hidden"].synapse,
                network.layers["hidden"].neuron,
                inputs=("input",),
                before={"axon": axon},
            ),
            "readout": network.layers["readout"],
        },
        decoder=FirstSpikeDecoder(),
        mean_first=False,
    ).double()
    found = EXACT.factors(network, on_grid(inputs, dt), loss_on_grid("first", dt))
    assert list(found.direct) == ["hidden.axon.delay"]
    assert distance(found.direct["hidden.axon.delay"].numpy() / dt, expected) < 0.02


# ---- other ways to say the same, steps and all ---------------------------------------------------

B, CLASSES = 5, 3
LABELS = torch.tensor([0, 1, 2, 2, 1])
CELL = CUBA(alpha=0.7, beta=0.9, v_th=0.4, reset=Reset.ZERO)
SPIKING = {"neuron": CELL, "output": CELL, "readout": "first_spike"}
MEMBRANE = {
    "neuron": CELL,
    "output": SynapticIntegrator(alpha=0.7, kappa=0.9),
    "readout": "mean_current",
}
SPECS = {
    "first spike": SpikingMlp(hidden=(9, 8), bias=True, gain=2.0, **SPIKING),
    "membrane": SpikingMlp(hidden=(9, 8), bias=True, **MEMBRANE),
    "standardised": SpikingMlp(hidden=(9,), standardise=True, **MEMBRANE),
    "recurrent": SpikingRecurrentNet(hidden=(9,), **MEMBRANE),
    "delayed": SpikingMlp(hidden=(9,), delay=3, axonal_delay=2, **MEMBRANE),
    "leaky": SpikingMlp(hidden=(9,), neuron=CELL, readout="leaky"),
    "leaky membrane": SpikingMlp(
        hidden=(9,), neuron=CELL, output=LeakyIntegrator(), readout="last"
    ),
    "convolutional": SpikingConvNet(
        channels=(4,), hidden=(6,), kernel=2, pool="average", pool_size=1, **MEMBRANE
    ),
}


def built(spec, shape=(10,), factor=3.0):
    network = spec.build(shape, CLASSES).double()
    initialise(network, Seeds(2))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(factor)
    return network


def spikes(steps=20, shape=(10,), batch=B, rate=0.3):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(steps, batch, *shape, generator=generator) < rate).double()


def loss_of(logits):
    return functional.cross_entropy(logits, LABELS[: logits.shape[-2]])


@pytest.fixture(params=list(SPECS))
def case(request):
    shape = (3, 3) if request.param == "convolutional" else (10,)
    return built(SPECS[request.param], shape), spikes(shape=shape)


def gradients(network, factors):
    return form_gradients(network, factors.synapses, factors.direct)


def test_every_parameter_gets_a_finite_gradient(case):
    network, x = case
    found = gradients(network, EventProp().factors(network, x, loss_of))
    assert set(found) == set(network.weights())
    for name, gradient in found.items():
        assert gradient.isfinite().all() and gradient.any(), name


def test_the_readout_s_membrane_learns_as_by_backpropagation(case):
    network, x = case
    if network.layers["readout"].neuron is not None and (
        network.layers["readout"].neuron.is_spiking
    ):
        pytest.skip("its readout spikes")
    for loss in (loss_of, PerStep(lambda steps: (steps - 0.3).square().mean())):
        a, b = (t.factors(network, x, loss) for t in (EventProp(), Bptt()))
        torch.testing.assert_close(a.loss, b.loss)
        torch.testing.assert_close(a.logits, b.logits)
        assert a.synapses["readout"].gradient().any()
        torch.testing.assert_close(
            a.synapses["readout"].gradient(), b.synapses["readout"].gradient()
        )
        assert all(torch.equal(a.activity[n], b.activity[n]) for n in b.activity)


def test_rows_are_the_spikes_that_were_transmitted(case):
    network, x = case
    factors = EventProp().factors(network, x, loss_of)
    expected = Bptt().factors(network, x, loss_of)
    assert list(factors.synapses) == list(expected.synapses)
    for name, factor in factors.synapses.items():
        assert torch.equal(factor.x, factor.transmitted)
        assert torch.equal(factor.transmitted, expected.synapses[name].transmitted)
        assert factor.delta.shape == expected.synapses[name].delta.shape


def test_nothing_is_left_behind_and_nothing_is_drawn(case):
    network, x = case
    held = {name: set(vars(m)) for name, m in network.named_modules()}
    before = {name: p.detach().clone() for name, p in network.weights().items()}
    random, given = torch.get_rng_state(), x.clone()
    with torch.no_grad():
        a = EventProp().factors(network, x, loss_of)
    b = EventProp().factors(network, x, loss_of)
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, given)
    assert {name: set(vars(m)) for name, m in network.named_modules()} == held
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(p.detach(), before[name]) for name, p in network.weights().items())
    tensors = [a.loss, a.logits, *a.direct.values(), *a.activity.values()]
    for name, factor in a.synapses.items():
        tensors += [factor.x, factor.delta, factor.transmitted]
        assert torch.equal(factor.delta, b.synapses[name].delta)
    assert all(t.grad_fn is None and not t.requires_grad for t in tensors)


def test_samples_do_not_know_of_each_other(case):
    network, x = case

    def each(logits):
        return (logits * torch.arange(1.0, 4.0).double()).sum()

    whole = gradients(network, EventProp().factors(network, x, each))
    parts = [
        gradients(network, EventProp().factors(network, x[:, b : b + 1], each)) for b in range(B)
    ]
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, torch.stack([p[name] for p in parts]).sum(0))


def test_other_weights_are_used_in_place_of_the_network_s(case):
    network, x = case
    other = {name: 0.8 * p.detach() for name, p in network.weights().items()}
    found = EventProp().factors(network, x, loss_of, weights=other)
    network.set_parameters({**other, **network.statistics()})
    expected = EventProp().factors(network, x, loss_of)
    for name, factor in expected.synapses.items():
        torch.testing.assert_close(found.synapses[name].delta, factor.delta)


def test_a_convolution_is_a_dense_layer_with_shared_weights():
    conv = Conv2d(1, 2, kernel=2, padding=1)
    out = Cells(SynapticIntegrator(alpha=0.7, kappa=0.9))
    stages = {"dropout": Dropout(0.0), "pool": AvgPool2d(2)}
    top = Linear(8, 4)
    maps = Network(
        {
            "a": Layer(conv, Cells(CELL), inputs=("input",)),
            "b": Layer(Conv2d(2, 2, kernel=1), Cells(CELL), inputs=("a",), before=stages),
            "readout": Layer(top, out, inputs=("b",)),
        },
        mean_first=False,
    ).double()
    initialise(maps, Seeds(0))
    x = spikes(shape=(1, 3, 3), rate=0.6)
    with torch.no_grad():
        for p in maps.parameters():
            p.mul_(4)
    own = {name: p.detach() for name, p in maps.weights().items()}

    def matrix(name, weight):
        if name == "a":
            ones = torch.eye(9).double().view(9, 1, 3, 3)
            return functional.conv2d(ones, weight, padding=1).flatten(1).T
        ones = functional.avg_pool2d(torch.eye(32).double().view(32, 2, 4, 4), 2)
        return functional.conv2d(ones, weight).flatten(1).T

    dense = Network(
        {
            "a": Layer(Linear(9, 32), Cells(CELL), inputs=("input",)),
            "b": Layer(Linear(32, 8), Cells(CELL), inputs=("a",)),
            "readout": Layer(Linear(8, 4), out, inputs=("b",)),
        },
        mean_first=False,
    ).double()
    weights = {n: matrix(n[0], w) if n[0] in "ab" else w for n, w in own.items()}
    dense.set_parameters(weights)
    loss = PerStep(lambda v: v.square().mean())
    a, b = EventProp().factors(maps, x, loss), EventProp().factors(dense, x.flatten(2), loss)
    torch.testing.assert_close(a.loss, b.loss)
    for name in "ab":
        weight = own[f"{name}.weight"].clone().requires_grad_()
        big = b.synapses[name].gradient()
        (expected,) = torch.autograd.grad(matrix(name, weight), weight, big)
        assert expected.any()
        found = a.synapses[name].gradient().view(expected.shape)
        torch.testing.assert_close(found, expected)


def test_a_dropped_unit_is_one_whose_synapses_are_cut():
    spec = SpikingMlp(hidden=(9, 8), dropout=0.5, **MEMBRANE)
    network, x = built(spec), spikes(batch=1)
    generator, held = torch.Generator().manual_seed(3), {}
    network(x, training=True, generator=torch.Generator().manual_seed(3), held=held)
    found = EventProp().factors(network, x, loss_of, generator=generator)
    cut = {name: p.detach().clone() for name, p in network.weights().items()}
    plain = built(SpikingMlp(hidden=(9, 8), **MEMBRANE))
    for name, mask in held.items():
        assert 0 < int((mask == 0).sum()) < mask.numel()
        cut[f"{name.removesuffix('.dropout')}.weight"] *= mask
    expected = EventProp().factors(plain, x, loss_of, weights=cut)
    torch.testing.assert_close(found.loss, expected.loss)
    for name in expected.synapses:
        assert expected.synapses[name].delta.any()
        torch.testing.assert_close(found.synapses[name].delta, expected.synapses[name].delta)


@pytest.mark.parametrize("spec", ["membrane", "recurrent"])
def test_a_state_to_start_from_is_the_past(spec):
    network, x = built(SPECS[spec]), spikes(steps=30)
    late = PerStep(lambda steps: steps[-10:].square().sum())
    whole = EventProp().factors(network, x, late)
    later = EventProp().factors(network, x[10:], late, state=network(x[:10]).state)
    for path, factor in later.synapses.items():
        assert factor.delta.any()
        expected = whole.synapses[path].delta[-len(factor.delta) :]
        torch.testing.assert_close(factor.delta, expected)


def test_a_constant_input_is_the_same_at_every_step():
    network = built(SPECS["membrane"])
    one = torch.rand(B, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = one.expand(12, B, 10)
    a = gradients(network, EventProp().factors(network, x, loss_of))
    b = gradients(network, EventProp().factors(network, x.contiguous(), loss_of))
    for name, gradient in a.items():
        assert gradient.any()
        torch.testing.assert_close(gradient, b[name])


# ---- silence, and membranes that graze -----------------------------------------------------------


def test_a_silent_network_has_no_gradient():
    for spec in ("first spike", "recurrent"):
        network = built(SPECS[spec], factor=0.01)
        factors = EventProp().factors(network, spikes(), loss_of)
        for factor in factors.synapses.values():
            assert not factor.delta.any() or spec == "recurrent"
        assert not factors.synapses["hidden1"].delta.any()
        assert factors.loss.isfinite()


def test_silent_neurons_are_woken_by_the_input_they_hear():
    network, x, wake = built(SPECS["membrane"]), spikes(), 0.3
    with torch.no_grad():
        network.layers["hidden1"].synapse.weight[2] = 0.0
        network.layers["hidden1"].synapse.bias[2] = 0.0
    silent = network.record(x)["hidden1"]["spikes"].sum((0, 1)) == 0
    assert silent[2] and not silent.all()
    plain, woken = (EventProp(wake=w).factors(network, x, loss_of) for w in (0.0, wake))
    a, b = (f.synapses["hidden1"].gradient() for f in (plain, woken))
    assert not a[silent].any()
    heard = wake * x.sum(0).mean(0)  # spikes of each input, mean over samples
    torch.testing.assert_close(b[silent], -heard.expand(int(silent.sum()), -1))
    assert torch.equal(plain.loss, woken.loss)
    assert torch.equal(a[~silent], b[~silent])
    assert torch.equal(plain.synapses["readout"].gradient(), woken.synapses["readout"].gradient())


def test_silent_outputs_are_woken_where_they_are_wanted():
    network, x = built(SPECS["first spike"]), spikes()
    with torch.no_grad():
        network.layers["readout"].synapse.weight[1] = 0.0
        network.layers["readout"].synapse.bias[1] = 0.0
    assert (network(x).steps.sum(0)[:, 1] == 0).all()
    wanted = (LABELS == 1).double() - network(x).logits.softmax(1)[:, 1]
    slope = wanted.clamp_min(0) / B / (0.4 * 5.0)  # dL/dt of the first spikes
    delta = EventProp(wake=0.5).factors(network, x, loss_of).synapses["readout"].delta
    found = delta.view(len(x), B, CLASSES)[:, :, 1]
    assert slope.any()
    torch.testing.assert_close(found, (-0.5 * slope).expand(len(x), B).detach())


def test_of_a_convolution_a_channel_is_silent_where_all_of_its_places_are():
    network = built(SPECS["convolutional"], (3, 3))
    with torch.no_grad():
        network.layers["conv1"].synapse.weight[1] = 0.0
    x = spikes(shape=(3, 3))
    plain, woken = (
        EventProp(wake=w).factors(network, x, loss_of).synapses["conv1"].gradient()
        for w in (0.0, 1.0)
    )
    fired = network.record(x)["conv1"]["spikes"].sum((0, 1, 3, 4)) > 0
    assert fired.any() and not fired[1]
    changed = (plain != woken).any(1)
    assert torch.equal(changed, torch.as_tensor(~fired))


@pytest.mark.parametrize("least", [1e-3, 0.5])
def test_a_spike_that_grazes_the_threshold_has_a_bounded_gradient(least):
    """The membrane's peak is put at the threshold to the last bit."""
    beta, alpha = CELL.beta, CELL.alpha
    steps = np.arange(1, 41)
    peak = ((beta**steps - alpha**steps) / (beta - alpha)).max()
    network = Network(
        {
            "hidden": Layer(Linear(1, 1), Cells(CELL), inputs=("input",)),
            "readout": Layer(Linear(1, 1), Cells(LeakyIntegrator()), inputs=("hidden",)),
        },
        mean_first=False,
    ).double()
    x = torch.zeros(40, 1, 1, dtype=torch.float64)
    x[0] = 1
    network.layers["readout"].synapse.weight.data.fill_(1.0)
    sizes = []
    for factor in (1 - 1e-12, 1 + 1e-12, 1 + 1e-3):
        network.layers["hidden"].synapse.weight.data.fill_(CELL.v_th / peak * factor)
        found = EventProp(least_slope=least).factors(network, x, loss_sum)
        gradient = float(found.synapses["hidden"].gradient())
        assert math.isfinite(gradient)
        sizes.append(abs(gradient))
    assert sizes[0] == 0 < sizes[1]
    # dL/dt of a spike into the mean of a leaky integrator is at most 1, du/dw the peak
    rate = CELL.v_th * (-math.log(beta) - math.log(alpha))
    assert max(sizes) <= peak / (least * rate)


def loss_sum(logits):
    return logits.sum()


# ---- what is refused, and what goes together -----------------------------------------------------


def spec_with(neuron=None, **options):
    return SpikingMlp(hidden=(6,), **{**MEMBRANE, "neuron": neuron or CELL, **options})


ALPHA = dict(alpha=0.7, beta=0.9)
ZERO = dict(ALPHA, reset="zero")
REFUSED = {
    "alif": (spec_with(ALIF()), CrossEntropy(), "ALIF; use neuron={model='cuba', reset='zero'"),
    "lif": (spec_with(LIF()), CrossEntropy(), "synaptic current.*'hidden1' has LIF"),
    "no synapse": (spec_with(CUBA(**{**ZERO, "alpha": 0.0})), CrossEntropy(), "0 < alpha < 1"),
    "endless": (spec_with(CUBA(**{**ZERO, "alpha": 1.0})), CrossEntropy(), "0 < alpha < 1"),
    "no memory": (spec_with(CUBA(**{**ZERO, "beta": 0.0})), CrossEntropy(), "beta > 0"),
    "soft": (spec_with(CUBA(**ALPHA)), CrossEntropy(), "reset='soft'.*use reset='zero'"),
    "late": (spec_with(CUBA(**ZERO, reset_time="next")), CrossEntropy(), "reset_time='next'"),
    "noise": (spec_with(CUBA(**ZERO, noise=0.1)), CrossEntropy(), "use none of noise"),
    "refractory": (spec_with(CUBA(**ZERO, refractory=2)), CrossEntropy(), "refractory"),
    "smooth": (spec_with(CUBA(**ZERO, surrogate=Smooth())), CrossEntropy(), "Smooth"),
    "learns": (spec_with(learns=("beta",)), CrossEntropy(), "hidden1.neuron.beta'; use learns"),
    "twin": (Mlp(hidden=(6,)), CrossEntropy(), "use a spiking network"),
    "norm": (spec_with(norm="batch"), CrossEntropy(), "norm='none'"),
    "plasticity": (spec_with(stp=Plasticity()), CrossEntropy(), "ShortTermPlasticity"),
    "rate": (spec_with(output=None, readout="mean_rate"), CrossEntropy(), "output='synaptic_integ"),
    "count": (spec_with(output=None), CrossEntropy(), "how many spikes"),
    "pulses": (spec_with(output=None, readout="leaky"), MaxMembrane(), "single spikes"),
    "output": (spec_with(output=CELL), CrossEntropy(), "use loss 'first_spike'"),
    "spiking max": (spec_with(output=CELL, readout="first_spike"), MaxMembrane(), "first_spike"),
    "readout": (spec_with(output=LIF()), CrossEntropy(), "'readout' has LIF"),
    "jump, squared": (
        spec_with(output=LeakyIntegrator()),
        StepMse(),
        "jumps.*StepMse is not linear",
    ),
    "jump, log": (
        spec_with(output=LeakyIntegrator()),
        StepCrossEntropy(),
        "StepCrossEntropy is not",
    ),
    "jump, maximal": (spec_with(output=LeakyIntegrator()), MaxMembrane(), "MaxMembrane is not"),
    "jump, max": (
        spec_with(output=LeakyIntegrator(), readout="max"),
        CrossEntropy(),
        "MaxDecoder is not linear in it; use output='synaptic_integrator'",
    ),
    "no current": (spec_with(output=SynapticIntegrator(alpha=0.0)), Tet(), "Tet is not linear"),
    "no leak": (spec_with(output=SynapticIntegrator(kappa=0.0)), Tet(), "Tet is not linear"),
    "count of pulses": (
        spec_with(output=LeakyIntegrator(kappa=0.0), readout="leaky"),
        CountMse(),
        "use 0 < kappa < 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_and_losses_without_spike_times_are_refused(name):
    spec, loss, message = REFUSED[name]
    network = spec.build((10,), CLASSES)
    with pytest.raises(PairingError, match=f"trainer 'eventprop'.*{message}"):
        EventProp().check(network, spikes().float(), loss)


@pytest.mark.parametrize("readout", ["mean_current", "sum", "last", "leaky"])
@pytest.mark.parametrize(
    "output",
    [
        *(LeakyIntegrator(kappa=k, scale_input=c) for k in (0.0, 0.5, 1.0) for c in (False, True)),
        *(SynapticIntegrator(alpha=a, kappa=k) for a in (0.0, 0.5, 1.0) for k in (0.0, 0.5, 1.0)),
    ],
    ids=str,
)
def test_a_readout_is_refused_where_a_later_spike_makes_the_same_logits(output, readout):
    network = spec_with(output=output, readout=readout).build((10,), CLASSES)
    pulses = torch.zeros(10, 2, CLASSES)
    pulses[3, 0] = pulses[4, 1] = 1.0
    soon, late = network.decode(network.layers["readout"].neuron(pulses)[0])
    if torch.allclose(soon, late, rtol=1e-5, atol=0):
        with pytest.raises(PairingError, match="says the same whenever.*use 0 < kappa < 1"):
            EventProp().check(network, spikes().float(), CrossEntropy())
    else:
        EventProp().check(network, spikes().float(), CrossEntropy())


def test_what_is_linear_in_a_membrane_that_jumps_is_let_through():
    for readout in ("mean_current", "sum", "last", "leaky"):
        network = spec_with(output=LeakyIntegrator(), readout=readout).build((10,), CLASSES)
        EventProp().check(network, spikes().float(), CrossEntropy())
        EventProp().check(network, spikes().float(), CountMse())
    network = spec_with(readout="max").build((10,), CLASSES)
    for loss in (CrossEntropy(), StepMse(), StepCrossEntropy(), MaxMembrane()):
        EventProp().check(network, spikes().float(), loss)


def test_shortcuts_are_refused_where_they_have_weights():
    options = {"width": 3, "norm": "none", **MEMBRANE}
    network = SpikingResNet(blocks=(1, 1), **options).build((6, 5), CLASSES)
    x = spikes(shape=(6, 5)).float()
    with pytest.raises(PairingError, match="'stage2block1shortcut' has no neurons.*of one stage"):
        EventProp().check(network, x, CrossEntropy())
    EventProp().check(
        SpikingResNet(blocks=(2,), **options).build((6, 5), CLASSES), x, CrossEntropy()
    )


def test_maximum_pooling_is_refused():
    spec = SpikingConvNet(channels=(4,), kernel=2, pool="max", **MEMBRANE)
    with pytest.raises(PairingError, match="MaxPool2d.*use pool='average'"):
        EventProp().check(spec.build((4, 4), CLASSES), spikes(shape=(4, 4)), CrossEntropy())


def test_a_single_call_refuses_the_network_too():
    with pytest.raises(PairingError, match="synaptic current"):
        EventProp().factors(built(spec_with(LIF())), spikes(), loss_of)
    for options in ({"alpha": 0.0}, {"beta": 0.0}):
        network = built(spec_with(CUBA(**{**ZERO, **options}, v_th=0.4)))
        with pytest.raises(PairingError, match="use 0 < alpha < 1 and beta > 0"):
            EventProp().factors(network, spikes(), loss_of)
    with pytest.raises(PairingError, match="use 0 < kappa < 1"):
        EventProp().factors(built(spec_with(output=LeakyIntegrator(kappa=0.0))), spikes(), loss_of)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_defined_is_let_through(name):
    shape = (3, 3) if name == "convolutional" else (10,)
    network = SPECS[name].build(shape, CLASSES)
    EventProp().check(network, spikes(shape=shape), CrossEntropy())
    if name == "first spike":
        EventProp().check(network, spikes(), FirstSpike())


def test_its_name_and_table_go_round():
    assert TRAINERS.get("eventprop") is EventProp and EventProp().name == "eventprop"
    spec = EventProp(wake=0.5, least_slope=0.1)
    assert from_table(EventProp, to_table(spec), "trainer") == spec


def learner(method, spec, epochs, experiences=1):
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = np.clip(0.6 * rng.random((3, 20))[y] + 0.4 * rng.random((120, 20)), 0, 1)
    arrays = {"x_train": x[:90], "y_train": y[:90], "x_test": x[90:], "y_test": y[90:]}
    data = checked({n: a.astype(np.float32) if n[0] == "x" else a for n, a in arrays.items()}, "e")
    return Learner(
        stream=permuted(data, experiences=experiences, seed=1).with_reveal(
            DOMAIN_IL | method.needs
        ),
        network=spec.build((20,), 3),
        encoder=Latency(steps=20),
        trainer=EventProp(wake=0.1),
        methods=(method,),
        optimiser=Adam(lr=0.01),
        plan=TrainPlan(batch=10, epochs=epochs),
        seeds=Seeds(0),
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("readout", ["first spike", "membrane"])
def test_a_network_learns_from_spike_times(readout):
    spec = SPECS["membrane"]
    if readout == "first spike":
        cell = CUBA(alpha=0.8, beta=0.9, v_th=0.5, reset="zero")
        spec = SpikingMlp(hidden=(30,), neuron=cell, output=cell, readout="first_spike", gain=2.0)
    running = learner(Finetune(), spec, 30)
    for _ in running.ticks():
        pass
    assert running.scores.matrices()[0].final[0] > 0.85


def test_projection_protects_what_was_transmitted():
    """HLOP: a free gradient would move the old spikes' currents; the projected one does not."""
    spec = SpikingMlp(hidden=(30,), **MEMBRANE)
    network, x = built(spec, (20,)), spikes(shape=(20,), batch=2, steps=8)
    factor = EventProp().factors(network, x, lambda z: functional.cross_entropy(z, LABELS[:2]))
    own = factor.synapses["hidden1"]
    q, _ = torch.linalg.qr(own.transmitted[::2].T)
    outside = Complement(q.T, torch.linalg.svd(q.T)[2][q.shape[1] :].T)
    free, kept = own.gradient(), own.project(outside).gradient()
    assert free.any() and kept.any() and (own.transmitted[::2] @ free.T).any()
    torch.testing.assert_close(
        own.transmitted[::2] @ kept.T, torch.zeros(8, 30).double(), rtol=0, atol=1e-9
    )
    running = learner(Hlop(), spec, 2, experiences=2)
    for _ in running.ticks():
        pass
    assert all(p.isfinite().all() for p in running.network.parameters())


def test_a_layer_that_nobody_hears_has_no_error():
    network = built(SPECS["membrane"])
    extra = Layer(Linear(9, 4), Cells(CELL), inputs=("hidden1",))
    layers = dict(network.layers.items())
    layers = {"hidden1": layers["hidden1"], "deaf": extra, **layers}
    other = Network(layers, mean_first=False).double()
    with torch.no_grad():
        extra.synapse.weight.fill_(1.0)
    found = EventProp().factors(other, spikes(), loss_of).synapses
    expected = EventProp().factors(network, spikes(), loss_of).synapses
    assert not found["deaf"].delta.any()
    assert all(torch.equal(found[name].delta, expected[name].delta) for name in expected)


def test_steps_that_are_made_while_they_are_used_are_the_same():
    network, x = built(SPECS["delayed"]), spikes()
    made = Steps(len(x), lambda: x)
    expected = EventProp().factors(network, x, loss_of)
    found = EventProp().factors(network, made, loss_of, variables={})
    assert torch.equal(found.loss, expected.loss)
    for name, gradient in gradients(network, expected).items():
        assert torch.equal(gradients(network, found)[name], gradient)


def test_the_least_slope_is_a_share_of_the_way_from_reset_to_threshold():
    neuron = CUBA(alpha=0.7, beta=0.9, v_th=1.0, v_reset=0.25, reset=Reset.VALUE, v_rest=-0.5)
    membrane = Membrane.of(neuron, torch.zeros(1, dtype=torch.float64))
    current = torch.tensor([0.0, 10.0], dtype=torch.float64)
    tau_mem, tau_syn = -1 / math.log(0.9), -1 / math.log(0.7)
    steep = (10.0 / (1 - 0.9) - (1.0 + 0.5)) / tau_mem
    expected = torch.tensor([0.2 * (1.0 - 0.25) * (1 / tau_mem + 1 / tau_syn), steep])
    torch.testing.assert_close(membrane.slope(current, 0.2), expected.double())
    endless = Membrane.of(CUBA(alpha=0.7, beta=1.0, reset=Reset.ZERO), current)
    torch.testing.assert_close(endless.slope(current, 0.2)[1], current[1])


def test_a_loss_of_first_spikes_is_shown_them_and_the_steps_behind():
    network, x, seen = built(SPECS["first spike"], factor=4.0), spikes(), []

    def loss(steps):
        seen.append(steps.detach().clone())
        return (1 - steps).cumprod(0).sum()

    found = EventProp().factors(network, x, PerStep(loss))
    real = network(x).steps.detach()
    assert real.sum(0).max() > 2
    expected = torch.zeros_like(real)
    for b in range(B):
        for k in range(CLASSES):
            for t in real[:, b, k].nonzero()[:1].flatten().tolist():
                expected[t : t + 2, b, k] = 1
    assert torch.equal(seen[0], expected)
    torch.testing.assert_close(found.loss, (1 - real).cumprod(0).sum())
