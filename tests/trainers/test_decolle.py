"""DECOLLE against autograd of local losses with traces and incoming spikes cut, written out.

Kaiser, Mostafa & Neftci 2020. The loop computes the trace ``P`` of each layer's input, then
``W P`` as a current whose past is constant: its autograd is ``err G psi P``.
"""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import spikecl
from spikecl.encoding import Direct, StepCrossEntropy, StepMse
from spikecl.errors import PairingError, UsageError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    Cells,
    Complement,
    Layer,
    Linear,
    Mlp,
    Network,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
)
from spikecl.neurons import ALIF, CUBA, LIF, LeakyIntegrator, Triangle
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import permuted
from spikecl.trainers import Decolle, PerStep

T, B, IN, K = 9, 5, 6, 3
SIZES = (7, 6)
BETA, ALPHA, V_TH, KAPPA = 0.8, 0.6, 0.5, 0.75
LABELS = torch.tensor([0, 1, 2, 2, 1])
STEPWISE = StepCrossEntropy()
COMMON = {"beta": BETA, "v_th": V_TH, "surrogate": Triangle(height=0.3, width=1.0)}
MODELS = {
    "lif": LIF(**COMMON),
    "cuba": CUBA(**COMMON, alpha=ALPHA),
    "scaled": LIF(**{**COMMON, "v_th": 0.15}, scale_input=True),
}
every_window = pytest.mark.parametrize("window", [0, 1, 4])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def spikes(steps=T, shape=(IN,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(steps, B, *shape, generator=generator) < 0.5).double()


def step_loss(outputs):
    log_p = outputs - outputs.logsumexp(-1, keepdim=True)
    return -log_p.gather(2, LABELS.expand(len(outputs), -1)[..., None]).mean()


PER_STEP = PerStep(step_loss, separable=True)


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, d):
        ctx.save_for_backward(d)
        return (d > 0).to(d.dtype)

    @staticmethod
    def backward(ctx, g):
        (d,) = ctx.saved_tensors
        return g * 0.3 * (1 - d.abs()).clamp_min(0)


def randomised(network, seed=1):
    with torch.no_grad():
        for i, p in enumerate(network.weights().values()):
            generator = torch.Generator().manual_seed(seed + i)
            fan = p[0].numel() if p.dim() > 1 else 4.0
            p.copy_(1.5 / fan**0.5 * torch.randn(p.shape, generator=generator))
    return network


def network_of(neuron, *, kappa=KAPPA, recurrent=False):
    layers, n, source = {}, IN, "input"
    for i, m in enumerate(SIZES):
        onto = Linear(m, m, bias=True) if recurrent else None
        layers[f"h{i}"] = Layer(
            Linear(n, m, bias=True), Cells(neuron, learns=()), inputs=(source,), recurrent=onto
        )
        n, source = m, f"h{i}"
    cells = None if kappa is None else Cells(LeakyIntegrator(kappa=kappa))
    layers["out"] = Layer(Linear(n, K, bias=True), cells, inputs=(source,))
    return randomised(Network(layers, mean_first=False).double())


def gradients(factors):
    found = {}
    for path, factor in factors.synapses.items():
        found[f"{path}.weight"] = factor.gradient()
        found[f"{path}.bias"] = factor.bias_gradient()
    return found


def assert_equal(found, expected, floor=1e-4):
    assert set(found) == set(expected)
    for name in expected:
        assert float(expected[name].abs().max()) > floor, name
        close(found[name], expected[name])


class Trace:
    """``P`` of an input: one decay, or two for a neuron with a synaptic current."""

    def __init__(self, model):
        self.model, self.q, self.p = model, 0.0, 0.0

    def __call__(self, sent):
        if self.model == "cuba":
            self.q = ALPHA * self.q + sent
            sent = self.q
        self.p = BETA * self.p + sent
        return (1 - BETA) * self.p if self.model == "scaled" else self.p


def local(network, x, model, readouts, *, kappa=KAPPA, burn_in=0, loss=step_loss, costs=None):
    """Return gradients of all local losses together, by autograd of the cut network.

    The membrane is ``W P + R``, with ``P`` and the reset's trace ``R`` constants; spikes that go to
    the next layer, and to the layer itself, are cut. Assert that no loss reaches another layer.
    """
    w = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    v_th = 0.15 if model == "scaled" else V_TH
    traces = {n: (Trace(model), Trace(model)) for n in w}
    refractory, z = [0.0, 0.0], [torch.zeros(B, n).double() for n in SIZES]
    y, outputs, fired = torch.zeros(B, K).double(), [], ([], [])
    one = torch.ones(B, 1).double()
    out_p, out_one = 0.0, 0.0
    for p in x:
        activity = p
        for i in range(2):
            name = f"h{i}"
            pre, bias = traces[f"{name}.weight"]
            u = pre(activity) @ w[f"{name}.weight"].T + bias(one) * w[f"{name}.bias"]
            if f"{name}.recurrent.weight" in w:
                pre, bias = traces[f"{name}.recurrent.weight"]
                u = u + pre(z[i]) @ w[f"{name}.recurrent.weight"].T
                u = u + bias(one) * w[f"{name}.recurrent.bias"]
            refractory[i] = BETA * refractory[i]
            s = Fire.apply(u + refractory[i] - v_th)
            fired[i].append(s)
            z[i] = activity = s.detach()
            refractory[i] = refractory[i] - v_th * z[i]
        out_p, out_one = kappa * out_p + activity, kappa * out_one + 1.0
        y = out_p @ w["out.weight"].T + out_one * w["out.bias"]
        outputs.append(y)
    assert 0.05 < float(torch.stack(fired[0]).detach().mean()) < 0.8
    losses = {"out": loss(torch.stack(outputs))}
    for i in range(2):
        s = torch.stack(fired[i])
        steps = torch.stack([s_t if t >= burn_in else s_t.detach() for t, s_t in enumerate(s)])
        losses[f"h{i}"] = loss(steps @ readouts[f"readout.h{i}"])
        if costs is not None:
            losses[f"h{i}"] = losses[f"h{i}"] + costs(s)
    found = {}
    for layer, value in losses.items():
        own = torch.autograd.grad(value, list(w.values()), allow_unused=True, retain_graph=True)
        for name, gradient in zip(w, own, strict=True):
            if name.split(".")[0] == layer:
                found[name] = gradient
            else:
                assert gradient is None  # nothing of a loss reaches another layer
    return {n: found[n] for n in w}, torch.stack(outputs).detach()


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("kappa", [None, KAPPA])
@every_window
def test_it_is_autograd_of_the_local_losses(model, recurrent, kappa, window):
    network, x = network_of(MODELS[model], kappa=kappa, recurrent=recurrent), spikes()
    rule = Decolle(window=window)
    rule.check(network, x, STEPWISE)
    readouts = rule.variables(network, Seeds(3), x)
    expected, outputs = local(network, x, model, readouts, kappa=kappa or 0.0)
    made = rule.factors(network, x, PER_STEP, variables=readouts)
    assert_equal(gradients(made), expected)
    close(made.logits, outputs.mean(0))
    close(network(x).steps.detach(), outputs)
    close(made.loss, step_loss(outputs))


@every_window
def test_any_loss_of_each_step_is_the_local_loss(window):
    network, x, rule = network_of(MODELS["lif"]), spikes(), Decolle(window=window)
    readouts = rule.variables(network, Seeds(3), x)
    target = torch.eye(K, dtype=torch.float64)[LABELS]
    expected, _ = local(network, x, "lif", readouts, loss=lambda y: (y - target).square().mean())
    loss = PerStep(lambda y: StepMse()(y, LABELS), separable=True)
    found = rule.factors(network, x, loss, variables=readouts)
    assert_equal(gradients(found), expected)


@every_window
def test_a_readout_teaches_its_own_layer_alone(window):
    network, x, rule = network_of(MODELS["lif"]), spikes(), Decolle(window=window)
    readouts = rule.variables(network, Seeds(3), x)
    plain = gradients(rule.factors(network, x, PER_STEP, variables=readouts))
    for layer in ("h0", "h1"):
        changed = {**readouts, f"readout.{layer}": -2 * readouts[f"readout.{layer}"]}
        found = gradients(rule.factors(network, x, PER_STEP, variables=changed))
        for name in plain:
            differs = not torch.equal(plain[name], found[name])
            assert differs == name.startswith(layer), (layer, name)
    with torch.no_grad():  # nor does the readout of the network, or its loss, teach hidden layers
        network.layers["out"].synapse.weight.mul_(-3)
    found = gradients(rule.factors(network, x, PER_STEP, variables=readouts))
    for name in plain:
        assert torch.equal(plain[name], found[name]) == name.startswith("h")


@every_window
@pytest.mark.parametrize("burn_in", [1, 4, 6, T - 1])
def test_the_first_steps_teach_nothing(burn_in, window):
    """Hidden layers learn from the later steps; traces run from the first, the readout learns."""
    network, x = network_of(MODELS["lif"]), spikes()
    rule = Decolle(window=window, burn_in=burn_in)
    readouts = rule.variables(network, Seeds(3), x)
    expected, _ = local(network, x, "lif", readouts, burn_in=burn_in)
    found = gradients(rule.factors(network, x, PER_STEP, variables=readouts))
    assert_equal(found, expected, floor=1e-5)
    whole, _ = local(network, x, "lif", readouts)
    close(found["out.weight"], whole["out.weight"])
    assert float((found["h0.weight"] - whole["h0.weight"]).norm()) > 1e-3


def test_firing_rates_have_a_cost():
    """``c sum_j (f_j - f*)^2`` of all steps, its past cut as that of the local losses."""
    network, x = network_of(MODELS["lif"]), spikes()
    rule = Decolle(rate_cost=2.0, rate_target=0.3)
    readouts = rule.variables(network, Seeds(3), x)

    def costs(fired):
        return 2.0 * (fired.mean((0, 1)) - 0.3).square().sum()

    expected, _ = local(network, x, "lif", readouts, costs=costs)
    assert_equal(gradients(rule.factors(network, x, PER_STEP, variables=readouts)), expected)


@pytest.mark.parametrize("rate_cost", [0.0, 5.0])
def test_nothing_is_learned_in_the_burn_in(rate_cost):
    """ "First steps that hidden layers do not learn from": an input that ends with them."""
    network, x = network_of(MODELS["lif"]), spikes()
    rule = Decolle(burn_in=T - 1, rate_cost=rate_cost, window=1)
    errors = rule.factors(network, x, PER_STEP).synapses["h0"].delta.view(T, B, -1)
    assert float(errors[-1].abs().max()) > 0
    assert float(errors[:-1].abs().max()) == 0


@pytest.mark.parametrize("window", [0, 1])
def test_silent_layers_are_woken(window):
    network = network_of(MODELS["lif"])
    with torch.no_grad():
        network.layers["h0"].synapse.weight.fill_(0.01)
        network.layers["h0"].synapse.bias.fill_(0.01)
    rule = Decolle(window=window, rate_cost=10.0, rate_target=0.2)
    silent = PerStep(lambda y: 0 * y.sum(), separable=True)
    made = rule.factors(network, torch.ones(T, B, IN).double(), silent)
    assert float(made.activity["h0"].mean()) == 0
    assert bool((made.synapses["h0"].gradient() < 0).all())


@pytest.mark.parametrize("window", [0, 1, 4])
def test_convolutions(window):
    """Every map is read by a readout of its own; the pooled map is what goes on."""
    spec = SpikingConvNet(
        channels=(3, 4),
        kernel=3,
        padding="same",
        pool="max",
        neuron=LIF(**COMMON),
        bias=True,
        readout="mean_current",
    )
    network, x = randomised(spec.build((8, 8), K).double()), spikes(shape=(8, 8))
    rule = Decolle(window=window)
    rule.check(network, x, STEPWISE)
    readouts = rule.variables(network, Seeds(3), x)
    assert readouts["readout.conv2"].shape == (4 * 4 * 4, K)
    w = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    trace, one, r = {"conv1": 0.0, "conv2": 0.0}, 0.0, {"conv1": 0.0, "conv2": 0.0}
    total, fired = 0.0, {"conv1": [], "conv2": [], "readout": []}
    for image in x:
        activity, one = image[:, None], BETA * one + 1
        for name in trace:
            trace[name] = BETA * trace[name] + activity
            u = functional.conv2d(trace[name], w[f"{name}.weight"], padding=1)
            u = u + one * w[f"{name}.bias"][:, None, None] + BETA * r[name]
            s = Fire.apply(u - V_TH)
            r[name] = BETA * r[name] - V_TH * s.detach()
            fired[name].append(s.flatten(1) @ readouts[f"readout.{name}"])
            activity = functional.max_pool2d(s.detach(), 2)
        y = activity.flatten(1) @ w["readout.weight"].T + w["readout.bias"]
        fired["readout"].append(y)
    total = sum(step_loss(torch.stack(outputs)) for outputs in fired.values())
    torch.autograd.backward(total)
    made = rule.factors(network, x, PER_STEP, variables=readouts)
    for path, factor in made.synapses.items():
        assert float(w[f"{path}.weight"].grad.abs().max()) > 1e-4
        close(factor.gradient(), w[f"{path}.weight"].grad.flatten(1))
        close(factor.bias_gradient(), w[f"{path}.bias"].grad)


def test_readouts_are_drawn_by_the_seed():
    network, rule = network_of(MODELS["lif"]), Decolle()
    a, b, c = (rule.variables(network, Seeds(s), spikes()) for s in (0, 0, 1))
    assert {n: tuple(g.shape) for n, g in a.items()} == {
        "readout.h0": (7, K),
        "readout.h1": (6, K),
    }
    for name, g in a.items():
        assert g.dtype == torch.float64 and not g.requires_grad
        assert torch.equal(g, b[name]) and not torch.equal(g, c[name])
        assert float(g.abs().max()) <= len(g) ** -0.5
    assert not torch.equal(a["readout.h0"][:6], a["readout.h1"])
    wrong = {**a, "readout.h0": a["readout.h1"]}
    with pytest.raises(UsageError, match="has shape"):
        rule.factors(network, spikes(), PER_STEP, variables=wrong)


@pytest.mark.parametrize("rule", [Decolle(), Decolle(window=1, update="window")])
def test_local_readouts_stay_as_they_are(rule):
    learner = Learner(
        stream=permuted(spikecl.load_data("digits"), experiences=2, seed=1),
        network=SpikingMlp(hidden=(12, 9), readout="mean_current").build((8, 8), 10),
        encoder=Direct(steps=3),
        trainer=rule,
        methods=(),
        optimiser=Sgd(lr=0.3, weight_decay=0.01, momentum=0.5),
        plan=TrainPlan(batch=200, epochs=1),
        seeds=Seeds(4),
        device=torch.device("cpu"),
        loss=STEPWISE,
    )
    learner.prepare()
    start = {n: g.clone() for n, g in learner.calls.variables.items()}
    weights = {n: p.detach().clone() for n, p in learner.network.weights().items()}
    assert sorted(start) == ["readout.hidden1", "readout.hidden2"]
    for _ in learner.ticks():
        pass
    for name, g in start.items():
        assert torch.equal(g, learner.calls.variables[name])
    for name, p in weights.items():
        assert not torch.equal(p, learner.network.weights()[name])


@pytest.mark.parametrize("window", [0, 2])
def test_projected_rows_are_the_projected_gradient(window):
    network, x = network_of(MODELS["cuba"]), spikes()
    made = Decolle(window=window).factors(network, x, PER_STEP)
    old = (torch.rand(3, IN, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    basis = torch.linalg.svd(old, full_matrices=True).Vh
    outside = Complement(basis[:3], basis[3:].T.contiguous())
    factor = made.synapses["h0"]
    close(factor.transmitted, x.flatten(0, 1))
    gradient, found = factor.gradient(), factor.project(outside).gradient()
    close(found, gradient - (gradient @ basis[:3].T) @ basis[:3])
    assert float((old @ found.T).abs().max()) < 1e-10 < float((old @ gradient.T).abs().max())


# ---- what is refused, and runs -------------------------------------------------------------------

MEMBRANE = {"hidden": (20,), "readout": "mean_current"}
REFUSED = {
    "twin": (Mlp(hidden=(20,)), Decolle(), None, "none that spike"),
    "loss": (SpikingMlp(**MEMBRANE), Decolle(), None, "error of each step"),
    "alif": (SpikingMlp(**MEMBRANE, neuron=ALIF()), Decolle(), STEPWISE, "use trainer 'bptt'"),
    "hard": (SpikingMlp(**MEMBRANE, neuron=LIF(reset="zero")), Decolle(), STEPWISE, "differ"),
    "delay": (SpikingMlp(**MEMBRANE, delay=2), Decolle(), STEPWISE, "carries activity"),
    "norm": (SpikingMlp(**MEMBRANE, norm="batch"), Decolle(), STEPWISE, "normalised"),
    "window": (SpikingMlp(**MEMBRANE), Decolle(window=5), STEPWISE, "use at most 4"),
    "burn-in": (SpikingMlp(**MEMBRANE), Decolle(burn_in=4), STEPWISE, "burn_in"),
    "update": (SpikingMlp(**MEMBRANE), Decolle(update="window"), STEPWISE, "set window"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused_before_anything_is_written(case, tmp_path):
    spec, rule, loss, why = REFUSED[case]
    with pytest.raises(PairingError, match=why):
        run_digits(rule, spec, tmp_path / "runs", loss)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def run_digits(rule, spec, folder, loss, lr=0.5):
    return spikecl.run(
        permuted(spikecl.load_data("digits"), experiences=1, seed=1),
        spec,
        rule,
        encoder=Direct(steps=4),
        loss=loss,
        optimiser=Sgd(lr=lr),
        plan=TrainPlan(batch=32, epochs=3),
        runs_dir=folder,
    )


SOFT = LIF(beta=0.5, v_th=0.5)
RUNS = {
    "whole": (SpikingMlp(hidden=(60, 40), neuron=SOFT, readout="mean_current"), Decolle(), 0.5),
    "online": (
        SpikingRecurrentNet(hidden=(40,), neuron=SOFT, readout="mean_current"),
        Decolle(window=1, update="window", burn_in=1, rate_cost=0.1),
        0.3,
    ),
}


@pytest.mark.parametrize("case", list(RUNS))
def test_it_learns(case, tmp_path):
    spec, rule, lr = RUNS[case]
    assert float(run_digits(rule, spec, tmp_path, STEPWISE, lr).matrix[-1, 0]) > 0.6


def test_hidden_layers_learn():
    """With the readout fixed by its start, what hidden layers learn still lowers their losses."""
    network, x = network_of(MODELS["lif"], kappa=None), spikes()
    rule = replace(Decolle())
    readouts = rule.variables(network, Seeds(3), x)

    def local_loss():
        recording = network.record(x)
        fired = torch.from_numpy(recording["h0"]["spikes"])
        return float(step_loss(fired @ readouts["readout.h0"]))

    first = local_loss()
    for _ in range(200):
        made = rule.factors(network, x, PER_STEP, variables=readouts)
        with torch.no_grad():
            network.layers["h0"].synapse.weight.sub_(0.5 * made.synapses["h0"].gradient())
    assert local_loss() < first - 0.02
