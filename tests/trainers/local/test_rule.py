"""What all local rules share: the readout, what is asked for and refused, bounds, and runs."""

import json

import numpy as np
import pytest
import torch
from meetings import SPECS, build, trains
from torch.nn import functional

from spikecl.data.arrays import checked
from spikecl.encoding import CrossEntropy, Rate
from spikecl.errors import PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.learner.pairing import check_pairings
from spikecl.networks import (
    Cells,
    Layer,
    Linear,
    Mlp,
    Network,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    form_gradients,
)
from spikecl.neurons import LIF, ConductanceLIF, LeakyIntegrator, LoihiLIF, SigmaDelta
from spikecl.optim import Sgd
from spikecl.registry import TRAINERS
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, Reveal, permuted
from spikecl.trainers import Bptt, Call
from spikecl.trainers.local.rule import LocalRule
from spikecl.trainers.local.seen import look
from spikecl.trainers.local.timing import TimingRule

NAMES = [name for name in TRAINERS.names() if issubclass(TRAINERS.get(name), LocalRule)]
TIMED = [name for name in NAMES if issubclass(TRAINERS.get(name), TimingRule)]
each_rule = pytest.mark.parametrize("name", NAMES)


def rule_of(name, **options):
    """A rule as it comes, of all hidden synapses."""
    return TRAINERS.get(name)(**({"synapses": ("*",)} if name == "vogels" else {}), **options)


def test_all_are_registered():
    assert NAMES == [
        "bcm",
        "hebb",
        "oja",
        "reward_stdp",
        "sanger",
        "stdp",
        "subspace",
        "triplet_stdp",
        "vogels",
    ]


# ---- the readout --------------------------------------------------------------------------------


@each_rule
def test_the_readout_learns_by_its_own_error(name, network, x, loss, labels):
    made = rule_of(name).factors(network, x, loss, labels=labels)
    exact = Bptt().factors(network, x, loss)
    torch.testing.assert_close(
        made.synapses["readout"].gradient(), exact.synapses["readout"].gradient()
    )
    assert bool(made.synapses["readout"].gradient().any())
    torch.testing.assert_close(made.loss, exact.loss)
    torch.testing.assert_close(made.logits, exact.logits)
    for layer, rate in exact.activity.items():
        torch.testing.assert_close(made.activity[layer], rate)


@each_rule
def test_a_readout_left_alone_has_no_gradient_and_needs_no_labels(name, network, x, labels):
    def never(logits):
        raise AssertionError("nobody knows the labels")

    rule = rule_of(name, readout="none")
    if name == "reward_stdp":
        made = rule.factors(network, x, lambda z: z.sum(), labels=labels)
        assert rule.needs == Reveal.LABELS
    else:
        made = rule.factors(network, x, never)
        assert float(made.loss) == 0
        assert rule.needs == Reveal.NONE
    assert not bool(made.synapses["readout"].gradient().any())
    whole = rule_of(name).factors(network, x, lambda z: z.sum(), labels=labels)
    for path, factor in made.synapses.items():
        if path != "readout":
            torch.testing.assert_close(factor.gradient(), whole.synapses[path].gradient())
    assert TRAINERS.get(name).needs == rule_of(name).needs == Reveal.LABELS


def test_the_error_of_a_readout_with_a_memory_stays_in_its_step():
    """``dW = sum_t (p - target) / (T B) x[t]``: what the membrane remembers is not in it."""
    spec = SpikingMlp(
        hidden=(5,),
        neuron=LIF(beta=0.8, v_th=0.6),
        output=LeakyIntegrator(kappa=0.7),
        readout="mean_current",
    )
    network, x, labels = build(spec, (6,)), trains(9, 3, 6), torch.tensor([0, 2, 1])
    made = TRAINERS.get("hebb")().factors(network, x, lambda z: functional.cross_entropy(z, labels))
    sent = torch.as_tensor(network.record(x)["hidden1"]["spikes"])
    error = (network(x).logits.softmax(1) - functional.one_hot(labels, 3)) / (9 * 3)
    expected = torch.einsum("bk,tbj->kj", error, sent)
    torch.testing.assert_close(made.synapses["readout"].gradient(), expected)


# ---- what comes out -----------------------------------------------------------------------------


@each_rule
def test_transmitted_rows_are_those_that_were_passed_forward(name, network, x, loss, labels):
    made = rule_of(name).factors(network, x, loss, labels=labels)
    exact = Bptt().factors(network, x, loss)
    assert list(made.synapses) == list(exact.synapses)
    for path, factor in exact.synapses.items():
        torch.testing.assert_close(made.synapses[path].transmitted, factor.transmitted)


@each_rule
def test_biases_of_hidden_layers_stay(name, loss, labels):
    network = build(*SPECS["dense"])
    made = rule_of(name).factors(network, trains(12, 3, 6), loss, labels=labels)
    for path, factor in made.synapses.items():
        assert bool(factor.bias_gradient().any()) == (path == "readout")
        assert factor.bias_gradient().shape == network.synapses[path].bias.shape


@each_rule
@pytest.mark.parametrize(
    "neuron", [LIF(beta=0.8, v_th=0.6), LoihiLIF(vth=50)], ids=["lif", "loihi"]
)
def test_a_gain_is_no_part_of_the_change(name, neuron, loss, labels):
    """What a stored weight stands for makes the spikes; its change is what the rule says."""
    found, x = [], trains(12, 3, 6)
    for gain in (64.0, 256.0):
        spec = SpikingRecurrentNet(hidden=(5,), neuron=neuron, gain=gain)
        network = build(spec, (6,), scale=(2.0 if isinstance(neuron, LIF) else 256.0) / gain)
        made = rule_of(name).factors(network, x, loss, labels=labels)
        found.append(form_gradients(network, made.synapses, made.direct))
    for key in ("hidden1.weight", "hidden1.recurrent.weight"):
        assert bool(found[0][key].any())
        torch.testing.assert_close(found[0][key], found[1][key])


@each_rule
def test_nothing_is_left_behind_and_nothing_has_a_graph(name, network, x, loss, labels):
    before = {n: p.detach().clone() for n, p in network.weights().items()}
    held = {n: set(vars(m)) for n, m in network.named_modules()}
    state, rule = torch.get_rng_state(), rule_of(name)
    variables = rule.variables(network, Seeds(0), x)
    kept = {n: v.clone() for n, v in variables.items()}
    first, again = (
        rule.factors(network, x, loss, labels=labels, variables=variables) for _ in range(2)
    )
    assert all(torch.equal(v, kept[n]) for n, v in variables.items())
    assert {n: v.shape for n, v in first.variables.items()} == {n: v.shape for n, v in kept.items()}
    assert all(torch.equal(p.detach(), before[n]) for n, p in network.weights().items())
    assert {n: set(vars(m)) for n, m in network.named_modules()} == held
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    tensors = [first.loss, first.logits, *first.variables.values(), *first.activity.values()]
    for path, factor in first.synapses.items():
        tensors += [factor.gradient(), factor.transmitted]
        assert torch.equal(factor.gradient(), again.synapses[path].gradient())
    assert not any(t.requires_grad for t in tensors)


def test_no_graph_reaches_below_the_readout_or_outlives_a_layer(network, x):
    seen = look(Call(network, x, lambda z: z.sum()), delta=False)
    assert not any(fired.requires_grad for fired in seen.taps.fired.values())
    assert seen.output.logits.requires_grad
    paths = list(seen.taps)
    errors = torch.autograd.grad(
        seen.output.logits.sum(), [seen.taps[path].edge for path in paths], allow_unused=True
    )
    assert [path for path, error in zip(paths, errors) if error is not None] == ["readout"]


@each_rule
def test_other_weights_may_stand_in(name, network, x, loss, labels):
    rule = rule_of(name)
    use = {n: 1.3 * p.detach() for n, p in network.weights().items()}
    found = rule.factors(network, x, loss, use, labels=labels)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1.3)
    expected = rule.factors(network, x, loss, labels=labels)
    for path, factor in expected.synapses.items():
        torch.testing.assert_close(found.synapses[path].gradient(), factor.gradient())


@pytest.mark.parametrize("name", TIMED)
def test_bounds_are_kept_for_hidden_synapses_that_are_not_frozen(name):
    spec = SpikingRecurrentNet(hidden=(5, 4), bias=True, norm="batch")
    network = build(spec, (6,), scale=9.0)
    network.weights()["hidden2.weight"].requires_grad_(False)
    options = {"mean_weight": 0.0} if name == "triplet_stdp" else {}
    moved = TRAINERS.get(name)(w_min=-0.5, w_max=0.25, **options).settle(network.weights())
    assert list(moved) == ["hidden1.weight", "hidden1.recurrent.weight", "hidden2.recurrent.weight"]
    for key, value in moved.items():
        old = network.weights()[key].detach()
        assert bool((old < -0.5).any()) and bool((old > 0.25).any())
        assert torch.equal(value, old.clamp(-0.5, 0.25))
        assert not value.requires_grad


# ---- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "standardised weights": (SpikingMlp(hidden=(4,), standardise=True), "go through Standardise"),
    "fixed signs": (SpikingMlp(hidden=(4, 3), excitatory=0.5), "'hidden2' go through Dale"),
    "delays": (SpikingMlp(hidden=(4,), delay=2), "go through SynapticDelays"),
    "conductances": (SpikingMlp(hidden=(4,), neuron=ConductanceLIF()), "go through SplitSigns"),
    "changes": (SpikingMlp(hidden=(4,), neuron=SigmaDelta()), r"\(SigmaDelta\) sends changes"),
}


@each_rule
@pytest.mark.parametrize("case", list(REFUSED))
def test_weights_that_are_no_plain_numbers_are_refused(name, case):
    spec, message = REFUSED[case]
    with pytest.raises(PairingError, match=message):
        rule_of(name).check(build(spec, (6,)), trains(2, 1, 6), CrossEntropy())


@each_rule
def test_a_network_without_hidden_layers_is_refused(name):
    network = build(Mlp(hidden=(4,)), (6,))
    del network.layers["hidden1"]
    with pytest.raises(PairingError, match=f"trainer '{name}' is about synapses onto hidden"):
        rule_of(name).check(network, trains(2, 1, 6), CrossEntropy())


@each_rule
def test_a_shortcut_into_the_readout_is_refused(name):
    layers = {
        "hidden1": Layer(Linear(6, 5), Cells(LIF(beta=0.8, v_th=0.6)), inputs=("input",)),
        "skip": Layer(Linear(6, 3), None, inputs=("input",)),
        "readout": Layer(
            Linear(5, 3), Cells(LeakyIntegrator()), inputs=("hidden1",), currents=("skip",)
        ),
    }
    network, rule = Network(layers, mean_first=False).double(), rule_of(name)
    message = "neurons of a hidden layer behind a synapse, and layer 'skip' has none"
    with pytest.raises(PairingError, match=message):
        rule.check(network, trains(2, 1, 6), CrossEntropy())
    with pytest.raises(PairingError, match=message):
        rule.factors(network, trains(2, 1, 6), lambda z: z.sum(), labels=torch.tensor([0]))


@each_rule
def test_shortcuts_meet_the_neurons_they_are_added_to(name, loss, labels):
    network = build(SpikingResNet(width=3, blocks=(1, 1)), (6, 5))
    x, rule = trains(5, 3, 6, 5), rule_of(name)
    rule.check(network, x, CrossEntropy())
    made = rule.factors(network, x, loss, labels=labels)
    shortcut = made.synapses["stage2block1shortcut"].gradient()
    assert shortcut.shape == (6, 3) and bool(shortcut.any())


def test_streams_without_labels_are_refused_where_labels_are_needed():
    y = np.arange(12) % 3
    x = np.random.default_rng(0).random((12, 8)).astype(np.float32)
    data = checked({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, "c")
    hidden = permuted(data, experiences=2).with_reveal(DOMAIN_IL & ~Reveal.LABELS)
    for name in NAMES:
        kind = TRAINERS.get(name)
        with pytest.raises(PairingError, match="needs labels"):
            check_pairings(hidden, kind(), ())
        if name == "reward_stdp":
            with pytest.raises(PairingError, match="needs labels"):
                check_pairings(hidden, kind(readout="none"), ())
        else:
            check_pairings(hidden, kind(readout="none"), ())


# ---- runs ---------------------------------------------------------------------------------------


def learner_of(name):
    rng = np.random.default_rng(0)
    y = np.arange(42) % 3
    x = np.clip(rng.random((3, 8))[y] + 0.1 * rng.standard_normal((42, 8)), 0, 1)
    x = x.astype(np.float32)
    data = checked({"x_train": x[:24], "y_train": y[:24], "x_test": x[24:], "y_test": y[24:]}, "c")
    spec = SpikingRecurrentNet(hidden=(12,), neuron=LIF(beta=0.8, v_th=0.3), bias=True)
    return Learner(
        stream=permuted(data, experiences=2, seed=1).with_reveal(DOMAIN_IL),
        network=spec.build((8,), 3),
        encoder=Rate(steps=6),
        trainer=TRAINERS.get(name)(),
        methods=(),
        optimiser=Sgd(lr=0.1, momentum=0.5),
        plan=TrainPlan(batch=5, epochs=2),
        seeds=Seeds(4),
        device=torch.device("cpu"),
    )


def frozen(learner):
    tensors, values = split(learner.state_dict())
    return join({n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(values)))


def assert_states_equal(a, b):
    (ta, va), (tb, vb) = split(a), split(b)
    assert va == vb and sorted(ta) == sorted(tb)
    for name in ta:
        assert torch.equal(ta[name], tb[name]), name


@each_rule
def test_a_resumed_run_is_the_same_run(name):
    whole, states = learner_of(name), []
    start = {n: p.detach().clone() for n, p in whole.network.weights().items()}
    for tick in whole.ticks():
        place = (tick.position.event, tick.position.epoch, tick.position.step)
        if tick.kind == "step" and place in ((0, 0, 2), (1, 1, 3)):
            states.append(frozen(whole))
    assert len(states) == 2
    for path in ("hidden1.weight", "hidden1.recurrent.weight", "readout.weight"):
        weight = whole.network.weights()[path].detach()
        if name == "vogels" and path == "hidden1.weight":  # it excites
            assert torch.equal(weight, start[path])
            continue
        assert not torch.equal(weight, start[path]) and bool(weight.isfinite().all())
        if name in TIMED and path.startswith("hidden") and name != "triplet_stdp":
            assert float(weight.min()) >= 0 and float(weight.max()) <= 1
    if name in ("bcm", "reward_stdp"):
        assert any(bool(v.any()) for v in whole.calls.variables.values())
    for state in states:
        again = learner_of(name)
        again.load_state_dict(state)
        for _ in again.ticks():
            pass
        assert_states_equal(frozen(again), frozen(whole))
