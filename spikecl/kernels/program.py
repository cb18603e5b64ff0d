"""A step and its derivative as straight-line programs: what kernels are generated from.

The derivative is taken on the graph of the equations, in reverse. With the adjoint ``g_n`` of every
node ``n``, a step backward in time takes the adjoints of the output and of the state after the step
to those of the input, the parameters and the state before it. A spike passes ``psi(d) g`` to its
distance ``d``.

What the forward pass has to keep for that (the tape) is the cheapest cut of the graph: the least
memory from which everything the adjoints ask for can be computed again.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from spikecl.kernels.equations import (
    COMPARISONS,
    LEAVES,
    SPIKES,
    Equations,
    Graph,
    Node,
    UnreadableError,
    read,
)
from spikecl.neurons import Neuron, State
from spikecl.neurons.neuron import tensors_of

Memory = Literal["full", "lean"]


class Slot(NamedTuple):
    """A value on the tape: its node, and whether it is a ``real``, a ``half`` or a ``flag``."""

    node: int
    kind: Literal["real", "half", "flag"]


@dataclass(frozen=True, eq=False)
class Program:
    """One step of a neuron, and one step back.

    Args:
        nodes: Operations in order of execution.
        constants: Numbers, by the argument of their node.
        x: Node of the input.
        before: Nodes of the state before the step.
        parameters: Nodes of the parameters that are tensors.
        out: Node of the output.
        after: Nodes of the state after the step.
        g_out: Node of the adjoint of the output.
        g_after: Nodes of the adjoints of the state after the step.
        g_x: Node of the adjoint of the input; ``None`` is zero.
        g_before: Nodes of the adjoints of the state before the step.
        g_parameters: Nodes of the adjoints of the parameters that are trained.
        trained: Which of the parameters those are.
        tape: What the forward pass keeps.
        step: Nodes to compute in a step, in order.
        step_kept: The same with those of the tape.
        step_back: Nodes to compute in a step back, from the tape.
        exact: Whether every operation is rounded alike everywhere.
        surrogates: Nodes of spikes, and of the derivatives they pass on.
    """

    nodes: tuple[Node, ...]
    constants: tuple[float, ...]
    x: int
    before: tuple[int, ...]
    parameters: tuple[int, ...]
    out: int
    after: tuple[int, ...]
    g_out: int
    g_after: tuple[int, ...]
    g_x: int | None
    g_before: tuple[int | None, ...]
    g_parameters: tuple[int | None, ...]
    trained: tuple[int, ...]
    tape: tuple[Slot, ...]
    step: tuple[int, ...]
    step_kept: tuple[int, ...]
    step_back: tuple[int, ...]
    exact: bool
    surrogates: tuple[tuple[int, int], ...]

    @functools.cached_property
    def numbers(self) -> ctypes.Array[ctypes.c_double]:
        """The constants in the form that C takes."""
        return (ctypes.c_double * max(len(self.constants), 1))(*self.constants)

    @functools.cached_property
    def key(self) -> str:
        """A name for the structure, the numbers aside."""
        structure = [getattr(self, f.name) for f in fields(self) if f.name != "constants"]
        return hashlib.sha256(repr(structure).encode()).hexdigest()[:16]


def program(
    neuron: Neuron, rest: State, *, trained: tuple[int, ...] = (), memory: Memory = "full"
) -> Program | None:
    """Return the program of a neuron; ``None`` of one that symbols cannot follow.

    Args:
        neuron: The model.
        rest: A state of it.
        trained: Which of its parameters that are tensors need a gradient, by number.
        memory: ``full`` keeps values as they are; ``lean`` keeps surrogates in bfloat16 and what
            is 0 or 1 in bytes.
    """
    tensors = tensors_of(neuron)
    if not tensors:  # the same neuron again: no need to compare its numbers
        last = _LAST.get((id(neuron), memory))
        if last is not None and last[0] is neuron:
            return last[1]
    names = [field.name for field in fields(neuron)]  # type: ignore[arg-type]
    if set(getattr(neuron, "__dict__", ())) - set(names):
        return None  # what is no parameter would be forgotten
    values = (None if name in tensors else getattr(neuron, name) for name in names)
    at = (type(neuron), *values, tensors, trained, memory)
    try:
        hash(at)
    except TypeError:
        return None
    if at not in _KNOWN:
        if len(_KNOWN) >= 1000:
            _KNOWN.clear()
            _LAST.clear()
        try:
            _KNOWN[at] = _derive(read(neuron, rest), trained, memory)
        except UnreadableError:
            _KNOWN[at] = None
    if not tensors:
        _LAST[id(neuron), memory] = neuron, _KNOWN[at]
    return _KNOWN[at]


_KNOWN: dict[Any, Program | None] = {}
_LAST: dict[Any, tuple[Neuron, Program | None]] = {}


def _derive(step: Equations, trained: tuple[int, ...], memory: Memory) -> Program:
    graph, last = step.graph, len(step.graph.nodes)
    exact = step.exact
    g_out = graph.add("adjoint", 0)
    g_after = tuple(graph.add("adjoint", 1 + k) for k in range(len(step.after)))
    adjoints: dict[int, int] = {}
    for node, g in zip((step.out, *step.after), (g_out, *g_after)):
        _collect(graph, adjoints, node, g)
    for index in reversed(range(last)):
        if index in adjoints:
            _back(graph, adjoints, index, adjoints[index])
    ends: dict[str, Any] = dict(
        g_x=adjoints.get(step.x),
        g_before=tuple(adjoints.get(n) for n in step.before),
        g_parameters=tuple(adjoints.get(step.parameters[k]) for k in trained),
    )
    backward_ends = [*ends["g_before"], *ends["g_parameters"], ends["g_x"]]
    tape = _tape(graph, backward_ends, memory)
    kept = [slot.node for slot in tape]
    forward_ends = [step.out, *step.after]
    return Program(
        nodes=tuple(graph.nodes),
        constants=tuple(graph.constants),
        x=step.x,
        before=step.before,
        parameters=step.parameters,
        out=step.out,
        after=step.after,
        g_out=g_out,
        g_after=g_after,
        trained=trained,
        tape=tape,
        step=order_of(graph.nodes, forward_ends, ()),
        step_kept=order_of(graph.nodes, [*forward_ends, *kept], ()),
        step_back=order_of(graph.nodes, backward_ends, kept),
        exact=exact,
        surrogates=tuple(graph.surrogates.items()),
        **ends,
    )


def order_of(
    nodes: Sequence[Node], ends: Iterable[int | None], known: Collection[int]
) -> tuple[int, ...]:
    """Return the nodes to compute for the ends, in order."""
    found: set[int] = set()
    waiting = [n for n in ends if n is not None]
    while waiting:
        index = waiting.pop()
        if index not in found and index not in known and nodes[index].op not in LEAVES:
            found.add(index)
            waiting += nodes[index].args
    return tuple(sorted(found))


def _collect(graph: Graph, adjoints: dict[int, int], node: int, g: int) -> None:
    adjoints[node] = graph.add("add", adjoints[node], g) if node in adjoints else g


def _back(graph: Graph, adjoints: dict[int, int], index: int, g: int) -> None:
    """Pass the adjoint of a node on to its arguments."""
    op, args = graph.nodes[index]
    add = graph.add

    def to(node: int, value: int) -> None:
        _collect(graph, adjoints, node, value)

    def zero() -> int:
        return graph.constant(0.0)

    match op:
        case "add":
            to(args[0], g)
            to(args[1], g)
        case "sub":
            to(args[0], g)
            to(args[1], add("neg", g))
        case "mul":
            to(args[0], add("mul", g, args[1]))
            to(args[1], add("mul", g, args[0]))
        case "div":
            to(args[0], add("div", g, args[1]))
            to(args[1], add("neg", add("div", add("mul", g, index), args[1])))
        case "neg":
            to(args[0], add("neg", g))
        case "abs":
            sign = add("where", add("gt", args[0], zero()), g, add("neg", g))
            to(args[0], add("where", add("eq", args[0], zero()), zero(), sign))
        case "where":
            to(args[1], add("where", args[0], g, zero()))
            to(args[2], add("where", args[0], zero(), g))
        case "relu":
            to(args[0], add("where", add("gt", args[0], zero()), g, zero()))
        case "min" | "max":  # where both are equal, each gets a half
            half = add("where", add("eq", *args), add("mul", g, graph.constant(0.5)), zero())
            less = "lt" if op == "min" else "gt"
            to(args[0], add("where", add(less, *args), g, half))
            to(args[1], add("where", add(less, *reversed(args)), g, half))
        case "exp":
            to(args[0], add("mul", g, index))
        case "sigmoid":
            slope = add("mul", index, add("sub", graph.constant(1.0), index))
            to(args[0], add("mul", g, slope))
        case "spike_gt" | "spike_ge":
            to(args[0], add("mul", g, graph.surrogates[index]))
        case "erf":
            raise UnreadableError("the derivative of erf")


def _tape(graph: Graph, ends: Iterable[int | None], memory: Memory) -> tuple[Slot, ...]:
    """Return the cheapest values from which the adjoints can be computed."""
    nodes, psi = graph.nodes, set(graph.surrogates.values())
    moves, linear = _depend(nodes, ("input", "state")), _depend(nodes, ("adjoint",))

    def above(starts: Iterable[int], follow: list[bool]) -> set[int]:
        found, waiting = set[int](), list(starts)
        while waiting:
            if (index := waiting.pop()) not in found:
                found.add(index)
                if follow[index] and nodes[index].op not in LEAVES:
                    waiting += nodes[index].args
        return found

    # what adjoints are multiplied with, as far as it changes from step to step
    reached = above((n for n in ends if n is not None), linear)
    asked = {n for n in reached if moves[n] and not linear[n]}
    made = {n: _slot(nodes, n, psi, memory) for n in above(asked, moves) if moves[n]}
    return tuple(made[n] for n in sorted(_cheapest_cut(nodes, made, asked), reverse=True))


_BYTES = {"real": 4, "half": 2, "flag": 1}
_END = (-1, 0)


def _cheapest_cut(nodes: Sequence[Node], made: Mapping[int, Slot], asked: set[int]) -> list[int]:
    """Return the nodes with the least bytes that lie on every way from the leaves to ``asked``.

    By the maximum flow (Ford & Fulkerson 1956) through a graph in which a node ``n`` is an edge
    from ``(n, 0)`` to ``(n, 1)`` as wide as its bytes; of equal cuts the one nearest to the end.
    """
    free = 1 << 20
    room: dict[tuple[int, int], dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
    for n, slot in made.items():
        room[n, 0][n, 1] = _BYTES[slot.kind]
        if n in asked:
            room[n, 1][_END] = free
        for arg in () if nodes[n].op in LEAVES else nodes[n].args:
            if arg in made:
                room[arg, 1][n, 0] = free
    starts = [(n, 0) for n in made if nodes[n].op in LEAVES]

    def back_from_end() -> dict[tuple[int, int], tuple[int, int]]:
        """Return where to go from each place from which the end can be reached."""
        into: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for place, ways in room.items():
            for to, left in ways.items():
                if left:
                    into[to].append(place)
        following, waiting = {_END: _END}, [_END]
        while waiting:
            at = waiting.pop()
            for place in into[at]:
                if place not in following:
                    following[place] = at
                    waiting.append(place)
        return following

    while open_ := [s for s in starts if s in (following := back_from_end())]:
        path = [open_[0]]
        while path[-1] != _END:
            path.append(following[path[-1]])
        edges = list(itertools.pairwise(path))
        least = min(room[a][b] for a, b in edges)
        for a, b in edges:
            room[a][b] -= least
            room[b][a] += least
    return [n for n in made if (n, 1) in following and (n, 0) not in following]


def _slot(nodes: list[Node], index: int, psi: set[int], memory: Memory) -> Slot:
    if nodes[index].op in (*SPIKES, *COMPARISONS, "cast"):
        return Slot(index, "flag")
    return Slot(index, "half" if memory == "lean" and index in psi else "real")


def _depend(nodes: list[Node], on: tuple[str, ...]) -> list[bool]:
    found: list[bool] = []
    for op, args in nodes:
        found.append(op in on if op in LEAVES else any(found[n] for n in args))
    return found
