"""What surrounds the memory: the data's own type, what is asked of a stream, what is forgotten."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from spikecl.continual import Context
from spikecl.continual.replay.rehearsal import RawType, Rehearsal
from spikecl.errors import ConfigError, UsageError
from spikecl.networks import Mlp
from spikecl.optim import Sgd
from spikecl.seeds import Seeds
from spikecl.storage import join, split
from spikecl.streams import DOMAIN_IL, Batch, LearnerView, Loaded, Reveal, Samples, Unlearn
from spikecl.streams.events import Part

WITH_IDS = DOMAIN_IL | Reveal.SAMPLE_IDS


def samples(x, peak=1.0):
    return Samples((Part(x, torch.zeros(len(x)).long(), torch.arange(len(x))),), peak)


def started(reveal=WITH_IDS, *, heads=1, population=1, capacity=6, max_bytes=None):
    network = Mlp(hidden=(4,), population=population).build((3,), 2 * heads)
    context = Context(network, Sgd(), Seeds(1), reveal, 2, torch.device("cpu"))
    return Rehearsal("er", context, capacity=capacity, max_bytes=max_bytes, policy="reservoir")


def view_of(x=None, reveal=WITH_IDS, peak=255.0, **fields):
    x = torch.zeros(4, 3, dtype=torch.uint8) if x is None else x
    return LearnerView(reveal, {"samples": samples(x, peak), **fields})


def batch_of(first, count=4):
    uid = torch.arange(first, first + count)
    return Batch((uid[:, None] * torch.ones(3)) / 255, uid % 2, uid)


@pytest.mark.parametrize("peak", [255.0, 16.0, 1.0, 100.0, 0.7])
def test_whole_numbers_come_back_as_they_were(peak):
    raw = torch.arange(256, dtype=torch.uint8)
    kind = RawType.of(samples(raw[:, None], peak))
    assert kind == (torch.uint8, peak)
    x = Loaded(raw, None, None, peak).take(slice(None)).x
    assert torch.equal(kind.store(x), raw) and kind.store(x).dtype == torch.uint8
    assert torch.equal(kind.read(raw), x)  # to the last bit


def test_other_whole_numbers_too():
    raw = torch.arange(-3000, 3000, 7, dtype=torch.int16)
    kind = RawType.of(samples(raw[:, None], 3000.0))
    x = Loaded(raw, None, None, 3000.0).take(slice(None)).x
    assert torch.equal(kind.store(x), raw) and torch.equal(kind.read(raw), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_floats_stay_intensities(dtype):
    raw = torch.rand(50, 1, dtype=torch.float64).to(dtype)
    kind = RawType.of(samples(raw, 3.0))
    assert kind == (torch.float32, 1.0)
    x = Loaded(raw, None, None, 3.0).take(slice(None)).x
    assert kind.store(x) is x and torch.equal(kind.read(kind.store(x)), x)


def test_parts_of_different_types_are_kept_as_floats():
    both = samples(torch.zeros(2, 1).byte()).parts + samples(torch.zeros(2, 1)).parts
    assert RawType.of(Samples(both, 1.0)) == (torch.float32, 1.0)


def test_another_type_later_is_refused():
    method = started()
    method.begin(view_of())
    method.begin(view_of())
    with pytest.raises(UsageError, match=r"as torch.uint8 with peak 255, .* are torch.float32 "):
        method.begin(view_of(torch.zeros(2, 3)))
    with pytest.raises(UsageError, match="torch.uint8 with peak 16; use one type"):
        method.begin(view_of(peak=16.0))


def test_another_type_is_refused_where_no_boundary_shows_it_too():
    method = started()
    method.begin(view_of())
    method.hold(batch_of(1))
    method.after_step()
    for wrong in (torch.rand(4, 3), 3 * torch.randn(4, 3), torch.full((4, 3), 256 / 255)):
        method.hold(batch_of(5)._replace(x=wrong))
        with pytest.raises(
            UsageError, match="as torch.uint8 with peak 255, .* came now are others"
        ):
            method.after_step()
    assert method.memory.size == 4


@pytest.mark.parametrize("reveal", [WITH_IDS, DOMAIN_IL, WITH_IDS & ~Reveal.LABELS])
def test_keeps_what_the_stream_shows(reveal):
    method = started(reveal)
    assert method.nbytes() == 0 and method.report() == {} and method.recall(3) is None
    method.begin(view_of(reveal=reveal))
    each = 3 + 8 + 8 * sum(flag in reveal for flag in (Reveal.LABELS, Reveal.SAMPLE_IDS))
    assert method.nbytes() == 6 * each and method.recall(3) is None
    shown = batch_of(1)
    if Reveal.LABELS not in reveal:
        shown = shown._replace(y=None)
    if Reveal.SAMPLE_IDS not in reveal:
        shown = shown._replace(uid=None)
    method.hold(shown)
    assert method.recall(3) is None  # not before the step is done
    method.after_step()
    old = method.recall(9)
    order = old.x[:, 0].argsort()
    for got, came in zip(old, shown):
        assert (got is None) == (came is None)
        assert got is None or torch.equal(got[order], came)
    assert method.nbytes() == 6 * each


def test_a_sample_enters_in_its_first_epoch():
    method = started()
    for _ in range(2):
        method.begin(view_of())
        for _ in range(3):
            method.hold(batch_of(1))
            method.after_step()
            method.end_epoch()
    assert method.report() == {"stored": 6, "seen": 8, "classes": method.report()["classes"]}
    json.dumps(method.report(), allow_nan=False)


def test_draws_follow_one_another_and_the_state():
    method = started()
    method.begin(view_of())
    method.hold(batch_of(1, 6))
    method.after_step()
    drawn = [method.recall(3).uid.tolist() for _ in range(6)]
    assert len({tuple(d) for d in drawn}) > 1
    other = started()
    method.load_state_dict({**join(*split(method.state_dict())), "draws": 2})
    other.load_state_dict(join(*split(method.state_dict())))
    assert [other.recall(3).uid.tolist() for _ in range(4)] == drawn[2:]
    assert other.nbytes() == method.nbytes()


def test_forgets_ids_and_says_when_it_cannot():
    request = Unlearn(1, torch.tensor([2, 3, 77]))
    method = started()
    method.unlearn(request)  # nothing came yet
    method.begin(view_of())
    method.hold(batch_of(1))
    method.after_step()
    method.unlearn(request)
    assert sorted(method.recall(9).uid.tolist()) == [1, 4]
    assert method.report()["stored"] == 2
    with pytest.raises(UsageError, match=r"'er' cannot tell.*hides sample ids \(sample_ids\)"):
        started(DOMAIN_IL).unlearn(request)


def test_room_is_checked_when_the_size_of_a_sample_is_known():
    method = started(capacity=None, max_bytes=26)
    with pytest.raises(ConfigError, match="room for 0 samples of 27 bytes"):
        method.begin(view_of())
    method = started(capacity=None, max_bytes=100)
    method.begin(view_of())
    assert method.nbytes() == 81


def test_the_stream_may_show_less_than_a_batch_has():
    """Columns are those that are revealed, whatever else stands in a batch."""
    method = started(DOMAIN_IL)
    method.begin(view_of())
    method.hold(replace_uid(batch_of(1)))
    method.after_step()
    assert method.recall(2).uid is None


def replace_uid(batch):
    return batch._replace(uid=torch.full_like(batch.y, 5))


def test_samples_of_a_stream_are_not_loaded_to_know_their_type():
    class Loud:
        def __call__(self, x):
            raise AssertionError("loaded")

        def describe(self):
            return ""

    part = Part(torch.zeros(4, 3).byte(), torch.zeros(4).long(), torch.arange(4))
    view = LearnerView(WITH_IDS, {"samples": Samples((replace(part, transform=Loud()),), 255.0)})
    method = started()
    method.begin(view)
    assert method.nbytes() == 6 * (3 + 24)
