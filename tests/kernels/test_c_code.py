"""C code over many columns, by blocks and threads; each function of it against torch."""

import ctypes
import math

import pytest
import torch

from spikecl.kernels import Kernels, Recurrence, c_code, compiler, reference, scan
from spikecl.kernels.c_code import BLOCK
from spikecl.kernels.program import program
from spikecl.neurons import ALIF, LIF
from spikecl.neurons.neuron import leaves

pytestmark = pytest.mark.skipif(compiler.compiler() is None, reason="no C compiler here")
RUN = Kernels(scan="compiled")


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(x, beta, kernels, recurrence=None):
    """Return spikes, states, and gradients of the input and the decay."""
    x, beta = x.clone().requires_grad_(), beta.clone().requires_grad_()
    neuron = ALIF(v_th=0.6, rho=0.9).bind({"beta": beta})
    out, state = scan(x, None, neuron, recurrence=recurrence, kernels=kernels)
    loss = (out * draw(out.shape, 1)).sum() + sum(part.sum() for part in leaves(state))
    return [part.detach() for part in (out, *leaves(state))], torch.autograd.grad(loss, (x, beta))


def assert_like_reference(x, beta, **options):
    values, grads = solve(x, beta, RUN, **options)
    expected, others = solve(x, beta, Kernels(scan="reference"), **options)
    assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))
    for a, b in zip(grads, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    return values, grads


ODD = [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 3]


@pytest.mark.parametrize("columns", ODD)
@pytest.mark.parametrize("shape", [(), (0,)], ids=["one decay", "a decay each"])
def test_columns_around_a_block(columns, shape):
    beta = 0.8 + 0.05 * torch.tanh(draw((columns,) if shape else (), 3))
    for batch in (1, 3):
        assert_like_reference(0.3 + draw((4, batch, columns)), beta)


def test_columns_of_many_axes():
    beta = 0.8 + 0.05 * torch.tanh(draw((5, 1, 1), 3))
    assert_like_reference(0.3 + draw((4, 2, 5, 9, 11)), beta)


def test_huge_layers():
    x = (0.3 + draw((3, 2, 100_003))).float()
    out, state = scan(x, None, LIF(), kernels=RUN)
    expected, last = reference(x, None, LIF())
    assert torch.equal(out, expected)
    assert torch.equal(state.v, last.v)


@pytest.mark.parametrize("shape", [(), (0,)], ids=["one decay", "a decay each"])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(monkeypatch, shape, threads):
    columns = 3 * BLOCK + 5
    x, beta = (
        0.3 + draw((6, 2, columns)),
        0.8 + 0.05 * torch.tanh(draw((columns,) if shape else ())),
    )
    one = solve(x, beta, RUN)
    used = []
    pool = c_code.ThreadPoolExecutor
    monkeypatch.setattr(c_code, "ThreadPoolExecutor", lambda n: used.append(n) or pool(n))
    monkeypatch.setattr(c_code, "SHARE", 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        many = solve(x, beta, RUN)
    finally:
        torch.set_num_threads(before)
    assert used == [threads, threads]  # forward and backward
    for a, b in zip((*one[0], *one[1]), (*many[0], *many[1]), strict=True):
        assert torch.equal(a, b)


def test_small_layers_keep_to_one_thread(monkeypatch):
    def refuse(*given):
        raise AssertionError("a thread for nothing")

    monkeypatch.setattr(c_code, "ThreadPoolExecutor", refuse)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        solve(0.3 + draw((6, 2, 2 * BLOCK)), torch.tensor(0.8, dtype=torch.float64), RUN)
    finally:
        torch.set_num_threads(before)


def test_a_recurrent_layer_of_more_than_a_block():
    n = BLOCK + 4
    x, beta = 0.3 + draw((5, 2, n)), torch.tensor(0.8, dtype=torch.float64)
    assert_like_reference(x, beta, recurrence=Recurrence(draw((n, n), 5) / n, 0.1 * draw((n,), 6)))


# The functions of the head


PROBE = """
void probe(int64_t n, const R *x, R *power, R *there, uint16_t *half) {
  for (int64_t k = 0; k < n; k++) {
    power[k] = exponential(x[k]); half[k] = to_half(x[k]); there[k] = from_half(half[k]);
  }
}
"""


def probe(x):
    """Return ``exp(x)``, x through bfloat16, and the bits of that."""
    real = c_code.REALS[x.dtype]
    head = c_code._HEAD.format(real=real, block=BLOCK, **c_code._EXPONENTIAL[real])
    function = compiler.load(head + PROBE).probe
    function.restype, function.argtypes = None, [ctypes.c_int64] + [ctypes.c_void_p] * 4
    power, there = torch.empty_like(x), torch.empty_like(x)
    half = torch.empty(x.shape, dtype=torch.bfloat16)
    function(len(x), *(tensor.data_ptr() for tensor in (x, power, there, half)))
    return power, there, half


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 87), (torch.float64, 708)])
def test_the_exponential_is_right_to_the_last_digits(dtype, limit):
    x = torch.cat([torch.linspace(-limit, limit, 20_001), draw(20_000), 1e-6 * draw(999)]).to(dtype)
    power, *_ = probe(x)
    error = (power.double() / x.double().exp() - 1).abs().max()
    assert float(error) < (4 if dtype is torch.float32 else 8) * torch.finfo(dtype).eps
    assert probe(torch.zeros(1, dtype=dtype))[0].item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_beyond_its_range(dtype):
    x = torch.tensor([math.inf, -math.inf, math.nan, 1e30, -1e30], dtype=dtype)
    power, *_ = probe(x)
    assert power[2].isnan()
    assert bool((power[[0, 3]] > 1e37).all())
    assert bool((power[[1, 4]] < 1e-37).all())
    assert bool((power[[1, 4]] >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_halves_round_as_in_torch(dtype):
    x = torch.cat([draw(10_000), torch.linspace(-4, 4, 4097), torch.logspace(-30, 30, 999)])
    ties = 1.0 + torch.arange(64, dtype=torch.float64) / 256  # half way between two of them
    x = torch.cat([x, ties, torch.tensor([0.0, -0.0, math.inf, -math.inf])]).to(dtype)
    _, there, half = probe(x)
    expected = x.to(torch.float32).to(torch.bfloat16)
    assert torch.equal(half.view(torch.int16), expected.view(torch.int16))
    assert torch.equal(there, expected.to(dtype))


def test_the_source_depends_on_the_structure_alone():
    a, b, c = (
        c_code.source(program(neuron, neuron.rest(torch.zeros(1, 2))), "float", ())
        for neuron in (LIF(beta=0.8), LIF(beta=0.7, v_th=0.2), LIF(strict=False))
    )
    assert a == b != c
