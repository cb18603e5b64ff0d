"""Options that all spiking models share: refractory period, noise, firing by chance."""

import math
import warnings
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from spikecl.components import component
from spikecl.errors import UsageError
from spikecl.kernels import scan
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    ConductanceLIF,
    Escape,
    Izhikevich,
    LIFState,
    LoihiLIF,
    Refractory,
    Reset,
    Sigmoid,
    SpikingNeuron,
    step,
)

FLOAT64 = {"dtype": torch.float64}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(shape, seed=0):
    return torch.randn(shape, generator=generator(seed), **FLOAT64)


def run(x, neuron, state=None, drawn=None):
    """Return spikes [T, ...] and the states after each step."""
    spikes, states = [], []
    for current in x:
        s, state = step(current, state, neuron, drawn)
        spikes.append(s)
        states.append(state)
    return torch.stack(spikes), states


# Refractory period


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("integrating", [True, False])
def test_a_driven_neuron_fires_once_in_every_period(steps, integrating):
    neuron = LIF(v_th=0.5, refractory=steps, integrate_refractory=integrating)
    x = torch.ones(40, 1, 1, **FLOAT64)
    spikes, states = run(x, neuron)
    period = steps + 1  # the steps without a spike, and the one with
    assert spikes.flatten().tolist() == [float(t % period == 0) for t in range(40)]
    left = [state.left.item() for state in states]
    assert left == [steps - t % period for t in range(40)]


def by_hand(xs, beta, v_th, low, refractory, integrating):
    """One neuron in plain Python: Norse's rule, a held membrane and a countdown."""
    v, left, spikes, membranes = 0.0, 0, [], []
    for x in xs:
        u = beta * v + x if integrating or not left else v
        fired = u > v_th and not left
        v = low if fired else u
        left = refractory if fired else max(left - 1, 0)
        spikes.append(float(fired))
        membranes.append(v)
    return spikes, membranes


@pytest.mark.parametrize("refractory", [1, 3])
@pytest.mark.parametrize("integrating", [True, False])
def test_refractory_membranes_by_hand(refractory, integrating):
    neuron = LIF(
        beta=0.75, v_th=0.6, reset=Reset.VALUE, v_reset=-0.25, refractory=refractory,
        integrate_refractory=integrating,
    )  # fmt: skip
    x = 0.4 + 0.6 * random((60, 1, 4))
    spikes, states = run(x, neuron)
    for k in range(4):
        expected = by_hand(x[:, 0, k].tolist(), 0.75, 0.6, -0.25, refractory, integrating)
        assert spikes[:, 0, k].tolist() == expected[0]
        assert [s.neuron.v[0, k].item() for s in states] == pytest.approx(expected[1], abs=1e-12)
        assert 3 < sum(expected[0]) < 30
    plain, _ = run(x, replace(neuron, refractory=0))
    assert plain.sum() > spikes.sum()


@pytest.mark.parametrize("refractory", [1, 5])
def test_refractory_neurons_equal_those_of_norse(refractory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Norse scripts with torch.jit
        import norse.torch.functional.lif as norse_lif
        import norse.torch.functional.lif_refrac as norse_refrac
    p = norse_refrac.LIFRefracParameters(
        lif=norse_lif.LIFParameters(
            *(torch.tensor(n, **FLOAT64) for n in (200.0, 100.0, 0.0, 0.5, -0.1)),
            alpha=torch.tensor(100.0, **FLOAT64),
        ),
        rho_reset=torch.tensor(float(refractory), **FLOAT64),
    )
    ours = LIF.norse(tau_mem=10.0, tau_syn=5.0, v_th=0.5, v_reset=-0.1)
    ours = replace(ours, refractory=refractory)
    x = 0.5 + random((200, 2, 5)).abs()
    zero = torch.zeros(2, 5, **FLOAT64)
    state = norse_refrac.LIFRefracFeedForwardState(norse_lif.LIFFeedForwardState(zero, zero), zero)
    spikes, states = run(x, ours)
    for current, fired, own in zip(x, spikes, states, strict=True):
        z, state = norse_refrac.lif_refrac_feed_forward_step(current, state, p)
        assert torch.equal(fired, z)
        assert torch.equal(own.left, state.rho)
        torch.testing.assert_close(own.neuron.v, state.lif.v, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(0.8 * own.neuron.i, state.lif.i)  # ours is before the decay
    assert 0.02 < float(spikes.mean()) < 0.5


def test_the_current_goes_on_while_the_membrane_is_held():
    neuron = CUBA(alpha=0.5, beta=0.9, v_th=0.5, refractory=3, reset=Reset.ZERO)
    x = torch.zeros(6, 1, 1, **FLOAT64)
    x[0], x[2] = 1.0, 0.25
    spikes, states = run(x, neuron)
    assert spikes.flatten().tolist() == [1, 0, 0, 0, 0, 0]
    current = [s.neuron.i.item() for s in states]
    assert current == [1.0, 0.5, 0.5, 0.25, 0.125, 0.0625]
    assert [s.neuron.v.item() for s in states[:4]] == [0.0] * 4
    assert states[4].neuron.v.item() == pytest.approx(0.125)


def test_neurons_are_refractory_one_by_one_and_from_the_state_that_comes_in():
    neuron = LIF(v_th=0.5, refractory=2)
    state = Refractory(
        LIFState(torch.zeros(1, 4, **FLOAT64)), torch.tensor([[0, 1, 2, 9]], **FLOAT64)
    )
    spikes, states = run(torch.ones(4, 1, 4, **FLOAT64), neuron, state)
    assert spikes[:, 0].T.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert states[-1].left.tolist() == [[2, 0, 1, 5]]


def test_the_first_spike_is_free_and_no_period_is_no_option():
    x = torch.ones(5, 1, 1, **FLOAT64)
    assert run(x, LIF(v_th=0.5, refractory=100))[0].flatten().tolist() == [1, 0, 0, 0, 0]
    assert isinstance(step(x[0], None, LIF(refractory=0))[1], LIFState)
    assert LIF().plain
    assert not LIF(refractory=1).plain
    assert not LIF(refractory=1).random


def test_adaptation_counts_only_the_spikes_that_were_sent():
    neuron = ALIF(rho=0.5, normalise=False, adaptation=0.0, v_th=0.5, refractory=2)
    x = torch.ones(6, 1, 1, **FLOAT64)
    spikes, states = run(x, neuron)
    assert spikes.flatten().tolist() == [1, 0, 0, 1, 0, 0]
    assert [s.neuron.b.item() for s in states] == [0, 1, 0.5, 0.25, 1.125, 0.5625]


@pytest.mark.parametrize("integrating", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_masked_spikes_have_no_gradient(integrating, detach):
    neuron = LIF(
        beta=0.8, v_th=0.5, refractory=3, integrate_refractory=integrating, detach_reset=detach
    )
    x = torch.tensor([[0.3, 0.3, 0.9]], **FLOAT64).requires_grad_()
    v = torch.tensor([[0.4, 0.4, 0.4]], **FLOAT64).requires_grad_()
    state = Refractory(LIFState(v), torch.tensor([[0.0, 1.0, 3.0]], **FLOAT64))
    spikes, after = step(x, state, neuron)
    assert spikes.tolist() == [[1.0, 0.0, 0.0]]
    dx, dv = torch.autograd.grad(spikes.sum(), (x, v), retain_graph=True)
    d = 0.8 * 0.4 + 0.3 - 0.5
    psi = Sigmoid()(torch.tensor(d, **FLOAT64)).item()
    assert dx.tolist() == [[pytest.approx(psi), 0.0, 0.0]]
    assert dv.tolist() == [[pytest.approx(0.8 * psi), 0.0, 0.0]]
    dx, dv = torch.autograd.grad(after.neuron.v.sum(), (x, v))
    first = 1.0 if detach else 1 - 0.5 * psi  # a masked spike does not reset, nor its gradient
    rest = [1.0, 1.0] if integrating else [0.0, 0.0]
    assert dx.flatten().tolist() == pytest.approx([first, *rest])
    rest = [0.8, 0.8] if integrating else [1.0, 1.0]
    assert dv.flatten().tolist() == pytest.approx([0.8 * first, *rest])
    assert not after.left.requires_grad


# Noise

WITH_MEMBRANES = [
    LIF(v_th=1e9), LIF(v_th=1e9, reset_time="next"), IF(v_th=1e9), PLIF(v_th=1e9),
    ALIF(v_th=1e9), CUBA(v_th=1e9), ConductanceLIF(v_th=1e9), Izhikevich(v_peak=1e6), AdEx(),
    LoihiLIF(vth=131071),
]  # fmt: skip


@pytest.mark.parametrize("neuron", WITH_MEMBRANES, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("refractory", [0, 2])
def test_noise_has_its_standard_deviation(neuron, refractory):
    n, sd = 20_000, 0.7
    cells = (2, n // 4) if isinstance(neuron, ConductanceLIF) else (n // 4,)
    x = torch.zeros(4, *cells, **FLOAT64)
    options = {"refractory": refractory, "integrate_refractory": True}
    _, quiet = step(x, None, replace(neuron, **options))
    _, noisy = step(x, None, replace(neuron, **options, noise=sd), generator(3))
    quiet, noisy = ((s.neuron if refractory else s) for s in (quiet, noisy))
    drawn = (noisy.v - quiet.v).flatten()
    assert drawn.std().item() == pytest.approx(sd, rel=4 / math.sqrt(2 * n))
    assert abs(drawn.mean().item()) < 4 * sd / math.sqrt(n)
    assert kstest(drawn.numpy() / sd, "norm").pvalue > 1e-4
    pairs = torch.corrcoef(drawn.view(4, -1))[~torch.eye(4, dtype=torch.bool)]
    assert bool((pairs.abs() < 5 / math.sqrt(n // 4)).all())  # samples have noise of their own
    for name, other in quiet._asdict().items():  # the membrane alone
        if name != "v" and other is not None:
            assert torch.equal(other, getattr(noisy, name))


def test_noise_is_new_in_every_step_and_integrated_like_input():
    beta, sd, n = 0.8, 0.5, 4000
    neuron = LIF(beta=beta, v_th=1e9, noise=sd)
    _, states = run(torch.zeros(60, 1, n, **FLOAT64), neuron, drawn=generator())
    v = torch.stack([s.v[0] for s in states])
    drawn = v[1:] - beta * v[:-1]
    assert drawn.std().item() == pytest.approx(sd, rel=4 / math.sqrt(2 * drawn.numel()))
    pairs = (drawn[1:] * drawn[:-1]).mean().item() / sd**2
    assert abs(pairs) < 4 / math.sqrt(drawn[1:].numel())
    last = v[-1].std().item()  # of a first-order autoregression
    assert last == pytest.approx(sd / math.sqrt(1 - beta**2), rel=4 / math.sqrt(2 * n))


@pytest.mark.parametrize("distance", [-0.5, 0.0, 0.3])
def test_noise_makes_a_neuron_fire_as_often_as_the_normal_distribution_says(distance):
    n, sd = 50_000, 0.4
    x = torch.full((1, n), 1.0 + distance, **FLOAT64)
    spikes, _ = step(x, None, LIF(v_th=1.0, noise=sd), generator())
    p = 0.5 * (1 + math.erf(distance / sd / math.sqrt(2)))
    assert abs(spikes.mean().item() - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_a_held_membrane_has_no_noise():
    neuron = LIF(refractory=5, noise=1.0, v_th=0.5)
    state = Refractory(
        LIFState(torch.full((1, 50), 0.3, **FLOAT64)), torch.full((1, 50), 4.0, **FLOAT64)
    )
    _, after = step(torch.ones(1, 50, **FLOAT64), state, neuron, generator())
    assert torch.equal(after.neuron.v, state.neuron.v)


def test_noise_has_no_gradient_of_its_own():
    neuron = LIF(beta=0.8, v_th=0.5, noise=0.3)
    x = torch.ones(1, 6, **FLOAT64).requires_grad_()
    spikes, state = step(x, None, neuron, generator())
    (slope,) = torch.autograd.grad(spikes.sum(), x)
    v = state.v.detach() + 0.5 * spikes.detach()  # before the soft reset
    torch.testing.assert_close(slope, Sigmoid()(v - 0.5))


# Firing by chance


def chance(escape, d):
    """Return the probability of a spike at a distance to threshold."""
    if escape.form == "sigmoid":
        return 1 / (1 + math.exp(-d / escape.width))
    return 1 - math.exp(-escape.rate * math.exp(d / escape.width))


@pytest.mark.parametrize(
    "escape",
    [Escape(), Escape(width=0.6), Escape(form="exponential"),
     Escape(form="exponential", width=0.4, rate=0.2), Escape(form="exponential", rate=3.0)],
    ids=["sigmoid", "wide", "exponential", "rare", "often"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_escape_fires_with_the_printed_probability(escape, dtype):
    n, v_th = 20_000, 0.7
    distances = [-1.5, -0.6, -0.2, 0.0, 0.1, 0.5]
    x = torch.tensor(distances, dtype=dtype).repeat(n, 1) + v_th
    for neuron in (
        LIF(v_th=v_th, escape=escape), LIF(v_th=v_th, escape=escape, strict=False),
        LIF(v_th=v_th, escape=escape, refractory=1),
    ):  # fmt: skip
        spikes, _ = step(x, None, neuron, generator(1))
        assert set(spikes.unique().tolist()) == {0.0, 1.0}
        for d, found in zip(distances, spikes.double().mean(0).tolist(), strict=True):
            p = chance(escape, d)
            assert abs(found - p) <= 4 * math.sqrt(p * (1 - p) / n) + 1e-12, d


@pytest.mark.parametrize("form", ["sigmoid", "exponential"])
@pytest.mark.parametrize(
    ("neuron", "name", "scale"),
    [(Izhikevich(), "v_peak", 10.0), (AdEx(v_scale=4.0), "v_peak", 4.0),
     (ConductanceLIF(v_scale=5.0), "v_th", 5.0)],
)  # fmt: skip
def test_the_width_is_in_units_of_what_the_surrogate_sees(form, neuron, name, scale):
    n, above = 20_000, -1.3  # millivolts
    escape = Escape(form=form, width=0.5)
    x = torch.zeros((n, 2, 1) if isinstance(neuron, ConductanceLIF) else (n, 1), **FLOAT64)
    v = neuron.integrate(x, neuron.silence(x)).v[0, 0].item()
    neuron = replace(neuron, escape=escape, **{name: v - above})
    spikes, _ = step(x, None, neuron, generator(2))
    p = chance(escape, above / scale)
    assert abs(spikes.mean().item() - p) < 4 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("form", ["sigmoid", "exponential"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_the_threshold_chance_is_certainty(form, dtype):
    neuron = LIF(v_th=0.0, escape=Escape(form=form, width=0.1))
    for x, expected in ((20.0, 1.0), (-20.0, 0.0), (1e6, 1.0), (-1e6, 0.0)):
        spikes, state = step(torch.full((10, 1000), x, dtype=dtype), None, neuron, generator())
        assert bool((spikes == expected).all())
        assert bool(state.v.isfinite().all())


def test_a_chance_spike_resets_and_a_missed_one_does_not():
    neuron = LIF(beta=0.9, v_th=1.0, reset=Reset.VALUE, v_reset=-3.0, escape=Escape(width=1.0))
    x = torch.full((1, 400), 1.2, **FLOAT64)
    spikes, state = step(x, None, neuron, generator())
    assert 0 < float(spikes.mean()) < 1
    assert torch.equal(state.v, torch.where(spikes > 0, -3.0, x))


@pytest.mark.parametrize("form", ["sigmoid", "exponential"])
def test_chance_is_drawn_for_every_sample_neuron_and_step(form):
    neuron = LIF(beta=0.0, v_th=1.0, reset=Reset.NONE, escape=Escape(form=form, rate=0.7))
    spikes, _ = run(torch.ones(20, 20, 20, **FLOAT64), neuron, drawn=generator())
    for axis in range(3):
        rows = spikes.movedim(axis, 0).flatten(1)
        pairs = torch.corrcoef(rows)[~torch.eye(20, dtype=torch.bool)]
        assert bool((pairs.abs() < 5 / math.sqrt(400)).all())


@pytest.mark.parametrize("form", ["sigmoid", "exponential"])
def test_the_gradient_of_a_chance_spike_is_the_surrogate_at_the_true_distance(form):
    neuron = LIF(v_th=0.4, surrogate=Sigmoid(slope=3.0), escape=Escape(form=form))
    x = random((1, 50)).requires_grad_()
    spikes, _ = step(x, None, neuron, generator())
    assert not torch.equal(spikes, (x > 0.4).double())
    (slope,) = torch.autograd.grad(spikes.sum(), x)
    torch.testing.assert_close(slope, Sigmoid(slope=3.0)(x.detach() - 0.4))


def test_chance_and_refractory_period_together():
    neuron = LIF(v_th=1.0, refractory=3, escape=Escape(width=2.0))
    spikes, _ = run(torch.ones(200, 1, 50, **FLOAT64), neuron, drawn=generator())
    for lag in (1, 2, 3):
        assert not bool((spikes[lag:] * spikes[:-lag]).any())
    assert bool((spikes[4:] * spikes[:-4]).any())


# States, parameters and models of one's own


def test_a_state_that_learns_is_a_state():
    v = torch.nn.Parameter(torch.full((2, 3), 0.4))
    spikes, state = step(torch.zeros(2, 3), LIFState(v), LIF(beta=0.5))
    state.v.sum().backward()
    assert torch.equal(v.grad, torch.full((2, 3), 0.5))


def test_binding_replaces_values_and_nothing_else():
    neuron = LIF(beta=0.5, v_th=0.3, noise=0.25, surrogate=Sigmoid(slope=2.0))
    beta = torch.tensor([0.1, 0.2])
    bound = neuron.bind({"beta": beta})
    assert type(bound) is LIF
    assert bound.beta is beta
    assert replace(bound, beta=0.5) == neuron
    assert neuron.beta == 0.5


def test_binding_a_name_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="LIF has no parameter 'bta'; did you mean 'beta'"):
        LIF().bind({"v_th": torch.ones(3), "bta": torch.ones(3)})


def test_parameters_with_axes_of_their_own_fit_the_features():
    x = torch.rand(3, 2, 4, 5, generator=generator(), **FLOAT64)
    beta = torch.linspace(0.1, 0.9, 4, **FLOAT64)
    whole, _ = scan(x, None, LIF(v_th=0.6, beta=beta[:, None]))
    for k in range(4):
        row, _ = scan(x[:, :, k], None, LIF(v_th=0.6, beta=beta[k].item()))
        assert torch.equal(whole[:, :, k], row)
    with pytest.raises(UsageError, match="LIF.beta has shape"):
        scan(x, None, LIF(beta=beta))


class CountState(NamedTuple):
    v: Tensor


@component
class Counter(SpikingNeuron):
    """Fires after ``n`` units of input; a model in four lines."""

    n: int = 3

    def silence(self, x):
        return CountState(torch.zeros_like(x))

    def integrate(self, x, state):
        return CountState(state.v + x)

    def distance(self, state):
        return state.v - self.n

    def settle(self, state, spikes):
        return CountState(state.v * (1 - spikes))


def test_a_model_of_ones_own_has_all_options():
    x = torch.ones(12, 1, 1, **FLOAT64)
    fired = {
        "plain": Counter(strict=False), "refractory": Counter(strict=False, refractory=3),
        "integrating": Counter(strict=False, refractory=3, integrate_refractory=True),
    }  # fmt: skip
    at = {k: scan(x, None, n)[0].flatten().nonzero().flatten().tolist() for k, n in fired.items()}
    assert at == {"plain": [2, 5, 8, 11], "refractory": [2, 8], "integrating": [2, 6, 10]}
    noisy = Counter(noise=0.5, escape=Escape(width=0.5))
    with pytest.raises(UsageError, match="Counter draws random numbers"):
        scan(x, None, noisy)
    a, b = (scan(x, None, noisy, generator=generator(s))[0] for s in (1, 2))
    assert not torch.equal(a, b)
