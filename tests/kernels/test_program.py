"""Derivatives of steps against autograd, and tapes against a minimum cut found another way."""

import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from spikecl.components import component
from spikecl.kernels import program as module
from spikecl.kernels import reference
from spikecl.kernels.backend import TorchBackend
from spikecl.kernels.equations import COMPARISONS, LEAVES, SPIKES
from spikecl.kernels.generated import generated
from spikecl.kernels.program import program
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    FastSigmoid,
    Izhikevich,
    LeakyIntegrator,
    Neuron,
    Rectified,
    SigmaDelta,
    Sigmoid,
    StraightThrough,
    SynapticIntegrator,
    Triangle,
    spike,
)
from spikecl.neurons.values import Real

X = torch.zeros(1, 3, dtype=torch.float64)
BYTES = {"real": 4, "half": 2, "flag": 1}


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


UNARY = {
    "neg": lambda a: -a,
    "abs": lambda a: a.abs(),
    "relu": torch.relu,
    "square": lambda a: a.square() / 4,
    "shrink": lambda a: torch.exp(-a.abs()),
    "sigmoid": torch.sigmoid,
    "clamp": lambda a: a.clamp(-1.0, 0.75),
    "detach": lambda a: a.detach(),
    "spike": lambda a: spike(a, FastSigmoid(slope=2.0)),
    "spike at": lambda a: spike(a - 0.25, Sigmoid(slope=2.0), strict=False),
    "scale": lambda a: 0.7 * a + 0.1,
}
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (1.5 + b.abs()),
    "min": torch.minimum,
    "max": torch.maximum,
    "where": lambda a, b: torch.where(a > b, a, 0.5 * b),
    "mask": lambda a, b: a * (b <= 0.1),
}


@component
class Written(Neuron):
    """A straight-line program: operations on input, states, a parameter, results."""

    lines: tuple[tuple[str, int, int], ...]
    ends: tuple[int, int, int]
    k: Real = 0.8

    def rest(self, x: Tensor) -> Any:
        return Pair(torch.zeros_like(x), torch.zeros_like(x))

    def advance(self, x: Tensor, state: Any, generator: Any = None) -> Any:
        values = [x, state.a, state.b, x * self.k]
        for name, i, j in self.lines:
            a, b = (values[n % len(values)] for n in (i, j))
            values.append(UNARY[name](a) if name in UNARY else BINARY[name](a, b))
        out, a, b = (values[n % len(values)] for n in self.ends)
        return out + 0.0 * x, Pair(a + 0.0 * x, 0.5 * b)


number = st.integers(0, 11)
written = st.builds(
    Written,
    lines=st.lists(
        st.tuples(st.sampled_from([*UNARY, *BINARY]), number, number), min_size=1, max_size=9
    ).map(tuple),
    ends=st.tuples(number, number, number),
)
thorough = settings(max_examples=250, deadline=None, derandomize=True, database=None)


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@thorough
@given(neuron=written, trained=st.booleans())
def test_the_derivative_of_random_programs_equals_that_of_autograd(neuron, trained):
    assert program(neuron, neuron.rest(X)) is not None
    found = []
    for ours in (True, False):
        x, a, b = (draw(s, k).requires_grad_() for k, s in enumerate(((3, 2, 4), (2, 4), (2, 4))))
        k = torch.linspace(0.3, 0.9, 4, dtype=torch.float64, requires_grad=trained)
        bound = neuron.bind({"k": k})
        run = (lambda *given: generated(*given, TorchBackend())) if ours else reference
        out, end = run(x, Pair(a, b), bound)
        loss = sum((part * draw(part.shape, 9)).sum() for part in (out, *end))
        given_ = (x, a, b, *((k,) if trained else ()))
        grads = torch.autograd.grad(loss, given_, allow_unused=True)
        filled = [torch.zeros_like(n) if g is None else g for g, n in zip(grads, given_)]
        found.append(((out, *end), filled))
    for p, q in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    for p, q in zip(found[0][1], found[1][1], strict=True):
        scale = max(1.0, float(q.abs().max()))
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11 * scale)


# What is kept


def assert_in_order(found, order: Sequence[int], known):
    """Check that each node of an order needs only what is there already."""
    known = set(known)
    for index in order:
        op, args = found.nodes[index]
        assert op not in LEAVES
        assert index not in known  # nothing is computed that is kept
        for node in args:
            kind = found.nodes[node].op
            assert node in known or kind in ("constant", "parameter", "adjoint"), (index, op)
        known.add(index)
    return known


def assert_computable(found):
    given_ = {found.x, *found.before}
    for order in (found.step, found.step_kept):
        known = assert_in_order(found, order, given_)
        assert known >= {found.out, *found.after} - {
            n for n, node in enumerate(found.nodes) if node.op in ("constant", "parameter")
        }
    assert {slot.node for slot in found.tape} <= known
    known = assert_in_order(found, found.step_back, {slot.node for slot in found.tape})
    for end in (found.g_x, *found.g_before, *found.g_parameters):
        assert end is None or end in known or found.nodes[end].op in ("adjoint", "constant")


def size(found):
    return sum(BYTES[slot.kind] for slot in found.tape)


def smallest(found):
    """Return the bytes of the smallest tape: a minimum cut through nodes, by maximum flow."""
    nodes = found.nodes

    def reaches(kinds):
        made = []
        for op, args in nodes:
            made.append(op in kinds if op in LEAVES else any(made[n] for n in args))
        return made

    moves, backward = reaches(("input", "state")), reaches(("adjoint",))
    ends = [n for n in (found.g_x, *found.g_before, *found.g_parameters) if n is not None]
    waiting, seen, asked = list(ends), set(), set()
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        if backward[index]:
            waiting += () if nodes[index].op in LEAVES else nodes[index].args
        elif moves[index]:
            asked.add(index)
    source, sink, many = 2 * len(nodes), 2 * len(nodes) + 1, 10**6
    edges = [(2 * n + 1, sink, many) for n in asked]
    for n, (op, args) in enumerate(nodes):
        if moves[n]:
            flag = op in (*SPIKES, *COMPARISONS, "cast")
            edges.append((2 * n, 2 * n + 1, 1 if flag else 4))
            if op in LEAVES:
                edges.append((source, 2 * n, many))
            else:
                edges += [(2 * m + 1, 2 * n, many) for m in args if moves[m]]
    if not asked:
        return 0
    rows, columns, weights = zip(*edges)
    shape = (sink + 1, sink + 1)
    graph = coo_array((np.array(weights, dtype=np.int32), (rows, columns)), shape=shape).tocsr()
    return int(maximum_flow(graph, source, sink).flow_value)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(neuron=written, trained=st.sampled_from([(), (0,)]))
def test_tapes_of_random_programs_are_cuts_and_none_is_smaller(neuron, trained):
    bound = neuron.bind({"k": torch.tensor(0.8)})
    found = program(bound, neuron.rest(X), trained=trained)
    assert_computable(found)
    assert size(found) == smallest(found)


MODELS = [
    LIF(v_rest=0.1),
    *(
        LIF(reset=reset, reset_time=time, detach_reset=detach)
        for reset, time, detach in itertools.product(
            ["soft", "zero", "value"], ["same", "next", "after"], [True, False]
        )
    ),
    LIF(refractory=2, detach_reset=False),
    ALIF(),
    ALIF(reset="value", detach_reset=False),
    CUBA(detach_reset=False),
    Izhikevich(substeps=1),
    Izhikevich(detach_reset=False),
    SigmaDelta(),
    Rectified(),
    LeakyIntegrator(),
    SynapticIntegrator(),
]


@pytest.mark.parametrize("neuron", MODELS, ids=str)
@pytest.mark.parametrize("memory", ["full", "lean"])
def test_tapes_of_models_are_cuts_and_none_is_smaller(neuron, memory):
    found = program(neuron, neuron.rest(X), memory=memory)
    assert_computable(found)
    full = program(neuron, neuron.rest(X))
    assert size(full) == smallest(full)
    assert size(found) <= size(full)


@pytest.mark.parametrize(
    ("neuron", "full", "lean"),
    [
        (LIF(), ["real"], ["half"]),
        (IF(), ["real"], ["half"]),
        (LIF(v_rest=0.3, scale_input=True), ["real"], ["half"]),
        (LIF(reset="zero"), ["real"], ["flag", "half"]),
        (LIF(reset="none", reset_time="next"), ["real"], ["half"]),
        (LIF(reset="value", detach_reset=False), ["real"], ["real"]),
        (LIF(surrogate=StraightThrough()), [], []),
        (ALIF(), ["real"], ["half"]),
        (CUBA(), ["real"], ["half"]),
        (LeakyIntegrator(), [], []),
        (SynapticIntegrator(), [], []),
        (SigmaDelta(), ["flag"], ["flag"]),
        (Rectified(), ["flag"], ["flag"]),
    ],
    ids=str,
)
def test_what_models_keep(neuron, full, lean):
    for memory, kinds in (("full", full), ("lean", lean)):
        tape = program(neuron, neuron.rest(X), memory=memory).tape
        assert sorted(slot.kind for slot in tape) == kinds


def test_of_equal_tapes_the_one_that_leaves_least_to_compute_is_kept():
    found = program(LIF(), LIF().rest(X))
    assert "sigmoid" in [node.op for node in found.nodes]
    assert "sigmoid" not in [found.nodes[n].op for n in found.step_back]


@pytest.mark.parametrize("neuron", [LIF(reset="zero"), ALIF(), CUBA(), LeakyIntegrator()], ids=str)
def test_a_trained_parameter_may_need_more_and_one_that_is_not_trained_does_not(neuron):
    name = "kappa" if isinstance(neuron, LeakyIntegrator) else "beta"
    bound = neuron.bind({name: torch.tensor(0.8)})
    sizes = [size(program(bound, neuron.rest(X), trained=t)) for t in ((), (0,))]
    assert sizes[0] == size(program(neuron, neuron.rest(X)))
    assert sizes[1] > sizes[0]


def test_a_long_step_is_cut_in_a_moment():
    """Many substeps make many cuts to look at, and nobody waits for them."""
    neuron = Izhikevich(refractory=2, substeps=3, d=1.2345)
    start = time.process_time()
    assert_computable(program(neuron, neuron.rest(X)))
    assert time.process_time() - start < 2.0


# What is shared


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (LIF(beta=0.8), LIF(beta=0.7, v_th=0.3)),
        (LIF(v_rest=0.1), LIF(v_rest=-0.2)),
        (LIF(), IF()),
        (LIF(surrogate=Triangle()), LIF(surrogate=Triangle(height=2.0, width=0.3))),
        (LIF(refractory=1), LIF(refractory=7)),
        (LIF(beta=torch.tensor(0.5)), LIF(beta=torch.full((3,), 0.5))),
    ],
)
def test_neurons_that_differ_in_numbers_share_their_structure(a, b):
    p, q = (program(neuron, neuron.rest(X)) for neuron in (a, b))
    assert p.key == q.key
    assert p.nodes == q.nodes


def test_neurons_that_differ_in_structure_do_not():
    made = [
        LIF(), LIF(v_rest=0.1), LIF(strict=False), LIF(detach_reset=False), LIF(reset="zero"),
        LIF(reset="none"), LIF(reset_time="next"), LIF(surrogate=Triangle()), ALIF(), CUBA(),
        LIF(beta=torch.tensor(0.5)), LIF(v_th=torch.tensor(0.5)),
    ]  # fmt: skip
    keys = [program(neuron, neuron.rest(X)).key for neuron in made]
    keys += [program(made[0], made[0].rest(X), memory="lean").key]
    keys += [program(made[-2], made[0].rest(X), trained=(0,)).key]
    assert len(set(keys)) == len(keys)


def test_the_same_neuron_has_the_same_program_and_another_number_another():
    a, b, c = (program(LIF(beta=beta), LIF().rest(X)) for beta in (0.8, 0.8, 0.7))
    assert a is b
    assert a is not c
    assert (0.8 in a.constants, 0.7 in c.constants) == (True, True)


def test_programs_that_are_kept_do_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(module, "_KNOWN", {})
    for k in range(1100):
        neuron = LeakyIntegrator(kappa=k / 1100)
        program(neuron, neuron.rest(X))
    assert 0 < len(module._KNOWN) <= 1001
