"""Drifting mixtures: weights, counts, and where samples come from."""

import numpy as np
import pytest
import torch

from spikecl.data import checked
from spikecl.errors import ConfigError
from spikecl.streams import TASK_FREE, Drifting, domains, drifting, permuted, split_classes
from spikecl.streams.mixtures import weights_at


def data(classes=5, per_class=4):
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(classes * per_class) % classes)
    x = rng.integers(0, 256, (len(y), 3)).astype(np.uint8)
    return checked({"x_train": x, "y_train": y, "x_test": x[::-1], "y_test": y[::-1]}, "random")


@pytest.mark.parametrize("overlap", [0.0, 0.3, 1.0])
def test_weights_are_a_linear_fade_of_two_neighbours(overlap):
    for time in np.linspace(0, 4, 161)[1:-1] + 1e-4:
        found = weights_at(float(time), 4, overlap)
        expected = np.zeros(4)
        k = int(time)
        near = round(time)  # the nearest boundary
        if 1 <= near <= 3 and abs(time - near) < overlap / 2:
            expected[near] = (time - near) / overlap + 0.5
            expected[near - 1] = 1 - expected[near]
        else:
            expected[k] = 1
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_without_overlap_segments_are_a_partition_of_each_task():
    d = data(per_class=8)  # 40 samples
    stream = drifting(permuted(d, experiences=3, seed=1), segments=4, overlap=0, seed=2)
    assert len(stream) == 12
    for task in range(3):
        events = [stream[4 * task + j] for j in range(4)]
        assert all(e.task == task and len(e.train.parts) == 1 for e in events)
        uids = torch.cat([e.train.load().uid for e in events]).tolist()
        assert sorted(uids) == list(range(40))
        each = stream.eval_sets[f"task{task}"]
        assert each.taught == tuple(range(4 * task, 4 * task + 4))


def test_mixed_experiences_have_samples_of_both_tasks_each_changed_as_its_task():
    d = data(per_class=20)  # 100 samples
    base = permuted(d, experiences=2, seed=1)
    stream = drifting(base, segments=10, overlap=1.0, seed=2)
    whole = [base[k].train.load() for k in range(2)]
    for i, event in enumerate(stream):
        later = np.clip((i + 0.5) / 10 - 0.5, 0, 1)  # weight of the second task
        counts = [0, 0]
        for part in event.train.parts:
            counts[part.transform is not base[0].train.parts[0].transform] += len(part)
        np.testing.assert_allclose(counts, [10 * (1 - later), 10 * later], atol=0.5 + 1e-9)
        first = 0
        for task, count in enumerate(counts):
            if count:
                got = event.train.load()
                rows = slice(first, first + count)
                uid = got.uid[rows]
                assert torch.equal(got.x[rows], whole[task].x[uid])
                assert torch.equal(got.y[rows], whole[task].y[uid])
                first += count
    taught = [set(e.taught) for e in stream.eval_sets.values()]
    assert taught[0] & taught[1]
    assert taught[0] | taught[1] == set(range(20))


def test_a_task_repeats_no_sample_before_all_came():
    d = data(per_class=20)
    stream = drifting(permuted(d, experiences=3, seed=1), segments=7, overlap=0.6, seed=2)
    seen = {}
    for event in stream:
        for part in event.train.parts:
            seen.setdefault(part.transform.describe(), []).extend(part.index.tolist())
    assert len(seen) == 3
    for rows in seen.values():
        assert len(set(rows[:100])) == min(len(rows), 100)


def test_parts_of_classes_drift_too_and_nothing_is_revealed_but_labels():
    d = data(classes=6, per_class=10)
    base = split_classes(d, experiences=3, seed=4)
    stream = drifting(base, segments=5, overlap=0.5, seed=4)
    assert stream.reveal == TASK_FREE
    for event in stream:
        assert set(event.train.load().y.tolist()) <= set(event.classes)
        assert set(stream.view(event)._fields) == {"samples"}
    both = [e for e in stream if len(e.classes) == 4]
    assert both


def test_tiny_data_and_many_segments_still_have_a_sample_each():
    stream = drifting(permuted(data(per_class=1), experiences=2), segments=50, overlap=0.5)
    assert all(len(e.train) >= 1 for e in stream)


def test_pure_and_by_name():
    stream = Drifting(base="permuted", experiences=2, segments=3).make(data(), 5)
    again = Drifting(base="permuted", experiences=2, segments=3).make(data(), 5)
    assert stream.fingerprint() == again.fingerprint()
    assert torch.equal(stream[4].train.load().x, again[4].train.load().x)
    sharp = Drifting(base="permuted", experiences=2, segments=3, overlap=0.0).make(data(), 5)
    assert sharp.fingerprint() != stream.fingerprint()


@pytest.mark.parametrize("bad", [{"segments": 0}, {"overlap": -0.5}, {"overlap": 1.5}])
def test_numbers_that_make_no_mixture_are_refused(bad):
    with pytest.raises(ConfigError, match=f"stream.drifting.{next(iter(bad))}: got .* use"):
        drifting(permuted(data(), experiences=2), **bad)


def test_noise_is_another_one_in_each_experience_and_stays_it():
    x, y = np.full((60, 6, 6), 128, np.uint8), np.arange(60) % 3
    d = checked({"x_train": x, "y_train": y, "x_test": x[:6], "y_test": y[:6]}, "grey")
    stream = drifting(domains(d, kinds=("noise", "noise")), segments=5, overlap=0.5, seed=2)
    found = [event.train.load().x.flatten(1) for event in stream]
    assert len(torch.cat(found).unique(dim=0)) == sum(map(len, found)) == 120
    assert all(torch.equal(stream[i].train.load().x.flatten(1), x) for i, x in enumerate(found))
