"""Spoken digits: the archive, and mel bands against a direct computation."""

from __future__ import annotations

import dataclasses
import io
import math
import wave
import zipfile

import numpy as np
import pytest

from spikecl.data import npz, spoken
from spikecl.data.download import download
from spikecl.data.recordings import FSDD
from spikecl.errors import DataError


def sine(frequency, *, level=1.0, seconds=1.1):
    t = np.arange(int(seconds * 8000)) / 8000
    return np.rint(32767 * level * np.sin(2 * math.pi * frequency * t)).astype(np.int16)


def mel(frequency):
    return 2595 * math.log10(1 + frequency / 700)


def direct(signal):
    """The equations of the module, band by band, with a plain Fourier sum."""
    s = np.zeros(8120)
    s[: min(len(signal), 8120)] = signal[:8120] / 32768
    n = np.arange(200)
    window = 0.5 - 0.5 * np.cos(2 * math.pi * n / 200)
    f = np.arange(257) * 8000 / 512
    fourier = np.exp(-2j * math.pi * np.outer(n, f) / 8000)
    edges = [k * mel(4000) / 41 for k in range(42)]
    m = np.array([mel(v) for v in f])
    out = np.zeros((100, 40))
    for k in range(100):
        power = np.abs((s[80 * k : 80 * k + 200] * window) @ fourier) ** 2 / (window.sum() / 2) ** 2
        for b in range(40):
            low, peak, high = edges[b : b + 3]
            rise, fall = (m - low) / (peak - low), (high - m) / (high - peak)
            total = power @ np.clip(np.minimum(rise, fall), 0, None)
            level = 10 * math.log10(total) if total > 0 else -math.inf
            out[k, b] = min(max(255 * (1 + level / 80), 0), 255)
    return out


def test_bands_are_those_of_the_equations():
    signal = np.random.default_rng(0).normal(0, 2000, 3000).astype(np.int16)
    made = spoken.log_mel(signal)
    assert (made.shape, made.dtype) == ((100, 40), np.uint8)
    np.testing.assert_allclose(made, direct(signal), atol=0.5 + 1e-6)
    assert 20 < made[:30].mean() < 235
    assert not made[38:].any()  # silence after the end


@pytest.mark.parametrize("frequency", [150, 440, 1000, 2500, 3600])
def test_a_tone_is_loudest_in_its_own_band(frequency):
    made = spoken.log_mel(sine(frequency, level=0.1))
    expected = round(mel(frequency) / mel(4000) * 41) - 1
    assert set(made.argmax(1).tolist()) <= {expected - 1, expected, expected + 1}
    np.testing.assert_array_equal(made[0].argmax(), made[99].argmax())  # cut at 8,120 samples


def test_levels_are_decibels_below_full_scale():
    f = 8000 / 512 * 64  # 1,000 Hz, on the grid
    loud, soft = (int(spoken.log_mel(sine(f, level=v)).max()) for v in (0.1, 0.01))
    assert loud - soft == pytest.approx(255 * 20 / 80, abs=1)
    assert spoken.log_mel(sine(f)).max() >= 250
    assert not spoken.log_mel(np.zeros(8000, np.int16)).any()
    assert not spoken.log_mel(np.zeros(0, np.int16)).any()


def test_bands_cover_the_spectrum_evenly():
    weights = spoken.mel_bands()
    assert weights.shape == (257, 40)
    assert (weights.max(0) > 0.5).all()
    first, last = weights.argmax(0)[[0, -1]]
    np.testing.assert_allclose(weights[first + 1 : last].sum(1), 1)  # neighbours add up to 1


def wav(samples, *, rate=8000, channels=1, width=2):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def recordings():
    """Two digits of two speakers, seven times: name → samples."""
    return {
        f"{digit}_{speaker}_{number}.wav": sine(200 + 100 * digit + 10 * number, level=level)[:900]
        for digit in (1, 0)
        for speaker, level in (("zoe", 0.5), ("ann", 0.2))
        for number in (10, 9, 5, 4, 3, 2, 1, 0)
    }


def archive(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("free-spoken-digit-dataset-1.0.10/README.md", "text")
        for name, content in files.items():
            file.writestr(f"free-spoken-digit-dataset-1.0.10/recordings/{name}", content)
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "v1.zip"


def test_the_first_five_of_each_speaker_and_digit_are_test(path):
    given = recordings()
    path.write_bytes(archive({name: wav(samples) for name, samples in given.items()}))
    arrays = spoken.read({"archive": path})
    for split, numbers in (("train", (5, 9, 10)), ("test", range(5))):
        names = [f"{d}_{s}_{n}.wav" for d in (0, 1) for s in ("ann", "zoe") for n in numbers]
        expected = [spoken.log_mel(given[name]) for name in names]
        np.testing.assert_array_equal(arrays[f"x_{split}"], expected)
        assert arrays[f"y_{split}"].tolist() == [int(name[0]) for name in names]


WRONG = {
    "rate": (lambda s: wav(s, rate=16000), r"1_zoe_4.wav has .* \(1, 2, 16000\), not \(1, 2, 8000"),
    "stereo": (lambda s: wav(s, channels=2), r"\(2, 2, 8000\)"),
    "bytes": (lambda s: wav(s, width=1), r"\(1, 1, 8000\)"),
    "no wav": (lambda s: b"RIFF", "1_zoe_4.wav is no WAV of plain samples"),
}


@pytest.mark.parametrize(("write", "says"), WRONG.values(), ids=WRONG.keys())
def test_wrong_recordings_are_named(path, write, says):
    files = {name: wav(samples) for name, samples in recordings().items()}
    files["1_zoe_4.wav"] = write(recordings()["1_zoe_4.wav"])
    path.write_bytes(archive(files))
    with pytest.raises(DataError, match=f"v1.zip: .*{says}"):
        spoken.read({"archive": path})


def test_archives_without_recordings_are_refused(path):
    for content, says in (
        (b"<html>", "not a whole zip"),
        (archive({}), "no train recordings"),
        (archive({"0_ann_7.wav": wav(sine(200))}), "no test recordings"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"v1.zip: .*{says}"):
            spoken.read({"archive": path})


def test_downloads_the_archive_of_a_tag(server, files, tmp_path):
    content = {name: wav(samples) for name, samples in recordings().items()}
    files["v1.0.10.zip"] = archive(content)
    full = dataclasses.replace(FSDD.full, checksum=None)
    small = dataclasses.replace(FSDD, variants=(full,), train=12, test=20)
    stored = npz.read(download(small, tmp_path / "cache", base_url=server.url))
    assert stored["x_train"].shape == (12, 100, 40)
    with pytest.raises(DataError, match=f"expected {FSDD.full.checksum}"):
        download(FSDD, tmp_path / "cache", base_url=server.url)
    assert FSDD.urls()["archive"] == (
        "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
    )
