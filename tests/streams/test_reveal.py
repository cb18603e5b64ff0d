"""Learners see what is revealed and get an error for the rest."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.data import checked
from spikecl.errors import HiddenFieldError
from spikecl.streams import (
    CLASS_IL,
    DOMAIN_IL,
    TASK_FREE,
    TASK_IL,
    Adapt,
    Evaluate,
    LearnerView,
    Reveal,
    split_classes,
)

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
FLAGS = list(Reveal)
FIELDS = {
    "index": Reveal.BOUNDARY,
    "task": Reveal.TASK_ID_TRAIN,
    "classes": Reveal.CLASSES,
    "old": Reveal.OLD_DATA,
}
DATA = checked(
    {
        "x_train": np.arange(12 * 4, dtype=np.uint8).reshape(12, 4),
        "y_train": np.arange(12) % 4,
        "x_test": np.arange(8 * 4, dtype=np.uint8).reshape(8, 4),
        "y_test": np.arange(8) % 4,
    },
    "tiny",
)
STREAM = split_classes(DATA, experiences=4, order=[2, 0, 3, 1])
reveals = st.sets(st.sampled_from(FLAGS)).map(
    lambda flags: Reveal(sum(flag.value for flag in flags))
)


@quick
@given(reveals, st.integers(0, 3))
def test_an_experience_shows_exactly_what_is_revealed(reveal, i):
    event = STREAM[i]
    view = STREAM.with_reveal(reveal).view(event)
    for field, flag in FIELDS.items():
        if flag in reveal:
            getattr(view, field)
        else:
            with pytest.raises(HiddenFieldError, match=f"does not reveal '{field}'"):
                getattr(view, field)
    loaded = view.samples.load()
    assert torch.equal(loaded.x, event.train.load().x)
    assert (loaded.y is not None) == (Reveal.LABELS in reveal)
    assert (loaded.uid is not None) == (Reveal.SAMPLE_IDS in reveal)
    batch = loaded.take(slice(2))
    assert (batch.y is not None) == (Reveal.LABELS in reveal)
    assert (batch.uid is not None) == (Reveal.SAMPLE_IDS in reveal)


def test_values_of_the_fields():
    every = Reveal(sum(flag.value for flag in FLAGS))
    view = STREAM.with_reveal(every).view(STREAM[2])
    assert (view.index, view.task, view.classes) == (2, 2, (3,))
    assert view.samples.load().y.tolist() == [3, 3, 3]
    assert view.samples.load().uid.tolist() == [3, 7, 11]
    assert [s.load().y.unique().item() for s in view.old] == [2, 0]
    assert view.reveal == every


@pytest.mark.parametrize("flags", [Reveal.NONE, Reveal.LABELS, Reveal.SAMPLE_IDS])
def test_old_data_hide_what_the_present_hides(flags):
    stream = STREAM.with_reveal(Reveal.OLD_DATA | flags)
    old = stream.view(stream[3]).old
    assert len(old) == 3
    for samples in old:
        loaded = samples.load()
        assert (loaded.y is not None) == (Reveal.LABELS in flags)
        assert (loaded.uid is not None) == (Reveal.SAMPLE_IDS in flags)
    assert stream.view(stream[0]).old == ()


def test_hidden_labels_cannot_be_shown_again():
    view = STREAM.with_reveal(Reveal.NONE).view(STREAM[0])
    assert view.samples.show(labels=True, ids=True).load().y is None


@quick
@given(reveals)
def test_inputs_to_adapt_to_never_have_labels(reveal):
    event = Adapt(3, STREAM[1].train, "noise", 2)
    view = STREAM.with_reveal(reveal).view(event)
    loaded = view.samples.load()
    assert loaded.y is None
    assert (loaded.uid is not None) == (Reveal.SAMPLE_IDS in reveal)
    for field in ("task", "classes", "old", "corruption"):
        with pytest.raises(HiddenFieldError):
            getattr(view, field)
    if Reveal.BOUNDARY in reveal:
        assert view.index == 3


def test_an_evaluation_shows_no_samples():
    view = STREAM.with_reveal(TASK_IL).view(Evaluate(1, ("task0",)))
    with pytest.raises(HiddenFieldError):
        _ = view.samples


def test_the_error_says_what_is_revealed():
    view = LearnerView(DOMAIN_IL, {"samples": 1, "index": 2})
    with pytest.raises(HiddenFieldError) as error:
        _ = view.task
    assert "'task'; revealed: index, samples (boundary, labels)" in str(error.value)
    assert not hasattr(view, "task")
    assert isinstance(error.value, AttributeError)


def test_a_view_does_not_follow_its_source():
    fields = {"samples": 1}
    view = LearnerView(TASK_FREE, fields)
    fields["task"] = 3
    assert not hasattr(view, "task")
    with pytest.raises(AttributeError):
        view.task = 3


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (TASK_IL, ["boundary", "task_id_train", "task_id_eval", "classes", "labels"]),
        (CLASS_IL, ["boundary", "classes", "labels"]),
        (DOMAIN_IL, ["boundary", "labels"]),
        (TASK_FREE, ["labels"]),
        (Reveal.NONE, []),
        (Reveal.OLD_DATA | Reveal.SAMPLE_IDS, ["old_data", "sample_ids"]),
    ],
)
def test_names(scenario, words):
    assert scenario.names() == words


def test_flags_are_distinct():
    assert all(not (a & b) for a, b in itertools.combinations(FLAGS, 2))
    assert len(FLAGS) == 7


@pytest.mark.parametrize("reveal", [TASK_IL, CLASS_IL])
def test_the_task_of_a_test_set_is_told_in_task_incremental_streams_only(reveal):
    stream = STREAM.with_reveal(reveal)
    told = [stream.task_of(name) for name in stream.eval_sets]
    assert told == ([0, 1, 2, 3] if reveal is TASK_IL else [None] * 4)
