"""The fused scan equals the step loop: spikes bit for bit, gradients to rounding."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.errors import UsageError
from spikecl.kernels import choose, reference, scan
from spikecl.kernels.fused_lif import fused_lif
from spikecl.neurons import LIF, Arctan, FastSigmoid, LIFState, Reset, Sigmoid

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SWITCHES = list(
    itertools.product(list(Reset), ["same", "next"], [True, False], [True, False], [True, False])
)
neurons = st.builds(
    LIF,
    beta=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    v_th=st.sampled_from([1.0, 0.37, -0.2]),
    v_reset=st.sampled_from([-0.4, 0.25]),
    scale_input=st.booleans(),
    reset=st.sampled_from(list(Reset)),
    reset_time=st.sampled_from(["same", "next"]),
    detach_reset=st.booleans(),
    strict=st.booleans(),
    surrogate=st.sampled_from([Sigmoid(), Arctan(), FastSigmoid(slope=5.0), Sigmoid(slope=1.5)]),
)


def problem(shape, seed, dtype=torch.float64):
    """Return input, state and weights of the two outputs in a loss."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)
            for s in (shape, shape[1:], shape, shape[1:])]  # fmt: skip
    return draw[0].add_(0.3), draw[1], draw[2], draw[3]


def solve(kernel, neuron, x, v, w_spikes, w_last):
    x, v = x.clone().requires_grad_(), v.clone().requires_grad_()
    spikes, state = kernel(x, LIFState(v), neuron)
    loss = (spikes * w_spikes).sum() + (state.v * w_last).sum()
    return spikes.detach(), state.v.detach(), *torch.autograd.grad(loss, (x, v))


def assert_equal_to_reference(neuron, given, tolerance, kernel=fused_lif):
    ours, expected = solve(kernel, neuron, *given), solve(reference, neuron, *given)
    assert torch.equal(ours[0], expected[0])
    for a, b in zip(ours[1:], expected[1:], strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("reset", "time", "detach", "strict", "scale"), SWITCHES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_every_combination_of_switches(reset, time, detach, strict, scale, dtype, tolerance):
    neuron = LIF(
        beta=0.8, v_th=0.6, v_reset=-0.3, scale_input=scale, reset=reset, reset_time=time,
        detach_reset=detach, strict=strict,
    )  # fmt: skip
    assert_equal_to_reference(neuron, problem((12, 3, 5), 1, dtype), tolerance)


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


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("time", ["same", "next"])
def test_membranes_exactly_at_the_threshold(strict, time):
    neuron = LIF(beta=0.5, v_th=1.0, strict=strict, reset_time=time, reset=Reset.ZERO)
    x = torch.full((6, 1, 2), 1.0, dtype=torch.float64)
    x[1] = 0.5
    given = (x, torch.ones(1, 2, dtype=torch.float64), *problem((6, 1, 2), 0)[2:])
    assert_equal_to_reference(neuron, given, 1e-12)
    assert float(fused_lif(x, None, neuron)[0][0, 0, 0]) == (0.0 if strict else 1.0)


@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("time", ["same", "next"])
def test_each_output_alone_and_no_state(reset, time):
    neuron = LIF(beta=0.7, v_th=0.5, reset=reset, reset_time=time, detach_reset=False)
    x = problem((7, 2, 3), 5)[0]
    for pick in (lambda s, v: (s * s.cumsum(0).detach()).sum(), lambda s, v: v.square().sum()):
        grads = []
        for kernel in (fused_lif, reference):
            leaf = x.clone().requires_grad_()
            spikes, state = kernel(leaf, None, neuron)
            grads.append(torch.autograd.grad(pick(spikes, state.v), leaf)[0])
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_a_scan_in_two_halves_equals_one():
    neuron = LIF(beta=0.9, v_th=0.5, reset_time="next", detach_reset=False)
    x, v, *weights = problem((10, 2, 3), 2)

    def halves(x, state, neuron):
        a, state = fused_lif(x[:4], state, neuron)
        b, state = fused_lif(x[4:], state, neuron)
        return torch.cat([a, b]), state

    whole, parts = (solve(kernel, neuron, x, v, *weights) for kernel in (fused_lif, halves))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lay", ["expanded", "transposed", "strided"])
def test_inputs_that_are_views(lay):
    base = problem((8, 3, 4), 4)[0]
    x = {
        "expanded": lambda: base[:1].expand(8, 3, 4),
        "transposed": lambda: base.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "strided": lambda: torch.stack([base, base], -1)[..., 0],
    }[lay]()
    assert not x.is_contiguous()
    neuron = LIF(beta=0.8, scale_input=True, v_th=0.2)
    a, b = fused_lif(x, None, neuron), reference(x, None, neuron)
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1].v, b[1].v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("time", ["same", "next"])
@pytest.mark.parametrize("steps", [1, 3])
def test_inputs_are_left_alone_and_outputs_are_new(reset, time, steps):
    neuron = LIF(reset=reset, reset_time=time, v_reset=0.1)
    x, v = torch.full((steps, 2, 2), 1.5), torch.full((2, 2), 1.2)
    spikes, state = fused_lif(x, LIFState(v), neuron)
    spikes.zero_()
    state.v.zero_()
    assert torch.equal(x, torch.full((steps, 2, 2), 1.5))
    assert torch.equal(v, torch.full((2, 2), 1.2))


@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("time", ["same", "next"])
def test_the_state_does_not_hold_on_to_all_steps(reset, time):
    x = torch.rand(6, 2, 3, requires_grad=True)
    spikes, state = fused_lif(x, None, LIF(reset=reset, reset_time=time))
    assert state.v.untyped_storage().nbytes() == 4 * 2 * 3
    state.v.detach().zero_()
    spikes.sum().backward()  # what is stored for the gradient is not what was handed out
    assert bool(x.grad.any())


@pytest.mark.parametrize("time", ["same", "next"])
@pytest.mark.parametrize("reset", list(Reset))
def test_no_steps_leave_the_state_and_its_gradient(time, reset):
    neuron = LIF(reset=reset, reset_time=time)
    x = torch.zeros(0, 2, 3, requires_grad=True)
    v = torch.full((2, 3), 1.5, requires_grad=True)
    spikes, state = scan(x, LIFState(v), neuron)
    assert spikes.shape == (0, 2, 3)
    assert torch.equal(state.v, v)
    (state.v.square().sum() + spikes.sum()).backward()
    assert torch.equal(v.grad, 2 * v)
    spikes, state = scan(torch.zeros(0, 2, 3), None, neuron)
    assert torch.equal(state.v, torch.zeros(2, 3))


@pytest.mark.parametrize("kernel", [fused_lif, reference, scan])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,), (4, 2, 3)])
def test_a_state_of_another_shape_is_refused(kernel, steps, shape):
    with pytest.raises(UsageError, match="state has shape"):
        kernel(torch.zeros(steps, 2, 3), LIFState(torch.zeros(shape)), LIF())


def test_the_choice_depends_on_the_number_of_steps():
    assert choose(LIF(), torch.zeros(1, 2, 3)).name == "reference"
    assert choose(LIF(), torch.zeros(2, 2, 3)).name == "fused"
    assert all(choose(LIF(), torch.zeros(t, 2)).reason for t in (1, 2))


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
        fused_lif(x, None, LIF())
    assert sum(math.prod(shape) for shape in saved) == 6 * 2 * 3 + 2 * 3
