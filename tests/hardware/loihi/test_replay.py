"""Products of signed vectors against the learning engine, Lava, and the product itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spikecl_hardware.loihi import lava, plastic
from spikecl_hardware.loihi.replay import (
    LARGEST,
    LEAST_GAIN,
    Gain,
    Phase,
    Taught,
    alone,
    learning,
    phases,
    played,
)
from spikecl_hardware.loihi.rules import RuleError
from spikecl_hardware.loihi.semantics import SignMode

MODES = (SignMode.MIXED, SignMode.EXCITATORY, SignMode.INHIBITORY)


def weights(mode, rng, shape=(4, 6)):
    """Weights as synaptic memory holds them."""
    if mode is SignMode.MIXED:
        return 2 * rng.integers(-127, 128, shape)
    return rng.integers(0, 256, shape) * (1 if mode is SignMode.EXCITATORY else -1)


def lessons(gain, count, shape, rng, largest=1.0):
    """Phases of random samples; some factors and some sources are silent."""
    made = []
    for _ in range(count):
        x = gain.counts(rng.uniform(-1.2, 1.2, shape[1]) * (rng.random(shape[1]) < 0.8), rng)
        f = rng.uniform(-largest, largest, shape[0]) * (rng.random(shape[0]) < 0.7)
        made += phases(x, gain.factors(f, rng))
    return made


def same(found, taught):
    """Whether a run of the engine ended with these weights and tags."""
    (connection,) = found.program.connections
    (tags,) = found.tags.values()
    return (connection.dense.weights == taught.w).all() and (tags["t"] == taught.t).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(MODES),
    steps=st.integers(1, 40),
    change=st.floats(0.01, 3.5),
)
def test_the_closed_form_is_the_engine(seed, mode, steps, change):
    rng = np.random.default_rng(seed)
    gain = Gain.of(change, steps=steps, largest=1.0, mixed=mode is SignMode.MIXED)
    taught = Taught(weights(mode, rng), mode, gain)
    made = lessons(gain, 12, (4, 6), rng)
    for phase in made:
        taught.phase(phase)
    spikes, third = played(made, gain)
    assert same(plastic.learn(alone(taught.start, mode, gain), spikes, third=third), taught)


@pytest.mark.parametrize("mode", [SignMode.MIXED, SignMode.EXCITATORY])
def test_it_stays_the_engine_where_factors_decay_by_chance(mode):
    rng = np.random.default_rng(1)
    gain = Gain.of(5.0, steps=12, largest=1.0, mixed=mode is SignMode.MIXED)
    taught = Taught(weights(mode, rng), mode, gain)
    made = lessons(gain, 1500, (4, 6), rng)
    decayed = 0
    for phase in made:
        before = taught._draws.next
        seen = {}

        def spy(third, before=before, seen=seen):
            draw, left = before(third)
            seen["lost"] = bool((left != third).any())
            return draw, left

        taught._draws.next = spy
        taught.phase(phase)
        taught._draws.next = before
        decayed += seen["lost"]
    assert decayed > 1  # else this tests what the others do
    assert taught.clipped
    spikes, third = played(made, gain)
    assert same(plastic.learn(alone(taught.start, mode, gain), spikes, third=third), taught)


def test_lava_learns_the_same(installed):
    rng = np.random.default_rng(2)
    gain = Gain.of(4.0, steps=5, largest=1.0)
    taught = Taught(weights(SignMode.MIXED, rng), SignMode.MIXED, gain)
    made = lessons(gain, 25, (4, 6), rng)
    for phase in made:
        taught.phase(phase)
    spikes, third = played(made, gain)
    program = alone(taught.start, SignMode.MIXED, gain)
    assert (taught.w != taught.start).mean() > 0.7
    assert same(lava.learn(program, spikes, third=third), taught)


@pytest.mark.parametrize("mode", MODES)
def test_weights_move_by_the_product(mode):
    rng = np.random.default_rng(3)
    shape, count, change = (5, 7), 3000, 0.05
    gain = Gain.of(change, steps=16, largest=1.0, mixed=mode is SignMode.MIXED)
    start = np.full(shape, -120 if mode is SignMode.INHIBITORY else 120)
    taught = Taught(start, mode, gain)
    wanted = np.zeros(shape)
    at_x, at_f = rng.choice([-0.7, 0.7], 7), rng.choice([-0.7, 0.7], 5)
    for _ in range(count):
        x, f = at_x + rng.uniform(-0.3, 0.3, 7), at_f + rng.uniform(-0.3, 0.3, 5)
        wanted += change * np.outer(f, x)
        taught.learn(gain.counts(x, rng), gain.factors(f, rng))
    moved = taught.settle() - start
    assert not taught.clipped and not taught.lost
    # what is rounded by chance adds up as a random walk, carried tags by a step at most
    tag = 0.5 / 32 * (1 + (mode is SignMode.MIXED))
    spread = np.sqrt(2 * count) * (tag + change * (0.5 / 16 + 2 / gain.factor))
    assert abs(moved - wanted).max() < 4 * spread + 2
    assert abs(wanted).max() > 3 * (4 * spread + 2)


def test_nothing_is_lost_below_a_step_of_a_weight():
    gain = Gain(steps=1, tags=0.125, factor=8.0)  # one spike and the least factor: 1/128 of a step
    taught = Taught(np.zeros((1, 1), np.int64), SignMode.MIXED, gain)
    for _ in range(128 * 5):
        taught.phase(Phase(np.array([1]), np.array([[2], [0]])))
    assert abs(int(taught.settle()[0, 0]) - 10) <= 2


def test_small_changes_without_a_mean_leave_weights_where_they_were():
    rng = np.random.default_rng(6)
    gain = Gain.of(0.1, steps=14, largest=1.0)
    taught = Taught(np.zeros((30, 40), np.int64), SignMode.MIXED, gain)
    for _ in range(200):
        x, f = rng.uniform(-1, 1, 40), rng.uniform(-1, 1, 30)
        taught.learn(gain.counts(x, rng), gain.factors(f, rng))
    moved = taught.settle()
    assert moved.any() and abs(moved.mean()) < 0.05


def test_a_run_goes_on_where_it_stopped():
    rng = np.random.default_rng(4)
    gain = Gain.of(3.0, steps=9, largest=1.0)
    made = lessons(gain, 40, (4, 6), rng)
    whole = Taught(weights(SignMode.MIXED, rng), SignMode.MIXED, gain)
    first = Taught(whole.start, SignMode.MIXED, gain)
    for phase in made:
        whole.phase(phase)
    for phase in made[:31]:
        first.phase(phase)
    later = Taught(whole.start, SignMode.MIXED, gain)
    later.load_state_dict(first.state_dict())
    for phase in made[31:]:
        later.phase(phase)
    assert (later.w == whole.w).all() and (later.t == whole.t).all()
    assert (later.updates, later.spikes) == (whole.updates, whole.spikes)


def test_large_changes_are_replayed_more_than_once():
    small, large = (Gain.of(change, steps=8, largest=1.0) for change in (7.0, 30.0))
    assert (small.repeats, large.repeats) == (1, 4)
    taught = Taught(np.zeros((2, 3), np.int64), SignMode.MIXED, large)
    factors = 2 * np.rint(np.array([1.0, -0.5]) * large.factor / 2).astype(int)
    taught.learn(np.array([8, -8, 4]), factors)
    wanted = 30 * np.outer([1, -0.5], [1, -1, 0.5])
    assert taught.done == 8
    assert abs(taught.settle() - wanted).max() <= 2


def test_what_does_not_fit_is_counted():
    gain = Gain.of(6.9, steps=1, largest=1.0)
    taught = Taught(np.full((1, 1), 254), SignMode.MIXED, gain)
    for _ in range(50):
        taught.learn(np.array([1]), np.array([LARGEST]))
    assert taught.clipped > 40
    assert int(taught.w.max()) == 255


def test_numbers_keep_their_mean():
    gain, rng = Gain.of(0.3, steps=7, largest=0.5), np.random.default_rng(5)
    x, f = np.full(20_000, -0.37), np.full(20_000, 0.0123)
    counts, factors = gain.counts(x, rng), gain.factors(f, rng)
    assert set(np.unique(counts)) <= {-3, -2} and (factors % 2 == 0).all()
    assert counts.mean() / 7 == pytest.approx(-0.37, abs=0.002)
    assert factors.mean() / gain.factor == pytest.approx(0.0123, rel=0.05)
    assert (gain.counts(np.array([9.0]), rng) == 7).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "1 to 62"),
        ({"steps": 63}, "1 to 62"),
        ({"change": 0.0}, "above 0"),
        ({"change": 500.0}, "lower rate"),
        ({"largest": np.inf}, "above 0"),
    ],
)
def test_gains_out_of_range_are_refused(options, words):
    given_ = {"change": 1.0, "steps": 8, "largest": 1.0} | options
    with pytest.raises(RuleError, match=words):
        Gain.of(given_.pop("change"), **given_)


def test_tiny_changes_take_the_smallest_gain():
    gain = Gain.of(1e-5, steps=16, largest=1.0)
    assert gain.tags == LEAST_GAIN and gain.factor < 1
    assert "2^-7" in learning(gain, SignMode.MIXED).dt
