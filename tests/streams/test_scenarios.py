"""Scenarios: partitions, prefixes, seeds, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.data import checked, load
from spikecl.errors import ConfigError
from spikecl.streams import (
    CLASS_IL,
    DOMAIN_IL,
    TASK_FREE,
    TASK_IL,
    Domains,
    Joint,
    Permuted,
    Reveal,
    Rotated,
    SplitClasses,
    StreamSpec,
    joint,
    permuted,
    rotated,
    split_classes,
)

quick = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def data(classes=5, shape=(3, 4), per_class=3, seed=0, **time):
    rng = np.random.default_rng(seed)
    n = classes * per_class
    y = rng.permutation(np.arange(n) % classes)
    x = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
    arrays = {"x_train": x, "y_train": y, "x_test": x[::-1], "y_test": y[::-1]}
    return checked(arrays, "random", **time)


def sizes_of(n, parts):
    return [n // parts + (i < n % parts) for i in range(parts)]


@quick
@given(st.integers(2, 7), st.data(), st.integers(0, 1000))
def test_split_classes_is_a_partition(classes, draw, seed):
    experiences = draw.draw(st.integers(1, classes))
    d = data(classes, seed=seed)
    stream = split_classes(d, experiences=experiences, seed=seed)
    events = list(stream)
    train = [event.train.load() for event in events]
    tests = [e.samples.load() for e in stream.eval_sets.values()]
    for loaded, first in ((train, 0), (tests, len(d.x_train))):
        uids = torch.cat([part.uid for part in loaded]).tolist()
        assert sorted(uids) == list(range(first, first + 3 * classes))  # none lost, none doubled
    for event, a, (name, e), b in zip(events, train, stream.eval_sets.items(), tests, strict=True):
        assert set(a.y.tolist()) == set(b.y.tolist()) == set(event.classes) == set(e.classes)
        assert e.taught == (event.index,) == (event.task,)
        assert name == f"task{event.index}"
        assert torch.equal(a.x, torch.from_numpy(d.x_train)[a.uid])
        assert torch.equal(b.x, torch.from_numpy(d.x_test)[b.uid - len(d.x_train)])
        assert torch.equal(a.y, torch.from_numpy(d.y_train)[a.uid])
    assert [len(event.classes) for event in events] == sizes_of(classes, experiences)
    assert sorted(c for event in events for c in event.classes) == list(range(classes))


def test_the_order_of_classes_is_followed():
    stream = split_classes(data(), experiences=3, order=[4, 0, 2, 1, 3])
    assert [event.classes for event in stream] == [(4, 0), (2, 1), (3,)]


def test_the_order_comes_from_the_seed():
    def order(seed):
        return [event.classes for event in split_classes(data(7), experiences=7, seed=seed)]

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("order", [[], [0, 1, 2, 3, 3], [0, 1, 2, 3, 5], [1, 2, -1]])
def test_an_order_names_classes_once(order):
    with pytest.raises(ConfigError, match=r"order: got \[.*name classes of 0 to 4, each once"):
        split_classes(data(), experiences=1, order=order)


def test_classes_that_the_order_leaves_out_do_not_come():
    stream = split_classes(data(), experiences=2, order=[3, 0, 2])
    assert [event.classes for event in stream] == [(3, 0), (2,)]
    assert stream.classes == 5  # outputs are as they were
    shown = [set(event.train.load().y.tolist()) for event in stream]
    tested = [set(test.samples.load().y.tolist()) for test in stream.eval_sets.values()]
    assert shown == tested == [{0, 3}, {2}]
    with pytest.raises(ConfigError, match="got 4, but 3 classes come of the 5"):
        split_classes(data(), experiences=4, order=[3, 0, 2])


@pytest.mark.parametrize("experiences", [6, 100])
def test_more_experiences_than_classes_are_refused(experiences):
    with pytest.raises(
        ConfigError, match=f"got {experiences}, but 5 classes come of the 5 of random; use 1 to 5"
    ):
        split_classes(data(), experiences=experiences)


@pytest.mark.parametrize(
    "make",
    [
        lambda: split_classes(data(), experiences=0),
        lambda: permuted(data(), experiences=0),
        lambda: rotated(data(), degrees=[]),
    ],
)
def test_a_stream_has_at_least_one_experience(make):
    with pytest.raises(ConfigError, match="experiences: got 0; use at least 1"):
        make()


def orders(stream, d):
    """The permutation of each experience, found by comparing with the raw data."""
    found = []
    raw = torch.from_numpy(d.x_train).flatten(1)
    for event in stream:
        x = event.train.load().x.flatten(1)
        matches = (x[:, :, None] == raw[:, None, :]).all(0)
        assert bool((matches.sum(0) == 1).all() & (matches.sum(1) == 1).all())
        found.append(tuple(matches.int().argmax(1).tolist()))
    return found


def test_every_experience_is_permuted_in_its_own_way():
    d = data(per_class=10)
    stream = permuted(d, experiences=6, seed=1)
    found = orders(stream, d)
    assert len(set(found)) == 6
    assert tuple(range(12)) not in found
    for (_, test), order in zip(stream.eval_sets.items(), found, strict=True):
        raw = torch.from_numpy(d.x_test).flatten(1)
        assert torch.equal(test.samples.load().x.flatten(1), raw[:, list(order)])


def test_permutations_come_from_seed_and_position_alone():
    d = data(per_class=10)
    five = orders(permuted(d, experiences=5, seed=1), d)
    assert five[:3] == orders(permuted(d, experiences=3, seed=1), d)
    assert not set(five) & set(orders(permuted(d, experiences=5, seed=2), d))


def test_domain_incremental_streams_show_every_sample_every_time():
    d = data()
    for stream in (permuted(d, experiences=3), rotated(d, degrees=[0, 10, 20])):
        assert stream.reveal == DOMAIN_IL
        assert stream.classes == 5
        assert stream.input_shape == (3, 4)
        for event in stream:
            loaded = event.train.load()
            assert event.classes == (0, 1, 2, 3, 4)
            assert loaded.uid.tolist() == list(range(15))
            assert torch.equal(loaded.y, torch.from_numpy(d.y_train))
        for i, e in enumerate(stream.eval_sets.values()):
            assert e.samples.load().uid.tolist() == list(range(15, 30))
            assert e.taught == (i,)


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 2)])
def test_rotated_turns_train_and_test_alike(shape):
    d = data(shape=shape)
    stream = rotated(d, degrees=[0, 90, 180, -90])
    for turns, event, e in zip([0, 1, 2, 3], stream, stream.eval_sets.values(), strict=True):
        for samples, raw in ((event.train, d.x_train), (e.samples, d.x_test)):
            expected = torch.rot90(torch.from_numpy(raw), turns, dims=(1, 2))
            assert torch.equal(samples.load().x, expected)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4, 5)])
def test_only_images_turn(shape):
    with pytest.raises(ConfigError, match="rotated needs images.*random has samples of shape"):
        rotated(data(shape=shape))


def test_intensities_are_scaled_by_the_peak():
    for stream in (permuted(data(), experiences=1), split_classes(data(), experiences=1)):
        loaded = stream[0].train.load()
        assert loaded.peak == 255.0
        assert loaded.x.dtype == torch.uint8
        torch.testing.assert_close(loaded.take(slice(None)).x, loaded.x.float() / 255)
        assert next(iter(stream.eval_sets.values())).samples.load().peak == 255.0


@pytest.mark.parametrize(
    "base",
    [
        lambda d: permuted(d, experiences=3, seed=5),
        lambda d: rotated(d, degrees=[0, 45]),
        lambda d: split_classes(d, experiences=3, reveal=TASK_IL),
    ],
)
def test_joint_has_the_samples_of_all_experiences_at_once(base):
    stream = base(data())
    both = joint(stream)
    (event,) = both
    loaded, parts = event.train.load(), [e.train.load() for e in stream]
    assert torch.equal(loaded.x, torch.cat([p.x for p in parts]))
    assert torch.equal(loaded.y, torch.cat([p.y for p in parts]))
    assert torch.equal(loaded.uid, torch.cat([p.uid for p in parts]))
    assert event.classes == (0, 1, 2, 3, 4)
    assert (event.index, event.task, len(both)) == (0, 0, 1)
    assert list(both.eval_sets) == list(stream.eval_sets)
    for name, e in both.eval_sets.items():
        assert e.taught == (0,)
        assert e.classes == stream.eval_sets[name].classes
        assert e.samples.describe() == stream.eval_sets[name].samples.describe()
    assert not both.reveal & (Reveal.TASK_ID_TRAIN | Reveal.TASK_ID_EVAL)
    assert Reveal.LABELS in both.reveal
    assert both.input_shape == stream.input_shape


def test_joint_of_a_prefix_has_its_classes_only():
    stream = split_classes(data(), experiences=5, order=[3, 1, 0, 2, 4])
    assert joint(stream.take(2))[0].classes == (1, 3)


@pytest.mark.parametrize("make", [permuted, rotated, split_classes])
def test_old_data_are_revealed_on_request(make):
    assert Reveal.OLD_DATA not in make(data()).reveal
    assert make(data(), old_data=True).reveal == make(data()).reveal | Reveal.OLD_DATA


def test_reveal_of_split_classes():
    assert split_classes(data()).reveal == CLASS_IL
    assert split_classes(data(), reveal=TASK_IL).reveal == TASK_IL


def test_permuted_reorders_the_features_of_a_step_at_every_step_alike():
    d = data(shape=(4, 2, 3), per_class=10, temporal=True)
    stream = permuted(d, experiences=5, seed=1)
    assert stream.input_shape == (4, 2, 3)
    found = []
    for event, e in zip(stream, stream.eval_sets.values(), strict=True):
        for samples, raw in ((event.train, d.x_train), (e.samples, d.x_test)):
            after = samples.load().x.flatten(2)
            before = torch.from_numpy(raw.copy()).flatten(2)
            same = (after[..., :, None] == before[..., None, :]).all(0).all(0)
            assert bool((same.sum(0) == 1).all() & (same.sum(1) == 1).all())
            found.append(tuple(same.int().argmax(1).tolist()))
    assert found[::2] == found[1::2]  # train and test alike
    assert len(set(found)) == 5
    steps = data(shape=(2, 3), per_class=10)  # the same permutations as of data like one step
    assert found[::2] == orders(permuted(steps, experiences=5, seed=1), steps)


@pytest.mark.parametrize("shape", [(3, 5, 5), (3, 5, 5, 2)])
def test_rotated_turns_the_images_of_every_step(shape):
    d = data(shape=shape, temporal=True, step_ms=2.0)
    for turns, event in enumerate(rotated(d, degrees=[0, 90, 180])):
        expected = torch.rot90(torch.from_numpy(d.x_train), turns, dims=(2, 3))
        assert torch.equal(event.train.load().x, expected)


@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 5, 2, 2)])
def test_only_images_in_time_turn(shape):
    with pytest.raises(ConfigError, match=r"rotated needs images.*random has .*, temporal; use"):
        rotated(data(shape=shape, temporal=True))


MAKERS = [permuted, rotated, split_classes, lambda d: joint(permuted(d))]


@pytest.mark.parametrize("make", MAKERS, ids=["permuted", "rotated", "split_classes", "joint"])
def test_streams_tell_whether_their_samples_are_in_time(make):
    options = [{}, {"temporal": True}, {"temporal": True, "step_ms": 1.0}]
    streams = [make(data(shape=(4, 5, 5), **time)) for time in options]
    assert [stream.temporal for stream in streams] == [False, True, True]
    assert [stream.take(1).temporal for stream in streams] == [False, True, True]
    assert len({stream.fingerprint() for stream in streams}) == 3


def test_fingerprints_of_static_streams_are_those_of_version_0_1():
    digits = load("digits")
    made = {
        "3c3c97d766f359fc": permuted(digits, experiences=3),
        "2098ca3ebb473ced": rotated(digits),
        "0ad886fac34e1eca": split_classes(digits),
        "e101f8c3fb075b8f": joint(permuted(digits)),
    }
    assert [stream.fingerprint()[:16] for stream in made.values()] == list(made)


SPECS = [
    (Permuted(experiences=3), lambda d, s: permuted(d, experiences=3, seed=s)),
    (Permuted(old_data=True), lambda d, s: permuted(d, old_data=True, seed=s)),
    (Rotated(degrees=(0.0, 7.0)), lambda d, s: rotated(d, degrees=[0, 7], seed=s)),
    (Rotated(old_data=True), lambda d, s: rotated(d, old_data=True, seed=s)),
    (SplitClasses(), lambda d, s: split_classes(d, seed=s)),
    (
        SplitClasses(experiences=2, scenario="task", order=(1, 0, 2, 3, 4), old_data=True),
        lambda d, s: split_classes(
            d, experiences=2, reveal=TASK_IL, order=[1, 0, 2, 3, 4], old_data=True, seed=s
        ),
    ),
    (Joint(), lambda d, s: joint(permuted(d, seed=s))),
    (
        Joint(base="split_classes", experiences=3),
        lambda d, s: joint(split_classes(d, experiences=3, seed=s)),
    ),
]


@pytest.mark.parametrize(("spec", "expected"), SPECS, ids=[str(spec) for spec, _ in SPECS])
def test_a_description_makes_the_stream_of_its_function(spec, expected):
    d = data()
    assert isinstance(spec, StreamSpec)
    made, wanted = spec.make(d, 4), expected(d, 4)
    assert made.fingerprint() == wanted.fingerprint()
    assert made.seed == 4
    assert made.name == wanted.name
    assert [e.train.describe() for e in made] == [e.train.describe() for e in wanted]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Permuted(experiences=0),
        lambda: SplitClasses(scenario="domain"),
        lambda: Joint(base="joint"),
    ],
)
def test_descriptions_are_checked(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("spec", [Permuted, Rotated, Domains])
def test_a_scenario_changes_what_is_revealed_and_nothing_else(spec):
    plain = spec().make(data(), 0)
    for scenario, reveal in (("free", TASK_FREE), ("domain", DOMAIN_IL), ("task", TASK_IL)):
        stream = spec(scenario=scenario).make(data(), 0)
        assert stream.reveal == reveal
        assert torch.equal(stream[1].train.load().x, plain[1].train.load().x)
        assert (stream.fingerprint() == plain.fingerprint()) is (scenario == "domain")
    assert spec(scenario="task", old_data=True).make(data(), 0).reveal == TASK_IL | Reveal.OLD_DATA
    with pytest.raises(ConfigError, match="old_data.*scenario='free'"):
        spec(scenario="free", old_data=True).make(data(), 0)


def test_split_classes_can_hide_that_classes_are_new():
    free = SplitClasses(experiences=2, scenario="free").make(data(), 0)
    assert free.reveal == Reveal.LABELS
    with pytest.raises(ConfigError, match="old_data.*scenario='free'"):
        SplitClasses(experiences=2, scenario="free", old_data=True).make(data(), 0)
