"""CUBA against closed forms and a plain loop; snnTorch and Norse stand in test_presets."""

import itertools
import math

import pytest
import torch

from spikecl.errors import ConfigError
from spikecl.kernels import choose, scan
from spikecl.neurons import CUBA, LIF, CUBAState, Reset, step

NEVER = 1e9  # a threshold that nothing reaches


def run(x, neuron, state=None):
    """Return spikes, currents and membranes [T, ...]."""
    spikes, i, v = [], [], []
    for current in x:
        s, state = step(current, state, neuron)
        spikes.append(s)
        i.append(state.i)
        v.append(state.v)
    return torch.stack(spikes), torch.stack(i), torch.stack(v)


def impulse(size=1.0, steps=40, features=1):
    x = torch.zeros(steps, 1, features, dtype=torch.float64)
    x[0] = size
    return x


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("v_rest", [0.0, -0.3])
def test_impulse_response(scale, v_rest):
    alphas = torch.tensor([0.2, 0.8, 0.95, 0.0, 0.9], dtype=torch.float64)
    betas = torch.tensor([0.9, 0.7, 0.99, 0.6, 0.0], dtype=torch.float64)
    neuron = CUBA(alpha=alphas, beta=betas, v_th=NEVER, v_rest=v_rest, scale_input=scale)
    _, i, v = run(impulse(1.7, features=5), neuron)
    n = torch.arange(40, dtype=torch.float64)[:, None]
    c = 1 - betas if scale else 1.0
    torch.testing.assert_close(i[:, 0], 1.7 * alphas**n)
    # one step on from c (beta^n - alpha^n) / (beta - alpha): the membrane takes the new current
    expected = c * 1.7 * (betas ** (n + 1) - alphas ** (n + 1)) / (betas - alphas)
    torch.testing.assert_close(v[:, 0], v_rest + expected, rtol=1e-10, atol=1e-12)
    assert v[0, 0].tolist() == pytest.approx((v_rest + c * 1.7 + 0 * betas).tolist())


def test_impulse_response_of_two_equal_decays():
    _, _, v = run(impulse(), CUBA(alpha=0.8, beta=0.8, v_th=NEVER))
    assert v.flatten().tolist() == pytest.approx([(n + 1) * 0.8**n for n in range(40)])


def test_the_peak_comes_later_than_the_impulse():
    _, _, v = run(impulse(), CUBA(alpha=0.8, beta=0.9, v_th=NEVER))
    when = math.log(math.log(0.8) / math.log(0.9)) / math.log(0.9 / 0.8) + math.log(
        0.8 / 0.9
    ) / math.log(0.9 / 0.8)  # where the derivative of the closed form is zero
    assert abs(int(v.flatten().argmax()) - when) <= 1


@pytest.mark.parametrize("scale", [False, True])
def test_constant_input_settles(scale):
    neuron = CUBA(alpha=0.7, beta=0.9, v_th=NEVER, scale_input=scale, v_rest=0.2)
    _, i, v = run(torch.full((400, 1, 1), 0.5, dtype=torch.float64), neuron)
    assert i[-1].item() == pytest.approx(0.5 / 0.3)
    assert v[-1].item() == pytest.approx(0.2 + (1 if scale else 10) * 0.5 / 0.3)


def test_without_memory_of_the_current_it_is_a_lif():
    x = torch.rand(200, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for reset, time in itertools.product(Reset, ["same", "next", "after"]):
        options = {"beta": 0.85, "reset": reset, "reset_time": time, "v_reset": -0.2}
        spikes, state = scan(x, None, CUBA(alpha=0.0, **options))
        expected, last = scan(x, None, LIF(**options))
        assert torch.equal(spikes, expected)
        torch.testing.assert_close(state.v, last.v, rtol=0, atol=1e-12)
        assert 0 < float(spikes.mean()) < 1


def by_hand(xs, n):
    """Run one neuron in plain Python floats, written from the docstring's equations."""
    c = 1 - n.beta if n.scale_input else 1.0
    i, v, fired, out = 0.0, n.v_rest, False, []

    def reset(u):
        if n.reset is Reset.SOFT:
            return u - n.v_th
        return {Reset.ZERO: 0.0, Reset.VALUE: n.v_reset}.get(n.reset, u)

    for x in xs:
        i = n.alpha * i + x  # a spike leaves it alone
        if fired and n.reset_time == "next" and n.reset is not Reset.SOFT:
            v = reset(v)
        v = n.v_rest + n.beta * (v - n.v_rest) + c * i
        if fired and (n.reset_time == "after" or n.reset_time == "next" and n.reset is Reset.SOFT):
            v = reset(v)
        fired = v > n.v_th if n.strict else v >= n.v_th
        if fired and n.reset_time == "same":
            v = reset(v)
        out.append((float(fired), i, v))
    return [list(part) for part in zip(*out)]


SWITCHES = list(
    itertools.product(list(Reset), ["same", "next", "after"], [False, True], [False, True])
)


@pytest.mark.parametrize(("reset", "time", "scale", "strict"), SWITCHES)
def test_every_switch_follows_the_printed_equations(reset, time, scale, strict):
    neuron = CUBA(
        alpha=0.5, beta=0.75, v_th=0.5, v_rest=-0.125, v_reset=-0.25, reset=reset, reset_time=time,
        scale_input=scale, strict=strict,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    xs = torch.randint(-6, 9, (150,), generator=generator).double() / (4 if scale else 16)
    xs[0] = 2.5 if scale else 0.625  # meets the threshold exactly
    got = run(xs.view(-1, 1, 1), neuron)
    expected = by_hand(xs.tolist(), neuron)
    assert 0.05 < sum(expected[0]) / 150 < 0.9
    assert expected[0][0] == (0.0 if strict else 1.0)
    assert got[0].flatten().tolist() == expected[0]
    for part, needed in zip(got[1:], expected[1:]):
        assert part.flatten().tolist() == pytest.approx(needed, abs=1e-12)
    assert choose(neuron, xs.view(-1, 1, 1)).name != "reference"


def test_a_spike_leaves_the_current_alone():
    spikes, state = step(torch.tensor([[3.0, 0.1]]), None, CUBA(reset=Reset.ZERO))
    assert spikes.tolist() == [[1.0, 0.0]]
    assert state.v.tolist() == [[0.0, pytest.approx(0.1)]]
    assert state.i.tolist() == [[3.0, pytest.approx(0.1)]]


def test_gradient_of_an_impulse_is_the_response():
    x = impulse(steps=12).requires_grad_()
    state = CUBAState(*(torch.zeros(1, 1, dtype=torch.float64) for _ in "iv"))
    for current in x:
        _, state = step(current, state, CUBA(alpha=0.6, beta=0.9, v_th=NEVER))
    (gradient,) = torch.autograd.grad(state.v.sum(), x)
    expected = [(0.9 ** (n + 1) - 0.6 ** (n + 1)) / 0.3 for n in reversed(range(12))]
    assert gradient.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("decay", ["exact", "euler"])
def test_decays_from_time_constants(decay):
    neuron = CUBA.from_tau(tau_mem=20.0, tau_syn=5.0, dt=0.5, decay=decay)
    if decay == "exact":
        assert (neuron.alpha, neuron.beta) == pytest.approx((math.exp(-0.1), math.exp(-0.025)))
    else:
        assert (neuron.alpha, neuron.beta) == pytest.approx((0.9, 0.975))


def test_the_other_options_stand_beside_the_time_constants():
    options = {"v_th": 0.7, "scale_input": True, "reset": Reset.ZERO}
    neuron = CUBA.from_tau(tau_mem=20.0, tau_syn=5.0, decay="euler", **options)
    assert neuron == CUBA(alpha=0.8, beta=0.95, **options)
    with pytest.raises(TypeError, match="tau_syn"):
        CUBA.from_tau(tau_mem=20.0)  # the current would keep a decay that nobody chose


@pytest.mark.parametrize(("name", "tau"), [("tau_mem", -1.0), ("tau_syn", 0.5)])
def test_time_constants_that_make_no_sense(name, tau):
    taus = {"tau_mem": 10.0, "tau_syn": 5.0} | {name: tau}
    with pytest.raises(ConfigError, match=f"CUBA.from_tau: {name}={tau}"):
        CUBA.from_tau(**taus, decay="euler")


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
def test_decay_of_the_current_lies_between_zero_and_one(alpha):
    with pytest.raises(ConfigError, match="CUBA.alpha: got"):
        CUBA(alpha=alpha)
