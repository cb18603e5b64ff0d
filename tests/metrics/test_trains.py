"""What measures take as trains, and what they say to the rest."""

import numpy as np
import pytest
import torch

from spikecl.errors import UsageError
from spikecl.metrics.distances import van_rossum, victor_purpura
from spikecl.metrics.intervals import cv, cv2, isi
from spikecl.metrics.spikes import correlation, fano, psth, rates, sta, synchrony
from spikecl.metrics.trains import as_trains, steps_in, to_array

SPIKES = (np.random.default_rng(0).random((40, 3, 5)) < 0.3).astype(np.float32)
MEASURES = {
    "rates": lambda x: rates(x, 1.0),
    "psth": lambda x: psth(x, 1.0, window=4.0),
    "isi": lambda x: isi(x, 1.0),
    "cv": cv,
    "cv2": cv2,
    "fano": lambda x: fano(x, 1.0, window=4.0),
    "correlation": lambda x: correlation(x, 1.0, window=4.0),
    "synchrony": lambda x: synchrony(x, 1.0, window=4.0),
    "sta": lambda x: sta(x, x, dt=1.0, window=4.0),
    "van_rossum": lambda x: van_rossum(
        x, x[::-1] if isinstance(x, np.ndarray) else x.flip(0), **VR
    ),
    "victor_purpura": lambda x: victor_purpura(x, 0 * x, cost=0.1, dt=1.0),
}
VR = {"tau": 5.0, "dt": 1.0}
each = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


@each
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float64, np.float16])
def test_the_type_does_not_matter(measure, kind):
    np.testing.assert_allclose(measure(SPIKES.astype(kind)), measure(SPIKES), rtol=1e-6)


@each
def test_tensors_are_taken_off_their_graph(measure):
    tensor = torch.tensor(SPIKES, requires_grad=True) * 1
    np.testing.assert_array_equal(measure(tensor), measure(SPIKES))
    np.testing.assert_array_equal(measure(tensor.bfloat16()), measure(SPIKES))


@each
def test_one_trial_is_a_batch_of_one(measure):
    alone, batch = np.asarray(measure(SPIKES[:, 1])), np.asarray(measure(SPIKES[:, [1]]))
    np.testing.assert_allclose(alone, batch.reshape(alone.shape))


@each
@pytest.mark.parametrize("value", [0, 1], ids=["silent", "saturated"])
@pytest.mark.parametrize("shape", [(12, 3), (12, 2, 3), (12, 1)])
def test_silent_and_saturated_trains_give_no_warning(measure, value, shape):
    assert np.asarray(measure(np.full(shape, value))).dtype == np.float64


@each
def test_nothing_is_changed(measure):
    before = SPIKES.copy()
    measure(before)
    np.testing.assert_array_equal(before, SPIKES)


@each
@pytest.mark.parametrize("shape", [(8,), (8, 1, 2, 3), (0, 3), (4, 0, 3), (4, 3, 0)])
def test_other_ranks_and_empty_axes_are_refused(measure, shape):
    with pytest.raises(UsageError, match=r"allowed are numbers \[T, N\] or \[T, B, N\]"):
        measure(np.zeros(shape))


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, np.inf])
@pytest.mark.parametrize("name", sorted({*MEASURES} - {"synchrony"}))
def test_a_membrane_is_no_spike_train(name, bad):
    x = SPIKES.copy()
    x[3, 1, 2] = bad
    message = "must be 0, 1 or whole counts.*another array"
    with np.errstate(invalid="ignore"), pytest.raises(UsageError, match=message):
        MEASURES[name](x)  # the errstate is for 0 * inf here, in the test


def test_objects_and_text_are_no_numbers():
    with pytest.raises(UsageError, match="object"):
        cv(np.array([[None, 1]], dtype=object))
    with pytest.raises(UsageError, match="complex128"):
        cv(np.ones((3, 2), complex))


def test_a_membrane_has_finite_values():
    assert synchrony(-SPIKES - 0.3, 1.0, window=4.0) > 0
    with pytest.raises(UsageError, match="activity must be finite numbers"):
        synchrony(SPIKES * np.float32(np.nan), 1.0, window=1.0)


@pytest.mark.parametrize("dt", [0.0, -1.0, np.nan, np.inf])
def test_a_time_step_is_positive(dt):
    calls = [
        lambda: rates(SPIKES, dt),
        lambda: psth(SPIKES, dt, window=1.0),
        lambda: isi(SPIKES, dt),
        lambda: fano(SPIKES, dt, window=1.0),
        lambda: correlation(SPIKES, dt, window=1.0),
        lambda: synchrony(SPIKES, dt, window=1.0),
        lambda: sta(SPIKES, SPIKES, dt=dt, window=1.0),
        lambda: van_rossum(SPIKES, SPIKES, tau=1.0, dt=dt),
        lambda: victor_purpura(SPIKES, SPIKES, cost=1.0, dt=dt),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=f"dt is {dt}; give a finite number of milliseconds"):
            call()


@pytest.mark.parametrize("window", [0.0, -2.0, 0.25, 1.2, 10.01, 20.5, np.nan])
def test_a_window_is_a_whole_number_of_steps(window):
    with pytest.raises(UsageError, match=f"window is {window}"):
        steps_in(window, 0.5, 40)


def test_windows_in_odd_units():
    assert steps_in(0.3, 0.1, 10) == 3  # 0.3 / 0.1 is not 3
    assert steps_in(1.0, 0.1, 10) == 10
    assert steps_in(7 / 3, 1 / 3, 10) == 7


def test_arrays_are_not_copied():
    tensor = torch.zeros(4, 3)
    assert np.shares_memory(to_array(tensor), tensor.numpy())
    assert np.shares_memory(as_trains(SPIKES), SPIKES)
