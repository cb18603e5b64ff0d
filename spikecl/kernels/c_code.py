"""Programs as C: all steps of a block of columns while it is in the cache, then the next block."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikecl.kernels import compiler
from spikecl.kernels.program import Program

BLOCK = 4096  # columns whose state stays in the first cache
SHARE = 1 << 18  # values that are worth a thread
REALS = {torch.float32: "float", torch.float64: "double"}

_HEAD = """
#include <math.h>
#include <stdint.h>
#include <string.h>
typedef {real} R;
#define BLOCK {block}
static inline uint16_t to_half(R value) {{
  float f = (float)value; uint32_t bits; memcpy(&bits, &f, 4);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}}
static inline R from_half(uint16_t half) {{
  uint32_t bits = (uint32_t)half << 16; float f; memcpy(&f, &bits, 4);
  return (R)f;
}}
/* e^x to the last digits in a form that vectorises: x = k ln 2 + r, a Taylor series in r */
static inline R exponential(R given) {{
  const R x = given < (R)-{limit} ? (R)-{limit} : given > (R){limit} ? (R){limit} : given;
  const R k = {round}(x * (R)1.4426950408889634);
  const R r = (x - k * (R){high}) - k * (R){low};
  R sum = 1;
  {series}
  {bits} scale = ({bits})((int{size}_t)k + {bias}) << {mantissa};
  R power; memcpy(&power, &scale, sizeof power);
  return given < (R)-{limit} ? (R)0 : given > (R){limit} ? (R)INFINITY : sum * power;
}}
"""


def _series(terms: int) -> str:
    return "".join(f"sum = 1 + r * sum * (R){1 / k!r}; " for k in range(terms, 0, -1))


_EXPONENTIAL = {
    "float": {
        "limit": 88, "round": "rintf", "high": 0.693359375, "low": -2.12194440e-4, "size": 32,
        "bits": "uint32_t", "bias": 127, "mantissa": 23,
        "series": _series(7),
    },
    "double": {
        "limit": 709, "round": "rint", "high": 6.93147180369123816490e-01,
        "low": 1.90821492927058770002e-10, "size": 64, "bits": "uint64_t", "bias": 1023,
        "mantissa": 52, "series": _series(13),
    },
}  # fmt: skip

EXPRESSIONS: Mapping[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "abs": "fabs({0})",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "cast": "{0} ? (R)1 : (R)0",
    "where": "{0} ? {1} : {2}",
    "relu": "{0} < (R)0 ? (R)0 : {0}",
    "min": "({0} < {1} || {0} != {0}) ? {0} : {1}",
    "max": "({0} > {1} || {0} != {0}) ? {0} : {1}",
    "exp": "exponential({0})",
    "sigmoid": "(R)1 / ((R)1 + exponential(-{0}))",
    "erf": "(R)erf({0})",
    "spike_gt": "{0} > (R)0 ? (R)1 : (R)0",
    "spike_ge": "{0} >= (R)0 ? (R)1 : (R)0",
    "detach": "{0}",
}
_TYPES = {"half": "uint16_t", "flag": "uint8_t", "real": "R"}
_STORE = {"half": "to_half({0})", "flag": "(uint8_t)({0} != 0)", "real": "{0}"}
_LOAD = {"half": "from_half({0})", "flag": "(R){0}", "real": "{0}"}


def against(dtype: torch.dtype, device: str) -> str | None:
    """Return what keeps this kernel from running; ``None`` if nothing does."""
    if device != "cpu":
        return f"the input is on {device}, and C code runs on a CPU"
    if dtype not in REALS:
        return f"the input is {dtype}, and C code is made for float32 and float64"
    return compiler.against()


class CBackend:
    """Runs programs compiled by the system's C compiler, float32 and float64 on a CPU."""

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
        after = list(state)
        x, stride = _steps(x)
        call = _Call(program, parameters, x)
        function = call.library.forward if tape is None else call.library.forward_kept
        call.run(
            function, stride, x.data_ptr(), _pointers(after), out.data_ptr(), _pointers(tape or ())
        )
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
        state = [part.clone(memory_format=torch.contiguous_format) for part in g_after]
        sums = [torch.empty_like(g_x[0]) for _ in program.trained]
        g_out, stride = _steps(g_out)
        call = _Call(program, parameters, g_x)
        call.run(
            call.library.backward, stride, g_out.data_ptr(), _pointers(state), g_x.data_ptr(),
            _pointers(tape), _pointers(sums),
        )  # fmt: skip
        return state, sums


def _steps(x: Tensor) -> tuple[Tensor, int]:
    """Return an array whose steps are contiguous, and the distance of two of them."""
    if x.is_contiguous() or (x.stride(0) == 0 and x[0].is_contiguous()):
        return x, x.stride(0)
    x = x.contiguous()
    return x, x.stride(0)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    """Return the addresses of tensors as an array; ``None`` of no tensors."""
    if not tensors:
        return None
    return (_POINTER * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


class _Call:
    """Sizes and parameters of one call in the form that C takes."""

    def __init__(self, program: Program, parameters: Sequence[Tensor], x: Tensor):
        scalars = tuple([p.numel() == 1 for p in parameters])
        self.library = _library(program, x.dtype, scalars)
        self.numbers = program.numbers
        steps, batch, *cells = x.shape
        columns, rows = math.prod(cells), batch
        if all(scalars):  # nothing tells neurons apart
            columns, rows = columns * batch, 1
        self.sizes = steps, rows, columns
        self._kept = [
            (p if scalar else _spread(p, cells)).to(x.dtype)
            for p, scalar in zip(parameters, scalars)
        ]
        self.parameters = _pointers(self._kept)

    def run(self, function: Any, stride: int, first: int, *rest: Any) -> None:
        """Call a function on all blocks of columns; big ones by as many threads as torch has."""
        steps, rows, columns = self.sizes
        blocks = rows * -(-columns // BLOCK)
        given = (*self.sizes, stride, first, self.numbers, self.parameters, *rest)
        threads = min(blocks, steps * rows * columns // SHARE)
        if threads > 1:
            threads = min(threads, torch.get_num_threads())
        if threads <= 1:
            function(*given, 0, blocks)
            return
        ends = [blocks * k // threads for k in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter
            list(pool.map(lambda k: function(*given, ends[k], ends[k + 1]), range(threads)))


def _spread(parameter: Tensor, cells: Sequence[int]) -> Tensor:
    """Return a parameter with a value for each neuron."""
    if parameter.dim() > len(cells):  # [1, *features]
        parameter = parameter[0]
    return parameter.expand(*cells).contiguous()


_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p


class _Library(NamedTuple):
    """The functions of a compiled program."""

    forward: Any
    forward_kept: Any
    backward: Any


_LIBRARIES: dict[tuple[str, torch.dtype, tuple[bool, ...]], _Library] = {}


def _library(program: Program, dtype: torch.dtype, scalars: tuple[bool, ...]) -> _Library:
    """Return the compiled code of a program; those that differ in their numbers share it."""
    at = program.key, dtype, scalars
    if at not in _LIBRARIES:
        _LIBRARIES[at] = _load(source(program, REALS[dtype], scalars))
    return _LIBRARIES[at]


def _load(code: str) -> _Library:
    library = compiler.load(code)

    def function(name: str, pointers: int) -> Any:
        found = getattr(library, name)
        found.restype = None
        found.argtypes = [_SIZE] * 4 + [_POINTER] * pointers + [_SIZE] * 2
        return found

    return _Library(function("forward", 6), function("forward_kept", 6), function("backward", 7))


def source(program: Program, real: str, scalars: tuple[bool, ...]) -> str:
    """Return the C code of a program: ``forward_kept`` fills the tape, ``forward`` does not."""
    return "".join(
        (
            _HEAD.format(real=real, block=BLOCK, **_EXPONENTIAL[real]),
            _forward(program, scalars, keep=True),
            _forward(program, scalars, keep=False),
            _backward(program, scalars),
        )
    )


def _forward(program: Program, scalars: tuple[bool, ...], *, keep: bool) -> str:
    name = _Names(program, scalars)
    slots = list(enumerate(program.tape)) if keep else []
    order = program.step_kept if keep else program.step
    for k, node in enumerate(program.before):
        name.given[node] = f"s{k}[j]"
    name.given[program.x] = "xt[j]"
    body = name.lines(order)
    ends = [*body, f"out[t * all + at + j] = {name(program.out)};"]
    ends += [
        f"tape{k}[t * all + at + j] = {_STORE[slot.kind].format(name(slot.node))};"
        for k, slot in slots
    ]
    ends += [f"const R e{k} = {name(node)};" for k, node in enumerate(program.after)]
    ends += [f"s{k}[j] = e{k};" for k in range(len(program.after))]
    setup = [
        f"{_TYPES[slot.kind]} *restrict tape{k} = ({_TYPES[slot.kind]} *)tape[{k}];"
        for k, slot in slots
    ]
    head = (
        f"void forward{'_kept' if keep else ''}(int64_t steps, int64_t rows, int64_t columns, "
        "int64_t stride, const R *x, const double *constants, const R **parameters, R **state, "
        "R *out, void **tape, int64_t first, int64_t last)"
    )
    row = "const R *xt = x + t * stride + at;"
    return _loop(program, head, [*name.setup(), *setup], row, ends, reverse=False)


def _backward(program: Program, scalars: tuple[bool, ...]) -> str:
    name = _Names(program, scalars)
    for k, node in enumerate(program.g_after):
        name.given[node] = f"s{k}[j]"
    name.given[program.g_out] = "xt[j]"
    for k, slot in enumerate(program.tape):
        name.given[slot.node] = _LOAD[slot.kind].format(f"tape{k}[t * all + at + j]")
    ends = name.lines(program.step_back)
    ends += [f"g_x[t * all + at + j] = {name(program.g_x)};"]
    ends += [f"const R e{k} = {name(node)};" for k, node in enumerate(program.g_before)]
    ends += [f"s{k}[j] = e{k};" for k in range(len(program.g_before))]
    trained = range(len(program.g_parameters))
    ends += [
        f"sum{k}[at + j] += {name(program.g_parameters[k])};"
        for k in trained
        if program.g_parameters[k] is not None
    ]
    setup = [
        f"const {_TYPES[slot.kind]} *restrict tape{k} = (const {_TYPES[slot.kind]} *)tape[{k}];"
        for k, slot in enumerate(program.tape)
    ]
    setup += [f"R *restrict sum{k} = sums[{k}];" for k in trained]
    head = (
        "void backward(int64_t steps, int64_t rows, int64_t columns, int64_t stride, "
        "const R *restrict g_out, const double *constants, const R **parameters, R **state, "
        "R *restrict g_x, void **tape, R **sums, int64_t first, int64_t last)"
    )
    row = "const R *restrict xt = g_out + t * stride + at;"
    zero = [f"memset(sum{k} + at, 0, n * sizeof(R));" for k in trained]
    return _loop(program, head, [*name.setup(), *setup], row, ends, reverse=True, first=zero)


class _Names:
    """What a node is called in C, and the lines that compute it."""

    def __init__(self, program: Program, scalars: tuple[bool, ...]):
        self.program, self.scalars = program, scalars
        self.given: dict[int, str] = {}
        for index, (op, args) in enumerate(program.nodes):
            if op == "constant":
                self.given[index] = f"c{args[0]}"
            elif op == "parameter":
                self.given[index] = f"p{args[0]}" if scalars[args[0]] else f"p{args[0]}[column + j]"

    def __call__(self, node: int | None) -> str:
        return "(R)0" if node is None else self.given.get(node, f"n{node}")

    def setup(self) -> list[str]:
        """Return the lines that fetch constants and parameters."""
        lines = [
            f"const R c{k} = (R)constants[{k}]; (void)c{k};"
            for k in range(len(self.program.constants))
        ]
        for k, scalar in enumerate(self.scalars):
            kind = "const R" if scalar else "const R *restrict"
            lines.append(f"{kind} p{k} = {'*' if scalar else ''}parameters[{k}]; (void)p{k};")
        return lines

    def lines(self, order: Sequence[int]) -> list[str]:
        """Return the lines that compute nodes in order."""
        bools = ("gt", "ge", "lt", "le", "eq")
        found = []
        for index in order:
            op, args = self.program.nodes[index]
            kind = "int" if op in bools else "R"
            value = EXPRESSIONS[op].format(*map(self, args))
            found.append(f"const {kind} n{index} = {value};")
        return found


def _loop(
    program: Program,
    head: str,
    setup: Sequence[str],
    row: str,
    body: Sequence[str],
    *,
    reverse: bool,
    first: Sequence[str] = (),
) -> str:
    states = range(len(program.before))
    time = "t = steps - 1; t >= 0; t--" if reverse else "t = 0; t < steps; t++"
    local = "".join(f"R s{k}[BLOCK]; " for k in states)
    fetch = "".join(f"memcpy(s{k}, state[{k}] + at, n * sizeof(R)); " for k in states)
    keep = "".join(f"memcpy(state[{k}] + at, s{k}, n * sizeof(R)); " for k in states)
    return f"""
{head} {{
  const int64_t all = rows * columns, blocks = (columns + BLOCK - 1) / BLOCK;
  {" ".join(setup)}
  for (int64_t block = first; block < last; block++) {{
    const int64_t column = (block % blocks) * BLOCK, at = (block / blocks) * columns + column;
    const int64_t n = columns - column < BLOCK ? columns - column : BLOCK;
    {local}{fetch}{" ".join(first)}
    for (int64_t {time}) {{
      {row}
#pragma GCC ivdep
      for (int64_t j = 0; j < n; j++) {{
        {"".join(line + chr(10) + "        " for line in body)}
      }}
    }}
    {keep}
  }}
}}
"""
