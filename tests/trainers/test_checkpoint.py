"""BPTT from checkpoints: the gradient of all steps at once, from the graph of a few."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from spikecl.encoding import CrossEntropy
from spikecl.errors import PairingError
from spikecl.kernels import Kernels
from spikecl.networks import (
    ConvNet,
    Mlp,
    Plasticity,
    RecurrentNet,
    ResNet,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import (
    ALIF,
    CUBA,
    LIF,
    PLIF,
    AdEx,
    ConductanceLIF,
    Escape,
    Izhikevich,
    LeakyIntegrator,
    LoihiLIF,
    SigmaDelta,
    SynapticIntegrator,
)
from spikecl.neurons.neuron import leaves
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt, Call, PerStep, Steps, Tbptt

T, B, CLASSES = 7, 4, 3
QUICK = LIF(beta=0.6, v_th=0.3)
ONE, IMAGE = (6,), (6, 5)
NETWORKS = {
    "mlp": (SpikingMlp(hidden=(8, 7), neuron=QUICK, bias=True), ONE),
    "mean current": (SpikingMlp(hidden=(8,), neuron=QUICK, readout="mean_current"), ONE),
    "reset later": (
        SpikingMlp(hidden=(8, 7), neuron=LIF(v_th=0.4, reset="zero", reset_time="next")), ONE
    ),
    "reset kept": (SpikingMlp(hidden=(8, 7), neuron=LIF(v_th=0.4, detach_reset=False)), ONE),
    "plif": (SpikingMlp(hidden=(8, 7), neuron=PLIF(v_th=0.2), per_neuron=True), ONE),
    "plif, thresholds": (
        SpikingMlp(hidden=(8, 7), neuron=PLIF(v_th=0.2), learns=("beta", "v_th")), ONE
    ),
    "alif": (SpikingMlp(hidden=(8, 7), neuron=ALIF(v_th=0.3)), ONE),
    "cuba": (SpikingMlp(hidden=(8, 7), neuron=CUBA(v_th=0.3)), ONE),
    "refractory": (SpikingMlp(hidden=(8, 7), neuron=LIF(v_th=0.3, refractory=2)), ONE),
    "izhikevich": (SpikingMlp(hidden=(8,), neuron=Izhikevich(), gain=40.0), ONE),
    "adex": (SpikingMlp(hidden=(8,), neuron=AdEx(), gain=4000.0), ONE),
    "conductance": (SpikingMlp(hidden=(8,), neuron=ConductanceLIF(), gain=4.0), ONE),
    "loihi": (SpikingMlp(hidden=(8,), neuron=LoihiLIF(vth=20, du=2000, dv=400), gain=50.0), ONE),
    "sigma-delta": (SpikingMlp(hidden=(8, 7), neuron=SigmaDelta()), ONE),
    "recurrent": (SpikingRecurrentNet(hidden=(8, 7), neuron=LIF(beta=0.8, v_th=0.4)), ONE),
    "recurrent, refractory": (
        SpikingRecurrentNet(hidden=(8,), neuron=LIF(beta=0.8, v_th=0.4, refractory=1), delay=1), ONE
    ),
    "delays": (SpikingMlp(hidden=(8, 7), neuron=QUICK, delay=2, axonal_delay=3), ONE),
    "plasticity": (
        SpikingMlp(hidden=(8, 7), neuron=QUICK, stp=Plasticity(tau_d=5.0, tau_f=3.0)), ONE
    ),
    "dropout": (SpikingMlp(hidden=(8, 7), neuron=QUICK, dropout=0.3), ONE),
    "dropout, delays, plasticity": (
        SpikingMlp(
            hidden=(8, 7), neuron=QUICK, dropout=0.3, delay=2, axonal_delay=2,
            stp=Plasticity(tau_d=5.0),
        ),
        ONE,
    ),
    "standardised": (SpikingMlp(hidden=(8, 7), neuron=QUICK, standardise=True), ONE),
    "signed": (SpikingMlp(hidden=(8, 7), neuron=QUICK, excitatory=0.6), ONE),
    "population": (SpikingMlp(hidden=(8,), neuron=QUICK, population=3), ONE),
    "spikes count": (
        SpikingMlp(hidden=(8,), neuron=QUICK, output=LIF(v_th=0.3), readout="sum"), ONE
    ),
    "first spike": (
        SpikingMlp(hidden=(8,), neuron=QUICK, output=LIF(v_th=0.3), readout="first_spike"), ONE
    ),
    "population of spikes": (
        SpikingMlp(
            hidden=(8,), neuron=QUICK, output=LIF(v_th=0.3), population=2, readout="mean_current"
        ),
        ONE,
    ),
    "membranes": (
        SpikingMlp(hidden=(8,), neuron=QUICK, output=LeakyIntegrator(), readout="max"), ONE
    ),
    "currents of membranes": (
        SpikingMlp(hidden=(8,), neuron=QUICK, output=SynapticIntegrator(), readout="last"), ONE
    ),
    "leaky": (SpikingMlp(hidden=(8,), neuron=QUICK, readout="leaky"), ONE),
    "rate of membranes": (
        SpikingMlp(hidden=(8,), neuron=QUICK, output=LeakyIntegrator(), readout="mean_rate"), ONE
    ),
    "conv": (
        SpikingConvNet(channels=(3, 4), kernel=2, neuron=QUICK, hidden=(5,), pool="average"), (8, 7)
    ),
    "conv, dropped": (
        SpikingConvNet(channels=(3,), kernel=3, neuron=PLIF(v_th=0.2), dropout=0.2, bias=True),
        (*IMAGE, 2),
    ),
    "resnet": (SpikingResNet(width=3, blocks=(1, 1), neuron=QUICK, norm="none"), IMAGE),
    "twin": (Mlp(hidden=(8, 7), bias=True), ONE),
    "twin, each step": (Mlp(hidden=(8, 7), readout="mean_current"), ONE),
    "twin that recurs": (RecurrentNet(hidden=(8, 7)), ONE),
    "twin that convolves": (ConvNet(channels=(3,), kernel=3, hidden=(5,)), IMAGE),
    "twin of residues": (ResNet(width=3, blocks=(1, 1), norm="none"), IMAGE),
}  # fmt: skip
networks = pytest.mark.parametrize("name", NETWORKS)
QUIET = ("adex",)  # at a step of 0.1 ms a spike takes longer than the test


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(name, kernels=None):
    spec, shape = NETWORKS[name]
    network = spec.build(shape, CLASSES).double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(3)
    network.kernels = kernels or Kernels()
    return network, shape


def input_of(kind, shape, *, name="", steps=T):
    x = draw(steps, B, *shape)
    if kind == "spikes" or name == "conductance":
        return (x > 0).double()
    if kind == "static":
        return x[:1].expand(steps, *x.shape[1:])
    return x


LABELS = torch.arange(B) % CLASSES


def of_logits(logits):
    return functional.cross_entropy(2 * logits, LABELS)


def of_steps(steps):
    weight = draw(*steps.shape, seed=7)  # another one at each step
    return (weight * steps).sum() + (steps.sum(0) ** 2).mean()


LOSSES = {"logits": of_logits, "steps": PerStep(of_steps)}


def solve(trainer, network, x, loss=of_logits, **options):
    """Return all that a trainer says, as tensors by name."""
    draws = torch.Generator().manual_seed(5)
    factors = trainer.factors(network, x, loss, generator=draws, **options)
    found = {"loss": factors.loss, "logits": factors.logits}
    found |= {f"direct {n}": g for n, g in factors.direct.items()}
    found |= {
        f"state {n} {k}": t for n, s in factors.state.items() for k, t in enumerate(leaves(s))
    }
    gradients = form_gradients(network, factors.synapses, factors.direct)
    found |= {f"gradient {n}": g for n, g in gradients.items()}
    assert not any(t.requires_grad for n, t in found.items() if not n.startswith("state"))
    return found


def same(found, expected, tight=1e-12):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = max(1.0, float(tensor.detach().abs().max())) if tensor.numel() else 1.0
        torch.testing.assert_close(
            found[name].detach(),
            tensor.detach(),
            rtol=tight,
            atol=tight * scale,
            msg=lambda text, n=name: f"{n}: {text}",
        )


@networks
@pytest.mark.parametrize("kind", ["graded", "spikes", "static"])
def test_every_network_and_every_size_of_parts(name, kind):
    network, shape = build(name)
    x = input_of(kind, shape, name=name)
    expected = solve(Bptt(), network, x)
    for k in (1, 2, 3, T - 1, T):
        same(solve(Bptt(checkpoint=k), network, x), expected)


@networks
def test_a_loss_of_the_steps(name):
    network, shape = build(name)
    x = input_of("spikes", shape)
    expected = solve(Bptt(), network, x, PerStep(of_steps))
    for k in (1, 3, 5):
        same(solve(Bptt(checkpoint=k), network, x, PerStep(of_steps)), expected)


@networks
@pytest.mark.parametrize("training", [True, False])
def test_from_a_state_and_out_of_training(name, training):
    network, shape = build(name)
    x = input_of("spikes", shape)
    with torch.no_grad():
        state = network(draw(4, B, *shape, seed=9).abs().round(), generator=torch.Generator()).state
    options = {"state": state, "training": training}
    expected = solve(Bptt(), network, x, **options)
    held = [part.clone() for part in leaves(state)]
    for k in (1, 2, 4):
        same(solve(Bptt(checkpoint=k), network, x, **options), expected)
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), held, strict=True))
    assert not any(part.requires_grad for part in leaves(state))


@networks
def test_the_problems_are_no_trivial_ones(name):
    """There are gradients, and cutting them between parts makes a difference."""
    network, shape = build(name)
    x = input_of("spikes", shape)
    whole, cut = solve(Bptt(), network, x), solve(Tbptt(steps=2), network, x)
    gradients = [n for n in whole if n.startswith("gradient") and "delay" not in n]
    for gradient in gradients:
        assert bool(whole[gradient].any()) or name in QUIET, gradient
    memory = not name.startswith("twin") or "recurs" in name
    spikes = name not in QUIET
    first = [whole[n] for n in gradients if n.startswith("gradient hidden1") or "conv1" in n]
    other = [cut[n] for n in gradients if n.startswith("gradient hidden1") or "conv1" in n]
    if first and spikes:
        pairs = zip(first, other, strict=True)
        assert all(torch.allclose(a, b, rtol=1e-9, atol=0) for a, b in pairs) != memory


@pytest.mark.parametrize("name", ["plif", "recurrent", "delays", "conv", "membranes"])
@pytest.mark.parametrize("kernel", ["reference", "fused", "auto"])
def test_every_kernel(name, kernel):
    network, shape = build(name, Kernels(scan=kernel, synapse="dense"))
    x = input_of("spikes", shape)
    expected = solve(Bptt(), build(name, Kernels(scan="reference"))[0], x)
    same(solve(Bptt(checkpoint=3), network, x), expected)


@pytest.mark.parametrize("feedback", ["random", "sign", "sign_random", "adaptive", "direct"])
@pytest.mark.parametrize(
    "name", ["mlp", "mean current", "recurrent", "membranes", "conv", "resnet", "twin", "signed"]
)
def test_every_feedback(name, feedback):
    network, shape = build(name)
    for kind in ("spikes", "static"):
        x = input_of(kind, shape)
        expected = solve(Bptt(feedback=feedback), network, x)
        for k in (1, 3, T):
            same(solve(Bptt(feedback=feedback, checkpoint=k), network, x), expected)
    assert not torch.allclose(
        expected[first_weight(expected)], solve(Bptt(), network, x)[first_weight(expected)]
    )


def first_weight(found):
    return next(name for name in found if name.startswith("gradient"))


def test_errors_that_are_summed_for_all():
    network, shape = build("mean current")
    x, loss = input_of("spikes", shape), PerStep(of_steps)
    expected = solve(Bptt(feedback="global"), network, x, loss)
    for k in (1, 3):
        same(solve(Bptt(feedback="global", checkpoint=k), network, x, loss), expected)


@pytest.mark.parametrize("name", ["mlp", "recurrent", "dropout"])
def test_what_was_transmitted_is_all_there_and_the_mean_activity_too(name):
    network, shape = build(name)
    x = input_of("spikes", shape)
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    whole = Bptt().factors(network, x, of_logits, generator=draws[0])
    parts = Bptt(checkpoint=3).factors(network, x, of_logits, generator=draws[1])
    for path, factor in whole.synapses.items():
        ours, theirs = parts.synapses[path].transmitted, factor.transmitted
        if len(ours) == len(theirs):
            order = [row.tolist() for row in ours], [row.tolist() for row in theirs]
            assert sorted(order[0]) == sorted(order[1])
            torch.testing.assert_close(parts.synapses[path].gradient(), factor.gradient())
    assert parts.activity.keys() == whole.activity.keys()


@pytest.mark.parametrize("k", [1, 3, 5, 6, T])
def test_the_mean_activity_is_that_of_all_steps(k):
    """The last part may be shorter than the others, and counts for less."""
    network, shape = build("mlp")
    x = input_of("spikes", shape)
    expected = Bptt().factors(network, x, of_logits).activity
    found = Bptt(checkpoint=k).factors(network, x, of_logits).activity
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean, rtol=1e-12, atol=1e-14)


RANDOM = {
    "noise": SpikingMlp(hidden=(8, 7), neuron=LIF(beta=0.6, v_th=0.3, noise=0.2)),
    "escape, dropout": SpikingMlp(
        hidden=(8, 7), neuron=LIF(beta=0.6, v_th=0.3, escape=Escape()), dropout=0.3
    ),
    "recurrent noise": SpikingRecurrentNet(
        hidden=(8,), neuron=LIF(beta=0.6, v_th=0.3, noise=0.2), dropout=0.3, readout="mean_current"
    ),
}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("k", [1, 3, T])
def test_random_neurons_see_the_same_draws_again(name, k):
    """Autograd through parts that are run once, one after the other, with the same generator."""
    network = RANDOM[name].build(ONE, CLASSES).double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(3)
    x, draws, held, state, made = input_of("spikes", ONE), torch.Generator(), {}, {}, []
    draws.manual_seed(5)
    for part in torch.split(x, k):
        output = network(part, state, training=True, generator=draws, held=held)
        weight = len(part) / T if network.mean_first else 1.0
        state = output.state
        made.append(weight * output.steps)
    steps = torch.stack(made).sum(0) if network.mean_first else torch.cat(made)
    logits = network.decode(steps)
    expected = torch.autograd.grad(of_logits(logits), list(network.weights().values()))
    generator = torch.Generator().manual_seed(5)
    factors = Bptt(checkpoint=k).factors(network, x, of_logits, generator=generator)
    torch.testing.assert_close(factors.logits, logits.detach(), rtol=1e-12, atol=1e-12)
    found = form_gradients(network, factors.synapses, factors.direct)
    for path, gradient in zip(network.weights(), expected, strict=True):
        torch.testing.assert_close(found[path], gradient, rtol=1e-11, atol=1e-12)
    assert torch.equal(generator.get_state(), draws.get_state())  # drawn once, as far as one sees


def test_one_noisy_layer_draws_as_without_checkpoints():
    network = SpikingMlp(hidden=(8,), neuron=LIF(v_th=0.3, noise=0.2)).build(ONE, CLASSES).double()
    initialise(network, Seeds(3))
    x = input_of("spikes", ONE)
    expected = solve(Bptt(), network, x)
    for k in (1, 2, T):
        same(solve(Bptt(checkpoint=k), network, x), expected)


def test_it_is_pure_and_works_where_gradients_are_off():
    network, shape = build("recurrent")
    x = input_of("spikes", shape)
    weights = {n: p.detach().clone() for n, p in network.weights().items()}
    random, given = torch.get_rng_state(), x.clone()
    expected = solve(Bptt(checkpoint=3), network, x)
    with torch.no_grad():
        same(solve(Bptt(checkpoint=3), network, x), expected, tight=0)
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(p.detach(), weights[n]) for n, p in network.weights().items())
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, given)
    other = {n: 0.5 * w for n, w in weights.items()}
    same(
        solve(Bptt(checkpoint=3), network, x, weights=other),
        solve(Bptt(), network, x, weights=other),
    )


@pytest.mark.parametrize(
    "trainer", [Bptt(), Bptt(feedback="direct"), Bptt(checkpoint=3), Tbptt(steps=3)], ids=repr
)
def test_input_may_be_made_step_by_step(trainer):
    network, shape = build("mlp")
    x = input_of("spikes", shape)
    variables = trainer.variables(network, Seeds(1), x)
    expected = solve(trainer, network, x, variables=variables)
    same(solve(trainer, network, Steps(T, lambda: list(x)), variables=variables), expected)
    same(solve(trainer, network, Steps(T, lambda: (s for s in x)), variables=variables), expected)


def test_input_that_is_made_once_is_used_once():
    """No step is lost where a trainer draws what it remembers itself."""
    network, shape = build("mlp")
    x = input_of("spikes", shape)
    for trainer in (Bptt(), Bptt(checkpoint=3), Bptt(feedback="random")):
        found = trainer.factors(network, Steps(T, lambda: (s for s in x)), of_logits)
        torch.testing.assert_close(found.logits, trainer.factors(network, x, of_logits).logits)


class Live(TorchDispatchMode):
    """Notes the most bytes that tensors made here have held at one time."""

    def __init__(self):
        super().__init__()
        self.held, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.held = {key: pair for key, pair in self.held.items() if not pair[0].expired()}
        given = {storage._cdata for storage in storages(args)}
        for storage in storages((made,)):
            if storage._cdata not in self.held and storage._cdata not in given:
                self.held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return made


def storages(values):
    """Yield the storages of tensors, those in lists too."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.untyped_storage()
        elif isinstance(value, (tuple, list)):
            yield from storages(value)


def peak(trainer, network, x):
    """Return the most bytes held while parts are used and thrown away, as a learner does."""
    with Live() as live, torch.no_grad():
        for part in trainer.parts(Call(network, x, of_logits)):
            form_gradients(network, part.synapses, part.direct)
    return live.most


@pytest.mark.parametrize("kernel", ["reference", "fused"])
def test_memory_grows_with_the_square_root_of_the_steps(kernel):
    spec = SpikingMlp(hidden=(12, 12), neuron=LIF(beta=0.8, v_th=0.3))
    network = spec.build(ONE, CLASSES)
    initialise(network, Seeds(3))
    network.kernels = Kernels(scan=kernel, synapse="dense")
    plain, kept = [], []
    for root in (8, 16):
        x = (torch.rand(root**2, B, *ONE, generator=torch.Generator().manual_seed(1)) > 0.5).float()
        plain.append(peak(Bptt(), network, x))
        kept.append(peak(Bptt(checkpoint=root), network, x))
    assert 3.5 < plain[1] / plain[0] < 4.2
    assert 1.6 < kept[1] / kept[0] < 2.4
    assert kept[1] < plain[1] / 4


def test_more_steps_than_there_are_and_statistics_of_parts_are_refused():
    network, shape = build("mlp")
    x, loss = input_of("spikes", shape), CrossEntropy()
    Bptt(checkpoint=T).check(network, x, loss)
    Tbptt(steps=T).check(network, x, loss)
    with pytest.raises(PairingError, match=rf"bptt\.checkpoint.*{T + 1}.*{T}.*at most {T}"):
        Bptt(checkpoint=T + 1).check(network, x, loss)
    with pytest.raises(PairingError, match=rf"tbptt\.steps.*{T + 1}.*{T}.*at most {T}"):
        Tbptt(steps=T + 1).check(network, x, loss)
    normed = SpikingMlp(hidden=(8,), norm="batch").build(ONE, CLASSES)
    Bptt().check(normed, x, loss)
    for trainer in (Bptt(checkpoint=2), Tbptt(steps=2)):
        with pytest.raises(PairingError, match=r"'hidden1'.*norm='none'"):
            trainer.check(normed, x, loss)
