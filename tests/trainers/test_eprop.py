"""e-prop against loops written from the paper's equations (Bellec et al. 2020), and autograd.

Nothing here asks the trainer for what it is compared with: neurons, networks and traces are written
out below, one step at a time; gradients are cut with ``detach`` where the text says so.
"""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import spikecl
from spikecl.encoding import Direct, StepCrossEntropy, StepMse
from spikecl.errors import PairingError
from spikecl.learner import Learner, TrainPlan
from spikecl.networks import (
    Cells,
    Complement,
    Layer,
    Linear,
    Mlp,
    Network,
    NoAutapses,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
)
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    Izhikevich,
    LeakyIntegrator,
    SigmaDelta,
    Triangle,
)
from spikecl.neurons.graded import SynapticIntegrator
from spikecl.neurons.neuron import leaves
from spikecl.neurons.rectified import Rectified
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.streams import permuted
from spikecl.trainers import Call, Eprop, PerStep, Steps
from spikecl.trainers.eligibility import Eligibility, slopes

T, B, IN, N, K = 9, 5, 6, 7, 3
BETA, V_TH, RHO, ADAPT, ALPHA, KAPPA = 0.8, 0.5, 0.9, 0.7, 0.6, 0.75
LABELS = torch.tensor([0, 1, 2, 2, 1])
TINY = {"rtol": 1e-10, "atol": 1e-12}
PSI = Triangle(height=0.3, width=1.0)
COMMON = {"beta": BETA, "v_th": V_TH, "surrogate": PSI}
ADAPTIVE = {"rho": RHO, "adaptation": ADAPT, "normalise": False}
MODELS = {
    "lif": LIF(**COMMON),
    "alif": ALIF(**COMMON, **ADAPTIVE),
    "cuba": CUBA(**COMMON, alpha=ALPHA),
}
every_model = pytest.mark.parametrize("model", list(MODELS))
every_window = pytest.mark.parametrize("window", [1, 3, T])


def close(found, expected):
    torch.testing.assert_close(found, expected, **TINY)


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def spikes(steps=T, shape=(IN,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(steps, B, *shape, generator=generator) < 0.5).double()


def step_loss(outputs):
    """Mean over steps and samples of the cross entropy, written out."""
    log_p = outputs - outputs.logsumexp(-1, keepdim=True)
    return -log_p.gather(2, LABELS.expand(len(outputs), -1)[..., None]).mean()


PER_STEP = PerStep(step_loss, separable=True)


def gradients(factors):
    found = dict(factors.direct)
    for path, factor in factors.synapses.items():
        found[f"{path}.weight"] = factor.gradient()
        found[f"{path}.bias"] = factor.bias_gradient() if has_bias(factor) else None
    return found


def has_bias(factor):
    return getattr(factor, "_bias", 0) is not None


def assert_equal(found, expected, names=None):
    for name in names or expected:
        if expected[name] is not None and found.get(name) is not None:
            close(found[name], expected[name])


def randomised(network, seed=1, scale=1.0):
    """Weights of a size that makes neurons spike, biases too."""
    with torch.no_grad():
        for i, (name, p) in enumerate(network.weights().items()):
            if ".neuron." not in name:
                fan = p[0].numel() if p.dim() > 1 else 4.0
                p.copy_(draw(*p.shape, seed=seed + i, scale=scale * 1.5 / fan**0.5))
    return network


# ---- one recurrent layer, written out ------------------------------------------------------------


class Fire(torch.autograd.Function):
    """A spike, differentiated as ``0.3 max(0, 1 - |d|)``."""

    @staticmethod
    def forward(ctx, d):
        ctx.save_for_backward(d)
        return (d > 0).to(d.dtype)

    @staticmethod
    def backward(ctx, g):
        (d,) = ctx.saved_tensors
        return g * psi_of(d)


def psi_of(d):
    return 0.3 * (1 - d.abs()).clamp_min(0)


def advance(model, current, state, *, cut_reset, cut_adaptation=False):
    """One step; the state is (v, last z, b or i). Returns z, the distance, and the new state."""
    v, z, third = state
    sent = z.detach() if cut_reset else z
    v = v - V_TH * sent
    if model == "cuba":
        third = ALPHA * third + current
        current = third
    if model == "alif":
        third = RHO * third + (z.detach() if cut_adaptation else z)
    u = BETA * v + current
    d = u - V_TH - (ADAPT * third if model == "alif" else 0.0)
    z = Fire.apply(d)
    return z, d, (u, z, third)


def rest(n=N):
    zero = torch.zeros(B, n, dtype=torch.float64)
    return zero, zero, zero


def one_layer(w, x, model, *, cut_reset, cut_recurrent, kappa=KAPPA):
    """Return readout outputs and spikes of a recurrent layer; z is cut where the flags say."""
    state, y, outputs, fired = rest(), 0.0, [], []
    for p in x:
        z = state[1].detach() if cut_recurrent else state[1]
        current = p @ w["h.weight"].T + w["h.bias"] + z @ w["h.recurrent.weight"].T
        z, _, state = advance(model, current, state, cut_reset=cut_reset)
        y = kappa * y + z @ w["out.weight"].T + w["out.bias"]
        outputs.append(y)
        fired.append(z)
    return torch.stack(outputs), torch.stack(fired)


def recurrent_network(neuron, *, readout=None, seed=1, autapses=False, bias=True):
    """The same as a network."""
    maps = () if autapses else (NoAutapses(),)
    readout = LeakyIntegrator(kappa=KAPPA) if readout is None else readout
    layers = {
        "h": Layer(
            Linear(IN, N, bias=bias),
            Cells(neuron, learns=()),
            inputs=("input",),
            recurrent=Linear(N, N, maps=maps),
        ),
        "out": Layer(Linear(N, K, bias=bias), Cells(readout), inputs=("h",)),
    }
    network = Network(layers, mean_first=False).double()
    randomised(network, seed)
    if not autapses:
        with torch.no_grad():
            network.layers["h"].recurrent.weight.fill_diagonal_(0)
    return network


def leaves_of(network):
    return {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}


def off_diagonal(found):
    """The diagonal of a weight without autapses is not a parameter."""
    path = "h.recurrent.weight"
    return found | {path: found[path] * (1 - torch.eye(N, dtype=torch.float64))}


def by_autograd(network, x, model, loss=step_loss, **cuts):
    w = leaves_of(network)
    outputs, fired = one_layer(w, x, model, **cuts)
    assert 0.05 < float(fired.detach().mean()) < 0.8
    torch.autograd.backward(loss(outputs))
    return {n: p.grad for n, p in w.items()}, outputs.detach(), fired.detach()


@every_model
@pytest.mark.parametrize("kept", [False, True])
def test_the_loops_are_the_networks(model, kept):
    """Forward, and BPTT of both: what follows speaks of one and the same network."""
    network = recurrent_network(replace(MODELS[model], detach_reset=not kept))
    expected, outputs, fired = by_autograd(
        network, spikes(), model, cut_reset=not kept, cut_recurrent=False
    )
    close(network(spikes()).steps.detach(), outputs)
    found = torch.autograd.grad(step_loss(network(spikes()).steps), list(network.parameters()))
    names = [name for name, _ in network.named_parameters()]
    for name, gradient in zip(names, found, strict=True):
        name = name.removeprefix("layers.").replace(".synapse.", ".")
        assert float(gradient.abs().max()) > 1e-4
        close(off_diagonal(expected)[name], gradient)


# ---- (i) factorisation ---------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("kept", [False, True])
def test_total_signals_times_eligibility_are_bptt(model, kept):
    """``dE/dW = sum_t dE/dz[t] e[t]``, the total derivative taken of the loop.

    The signal carries recurrence and reset; what a spike does to its own adaptation is in the
    eligibility, so there the loop gives the derivative by a copy of the spike.
    """
    network, neuron = recurrent_network(MODELS[model]), MODELS[model]
    w, x = leaves_of(network), spikes()
    (v, z, third), y, outputs, fired, steps = rest(), 0.0, [], [], []
    own = z  # a copy of the spike: what its own adaptation hears
    for p in x:
        current = p @ w["h.weight"].T + w["h.bias"] + z @ w["h.recurrent.weight"].T
        held = v - V_TH * (z if kept else z.detach())
        steps.append([part.detach() for part in (current, held, z, third)])
        if model == "cuba":
            third = ALPHA * third + current
        if model == "alif":
            third = RHO * third + own
        v = BETA * held + (third if model == "cuba" else current)
        d = v - V_TH - (ADAPT * third if model == "alif" else 0.0)
        z, own = Fire.apply(d), Fire.apply(d)
        z.retain_grad()
        y = KAPPA * y + z @ w["out.weight"].T + w["out.bias"]
        outputs.append(y)
        fired.append(z)
    torch.autograd.backward(step_loss(torch.stack(outputs)))
    inputs, recurrent = Eligibility(()), Eligibility(())
    found, auto = torch.zeros(N, IN + 1, dtype=torch.float64), torch.zeros(N, N).double()
    one, state = torch.ones(B, 1, dtype=torch.float64), neuron.rest(rest()[0])
    for p, (current, held, sent, third), z in zip(x, steps, fired, strict=True):
        changed = {"lif": {}, "alif": {"b": third, "spikes": sent}, "cuba": {"i": third}}[model]
        slope = slopes(neuron, current, state._replace(v=held, **changed))
        signal = z.grad[..., None]
        found += (signal * inputs.step(slope, torch.cat([p, one], 1))[1]).sum(0)
        auto += (signal * recurrent.step(slope, sent)[1]).sum(0)
    assert float(w["h.weight"].grad.abs().max()) > 1e-3
    close(found[:, :-1], w["h.weight"].grad)
    close(found[:, -1], w["h.bias"].grad)
    close(auto, w["h.recurrent.weight"].grad)


# ---- (ii) to (iv) --------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("window", [0, 1, 3, T])
@pytest.mark.parametrize("kept", [False, True])
def test_symmetric_eprop_is_autograd_with_two_cuts(model, window, kept):
    """z is cut inside W_rec z and, unless it is kept, inside the reset; b keeps its z."""
    network, x = recurrent_network(MODELS[model]), spikes()
    expected, outputs, _ = by_autograd(network, x, model, cut_reset=not kept, cut_recurrent=True)
    rule = Eprop(window=window, reset="kept" if kept else "cut")
    made = rule.factors(network, x, PER_STEP)
    found = gradients(made)
    for name in expected:
        assert float(expected[name].abs().max()) > 1e-3, name
    assert_equal(off_diagonal(found), off_diagonal(expected))
    close(made.loss, step_loss(outputs))
    close(made.logits, outputs.mean(0))


@every_model
def test_neither_cut_is_idle(model):
    """Every one of the three gradients differs from the others: the cuts above are seen."""
    network, x = recurrent_network(MODELS[model]), spikes()
    ways = [(True, True), (False, True), (True, False), (False, False)]
    found = [
        by_autograd(network, x, model, cut_reset=a, cut_recurrent=b)[0]["h.weight"] for a, b in ways
    ]
    for i in range(4):
        for j in range(i):
            assert float((found[i] - found[j]).abs().max()) > 1e-6


@every_model
@pytest.mark.parametrize("window", [0, 2])
def test_without_recurrent_weights_and_with_the_reset_it_is_bptt(model, window):
    network, x = recurrent_network(MODELS[model]), spikes()
    with torch.no_grad():
        network.layers["h"].recurrent.weight.zero_()
    expected, _, _ = by_autograd(network, x, model, cut_reset=False, cut_recurrent=False)
    found = gradients(Eprop(reset="kept", window=window).factors(network, x, PER_STEP))
    assert_equal(found, expected, ["h.weight", "h.bias", "out.weight", "out.bias"])


# ---- explicit eligibility ------------------------------------------------------------------------


def forward_only(network, x, model):
    """Return psi [T, B, N], z [T, B, N], y [T, B, K] and the error of y, of plain numbers."""
    w = {n: p.detach() for n, p in network.weights().items()}
    state, y, slope, fired, outputs = rest(), 0.0, [], [], []
    for p in x:
        current = p @ w["h.weight"].T + w["h.bias"] + state[1] @ w["h.recurrent.weight"].T
        z, d, state = advance(model, current, state, cut_reset=True)
        y = KAPPA * y + z @ w["out.weight"].T + w["out.bias"]
        slope.append(psi_of(d))
        fired.append(z)
        outputs.append(y)
    y = torch.stack(outputs)
    one_hot = torch.eye(K, dtype=torch.float64)[LABELS]
    return torch.stack(slope), torch.stack(fired), y, (y.softmax(-1) - one_hot) / (T * B)


def published(model, psi, fired, pre, *, kept=False):
    """Yield e_ji[t] [B, N, n] of presynaptic activity [T, B, n], from the equations.

    ``eps_v[t] = beta eps_v[t-1] + p[t] (- th e[t-1] decayed, where the reset is kept)``; ALIF:
    ``eps_a[t] = psi[t-1] eps_v[t-1] + (rho - adapt psi[t-1]) eps_a[t-1]``,
    ``e[t] = psi[t] (eps_v[t] - adapt eps_a[t])``.
    """
    eps_v = eps_a = eps_i = e = torch.zeros(B, N, pre.shape[2], dtype=torch.float64)
    last = torch.zeros(B, N, 1, dtype=torch.float64)
    for t, p in enumerate(pre):
        now, heard = psi[t][..., None], p[:, None].expand(B, N, -1)
        if model == "cuba":
            eps_i = ALPHA * eps_i + heard
            heard = eps_i
        eps_a = last * eps_v + (RHO - ADAPT * last) * eps_a
        eps_v = BETA * (eps_v - (V_TH * e if kept else 0.0)) + heard
        e = now * (eps_v - (ADAPT * eps_a if model == "alif" else 0.0))
        last = now
        yield e


def filtered(rows, kappa=KAPPA):
    """``m[t] = kappa m[t-1] + rows[t]``."""
    held, found = 0.0, []
    for row in rows:
        held = kappa * held + row
        found.append(held)
    return torch.stack(found)


def before(fired):
    return torch.cat([torch.zeros_like(fired[:1]), fired[:-1]])


@every_model
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("window", [0, 1, 4])
def test_it_is_the_sum_of_signals_and_filtered_eligibility(model, kept, window):
    """``dW_ji = sum_t L_j[t] ebar_ji[t]``, ``dW_kj = sum_t (pi - pi*)_k zbar_j``."""
    network, x = recurrent_network(MODELS[model]), spikes()
    psi, fired, _, error = forward_only(network, x, model)
    signal = error @ network.weights()["out.weight"].detach()
    ones = torch.ones(T, B, 1, dtype=torch.float64)
    expected = {}
    for name, pre in {"h": torch.cat([x, ones], 2), "h.recurrent": before(fired)}.items():
        e = torch.stack(list(published(model, psi, fired, pre, kept=kept)))
        online = (signal[..., None] * filtered(e)).sum((0, 1))
        reverse = filtered(signal.flip(0)).flip(0)
        close((reverse[..., None] * e).sum((0, 1)), online)  # the other order of summation
        expected[f"{name}.weight"] = online
    expected["h.bias"] = expected["h.weight"][:, -1]
    expected["h.weight"] = expected["h.weight"][:, :-1]
    expected["out.weight"] = torch.einsum("tbk,tbj->kj", error, filtered(fired))
    expected["out.bias"] = torch.einsum("tbk,tbj->k", error, filtered(ones))
    rule = Eprop(window=window, reset="kept" if kept else "cut")
    found = gradients(rule.factors(network, x, PER_STEP))
    assert_equal(off_diagonal(found), off_diagonal(expected))


def test_the_trace_of_every_synapse_is_what_the_paper_says():
    """The published eps_a of ALIF is the second number that the engine holds, e is its output."""
    neuron, x = MODELS["alif"], spikes()
    network = recurrent_network(neuron)
    psi, fired, _, _ = forward_only(network, x, "alif")
    w = {n: p.detach() for n, p in network.weights().items()}
    engine, state = Eligibility(()), neuron.rest(torch.zeros(B, N).double())
    eps_v = eps_a = torch.zeros(B, N, IN, dtype=torch.float64)
    for t, (p, e) in enumerate(zip(x, published("alif", psi, fired, x), strict=True)):
        last = before(fired)[t]
        current = p @ w["h.weight"].T + w["h.bias"] + last @ w["h.recurrent.weight"].T
        close(engine.step(slopes(neuron, current, state), p)[1], e)
        slope = (before(psi))[t][..., None]
        eps_v, eps_a = (
            BETA * eps_v + p[:, None],
            slope * eps_v + (RHO - ADAPT * slope) * eps_a,
        )
        close(engine._eps[0], eps_v)
        close(engine._eps[1], eps_a)
        _, state = neuron.advance(current, state)


# ---- several layers, feedback --------------------------------------------------------------------


def deep_network(neuron=MODELS["lif"], *, kappa=KAPPA, sizes=(7, 5), bias=True, seed=1):
    layers, n, source = {}, IN, "input"
    for i, m in enumerate(sizes):
        layers[f"h{i}"] = Layer(Linear(n, m, bias=bias), Cells(neuron, learns=()), inputs=(source,))
        n, source = m, f"h{i}"
    cells = None if kappa is None else Cells(LeakyIntegrator(kappa=kappa))
    layers["out"] = Layer(Linear(n, K, bias=bias), cells, inputs=(source,))
    return randomised(Network(layers, mean_first=False).double(), seed)


def deep_loop(network, x, feedback, variables, *, kappa=KAPPA, sizes=(7, 5), error_of=None):
    """LIF layers: forward step by step, signals down within a step, one trace per input."""
    w = {n: p.detach() for n, p in network.weights().items()}
    paths = [f"h{i}" for i in range(len(sizes))]
    v = {p: torch.zeros(B, n, dtype=torch.float64) for p, n in zip(paths, sizes)}
    psi, sent, y, outputs = {p: [] for p in paths}, {p: [] for p in [*paths, "out"]}, 0.0, []
    for p in x:
        activity = p
        for path in paths:
            sent[path].append(activity)
            u = BETA * v[path] + activity @ w[f"{path}.weight"].T + w[f"{path}.bias"]
            activity = (u > V_TH).double()
            v[path] = u - V_TH * activity
            psi[path].append(psi_of(u - V_TH))
        sent["out"].append(activity)
        y = (kappa or 0.0) * y + activity @ w["out.weight"].T + w["out.bias"]
        outputs.append(y)
    y = torch.stack(outputs)
    if error_of is None:
        one_hot = torch.eye(K, dtype=torch.float64)[LABELS]
        error = (y.softmax(-1) - one_hot) / (T * B)
    else:
        error = error_of(y)
    error = filtered(error.flip(0), kappa or 0.0).flip(0)  # of the readout's current
    found = {
        "out.weight": torch.einsum("tbk,tbj->kj", error, torch.stack(sent["out"])),
        "out.bias": error.sum((0, 1)),
    }
    delta, above = error, "out"
    for path in reversed(paths):
        weight = w[f"{above}.weight"]
        if feedback in ("random", "adaptive"):
            weight = variables[f"feedback.{above}"]
        elif feedback == "sign":
            weight = weight.sign() * variables[f"feedback.{above}"].abs().mean()
        elif feedback == "sign_random":
            weight = weight.sign() * variables[f"feedback.{above}"].abs()
        if feedback == "direct":
            signal = error @ variables[f"feedback.{path}"]
        elif feedback == "global":
            n = w[f"{path}.weight"].shape[0]
            signal = error.sum(2, keepdim=True).expand(-1, -1, n) / n**0.5
        else:
            signal = delta @ weight
        delta = torch.stack(psi[path]) * signal
        traces = filtered(torch.stack(sent[path]), BETA)
        ones = filtered(torch.ones(T, B, dtype=torch.float64), BETA)
        found[f"{path}.weight"] = torch.einsum("tbj,tbi->ji", delta, traces)
        found[f"{path}.bias"] = torch.einsum("tbj,tb->j", delta, ones)
        above = path
    return found


FEEDBACK = ["symmetric", "random", "sign", "sign_random", "adaptive", "direct"]


@pytest.mark.parametrize("feedback", FEEDBACK)
@pytest.mark.parametrize("kappa", [KAPPA, None])
@pytest.mark.parametrize("window", [0, 1, 4])
def test_signals_of_several_layers(feedback, kappa, window):
    if window and kappa and feedback != "direct":
        pytest.skip("refused, see below")
    network, x = deep_network(kappa=kappa), spikes()
    rule = Eprop(feedback=feedback, window=window)
    variables = rule.variables(network, Seeds(3), x)
    assert (feedback == "symmetric") == (variables == {})
    found = rule.factors(network, x, PER_STEP, variables=variables)
    expected = deep_loop(network, x, feedback, variables, kappa=kappa)
    for name in expected:
        assert float(expected[name].abs().max()) > 1e-4, name
    assert_equal(gradients(found), expected)


@pytest.mark.parametrize("window", [0, 1, 4])
def test_one_signal_for_all_and_regression(window):
    """``feedback="global"`` with a real-valued target: the mean square of each step."""
    network, x, target = deep_network(), spikes(), draw(B, K, seed=5)
    loss = PerStep(lambda y: (y - target).square().mean(), separable=True)
    rule = Eprop(feedback="global", window=window)
    found = rule.factors(network, x, loss)
    expected = deep_loop(
        network, x, "global", {}, error_of=lambda y: 2 * (y - target) / (T * B * K)
    )
    assert_equal(gradients(found), expected)


@pytest.mark.parametrize("model", ["lif", "alif"])
def test_regression_on_a_target_that_moves(model):
    """``L_j[t] = sum_k W_kj (y_k[t] - y*_k[t])``, of a half squared sum."""
    network, x, target = recurrent_network(MODELS[model]), spikes(), draw(T, B, K, seed=5)

    def loss(y):
        return 0.5 * (y - target).square().sum()

    expected, _, _ = by_autograd(network, x, model, loss, cut_reset=True, cut_recurrent=True)
    found = gradients(Eprop().factors(network, x, PerStep(loss)))
    assert_equal(off_diagonal(found), off_diagonal(expected))


@every_window
def test_regression_in_windows(window):
    network, x, loss = recurrent_network(MODELS["lif"]), spikes(), StepMse(correct=2.0)
    expected, _, _ = by_autograd(
        network,
        x,
        "lif",
        lambda y: (y - 2 * torch.eye(K).double()[LABELS]).square().mean(),
        cut_reset=True,
        cut_recurrent=True,
    )
    call = PerStep(lambda y: loss(y, LABELS), separable=True)
    found = gradients(Eprop(window=window).factors(network, x, call))
    assert_equal(off_diagonal(found), off_diagonal(expected))


# ---- windows -------------------------------------------------------------------------------------

VALUES = torch.linspace(0.5, 0.9, N, dtype=torch.float64)
WAITING = {"integrate_refractory": True, "reset_time": "next"}
NEURONS = {
    **MODELS,
    "if": IF(v_th=V_TH),
    "plif": PLIF(beta=0.6, v_th=V_TH),
    "hard": LIF(beta=BETA, v_th=V_TH, reset="zero"),
    "value": LIF(beta=BETA, v_th=V_TH, reset="value", v_reset=-0.2),
    "none": LIF(beta=BETA, v_th=V_TH, reset="none"),
    "next": LIF(beta=BETA, v_th=V_TH, reset_time="next"),
    "after": LIF(beta=BETA, v_th=V_TH, reset="zero", reset_time="after"),
    "after-soft": LIF(beta=BETA, v_th=V_TH, reset_time="after"),
    "scaled": LIF(beta=BETA, v_th=0.2, scale_input=True, v_rest=0.05),
    "refractory": LIF(beta=BETA, v_th=V_TH, refractory=2),
    "refractory-next": LIF(beta=BETA, v_th=V_TH, refractory=2, **WAITING),
    "refractory-alif": ALIF(beta=BETA, v_th=V_TH, refractory=1),
    "per-neuron": LIF(beta=VALUES, v_th=V_TH),
    "per-neuron-v_th": LIF(beta=BETA, v_th=VALUES),
    "per-neuron-alif": ALIF(beta=BETA, v_th=V_TH, rho=VALUES, adaptation=VALUES),
    "cuba-next": CUBA(beta=BETA, alpha=ALPHA, v_th=V_TH, reset_time="next"),
    "normalised-alif": ALIF(beta=BETA, v_th=V_TH, reset_time="after"),
    "adex": AdEx(dt=1.0, surrogate=PSI),
    "izhikevich": Izhikevich(),
    "sigma-delta": SigmaDelta(),
}
GAINS = {"adex": 8000.0, "izhikevich": 40.0}


def some_factors(rule, network, x, **options):
    generator = torch.Generator().manual_seed(7)
    return rule.factors(network, x, PER_STEP, generator=generator, labels=LABELS, **options)


@pytest.mark.parametrize("name", list(NEURONS))
@pytest.mark.parametrize("reset", ["cut", "kept"])
@pytest.mark.parametrize("leaky", [False, True])
def test_windows_equal_all_steps_at_once(name, reset, leaky):
    readout = Cells(LeakyIntegrator(kappa=KAPPA, scale_input=True)) if leaky else None
    recurs = None if name == "adex" else Linear(N, N, bias=True)
    layers = {
        "h": Layer(
            Linear(IN, N, bias=name != "sigma-delta"),
            Cells(NEURONS[name], learns=()),
            inputs=("input",),
            recurrent=None if name == "sigma-delta" else recurs,
        ),
        "out": Layer(Linear(N, K, bias=True), readout, inputs=("h",)),
    }
    network = randomised(Network(layers, mean_first=False).double(), scale=GAINS.get(name, 1.0))
    if name in GAINS:
        with torch.no_grad():
            network.layers["out"].synapse.weight.div_(GAINS[name])
    whole = some_factors(Eprop(reset=reset), network, spikes())
    assert float(whole.activity["h"].mean()) > 0.05
    expected = gradients(whole)
    assert float(expected["h.weight"].abs().max()) > 1e-6
    for window in (1, 4, T):
        rule = Eprop(reset=reset, window=window)
        if not (leaky and reset == "kept"):  # see below
            rule.check(network, spikes(), StepCrossEntropy())
        made = some_factors(rule, network, spikes())
        assert_equal(gradients(made), expected)
        close(made.loss, whole.loss)
        close(made.logits, whole.logits)
        assert len(list(made.synapses)) == len(list(whole.synapses))
        for path, factor in whole.synapses.items():
            close(made.synapses[path].transmitted, factor.transmitted)


def test_a_reset_that_is_kept_and_a_leaky_readout_in_windows():
    """A leaky integrator never resets: a kept reset of the hidden layer is none of its business."""
    Eprop(window=1, reset="kept").check(recurrent_network(MODELS["lif"]), spikes(), STEPWISE)


@pytest.mark.parametrize("kind", ["spikes", "static", "one"])
@pytest.mark.parametrize("model", ["lif", "alif"])
def test_windows_of_any_input(kind, model):
    """Analogue input that is the same at every step (stride 0), and a single step."""
    network = recurrent_network(MODELS[model])
    x = {"spikes": spikes(), "static": draw(B, IN, seed=3).expand(T, B, IN), "one": spikes(1)}[kind]
    expected, _, _ = by_autograd(network, x, model, cut_reset=True, cut_recurrent=True)
    for window in (0, 1, 2)[: 2 if kind == "one" else 3]:
        found = gradients(Eprop(window=window).factors(network, x, PER_STEP))
        assert_equal(off_diagonal(found), off_diagonal(expected))


@pytest.mark.parametrize("readout", ["li", "synaptic", "spiking"])
@pytest.mark.parametrize("model", ["lif", "alif"])
@pytest.mark.parametrize("feedback", ["symmetric", "direct", "random"])
def test_windows_of_any_readout(readout, model, feedback):
    kinds = {
        "li": LeakyIntegrator(kappa=0.6, scale_input=True),
        "synaptic": SynapticIntegrator(alpha=0.5, kappa=0.7, v_rest=0.1),
        "spiking": LIF(beta=0.7, v_th=0.3),
    }
    network, x = recurrent_network(MODELS[model], readout=kinds[readout]), spikes()
    expected = gradients(some_factors(Eprop(feedback=feedback), network, x))
    assert float(expected["h.weight"].abs().max()) > 1e-5
    for window in (1, 4):
        found = gradients(some_factors(Eprop(feedback=feedback, window=window), network, x))
        assert_equal(found, expected)


@pytest.mark.parametrize("feedback", ["symmetric", "direct"])
def test_windows_of_convolutions(feedback):
    spec = SpikingConvNet(
        channels=(3, 4),
        kernel=3,
        padding="same",
        pool="average",
        neuron=replace(MODELS["lif"], v_th=0.3),
        bias=True,
        readout="mean_current",
    )
    network = randomised(spec.build((8, 8), K).double())
    x = spikes(shape=(8, 8))
    expected = gradients(some_factors(Eprop(feedback=feedback), network, x))
    assert all(float(g.abs().max()) > 1e-5 for g in expected.values())
    for window in (1, 4):
        found = gradients(some_factors(Eprop(feedback=feedback, window=window), network, x))
        assert_equal(found, expected)


def test_windows_of_several_layers_of_any_neuron():
    network = deep_network(MODELS["alif"], kappa=None)
    expected = gradients(some_factors(Eprop(reset="kept"), network, spikes()))
    for window in (1, 4):
        rule = Eprop(window=window, reset="kept")
        assert_equal(gradients(some_factors(rule, network, spikes())), expected)


def test_a_state_to_start_from():
    network, x = recurrent_network(MODELS["alif"]), spikes()
    state = network(spikes(seed=4)).state
    expected = gradients(some_factors(Eprop(), network, x, state=state))
    plain = gradients(some_factors(Eprop(), network, x))
    assert float((plain["h.weight"] - expected["h.weight"]).abs().max()) > 1e-4
    for window in (1, 4):
        made = some_factors(Eprop(window=window), network, x, state=state)
        assert_equal(gradients(made), expected)


@pytest.mark.parametrize("window", [T, 4, 1])
@pytest.mark.parametrize("model", ["lif", "alif"])
def test_units_stay_dropped_from_window_to_window(model, window):
    """Dropout draws once for a sample: windows see the units that all steps at once see."""
    spec = SpikingMlp(
        hidden=(9,), neuron=MODELS[model], learns=(), dropout=0.5, readout="mean_current"
    )
    network = randomised(spec.build((IN,), K).double())
    whole = some_factors(Eprop(), network, spikes())
    found = some_factors(Eprop(window=window), network, spikes())
    for made in (whole, found):
        sent = made.synapses["readout"].transmitted.view(T, B, -1)
        assert set(sent.unique().tolist()) == {0.0, 2.0}
    assert_equal(gradients(found), gradients(whole), ["hidden1.weight", "readout.weight"])


def refused_or_equal(network, whole, windowed, x=None):
    """A form that windows cannot take is refused in time, or it is right."""
    x = spikes() if x is None else x
    expected = gradients(some_factors(whole, network, x))
    try:
        windowed.check(network, x, StepCrossEntropy())
    except PairingError:
        return
    found = gradients(some_factors(windowed, network, x))
    assert set(found) == set(expected)
    assert_equal(found, expected)


@pytest.mark.parametrize("model", ["lif", "cuba", "alif"])
def test_parameters_of_neurons_that_learn_in_windows(model):
    cells = Cells(MODELS[model], learns=("beta",))
    layers = {
        "h": Layer(Linear(IN, N), cells, inputs=("input",)),
        "out": Layer(Linear(N, K), None, inputs=("h",)),
    }
    network = randomised(Network(layers, mean_first=False).double())
    refused_or_equal(network, Eprop(), Eprop(window=1))


@pytest.mark.parametrize("neuron", [ALIF(noise=0.1), LIF(reset="zero", noise=0.1)])
def test_noise_in_windows_that_hold_a_trace_of_each_synapse(neuron):
    refused_or_equal(deep_network(neuron, kappa=None, sizes=(N,)), Eprop(), Eprop(window=1))


def test_noise_in_windows():
    """Of one layer: each step draws once, whatever the windows are."""
    network = deep_network(LIF(**COMMON, noise=0.3), kappa=None, sizes=(N,))
    refused_or_equal(network, Eprop(), Eprop(window=2))
    noisy, quiet = (
        some_factors(Eprop(), deep_network(LIF(**COMMON, noise=n), kappa=None), spikes())
        for n in (0.3, 0.0)
    )
    assert not torch.equal(noisy.logits, quiet.logits)


def test_activity_is_the_mean_over_all_steps():
    network, x = deep_network(kappa=None), spikes()
    whole, parts = (some_factors(Eprop(window=w), network, x) for w in (0, 4))
    for name, rate in whole.activity.items():
        close(parts.activity[name], rate)


@pytest.mark.parametrize("model", ["lif", "alif"])
def test_a_second_way_into_the_neurons_is_a_synapse_as_any_other(model):
    """Two synapses with the same rows onto one layer have the same gradient.

    ``h`` hears the input through its own synapse and, added to its current, through ``short``.
    """
    layers = {
        "short": Layer(Linear(IN, N), None, inputs=("input",)),
        "h": Layer(Linear(IN, N), Cells(MODELS[model]), inputs=("input",), currents=("short",)),
        "out": Layer(Linear(N, K), None, inputs=("h",)),
    }
    network = randomised(Network(layers, mean_first=False).double())
    found = gradients(some_factors(Eprop(), network, spikes()))
    assert float(found["h.weight"].abs().max()) > 1e-4
    close(found["short.weight"], found["h.weight"])


def shapes_of_networks():
    """Networks with a layer that has no neurons between others: a shortcut, a bottleneck."""
    cells = lambda: Cells(MODELS["lif"])  # noqa: E731
    first = Layer(Linear(IN, N), cells(), inputs=("input",))
    short, out = Layer(Linear(N, 5), None, inputs=("a",)), Layer(Linear(5, K), None, inputs=("b",))
    joined = Layer(Linear(N, 5), cells(), inputs=("a",), currents=("short",))
    narrow = Layer(Linear(5, 5), cells(), inputs=("short",))
    return {
        "shortcut": {"a": first, "short": short, "b": joined, "out": out},
        "bottleneck": {"a": first, "short": short, "b": narrow, "out": out},
    }


@pytest.mark.parametrize("name", ["shortcut", "bottleneck"])
def test_signals_pass_layers_without_neurons(name):
    """Of a single step nothing is cut: e-prop is backpropagation, whatever the layers."""
    network = randomised(Network(shapes_of_networks()[name], mean_first=False).double())
    x, weights = spikes(1), network.weights()
    expected = torch.autograd.grad(step_loss(network(x).steps), list(weights.values()))
    found = gradients(some_factors(Eprop(), network, x))
    for path, gradient in zip(weights, expected, strict=True):
        assert float(gradient.abs().max()) > 1e-4
        close(found[path], gradient)


def test_signals_pass_the_shortcuts_of_a_residual_network():
    spec = SpikingResNet(
        width=3, blocks=(1, 1), norm="none", neuron=MODELS["lif"], readout="mean_current"
    )
    network = randomised(spec.build((6, 6), K).double())
    x, weights = spikes(1, (6, 6)), network.weights()
    expected = torch.autograd.grad(step_loss(network(x).steps), list(weights.values()))
    found = gradients(some_factors(Eprop(), network, x))
    for path, gradient in zip(weights, expected, strict=True):
        assert float(gradient.abs().max()) > 1e-4
        close(found[path], gradient.flatten(1))


@pytest.mark.parametrize("kind", ["without neurons", "rectified"])
@pytest.mark.parametrize("window", [1, 3])
def test_windows_with_units_that_do_not_spike(kind, window):
    middle = None if kind == "without neurons" else Cells(Rectified())
    layers = {
        "h": Layer(Linear(IN, N), Cells(MODELS["alif"]), inputs=("input",)),
        "m": Layer(Linear(N, 5), middle, inputs=("h",)),
        "out": Layer(Linear(5, K), Cells(LeakyIntegrator(kappa=KAPPA)), inputs=("m",)),
    }
    network = randomised(Network(layers, mean_first=False).double())
    rules = Eprop(feedback="direct"), Eprop(feedback="direct", window=window)
    refused_or_equal(network, *rules)


@pytest.mark.parametrize("readout", ["mean_current", "sum", "max", "last", "leaky"])
def test_logits_and_state_of_windows(readout):
    spec = SpikingMlp(hidden=(9,), neuron=MODELS["alif"], readout=readout)
    network = randomised(spec.build((IN,), K).double())
    whole = network(spikes())
    for window in (1, 4):
        made = some_factors(Eprop(window=window), network, spikes())
        close(made.logits, whole.logits.detach())
        found, expected = leaves(made.state), leaves(whole.state)
        assert len(found) == len(expected) > 0
        for part, other in zip(found, expected, strict=True):
            close(part, other.detach())
            assert not part.requires_grad


def test_steps_that_are_made_once():
    """``Steps`` takes any iterable, also one that gives each step once."""
    network, x = deep_network(kappa=None), spikes()
    expected = gradients(Eprop(window=1).factors(network, x, PER_STEP))
    listed = Eprop(window=1).factors(network, Steps(T, lambda: list(x)), PER_STEP)
    assert_equal(gradients(listed), expected)
    made = Eprop(window=1).factors(network, Steps(T, lambda: (step for step in x)), PER_STEP)
    assert_equal(gradients(made), expected)


# ---- firing rates --------------------------------------------------------------------------------

COST, TARGET = 3.0, 0.2


@every_model
def test_the_cost_of_firing_rates_is_autograd_s(model):
    """Of ``c sum_j (f_j - f*)^2``, with the cuts of e-prop; added to the loss's gradient."""
    network, x = recurrent_network(MODELS[model]), spikes()
    w = leaves_of(network)
    outputs, fired = one_layer(w, x, model, cut_reset=True, cut_recurrent=True)
    cost = COST * (fired.mean((0, 1)) - TARGET).square().sum()
    torch.autograd.backward(step_loss(outputs) + cost)
    expected = {n: p.grad for n, p in w.items()}
    rule = Eprop(rate_cost=COST, rate_target=TARGET)
    found = gradients(rule.factors(network, x, PER_STEP))
    assert_equal(off_diagonal(found), off_diagonal(expected))
    plain = gradients(Eprop().factors(network, x, PER_STEP))
    assert float((found["h.weight"] - plain["h.weight"]).abs().max()) > 1e-2


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("kappa", [None, KAPPA])
@pytest.mark.parametrize("model", ["lif", "alif"])
def test_the_cost_of_firing_rates_online(window, kappa, model):
    """``2 c (f_j - f*) / (T B)`` meets e_ji[t] itself, f being the mean over the steps so far.

    The cost is one of the spikes, not of the readout: its leak does not delay it.
    """
    readout = None if kappa is None else Cells(LeakyIntegrator(kappa=kappa))
    layers = {
        "h": Layer(Linear(IN, N, bias=True), Cells(MODELS[model]), inputs=("input",)),
        "out": Layer(Linear(N, K), readout, inputs=("h",)),
    }
    network, x = randomised(Network(layers, mean_first=False).double()), spikes()
    w = {n: p.detach() for n, p in network.weights().items()}
    state, psi, fired = rest(), [], []
    for p in x:
        current = p @ w["h.weight"].T + w["h.bias"]
        z, d, state = advance(model, current, state, cut_reset=True)
        psi.append(psi_of(d))
        fired.append(z)
    psi, fired = torch.stack(psi), torch.stack(fired)
    e = torch.stack(list(published(model, psi, fired, x)))
    candidates = []
    for known in (1, window):  # rates known step by step, or at the end of each window
        ends = [min((t // known + 1) * known, T) for t in range(T)]
        rate = torch.stack([fired[:end].mean((0, 1)) for end in ends])
        slope = 2 * COST * (rate - TARGET) / (T * B)
        candidates.append((slope[:, None, :, None] * e).sum((0, 1)))
    rules = [Eprop(window=window, rate_cost=c, rate_target=TARGET) for c in (COST, 0.0)]
    with_cost, without = (gradients(r.factors(network, x, PER_STEP))["h.weight"] for r in rules)
    found = with_cost - without
    assert float(found.abs().max()) > 1e-2
    assert min(float((found - c).abs().max()) for c in candidates) < 1e-12


@pytest.mark.parametrize("window", [0, 2])
def test_the_cost_of_firing_rates_is_added_to_any_signal(window):
    network, x, found = deep_network(kappa=None), spikes(), {}
    for feedback in ("symmetric", "direct"):
        rules = [Eprop(feedback=feedback, rate_cost=c, window=window) for c in (COST, 0.0)]
        a, b = (gradients(rule.factors(network, x, PER_STEP)) for rule in rules)
        found[feedback] = a["h1.weight"] - b["h1.weight"]
    assert float(found["direct"].abs().max()) > 1e-2
    close(found["direct"], found["symmetric"])


@pytest.mark.parametrize("window", [0, 1])
def test_silent_neurons_are_woken_and_busy_ones_calmed(window):
    """The change is minus the gradient: weights of active inputs grow, or shrink."""
    layers = {
        "h": Layer(Linear(IN, N), Cells(LIF(beta=BETA, v_th=1.0)), inputs=("input",)),
        "out": Layer(Linear(N, K), None, inputs=("h",)),
    }
    network, x = Network(layers, mean_first=False).double(), torch.ones(T, B, IN).double()
    rule = Eprop(rate_cost=COST, rate_target=TARGET, window=window)
    for value, sign in ((0.02, 1), (0.4, -1)):  # silent: u < 0.6; busy: u > 2 at once
        with torch.no_grad():
            network.layers["h"].synapse.weight.fill_(value)
        made = rule.factors(network, x, PerStep(lambda y: 0 * y.sum(), separable=True))
        assert (float(made.activity["h"].mean()) == 0) == (sign == 1)
        assert bool((-sign * made.synapses["h"].gradient() > 0).all())


# ---- the two matrices of adaptive feedback meet --------------------------------------------------


def digits_learner(trainer, spec, *, loss=None, optimiser=None, batch=50, **options):
    stream = permuted(spikecl.load_data("digits"), experiences=1, seed=1)
    return Learner(
        stream=stream,
        network=spec.build((8, 8), 10),
        encoder=Direct(steps=3),
        trainer=trainer,
        methods=(),
        optimiser=optimiser or Sgd(lr=0.1),
        plan=TrainPlan(batch=batch, epochs=1),
        seeds=Seeds(4),
        device=torch.device("cpu"),
        loss=loss,
        **options,
    )


@pytest.mark.parametrize("window", [0, 1])
def test_adaptive_feedback_meets_the_weights(window):
    """Both take the same steps and decay: ``B - W`` shrinks by ``1 - lr wd`` a step."""
    lr, decay = 0.1, 0.05
    spec = SpikingMlp(hidden=(20, 10), neuron=LIF(beta=0.5, v_th=0.5), readout="mean_current")
    rule = Eprop(feedback="adaptive", window=window)
    optimiser = Sgd(lr=lr, weight_decay=decay, momentum=0.0)
    learner = digits_learner(rule, spec, loss=StepCrossEntropy(), optimiser=optimiser)
    learner.prepare()
    start = {p: learner.calls.variables[f"feedback.{p}"].clone() for p in ("hidden2", "readout")}
    for p, b in start.items():
        start[p] = b - learner.network.weights()[f"{p}.weight"].detach()
        assert float(start[p].abs().max()) > 0.1
    w = learner.network.weights()["readout.weight"].detach().clone()
    steps = 0
    for tick in learner.ticks():
        steps += tick.kind in ("step", "window")
        if steps == 25:
            break
    for p, gap in start.items():
        now = learner.calls.variables[f"feedback.{p}"] - learner.network.weights()[f"{p}.weight"]
        torch.testing.assert_close(now.detach(), gap * (1 - lr * decay) ** 25, rtol=1e-4, atol=1e-6)
    moved = learner.network.weights()["readout.weight"].detach() - w * (1 - lr * decay) ** 25
    assert float(moved.abs().max()) > 0.01


# ---- memory --------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """Notes the most bytes that tensors made under it held at any one time."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(part, torch.Tensor):
                self._note(part.untyped_storage())
        return made

    def _note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak(rule, network, steps, *, samples=8, loss=None):
    """Most bytes held at a time while input is made step by step, gradients summed as they come."""

    def make():
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            yield (torch.rand(samples, IN, generator=generator) < 0.5).double()

    labels = torch.arange(samples) % K
    loss = PerStep(lambda y: StepCrossEntropy()(y, labels), separable=True)
    variables = rule.variables(network, Seeds(0), torch.zeros(1, samples, IN).double())
    call = Call(network, Steps(steps, make), loss, variables=variables, labels=labels)
    total = {}
    gc.collect()
    with Live() as live, torch.no_grad():
        for part in rule.parts(call):
            for path, factor in part.synapses.items():
                total[path] = total.get(path, 0.0) + factor.gradient()
    assert all(float(g.abs().max()) > 0 for g in total.values())
    return live.most


WIDE = (64,)


@pytest.mark.parametrize(
    ("model", "kappa", "window", "steps"),
    [
        ("lif", None, 1, (50, 500)),
        ("lif", None, 5, (50, 500)),
        ("lif", KAPPA, 1, (10, 100)),
        ("alif", None, 1, (10, 100)),
        ("alif", KAPPA, 5, (20, 100)),
    ],
)
def test_memory_does_not_grow_with_the_steps(model, kappa, window, steps):
    network = deep_network(MODELS[model], kappa=kappa, sizes=WIDE)
    few, many = (peak(Eprop(window=window), network, count) for count in steps)
    assert many <= 1.02 * few


def test_all_steps_at_once_do_grow():
    """The measure sees it."""
    network = deep_network(kappa=None, sizes=WIDE)
    few, many = (peak(Eprop(), network, steps) for steps in (50, 500))
    assert many > 5 * few


def test_what_is_held_is_as_large_as_it_is_said():
    """B N where one trace is all there is to know, B S with a trace for each synapse."""
    sizes, held = (200, 400), {}
    for kind, kappa, model in (("trace", None, "lif"), ("leaky", KAPPA, "lif")):
        network = [deep_network(MODELS[model], kappa=kappa, sizes=(n,)) for n in sizes]
        held[kind] = [peak(Eprop(window=1), net, 30, samples=64) for net in network]
    synapses = 64 * 200 * (IN + 1) * 8  # bytes of one trace for each synapse and sample
    assert held["trace"][1] - held["trace"][0] < 3 * synapses
    assert held["leaky"][1] - held["leaky"][0] > 2 * synapses  # eps and what is filtered
    assert held["leaky"][0] > 2 * held["trace"][0]


# ---- projection ----------------------------------------------------------------------------------


def complement_of(rows, n):
    basis = torch.linalg.svd(rows, full_matrices=True).Vh
    rank = int(torch.linalg.matrix_rank(rows))
    return Complement(basis[:rank], basis[rank:].T.contiguous())


@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("model", ["lif", "alif"])
def test_a_projected_step_leaves_old_answers(window, model):
    """Rows transmitted are spikes; projecting them is projecting the gradient."""
    network = deep_network(MODELS[model], kappa=None, sizes=(40, 30), bias=False)
    old = spikes(2)[:, :1].expand(2, B, IN)
    taught = gradients_rows(network, old)
    made = Eprop(window=window).factors(network, spikes(), PER_STEP)
    for path, factor in made.synapses.items():
        assert set(factor.transmitted.unique().tolist()) <= {0.0, 1.0}
        outside = complement_of(taught[path], factor.transmitted.shape[1])
        gradient = factor.gradient()
        expected = gradient - (gradient @ outside.basis.T) @ outside.basis
        found = factor.project(outside).gradient()
        close(found, expected)
        assert float(found.abs().max()) > 1e-6
        assert float((taught[path] @ found.T).abs().max()) < 1e-10
        assert float((taught[path] @ gradient.T).abs().max()) > 1e-4
    with torch.no_grad():
        before_ = network(old).steps.clone()
        for path, factor in made.synapses.items():
            outside = complement_of(taught[path], factor.transmitted.shape[1])
            network.synapses[path].weight.sub_(0.1 * factor.project(outside).gradient())
        assert float((network(old).steps - before_).abs().max()) < 1e-10
        assert float((network(spikes()).steps - network(old).steps[:1]).abs().max()) > 0.1


def gradients_rows(network, x):
    """Rows that each synapse passes forward, from what the neurons did."""
    recording, rows, source = network.record(x), {}, x
    for name in network.layers:
        rows[name] = source.reshape(-1, source.shape[2])
        if name in recording.traces:
            source = torch.from_numpy(recording[name]["spikes"])
    return rows


@pytest.mark.parametrize("neuron", ["lif", "alif"])
def test_hlop_takes_windows(neuron):
    """The second task moves no weight along the rows of the first, rows of traces or none."""
    spec = SpikingMlp(hidden=(12,), neuron=MODELS[neuron], learns=(), readout="mean_current")
    learner = Learner(
        stream=permuted(spikecl.load_data("digits"), experiences=2, seed=1),
        network=spec.build((8, 8), 10),
        encoder=Direct(steps=3),
        trainer=Eprop(window=1),
        methods=(spikecl.Hlop(rows=((20, 6), (10, 0))),),
        optimiser=Sgd(lr=0.3),
        plan=TrainPlan(batch=200, epochs=1),
        seeds=Seeds(4),
        device=torch.device("cpu"),
        loss=StepCrossEntropy(),
    )
    start, rows = {}, {}
    for tick in learner.ticks():
        if tick.kind == "event" and tick.position.event == 1:
            start = {n: p.detach().clone() for n, p in learner.network.weights().items()}
            (method,) = learner.methods.methods.values()
            rows = {n: side.old.clone() for n, side in method.protection.lateral.items()}
    for name, old in rows.items():
        change = learner.network.weights()[f"{name}.weight"].detach() - start[f"{name}.weight"]
        assert float(change.norm()) > 0.05
        assert float((change @ old.T).abs().max()) < 1e-5


# ---- what is refused -----------------------------------------------------------------------------

DIGITS = {"hidden": (20,), "readout": "mean_current"}
SOFT = LIF(beta=0.8, v_th=0.5)
LEAKY = LeakyIntegrator(kappa=KAPPA)
STEPWISE = StepCrossEntropy()
REFUSED = {
    "twin": (Mlp(hidden=(20,)), Eprop(), None, "none that spike"),
    "delays": (SpikingMlp(**DIGITS, delay=2), Eprop(), STEPWISE, "carries activity"),
    "axons": (SpikingMlp(**DIGITS, axonal_delay=2), Eprop(), STEPWISE, "carries activity"),
    "stp": (
        SpikingMlp(**DIGITS, stp=spikecl.networks.build.Plasticity()),
        Eprop(),
        STEPWISE,
        "carries activity",
    ),
    "loss": (SpikingMlp(**DIGITS), Eprop(window=1), None, "error of each step"),
    "norm": (SpikingMlp(**DIGITS, norm="batch"), Eprop(window=1), STEPWISE, "normalised"),
    "window": (SpikingMlp(**DIGITS), Eprop(window=5), STEPWISE, "use at most 4"),
    "update": (SpikingMlp(**DIGITS), Eprop(update="window"), STEPWISE, "set window"),
    "conv": (
        SpikingConvNet(channels=(4,), kernel=3, readout="mean_current", neuron=ALIF()),
        Eprop(window=1),
        STEPWISE,
        "no plain dense layer",
    ),
    "deep": (
        SpikingMlp(hidden=(20, 10), neuron=SOFT, readout="mean_current", output=LEAKY),
        Eprop(window=1),
        STEPWISE,
        "come down through 2 layers",
    ),
    "readout": (
        SpikingMlp(**DIGITS, neuron=SOFT, output=LIF(reset="zero")),
        Eprop(window=1),
        STEPWISE,
        "no linear memory",
    ),
    "learns": (
        SpikingMlp(**DIGITS, neuron=ALIF(), learns=("beta",)),
        Eprop(window=1),
        STEPWISE,
        "trains",
    ),
    "softmax": (SpikingMlp(**DIGITS), Eprop(feedback="global"), STEPWISE, "sum to zero"),
    "softmax-mean": (SpikingMlp(hidden=(9,)), Eprop(feedback="global"), None, "sum to zero"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused_before_anything_is_written(case, tmp_path):
    spec, rule, loss, why = REFUSED[case]
    with pytest.raises(PairingError, match=why):
        run_digits(rule, spec, tmp_path / "runs", loss=loss)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("feedback", ["random", "sign", "adaptive"])
def test_deep_and_leaky_in_windows_is_refused_for_every_way_down(feedback):
    with pytest.raises(PairingError, match="come down through 2 layers"):
        Eprop(window=1, feedback=feedback).check(deep_network(), spikes(), STEPWISE)
    Eprop(window=1, feedback="direct").check(deep_network(), spikes(), STEPWISE)
    Eprop(window=0, feedback=feedback).check(deep_network(), spikes(), STEPWISE)


# ---- runs ----------------------------------------------------------------------------------------


def run_digits(rule, spec, folder, *, loss=None, epochs=3, steps=4, lr=0.5):
    return spikecl.run(
        permuted(spikecl.load_data("digits"), experiences=1, seed=1),
        spec,
        rule,
        encoder=Direct(steps=steps),
        loss=loss,
        optimiser=Sgd(lr=lr),
        plan=TrainPlan(batch=32, epochs=epochs),
        runs_dir=folder,
    )


RUNS = {
    "whole": (SpikingMlp(hidden=(60,), neuron=SOFT), Eprop(), None),
    "traces": (SpikingMlp(**DIGITS, neuron=SOFT), Eprop(window=2, update="window"), STEPWISE),
    "alif": (
        SpikingRecurrentNet(
            hidden=(30,),
            neuron=ALIF(beta=0.8, v_th=0.5, adaptation=0.5),
            readout="mean_current",
            output=LEAKY,
        ),
        Eprop(window=1, feedback="direct", rate_cost=0.1, rate_target=0.1),
        STEPWISE,
    ),
    "direct": (SpikingMlp(**DIGITS, neuron=SOFT), Eprop(feedback="direct"), StepMse()),
}


@pytest.mark.parametrize("case", list(RUNS))
def test_it_learns(case, tmp_path):
    spec, rule, loss = RUNS[case]
    result = run_digits(rule, spec, tmp_path, loss=loss, lr=0.2 if rule.every_part else 0.5)
    assert float(result.matrix[-1, 0]) > 0.6
