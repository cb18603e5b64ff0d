"""Files of events: read, framed, recognised."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from spikecl.data import Events, Frames, event_file, load, verify
from spikecl.data.catalogue import CATALOGUE
from spikecl.errors import ConfigError, DataError

FRAMES = Frames(steps=3, width_ms=4.0, sensor=(5, 7, 2))


@pytest.fixture
def flat():
    """The arrays of a file: 4 + 2 recordings of 2 classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, lengths in (("train", [5, 0, 9, 3]), ("test", [4, 6])):
        n = sum(lengths)
        times = [np.sort(rng.integers(0, 12_000, k)) for k in lengths]
        arrays |= {
            f"t_{split}": np.concatenate(times).astype(np.uint32),
            f"x_{split}": rng.integers(0, 7, n).astype(np.uint8),
            f"yy_{split}": rng.integers(0, 5, n).astype(np.uint8),
            f"p_{split}": rng.integers(0, 2, n).astype(np.uint8),
            f"offset_{split}": np.cumsum([0, *lengths]),
            f"y_{split}": (np.arange(len(lengths)) % 2).astype(np.uint8),
        }
    return arrays


@pytest.fixture
def path(tmp_path, cache):
    return tmp_path / "mine.npz"


def refused(path, says, frames=FRAMES):
    with pytest.raises(DataError, match=says) as caught:
        load(path, frames=frames)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_users_file_of_events_becomes_frames(path, flat, write):
    write(path, **flat, classes=np.array(["off", "on"]))
    data = load(path, frames=FRAMES)
    assert (data.name, data.peak, data.temporal, data.step_ms) == ("mine", 1.0, True, 4.0)
    assert (data.classes, data.class_names, data.input_shape) == (2, ("off", "on"), (3, 5, 7, 2))
    for split in ("train", "test"):
        names = {"t": "t", "x": "x", "y": "yy", "p": "p", "offset": "offset", "labels": "y"}
        given = Events(**{field: flat[f"{name}_{split}"] for field, name in names.items()})
        np.testing.assert_array_equal(getattr(data, f"x_{split}"), FRAMES.of(given))
        np.testing.assert_array_equal(getattr(data, f"y_{split}"), flat[f"y_{split}"])
    assert data.x_train.sum() == 17


def test_without_frames_they_are_the_usual_ones(path, flat):
    np.savez(path, **flat)
    assert load(path) == load(path, frames=Frames())
    assert load(path).input_shape == (20, 34, 34, 2)


def test_other_frames_are_other_data(path, flat):
    np.savez(path, **flat)
    every = [FRAMES, Frames(sensor=(5, 7, 2)), Frames(sensor=(5, 7, 2), by="count")]
    assert len({load(path, frames=frames).checksum for frames in every}) == 3
    one = load(path, frames=Frames(steps=1, width_ms=20.0))
    other = load(path, frames=Frames(steps=1, width_ms=30.0))
    assert one.checksum == other.checksum  # the same counts,
    assert one != other  # but not the same time


def test_the_file_may_say_how_large_the_sensor_is(path, flat):
    np.savez(path, **flat, sensor=np.array([6, 8, 2]))
    assert load(path).input_shape == (20, 6, 8, 2)
    assert load(path, frames=FRAMES).input_shape == (3, 5, 7, 2)
    for wrong in (np.array([6, 0, 2]), np.array([1, 2, 3, 4]), np.zeros(0, int), np.array([[5]])):
        np.savez(path, **flat, sensor=wrong)
        refused(path, "sensor is")


def test_rows_and_polarities_may_be_absent(path, flat):
    columns = {name: a for name, a in flat.items() if name[:2] not in ("yy", "p_")}
    np.savez(path, **columns)
    data = load(path, frames=Frames(steps=2, width_ms=6.0, sensor=(7,)))
    assert data.input_shape == (2, 7)
    assert data.x_train.sum() == 17
    refused(path, "but there is no y")


@pytest.mark.parametrize("name", ["t_test", "x_train", "offset_test", "y_train"])
def test_missing_arrays_are_named(path, flat, name):
    del flat[name]
    np.savez(path, **flat)
    refused(path, f"holds events .x_train is a coordinate.: {name} missing")


def test_bad_events_name_file_and_split(path, flat):
    np.savez(path, **{**flat, "t_test": flat["t_test"][::-1]})
    refused(path, "test: the times of recording 0 go back")
    np.savez(path, **{**flat, "x_train": flat["x_train"] + 9})
    refused(path, "train: x goes up to 15, the sensor is 5 x 7 x 2")
    np.savez(path, **{**flat, "t_train": flat["t_train"].astype(object)})
    refused(path, "t_train holds pickled Python objects")
    np.savez(path, **{**flat, "y_train": flat["y_train"] + 1})
    refused(path, "labels do not start at 0")


def test_a_truncated_file_is_refused(path, flat):
    np.savez(path, **flat)
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, "is damaged")


def test_frames_that_see_nothing_are_refused(path, flat):
    np.savez(path, **{**flat, "t_train": flat["t_train"] + 10**7})
    refused(path, "train: none of 17 events is in a frame.*start = 'first'")
    first = Frames(steps=3, width_ms=4.0, sensor=(5, 7, 2), start="first")
    assert load(path, frames=first).x_train.any()


def test_the_checksum_is_the_stated_sequence_of_bytes(path, flat):
    stream = b""
    for split in ("train", "test"):
        for name in ("t", "x", "yy", "p", "offset", "y"):
            array = flat[f"{name}_{split}"]
            smallest = "<u2" if name == "t" else "|u1"
            stream += f"{name}_{split} {smallest} {len(array)}\n".encode()
            stream += array.astype(smallest).tobytes()
    expected = hashlib.sha256(stream).hexdigest()
    wide = {name: array.astype(np.int64) for name, array in flat.items()}
    assert event_file.checksum_of(flat) == event_file.checksum_of(wide) == expected
    np.savez(path, **wide)
    assert event_file.checksum(path) == verify(path).checksum == expected
    assert event_file.framed(path, FRAMES, name="mine")[1] == expected


@pytest.mark.parametrize("name", ["t_train", "x_test", "yy_train", "p_test", "y_test"])
def test_the_checksum_tells_any_changed_array(flat, name):
    changed = {**flat, name: flat[name].copy()}
    changed[name][-1] ^= 1
    assert event_file.checksum_of(changed) != event_file.checksum_of(flat)


def test_a_configuration_says_how_events_become_frames(path, flat):
    from spikecl.experiments.config import parse_config
    from spikecl.experiments.job import Job

    np.savez(path, **flat)
    table = {"steps": 3, "width_ms": 4.0, "sensor": [5, 7, 2]}
    config = parse_config({"data": {"name": str(path), "frames": table}})
    assert config.data.frames == FRAMES
    assert parse_config(config.table()) == config
    stream = Job.from_config(config, data_dir=None).stream
    assert (stream.input_shape, stream.temporal) == ((3, 5, 7, 2), True)
    assert stream.fingerprint() == config.stream.make(load(path, frames=FRAMES), 0).fingerprint()
    with pytest.raises(DataError, match="frames are given, but 'digits' holds no events"):
        Job.from_config(parse_config({"data": {"frames": {}}}), data_dir=None)
    with pytest.raises(ConfigError, match="data.frames.steps: got 0"):
        parse_config({"data": {"frames": {"steps": 0}}})


@pytest.mark.data
def test_the_real_events_are_the_published_ones(real_folder):
    if os.path.exists(real_folder / "nmnist.npz"):
        pytest.skip("the full set is here")
    data = load("nmnist", data_dir=real_folder)
    assert data == load("nmnist_small", data_dir=real_folder, frames=Frames())
    assert verify("nmnist", data_dir=real_folder).ok is True
    assert (data.name, data.temporal, data.step_ms) == ("nmnist_small", True, 16.0)
    assert data.x_train.shape == (1000, 20, 34, 34, 2)
    assert data.x_test.shape == (100, 20, 34, 34, 2)
    assert data.class_names == CATALOGUE["nmnist"].class_names
    assert data.x_train.sum() == 4133231  # all of them
    assert data.x_test.sum() == 385596 - 88  # one recording is longer than the frames
    images = load("mnist", data_dir=real_folder)  # the recordings are of its first images
    np.testing.assert_array_equal(data.y_train, images.y_train[:1000])
    np.testing.assert_array_equal(data.y_test, images.y_test[:100])
