"""Subspaces: orthonormal rows that span what was added, and what is left beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.continual.projection.subspace import Subspace, complement, count_for_energy, principal

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def draw(count, n, *, rank=None, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, n))
    if rank is not None:
        rows = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, n))
    return torch.from_numpy(rows)


def empty(n, dtype=torch.float64):
    return Subspace(n, torch.zeros(1, dtype=dtype))


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def span(rows):
    """Return the projector on the span of rows, by singular vectors."""
    _, s, v = np.linalg.svd(rows.numpy(), full_matrices=False)
    v = v[s > 1e-9 * max(s.max(), 1e-300)] if len(s) else v
    return torch.from_numpy(v.T @ v)


def assert_orthonormal(rows):
    close(rows @ rows.T, torch.eye(len(rows), dtype=rows.dtype), 1e-13)


# ---- extend -------------------------------------------------------------------------------------


@quick
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=5),
    st.integers(1, 12),
    st.integers(0, 99),
)
def test_it_spans_what_was_added_and_no_more(blocks, n, seed):
    """Blocks of any rank, again and again, against singular vectors of all rows."""
    subspace, every, added = empty(n), torch.zeros(0, n).double(), 0
    for i, (count, rank) in enumerate(blocks):
        rows = draw(count, n, rank=rank, seed=seed + 7 * i)
        added += subspace.extend(rows)
        every = torch.cat([every, rows])
        assert_orthonormal(subspace.rows)
    assert added == len(subspace.rows) <= n
    close(subspace.rows.T @ subspace.rows, span(every), 1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: [a, a, b],
        lambda a, b: [a, 0 * a, b],
        lambda a, b: [0 * a, 0 * b, b],
        lambda a, b: [a, b, a + b, a - 3 * b],
        lambda a, b: [a, a + 1e-3 * b],
    ],
    ids=["twice", "zero between", "zeros first", "sums", "all but alike"],
)
def test_rows_that_depend_on_earlier_ones_hide_no_later_one(make):
    """A QR without pivoting gives them a direction by chance, and takes it from those behind."""
    a, b = draw(2, 10)
    rows = torch.stack(make(a, b))
    subspace = empty(10)
    expected = int(torch.linalg.matrix_rank(rows))
    assert subspace.extend(rows) == expected
    assert_orthonormal(subspace.rows)
    assert float(subspace.residual(rows).abs().max()) < 1e-12


def test_directions_beyond_what_is_free_are_dropped_the_last_ones_first():
    first, more = draw(3, 5), draw(4, 5, seed=1)
    subspace = empty(5)
    subspace.extend(first)
    known = subspace.rows.clone()
    assert subspace.extend(torch.cat([known, more])) == 2  # what is known takes no room
    assert torch.equal(subspace.rows[:3], known) and subspace.full
    rest = more - more @ known.T @ known
    close(subspace.rows[3:].T @ subspace.rows[3:], span(rest[:2]))
    assert subspace.extend(draw(3, 5, seed=2)) == 0


def test_no_more_is_kept_than_rows():
    subspace = empty(9)
    rows = draw(6, 9, rank=2)
    for _ in range(2):
        subspace.extend(rows)
        assert subspace.rows.untyped_storage().nbytes() == subspace.nbytes() == 2 * 9 * 8


def test_the_first_rows_come_first():
    """Which direction is which is kept: what is cut off later is the least."""
    rows = torch.diag(torch.tensor([3.0, 2.0, 1.0])).double()
    subspace = empty(3)
    subspace.extend(rows)
    close(subspace.rows.abs(), torch.eye(3).double())


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_what_is_new_does_not_depend_on_the_scale(scale):
    rows = draw(4, 9, rank=2)
    subspace = empty(9)
    assert subspace.extend(rows * scale) == 2
    assert_orthonormal(subspace.rows)


def test_rounding_is_no_direction():
    """In single precision too: the sum of two rows is nothing new."""
    rows = draw(6, 20).float()
    subspace = empty(20, torch.float32)
    assert subspace.extend(rows) == 6
    assert subspace.extend(rows.flip(0) + rows) == 0
    assert subspace.extend(rows[:0]) == 0
    gram = subspace.rows @ subspace.rows.T
    torch.testing.assert_close(gram, torch.eye(6), rtol=0, atol=1e-6)


# ---- what is left -------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 7, 8])
def test_the_complement_is_the_rest(k):
    subspace = empty(8)
    subspace.extend(draw(k, 8))
    complement, x = subspace.complement(), draw(5, 8, seed=3)
    q, h = complement.free, complement.basis
    assert q.shape == (8, 8 - k) and torch.equal(h, subspace.rows)
    close(q.T @ q, torch.eye(8 - k).double())
    close(h @ q, torch.zeros(k, 8 - k).double())
    expected = x @ (torch.eye(8).double() - h.T @ h)
    close(subspace.residual(x), expected)
    close(complement.residual(x), expected)
    close(q @ q.T, torch.eye(8).double() - h.T @ h)
    assert float((subspace.residual(x) @ h.T).abs().max()) < 1e-13


def test_nothing_taken_nothing_held_back():
    subspace, x = empty(4), draw(3, 4)
    assert subspace.complement() is None
    assert torch.equal(subspace.residual(x), x)
    assert subspace.report() == {"rows": 0, "free": 4, "full": False}
    assert subspace.nbytes() == 0


def test_full_is_said_and_leaves_nothing():
    subspace = empty(4)
    subspace.extend(draw(9, 4))
    assert subspace.full and subspace.free == 0
    assert subspace.report() == {"rows": 4, "free": 0, "full": True}
    assert subspace.nbytes() == 8 * 4 * 4
    assert float(subspace.residual(draw(3, 4, seed=1)).abs().max()) < 1e-14
    assert float(subspace.complement().residual(draw(3, 4, seed=1)).abs().max()) < 1e-14


# ---- principal directions -----------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_principal_directions_are_singular_vectors(rank):
    x = draw(50, 9, rank=rank)
    values, vectors = principal(x.T @ x)
    _, s, v = np.linalg.svd(x.numpy(), full_matrices=False)
    close(values[:rank], torch.from_numpy(s[:rank] ** 2), 1e-9)
    assert not values[rank:].any()  # not even rounding
    assert (values.diff() <= 0).all()
    assert_orthonormal(vectors)
    close(vectors[:rank].T @ vectors[:rank], torch.from_numpy(v[:rank].T @ v[:rank]), 1e-9)
    for i in range(rank):
        close(x.T @ (x @ vectors[i]), values[i] * vectors[i], 1e-9)


def test_principal_directions_in_single_precision_are_computed_in_double():
    x = draw(50, 9, rank=3).float()
    values, vectors = principal(x.T @ x)
    assert values.dtype == vectors.dtype == torch.float64
    assert int((values > 0).sum()) == 3  # the floor is that of the precision that came in


def test_nothing_has_no_direction():
    values, _ = principal(torch.zeros(4, 4).double())
    assert not values.any()


@quick
@given(
    st.lists(st.integers(0, 6), max_size=6),
    st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0]),
    st.integers(0, 5),
)
def test_the_smallest_count_that_reaches_the_energy(sizes, energy, kept):
    values = torch.tensor(sorted(sizes, reverse=True), dtype=torch.float64)
    total = float(sum(sizes) + kept)
    found = count_for_energy(values, energy, total, float(kept))
    reached = [kept + sum(sorted(sizes, reverse=True)[:k]) for k in range(len(sizes) + 1)]
    wanted = [k for k, e in enumerate(reached) if e >= energy * total * (1 - 1e-9)]
    assert found == wanted[0]


def test_energy_that_cannot_be_reached_takes_what_there_is():
    values = torch.tensor([2.0, 1.0, 0.0, 0.0]).double()
    assert count_for_energy(values, 1.0, 10.0) == 2
    assert count_for_energy(values, 0.9, 0.0) == 0
    assert count_for_energy(values, 0.5, 3.0, kept=1.5) == 0


def test_the_spectrum_of_the_off_by_one():
    """0.60, 0.39, 0.01 at 97 %: two directions, where the authors' code of GPM keeps one."""
    assert count_for_energy(torch.tensor([0.60, 0.39, 0.01]).double(), 0.97, 1.0) == 2


@pytest.mark.parametrize("k", [1, 7])
def test_a_complement_holds_no_more_than_it_counts(k):
    """One free direction, as a view, would hold all of Q."""
    free = complement(draw(k, 8)).free
    assert free.untyped_storage().nbytes() == free.numel() * free.element_size()
    assert free.is_contiguous()
