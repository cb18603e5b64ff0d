"""The rule against numpy loops and eigh; the coordinates against the uncompressed form."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spikecl.continual import Hlop
from spikecl.continual.projection.lateral import LateralWeights, hebbian
from spikecl.networks import Complement, Factor
from spikecl.storage import join, split


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def orthonormal(rows: int, n: int, seed: int) -> torch.Tensor:
    """Rows by Gram-Schmidt in numpy's QR, not by the library."""
    return torch.from_numpy(np.linalg.qr(rand(n, rows, seed=seed).numpy())[0].T.copy())


def oja_loop(h, m, x, *, rate, iterations, silence=0.0):
    """Oja's subspace rule, sample by sample and neuron by neuron; no row grows beyond length 1."""
    h, m, x = h.numpy().copy(), m.numpy().copy(), x.numpy()
    total = max(sum(float(row @ row) for row in x) / len(x), silence)
    for _ in range(iterations):
        change = np.zeros_like(h)
        for row in x:
            y = h @ row
            back = np.zeros_like(row)
            for response, weights in zip(y, h):
                back += response * weights
            for i, response in enumerate(y):
                change[i] += response * (row - back)
        m = 0.9 * m + 0.1 * change / len(x) / total
        h = h + rate * m
        for i, row in enumerate(h):
            length = np.sqrt(row @ row)
            if length > 1:
                h[i] = row / length
    return h, m


def lateral_of(n: int, old: torch.Tensor | None, rows: int, seed: int = 0) -> LateralWeights:
    """Lateral weights of float64 with some old rows, and rows begun."""
    lateral = LateralWeights(n, torch.zeros(1, dtype=torch.float64))
    if old is not None:
        lateral.old = old
    lateral.begin(rows, gen(seed))
    return lateral


def full(lateral: LateralWeights) -> torch.Tensor:
    """The learning rows in the coordinates of the presynaptic neurons."""
    if lateral.outside is not None and lateral.compact:
        return lateral.new @ lateral.outside.free.T
    return lateral.new


# ---- the rule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "n", "k"),
    [(3, 9, 4), (200, 6, 3), (5, 5, 1), (40, 7, 7)],
    ids=["few rows", "many rows", "one row", "square"],
)
@pytest.mark.parametrize("scale", [0.02, 1.0], ids=["free rows", "bounded rows"])
@pytest.mark.parametrize("silence", [0.0, 500.0], ids=["loud", "silent"])
def test_hebbian_equals_the_sample_by_sample_loop(count, n, k, scale, silence):
    x, h, m = rand(count, n, seed=1) * 3, scale * rand(k, n, seed=2), scale * rand(k, n, seed=3)
    how = {"rate": 0.7, "iterations": 5, "silence": silence}
    got = hebbian(h, m, x, **how)
    assert (float(got[0].norm(dim=1).max()) > 1 - 1e-12) == (scale == 1)
    for value, expected in zip(got, oja_loop(h, m, x, **how)):
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-12)


def test_both_forms_of_the_rule_are_used_and_agree():
    """Repeating every row leaves the covariance as it was, but makes its form the cheaper one."""
    x, h, m = rand(3, 8, seed=1), rand(2, 8, seed=2), torch.zeros(2, 8, dtype=torch.float64)
    products = {}

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (torch.Tensor.matmul, torch.Tensor.__matmul__):
                products.setdefault(self.name, []).append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    results = {}
    for name, rows in (("rows", x), ("covariance", x.repeat(100, 1))):
        with Count() as mode:
            mode.name = name
            results[name] = hebbian(h, m, rows, rate=0.5, iterations=4)
    assert sum(300 in shape for shape in products["covariance"]) == 1  # x^T x, once
    assert sum(3 in shape for shape in products["rows"]) > 4  # the rows in every iteration
    for a, b in zip(results["rows"], results["covariance"]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_the_speed_does_not_depend_on_the_scale_of_the_activity():
    x, h, m = rand(30, 6, seed=1), orthonormal(2, 6, seed=2), rand(2, 6, seed=3)
    small = hebbian(h, m, x, rate=1.0, iterations=5)
    large = hebbian(h, m, 1000 * x, rate=1.0, iterations=5)
    for a, b in zip(small, large):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rate_iterations_and_batches():
    x, h, m = rand(30, 6, seed=1), orthonormal(2, 6, seed=2) / 2, torch.zeros(2, 6).double()
    once = hebbian(h, m, x, rate=1.0, iterations=1)
    again = hebbian(*once, x, rate=1.0, iterations=1)
    twice = hebbian(h, m, x, rate=1.0, iterations=2)
    torch.testing.assert_close(again[0], twice[0], rtol=0, atol=1e-15)
    half = hebbian(h, m, x, rate=0.5, iterations=1)
    torch.testing.assert_close((half[0] - h) * 2, once[0] - h, rtol=0, atol=1e-14)


def test_a_silent_batch_stays_finite():
    h, m = orthonormal(2, 6, seed=2), rand(2, 6, seed=3)
    new, momentum = hebbian(h, m, torch.zeros(4, 6).double(), rate=1.0, iterations=3)
    torch.testing.assert_close(momentum, m * 0.9**3, rtol=1e-14, atol=0)
    assert new.isfinite().all()


@pytest.mark.parametrize("old", [0, 8], ids=["first", "second"])
@pytest.mark.parametrize(("rate", "least"), [(Hlop().rate, 0), (0.1, 0.9)], ids=["default", "low"])
def test_one_sample_at_a_time_the_rows_stay_bounded(old, rate, least):
    """At a low rate they stay near orthonormal; at any rate they are when they are frozen."""
    lateral = lateral_of(64, orthonormal(old, 64, seed=7) if old else None, 16)
    for step in range(200):
        x = rand(1, 64, seed=step)
        lateral.learn(lateral.seen(x), x, rate=rate, iterations=Hlop().iterations)
        assert lateral.new.norm(dim=1).max() < 1 + 1e-12
    assert torch.linalg.svdvals(lateral.new).min() > least
    lateral.end()
    gram = lateral.old @ lateral.old.T
    torch.testing.assert_close(gram, torch.eye(old + 16).double(), rtol=0, atol=1e-11)


def test_converges_to_the_principal_subspace_with_orthonormal_rows():
    n, k = 12, 4
    basis = orthonormal(n, n, seed=1)
    scales = torch.tensor([5, 4, 3.5, 3] + [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]).double()
    x = rand(400, n, seed=2) * scales @ basis
    h, m = orthonormal(k, n, seed=3), torch.zeros(k, n).double()
    for _ in range(80):
        h, m = hebbian(h, m, x, rate=1.0, iterations=5)
    _, vectors = np.linalg.eigh((x.T @ x / len(x)).numpy())
    top = vectors[:, -k:]
    np.testing.assert_allclose((h.T @ h).numpy(), top @ top.T, atol=1e-6)
    np.testing.assert_allclose((h @ h.T).numpy(), np.eye(k), atol=1e-6)


# ---- the rows of a synapse ----------------------------------------------------------------------


def test_first_rows_start_orthonormal_and_project_nothing():
    lateral = lateral_of(7, None, 3)
    assert lateral.new.shape == (3, 7) and lateral.free == 7 and lateral.outside is None
    torch.testing.assert_close(lateral.new @ lateral.new.T, torch.eye(3).double())
    assert torch.equal(lateral.momentum, torch.zeros(3, 7).double())
    factor = Factor(rand(5, 7, seed=1), rand(5, 2, seed=2), rand(5, 7, seed=1))
    assert lateral.project(factor, None) is factor
    assert torch.equal(lateral.seen(factor.x), factor.x)


@pytest.mark.parametrize("old", [2, 3, 4, 8], ids=["wide", "still wide", "compact", "narrow"])
def test_new_rows_start_orthonormal_in_the_complement(old):
    rows = orthonormal(old, 12, seed=5)
    lateral = lateral_of(12, rows, 3)
    new = full(lateral)
    assert new.shape == (3, 12) and lateral.free == 12 - old
    assert lateral.new.shape[1] == (12 - old if lateral.compact else 12)
    torch.testing.assert_close(new @ new.T, torch.eye(3).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(new @ rows.T, torch.zeros(3, old).double(), rtol=0, atol=1e-13)


def test_rows_depend_on_the_generator_alone():
    a, b, c = (lateral_of(9, None, 3, seed=seed).new for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.allclose(a, c)


def test_the_smaller_side_is_kept():
    """Coordinates once the free directions are at most twice the old rows."""
    assert not lateral_of(12, orthonormal(3, 12, seed=1), 2).compact
    assert lateral_of(12, orthonormal(4, 12, seed=1), 2).compact


@pytest.mark.parametrize("old", [4, 9])
def test_compact_coordinates_equal_the_uncompressed_form(old):
    rows, x = orthonormal(old, 12, seed=5), rand(30, 12, seed=6)
    compact, plain = (lateral_of(12, rows, 2) for _ in range(2))
    assert compact.compact
    plain.new, plain.momentum = full(plain), torch.zeros(2, 12).double()
    plain.compact = False
    for step in range(4):
        for lateral in (compact, plain):
            lateral.learn(lateral.seen(x + step), x + step, rate=0.8, iterations=5)
    torch.testing.assert_close(full(compact), plain.new, rtol=0, atol=1e-12)
    defects = [lateral.end() for lateral in (compact, plain)]
    assert defects[0] == pytest.approx(defects[1], abs=1e-12)
    assert defects[0] > 1e-6  # so that the comparison means something
    spans = [lateral.old.T @ lateral.old for lateral in (compact, plain)]
    torch.testing.assert_close(*spans, rtol=0, atol=1e-12)


@pytest.mark.parametrize("old", [2, 5])
def test_learning_equals_a_loop_on_what_the_old_rows_leave(old):
    rows, x = orthonormal(old, 12, seed=5), rand(20, 12, seed=6)
    lateral = lateral_of(12, rows, 3)
    start = full(lateral)
    lateral.learn(lateral.seen(x), x, rate=1.0, iterations=5)
    left = x - (x @ rows.T) @ rows
    expected, _ = oja_loop(start, torch.zeros_like(start), left, rate=1.0, iterations=5)
    np.testing.assert_allclose(full(lateral).numpy(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        full(lateral) @ rows.T, torch.zeros(3, old).double(), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("old", [2, 5, 9])
@pytest.mark.parametrize("shared", [True, False], ids=["with rows", "without"])
@pytest.mark.parametrize("traces", [False, True], ids=["spikes", "traces"])
def test_project_is_the_textbook_projection(old, shared, traces):
    rows = orthonormal(old, 12, seed=5)
    lateral = lateral_of(12, rows, 2)
    x, sent, delta = rand(20, 12, seed=6), rand(30, 12, seed=8), rand(20, 3, seed=7)
    factor = Factor(x, delta, sent if traces else x)
    seen = lateral.seen(factor.transmitted) if shared else None
    gradient = (delta.T @ x).numpy()
    expected = gradient @ (np.eye(12) - rows.numpy().T @ rows.numpy())
    got = lateral.project(factor, seen).gradient()
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose((got @ rows.T).numpy(), 0, atol=1e-12)


@pytest.mark.parametrize("old", [3, 5, 8])
def test_seen_rows_are_the_same_directions_in_either_coordinates(old):
    rows, x = orthonormal(old, 12, seed=5), rand(20, 12, seed=6)
    lateral = lateral_of(12, rows, 2)
    seen = lateral.seen(x)
    assert seen.shape[1] == (lateral.free if lateral.compact else 12)
    back = seen @ lateral.outside.free.T if lateral.compact else seen
    torch.testing.assert_close(back, x - (x @ rows.T) @ rows, rtol=0, atol=1e-12)


def test_factor_gives_one_gradient_on_every_side(monkeypatch):
    rows = orthonormal(4, 10, seed=1)
    free = torch.linalg.qr(rows.T, mode="complete").Q[:, 4:]
    x, delta = rand(6, 10, seed=2), rand(6, 3, seed=3)
    outside, picked = Complement(rows, free), {}
    for side in ("rows", "gradient", "coordinates"):
        monkeypatch.setattr(Factor, "cheapest", lambda self, side=side: side)
        for known in ({}, {"z": x @ free}, {"residual": x - (x @ rows.T) @ rows}):
            got = Factor(x, delta, x).project(outside, **known).gradient()
            picked[side, *known] = got
            torch.testing.assert_close(got, picked["rows",], rtol=0, atol=1e-13)
    torch.testing.assert_close(
        picked["rows",], delta.T @ x @ (torch.eye(10).double() - rows.T @ rows), atol=1e-13, rtol=0
    )


# ---- several tasks ------------------------------------------------------------------------------


def test_rows_stay_orthonormal_over_tasks_until_the_synapse_is_full():
    n, lateral = 10, LateralWeights(10, torch.zeros(1, dtype=torch.float64))
    counts = []
    for task in range(5):
        before = lateral.old
        lateral.begin(3, gen(task))
        x = rand(50, n, seed=task)
        lateral.learn(lateral.seen(x), x, rate=1.0, iterations=5)
        assert lateral.end() < 0.1
        counts.append(len(lateral.old))
        assert torch.equal(lateral.old[: len(before)], before)  # frozen
        gram = lateral.old @ lateral.old.T
        torch.testing.assert_close(gram, torch.eye(counts[-1]).double(), rtol=0, atol=1e-12)
    assert counts == [3, 6, 9, 10, 10] and lateral.free == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "old",
    [
        2,
        5,
    ],
    ids=["wide", "compact"],
)
def test_new_rows_stay_in_the_complement_when_the_activity_is_old(old, dtype):
    """A task taught twice: the old rows leave nothing of its activity but rounding errors."""
    rows = orthonormal(old, 12, seed=5).to(dtype)
    lateral = LateralWeights(12, torch.zeros(1, dtype=dtype))
    lateral.old = rows
    lateral.begin(3, gen(0))
    for step in range(60):
        x = rand(30, old, seed=step).to(dtype) @ rows
        lateral.learn(lateral.seen(x), x, rate=1.0, iterations=5)
    assert (full(lateral) @ rows.T).abs().max() < 1e-4
    lateral.end()
    gram = lateral.old @ lateral.old.T
    torch.testing.assert_close(gram, torch.eye(old + 3).to(dtype), rtol=0, atol=1e-4)


@pytest.mark.parametrize("old", [0, 2, 5], ids=["first", "wide", "compact"])
def test_the_frozen_rows_span_what_was_learned(old):
    lateral = lateral_of(9, orthonormal(old, 9, seed=3) if old else None, 3)
    x = rand(7, 9, seed=4)
    lateral.learn(lateral.seen(x), x, rate=3.0, iterations=5)
    learned = full(lateral)
    before = float((learned @ learned.T - torch.eye(3).double()).abs().max())
    assert lateral.end() == pytest.approx(before) != 0
    new = lateral.old[old:]
    torch.testing.assert_close(new @ new.T, torch.eye(3).double(), rtol=0, atol=1e-12)
    assert (learned - (learned @ new.T) @ new).abs().max() < 1e-12


def test_rows_that_strayed_are_brought_back_before_they_are_frozen():
    lateral = lateral_of(12, orthonormal(2, 12, seed=3), 3)
    assert not lateral.compact
    lateral.new = lateral.new + 0.3 * rand(3, 12, seed=4)
    lateral.end()
    gram = lateral.old @ lateral.old.T
    torch.testing.assert_close(gram, torch.eye(5).double(), rtol=0, atol=1e-12)


def test_a_full_synapse_is_well_defined():
    lateral = lateral_of(5, orthonormal(5, 5, seed=1), 4)
    assert lateral.free == 0 and len(lateral.new) == 0
    x, delta = rand(6, 5, seed=2), rand(6, 3, seed=3)
    gradient = lateral.project(Factor(x, delta, x), None).gradient()
    torch.testing.assert_close(gradient, torch.zeros(3, 5).double(), rtol=0, atol=1e-13)
    assert lateral.end() == 0.0
    assert lateral.old.shape == (5, 5)
    more = lateral_of(5, orthonormal(3, 5, seed=1), 4)  # more rows than directions are free
    assert len(more.new) == 2 and full(more).shape == (2, 5)
    none = lateral_of(5, orthonormal(2, 5, seed=1), 0)
    none.end()
    assert none.old.shape == (2, 5)


@pytest.mark.parametrize("old", [0, 2, 5])
@pytest.mark.parametrize("ended", [False, True], ids=["learning", "frozen"])
def test_state_goes_round_and_training_goes_on_alike(old, ended):
    x = rand(20, 9, seed=1)
    lateral = lateral_of(9, orthonormal(old, 9, seed=2) if old else None, 2)
    lateral.learn(lateral.seen(x), x, rate=1.0, iterations=2)
    if ended:
        lateral.end()
    tensors, values = split(lateral.state_dict())
    fresh = LateralWeights(9, torch.zeros(1, dtype=torch.float64))
    fresh.load_state_dict(join(tensors, json.loads(json.dumps(values))))
    assert fresh.nbytes() == lateral.nbytes()
    assert fresh.free == lateral.free
    for one in (lateral, fresh):
        if ended:
            one.begin(2, gen(7))
        one.learn(one.seen(x + 1), x + 1, rate=1.0, iterations=2)
    assert torch.equal(fresh.new, lateral.new)
    assert torch.equal(fresh.momentum, lateral.momentum)
    factor = Factor(x, rand(20, 3, seed=3), x)
    assert torch.equal(
        fresh.project(factor, None).gradient(), lateral.project(factor, None).gradient()
    )
    assert fresh.end() == lateral.end()
    assert torch.equal(fresh.old, lateral.old)


def test_nbytes_counts_rows_momentum_and_complement():
    lateral = lateral_of(10, None, 3)
    assert lateral.nbytes() == 8 * (30 + 30)
    lateral.end()
    assert lateral.nbytes() == 8 * 30
    lateral.begin(2, gen(1))  # 3 old rows of 10, 2 + 2 learning, a free basis 10 x 7
    assert not lateral.compact
    assert lateral.nbytes() == 8 * (30 + 20 + 20 + 70)
    lateral.end()
    lateral.begin(2, gen(1))  # 5 old; 2 + 2 learning in 5 coordinates; 10 x 5
    assert lateral.compact
    assert lateral.nbytes() == 8 * (50 + 10 + 10 + 50)


@pytest.mark.parametrize("old", [0, 2, 6])
def test_type_of_the_weights_is_kept(old):
    lateral = LateralWeights(9, torch.zeros(1))
    if old:
        lateral.old = orthonormal(old, 9, seed=1).float()
    lateral.begin(2, gen(0))
    lateral.learn(lateral.seen(torch.ones(3, 9)), torch.ones(3, 9), rate=1.0, iterations=1)
    lateral.end()
    assert lateral.old.dtype == torch.float32 and lateral.old.shape == (old + 2, 9)
