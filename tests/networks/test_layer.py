"""Cells: parameters that learn, against autograd through plain loops; layers refuse nonsense."""

import pytest
import torch
from torch.nn import functional

from spikecl.errors import ConfigError
from spikecl.networks import Cells, Layer, Linear, SpikingMlp, form_gradients, initialise
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    ConductanceLIF,
    LeakyIntegrator,
    Reset,
    Sigmoid,
)
from spikecl.optim import Adam, Sgd
from spikecl.seeds import Seeds
from spikecl.trainers import Bptt

T, B, IN = 8, 5, 6
LABELS = torch.tensor([0, 2, 1, 1, 2])


def spikes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(T, B, IN, generator=generator) < 0.5).double()


def loss_of(logits):
    return functional.cross_entropy(3 * logits, LABELS)


def make(**options):
    network = SpikingMlp(hidden=(7,), **options).build((IN,), 3).double()
    initialise(network, Seeds(1))
    with torch.no_grad():
        for synapse in network.synapses.values():
            synapse.weight.mul_(3)
    return network


class Fire(torch.autograd.Function):
    """Heaviside step with the derivative of a logistic function of slope 4."""

    @staticmethod
    def forward(ctx, x, strict):
        ctx.save_for_backward(x)
        return ((x > 0) if strict else (x >= 0)).to(x)

    @staticmethod
    def backward(ctx, grad):
        s = torch.sigmoid(4 * ctx.saved_tensors[0])
        return grad * 4 * s * (1 - s), None


def lif_by_hand(w, x, beta, v_th, *, kept):
    """LIF with a soft reset whose gradient is cut or kept."""
    v, total = 0.0, 0.0
    for step in x:
        u = beta * v + step @ w["hidden1.weight"].T
        s = Fire.apply(u - v_th, True)
        v = u - v_th * (s if kept else s.detach())
        total = total + s @ w["readout.weight"].T / T
    return total


def plif_by_hand(w, x, beta, v_th):
    """Fang et al. 2021, equation 8: hard reset, gradient kept, fires at >=."""
    v, total, tau = 0.0, 0.0, 1 / (1 - beta)
    for step in x:
        h = v + (step @ w["hidden1.weight"].T - v) / tau
        s = Fire.apply(h - v_th, False)
        v = h * (1 - s)
        total = total + s @ w["readout.weight"].T / T
    return total


def gradients(network, x):
    factors = Bptt().factors(network, x, loss_of)
    return form_gradients(network, factors.synapses, factors.direct)


@pytest.mark.parametrize("per_neuron", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_gradients_of_beta_and_threshold_are_autograd_s(per_neuron, kept):
    neuron = LIF(beta=0.6, v_th=0.5, detach_reset=not kept)
    network = make(neuron=neuron, learns=("beta", "v_th"), per_neuron=per_neuron)
    if per_neuron:
        with torch.no_grad():
            for n in ("beta", "v_th"):
                raw = network.weights()[f"hidden1.neuron.{n}"]
                raw.add_(torch.linspace(-0.3, 0.3, 7).double())
    w = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    assert w["hidden1.neuron.beta"].shape == ((7,) if per_neuron else ())
    beta, v_th = torch.sigmoid(w["hidden1.neuron.beta"]), w["hidden1.neuron.v_th"]
    expected = lif_by_hand(w, spikes(), beta, v_th, kept=kept)
    torch.testing.assert_close(network(spikes()).logits, expected)
    wanted = torch.autograd.grad(loss_of(expected), list(w.values()))
    found = gradients(network, spikes())
    for name, gradient in zip(w, wanted, strict=True):
        assert bool(gradient.any()), name
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_plif_learns_its_decay_by_default():
    network = make(neuron=PLIF(beta=0.4, v_th=0.3))
    assert list(network.weights()) == ["hidden1.weight", "readout.weight", "hidden1.neuron.beta"]
    raw = network.weights()["hidden1.neuron.beta"]
    assert torch.sigmoid(raw).item() == pytest.approx(0.4)
    w = {n: p.detach().clone().requires_grad_() for n, p in network.weights().items()}
    expected = plif_by_hand(w, spikes(), torch.sigmoid(w["hidden1.neuron.beta"]), 0.3)
    torch.testing.assert_close(network(spikes()).logits, expected)
    wanted = torch.autograd.grad(loss_of(expected), list(w.values()))
    found = gradients(network, spikes())
    for name, gradient in zip(w, wanted, strict=True):
        assert bool(gradient.any()), name
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert not make(neuron=LIF()).weights().keys() & {"hidden1.neuron.beta"}


def test_what_learns_changes_the_output_as_a_fixed_value_would():
    """Moving the stored number is the same as building with the number it stands for."""
    network = make(neuron=PLIF(beta=0.5, v_th=0.3))
    with torch.no_grad():
        network.weights()["hidden1.neuron.beta"].fill_(1.1)
    fixed = make(neuron=PLIF(beta=float(torch.sigmoid(torch.tensor(1.1))), v_th=0.3), learns=())
    assert "hidden1.neuron.beta" not in fixed.weights()
    torch.testing.assert_close(network(spikes()).logits, fixed(spikes()).logits)


@pytest.mark.parametrize(
    ("neuron", "names"),
    [
        (LIF(beta=0.5, v_th=0.4), ("beta", "v_th")),
        (PLIF(v_th=0.3), ("beta",)),
        (CUBA(alpha=0.5, beta=0.6, v_th=0.4), ("alpha", "beta")),
        (ALIF(beta=0.5, rho=0.8, v_th=0.4), ("beta", "rho", "adaptation")),
        (LeakyIntegrator(kappa=0.5), ("kappa",)),
    ],
)
@pytest.mark.parametrize("optimiser", [Sgd(lr=50.0, momentum=0.9), Adam(lr=5.0)])
def test_values_stay_in_range_after_large_steps(neuron, names, optimiser):
    network = make(neuron=neuron, learns=names)
    cells = network.layers["hidden1"].neuron
    running, moved = optimiser.start(network.weights()), set()
    for step in range(12):
        found = gradients(network, spikes(step))
        with torch.no_grad():
            running.step(found)
        bound = cells.bound()
        for name in names:
            value = getattr(bound, name).item()
            moved |= {name} if abs(value - getattr(neuron, name)) > 0.05 else set()
            if name in ("alpha", "beta", "rho", "kappa"):
                assert 0 <= value <= 1
        assert bool(network(spikes()).logits.isfinite().all())
    assert moved


def test_restart_puts_everything_back():
    network = make(neuron=PLIF(v_th=0.3), norm="batch", standardise=True, delay=2, per_neuron=True)
    start = {n: p.detach().clone() for n, p in network.state_dict().items()}
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    initialise(network, Seeds(1))
    for name, tensor in network.state_dict().items():
        times = 3 if name.endswith("synapse.weight") else 1  # what make() made of them
        torch.testing.assert_close(times * tensor, start[name], msg=name)


def test_cells_are_a_call_without_state():
    cells = Cells(LIF(beta=0.5, surrogate=Sigmoid()), learns=("beta",))
    a, state = cells(torch.ones(3, 1, 2))
    b, _ = cells(torch.ones(3, 1, 2))
    assert torch.equal(a, b)
    c, _ = cells(torch.ones(3, 1, 2), state)
    assert not torch.equal(a, c)
    assert isinstance(cells.bound().beta, torch.Tensor) and cells.neuron.beta == 0.5


@pytest.mark.parametrize("name", ["gamma", "reset", "surrogate", "refractory"])
def test_what_cannot_learn_is_refused(name):
    with pytest.raises(ConfigError, match=f"LIF has no parameter '{name}' that could learn"):
        Cells(LIF(reset=Reset.ZERO), learns=(name,))


@pytest.mark.parametrize("reset", [Reset.SOFT, Reset.ZERO, Reset.NONE])
def test_what_no_option_uses_cannot_learn(reset):
    message = f"LIF.v_reset cannot learn: reset='{reset}' does not use it; use reset='value', or"
    with pytest.raises(ConfigError, match=message):
        Cells(LIF(reset=reset), learns=("beta", "v_reset"))
    with pytest.raises(ConfigError, match="ConductanceLIF.v_reset cannot learn"):
        Cells(ConductanceLIF(reset=Reset.NONE), learns=("v_reset",))
    assert Cells(LIF(reset=Reset.VALUE), learns=("v_reset",)).v_reset.shape == ()
    with pytest.raises(ConfigError, match="IF has no parameter 'beta' that could learn"):
        Cells(IF(), learns=("beta",))  # it would leak


def test_values_that_learn_have_the_precision_of_the_network():
    """Both when they are given as tensors and when a network in float64 starts again."""
    beta = torch.tensor([0.1, 0.7], dtype=torch.float64)
    given = Cells(LIF(beta=beta), learns=("beta",))
    assert given.beta.dtype == torch.float64
    torch.testing.assert_close(given.bound().beta.detach(), beta, rtol=0, atol=1e-15)
    network = make(neuron=PLIF(beta=0.7))
    raw = network.weights()["hidden1.neuron.beta"]
    assert raw.dtype == torch.float64
    assert torch.sigmoid(raw).item() == pytest.approx(0.7, rel=1e-15)
    assert make(neuron=PLIF()).float().weights()["hidden1.neuron.beta"].dtype == torch.float32


def test_a_layer_without_neurons_cannot_listen_to_itself():
    with pytest.raises(ConfigError, match="cannot listen to itself"):
        Layer(Linear(2, 3), None, inputs=("input",), recurrent=Linear(3, 3))
