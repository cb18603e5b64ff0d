"""The rules against loops over samples and neurons, eigh, and what is known of where they rest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import spikecl
from spikecl.continual import Hlop
from spikecl.continual.projection.hebbian import Neurons, hebbian
from spikecl.metrics import captured_energy, principal_angles

RULES = ["oja", "sanger", "foldiak"]
each_rule = pytest.mark.parametrize("rule", RULES)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def orthonormal(rows: int, n: int, seed: int) -> torch.Tensor:
    """Rows by Gram-Schmidt in numpy's QR, not by the library."""
    return torch.from_numpy(np.linalg.qr(rand(n, rows, seed=seed).numpy())[0].T.copy())


def symmetric(k: int, seed: int, size: float) -> torch.Tensor:
    w = size * rand(k, k, seed=seed)
    w = (w + w.T) / 2
    return w - torch.diag(w.diagonal())


def neurons_of(rule: str, k: int, n: int, *, scale: float = 1.0, inner: float = 0.1) -> Neurons:
    """Neurons in the middle of learning."""
    w = symmetric(k, 4, inner) if rule == "foldiak" else torch.zeros(0, 0).double()
    return Neurons(scale * orthonormal(k, n, 2), scale * rand(k, n, seed=3) / 3, w)


def loop(neurons, x, *, rule, rate, iterations, silence=0.0, code=lambda y: y):
    """A rule, sample by sample and neuron by neuron; no row grows beyond length 1."""
    h, m, w = (t.numpy().copy() for t in neurons)
    x = x.numpy()
    k, n = h.shape
    whole = max(sum(float(row @ row) for row in x) / len(x), silence)
    for _ in range(iterations):
        hebb, both = np.zeros((k, n)), np.zeros((k, k))
        for row in x:
            y = np.zeros(k)
            for _ in range(40 if rule == "foldiak" else 1):  # the circuit settles
                y = h @ row + (w @ y if rule == "foldiak" else 0)
            y = code(y)
            for i in range(k):
                hebb[i] += y[i] * row / len(x)
                for j in range(k):
                    both[i, j] += y[i] * y[j] / len(x)
        change, turn = np.zeros((k, n)), np.zeros((k, k))
        own = [max(both[i, i], whole / 1000) for i in range(k)]
        for i in range(k):
            met = {"oja": range(k), "sanger": range(i + 1), "foldiak": [i]}[rule]
            change[i] = hebb[i] - sum(both[i, j] * h[j] for j in met)
            change[i] /= whole if rule == "oja" else own[i]
            for j in range(k):
                turn[i, j] = 0 if i == j else both[i, j] / math.sqrt(own[i] * own[j])
        if rule == "foldiak":
            w = np.clip(w - 0.015 * rate * turn, -1, 1)
        m = 0.9 * m + 0.1 * change
        h = h + {"oja": 1, "sanger": 0.03, "foldiak": 0.005}[rule] * rate * m
        for i, row in enumerate(h):
            h[i] = row / max(1, math.sqrt(row @ row))
    return h, m, w


# ---- one batch ----------------------------------------------------------------------------------


@each_rule
@pytest.mark.parametrize(
    ("count", "n", "k"),
    [(3, 9, 4), (30, 6, 3), (5, 5, 1), (20, 5, 5)],
    ids=["few rows", "many rows", "one row", "square"],
)
@pytest.mark.parametrize(
    ("scale", "silence"), [(0.02, 0.0), (2.0, 0.0), (1.0, 500.0)], ids=["free", "bounded", "silent"]
)
def test_equals_the_loop_over_samples_and_neurons(rule, count, n, k, scale, silence):
    x, start = rand(count, n, seed=1) * 3, neurons_of(rule, k, n, scale=scale)
    how = {"rule": rule, "rate": 0.7, "iterations": 5, "silence": silence}
    got = hebbian(start, x, **how)
    assert float(got.weights.norm(dim=1).max()) < (0.9 if scale < 1 else 1 + 1e-12)
    for value, expected in zip(got, loop(start, x, **how)):
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-11)


@each_rule
def test_with_spikes_it_equals_the_loop_too(rule):
    """And the covariance is not used, however many rows there are."""
    x, start = rand(50, 6, seed=1), neurons_of(rule, 3, 6)
    how = {"rule": rule, "rate": 0.7, "iterations": 4}
    got = hebbian(start, x, **how, response=lambda y: (2 * y).round() / 2)
    expected = loop(start, x, **how, code=lambda y: np.round(2 * y) / 2)
    for value, wanted in zip(got, expected):
        np.testing.assert_allclose(value.numpy(), wanted, rtol=0, atol=1e-11)
    plain = hebbian(start, x, **how)
    assert float((plain.weights - got.weights).abs().max()) > 1e-4


@each_rule
def test_both_forms_are_used_and_agree(rule):
    """Repeating every row leaves the covariance as it was, but makes its form the cheaper one."""
    x, start = rand(3, 8, seed=1), neurons_of(rule, 2, 8)
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
            results[name] = hebbian(start, rows, rule=rule, rate=0.5, iterations=4)
    assert sum(300 in shape for shape in products["covariance"]) == 1  # x^T x, once
    assert sum(3 in shape for shape in products["rows"]) > 4  # the rows in every iteration
    for a, b in zip(results["rows"], results["covariance"]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@each_rule
def test_the_speed_does_not_depend_on_the_scale_of_the_activity(rule):
    x, start = rand(30, 6, seed=1), neurons_of(rule, 2, 6)
    small = hebbian(start, x, rule=rule, rate=1.0, iterations=5)
    large = hebbian(start, 1000 * x, rule=rule, rate=1.0, iterations=5)
    for a, b in zip(small, large):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@each_rule
def test_rate_iterations_and_batches(rule):
    x, start = rand(30, 6, seed=1), neurons_of(rule, 2, 6, scale=0.5)
    once = hebbian(start, x, rule=rule, rate=1.0, iterations=1)
    again = hebbian(once, x, rule=rule, rate=1.0, iterations=1)
    twice = hebbian(start, x, rule=rule, rate=1.0, iterations=2)
    torch.testing.assert_close(again.weights, twice.weights, rtol=0, atol=1e-14)
    half = hebbian(start, x, rule=rule, rate=0.5, iterations=1)
    for a, b, c in zip(half[::2], once[::2], start[::2]):
        torch.testing.assert_close((a - c) * 2, b - c, rtol=0, atol=1e-14)


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_silent_batch_stays_finite_and_teaches_nothing(rule, dtype):
    start = Neurons(*(t.to(dtype) for t in neurons_of(rule, 2, 6)))
    made = hebbian(start, torch.zeros(4, 6, dtype=dtype), rule=rule, rate=1.0, iterations=3)
    torch.testing.assert_close(made.momentum, start.momentum * 0.9**3, rtol=1e-6, atol=0)
    assert made.weights.isfinite().all() and torch.equal(made.inner, start.inner)
    none = Neurons(start.weights, torch.zeros_like(start.momentum), start.inner)
    made = hebbian(none, torch.zeros(4, 6, dtype=dtype), rule=rule, rate=1.0, iterations=3)
    torch.testing.assert_close(made.weights, none.weights)


@each_rule
@pytest.mark.parametrize("rate", [0.1, Hlop().rate, 30.0])
@pytest.mark.parametrize("count", [1, 5])
def test_rows_stay_bounded_whatever_the_rate_and_the_batch(rule, rate, count):
    neurons = Neurons.begin(orthonormal(16, 64, 2), rule)
    for step in range(60):
        neurons = hebbian(neurons, rand(count, 64, seed=step), rule=rule, rate=rate, iterations=5)
        assert neurons.weights.norm(dim=1).max() < 1 + 1e-12
        assert neurons.momentum.abs().max() < 1e3
    if neurons.inner.numel():
        assert neurons.inner.abs().max() <= 1
        assert torch.equal(neurons.inner.diagonal(), torch.zeros(16).double())
    if rate < 1:
        assert torch.linalg.svdvals(neurons.weights).min() > {"oja": 0.9}.get(rule, 0.1)


def test_neurons_that_inhibit_each_other_settle():
    """Where they do, at the solution; else at something finite."""
    h, w = orthonormal(3, 8, 1), symmetric(3, 2, 0.3)
    expected = np.linalg.inv(np.eye(3) - w.numpy()) @ h.numpy()
    np.testing.assert_allclose(Neurons(h, h, w).settled().numpy(), expected, atol=1e-12)
    strong = Neurons(h, h, symmetric(3, 2, 3.0))
    assert np.linalg.eigvalsh(np.eye(3) - strong.inner.numpy()).min() < 0
    assert 1 < float(torch.linalg.matrix_norm(strong.settled(), 2)) <= 100 + 1e-9
    alone = Neurons.begin(h, "oja")
    assert alone.inner.shape == (0, 0) and alone.settled() is h


# ---- where they rest ----------------------------------------------------------------------------


def spectrum(values, *, count=600, seed=1):
    """Rows with exactly these eigenvalues of ``<x x^T>``, and the eigenvectors as rows."""
    n = len(values)
    basis = orthonormal(n, n, seed)
    white = torch.from_numpy(np.linalg.qr(rand(count, n, seed=seed + 1).numpy())[0])
    return white * count**0.5 * torch.tensor(values).double().sqrt() @ basis, basis


VALUES = [6, 5, 4, 3, 2, *np.linspace(1, 0.1, 15)]


def degrees(a, b) -> float:
    return math.degrees(float(principal_angles(a, b)[-1]))


@pytest.mark.parametrize(
    ("rule", "batches"), [("oja", 40), ("sanger", 120), ("foldiak", 500)], ids=RULES
)
def test_finds_the_principal_subspace_within_a_degree(rule, batches):
    """With a gap of 2; five iterations for each batch."""
    x, basis = spectrum(VALUES)
    neurons = Neurons.begin(orthonormal(5, 20, 3), rule)
    assert degrees(neurons.weights, basis[:5]) > 45
    for _ in range(batches):
        neurons = hebbian(neurons, x, rule=rule, rate=1.0, iterations=5)
    assert degrees(neurons.weights, basis[:5]) < 1


def rested(rule):
    x, basis = spectrum(VALUES)
    neurons = Neurons.begin(orthonormal(5, 20, 3), rule)
    for _ in range(40):
        neurons = hebbian(neurons, x, rule=rule, rate=10.0, iterations=50)
    return x, basis[:5], neurons


def test_oja_rests_at_orthonormal_rows():
    _, top, neurons = rested("oja")
    h = neurons.weights.numpy()
    np.testing.assert_allclose(h @ h.T, np.eye(5), atol=1e-8)
    np.testing.assert_allclose(h.T @ h, top.numpy().T @ top.numpy(), atol=1e-6)


def test_on_the_way_rows_are_nearest_to_orthonormal_under_oja():
    x, _ = spectrum(VALUES)
    defects = {}
    for rule in RULES:
        neurons = Neurons.begin(orthonormal(5, 20, 3), rule)
        for _ in range(20):
            neurons = hebbian(neurons, x, rule=rule, rate=0.1, iterations=10)
            gram = neurons.weights @ neurons.weights.T - torch.eye(5).double()
            defects[rule] = max(defects.get(rule, 0), float(gram.abs().max()))
    assert 2 * defects["oja"] < min(defects["sanger"], defects["foldiak"]), defects


def test_sanger_rests_at_the_eigenvectors_in_order():
    _, top, neurons = rested("sanger")
    cosines = (neurons.weights @ top.T).abs().numpy()
    np.testing.assert_allclose(cosines, np.eye(5), atol=1e-6)


def test_foldiak_rests_at_uncorrelated_responses_of_oblique_rows():
    """``H H^T = I - W``, so that ``H^T y`` is the orthogonal projection all the same."""
    x, top, neurons = rested("foldiak")
    h, w, m = neurons.weights, neurons.inner, neurons.settled()
    np.testing.assert_allclose((h @ h.T).diagonal().numpy(), 1, atol=1e-6)
    np.testing.assert_allclose((h @ h.T).numpy(), np.eye(5) - w.numpy(), atol=1e-5)
    assert float(w.abs().max()) > 0.05  # so that the above says something
    y = x @ m.T
    cov = (y.T @ y / len(x)).numpy()
    correlation = cov / np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    np.testing.assert_allclose(correlation, np.eye(5), atol=1e-5)
    np.testing.assert_allclose((h.T @ m).numpy(), (top.T @ top).numpy(), atol=1e-5)


def test_components_of_small_variance_are_not_left_behind():
    """Sanger's and Földiák's rules learn by each neuron's own variance, Oja's by that of all."""
    x, basis = spectrum([100, 0.4, 0.3, *np.linspace(0.1, 0.01, 9)])
    energy = {}
    for rule in RULES:
        neurons = Neurons.begin(orthonormal(3, 12, 3), rule)
        for _ in range(200):
            neurons = hebbian(neurons, x, rule=rule, rate=1.0, iterations=5)
        energy[rule] = degrees(neurons.weights, basis[:3])
    assert max(energy["sanger"], energy["foldiak"]) < 10 < energy["oja"], energy


@each_rule
@pytest.mark.parametrize("k", [5, 20])
def test_on_digits_most_of_what_that_many_rows_can_hold(k, rule):
    """Batches of 64 images, 5 iterations each, 10 times over the set."""
    x = torch.from_numpy(spikecl.load_data("digits").x_train.reshape(-1, 64) / 16).double()
    neurons = Neurons.begin(orthonormal(k, 64, 3), rule)
    for epoch in range(10):
        order = torch.randperm(len(x), generator=gen(epoch))
        for batch in x[order].split(64):
            neurons = hebbian(neurons, batch, rule=rule, rate=1.0, iterations=5)
    values = np.linalg.eigvalsh((x.T @ x).numpy())[::-1]
    best = values[:k].sum() / values.sum()
    assert captured_energy(neurons.weights, x) > 0.95 * best
    if rule == "oja":  # the others' rows become orthonormal when they are frozen
        gram = (neurons.weights @ neurons.weights.T).numpy()
        np.testing.assert_allclose(gram, np.eye(k), atol=1e-2)
    frozen = torch.linalg.qr(neurons.weights.T).Q.T
    np.testing.assert_allclose((frozen @ frozen.T).numpy(), np.eye(k), atol=1e-6)
