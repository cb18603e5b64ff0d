"""The loss against its formula in plain Python."""

import math

import pytest
import torch

from spikecl.encoding import cross_entropy

LOGITS = [[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]
LABELS = [2, 0]


def by_hand(rows, labels):
    losses = [
        math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in zip(rows, labels)
    ]
    return sum(losses) / len(losses)


def test_value_is_the_mean_negative_log_probability():
    loss = cross_entropy(torch.tensor(LOGITS, dtype=torch.float64), torch.tensor(LABELS))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(by_hand(LOGITS, LABELS), rel=1e-12)


def test_gradient_is_probability_minus_target_over_the_batch():
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    cross_entropy(logits, torch.tensor(LABELS)).backward()
    expected = torch.softmax(logits.detach(), 1)
    expected[[0, 1], LABELS] -= 1
    torch.testing.assert_close(logits.grad, expected / 2)


def test_classes_at_minus_infinity_have_no_part():
    masked = torch.tensor([[1.0, -math.inf, 0.5]], requires_grad=True)
    loss = cross_entropy(masked, torch.tensor([2]))
    assert loss.item() == pytest.approx(by_hand([[1.0, 0.5]], [1]), rel=1e-6)
    loss.backward()
    assert masked.grad[0, 1] == 0
    assert bool(masked.grad.isfinite().all())
