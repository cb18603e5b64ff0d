"""The ways of errors back through a scan: autograd of loops written out, for every kernel."""

import pytest
import torch

from spikecl.kernels import Kernels, Recurrence, compiler, scan
from spikecl.kernels.recurrence import RecurrentState, Ways
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    FastSigmoid,
    Izhikevich,
    LeakyIntegrator,
    Rectified,
    Sigmoid,
    step,
)
from spikecl.neurons.neuron import carry, leaves, rebuild

T, B, N = 6, 3, 4
needs_compiler = pytest.mark.skipif(compiler.compiler() is None, reason="no C compiler here")
KERNELS = ["reference", "fused", pytest.param("compiled", marks=needs_compiler)]
LIFS = {
    f"lif {reset} {time}{' kept' if kept else ''}": (
        LIF(
            beta=0.7,
            v_th=0.4,
            v_reset=-0.1,
            reset=reset,
            reset_time=time,
            detach_reset=not kept,
            surrogate=FastSigmoid(slope=3.0),
        ),
        (),
        1.0,
    )
    for reset in ("soft", "zero", "value", "none")
    for time in ("same", "next", "after")
    for kept in (False, True)
}
OTHERS = {
    "if": (IF(v_th=0.9), (), 1.0),
    "refractory": (LIF(beta=0.8, v_th=0.4, refractory=1), (), 1.0),
    "scaled": (LIF(beta=0.4, v_th=0.3, v_rest=0.1, scale_input=True), ("beta", "v_rest"), 1.5),
    "alif": (ALIF(v_th=0.4), ("beta", "rho"), 1.0),
    "cuba": (CUBA(v_th=0.5, surrogate=Sigmoid(slope=2.0)), ("alpha", "beta", "v_th"), 1.0),
    "plif": (PLIF(v_th=0.4), ("beta",), 1.0),
    "plif, kept": (PLIF(v_th=0.4, detach_reset=False), ("beta", "v_th"), 1.0),
    "izhikevich": (Izhikevich(), ("a", "d"), 40.0),
    "adex": (AdEx(dt=1.0, delta_t=10.0, v_peak=0.0, v_scale=20.0), (), 4000.0),
    "integrator": (LeakyIntegrator(), (), 1.0),
}
CASES = {**LIFS, **OTHERS}
NO_KERNEL = ("adex",)
cases = pytest.mark.parametrize("case", CASES)
kernels = pytest.mark.parametrize("kernel", KERNELS)
listens = pytest.mark.parametrize("listening", [False, True], ids=["alone", "recurrent"])
WHOLE = pytest.mark.parametrize("whole", ["one", "each", "each of one sample"])


def draw(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


class Problem:
    """A neuron, its input and weights of a sum of all that comes out, as leaves."""

    def __init__(self, case, *, listening, shape="one", steps=T, dtype=torch.float64, ends=False):
        neuron, names, size = CASES[case]
        self.dtype, self.listening, self.ends = dtype, listening, ends
        self.x = (size * (draw(steps, B, N, seed=0) + 0.5)).to(dtype)
        spread = {"one": (), "each": (N,), "each of one sample": (1, N)}[shape]
        self.parameters = {
            name: torch.full(spread, getattr(neuron, name), dtype=dtype)
            * (1 + 0.05 * draw(*spread, seed=9 + k, dtype=dtype))
            for k, name in enumerate(names)
        }
        self.neuron = neuron
        self.weight = size * 0.4 * draw(N, N, seed=2, dtype=dtype)
        self.bias = size * 0.1 * draw(N, seed=3, dtype=dtype)
        self.back = size * 0.4 * draw(N, N, seed=4, dtype=dtype)
        self.sums = draw(steps, B, N, seed=5, dtype=dtype)
        with torch.no_grad():  # a state in the middle of things
            recurrence = Recurrence(self.weight, self.bias) if listening else None
            first = (size * (draw(5, B, N, seed=6) + 0.5)).to(dtype)
            plain = Kernels(scan="reference")
            neuron = self.neuron.bind(self.parameters)
            _, self.start = scan(first, None, neuron, recurrence=recurrence, kernels=plain)

    def leaves(self):
        """Return fresh leaves by name."""
        found = {"x": self.x, **{f"parameter {n}": p for n, p in self.parameters.items()}}
        found |= {f"state {k}": t for k, t in enumerate(leaves(self.start))}
        if self.listening:
            found |= {"weight": self.weight, "bias": self.bias}
        return {name: tensor.clone().requires_grad_() for name, tensor in found.items()}

    def parts(self, leaf):
        """Return the neuron and the state of leaves."""
        values = {n.removeprefix("parameter "): t for n, t in leaf.items() if n[:4] == "para"}
        tensors = [t for n, t in leaf.items() if n.startswith("state ")]
        return self.neuron.bind(values), rebuild(self.start, iter(tensors))

    def total(self, out, state):
        total = (out * self.sums).sum()
        if self.ends:
            for k, part in enumerate(leaves(state)):
                weight = draw(*part.shape, seed=20 + k, dtype=self.dtype)
                total = total + (part * weight).sum()
        return total

    def gradients(self, total, leaf):
        found = torch.autograd.grad(total, list(leaf.values()), allow_unused=True)
        return {
            n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaf.items(), found)
        }

    def ours(self, kernel, *, through=False, **ways):
        leaf = self.leaves()
        neuron, state = self.parts(leaf)
        recurrence = Recurrence(leaf["weight"], leaf["bias"]) if self.listening else None
        if through:
            leaf["through"] = self.x.clone().requires_grad_()
        out, end = scan(
            leaf["x"],
            state,
            neuron,
            recurrence=recurrence,
            kernels=Kernels(scan=kernel),
            ways=Ways(through=leaf.get("through"), **ways),
        )
        return out.detach(), self.gradients(self.total(out, end), leaf)

    def by_hand(self, *, cut=False, hear="own"):
        """A loop over steps; ``cut``: the state is taken as given in each."""
        leaf = self.leaves()
        neuron, state = self.parts(leaf)
        outputs = []
        for now in leaf["x"]:
            if cut:
                state = carry(state, "detach")
            if not self.listening:
                out, state = step(now, state, neuron)
            else:
                inner, last = state
                if hear == "nothing":
                    last = last.detach()
                weight = self.back if hear == "back" else leaf["weight"]
                heard = Heard.apply(last, leaf["weight"], leaf["bias"], weight.detach())
                out, inner = step(now + heard, inner, neuron)
                state = RecurrentState(inner, out)
            outputs.append(out)
        out = torch.stack(outputs)
        return out.detach(), self.gradients(self.total(out, state), leaf)


class Heard(torch.autograd.Function):
    """``W s + b``; the errors of s come through another weight."""

    @staticmethod
    def forward(ctx, spikes, weight, bias, back):
        ctx.save_for_backward(spikes, back)
        return spikes @ weight.T + bias

    @staticmethod
    def backward(ctx, grad):
        spikes, back = ctx.saved_tensors
        return grad @ back, grad.T @ spikes, grad.sum(0), None


def same(ours, theirs, *, tight=1e-10):
    out, found = ours
    expected, wanted = theirs
    assert torch.equal(out, expected)
    for name, gradient in wanted.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(
            found[name],
            gradient,
            rtol=tight,
            atol=tight * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def skip_unfit(case, kernel):
    if case in NO_KERNEL and kernel != "reference":
        pytest.skip("exp is rounded by each compiler its way: no generated kernel")


@cases
@listens
def test_the_problems_are_no_trivial_ones(case, listening):
    problem = Problem(case, listening=listening)
    out, full = problem.by_hand()
    _, cut = problem.by_hand(cut=True)
    rate = float((out != 0).double().mean())
    assert 0.02 < rate < 0.98 or case == "integrator"
    assert not torch.allclose(full["x"], cut["x"], rtol=1e-3, atol=0)
    assert all(bool(g.any()) for n, g in full.items() if n[0] in "xpwb")
    assert not any(bool(g.any()) for n, g in cut.items() if n.startswith("state"))
    if listening:
        _, deaf = problem.by_hand(hear="nothing")
        _, back = problem.by_hand(hear="back")
        assert not torch.allclose(full["x"], deaf["x"], rtol=1e-3, atol=0)
        assert not torch.allclose(full["x"], back["x"], rtol=1e-3, atol=0)


@kernels
@cases
@listens
@pytest.mark.parametrize("ends", [False, True], ids=["output", "output and state"])
def test_every_way_is_that_of_a_loop(kernel, case, listening, ends):
    skip_unfit(case, kernel)
    problem = Problem(case, listening=listening, ends=ends)
    same(problem.ours(kernel), problem.by_hand())
    same(problem.ours(kernel, instant=True), problem.by_hand(cut=True))
    if listening:
        same(problem.ours(kernel, recurrent=False), problem.by_hand(hear="nothing"))
        same(problem.ours(kernel, back=problem.back), problem.by_hand(hear="back"))
        same(
            problem.ours(kernel, instant=True, recurrent=False, back=problem.back),
            problem.by_hand(cut=True),
        )
        same(
            problem.ours(kernel, recurrent=False, back=problem.back),
            problem.by_hand(hear="nothing"),
        )


@kernels
@cases
@listens
def test_the_second_input_gets_the_error_of_its_step_and_changes_no_other(kernel, case, listening):
    """Parameters, weights and states have the gradients they have without it."""
    skip_unfit(case, kernel)
    problem = Problem(case, listening=listening)
    _, cut = problem.by_hand(cut=True)
    ways = [({}, {})]
    if listening:
        ways += [({"recurrent": False}, {"hear": "nothing"})]
        ways += [({"back": problem.back}, {"hear": "back"})]
    for ours, theirs in ways:
        out, expected = problem.by_hand(**theirs)
        found = problem.ours(kernel, through=True, **ours)
        same(found, (out, {**expected, "through": cut["x"]}))
    found = problem.ours(kernel, through=True, instant=True)
    same(found, (out, {**cut, "through": cut["x"]}))


@kernels
@pytest.mark.parametrize("case", ["lif soft same", "alif", "cuba", "lif value next kept"])
@listens
def test_the_second_input_gets_what_the_first_would_where_memory_is_cut(kernel, case, listening):
    """The error of the neurons' state after the last step is the first input's alone."""
    _, cut = Problem(case, listening=listening).ours(kernel, instant=True)
    _, found = Problem(case, listening=listening, ends=not listening).ours(kernel, through=True)
    torch.testing.assert_close(found["through"], cut["x"], rtol=1e-10, atol=1e-12)


@kernels
@WHOLE
@pytest.mark.parametrize("case", ["plif", "plif, kept", "scaled", "alif", "cuba", "izhikevich"])
@listens
def test_parameters_of_any_shape(kernel, whole, case, listening):
    problem = Problem(case, listening=listening, shape=whole, ends=True)
    for ours, theirs in [({}, {}), ({"instant": True}, {"cut": True})]:
        found, expected = problem.ours(kernel, **ours), problem.by_hand(**theirs)
        same(found, expected)
        for name, parameter in problem.parameters.items():
            assert found[1][f"parameter {name}"].shape == parameter.shape


@kernels
@WHOLE
@pytest.mark.parametrize("case", ["plif", "plif, kept", "scaled"])
def test_parameters_of_any_shape_do_not_feel_the_second_input(kernel, whole, case):
    problem = Problem(case, listening=False, shape=whole)
    _, cut = problem.by_hand(cut=True)
    out, full = problem.by_hand()
    same(problem.ours(kernel, through=True), (out, {**full, "through": cut["x"]}))


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("case", ["lif soft same", "lif zero next", "alif", "plif"])
@listens
def test_one_step_and_two_in_both_types(kernel, dtype, steps, case, listening):
    problem = Problem(case, listening=listening, steps=steps, dtype=dtype, ends=True)
    tight = 1e-10 if dtype == torch.float64 else 3e-5
    same(problem.ours(kernel), problem.by_hand(), tight=tight)
    found = problem.ours(kernel, instant=True)
    same(found, problem.by_hand(cut=True), tight=tight)
    assert all(g.dtype == dtype for g in found[1].values())


@kernels
@pytest.mark.parametrize("case", LIFS)
def test_the_error_of_one_step_in_closed_form(kernel, case):
    """``dL/dx[t] = psi(v[t] - v_th) dL/ds[t]`` where the reset passes nothing of the present."""
    neuron = CASES[case][0]
    if not neuron.detach_reset:
        pytest.skip("closed form of the reset that passes no error")
    problem = Problem(case, listening=False)
    out, found = problem.ours(kernel, instant=True)
    v = before_reset(neuron, problem.x, problem.start)
    assert torch.equal((v > neuron.v_th).double(), out)
    psi = 1 / (1 + 3.0 * (v - neuron.v_th).abs()) ** 2
    if neuron.reset_time == "after" and neuron.reset in ("zero", "value"):
        last = torch.cat([problem.start.spikes[None], out[:-1]])
        psi = psi * (1 - last)  # the reset wipes out the input too
    torch.testing.assert_close(found["x"], problem.sums * psi, rtol=1e-12, atol=1e-14)


def before_reset(neuron, x, state):
    """Return the membrane that fires at every step; resets by hand."""
    v, waiting = state.v, state.spikes
    kind, when, found = neuron.reset, neuron.reset_time, []

    def reset(u, s):
        if kind == "none":
            return u
        if kind == "soft":
            return u - neuron.v_th * s
        return torch.where(s > 0, neuron.v_reset if kind == "value" else 0.0, u)

    for now in x:
        if when == "next" and kind != "soft":
            v = reset(v, waiting)
        u = neuron.beta * v + now
        if when == "after" or (when == "next" and kind == "soft"):
            u = reset(u, waiting)
        s = (u > neuron.v_th).to(u)
        v, waiting = (reset(u, s), None) if when == "same" else (u, s)
        found.append(u)
    return torch.stack(found)


@pytest.mark.parametrize("ways", [{}, {"instant": True}, {"through": True}])
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_units_without_memory_know_one_way_alone(ways, kernel):
    x = draw(T, B, N, seed=0).requires_grad_()
    other = x.detach().clone().requires_grad_()
    given = {**ways, "through": other} if "through" in ways else ways
    out, _ = scan(x, None, Rectified(), kernels=Kernels(scan=kernel), ways=Ways(**given))
    sums = draw(T, B, N, seed=5)
    asked = [x, other] if "through" in ways else [x]
    for found in torch.autograd.grad((out * sums).sum(), asked):
        assert torch.equal(found, sums * (x > 0))


def test_a_second_input_of_random_neurons_sees_the_same_draws():
    x = draw(T, B, N, seed=0) + 0.3
    neuron = LIF(beta=0.7, v_th=0.4, noise=0.3)
    sums, found = draw(T, B, N, seed=5), {}
    for name in ("through", "instant", "plain"):
        leaf, again = (x.clone().requires_grad_() for _ in range(2))
        ways = {"through": Ways(through=again), "instant": Ways(instant=True), "plain": Ways()}
        draws = torch.Generator().manual_seed(3)
        out, _ = scan(leaf, None, neuron, generator=draws, ways=ways[name])
        asked = [leaf, again] if name == "through" else [leaf]
        found[name] = (
            out,
            draws.get_state(),
            *torch.autograd.grad((out * sums).sum(), asked),
        )
    for name in ("through", "instant"):
        assert torch.equal(found[name][0], found["plain"][0])
        assert torch.equal(found[name][1], found["plain"][1])
    torch.testing.assert_close(found["through"][2], found["plain"][2], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found["through"][3], found["instant"][2], rtol=1e-12, atol=1e-14)


@kernels
@listens
def test_a_layer_that_is_forward_alone_is_the_same_on_every_way(kernel, listening):
    problem = Problem("alif", listening=listening)
    recurrence = Recurrence(problem.weight, problem.bias) if listening else None
    neuron = problem.neuron.bind(problem.parameters)
    expected, after = scan(problem.x, problem.start, neuron, recurrence=recurrence)
    for ways in (
        Ways(instant=True),
        Ways(recurrent=False),
        Ways(back=problem.back),
        Ways(through=problem.x),
    ):
        with torch.no_grad():
            out, end = scan(
                problem.x,
                problem.start,
                neuron,
                recurrence=recurrence,
                kernels=Kernels(scan=kernel),
                ways=ways,
            )
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        for a, b in zip(leaves(end), leaves(after), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@kernels
def test_the_first_input_needs_no_gradient_for_the_second_to_have_one(kernel):
    problem = Problem("lif soft same", listening=False)
    other = problem.x.clone().requires_grad_()
    out, _ = scan(
        problem.x,
        problem.start,
        problem.neuron,
        kernels=Kernels(scan=kernel),
        ways=Ways(through=other),
    )
    (found,) = torch.autograd.grad((out * problem.sums).sum(), [other])
    _, cut = problem.by_hand(cut=True)
    torch.testing.assert_close(found, cut["x"], rtol=1e-12, atol=1e-14)
