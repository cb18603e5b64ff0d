"""Delayed evidence: cues on the left and on the right, a delay, then which side had more.

Four groups of input neurons spike at random, in a step of dt ms with probability rate dt / 1000:
left cue, right cue, recall and background. In order of time::

    wait      longest delay - D      none if the delay is fixed
    cues      c times: silence, then a cue on the left or on the right
    delay     D, uniform over the whole steps from the shortest to the longest
    recall    the question, always in the last steps

Each trial favours one of the sides, both alike; each cue is on the favoured side with a
probability of its own. The label is the side that had more cues, 0 left and 1 right. The groups
left, right and recall are silent outside their phases, the background never stops.

Source: G. Bellec et al. (2020), Nature Communications 11, 3625, figure 3, after the task for mice
of A. S. Morcos and C. D. Harvey (2016), Nature Neuroscience 19, 1672. The defaults are those of
the authors' code, github.com/IGITUGraz/eligibility_propagation at efd02e6, the folder
Figure_3_and_S7_e_prop_tutorials (call and constants in the script of the task, course in tools).

Deviation: the authors draw new trials for every batch; here a set is drawn once, so that there are
samples to learn, to test and to forget. A random delay moves the cues, not the end, so that all
trials are equally long.

Trial i of a split depends on (seed, split, i) and the parameters alone. Only raw bits of PCG64 and
its seeding are used, which numpy keeps the same for all versions, and no floating point after
the thresholds: the checksums hold everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from spikecl.data.arrays import Data, checked
from spikecl.data.checks import Array
from spikecl.data.entry import Entry, Variant
from spikecl.errors import DataError

SIDES = ("left", "right")
RECALL, BACKGROUND, GROUPS = 2, 3, 4  # the sides are groups 0 and 1
_SPLITS = {"train": 0, "test": 1}
_MOST = 2**32 - 1  # of the bits a spike is drawn with


def evidence(
    *,
    train: int = 1000,
    test: int = 500,
    seed: int = 0,
    cues: int = 7,
    cue_ms: float = 100.0,
    silence_ms: float = 50.0,
    delay_ms: float | tuple[float, float] = 1050.0,
    recall_ms: float = 150.0,
    cue_hz: float = 40.0,
    background_hz: float = 10.0,
    favoured: float = 0.7,
    neurons: int = 10,
    dt_ms: float = 1.0,
    name: str = "evidence",
) -> Data:
    """Draw a data set of trials, spikes ``[N, T, 4 neurons]`` in bytes, 0 or 1.

    ``T dt_ms = cues (silence_ms + cue_ms) + delay_ms + recall_ms``, with the longest delay.

    Args:
        train: Number of training trials.
        test: Number of test trials, drawn apart.
        seed: Another one gives other trials.
        cues: Number of cues, odd.
        cue_ms: Length of a cue.
        silence_ms: What comes before each cue.
        delay_ms: From the end of the last cue to recall, or the shortest and the longest.
        recall_ms: Length of recall.
        cue_hz: Rate of a neuron of a side during its cue, and of recall during recall.
        background_hz: Rate of a neuron of the background.
        favoured: Probability that a cue is on the favoured side.
        neurons: Neurons of each group, in the order left, right, recall, background.
        dt_ms: Length of a step; every length is a multiple of it.
        name: What the data set is called.

    Raises:
        DataError: A value is out of its range, or so few training trials that a side is missing.

    Example:
        >>> data = evidence(train=20, test=10, cues=3, delay_ms=(100, 300), dt_ms=5)
        >>> data.x_train.shape, data.step_ms, data.class_names
        ((20, 180, 40), 5.0, ('left', 'right'))
    """
    counts = {"train": _count("train", train), "test": _count("test", test)}
    seed, dt = _count("seed", seed, least=0), _number("dt_ms", dt_ms, above=0)
    cues, neurons = _count("cues", cues), _count("neurons", neurons)
    if cues % 2 == 0:
        raise _wrong("cues", cues, f"odd numbers; one side must have more, use {cues + 1}")
    share = _number("favoured", favoured)
    if not 0.5 <= share <= 1:
        raise _wrong("favoured", favoured, "0.5 (no side is) to 1; it is a probability")
    course = _Course(
        cues,
        _steps("silence_ms", silence_ms, dt, least=0),
        _steps("cue_ms", cue_ms, dt),
        _delays(delay_ms, dt),
        _steps("recall_ms", recall_ms, dt),
        _threshold("cue_hz", cue_hz, dt),
        _threshold("background_hz", background_hz, dt),
        round(share * 2**64),
        neurons,
    )
    arrays: dict[str, Array] = {}
    for split, count in counts.items():
        x = np.empty((count, course.steps, GROUPS * neurons), np.uint8)
        y = np.empty(count, np.int64)
        for i in range(count):
            bits = np.random.PCG64(np.random.SeedSequence((seed, _SPLITS[split], i)))
            y[i] = course.draw(bits, x[i])
        arrays |= {f"x_{split}": x, f"y_{split}": y}
    missing = {0, 1} - set(arrays["y_train"].tolist())
    if missing:
        raise _wrong("train", train, f"more; no trial is '{SIDES[missing.pop()]}'")
    return checked(arrays, name, peak=1.0, class_names=SIDES, temporal=True, step_ms=dt)


@dataclass(frozen=True, slots=True)
class _Course:
    """A trial in steps; chances of a spike out of 2^32, of the favoured side out of 2^64."""

    cues: int
    silence: int
    cue: int
    delays: tuple[int, int]
    recall: int
    cue_chance: int
    background_chance: int
    favoured_chance: int
    neurons: int

    @property
    def steps(self) -> int:
        """Length of a trial."""
        return self.cues * (self.silence + self.cue) + self.delays[1] + self.recall

    def draw(self, bits: np.random.PCG64, spikes: Array) -> int:
        """Write the spikes of a trial, ``[T, 4 neurons]``, and return its label."""
        favoured, delay, *cues = (int(word) for word in bits.random_raw(2 + self.cues))
        favoured %= 2
        sides = [favoured if cue < self.favoured_chance else 1 - favoured for cue in cues]
        shortest, longest = self.delays
        wait = delay % (longest - shortest + 1)  # uniform to 1 in 2^64 / range
        chance = self._chances(wait, sides)
        words = bits.random_raw(-(-spikes.size // 2)).astype("<u8", copy=False).view("<u4")
        drawn = words[: spikes.size].reshape(self.steps, GROUPS, self.neurons)
        spikes[...] = (drawn < chance[:, :, None]).reshape(spikes.shape)
        return int(2 * sum(sides) > self.cues)

    def _chances(self, wait: int, sides: list[int]) -> Array:
        """Return the chance of a spike out of 2^32 at each step in each group, ``[T, 4]``."""
        chance = np.zeros((self.steps, GROUPS), np.uint32)
        for k, side in enumerate(sides):
            end = wait + (k + 1) * (self.silence + self.cue)
            chance[end - self.cue : end, side] = self.cue_chance
        chance[-self.recall :, RECALL] = self.cue_chance
        chance[:, BACKGROUND] = self.background_chance
        return chance


def _count(name: str, value: object, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise _wrong(name, value, f"whole numbers from {least}")
    return int(value)


def _number(name: str, value: Any, *, above: float = -math.inf) -> float:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not above < value < math.inf:
        raise _wrong(name, value, "finite numbers" + f" above {above:g}" * (above > -math.inf))
    return float(value)


def _steps(name: str, value: object, dt_ms: float, *, least: int = 1) -> int:
    ms = _number(name, value)
    steps = max(round(ms / dt_ms), least)
    if not math.isclose(steps * dt_ms, ms, rel_tol=1e-9, abs_tol=1e-9 * dt_ms):
        raise _wrong(
            name, value, f"multiples of dt_ms from {least * dt_ms:g}; use {steps * dt_ms:g}"
        )
    return steps


def _delays(value: object, dt_ms: float) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise _wrong("delay_ms", value, "one length, or the shortest and the longest")
    shortest, longest = (_steps("delay_ms", ms, dt_ms, least=0) for ms in pair)
    if longest < shortest:
        raise _wrong("delay_ms", value, "the shortest first; swap them")
    return shortest, longest


def _threshold(name: str, value: object, dt_ms: float) -> int:
    hz = _number(name, value)
    if not 0 <= hz * dt_ms <= 1000:
        raise _wrong(name, value, f"0 to {1000 / dt_ms:g}, one spike in each step of dt_ms")
    return min(round(hz * dt_ms / 1000 * 2**32), _MOST)


def _wrong(name: str, value: object, allowed: str) -> DataError:
    return DataError(f"evidence: {name} is {value!r}; allowed: {allowed}")


def _entry(name: str, steps: int, step_ms: float, checksum: str, draw: Callable[[], Data]) -> Entry:
    return Entry(
        name=name,
        variants=(Variant("", name, checksum),),
        base_url=None,
        train=1000,
        test=500,
        shape=(steps, 40),
        peak=1.0,
        class_names=SIDES,
        licence="none needed: generated here",
        citation="G. Bellec, F. Scherr, A. Subramoney et al. (2020). A solution to the learning "
        "dilemma for recurrent networks of spiking neurons. Nature Communications 11, 3625. "
        "doi:10.1038/s41467-020-17236-y",
        draw=draw,
        temporal=True,
        step_ms=step_ms,
    )


EVIDENCE = _entry(
    "evidence",
    2250,
    1.0,
    "d6dbac459550323a3b21ab7242304ff3aaef4025c5f371f4407746aa819e4ae3",
    evidence,
)

EVIDENCE_SHORT = _entry(
    "evidence_short",
    180,
    5.0,
    "114ebccc3d26cd68c8e57b75a8e6594accbd77d60bc2a324f87c8ffd879ede4b",
    partial(
        evidence,
        cue_ms=50.0,
        silence_ms=25.0,
        delay_ms=300.0,
        recall_ms=75.0,
        dt_ms=5.0,
        name="evidence_short",
    ),
)
