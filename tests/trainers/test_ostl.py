"""OSTL and OSTTP against BPTT of one layer and loops written from the papers.

Bohnstingl et al. 2022; Ortner et al. 2023. Neurons and networks are written out below.
"""

from dataclasses import replace

import pytest
import torch

import spikecl
from spikecl.encoding import Direct, StepCrossEntropy
from spikecl.errors import PairingError, UsageError
from spikecl.learner import TrainPlan
from spikecl.networks import (
    Cells,
    Layer,
    Linear,
    Mlp,
    Network,
    NoAutapses,
    Paths,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
)
from spikecl.neurons import ALIF, CUBA, LIF, LeakyIntegrator, Triangle
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import permuted
from spikecl.trainers import Bptt, Call, Ostl, Osttp, PerStep
from spikecl.trainers.credit import credit

T, B, IN, N, K = 9, 5, 6, 7, 3
BETA, V_TH, RHO, ADAPT, ALPHA, KAPPA = 0.8, 0.5, 0.9, 0.7, 0.6, 0.75
LABELS = torch.tensor([0, 1, 2, 2, 1])
STEPWISE = StepCrossEntropy()
COMMON = {"beta": BETA, "v_th": V_TH, "surrogate": Triangle(height=0.3, width=1.0)}
MODELS = {
    "lif": LIF(**COMMON),
    "alif": ALIF(**COMMON, rho=RHO, adaptation=ADAPT, normalise=False),
    "cuba": CUBA(**COMMON, alpha=ALPHA),
}
every_model = pytest.mark.parametrize("model", list(MODELS))
every_window = pytest.mark.parametrize("window", [0, 1, 4])
kept_or_not = pytest.mark.parametrize("kept", [False, True])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def spikes(steps=T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(steps, B, IN, generator=generator) < 0.5).double()


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


def network_of(
    neuron, *, sizes=(N,), kappa=None, recurrent=False, autapses=True, readout=None, seed=1
):
    layers, n, source = {}, IN, "input"
    for i, m in enumerate(sizes):
        onto = Linear(m, m, maps=() if autapses else (NoAutapses(),)) if recurrent else None
        layers[f"h{i}"] = Layer(
            Linear(n, m, bias=True), Cells(neuron, learns=()), inputs=(source,), recurrent=onto
        )
        n, source = m, f"h{i}"
    if kappa is not None:
        readout = LeakyIntegrator(kappa=kappa)
    cells = None if readout is None else Cells(readout)
    layers["out"] = Layer(Linear(n, K, bias=True), cells, inputs=(source,))
    network = Network(layers, mean_first=False).double()
    with torch.no_grad():
        for i, p in enumerate(network.weights().values()):
            generator = torch.Generator().manual_seed(seed + i)
            fan = p[0].numel() if p.dim() > 1 else 4.0
            p.copy_(1.5 / fan**0.5 * torch.randn(p.shape, generator=generator))
    return network


def gradients(factors):
    found = {}
    for path, factor in factors.synapses.items():
        found[f"{path}.weight"] = factor.gradient()
        if path.startswith(("h", "o")) and not path.endswith("recurrent"):
            found[f"{path}.bias"] = factor.bias_gradient()
    return found


def assert_equal(found, expected, floor=1e-4):
    assert set(found) == set(expected)
    for name in expected:
        assert float(expected[name].abs().max()) > floor, name
        close(found[name], expected[name])


def hand(network, x, model, *, kept, kappa=KAPPA, through=None):
    """One layer; ``through`` says what of the last spikes passes the recurrent weights."""
    w = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    weight = w.get("h0.recurrent.weight")
    v = z = third = torch.zeros(B, N, dtype=torch.float64)
    y, outputs, rates = torch.zeros(B, K, dtype=torch.float64), [], []
    for p in x:
        current = p @ w["h0.weight"].T + w["h0.bias"]
        if weight is not None:
            current = current + through(z, weight)
        v = v - V_TH * (z if kept else z.detach())
        if model == "cuba":
            third = ALPHA * third + current
            current = third
        if model == "alif":
            third = RHO * third + z
        v = BETA * v + current
        z = Fire.apply(v - V_TH - (ADAPT * third if model == "alif" else 0.0))
        y = kappa * y + z @ w["out.weight"].T + w["out.bias"]
        outputs.append(y)
        rates.append(z.detach().mean())
    assert 0.05 < float(torch.stack(rates).mean()) < 0.8
    torch.autograd.backward(step_loss(torch.stack(outputs)))
    return {n: p.grad for n, p in w.items()}


@every_model
@every_window
@kept_or_not
@pytest.mark.parametrize("kappa", [None, KAPPA])
def test_of_one_feed_forward_layer_it_is_bptt(model, window, kept, kappa):
    network = network_of(replace(MODELS[model], detach_reset=not kept), kappa=kappa)
    expected = hand(network, spikes(), model, kept=kept, kappa=kappa or 0.0)
    rule = Ostl(window=window)
    rule.check(network, spikes(), STEPWISE)
    made = rule.factors(network, spikes(), PER_STEP)
    assert_equal(gradients(made), expected)
    bptt = Bptt().factors(network, spikes(), PER_STEP)
    close(made.loss, bptt.loss)
    close(made.logits, bptt.logits)


def onto_itself(z, weight):
    """Spikes go everywhere, errors come back along the diagonal alone."""
    cut = z.detach()
    return cut @ weight.T + (z - cut) * weight.diagonal().detach()


def onto_nobody(z, weight):
    return z.detach() @ weight.T


@every_model
@every_window
@kept_or_not
def test_a_synapse_onto_itself_is_a_neuron_s_own_memory(model, window, kept):
    network = network_of(replace(MODELS[model], detach_reset=not kept), recurrent=True, kappa=KAPPA)
    expected = hand(network, spikes(), model, kept=kept, through=onto_itself)
    other = hand(network, spikes(), model, kept=kept, through=onto_nobody)
    assert float((expected["h0.weight"] - other["h0.weight"]).abs().max()) > 1e-4
    rule = Ostl(window=window)
    rule.check(network, spikes(), STEPWISE)
    assert_equal(gradients(rule.factors(network, spikes(), PER_STEP)), expected)


@every_window
def test_of_diagonal_recurrence_it_is_bptt(window):
    """Neurons that hear only themselves: nothing is left out."""
    network = network_of(MODELS["alif"], recurrent=True, kappa=KAPPA)
    with torch.no_grad():
        weight = network.layers["h0"].recurrent.weight
        weight.copy_(weight.diagonal().diag())
    whole = hand(network, spikes(), "alif", kept=False, through=lambda z, w: z @ w.T)
    found = gradients(Ostl(window=window).factors(network, spikes(), PER_STEP))
    assert_equal(found, whole)


@every_window
def test_without_autapses_errors_do_not_pass_the_layer(window):
    network = network_of(MODELS["lif"], recurrent=True, autapses=False, kappa=KAPPA)
    with torch.no_grad():
        network.layers["h0"].recurrent.weight.fill_diagonal_(0)
    expected = hand(network, spikes(), "lif", kept=False, through=onto_nobody)
    found = gradients(Ostl(window=window).factors(network, spikes(), PER_STEP))
    assert_equal(found, expected)


def deep(network, x, signal_of, *, sizes=(7, 6)):
    """Kept reset, two LIF layers: explicit eligibility with ``- v_th e[t-1]``, signals per step."""
    w = {n: p.detach() for n, p in network.weights().items()}
    found = {n: torch.zeros_like(p) for n, p in w.items()}
    v, eps, e = [0.0, 0.0], {}, {}
    for activity in x:
        psi, sent, fired = {}, {}, {}
        for i, n in enumerate(sizes):
            name = f"h{i}"
            sent[name] = torch.cat([activity, torch.ones(B, 1).double()], 1)
            u = BETA * v[i] + activity @ w[f"{name}.weight"].T + w[f"{name}.bias"]
            activity = (u > V_TH).double()
            v[i] = u - V_TH * activity
            psi[name], fired[name] = 0.3 * (1 - (u - V_TH).abs()).clamp_min(0), activity
            past = eps.get(name, 0.0) - V_TH * e.get(name, 0.0)
            eps[name] = BETA * past + sent[name][:, None].expand(B, n, -1)
            e[name] = psi[name][..., None] * eps[name]
        y = activity @ w["out.weight"].T + w["out.bias"]
        error = (y.softmax(1) - torch.eye(K).double()[LABELS]) / (T * B)
        found["out.weight"] += error.T @ activity
        found["out.bias"] += error.sum(0)
        for name, signal in signal_of(w, error, psi).items():
            gradient = (signal[..., None] * e[name]).sum(0)
            found[f"{name}.weight"] += gradient[:, :-1]
            found[f"{name}.bias"] += gradient[:, -1]
    return found


def down(w, error, psi):
    """Spatial signals: through the layers, within the step."""
    last = error @ w["out.weight"]
    return {"h1": last, "h0": (psi["h1"] * last) @ w["h1.weight"]}


@every_window
def test_several_layers(window):
    network = network_of(replace(MODELS["lif"], detach_reset=False), sizes=(7, 6))
    expected = deep(network, spikes(), down)
    assert_equal(gradients(Ostl(window=window).factors(network, spikes(), PER_STEP)), expected)
    whole = gradients(Bptt().factors(network, spikes(), PER_STEP))
    assert float((whole["h0.weight"] - expected["h0.weight"]).norm()) > 1e-2


# ---- OSTTP ---------------------------------------------------------------------------------------


@every_window
def test_targets_go_to_every_layer(window):
    """``L_l = -B_l^T y / (B T)`` in place of the error; eligibility as above."""
    network = network_of(replace(MODELS["lif"], detach_reset=False), sizes=(7, 6))
    rule = Osttp(window=window)
    rule.check(network, spikes(), STEPWISE)
    variables = rule.variables(network, Seeds(3), spikes())
    assert {n: tuple(b.shape) for n, b in variables.items()} == {
        "feedback.h0": (K, 7),
        "feedback.h1": (K, 6),
    }
    one_hot = torch.eye(K, dtype=torch.float64)[LABELS]

    def signal_of(w, error, psi):
        return {n: -(one_hot @ variables[f"feedback.{n}"]) / (B * T) for n in ("h0", "h1")}

    expected = deep(network, spikes(), signal_of)
    found = rule.factors(network, spikes(), PER_STEP, variables=variables, labels=LABELS)
    assert_equal(gradients(found), expected)


@pytest.mark.parametrize("kappa", [None, KAPPA])
@every_window
def test_hidden_layers_do_not_hear_the_error(window, kappa):
    """Another loss, other readout weights: hidden gradients stay; other labels: they change."""
    network = network_of(MODELS["alif"], kappa=kappa)
    rule = Osttp(window=window)
    rule.check(network, spikes(), STEPWISE)
    variables = rule.variables(network, Seeds(3), spikes())

    def found(loss=step_loss, labels=LABELS):
        given = PerStep(loss, separable=True)
        made = rule.factors(network, spikes(), given, variables=variables, labels=labels)
        return gradients(made)

    plain, other = found(), found(lambda y: 7 * (y - 2).square().mean())
    assert float((plain["out.weight"] - other["out.weight"]).abs().max()) > 0.1
    close(other["h0.weight"], plain["h0.weight"])
    changed = found(labels=(LABELS + 1) % K)
    assert float((changed["h0.weight"] - plain["h0.weight"]).abs().max()) > 1e-3
    with torch.no_grad():
        network.layers["out"].synapse.weight.mul_(-3)
    close(found()["h0.weight"], plain["h0.weight"])


@every_model
@pytest.mark.parametrize("window", [1, 4])
def test_targets_do_not_pass_the_readout(model, window):
    """Its leak delays errors, and targets are none: windows equal all steps at once."""
    network = network_of(MODELS[model], kappa=KAPPA, recurrent=True)
    rules = Osttp(), Osttp(window=window)
    rules[1].check(network, spikes(), STEPWISE)
    whole, found = (r.factors(network, spikes(), PER_STEP, labels=LABELS) for r in rules)
    assert_equal(gradients(found), gradients(whole))


def test_the_readout_is_that_of_ostl():
    network = network_of(MODELS["alif"], kappa=KAPPA)
    for window in (0, 1, 4):
        a = gradients(Ostl(window=window).factors(network, spikes(), PER_STEP))
        made = Osttp(window=window).factors(network, spikes(), PER_STEP, labels=LABELS)
        for name in ("out.weight", "out.bias"):
            close(gradients(made)[name], a[name])


@every_model
def test_with_the_true_signal_for_the_target_it_is_ostl(model):
    """The signals of OSTL, sent in place of ``-B y``, give OSTL: eligibility is the same."""
    network, x = network_of(MODELS[model]), spikes()
    call = Call(network, x, PER_STEP, labels=LABELS)
    error = (network(x).steps.detach().softmax(2) - torch.eye(K).double()[LABELS]) / (T * B)
    signal = error @ network.weights()["out.weight"].detach()
    made = credit(
        call,
        Paths(space="none", recurrent=False),
        feedback="none",
        extra=lambda fired: {"h0": signal},
    )
    assert_equal(gradients(made), gradients(Ostl().factors(network, x, PER_STEP)))


@every_window
def test_with_the_true_signal_as_feedback_of_a_target_it_is_ostl(window):
    """An error that does not change in time is a target: a linear loss, ``B = W_out``.

    ``E = -mean_t sum_k y*_k out_k / B`` has the error ``-y* / (B T)`` at each step.
    """
    network, x = network_of(replace(MODELS["lif"], detach_reset=False)), spikes()
    one_hot = torch.eye(K, dtype=torch.float64)[LABELS]
    loss = PerStep(lambda y: -(one_hot * y).sum(2).mean(), separable=True)
    variables = {"feedback.h0": network.weights()["out.weight"].detach()}
    found = Osttp(window=window).factors(network, x, loss, variables=variables, labels=LABELS)
    assert_equal(gradients(found), gradients(Ostl(window=window).factors(network, x, loss)))


@every_window
def test_labels_are_needed(window):
    with pytest.raises(UsageError, match="no labels were given"):
        Osttp(window=window).factors(network_of(MODELS["lif"]), spikes(), PER_STEP)


READOUTS = {
    "hard": LIF(**COMMON, reset="zero"),
    "adaptive": ALIF(**COMMON),
    "kept": LIF(**COMMON, detach_reset=False),
    "per-output": LeakyIntegrator(kappa=torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64)),
}


@pytest.mark.parametrize("readout", list(READOUTS))
@pytest.mark.parametrize("rule", [Ostl, Osttp])
def test_readouts_with_another_memory_are_refused_in_windows_or_right(readout, rule):
    network = network_of(MODELS["lif"], readout=READOUTS[readout])
    whole = rule().factors(network, spikes(), PER_STEP, labels=LABELS)
    try:
        rule(window=1).check(network, spikes(), STEPWISE)
    except PairingError:
        return
    found = rule(window=1).factors(network, spikes(), PER_STEP, labels=LABELS)
    assert_equal(gradients(found), gradients(whole))


# ---- what is refused, and runs -------------------------------------------------------------------

MEMBRANE = {"hidden": (20,), "readout": "mean_current"}
REFUSED = {
    "twin": (Mlp(hidden=(20,)), Ostl(), None, "none that spike"),
    "twin-target": (Mlp(hidden=(20,)), Osttp(), None, "none that spike"),
    "delay": (SpikingMlp(**MEMBRANE, delay=2), Osttp(), STEPWISE, "carries activity"),
    "loss": (SpikingMlp(**MEMBRANE), Ostl(window=1), None, "error of each step"),
    "loss-target": (SpikingMlp(**MEMBRANE), Osttp(window=1), None, "error of each step"),
    "norm": (SpikingMlp(**MEMBRANE, norm="batch"), Ostl(window=1), STEPWISE, "normalised"),
    "window": (SpikingMlp(**MEMBRANE), Ostl(window=5), STEPWISE, "use at most 4"),
    "update": (SpikingMlp(**MEMBRANE), Osttp(update="window"), STEPWISE, "set window"),
    "conv": (
        SpikingConvNet(channels=(4,), kernel=3, readout="mean_current", neuron=ALIF()),
        Ostl(window=1),
        STEPWISE,
        "no plain dense layer",
    ),
    "deep": (
        SpikingMlp(
            hidden=(20, 10), neuron=ALIF(), readout="mean_current", output=LeakyIntegrator()
        ),
        Ostl(window=1),
        STEPWISE,
        "come down through 2 layers",
    ),
}


def test_targets_need_a_hidden_layer():
    layers = {"out": Layer(Linear(IN, K), Cells(LIF()), inputs=("input",))}
    network = Network(layers, mean_first=False).double()
    Ostl().check(network, spikes(), STEPWISE)
    with pytest.raises(PairingError, match="hidden layers"):
        Osttp().check(network, spikes(), STEPWISE)


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


SOFT = LIF(beta=0.8, v_th=0.5)
RUNS = {
    "ostl": (SpikingRecurrentNet(hidden=(40,), neuron=SOFT), Ostl(), None, 0.5),
    "ostl-online": (
        SpikingMlp(hidden=(30,), neuron=replace(SOFT, detach_reset=False), readout="mean_current"),
        Ostl(window=1, update="window"),
        STEPWISE,
        0.2,
    ),
    "osttp": (
        SpikingMlp(hidden=(60,), neuron=SOFT, readout="mean_current", output=LeakyIntegrator()),
        Osttp(window=2),
        STEPWISE,
        0.1,
    ),
}


@pytest.mark.parametrize("case", list(RUNS))
def test_it_learns(case, tmp_path):
    spec, rule, loss, lr = RUNS[case]
    assert float(run_digits(rule, spec, tmp_path, loss, lr).matrix[-1, 0]) > 0.6
