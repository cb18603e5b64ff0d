"""A neuron's equations, read off the neuron itself.

A step is run once with symbols in place of tensors. Each operation becomes a node of a graph, and
the graph is all that the generated kernels know of a neuron: a model that is made of the operations
below gets every kernel without a line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from spikecl.errors import SpikeclError
from spikecl.neurons import Neuron, State
from spikecl.neurons.neuron import tensors_of


class UnreadableError(SpikeclError):
    """A step does something that symbols cannot follow."""


class Node(NamedTuple):
    """An operation on earlier nodes, by index; what a leaf's argument counts depends on it."""

    op: str
    args: tuple[int, ...]


LEAVES = ("input", "state", "parameter", "constant", "adjoint", "tangent")
COMPARISONS = ("gt", "ge", "lt", "le", "eq")
SPIKES = ("spike_gt", "spike_ge")
# rounded alike by every compiler and by torch; exp and its kind are not
EXACT = {
    *LEAVES, *COMPARISONS, *SPIKES,
    "add", "sub", "mul", "div", "neg", "abs", "where", "cast", "relu", "min", "max", "detach",
}  # fmt: skip


class Graph:
    """Nodes in order of execution, each only once; constants are numbered, not compared.

    So neurons that differ in nothing but their numbers have equal graphs, and share compiled code.
    """

    def __init__(self, nodes: Iterable[Node] = (), constants: Iterable[float] = ()) -> None:
        self.nodes = list(nodes)
        self.constants = list(constants)
        self.surrogates: dict[int, int] = {}  # of a spike, the node of its derivative
        self._known = {node: index for index, node in enumerate(self.nodes)}

    def add(self, op: str, *args: int) -> int:
        """Return the index of a node, the old one if it is there."""
        node = Node(op, args)
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return self._known[node]

    def constant(self, value: float) -> int:
        """Return the index of a new constant."""
        self.constants.append(float(value))
        return self.add("constant", len(self.constants) - 1)


class Equations(NamedTuple):
    """One step: nodes of the input, the state before and after it, parameters, and the output."""

    graph: Graph
    x: int
    before: tuple[int, ...]
    parameters: tuple[int, ...]
    out: int
    after: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether every operation of a step is rounded alike everywhere."""
        used, waiting = set[int](), [self.out, *self.after]
        while waiting:
            if (index := waiting.pop()) not in used:
                used.add(index)
                node = self.graph.nodes[index]
                waiting += () if node.op in LEAVES else node.args
        return all(self.graph.nodes[index].op in EXACT for index in used)


def read(neuron: Neuron, rest: State) -> Equations:
    """Return the equations of a neuron.

    Args:
        neuron: The model. Its parameters that are tensors become nodes, its numbers constants.
        rest: A state of it.

    Raises:
        UnreadableError: It draws random numbers, or its step uses what a symbol does not know.
    """
    if neuron.random:
        raise UnreadableError("draws random numbers")
    graph = Graph()
    x = graph.add("input", 0)
    names = tensors_of(neuron)
    parameters = tuple(graph.add("parameter", k) for k in range(len(names)))
    symbols: Any = {n: Symbol(graph, index) for n, index in zip(names, parameters)}
    before: list[int] = []

    def symbolic(part: State) -> State:
        if isinstance(part, Tensor):
            before.append(graph.add("state", len(before)))
            return Symbol(graph, before[-1])
        return None if part is None else type(part)(*map(symbolic, part))

    state = symbolic(rest)
    try:
        with torch.enable_grad():
            start: Any = Symbol(graph, x)
            out, after = cast(Any, neuron.bind(symbols)).advance(start, state)
        ends = tuple(symbol.real() for symbol in _symbols(after))
    except (UnreadableError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UnreadableError(str(error)) from error
    if len(ends) != len(before):
        raise UnreadableError("a state that a step fills or empties")
    return Equations(graph, x, tuple(before), parameters, out.real(), ends)


def _symbols(state: State) -> Iterator[Symbol]:
    if isinstance(state, Symbol):
        yield state
    elif state is not None:
        for part in state:
            yield from _symbols(part)


def _binary(op: str, *, reverse: bool = False) -> Callable[[Symbol, Any], Symbol]:
    def method(self: Symbol, other: Any) -> Symbol:
        if op in ("add", "sub") and isinstance(other, Symbol) and self.is_bool and other.is_bool:
            raise UnreadableError(f"{op} of two comparisons")
        a, b = self.real(), self.index_of(other)
        return self.make(op, b, a) if reverse else self.make(op, a, b)

    return method


def _unary(op: str) -> Callable[[Symbol], Symbol]:
    return lambda self: self.make(op, self.real())


def _in_place(name: str) -> Callable[..., Symbol]:
    def method(self: Symbol, *args: Any, **options: Any) -> Symbol:
        self.index = getattr(self, name)(*args, **options).index
        return self

    return method


class Symbol:
    """Stands for a tensor in a neuron's equations; what is done to it is written down."""

    __slots__ = ("graph", "index")
    __hash__ = None  # type: ignore[assignment]
    dtype = device = "any"

    def __init__(self, graph: Graph, index: int):
        self.graph = graph
        self.index = index

    def make(self, op: str, *args: int) -> Symbol:
        """Return the result of an operation; cut off from the gradient where torch would cut."""
        index = self.graph.add(op, *args)
        cut = not torch.is_grad_enabled()
        return Symbol(self.graph, self.graph.add("detach", index) if cut else index)

    def index_of(self, other: Any) -> int:
        """Return the index of a symbol or of a number, as a real number."""
        if isinstance(other, Symbol):
            return other.real()
        if isinstance(other, (bool, int, float)):
            return self.graph.constant(other)
        raise UnreadableError(f"a {type(other).__name__} that is no parameter")

    @property
    def is_bool(self) -> bool:
        """Whether it is a comparison."""
        return self.graph.nodes[self.index].op in COMPARISONS

    def real(self) -> int:
        """Return the index as a real number: a comparison is 0 or 1."""
        return self.graph.add("cast", self.index) if self.is_bool else self.index

    def __bool__(self) -> bool:
        """Parameters that are tensors count as set; nothing may depend on other values."""
        if self.graph.nodes[self.index].op != "parameter":
            raise UnreadableError("a step that branches on a value")
        return True

    __add__ = __radd__ = add = _binary("add")
    __mul__ = __rmul__ = mul = _binary("mul")
    __sub__ = sub = _binary("sub")
    __truediv__ = div = _binary("div")
    __rsub__ = _binary("sub", reverse=True)
    __gt__, __ge__, __lt__, __le__ = _binary("gt"), _binary("ge"), _binary("lt"), _binary("le")
    __eq__ = _binary("eq")  # type: ignore[assignment]
    minimum, maximum = _binary("min"), _binary("max")
    neg = __neg__ = _unary("neg")
    abs = __abs__ = _unary("abs")
    exp, sigmoid, relu, erf = _unary("exp"), _unary("sigmoid"), _unary("relu"), _unary("erf")

    def detach(self) -> Symbol:
        """Cut the gradient."""
        return Symbol(self.graph, self.graph.add("detach", self.real()))

    def square(self) -> Symbol:
        """Multiply by itself."""
        return self * self

    def __pow__(self, exponent: float) -> Symbol:
        if exponent != 2:
            raise UnreadableError(f"power {exponent}")
        return self * self

    def reciprocal(self) -> Symbol:
        """Divide 1 by it."""
        return self.make("div", self.graph.constant(1.0), self.real())

    def __rtruediv__(self, other: Any) -> Symbol:
        found: Symbol = self.reciprocal() * other  # as torch rounds it
        return found

    def clamp(self, min: float | None = None, max: float | None = None) -> Symbol:
        """Limit to a range; on its border the gradient passes."""
        found = self
        if min is not None:
            found = _where(found < min, min, found)
        return found if max is None else _where(found > max, max, found)

    def clamp_min(self, bound: float) -> Symbol:
        """Limit from below."""
        return self.clamp(min=bound)

    def to(self, dtype: Any) -> Symbol:
        """Return a comparison as 0 and 1."""
        if dtype != self.dtype:
            raise UnreadableError(f"a conversion to {dtype}")
        return Symbol(self.graph, self.real())

    def new_zeros(self, shape: Any) -> Symbol:
        """Return zero, which takes any shape."""
        return Symbol(self.graph, self.graph.constant(0.0))

    add_, sub_, mul_, div_ = (_in_place(name) for name in ("add", "sub", "mul", "div"))
    neg_, exp_, square_ = (_in_place(name) for name in ("neg", "exp", "square"))
    __iadd__, __isub__, __imul__, __itruediv__ = add_, sub_, mul_, div_
    reciprocal_, clamp_min_ = _in_place("reciprocal"), _in_place("clamp_min")

    def spike(self, surrogate: Callable[[Any], Any], *, strict: bool, shift: Any = None) -> Symbol:
        """Fire where positive; the surrogate is kept for the derivative."""
        if shift is not None:
            raise UnreadableError("a threshold that jitters")
        op, distance = "spike_gt" if strict else "spike_ge", self.real()
        psi = surrogate(Symbol(self.graph, distance)).real()
        spikes = self.graph.add(op, distance)
        if self.graph.surrogates.setdefault(spikes, psi) != psi:
            spikes = self.graph.add(op, distance, psi)  # the same spikes, another derivative
            self.graph.surrogates[spikes] = psi
        made = Symbol(self.graph, spikes)
        return made if torch.is_grad_enabled() else made.detach()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer the functions of torch that equations are written with."""
        if function not in _FUNCTIONS:
            raise UnreadableError(f"torch.{getattr(function, '__name__', function)}")
        return _FUNCTIONS[function](*args, **(kwargs or {}))


def _where(condition: Symbol, a: Any, b: Any) -> Symbol:
    return condition.make("where", condition.index, condition.index_of(a), condition.index_of(b))


def _full(value: float) -> Callable[[Symbol], Symbol]:
    return lambda like: Symbol(like.graph, like.graph.constant(value))


_FUNCTIONS: dict[Any, Callable[..., Symbol]] = {
    torch.where: _where,
    torch.ones_like: _full(1.0),
    torch.zeros_like: _full(0.0),
    torch.minimum: Symbol.minimum,
    torch.maximum: Symbol.maximum,
    torch.exp: Symbol.exp,
    torch.sigmoid: Symbol.sigmoid,
    torch.relu: Symbol.relu,
    torch.erf: Symbol.erf,
    torch.abs: Symbol.abs,
}
