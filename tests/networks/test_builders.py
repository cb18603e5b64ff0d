"""What every registered builder does, and that each option does what it says."""

import pytest
import torch
from torch.nn import functional

from spikecl.components import from_table, to_table
from spikecl.errors import ConfigError
from spikecl.networks import (
    AxonalDelay,
    BatchNorm,
    Binarise,
    Conv2d,
    Dale,
    Dropout,
    Gain,
    Linear,
    NoAutapses,
    Plasticity,
    ShortTermPlasticity,
    SplitSigns,
    Standardise,
    SynapticDelays,
    TimeWindow,
    explain,
    form_gradients,
    initialise,
)
from spikecl.networks.network import count_parameters
from spikecl.neurons import LIF, MODELS, PLIF, ConductanceLIF, Rectified
from spikecl.optim import Sgd
from spikecl.registry import NETWORKS
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt


def loss_of(case):
    return lambda z: functional.cross_entropy(2 * z, case.labels(len(z)))


def kinds(synapse):
    return [type(each) for each in synapse.maps]


def hidden_layers(network):
    return {name: layer for name, layer in list(network.layers.items())[:-1]}


# ---- conformance --------------------------------------------------------------------------------


def test_it_builds_and_learns(case):
    """One step on each parameter, and ten that lower the loss."""
    network, x = case.network(bias=True), case.inputs()
    logits = network(x).logits
    assert logits.shape == (4, 3) and logits.dtype == torch.float64
    normed = {name for name, layer in network.layers.items() if layer.norm is not None}
    idle = {f"{name}.bias" for name in normed}  # a norm takes a bias out again
    running, losses = Sgd(lr=0.05).start(network.weights()), []
    start = {n: p.detach().clone() for n, p in network.weights().items()}
    for step in range(10):
        factors = Bptt().factors(network, x, loss_of(case))
        losses.append(float(factors.loss))
        gradients = form_gradients(network, factors.synapses, factors.direct)
        assert sorted(gradients) == sorted(start)
        for name, gradient in gradients.items():
            assert gradient.shape == start[name].shape
            assert step or bool(gradient.abs().max() > 1e-9) or name in idle, name
        with torch.no_grad():
            running.step(gradients)
    assert all(n in idle or not torch.equal(p, start[n]) for n, p in network.weights().items())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", [n for n in NETWORKS.names() if n.startswith("spiking")])
def test_all_spiking_layers_fire_and_none_at_every_step(cases, name):
    """Otherwise nothing in this file says much."""
    case = cases(name)
    for name, traces in case.network().record(case.inputs()).items():
        assert 0.01 < traces["spikes"].mean() < 0.9, name
        assert set(traces["spikes"].ravel()) == {0.0, 1.0}


def test_the_twin_has_the_same_synapses(case):
    network, twin = (c.network() for c in (case, case.twin()))
    assert {n: p.shape for n, p in network.weights().items()} == {
        n: p.shape for n, p in twin.weights().items()
    }
    for name, weight in network.weights().items():
        assert torch.equal(weight, twin.weights()[name])  # and starts alike
    assert network.is_spiking == case.spiking and twin.is_spiking != case.spiking
    units = {type(layer.neuron.neuron) for layer in network.layers.values() if layer.neuron}
    assert units == {LIF if case.spiking else Rectified}


def test_its_description_goes_round(case):
    options = {"bias": True, "dropout": 0.25, "delay": 3, "head": "multi", "readout": "max"}
    options |= {"neuron": PLIF(v_th=0.7), "per_neuron": True, "output": LIF(beta=0.2)}
    options |= {"axonal_delay": 2, "readout": "mean_current", "population": 2}
    options |= {"stp": Plasticity(release=0.2)} if case.spiking else {}
    if "resnet" in case.name:
        del options["delay"], options["axonal_delay"]
    for spec in (case.spec(), case.spec(**options)):
        table = to_table(spec)
        again = from_table(type(spec), table, "network")
        assert again == spec and to_table(again) == table
        made, other = (s.build(case.shape, 3) for s in (spec, again))
        assert [n for n in made.weights()] == [n for n in other.weights()]
    assert case.spec() != case.spec(bias=True)
    assert NETWORKS.name_of(type(spec)) == case.name


def test_building_and_initialising_draw_from_the_seed_alone(case):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    network = case.spec(bias=True).build(case.shape, 3)
    for name, p in network.weights().items():
        assert not p.any() or name.endswith("gain")
    a, b, c = (case.network(seed=seed).weights() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name in a:
        assert torch.equal(a[name], b[name])
        assert torch.equal(a[name], c[name]) == (".norm." in name)


def test_its_layers_start_independently_of_each_other(case):
    """Another number of classes changes the readout alone; twice the seed, twice the weights."""
    a, b = case.spec().build(case.shape, 3), case.spec().build(case.shape, 5)
    for network in (a, b):
        initialise(network, Seeds(0))
    for name in a.weights():
        same = torch.equal(a.weights()[name], b.weights()[name])
        assert same != name.startswith("readout"), name
    drawn = [w.flatten()[:4].tolist() for n, w in a.weights().items() if n.endswith("weight")]
    assert len({tuple(row) for row in drawn}) == len(drawn)


def test_the_plan_is_that_of_a_pass(case):
    network, x = case.network(), case.inputs()
    for batch in (x, x[0].expand(5, *x.shape[1:]), x[:1]):
        taps = {}
        network(batch, taps=taps)
        plans = explain(network, batch)
        assert [p.layer for p in plans] == list(network.layers)
        for plan in plans:
            layer = network.layers[plan.layer]
            assert plan.rows == len(taps[plan.layer].rows)
            word = "convolution" if isinstance(layer.synapse, Conv2d) else "product"
            assert plan.synapse.startswith(f"one {word} ")
            if layer.neuron is None:
                assert plan.kernel == "linear"
            elif not case.spiking and layer.recurrent is None:
                assert plan.kernel == "relu"
            else:
                assert plan.kernel in ("compiled", "fused")
            assert 0 <= plan.density <= 1
            assert plan.reason


def test_names_and_shapes_stay(case):
    """Checkpoints rest on them: synapses in order, then norms and neurons."""
    network = case.network(neuron=PLIF(), bias=True)
    names = list(network.weights())
    synapses = [
        f"{path}.{key}" for path, s in network.synapses.items() for key, _ in s.named_parameters()
    ]
    direct = [n for n in names if n not in synapses]
    assert names == synapses + direct
    assert names[0].endswith(".weight") and names[-1].endswith("neuron.beta")
    assert all(part in ("norm", "neuron") for part in (n.split(".")[1] for n in direct))
    assert len(names) == len({id(p) for p in network.parameters()})
    assert len(names) == len({id(p) for p in network.weights().values()})
    assert count_parameters(network) == sum(p.numel() for p in network.parameters())
    statistics = list(network.statistics())
    assert statistics == [n.replace("gain", key) for n in names if n.endswith("norm.gain")
                          for key in ("mean", "variance")]  # fmt: skip


def test_a_state_dict_makes_the_same_network(case):
    neuron = PLIF(v_th=0.2)
    network, x = case.network(neuron=neuron, seed=1), case.inputs()
    network.set_statistics(network(x, training=True).statistics)
    other = case.network(neuron=neuron, seed=2)
    assert not torch.equal(other(x).logits, network(x).logits)
    other.load_state_dict({k: v.clone() for k, v in network.state_dict().items()})
    assert torch.equal(other(x).logits, network(x).logits)


def test_it_runs_in_either_precision(case):
    network, x = case.network(neuron=PLIF(v_th=0.2)), case.inputs()
    double = network(x).logits.detach()
    single = network.float()(x.float()).logits.detach()
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert all(p.dtype == torch.float32 for p in network.weights().values())
    # a spike may fall on the other side of the threshold; most do not
    assert float((single - double).abs().mean()) < 0.2 * float(double.abs().mean())


# ---- options ------------------------------------------------------------------------------------


def test_bias(case):
    plain, biased = case.network(), case.network(bias=True)
    assert not any(n.endswith("bias") for n in plain.weights())
    for path, synapse in biased.synapses.items():
        added_to_another = path.endswith(("recurrent", "shortcut"))
        assert (synapse.bias is None) == added_to_another
        if synapse.bias is not None:
            assert synapse.bias.shape == (len(synapse.weight),) and bool(synapse.bias.any())
    assert not torch.allclose(plain(case.inputs()).logits, biased(case.inputs()).logits)


def test_norm(case):
    for choice, kind in (("none", type(None)), ("batch", BatchNorm)):
        network = case.network(norm=choice)
        assert all(isinstance(layer.norm, kind) for layer in hidden_layers(network).values())
        assert list(network.layers.values())[-1].norm is None
        for layer in hidden_layers(network).values():
            assert layer.norm is None or len(layer.norm.gain) == len(layer.synapse.weight)
    assert bool(network(case.inputs(), training=True).statistics)
    assert not network(case.inputs()).statistics


@pytest.mark.parametrize("binary", ["fixed", "rows"])
def test_binary(case, binary):
    """Every synapse: hidden, recurrent, shortcuts and the readout."""
    network = case.network(binary=binary, gain=2.0)
    for name, synapse in network.synapses.items():
        assert isinstance(synapse.maps[0], Binarise) and synapse.maps[0].rows == (binary == "rows")
        with torch.no_grad():
            weight = synapse.effective(dict(synapse.named_parameters()))
        size = synapse.weight[0].numel() ** -0.5 * (2.0 if name != "readout" else 1.0)
        sizes = weight.abs().unique()
        expected = [0.0, size] if name.endswith("recurrent") else [size]
        assert sizes.tolist() == pytest.approx(expected)
        assert ("gain" in dict(synapse.named_parameters())) == (binary == "rows")
    with pytest.raises(ConfigError, match="Binarise and Standardise"):
        case.network(binary=binary, standardise=True)
    with pytest.raises(ConfigError, match="Binarise and Dale"):
        case.network(binary=binary, excitatory=0.7)


@pytest.mark.parametrize("binary", ["fixed", "rows"])
def test_binary_networks_learn(case, binary):
    network, x = case.network(binary=binary, bias=True, norm="batch"), case.inputs()
    running, losses = Sgd(lr=0.3).start(network.weights()), []
    start = {n: p.detach().clone() for n, p in network.weights().items()}
    for _ in range(30):
        factors = Bptt().factors(network, x, loss_of(case))
        losses.append(float(factors.loss))
        with torch.no_grad():
            running.step(form_gradients(network, factors.synapses, factors.direct))
    assert min(losses[-5:]) < losses[0]
    flips = sum(int((network.weights()[n] * w < 0).sum()) for n, w in start.items() if w.dim() > 1)
    assert flips


def test_standardise(case):
    network = case.network(standardise=True)
    for path, synapse in network.synapses.items():
        wanted = path != "readout" and not path.endswith("recurrent")
        assert (Standardise in kinds(synapse)) == wanted
    first = next(iter(network.synapses.values()))
    before = network(case.inputs()).logits
    with torch.no_grad():
        first.weight.mul_(7).add_(0.3)  # a standardised weight does not notice
    torch.testing.assert_close(network(case.inputs()).logits, before, rtol=1e-6, atol=1e-8)


def test_gain(case):
    """A fixed factor of every weight into a hidden layer; what is stored keeps its size."""
    plain, scaled = case.network(norm="none"), case.network(norm="none", gain=40.0)
    for path, synapse in scaled.synapses.items():
        assert (Gain(factor=40.0) in synapse.maps) == (path != "readout")
        assert torch.equal(synapse.weight, plain.synapses[path].weight)
    given = {
        n: p.detach() * (1 if n.startswith("readout") else 40.0) for n, p in plain.weights().items()
    }
    x = case.inputs() / 40  # so that not every neuron fires at every step
    torch.testing.assert_close(scaled(x).logits, plain(x, weights=given).logits)
    assert not torch.allclose(scaled(x).logits, plain(x).logits)


def test_excitatory(case):
    network = case.network(excitatory=0.7)
    paths = list(network.synapses)
    for path, synapse in network.synapses.items():
        assert (Dale(excitatory=0.7) in synapse.maps) == (path != paths[0])
    with pytest.raises(ConfigError, match="Standardise and Dale"):
        case.network(excitatory=0.7, standardise=True)


def test_dropout(case):
    plain, dropping = case.network(norm="none"), case.network(norm="none", dropout=0.4)
    x = case.inputs()
    assert not plain.draws and dropping.draws
    assert torch.equal(plain(x).logits, dropping(x).logits)  # off in tests
    layers = list(dropping.layers.items())
    for name, layer in layers:
        stages = [type(s) for s in layer.before.values()]
        assert (Dropout in stages) == (name != layers[0][0] and not name.endswith("shortcut"))
    draw = [torch.Generator().manual_seed(i) for i in (0, 0, 1)]
    a, b, c = (dropping(x, training=True, generator=g).logits for g in draw)
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, plain(x).logits)


def test_delay(case):
    """Dense hidden layers have delays; where there are none, they are refused."""
    if "conv" in case.name or "resnet" in case.name:
        with pytest.raises(ConfigError, match="no dense hidden layer"):
            case.network(delay=2, **({"hidden": ()} if "conv" in case.name else {}))
    if "resnet" in case.name:
        return
    network = case.network(delay=2)
    for path, synapse in network.synapses.items():
        wanted = isinstance(synapse, Linear) and path.startswith("hidden") and "." not in path
        assert (SynapticDelays(longest=2) in synapse.maps) == wanted
        if not path.endswith("recurrent"):
            stages = network.layers[path].before.values()
            assert any(isinstance(s, TimeWindow) and s.longest == 2 for s in stages) == wanted
    delays = [p.detach() for n, p in network.weights().items() if n.endswith("delay")]
    assert delays
    for p in delays:
        assert 0 <= float(p.min()) < 0.4 and 1.6 < float(p.max()) <= 2
    factors = Bptt().factors(network, case.inputs(), loss_of(case))
    found = form_gradients(network, factors.synapses, factors.direct)
    assert all(bool(found[n].any()) for n in found if n.endswith("delay"))
    assert not torch.allclose(network(case.inputs()).logits, case.network()(case.inputs()).logits)


def test_axonal_delay(case):
    """One learned delay for each neuron that talks to a dense hidden layer."""
    if "conv" in case.name or "resnet" in case.name:
        with pytest.raises(ConfigError, match="network.axonal_delay: .*no dense hidden layer"):
            case.network(axonal_delay=2, **({"hidden": ()} if "conv" in case.name else {}))
    if "resnet" in case.name:
        return
    network, x = case.network(axonal_delay=3), case.inputs()
    for name, layer in network.layers.items():
        stages = [s for s in layer.before.values() if isinstance(s, AxonalDelay)]
        assert len(stages) == name.startswith("hidden")
        for stage in stages:
            delay = stage.delay.detach()
            assert delay.shape == (layer.synapse.inputs,) and stage.longest == 3
            assert 0 <= float(delay.min()) < 0.5 and 2.2 < float(delay.max()) < 3
            assert float(delay.diff().abs().min()) > 1  # neighbours are not alike
    factors = Bptt().factors(network, x, loss_of(case))
    delays = {n: g for n, g in factors.direct.items() if n.endswith("axon.delay")}
    assert delays and all(bool(g.any()) for g in delays.values())
    with torch.no_grad():
        for name in delays:
            network.weights()[name].zero_()
    torch.testing.assert_close(network(x).logits, case.network()(x).logits)


def test_short_term_plasticity(case):
    """What a spiking layer sends to the next one tires; the input does not."""
    stp = Plasticity(release=0.6, tau_d=20.0, tau_f=5.0)
    if not case.spiking:
        with pytest.raises(ConfigError, match="stp is about spikes, and Rectified sends none"):
            case.spec(stp=stp)
        return
    network, x = case.network(stp=stp), case.inputs()
    layers = list(network.layers.items())
    for name, layer in layers:
        stages = [s for s in layer.before.values() if isinstance(s, ShortTermPlasticity)]
        assert len(stages) == (name != layers[0][0] and not name.endswith("shortcut")), name
        assert all(s.release == 0.6 and s.facilitation < 1 for s in stages)
    assert not torch.allclose(network(x).logits, case.network()(x).logits)
    first, second = network(x[:2]), network(x[2:], network(x[:2]).state)
    steps = case.network(stp=stp, readout="mean_current")(x).steps
    split = torch.stack([first.logits * 2, second.logits * 3]).sum(0) / 5
    torch.testing.assert_close(split, steps.mean(0))
    table = {**to_table(case.spec()), "stp": {"release": 0.6, "tau_d": 20.0, "tau_f": 5.0}}
    assert from_table(type(case.spec()), table, "network") == case.spec(stp=stp)
    with pytest.raises(ConfigError, match="stp.release: got 2"):
        from_table(type(case.spec()), {**table, "stp": {"release": 2.0}}, "network")


@pytest.mark.parametrize("output", [None, LIF(beta=0.5, v_th=0.3)])
def test_population(case, output):
    """Several outputs for each class, whose mean over time and outputs is its logit."""
    x = case.inputs()
    for readout in ("mean_rate", "mean_current"):
        network = case.network(population=4, readout=readout, output=output)
        assert network.layers["readout"].synapse.weight.shape[0] == 12
        logits = network(x).logits
        steps = case.network(population=4, readout="mean_current", output=output)(x).steps
        assert steps.shape == (5, 4, 12)
        expected = torch.stack([steps[..., 4 * c : 4 * c + 4].mean((0, 2)) for c in range(3)], 1)
        assert logits.shape == (4, 3) and bool(logits.any())
        torch.testing.assert_close(logits, expected)
        assert network.mean_first == (readout == "mean_rate" and output is None)
    weights = network.weights()
    factors = Bptt().factors(network, x, loss_of(case))
    found = form_gradients(network, factors.synapses, factors.direct)
    logits = network(x, training=True).logits
    grads = torch.autograd.grad(loss_of(case)(logits), list(weights.values()))
    for name, gradient in zip(weights, grads, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11)
    with pytest.raises(ConfigError, match="population=4 .*not readout='max'; use one of mean_rate"):
        case.spec(population=4, readout="max")


@pytest.mark.parametrize("per_neuron", [False, True])
def test_learns_and_per_neuron(case, per_neuron):
    """One number per layer, or one per neuron, at its place in the map."""
    network = case.network(
        neuron=LIF(beta=0.4, v_th=0.6), learns=("v_th", "beta"), per_neuron=per_neuron
    )
    recorded = network.record(case.inputs())
    for name, layer in hidden_layers(network).items():
        if layer.neuron is None:
            continue
        values = dict(layer.neuron.named_parameters())
        assert list(values) == ["v_th", "beta"]
        shape = recorded[name]["spikes"].shape[2:] if per_neuron else ()
        assert all(p.shape == shape for p in values.values())
        bound = layer.neuron.bound()
        torch.testing.assert_close(
            bound.beta.detach(), torch.full(shape, 0.4).double(), rtol=1e-6, atol=0
        )
        torch.testing.assert_close(
            bound.v_th.detach(), torch.full(shape, 0.6).double(), rtol=1e-6, atol=0
        )
    plain = case.network(neuron=LIF(beta=0.4, v_th=0.6))
    torch.testing.assert_close(network(case.inputs()).logits, plain(case.inputs()).logits)
    factors = Bptt().factors(network, case.inputs(), loss_of(case))
    assert factors.direct and all(bool(g.any()) for g in factors.direct.values())


def test_what_would_do_nothing_is_refused(case):
    with pytest.raises(ConfigError, match=r"per_neuron.*name some with learns"):
        case.spec(per_neuron=True)
    with pytest.raises(ConfigError, match=r"first_spike.*output"):
        case.spec(readout="first_spike")
    with pytest.raises(ConfigError, match="no parameter 'gamma' that could learn"):
        case.network(neuron=LIF(), learns=("gamma",))
    with pytest.raises(ConfigError, match="readout"):
        case.spec(readout="median")


@pytest.mark.parametrize(
    ("readout", "decode"),
    [
        ("mean_rate", lambda z: z.mean(0)),
        ("mean_current", lambda z: z.mean(0)),
        ("sum", lambda z: z.sum(0)),
        ("max", lambda z: z.amax(0)),
        ("last", lambda z: z[-1]),
    ],
)
def test_readout(case, readout, decode):
    network, x = case.network(readout=readout), case.inputs()
    steps = case.network(readout="mean_current")(x).steps
    assert steps.shape == (5, 4, 3)
    torch.testing.assert_close(network(x).logits, decode(steps))


def test_output_neurons(case):
    x = case.inputs()
    steps = case.network(readout="mean_current")(x).steps
    v_th = 0.5 * float(steps.detach().max())
    network = case.network(output=LIF(beta=0.0, v_th=v_th))
    assert torch.equal(network(x).steps, (steps > v_th).double())
    assert 0 < network(x).logits.mean().item() < 1


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_head_is_kept(case, head):
    assert case.spec(head=head).head == head
    assert case.spec().head == "single"


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"conductance"}))
def test_every_neuron_model_fits(case, model):
    norm = {"norm": "none"} if model == "sigma_delta" else {}
    network = case.network(neuron=MODELS[model](), scale=3 if model != "adex" else 900, **norm)
    output = network(case.inputs(), generator=torch.Generator().manual_seed(0))
    assert output.logits.shape == (4, 3) and bool(output.logits.isfinite().all())


def test_conductances(case):
    """Dense and convolutional layers split their signs; what adds currents refuses."""
    spec = {"norm": "none", "neuron": ConductanceLIF(), "scale": 6}
    x = (case.inputs() > 0).double()
    if "recurrent" in case.name:
        with pytest.raises(ValueError, match="Recurrence"):
            case.network(**spec)(x)
        return
    if "resnet" in case.name:
        with pytest.raises(ConfigError, match="cannot take as conductances"):
            case.network(**spec)
        return
    network = case.network(**spec)
    x = x.repeat(6, 1, *[1] * len(case.shape))
    for path, synapse in network.synapses.items():
        assert (SplitSigns() in synapse.maps) == (path != "readout")
    assert all(t["spikes"].any() for t in network.record(x).values())
    factors = Bptt().factors(network, x, loss_of(case))
    found = form_gradients(network, factors.synapses, factors.direct)
    expected = torch.autograd.grad(
        loss_of(case)(network(x).logits), list(network.weights().values())
    )
    for name, gradient in zip(network.weights(), expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11)


def test_recurrent_layers_listen_to_themselves(cases):
    for name in ("spiking_recurrent", "recurrent"):
        network = cases(name).network()
        assert list(network.synapses) == [
            "hidden1", "hidden1.recurrent", "hidden2", "hidden2.recurrent", "readout"
        ]  # fmt: skip
        assert all(
            kinds(s) == ([NoAutapses] if p.endswith("recurrent") else [])
            for p, s in network.synapses.items()
        )
