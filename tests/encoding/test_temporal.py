"""Encoders of sequences against snnTorch, Lava's recursion and plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import spikegen

from spikecl.encoding import Delta, InputStatistics, Sequence, SigmaDelta
from spikecl.errors import ConfigError, UsageError

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
PLAIN = InputStatistics()


# ---- sequence -----------------------------------------------------------------------------------


def test_time_comes_first():
    x = torch.rand(3, 5, 2, 4)
    assert torch.equal(Sequence().encode(x, PLAIN), x.movedim(1, 0))


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 12])
def test_blocks_are_reduced(reduce, steps):
    x = torch.rand(3, 12, 2, dtype=torch.float64)
    out = Sequence(steps=steps, reduce=reduce).encode(x, PLAIN)
    blocks = np.split(x.numpy(), steps, axis=1)
    expected = np.stack([getattr(np, reduce)(block, axis=1) for block in blocks])
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-12)


@quick
@given(st.integers(1, 20), st.integers(1, 20))
def test_padding_adds_silence_behind(given_steps, steps):
    x = torch.rand(2, given_steps, 3, dtype=torch.float64) + 0.1
    block = -(-given_steps // steps)
    filled = torch.cat([x, torch.zeros(2, block * steps - given_steps, 3)], 1)
    out = Sequence(steps=steps, pad=True).encode(x, PLAIN)
    for t in range(steps):
        expected = filled[:, t * block : (t + 1) * block].sum(1)
        torch.testing.assert_close(out[t], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(out.sum(0), x.sum(1), rtol=1e-12, atol=0)


def test_steps_that_do_not_divide_are_refused():
    for steps in (5, 13):
        with pytest.raises(UsageError, match=f"12 steps do not divide into {steps}; allowed: 1, 2"):
            Sequence(steps=steps).encode(torch.rand(1, 12, 2), PLAIN)


def test_centring_comes_before_binning_and_scale_last():
    x, statistics = torch.rand(4, 6, 3, dtype=torch.float64), InputStatistics(0.3, 0.2)
    out = Sequence(steps=2, centre=True, scale=3.0).encode(x, statistics)
    expected = 3 * ((x - 0.3) / 0.2).reshape(4, 2, 3, 3).sum(2).transpose(0, 1)
    torch.testing.assert_close(out, expected)


def test_padding_is_centred_as_silence_is():
    out = Sequence(steps=2, pad=True, centre=True).encode(torch.ones(1, 3), InputStatistics(1, 2))
    assert out[:, 0].tolist() == [0.0, -0.5]


def test_binary_counts_an_event_once_whatever_the_reduction():
    x = torch.tensor([[0.0, 3.0, 0.0, 0.0, 1.0, 1.0]])
    for reduce in ("sum", "mean", "max"):
        out = Sequence(steps=3, binary=True, reduce=reduce, scale=0.5).encode(x, PLAIN)
        assert out[:, 0].tolist() == [0.5, 0.0, 0.5]


def test_centre_and_binary_are_refused_together():
    with pytest.raises(ConfigError, match="centre and binary"):
        Sequence(centre=True, binary=True)


# ---- delta --------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("off_spike", [True, False])
@pytest.mark.parametrize("threshold", [0.1, 0.4])
def test_snntorch_spike_for_spike(padding, off_spike, threshold):
    options = {"threshold": threshold, "padding": padding, "off_spike": off_spike}
    x = torch.rand(5, 30, 2, 3)
    theirs = spikegen.delta(x.transpose(0, 1), **options)
    assert 0.05 < theirs.abs().mean() < 0.9
    assert torch.equal(Delta.snntorch(**options).encode(x, PLAIN), theirs)


def test_a_change_of_just_the_threshold_spikes():
    x = torch.tensor([[0.0, 0.25, 0.0, 0.125]])
    out = Delta(threshold=0.25, off="negative").encode(x, PLAIN)
    assert out[:, 0].tolist() == [0.0, 1.0, -1.0, 0.0]


def test_channels_are_rises_and_falls():
    x = torch.rand(2, 9, 4)
    both = Delta(off="channel").encode(x, PLAIN)
    assert both.shape == (9, 2, 2, 4)
    assert torch.equal(both[:, :, 0], Delta().encode(x, PLAIN))
    assert torch.equal(both[:, :, 0] - both[:, :, 1], Delta(off="negative").encode(x, PLAIN))
    falls = Delta(off="channel", first="repeat").encode(1 - x, PLAIN)
    rises = Delta(off="channel", first="repeat").encode(x, PLAIN)
    assert torch.equal(falls[:, :, 1], rises[:, :, 0])


def test_what_comes_before_the_first_step():
    x = torch.ones(1, 3)
    assert Delta(first="zero").encode(x, PLAIN)[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert Delta(first="repeat").encode(x, PLAIN)[:, 0].tolist() == [0.0, 0.0, 0.0]


# ---- sigma-delta --------------------------------------------------------------------------------


def lava(x, threshold):
    """Lava's recursion on the residue; x is [T]."""
    before, residue, messages, residues = 0.0, 0.0, [], []
    for now in x:
        delta = now - before + residue
        message = delta if abs(delta) >= threshold else 0.0
        before, residue = now, delta - message
        messages.append(message)
        residues.append(residue)
    return messages, residues


eighths = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=30)


@quick
@given(eighths, st.integers(0, 16).map(lambda n: n / 8))
def test_messages_are_lavas_and_nothing_is_lost(values, threshold):
    """Eighths are exact in binary, so all sums are."""
    x = torch.tensor(values, dtype=torch.float64)
    out = SigmaDelta(threshold=threshold).encode(x[None], PLAIN)[:, 0]
    messages, residues = lava(values, threshold)
    assert out.tolist() == messages
    assert (out.cumsum(0) + torch.tensor(residues)).tolist() == values
    assert bool(((out == 0) | (out.abs() >= threshold)).all())
    assert bool(((x - out.cumsum(0)).abs() <= threshold).all())


def test_without_a_threshold_the_running_sum_is_the_input():
    x = torch.rand(3, 500, 4)
    out = SigmaDelta(threshold=0.0).encode(x, PLAIN)
    torch.testing.assert_close(out.cumsum(0), x.transpose(0, 1), rtol=0, atol=1e-6)


def test_rounding_does_not_add_up():
    """The receiver, who adds in the same order, is never off by more than the threshold."""
    x = torch.rand(1, 5000, 20)
    received = SigmaDelta(threshold=1e-3).encode(x, PLAIN).cumsum(0)[:, 0]
    assert float((received - x[0]).abs().max()) < 1e-3 + 1e-6


def test_a_constant_input_is_sent_once():
    out = SigmaDelta(threshold=0.1).encode(torch.full((2, 9, 3), 0.7), PLAIN)
    assert bool((out[0] == 0.7).all()) and not bool(out[1:].any())
