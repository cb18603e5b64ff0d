"""A stream is a pure sequence with a fingerprint."""

import dataclasses

import numpy as np
import pytest
import torch

from spikecl.data import checked
from spikecl.errors import UsageError
from spikecl.streams import CLASS_IL, TASK_IL, Reveal, joint, permuted, rotated, split_classes


def data(*, shift=0, peak=None, name="tiny"):
    """Return 5 classes of 3x3 bytes, 15 to train and 10 to test."""
    x = np.arange(25 * 9, dtype=np.uint8).reshape(25, 3, 3) + np.uint8(shift)
    y = np.arange(25) % 5
    arrays = {"x_train": x[:15], "y_train": y[:15], "x_test": x[15:], "y_test": y[15:]}
    return checked(arrays, name, peak=peak)


def digest(event):
    """What an experience is, as plain values."""
    loaded = event.train.load()
    return (event.index, event.task, event.classes, event.train.describe(), loaded.peak,
            loaded.x.tolist())  # fmt: skip


def digests(stream):
    return [digest(event) for event in stream]


STREAMS = {
    "permuted": lambda **given: permuted(data(), **{"experiences": 5} | given),
    "rotated": lambda **given: rotated(data(), degrees=[0, 30, 90, 200, 15], **given),
    "split_classes": lambda **given: split_classes(data(), **{"experiences": 5} | given),
}


@pytest.fixture(params=list(STREAMS))
def make(request):
    return STREAMS[request.param]


def test_looping_twice_and_indexing_give_the_same_events(make):
    stream = make()
    events = digests(stream)
    assert len(events) == len(stream) == 5
    assert digests(stream) == events
    assert [digest(stream[i]) for i in (4, 0, 2)] == [events[i] for i in (4, 0, 2)]
    assert [event[0] for event in events] == list(range(5))


def test_two_loops_at_once(make):
    stream = make()
    pairs = [(digest(a), digest(b)) for a, b in zip(stream, stream)]
    assert all(a == b for a, b in pairs)
    assert len(pairs) == 5


def test_negative_positions_and_the_end(make):
    stream = make()
    assert digest(stream[-1]) == digest(stream[4])
    assert digest(stream[-5]) == digest(stream[0])
    for wrong in (5, -6):
        with pytest.raises(IndexError, match=f"event {wrong} of a stream of 5"):
            stream[wrong]


@pytest.mark.parametrize("cut", [lambda s: s.take(3), lambda s: s[:3]], ids=["take", "slice"])
def test_a_prefix_is_a_stream(make, cut):
    stream = make()
    prefix = cut(stream)
    assert len(prefix) == 3
    assert digests(prefix) == digests(stream)[:3]
    assert list(prefix.eval_sets) == list(stream.eval_sets)[:3]
    with pytest.raises(IndexError):
        prefix[3]


@pytest.mark.parametrize("n", [0, 6, -1])
def test_a_prefix_has_between_one_and_all_events(make, n):
    with pytest.raises(UsageError, match=f"take\\({n}\\) of a stream of 5"):
        make().take(n)
    assert len(make().take(5)) == 5


def test_the_same_specification_gives_the_same_stream(make):
    assert digests(make(seed=3)) == digests(make(seed=3))
    assert make(seed=3).fingerprint() == make(seed=3).fingerprint()


def test_events_do_not_depend_on_what_is_revealed(make):
    stream = make()
    other = stream.with_reveal(Reveal.LABELS)
    assert digests(other) == digests(stream)
    assert other.reveal == Reveal.LABELS


def test_fingerprints_differ_when_something_differs():
    d = data()
    streams = [
        permuted(d, experiences=5),
        permuted(d, experiences=5, seed=1),
        permuted(d, experiences=4),
        permuted(d, experiences=5).take(4),
        permuted(d, experiences=5, old_data=True),
        permuted(d, experiences=5).with_reveal(Reveal.NONE),
        permuted(data(shift=1), experiences=5),
        rotated(d, degrees=[0, 10]),
        rotated(d, degrees=[0, 10.5]),
        rotated(d, degrees=[10, 0]),
        split_classes(d, experiences=5, order=[0, 1, 2, 3, 4]),
        split_classes(d, experiences=5, order=[0, 1, 2, 4, 3]),
        split_classes(d, experiences=4, order=[0, 1, 2, 3, 4]),
        split_classes(d, experiences=5, order=[0, 1, 2, 3, 4], reveal=TASK_IL),
        joint(permuted(d, experiences=5)),
        joint(permuted(d, experiences=4)),
        joint(permuted(d, experiences=5, seed=1)),
    ]
    prints = [stream.fingerprint() for stream in streams]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 64 and set(p) <= set("0123456789abcdef") for p in prints)


def test_fingerprints_tell_the_scale_of_the_inputs():
    a, b = (permuted(data(peak=peak), experiences=2) for peak in (255.0, 100.0))
    assert not torch.equal(a[0].train.load().take(slice(3)).x, b[0].train.load().take(slice(3)).x)
    assert a.fingerprint() != b.fingerprint()


def test_fingerprints_agree_when_nothing_that_counts_differs(make):
    stream = make(seed=2)
    again = stream.with_reveal(Reveal.NONE).with_reveal(stream.reveal).take(len(stream))
    assert again.fingerprint() == stream.fingerprint()
    named = permuted(data(name="other"), experiences=2)
    assert named.fingerprint() == permuted(data(), experiences=2).fingerprint()


def test_defaults_are_written_out_in_the_fingerprint():
    d = data()
    assert permuted(d).fingerprint() == permuted(d, experiences=10, seed=0).fingerprint()
    drawn = split_classes(d, seed=4)
    order = [c for event in drawn for c in event.classes]
    given = split_classes(d, order=order, reveal=CLASS_IL, seed=4)
    assert drawn.fingerprint() == given.fingerprint()


def test_streams_are_frozen(make):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().seed = 3
