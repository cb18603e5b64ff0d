"""Encoders: shapes, statistics, determinism; rates against their probabilities, snnTorch, Norse."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import spikegen

from spikecl.encoding import Direct, Encoder, InputStatistics, Rate
from spikecl.errors import ConfigError, UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Norse compiles with what torch is about to drop
    from norse.torch.functional.encode import poisson_encode, poisson_encode_step

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


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (0.5, 0.25), (2.0, -0.5)])
def test_rate_is_within_three_sigma_of_its_probability(gain, offset):
    x, n = torch.linspace(0, 1, 9), 40_000
    spikes = Rate(steps=n, gain=gain, offset=offset).encode(x[None], STATISTICS, generator(3))
    p = (gain * x + offset).clamp(0, 1)
    sigma = (p * (1 - p) / n).sqrt()
    assert bool(((spikes[:, 0].mean(0) - p).abs() <= 3 * sigma).all())


def test_rate_agrees_with_snntorch_in_distribution():
    x, n = torch.linspace(0, 1, 9), 20_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = spikegen.rate(x, num_steps=n, gain=1.5, offset=-0.2).mean(0)
    ours = Rate(steps=n, gain=1.5, offset=-0.2).encode(x[None], STATISTICS, generator())[:, 0]
    assert bool(((ours.mean(0) - theirs).abs() <= 4 * (0.5 / n) ** 0.5).all())
    assert torch.equal(theirs == 0, ours.mean(0) == 0)
    assert torch.equal(theirs == 1, ours.mean(0) == 1)


@pytest.mark.parametrize("f_max", [100.0, 1000.0, 250.0])
def test_norse_spike_for_spike(f_max):
    x = torch.rand(7, 5)
    theirs = poisson_encode(x, 30, f_max=f_max, generator=generator(5))
    assert torch.equal(Rate.norse(30, f_max=f_max).encode(x, STATISTICS, generator(5)), theirs)


def test_the_two_functions_of_norse_differ_tenfold():
    assert Rate.norse(3).gain == pytest.approx(0.1)  # poisson_encode
    assert Rate.norse(3, f_max=1000.0).gain == pytest.approx(1.0)  # poisson_encode_step
    x = torch.rand(50)
    theirs = poisson_encode_step(x, generator=generator(1))
    assert torch.equal(Rate.norse(1, f_max=1000.0).encode(x, STATISTICS, generator(1))[0], theirs)


def test_spikingjelly_poisson_is_the_default():
    """``rand <= x`` there: the same but for a draw that hits x exactly."""
    x = torch.rand(6, 4, generator=generator(9))
    uniform = torch.rand(20, 6, 4, generator=generator(2))
    ours = Rate().encode(x, STATISTICS, generator(2))
    assert torch.equal(ours, (uniform <= x).float())


def test_random_encoders_want_a_generator():
    with pytest.raises(UsageError, match="needs a generator"):
        Rate().encode(torch.rand(2, 3), STATISTICS, None)
