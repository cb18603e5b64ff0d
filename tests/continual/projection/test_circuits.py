"""Circuits against closed forms, plain loops and the other names of the same matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikecl.continual.projection import circuits
from spikecl.continual.projection.circuits import (
    one_shot,
    settle,
    spike_counts,
    spiking_one_shot,
    suppression,
)
from spikecl.errors import UsageError


def rows_of(count, n, *, rank=None, seed=0):
    """Return rows, some directions of which are used more than others."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((count, rank or n)) @ rng.standard_normal((rank or n, n))
    return torch.from_numpy(made * np.linspace(1.5, 0.05, n))


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


# ---- the matrix and its names -------------------------------------------------------------------


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (7, 7), (9, 4), (12, 1)])
@pytest.mark.parametrize("alpha", [1e-3, 0.3, 50.0])
def test_symmetric_between_nothing_and_all_and_by_eigenvalues(n, rank, alpha):
    x = rows_of(40, n, rank=rank)
    c = x.T @ x
    p = suppression(c, alpha)
    assert float((p - p.T).abs().max()) < 1e-15
    values = np.linalg.eigvalsh(p.numpy())
    assert values.min() > 0 and values.max() <= 1 + 1e-10  # rounding of a condition of 1e6
    used, v = np.linalg.eigh(c.numpy())
    close(p, torch.from_numpy(v @ np.diag(alpha / (alpha + used.clip(0))) @ v.T), 1e-9)
    lost = float(n - p.trace())  # ridge regression's effective degrees of freedom
    assert lost == pytest.approx(float((used / (used + alpha)).sum()), abs=1e-8)


def test_nothing_used_leaves_all_exactly():
    assert torch.equal(suppression(torch.zeros(5, 5).double(), 0.4), eye(5))
    assert torch.equal(suppression(torch.zeros(5, 5), 0.4), torch.eye(5))


@pytest.mark.parametrize("alpha", [0.05, 2.0])
def test_four_names_of_one_matrix(alpha):
    """CAB's free conceptor, ridge's complement, recursive least squares, one-shot inhibition."""
    x = rows_of(60, 8)
    p = suppression(x.T @ x, alpha)

    def conceptor(r):  # He & Jaeger: R (R + aperture^-2 I)^-1
        aperture = alpha**-0.5
        return r @ torch.linalg.inv(r + aperture**-2 * eye(8))

    def both(a, b):  # their OR
        r, q = (torch.linalg.solve(eye(8) - c, c) for c in (a, b))
        return eye(8) - torch.linalg.inv(eye(8) + r + q)

    first, second = x[:35], x[35:]
    free = eye(8) - both(conceptor(first.T @ first), conceptor(second.T @ second))
    close(p, free)
    ridge = eye(8) - x.T @ torch.linalg.solve(x @ x.T + alpha * eye(60), x)
    close(p, ridge)
    close(p, _recursive(x, alpha))
    close(p, eye(8) - one_shot(torch.zeros(8, 8).double(), x, alpha))


def _recursive(rows, alpha, p=None):
    """Recursive least squares in numpy, one row after the other (Zeng et al. 2019)."""
    p = np.eye(rows.shape[1]) if p is None else p.numpy().copy()
    for x in rows.numpy():
        k = p @ x
        p -= np.outer(k, k) / (alpha + x @ k)
    return torch.from_numpy(p)


def test_one_shot_is_the_rule_row_by_row():
    """The printed rule, and after each row the closed form."""
    x, alpha = rows_of(30, 6), 0.7
    lateral = torch.zeros(6, 6).double()
    for k in range(30):
        left = x[k] - lateral @ x[k]
        lateral = lateral + torch.outer(left, left) / (alpha + x[k] @ left)
        close(one_shot(torch.zeros(6, 6).double(), x[: k + 1], alpha), lateral, 1e-12)
        close(eye(6) - lateral, suppression(x[: k + 1].T @ x[: k + 1], alpha), 1e-12)


@pytest.mark.parametrize("cuts", [(1,) * 300, (128, 172), (129, 171), (300,), (7, 0, 293)])
def test_batches_make_no_difference(cuts):
    x, alpha = rows_of(300, 10), 3.0
    lateral, start = torch.zeros(10, 10).double(), 0
    for count in cuts:
        lateral = one_shot(lateral, x[start : start + count], alpha)
        start += count
    close(eye(10) - lateral, suppression(x.T @ x, alpha))
    assert torch.equal(lateral, lateral.T)


def test_it_goes_on_from_any_inhibition_and_order_does_not_matter():
    x, y = rows_of(50, 6), rows_of(50, 6, seed=1)
    before = one_shot(torch.zeros(6, 6).double(), x, 0.5)
    kept = before.clone()
    after = one_shot(before, y, 0.5)
    close(eye(6) - after, _recursive(y, 0.5, eye(6) - kept))
    close(one_shot(one_shot(torch.zeros(6, 6).double(), y.flip(0), 0.5), x.flip(0), 0.5), after)
    assert torch.equal(before, kept)  # nothing is changed in place


def test_many_rows_stay_exact():
    """No error builds up over ten thousand rows."""
    x = rows_of(10_000, 12)
    p = eye(12) - one_shot(torch.zeros(12, 12).double(), x, 5.0)
    exact = suppression(x.T @ x, 5.0)
    assert float((p - exact).norm() / exact.norm()) < 1e-8
    assert float(torch.linalg.eigvalsh(p)[0]) > 0


# ---- spikes -------------------------------------------------------------------------------------


def _fires(drive, steps, quantum):
    """Integrate and fire, one neuron, in plain Python."""
    v, total, count = 0.0, 0.0, 0
    for _ in range(steps):
        v += drive / steps
        if abs(v) > quantum / 2:
            spike = quantum if v > 0 else -quantum
            v, total, count = v - spike, total + spike, count + 1
    return total, count


@pytest.mark.parametrize(("steps", "quantum"), [(1, 0.5), (4, 0.3), (32, 0.1), (50, 2.0)])
def test_counts_are_those_of_integrate_and_fire(steps, quantum):
    drive = torch.from_numpy(np.random.default_rng(2).standard_normal(200))
    sent, events = spike_counts(drive, steps, quantum)
    plain = [_fires(float(d), steps, quantum) for d in drive]
    close(sent, torch.tensor([total for total, _ in plain], dtype=torch.float64), 1e-12)
    assert events == sum(count for _, count in plain)
    assert events > 0


@pytest.mark.parametrize(("steps", "quantum"), [(4, 0.3), (32, 0.1), (7, 1.0)])
def test_counts_are_within_half_a_quantum_where_spikes_keep_up(steps, quantum):
    drive = torch.linspace(-1.5, 1.5, 1001).double() * steps * quantum
    sent, _ = spike_counts(drive, steps, quantum)
    whole = sent / quantum
    close(whole, whole.round(), 1e-9)
    keeps_up = drive.abs() <= steps * quantum
    assert float((sent - drive)[keeps_up].abs().max()) <= quantum / 2 + 1e-12
    assert float((sent - drive)[keeps_up].abs().max()) > 0.4 * quantum  # and no better
    close(sent[~keeps_up].abs(), torch.full_like(sent[~keeps_up], steps * quantum), 1e-9)
    quiet = drive.abs() < quantum / 2 * (1 - 1e-9)
    assert not sent[quiet].any()  # no spike, no event


@pytest.mark.parametrize("quantum", [0.05, 0.4, 1.5])
@pytest.mark.parametrize("alpha", [0.05, 5.0])
def test_a_spiking_row_leaves_the_error_of_its_spikes_too_much(quantum, alpha):
    """``P' = P - k k^T/g + e e^T/g``: exact, and the outer product of the error on top."""
    x = rows_of(25, 7)
    lateral = one_shot(torch.zeros(7, 7).double(), rows_of(20, 7, seed=3), alpha)
    for row in x:
        p = eye(7) - lateral
        drive = p @ row
        sent, _ = spike_counts(drive, 16, quantum)
        gain = alpha + row @ drive
        expected = (
            p - torch.outer(drive, drive) / gain + torch.outer(sent - drive, sent - drive) / gain
        )
        made = spiking_one_shot(lateral, row[None], alpha, steps=16, quantum=quantum)
        close(eye(7) - made.lateral, expected, 1e-12)
        lateral = made.lateral


@pytest.mark.parametrize(
    ("alpha", "quantum", "steps"), [(0.4, 0.3, 4), (0.1, 1.0, 8), (0.02, 0.2, 16)]
)
def test_spiking_inhibition_never_turns_plasticity_negative(alpha, quantum, steps):
    """With the plain outer product of spikes the second and third blow up to -8,000 and -5,000."""
    rng = np.random.default_rng(4)
    x = torch.from_numpy((rng.random((400, 20)) < 0.2).astype(float))
    size = float(x.square().mean())
    made = spiking_one_shot(
        torch.zeros(20, 20).double(),
        x,
        alpha * size * len(x),
        steps=steps,
        quantum=quantum * size**0.5,
    )
    p = eye(20) - made.lateral
    assert float((p - p.T).abs().max()) < 1e-14
    values = torch.linalg.eigvalsh(p)
    assert float(values[0]) > 0 and float(values[-1]) <= 1


def test_the_spiking_form_comes_to_the_exact_one_with_finer_spikes():
    """The error of P is of second order in that of the spikes."""
    x, alpha = rows_of(100, 10), 20.0
    exact = suppression(x.T @ x, alpha)
    off, wrong = [], []
    for quantum, steps in ((0.8, 16), (0.4, 32), (0.2, 64)):
        made = spiking_one_shot(
            torch.zeros(10, 10).double(), x, alpha, steps=steps, quantum=quantum
        )
        off.append(float((eye(10) - made.lateral - exact).norm() / exact.norm()))
        wrong.append(made.error)
    assert all(a > 2 * b for a, b in zip(off, off[1:]))
    assert all(a > 1.5 * b for a, b in zip(wrong, wrong[1:]))
    assert off[-1] < 0.03


def test_more_steps_help_until_spikes_keep_up():
    x, alpha = rows_of(100, 6), 20.0  # up to 9.5: 96 steps always do
    exact = suppression(x.T @ x, alpha)
    off = []
    for steps in (2, 8, 32, 96, 120):
        made = spiking_one_shot(torch.zeros(6, 6).double(), x, alpha, steps=steps, quantum=0.1)
        off.append(float((eye(6) - made.lateral - exact).norm()))
    assert off[0] > 5 * off[1] > 10 * off[2] and off[2] >= off[3] - 1e-3
    assert off[4] == pytest.approx(off[3], rel=0.05)


def test_spikes_without_error_are_the_exact_rule(monkeypatch):
    monkeypatch.setattr(circuits, "spike_counts", lambda drive, steps, quantum: (drive, 0.0))
    x = rows_of(80, 9)
    made = spiking_one_shot(torch.zeros(9, 9).double(), x, 0.6, steps=1, quantum=1.0)
    close(eye(9) - made.lateral, suppression(x.T @ x, 0.6))
    assert made.error == 0


def test_what_it_says_of_its_spikes():
    x, start = rows_of(40, 6), one_shot(torch.zeros(6, 6).double(), rows_of(9, 6, seed=5), 2.0)
    kept, lateral = start.clone(), start.clone()
    made = spiking_one_shot(start, x, 2.0, steps=12, quantum=0.3)
    count, wrong, size = 0, 0.0, 0.0
    for row in x:
        drive = row - lateral @ row
        plain = [_fires(float(d), 12, 0.3) for d in drive]
        sent = torch.tensor([total for total, _ in plain], dtype=torch.float64)
        count += sum(c for _, c in plain)
        wrong, size = wrong + float((sent - drive).norm() ** 2), size + float(drive.norm() ** 2)
        lateral = spiking_one_shot(lateral, row[None], 2.0, steps=12, quantum=0.3).lateral
    close(made.lateral, lateral, 1e-12)
    assert made.events == pytest.approx(count / 40)
    assert made.error == pytest.approx((wrong / size) ** 0.5)
    assert torch.equal(start, kept)


def test_what_is_said_of_parts_is_what_is_said_of_all():
    x = rows_of(40, 6)
    whole = spiking_one_shot(torch.zeros(6, 6).double(), x, 2.0, steps=12, quantum=0.3)
    parts = spiking_one_shot(torch.zeros(6, 6).double(), x[:7], 2.0, steps=12, quantum=0.3)
    for rows in (x[7:30], x[30:]):
        made = spiking_one_shot(parts.lateral, rows, 2.0, steps=12, quantum=0.3)
        parts = made.after(parts)
    assert torch.equal(parts.lateral, whole.lateral) and parts.events == whole.events
    assert parts.error == pytest.approx(whole.error, rel=1e-12)


def test_no_rows_say_nothing():
    made = spiking_one_shot(torch.eye(3), torch.zeros(0, 3), 1.0, steps=3, quantum=0.1)
    assert torch.equal(made.lateral, torch.eye(3)) and (made.events, made.error) == (0, 0)
    silent = spiking_one_shot(torch.zeros(3, 3), torch.zeros(5, 3), 1.0, steps=3, quantum=0.1)
    assert not silent.lateral.any() and silent.events == 0


# ---- the recurrent circuit ----------------------------------------------------------------------


def test_settling_is_the_iteration_in_closed_form():
    """``r_k = x P (I - (I - h (I + M))^k)``."""
    x, alpha, step = rows_of(20, 6), 4.0, 0.05
    m = x.T @ x / alpha
    p = torch.linalg.inv(eye(6) + m)
    for k in (1, 2, 7):
        shrunk = torch.linalg.matrix_power(eye(6) - step * (eye(6) + m), k)
        found = settle(x[:5], x.T @ x, alpha, step=step, steps=k)
        close(found.response, x[:5] @ p @ (eye(6) - shrunk), 1e-8)
        error = (found.response - x[:5] @ p).norm() / (x[:5] @ p).norm()
        assert found.error[-1] == pytest.approx(float(error)) and len(found.error) == k


@pytest.mark.parametrize("alpha", [0.1, 3.0])
def test_it_settles_below_the_stable_step_and_not_above(alpha):
    x = rows_of(30, 6)
    c = x.T @ x
    bound = 2 / (1 + float(torch.linalg.eigvalsh(c / alpha)[-1]))
    for share, settles in ((0.5, True), (0.98, True), (1.02, False)):
        made = settle(x, c, alpha, step=share * bound, steps=3000)
        if settles:
            assert made.error[-1] < 0.6 * made.error[0] and made.error[-1] < made.error[999]
        else:
            assert made.error[-1] > 1e6 and made.steps is None


def test_steps_to_one_percent():
    """One mode: the error is ``|1 - h (1 + m)|^k``."""
    x, c = torch.ones(1, 1).double(), torch.full((1, 1), 3.0).double()
    made = settle(x, c, 1.0, step=0.05, steps=60)  # each step leaves 0.8
    assert made.steps == 21  # 0.8^20 = 0.0115, 0.8^21 = 0.0092
    assert made.error[:3] == pytest.approx([0.8, 0.64, 0.512])
    assert float(made.response) == pytest.approx(0.25, abs=1e-4)
    assert settle(x, c, 1.0, step=0.05, steps=20).steps is None
    assert settle(x, c, 1.0, step=0.25, steps=1).steps == 1  # its own inverse: at once


def test_it_is_slow_where_use_is_uneven():
    """One-shot inhibition is exact after one pass; the recurrent circuit far off after 2,000."""
    x = rows_of(200, 10)
    c = x.T @ x
    step = 1.9 / (1 + float(torch.linalg.eigvalsh(c)[-1]))
    made = settle(x, c, 1.0, step=step, steps=2000)
    assert made.steps is None and made.error[-1] > 0.1
    lateral = one_shot(torch.zeros(10, 10).double(), x, 1.0)
    close(x @ (eye(10) - lateral), x @ suppression(c, 1.0))


@pytest.mark.parametrize("size", [1e15, float("nan"), float("inf")])
def test_activity_that_leaves_no_inverse_is_named(size):
    rows = size * torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).double()
    for call in (
        lambda: suppression(-rows.T @ rows, 1.0),
        lambda: one_shot(torch.zeros(3, 3).double(), rows, 1.0),
    ):
        with pytest.raises(UsageError, match="so large beside the strength.*scale the input"):
            call()
