"""Programs as Triton: one program instance per block of columns, all steps in registers.

A column is a neuron of one sample. The kernels are printed as files, because Triton reads the
source of what it compiles; numbers are arguments, so that neurons that differ in nothing else
share a kernel.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from spikecl.errors import UsageError
from spikecl.kernels import compiler
from spikecl.kernels.equations import COMPARISONS
from spikecl.kernels.program import Program, Slot

BLOCK, WARPS = 256, 2  # four columns a thread: the widest load of float32
REALS = {
    torch.float64: "tl.float64",
    torch.float32: "tl.float32",
    torch.float16: "tl.float16",
    torch.bfloat16: "tl.bfloat16",
}
HALVES = (torch.float16, torch.bfloat16)
DOUBLES = (3, 4)  # the first release that passes a number as a double

EXPRESSIONS: Mapping[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "{0} * -1.0",  # "-" is 0 - x, which loses the sign of zero
    "abs": "tl.abs({0})",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "cast": "{0}",
    "where": "tl.where({0}, {1}, {2})",
    "relu": "tl.where({0} < 0, 0.0, {0})",
    "min": "tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})",
    "max": "tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})",
    "exp": "tl.exp({0})",
    "sigmoid": "1.0 / (1.0 + tl.exp({0} * -1.0))",
    "erf": "tl.erf({0})",
    "spike_gt": "tl.where({0} > 0, 1.0, 0.0).to({real})",
    "spike_ge": "tl.where({0} >= 0, 1.0, 0.0).to({real})",
}
_ROUNDED = ("add", "sub", "mul", "div", "where", "min", "max", "exp", "sigmoid", "erf")

Part = Literal["forward", "kept", "backward"]


def against(dtype: torch.dtype, device: str) -> str | None:
    """Return what keeps this kernel from running; ``None`` if nothing does."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype not in REALS:
        return f"the input is {dtype}, and Triton kernels are made for {', '.join(map(str, REALS))}"
    if device != "cuda":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return f"the input is on {device}; Triton runs on a GPU, or with TRITON_INTERPRET=1"
        if dtype == torch.bfloat16:
            return "Triton's interpreter cuts bfloat16 off where a GPU rounds"
    if dtype == torch.float64:
        found: str = importlib.import_module("triton").__version__
        if tuple(map(int, found.split(".")[:2])) < DOUBLES:
            return f"triton {found} passes numbers in single precision; 3.4 is the first that can"
    return None


class TritonBackend:
    """Runs programs as Triton kernels.

    Half precision is rounded after each operation of a step, as torch does; the way back adds up
    in float32 and rounds what it hands over.
    """

    def forward(
        self,
        program: Program,
        x: Tensor,
        state: Sequence[Tensor],
        parameters: Sequence[Tensor],
        out: Tensor,
        tape: Sequence[Tensor] | None,
    ) -> list[Tensor]:
        """Fill ``out`` and the tape; return the state after the last step."""
        x = _steps(x)
        before = [part.contiguous() for part in state]
        after = [torch.empty_like(part) for part in before]
        arrays = [x, x.stride(0), out, x[0].numel(), *(tape or ()), *before, *after]
        _run(program, "forward" if tape is None else "kept", parameters, x, arrays)
        return after

    def backward(
        self,
        program: Program,
        tape: Sequence[Tensor],
        parameters: Sequence[Tensor],
        g_out: Tensor,
        g_after: Sequence[Tensor],
        g_x: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Fill ``g_x``; return adjoints of the first state and of the trained parameters."""
        g_out = _steps(g_out)
        after = [part.contiguous() for part in g_after]
        before = [torch.empty_like(part) for part in after]
        wide = torch.float32 if g_x.dtype in HALVES else g_x.dtype
        sums = [torch.empty_like(g_x[0], dtype=wide) for _ in program.trained]
        last = [slot[-1] for slot in tape]  # the kernel starts there and walks back
        arrays = [g_out[-1], -g_out.stride(0), g_x[-1], -g_x[0].numel()]
        _run(program, "backward", parameters, g_x, [*arrays, *last, *after, *before, *sums])
        return before, sums


def _steps(x: Tensor) -> Tensor:
    """Return an array whose steps are contiguous, however far apart they are."""
    return x if x[0].is_contiguous() else x.contiguous()


def _run(
    program: Program, part: Part, parameters: Sequence[Tensor], x: Tensor, arrays: Sequence[Any]
) -> None:
    """Launch a kernel on all columns of arrays like ``x`` [T, B, *features]."""
    columns, cells = x[0].numel(), x.shape[2:]
    single = tuple(p.numel() == 1 for p in parameters)
    known = printed(program, part, x.dtype, single, gpu=x.is_cuda)
    given = [
        p.to(x.dtype) if single[k] else _spread(p, cells).to(x.dtype)
        for k, p in enumerate(parameters)
        if k in known.parameters
    ]
    numbers = [program.constants[k] for k in known.constants]
    sizes = (len(x), columns, math.prod(cells))
    kernel = load(known.source).kernel
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[(-(-columns // BLOCK),)](
            *arrays, *given, *numbers, *sizes, BLOCK, num_warps=WARPS, enable_fp_fusion=False
        )  # no product goes into a sum unrounded


def _spread(parameter: Tensor, cells: torch.Size) -> Tensor:
    """Return a parameter [*features], one value for each neuron."""
    if parameter.dim() > len(cells):  # a batch axis of length 1
        parameter = parameter.view(parameter.shape[1:])
    return parameter.expand(cells).contiguous()


@functools.cache
def load(source: str) -> ModuleType:
    """Return printed source as a module, from a file of its own.

    Raises:
        UsageError: The file cannot be written.
    """
    key = hashlib.sha256(source.encode()).hexdigest()[:24]
    path = compiler.folder() / f"{key}.py"
    if not path.exists():
        _write(source, path)
    spec = importlib.util.spec_from_file_location(f"spikecl_kernel_{key}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(source: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / "kernel.py"
            made.write_text(source)
            made.replace(path)
    except OSError as error:
        raise UsageError(f"Triton kernels cannot be kept in {path.parent}: {error}") from error


class Printed(NamedTuple):
    """A kernel's source, and by number the parameters and constants that it takes."""

    source: str
    parameters: tuple[int, ...]
    constants: tuple[int, ...]


@functools.cache
def printed(
    program: Program,
    part: Part,
    dtype: torch.dtype,
    single: tuple[bool, ...],
    *,
    gpu: bool,
) -> Printed:
    """Return a part of a program as Triton.

    Args:
        program: A step and the step back.
        part: The pass ``forward``, that with its tape ``kept``, or ``backward``.
        dtype: Of the arrays.
        single: Which parameters are one number for all neurons.
        gpu: Treat constants as torch does on a GPU, which multiplies by the inverse instead of
            dividing and adds them unrounded in half precision.
    """
    name = _Names(program, dtype, rounded=part != "backward", gpu=gpu)
    arrays, setup, body, end = (_backward if part == "backward" else _forward)(program, part, name)
    setup = [*name.setup(single), *setup]
    kind = ": tl.float64" if dtype == torch.float64 else ""
    arguments = [
        *arrays,
        *(f"p{k}" for k in sorted(name.parameters)),
        *(f"c{k}{kind}" for k in sorted(name.constants)),
        *("steps", "columns", "features", "BLOCK: tl.constexpr"),
    ]
    source = _KERNEL.format(
        arguments=", ".join(arguments),
        setup=_indented(setup, 1),
        body=_indented(body, 2),
        end=_indented(end, 1),
    )
    return Printed(source, tuple(sorted(name.parameters)), tuple(sorted(name.constants)))


_KERNEL = """\
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["steps"])
def kernel({arguments}):
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
{setup}
    for _ in range(steps):
{body}
{end}
"""

Lines = tuple[list[str], list[str], list[str], list[str]]  # arguments, before, in and after steps


def _indented(lines: Iterable[str], depth: int) -> str:
    return "\n".join("    " * depth + line for line in lines)


def _forward(program: Program, part: Part, name: _Names) -> Lines:
    slots = program.tape if part == "kept" else ()
    states = range(len(program.before))
    for k, node in enumerate(program.before):
        name.given[node] = f"s{k}"
    name.given[program.x] = "now"
    body = [name.fetch("now", "x"), *name.lines(program.step_kept if slots else program.step)]
    body.append(name.keep("out", program.out))
    body += [name.keep(f"tape{k}", slot.node, slot.kind) for k, slot in enumerate(slots)]
    body += [f"end{k} = {name(node)}" for k, node in enumerate(program.after)]
    body += [f"s{k} = end{k}" for k in states]
    body += ["x += x_stride", "out += stride", *(f"tape{k} += stride" for k in range(len(slots)))]
    arrays = ["x", "x_stride", "out", "stride", *(f"tape{k}" for k in range(len(slots)))]
    arrays += [f"{when}{k}" for when in ("before", "after") for k in states]
    setup = [name.fetch(f"s{k}", f"before{k}") for k in states]
    return arrays, setup, body, [name.store(f"after{k}", f"s{k}") for k in states]


def _backward(program: Program, part: Part, name: _Names) -> Lines:
    states, sums = range(len(program.g_after)), range(len(program.g_parameters))
    slots = list(enumerate(program.tape))
    for k, node in enumerate(program.g_after):
        name.given[node] = f"s{k}"
    name.given[program.g_out] = "now"
    body = [name.fetch("now", "x"), *(name.play(k, slot) for k, slot in slots)]
    body += name.lines(program.step_back)
    body.append(name.keep("out", program.g_x))
    body += [f"end{k} = {name(node)}" for k, node in enumerate(program.g_before)]
    body += [f"s{k} = end{k}" for k in states]
    adjoints = program.g_parameters
    body += [f"sum{k} += {name(adjoints[k])}" for k in sums if adjoints[k] is not None]
    body += ["x += x_stride", "out += stride", *(f"tape{k} += stride" for k, _ in slots)]
    arrays = ["x", "x_stride", "out", "stride", *(f"tape{k}" for k, _ in slots)]
    arrays += [f"{when}{k}" for when in ("after", "before") for k in states]
    arrays += [f"total{k}" for k in sums]
    setup = [name.fetch(f"s{k}", f"after{k}") for k in states]
    setup += [f"sum{k} = tl.zeros((BLOCK,), {name.real})" for k in sums]
    end = [name.store(f"before{k}", f"s{k}") for k in states]
    end += [f"tl.store(total{k} + column, sum{k}, mask=inside)" for k in sums]
    return arrays, setup, body, end


class _Names:
    """What a node is called in a kernel, and the lines that compute it.

    Comparisons are truth values until something calculates with them.
    """

    def __init__(self, program: Program, dtype: torch.dtype, *, rounded: bool, gpu: bool) -> None:
        self.program, self.gpu = program, gpu
        self.array, self.double = REALS[dtype], dtype == torch.float64
        self.real = "tl.float64" if self.double else "tl.float32"
        self.rounded = rounded and dtype in HALVES
        self.given: dict[int, str] = {}
        self.truths: set[int] = set()
        self.parameters: set[int] = set()
        self.constants: set[int] = set()

    def __call__(self, node: int | None) -> str:
        """Return a node as a real number."""
        if node is None:
            return f"tl.zeros((BLOCK,), {self.real})"
        name = self._plain(node)
        return f"tl.where({name}, 1.0, 0.0).to({self.real})" if node in self.truths else name

    def _plain(self, node: int) -> str:
        op, args = self.program.nodes[node]
        if op == "constant":
            self.constants.add(args[0])
            return f"number{args[0]}"
        if op == "parameter":
            self.parameters.add(args[0])
            return f"parameter{args[0]}"
        return self.given.get(node, f"n{node}")

    def _truth(self, node: int) -> str:
        return self._plain(node) if node in self.truths else f"({self._plain(node)} != 0)"

    def setup(self, single: Sequence[bool]) -> list[str]:
        """Return the lines that fetch the constants and parameters that were named."""
        block = f"tl.full((BLOCK,), {{}}, {self.real})"
        lines = [f"number{k} = {block.format(f'c{k}')}" for k in sorted(self.constants)]
        for k in sorted(self.parameters):
            spread = f"tl.load(p{k} + column % features, mask=inside).to({self.real})"
            value = block.format(f"tl.load(p{k})") if single[k] else spread
            lines.append(f"parameter{k} = {value}")
        return lines

    def lines(self, order: Sequence[int]) -> list[str]:
        """Return the lines that compute nodes in order."""
        found = []
        for index in order:
            op, args = self.program.nodes[index]
            if op == "detach":
                self.given[index] = self._plain(args[0])
            else:
                found.append(f"n{index} = {self._expression(op, args)}")
            if op in COMPARISONS or (op == "detach" and args[0] in self.truths):
                self.truths.add(index)
        return found

    def _expression(self, op: str, args: Sequence[int]) -> str:
        values = [self(node) for node in args]
        numbers = [self.program.nodes[node].op == "constant" for node in args]
        form = EXPRESSIONS[op]
        if op == "where":
            values[0] = self._truth(args[0])
        elif op in COMPARISONS or (op in ("add", "sub") and not self.gpu):  # of the arrays' type
            values = [self._round(v) if number else v for v, number in zip(values, numbers)]
        elif op == "div":
            exact = form if self.double else "tl.div_rn({0}, {1})"  # "/" is careless in float32
            if self.gpu and numbers[1]:
                one = f"tl.full((BLOCK,), 1.0, {self.real})"
                form, values[1] = EXPRESSIONS["mul"], f"({exact.format(one, values[1])})"
            else:
                form = exact
        value = form.format(*values, real=self.real)
        return self._round(value) if op in _ROUNDED else value

    def _round(self, value: str) -> str:
        return f"({value}).to({self.array}).to(tl.float32)" if self.rounded else value

    def fetch(self, name: str, array: str) -> str:
        """Return the line that loads a value of the arrays' type."""
        return f"{name} = tl.load({array} + column, mask=inside).to({self.real})"

    def store(self, array: str, value: str) -> str:
        """Return the line that stores a value of the arrays' type."""
        return f"tl.store({array} + column, ({value}).to({self.array}), mask=inside)"

    def keep(self, array: str, node: int | None, kind: str = "real") -> str:
        """Return the line that stores a node."""
        if node is None or kind == "real":
            return self.store(array, self(node))
        as_half = f"{self(node)}.to(tl.float32).to(tl.bfloat16)"
        value = f"{self._truth(node)}.to(tl.uint8)" if kind == "flag" else as_half
        return f"tl.store({array} + column, {value}, mask=inside)"

    def play(self, k: int, slot: Slot) -> str:
        """Return the line that loads a node from the tape."""
        name, value = f"n{slot.node}", f"tl.load(tape{k} + column, mask=inside)"
        if slot.kind == "flag" and self.program.nodes[slot.node].op in COMPARISONS:
            self.truths.add(slot.node)
            return f"{name} = {value} != 0"
        via = ".to(tl.float32)" if slot.kind == "half" else ""
        return f"{name} = {value}{via}.to({self.real})"
