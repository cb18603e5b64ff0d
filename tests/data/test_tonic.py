"""Data sets that look like tonic's: indexable, with events as structured arrays."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from spikecl.data import Events, Frames, from_tonic, tonic
from spikecl.errors import DataError

XYTP = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])  # as N-MNIST
TXP = np.dtype([("t", int), ("x", int), ("p", int)])  # as the Heidelberg digits
FRAMES = Frames(steps=4, width_ms=3.0)


class Retina:
    """A data set with rows; its size is (width, height, polarities), as tonic orders it."""

    sensor_size = (7, 5, 2)
    dtype = XYTP
    counts = (12, 0, 5, 30, 1, 8)

    def __init__(self, seed=0):
        self.seed = seed

    def __len__(self):
        return len(self.counts)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        rng = np.random.default_rng((self.seed, i))
        events = np.zeros(self.counts[i], self.dtype)
        for name, size in zip("xyp", self.sensor_size):
            if name in events.dtype.names:
                events[name] = rng.integers(0, size, len(events))
        if self.sensor_size[2] == 1:
            events["p"] = 1  # what tonic writes where there is one kind of event
        events["t"] = np.sort(rng.integers(0, 11_000, len(events)))
        return events, np.int64(i % 3)


class Cochlea(Retina):
    """A data set of one dimension with one kind of event."""

    sensor_size = (70, 1, 1)
    dtype = TXP


def frames_of(items, frames, sensor):
    """The frames of each item on its own."""
    parts = []
    for i in range(len(items)):
        e, _ = items[i]
        columns = {name: e[name] for name in e.dtype.names}
        offset = np.array([0, len(e)])
        parts.append(frames.of(Events(**columns, offset=offset, labels=offset[:1]), sensor=sensor))
    return np.concatenate(parts)


@pytest.mark.parametrize("chunk", [1, 4, 6, 256])
@pytest.mark.parametrize("frames", [FRAMES, Frames(by="count", steps=3, counts="binary", pool=2)])
def test_every_item_becomes_its_frames(monkeypatch, chunk, frames):
    monkeypatch.setattr(tonic, "CHUNK", chunk)
    train, test = Retina(), Retina(seed=1)
    data = from_tonic(train, test, frames=frames)
    assert (data.name, data.peak, data.temporal, data.step_ms) == (
        "retina",
        1.0,
        True,
        frames.step_ms,
    )
    np.testing.assert_array_equal(data.x_train, frames_of(train, frames, (5, 7, 2)))
    np.testing.assert_array_equal(data.x_test, frames_of(test, frames, (5, 7, 2)))
    assert data.y_train.tolist() == data.y_test.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.x_train.any()


def test_without_rows_features_are_channels():
    train, test = Cochlea(), Cochlea(seed=1)
    data = from_tonic(train, test, frames=FRAMES, name="heard")
    assert (data.name, data.x_train.shape) == ("heard", (6, 4, 70))
    np.testing.assert_array_equal(data.x_train, frames_of(train, FRAMES, (70,)))
    assert data.x_train.sum() == sum(Cochlea.counts)
    two = from_tonic(train, test, frames=FRAMES, sensor_size=(70, 1, 2))
    assert two.x_train.shape == (6, 4, 70, 2)
    np.testing.assert_array_equal(two.x_train[..., 1], data.x_train)


def test_the_size_that_is_given_counts_before_that_of_the_set():
    train, test = Retina(), Retina(seed=1)
    given = from_tonic(train, test, frames=FRAMES, sensor_size=(9, 6, 2))
    assert given.input_shape == (4, 6, 9, 2)
    frames = Frames(steps=4, width_ms=3.0, sensor=(8, 8, 2))
    assert from_tonic(train, test, frames=frames, sensor_size=(9, 6, 2)).input_shape == (4, 8, 8, 2)


def test_the_usual_frames():
    train, test = Retina(), Retina(seed=1)
    assert from_tonic(train, test) == from_tonic(train, test, frames=Frames())


def changed(**attributes):
    return type("Changed", (Retina,), attributes)()


BAD = {
    "no size": (
        {"sensor_size": None, "__getitem__": lambda self, i: (np.zeros(3, XYTP), 0)},
        "the sensor has the size None; .*give sensor_size",
    ),
    "empty": ({"counts": ()}, "data 'changed': train: no items"),
    "frames": (
        {"__getitem__": lambda self, i: (np.zeros((3, 2, 5, 7)), 0)},
        r"item 0: ndarray with fields \[\] and label 0",
    ),
    "no label": ({"__getitem__": lambda self, i: np.zeros(3, XYTP)}, "item 0: ndarray .*label ''"),
    "text": ({"__getitem__": lambda self, i: (np.zeros(3, XYTP), "dog")}, "label 'dog'"),
    "boxes": ({"__getitem__": lambda self, i: (np.zeros(3, XYTP), np.zeros(4))}, "label array"),
    "outside": ({"sensor_size": (7, 5, 2), "__getitem__": lambda self, i: (
        np.array([(7, 0, 0, 0)], XYTP), 0)}, "items 0 to 5: x goes up to 7, the sensor is 5 x 7"),
    "late": ({"__getitem__": lambda self, i: (np.array([(0, 0, 10**9, 0)], XYTP), 0)},
             "train: none of 6 events is in a frame"),
    "order": ({"__getitem__": lambda self, i: (
        np.array([(0, 0, 9, 0), (0, 0, 3, 0)], XYTP), 0)}, "recording 0 go back, from 9 to 3 us"),
}  # fmt: skip


@pytest.mark.parametrize(("attributes", "says"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused_in_one_line(attributes, says):
    with pytest.raises(DataError, match=says) as caught:
        from_tonic(changed(**attributes), Retina(), frames=FRAMES)
    message = str(caught.value)
    assert "data 'changed'" in message
    assert "\n" not in message
    assert message.count(";") >= 2


def test_tonic_itself_is_not_imported():
    code = (
        "import sys; sys.modules['tonic'] = None; import numpy as np;"
        "from spikecl.data import from_tonic;"
        "e = np.zeros(2, [('x', int), ('y', int), ('t', int), ('p', int)]);"
        "one = [(e, 0), (e, 1)];"
        "print(from_tonic(one, one, sensor_size=(3, 2, 1)).input_shape)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "(20, 2, 3, 1)"
