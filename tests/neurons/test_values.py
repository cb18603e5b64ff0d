"""Ranges of parameters, and the unbounded numbers that stand for them while they learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from spikecl.neurons import (
    ALIF,
    CUBA,
    LIF,
    MODELS,
    PLIF,
    AdEx,
    ConductanceLIF,
    LeakyIntegrator,
    LoihiLIF,
    RateIF,
    Rectified,
    SigmaDelta,
)
from spikecl.neurons.values import exp as exp_of
from spikecl.neurons.values import ranges

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
DECAY = ranges(LIF)["beta"]
POSITIVE = ranges(AdEx)["capacitance"]
NON_NEGATIVE = ranges(SigmaDelta)["v_th"]
REAL = ranges(LIF)["v_rest"]
ALL = {"decay": DECAY, "positive": POSITIVE, "non-negative": NON_NEGATIVE, "real": REAL}
INSIDE = {  # values that float64 tells apart from the ends
    "decay": st.floats(1e-12, 1 - 1e-12),
    "positive": st.floats(1e-200, 1e200),
    "non-negative": st.floats(1e-12, 1e9),
    "real": st.floats(-1e300, 1e300),
}
each = pytest.mark.parametrize("kind", list(ALL))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_every_model_names_what_may_be_a_tensor():
    resetting = {"v_th", "v_reset"}
    lif = resetting | {"beta", "v_rest"}
    expected = {
        "lif": lif, "if": lif - {"beta"}, "plif": lif, "alif": lif | {"rho", "adaptation"},
        "cuba": lif | {"alpha"},
        "conductance": resetting
        | {"tau_mem", "tau_exc", "tau_inh", "v_rest", "e_exc", "e_inh", "v_scale", "dt"},
        "izhikevich": {"a", "b", "c", "d", "v_peak", "v_scale", "dt"},
        "adex": {"capacitance", "g_leak", "e_leak", "v_t", "delta_t", "v_peak", "v_reset", "tau_w",
                 "a", "b", "v_scale", "dt"},
        "leaky_integrator": {"kappa"}, "synaptic_integrator": {"alpha", "kappa", "v_rest"},
        "sigma_delta": {"v_th"}, "loihi": set(), "rectified": set(),
        "rate_if": {"v_th"}, "rate_lif": {"v_th"},
    }  # fmt: skip
    assert {name: set(ranges(cls)) for name, cls in MODELS.items()} == expected


def test_ranges_are_those_of_the_equations():
    for cls, name in ((LIF, "beta"), (ALIF, "rho"), (CUBA, "alpha"), (LeakyIntegrator, "kappa")):
        assert (ranges(cls)[name].low, ranges(cls)[name].high) == (0.0, 1.0)
        assert not ranges(cls)[name].open_low
    for name in ("tau_mem", "tau_exc", "tau_inh", "v_scale", "dt"):
        assert ranges(ConductanceLIF)[name].open_low
        assert ranges(ConductanceLIF)[name].low == 0
    assert (NON_NEGATIVE.low, NON_NEGATIVE.open_low) == (0, False)
    assert REAL.low == -math.inf
    for cls in MODELS.values():
        for name in set(cls.learns):
            assert name in ranges(cls)
    assert PLIF.learns == ("beta",)
    assert LIF.learns == Rectified.learns == LoihiLIF.learns == ()


@each
def test_a_number_is_read_as_a_float_and_a_tensor_as_itself(kind):
    allowed = ALL[kind]
    for value in (1, 0.5, np.float64(0.5)):
        assert type(allowed.read(value)) in (float, np.float64)
        assert allowed.read(value) == value
    tensor = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    assert allowed.read(tensor) is tensor
    for value in ([0.5, 1], (0.5, 1), [[0.5, 1.0], [0.25, 0.125]], [[[0.5]]]):
        read = allowed.read(value)
        assert read.dtype == torch.get_default_dtype()
        assert torch.equal(read, torch.tensor(value))


def test_ends_of_the_ranges():
    assert DECAY.read(0) == 0
    assert DECAY.read(1) == 1
    assert NON_NEGATIVE.read(0) == 0
    assert POSITIVE.read(1e-300) == 1e-300
    for allowed, bad in (
        (DECAY, 1 + 1e-15),
        (DECAY, -1e-300),
        (POSITIVE, 0),
        (NON_NEGATIVE, -1e-9),
    ):
        for value in (bad, torch.tensor([0.5, bad], dtype=torch.float64)):
            with pytest.raises(PydanticCustomError, match=allowed.text):
                allowed.read(value)


@quick
@given(st.data(), st.sampled_from(list(ALL)))
def test_what_is_stored_stands_for_the_value(data, kind):
    value = data.draw(INSIDE[kind])
    raw = ALL[kind].to_raw(double(value))
    assert bool(raw.isfinite())
    back = ALL[kind].from_raw(raw).item()
    assert back == pytest.approx(value, rel=1e-9)
    if kind == "decay":  # near 1 it is the time constant that counts
        assert 1 - back == pytest.approx(1 - value, rel=1e-3)


@quick
@given(st.sampled_from(list(ALL)), st.floats(-30, 30), st.floats(1e-3, 1.0))
def test_whatever_is_stored_the_value_is_in_range_and_rises_with_it(kind, raw, more):
    allowed = ALL[kind]
    low, high = allowed.from_raw(double(raw)), allowed.from_raw(double(raw + more))
    for value in (low, high):
        assert allowed.read(value) is value
        assert kind == "real" or value.item() > 0
        assert kind != "decay" or value.item() < 1
    assert low.item() < high.item()
    assert allowed.to_raw(low).item() == pytest.approx(raw, rel=1e-6, abs=1e-9) or kind == "decay"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each
def test_ends_are_stored_as_finite_numbers_next_to_them(kind, dtype):
    ends = {"decay": [0.0, 1.0], "non-negative": [0.0, 90.0, 1e4], "positive": [1e-30, 1e30]}
    values = torch.tensor(ends.get(kind, [-1e30, 0.0, 1e30]), dtype=dtype)
    raw = ALL[kind].to_raw(values)
    assert raw.dtype == dtype
    assert bool(raw.isfinite().all())
    back = ALL[kind].from_raw(raw)
    torch.testing.assert_close(back, values, rtol=2e-5, atol=4 * torch.finfo(dtype).eps)
    assert raw.data_ptr() != values.data_ptr()  # stored numbers are not the caller's


def test_a_bound_that_is_not_zero():
    bounded = ranges(RateIF)["v_th"]
    assert bounded.read(0.01) == bounded.low == 0.01
    for bad in (0.00999, torch.tensor([0.5, 0.0])):
        with pytest.raises(PydanticCustomError, match=r"at least 0\.01"):
            bounded.read(bad)
    values = double(0.01, 0.010001, 0.5, 3.0, 90.0)
    torch.testing.assert_close(bounded.from_raw(bounded.to_raw(values)), values)
    raw = double(-800.0, -30.0, -1.0, 0.0, 2.0)
    expected = 0.01 + torch.log1p(raw.exp())
    torch.testing.assert_close(bounded.from_raw(raw), expected, rtol=1e-12, atol=0)
    assert bool((bounded.from_raw(raw) >= 0.01).all())


@each
def test_the_forms_and_their_slopes(kind):
    raw = double(-2.0, -0.5, 0.0, 0.7, 3.0).requires_grad_()
    value = ALL[kind].from_raw(raw)
    (slope,) = torch.autograd.grad(value.sum(), raw)
    r = raw.detach()
    s = 1 / (1 + (-r).exp())
    expected = {
        "decay": (s, s * (1 - s)), "positive": (r.exp(), r.exp()),
        "non-negative": ((1 + r.exp()).log(), s), "real": (r, torch.ones(5, dtype=r.dtype)),
    }[kind]  # fmt: skip
    torch.testing.assert_close(value.detach(), expected[0])
    torch.testing.assert_close(slope, expected[1])


def test_exponential_of_numbers_and_tensors():
    assert exp_of(-0.5) == math.exp(-0.5)
    assert torch.equal(exp_of(double(-0.5, 1.0)), double(-0.5, 1.0).exp())
