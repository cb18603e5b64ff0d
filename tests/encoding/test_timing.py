"""Latency and phase codes against snnTorch, SpikingJelly's equations and binary numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import spikegen

from spikecl.encoding import InputStatistics, Latency, Phase
from spikecl.errors import ConfigError

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
PLAIN = InputStatistics()
LATENCIES = [
    Latency(steps=15),
    Latency(steps=15, curve="membrane"),
    Latency(steps=15, curve="log"),
    Latency(steps=9, tau=3.0, threshold=0.2, silent_below=0.3),
    Latency(steps=9, tau=2.0, curve="membrane", silent_below=0.0),
]


def encode(encoder, values):
    return encoder.encode(torch.as_tensor(values, dtype=torch.float64)[None], PLAIN)[:, 0]


def first(spikes):
    """Steps of the spikes; -1 where there is none."""
    return torch.where(spikes.any(0), spikes.argmax(0), -1)


def away_from_ties(encoder, x):
    """Leave out inputs whose time lies between two steps: rounding may go either way."""
    return ((encoder.times(x) % 1) - 0.5).abs() > 1e-3


# ---- latency ------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("threshold", "tau", "steps"), [(0.01, 1.0, 10), (0.1, 7.0, 23)])
def test_snntorch_spike_for_spike(linear, clip, normalize, threshold, tau, steps):
    options = {"linear": linear, "clip": clip, "normalize": normalize}
    options |= {"threshold": threshold, "tau": tau}
    x = torch.cat([torch.zeros(1), torch.ones(1), torch.rand(400) ** 2])
    ours = Latency.snntorch(steps, **options)
    theirs = spikegen.latency(x, num_steps=steps, bypass=True, **options)
    keep = away_from_ties(ours, x)
    assert keep.float().mean() > 0.9
    assert torch.equal(ours.encode(x[None], PLAIN)[:, 0, keep], theirs[:, keep])


def test_snntorch_stretches_by_the_batch_and_we_do_not():
    """Without a dark feature, snnTorch moves the weakest to the last step."""
    x, code = torch.tensor([0.2, 0.9]), Latency.snntorch(20, normalize=True)
    theirs = spikegen.latency(x, num_steps=20, normalize=True)
    assert first(theirs)[0] == 19
    assert first(code.encode(x[None], PLAIN)[:, 0])[0] < 2
    with_dark = torch.cat([x, torch.zeros(1)])
    theirs = spikegen.latency(with_dark, num_steps=20, normalize=True)
    assert torch.equal(code.encode(with_dark[None], PLAIN)[:, 0], theirs)


@pytest.mark.parametrize("steps", [1, 2, 12, 50])
def test_spikingjelly_by_its_equations(steps):
    x = torch.cat([torch.zeros(1), torch.ones(1), torch.rand(200)]).double()
    linear = ((steps - 1) * (1 - x)).round().long()
    assert torch.equal(first(encode(Latency.spikingjelly(steps), x)), linear)
    log = Latency.spikingjelly(steps, log=True)
    times = steps - 1 - torch.log((math.exp(steps - 1) - 1) * x + 1)
    torch.testing.assert_close(log.times(x), times, atol=1e-9, rtol=0)
    keep = away_from_ties(log, x)
    assert torch.equal(first(encode(log, x))[keep], times.round().long()[keep])


def test_the_log_curve_does_not_overflow():
    x = torch.tensor([0.0, 1e-30, 0.5, 1.0])
    times = Latency.spikingjelly(2000, log=True).times(x)
    expected = [1999.0, 30 * math.log(10), math.log(2), 0.0]
    torch.testing.assert_close(times, torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_the_membrane_curve_is_the_time_an_integrator_needs():
    """tau v' = -v + x from 0, integrated in small steps, reaches the threshold at that time."""
    tau, threshold, dt = 20.0, 0.3, 1e-4
    for x in (0.35, 0.5, 0.9):
        v, t = 0.0, 0.0
        while v < threshold:
            v, t = v + dt / tau * (x - v), t + dt
        ours = Latency(steps=60, curve="membrane", tau=tau, threshold=threshold)
        assert float(ours.times(torch.tensor(x))) == pytest.approx(t, abs=1e-2)


@pytest.mark.parametrize("encoder", LATENCIES)
def test_one_spike_at_most_and_the_stronger_the_earlier(encoder):
    x = torch.linspace(0, 1, 101)
    spikes = encode(encoder, x)
    assert spikes.unique().tolist() == [0.0, 1.0]
    assert bool((spikes.sum(0) <= 1).all())
    times = first(spikes)
    times = times[times >= 0]
    assert bool((times.diff() <= 0).all())
    assert times[0] > times[-1]


@quick
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.integers(1, 40))
def test_order_of_latencies_is_order_of_intensities(values, steps):
    for curve in ("linear", "membrane", "log"):
        times = first(encode(Latency(steps=steps, curve=curve, silent_below=0.0), values))
        assert bool((times >= 0).all())
        x = torch.tensor(values, dtype=torch.float64)
        assert bool((times[x.argsort()].diff() <= 0).all())


def test_silence_is_strict():
    x = [0.0, 0.2, 0.3, 0.4]
    assert first(encode(Latency(steps=5, silent_below=0.3), x))[:3].tolist() == [-1, -1, 3]
    assert bool((first(encode(Latency(steps=5, silent_below=0.0), x)) >= 0).all())


def test_what_is_too_late_is_lost():
    assert first(encode(Latency(steps=4, tau=10.0), [1.0, 0.7, 0.6])).tolist() == [0, 3, -1]


@pytest.mark.parametrize("encoder", LATENCIES)
def test_beyond_the_range_is_as_its_end(encoder):
    x = torch.tensor([-0.5, 0.0, 1.0, 1.5])
    times = encoder.times(x)
    assert times[0] == times[1] and times[2] == times[3]


def test_one_step_is_enough():
    for curve in ("linear", "membrane", "log"):
        assert encode(Latency(steps=1, curve=curve), [0.5, 1.0]).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    "options",
    [
        {"curve": "membrane", "threshold": 0.0},
        {"curve": "membrane", "threshold": 1.0},
        {"curve": "log", "tau": 2.0},
        {"steps": 0},
        {"tau": 0.0},
    ],
)
def test_senseless_latencies_are_refused(options):
    with pytest.raises(ConfigError):
        Latency(**options)


# ---- phase --------------------------------------------------------------------------------------


def test_the_bits_of_a_byte():
    """The examples of Kim et al.: n / 256 shows the binary digits of n, heaviest first."""
    n = torch.arange(256)
    spikes = encode(Phase(weighted=False), n / 256)
    digits = torch.tensor([[int(d) for d in f"{i:08b}"] for i in range(256)])
    assert torch.equal(spikes, digits.T.double())


def test_a_pixel_is_its_own_byte():
    n = torch.arange(256)
    spikes = Phase(weighted=False).encode((n.float() / 255)[None], PLAIN)[:, 0]
    weights = torch.tensor([128.0, 64, 32, 16, 8, 4, 2, 1])
    assert torch.equal(weights @ spikes, n.float())


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(1, 24))
def test_a_period_sums_to_the_intensity_rounded_down(values, bits):
    x = torch.tensor(values, dtype=torch.float64)
    total = encode(Phase(steps=bits, bits=bits), x).sum(0)
    expected = [min(math.floor(v * 2**bits), 2**bits - 1) / 2**bits for v in values]
    assert total.tolist() == expected


def test_spikingjelly_peels_bit_after_bit():
    x = torch.rand(50, dtype=torch.float64) * (1 - 2**-8)
    spikes, left, weight = encode(Phase(weighted=False), x), x.clone(), 0.5
    for step in spikes:
        assert torch.equal(step, (left >= weight).double())
        left, weight = left - weight * step, weight / 2


def test_phases_repeat():
    x = torch.rand(10, dtype=torch.float64)
    once, more = encode(Phase(steps=5, bits=5), x), encode(Phase(steps=12, bits=5), x)
    assert torch.equal(more, torch.cat([once, once, once[:2]]))


def test_beyond_the_range_is_clipped():
    assert encode(Phase(weighted=False), [-0.5, 1.0, 1.5]).sum(0).tolist() == [0.0, 8.0, 8.0]


def test_too_many_bits_are_refused():
    with pytest.raises(ConfigError, match="Phase.bits"):
        Phase(bits=25)
