"""Decoders against plain loops, and what a permutation of the steps does to each."""

import math

import pytest
import torch
from snntorch import functional as snn

from spikecl.encoding import (
    DECODERS,
    Decoder,
    FirstSpikeDecoder,
    LastDecoder,
    LeakyDecoder,
    MaxDecoder,
    MeanDecoder,
    PopulationDecoder,
    SumDecoder,
)
from spikecl.errors import UsageError

each = pytest.mark.parametrize("name", DECODERS)


def outputs(steps=6, batch=3, classes=4):
    return torch.randn(steps, batch, classes, dtype=torch.float64)


def spike_trains(steps=9, batch=5, classes=4, p=0.25):
    return (torch.rand(steps, batch, classes) < p).double()


BY_HAND = {
    "mean": lambda z: sum(z) / len(z),
    "sum": sum,
    "max": max,
    "last": lambda z: z[-1],
    "leaky": lambda z: (
        sum(0.9 ** (len(z) - 1 - t) * v for t, v in enumerate(z))
        / sum(0.9**t for t in range(len(z)))
    ),
    "population": lambda z: sum(z) / len(z),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("steps", [1, 6])
def test_each_class_by_hand(name, steps):
    z = outputs(steps)
    logits = DECODERS[name]()(z)
    assert logits.shape == (3, 4)
    for b in range(3):
        for c in range(4):
            expected = BY_HAND[name](z[:, b, c].tolist())
            assert float(logits[b, c]) == pytest.approx(expected, rel=1e-12)


@each
def test_is_a_decoder_with_defaults(name):
    decoder = DECODERS[name]()
    assert isinstance(decoder, Decoder)
    assert decoder(torch.zeros(3, 0, 4)).shape == (0, 4)
    assert decoder(torch.zeros(1, 2, 4)).shape == (2, 4)


@each
def test_other_shapes_are_refused(name):
    decoder = DECODERS[name]()
    for shape in ((3, 4), (2, 3, 4, 5)):
        with pytest.raises(UsageError, match=f"{type(decoder).__name__}: got outputs of shape"):
            decoder(torch.zeros(shape))


@each
def test_gradients(name):
    z = (torch.rand if name == "first_spike" else torch.randn)(4, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(DECODERS[name](), z.requires_grad_())


def test_the_order_of_steps_matters_to_some():
    """Mean, count and maximum do not see it; the last step, a leak and the first spike do."""
    z, order = outputs(8), torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    for blind in (MeanDecoder(), SumDecoder(), MaxDecoder(), PopulationDecoder(units=2)):
        torch.testing.assert_close(blind(z[order]), blind(z))
    for sighted in (LastDecoder(), LeakyDecoder()):
        assert not torch.allclose(sighted(z[order]), sighted(z))
    spikes = spike_trains(8)
    assert not torch.equal(FirstSpikeDecoder()(spikes[order]), FirstSpikeDecoder()(spikes))


def test_ties_of_the_maximum_share_the_gradient():
    z = torch.ones(4, 1, 2, requires_grad=True)
    MaxDecoder()(z).sum().backward()
    assert torch.equal(z.grad, torch.full_like(z, 0.25))


def test_the_leaky_mean_lies_between_mean_and_last_step():
    z = outputs()
    torch.testing.assert_close(LeakyDecoder(kappa=1.0)(z), MeanDecoder()(z))
    torch.testing.assert_close(LeakyDecoder(kappa=0.0)(z), LastDecoder()(z))


def test_the_leaky_mean_is_a_leaky_integrator():
    z, y = outputs(50), 0.0
    for step in z:
        y = 0.8 * y + (1 - 0.8) * step
    torch.testing.assert_close(LeakyDecoder(kappa=0.8)(z), y / (1 - 0.8**50))


def test_population_is_snntorchs_count_over_steps_and_units():
    spikes = spike_trains(classes=12).float()
    counts = snn.ce_count_loss()._population_code(spikes, 4, 12)
    torch.testing.assert_close(PopulationDecoder(units=3)(spikes), counts / (9 * 3))


def test_groups_of_unequal_size_are_refused():
    with pytest.raises(UsageError, match="12 outputs do not divide into groups of 5"):
        PopulationDecoder(units=5)(torch.zeros(2, 3, 12))


# ---- first spike --------------------------------------------------------------------------------


def first_times(spikes):
    """Step of the first spike by looking, T where there is none."""
    steps = spikes.shape[0]
    return torch.tensor(
        [
            [
                next((t for t in range(steps) if spikes[t, b, c]), steps)
                for c in range(spikes.shape[2])
            ]
            for b in range(spikes.shape[1])
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("p", [0.0, 0.05, 0.3, 1.0])
def test_first_spikes_by_looking(p):
    spikes = spike_trains(p=p)
    logits = FirstSpikeDecoder(xi=0.5, tau_syn=3.0)(spikes)
    torch.testing.assert_close(logits, -first_times(spikes) / 1.5)


def test_first_spikes_as_snntorch_sees_them():
    """Where an output is silent snnTorch takes the last step, so that it ties with one there."""
    spikes = spike_trains(p=0.1)
    theirs, _ = snn.SpikeTime()(spikes.float(), torch.zeros(5, dtype=torch.int64))
    times = -FirstSpikeDecoder(xi=1.0, tau_syn=1.0)(spikes)
    assert bool((times == 9).any())
    assert torch.equal(times.clamp(max=8).float(), theirs)


def test_the_gradient_is_what_one_spike_more_or_less_would_change():
    spikes, decoder = spike_trains(7, 2, 3).requires_grad_(), FirstSpikeDecoder(xi=1.0, tau_syn=1.0)
    for b in range(2):
        for c in range(3):
            (gradient,) = torch.autograd.grad(-decoder(spikes)[b, c], spikes)
            for t in range(7):
                with_, without = spikes.detach().clone(), spikes.detach().clone()
                with_[t, b, c], without[t, b, c] = 1, 0
                change = first_times(with_) - first_times(without)
                assert float(gradient[t, b, c]) == pytest.approx(float(change[b, c]))
            gradient[:, b, c] = 0
            assert not bool(gradient.any())


def test_graded_outputs_give_the_expected_time_of_independent_spikes():
    p = torch.rand(4, dtype=torch.float64)
    expected = 0.0
    for pattern in range(16):
        bits = [(pattern >> t) & 1 for t in range(4)]
        chance = math.prod(float(q) if bit else 1 - float(q) for q, bit in zip(p, bits))
        expected += chance * (bits.index(1) if 1 in bits else 4)
    time = -FirstSpikeDecoder(xi=1.0, tau_syn=1.0)(p.view(4, 1, 1))
    assert float(time) == pytest.approx(expected)


def test_a_masked_output_stays_masked():
    spikes = spike_trains()
    masked = spikes.clone()
    masked[:, :, 2] = -torch.inf
    masked.requires_grad_()
    logits = FirstSpikeDecoder()(masked)
    assert bool(logits[:, 2].isneginf().all())
    keep = [0, 1, 3]
    assert torch.equal(logits[:, keep], FirstSpikeDecoder()(spikes)[:, keep])
    logits[:, keep].sum().backward()
    assert bool(masked.grad.isfinite().all())
