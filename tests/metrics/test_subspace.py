"""Geometry of subspaces against scipy and explicit projections."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.metrics import captured_energy, orthonormality_defect, principal_angles

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 10_000)


def rows(k, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, n, generator=generator, dtype=torch.float64)


@quick
@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_angles_equal_scipy(a, b, seed):
    left, right = rows(a, 6, seed), rows(b, 6, seed + 1)
    found = principal_angles(left, right)
    expected = scipy.linalg.subspace_angles(left.T.numpy(), right.T.numpy())
    np.testing.assert_allclose(found.numpy(), np.sort(expected), atol=1e-7)
    assert bool((found.diff() >= 0).all())


def test_angles_by_hand():
    e = torch.eye(4, dtype=torch.float64)
    turned = math.cos(0.3) * e[0] + math.sin(0.3) * e[2]
    found = principal_angles(torch.stack([e[0], e[1]]), torch.stack([7 * turned, -2 * e[3]]))
    assert found.tolist() == pytest.approx([0.3, math.pi / 2])


def test_angles_of_a_space_with_itself_are_zero_and_finite():
    a = rows(3, 8).float()
    found = principal_angles(a, 5 * a.flip(0))
    assert bool(found.isfinite().all())
    assert float(found.max()) < 2e-3  # acos near 1: the square root of float32's precision


@quick
@given(st.integers(1, 6), seeds)
def test_energy_equals_the_explicit_projection(k, seed):
    h, x = rows(k, 6, seed), rows(5, 6, seed + 1)
    projector = np.linalg.pinv(h.numpy()) @ h.numpy()
    expected = np.square(x.numpy() @ projector).sum() / np.square(x.numpy()).sum()
    assert captured_energy(h, x) == pytest.approx(expected, rel=1e-9)


def test_energy_at_the_extremes():
    e = torch.eye(3)
    assert captured_energy(3 * e[:2], e[:1]) == pytest.approx(1)
    assert captured_energy(e[:2], e[2:]) == pytest.approx(0)
    assert captured_energy(e[:1], torch.ones(1, 3)) == pytest.approx(1 / 3)
    assert captured_energy(e[:0], e) == 0.0
    assert captured_energy(e, torch.zeros(2, 3)) == 0.0


def test_rows_that_depend_on_each_other_span_no_more_than_they_do():
    e = torch.eye(3)
    twice = torch.stack([e[0], e[0]])
    assert captured_energy(twice, e[1:]) == pytest.approx(0, abs=1e-6)
    assert captured_energy(twice, e[:1]) == pytest.approx(1)
    assert principal_angles(twice, e[1:2]).tolist() == pytest.approx([math.pi / 2])


def test_defect_of_orthonormal_rows():
    q = torch.linalg.qr(rows(6, 6)).Q
    assert orthonormality_defect(q[:4]) < 1e-12
    assert orthonormality_defect(q[:0]) == 0.0


def test_defect_is_the_largest_deviation():
    e = torch.eye(3)
    assert orthonormality_defect(2 * e[:2]) == pytest.approx(3)
    assert orthonormality_defect(0.5 * e[:2]) == pytest.approx(0.75)
    skewed = torch.stack([e[0], 0.6 * e[0] + 0.8 * e[1]])
    assert orthonormality_defect(skewed) == pytest.approx(0.6)
