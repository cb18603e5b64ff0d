"""Every way to compute a network gives what the plain one gives, and shows nothing of itself."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from spikecl.errors import KernelError
from spikecl.kernels import Kernels, compiler, events, product
from spikecl.kernels.events import Bits, Events
from spikecl.networks import (
    BatchNorm,
    Cells,
    Conv2d,
    Dropout,
    Layer,
    Linear,
    Mlp,
    Network,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    explain,
    form_gradients,
    initialise,
)
from spikecl.networks import network as module
from spikecl.neurons import ALIF, CUBA, LIF, PLIF, LeakyIntegrator, Sigmoid, Smooth
from spikecl.neurons.neuron import leaves
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt

T, B, CLASSES = 5, 4, 3
PLAIN = Kernels(scan="reference", synapse="dense")
COMPILES = compiler.compiler() is not None
needs_compiler = pytest.mark.skipif(not COMPILES, reason="no C compiler here")
FAST = "compiled" if COMPILES else "fused"
QUICK = LIF(beta=0.6, v_th=0.3)
MAPS = {"channels": (3, 4), "kernel": 3, "neuron": QUICK}
NETWORKS = {
    "mlp": (SpikingMlp(hidden=(13, 11), neuron=QUICK, bias=True), (9,)),
    "mlp-learns": (SpikingMlp(hidden=(13, 11), neuron=PLIF(beta=0.4, v_th=0.2)), (9,)),
    "mlp-learns-each": (
        SpikingMlp(
            hidden=(13, 7), learns=("beta", "v_th", "v_reset"), per_neuron=True,
            neuron=LIF(scale_input=True, v_th=0.2, reset="value", detach_reset=False),
        ),
        (9,),
    ),
    "mlp-everything": (
        SpikingMlp(
            hidden=(23, 21), neuron=PLIF(v_th=0.1), per_neuron=True, norm="batch", dropout=0.3,
            bias=True, excitatory=0.6, readout="mean_current",
        ),
        (3, 3),
    ),
    "mlp-delays": (SpikingMlp(hidden=(13, 11), neuron=QUICK, delay=2, axonal_delay=3), (9,)),
    "mlp-standardised": (
        SpikingMlp(
            hidden=(13, 11), neuron=ALIF(v_th=0.3), learns=("beta", "rho"), standardise=True
        ),
        (9,),
    ),
    "mlp-heads": (
        SpikingMlp(hidden=(13,), neuron=QUICK, output=LIF(beta=0.9, v_th=0.2), population=3), (9,)
    ),
    "mlp-membranes": (
        SpikingMlp(hidden=(13,), neuron=CUBA(v_th=0.2), output=LeakyIntegrator(), readout="max"),
        (9,),
    ),
    "recurrent": (
        SpikingRecurrentNet(
            hidden=(13, 11), neuron=LIF(beta=0.8, v_th=0.4, refractory=1), norm="batch", delay=1
        ),
        (9,),
    ),
    "recurrent-plain": (SpikingRecurrentNet(hidden=(12,), neuron=QUICK, excitatory=0.7), (9,)),
    "conv": (SpikingConvNet(**MAPS, hidden=(7,), bias=True, pool="average"), (10, 10, 2)),
    "conv-norm": (
        SpikingConvNet(**MAPS, norm="batch", dropout=0.2, delay=1, hidden=(6,)), (10, 10)
    ),
    "resnet": (SpikingResNet(width=3, blocks=(1, 1), neuron=PLIF(v_th=0.3)), (6, 5)),
    "resnet-plain": (SpikingResNet(width=3, blocks=(2,), neuron=QUICK, norm="none"), (6, 5, 2)),
}  # fmt: skip
networks = pytest.mark.parametrize("name", NETWORKS)
INPUTS = ["graded", "spikes", "static", "one step"]
inputs = pytest.mark.parametrize("kind", INPUTS)


@pytest.fixture
def eager(monkeypatch):
    """Look at the density of everything, and take events for what is less than half full."""
    for name, value in (("SMALLEST", 1), ("SEARCH", 0.0), ("TURN", 0.0), ("ADD_STOCK", 2.0)):
        monkeypatch.setattr(events, name, value)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(name, **changes):
    """Return a network in float64 whose layers fire, and the shape of its input."""
    spec, shape = NETWORKS[name]
    network = replace(spec, **changes).build(shape, CLASSES).double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(3)
    return network, shape


def input_of(kind, shape, steps=T):
    x = draw(steps, B, *shape)
    if kind == "spikes":
        return (x > 0.6).double()
    if kind == "static":
        return x[:1].expand(steps, *x.shape[1:])
    return x[:1] if kind == "one step" else x


def loss_of(logits):
    return functional.cross_entropy(2 * logits, torch.arange(len(logits)) % CLASSES)


def solve(network, x, kernels, *, training=True, state=None):
    """Return all that comes out of a pass, of a trainer, and of autograd, by name."""
    network.kernels = kernels
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    factors = Bptt().factors(
        network, x, loss_of, state=state, generator=draws[0], training=training
    )
    gradients = form_gradients(network, factors.synapses, factors.direct)
    output = network(x, state, generator=draws[1], training=training)
    weights = {n: p for n, p in network.weights().items() if p.requires_grad}
    direct = torch.autograd.grad(loss_of(output.logits), list(weights.values()), allow_unused=True)
    found = {"logits": factors.logits, "again": output.logits.detach(), "steps": output.steps}
    for end, result in (("", factors), (" again", output)):
        for path, part in result.state.items():
            found |= {f"state {path} {k}{end}": t for k, t in enumerate(leaves(part))}
        found |= {f"statistics {key}{end}": t for key, t in result.statistics.items()}
    for path, factor in factors.synapses.items():
        found |= {f"{path} {k}": getattr(factor, k) for k in ("x", "delta", "transmitted")}
    for (name, weight), gradient in zip(weights.items(), direct, strict=True):
        none = torch.zeros_like(weight)  # nothing depends on it, or a kernel says so with zeros
        found[f"gradient {name}"] = gradients.get(name, none)
        found[f"autograd {name}"] = none if gradient is None else gradient
        close(found[f"gradient {name}"], found[f"autograd {name}"], 1e-7, name)
    return {name: tensor.detach() for name, tensor in found.items()}


def close(a, b, tight, name):
    a, b = a.detach(), b.detach()
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    torch.testing.assert_close(
        a, b, rtol=tight, atol=tight * scale, msg=lambda text: f"{name}: {text}"
    )


def assert_same(ours, expected, tight=1e-10):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        close(ours[name], tensor, tight, name)


def assert_alike(ours, expected, share):
    """Check gradients and errors as a whole: off by a small share of their size."""
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        off = float((ours[name] - tensor).norm())
        assert off <= share * float(tensor.norm()) + 1e-9, name


def taps_of(network, x, kernels, **options):
    network.kernels = kernels
    taps = {}
    output = network(x, taps=taps, generator=torch.Generator().manual_seed(5), **options)
    return taps, output


# Every option, every network

OPTIONS = {
    "fused": Kernels(scan="fused", synapse="dense"),
    "compiled": Kernels(scan="compiled", synapse="dense"),
    "events": Kernels(scan="reference", synapse="events"),
    "auto": Kernels(),
    "chunk": Kernels(chunk=3),
    "all": Kernels(scan=FAST, synapse="events", chunk=3),
}
options = pytest.mark.parametrize(
    "option", [pytest.param(n, marks=needs_compiler if n == "compiled" else ()) for n in OPTIONS]
)


@networks
@inputs
@options
@pytest.mark.usefixtures("eager")
def test_every_way_gives_the_same(name, kind, option):
    network, shape = build(name)
    x = input_of(kind, shape)
    expected = solve(network, x, PLAIN)
    assert_same(solve(network, x, OPTIONS[option]), expected)


@networks
@pytest.mark.usefixtures("eager")
def test_every_way_gives_the_same_from_a_state_and_outside_of_training(name):
    network, shape = build(name)
    x = input_of("spikes", shape, 2 * T)
    network.kernels = PLAIN
    with torch.no_grad():
        state = network(x[:T]).state
    held = [part.clone() for k in state for part in leaves(state[k])]
    expected = solve(network, x[T:], PLAIN, training=False, state=state)
    fresh = solve(network, x[T:], PLAIN, training=False)
    assert any(not torch.equal(fresh[k], expected[k]) for k in expected)
    for option in OPTIONS.values():
        if option.scan == "compiled" and not COMPILES:
            continue
        ours = solve(network, x[T:], option, training=False, state=state)
        assert_same(ours, expected)
    now = [part for k in state for part in leaves(state[k])]
    assert all(torch.equal(a, b) for a, b in zip(now, held, strict=True))


@networks
def test_the_problems_are_no_trivial_ones(name):
    """Layers fire, not always; every parameter has a gradient; spikes are kept as events."""
    network, shape = build(name)
    found = solve(network, input_of("spikes", shape), PLAIN)
    for key, tensor in found.items():
        shifted = "everything" in name and key.endswith("bias") and "readout" not in key
        if key.startswith("gradient ") and "delay" not in key and not shifted:  # by the norm
            assert bool(tensor.any()), key
        if key.endswith(" x") and "conv" not in key:
            assert 0.01 < float((tensor != 0).double().mean()) <= 1, key
    taps, _ = taps_of(network, input_of("spikes", shape), Kernels(synapse="events"), training=True)
    for path, synapse in network.synapses.items():
        assert isinstance(taps[path].kept, Events) == (not isinstance(synapse, Conv2d))


@pytest.mark.parametrize("name", ["mlp", "mlp-everything", "recurrent"])
def test_the_choice_by_density_is_a_choice(name, eager):
    network, shape = build(name)
    for kind, sparse in (("graded", False), ("spikes", True)):
        taps, _ = taps_of(network, input_of(kind, shape), Kernels(), training=True)
        assert isinstance(taps["hidden1"].kept, Events) == sparse
    kinds = {type(tap.kept) for tap in taps.values()}
    assert Events in kinds


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("name", ["mlp", "mlp-delays", "recurrent", "conv"])
def test_events_without_a_library(name, stock, monkeypatch, eager):
    network, shape = build(name)
    x = input_of("spikes", shape)
    expected = solve(network, x, PLAIN)
    if stock:
        monkeypatch.setattr(events, "_library", lambda *types: None)
    for synapse in ("events", "auto"):
        assert_same(solve(network, x, Kernels(scan="fused", synapse=synapse)), expected)


# Memory and precision


@networks
@pytest.mark.parametrize("synapse", ["dense", "events", "auto"])
def test_lean_memory_is_right_to_a_percent(name, synapse):
    network, shape = build(name)
    x = input_of("spikes", shape)
    expected = solve(network, x, PLAIN)
    ours = solve(network, x, Kernels(synapse=synapse, memory="lean"))
    exact = ("logits", "again", "steps", "state", "statistics")
    for key in expected:
        if key.startswith(exact) or key.endswith((" x", " transmitted")):
            close(ours[key], expected[key], 1e-10, key)
    assert_alike(ours, expected, 0.01)
    if "mlp" in name:
        assert any(
            not torch.equal(ours[k], expected[k]) for k in expected if k.startswith("gradient")
        )


GRADED = ("mlp-everything", "mlp-delays")  # dropout scales spikes, a delay spreads them


@networks
def test_lean_memory_keeps_spikes_as_bits(name):
    network, shape = build(name)
    kernels = Kernels(synapse="dense", memory="lean")
    taps, _ = taps_of(network, input_of("spikes", shape), kernels, training=True)
    expected, _ = taps_of(network, input_of("spikes", shape), PLAIN, training=True)
    kinds = set()
    for path, tap in taps.items():
        assert torch.equal(tap.rows, expected[path].rows)
        spikes = bool(((tap.rows == 0) | (tap.rows == 1)).all())
        kinds.add(type(tap.kept))
        first = path == next(iter(taps)) and not network.layers[path].before
        assert isinstance(tap.kept, Bits) == (spikes and not first), path  # held by the caller
    assert (Bits in kinds) == (name not in GRADED)


@networks
def test_large_spikes_are_kept_as_bits_of_their_own_accord(name, monkeypatch):
    network, shape = build(name)
    x = input_of("spikes", shape)
    expected = solve(network, x, PLAIN)
    monkeypatch.setattr(product, "LARGE", 1)
    kernels = Kernels(synapse="dense")
    found = {type(tap.kept) for tap in taps_of(network, x, kernels)[0].values()}
    assert (Bits in found) == (name != "mlp-delays")
    assert_same(solve(network, x, kernels), expected)


SMOOTH = LIF(beta=0.6, v_th=0.3, surrogate=Smooth(of=Sigmoid(slope=1.0)), detach_reset=False)


@pytest.mark.parametrize("name", ["mlp", "mlp-delays", "recurrent-plain", "conv", "resnet-plain"])
def test_bfloat16_is_right_to_two_percent(name):
    """Of neurons that do not jump: a spike that tips is no error of rounding."""
    network, shape = build(name, neuron=SMOOTH)
    x = input_of("spikes", shape)
    expected = solve_directly(network, x, PLAIN)
    ours = solve_directly(network, x, replace(PLAIN, precision="bfloat16"))
    assert_alike(ours, expected, 0.02)
    assert not torch.equal(ours["logits"], expected["logits"])
    assert all(tensor.dtype is torch.float64 for tensor in ours.values())


def solve_directly(network, x, kernels):
    network.kernels = kernels
    output = network(x, training=True)
    weights = {n: p for n, p in network.weights().items() if "delay" not in n}
    found = torch.autograd.grad(loss_of(output.logits), list(weights.values()))
    return {"logits": output.logits.detach(), **dict(zip(weights, found))}


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_products_in_bfloat16_are_those_of_torch(name):
    network, shape = build(name)
    x = input_of("spikes", shape)
    network.kernels = Kernels(synapse="dense", precision="bfloat16")
    current = torch.tensor(
        network.record(x, variables=["current"])[module_first(network)]["current"]
    )
    weights = network.weights()
    first = module_first(network)
    weight, bias = (weights[f"{first}.{k}"].detach().bfloat16() for k in ("weight", "bias"))
    if name == "mlp":
        expected = functional.linear(x.bfloat16(), weight, bias)
    else:
        maps = x.movedim(-1, 2).flatten(0, 1).bfloat16()
        expected = functional.conv2d(maps, weight, bias).unflatten(0, (T, B))
    assert torch.equal(current, expected.double())


def module_first(network):
    return next(iter(network.layers))


# Chunks


@pytest.mark.parametrize("chunk", [1, 3, 19, 20, 21])
@pytest.mark.parametrize("name", ["conv", "conv-norm", "resnet"])
def test_a_convolution_in_parts(name, chunk, monkeypatch):
    network, shape = build(name)
    x = input_of("graded", shape)
    expected = solve(network, x, PLAIN)
    sizes, conv2d = [], functional.conv2d
    monkeypatch.setattr(
        functional, "conv2d", lambda part, *a, **k: sizes.append(len(part)) or conv2d(part, *a, **k)
    )
    ours = solve(network, x, replace(PLAIN, chunk=chunk))
    assert max(sizes) == min(chunk, T * B)
    assert_same(ours, expected)


# Parts in time


class Sizes(TorchDispatchMode):
    """Notes the largest tensor that anything makes, views of the input aside."""

    def __init__(self, x):
        super().__init__()
        self.largest, self.given = 0, x.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(part, torch.Tensor) and part.untyped_storage().data_ptr() != self.given:
                self.largest = max(self.largest, part.untyped_storage().nbytes())
        return made


@networks
@inputs
@pytest.mark.parametrize("steps", [1, 3, 2 * T - 1, 2 * T, 99])
def test_an_answer_in_parts(name, kind, steps):
    network, shape = build(name)
    x = input_of(kind, shape, 2 * T)
    network.kernels = PLAIN
    with torch.no_grad():
        state = network(x[:T]).state
    whole = solve(network, x, PLAIN, training=False, state=state)
    parts = solve(network, x, replace(PLAIN, steps=steps), training=False, state=state)
    assert_same(parts, whole)  # autograd of the parts, too


def test_parts_are_as_small_as_asked():
    network, shape = build("mlp")
    largest = []
    for length in (400, 800):  # so that weights are smaller
        x = input_of("spikes", shape, length)
        for steps in (0, 4):
            network.kernels = replace(PLAIN, steps=steps)
            with torch.no_grad(), Sizes(x) as sizes:
                network(x)
            largest.append(sizes.largest)
    whole, part, longer, same = largest
    assert longer == 2 * whole and same == part < whole


def test_training_and_records_are_not_cut():
    network, shape = build("recurrent")
    x = input_of("spikes", shape)
    kernels = replace(PLAIN, steps=2)
    assert_same(solve(network, x, kernels), solve(network, x, PLAIN))
    network.kernels = kernels
    recording = network.record(x)
    assert all(len(trace) == T for found in recording.traces.values() for trace in found.values())


# Taps


@contextmanager
def currents_watched(monkeypatch):
    """Collect weak references to the memory of each current that is tapped."""
    seen, tapped = [], module.tapped

    def watch(kept, current):
        tap, current = tapped(kept, current)
        seen.append(StorageWeakRef(current.untyped_storage()))
        return tap, current

    with monkeypatch.context() as patch:
        patch.setattr(module, "tapped", watch)
        yield seen


@pytest.mark.parametrize("name", ["mlp", "recurrent-plain", "mlp-delays", "mlp-membranes"])
@pytest.mark.parametrize("scan", ["fused", pytest.param("compiled", marks=needs_compiler)])
def test_taps_hold_no_current(name, scan, monkeypatch):
    """Nor does the graph, where spikes are kept as events: only tapes are left."""
    network, shape = build(name)
    monkeypatch.setattr("spikecl.networks.tap.LARGE", 0)
    kernels = Kernels(scan=scan, synapse="events")
    with currents_watched(monkeypatch) as seen:
        taps, output = taps_of(network, input_of("spikes", shape), kernels)
    logits = output.logits
    del output
    hidden = [w for w, path in zip(seen, taps, strict=True) if not path.startswith("readout")]
    assert hidden
    assert all(current.expired() for current in hidden)
    edges = [tap.edge for tap in taps.values()]
    found = torch.autograd.grad(loss_of(logits), edges, allow_unused=True)
    for tap, delta in zip(taps.values(), found, strict=True):
        assert delta is None or delta.shape == tap.shape
        assert tap.no_error().shape == tap.shape


def test_a_tap_alone_holds_its_rows_and_nothing_else(monkeypatch):
    for kernels in (PLAIN, Kernels(), Kernels(synapse="events"), Kernels(memory="lean")):
        network, shape = build("mlp")
        with currents_watched(monkeypatch) as seen:
            taps, output = taps_of(network, input_of("spikes", shape), kernels)
        del output
        places = {tap.rows.untyped_storage().data_ptr() for tap in taps.values()}
        alive = [not w.expired() for w in seen]
        assert not alive[-1] or kernels.scan == "reference"
        assert len(places) == len(taps)


@networks
@pytest.mark.parametrize(
    "kernels",
    [Kernels(synapse="events"), Kernels(synapse="dense", memory="lean"), Kernels(synapse="dense")],
    ids=["events", "bits", "dense"],
)
def test_the_rows_of_a_tap_are_what_the_synapse_saw(name, kernels, monkeypatch):
    network, shape = build(name)
    seen = {}
    for path, synapse in network.synapses.items():
        rows = synapse.rows

        def look(x, path=path, rows=rows):
            seen[path] = rows(x).detach().clone()
            return rows(x)

        monkeypatch.setattr(synapse, "rows", look, raising=False)
    taps, _ = taps_of(network, input_of("spikes", shape), kernels, training=True)
    for path, tap in taps.items():
        if path in seen:
            assert torch.equal(tap.rows, seen[path]), path
            assert tap.rows.dtype == tap.dtype == torch.float64
            assert tap.shape[0] == len(tap.rows)
    assert len(seen) == len(network.layers)


@pytest.mark.parametrize("synapse", ["dense", "events"])
@pytest.mark.parametrize("memory", ["full", "lean"])
def test_the_rows_of_recurrent_synapses_are_the_spikes_one_step_earlier(synapse, memory):
    network, shape = build("recurrent-plain")
    x = input_of("graded", shape)
    kernels = Kernels(synapse=synapse, memory=memory)
    spikes = torch.tensor(network.record(x)["hidden1"]["spikes"])
    taps, _ = taps_of(network, x, kernels)
    sent = taps["hidden1.recurrent"].rows.view(T, B, -1)
    assert torch.equal(sent[1:], spikes[:-1])
    assert not sent[0].any()
    first = network(x[:2]).state
    taps, _ = taps_of(network, x[2:], kernels, state=first)
    assert torch.equal(taps["hidden1.recurrent"].rows.view(T - 2, B, -1), spikes[1:-1])


# Nobody sees how it is done

EVERY = [
    pytest.param(
        Kernels(scan=scan, synapse=synapse),
        marks=needs_compiler if scan == "compiled" else (),
        id=f"{scan}-{synapse}",
    )
    for scan in ("reference", "fused", "compiled")
    for synapse in ("dense", "events")
]
every_kernel = pytest.mark.parametrize("kernels", EVERY)


@networks
@every_kernel
def test_the_input_is_left_alone_and_may_be_used_again(name, kernels):
    network, shape = build(name)
    network.kernels = kernels
    wide = draw(2 * T, B, *shape)
    for x in (
        wide[:T], wide[::2], wide[:1].expand(T, *wide.shape[1:]), wide[:1], wide[:, :1],
        wide.transpose(0, 1)[:B].transpose(0, 1), (wide > 0).double(),
    ):  # fmt: skip
        before = wide.clone()
        held = x.clone()
        with torch.no_grad():
            quiet = network(x)
        first, second = network(x), network(x)
        taps = {}
        tapped = network(x, taps=taps)
        assert torch.equal(wide, before)
        assert torch.equal(x, held)
        for other in (quiet, second, tapped):
            close(other.logits, first.logits, 1e-12, "logits")
        fresh = network(x.clone(memory_format=torch.contiguous_format))
        close(fresh.logits, first.logits, 1e-10, "a copy")


@networks
@every_kernel
def test_an_input_that_learns_is_left_alone(name, kernels):
    network, shape = build(name)
    found = []
    for run in (PLAIN, kernels):
        network.kernels = run
        x = input_of("graded", shape).requires_grad_()
        scaled = 1.0 * x
        held = scaled.detach().clone()
        (gradient,) = torch.autograd.grad(loss_of(network(scaled).logits), x)
        assert torch.equal(scaled, held)
        found.append(gradient)
    assert bool(found[0].any())
    close(*found, 1e-10, "gradient of the input")


@networks
@every_kernel
def test_what_is_recorded_is_what_happened(name, kernels):
    """Of all layers, step by step, and of one while the others run in one go."""
    network, shape = build(name)
    x = input_of("spikes", shape)
    network.kernels = PLAIN
    expected = network.record(x)
    currents = network.record(x, variables=["current"])
    network.kernels = kernels
    for layers in (None, *([layer] for layer in expected)):
        found = network.record(x, layers=layers)
        also = network.record(x, layers=layers, variables=["current"])
        for layer in found:
            for variable, values in found[layer].items():
                close(torch.tensor(values), torch.tensor(expected[layer][variable]), 1e-10, layer)
            close(*(torch.tensor(r[layer]["current"]) for r in (also, currents)), 1e-10, layer)
    assert layers == [list(expected)[-1]]


@networks
@every_kernel
def test_a_state_shares_no_memory_with_anything(name, kernels):
    network, shape = build(name)
    x = input_of("spikes", shape)
    taps, output = taps_of(network, x, kernels, training=True)
    rows = {path: tap.rows.clone() for path, tap in taps.items()}
    logits, steps, held = output.logits.detach().clone(), output.steps.detach().clone(), x.clone()
    parts = [part for state in output.state.values() for part in leaves(state)]
    assert parts
    edges = [tap.edge for tap in taps.values()]
    find = dict(retain_graph=True, allow_unused=True)
    before = torch.autograd.grad(loss_of(output.logits), edges, **find)
    with torch.no_grad():
        copies = [part.clone() for part in parts]
        for k, part in enumerate(parts):
            part.detach().fill_(7.0)
            assert all(torch.equal(a, b) for a, b in zip(parts[k + 1 :], copies[k + 1 :]))
    assert all(torch.equal(tap.rows, rows[path]) for path, tap in taps.items())
    assert torch.equal(output.logits.detach(), logits)
    assert torch.equal(output.steps.detach(), steps)
    assert torch.equal(x, held)
    assert len(before) == len(taps)


@every_kernel
@pytest.mark.parametrize("normed", [False, True])
def test_currents_that_two_layers_listen_to(kernels, normed):
    """Linear layers that are a source, a shortcut, and both; neurons behind and beside them."""
    network = Network(
        {
            "side": Layer(Linear(6, 8), None, inputs=("input",)),
            "a": Layer(Linear(6, 8), Cells(QUICK), inputs=("input",)),
            "b": Layer(Linear(8, 8), Cells(QUICK), inputs=("side",), currents=("a", "side")),
            "c": Layer(
                Linear(8, 8), Cells(QUICK), inputs=("side",), norm=BatchNorm(8) if normed else None
            ),
            "d": Layer(
                Linear(8, 8, bias=True), Cells(QUICK), inputs=("a", "b", "side"),
                before={"drop": Dropout(0.2)}, recurrent=Linear(8, 8),
            ),
            "e": Layer(Linear(8, 8), Cells(QUICK), inputs=("d",), currents=("side",)),
            "out": Layer(Linear(8, 3), None, inputs=("a", "b", "c", "d", "e"), currents=()),
        }
    ).double()  # fmt: skip
    initialise(network, Seeds(1))
    for kind in INPUTS:
        x = 3 * input_of(kind, (6,))
        assert_same(solve(network, x, kernels), solve(network, x, PLAIN))


@pytest.mark.parametrize("threads", [1, 2])
def test_two_networks_at_the_same_array_do_not_meet(threads):
    x = input_of("spikes", (9,))
    (a, _), (b, _) = build("mlp"), build("recurrent-plain")
    expected = a(x).logits, b(x).logits
    stacked = a(x), b(x), a(x), b(x)
    for k, output in enumerate(stacked):
        assert torch.equal(output.logits, expected[k % 2])


# What is said about it


@networks
@every_kernel
def test_explain_says_what_runs(name, kernels):
    network, shape = build(name)
    x = input_of("spikes", shape)
    network.kernels = kernels
    taps, _ = taps_of(network, x, kernels)
    for plan in explain(network, x):
        tap, layer = taps[plan.layer], network.layers[plan.layer]
        assert plan.rows == len(tap.rows)
        assert plan.density == pytest.approx(float((tap.rows != 0).double().mean()), abs=1e-6)
        if isinstance(tap.kept, Events):
            assert plan.synapse.endswith(f" of {int((tap.rows != 0).sum())} events")
            assert plan.density == pytest.approx(tap.kept.density, abs=1e-6)
        else:
            assert "events" not in plan.synapse
        assert ("events" in plan.synapse) == (
            kernels.synapse == "events" and isinstance(layer.synapse, Linear)
        )
        assert ("convolution" in plan.synapse) == isinstance(layer.synapse, Conv2d)
        assert plan.kernel == ("linear" if layer.neuron is None else kernels.scan)
        assert plan.reason == ("asked for" if layer.neuron is not None else plan.reason) != ""


def test_explain_gives_the_reason_of_a_choice(monkeypatch):
    network, shape = build("mlp")
    x = input_of("spikes", shape)
    assert [p.kernel for p in explain(network, x)] == [FAST, FAST, "linear"]
    assert "one autograd node" in explain(network, x)[0].reason
    noisy, _ = build("mlp", neuron=LIF(noise=0.1))
    assert [p.kernel for p in explain(noisy, x)] == ["reference", "reference", "linear"]
    assert explain(noisy, x)[0].reason == "LIF draws random numbers"
    half = network.bfloat16()
    plans = explain(half, x.bfloat16())
    assert [p.kernel for p in plans] == ["fused", "fused", "linear"]
    assert "not compiled: the input is torch.bfloat16" in plans[0].reason
    twin = Mlp(hidden=(8,)).build((9,), 3)
    assert [p.kernel for p in explain(twin, torch.rand(2, 3, 9))] == ["relu", "linear"]


@pytest.mark.parametrize("name", ["fused", "compiled", "inductor", "triton"])
def test_a_kernel_that_cannot_run_is_refused_by_name(name):
    network, shape = build("mlp", neuron=LIF(noise=0.1))
    network.kernels = Kernels(scan=name)
    x = input_of("spikes", shape)
    for run in (
        lambda: network(x, generator=torch.Generator()),
        lambda: explain(network, x),
        lambda: network.record(x, generator=torch.Generator()),
        lambda: Bptt().factors(network, x, loss_of, generator=torch.Generator()),
    ):
        with pytest.raises(KernelError, match=f"kernel '{name}' cannot run here: LIF draws"):
            run()
    network.kernels = Kernels()
    network(x, generator=torch.Generator())


def test_events_in_half_precision_are_refused():
    network, shape = build("mlp")
    network = network.bfloat16()
    x = input_of("spikes", shape).bfloat16()
    network.kernels = Kernels(synapse="events")
    with pytest.raises(KernelError, match="synapse='events' cannot run here: rows are torch.bf"):
        network(x)
    network.kernels = Kernels()
    assert network(x).logits.dtype is torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_triton_is_refused_on_a_cpu(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    network, shape = build(name)
    network.kernels = Kernels(scan="triton")
    with pytest.raises(KernelError, match="kernel 'triton' cannot run here: .*reference, fused"):
        network(input_of("spikes", shape))
