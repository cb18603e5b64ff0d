"""Concept shift: which labels, when, and in what order samples come."""

import collections

import numpy as np
import pytest
import torch

from spikecl.data import checked
from spikecl.errors import ConfigError, HiddenFieldError
from spikecl.streams import ConceptShift, Reveal, concept_shift


def data(classes=5, per_class=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(classes * per_class) % classes)
    x = rng.integers(0, 256, (len(y), 3)).astype(np.uint8)
    return checked({"x_train": x, "y_train": y, "x_test": x[::-1], "y_test": y[::-1]}, "random")


def meaning(event, d):
    """Return the label of each class in an experience, read off its samples."""
    loaded = event.train.load()
    found = collections.defaultdict(set)
    for uid, label in zip(loaded.uid.tolist(), loaded.y.tolist(), strict=True):
        found[int(d.y_train[uid])].add(label)
    assert all(len(labels) == 1 for labels in found.values())
    return {c: labels.pop() for c, labels in found.items()}


@pytest.mark.parametrize("swaps", [1, 2])
def test_each_shift_exchanges_so_many_pairs_and_nothing_else(swaps):
    d = data()
    maps = [meaning(e, d) for e in concept_shift(d, experiences=6, samples=20, swaps=swaps, seed=3)]
    assert maps[0] == {c: c for c in range(5)}
    for before, after in zip(maps, maps[1:]):
        moved = [c for c in range(5) if before[c] != after[c]]
        assert len(moved) == 2 * swaps
        back = {label: c for c, label in before.items()}
        for c in moved:  # whoever has my new label has taken my old one
            assert after[back[after[c]]] == before[c]


def test_inputs_stay_and_tests_have_the_labels_of_their_concept():
    d = data()
    stream = concept_shift(d, experiences=3, samples=20, seed=1)
    for event, (name, each) in zip(stream, stream.eval_sets.items(), strict=True):
        loaded, test, labels = event.train.load(), each.samples.load(), meaning(event, d)
        assert name == f"concept{event.index}"
        assert each.taught == (event.index,)
        assert torch.equal(loaded.x, torch.from_numpy(d.x_train)[loaded.uid])
        assert test.y.tolist() == [labels[c] for c in d.y_test]
        assert torch.equal(test.x, torch.from_numpy(d.x_test))


def test_every_pass_brings_each_sample_once_in_another_order():
    d = data()  # 20 samples
    events = concept_shift(d, experiences=8, samples=15, seed=2)
    order = torch.cat([event.train.load().uid for event in events])
    passes = order.view(6, 20)
    assert all(sorted(p.tolist()) == list(range(20)) for p in passes)
    assert len({tuple(p.tolist()) for p in passes}) == 6


def test_a_varying_rate_keeps_its_mean_and_has_no_memory():
    stream = concept_shift(data(), experiences=4000, samples=200, rate="varying", seed=5)
    sizes = np.array([len(stream[i].train) for i in range(0, 4000)])
    assert sizes.min() >= 20
    assert abs(sizes.mean() / 200 - 1) < 4 / np.sqrt(4000)
    rest = sizes[sizes > 20 + 180] - 200  # exponential behind the shortest: the same again
    assert abs(rest.mean() / 180 - 1) < 4 / np.sqrt(len(rest))
    assert set(concept_shift(data(), samples=30)[i].train.__len__() for i in range(10)) == {30}


def test_pure_in_position_and_a_longer_stream_begins_alike():
    for rate in ("constant", "varying"):
        short = concept_shift(data(), experiences=3, samples=25, rate=rate, seed=7)
        long = concept_shift(data(), experiences=9, samples=25, rate=rate, seed=7)
        for i in (2, 0, 1):
            a, b = short[i].train.load(), long[i].train.load()
            assert torch.equal(a.uid, b.uid)
            assert torch.equal(a.y, b.y)
        other = concept_shift(data(), experiences=3, samples=25, rate=rate, seed=8)
        assert not torch.equal(other[0].train.load().uid, short[0].train.load().uid)
        assert other.fingerprint() != short.fingerprint()


def test_boundaries_are_hidden_unless_told():
    stream = concept_shift(data())
    assert Reveal.BOUNDARY not in stream.reveal
    with pytest.raises(HiddenFieldError):
        _ = stream.view(stream[1]).index
    assert ConceptShift(scenario="domain").make(data(), 0).view(stream[1]).index == 1


@pytest.mark.parametrize("swaps", [0, 3])
def test_more_pairs_than_classes_are_refused(swaps):
    with pytest.raises(ConfigError, match="use 1 to 2"):
        concept_shift(data(), swaps=swaps)


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_no_experience_is_empty_however_short(samples):
    for seed in range(20):
        stream = concept_shift(data(), experiences=9, samples=samples, rate="varying", seed=seed)
        assert all(len(event.train.load()) >= 1 for event in stream)
    with pytest.raises(ConfigError, match=r"concept_shift.samples: got 0; use at least 1"):
        concept_shift(data(), samples=0)
