"""Loihi's neuron: forward the integer equations, backward straight through them."""

import numpy as np
import pytest
import torch
from spikecl_hardware.loihi import semantics
from torch.nn import functional

from spikecl.errors import ConfigError
from spikecl.kernels import choose, scan
from spikecl.neurons import LIF, Arctan, LoihiLIF, LoihiState, Sigmoid, Triangle, step

HALF = 1 << 23
REGISTERS = ("vth", "du", "dv", "bias_mant", "bias_exp")


def registers(neuron):
    return semantics.LIFParameters(**{name: getattr(neuron, name) for name in REGISTERS})


def draw(rng, **fixed):
    """Return a neuron whose registers are drawn over their widths, small ones more often."""
    small = bool(rng.integers(2))
    drawn = {
        "vth": rng.integers(1, 300 if small else 131072),
        "du": rng.choice([0, 1, 4094, 4095, rng.integers(0, 60), rng.integers(0, 4096)]),
        "dv": rng.choice([0, 1, 4095, rng.integers(0, 60), rng.integers(0, 4096)]),
        "bias_mant": rng.integers(-4096, 4096),
        "bias_exp": rng.integers(0, 3 if small else 8),
    }
    return LoihiLIF(**{name: int(value) for name, value in (drawn | fixed).items()})


def same(ours, theirs):
    """Compare spikes, current and membrane bit by bit: whole numbers, equal to the integers."""
    spikes, state = ours
    expected, integers = theirs
    pairs = ((spikes, expected), (state.u, integers.u), (state.v, integers.v))
    for part, (got, needed) in zip(("spikes", "u", "v"), pairs):
        assert torch.equal(got.double(), torch.from_numpy(needed).double()), part


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(25))
def test_one_step_from_any_state(seed, dtype):
    rng = np.random.default_rng([seed, 1])
    neuron, shape = draw(rng), (3, 500)
    u, v = (rng.integers(1 - HALF, HALF, shape) for _ in "uv")
    a = rng.integers(-130_000, 130_001, shape)  # |u| stays within 24 bits after its wrap
    u[0, :4], v[0, :4] = [HALF - 1, 1 - HALF, 0, -1], [1 - HALF, HALF - 1, 0, -1]
    at = LoihiState(torch.from_numpy(u).to(dtype), torch.from_numpy(v).to(dtype))
    ours = step(torch.from_numpy(a).to(dtype), at, neuron)
    same(ours, semantics.lif_step(a, semantics.LIFState(u, v), registers(neuron)))
    assert ours[1].u.dtype == ours[1].v.dtype == ours[0].dtype == dtype


PROGRAMS = [  # registers and the largest input: ordinary, wrapping, clipped above and below
    ({"vth": 100, "du": 2000, "dv": 300, "bias_mant": 10, "bias_exp": 3}, 150),
    ({"vth": 120_000, "du": 20, "dv": 5, "bias_mant": -7, "bias_exp": 0}, 100_000),
    ({"vth": 131_071, "du": 3000, "dv": 0, "bias_mant": 4095, "bias_exp": 7}, 120_000),
    ({"vth": 20_000, "du": 4095, "dv": 1, "bias_mant": -4096, "bias_exp": 7}, 60_000),
    ({"vth": 1, "du": 4095, "dv": 0}, 3),
]


@pytest.mark.parametrize(("program", "largest"), PROGRAMS)
def test_a_thousand_steps(program, largest):
    neuron, rng = LoihiLIF(**program), np.random.default_rng(largest)
    a = rng.integers(-largest, largest + 1, (1000, 2, 10))
    p, state, expected, wraps, clips = registers(neuron), None, [], 0, 0
    for current in a:
        before = semantics.integrate(current, state, p)
        plain = semantics._decay(0 if state is None else state.u, p.du + 1) + 64 * current
        wraps += int((plain != before.u).sum())
        clips += int((abs(before.v) == HALF - 1).sum())
        spikes, state = semantics.lif_step(current, state, p)
        expected.append(spikes)
    expected = np.stack(expected)
    assert 0.003 < expected.mean() < 0.7
    assert (wraps > 100) == (largest >= 100_000)
    assert (clips > 10) == (largest >= 60_000)
    for dtype in (torch.float64, torch.float32):
        x = torch.from_numpy(a).to(dtype)
        same(scan(x, None, neuron), (expected, state))


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_steps_of_random_registers(seed):
    # float64 holds even currents that have left their 24 bits
    rng = np.random.default_rng([seed, 2])
    neuron, sizes = draw(rng), np.array([1, 30, 1000, 30_000, 1_000_000])
    a = (rng.normal(size=(1000, 2, 5)) * sizes).round().astype(np.int64)
    p, state, expected = registers(neuron), None, []
    for current in a:
        spikes, state = semantics.lif_step(current, state, p)
        expected.append(spikes)
    assert bool(semantics.overflowed(state.u).any()) or seed != 0
    assert 0 < np.mean(expected) < 1
    same(scan(torch.from_numpy(a).double(), None, neuron), (np.stack(expected), state))


def test_input_is_rounded_to_whole_numbers():
    neuron, rng = LoihiLIF(vth=40, du=1000, dv=100), np.random.default_rng(0)
    a = rng.integers(-30, 60, (200, 2, 6))
    off = torch.from_numpy(a + rng.uniform(-0.49, 0.49, a.shape))
    whole = scan(torch.from_numpy(a).double(), None, neuron)
    spikes, state = scan(off, None, neuron)
    assert 0 < float(spikes.mean()) < 1
    assert torch.equal(spikes, whole[0])
    assert torch.equal(torch.stack(state), torch.stack(whole[1]))
    halves = torch.tensor([[0.5, 1.5, -0.5, -1.5, 2.5]])  # to the even number
    u = step(halves, None, LoihiLIF(vth=131_071))[1].u
    assert u.tolist() == [[0.0, 128.0, 0.0, -128.0, 128.0]]


def test_the_step_in_numbers():
    # as the docstring of the integer equations prints them, and the current survives its spike
    x = torch.tensor([[3.0, 4.0]])
    spikes, state = step(x, None, LIF.loihi(vth=3, du=0))
    assert (spikes.tolist(), state.u.tolist(), state.v.tolist()) == (
        [[0.0, 1.0]],
        [[192.0, 256.0]],
        [[192.0, 0.0]],
    )
    assert choose(LoihiLIF(), x[None].expand(2, 1, 2)).name == "reference"


def test_preset_passes_its_arguments_on():
    assert LIF.loihi(vth=7, du=8, dv=9, bias_mant=-10, bias_exp=6) == LoihiLIF(
        vth=7, du=8, dv=9, bias_mant=-10, bias_exp=6
    )
    assert LIF.loihi(vth=7) == LoihiLIF(vth=7, du=4095, dv=0, bias_mant=0, bias_exp=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("vth", 0), ("vth", 1 << 17), ("du", -1), ("du", 4096), ("dv", -1), ("dv", 4096),
     ("bias_mant", -4097), ("bias_mant", 4096), ("bias_exp", -1), ("bias_exp", 8),
     ("vth", 10.5), ("du", True)],
)  # fmt: skip
def test_registers_have_widths(name, value):
    with pytest.raises(ConfigError, match=f"LoihiLIF.{name}: got {value}"):
        LoihiLIF(**{name: value})


def test_the_full_widths_are_accepted():
    low = LoihiLIF(vth=1, du=0, dv=0, bias_mant=-4096, bias_exp=0)
    high = LoihiLIF(vth=131_071, du=4095, dv=4095, bias_mant=4095, bias_exp=7)
    for neuron in (low, high):
        registers(neuron)


# Gradient


def by_hand(a, u, v, neuron, weight):
    """Return spikes and the straight-through gradients of a weighted sum of them, in numpy."""
    p, th = registers(neuron), 64 * neuron.vth
    state = semantics.LIFState(u.round().astype(np.int64), v.round().astype(np.int64))
    membranes = []
    for current in a:
        membranes.append(semantics.integrate(current.round().astype(np.int64), state, p).v)
        _, state = semantics.lif_step(current.round().astype(np.int64), state, p)
    spikes = [membrane > th for membrane in membranes]
    g_x, g_u, g_v = np.zeros_like(a), np.zeros_like(u), np.zeros_like(v)
    for t in reversed(range(len(a))):  # g_u, g_v: gradient by the state after step t
        x = torch.from_numpy((membranes[t] - th) / th)
        psi = neuron.surrogate(x).numpy() / th
        reset = 1.0 - spikes[t] - (0 if neuron.detach_reset else membranes[t] * psi)
        g_v = weight[t] * psi + g_v * reset
        g_u = g_u + g_v
        g_x[t] = 64 * g_u
        g_u, g_v = g_u * (4095 - neuron.du) / 4096, g_v * (4096 - neuron.dv) / 4096
    return np.stack(spikes), g_x, g_u, g_v


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(
    ("program", "largest"),
    [({"vth": 100, "du": 1500, "dv": 400, "bias_mant": 10, "bias_exp": 3}, 120), *PROGRAMS[1:3]],
)
@pytest.mark.parametrize("surrogate", [Sigmoid(), Arctan(slope=3.0), Triangle()], ids=str)
def test_gradient_is_that_of_the_equations_without_rounding(surrogate, program, largest, detach):
    neuron = LoihiLIF(**program, detach_reset=detach, surrogate=surrogate)
    rng = np.random.default_rng(3)
    a = rng.uniform(-largest, 1.3 * largest, (40, 2, 6))
    u, v = (rng.integers(-5000, 5000, (2, 6)).astype(float) for _ in "uv")
    weight = rng.normal(size=a.shape)
    expected, *by_loop = by_hand(a, u, v, neuron, weight)
    leaves = [torch.from_numpy(part.copy()).requires_grad_() for part in (a, u, v)]
    spikes, _ = scan(leaves[0], LoihiState(*leaves[1:]), neuron)
    assert torch.equal(spikes.detach().bool(), torch.from_numpy(expected))
    assert 0 < expected.mean() < 1
    by_autograd = torch.autograd.grad((spikes * torch.from_numpy(weight)).sum(), leaves)
    for got, needed in zip(by_autograd, by_loop, strict=True):
        assert np.abs(needed).max() > 0
        np.testing.assert_allclose(
            got.numpy(), needed, rtol=1e-9, atol=1e-12 * np.abs(needed).max()
        )


def test_gradient_of_the_current_passes_the_wrap():
    x = torch.tensor([[131_073.0, 10.0]], dtype=torch.float64, requires_grad=True)
    _, state = step(x, None, LoihiLIF())
    assert state.u.tolist() == [[64.0 - HALF, 640.0]]
    (gradient,) = torch.autograd.grad(state.u.sum(), x)
    assert gradient.tolist() == [[64.0, 64.0]]


def test_learns_which_pattern_is_which():
    generator = torch.Generator().manual_seed(0)
    patterns = 0.1 + torch.eye(4).repeat_interleave(2, 1)
    target = torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.5, 0.0], [0.0, 0.5]])
    events = (torch.rand(20, 4, 8, generator=generator) < 0.6 * patterns).float()
    weight = (10 + 5 * torch.randn(2, 8, generator=generator)).requires_grad_()
    neuron = LIF.loihi(vth=60, du=2000, dv=500)
    optimiser, losses = torch.optim.Adam([weight], lr=1.0), []
    for _ in range(25):
        rates = scan(functional.linear(events, weight), None, neuron)[0].mean(0)
        loss = (rates - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert rates.argmax(1).tolist() == [0, 1, 0, 1]
