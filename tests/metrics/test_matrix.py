"""The accuracy matrix against sums written out by hand and the GEM paper's definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.metrics import AccuracyMatrix

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
NAN = float("nan")
# rows: untrained, after event 0, 1, 2; columns: test sets
HAND = [
    [0.10, 0.20, 0.30],
    [0.90, 0.25, 0.20],
    [0.60, 0.80, 0.45],
    [0.70, 0.50, 0.95],
]


def matrix(rows, taught=None):
    values = np.array(rows, dtype=np.float64)
    return AccuracyMatrix(values, taught or [(j,) for j in range(values.shape[1])])


def test_by_hand():
    m = matrix(HAND)
    assert m.final.tolist() == [0.70, 0.50, 0.95]
    assert m.acc() == pytest.approx((0.70 + 0.50 + 0.95) / 3)
    assert m.learning_accuracy() == pytest.approx((0.90 + 0.80 + 0.95) / 3)
    assert m.bwt() == pytest.approx(((0.70 - 0.90) + (0.50 - 0.80)) / 2)
    assert m.forgetting() == pytest.approx(((0.90 - 0.70) + (0.80 - 0.50)) / 2)
    assert m.fwt() == pytest.approx(((0.25 - 0.20) + (0.45 - 0.30)) / 2)


def test_summary_has_all_scalars():
    m = matrix(HAND)
    assert m.summary() == {
        "acc": m.acc(),
        "bwt": m.bwt(),
        "fwt": m.fwt(),
        "forgetting": m.forgetting(),
        "learning_accuracy": m.learning_accuracy(),
    }


def test_forgetting_counts_the_best_since_the_first_lesson():
    m = matrix([[0.99, 0.1, 0.1], [0.6, 0.97, 0.1], [0.8, 0.7, 0.1], [0.5, 0.6, 0.9]])
    # 0.99 and 0.97 were measured before the tasks were taught
    assert m.forgetting() == pytest.approx(((0.8 - 0.5) + (0.7 - 0.6)) / 2)


def test_forgetting_is_negative_when_an_old_task_got_better():
    m = matrix([[0.1, 0.1], [0.5, 0.1], [0.75, 0.9]])
    assert m.forgetting() == pytest.approx(-0.25)
    assert m.bwt() == pytest.approx(0.25)


@quick
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_definitions_of_gem(tasks, seed):
    r = np.random.default_rng(seed).random((tasks + 1, tasks))
    m = matrix(r.tolist())
    b, big_r = r[0], r[1:]  # the paper's b and R, both counted from task 1
    n = tasks
    assert m.acc() == pytest.approx(sum(big_r[n - 1, i] for i in range(n)) / n)
    assert m.bwt() == pytest.approx(
        sum(big_r[n - 1, i] - big_r[i, i] for i in range(n - 1)) / (n - 1)
    )
    assert m.fwt() == pytest.approx(sum(big_r[i - 1, i] - b[i] for i in range(1, n)) / (n - 1))
    assert m.forgetting() == pytest.approx(
        sum(max(big_r[k, i] for k in range(i, n - 1)) - big_r[n - 1, i] for i in range(n - 1))
        / (n - 1)
    )
    assert m.learning_accuracy() == pytest.approx(np.mean(np.diag(big_r)))


def test_a_single_task_has_no_transfer():
    m = matrix([[0.1], [0.9]])
    assert m.summary() == {
        "acc": 0.9, "bwt": None, "fwt": None, "forgetting": None, "learning_accuracy": 0.9
    }  # fmt: skip


def test_joint_training_has_no_transfer():
    m = matrix([[0.1, 0.2], [0.9, 0.8]], taught=[(0,), (0,)])
    assert (m.bwt(), m.fwt(), m.forgetting()) == (None, None, None)
    assert m.learning_accuracy() == pytest.approx(0.85)


def test_a_task_that_is_taught_twice():
    rows = [[0.1, 0.2], [0.9, 0.3], [0.4, 0.8], [0.85, 0.6], [0.7, 0.75]]
    m = matrix(rows, taught=[(0, 2), (1, 3)])
    assert m.learning_accuracy() == pytest.approx((0.9 + 0.8) / 2)  # the first lesson
    assert m.bwt() == pytest.approx(0.7 - 0.85)  # since the last lesson; set 1 was taught last
    assert m.forgetting() == pytest.approx(0.9 - 0.7)  # the best since the first lesson
    assert m.fwt() == pytest.approx(0.3 - 0.2)  # before the first lesson


def test_events_that_teach_nothing_count_as_time():
    # event 1 teaches nothing (an unlearning or adaptation)
    m = matrix([[0.1, 0.1], [0.9, 0.2], [0.5, 0.3], [0.4, 0.8]], taught=[(0,), (2,)])
    assert m.fwt() == pytest.approx(0.3 - 0.1)
    assert m.forgetting() == pytest.approx(0.9 - 0.4)


def test_what_was_not_measured_has_no_part():
    m = matrix(
        [
            [0.1, 0.2, 0.3],
            [0.9, 0.25, NAN],
            [NAN, 0.8, 0.45],
            [0.7, 0.5, 0.95],
        ]
    )
    full = matrix(HAND)
    assert m.summary() == full.summary()  # none of the definitions asks for the gaps here


@pytest.mark.parametrize(
    ("gap", "name", "expected"),
    [
        ((0, 1), "fwt", 0.45 - 0.30),  # no untrained accuracy of set 1
        ((1, 1), "fwt", 0.45 - 0.30),  # none before its first lesson
        ((1, 0), "bwt", 0.50 - 0.80),  # none after set 0 was taught
        ((1, 0), "learning_accuracy", (0.80 + 0.95) / 2),
        ((3, 0), "acc", (0.50 + 0.95) / 2),
        ((3, 0), "bwt", 0.50 - 0.80),
        ((3, 0), "forgetting", 0.80 - 0.50),
        ((1, 0), "forgetting", ((0.60 - 0.70) + (0.80 - 0.50)) / 2),
    ],
)
def test_a_gap_never_enters_a_mean(gap, name, expected):
    rows = np.array(HAND)
    rows[gap] = NAN
    assert getattr(matrix(rows), name)() == pytest.approx(expected)


def test_without_untrained_accuracies_there_is_no_forward_transfer():
    assert matrix([[NAN] * 3, *HAND[1:]]).fwt() is None
    assert matrix([[NAN] * 3, *HAND[1:]]).bwt() == matrix(HAND).bwt()


def test_scalars_are_plain_floats():
    assert {type(v) for v in matrix(HAND).summary().values()} == {float}
