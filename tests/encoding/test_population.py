"""Receptive fields and what they say, against plain loops, closed forms and Norse."""

import math
import warnings

import pytest
import torch

from spikecl.encoding import InputStatistics, Population
from spikecl.errors import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Norse compiles with what torch is about to drop
    from norse.torch.functional.encode import population_encode

PLAIN = InputStatistics()


def test_fields_by_hand_and_their_order():
    encoder = Population(steps=3, units=4, low=-1.0, high=2.0, sd=0.7)
    x = torch.rand(2, 3, 5, dtype=torch.float64)
    out = encoder.encode(x, PLAIN)
    assert out.shape == (3, 2, 12, 5)
    assert out.stride(0) == 0
    for b in range(2):
        for f in range(3):
            for rest in range(5):
                for d, centre in enumerate([-1.0, 0.0, 1.0, 2.0]):
                    a = math.exp(-((float(x[b, f, rest]) - centre) ** 2) / (2 * 0.7**2))
                    assert float(out[1, b, f * 4 + d, rest]) == pytest.approx(a, rel=1e-12)


def test_norse_with_its_scale_at_one():
    """Norse's own default is the largest input of the batch."""
    x = torch.rand(4, 3)
    theirs = population_encode(x, 5, scale=1.0)
    ours = Population(units=5, sd=1.0).activity(x)
    torch.testing.assert_close(ours, theirs.flatten(1))


def test_a_sample_may_be_one_number():
    encoder = Population(steps=2, units=3)
    assert encoder.encode(torch.rand(4), PLAIN).shape == (2, 4, 3)
    assert encoder.shape(()) == (3,)


def test_a_unit_is_full_at_its_centre_and_falls_evenly():
    x = torch.tensor([[0.5 - 0.2], [0.5], [0.5 + 0.2]], dtype=torch.float64)
    a = Population(units=3, sd=0.2).activity(x)[:, 1]
    torch.testing.assert_close(a, torch.tensor([math.exp(-0.5), 1.0, math.exp(-0.5)]).double())


def test_the_strongest_unit_is_the_nearest():
    x = torch.linspace(0, 1, 50)[:, None]
    a = Population(units=6).activity(x)
    assert torch.equal(a.argmax(1), (x[:, 0] * 5).round().long())


def test_rate_is_within_three_sigma_of_the_activity():
    encoder, n = Population(steps=20_000, units=5, sd=0.3, code="rate"), 20_000
    x = torch.rand(2, 3)
    p = encoder.activity(x)
    mean = encoder.encode(x, PLAIN, torch.Generator().manual_seed(1)).mean(0)
    assert bool(((mean - p).abs() <= 3 * (p * (1 - p) / n).sqrt() + 1e-6).all())


@pytest.mark.parametrize("threshold", [0.999, 0.37, 2.0])
def test_integrating_units_follow_a_plain_loop(threshold):
    encoder = Population(steps=25, units=3, sd=0.4, code="integrate", threshold=threshold)
    x = torch.rand(2, 2, dtype=torch.float64)
    spikes, activity = encoder.encode(x, PLAIN), encoder.activity(x)
    for b in range(2):
        for unit in range(6):
            v = 0.0
            for t in range(25):
                v += float(activity[b, unit])
                fired = v >= threshold
                v -= threshold * fired
                assert float(spikes[t, b, unit]) == fired


def test_the_count_of_an_integrating_unit_is_its_total_input_over_the_threshold():
    encoder = Population(steps=40, units=4, sd=0.2, code="integrate", threshold=1.5)
    x = torch.rand(5, 3, dtype=torch.float64)
    expected = (40 * encoder.activity(x) / 1.5).floor()
    assert torch.equal(encoder.encode(x, PLAIN).sum(0), expected)


def test_full_activity_spikes_at_every_step():
    spikes = Population(steps=30, units=2, code="integrate").encode(torch.zeros(1, 1), PLAIN)
    assert bool((spikes[:, 0, 0] == 1).all())


def test_only_rate_needs_a_generator():
    for code in ("direct", "integrate"):
        Population(code=code).encode(torch.rand(1, 1), PLAIN, None)


@pytest.mark.parametrize("options", [{"units": 1}, {"sd": 0.0}, {"low": 1.0}, {"code": "x"}])
def test_senseless_parameters_are_refused(options):
    with pytest.raises(ConfigError):
        Population(**options)
