"""Encoders: shapes, statistics, determinism."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikecl.encoding import Direct, Encoder, InputStatistics, Rate
from spikecl.errors import ConfigError

quick = settings(max_examples=20, deadline=None, derandomize=True, database=None)
STATISTICS = InputStatistics(0.25, 0.5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@quick
@given(st.integers(1, 6), st.integers(1, 4), st.lists(st.integers(1, 3), max_size=3))
def test_shapes(steps, batch, features):
    x = torch.rand(batch, *features)
    for encoder in (Direct(steps=steps), Rate(steps=steps)):
        assert isinstance(encoder, Encoder)
        assert encoder.encode(x, STATISTICS, generator()).shape == (steps, batch, *features)


def test_direct_repeats_the_centred_input_without_copies():
    x = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    out = Direct(steps=5).encode(x, STATISTICS, None)
    assert out.stride(0) == 0
    for step in out:
        assert step.tolist() == [[-0.5, 0.0], [0.5, 1.5]]


def test_direct_without_centring_is_the_input_itself():
    x = torch.rand(3, 4)
    out = Direct(steps=2, centre=False).encode(x, STATISTICS, None)
    assert out.stride(0) == 0
    assert torch.equal(out[1], x)


@pytest.mark.parametrize("encoder", [Direct(), Direct(centre=False), Rate()])
def test_the_input_is_left_alone_and_the_type_kept(encoder):
    for dtype in (torch.float32, torch.float64):
        x = torch.rand(3, 4, dtype=dtype)
        before = x.clone()
        assert encoder.encode(x, STATISTICS, generator()).dtype == dtype
        assert torch.equal(x, before)


def test_only_rate_is_random():
    assert Rate.random
    assert not Direct.random


@pytest.mark.parametrize("gain", [1.0, 0.4, 3.0])
def test_rate_has_bernoulli_mean_and_variance(gain):
    x = torch.linspace(0, 1, 11)
    n = 20_000
    spikes = Rate(steps=n, gain=gain).encode(x[None], STATISTICS, generator())[:, 0]
    p = (gain * x).clamp(max=1)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert bool(((spikes.mean(0) - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all())
    torch.testing.assert_close(spikes.var(0), p * (1 - p), atol=0.02, rtol=0)


def test_extreme_intensities_are_certain():
    x = torch.tensor([[0.0, 1.0]]).expand(50, 2)
    assert torch.equal(Rate(steps=40).encode(x, STATISTICS, generator()), x.expand(40, 50, 2))


def test_rate_is_independent_over_steps_samples_and_features():
    n = 6000
    spikes = Rate(steps=n).encode(torch.full((2, 3), 0.5), STATISTICS, generator()).flatten(1)
    lagged = torch.cat([spikes[:-1], spikes[1:]], 1)  # every element, now and a step later
    correlation = torch.corrcoef(lagged.T) - torch.eye(12)
    assert float(correlation.abs().max()) < 5 / n**0.5


def test_rate_follows_its_generator_and_no_other():
    x, rate = torch.rand(3, 4), Rate(steps=30)
    before = torch.get_rng_state()
    a, b, c = (rate.encode(x, STATISTICS, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_rate_does_not_depend_on_the_statistics():
    x, rate = torch.rand(3, 4), Rate(steps=30)
    a, b = (rate.encode(x, s, generator()) for s in (InputStatistics(), InputStatistics(9.0, 0.1)))
    assert torch.equal(a, b)


def test_default_statistics_change_nothing():
    x = torch.rand(3, 4)
    assert torch.equal(Direct(steps=1).encode(x, InputStatistics(), None)[0], x)


@pytest.mark.parametrize("make", [lambda: Direct(steps=0), lambda: Rate(gain=0.0)])
def test_senseless_parameters_are_refused(make):
    with pytest.raises(ConfigError):
        make()
