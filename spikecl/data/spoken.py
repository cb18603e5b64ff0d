"""Spoken digits: recordings in a zip archive, made into frames of log-mel bands.

The files ``recordings/DIGIT_SPEAKER_NUMBER.wav`` are mono, 16 bits, 8,000 Hz. In order::

    signal  s = samples / 32768, cut to or filled with zeros up to 8,120 samples
    frames  f[k] = s[80 k : 80 k + 200] w, k = 0 .. 99       w: Hann window, every 10 ms
    power   P[k] = |rfft(f[k], 512)|^2 / (sum(w) / 2)^2      a sine of full scale gives 1
    bands   M[k] = P[k] B     B: 40 triangles of peak 1, evenly spaced between 0 and 4,000 Hz in
                              mel(f) = 2595 log10(1 + f / 700)
    bytes   round(255 (1 + 10 log10(M) / 80)), cut to 0 .. 255: -80 dB is 0, full scale 255

Nothing depends on other recordings.
"""

from __future__ import annotations

import io
import re
import wave
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spikecl.data.checks import Array
from spikecl.errors import DataError

RATE_HZ = 8000
FRAMES, HOP, WINDOW, FFT, BANDS = 100, 80, 200, 512, 40
FLOOR_DB = -80.0
TEST_NUMBERS = range(5)  # the official split
_NAME = re.compile(r".*recordings/(\d)_(\w+)_(\d+)\.wav")


def read(files: Mapping[str, Path]) -> dict[str, Array]:
    """Return log-mel frames ``[N, 100, 40]``; recordings 0 to 4 of a speaker and digit are test.

    They are in the order of digit, speaker and number.
    """
    path = files["archive"]
    parts: dict[str, list[tuple[Array, int]]] = {"train": [], "test": []}
    try:
        with zipfile.ZipFile(path) as archive:
            named = [match for name in archive.namelist() if (match := _NAME.fullmatch(name))]
            for match in sorted(named, key=lambda m: (m[1], m[2], int(m[3]))):
                split = "test" if int(match[3]) in TEST_NUMBERS else "train"
                signal = _signal(archive.read(match[0]), match[0], path)
                parts[split].append((log_mel(signal), int(match[1])))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _wrong(path, f"not a whole zip archive: {error}") from None
    for split, rows in parts.items():
        if not rows:
            raise _wrong(path, f"has no {split} recordings")
    return {
        f"{letter}_{split}": np.array([row[i] for row in rows], np.uint8)
        for split, rows in parts.items()
        for i, letter in enumerate("xy")
    }


def log_mel(signal: Array) -> Array:
    """Return the frames of a signal of 16-bit samples at 8,000 Hz, uint8 ``[100, 40]``."""
    from scipy import fft
    from scipy.signal import get_window

    window = get_window("hann", WINDOW)
    padded = np.zeros((FRAMES - 1) * HOP + WINDOW)
    cut = signal[: len(padded)]
    padded[: len(cut)] = cut / 32768
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * window
    power = np.abs(fft.rfft(frames, FFT)) ** 2 / (window.sum() / 2) ** 2
    floor = 10 ** (FLOOR_DB / 10)
    level = 10 * np.log10(np.maximum(power @ mel_bands(), floor))
    scaled: Array = np.minimum(np.rint(255 * (1 - level / FLOOR_DB)), 255)
    return scaled.astype(np.uint8)


def mel_bands() -> Array:
    """Return the weights of the bands, ``[257, 40]``."""
    frequencies = np.arange(FFT // 2 + 1) * RATE_HZ / FFT
    mel = 2595 * np.log10(1 + frequencies / 700)
    position = mel / mel[-1] * (BANDS + 1)  # band b peaks at b + 1
    distance: Array = np.abs(position[:, None] - np.arange(1, BANDS + 1))
    return np.asarray(np.maximum(1 - distance, 0))


def _signal(content: bytes, name: str, path: Path) -> Array:
    try:
        with wave.open(io.BytesIO(content)) as file:
            kind = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            samples = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise _wrong(path, f"{name} is no WAV of plain samples: {error}") from None
    if kind != (1, 2, RATE_HZ):
        raise _wrong(path, f"{name} has channels, bytes and rate {kind}, not (1, 2, {RATE_HZ})")
    return np.frombuffer(samples, "<i2")


def _wrong(path: Path, reason: str) -> DataError:
    return DataError(f"{path.name}: {reason}; needed: the archive of a tag; download it again")
