"""Layers that listen to themselves: what fired one step ago is input now."""

import pytest
import torch
from torch.autograd import gradcheck

from spikecl.errors import UsageError
from spikecl.kernels import Recurrence, RecurrentState, reference, scan
from spikecl.neurons import (
    ALIF,
    LIF,
    LeakyIntegrator,
    LIFState,
    Rectified,
    Reset,
    Sigmoid,
    Smooth,
    carry,
)

FLOAT64 = {"dtype": torch.float64}


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **FLOAT64)


def test_one_neuron_by_hand():
    """Weight -0.5 and bias 0.25 on a neuron without memory, driven by 1, 1, 1, 1."""
    synapses = Recurrence(torch.tensor([[-0.5]]), torch.tensor([0.25]))
    neuron = LIF(beta=0.0, v_th=1.0, reset=Reset.NONE)
    x = torch.ones(4, 1, 1)
    spikes, state = scan(x, None, neuron, recurrence=synapses)
    # 1 + 0.25 fires; 1 + 0.25 - 0.5 does not; and so on
    assert spikes.flatten().tolist() == [1, 0, 1, 0]
    assert state.neuron.v.item() == 0.75
    assert state.spikes.item() == 0.0


def test_the_direction_of_the_weights_and_the_delay_of_a_step():
    """``weight[to, from]``: a pulse travels along a chain, one neuron a step."""
    chain = torch.zeros(4, 4)
    for k in range(3):
        chain[k + 1, k] = 2.0
    x = torch.zeros(5, 1, 4)
    x[0, 0, 0] = 2.0
    spikes, _ = scan(x, None, LIF(beta=0.0), recurrence=Recurrence(chain))
    assert spikes[:, 0].tolist() == torch.eye(5, 4).tolist()


@pytest.mark.parametrize("neuron", [LeakyIntegrator(kappa=0.5), Rectified()])
def test_graded_outputs_come_back_as_they_are(neuron):
    weight, x = 0.3 * random((3, 3), 1), random((6, 2, 3))
    out, state = scan(x, None, neuron, recurrence=Recurrence(weight))
    y, v = torch.zeros(2, 3, **FLOAT64), torch.zeros(2, 3, **FLOAT64)
    for t, current in enumerate(x):
        current = current + y @ weight.T
        y = v = (0.5 * v + current) if isinstance(neuron, LeakyIntegrator) else current.relu()
        torch.testing.assert_close(out[t], y)
    assert torch.equal(state.spikes, out[-1])


def test_feature_axes_are_flattened_in_order():
    weight, x = random((6, 6), 1), random((8, 2, 2, 3))
    flat, _ = scan(x.flatten(2), None, LIF(v_th=0.3), recurrence=Recurrence(weight))
    out, state = scan(x, None, LIF(v_th=0.3), recurrence=Recurrence(weight))
    assert torch.equal(out.flatten(2), flat)
    assert state.spikes.shape == (2, 2, 3)


def test_no_weights_no_difference():
    x = random((10, 2, 3))
    plain, last = scan(x, None, ALIF(v_th=0.3))
    zero = Recurrence(torch.zeros(3, 3, **FLOAT64))
    out, state = scan(x, None, ALIF(v_th=0.3), recurrence=zero)
    assert torch.equal(out, plain)
    assert torch.equal(state.neuron.v, last.v)


@pytest.mark.parametrize("reset_time", ["same", "next"])
def test_gradients_of_the_synapses_and_of_the_last_spikes(reset_time):
    smooth = Smooth(of=Sigmoid(slope=1.0))
    neuron = LIF(beta=0.8, v_th=0.3, detach_reset=False, reset_time=reset_time, surrogate=smooth)

    def solve(x, v, z, last, weight, bias):
        inner = LIFState(v, z if reset_time == "next" else None)
        recurrence = Recurrence(weight, bias)
        out, end = scan(x, RecurrentState(inner, last), neuron, recurrence=recurrence)
        return out, end.neuron.v, end.spikes

    shapes = ((4, 2, 3), (2, 3), (2, 3), (2, 3), (3, 3), (3,))
    leaves = [random(shape, k).requires_grad_() for k, shape in enumerate(shapes)]
    assert gradcheck(solve, leaves, eps=1e-6, atol=1e-7, rtol=1e-5)
    found = torch.autograd.grad(solve(*leaves)[0].sum(), leaves, allow_unused=True)
    used = [grad is not None and bool(grad.any()) for grad in found]
    assert used == [True, True, reset_time == "next", True, True, True]


def test_detaching_the_state_cuts_the_past():
    weight, x = random((3, 3), 1).requires_grad_(), random((6, 2, 3)).requires_grad_()
    _, state = scan(x[:3], None, LIF(v_th=0.3), recurrence=Recurrence(weight))
    out, _ = scan(x[3:], carry(state, "detach"), LIF(v_th=0.3), recurrence=Recurrence(weight))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert not grad[:3].any()
    assert grad[3:].any()


@pytest.mark.parametrize("kernel", [scan, reference])
@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.zeros(2, 2), None, r"recurrence.weight is .* of shape \(2, 2\).*\(3, 3\)"),
        (torch.zeros(3, 4), None, "recurrence.weight"), (torch.zeros(9), None, "recurrence.weight"),
        (torch.zeros(3, 3).double(), None, "weight is torch.float64 .* needs torch.float32"),
        (torch.zeros(3, 3), torch.zeros(1), r"recurrence.bias is .* of shape \(1,\).*\(3,\)"),
        (torch.zeros(3, 3), torch.zeros(3).double(), "recurrence.bias is torch.float64"),
    ],
)  # fmt: skip
def test_synapses_that_do_not_fit_are_refused(kernel, steps, weight, bias, message):
    for batch in (0, 2):
        with pytest.raises(UsageError, match=message):
            kernel(torch.zeros(steps, batch, 3), None, LIF(), recurrence=Recurrence(weight, bias))


def test_states_of_the_other_kind_are_refused():
    x, synapses = torch.zeros(4, 2, 3), Recurrence(torch.zeros(3, 3))
    _, alone = scan(x, None, LIF())
    _, recurrent = scan(x, None, LIF(), recurrence=synapses)
    with pytest.raises(UsageError, match="a recurrent layer needs a RecurrentState"):
        scan(x, alone, LIF(), recurrence=synapses)
    with pytest.raises(UsageError, match="state is a RecurrentState, the neuron needs LIFState"):
        scan(x, recurrent, LIF())
    with pytest.raises(UsageError, match="state is a ALIFState"):
        other = recurrent._replace(neuron=ALIF().rest(x[0]))
        scan(x, other, LIF(), recurrence=synapses)


def test_the_neurons_of_a_recurrent_state_may_be_at_rest():
    x, synapses = torch.ones(3, 2, 3), Recurrence(torch.eye(3))
    fired = RecurrentState(None, torch.ones(2, 3))
    silent = RecurrentState(None, torch.zeros(2, 3))
    a, b, c = (
        scan(x, state, LIF(beta=0.5, v_th=1.5), recurrence=synapses)[0]
        for state in (fired, silent, None)
    )
    assert torch.equal(b, c)
    assert a[0].tolist() == [[1.0] * 3] * 2
    assert not b[0].any()
