"""Samples: lazy, pure, and only as open as they are shown."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.streams import Loaded, Samples
from spikecl.streams.events import Part, concatenate

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)


class Negative:
    """A transform that counts its calls."""

    def __init__(self, name="negative"):
        self.name, self.calls = name, 0

    def __call__(self, x):
        self.calls += 1
        return 255 - x

    def describe(self):
        return self.name


def arrays(n=6, first=0):
    x = torch.arange(n * 4, dtype=torch.uint8).view(n, 2, 2) + first
    return x, torch.arange(n) % 3, torch.arange(first, first + n)


def part(index=None, transform=None, **given):
    return Part(*arrays(**given), index=index, transform=transform)


def test_all_rows_without_an_index():
    x, y, uid = arrays()
    loaded = Samples((part(),)).load()
    assert torch.equal(loaded.x, x)
    assert torch.equal(loaded.y, y)
    assert torch.equal(loaded.uid, uid)
    assert len(loaded) == len(Samples((part(),))) == 6


@quick
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_rows_of_an_index_keep_x_label_and_id_together(rows):
    x, y, uid = arrays()
    samples = Samples((part(torch.tensor(rows)),))
    loaded = samples.load()
    assert loaded.uid.tolist() == rows
    assert torch.equal(loaded.x, torch.stack([x[r] for r in rows]))
    assert loaded.y.tolist() == [int(y[r]) for r in rows]
    assert len(samples) == len(rows)
    assert torch.equal(uid, arrays()[2])


def test_nothing_is_computed_before_loading():
    transform = Negative()
    samples = Samples((part(transform=transform),)).show(labels=True, ids=False)
    assert len(samples) == 6
    assert transform.calls == 0
    assert torch.equal(samples.load().x, 255 - arrays()[0])
    assert transform.calls == 1


def test_several_sets_become_one():
    a = Samples((part(torch.tensor([1, 0]), Negative()),), peak=255.0)
    b = Samples((part(first=100),), peak=255.0)
    both = concatenate([a, b])
    loaded = both.load()
    assert len(both) == 8
    assert loaded.uid.tolist() == [1, 0, *range(100, 106)]
    assert torch.equal(loaded.x, torch.cat([a.load().x, b.load().x]))
    assert torch.equal(loaded.y, torch.cat([a.load().y, b.load().y]))
    assert loaded.peak == 255.0


def test_a_batch_is_intensities_in_float32():
    loaded = Samples((part(),), peak=10.0).load()
    for rows in (torch.tensor([2, 0]), slice(1, 3)):
        batch = loaded.take(rows)
        assert batch.x.dtype == torch.float32
        torch.testing.assert_close(batch.x, arrays()[0][rows].float() / 10)
        assert torch.equal(batch.y, arrays()[1][rows])
        assert torch.equal(batch.uid, arrays()[2][rows])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("peak", [1.0, 2.0])
@pytest.mark.parametrize("rows", [slice(0, 3), slice(None), torch.tensor([0, 2])], ids=str)
def test_taking_a_batch_leaves_the_data_alone(dtype, peak, rows):
    x, y, uid = arrays()
    x = x.to(dtype)
    before = x.clone()
    loaded = Samples((Part(x, y, uid),), peak=peak).load()
    first = loaded.take(rows).x.clone()
    assert torch.equal(loaded.take(rows).x, first)
    assert torch.equal(x, before)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("ids", [True, False])
def test_what_is_hidden_is_none(labels, ids):
    samples = Samples((part(),)).show(labels=labels, ids=ids)
    for shown in (samples.load(), samples.load().take(slice(2)), samples.load().take([0, 1])):
        assert (shown.y is not None) == labels
        assert (shown.uid is not None) == ids


def test_what_is_hidden_cannot_be_shown_again():
    hidden = Samples((part(),)).show(labels=False, ids=False)
    again = hidden.show(labels=True, ids=True).load()
    assert again.y is None
    assert again.uid is None


def test_showing_leaves_the_original_open():
    samples = Samples((part(),))
    samples.show(labels=False, ids=False)
    assert samples.load().y is not None


def test_moving_to_a_device():
    loaded = Samples((part(),), peak=7.0).load()
    assert loaded.to(torch.device("cpu")) is loaded
    moved = loaded.to(torch.device("meta"))
    assert {t.device.type for t in (moved.x, moved.y, moved.uid)} == {"meta"}
    assert moved.peak == 7.0
    hidden = Loaded(loaded.x, None, None, 1.0).to(torch.device("meta"))
    assert hidden.y is hidden.uid is None


def test_the_description_differs_when_something_differs():
    x, y, uid = arrays()
    samples = [
        Samples((part(),)),
        Samples((part(torch.arange(6)),)),
        Samples((part(torch.arange(5)),)),
        Samples((part(transform=Negative()),)),
        Samples((part(transform=Negative("other")),)),
        Samples((Part(x + 1, y, uid),)),
        Samples((Part(x, y + 1, uid),)),
        Samples((Part(x, y, uid + 1),)),
        Samples((part(), part())),
    ]
    assert len({s.describe() for s in samples}) == len(samples)
    assert Samples((part(),)).describe() == samples[0].describe()


def test_samples_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Samples((part(),)).peak = 2.0
