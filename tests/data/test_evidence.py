"""Delayed evidence, taken apart again with nothing but the lengths and rates of the page."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from spikecl.data import Frames, catalogue_rows, evidence, fetch, load, verify
from spikecl.encoding import InputStatistics, Sequence
from spikecl.errors import DataError
from spikecl.streams import permuted

GROUPS = {"left": 0, "right": 10, "recall": 20, "background": 30}
SMALL = {"train": 60, "test": 30, "cues": 3, "delay_ms": 100, "dt_ms": 5}


@pytest.fixture(scope="module")
def data():
    return evidence()


def group(x, name):
    """The spikes of one group, [N, T, 10]."""
    return x[:, :, GROUPS[name] : GROUPS[name] + 10].astype(np.int64)


def cue_windows(cues=7, silence=50, cue=100):
    return [slice(k * (silence + cue) + silence, (k + 1) * (silence + cue)) for k in range(cues)]


def sides(x, windows):
    """Spikes on the right less those on the left in each window, [N, windows]."""
    difference = group(x, "right").sum(2) - group(x, "left").sum(2)
    return np.stack([difference[:, window].sum(1) for window in windows], 1)


def test_the_course_is_that_of_the_authors_code(data):
    assert (data.name, data.x_train.shape, data.x_test.shape) == (
        "evidence",
        (1000, 7 * (50 + 100) + 1050 + 150, 40),
        (500, 2250, 40),
    )
    assert (data.temporal, data.step_ms, data.peak, data.classes) == (True, 1.0, 1.0, 2)
    assert (data.x_train.dtype, data.x_train.max()) == (np.uint8, 1)
    assert data.class_names == ("left", "right")


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_label_is_the_side_with_more_cues(data, split):
    x, y = getattr(data, f"x_{split}"), getattr(data, f"y_{split}")
    shown = sides(x, cue_windows())
    assert (abs(shown) >= 10).all()  # 40 spikes are expected on one side, none on the other
    cues_on_the_right = (shown > 0).sum(1)
    np.testing.assert_array_equal(y, cues_on_the_right >= 4)


def test_rates_are_those_stated(data):
    x = np.concatenate([data.x_train, data.x_test])
    n, shown = len(x), sides(x, cue_windows()) > 0
    during = {
        side: sum(
            group(x, name)[:, window].sum((1, 2))[shown[:, k] == side].sum()
            for k, window in enumerate(cue_windows())
        )
        for side, name in enumerate(("left", "right"))
    }
    rows = [
        (during[0], (~shown).sum() * 1000, 0.04),  # trials of one step and neuron, probability
        (during[1], shown.sum() * 1000, 0.04),
        (group(x, "recall")[:, -150:].sum(), n * 1500, 0.04),
        (group(x, "background").sum(), n * 22500, 0.01),
        (group(x, "background")[:, 1050:2100].sum(), n * 10500, 0.01),  # in the delay, too
    ]
    for count, trials, p in rows:
        assert abs(count - trials * p) < 3 * np.sqrt(trials * p * (1 - p))
    for name in GROUPS:  # no neuron is louder than the others of its group
        each = group(x, name).sum((0, 1))
        assert abs(each - each.mean()).max() < 4 * np.sqrt(each.mean())


def test_outside_their_phases_all_but_the_background_is_silent(data):
    x = np.concatenate([data.x_train, data.x_test])
    quiet = np.ones(2250, bool)
    for window in cue_windows():
        quiet[window] = False
    assert not group(x, "left")[:, quiet].any() and not group(x, "right")[:, quiet].any()
    assert not group(x, "recall")[:, :-150].any()
    shown = sides(x, cue_windows()) > 0
    for k, window in enumerate(cue_windows()):  # one side at a time
        assert not group(x, "left")[shown[:, k], window].any()
        assert not group(x, "right")[~shown[:, k], window].any()


def score(features, labels, tests):
    from sklearn.linear_model import LogisticRegression

    cut = len(features) - tests
    model = LogisticRegression(C=0.01, max_iter=1000).fit(features[:cut], labels[:cut])
    return model.score(features[cut:], labels[cut:])


def test_at_recall_the_label_is_gone_and_in_the_cues_it_is_there(data):
    x, y = np.concatenate([data.x_train, data.x_test]), np.r_[data.y_train, data.y_test]
    tests = len(data.y_test)
    bound = 3 * np.sqrt(0.25 / tests)
    per_neuron = {  # counts in blocks of 50 ms
        "recall": x[:, -150:].reshape(len(x), 3, 50, 40).sum(2).reshape(len(x), -1),
        "after the cues": x[:, 1050:].reshape(len(x), 24, 50, 40).sum(2).reshape(len(x), -1),
        "cues": x[:, :1050].reshape(len(x), 21, 50, 40).sum(2).reshape(len(x), -1),
    }
    assert abs(score(per_neuron["recall"], y, tests) - 0.5) < bound
    assert abs(score(per_neuron["after the cues"], y, tests) - 0.5) < bound
    shuffled = np.random.default_rng(0).permutation(y)
    assert abs(score(per_neuron["cues"], shuffled, tests) - 0.5) < bound
    assert score(per_neuron["cues"], y, tests) > 0.95  # the same test finds what is there


def test_classes_and_cues_are_balanced_and_favour_one_side(data):
    y, x = np.r_[data.y_train, data.y_test], np.concatenate([data.x_train, data.x_test])
    n = len(y)
    assert abs(y.mean() - 0.5) < 3 * np.sqrt(0.25 / n)
    right = (sides(x, cue_windows()) > 0).sum(1)
    # a mixture of two binomials, 0.3 and 0.7, is what the number of cues on the right follows
    from scipy.stats import binom, chisquare

    expected = n * (binom.pmf(range(8), 7, 0.3) + binom.pmf(range(8), 7, 0.7)) / 2
    assert chisquare(np.bincount(right, minlength=8), expected).pvalue > 0.001


def test_it_is_the_same_every_time_and_another_seed_gives_another(data):
    again = load("evidence")
    assert again == data and again.checksum == data.checksum
    small = evidence(**SMALL)
    assert small.checksum == evidence(**SMALL).checksum
    assert small.checksum != evidence(**SMALL, seed=1).checksum
    more = evidence(**SMALL | {"train": 80})  # a trial does not depend on how many there are
    np.testing.assert_array_equal(more.x_train[:60], small.x_train)
    np.testing.assert_array_equal(more.x_test, small.x_test)


def test_no_trial_is_drawn_twice(data):
    both = np.concatenate([data.x_train, data.x_test])
    rows = np.packbits(both.reshape(len(both), -1), axis=1)
    assert len({row.tobytes() for row in rows}) == len(both)


@pytest.mark.parametrize("dt_ms", [1, 2.5, 5])
def test_the_length_is_the_sum_of_the_phases(dt_ms):
    lengths = {"cue_ms": 40, "silence_ms": 20, "delay_ms": 70, "recall_ms": 30, "dt_ms": dt_ms}
    data = evidence(train=20, test=1, cues=5, neurons=3, **lengths)
    assert data.input_shape == (round((5 * (40 + 20) + 70 + 30) / dt_ms), 12)
    assert data.step_ms == dt_ms


def test_a_random_delay_moves_the_cues_and_not_the_end():
    data = evidence(train=600, cues=1, delay_ms=(50, 150), cue_hz=200, silence_ms=0, dt_ms=5)
    assert data.input_shape == (20 + 30 + 30, 40)
    cue = (group(data.x_train, "left") + group(data.x_train, "right")).any(2)
    first, last = cue.argmax(1), 79 - cue[:, ::-1].argmax(1)
    assert (last - first == 19).all()  # one cue of 100 ms, a spike at every step
    delays = 80 - 30 - 1 - last
    counts = np.bincount(delays, minlength=31)
    assert counts[:10].sum() == 0 and len(counts) == 31
    from scipy.stats import chisquare

    assert chisquare(counts[10:]).pvalue > 0.001  # 50, 55 ... 150 ms, all alike
    assert abs(np.corrcoef(delays, data.y_train)[0, 1]) < 3 / np.sqrt(600)
    assert group(data.x_train, "recall")[:, -30:].any((1, 2)).all()
    assert not group(data.x_train, "recall")[:, :-30].any()


def test_extremes():
    data = evidence(**SMALL, favoured=1.0, cue_hz=200, background_hz=0)
    windows = [slice(w.start // 5, w.stop // 5) for w in cue_windows(3)]
    shown = sides(data.x_train, windows)
    assert set(abs(shown).ravel()) == {200}  # every neuron at every step of every cue
    assert all((shown[:, a] == shown[:, b]).all() for a, b in pairwise(range(3)))
    assert not group(data.x_train, "background").any()
    even = evidence(train=400, test=1, cues=1, favoured=0.5, delay_ms=0, silence_ms=0, dt_ms=5)
    assert abs(even.y_train.mean() - 0.5) < 3 * np.sqrt(0.25 / 400)
    assert even.input_shape == (20 + 30, 40)


WRONG = {
    "cues is 6; allowed: odd": {"cues": 6},
    "cues is 0; allowed: whole numbers from 1": {"cues": 0},
    "cues is 3.0; allowed: whole numbers": {"cues": 3.0},
    "train is True; allowed: whole numbers": {"train": True},
    "train is 1; allowed: more; no trial is": {"train": 1},
    "test is 0; allowed: whole numbers": {"test": 0},
    "neurons is -1; allowed: whole numbers": {"neurons": -1},
    "seed is -1; allowed: whole numbers from 0": {"seed": -1},
    "dt_ms is 0; allowed: finite numbers above 0": {"dt_ms": 0},
    "dt_ms is nan; allowed: finite": {"dt_ms": float("nan")},
    "cue_ms is 102; allowed: multiples of dt_ms from 5; use 100": {"cue_ms": 102, "dt_ms": 5},
    "cue_ms is 0; allowed: multiples of dt_ms from 1": {"cue_ms": 0},
    "silence_ms is -5; allowed: multiples of dt_ms from 0": {"silence_ms": -5},
    "recall_ms is 'x'; allowed: finite numbers": {"recall_ms": "x"},
    "delay_ms is inf; allowed: finite": {"delay_ms": float("inf")},
    "delay_ms is (9, 3); allowed: the shortest first": {"delay_ms": (9, 3)},
    "delay_ms is (1, 2, 3); allowed: one length, or": {"delay_ms": (1, 2, 3)},
    "cue_hz is 201; allowed: 0 to 200": {"cue_hz": 201, "dt_ms": 5},
    "background_hz is -1; allowed: 0 to 1000": {"background_hz": -1},
    "favoured is 0.3; allowed: 0.5": {"favoured": 0.3},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_refused_with_what_is_allowed(message):
    with pytest.raises(DataError, match=re.escape(f"evidence: {message}")):
        evidence(**WRONG[message])


def test_known_by_name(cache, data):
    assert not cache.exists()
    rows = {row.name: row for row in catalogue_rows()}
    for name, shape in (("evidence", (2250, 40)), ("evidence_short", (180, 40))):
        loaded, row = load(name), rows[name]
        assert (row.note, row.found, row.classes) == ("built in", None, 2)
        assert (row.train, row.test) == (len(loaded.x_train), len(loaded.x_test))
        assert row.shape == loaded.input_shape == shape
        assert (loaded.name, verify(name).ok, fetch(name).note) == (name, True, "built in")
        with pytest.raises(DataError, match=f"'{name}' holds no events"):
            load(name, frames=Frames())
    assert not cache.exists()


def test_the_short_one_is_shorter_and_as_decidable():
    data = load("evidence_short")
    assert data.step_ms == 5.0
    windows = [slice(15 * k + 5, 15 * k + 15) for k in range(7)]
    shown = sides(data.x_train, windows)
    assert (shown != 0).all()
    np.testing.assert_array_equal(data.y_train, (shown > 0).sum(1) >= 4)


def test_it_enters_as_a_sequence():
    stream = permuted(evidence(**SMALL), experiences=1)
    assert stream.temporal
    x = stream[0].train.load().take(slice(4)).x
    spikes = Sequence().encode(x, InputStatistics())
    assert spikes.shape == ((3 * 150 + 100 + 150) // 5, 4, 40)
    assert spikes.unique().tolist() == [0.0, 1.0]
