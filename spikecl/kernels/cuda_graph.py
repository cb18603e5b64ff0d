"""A step recorded once as a CUDA graph: small kernels without the time it takes to launch them.

A pass through time of a small network is many short kernels, and a GPU waits for Python between
them. A graph launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spikecl.errors import UsageError

Output = Tensor | tuple[Tensor, ...]
_INSTEAD = "call the function itself; on a CPU, Kernels(scan='compiled') is fast"


class CapturedStep:
    """A function of tensors that is recorded on a GPU and then replayed.

    The function may be a whole training step: pass, gradient, optimiser. What it does in Python it
    does while it is recorded and never again: it must not branch on values, move them to the CPU
    (``item``, prints) or draw random numbers there. Layers that look at the density of their input
    do, so take ``Kernels(synapse="dense")``.

    Before recording, the function runs ``warm`` times with the examples, for real: kernels are
    compiled, optimisers make their state. Tensors that ``restore`` names have their values put
    back after that.

    Args:
        function: Takes as many tensors as there are examples; returns one, or a tuple of them.
        examples: Inputs on a GPU; those of later calls have their shapes and dtypes.
        warm: Runs before recording, at least one.
        restore: Tensors that the function changes in place and should not have by then, such as
            weights and the moments of an optimiser.

    Raises:
        UsageError: There is no GPU, an example is not on it or needs a gradient, the function
            returns something else than tensors, or does what cannot be recorded.

    Example:
        >>> if torch.cuda.is_available():
        ...     double = CapturedStep(lambda x: 2 * x, torch.zeros(3, device="cuda"))
        ...     assert double(torch.ones(3, device="cuda")).tolist() == [2.0, 2.0, 2.0]
    """

    def __init__(
        self,
        function: Callable[..., Output],
        *examples: Tensor,
        warm: int = 3,
        restore: Sequence[Tensor] = (),
    ):
        if warm < 1:
            raise UsageError(f"CapturedStep: got warm={warm}; at least one run has to come first")
        device = _device(examples)
        self._inputs = tuple(example.detach().clone() for example in examples)
        before = [tensor.detach().clone() for tensor in restore]
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            _warm_up(function, self._inputs, stream, warm)
            with torch.no_grad():
                for tensor, value in zip(restore, before):
                    tensor.copy_(value)
            self._graph, found = _record(function, self._inputs, stream)
        self._function = function  # what it holds on to lives at the addresses of the graph
        self._alone = isinstance(found, Tensor)
        self._outputs = tuple(part.detach() for part in _tensors(found))

    def __call__(self, *tensors: Tensor) -> Output:
        """Copy inputs in, replay, and return the outputs, which the next call overwrites.

        Raises:
            UsageError: The inputs are not like the examples.
        """
        _check_inputs(tensors, self._inputs)
        for static, tensor in zip(self._inputs, tensors):
            static.copy_(tensor)
        self._graph.replay()
        return self._outputs[0] if self._alone else self._outputs


def _device(examples: Sequence[Tensor]) -> torch.device:
    """Return the GPU that the examples are on."""
    if not torch.cuda.is_available():
        raise UsageError(f"CapturedStep: there is no CUDA device to record on; {_INSTEAD}")
    if not examples:
        raise UsageError("CapturedStep: got no example; give one for each input of the function")
    for index, example in enumerate(examples):
        if not example.is_cuda:
            raise UsageError(
                f"CapturedStep: example {index} is on {example.device}, and a CUDA graph holds "
                f"what a GPU does; move it there, or {_INSTEAD}"
            )
        if example.device != examples[0].device:
            raise UsageError(
                f"CapturedStep: example {index} is on {example.device}, example 0 on "
                f"{examples[0].device}; move one of them"
            )
        _check_no_gradient(f"example {index}", example)
    return examples[0].device


def _warm_up(
    function: Callable[..., Output], inputs: Sequence[Tensor], stream: Any, runs: int
) -> None:
    """Run where recording will be: what is made late, such as handles of libraries, is there."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(runs):
            _tensors(function(*inputs))
    torch.cuda.current_stream().wait_stream(stream)


def _record(
    function: Callable[..., Output], inputs: Sequence[Tensor], stream: Any
) -> tuple[torch.cuda.CUDAGraph, Output]:
    graph = torch.cuda.CUDAGraph()
    try:
        back = torch.cuda.stream(torch.cuda.current_stream())  # also when recording fails
        with back, torch.cuda.graph(graph, stream=stream):
            found = function(*inputs)
    except RuntimeError as error:
        raise UsageError(
            "CapturedStep: the function does something that no CUDA graph can hold; keep values "
            "on the GPU (no item, cpu, tolist or print) and take Kernels(synapse='dense'): "
            f"{error}"
        ) from error
    return graph, found


def _tensors(found: object) -> tuple[Tensor, ...]:
    parts = found if isinstance(found, tuple) else (found,)
    for part in parts:
        if not isinstance(part, Tensor) or not part.is_cuda:
            what = f"a tensor on {part.device}" if isinstance(part, Tensor) else type(part).__name__
            raise UsageError(
                f"CapturedStep: the function returned {what}; a replay can only fill tensors on "
                "the GPU, so return one or a tuple of them (loss.detach() instead of loss.item())"
            )
    return parts


def _check_inputs(tensors: Sequence[Tensor], examples: Sequence[Tensor]) -> None:
    if len(tensors) != len(examples):
        raise UsageError(
            f"CapturedStep: got {len(tensors)} inputs, the examples were {len(examples)}"
        )
    for index, (tensor, example) in enumerate(zip(tensors, examples)):
        for what in ("shape", "dtype", "device"):
            got, needed = getattr(tensor, what), getattr(example, what)
            if got != needed:
                got, needed = (tuple(v) if what == "shape" else v for v in (got, needed))
                raise UsageError(
                    f"CapturedStep: input {index} has {what} {got}, its example had {needed}; a "
                    "graph is for one of each, so record another"
                )
        _check_no_gradient(f"input {index}", tensor)


def _check_no_gradient(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad:
        raise UsageError(
            f"CapturedStep: {name} needs a gradient, and none leaves a graph; detach it, or take "
            "the gradient within the function and return it"
        )
