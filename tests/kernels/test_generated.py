"""Generated kernels equal the step loop: outputs and states bit for bit, gradients to rounding."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from spikecl.components import component
from spikecl.errors import KernelError, UsageError
from spikecl.kernels import (
    Kernels,
    Recurrence,
    RecurrentState,
    choose,
    compiler,
    generated,
    reference,
    scan,
)
from spikecl.kernels.program import program
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    MODELS,
    PLIF,
    SURROGATES,
    Arctan,
    Boxcar,
    FastSigmoid,
    Izhikevich,
    LeakyIntegrator,
    LIFState,
    Neuron,
    RateIF,
    RateLIF,
    Rectified,
    Reset,
    SigmaDelta,
    Sigmoid,
    Smooth,
    StraightThrough,
    Surrogate,
    SynapticIntegrator,
    Triangle,
    step,
)
from spikecl.neurons.neuron import leaves, rebuild
from spikecl.neurons.values import ranges

needs_compiler = pytest.mark.skipif(compiler.compiler() is None, reason="no C compiler here")
COMPILED = pytest.param("compiled", marks=needs_compiler)
kernels = pytest.mark.parametrize("kernel", ["fused", COMPILED])
listening = pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
RESETS, TIMES = list(Reset), ["same", "next", "after"]
all_resets = pytest.mark.parametrize("reset", RESETS)
all_times = pytest.mark.parametrize("time", TIMES)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
both_types = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])


class Form(NamedTuple):
    """A neuron, and the mean and spread of an input that it fires at."""

    neuron: Neuron
    mean: float = 0.25
    spread: float = 0.6


FIXED = {"beta": 0.8, "v_th": 0.6, "v_reset": -0.2, "v_rest": 0.1}
FORMS = {
    "lif": Form(LIF(beta=0.8, v_th=0.6)),
    "lif-zero": Form(LIF(reset="zero", strict=False, scale_input=True, beta=0.8, v_th=0.3)),
    "lif-value": Form(LIF(reset="value", detach_reset=False, **FIXED)),
    "lif-next": Form(LIF(reset="value", reset_time="next", detach_reset=False, **FIXED)),
    "lif-after": Form(LIF(reset_time="after", detach_reset=False, **FIXED)),
    "lif-refractory": Form(LIF(refractory=2, detach_reset=False, beta=0.8, v_th=0.6)),
    "lif-integrating": Form(
        LIF(refractory=2, integrate_refractory=True, reset_time="next", beta=0.8, v_th=0.6)
    ),
    "if": Form(IF(v_th=1.2, surrogate=Triangle())),
    "plif": Form(PLIF(beta=0.6, v_th=0.4), 0.3, 0.9),
    "alif": Form(ALIF(rho=0.9, adaptation=1.2, detach_reset=False, **FIXED)),
    "alif-next": Form(ALIF(rho=0.9, reset_time="next", reset="zero", normalise=False, **FIXED)),
    "alif-refractory": Form(ALIF(rho=0.9, refractory=1, reset="value", **FIXED)),
    "cuba": Form(CUBA(alpha=0.6, reset="value", detach_reset=False, **FIXED), 0.1),
    "cuba-after": Form(CUBA(alpha=0.6, reset_time="after", scale_input=True, **FIXED), 0.3),
    "leaky_integrator": Form(LeakyIntegrator(kappa=0.7, scale_input=True)),
    "synaptic_integrator": Form(SynapticIntegrator(alpha=0.6, kappa=0.7, v_rest=0.2)),
    "sigma_delta": Form(SigmaDelta(v_th=0.5)),
    "rectified": Form(Rectified()),
    "rate_if": Form(RateIF(v_th=0.9, detach_reset=False)),
    "rate_lif": Form(RateLIF(v_th=0.5, tau_mem=4.0, dt=1.0)),
    "izhikevich": Form(Izhikevich(v_peak=25.0), 25.0, 25.0),
    "izhikevich-kept": Form(Izhikevich(substeps=1, dt=0.5, detach_reset=False), 40.0, 30.0),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
A_FEW = ("lif", "lif-next", "lif-refractory", "alif", "leaky_integrator")
a_few = pytest.mark.parametrize("name", A_FEW)
# each form alone, and a few of them listening to themselves
alone_or_not = pytest.mark.parametrize(
    ("form", "recurrent"),
    [pytest.param(form, False, id=name) for name, form in FORMS.items()]
    + [pytest.param(FORMS[name], True, id=f"{name}-recurrent") for name in A_FEW],
)


class Problem(NamedTuple):
    """What a scan is given; the tensors of all of it but ``fixed`` are differentiated."""

    neuron: Neuron
    x: torch.Tensor
    state: object
    recurrence: Recurrence | None = None
    trained: Mapping[str, torch.Tensor] = MappingProxyType({})


class Solution(NamedTuple):
    """Output, the tensors of the last state, and gradients by name."""

    out: torch.Tensor
    state: list[torch.Tensor]
    grads: dict[str, torch.Tensor]


def draw(shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def pose(form, shape=(12, 3, 5), seed=1, dtype=torch.float64, *, recurrent=False, density=1.0):
    """Draw an input, a state that earlier steps have left, and synapses."""
    neuron, mean, spread = form
    x = mean + spread * draw((shape[0] + 4, *shape[1:]), seed)
    x = torch.where(draw(x.shape, seed + 1).erf() <= 2 * density - 1, x, 0.0).to(dtype)
    n = math.prod(shape[2:])
    synapses = None
    if recurrent:
        weight, bias = spread * draw((n, n), seed + 2) / n, 0.1 * spread * draw((n,), seed + 3)
        synapses = Recurrence(weight.to(dtype), bias.to(dtype))
    run = Kernels(scan="reference")
    _, state = scan(x[:4], None, neuron, recurrence=synapses, kernels=run)
    state = rebuild(state, (part.clone() for part in leaves(state)))
    return Problem(neuron, x[4:], state, synapses)


def total(out, state, seed=50):
    """Return a loss that weighs everything that comes out."""
    parts = [out, *leaves(state)]
    return sum(
        (part * draw(part.shape, seed + k, part.dtype)).sum() for k, part in enumerate(parts)
    )


def solve(kernel, problem, *, memory="full", loss=total, only=None):
    """Return what a kernel makes of a problem; ``only`` names what is differentiated."""
    neuron, x, state, synapses, trained = problem
    inputs = {"x": x, **{f"state{k}": part for k, part in enumerate(leaves(state))}}
    inputs |= {} if synapses is None else synapses._asdict()
    inputs = {
        name: tensor for name, tensor in (inputs | dict(trained)).items() if tensor is not None
    }
    given = {
        name: tensor.clone().requires_grad_(only is None or name in only)
        for name, tensor in inputs.items()
    }
    state = rebuild(state, iter([given[name] for name in given if name.startswith("state")]))
    if synapses is not None:
        synapses = Recurrence(given["weight"], given.get("bias"))
    bound = neuron.bind({name: given[name] for name in trained})
    run = Kernels(scan=kernel, memory=memory)
    out, end = scan(given["x"], state, bound, recurrence=synapses, kernels=run)
    assert type(end) is type(state)
    wanted = {name: tensor for name, tensor in given.items() if tensor.requires_grad}
    if kernel != "reference" and x.numel():
        assert "_Scan" in out.grad_fn.name()  # no other kernel answered
    value = loss(out, end)
    found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
    grads = {
        name: torch.zeros_like(tensor) if grad is None else grad
        for (name, tensor), grad in zip(wanted.items(), found)
    }
    return Solution(out.detach(), [part.detach() for part in leaves(end)], grads)


def close(ours, expected, tolerance):
    for name, grad in expected.grads.items():
        assert ours.grads[name].shape == grad.shape
        assert ours.grads[name].dtype == grad.dtype
        scale = max(1.0, float(grad.abs().max())) if grad.numel() else 1.0
        torch.testing.assert_close(
            ours.grads[name],
            grad,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=lambda found, name=name: f"{name}: {found}",
        )


def assert_twins(kernel, problem, tolerance=None, **options):
    """Check a kernel against the reference; return what it found."""
    ours, expected = (solve(name, problem, **options) for name in (kernel, "reference"))
    assert ours.out.dtype == expected.out.dtype
    assert torch.equal(ours.out, expected.out)
    for a, b in zip(ours.state, expected.state, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)  # or a chunk of one step could tip a spike over
    close(ours, expected, tolerance or TOLERANCE[problem.x.dtype])
    return ours


# Equations


def test_every_model_that_has_an_exact_program_has_a_form():
    able = set()
    for model in set(MODELS.values()) - {MODELS["loihi"]}:
        x = torch.zeros(1, 2, 3)
        found = program(model(), model().rest(x))
        if found is not None and found.exact:
            able.add(model)
    assert able == {type(form.neuron) for form in FORMS.values()}


@forms
def test_forms_do_something(form):
    out, _ = scan(pose(form, (40, 3, 5)).x, None, form.neuron)
    assert 0.03 < float((out != 0).double().mean()) < 0.97 or isinstance(
        form.neuron, LeakyIntegrator | SynapticIntegrator
    )


@forms
@listening
@kernels
@both_types
def test_every_model_alone_and_listening_to_itself(form, recurrent, kernel, dtype):
    found = assert_twins(kernel, pose(form, dtype=dtype, recurrent=recurrent))
    assert bool(found.grads["x"].any())
    assert not recurrent or bool(found.grads["weight"].any())


ALL_SWITCHES = list(itertools.product(RESETS, TIMES, [True, False], [True, False], [True, False]))
# compiling each takes its time: strict and scale alternate
SOME_SWITCHES = [
    (reset, time, detach, bool(k % 2), bool((k + k // 4) % 2))
    for k, (reset, time, detach) in enumerate(itertools.product(RESETS, TIMES, [True, False]))
]


@pytest.mark.parametrize(
    ("kernel", "switches"),
    [("fused", s) for s in ALL_SWITCHES]
    + [pytest.param("compiled", s, marks=needs_compiler) for s in SOME_SWITCHES],
)
def test_every_combination_of_switches(kernel, switches):
    reset, time, detach, strict, scale = switches
    neuron = LIF(
        reset=reset, reset_time=time, detach_reset=detach, strict=strict, scale_input=scale, **FIXED
    )
    assert_twins(kernel, pose(Form(neuron)))


@pytest.mark.parametrize("model", [ALIF, CUBA])
@all_resets
@all_times
@pytest.mark.parametrize("detach", [True, False])
def test_the_switches_of_other_models(model, reset, time, detach):
    options = {"rho": 0.9, "normalise": detach} if model is ALIF else {"alpha": 0.6}
    neuron = model(reset=reset, reset_time=time, detach_reset=detach, **FIXED, **options)
    assert_twins("fused", pose(Form(neuron), recurrent=detach))


# Parameters: numbers, one tensor, one for each neuron; fixed and trained


KINDS = ["0-d", "0-d trained", "each", "each trained", "some"]


def tensors(neuron, kind, cells, dtype=torch.float64):
    """Return tensors for the parameters of a neuron, and the names of those that are trained."""
    made, trained = {}, []
    for k, name in enumerate(ranges(type(neuron))):
        value, shape = float(getattr(neuron, name)), cells if k % 2 else (1, *cells)
        if kind == "some" and k % 4 == 0:
            continue  # stays a number
        if kind.startswith("0-d") or (kind == "some" and k % 4 == 1):
            made[name] = torch.tensor(value, dtype=dtype)
        else:
            spread = 0.04 * max(abs(value), 0.2) * torch.tanh(draw(shape, 70 + k))
            made[name] = (value + spread).to(dtype)
        if kind.endswith("trained") or (kind == "some" and k % 4 != 3):
            trained.append(name)
    return made, trained


PARAMETERS = [
    (kernel, name, kind)
    for kernel in ("fused", "compiled")
    for name, form in FORMS.items()
    if ranges(type(form.neuron))
    for kind in (KINDS if kernel == "fused" else ["0-d trained", "each trained", "some"])
    if kernel == "fused" or kind != "0-d trained" or name in ("lif", "alif", "izhikevich")
]


@pytest.mark.parametrize(
    ("kernel", "name", "kind"),
    [pytest.param(*p, marks=needs_compiler if p[0] == "compiled" else ()) for p in PARAMETERS],
)
def test_parameters_that_are_tensors(kernel, name, kind):
    form = FORMS[name]
    problem = pose(form, recurrent=kind == "some")
    made, trained = tensors(form.neuron, kind, (5,))
    fixed = form.neuron.bind({n: t for n, t in made.items() if n not in trained})
    problem = problem._replace(neuron=fixed, trained={n: made[n] for n in trained})
    found = assert_twins(kernel, problem)
    if trained and name not in ("if", "sigma_delta"):  # no leak, and a comparison that is cut
        assert any(bool(found.grads[n].any()) for n in trained)


@kernels
@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 3, 1), (4,), (1, 2, 1, 4), (1,), (1, 1)])
def test_parameters_are_expanded_over_axes(kernel, shape):
    beta = 0.8 + 0.05 * torch.tanh(draw(shape, 3))
    problem = pose(FORMS["lif"], (6, 2, 2, 3, 4))
    assert_twins(kernel, problem._replace(trained={"beta": beta}))
    turned = torch.linspace(0.5, 0.7, 24, dtype=torch.float64).view(4, 3, 2).permute(2, 1, 0)
    problem = problem._replace(neuron=LIF(beta=0.8).bind({"v_th": turned}))
    assert_twins(kernel, problem._replace(trained={"beta": beta}))


@both_types
@pytest.mark.parametrize("shape", [(), (5,)])
@pytest.mark.parametrize("learns", [True, False])
def test_parameters_of_another_type_run_by_the_reference(dtype, shape, learns):
    """Torch computes ``1 - beta`` in the type of ``beta``; no kernel does that."""
    other = torch.float64 if dtype is torch.float32 else torch.float32
    beta = torch.full(shape, 0.3123, dtype=other, requires_grad=learns)
    neuron = PLIF(beta=0.6, v_th=0.4).bind({"beta": beta})
    x = pose(FORMS["plif"], (30, 3, 5), dtype=dtype).x.requires_grad_()
    if shape and dtype is torch.float32:
        with pytest.raises(UsageError, match="convert one of them"):
            scan(x, None, neuron)
        return
    why = "PLIF has parameters of another type than the input"
    assert choose(neuron, x) == ("reference", why)
    for name in ("fused", "compiled", "inductor", "triton"):
        with pytest.raises(KernelError, match=f"'{name}' cannot run here: {why}; these can: ref"):
            scan(x, None, neuron, kernels=Kernels(scan=name))
    found = []
    for run in (scan, reference):
        out, end = run(x, None, neuron)
        assert "_Scan" not in out.grad_fn.name()
        wanted = [x, beta] if learns else [x]
        found.append((out, end.v, *torch.autograd.grad(total(out, end), wanted)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    same = PLIF(beta=0.6, v_th=0.4).bind({"beta": beta.detach().to(dtype)})
    assert choose(same, x).name != "reference"


# Surrogates


# slopes and widths that float32 rounds
SHAPES = [
    cls(slope=1.3)
    if "slope" in cls.__slots__
    else cls(width=0.37)
    if "width" in cls.__slots__
    else cls()
    for cls in SURROGATES.values()
]


@kernels
@pytest.mark.parametrize("surrogate", SHAPES, ids=list(SURROGATES))
@pytest.mark.parametrize("memory", ["full", "lean"])
def test_every_surrogate(kernel, surrogate, memory):
    neuron = LIF(beta=0.8, v_th=0.6, detach_reset=False, surrogate=surrogate)
    problem = pose(Form(neuron), (20, 4, 6))
    if memory == "full":
        assert_twins(kernel, problem)
        return
    assert_twins_but_for_rounding(kernel, problem)


@component
class Rounded(Surrogate):
    """Another surrogate, rounded to bfloat16."""

    of: Surrogate = Sigmoid()

    def __call__(self, x):
        return self.of(x).bfloat16().to(x.dtype)

    def primitive(self, x):
        raise NotImplementedError


def assert_twins_but_for_rounding(kernel, problem):
    lean, full = (solve(kernel, problem, memory=memory) for memory in ("lean", "full"))
    neuron, state = problem.neuron, problem.state
    inner = state.neuron if problem.recurrence is not None else state
    expected = full
    if any(slot.kind == "half" for slot in program(neuron, inner, memory="lean").tape):
        rounded = replace(neuron, surrogate=Rounded(of=neuron.surrogate))
        expected = solve("reference", problem._replace(neuron=rounded))
    assert torch.equal(lean.out, full.out)
    assert all(torch.equal(a, b) for a, b in zip(lean.state, full.state, strict=True))
    close(lean, expected, 1e-10)
    for name, grad in full.grads.items():
        assert float((lean.grads[name] - grad).norm()) <= 0.01 * float(grad.norm())


@alone_or_not
@kernels
def test_lean_memory_rounds_surrogates_and_nothing_else(form, recurrent, kernel):
    assert_twins_but_for_rounding(kernel, pose(form, recurrent=recurrent))


# Shapes, numbers, densities


values = st.fixed_dictionaries(
    {"v_th": st.floats(-0.3, 1.5), "v_rest": st.floats(0.05, 0.4), "v_reset": st.floats(-1, 1)}
)


@kernels
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(list(FORMS)),
    numbers=st.dictionaries(st.sampled_from(list(FIXED)), st.floats(0.02, 0.98)),
    steps=st.integers(1, 9),
    batch=st.integers(1, 4),
    features=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 10_000),
    recurrent=st.booleans(),
)
def test_random_shapes_numbers_and_densities(
    kernel, name, numbers, steps, batch, features, density, seed, recurrent
):
    form = FORMS[name]
    own = {n: v for n, v in numbers.items() if n in ranges(type(form.neuron))}
    own = {n: v for n, v in own.items() if n != "v_rest" or form.neuron.v_rest}  # the same program
    form = form._replace(neuron=replace(form.neuron, **own))
    shape = (steps, batch, *features)
    assert_twins(kernel, pose(form, shape, seed, recurrent=recurrent, density=density), 1e-9)


@kernels
def test_inputs_without_features(kernel):
    neuron = LIF(beta=0.8, v_th=torch.tensor([0.6], dtype=torch.float64))
    assert_twins(kernel, pose(Form(neuron), (7, 3)))


@kernels
@pytest.mark.parametrize(("name", "recurrent"), [("lif-value", False), ("alif", True)])
def test_a_thousand_steps(kernel, name, recurrent):
    dtype = torch.float64 if recurrent else torch.float32
    assert_twins(kernel, pose(FORMS[name], (1000, 2, 3), dtype=dtype, recurrent=recurrent))


@kernels
@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0), (0, 0, 0)])
@all_times
def test_nothing_in_nothing_out(kernel, shape, time):
    neuron = LIF(reset_time=time)
    x = torch.zeros(shape, requires_grad=True)
    v = torch.full(shape[1:], 1.5, requires_grad=True)
    waiting = None if time == "same" else torch.ones(shape[1:])
    out, state = scan(x, LIFState(v, waiting), neuron, kernels=Kernels(scan=kernel))
    assert out.shape == shape
    assert state.v.shape == shape[1:]
    assert (state.spikes is None) == (time == "same")
    (out.sum() + state.v.square().sum()).backward()
    if not shape[0]:
        assert torch.equal(state.v, v)
        assert torch.equal(v.grad, 2 * v)


@kernels
@pytest.mark.parametrize("lay", ["static", "transposed", "strided", "channels last", "one step"])
@listening
def test_inputs_that_are_views(kernel, lay, recurrent):
    problem = pose(FORMS["lif-next"], (8, 3, 2, 2, 3), recurrent=recurrent)
    base = problem.x
    x = {
        "static": lambda: base[:1].expand(base.shape),
        "transposed": lambda: base.permute(2, 0, 1, 4, 3).contiguous().permute(1, 2, 0, 4, 3),
        "strided": lambda: torch.stack([base, base], -1)[..., 0],
        "channels last": lambda: torch.stack(
            [part.to(memory_format=torch.channels_last) for part in base]
        ),
        "one step": lambda: base[::8],
    }[lay]()
    found = []
    for name in (kernel, "reference"):
        leaf = x.detach().requires_grad_()  # the same strides, not a copy
        state = rebuild(problem.state, (part.mT for part in leaves(problem.state)))
        out, end = scan(
            leaf, rebuild(state, (part.mT for part in leaves(state))), problem.neuron,
            recurrence=problem.recurrence, kernels=Kernels(scan=name),
        )  # fmt: skip
        found.append((out, *leaves(end), torch.autograd.grad(total(out, end), leaf)[0]))
    *ours, grad = found[0]
    assert all(torch.equal(a, b) for a, b in zip(ours, found[1]))
    torch.testing.assert_close(grad, found[1][-1], rtol=1e-10, atol=1e-10)


@kernels
@a_few
@listening
def test_output_gradients_that_are_views(kernel, name, recurrent):
    """A sum has one gradient for all steps, a permuted loss one with other strides."""
    problem = pose(FORMS[name], (6, 3, 4), recurrent=recurrent)
    losses = [
        lambda out, state: out.sum(),
        lambda out, state: (out.mean(0) * draw(out.shape[1:], 4)).sum(),
        lambda out, state: (
            (out.permute(2, 0, 1) * draw((4, 6, 3), 4)).sum()
            + sum((part.T * draw((4, 3), 5)).sum() for part in leaves(state))
        ),
        lambda out, state: (out[-1] * draw(out.shape[1:], 4)).sum(),
    ]
    for loss in losses:
        assert_twins(kernel, problem, loss=loss)


# What is asked for


@kernels
@all_resets
@all_times
def test_each_output_alone(kernel, reset, time):
    problem = pose(Form(LIF(reset=reset, reset_time=time, **FIXED)), (7, 2, 3))
    losses = [lambda out, state: (out * draw(out.shape, 7)).sum(), lambda out, state: state.v.sum()]
    if time != "same":
        losses.append(lambda out, state: (state.spikes * draw((2, 3), 8)).sum())
    for loss in losses:
        assert bool(assert_twins(kernel, problem, loss=loss).grads["x"].any())


@kernels
@alone_or_not
def test_only_the_state_counts(kernel, form, recurrent):
    problem = pose(form, (6, 2, 3), recurrent=recurrent)
    for k in range(len(leaves(problem.state))):
        assert_twins(kernel, problem, loss=lambda out, state, k=k: leaves(state)[k].square().sum())


@kernels
@pytest.mark.parametrize("name", ["lif-next", "alif", "lif-value"])
def test_each_gradient_alone(kernel, name):
    problem = pose(FORMS[name], (6, 2, 3), recurrent=True)
    problem = problem._replace(trained={"beta": torch.full((3,), 0.8, dtype=torch.float64)})
    names = list(solve("reference", problem).grads)
    assert {"x", "state0", "weight", "bias", "beta"} < set(names)
    for only in (*((n,) for n in names), ("x", "weight"), ("state1", "bias")):
        assert set(assert_twins(kernel, problem, only=only).grads) == set(only)


@kernels
@listening
def test_without_gradients_no_tape_is_kept(kernel, recurrent, monkeypatch):
    made = []
    monkeypatch.setattr(generated, "new_tape", lambda *given: made.append(given))
    problem = pose(FORMS["lif"], recurrent=recurrent)
    trained = {"beta": torch.full((5,), 0.8, dtype=torch.float64, requires_grad=True)}
    run = {"recurrence": problem.recurrence, "kernels": Kernels(scan=kernel)}
    expected, last = scan(
        problem.x, problem.state, problem.neuron.bind(trained),
        recurrence=problem.recurrence, kernels=Kernels(scan="reference"),
    )  # fmt: skip
    x = problem.x.clone().requires_grad_()
    with torch.no_grad():
        out, state = scan(x, problem.state, problem.neuron.bind(trained), **run)
    assert torch.equal(out, expected)
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(last), strict=True))
    assert not out.requires_grad
    out, _ = scan(problem.x, problem.state, problem.neuron, **run)  # nothing to differentiate
    assert not out.requires_grad
    assert made == []


@kernels
def test_a_second_backward_is_equal_and_a_second_derivative_refused(kernel):
    x = pose(FORMS["lif"]).x.requires_grad_()
    beta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    out, state = scan(x, None, LIF(v_th=0.6).bind({"beta": beta}), kernels=Kernels(scan=kernel))
    loss = total(out, state)
    first = torch.autograd.grad(loss, (x, beta), retain_graph=True)
    second = torch.autograd.grad(loss, (x, beta), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    with pytest.raises(KernelError, match="second derivative"):
        torch.autograd.grad(loss, x, create_graph=True)
    torch.autograd.grad(loss, x)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


class Silent(torch.autograd.Function):
    """Something that needs a gradient and has none to pass on."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@kernels
@listening
def test_outputs_that_are_used_and_get_no_gradient(kernel, recurrent):
    problem = pose(FORMS["lif"], recurrent=recurrent)

    def loss(out, state):
        return Silent.apply(out).sum()

    found = assert_twins(kernel, problem, loss=loss)
    assert not any(bool(grad.any()) for grad in found.grads.values())


@kernels
@pytest.mark.parametrize("name", ["lif-refractory", "alif-next", "cuba-after", "sigma_delta"])
@pytest.mark.parametrize(("cut", "recurrent"), [(1, False), (4, True), (9, False), (9, True)])
def test_a_scan_in_two_parts_equals_one(kernel, name, cut, recurrent):
    problem = pose(FORMS[name], (10, 2, 3), recurrent=recurrent)
    run = {"recurrence": problem.recurrence, "kernels": Kernels(scan=kernel)}
    found = []
    for parts in ([slice(0, 10)], [slice(0, cut), slice(cut, 10)]):
        x, state, outs = problem.x.clone().requires_grad_(), problem.state, []
        for part in parts:
            out, state = scan(x[part], state, problem.neuron, **run)
            outs.append(out)
        out = torch.cat(outs)
        found.append((out, *leaves(state), torch.autograd.grad(total(out, state), x)[0]))
    *ours, grad = found[0]
    assert all(torch.equal(a, b) for a, b in zip(ours, found[1]))
    torch.testing.assert_close(grad, found[1][-1], rtol=1e-12, atol=1e-12)


@kernels
@alone_or_not
def test_inputs_are_left_alone_and_outputs_are_new(kernel, form, recurrent):
    problem = pose(form, (1 if recurrent else 3, 2, 3), recurrent=recurrent)
    given = [problem.x, *leaves(problem.state), *(problem.recurrence or ())]
    before = [tensor.clone() for tensor in given]
    run = {"recurrence": problem.recurrence, "kernels": Kernels(scan=kernel)}
    for x in (problem.x, problem.x.requires_grad_()):
        out, state = scan(x, problem.state, problem.neuron, **run)
        made = [out, *leaves(state)]
        for part in leaves(state):  # not a view that keeps all steps alive
            assert part.untyped_storage().nbytes() == 8 * 2 * 3
        places = [part.untyped_storage().data_ptr() for part in (*given, *made)]
        assert len(set(places)) == len(places)
        for part in made:
            part.detach().fill_(7.0)
        assert all(torch.equal(a, b) for a, b in zip(given, before))


class Past(NamedTuple):
    v: torch.Tensor
    kept: torch.Tensor


@component
class Delay(Neuron):
    """Sends its input one step later, and keeps what it was given."""

    def rest(self, x):
        return Past(torch.zeros_like(x), torch.zeros_like(x))

    def advance(self, x, state, generator=None):
        return state.v, Past(x, state.kept)


@kernels
@pytest.mark.parametrize("learning", [True, False])
def test_states_that_are_passed_on_are_new(kernel, learning):
    x = draw((3, 2, 4), 1).requires_grad_(learning)
    start = Past(draw((2, 4), 2).requires_grad_(learning), draw((2, 4), 3).requires_grad_(learning))
    out, state = scan(x, start, Delay(), kernels=Kernels(scan=kernel))
    assert torch.equal(out, torch.cat([start.v[None], x[:-1]]))
    assert torch.equal(state.v, x[-1])
    assert torch.equal(state.kept, start.kept)
    places = [part.untyped_storage().data_ptr() for part in (x, *start, out, *state)]
    assert len(set(places)) == len(places)
    if learning:
        grads = torch.autograd.grad(
            2 * out.sum() + 3 * state.v.sum() + state.kept.sum(), (x, *start)
        )
        assert [grad.unique().tolist() for grad in grads] == [[2.0, 3.0], [2.0], [1.0]]


@kernels
def test_what_was_handed_out_is_not_what_is_stored(kernel):
    problem = pose(FORMS["lif-next"])
    found = []
    for spoil in (False, True):
        x = problem.x.clone().requires_grad_()
        out, state = scan(x, problem.state, problem.neuron, kernels=Kernels(scan=kernel))
        loss = total(out, state)
        if spoil:
            for part in (out, *state):
                part.data.zero_()
        found.append(torch.autograd.grad(loss, x)[0])
    assert torch.equal(*found)


@kernels
@pytest.mark.parametrize(
    ("name", "memory", "per_value"),
    [
        ("lif", "full", 4), ("lif", "lean", 2), ("lif-zero", "full", 4), ("lif-zero", "lean", 3),
        ("leaky_integrator", "full", 0), ("rectified", "full", 1), ("sigma_delta", "full", 1),
    ],
)  # fmt: skip
def test_how_much_is_stored(kernel, name, memory, per_value):
    saved = []

    def pack(tensor):
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    x = torch.rand(6, 2, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scan(x, None, FORMS[name].neuron, kernels=Kernels(scan=kernel, memory=memory))
    assert sum(saved) == per_value * x.numel()


# Hand-computed cases and other implementations


@pytest.mark.parametrize(
    ("kernel", "time", "detach"),
    [("fused", time, detach) for time in TIMES for detach in (True, False)]
    + [
        pytest.param("compiled", time, detach, marks=needs_compiler)
        for time, detach in (("same", False), ("next", True), ("after", False))
    ],
)
@all_resets
def test_gradients_equal_those_of_a_loop_written_here(kernel, time, detach, reset):
    """The reference shares code with the neuron; this loop shares none."""
    beta, th, low, rest = FIXED.values()

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx, d):
            ctx.save_for_backward(d)
            return (d > 0).to(d)

        @staticmethod
        def backward(ctx, g):
            s = 1 / (1 + torch.exp(-4 * ctx.saved_tensors[0]))
            return g * 4 * s * (1 - s)

    target = {Reset.ZERO: 0.0, Reset.VALUE: low}.get(reset)

    def settle(u, z):
        z = z.detach() if detach else z
        if reset is Reset.SOFT:
            return u - th * z
        return u if target is None else u * (1 - z) + target * z

    problem = pose(Form(LIF(), 0.5, 1.2), (20, 3, 4), seed=7)
    neuron = LIF(reset=reset, reset_time=time, detach_reset=detach, scale_input=True, **FIXED)
    v0, z0 = 0.5 * draw((3, 4), 1), (draw((3, 4), 2) > 0).double()
    found = []
    for ours in (True, False):
        x, v, z = (t.clone().requires_grad_() for t in (problem.x, v0, z0))
        given, outs = (x, v, z) if time != "same" else (x, v), []
        if ours:
            state = LIFState(v, None if time == "same" else z)
            out, state = scan(x, state, neuron, kernels=Kernels(scan=kernel))
            v, z = state.v, state.spikes
        else:
            for current in x:
                if time == "next" and target is not None:
                    v = settle(v, z)
                v = rest + beta * (v - rest) + (1 - beta) * current
                if time == "after" or (time == "next" and target is None):
                    v = settle(v, z)
                z = Step.apply(v - th)
                outs.append(z)
                if time == "same":
                    v = settle(v, z)
            out, z = torch.stack(outs), None if time == "same" else z
        loss = total(out, LIFState(v, z))
        grads = torch.autograd.grad(loss, given, allow_unused=True)
        found.append((out, [torch.zeros_like(v) if g is None else g for g in grads]))
    assert torch.equal(found[0][0], found[1][0])
    assert 0.05 < float(found[0][0].detach().mean()) < 0.95
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@kernels
def test_two_steps_by_hand(kernel):
    """``u1 = 1.5`` fires and leaves 0.5; ``u2 = 0.5 / 2 + 0.25`` does not."""
    x = torch.tensor([1.5, 0.25], dtype=torch.float64).view(2, 1, 1).requires_grad_()
    beta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    neuron = LIF(surrogate=StraightThrough(), detach_reset=False).bind({"beta": beta})
    out, state = scan(x, None, neuron, kernels=Kernels(scan=kernel))
    assert out.flatten().tolist() == [1.0, 0.0]
    assert state.v.item() == 0.5
    grads = torch.autograd.grad(3 * out[0].sum() + 5 * out[1].sum() + 7 * state.v.sum(), (x, beta))
    # du2/dv1 = 1/2, dv/du = 1 - psi = 0: only the spikes pass anything on
    assert grads[0].flatten().tolist() == [3.0, 5.0]
    assert grads[1].item() == 5 * 0.5


@kernels
@pytest.mark.parametrize("strict", [True, False])
@all_times
def test_membranes_exactly_at_the_threshold(kernel, strict, time):
    neuron = LIF(beta=0.5, strict=strict, reset_time=time, reset="zero")
    x = torch.full((6, 1, 2), 1.0, dtype=torch.float64)
    x[1] = 0.5
    one = torch.ones(1, 2, dtype=torch.float64)
    assert_twins(kernel, Problem(neuron, x, LIFState(one, None if time == "same" else one)))
    out, _ = scan(x, None, neuron, kernels=Kernels(scan=kernel))
    assert float(out[0, 0, 0]) == (0.0 if strict else 1.0)


@kernels
@both_types
@pytest.mark.parametrize("time", ["same", "next"])
def test_a_reset_to_a_value_is_exact_after_a_large_input(kernel, dtype, time):
    x = torch.tensor([1e3, 1e9, 0.0, 1e30, 0.0], dtype=dtype).view(5, 1, 1)
    neuron = LIF(beta=1.0, reset="value", v_reset=-70.6, v_th=-50.0, reset_time=time)
    out, state = scan(x, None, neuron, kernels=Kernels(scan=kernel))
    expected, last = scan(x, None, neuron, kernels=Kernels(scan="reference"))
    assert torch.equal(out, expected)
    assert torch.equal(state.v, last.v)
    assert torch.equal(state.v, torch.full((1, 1), -70.6, dtype=dtype))


@kernels
@listening
@a_few
def test_the_kernel_equals_single_steps(kernel, recurrent, name):
    problem = pose(FORMS[name], (9, 2, 3), seed=6, recurrent=recurrent)
    out, last = scan(
        problem.x, problem.state, problem.neuron,
        recurrence=problem.recurrence, kernels=Kernels(scan=kernel),
    )  # fmt: skip
    inner, before = problem.state if recurrent else (problem.state, None)
    for t, current in enumerate(problem.x):
        current = current + problem.recurrence(before) if recurrent else current
        before, inner = step(current, inner, problem.neuron)
        assert torch.equal(before, out[t])
    end = RecurrentState(inner, before) if recurrent else inner
    assert all(torch.equal(a, b) for a, b in zip(leaves(end), leaves(last), strict=True))


SMOOTH = {
    "same": LIF(reset="value", **FIXED),
    "next": LIF(reset="soft", reset_time="next", **FIXED),
    "after": LIF(reset="zero", reset_time="after", scale_input=True, **FIXED),
    "alif": ALIF(reset="soft", rho=0.9, **FIXED),
    "cuba": CUBA(reset="value", reset_time="next", alpha=0.6, **FIXED),
    "plif": PLIF(beta=0.6, v_th=0.4),
    "izhikevich": Izhikevich(substeps=1, dt=0.2),
}


@pytest.mark.parametrize(
    ("kernel", "surrogate"),
    [
        ("fused", FastSigmoid(slope=2.0)),
        ("fused", Boxcar(width=9.0)),
        pytest.param("compiled", FastSigmoid(slope=2.0), marks=needs_compiler),
    ],
)
@pytest.mark.parametrize("neuron", SMOOTH.values(), ids=list(SMOOTH))
def test_smoothed_networks_have_the_gradient_of_finite_differences(kernel, neuron, surrogate):
    """Parameters, synapses, states and inputs, all at once."""
    neuron = replace(neuron, surrogate=Smooth(of=surrogate), detach_reset=False)
    mean = 30.0 if isinstance(neuron, Izhikevich) else 0.25
    problem = pose(Form(neuron, mean), (4, 2, 3), recurrent=True)
    names = [name for name in ranges(type(neuron)) if name != "dt"]
    made, _ = tensors(neuron, "each", (3,))
    held = dict.fromkeys(names) | {n: t for n, t in made.items() if n not in names}
    shown = [problem.x, *leaves(problem.state), *problem.recurrence, *(made[n] for n in names)]
    states = len(leaves(problem.state))

    def run(x, *rest):
        state = rebuild(problem.state, iter(rest[:states]))
        synapses = Recurrence(*rest[states : states + 2])
        values = dict(zip(names, rest[states + 2 :]))
        bound = neuron.bind({n: t for n, t in (held | values).items() if t is not None})
        out, end = scan(x, state, bound, recurrence=synapses, kernels=Kernels(scan=kernel))
        return out, *leaves(end)

    given = [tensor.clone().requires_grad_() for tensor in shown]
    options = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-4}
    assert gradcheck(run, given, check_undefined_grad=False, **options)


# Numbers that are none


@kernels
@forms
@both_types
def test_infinite_and_missing_inputs_behave_as_in_the_reference(kernel, form, dtype):
    problem = pose(form, (9, 2, 7), dtype=dtype)
    x = problem.x.clone()
    for column, odd in ((1, math.inf), (2, -math.inf), (3, math.nan), (4, 1e30), (5, -1e30)):
        x[3, :, column] = odd
    x[6, 0, 1], x[6, 0, 2] = -math.inf, math.inf
    found = []
    for name in (kernel, "reference"):
        leaf = x.clone().requires_grad_()
        out, state = scan(leaf, problem.state, form.neuron, kernels=Kernels(scan=name))
        grad = torch.autograd.grad(total(out, state), leaf)[0]
        found.append(([part.detach() for part in (out, *leaves(state))], grad))
    (ours, grad), (expected, other) = found
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    finite = [0, 6]
    scale = TOLERANCE[dtype] * max(1.0, float(other[..., finite].abs().max()))
    torch.testing.assert_close(grad[..., finite], other[..., finite], rtol=scale, atol=scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@alone_or_not
def test_half_precision(form, dtype, recurrent):
    """Torch operations, in the order of the reference: the same rounding."""
    problem = pose(form, (30, 3, 5), dtype=dtype, recurrent=recurrent)
    ours, expected = solve("fused", problem), solve("reference", problem)
    assert torch.equal(ours.out, expected.out)
    assert all(torch.equal(a, b) for a, b in zip(ours.state, expected.state, strict=True))
    assert all(grad.dtype == dtype for grad in ours.grads.values())
    grad = expected.grads["x"].double()
    error = (ours.grads["x"].double() - grad).norm() / grad.norm()
    assert float(error) < 0.05


# What is refused


@pytest.mark.parametrize("kernel", ["reference", "fused", COMPILED])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,), (4, 2, 3)])
@pytest.mark.parametrize("time", ["same", "next"])
def test_a_state_of_another_shape_is_refused(kernel, steps, shape, time):
    x, right, wrong = torch.zeros(steps, 2, 3), torch.zeros(2, 3), torch.zeros(shape)
    given = (
        [LIFState(wrong)] if time == "same" else [LIFState(wrong, right), LIFState(right, wrong)]
    )
    for state in given:
        with pytest.raises(UsageError, match="state has shape"):
            scan(x, state, LIF(reset_time=time), kernels=Kernels(scan=kernel))


@pytest.mark.parametrize("kernel", ["reference", "fused", COMPILED])
def test_a_late_reset_needs_the_spikes_that_wait_and_the_others_none(kernel):
    x, v, run = torch.zeros(4, 2, 3), torch.zeros(2, 3), Kernels(scan=kernel)
    with pytest.raises(UsageError, match="state is a NoneType"):
        scan(x, LIFState(v), LIF(reset_time="next"), kernels=run)
    with pytest.raises(UsageError, match="state is a Tensor, the neuron needs LIFState of None"):
        scan(x, LIFState(v, v), LIF(), kernels=run)


@kernels
def test_currents_must_be_floating_and_have_a_batch(kernel):
    with pytest.raises(UsageError, match=r"input current is torch\.int64"):
        scan(torch.ones(4, 2, 3, dtype=torch.int64), None, LIF(), kernels=Kernels(scan=kernel))
    with pytest.raises(UsageError, match=r"must be \[T, B"):
        scan(torch.ones(4), None, LIF(), kernels=Kernels(scan=kernel))


# The twins that other libraries asked for


@kernels
@pytest.mark.parametrize(
    "neuron",
    [
        LIF.snntorch(0.8), LIF.snntorch(0.8, zero=True), LIF.spikingjelly(3.0, soft=True),
        LIF.norse(), CUBA.synaptic(0.8, 0.7, zero=True), LIF(surrogate=Arctan(), v_rest=0.3),
    ],
)  # fmt: skip
@both_types
def test_constants_of_other_libraries(kernel, neuron, dtype):
    assert_twins(kernel, pose(Form(neuron, 0.4, 0.9), (15, 2, 4), 3, dtype))


@component
class Squared(Neuron):
    """A neuron of the user's whose derivative, and whose next step, need the input itself."""

    def rest(self, x):
        return LIFState(torch.zeros_like(x))

    def advance(self, x, state, generator=None):
        return x * x + 0.5 * state.v, LIFState(x)


@kernels
def test_a_neuron_that_keeps_its_input_is_the_same_too(kernel):
    found = []
    for run in (Kernels(scan=kernel), Kernels(scan="reference")):
        x = draw((5, 2, 3), 1).requires_grad_()
        out, end = scan(1.0 * x, None, Squared(), kernels=run)
        found.append((out, end.v, *torch.autograd.grad(total(out, end), x)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@forms
@kernels
@pytest.mark.parametrize("lay", ["plain", "turned", "static"])
def test_no_state_is_a_state_at_rest(form, kernel, lay):
    """Parts of a state at rest may be one array, or one that is turned."""
    x = pose(form, (6, 5, 5)).x
    x = {"plain": x, "turned": x.transpose(1, 2), "static": x[:1].expand(6, 5, 5)}[lay]
    rest = form.neuron.rest(x[0])
    held = [part.clone() for part in leaves(rest)]
    expected, last = reference(x, None, form.neuron)
    for state in (None, rest):
        out, end = scan(x, state, form.neuron, kernels=Kernels(scan=kernel))
        assert torch.equal(out, expected)
        assert all(torch.equal(a, b) for a, b in zip(leaves(end), leaves(last), strict=True))
        assert len({part.data_ptr() for part in leaves(end)}) == len(leaves(end))
    assert all(torch.equal(a, b) for a, b in zip(leaves(rest), held))


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about torch
def test_the_fused_form_through_torch_compile():
    """Compiling takes many seconds, so there is one of these."""
    problem = pose(FORMS["lif"], (2, 2, 3), dtype=torch.float32)
    assert_twins("inductor", problem._replace(trained={"beta": torch.full((3,), 0.8)}))
