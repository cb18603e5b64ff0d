"""A neuron over time with its tangent: derivatives that go forward, beside what they are of.

With the tangent ``t_n`` of every node ``n`` of the equations, a step takes the tangents of the
input, the parameters and the state before it to those of the output and of the state after it; a
spike passes on ``psi(d) t_d`` of its distance ``d``. With recurrent synapses ``R``::

    t_x[t] += t_s[t-1] R^T + s[t-1] t_R^T

Steps are computed in torch, as the reference computes them. Dual numbers through the reference come
to the same, but each product with a plain number then costs torch half a millisecond.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from spikecl.kernels.backend import constants_of, evaluate, full
from spikecl.kernels.equations import Graph, Node
from spikecl.kernels.program import Program, order_of
from spikecl.kernels.recurrence import Recurrence, RecurrentState
from spikecl.neurons import Neuron, State
from spikecl.neurons.neuron import leaves, rebuild, tensors_of


class Dual(NamedTuple):
    """A value and its tangent; ``None`` is zero."""

    value: Any
    tangent: Any = None

    @classmethod
    def of(cls, number: Tensor | None) -> Dual:
        """Take a dual number apart."""
        if number is None:
            return cls(None)
        return cls(*forward_ad.unpack_dual(number))  # type: ignore[no-untyped-call]

    def number(self) -> Tensor:
        """Put it together, within a level of duals."""
        if self.tangent is None:
            return torch.as_tensor(self.value)
        _load()
        found: Tensor = forward_ad.make_dual(self.value, self.tangent)  # type: ignore[no-untyped-call]
        return found


@functools.cache
def _load() -> None:
    """Let torch load what it needs for tangents, without what it then says about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))  # type: ignore[no-untyped-call]


def ahead(
    x: Tensor, state: State, neuron: Neuron, program: Program, recurrence: Recurrence | None = None
) -> tuple[Tensor, State]:
    """Run a neuron with a program on dual numbers; see :func:`spikecl.kernels.scan`."""
    inner, last = (state, None) if recurrence is None else state
    parameters = [Dual.of(getattr(neuron, name)) for name in tensors_of(neuron)]
    step = derived(program, tuple(tangent is not None for _, tangent in parameters))
    fixed = constants_of(step.nodes, step.constants)
    for dual, node, t_node in zip(parameters, program.parameters, step.t_parameters):
        fixed |= {node: dual.value, t_node: dual.tangent}
    current, moves = Dual.of(x)
    zero = torch.zeros_like(current[0])
    now = [Dual.of(part) for part in leaves(inner)]
    heard, spikes = Heard.of(recurrence), Dual.of(last)
    outputs = []
    for t, value in enumerate(current):
        moved = zero if moves is None else moves[t]
        if recurrence is not None:
            more = heard.current(spikes)
            value, moved = value + more.value, moved + more.tangent
        values: dict[int, Any] = {**fixed, program.x: value, step.t_x: moved}
        for dual, node, t_node in zip(now, program.before, step.t_before):
            values |= {node: dual.value, t_node: zero if dual.tangent is None else dual.tangent}
        evaluate(step.nodes, step.order, values, value.dtype)
        spikes = _at(values, program.out, step.t_out, value)
        now = [_at(values, n, t_n, value) for n, t_n in zip(program.after, step.t_after)]
        outputs.append(spikes)
    tangents = [zero if each.tangent is None else each.tangent for each in outputs]
    out = Dual(torch.stack([each.value for each in outputs]), torch.stack(tangents)).number()
    end = rebuild(inner, iter([dual.number() for dual in now]))
    return out, end if recurrence is None else RecurrentState(end, spikes.number())


def _at(values: dict[int, Any], node: int, t_node: int | None, like: Tensor) -> Dual:
    tangent = None if t_node is None else full(values[t_node], like)
    return Dual(full(values[node], like), tangent)


class Heard(NamedTuple):
    """Synapses of a layer onto itself, and their tangents."""

    synapses: Recurrence
    t_weight: Tensor | None
    t_bias: Tensor | None

    @classmethod
    def of(cls, recurrence: Recurrence | None) -> Heard:
        """Take synapses apart."""
        weight, bias = (Dual.of(None),) * 2 if recurrence is None else map(Dual.of, recurrence)
        return cls(Recurrence(weight.value, bias.value), weight.tangent, bias.tangent)

    def current(self, spikes: Dual) -> Dual:
        """Return the current that the last spikes [B, *features] cause, with its tangent."""
        (weight, _), rows = self.synapses, spikes.value.flatten(1)
        moved = torch.zeros_like(rows) if self.t_bias is None else self.t_bias.expand(rows.shape)
        if spikes.tangent is not None:
            moved = moved + spikes.tangent.flatten(1) @ weight.T
        if self.t_weight is not None:
            moved = moved + functional.linear(rows, self.t_weight)
        return Dual(self.synapses(spikes.value), moved.view(spikes.value.shape))


class Ahead(NamedTuple):
    """A step with its tangent: nodes of tangents; ``None`` is zero."""

    nodes: tuple[Node, ...]
    constants: tuple[float, ...]
    t_x: int
    t_before: tuple[int, ...]
    t_parameters: tuple[int, ...]
    t_out: int | None
    t_after: tuple[int | None, ...]
    order: tuple[int, ...]


@functools.lru_cache(maxsize=1000)
def derived(program: Program, moving: tuple[bool, ...]) -> Ahead:
    """Return a step with its tangent; ``moving`` says which parameters have one."""
    graph = Graph(program.nodes, program.constants)
    leaf = functools.partial(graph.add, "tangent")
    t_x = leaf(0)
    t_before = tuple(leaf(1 + k) for k in range(len(program.before)))
    t_parameters = tuple(leaf(1 + len(t_before) + k) for k in range(len(moving)))
    tangents: dict[int, int | None] = {program.x: t_x, **dict(zip(program.before, t_before))}
    for node, t_node, moves in zip(program.parameters, t_parameters, moving):
        tangents[node] = t_node if moves else None
    ends = (program.out, *program.after)
    surrogates = dict(program.surrogates)
    for index in sorted({*order_of(program.nodes, ends, ()), *ends}):
        if index not in tangents:
            tangents[index] = _forth(graph, tangents, index, surrogates)
    t_ends = [tangents[end] for end in ends]
    return Ahead(
        nodes=tuple(graph.nodes),
        constants=tuple(graph.constants),
        t_x=t_x,
        t_before=t_before,
        t_parameters=t_parameters,
        t_out=t_ends[0],
        t_after=tuple(t_ends[1:]),
        order=order_of(graph.nodes, [*ends, *t_ends], ()),
    )


def _forth(
    graph: Graph, tangents: dict[int, int | None], index: int, surrogates: dict[int, int]
) -> int | None:
    """Return the tangent of a node from those of its arguments."""
    op, args = graph.nodes[index]
    add, of = graph.add, tangents.get

    def zero() -> int:
        return graph.constant(0.0)

    def both(sign: str, a: int | None, b: int | None) -> int | None:
        if a is None or b is None:
            return a if b is None else b if sign == "add" else add("neg", b)
        return add(sign, a, b)

    def times(t: int | None, factor: int) -> int | None:
        return None if t is None else add("mul", t, factor)

    match op:
        case "add" | "sub":
            return both(op, of(args[0]), of(args[1]))
        case "mul":
            return both("add", times(of(args[0]), args[1]), times(of(args[1]), args[0]))
        case "div":
            top = both("sub", of(args[0]), times(of(args[1]), index))
            return None if top is None else add("div", top, args[1])
        case "where" | "min" | "max":
            one, other = (of(arg) for arg in args[-2:])
            if one is None and other is None:
                return None
            a, b = (zero() if t is None else t for t in (one, other))
            if op == "where":
                return add("where", args[0], a, b)
            less = "lt" if op == "min" else "gt"  # where both are equal, half of each
            even = add("mul", add("add", a, b), graph.constant(0.5))
            one = add("where", add(less, *args), a, b)
            return add("where", add("eq", *args), even, one)
    t = of(args[0]) if args and op not in _STILL else None
    if t is None:
        return None
    match op:
        case "neg":
            return add("neg", t)
        case "abs":
            sign = add("where", add("gt", args[0], zero()), t, add("neg", t))
            return add("where", add("eq", args[0], zero()), zero(), sign)
        case "relu":
            return add("where", add("gt", args[0], zero()), t, zero())
        case "exp":
            return add("mul", t, index)
        case "sigmoid":
            return add("mul", t, add("mul", index, add("sub", graph.constant(1.0), index)))
        case "erf":
            bell = add("exp", add("neg", add("mul", args[0], args[0])))
            return add("mul", t, add("mul", graph.constant(2 / math.sqrt(math.pi)), bell))
        case "spike_gt" | "spike_ge":
            return add("mul", t, surrogates[index])
    raise AssertionError(op)


_STILL = {"gt", "ge", "lt", "le", "eq", "cast", "detach", "constant"}
