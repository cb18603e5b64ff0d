"""What went wrong once, without an error, or could."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from spikecl.components import component
from spikecl.errors import KernelError, UsageError
from spikecl.kernels import Kernels, choose, compiler, reference, scan
from spikecl.kernels.events import events_of, gather, outer, product
from spikecl.networks import Linear, SpikingMlp, explain, initialise
from spikecl.neurons import LIF, Izhikevich, LeakyIntegrator, LIFState, Triangle
from spikecl.neurons.neuron import Neuron
from spikecl.neurons.surrogate import spike
from spikecl.optim import Adam
from spikecl.seeds import Seeds

kernels = pytest.mark.parametrize(
    "kernel",
    ["fused", pytest.param("compiled", marks=pytest.mark.skipif(
        compiler.against() is not None, reason="no C compiler"))],
)  # fmt: skip


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@component
class Own(Neuron):
    """A base for neurons of users: a membrane, integrated."""

    def rest(self, x):
        return LIFState(torch.zeros_like(x))

    def spikes(self, v):
        raise NotImplementedError

    def advance(self, x, state, generator=None):
        v = 0.7 * state.v + x
        out = self.spikes(v)
        return out, LIFState(v)


def same_as_the_reference(neuron, *, kernel=None, shape=(6, 3, 4), scale=1.5):
    found = []
    for run in (scan, reference):
        x = (scale * draw(*shape)).requires_grad_()
        extra = {"kernels": Kernels(scan=kernel)} if kernel and run is scan else {}
        out, state = run(x, None, neuron, **extra)
        (grad,) = torch.autograd.grad((out * draw(*out.shape, seed=1)).sum() + state.v.sum(), x)
        found.append((out.detach(), state.v.detach(), grad))
    (a, va, ga), (b, vb, gb) = found
    assert torch.equal(a, b)
    assert torch.equal(va, vb)
    torch.testing.assert_close(ga, gb, rtol=1e-4, atol=1e-4)


@kernels
def test_a_state_at_rest_that_a_gradient_needs_is_left_alone(kernel):
    """``u = b v`` of a resting Izhikevich neuron saves ``v``."""
    x, found = 20 * draw(6, 3, 4), []
    for run in (kernel, "reference"):
        b = torch.tensor(0.2, requires_grad=True)
        _, state = scan(x, None, Izhikevich().bind({"b": b}), kernels=Kernels(scan=run))
        found.append(torch.autograd.grad(state.v.sum(), b)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-2)


@component
class Shared(Own):
    """Rests at what it was given."""

    def rest(self, x):
        return LIFState(x)

    def spikes(self, v):
        return v


@kernels
def test_what_a_neuron_rests_at_is_not_written(kernel):
    x = draw(5, 2, 3)
    before = x.clone()
    scan(x, None, Shared(), kernels=Kernels(scan=kernel))
    assert torch.equal(x, before)


def test_events_of_another_size_or_type_are_refused():
    x = (draw(8, 5) > 0.5).float()
    events = events_of(x)
    for call in (
        lambda: product(events, torch.zeros(3, 5, dtype=torch.float64)),
        lambda: product(events, torch.zeros(3, 6)),
        lambda: gather(events, torch.zeros(4, 3)),
        lambda: gather(events, torch.zeros(5, 3, dtype=torch.bfloat16)),
        lambda: outer(events, torch.zeros(7, 3)),
        lambda: outer(events, torch.zeros(8, 3, dtype=torch.float64)),
    ):
        with pytest.raises(UsageError):
            call()


def test_a_network_of_two_types_is_refused():
    network = SpikingMlp(hidden=(8, 8)).build((4,), 3)
    network.kernels = Kernels(synapse="events")
    network.layers["hidden2"].synapse.double()
    with pytest.raises((UsageError, RuntimeError)):
        network((draw(5, 2, 4) > 0.3).float())


@pytest.mark.parametrize("lay", ["turned", "expanded", "channels last"])
def test_adam_reads_gradients_as_they_lie(lay):
    shape = (3, 2, 2, 2)
    g = {
        "turned": draw(*shape[::-1]).permute(3, 2, 1, 0),
        "expanded": torch.tensor(0.7).expand(shape),
        "channels last": draw(*shape),
    }[lay]
    start = draw(*shape, seed=1)
    start = start.contiguous(memory_format=torch.channels_last) if lay[0] == "c" else start
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimiser, plain = Adam(lr=0.1).start({"p": ours}), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(3):
        optimiser.step({"p": g})
        theirs.grad = g.clone()
        plain.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("state", [torch.int32, torch.bool, "scalar"])
def test_states_of_another_kind_take_the_reference(state):
    @component
    class Counting(Own):
        def rest(self, x):
            if state == "scalar":
                return LIFState(x.new_zeros(()))
            return LIFState(torch.zeros(x.shape, dtype=state))

        def spikes(self, v):
            return v

    x = draw(4, 2, 3)
    assert choose(Counting(), x).name == "reference"
    with pytest.raises(KernelError):
        scan(x, None, Counting(), kernels=Kernels(scan="fused"))


def test_a_state_that_a_step_fills_takes_the_reference():
    @component
    class Filling(Own):
        def rest(self, x):
            return LIFState(torch.zeros_like(x), None)

        def advance(self, x, state, generator=None):
            out = spike(state.v + x - 1, Triangle())
            return out, LIFState(state.v + x, out)

    assert choose(Filling(), draw(4, 2, 3)).name == "reference"


@component
class Jittering(Own):
    """Fires half a unit early."""

    def spikes(self, v):
        return spike(v - 1, Triangle(), shift=torch.tensor(0.5))


@component
class Twice(Own):
    """Two derivatives of one distance."""

    def spikes(self, v):
        d = v - 1
        return spike(d, Triangle()) + spike(d, Triangle(height=3.0, width=5.0))


@component
class Watched(Own):
    """A spike without a gradient, of a distance that has one."""

    def spikes(self, v):
        d = v - 1
        with torch.no_grad():
            counted = spike(d, Triangle())
        return spike(d, Triangle()) * (1 - 0.5 * counted)


@component
class Adding(Own):
    """Changes what another name stands for."""

    def spikes(self, v):
        w = v * 1
        old = w
        w += 1
        w *= 0.5
        w -= 0.1
        w /= 2
        return old


@pytest.mark.parametrize("model", [Jittering, Twice, Watched, Adding])
def test_neurons_of_users(model):
    same_as_the_reference(model())


@kernels
@pytest.mark.parametrize("model", [Twice, Watched, Adding])
def test_neurons_of_users_have_kernels(kernel, model):
    same_as_the_reference(model(), kernel=kernel)


def test_attributes_that_are_no_parameters_take_the_reference():
    class Loose(LIF):
        pass

    assert choose(Loose(), draw(3, 2, 2)).name != "reference"
    neuron = Loose()
    object.__setattr__(neuron, "gain", 3.0)
    assert choose(neuron, draw(3, 2, 2)).name == "reference"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about torch
def test_derivatives_taken_forward():
    x, t = draw(5, 2, 3), draw(5, 2, 3, seed=1)
    with forward_ad.dual_level():
        _, state = scan(forward_ad.make_dual(x, t), None, LeakyIntegrator())
        assert forward_ad.unpack_dual(state.v).tangent is not None


def test_a_layer_that_was_replaced_is_refused():
    network = SpikingMlp(hidden=(8,)).build((4,), 3)
    network(draw(3, 2, 4))
    network.layers["readout"].synapse = Linear(8, 3)
    with pytest.raises(UsageError, match="readout.*replaced"):
        network(draw(3, 2, 4))


def test_a_plan_without_gradients():
    network = SpikingMlp(hidden=(8,)).build((4,), 3)
    initialise(network, Seeds(0))
    expected = explain(network, draw(3, 2, 4))
    with torch.no_grad():
        assert explain(network, draw(3, 2, 4)) == expected


def test_a_compiler_with_arguments(monkeypatch, tmp_path):
    found = compiler.compiler()
    if found is None:
        pytest.skip("no C compiler")
    code = "from spikecl.kernels import compiler; print(compiler.against(), compiler.compiler())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"CC": f"{found} -DUNUSED", "SPIKECL_KERNELS": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.split()[0] == "None"
    assert done.stdout.strip().endswith("-DUNUSED")


def test_numbers_share_code_and_do_not_pile_up():
    from spikecl.kernels import c_code

    if compiler.against() is not None:
        pytest.skip("no C compiler")
    before = len(c_code._LIBRARIES)
    for k in range(20):
        scan(draw(2, 1, 3), None, LIF(beta=0.5 + 0.01 * k), kernels=Kernels(scan="compiled"))
    assert len(c_code._LIBRARIES) <= before + 1
