"""Frames of events, compared with a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.data import Events, Frames, events
from spikecl.errors import ConfigError, DataError

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SENSOR = (5, 7, 2)


def recordings(counts=(40, 0, 25, 1), *, sensor=SENSOR, last_us=30_000, seed=0):
    """Recordings with so many random events each."""
    rng = np.random.default_rng(seed)
    n, (height, width, polarities) = sum(counts), sensor
    times = [np.sort(rng.integers(0, last_us, k)) for k in counts]
    return Events(
        t=np.concatenate([[], *times]).astype(np.uint32),
        x=rng.integers(0, width, n).astype(np.uint8),
        y=rng.integers(0, height, n).astype(np.uint8),
        p=rng.integers(0, polarities, n).astype(np.uint8),
        offset=np.cumsum([0, *counts]),
        labels=np.arange(len(counts)),
    )


def with_changes(given, **changes):
    fields = {name: getattr(given, name) for name in ("t", "x", "y", "p", "offset", "labels")}
    return Events(**{**fields, **changes}, where="mine.npz: train")


def counted(given, frames, sensor):
    """The same frames, one event after the other."""
    height, width, polarities = sensor
    cells = [math.ceil(height / frames.pool), math.ceil(width / frames.pool), polarities]
    made = np.zeros([len(given), frames.steps, *cells], int)
    for i in range(len(given)):
        rows = range(int(given.offset[i]), int(given.offset[i + 1]))
        for k, row in enumerate(rows):
            t = int(given.t[row])
            if frames.start == "first":
                t -= int(given.t[rows[0]])
            step = math.floor(t / (1000 * frames.width_ms))
            if frames.by == "count":
                step = math.floor(k * frames.steps / len(rows))
            if step < frames.steps:
                y, x = int(given.y[row]) // frames.pool, int(given.x[row]) // frames.pool
                made[i, step, y, x, int(given.p[row]) if polarities > 1 else 0] += 1
    return np.minimum(made, 1 if frames.counts == "binary" else 255)


@quick
@given(
    by=st.sampled_from(["width", "count"]),
    steps=st.integers(1, 6),
    width_ms=st.sampled_from([0.5, 2.5, 7.0, 40.0]),
    start=st.sampled_from(["zero", "first"]),
    counts=st.sampled_from(["keep", "binary"]),
    pool=st.integers(1, 8),
    polarities=st.integers(1, 2),
    seed=st.integers(0, 100),
)
def test_frames_are_those_of_a_loop(polarities, seed, **fields):
    given = recordings(sensor=SENSOR, last_us=8_000, seed=seed)
    frames = Frames(**fields, sensor=(5, 7, polarities))
    made = frames.of(given)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, counted(given, frames, (5, 7, polarities)))


@pytest.mark.parametrize("pool", [1, 2, 3, 10])
@pytest.mark.parametrize("by", ["width", "count"])
def test_no_event_is_lost_when_none_is_late(by, pool):
    given = recordings((200, 3, 0, 77))
    made = Frames(by=by, steps=6, width_ms=5.0, pool=pool, sensor=SENSOR).of(given)
    assert made.sum((1, 2, 3, 4)).tolist() == [200, 3, 0, 77]
    assert made.shape == (4, 6, math.ceil(5 / pool), math.ceil(7 / pool), 2)


def test_what_comes_after_the_last_step_is_left_out():
    t = np.array([0, 999, 1000, 1999, 2000, 9999])
    given = with_changes(
        recordings((6,)), t=t, x=np.zeros(6, int), y=np.zeros(6, int), p=np.zeros(6, int)
    )
    assert Frames(steps=2, width_ms=1.0).of(given).sum((0, 2, 3, 4)).tolist() == [2, 2]
    late = with_changes(given, t=t + 500)
    assert Frames(steps=2, width_ms=1.0).of(late).sum((0, 2, 3, 4)).tolist() == [1, 2]
    from_first = Frames(steps=2, width_ms=1.0, start="first").of(late)
    assert from_first.sum((0, 2, 3, 4)).tolist() == [2, 2]


@pytest.mark.parametrize("n", [1, 3, 7, 20, 101])
def test_by_count_every_step_has_the_same_number_of_events(n):
    made = Frames(by="count", steps=7, sensor=SENSOR).of(recordings((n,), seed=n))
    counts = made.sum((0, 2, 3, 4))
    assert set(counts.tolist()) <= {n // 7, n // 7 + 1}
    assert counts.sum() == n


def test_counts_end_at_255_and_binary_at_1():
    n = 300
    same = np.zeros(n + 1, int)
    same[-1] = 1
    given = Events(t=same * 0, x=same, y=same, p=same * 0, offset=np.array([0, n + 1]),
                   labels=np.array([0]))  # fmt: skip
    made = Frames(steps=1, sensor=(2, 2, 1)).of(given)[0, 0, ..., 0]
    assert made.tolist() == [[255, 0], [0, 1]]
    binary = Frames(steps=1, counts="binary", sensor=(2, 2, 1)).of(given)[0, 0, ..., 0]
    assert binary.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("frames", [Frames(), Frames(by="count"), Frames(start="first")])
def test_recordings_without_events_are_dark(frames):
    for counts in ((0, 0), (0, 5, 0), ()):
        made = frames.of(recordings(counts))
        assert made.shape == (len(counts), 20, 34, 34, 2)
        assert made.sum((1, 2, 3, 4)).tolist() == list(counts)


def test_the_frames_of_a_recording_do_not_depend_on_the_others():
    frames = Frames(steps=4, width_ms=5.0, sensor=SENSOR)
    given = recordings((30, 500, 20))
    made = frames.of(given)
    for i in range(3):
        part = slice(*given.offset[i : i + 2])
        columns = {name: getattr(given, name)[part] for name in "txyp"}
        alone = Events(**columns, offset=np.array([0, len(columns["t"])]), labels=np.array([0]))
        np.testing.assert_array_equal(frames.of(alone)[0], made[i])


def test_chunks_do_not_show(monkeypatch):
    given = recordings((30, 0, 50, 7, 0))
    every = [Frames(steps=3, width_ms=9.0, sensor=SENSOR), Frames(by="count", sensor=SENSOR),
             Frames(start="first", sensor=SENSOR)]  # fmt: skip
    whole = [frames.of(given) for frames in every]
    for cells in (1, 3 * 5 * 7 * 2 * 2):
        monkeypatch.setattr(events, "CELLS", cells)
        for frames, expected in zip(every, whole):
            np.testing.assert_array_equal(frames.of(given), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, np.int64])
def test_the_type_of_the_numbers_does_not_matter(dtype):
    given = recordings((40, 12), last_us=200)
    same = with_changes(
        given, **{n: getattr(given, n).astype(dtype) for n in ("t", "x", "y", "p", "offset")}
    )
    for frames in (Frames(width_ms=0.02, sensor=SENSOR), Frames(by="count", sensor=SENSOR)):
        np.testing.assert_array_equal(frames.of(same), frames.of(given))


def test_sensors_of_one_dimension():
    given = with_changes(recordings((60,)), y=None)
    square = with_changes(given, y=np.zeros(60, np.uint8))
    expected = Frames(steps=3, width_ms=10.0, sensor=(1, 7, 2)).of(square)[:, :, 0]
    made = Frames(steps=3, width_ms=10.0, sensor=(7, 2)).of(given)
    np.testing.assert_array_equal(made, expected)
    merged = Frames(steps=3, width_ms=10.0, sensor=(7,)).of(with_changes(given, p=None))
    np.testing.assert_array_equal(merged, expected.sum(-1))
    pooled = Frames(steps=3, width_ms=10.0, sensor=(7, 2), pool=4).of(given)
    np.testing.assert_array_equal(pooled[:, :, 0], expected[:, :, :4].sum(2))
    np.testing.assert_array_equal(pooled[:, :, 1], expected[:, :, 4:].sum(2))


def test_the_size_that_comes_with_the_data_counts_unless_frames_have_one():
    given = recordings()
    assert Frames().of(given, sensor=(5, 9, 3)).shape == (4, 20, 5, 9, 3)
    assert Frames(sensor=(6, 8, 2)).of(given, sensor=(5, 9, 3)).shape == (4, 20, 6, 8, 2)


def test_the_default_is_all_of_a_recording_of_n_mnist():
    frames = Frames()
    assert events.SENSOR == (34, 34, 2)
    assert 308 <= frames.steps * frames.step_ms <= 330


def test_the_length_of_a_step():
    assert Frames(width_ms=2.5).step_ms == 2.5
    assert Frames(width_ms=0.0123).step_ms == 0.012  # whole microseconds
    assert Frames(by="count").step_ms is None


BAD = {
    "order": ({"t": np.array([3, 1, 2, 0])}, "times of recording 0 go back, from 3 to 1 us"),
    "order later": (
        {"t": np.array([1, 3, 5, 4])},
        "recording 1 go back, from 5 to 4 us at event 3",
    ),
    "negative time": ({"t": np.array([-1, 0, 0, 0])}, "t goes down to -1"),
    "negative column": ({"x": np.array([0, 0, -2, 0])}, "x goes down to -2"),
    "seconds": ({"t": np.arange(4) / 10}, "t is float64 .* whole microseconds"),
    "two axes": ({"x": np.zeros((4, 1), int)}, r"x is int64 of shape \(4, 1\)"),
    "objects": ({"p": np.zeros(4, object)}, "p is object"),
    "lengths": ({"y": np.zeros(3, int)}, "4 times t, but 3 values of y"),
    "offsets": ({"offset": np.array([0, 4])}, "2 offsets for 2 labels"),
    "start": ({"offset": np.array([1, 2, 4])}, "offsets from 1 to 4 for 4 events"),
    "end": ({"offset": np.array([0, 2, 5])}, "offsets from 0 to 5 for 4 events"),
    "back": (
        {"offset": np.array([0, 3, 2, 4]), "labels": np.arange(3)},
        "offset 2 is 2, the one before it 3",
    ),
    "labels": ({"labels": np.array([0.0, 1.0])}, "labels is float64"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD.keys())
def test_bad_events_are_refused_in_one_line(change, says):
    good = with_changes(recordings((2, 2)), t=np.array([1, 2, 0, 5]))
    with pytest.raises(DataError, match=says) as caught:
        with_changes(good, **change)
    message = str(caught.value)
    assert message.startswith("mine.npz: train: ")
    assert "\n" not in message
    assert message.count(";") >= 2  # given; allowed; what to do


BAD_SENSORS = {
    "column": ((5, 4, 2), "x goes up to 6, the sensor is 5 x 4 x 2; allowed: x from 0 to 3"),
    "row": ((3, 7, 2), "y goes up to 4, the sensor is 3 x 7 x 2"),
}


@pytest.mark.parametrize(("sensor", "says"), BAD_SENSORS.values(), ids=BAD_SENSORS.keys())
def test_events_outside_the_sensor_are_refused(sensor, says):
    given = with_changes(recordings((500,)))
    with pytest.raises(DataError, match=f"mine.npz: train: {says}.*set sensor to its true size"):
        Frames(sensor=sensor).of(given)


@pytest.mark.parametrize(("name", "sensor"), [("y", (5, 7, 2)), ("p", (7, 2))])
def test_a_sensor_with_rows_or_polarities_needs_them(name, sensor):
    given = with_changes(recordings(), **{name: None})
    with pytest.raises(DataError, match=f"but there is no {name}; allowed: .height, width"):
        Frames(sensor=sensor).of(given)


@pytest.mark.parametrize(
    "fields",
    [{"steps": 0}, {"width_ms": -1.0}, {"width_ms": 0.0}, {"width_ms": math.nan}, {"pool": 0},
     {"by": "time"}, {"counts": "sum"}, {"start": "last"}, {"sensor": ()}, {"sensor": (3, 0, 2)},
     {"sensor": (1, 2, 3, 4)}, {"sensor": (3.5,)}, {"steps": 2.0}],
    ids=str,
)  # fmt: skip
def test_bad_frames_are_refused(fields):
    (name,) = fields
    with pytest.raises(ConfigError, match=f"Frames.{name}"):
        Frames(**fields)
