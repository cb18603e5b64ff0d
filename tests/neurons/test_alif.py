"""ALIF against a plain loop, its closed forms, plain LIF and Norse's LSNN."""

import dataclasses
import itertools
import warnings

import pytest
import torch

from spikecl.errors import ConfigError
from spikecl.kernels import choose, scan
from spikecl.neurons import ALIF, LIF, ALIFState, FastSigmoid, Refractory, Reset, Sigmoid, step

with warnings.catch_warnings():
    warnings.filterwarnings(
        "ignore", message=".torch.jit.script. is deprecated", category=DeprecationWarning
    )
    import norse.torch as norse
    from norse.torch.functional.superspike import SuperSpike

TIMES = ["same", "next", "after"]


def random(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(x, neuron, state=None):
    """Return spikes, membranes and adaptations [T, ...]."""
    spikes, v, b = [], [], []
    for current in x:
        s, state = step(current, state, neuron)
        inner = state.neuron if neuron.refractory else state
        spikes.append(s)
        v.append(inner.v)
        b.append(inner.b)
    spikes = torch.stack(spikes)
    assert torch.equal(scan(x, None, neuron)[0], spikes)
    return spikes, torch.stack(v), torch.stack(b)


def by_hand(xs, neuron):
    """Run one neuron in plain Python floats, written from the docstring's equations."""
    c = 1 - neuron.beta if neuron.scale_input else 1.0
    gain = 1 - neuron.rho if neuron.normalise else 1.0
    v, b, fired, left, out = neuron.v_rest, 0.0, False, 0, []

    def reset(u):
        if neuron.reset is Reset.SOFT:
            return u - neuron.v_th
        return {Reset.ZERO: 0.0, Reset.VALUE: neuron.v_reset}.get(neuron.reset, u)

    for x in xs:
        b = neuron.rho * b + gain * fired
        held = v
        if fired and neuron.reset_time == "next" and neuron.reset is not Reset.SOFT:
            v = reset(v)
        v = neuron.v_rest + neuron.beta * (v - neuron.v_rest) + c * x
        late = neuron.reset_time == "after" or neuron.reset is Reset.SOFT
        if fired and late and neuron.reset_time != "same":
            v = reset(v)
        if left and not neuron.integrate_refractory:
            v = held
        fired = v > neuron.v_th + neuron.adaptation * b and not left
        left = neuron.refractory if fired else max(left - 1, 0)
        if fired and neuron.reset_time == "same":
            v = reset(v)
        out.append((float(fired), v, b))
    return [list(part) for part in zip(*out)]


SWITCHES = list(itertools.product(list(Reset), TIMES, [False, True], [0, 1, 3]))


@pytest.mark.parametrize(("reset", "time", "normalise", "refractory"), SWITCHES)
def test_every_switch_follows_the_printed_equations(reset, time, normalise, refractory):
    held = refractory == 1 and time == "same"  # the other times cannot hold the membrane
    neuron = ALIF(
        beta=0.8, rho=0.9, adaptation=1.2 if normalise else 0.15, normalise=normalise, v_th=0.6,
        v_rest=-0.1, v_reset=-0.3, reset=reset, reset_time=time, scale_input=refractory == 0,
        refractory=refractory, integrate_refractory=not held,
    )  # fmt: skip
    xs = 3.0 * (random(150, seed=1) - 0.25) * (1.0 if refractory == 0 else 0.4)
    got = run(xs.view(-1, 1, 1), neuron)
    expected = by_hand(xs.tolist(), neuron)
    assert 0.05 < sum(expected[0]) / 150 < 0.8
    assert got[0].flatten().tolist() == expected[0]
    for part, needed in zip(got[1:], expected[1:]):
        assert part.flatten().tolist() == pytest.approx(needed, abs=1e-12)


@pytest.mark.parametrize("time", TIMES)
def test_the_threshold_starts_at_its_base(time):
    neuron = ALIF(beta=0.9, v_th=0.7, adaptation=50.0, reset_time=time)
    at = torch.tensor([[0.7, 0.7 + 1e-9]], dtype=torch.float64)
    spikes, state = step(at, None, neuron)
    assert spikes.tolist() == [[0.0, 1.0]]
    assert state.b.tolist() == [[0.0, 0.0]]
    assert state.spikes.tolist() == [[0.0, 1.0]]
    _, state = step(torch.zeros_like(at), state, neuron)
    assert state.b.tolist() == [[0.0, pytest.approx(0.01)]]


@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("time", TIMES)
def test_without_adaptation_it_is_a_lif(reset, time):
    options = {"beta": 0.85, "reset": reset, "reset_time": time, "v_reset": -0.2}
    x = random(200, 2, 4)
    spikes, v, b = run(x, ALIF(adaptation=0.0, **options))
    expected, last = scan(x, None, LIF(**options))
    assert torch.equal(spikes, expected)
    assert torch.equal(v[-1], last.v)
    assert 0 < float(spikes.mean()) < 1
    assert float(b.max()) > 0
    adapting = run(x, ALIF(adaptation=1.0, rho=0.8, **options))[0]
    assert float(adapting.mean()) < float(spikes.mean())


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.995])
def test_the_two_normalisations_differ_by_their_gain(rho):
    x = random(250, 2, 5, seed=3)
    normalised = ALIF(beta=0.8, rho=rho, adaptation=1.6)
    plain = dataclasses.replace(normalised, normalise=False, adaptation=1.6 * (1 - rho))
    (a, v_a, b_a), (b, v_b, b_b) = run(x, normalised), run(x, plain)
    assert 0.01 < float(a.mean()) < 0.9
    assert torch.equal(a, b)
    torch.testing.assert_close(v_a, v_b, rtol=0, atol=1e-12)
    torch.testing.assert_close(b_a, b_b * (1 - rho), rtol=1e-12, atol=1e-15)
    same = dataclasses.replace(normalised, normalise=False)
    assert float(run(x, same)[0].mean()) < float(a.mean())


@pytest.mark.parametrize(("normalise", "limit"), [(True, 1.0), (False, 20.0)])
def test_adaptation_of_a_neuron_that_always_fires(normalise, limit):
    neuron = ALIF(rho=0.95, adaptation=1.6, normalise=normalise)
    _, _, b = run(torch.full((600, 1, 1), 100.0, dtype=torch.float64), neuron)
    n = torch.arange(600, dtype=torch.float64)
    torch.testing.assert_close(b[:, 0, 0], limit * (1 - 0.95**n))
    assert b[-1].item() == pytest.approx(limit)


@pytest.mark.parametrize("normalise", [False, True])
def test_adaptation_after_one_spike(normalise):
    x = torch.zeros(20, 1, 1, dtype=torch.float64)
    x[0] = 1.5
    spikes, _, b = run(x, ALIF(rho=0.7, normalise=normalise))
    assert spikes.flatten().tolist() == [1.0] + [0.0] * 19
    gain = 0.3 if normalise else 1.0
    assert b.flatten().tolist() == pytest.approx([0.0] + [gain * 0.7**n for n in range(19)])


@pytest.mark.parametrize("integrating", [False, True])
def test_adaptation_counts_true_spikes_although_the_neuron_is_refractory(integrating):
    # driven far above threshold: a spike computed from the state alone would be one in each step
    neuron = ALIF(
        beta=0.9, rho=0.9, adaptation=0.2, normalise=False, refractory=3,
        integrate_refractory=integrating, reset=Reset.NONE,
    )  # fmt: skip
    spikes, v, b = run(torch.full((13, 1, 1), 5.0, dtype=torch.float64), neuron)
    fired = [1.0, 0.0, 0.0, 0.0] * 3 + [1.0]
    assert spikes.flatten().tolist() == fired
    assert bool((v > 1 + 0.2 * b).all())
    expected, level = [], 0.0
    for t in range(13):
        level = 0.9 * level + (fired[t - 1] if t else 0.0)
        expected.append(level)
    assert b.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_a_refractory_neuron_has_no_surrogate():
    neuron = ALIF(beta=0.9, refractory=2, integrate_refractory=True)
    x = torch.full((4, 1, 1), 1.2, dtype=torch.float64, requires_grad=True)
    spikes, _ = scan(x, None, neuron)
    assert spikes.flatten().tolist() == [1.0, 0.0, 0.0, 1.0]
    assert torch.autograd.grad(spikes[1:3].sum(), x, retain_graph=True)[0].abs().max() == 0
    assert torch.autograd.grad(spikes[3].sum(), x)[0].abs().min() > 0


class Fire(torch.autograd.Function):
    """A spike with the logistic surrogate of slope 4."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        s = torch.sigmoid(4 * ctx.saved_tensors[0])
        return grad * 4 * s * (1 - s)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("time", ["same", "next"])
def test_gradient_goes_through_the_adaptation(time, detach):
    x, beta, rho = random(60, 2, 4, seed=5), 0.8, 0.85
    leaves = [x, *(torch.tensor(p, dtype=torch.float64) for p in (beta, rho, 1.3, 0.7))]
    for leaf in leaves:
        leaf.requires_grad_()
    _, beta, rho, adaptation, v_th = leaves
    v, b, s = (torch.zeros(2, 4, dtype=torch.float64) for _ in "vbs")
    outs = []
    for current in x:
        b = rho * b + (1 - rho) * s  # the spikes of the adaptation are never cut off
        wait = s.detach() if detach else s
        v = beta * v + current - (v_th * wait if time == "next" else 0)
        s = Fire.apply(v - v_th - adaptation * b)
        if time == "same":
            v = v - v_th * (s.detach() if detach else s)
        outs.append(s)
    expected = torch.stack(outs)
    neuron = ALIF(reset_time=time, detach_reset=detach, surrogate=Sigmoid()).bind(
        {"beta": beta, "rho": rho, "adaptation": adaptation, "v_th": v_th}
    )
    assert choose(neuron, x).name != "reference"
    spikes, _ = scan(x, None, neuron)
    assert torch.equal(spikes, expected)
    assert 0.05 < float(spikes.detach().mean()) < 0.7
    weight = random(*x.shape, seed=6) - 0.5
    ours, theirs = (torch.autograd.grad((o * weight).sum(), leaves) for o in (spikes, expected))
    for a, e in zip(ours, theirs):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


def numbers(seed, *ends):
    """Return one random number for each pair of ends."""
    drawn = random(len(ends), seed=seed).tolist()
    return [low + (high - low) * r for (low, high), r in zip(ends, drawn)]


@pytest.mark.parametrize("seed", [0, 1])
def test_norse_lsnn(seed, monkeypatch):
    """Norse's LSNN, its current living one step, is an ALIF that hears its input a step later.

    Its ``b`` is the whole threshold: it starts at ``v_th``, and here it is read after the spike.
    """

    def backward(ctx, grad):  # with its alpha, which 1.1.0 ignores (fixed by norse/norse#403)
        return grad / (ctx.alpha * ctx.saved_tensors[0].abs() + 1) ** 2, None

    monkeypatch.setattr(SuperSpike, "backward", staticmethod(backward))
    tau_mem, tau_adapt, rise, v_th, v_leak, v_reset = numbers(
        seed, (2, 12), (10, 60), (0.1, 0.4), (0.6, 1.2), (-0.2, 0.2), (-0.4, 0.1)
    )
    constants = (1000.0, 1000 / tau_mem, 1000 / tau_adapt, v_leak, v_th, v_reset, rise)
    exact = [torch.tensor(p, dtype=torch.float64) for p in constants]
    cell = norse.LSNNCell(norse.LSNNParameters(*exact, method="super", alpha=10.0), dt=1e-3)
    x = (v_th - v_leak) * (1.5 + 12 * (random(1000, 2, 6, seed=seed + 10) - 0.5))
    x.requires_grad_()
    zero = torch.zeros(2, 6, dtype=torch.float64)
    state, outs, v, b = norse.LSNNFeedForwardState(zero + v_leak, zero, zero + v_th), [], [], []
    for current in x:
        s, state = cell(current, state)
        outs.append(s)
        v.append(state.v)
        b.append(state.b)
    expected, rho = torch.stack(outs), 1 - 1 / tau_adapt
    neuron = ALIF(
        beta=1 - 1 / tau_mem, scale_input=True, v_th=v_th, v_rest=v_leak, v_reset=v_reset,
        reset=Reset.VALUE, detach_reset=False, rho=rho, adaptation=rho * rise, normalise=False,
        surrogate=FastSigmoid(slope=10.0),
    )  # fmt: skip
    spikes, v_ours, b_ours = run(torch.cat([zero[None], x[:-1]]), neuron)
    rates = expected.detach().mean((0, 1))
    assert bool(((rates > 0.01) & (rates < 0.7)).all())
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(v_ours, torch.stack(v), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        v_th + rise * (rho * b_ours + spikes), torch.stack(b), rtol=0, atol=1e-9
    )
    weight = random(120, 2, 6, seed=9) - 0.5
    ours, theirs = (
        torch.autograd.grad((part[:120] * weight).sum(), x)[0] for part in (spikes, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10 * theirs.abs().max().item())


def test_state_of_silence():
    rest = ALIF(v_rest=-0.5).rest(torch.zeros(2, 3))
    assert isinstance(rest, ALIFState)
    assert [part.unique().tolist() for part in rest] == [[-0.5], [0.0], [0.0]]
    held = ALIF(refractory=2).rest(torch.zeros(2, 3))
    assert isinstance(held, Refractory)
    assert isinstance(held.neuron, ALIFState)


@pytest.mark.parametrize("rho", [-0.1, 1.1])
def test_decay_of_the_adaptation_lies_between_zero_and_one(rho):
    with pytest.raises(ConfigError, match="ALIF.rho: got"):
        ALIF(rho=rho)
