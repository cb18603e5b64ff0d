"""Triton's scan equals the step loop: on a GPU, and without one in Triton's interpreter.

The interpreter is switched on by a variable that Triton reads when it is imported, so its tests run
in a process of their own: this file again.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spikecl.errors import UsageError
from spikecl.kernels import Kernels, Recurrence, RecurrentState, reference, scan, triton_code
from spikecl.kernels.equations import tensors_of
from spikecl.kernels.program import program
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    Arctan,
    Boxcar,
    Erf,
    FastSigmoid,
    LeakyIntegrator,
    MultiGaussian,
    Reset,
    SigmaDelta,
    Sigmoid,
    Triangle,
)
from spikecl.neurons.neuron import leaves, rebuild

triton = pytest.importorskip("triton", reason="triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()),
    reason="no CUDA device; test_in_the_interpreter runs these in a process of its own",
)
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
overflows = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # in exp
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2}
DTYPES = (torch.float64, torch.float32)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_the_interpreter(tmp_path):
    places = {"SPIKECL_KERNELS": str(tmp_path / "kernels"), "TRITON_CACHE_DIR": str(tmp_path)}
    environment = {**os.environ, **places, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"[1-9]\d* passed", done.stdout)


def draw(*shape, seed, dtype):
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(dtype).to(DEVICE)


def each(value, shape=(), dtype=torch.float64):
    """Return a parameter, one number or one for each neuron, all a little different."""
    count = int(torch.tensor(shape).prod()) if shape else 1
    values = value + 0.01 * torch.arange(count, dtype=torch.float64).view(shape)
    return values.to(dtype).to(DEVICE).requires_grad_()


def solve(kernel, neuron, x, last, *, static=False, recurrent=False, memory="full"):
    """Return output, last state, and the gradients of all that can have one."""
    dtype, one = x.dtype, x[0]
    at = [x[:1] if static else x, *leaves(neuron.rest(one))]
    at = [part.detach().clone().requires_grad_() for part in at]
    with torch.no_grad():
        at[1] += 0.1 * last
    now = at[0].expand(x.shape) if static else at[0]
    state, weights = rebuild(neuron.rest(one), iter(at[1:])), None
    if recurrent:
        n = one[0].numel()
        weights = Recurrence(
            (0.5 * draw(n, n, seed=5, dtype=dtype)).requires_grad_(),
            (0.1 * draw(n, seed=6, dtype=dtype)).requires_grad_(),
        )
        sent = (draw(*one.shape, seed=7, dtype=dtype) > 0).to(dtype).requires_grad_()
        state, at = RecurrentState(state, sent), [*at, *weights, sent]
    at += [p for name in tensors_of(neuron) if (p := getattr(neuron, name)).requires_grad]
    if kernel == "triton":
        chosen = Kernels(scan="triton", memory=memory)
        out, end = scan(now, state, neuron, recurrence=weights, kernels=chosen)
    else:
        out, end = reference(now, state, neuron, recurrence=weights)
    loss = (out * draw(*out.shape, seed=8, dtype=dtype)).sum()
    loss = loss + sum(((k + 1) * part).sum() for k, part in enumerate(leaves(end)))
    return out, leaves(end), torch.autograd.grad(loss, at, allow_unused=True)


def check(neuron, shape=(5, 3, 7), dtype=torch.float64, tolerance=None, **options):
    x = 1.2 * draw(*shape, seed=1, dtype=dtype) + 0.5
    last = draw(*shape[1:], seed=2, dtype=dtype)
    memory = {"memory": options.pop("memory", "full")}
    out, end, grads = solve("reference", neuron, x, last, **options)
    found, found_end, found_grads = solve("triton", neuron, x, last, **options, **memory)
    assert torch.equal(found, out)
    for got, wanted in zip(found_end, end):
        if options.get("recurrent"):  # where an array begins in memory may change a matrix product
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(got, wanted)
    for got, wanted in zip(found_grads, grads):
        if wanted is None:
            assert got is None or not got.any()
            continue
        assert got.dtype == wanted.dtype
        scale = max(1.0, float(wanted.abs().max()))
        worst = float((got - wanted).abs().max()) / scale
        assert worst <= (tolerance or TOLERANCE[dtype])
    return out


@runs
@overflows
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", ["same", "next", "after"])
@pytest.mark.parametrize("reset", list(Reset))
def test_resets(reset, time, dtype):
    for detached, strict in ((True, True), (False, False)):
        neuron = LIF(
            beta=0.8, v_th=0.6, v_reset=-0.2, v_rest=0.1, reset=reset, reset_time=time,
            detach_reset=detached, strict=strict, surrogate=Arctan(),
        )  # fmt: skip
        out = check(neuron, dtype=dtype)
        assert 0.1 < out.mean() < 0.9


MODELS = {
    "if": IF(v_th=0.7),
    "lif": LIF(scale_input=True, v_th=0.3, v_rest=0.2),
    "plif": PLIF(v_th=0.4),
    "alif": ALIF(v_th=0.3),
    "cuba": CUBA(v_th=0.5),
    "leaky": LeakyIntegrator(kappa=0.7),
    "sigma_delta": SigmaDelta(v_th=0.3),
    "refractory": LIF(v_th=0.4, refractory=2),
    "integrating": ALIF(v_th=0.3, refractory=3, integrate_refractory=True),
}


@runs
@overflows
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_models(model, dtype):
    check(MODELS[model], dtype=dtype)
    check(MODELS[model], (1, 1, 1), dtype=dtype)


@runs
@overflows
@pytest.mark.parametrize(
    "surrogate",
    [Sigmoid(), FastSigmoid(), Triangle(), Boxcar(), Erf(), MultiGaussian()],
    ids=lambda surrogate: type(surrogate).__name__,
)
def test_surrogates(surrogate):
    check(LIF(v_th=0.5, surrogate=surrogate))
    check(LIF(v_th=0.5, surrogate=surrogate), dtype=torch.float32)


@runs
@overflows
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (1, 7)])
def test_trained_parameters(shape, dtype):
    check(PLIF().bind({"beta": each(0.6, shape, dtype)}), dtype=dtype)
    both = {"beta": each(0.8, shape, dtype), "rho": each(0.7, dtype=dtype)}
    check(ALIF(v_th=0.4).bind(both), dtype=dtype)
    values = {"beta": 0.7, "v_th": 0.4, "v_reset": 0.1, "v_rest": 0.05}
    neuron = LIF(reset="value", detach_reset=False)
    check(neuron.bind({k: each(v, shape, dtype) for k, v in values.items()}), dtype=dtype)
    fixed = {"beta": each(0.7, shape, dtype).detach(), "v_th": each(0.4, shape, dtype)}
    check(LIF().bind(fixed), dtype=dtype)


@runs
@overflows
def test_parameters_of_channels():
    check(PLIF().bind({"beta": each(0.6, (3, 1))}), (4, 2, 3, 5))


@runs
@overflows
@pytest.mark.parametrize("dtype", DTYPES)
def test_more_columns_than_a_block(dtype):
    check(PLIF().bind({"beta": each(0.4, (211,), dtype)}), (3, 3, 211), dtype=dtype)


@runs
@overflows
@pytest.mark.parametrize("dtype", DTYPES)
def test_static_input(dtype):
    check(LIF(v_th=0.6), dtype=dtype, static=True)


@runs
def test_steps_that_are_not_contiguous():
    x = draw(5, 7, 3, seed=1, dtype=torch.float64).transpose(1, 2)
    every_other = draw(10, 3, 7, seed=1, dtype=torch.float64)[::2]
    for now in (x, every_other):
        out, end = scan(now, None, LIF(v_th=0.4), kernels=Kernels(scan="triton"))
        wanted, wanted_end = reference(now, None, LIF(v_th=0.4))
        assert torch.equal(out, wanted)
        assert torch.equal(end.v, wanted_end.v)


@runs
@overflows
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["lif", "alif", "refractory"])
def test_recurrence(model, dtype):
    check(MODELS[model], dtype=dtype, recurrent=True)


@runs
@overflows
@pytest.mark.parametrize("model", ["lif", "alif", "cuba", "sigma_delta"])
def test_lean_memory(model):
    check(MODELS[model], memory="lean", tolerance=0.02)  # the interpreter cuts bfloat16 off


@runs
@overflows
@pytest.mark.parametrize("model", MODELS)
def test_half_precision(model):
    check(MODELS[model], dtype=torch.float16)


@runs
@overflows
def test_half_precision_of_parameters():
    values = {"beta": each(0.6, (7,), torch.float16), "v_th": each(0.4, (), torch.float16)}
    check(PLIF().bind(values), dtype=torch.float16)


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
def test_bfloat16_on_a_gpu():
    check(MODELS["lif"], dtype=torch.bfloat16, tolerance=0.1)


def test_what_is_against_it(monkeypatch):
    against = triton_code.against
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "the input is on cpu" in against(torch.float32, "cpu")
    assert "torch.int32" in against(torch.int32, "cuda")
    assert against(torch.float16, "cuda") is None
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    assert "3.4" in against(torch.float64, "cuda")
    assert against(torch.float32, "cuda") is None
    monkeypatch.setattr(triton, "__version__", "3.10.0+git")
    assert against(torch.float64, "cuda") is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert against(torch.float32, "cpu") is None
    assert "bfloat16" in against(torch.bfloat16, "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "not installed" in against(torch.float32, "cuda")


def kernel_of(neuron, part, dtype, memory="full"):
    x = torch.zeros(1, 7, dtype=dtype)
    trained = tuple(range(len(tensors_of(neuron))))
    found = program(neuron, neuron.rest(x), trained=trained, memory=memory)
    single = tuple(getattr(neuron, name).numel() == 1 for name in tensors_of(neuron))
    return found, triton_code.printed(found, part, dtype, single, gpu=True)


def test_numbers_do_not_make_new_kernels():
    one = kernel_of(LIF(beta=0.9, v_th=0.3), "kept", torch.float32)[1]
    other = kernel_of(LIF(beta=0.2, v_th=0.8), "kept", torch.float32)[1]
    assert one.source == other.source
    assert "0.3" not in one.source


def test_a_constant_divides_as_on_a_gpu():
    """``torch`` multiplies by the reciprocal there."""
    x = torch.zeros(1, 7)
    found = program(LIF(surrogate=Triangle()), LIF().rest(x))
    cpu, gpu = (
        triton_code.printed(found, "kept", torch.float32, (), gpu=gpu).source
        for gpu in (False, True)
    )
    assert re.search(r"= tl.div_rn\(n\d+, number\d+\)", cpu)
    assert re.search(r"= n\d+ \* \(tl.div_rn\(tl.full", gpu)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPIKECL_KERNELS", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot be kept"):
        triton_code.load("# never printed")


NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
COMPILED = [
    (LIF(v_th=0.5, v_rest=0.2, surrogate=Arctan()), "kept", torch.float32, "full"),
    (ALIF(v_th=0.5, refractory=2, surrogate=Arctan()), "kept", torch.float64, "lean"),
    (LIF(v_rest=0.2, reset="zero", surrogate=Arctan()), "kept", torch.float16, "lean"),
    (SigmaDelta(), "forward", torch.bfloat16, "full"),
    (LIF(surrogate=Erf()), "backward", torch.float32, "full"),
    (ALIF(surrogate=Sigmoid()), "backward", torch.float16, "lean"),
    (PLIF().bind({"beta": torch.full((7,), 0.5)}), "backward", torch.float64, "lean"),
]


@compiles
@pytest.mark.parametrize(("neuron", "part", "dtype", "memory"), COMPILED)
def test_the_compiler_takes_it(neuron, part, dtype, memory, tmp_path, monkeypatch):
    """Triton compiles for a GPU without one; no product is fused with a sum."""
    monkeypatch.setenv("SPIKECL_KERNELS", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found, made = kernel_of(neuron, part, dtype, memory)
    kernel = triton_code.load(made.source).kernel
    real, wide = NAMES[dtype], "fp64" if dtype == torch.float64 else "fp32"
    kinds = {"BLOCK": "constexpr", **{f"total{k}": f"*{wide}" for k in range(9)}}
    kinds |= {f"c{k}": wide for k in range(99)}
    kinds |= dict.fromkeys(("x_stride", "stride", "steps", "columns", "features"), "i32")
    tape = {"real": real, "half": "bf16", "flag": "u8"}
    kinds |= {f"tape{k}": f"*{tape[slot.kind]}" for k, slot in enumerate(found.tape)}
    signature = {name: kinds.get(name, f"*{real}") for name in kernel.arg_names}
    ones = (
        ("x_stride", "stride", "columns", "features") if memory == "lean" else ()
    )  # Triton makes constants of ones
    fixed = {"BLOCK": triton_code.BLOCK, **dict.fromkeys(ones, 1)}
    source = triton.compiler.ASTSource(
        kernel, {**signature, **dict.fromkeys(ones, "constexpr")}, fixed
    )
    code = triton.compile(
        source,
        target=triton.backends.compiler.GPUTarget("cuda", 90, 32),
        options={"num_warps": triton_code.WARPS, "enable_fp_fusion": False},
    ).asm["ptx"]
    assert re.search(r"\bmul\S*\.f(16|32|64)|bf16", code)
    if part != "backward":  # there are some within exp
        assert not re.search(r"\bfma|\bmad\.\w+\.f|\.ftz", code)
        assert "div.full" not in code


def test_products_are_not_fused_at_launch(monkeypatch):
    """The option that the compiler test is about is the one that kernels are launched with."""
    given = {}

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: given.update(options, grid=grid)

    class Module:
        kernel = Kernel()

    monkeypatch.setattr(triton_code, "load", lambda source: Module)
    x = torch.zeros(2, 3, 100)
    found = program(LIF(), LIF().rest(x[0]))
    triton_code.TritonBackend().forward(found, x, [x[0]], [], torch.empty_like(x), None)
    assert given == {"grid": (2,), "num_warps": triton_code.WARPS, "enable_fp_fusion": False}


def test_every_operation_has_an_expression():
    from spikecl.kernels.c_code import EXPRESSIONS

    assert {*EXPRESSIONS} - {*triton_code.EXPRESSIONS} == {"detach"}
