"""Logits of the readout equal those of the decoders that the trainer uses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from spikecl_hardware.loihi.decode import accuracy, logits
from spikecl_hardware.loihi.program import ProgramError, Readout

torch = pytest.importorskip("torch")
decoders = pytest.importorskip("spikecl.encoding.decoders")

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 4))
SPIKES = SHAPES.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1)))
MEMBRANES = SHAPES.flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(1 - 2**23, 2**23 - 1))
)
PAIRS = {
    "mean": (decoders.MeanDecoder(), {}),
    "sum": (decoders.SumDecoder(), {}),
    "max": (decoders.MaxDecoder(), {}),
    "last": (decoders.LastDecoder(), {}),
    "leaky": (decoders.LeakyDecoder(kappa=0.7), {"kappa": 0.7}),
}


def readout(**options):
    return Readout("out", **options)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=50, deadline=None)
@given(outputs=MEMBRANES | SPIKES)
def test_reductions_equal_the_decoders(name, outputs):
    decoder, constants = PAIRS[name]
    ours = logits(outputs, readout(reduction=name, constants=constants))
    theirs = decoder(torch.from_numpy(outputs.astype(np.float64))).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_the_ends_of_leaky_are_the_last_step_and_the_mean(kappa):
    outputs = np.random.default_rng(0).integers(-9, 9, (5, 3, 4))
    ours = logits(outputs, readout(reduction="leaky", constants={"kappa": kappa}))
    theirs = decoders.LeakyDecoder(kappa=kappa)(torch.from_numpy(outputs * 1.0)).numpy()
    np.testing.assert_allclose(ours, theirs)
    other = logits(outputs, readout(reduction="mean" if kappa else "last"))
    np.testing.assert_allclose(ours, other)


@settings(max_examples=80, deadline=None)
@given(spikes=SPIKES, xi=st.floats(0.1, 3), tau=st.floats(0.5, 9))
def test_the_first_spike_equals_the_decoder(spikes, xi, tau):
    made = decoders.FirstSpikeDecoder(xi=xi, tau_syn=tau)
    theirs = made(torch.from_numpy(spikes.astype(np.float64))).numpy()
    constants = {"xi": xi, "tau_syn": tau}
    ours = logits(spikes, readout(reduction="first_spike", constants=constants))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    scaled = logits(spikes, readout(reduction="first_spike", scale=1 / (xi * tau)))
    np.testing.assert_allclose(scaled, theirs, rtol=1e-12)


def test_an_output_at_minus_infinity_stays_there():
    steps = np.array([[[1.0, -np.inf, 0.0]], [[0.0, 1.0, 1.0]]])
    ours = logits(steps, readout(reduction="first_spike"))
    theirs = decoders.FirstSpikeDecoder(xi=1.0, tau_syn=1.0)(torch.from_numpy(steps)).numpy()
    assert ours.tolist() == theirs.tolist() == [[0.0, -np.inf, -1.0]]


@settings(max_examples=50, deadline=None)
@given(
    data=st.data(), units=st.integers(1, 3), classes=st.integers(1, 4), scale=st.floats(1e-3, 10)
)
def test_units_equal_the_population_decoder(data, units, classes, scale):
    spikes = data.draw(arrays(np.uint8, (4, 2, units * classes), elements=st.integers(0, 1)))
    ours = logits(spikes, readout(units=units, scale=scale))
    theirs = decoders.PopulationDecoder(units=units)(torch.from_numpy(spikes * 1.0)).numpy()
    np.testing.assert_allclose(ours, scale * theirs, rtol=1e-12)


@pytest.mark.parametrize("name", [*PAIRS, "first_spike"])
def test_units_come_after_time_for_every_reduction(name):
    spikes = np.random.default_rng(1).integers(0, 2, (5, 3, 6))
    _, constants = PAIRS.get(name, (None, {}))
    single = logits(spikes, readout(reduction=name, constants=constants))
    pairs = logits(spikes, readout(reduction=name, units=2, constants=constants))
    np.testing.assert_allclose(pairs, (single[:, ::2] + single[:, 1::2]) / 2)


def test_accuracy_by_hand():
    assert accuracy([[0.0, 1.0], [2.0, 1.0], [0.0, 5.0]], [1, 1, 1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (np.zeros((2, 3)), {}, r"shape \(2, 3\); \[steps, samples, outputs\]"),
        (np.zeros((0, 3, 2)), {}, "a step or more"),
        (np.zeros((2, 1, 5)), {"units": 2}, "5 outputs, 2 for each class; a divisor"),
        (np.zeros((2, 1, 5)), {"units": 0}, "5 outputs, 0 for each class"),
        (np.zeros((2, 1, 5)), {"reduction": "leaky"}, "'kappa' is needed"),
        (np.zeros((2, 1, 5)), {"reduction": "median"}, "reduction 'median'"),
    ],
)
def test_what_does_not_fit_is_refused(outputs, options, message):
    with pytest.raises(ProgramError, match=message):
        logits(outputs, readout(**options))


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ProgramError, match=r"\(3,\) labels for \(2,\) samples"):
        accuracy(np.zeros((2, 4)), [0, 1, 2])
    with pytest.raises(ProgramError, match="one for each"):
        accuracy(np.zeros((0, 4)), [])
