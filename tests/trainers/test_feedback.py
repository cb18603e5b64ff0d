"""Errors through other weights, or straight from the output: by hand, and bit for bit."""

import math

import pytest
import torch
from torch.nn import functional

from spikecl.encoding import CountMse, CrossEntropy, StepCrossEntropy, StepMse
from spikecl.errors import PairingError, UsageError
from spikecl.kernels import Kernels
from spikecl.networks import (
    Layer,
    Linear,
    Mlp,
    Network,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    form_gradients,
    initialise,
)
from spikecl.neurons import ALIF, LIF, ConductanceLIF, LeakyIntegrator, Sigmoid
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt, PerStep, Tbptt

T, B, IN, CLASSES = 5, 4, 6, 3
BETA, V_TH, SLOPE, KAPPA = 0.8, 0.4, 2.0, 0.7
SIZES = (8, 7)
CELL = LIF(beta=BETA, v_th=V_TH, surrogate=Sigmoid(slope=SLOPE))
LABELS = torch.arange(B) % CLASSES
NETWORKS = {
    "mlp": SpikingMlp(hidden=SIZES, neuron=CELL, bias=True),
    "mean current": SpikingMlp(hidden=SIZES, neuron=CELL, readout="mean_current"),
    "recurrent": SpikingRecurrentNet(hidden=SIZES, neuron=CELL, readout="mean_current"),
    "recurrent, later": SpikingRecurrentNet(
        hidden=SIZES, neuron=ALIF(v_th=0.3, reset="zero", reset_time="next")
    ),
    "conv": SpikingConvNet(channels=(3, 4), kernel=3, neuron=CELL, hidden=(5,), padding="same"),
    "conv, standardised": SpikingConvNet(
        channels=(3, 4), kernel=2, neuron=CELL, standardise=True, pool="average"
    ),
    "resnet": SpikingResNet(width=3, blocks=(1, 1), neuron=CELL),
    "standardised": SpikingMlp(hidden=SIZES, neuron=CELL, standardise=True),
    "signed": SpikingMlp(hidden=SIZES, neuron=CELL, excitatory=0.6),
    "signed, recurrent": SpikingRecurrentNet(hidden=SIZES, neuron=CELL, excitatory=0.6),
    "delays": SpikingMlp(hidden=SIZES, neuron=CELL, delay=2),
    "split": SpikingMlp(hidden=SIZES, neuron=ConductanceLIF(), gain=4.0),
    "split, conv": SpikingConvNet(channels=(3, 4), kernel=2, neuron=ConductanceLIF(), gain=4.0),
    "twin": Mlp(hidden=SIZES, bias=True),
}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(name, *, output=None, **changes):
    spec = NETWORKS[name]
    for key, value in {**changes, **({} if output is None else {"output": output})}.items():
        spec = type(spec)(**{**fields_of(spec), key: value})
    shape = (8, 8) if "conv" in name or name == "resnet" else (IN,)
    network = spec.build(shape, CLASSES).double()
    initialise(network, Seeds(3))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(3)
    return network, (draw(T, B, *shape, seed=1) > 0).double()


def fields_of(spec):
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def of_logits(logits):
    return functional.cross_entropy(2 * logits, LABELS)


def of_steps(steps):
    return (draw(*steps.shape, seed=7) * steps).sum() + (steps.sum(0) ** 2).mean()


def gradients_of(factors, network):
    return form_gradients(network, factors.synapses, factors.direct)


# The weights themselves


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("feedback", ["random", "adaptive"])
@pytest.mark.parametrize("synapse", ["auto", "dense", "events"])
def test_its_own_weights_are_backpropagation_bit_for_bit(name, feedback, synapse):
    network, x = build(name)
    network.kernels = Kernels(synapse=synapse)
    trainer = Bptt(feedback=feedback)
    names = trainer.variables(network, Seeds(1), x)
    weights = network.weights()
    own = {n: weights[f"{n.removeprefix('feedback.')}.weight"].detach() for n in names}
    found = trainer.factors(network, x, of_logits, variables=own)
    expected = Bptt().factors(network, x, of_logits)
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.logits, expected.logits)
    ours, theirs = gradients_of(found, network), gradients_of(expected, network)
    assert ours.keys() == theirs.keys()
    for path, gradient in theirs.items():
        assert torch.equal(ours[path], gradient), path


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_drawn_is_like_the_weights_and_replaces_all_but_the_first(name):
    network, x = build(name)
    for feedback in ("random", "adaptive", "sign", "sign_random"):
        trainer = Bptt(feedback=feedback)
        drawn = trainer.variables(network, Seeds(1), x)
        first = next(iter(network.layers))
        assert set(drawn) == {f"feedback.{p}" for p in network.synapses if p != first}
        again, other = (trainer.variables(network, Seeds(s), x) for s in (1, 2))
        for key, back in drawn.items():
            weight = network.synapses[key.removeprefix("feedback.")].weight
            assert back.shape == weight.shape and back.dtype == weight.dtype
            assert not back.requires_grad
            bound = 1 / math.sqrt(weight[0].numel())
            assert 0.7 * bound < float(back.abs().max()) <= bound
            assert torch.equal(back, again[key]) and not torch.equal(back, other[key])
        values = [back.flatten()[:6].tolist() for back in drawn.values()]
        assert all(a != b for k, a in enumerate(values) for b in values[k + 1 :])
    assert Bptt().variables(network, Seeds(1), x) == {}
    assert Bptt(feedback="global").variables(network, Seeds(1), x) == {}


# By hand


def forward_by_hand(w, x):
    """Return spikes and surrogate derivatives of two layers of CELLs, and the readout's current."""
    h, spikes, slopes = x, {}, {}
    for name in ("hidden1", "hidden2"):
        current = functional.linear(h, w[f"{name}.weight"], w.get(f"{name}.bias"))
        loops = w.get(f"{name}.recurrent.weight")
        v = s = torch.zeros_like(current[0])
        outs, psis = [], []
        for now in current:
            u = BETA * v + now + (0 if loops is None else s @ loops.T)
            s = (u > V_TH).double()
            p = torch.sigmoid(SLOPE * (u - V_TH))
            outs.append(s)
            psis.append(SLOPE * p * (1 - p))
            v = u - V_TH * s
        h = spikes[name] = torch.stack(outs)
        slopes[name] = torch.stack(psis)
    return spikes, slopes, functional.linear(h, w["readout.weight"], w.get("readout.bias"))


def through_time(psi, sent, loops=None):
    """Return the errors of a layer's current from those of its spikes [T, B, n]."""
    later, found = torch.zeros_like(sent[0]), []
    for slope, error in zip(reversed(psi), reversed(sent)):
        heard = 0 if loops is None else later @ loops
        later = slope * (error + heard) + BETA * later
        found.append(later)
    return torch.stack(found[::-1])


def readout_error(steps, loss):
    leaf = steps.clone().requires_grad_()
    value = loss(leaf) if loss is of_steps else loss(leaf.mean(0))
    return torch.autograd.grad(value, [leaf])[0]


def stored(network):
    found = {n: p.detach().clone() for n, p in network.weights().items()}
    for name in found:
        if "recurrent" in name:
            found[name].fill_diagonal_(0)
    return found


def check_by_hand(network, x, trainer, variables, sent_of, *, loops_of=None, loss=of_logits):
    """Compare each gradient with ``delta^T x``; ``sent_of`` gives the errors of spikes."""
    w = stored(network)
    spikes, psi, steps = forward_by_hand(w, x)
    e = readout_error(steps, loss)
    given = PerStep(loss) if loss is of_steps else loss
    factors = trainer.factors(network, x, given, variables=variables)
    found = gradients_of(factors, network)
    delta = {"readout": e}
    for name, above in (("hidden2", "readout"), ("hidden1", "hidden2")):
        loops = None if loops_of is None else loops_of(name)
        delta[name] = through_time(psi[name], sent_of(name, above, delta), loops)
    below = {"hidden1": x, "hidden2": spikes["hidden1"], "readout": spikes["hidden2"]}
    for name, error in delta.items():
        expected = torch.einsum("tbi,tbj->ij", error, below[name])
        close(found[f"{name}.weight"], expected, name)
        if f"{name}.bias" in found:
            close(found[f"{name}.bias"], error.sum((0, 1)), name)
        if f"{name}.recurrent.weight" in found:
            before = torch.cat([torch.zeros_like(spikes[name][:1]), spikes[name][:-1]])
            expected = torch.einsum("tbi,tbj->ij", error, before).fill_diagonal_(0)
            close(found[f"{name}.recurrent.weight"], expected, f"{name}.recurrent")


def close(found, expected, name):
    torch.testing.assert_close(
        found, expected, rtol=1e-10, atol=1e-12, msg=lambda text: f"{name}: {text}"
    )


def along_by_hand(feedback, w, back):
    """The table of the module: which weight the errors meet."""
    if feedback == "symmetric":
        return w
    if feedback in ("random", "adaptive"):
        return back
    if feedback == "sign":
        return back.abs().mean() * torch.sign(w)
    return back.abs() * torch.sign(w)


ALONG = ["symmetric", "random", "adaptive", "sign", "sign_random"]


@pytest.mark.parametrize("feedback", ALONG)
@pytest.mark.parametrize("name", ["mlp", "mean current", "recurrent"])
def test_errors_meet_the_weights_of_the_table(feedback, name):
    network, x = build(name)
    trainer = Bptt(feedback=feedback)
    variables = trainer.variables(network, Seeds(1), x)
    w = stored(network)

    def met(path):
        back = variables.get(f"feedback.{path}")
        if "recurrent" in path and back is not None:
            back = back.clone().fill_diagonal_(0)  # no autapses there, either
        return along_by_hand(feedback, w[f"{path}.weight"], back)

    loops = (lambda name: met(f"{name}.recurrent")) if name == "recurrent" else None
    check_by_hand(
        network, x, trainer, variables, lambda n, above, d: d[above] @ met(above), loops_of=loops
    )


@pytest.mark.parametrize("feedback", ["sign", "sign_random"])
@pytest.mark.parametrize("name", ["standardised", "signed"])
def test_signs_are_those_of_the_effective_weight(feedback, name):
    network, x = build(name)
    trainer = Bptt(feedback=feedback)
    variables = trainer.variables(network, Seeds(1), x)
    w = stored(network)
    for path, synapse in network.synapses.items():
        own = {k: p.detach() for k, p in synapse.named_parameters()}
        w[f"{path}.weight"] = synapse.effective(own)

    def met(path):
        synapse = network.synapses[path]
        own = {k: p.detach() for k, p in synapse.named_parameters()}
        back = synapse.effective({**own, "weight": variables[f"feedback.{path}"]})
        return along_by_hand(feedback, w[f"{path}.weight"], back)

    spikes, psi, steps = forward_by_hand(w, x)
    e = readout_error(steps, of_logits)
    factors = trainer.factors(network, x, of_logits, variables=variables)
    delta = {"readout": e}
    for layer, above in (("hidden2", "readout"), ("hidden1", "hidden2")):
        delta[layer] = through_time(psi[layer], delta[above] @ met(above))
    expected = torch.einsum("tbi,tbj->ij", delta["hidden1"], x)
    close(factors.synapses["hidden1"].gradient(), expected, "hidden1")


@pytest.mark.parametrize("name", ["mlp", "mean current", "recurrent"])
@pytest.mark.parametrize("loss", [of_logits, of_steps])
@pytest.mark.parametrize("feedback", ["direct", "global"])
def test_every_layer_gets_the_error_of_the_output(name, loss, feedback):
    """``L_l[t] = e[t] B_l``, or the sum of e over ``sqrt(n)``; then through the layer's time."""
    network, x = build(name)
    if loss is of_steps and network.mean_first:
        pytest.skip("the readout sees no steps")
    trainer = Bptt(feedback=feedback)
    variables = trainer.variables(network, Seeds(1), x)
    w = stored(network)

    def sent(layer, above, delta):
        e = delta["readout"]
        if feedback == "direct":
            return e @ variables[f"feedback.{layer}"]
        size = dict(zip(("hidden1", "hidden2"), SIZES))[layer]
        return (e.sum(2, keepdim=True) / size**0.5).expand(T, B, size)

    if feedback == "global" and loss is of_logits:

        def loss(logits):
            return (logits - draw(B, CLASSES, seed=9)).square().sum()

    loops = (lambda n: w[f"{n}.recurrent.weight"]) if name == "recurrent" else None
    check_by_hand(network, x, trainer, variables, sent, loops_of=loops, loss=loss)


def test_the_error_is_that_of_the_current_of_a_readout_that_remembers():
    network, x = build("mean current", output=LeakyIntegrator(kappa=KAPPA))
    trainer = Bptt(feedback="direct")
    variables = trainer.variables(network, Seeds(1), x)
    w = stored(network)
    spikes, psi, steps = forward_by_hand(w, x)
    leaf = steps.clone().requires_grad_()
    y, outputs = 0.0, []
    for now in leaf:
        y = KAPPA * y + now
        outputs.append(y)
    (e,) = torch.autograd.grad(of_logits(torch.stack(outputs).mean(0)), [leaf])
    factors = trainer.factors(network, x, of_logits, variables=variables)
    below = {"hidden1": x, "hidden2": spikes["hidden1"]}
    for layer, rows in below.items():
        delta = through_time(psi[layer], e @ variables[f"feedback.{layer}"])
        expected = torch.einsum("tbi,tbj->ij", delta, rows)
        close(factors.synapses[layer].gradient(), expected, layer)


def test_direct_weights_go_from_each_output_to_each_neuron():
    for name, sizes in {
        "mlp": {"hidden1": 8, "hidden2": 7},
        "conv": {"conv1": 3 * 8 * 8, "conv2": 4 * 4 * 4, "hidden1": 5},
    }.items():
        network, x = build(name)
        drawn = Bptt(feedback="direct").variables(network, Seeds(1), x)
        shapes = {f"feedback.{n}": (CLASSES, size) for n, size in sizes.items()}
        assert {n: tuple(b.shape) for n, b in drawn.items()} == shapes
        for back in drawn.values():
            bound = 1 / math.sqrt(back.shape[1])
            assert 0.7 * bound < float(back.abs().max()) <= bound


def test_a_convolution_gets_the_error_at_each_place():
    """At the last step, in closed form: ``psi e B``."""
    network, x = build("conv")
    trainer = Bptt(feedback="direct")
    variables = trainer.variables(network, Seeds(1), x)
    factors = trainer.factors(network, x, of_logits, variables=variables)
    e = factors.synapses["readout"].delta / T
    for layer in ("conv1", "conv2"):
        traces = network.record(x, layers=[layer], variables=["current", "v"])[layer]
        current, v = (torch.tensor(traces[k]) for k in ("current", "v"))
        p = torch.sigmoid(SLOPE * (BETA * v[-2] + current[-1] - V_TH)).flatten(1)
        expected = SLOPE * p * (1 - p) * (e @ variables[f"feedback.{layer}"])
        errors = factors.synapses[layer].errors.view(T, B, -1)
        torch.testing.assert_close(errors[-1], expected, rtol=1e-9, atol=1e-12)


def test_a_convolution_turns_errors_by_hand():
    network, x = build("conv", pool_size=1, bias=True)
    trainer = Bptt(feedback="random")
    variables = trainer.variables(network, Seeds(1), x)
    factors = trainer.factors(network, x, of_logits, variables=variables)
    back = variables["feedback.conv2"]
    delta2 = factors.synapses["conv2"].errors
    sent = functional.conv_transpose2d(delta2, back, padding=1).view(T, B, -1)
    traces = network.record(x, layers=["conv1"], variables=["current"])["conv1"]
    current, v, psi = torch.tensor(traces["current"]), 0.0, []
    for now in current:
        u = BETA * v + now
        p = torch.sigmoid(SLOPE * (u - V_TH))
        psi.append(SLOPE * p * (1 - p))
        v = u - V_TH * (u > V_TH).double()
    expected = through_time(torch.stack(psi).flatten(2), sent)
    torch.testing.assert_close(
        factors.synapses["conv1"].errors.view(T, B, -1), expected, rtol=1e-10, atol=1e-12
    )


# Learning with it


def test_the_angle_to_backpropagation_falls_while_a_network_learns():
    """Weights come to lie along the feedback (Lillicrap et al. 2016, figure 2)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(CLASSES, 20, generator=generator, dtype=torch.float64)
    labels = torch.arange(60) % CLASSES
    x = centres[labels] + 0.2 * torch.randn(60, 20, generator=generator, dtype=torch.float64)
    x = x[None].expand(4, 60, 20)
    angles, losses = {}, {}
    for seed in range(4):
        spec = SpikingMlp(hidden=(40,), neuron=CELL)
        network = spec.build((20,), CLASSES).double()
        initialise(network, Seeds(seed))
        trainer = Bptt(feedback="random")
        variables = trainer.variables(network, Seeds(seed), x)
        for step in range(201):
            given = lambda z: functional.cross_entropy(z, labels)  # noqa: E731
            found = trainer.factors(network, x, given, variables=variables)
            if step in (0, 200):
                exact = Bptt().factors(network, x, given)
                pair = (found.synapses["hidden1"].delta, exact.synapses["hidden1"].delta)
                cosine = functional.cosine_similarity(*(d.flatten() for d in pair), dim=0)
                angles.setdefault(step, []).append(math.degrees(math.acos(float(cosine))))
                losses.setdefault(step, []).append(float(found.loss))
            with torch.no_grad():
                for name, gradient in gradients_of(found, network).items():
                    network.weights()[name].sub_(0.5 * gradient)
    assert abs(sum(angles[0]) / 4 - 90) < 20
    assert all(after < 60 for after in angles[200])
    assert all(after < before for after, before in zip(angles[200], angles[0]))
    assert all(after < 0.3 * before for after, before in zip(losses[200], losses[0]))


# What is refused


@pytest.mark.parametrize("trainer", [Bptt, Tbptt])
def test_weights_of_another_shape_are_refused(trainer):
    network, x = build("mlp")
    options = {"steps": 2} if trainer is Tbptt else {}
    along = trainer(feedback="random", **options)
    variables = along.variables(network, Seeds(1), x)
    for wrong in (variables["feedback.hidden2"].T, variables["feedback.hidden2"][:1]):
        given = {**variables, "feedback.hidden2": wrong}
        with pytest.raises(UsageError, match=r"'hidden2'.*\(7, 8\)"):
            along.factors(network, x, of_logits, variables=given)
    direct = trainer(feedback="direct", **options)
    variables = direct.variables(network, Seeds(1), x)
    for wrong in (variables["feedback.hidden1"].T, variables["feedback.hidden1"][:, :1]):
        given = {**variables, "feedback.hidden1": wrong}
        with pytest.raises(UsageError, match=r"'hidden1'.*3 outputs to 8 neurons: \(3, 8\)"):
            direct.factors(network, x, of_logits, variables=given)


def test_a_sum_that_is_zero_and_a_network_without_hidden_layers_are_refused():
    network, x = build("mean current")
    for trainer in (Bptt(feedback="global"), Tbptt(steps=2, feedback="global")):
        for loss in (CrossEntropy(), StepCrossEntropy()):
            with pytest.raises(PairingError, match=r"sum to zero.*'step_mse'"):
                trainer.check(network, x, loss)
        trainer.check(network, x, StepMse())
        trainer.check(network, x, CountMse())
    layers = {"readout": Layer(Linear(IN, CLASSES), None, inputs=("input",))}
    for feedback in ("direct", "global"):
        with pytest.raises(PairingError, match="the network has none"):
            Bptt(feedback=feedback).check(Network(layers), x, StepMse())


def test_feedback_that_learns_is_tied_to_its_weight():
    network, _ = build("recurrent")
    assert Bptt(feedback="adaptive").tied(network) == {
        "feedback.hidden1.recurrent": "hidden1.recurrent.weight",
        "feedback.hidden2": "hidden2.weight",
        "feedback.hidden2.recurrent": "hidden2.recurrent.weight",
        "feedback.readout": "readout.weight",
    }
    for feedback in ("symmetric", "random", "sign", "sign_random", "direct", "global"):
        assert Bptt(feedback=feedback).tied(network) == {}
