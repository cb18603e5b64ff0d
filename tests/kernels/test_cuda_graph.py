"""A recorded step gives what the function gives; on a CPU, a recorder of operations stands in."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spikecl.errors import UsageError
from spikecl.kernels import Kernels, scan
from spikecl.kernels.cuda_graph import CapturedStep
from spikecl.neurons import LIF

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def on_gpu(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).as_subclass(OnGpu)


class Recorder(TorchDispatchMode):
    """Holds operations and their arrays, as a CUDA graph does; a replay fills the same arrays."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, found))
        return found

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, found in self.calls:
                again = function(*args, **kwargs)
                if isinstance(found, torch.Tensor) and again.data_ptr() != found.data_ptr():
                    found.copy_(again)


class Stream:
    def __init__(self, log):
        self.log = log

    def wait_stream(self, other):
        self.log.append("wait")


@pytest.fixture
def log(monkeypatch):
    """Put a recorder in the place of CUDA; return the order of what happens."""
    events = []

    @contextmanager
    def graph(recorder, stream):
        events.append("record")
        with recorder:
            yield

    @contextmanager
    def stream(chosen):
        events.append("enter")
        yield
        events.append("leave")

    for name, stand_in in {
        "is_available": lambda: True,
        "device": lambda device: nullcontext(),
        "Stream": lambda: Stream(events),
        "current_stream": lambda: Stream(events),
        "stream": stream,
        "CUDAGraph": Recorder,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return events


def training(weight):
    """Return a step of gradient descent on a weight."""

    def step(x, y):
        loss = (x @ weight - y).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight.sub_(0.1 * gradient)
        return loss.detach(), gradient

    return step


def batches():
    return [(on_gpu(8, 3, seed=k), on_gpu(8, 2, seed=100 + k)) for k in range(4)]


def test_a_training_step_goes_on_where_it_would(log):
    plain, weight = (on_gpu(3, 2, seed=9).requires_grad_() for _ in range(2))
    captured = CapturedStep(training(weight), *batches()[0], restore=[weight])
    weight.data.copy_(plain.data)  # a stand-in runs while it records, a GPU does not
    step = training(plain)
    for x, y in batches():
        for got, wanted in zip(captured(x, y), step(x, y), strict=True):
            assert torch.equal(got, wanted)
            assert not got.requires_grad
        assert torch.equal(weight, plain)


def test_the_function_runs_before_it_is_recorded_and_never_again(log):
    runs = []

    def function(x):
        runs.append(list(log))
        return 2 * x

    captured = CapturedStep(function, on_gpu(3), warm=2)
    side = ["wait", "enter"]  # the side stream waits, and is waited for
    assert runs == [side, side, [*side, "leave", "wait", "enter", "record"]]
    x = on_gpu(3, seed=4)
    assert torch.equal(captured(x), 2 * x)
    assert len(runs) == 3


def test_what_is_restored(log):
    count, other = on_gpu(1), on_gpu(1)
    before, other_before = count.clone(), other.clone()

    def function(x):
        other.add_(1)
        return x + count.add_(1)

    CapturedStep(function, on_gpu(1), warm=3, restore=[count])
    assert torch.equal(count, before + 1)  # by the stand-in's recording
    assert torch.equal(other, other_before + 4)


def test_examples_are_not_touched(log):
    example = on_gpu(3)
    before = example.clone()
    captured = CapturedStep(lambda x: x.mul_(2) + 0, example)
    captured(on_gpu(3, seed=1))
    assert torch.equal(example, before)


def test_outputs_are_filled_again(log):
    captured = CapturedStep(lambda x: (x + 1, x * 2), on_gpu(3))
    first = captured(on_gpu(3, seed=1))
    kept = [part.clone() for part in first]
    second = captured(on_gpu(3, seed=2))
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert not torch.equal(kept[0], second[0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([on_gpu(4)], r"input 0 has shape \(4,\), its example had \(3,\)"),
        ([on_gpu(3).float()], "dtype torch.float32, its example had torch.float64"),
        ([torch.zeros(3, dtype=torch.float64, device="meta")], "device meta"),
        ([on_gpu(3).requires_grad_()], "input 0 needs a gradient"),
        ([on_gpu(3), on_gpu(3)], "got 2 inputs, the examples were 1"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message, log):
    captured = CapturedStep(lambda x: x + 1, on_gpu(3))
    with pytest.raises(UsageError, match=message):
        captured(*inputs)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: float(x.sum()), "returned float"),
        (lambda x: (x + 1, None), "returned NoneType"),
        (lambda x: [x + 1], "returned list"),
        (lambda x: torch.zeros(3), "returned a tensor on cpu"),
    ],
)
def test_functions_that_return_something_else(function, message, log):
    with pytest.raises(UsageError, match=message):
        CapturedStep(function, on_gpu(3))
    assert "record" not in log


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, "got no example"),
        ([on_gpu(3), torch.zeros(3)], {}, "example 1 is on cpu"),
        ([on_gpu(3).requires_grad_()], {}, "example 0 needs a gradient"),
        ([on_gpu(3)], {"warm": 0}, "warm=0"),
    ],
)
def test_examples_that_cannot_be_recorded(examples, options, message, log):
    with pytest.raises(UsageError, match=message):
        CapturedStep(lambda *x: x[0] + 1, *examples, **options)


def test_functions_that_cannot_be_recorded(log, monkeypatch):
    def refuse(recorder, stream):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with pytest.raises(UsageError, match="item.*synapse='dense'.*not permitted"):
        CapturedStep(lambda x: x + 1, on_gpu(3))


def test_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match=r"no CUDA device.*call the function.*compiled"):
        CapturedStep(lambda x: x + 1, torch.zeros(3))


@gpu
def test_a_function_that_reads_values_is_refused():
    with pytest.raises(UsageError, match="item"):
        CapturedStep(lambda x: x * float(x.sum()), torch.ones(3, device="cuda"))
    assert torch.ones(3, device="cuda").sum() == 3  # and nothing is left of it


@gpu
@pytest.mark.parametrize("kernel", ["fused", "triton"])
def test_training_through_time(kernel):
    """Steps of a spiking layer, replayed and plain, from the same weights."""

    def step_of(weight):
        def step(x, y):
            out, _ = scan(x @ weight, None, LIF(v_th=0.5), kernels=Kernels(scan=kernel))
            loss = (out.mean(0) - y).square().mean()
            (gradient,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight.sub_(gradient)
            return loss.detach(), out.detach()

        return step

    draw = torch.Generator("cuda").manual_seed(0)
    start = torch.randn(20, 30, generator=draw, device="cuda")
    plain, weight = (start.clone().requires_grad_() for _ in range(2))
    data = [
        (torch.randn(10, 8, 20, generator=draw, device="cuda"),
         torch.rand(8, 30, generator=draw, device="cuda"))
        for _ in range(5)
    ]  # fmt: skip
    captured, step = CapturedStep(step_of(weight), *data[0], restore=[weight]), step_of(plain)
    assert torch.equal(weight, start)
    for x, y in data:
        loss, out = captured(x, y)
        wanted_loss, wanted = step(x, y)
        assert torch.equal(out, wanted)
        torch.testing.assert_close(loss, wanted_loss)
    torch.testing.assert_close(weight, plain)
