"""The gradient from factors: every side equals the explicit projection; the cheapest is taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from spikecl.networks import Complement, Factor

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SIDES = ["rows", "gradient", "coordinates"]
sizes = st.integers(1, 12)


def problem(rows, n, m, k, *, given="", seed=0):
    """Return a projected factor and the explicit projection of its gradient."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(rows, n, generator=generator, dtype=torch.float64)
    delta = torch.randn(rows, m, generator=generator, dtype=torch.float64)
    h, free = q[:, :k].T, q[:, k:]
    projector = torch.eye(n, dtype=torch.float64) - h.T @ h
    extra = {}
    if "z" in given:
        extra["z"] = x @ free
    if "residual" in given:
        extra["residual"] = x @ projector
    factor = Factor(x, delta, x).project(Complement(h, free), **extra)
    return factor, torch.einsum("ro,ri,ij->oj", delta, x, projector)


def multiplications(factor, side, monkeypatch):
    """Count the multiplications of matrix products that a side really does."""
    with monkeypatch.context() as patch, FlopCounterMode(display=False) as counter:
        patch.setattr(Factor, "cheapest", lambda self: side)
        factor.gradient()
    return counter.get_total_flops() // 2


def test_without_a_subspace_it_is_the_product():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    delta = torch.tensor([[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]])
    factor = Factor(x, delta, x)
    assert factor.gradient().tolist() == [[7.0, 10.0], [3.0, 4.0], [-1.0, -2.0]]
    assert factor.bias_gradient().tolist() == [3.0, 1.0, -1.0]


def test_projecting_makes_a_new_factor():
    x = torch.rand(3, 4)
    factor = Factor(x, torch.rand(3, 2), torch.rand(5, 4))
    complement = Complement(torch.eye(4)[:1], torch.eye(4)[:, 1:])
    projected = factor.project(complement)
    assert factor.outside is None
    assert projected.outside is complement
    assert projected.transmitted is factor.transmitted
    assert torch.equal(projected.bias_gradient(), factor.bias_gradient())
    assert projected.project(complement, z=x[:, 1:]).z is not None
    assert projected.project(complement, z=x[:, 1:]).project(complement).z is None


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("given", ["", "z", "residual", "z residual"])
@pytest.mark.parametrize("k", [0, 1, 3, 5, 6, 8, 9])
def test_every_side_equals_the_explicit_projection(side, given, k, monkeypatch):
    factor, expected = problem(7, 9, 4, k, given=given)
    monkeypatch.setattr(Factor, "cheapest", lambda self: side)
    torch.testing.assert_close(factor.gradient(), expected, rtol=1e-10, atol=1e-10)


@quick
@given(sizes, sizes, sizes, st.floats(0, 1), st.sampled_from(["", "z", "residual", "z residual"]))
def test_the_chosen_side_equals_the_explicit_projection(rows, n, m, share, given):
    factor, expected = problem(rows, n, m, round(share * n), given=given)
    torch.testing.assert_close(factor.gradient(), expected, rtol=1e-9, atol=1e-9)
    inside = factor.gradient() @ factor.outside.basis.T
    assert not len(factor.outside.basis) or float(inside.abs().max()) < 1e-9


@settings(quick, max_examples=30)
@given(sizes, sizes, sizes, st.floats(0, 1), st.sampled_from(["", "z", "residual", "z residual"]))
def test_cheapest_takes_the_fewest_multiplications(rows, n, m, share, given):
    with pytest.MonkeyPatch.context() as patch:
        factor, _ = problem(rows, n, m, round(share * n), given=given)
        counted = {side: multiplications(factor, side, patch) for side in SIDES}
    assert counted[factor.cheapest()] == min(counted.values())


@pytest.mark.parametrize(
    ("shape", "given", "side"),
    [
        ((2, 100, 50, 10), "", "rows"),  # a small batch: project its rows
        ((500, 100, 10, 10), "", "gradient"),  # many rows, few outputs: project the gradient
        ((500, 100, 90, 95), "", "coordinates"),  # little is free: work in it
        ((64, 100, 50, 60), "z", "coordinates"),
        ((64, 100, 50, 20), "residual", "rows"),
    ],
)
def test_each_side_is_the_cheapest_somewhere(shape, given, side):
    assert problem(*shape, given=given)[0].cheapest() == side


@pytest.mark.parametrize("k", [0, 2, 4, 5, 7, 9])
def test_residual_and_coordinates(k):
    factor, _ = problem(6, 9, 3, k)
    outside, x = factor.outside, factor.x
    before = x.clone()
    expected = x - x @ outside.basis.T @ outside.basis
    torch.testing.assert_close(outside.residual(x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        outside.coordinates(x) @ outside.free.T, expected, rtol=1e-10, atol=1e-12
    )
    assert outside.coordinates(x).shape == (6, 9 - k)
    assert torch.equal(x, before)


@pytest.mark.parametrize("k", [1, 3, 5, 6, 8])
def test_the_residual_is_taken_on_its_cheaper_side(k):
    factor, _ = problem(6, 9, 3, k)
    with FlopCounterMode(display=False) as counter:
        factor.outside.residual(factor.x)
    assert counter.get_total_flops() // 2 == 2 * 6 * 9 * min(k, 9 - k)


@pytest.mark.parametrize("k", range(1, 9))
def test_rows_make_use_of_coordinates_where_that_is_cheaper(k, monkeypatch):
    factor, _ = problem(6, 9, 3, k, given="z")
    projection = min(2 * 6 * 9 * min(k, 9 - k), 6 * 9 * (9 - k))
    assert multiplications(factor, "rows", monkeypatch) == projection + 6 * 3 * 9


def test_a_full_subspace_leaves_nothing():
    factor, _ = problem(5, 4, 3, 4)
    assert float(factor.gradient().abs().max()) < 1e-12
