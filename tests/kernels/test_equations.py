"""What symbols can follow, and that they mean what torch means."""

import math
from collections import namedtuple
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from spikecl.components import component
from spikecl.errors import KernelError
from spikecl.kernels import Kernels, choose, compiler, reference, scan
from spikecl.kernels.backend import TorchBackend
from spikecl.kernels.c_code import CBackend
from spikecl.kernels.equations import Symbol, UnreadableError, read
from spikecl.kernels.generated import generated
from spikecl.kernels.program import program
from spikecl.neurons import (
    ALIF,
    LIF,
    AdEx,
    ConductanceLIF,
    FastSigmoid,
    LeakyIntegrator,
    LIState,
    LoihiLIF,
    Neuron,
    Rectified,
    Sigmoid,
    Smooth,
    spike,
)
from spikecl.neurons.surrogate import Surrogate
from spikecl.neurons.values import Real

needs_compiler = pytest.mark.skipif(compiler.compiler() is None, reason="no C compiler here")
COMPILED = pytest.param(CBackend(), marks=needs_compiler, id="compiled")
backends = pytest.mark.parametrize("backend", [pytest.param(TorchBackend(), id="fused"), COMPILED])
X = torch.zeros(1, 3, dtype=torch.float64)


def custom(function):
    """Return a neuron with a step ``function(x, v) -> v``; the membrane is the output."""

    @component
    class Written(Neuron):
        k: Real = 0.5

        def rest(self, x: Tensor) -> Any:
            return LIState(torch.zeros_like(x))

        def advance(self, x: Tensor, state: Any, generator: Any = None) -> Any:
            v = function(x, state.v, self.k)
            return v, LIState(v)

    return Written


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Reading


def test_the_equations_of_an_integrator_by_hand():
    step = read(LeakyIntegrator(kappa=0.7), LIState(X))
    ops = [node.op for node in step.graph.nodes]
    assert ops == ["input", "state", "constant", "mul", "constant", "mul", "add"]
    assert step.graph.constants == [0.7, 1.0]
    assert step.out == step.after[0] == 6
    assert step.graph.nodes[6].args == (3, 5)
    assert step.parameters == ()
    assert step.exact


def test_parameters_that_are_tensors_are_nodes_and_numbers_constants():
    step = read(LeakyIntegrator(kappa=torch.full((3,), 0.7)), LIState(X))
    assert [node.op for node in step.graph.nodes].count("parameter") == 1
    assert step.graph.constants == [1.0]


def test_equal_nodes_are_one_and_equal_numbers_two():
    step = read(custom(lambda x, v, k: (x + v) * 0.5 + (x + v) * 0.5)(), LIState(X))
    ops = [node.op for node in step.graph.nodes]
    assert ops.count("constant") == 2
    assert ops.count("add") == 2


def test_a_unit_without_memory():
    step = read(Rectified(), Rectified().rest(X))
    assert step.before == step.after == ()


REFUSED = {
    "branch": (lambda x, v, k: v if x > 0 else x, "branches on a value"),
    "tanh": (lambda x, v, k: torch.tanh(x), "torch.tanh"),
    "method": (lambda x, v, k: x.tanh(), "tanh"),
    "index": (lambda x, v, k: x[0], "subscriptable"),
    "shape": (lambda x, v, k: x * x.shape[0], "shape"),
    "length": (lambda x, v, k: x * len(x), "len"),
    "float": (lambda x, v, k: x * float(v), "float"),
    "math": (lambda x, v, k: x * math.exp(v), "real number"),
    "tensor": (lambda x, v, k: x * torch.ones(3), "Tensor"),
    "tensor first": (lambda x, v, k: torch.ones(3) * x, "mul"),
    "made a tensor": (lambda x, v, k: torch.as_tensor(x) + v, ""),
    "power": (lambda x, v, k: x**3, "power 3"),
    "reduced": (lambda x, v, k: x - x.mean(), "mean"),
    "stacked": (lambda x, v, k: torch.stack([x, v])[0], "torch.stack"),
    "alpha": (lambda x, v, k: x.add(v, alpha=2.0), "alpha"),
    "iterated": (lambda x, v, k: sum(x), "iterable"),
    "numpy": (lambda x, v, k: x.numpy(), "numpy"),
    "whole": (lambda x, v, k: x.to(torch.int64) * v, ""),
    "rounded": (lambda x, v, k: x.to(torch.float16) * v, ""),
    "either": (lambda x, v, k: ((x > 0) + (v > 0)) * x, ""),
    "and": (lambda x, v, k: ((x > 0) & (v > 0)) * x, "&"),
    "unrounded": (lambda x, v, k: torch.addcmul(x, v, x), "torch.addcmul"),  # adds a whole product
}


@pytest.mark.parametrize(("function", "why"), REFUSED.values(), ids=list(REFUSED))
def test_what_symbols_cannot_follow_is_refused(function, why):
    neuron = custom(function)()
    with pytest.raises(UnreadableError) as caught:
        read(neuron, LIState(X))
    assert why in str(caught.value)
    assert program(neuron, LIState(X)) is None


def test_what_is_refused_runs_by_the_reference():
    neuron = custom(lambda x, v, k: torch.tanh(v + x))()
    x = draw((4, 2, 3))
    assert choose(neuron, x).name == "reference"
    assert choose(neuron, x).reason == "Written has a step that no kernel can be generated from"
    out, _ = scan(x, None, neuron)
    assert torch.equal(out[0], torch.tanh(x[0]))


@pytest.mark.parametrize("name", ["fused", "compiled", "inductor", "triton"])
@pytest.mark.parametrize("why", ["unrounded", "tanh"])
def test_no_kernel_by_name_takes_what_is_refused(name, why):
    neuron = custom(REFUSED[why][0])()
    for run in (choose, lambda neuron, x, kernels: scan(x, None, neuron, kernels=kernels)):
        with pytest.raises(KernelError, match=f"'{name}' cannot run here: Written has a step"):
            run(neuron, draw((4, 2, 3)), kernels=Kernels(scan=name))
    out, _ = scan(x := draw((4, 2, 3)), None, neuron)
    assert torch.equal(out, reference(x, None, neuron)[0])


def test_models_that_draw_have_no_equations():
    with pytest.raises(UnreadableError, match="random"):
        read(LIF(noise=0.1), LIF().rest(X))


@pytest.mark.parametrize("neuron", [ConductanceLIF(), LoihiLIF(vth=70)])
def test_models_with_other_inputs_have_no_program(neuron):
    rest = neuron.rest(torch.zeros(1, 2, 3))
    assert program(neuron, rest) is None


@pytest.mark.parametrize(
    ("neuron", "exact"),
    [
        (LIF(), True),
        (ALIF(refractory=2), True),
        (AdEx(), False),
        (LIF(surrogate=Smooth(of=FastSigmoid())), True),
        (LIF(surrogate=Smooth(of=Sigmoid())), False),
        (custom(lambda x, v, k: v * 0.5 + x.sigmoid())(), False),
        (custom(lambda x, v, k: torch.erf(x) + v)(), False),
        (custom(lambda x, v, k: spike(v + x, Sigmoid()))(), True),  # exp backward alone
        (custom(lambda x, v, k: x.abs() / 3 + v)(), True),
    ],
)
def test_what_is_rounded_alike_everywhere(neuron, exact):
    assert read(neuron, neuron.rest(X)).exact is exact
    assert (choose(neuron, X[None]).name != "reference") is exact


# Meaning


def masked(x, v, k):
    with torch.no_grad():
        mask = (x - v).abs() >= k
        late = torch.where(mask, x, 0.0)
    return v * mask + late


def in_place(x, v, k):
    u = v * 0.5
    u.add_(x).mul_(k).sub_(0.25).div_(2.0)
    with torch.no_grad():
        w = x.abs()
        w.add_(1).square_().reciprocal_().clamp_min_(0.4)
    return u.neg_() * w + (1 - x.abs()).clamp_min_(0).mul_(0.7)


OPERATIONS = {
    "add": lambda x, v, k: x + v + 1 + (2.5 + x),
    "sub": lambda x, v, k: (x - v) - 0.3 - (0.7 - v),
    "mul": lambda x, v, k: 3 * x * v * k,
    "div": lambda x, v, k: x / (2.0 + v.abs()) + 1.5 / (k + v * v) + v / 3.0,
    "neg": lambda x, v, k: -x - v.neg(),
    "abs": lambda x, v, k: abs(x) + v.abs() * torch.abs(x - v),
    "greater": lambda x, v, k: (x > v) * x + (x > 0.5) * v,
    "less": lambda x, v, k: (x < v) * x + (0.5 < x) * v + (x <= v) * v,  # noqa: SIM300
    "at least": lambda x, v, k: (x >= v).to(x.dtype) * k + (0.0 >= x) * v,  # noqa: SIM300
    "equal": lambda x, v, k: (x == v) * x + (v == 0) * k * x,
    "where": lambda x, v, k: torch.where(x > v, x, 2.0) + torch.where(v > 0, k, v * x),
    "relu": lambda x, v, k: torch.relu(x) + (v - x).relu(),
    "minimum": lambda x, v, k: torch.minimum(x, v) + torch.minimum(v, x.new_zeros(()) + 0.5),
    "maximum": lambda x, v, k: torch.maximum(x, v) + x.maximum(v * k),
    "constant first": lambda x, v, k: torch.minimum(x.new_zeros(()) + 0.5, v) + x,
    "clamp": lambda x, v, k: x.clamp(-0.5, 0.5) * v + v.clamp_min(0.0) + x.clamp(max=1.0),
    "square": lambda x, v, k: x.square() + v**2 + (x - v) ** 2.0,
    "reciprocal": lambda x, v, k: (1 + x.abs()).reciprocal() * v,
    "detach": lambda x, v, k: x.detach() * v + (x * v).detach(),
    "no_grad": masked,
    "in place": in_place,
    "ones": lambda x, v, k: torch.ones_like(x) * v + torch.zeros_like(v) + x,
    "spike": lambda x, v, k: spike(x - v, FastSigmoid(slope=2.0)) + v,
    "spike at": lambda x, v, k: spike(x - v, FastSigmoid(slope=2.0), strict=False) * x,
}
INEXACT = {
    "exp": lambda x, v, k: torch.exp(-x.abs()) * v + (0.3 * x).exp(),
    "sigmoid": lambda x, v, k: torch.sigmoid(x * v) + v.sigmoid(),
}
Parts = namedtuple("Parts", ("a", "b", *(f"part{k}" for k in range(len(OPERATIONS | INEXACT)))))


@component
class Every(Neuron):
    """All operations, each in a part of the state of its own."""

    k: Real = 0.5

    def rest(self, x: Tensor) -> Any:
        return Parts(*(torch.zeros_like(x) for _ in Parts._fields))

    def advance(self, x: Tensor, state: Any, generator: Any = None) -> Any:
        made = [function(x, state.a, self.k) for function in (OPERATIONS | INEXACT).values()]
        return x + state.b, Parts(state.a * 1.0, state.b, *made)


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_every_operation_and_its_derivative(backend, dtype):
    """Values, ties between them, and the numbers that are none."""
    special = [0.0, -0.0, 0.5, -0.5, 1.0, math.inf, -math.inf, math.nan, 1e-30, 1e20]
    x = torch.tensor([a for a in special for _ in special], dtype=dtype)
    a = torch.tensor([b for _ in special for b in special], dtype=dtype)
    x, a = torch.cat([x, draw(500).to(dtype)]), torch.cat([a, draw(500, 1).to(dtype)])
    finite = (x.isfinite() & a.isfinite() & (x.abs() < 1e9) & (a.abs() < 1e9)).tolist()
    neuron = Every()
    found = []
    for run in ("ours", "reference"):
        leaves = [x[None, None].clone().requires_grad_(), a[None].clone().requires_grad_()]
        k = torch.full(x.shape, 0.5, dtype=dtype, requires_grad=True)
        state = neuron.rest(leaves[1].detach())._replace(a=leaves[1])
        if run == "ours":
            _, end = generated(leaves[0], state, neuron.bind({"k": k}), backend)
        else:
            _, end = reference(leaves[0], state, neuron.bind({"k": k}))
        parts = end[2:]
        grads = []
        for j, part in enumerate(parts):
            weighted = (part * draw(part.shape, 100 + j).to(dtype))[0, finite].sum()
            inputs = [*leaves, k]
            grad = torch.autograd.grad(weighted, inputs, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(n) if g is None else g for g, n in zip(grad, inputs)]
            grads.append([grad.flatten()[finite] for grad in filled])
        found.append((parts, grads))
    tight = 1e-13 if dtype is torch.float64 else 1e-5
    for name, mine, other, g, h in zip(OPERATIONS | INEXACT, found[0][0], found[1][0], *(
        f[1] for f in found
    )):  # fmt: skip
        tolerance = tight if name in INEXACT else 0.0
        columns = finite if name in INEXACT else slice(None)
        torch.testing.assert_close(
            mine[0, columns], other[0, columns], rtol=tolerance, atol=0, equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
        for part, like in zip(g, h, strict=True):
            torch.testing.assert_close(
                part, like, rtol=tight, atol=tight,
                msg=lambda text, name=name: f"gradient of {name}: {text}",
            )  # fmt: skip


class Cosine(Surrogate):
    """A surrogate that nobody here knew of, and no frozen dataclass."""

    def __call__(self, x):
        return (1 - x.square()).clamp_min(0.0).mul_(0.5)

    def primitive(self, x):
        raise NotImplementedError


@component
class Quadratic(Neuron):
    """A neuron that nobody here knew of: ``u = v + h (v^2 - w + x)``, adapting."""

    h: Real = 0.2
    surrogate: Any = Cosine()

    def rest(self, x: Tensor) -> Any:
        return Pair(torch.zeros_like(x), torch.zeros_like(x))

    def advance(self, x: Tensor, state: Any, generator: Any = None) -> Any:
        u = (state.v + self.h * (state.v**2 - state.w + x)).clamp(-2, 2)
        s = spike(u - 1.0, self.surrogate)
        return s, Pair(torch.where(s > 0, -0.5, u), 0.9 * state.w + s)


class Pair(NamedTuple):
    v: Tensor
    w: Tensor


@pytest.mark.parametrize("kernel", ["fused", pytest.param("compiled", marks=needs_compiler)])
def test_a_neuron_and_a_surrogate_written_by_a_user_get_kernels(kernel):
    neuron, found = Quadratic(), []
    for name in (kernel, "reference"):
        x = (4 * draw((30, 2, 5)) + 3).requires_grad_()
        h = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        out, state = scan(x, None, neuron.bind({"h": h}), kernels=Kernels(scan=name))
        loss = (out * draw(out.shape, 2)).sum() + state.v.sum()
        found.append((out, state, torch.autograd.grad(loss, (x, h))))
    assert 0.02 < float(found[0][0].detach().mean()) < 0.9
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1]))
    for a, b in zip(found[0][2], found[1][2]):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_surrogate_that_cannot_be_hashed_runs_too():
    class Unhashable(Cosine):
        __hash__ = None

        def __eq__(self, other):
            return self is other

    x = draw((4, 2, 3))
    out, _ = scan(x, None, Quadratic(surrogate=Unhashable()))
    assert torch.equal(out, reference(x, None, Quadratic())[0])


def test_symbols_are_not_hashable_and_refuse_to_be_compared_in_a_branch():
    step = read(LeakyIntegrator(), LIState(X))
    symbol = Symbol(step.graph, step.x)
    with pytest.raises(TypeError):
        hash(symbol)
    with pytest.raises(UnreadableError, match="branches"):
        bool(symbol)
