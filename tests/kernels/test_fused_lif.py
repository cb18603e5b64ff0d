"""The fused scan equals the step loop: spikes bit for bit, gradients to rounding."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.errors import UsageError
from spikecl.kernels import Recurrence, choose, reference, scan
from spikecl.kernels.fused_lif import fused_lif, is_fusible
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    Arctan,
    Escape,
    FastSigmoid,
    LIFState,
    Reset,
    Sigmoid,
    Smooth,
    Triangle,
    step,
)

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SWITCHES = list(
    itertools.product(list(Reset), ["same", "next"], [True, False], [True, False], [True, False])
)
both_times = pytest.mark.parametrize("time", ["same", "next"])
all_resets = pytest.mark.parametrize("reset", list(Reset))
neurons = st.builds(
    lambda cls, beta, scale, **options: cls(
        beta=beta,
        scale_input=scale and beta < 1,  # scaled by nothing is refused
        **options,
    ),
    cls=st.sampled_from([LIF, IF, PLIF]),
    beta=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    v_th=st.sampled_from([1.0, 0.37, -0.2]),
    v_reset=st.sampled_from([-0.4, 0.25]),
    v_rest=st.sampled_from([0.0, -0.3, 0.6]),
    scale=st.booleans(),
    reset=st.sampled_from(list(Reset)),
    reset_time=st.sampled_from(["same", "next"]),
    detach_reset=st.booleans(),
    strict=st.booleans(),
    surrogate=st.sampled_from(
        [Sigmoid(), Arctan(), FastSigmoid(slope=5.0), Sigmoid(slope=1.5), Triangle()]
    ),
)


def fused(x, state, neuron):
    """Run the kernel from a state that may be ``None``, as ``scan`` does."""
    return fused_lif(x, neuron.rest(x[0]) if state is None else state, neuron)


def draw(shape, seed, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def problem(shape, seed, dtype=torch.float64):
    """Return input, membrane and waiting spikes, and weights of the three outputs in a loss."""
    shapes = (shape, shape[1:], shape[1:], shape, shape[1:], shape[1:])
    x, v, waiting, *weights = (draw(s, 10 * seed + k, dtype) for k, s in enumerate(shapes))
    return x + 0.3, v, (waiting > 0).to(dtype), *weights


def solve(kernel, neuron, x, v, waiting, w_spikes, w_last, w_waiting):
    """Return spikes, the state after them, and the gradients of input, membrane, spikes."""
    late = neuron.reset_time != "same"
    leaves = [tensor.clone().requires_grad_() for tensor in (x, v, waiting)]
    spikes, state = kernel(leaves[0], LIFState(leaves[1], leaves[2] if late else None), neuron)
    loss = (spikes * w_spikes).sum() + (state.v * w_last).sum()
    assert (state.spikes is not None) == late
    if late:
        loss = loss + (state.spikes * w_waiting).sum()
        assert torch.equal(state.spikes, spikes[-1])
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    zeros = [torch.zeros_like(n) if g is None else g for g, n in zip(grads, leaves)]
    return spikes.detach(), state.v.detach(), *zeros


def assert_equal_to_reference(neuron, given, tolerance, kernel=fused):
    ours, expected = solve(kernel, neuron, *given), solve(reference, neuron, *given)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])  # or a chunk of one step could tip a spike over
    for a, b in zip(ours[2:], expected[2:], strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("reset", "time", "detach", "strict", "scale"), SWITCHES)
def test_every_combination_of_switches(reset, time, detach, strict, scale):
    neuron = LIF(
        beta=0.8, v_th=0.6, v_reset=-0.3, v_rest=-0.1, scale_input=scale, reset=reset,
        reset_time=time, detach_reset=detach, strict=strict,
    )  # fmt: skip
    assert is_fusible(neuron)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        assert_equal_to_reference(neuron, problem((12, 3, 5), 1, dtype), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    "neuron",
    [LIF(v_rest=0.3, v_th=0.6), IF(), IF(v_rest=0.5), PLIF(), PLIF(v_rest=-0.2, beta=0.75)]
    + [LIF.snntorch(0.8), LIF.snntorch(0.8, zero=True), LIF.spikingjelly(3.0, soft=True)],
)
def test_special_cases_and_a_membrane_that_rests_elsewhere(neuron, dtype, tolerance):
    given = problem((15, 2, 4), 3, dtype)
    assert_equal_to_reference(neuron, given, tolerance)
    assert "FusedLIF" in scan(given[0].requires_grad_(), None, neuron)[0].grad_fn.name()


@quick
@given(
    neurons,
    st.integers(1, 9),
    st.integers(1, 4),
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(0, 10_000),
)
def test_random_neurons_and_shapes(neuron, steps, batch, features, seed):
    given = problem((steps, batch, *features), seed)
    assert_equal_to_reference(neuron, given, 1e-10)
    assert_equal_to_reference(neuron, given, 1e-10, kernel=scan)


@both_times
@all_resets
@pytest.mark.parametrize("detach", [True, False])
def test_gradients_equal_those_of_a_loop_written_here(reset, time, detach):
    """The reference shares code with the neuron; this loop shares none."""
    beta, th, low, rest = 0.7, 0.5, -0.25, 0.2
    neuron = LIF(
        beta=beta, v_th=th, v_reset=low, v_rest=rest, reset=reset, reset_time=time,
        detach_reset=detach, scale_input=True,
    )  # fmt: skip

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx, d):
            ctx.save_for_backward(d)
            return (d > 0).to(d)

        @staticmethod
        def backward(ctx, g):
            s = 1 / (1 + torch.exp(-4 * ctx.saved_tensors[0]))
            return g * 4 * s * (1 - s)

    def loop(x, state, neuron):
        v, z = state
        spikes = []
        target = {Reset.ZERO: 0.0, Reset.VALUE: low}.get(reset)

        def settle(u, z):
            z = z.detach() if detach else z
            if reset is Reset.SOFT:
                return u - th * z
            return u if target is None else u * (1 - z) + target * z

        for current in x:
            if time == "next" and target is not None:
                v = settle(v, z)
            v = rest + beta * (v - rest) + (1 - beta) * current
            if time == "next" and target is None:
                v = settle(v, z)
            z = Step.apply(v - th)
            spikes.append(z)
            if time == "same":
                v = settle(v, z)
        return torch.stack(spikes), LIFState(v, z if time == "next" else None)

    x, *others = problem((20, 3, 4), 7)
    given = (2 * x + 0.5, *others)
    ours, expected = solve(fused, neuron, *given), solve(loop, neuron, *given)
    assert torch.equal(ours[0], expected[0])
    assert 0.05 < float(ours[0].mean()) < 0.95
    for a, b in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("strict", [True, False])
@both_times
def test_membranes_exactly_at_the_threshold(strict, time):
    neuron = LIF(beta=0.5, v_th=1.0, strict=strict, reset_time=time, reset=Reset.ZERO)
    x = torch.full((6, 1, 2), 1.0, dtype=torch.float64)
    x[1] = 0.5
    one = torch.ones(1, 2, dtype=torch.float64)
    assert_equal_to_reference(neuron, (x, one, one, *problem((6, 1, 2), 0)[3:]), 1e-12)
    assert float(fused(x, None, neuron)[0][0, 0, 0]) == (0.0 if strict else 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both_times
def test_a_reset_to_a_value_is_exact_after_a_large_input(time, dtype):
    x = torch.tensor([1e3, 1e9, 0.0, 1e30, 0.0], dtype=dtype).view(5, 1, 1)
    neuron = LIF(beta=1.0, reset=Reset.VALUE, v_reset=-70.6, v_th=-50.0, reset_time=time)
    a, b = fused(x, None, neuron), reference(x, None, neuron)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1].v, b[1].v)
    assert torch.equal(a[1].v, torch.full((1, 1), -70.6, dtype=dtype))


@all_resets
@both_times
def test_each_output_alone_and_no_state(reset, time):
    neuron = LIF(beta=0.7, v_th=0.5, reset=reset, reset_time=time, detach_reset=False)
    x = problem((7, 2, 3), 5)[0]
    losses = [lambda s, state: (s * s.cumsum(0).detach()).sum(), lambda s, state: state.v.sum()]
    if time == "next":
        losses.append(lambda s, state: (state.spikes * draw((2, 3), 8)).sum())
    for loss in losses:
        grads = []
        for kernel in (fused, reference):
            leaf = x.clone().requires_grad_()
            grads.append(torch.autograd.grad(loss(*kernel(leaf, None, neuron)), leaf)[0])
        assert bool(grads[0].any())
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
@pytest.mark.parametrize("reset", [Reset.SOFT, Reset.VALUE])
def test_each_gradient_alone(wanted, reset):
    neuron = LIF(reset=reset, v_reset=-0.3, reset_time="next", detach_reset=False, v_th=0.4)
    x, v, waiting, weight, *_ = problem((6, 2, 3), 11)
    grads = []
    for kernel in (fused, reference):
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((x, v, waiting))]
        spikes, _ = kernel(leaves[0], LIFState(*leaves[1:]), neuron)
        grads.append(torch.autograd.grad((spikes * weight).sum(), [leaves[i] for i in wanted]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@both_times
@all_resets
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_scan_in_two_parts_equals_one(reset, time, detach, cut):
    neuron = LIF(
        beta=0.9, v_th=0.5, v_reset=-0.2, reset=reset, reset_time=time, detach_reset=detach
    )
    given = problem((10, 2, 3), 2)

    def parts(x, state, neuron):
        a, state = fused(x[:cut], state, neuron)
        b, state = fused(x[cut:], state, neuron)
        return torch.cat([a, b]), state

    for a, b in zip(solve(fused, neuron, *given), solve(parts, neuron, *given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lay", ["expanded", "transposed", "strided"])
@both_times
def test_inputs_that_are_views(lay, time):
    base = problem((8, 3, 4), 4)[0]
    x = {
        "expanded": lambda: base[:1].expand(8, 3, 4),
        "transposed": lambda: base.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "strided": lambda: torch.stack([base, base], -1)[..., 0],
    }[lay]()
    assert not x.is_contiguous()
    neuron = LIF(beta=0.8, scale_input=True, v_th=0.2, reset_time=time)
    a, b = fused(x, None, neuron), reference(x, None, neuron)
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1].v, b[1].v, rtol=1e-12, atol=1e-12)


@all_resets
@both_times
@pytest.mark.parametrize("steps", [1, 3])
def test_inputs_are_left_alone_and_outputs_are_new(reset, time, steps):
    neuron = LIF(reset=reset, reset_time=time, v_reset=0.1)
    x, v, waiting = torch.full((steps, 2, 2), 1.5), torch.full((2, 2), 1.2), torch.ones(2, 2)
    late = time == "next"
    spikes, state = fused(x, LIFState(v, waiting if late else None), neuron)
    spikes.zero_()
    state.v.zero_()
    if late:
        assert state.spikes.data_ptr() != spikes[-1].data_ptr()
        state.spikes.zero_()
    assert torch.equal(x, torch.full((steps, 2, 2), 1.5))
    assert torch.equal(v, torch.full((2, 2), 1.2))
    assert torch.equal(waiting, torch.ones(2, 2))


@all_resets
@both_times
@pytest.mark.parametrize("learning", [True, False])
def test_the_state_does_not_hold_on_to_all_steps(reset, time, learning):
    x = torch.rand(6, 2, 3, requires_grad=learning)
    spikes, state = fused(x, None, LIF(reset=reset, reset_time=time))
    for part in state:
        assert part is None or part.untyped_storage().nbytes() == 4 * 2 * 3
    if not learning:
        return
    for part in state:
        if part is not None:
            part.detach().zero_()
    spikes.sum().backward()  # what is stored for the gradient is not what was handed out
    assert bool(x.grad.any())


@both_times
@all_resets
def test_no_steps_leave_the_state_and_its_gradient(time, reset):
    neuron = LIF(reset=reset, reset_time=time)
    x = torch.zeros(0, 2, 3, requires_grad=True)
    v = torch.full((2, 3), 1.5, requires_grad=True)
    given = LIFState(v, torch.ones(2, 3) if time == "next" else None)
    spikes, state = scan(x, given, neuron)
    assert spikes.shape == (0, 2, 3)
    assert torch.equal(state.v, v)
    assert time == "same" or torch.equal(state.spikes, torch.ones(2, 3))
    (state.v.square().sum() + spikes.sum()).backward()
    assert torch.equal(v.grad, 2 * v)
    spikes, state = scan(torch.zeros(0, 2, 3), None, neuron)
    assert torch.equal(state.v, torch.zeros(2, 3))


@pytest.mark.parametrize("kernel", [reference, scan])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,), (4, 2, 3)])
@both_times
def test_a_state_of_another_shape_is_refused(kernel, steps, shape, time):
    x, right, wrong = torch.zeros(steps, 2, 3), torch.zeros(2, 3), torch.zeros(shape)
    given = (
        [LIFState(wrong)] if time == "same" else [LIFState(wrong, right), LIFState(right, wrong)]
    )
    for state in given:
        with pytest.raises(UsageError, match="state has shape"):
            kernel(x, state, LIF(reset_time=time))


@pytest.mark.parametrize("kernel", [reference, scan])
def test_a_late_reset_needs_the_spikes_that_wait_and_the_others_none(kernel):
    x, v = torch.zeros(4, 2, 3), torch.zeros(2, 3)
    with pytest.raises(UsageError, match="state is a NoneType"):
        kernel(x, LIFState(v), LIF(reset_time="next"))
    with pytest.raises(UsageError, match="state is a Tensor, the neuron needs LIFState of None"):
        kernel(x, LIFState(v, v), LIF())


def test_the_choice_depends_on_the_number_of_steps():
    assert choose(LIF(), torch.zeros(1, 2, 3)).name == "reference"
    assert choose(LIF(), torch.zeros(2, 2, 3)).name == "fused"
    assert all(choose(LIF(), torch.zeros(t, 2)).reason for t in (1, 2))


@pytest.mark.parametrize(
    "neuron",
    [
        LIF(refractory=2), LIF(noise=0.1), LIF(escape=Escape()), LIF(surrogate=Smooth()),
        LIF(reset_time="after"), LIF(beta=[0.5, 0.6]), LIF(v_th=[1.0, 2.0]), LIF(v_rest=[0.0, 1.0]),
        LIF(v_reset=[0.0, 1.0]), LIF().bind({"beta": torch.tensor(0.5)}), ALIF(), CUBA(),
    ],
)  # fmt: skip
def test_what_the_kernel_does_not_compute_goes_to_the_reference(neuron):
    assert not is_fusible(neuron)
    kernel = choose(neuron, torch.zeros(4, 1, 2))
    assert kernel.name == "reference"
    assert type(neuron).__name__ in kernel.reason


def test_a_recurrent_layer_goes_to_the_reference():
    assert choose(LIF(), torch.zeros(4, 1, 2), Recurrence(torch.zeros(2, 2))).name == "reference"


def test_scan_runs_the_kernel_that_was_chosen():
    x = torch.rand(4, 2, 3, requires_grad=True)
    assert "FusedLIF" in scan(x, None, LIF())[0].grad_fn.name()
    assert "FusedLIF" not in scan(x[:1], None, LIF())[0].grad_fn.name()


def test_currents_must_be_floating():
    with pytest.raises(UsageError, match=r"input current is torch\.int64"):
        scan(torch.ones(4, 2, 3, dtype=torch.int64), None, LIF())


def test_only_the_membrane_is_stored():
    saved = []

    def pack(tensor):
        saved.append(tensor.shape)
        return tensor

    x = torch.rand(6, 2, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused(x, None, LIF())
    assert sum(math.prod(shape) for shape in saved) == 6 * 2 * 3 + 2 * 3


def test_the_kernel_equals_single_steps():
    neuron, x, state = LIF(beta=0.8, v_th=0.5), problem((9, 2, 3), 6)[0], None
    spikes, last = fused(x, None, neuron)
    for t, current in enumerate(x):
        s, state = step(current, state, neuron)
        assert torch.equal(s, spikes[t])
    assert torch.equal(state.v, last.v)
