"""Derivatives taken forward: dual numbers through the reference, and finite differences."""

import pytest
import torch
from torch.autograd import forward_ad

from spikecl.errors import KernelError
from spikecl.kernels import Kernels, Recurrence, RecurrentState, choose, scan, scans
from spikecl.kernels.program import program
from spikecl.kernels.recurrence import Ways
from spikecl.kernels.tangent import Dual, ahead
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    Izhikevich,
    LeakyIntegrator,
    LIFState,
    RateIF,
    RateLIF,
    SigmaDelta,
    Sigmoid,
    Smooth,
    SynapticIntegrator,
)
from spikecl.neurons.neuron import leaves, rebuild

T, B, N = 9, 3, 5
FORMS = {  # a neuron, its parameters that move, the scale of its input
    "lif": (LIF(beta=0.8, v_th=0.6), ("beta",), 1.0),
    "lif-zero": (LIF(reset="zero", scale_input=True, beta=0.4, v_th=0.3), (), 1.0),
    "lif-kept": (
        LIF(reset="value", detach_reset=False, beta=0.8, v_th=0.6, v_reset=-0.2, v_rest=0.1),
        ("beta", "v_th", "v_reset", "v_rest"),
        1.0,
    ),
    "lif-next": (LIF(reset_time="next", detach_reset=False, v_th=0.6), ("v_th",), 1.0),
    "lif-after": (LIF(reset_time="after", v_th=0.6), (), 1.0),
    "lif-refractory": (LIF(refractory=2, detach_reset=False, beta=0.8, v_th=0.6), (), 1.0),
    "if": (IF(v_th=1.2), ("v_th",), 1.0),
    "plif": (PLIF(beta=0.6, v_th=0.4), ("beta",), 1.0),
    "alif": (ALIF(rho=0.9, detach_reset=False, v_th=0.6), ("rho", "adaptation"), 1.0),
    "cuba": (CUBA(alpha=0.6, v_th=0.5, detach_reset=False), ("alpha", "beta"), 1.0),
    "integrator": (LeakyIntegrator(kappa=0.7), ("kappa",), 1.0),
    "synaptic-integrator": (SynapticIntegrator(alpha=0.6, kappa=0.7, v_rest=0.2), (), 1.0),
    "sigma-delta": (SigmaDelta(v_th=0.5), ("v_th",), 1.0),
    "rate-if": (RateIF(v_th=0.9, detach_reset=False), ("v_th",), 1.0),
    "rate-lif": (RateLIF(v_th=0.5, tau_mem=4.0, dt=1.0), ("v_th",), 1.0),
    "izhikevich": (Izhikevich(v_peak=25.0), ("a", "d"), 40.0),
}
forms = pytest.mark.parametrize("form", FORMS)
listening = pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])


def draw(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def pose(form, *, recurrent=False):
    """Draw what a scan is given, by name, and the model."""
    neuron, moving, scale = FORMS[form]
    x = scale * (0.3 + 0.7 * draw((T + 3, B, N), 1))
    _, state = scan(x[:3], None, neuron)
    given = {"x": x[3:]}
    given |= {f"state{k}": part.clone() for k, part in enumerate(leaves(state))}
    if recurrent:
        given |= {"weight": 0.3 * draw((N, N), 2), "bias": 0.1 * draw((N,), 3)}
        given["last"] = (draw((B, N), 4) > 0).double()
    for k, name in enumerate(moving):
        given[name] = getattr(neuron, name) * (1 + 0.03 * torch.tanh(draw((N,), 5 + k)))
    return neuron, state, given


def solve(neuron, state, given, *, kernel="auto", ways=None):
    """Return the output and the last state."""
    parts = [given[name] for name in given if name.startswith("state")]
    start, synapses = rebuild(state, iter(parts)), None
    if "weight" in given:
        synapses = Recurrence(given["weight"], given["bias"])
        start = RecurrentState(start, given["last"])
    own = {name: given[name] for name in given if hasattr(neuron, name)}
    more = {} if ways is None else {"ways": ways}
    run = Kernels(scan=kernel)
    out, end = scan(given["x"], start, neuron.bind(own), recurrence=synapses, kernels=run, **more)
    return [out, *leaves(end)]


def duals(given, still=()):
    """Return dual numbers with a random tangent; those of ``still`` have none."""
    return {
        name: value if name in still else Dual(value, draw(value.shape, 90 + k)).number()
        for k, (name, value) in enumerate(given.items())
    }


def along(neuron, state, given, *, kernel, still=()):
    with torch.no_grad(), forward_ad.dual_level():
        found = solve(neuron, state, duals(given, still), kernel=kernel)
        parts = [forward_ad.unpack_dual(part) for part in found]
    return [(value, 0.0 * value if tangent is None else tangent) for value, tangent in parts]


def assert_twins(problem, still=()):
    expected = along(*problem, kernel="reference", still=still)
    found = along(*problem, kernel="fused", still=still)
    for (value, tangent), (known, right) in zip(found, expected, strict=True):
        assert torch.equal(value, known)
        torch.testing.assert_close(tangent, right, rtol=1e-12, atol=1e-12)
    return found


@forms
@listening
def test_dual_numbers_through_the_reference(form, recurrent):
    found = assert_twins(pose(form, recurrent=recurrent))
    assert found[0][1].abs().max() > 1e-3


@forms
@pytest.mark.parametrize("moves", ["x", "state", "weight", "last", "parameters"])
def test_one_thing_moves_alone(form, moves):
    neuron, state, given = pose(form, recurrent=True)
    chosen = {name for name in given if name.startswith(moves)}
    if moves == "parameters":
        chosen = set(FORMS[form][1])
    if not chosen:
        pytest.skip("it has none that moves")
    found = assert_twins((neuron, state, given), still=set(given) - chosen)
    if form != "sigma-delta" and (form, moves) != ("if", "parameters"):
        assert any(bool(tangent.any()) for _, tangent in found)


def test_nothing_moves():
    problem = pose("lif-kept", recurrent=True)
    found = assert_twins(problem, still=set(problem[2]))
    assert not any(bool(tangent.any()) for _, tangent in found)


def test_the_finite_difference():
    """Where the spike is the integral of its surrogate, the tangent is the true one."""
    smooth = Smooth(of=Sigmoid(slope=2.0))
    neuron = LIF(beta=0.8, v_th=0.4, detach_reset=False, surrogate=smooth)
    _, state, given = pose("lif", recurrent=True)
    given = {name: value for name, value in given.items() if name != "beta"}
    with torch.no_grad(), forward_ad.dual_level():
        moving = duals(given)
        start = RecurrentState(LIFState(moving["state0"], None), moving["last"])
        synapses = Recurrence(moving["weight"], moving["bias"])
        out, end = ahead(moving["x"], start, neuron, program(neuron, state), synapses)
        found = [Dual.of(part) for part in (out, *leaves(end))]
    ends = []
    for sign in (1, -1):
        moved = {
            name: value + sign * 1e-6 * draw(value.shape, 90 + k)
            for k, (name, value) in enumerate(given.items())
        }
        ends.append(solve(neuron, state, moved))
    for (_, tangent), right, left in zip(found, *ends, strict=True):
        torch.testing.assert_close(tangent, (right - left) / 2e-6, rtol=1e-7, atol=1e-7)


def test_what_has_a_graph_runs_by_the_reference(monkeypatch):
    """Forward over backward is autograd's; so are neurons that no program follows."""
    neuron, state, given = pose("lif")

    def never(*args):
        raise AssertionError("the tangent has no graph")

    monkeypatch.setattr(scans, "ahead", never)
    given["x"].requires_grad_()
    with forward_ad.dual_level():
        out, *_ = solve(neuron, state, duals(given))
        tangent = forward_ad.unpack_dual(out).tangent
    assert torch.autograd.grad(tangent.sum(), given["x"])[0].shape == given["x"].shape
    with torch.no_grad(), forward_ad.dual_level():
        x = duals({"x": 100 * given["x"].detach()})["x"]
        scan(x, None, AdEx())
        solve(neuron, state, duals(given), ways=Ways(instant=True))


@pytest.mark.parametrize("kernel", ["compiled", "inductor"])
def test_kernels_that_cannot_are_refused(kernel):
    neuron, state, given = pose("lif")
    with torch.no_grad(), forward_ad.dual_level():
        assert choose(neuron, given["x"]).name == "fused"
        with pytest.raises(KernelError, match=f"'{kernel}' cannot run here: derivatives are taken"):
            solve(neuron, state, duals(given), kernel=kernel)
