"""Spike functions are found by asking them, whatever they are made of."""

import pickle

import pytest
import snntorch.surrogate as theirs
import torch

from spikecl.interop.surrogates import SpikeGrad, agrees, identify
from spikecl.neurons import (
    Arctan,
    Boxcar,
    Erf,
    FastSigmoid,
    MultiGaussian,
    Sigmoid,
    Smooth,
    StraightThrough,
    Triangle,
    spike,
)

OURS = [
    *(Arctan(slope=k) for k in (0.01, 2.0, 300.0)),
    *(Sigmoid(slope=k) for k in (0.02, 4.0, 25.0, 500.0)),
    *(FastSigmoid(slope=k) for k in (0.001, 1.0, 25.0, 1e4)),
    *(Erf(slope=k) for k in (0.1, 2.0, 80.0)),
    *(Boxcar(width=w) for w in (1e-3, 0.5, 1.0, 50.0)),
    *(Triangle(height=g, width=w) for g in (0.3, 1.0, 7.0) for w in (1e-3, 1.0, 40.0, 1e3)),
    StraightThrough(),
]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("surrogate", OURS, ids=str)
def test_each_of_ours_is_found(surrogate, strict):
    found = identify(lambda x: spike(x, surrogate, strict=strict))
    assert found.strict is strict
    assert found.surrogate == surrogate


def test_our_own_function_is_known_whatever_it_holds():
    fire = SpikeGrad(MultiGaussian(), strict=False)
    assert identify(fire) == (False, MultiGaussian())
    assert pickle.loads(pickle.dumps(fire)) == fire
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    assert fire(x).tolist() == [0.0, 1.0, 1.0]
    assert fire(x).dtype == torch.float64


THEIRS = [
    (theirs.atan(), Arctan(slope=2.0)),
    (theirs.atan(0.75), Arctan(slope=0.75)),
    (theirs.fast_sigmoid(), FastSigmoid(slope=25.0)),
    (theirs.fast_sigmoid(slope=3), FastSigmoid(slope=3.0)),
    (theirs.sigmoid(), Sigmoid(slope=25.0)),
    (theirs.sigmoid(slope=100), Sigmoid(slope=100.0)),
    (theirs.straight_through_estimator(), StraightThrough()),
    (theirs.custom_surrogate(lambda x, g, s: g / (1 + 7 * x.abs()) ** 2), FastSigmoid(slope=7.0)),
]


@pytest.mark.parametrize(("fire", "surrogate"), THEIRS, ids=[str(s) for _, s in THEIRS])
def test_those_of_snntorch_are_found(fire, surrogate):
    assert identify(fire) == (True, surrogate)


@pytest.mark.parametrize(
    "fire",
    [
        theirs.triangular(),  # its sign is wrong above the threshold
        theirs.heaviside(),
        theirs.spike_rate_escape(),
        theirs.SSO(),
        theirs.SFS(),
        theirs.custom_surrogate(lambda x, g, s: g * torch.sigmoid(x)),
        theirs.custom_surrogate(lambda x, g, s: 2 * g / (1 + 7 * x.abs()) ** 2),
        lambda x: (x > 0).to(x.dtype),
    ],
    ids=["triangular", "heaviside", "escape", "sso", "sfs", "one-sided", "scaled", "constant"],
)
def test_others_are_steps_without_a_known_derivative(fire):
    before = torch.random.get_rng_state()
    assert identify(fire) == (True, None)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "fire", [torch.sigmoid, torch.relu, lambda x: spike(x, Smooth()), lambda x: (x > 0.1) * x]
)
def test_what_is_no_step_at_zero_is_seen(fire):
    assert identify(fire).strict is None


def test_agreement_needs_the_comparison_too():
    assert agrees(theirs.atan(), Arctan(slope=2.0))
    assert not agrees(theirs.atan(), Arctan(slope=2.001))
    assert not agrees(SpikeGrad(Arctan(), strict=False), Arctan())
