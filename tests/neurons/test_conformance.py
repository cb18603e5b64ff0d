"""What every neuron model has to do, alone and listening to itself, whatever its options are."""

import copy
import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import NamedTuple

import pytest
import torch
from torch.autograd import gradcheck

from spikecl import storage
from spikecl.components import component, from_table, to_table
from spikecl.errors import ConfigError, UsageError
from spikecl.kernels import Recurrence, RecurrentState, choose, reference, scan
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    MODELS,
    PLIF,
    SURROGATES,
    AdEx,
    AnyNeuron,
    Arctan,
    ConductanceLIF,
    Escape,
    FastSigmoid,
    Izhikevich,
    LeakyIntegrator,
    LIFState,
    LoihiLIF,
    RateIF,
    RateLIF,
    Rectified,
    Refractory,
    Reset,
    SigmaDelta,
    Sigmoid,
    Smooth,
    SpikingNeuron,
    SynapticIntegrator,
    carry,
    step,
)
from spikecl.neurons.neuron import Resetting
from spikecl.neurons.values import ranges

N = 3


class Case(NamedTuple):
    """A model with parameters and an input it fires at, now and then.

    The input is normal with a mean and a spread; ``unit`` is what counts as little for a membrane,
    ``width`` the softness of a threshold that makes chance visible.
    """

    neuron: object
    mean: float = 0.25
    spread: float = 0.6
    unit: float = 0.2
    width: float = 0.3


VALUE = {"reset": Reset.VALUE, "v_reset": -0.2}
CASES = {
    "lif": Case(LIF(beta=0.8, v_th=0.6, v_rest=-0.1, **VALUE)),
    "lif-soft": Case(LIF(beta=0.8, v_th=0.6, surrogate=FastSigmoid(slope=3.0))),
    "lif-next": Case(LIF(beta=0.8, v_th=0.6, v_rest=0.1, reset_time="next", **VALUE)),
    "lif-after": Case(LIF(beta=0.8, v_th=0.6, reset_time="after", **VALUE)),
    "if": Case(IF(v_th=1.2, **VALUE), mean=0.3),
    "plif": Case(PLIF(v_th=0.4, beta=0.6), mean=0.3, spread=0.9),
    "alif": Case(ALIF(beta=0.8, rho=0.9, v_th=0.4, adaptation=1.2, v_rest=0.1, **VALUE)),
    "alif-next": Case(ALIF(beta=0.8, rho=0.8, v_th=0.4, reset_time="next")),
    "cuba": Case(CUBA(beta=0.8, alpha=0.6, v_rest=0.1, **VALUE), mean=0.1),
    "cuba-next": Case(CUBA(beta=0.8, alpha=0.6, reset_time="next"), mean=0.1),
    "conductance": Case(ConductanceLIF(v_reset=-62.0, e_exc=4.0, tau_mem=5.0), 0.2, 0.3, 2.0),
    "conductance-next": Case(
        ConductanceLIF(v_reset=-62.0, tau_mem=5.0, reset_time="next"), 0.2, 0.3, 2.0
    ),
    "izhikevich": Case(Izhikevich(v_peak=25.0), mean=25.0, spread=25.0, unit=3.0, width=3.0),
    "adex": Case(AdEx(dt=0.5), mean=3e3, spread=3e3, unit=2.0, width=3.0),
    "leaky_integrator": Case(LeakyIntegrator(kappa=0.7)),
    "synaptic_integrator": Case(SynapticIntegrator(alpha=0.6, kappa=0.7)),
    "sigma_delta": Case(SigmaDelta(v_th=0.5)),
    "loihi": Case(
        LoihiLIF(vth=70, du=2000, dv=300, bias_mant=-6, bias_exp=4), mean=15, spread=30, unit=900
    ),
    "rectified": Case(Rectified()),
    "rate_if": Case(RateIF(v_th=0.9)),
    "rate_lif": Case(RateLIF(v_th=0.5, tau_mem=4.0, dt=1.0)),
}
OPTIONS = {
    "plain": {},
    "refractory": {"refractory": 2},
    "integrating": {"refractory": 2, "integrate_refractory": True},
    "noise": {"noise": 1.0},  # in units of the case
    "escape": {"escape": Escape(width=1.0)},  # in widths of the case
    "all": {"refractory": 1, "integrate_refractory": True, "noise": 1.0, "escape": Escape(width=1)},
}


class Setup(NamedTuple):
    """A neuron with options, its input, and whether it listens to itself."""

    case: Case
    neuron: object
    recurrent: bool

    def input(self, steps=14, batch=2, cells=(N,), dtype=torch.float64, seed=0):
        """Draw an input current [T, B, *features]."""
        return draw_input(self.case, steps, batch, cells, dtype, seed)

    def recurrence(self, cells=(N,), dtype=torch.float64):
        """Draw synapses of the layer onto itself."""
        if not self.recurrent:
            return None
        n = math.prod(cells)
        weight = self.case.spread * draw((n, n), 7) / n
        return Recurrence(weight.to(dtype), 0.1 * self.case.spread * draw((n,), 8).to(dtype))


def draw(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def draw_input(case, steps=14, batch=2, cells=(N,), dtype=torch.float64, seed=0):
    pair = (2,) if isinstance(case.neuron, ConductanceLIF) else ()
    x = case.mean + case.spread * draw((steps, batch, *pair, *cells), seed)
    if isinstance(case.neuron, LoihiLIF):
        x = x.round()
    return (x.abs() if pair else x).to(dtype)


def _setups():
    for name, case in CASES.items():
        spiking = isinstance(case.neuron, SpikingNeuron)
        late = getattr(case.neuron, "reset_time", "same") != "same"
        for option, values in OPTIONS.items():
            if option != "plain" and not (spiking and (option == "all" or not late)):
                continue
            neuron = replace(case.neuron, **values)
            if "noise" in values:
                neuron = replace(neuron, noise=case.unit)
            if "escape" in values:
                neuron = replace(neuron, escape=Escape(width=case.width))
            yield f"{name}-{option}", Setup(case, neuron, False)
            # A conductance-based neuron has two inputs and one output: a Recurrence would have to
            # know which of its synapses excite. The scan refuses it; see below.
            if option in ("plain", "refractory", "all") and not isinstance(neuron, ConductanceLIF):
                yield f"{name}-{option}-recurrent", Setup(case, neuron, True)


SETUPS = dict(_setups())
RANDOM = {name: s for name, s in SETUPS.items() if s.neuron.random}
QUIET = {name: s for name, s in SETUPS.items() if not s.neuron.random}


def over(setups):
    return pytest.mark.parametrize("setup", setups.values(), ids=list(setups))


models = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def leaves(state, prefix="state"):
    """Return the tensors of a state by their paths."""
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    found = {}
    for name in getattr(state, "_fields", ()):
        found |= leaves(getattr(state, name), f"{prefix}.{name}")
    return found


def rebuilt(state, values, prefix="state"):
    """Return the state with other tensors in it, given by their paths."""
    if isinstance(state, torch.Tensor):
        return values.get(prefix, state)
    if state is None:
        return None
    parts = {n: rebuilt(getattr(state, n), values, f"{prefix}.{n}") for n in state._fields}
    return type(state)(**parts)


def run(setup, x, state=None, seed=5):
    given = seed if isinstance(seed, torch.Generator) else generator(seed)
    cells = setup.neuron.cells(x[0] if len(x) else x.new_zeros(x.shape[1:]))
    synapses = setup.recurrence(tuple(cells), x.dtype)
    return scan(x, state, setup.neuron, recurrence=synapses, generator=given)


def assert_same(ours, expected, tolerance=1e-12):
    """Outputs and states agree, type by type and field by field."""
    torch.testing.assert_close(ours[0], expected[0], rtol=tolerance, atol=tolerance)
    a, b = leaves(ours[1]), leaves(expected[1])
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)


def membrane(state):
    return next((v for n, v in leaves(state).items() if n.endswith(".v")), None)


def test_every_model_has_a_case():
    assert {type(case.neuron) for case in CASES.values()} == set(MODELS.values())


@over(SETUPS)
def test_cases_fire_now_and_then(setup):
    out, _ = run(setup, setup.input(steps=40))
    if not isinstance(setup.neuron, SpikingNeuron):
        assert bool(out.any())
        return
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert 0.02 < float(out.mean()) < 0.8
    assert bool((out.sum((0, 1)) > 0).all())
    gap = setup.neuron.refractory
    for lag in range(1, gap + 1):  # no two spikes within the refractory period
        assert not bool((out[lag:] * out[:-lag]).any())


@over(SETUPS)
def test_steps_equal_the_scan(setup):
    x, synapses, drawn = setup.input(), setup.recurrence(), generator()
    inner, last, outputs = None, torch.zeros_like(x[0]), []
    for current in x:
        if synapses is not None:
            current = current + last @ synapses.weight.T + synapses.bias
        last, inner = step(current, inner, setup.neuron, drawn)
        outputs.append(last)
    looped = torch.stack(outputs), RecurrentState(inner, last) if setup.recurrent else inner
    assert_same(run(setup, x), looped)


@over(SETUPS)
def test_the_choice_of_a_kernel_changes_nothing(setup):
    x, synapses = setup.input(steps=12).requires_grad_(), setup.recurrence()
    found = []
    generated = choose(setup.neuron, x).name != "reference"
    for kernel in (scan, reference) if generated else (scan,):
        out, state = kernel(x, None, setup.neuron, recurrence=synapses, generator=generator())
        weights = draw(out.shape, 3)
        tail = membrane(state)
        loss = (out * weights).sum() + (0 if tail is None else tail.sum())
        found.append((torch.autograd.grad(loss, x)[0], (out, state)))
    assert_same(found[0][1], found[-1][1])
    torch.testing.assert_close(found[0][0], found[-1][0], rtol=1e-10, atol=1e-10)
    assert bool(found[0][0].isfinite().all() & found[0][0].any())


@over(SETUPS)
def test_two_halves_with_a_file_in_between_equal_the_whole(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_flush", lambda path: None)  # the disk takes its time
    x, drawn = setup.input(), generator()
    first, state = run(setup, x[:9], seed=drawn)
    storage.save_state(tmp_path / "state", {"layer": leaves(state)})
    loaded = rebuilt(state, storage.load_state(tmp_path / "state").get("layer", {}))
    for name, tensor in leaves(state).items():
        assert torch.equal(leaves(loaded)[name], tensor)
        assert leaves(loaded)[name].dtype == tensor.dtype
    second, last = run(setup, x[9:], loaded, seed=drawn)
    whole = run(setup, x)
    assert torch.equal(torch.cat([first, second]), whole[0])
    assert_same((whole[0], last), whole, 0)


@over(SETUPS)
def test_one_step_one_sample_and_none(setup):
    x = setup.input(steps=6)
    out, state = run(setup, x)
    assert out.shape == (6, 2, N)
    for given in (None, state):
        nothing, same = run(setup, x[:0], given)
        assert nothing.shape == (0, 2, N)
        assert nothing.dtype == x.dtype
        assert type(same) is type(state)
        rest = run(setup, x[:0])[1]
        assert_same((out, same), (out, rest if given is None else state), 0)
    one, _ = run(setup, x[:1])
    assert torch.equal(one, out[:1])
    if setup.neuron.random:
        assert run(setup, x[:, :1])[0].shape == (6, 1, N)
        return
    single, last = run(setup, x[:, :1])  # a sample does not know of the others in its batch
    torch.testing.assert_close(single, out[:, :1])
    for name, tensor in leaves(last).items():
        torch.testing.assert_close(tensor, leaves(state)[name][:1], rtol=1e-12, atol=1e-12)
    empty, _ = run(setup, x[:, :0])
    assert empty.shape == (6, 0, N)


@over(SETUPS)
def test_the_future_does_not_reach_the_past(setup):
    x = setup.input()
    other = x.clone()
    other[7:] += 2 * setup.case.spread
    a, b = run(setup, x)[0], run(setup, other)[0]
    assert torch.equal(a[:7], b[:7])
    assert not torch.equal(a[7:], b[7:])


@over(SETUPS)
def test_types_are_kept(setup):
    for dtype in (torch.float32, torch.float64):
        out, state = run(setup, setup.input(steps=6, dtype=dtype))
        assert out.dtype == dtype
        for name, tensor in leaves(state).items():
            assert tensor.dtype == dtype, name
            assert tensor.shape == (2, N), name


@over(SETUPS)
def test_more_axes_are_more_neurons(setup):
    x = setup.input(cells=(2, 1, 3))
    pair = x.shape[2:-3]
    a = run(setup, x)
    b = run(setup, x.reshape(*x.shape[:2], *pair, 6))
    assert a[0].shape == (14, 2, 2, 1, 3)
    assert torch.equal(a[0].flatten(2), b[0])
    for name, tensor in leaves(a[1]).items():
        assert tensor.shape == (2, 2, 1, 3), name
        torch.testing.assert_close(tensor.flatten(1), leaves(b[1])[name])


@over(SETUPS)
def test_nothing_is_changed_in_place_and_nothing_kept(setup):
    x, synapses, shown = setup.input(), setup.recurrence(), repr(setup.neuron)
    start = run(setup, setup.input(steps=3, seed=1))[1]
    given = {"x": x, **leaves(start), **(synapses._asdict() if synapses else {})}
    before = {name: tensor.clone() for name, tensor in given.items()}
    out, state = scan(x, start, setup.neuron, recurrence=synapses, generator=generator())
    first = [tensor.clone() for tensor in (out, *leaves(state).values())]
    for name, tensor in given.items():
        assert torch.equal(tensor, before[name]), name
    again, once_more = scan(x, start, setup.neuron, recurrence=synapses, generator=generator())
    for a, b in zip(first, (again, *leaves(once_more).values()), strict=True):
        assert torch.equal(a, b)
    assert repr(setup.neuron) == shown
    for name, tensor in leaves(state).items():  # not a view that keeps all steps alive
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name


@models
def test_a_neuron_is_frozen_and_holds_nothing_else(case):
    neuron = case.neuron
    assert not hasattr(neuron, "__dict__")
    for field in fields(neuron):
        with pytest.raises(FrozenInstanceError):
            setattr(neuron, field.name, getattr(neuron, field.name))
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        neuron.v = torch.zeros(1)
    assert copy.deepcopy(neuron) == neuron
    assert hash(copy.copy(neuron)) == hash(neuron)


@over(SETUPS)
def test_silence_and_saturation_stay_finite(setup):
    x = setup.input(steps=18, dtype=torch.float32)
    large = (1e6 if isinstance(setup.neuron, LoihiLIF) else 1e20) * setup.case.spread
    x[:6], x[6:9], x[9:12], x[12:] = 0, large, -large, 0
    if isinstance(setup.neuron, ConductanceLIF):
        x = x.abs()
    x.requires_grad_()
    silent, rest = run(setup, x[:6].detach())
    if not (setup.neuron.random or setup.recurrent or isinstance(setup.neuron, LoihiLIF)):
        assert not bool(silent.any())  # no model fires on its own here
        near = 1e-3 if isinstance(setup.neuron, AdEx) else 1e-6  # its upswing is never quite zero
        for name, tensor in leaves(rest).items():
            start = leaves(setup.neuron.rest(x[0].detach()))[name]
            torch.testing.assert_close(tensor, start, rtol=1e-5, atol=near, msg=name)
    out, state = run(setup, x)
    for name, tensor in {"out": out, **leaves(state)}.items():
        assert bool(tensor.isfinite().all()), name
    if isinstance(setup.neuron, SpikingNeuron):
        assert bool(out[6:9].any())
    assert bool(torch.autograd.grad(out.sum(), x)[0].isfinite().all())


@pytest.mark.parametrize("delta_t", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_upswing_however_sharp_stays_finite(delta_t, dtype):
    neuron = AdEx(dt=0.5, delta_t=delta_t)
    x = torch.full((60, 1, 2), 5e3, dtype=dtype, requires_grad=True)
    out, state = scan(x, None, neuron)
    assert 0.02 < float(out.detach().mean()) < 0.8
    grad = torch.autograd.grad(out.sum() + state.v.sum() + state.w.sum(), x)[0]
    assert all(bool(part.isfinite().all()) for part in (*state, grad))
    fired, after = step(x[0], state._replace(v=torch.full_like(state.v, 19.9)), neuron)
    assert bool(fired.all())
    assert torch.equal(after.v, torch.full_like(after.v, neuron.v_reset))


@pytest.mark.parametrize("substeps", [1, 2, 3])
def test_a_recovery_is_not_carried_away_by_its_membrane(substeps):
    neuron = Izhikevich(substeps=substeps)
    for sign in (1, -1):
        _, state = scan(sign * torch.full((20, 1, 1), 1e20), None, neuron)
        assert state.v.abs().item() <= 1e4
        assert state.u.abs().item() <= 3e3


# Randomness


@over(RANDOM)
def test_a_seed_decides_and_the_global_generator_does_not(setup):
    x = setup.input(steps=20)
    before = torch.get_rng_state()
    same, other = run(setup, x, seed=5), run(setup, x, seed=6)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert_same(run(setup, x, seed=5), same, 0)
    torch.set_rng_state(before)
    assert not torch.equal(same[0], other[0])
    quiet = setup._replace(neuron=replace(setup.neuron, noise=0.0, escape=None))
    assert not torch.equal(run(quiet, x)[0], same[0])


@over(RANDOM)
def test_what_draws_needs_a_generator(setup):
    x, before = setup.input(), torch.get_rng_state()
    for steps in (0, 1, 5):
        for kernel in (scan, reference):
            with pytest.raises(UsageError, match=r"draws random numbers .* pass a torch.Generator"):
                kernel(x[:steps], None, setup.neuron, recurrence=setup.recurrence())
    with pytest.raises(UsageError, match="draws random numbers"):
        step(x[0], None, setup.neuron)
    with pytest.raises(AssertionError):
        setup.neuron.advance(x[0], setup.neuron.rest(x[0]))
    assert torch.equal(torch.get_rng_state(), before)


@over(QUIET)
def test_what_draws_nothing_leaves_the_generator_alone(setup):
    drawn = generator()
    before = drawn.get_state()
    run(setup, setup.input(), seed=drawn)
    assert torch.equal(drawn.get_state(), before)
    assert torch.equal(run(setup, setup.input())[0], run(setup, setup.input(), seed=77)[0])


# What is refused


@over(SETUPS)
def test_states_that_do_not_fit_are_refused(setup):
    x = setup.input()
    _, state = run(setup, x)
    wrong = {
        "shape": lambda t: torch.cat([t, t]),
        "dtype": lambda t: t.float(),
        "device": lambda t: t.to("meta"),
    }
    for name, tensor in leaves(state).items():
        for what, change in wrong.items():
            bad = rebuilt(state, {name: change(tensor)})
            with pytest.raises(
                UsageError, match=f"state has {what} .* one step of the input needs"
            ):
                run(setup, x, bad)
        with pytest.raises(UsageError, match="state is a NoneType, the neuron needs"):
            run(setup, x, _without(state, name))
    others = [tuple(state), LIFState(x[0]), Refractory(state, x[0]), RecurrentState(state, x[0])]
    others += [{"v": x[0]}, x[0]]
    for other in others:
        if type(other) is type(state) and isinstance(state, LIFState):
            continue
        with pytest.raises(UsageError, match="state is a .*pass the state that a s"):
            run(setup, x, other)


def _without(state, path):
    marker = torch.zeros(0)
    gone = rebuilt(state, {path: marker})

    def clear(part):
        if part is marker:
            return None
        if part is None or isinstance(part, torch.Tensor):
            return part
        return type(part)(*(clear(p) for p in part))

    return clear(gone)


@over(SETUPS)
def test_whole_numbers_and_inputs_without_a_batch_are_refused(setup):
    x = setup.input(steps=4)
    for dtype in (torch.int64, torch.bool, torch.uint8):
        for steps in (0, 1, 4):
            with pytest.raises(UsageError, match="input current is torch.*floating type"):
                run(setup, x[:steps].to(dtype))
        with pytest.raises(UsageError, match="floating type"):
            step(x[0].to(dtype), None, setup.neuron, generator())
    with pytest.raises(UsageError, match=r"it must be \[T, B, \*features\]"):
        scan(x.flatten(), None, setup.neuron, generator=generator())


@models
def test_a_conductance_needs_its_two_inputs(case):
    if not isinstance(case.neuron, ConductanceLIF):
        return
    for shape in ((2, N), (2, 3, N), (2, 1, N), (4,)):
        with pytest.raises(UsageError, match=r"takes input \[B, 2, \*features\]"):
            step(torch.zeros(shape), None, case.neuron)
    for n in (N, 2 * N):
        for steps in (0, 1, 4):
            with pytest.raises(UsageError, match="a Recurrence adds its current to the input"):
                x = draw_input(case, steps)
                scan(x, None, case.neuron, recurrence=Recurrence(torch.zeros(n, n).double()))


@over({name: s for name, s in SETUPS.items() if "plain" in name or "all" in name})
def test_mixed_devices_are_refused_and_one_other_device_will_do(setup):
    x, far = setup.input(steps=2), torch.device("meta")
    _, state = run(setup, x)
    if leaves(state):
        with pytest.raises(UsageError, match="state has device cpu, .* needs meta"):
            run(setup, x.to(far), state)
    synapses = setup.recurrence()
    if synapses is not None:
        for part in ("weight", "bias"):
            moved = synapses._replace(**{part: getattr(synapses, part).to(far)})
            with pytest.raises(UsageError, match=f"recurrence.{part} is .* on meta"):
                scan(x, None, setup.neuron, recurrence=moved, generator=generator())
        synapses = Recurrence(*(part.to(far) for part in synapses))
    # nothing is made on the default device, and nothing depends on values
    out, state = scan(x.to(far), None, setup.neuron, recurrence=synapses, generator=generator())
    assert out.device == far
    assert all(tensor.device == far for tensor in leaves(state).values())


# Parameters: one number, or one for each neuron


def lively(name, case):
    """Return three values of a parameter, around that of the case."""
    base = getattr(case.neuron, name)
    if name == "v_rest" and abs(base) < 1:
        return [-0.1, 0.05, 0.15]
    return [base * f for f in ((0.8, 0.9, 1.0) if ranges(type(case.neuron))[name].high == 1
                               else (0.85, 1.0, 1.2))]  # fmt: skip


PARAMETERS = {
    f"{key}-{name}": (case, name)
    for key, case in CASES.items()
    for name in ranges(type(case.neuron))
    if key in MODELS  # one case of each
}
parameters = pytest.mark.parametrize(("case", "name"), PARAMETERS.values(), ids=list(PARAMETERS))


def outcome(neuron, case, steps=25):
    """Return output, membrane and the gradient of the input: what a parameter can change."""
    x = draw_input(case, steps).requires_grad_()
    out, state = scan(x, None, neuron, generator=generator())
    tail = membrane(state)
    loss = (out * draw(out.shape, 3)).sum() + (0 if tail is None else 0.1 * tail.sum())
    return out.detach(), state, torch.autograd.grad(loss, x)[0]


def changes(a, b):
    same = torch.equal(a[0], b[0]) and torch.equal(a[2], b[2])
    one, two = leaves(a[1]), leaves(b[1])
    return not same or any(not torch.equal(one[k], two[k]) for k in one.keys() & two.keys())


@parameters
def test_one_value_per_neuron_equals_a_loop_over_neurons(case, name):
    values = lively(name, case)
    together = replace(case.neuron, **{name: torch.tensor(values, dtype=torch.float64)})
    x = draw_input(case)
    for neuron in (together, together.bind({name: getattr(together, name)[None]})):
        out, state = scan(x, None, neuron)
        for k, value in enumerate(values):
            alone = replace(case.neuron, **{name: value})
            one, last = scan(x[..., k : k + 1], None, alone)
            torch.testing.assert_close(out[..., k : k + 1], one, rtol=1e-12, atol=1e-12)
            for path, tensor in leaves(last).items():
                torch.testing.assert_close(
                    leaves(state)[path][..., k : k + 1], tensor, rtol=1e-11, atol=1e-11
                )


@parameters
def test_every_parameter_matters(case, name):
    low, _, high = lively(name, case)
    found = [outcome(replace(case.neuron, **{name: v}), case) for v in (low, high)]
    unused = name == "v_reset" and getattr(case.neuron, "reset", Reset.VALUE) is not Reset.VALUE
    assert changes(*found) != unused


ALTERNATIVES = {
    "surrogate": Arctan(slope=1.0), "refractory": 3, "escape": Escape(), "noise": 0.5,
    "reset": Reset.NONE, "substeps": 1, "vth": 100, "du": 1000, "dv": 900,
    "bias_mant": 9, "bias_exp": 2, "fire": 0.9, "tau_mem": 2.0, "dt": 2.0,
}  # fmt: skip


@models
def test_every_switch_matters(case):
    base = outcome(case.neuron, case)
    for field in fields(case.neuron):
        name, value = field.name, getattr(case.neuron, field.name)
        if name in ranges(type(case.neuron)) or name in ("strict", "integrate_refractory"):
            continue  # tested above and below
        if name == "beta":
            continue  # an IF's is not to be changed
        other = not value if isinstance(value, bool) else ALTERNATIVES.get(name)
        if name == "reset_time":  # a soft reset is the same in the next step and after it
            soft = case.neuron.reset is Reset.SOFT
            other = "after" if value == "same" or value == "next" and not soft else "same"
        assert other != value, name
        changed = {name: other}
        if name == "scale_input" and isinstance(case.neuron, IF):
            continue  # refused: it would scale by nothing
        if name == "escape":
            changed = {name: Escape(width=case.width)}
        if name == "refractory":
            changed["integrate_refractory"] = True
        assert changes(base, outcome(replace(case.neuron, **changed), case)), name
    if not isinstance(case.neuron, SpikingNeuron):
        return
    if getattr(case.neuron, "reset_time", "same") == "same":
        two = [replace(case.neuron, refractory=4, integrate_refractory=f) for f in (True, False)]
        assert changes(*(outcome(neuron, case) for neuron in two))


@models
def test_strict_decides_at_the_threshold_itself(case):
    if not isinstance(case.neuron, SpikingNeuron):
        return
    x = draw_input(case, 1)[0].abs()
    if isinstance(case.neuron, LoihiLIF):
        neuron, x = LoihiLIF(vth=100), torch.full((2, N), 100.0)
    else:  # move the threshold to where the membrane goes
        name = "v_th" if isinstance(case.neuron, Resetting) else "v_peak"
        reached = case.neuron.integrate(x, case.neuron.silence(x)).v
        neuron = case.neuron.bind({name: reached})
        if isinstance(neuron, ALIF):
            neuron = neuron.bind({"adaptation": 0.0})
    for strict in (True, False):
        bound = neuron.bind({"strict": strict})
        out, _ = bound.advance(x, bound.rest(x))
        assert bool((out == (0.0 if strict else 1.0)).all())


BAD = [
    float("nan"), float("inf"), float("-inf"), True, "0.5", None, [], [[], []], [0.5, None],
    [0.5, float("nan")], [[0.5], [0.5, 0.5]], torch.tensor([1]), torch.tensor([True]),
    torch.tensor([]), torch.tensor([0.5, float("nan")]), torch.tensor([0.5, float("inf")]),
    torch.tensor([0.5 + 1j]), object(),
]  # fmt: skip


@parameters
def test_bad_values_name_the_parameter(case, name):
    model, allowed = type(case.neuron), ranges(type(case.neuron))[name]
    bad = list(BAD)
    if allowed.low == 0:
        bad += [-0.1, [0.5, -0.1], torch.tensor([0.5, -1e-6])]
    if allowed.open_low:
        bad += [0.0, 0, torch.tensor([1.0, 0.0])]
    if allowed.high == 1:
        bad += [1.1, [0.5, 1.5], torch.tensor(1.0001)]
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^{model.__name__}\.{name}: got "):
            replace(case.neuron, **{name: value})


@parameters
def test_parameters_that_do_not_fit_the_neurons_are_refused(case, name):
    x, size = draw_input(case, 4, 2), float(lively(name, case)[1])
    for shape in ((N - 1,), (N + 1,), (N, 1), (2, N), (1, 1, N), (0,)):
        bound = case.neuron.bind({name: torch.full(shape, size, dtype=torch.float64)})
        message = rf"{type(bound).__name__}\.{name} has shape .*one for each neuron"
        for start in (0, 3):
            with pytest.raises(UsageError, match=message):
                scan(x[start:], None, bound)
        with pytest.raises(UsageError, match=message):
            step(x[0], None, bound)


@parameters
def test_parameters_on_another_device_are_refused(case, name):
    far = case.neuron.bind({name: torch.ones(N, dtype=torch.float64, device="meta")})
    for steps in (0, 1, 3):
        with pytest.raises(UsageError, match=rf"\.{name} is on meta, the input on cpu; move one"):
            scan(draw_input(case, steps), None, far)


@parameters
def test_parameters_of_a_wider_type_are_refused(case, name):
    value = torch.tensor(lively(name, case), dtype=torch.float64)
    x = draw_input(case, 4, dtype=torch.float32)
    with pytest.raises(UsageError, match=f"{name} is torch.float64, the input torch.float32"):
        scan(x, None, case.neuron.bind({name: value}))
    for fits in (value.float(), value[1]):  # a tensor without axes is a number
        out, state = scan(x, None, case.neuron.bind({name: fits}))
        out, state = scan(x, state, case.neuron.bind({name: fits}))
        assert out.dtype == torch.float32
        assert all(tensor.dtype == torch.float32 for tensor in leaves(state).values())


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (LIF, {"refractory": -1}, "LIF.refractory"), (LIF, {"refractory": 1.5}, "LIF.refractory"),
        (LIF, {"noise": -0.1}, "LIF.noise"), (LIF, {"noise": math.nan}, "LIF.noise"),
        (LIF, {"noise": math.inf}, "LIF.noise"), (LIF, {"reset": "hard"}, "LIF.reset"),
        (LIF, {"reset_time": "later"}, "LIF.reset_time"), (LIF, {"strict": 1}, "LIF.strict"),
        (LIF, {"surrogate": "sigmoidal"}, "did you mean 'sigmoid'"),
        (LIF, {"escape": 0.3}, "LIF.escape"), (LIF, {"bta": 0.5}, "unknown key LIF.bta.*'beta'"),
        (Escape, {"form": "linear"}, "Escape.form"), (Escape, {"width": 0.0}, "Escape.width"),
        (Escape, {"rate": -1.0}, "Escape.rate"), (Izhikevich, {"substeps": 0}, "substeps"),
        (LoihiLIF, {"vth": 0}, "LoihiLIF.vth"), (LoihiLIF, {"vth": 1 << 17}, "LoihiLIF.vth"),
        (LoihiLIF, {"du": 4096}, "LoihiLIF.du"), (LoihiLIF, {"dv": -1}, "LoihiLIF.dv"),
        (LoihiLIF, {"bias_mant": 4096}, "bias_mant"), (LoihiLIF, {"bias_exp": 8}, "bias_exp"),
        (LIF, {"refractory": 1, "reset_time": "next"}, "holds the membrane.*integrate_refractory"),
        (ALIF, {"refractory": 1, "reset_time": "after"}, "ALIF: refractory=1 holds"),
        (LIF, {"escape": Escape(), "surrogate": Smooth()}, "LIF: Smooth replaces the spike"),
        (AdEx, {"escape": Escape(), "surrogate": Smooth()}, "AdEx: Smooth replaces the spike"),
        (LIF, {"refractory": 1, "surrogate": Smooth()}, "LIF: Smooth replaces the spike"),
        (IF, {"beta": 0.5}, "IF.beta: got 0.5; an IF has no leak, so beta is 1.*use LIF"),
        (IF, {"beta": True}, "IF.beta: got True"), (IF, {"beta": "1"}, "IF.beta: got '1'"),
        (IF, {"beta": torch.ones(3)}, "IF.beta: got"),
        (IF, {"scale_input": True}, "IF: beta=1 with scale_input=true multiplies the input by 0"),
        (AdEx, {"dt": 20.0}, "AdEx: dt=20.0 is more than 2 capacitance/g_leak, unstable"),
        (AdEx, {"tau_w": 0.04}, "AdEx: dt=0.1 is more than 2 tau_w, unstable"),
        (Izhikevich, {"a": 2.5}, "Izhikevich: dt=1.0 is more than 2/a, unstable"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(cls, values, message):
    with pytest.raises(ConfigError, match=message):
        cls(**values)


# Configuration


@component
class Holder:
    neuron: AnyNeuron = LIF()


@over({name: s for name, s in SETUPS.items() if not s.recurrent})
def test_a_configuration_brings_the_same_neuron_back(setup):
    table = to_table(Holder(neuron=setup.neuron))
    model = table["neuron"]["model"]
    assert MODELS[model] is type(setup.neuron)
    found = from_table(Holder, table, "layer").neuron
    assert type(found) is type(setup.neuron)
    assert found == setup.neuron
    assert to_table(Holder(neuron=found)) == table


@pytest.mark.parametrize("name", list(MODELS))
def test_a_name_alone_is_the_model_with_its_defaults(name):
    for table in ({"neuron": name}, {"neuron": {"model": name}}):
        assert from_table(Holder, table, "layer").neuron == MODELS[name]()
    with pytest.raises(ConfigError, match=f"neuron|{name}"):
        from_table(Holder, {"neuron": {"model": name, "nonsense": 1}}, "layer")


def test_unknown_models_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="model: got 'adexx'; did you mean 'adex'"):
        from_table(Holder, {"neuron": "adexx"}, "layer")


@pytest.mark.parametrize("shape", list(SURROGATES))
def test_surrogates_come_back_by_name(shape):
    for table in ({"model": "alif", "surrogate": shape}, {"surrogate": {"shape": shape}}):
        neuron = from_table(Holder, {"neuron": table}, "layer").neuron
        assert neuron.surrogate == SURROGATES[shape]()
        again = from_table(Holder, to_table(Holder(neuron=neuron)), "layer").neuron
        assert again == neuron
    with pytest.raises(ConfigError, match="shape: got 'arctn'; did you mean 'arctan'"):
        from_table(Holder, {"neuron": {"surrogate": "arctn"}}, "layer")


@parameters
def test_one_value_per_neuron_survives_a_configuration(case, name):
    row = torch.tensor(lively(name, case))
    for value in (row, torch.stack([row, row.flip(0)])):
        table = to_table(Holder(neuron=replace(case.neuron, **{name: value})))
        assert torch.equal(torch.tensor(table["neuron"][name]), value)
        found = from_table(Holder, table, "layer").neuron
        assert torch.equal(getattr(found, name), value)
        assert to_table(Holder(neuron=found)) == table


# Gradients of the smoothed neuron


WIDE = Smooth(of=Sigmoid(slope=1.0))
SMOOTH = {
    "lif": LIF(beta=0.8, v_th=0.3, v_rest=-0.2, **VALUE),
    "lif-scaled": LIF(beta=0.8, v_th=0.3, v_rest=-0.2, scale_input=True),
    "lif-next": LIF(beta=0.8, v_th=0.3, v_rest=0.2, reset_time="next", **VALUE),
    "lif-soft-next": LIF(beta=0.8, v_th=0.3, reset_time="next"),
    "lif-after": LIF(beta=0.8, v_th=0.3, reset_time="after", **VALUE),
    "lif-none": LIF(beta=0.8, v_th=0.3, reset=Reset.NONE),
    "if": IF(v_th=0.3),
    "plif": PLIF(v_th=0.3),
    "alif": ALIF(beta=0.8, rho=0.7, v_th=0.3, adaptation=0.9, v_rest=0.1, **VALUE),
    "alif-soft": ALIF(beta=0.8, rho=0.7, v_th=0.3, adaptation=0.9, normalise=False),
    "alif-next": ALIF(beta=0.8, rho=0.7, v_th=0.3, adaptation=0.9, reset_time="next", **VALUE),
    "cuba": CUBA(beta=0.8, alpha=0.6, v_th=0.3, v_rest=0.1, scale_input=True, **VALUE),
    "cuba-next": CUBA(beta=0.8, alpha=0.6, v_th=0.3, reset_time="next"),
    "cuba-after": CUBA(beta=0.8, alpha=0.6, v_th=0.3, reset_time="after", **VALUE),
    "conductance": ConductanceLIF(v_reset=-62.0, tau_mem=5.0),
    "conductance-next": ConductanceLIF(v_reset=-62.0, tau_mem=5.0, reset_time="next"),
    # far below the peak, where nothing is cut off
    "izhikevich": Izhikevich(v_peak=-20.0, v_scale=40.0, a=0.1),
    "adex": AdEx(v_peak=-25.0, v_scale=40.0, v_t=-55.0, dt=0.5, tau_w=20.0),
}
INPUTS = {"izhikevich": (2.0, 2.0), "adex": (200.0, 200.0), "conductance": (0.5, 0.3)}


def _smoothed():
    for name, neuron in SMOOTH.items():
        neuron = replace(neuron, surrogate=WIDE, detach_reset=False)
        yield f"{name}-plain", neuron
        if getattr(neuron, "reset_time", "same") == "same":
            # refused for a user, since a smooth spike is never none; a pattern of masks here
            yield f"{name}-refractory", neuron.bind(OPTIONS["refractory"])
            yield f"{name}-integrating", neuron.bind(OPTIONS["integrating"])
        if name == "cuba":
            yield f"{name}-noise", replace(neuron, noise=0.3)


SMOOTHED = dict(_smoothed())


def scaled(neuron, size):
    """Return leaves at zero and what they stand for: parameters in units of their own size."""
    names = list(ranges(type(neuron)))
    zeros = [torch.zeros(size, dtype=torch.float64, requires_grad=True) for _ in names]

    def bind(*steps):
        values = {}
        for name, z in zip(names, steps, strict=True):
            base = getattr(neuron, name)
            values[name] = base * (1 + z) if base else z
        return neuron.bind(values)

    return zeros, bind


FROM_REST = [f"{key}-rest" for key in SMOOTHED if key.endswith("plain")]


@pytest.mark.parametrize("key", [*SMOOTHED, *FROM_REST])
def test_gradients_of_the_smoothed_neuron(key):
    """Input, initial state and every parameter, against finite differences."""
    rest, key = key.endswith("-rest"), key.removesuffix("-rest")
    neuron, n, steps = SMOOTHED[key], 2, 3
    mean, spread = INPUTS.get(key.split("-")[0], (0.2, 0.5))
    case = Case(neuron, mean, spread)
    x = draw_input(case, steps, 1, (n,)).requires_grad_()
    _, start = scan(draw_input(case, 3, 1, (n,), seed=4), None, neuron, generator=generator())
    given = {k: t.detach().requires_grad_() for k, t in leaves(start).items()
             if not k.endswith(".left")}  # fmt: skip
    given = {} if rest else given
    zeros, bind = scaled(neuron, n)

    def solve(x, *others):
        state = None if rest else rebuilt(start, dict(zip(given, others[: len(given)])))
        bound = bind(*others[len(given) :])
        out, end = scan(x, state, bound, generator=generator())
        return out, *(t for k, t in leaves(end).items() if not k.endswith(".left"))

    inputs = (x, *given.values(), *zeros)
    assert gradcheck(solve, inputs, eps=1e-6, atol=1e-7, rtol=1e-5)
    loss = sum((part * draw(part.shape, 9)).sum() for part in solve(*inputs))
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    labels = ["x", *given, *ranges(type(neuron))]
    unused = set()  # a parameter without a gradient would be one that nobody can learn
    if isinstance(neuron, Resetting) and neuron.reset is not Reset.VALUE:
        unused = {"v_reset"}
    if isinstance(neuron, IF) and not rest:
        unused.add("v_rest")  # without leak nothing goes back there
    for label, grad in zip(labels, found, strict=True):
        silent = grad is None or not bool(grad.any())
        assert silent == (label in unused), label


@pytest.mark.parametrize(
    "neuron", [LeakyIntegrator(kappa=0.7), LeakyIntegrator(kappa=0.7, scale_input=True),
               SynapticIntegrator(alpha=0.6, kappa=0.7, v_rest=-0.1),
               SigmaDelta(v_th=0.0), Rectified()],
)  # fmt: skip
def test_gradients_of_the_others(neuron):
    x = draw((4, 1, 2), 1).add_(0.1).requires_grad_()
    start = {k: (t + draw(t.shape, 2)).requires_grad_()
             for k, t in leaves(neuron.rest(x[0].detach())).items()}  # fmt: skip
    zeros, bind = scaled(neuron, 2)

    def solve(x, *others):
        state = rebuilt(neuron.rest(x[0]), dict(zip(start, others[: len(start)])))
        out, end = scan(x, state, bind(*others[len(start) :]))
        return out, *leaves(end).values()

    assert gradcheck(solve, (x, *start.values(), *zeros), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_gradients_of_loihi_are_those_of_its_equations_without_rounding(detach):
    """Finite differences see the rounding; with no decay of ``v`` and ``u`` there is none."""
    neuron = LoihiLIF(vth=100, bias_mant=5, bias_exp=4, detach_reset=detach)
    x = (40 + 40 * draw((8, 2, N), 0)).round().requires_grad_()
    out, state = scan(x, None, neuron)
    v, spikes = torch.zeros(2, N, dtype=torch.float64), []
    for current in x:
        v = v + 64 * current + 80
        d = (v - 6400) / 6400
        soft = torch.sigmoid(4 * d)
        s = soft + ((d > 0).double() - soft).detach()
        spikes.append(s)
        v = v * (1 - (s.detach() if detach else s))
    weights = draw(out.shape, 3)
    expected = torch.autograd.grad((torch.stack(spikes) * weights).sum() + v.sum(), x)[0]
    found = torch.autograd.grad((out * weights).sum() + state.v.sum(), x)[0]
    assert torch.equal(out, torch.stack(spikes).round())
    assert 0.1 < float(out.detach().mean()) < 0.9
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_gradients_of_loihi_pass_straight_through_the_rounding_of_its_decays():
    neuron = LoihiLIF(vth=100_000, du=1000, dv=500)
    x = (10 + 40 * draw((6, 1, 1), 0)).requires_grad_()  # not whole: that is rounded too
    _, state = scan(x, None, neuron)
    (found,) = torch.autograd.grad(state.v.sum(), x)
    a, b = 1 - 1001 / 4096, 1 - 500 / 4096
    for t in range(6):
        left = 5 - t
        expected = 64 * sum(a**k * b ** (left - k) for k in range(left + 1))
        assert found[t].item() == pytest.approx(expected, rel=1e-12)
    whole = scan(x.detach().round(), None, neuron)[1]
    assert torch.equal(state.v.detach(), whole.v)
    assert torch.equal(whole.v, whole.v.round())


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5])
def test_loihi_in_float32_equals_float64_even_where_its_current_wraps(scale):
    neuron = LoihiLIF(vth=131071, du=50, dv=20)
    x = (scale * draw((60, 2, N), 0)).round()
    single, double = scan(x.float(), None, neuron), scan(x.float().double(), None, neuron)
    assert torch.equal(single[0].double(), double[0])
    for a, b in zip(single[1], double[1], strict=True):
        assert torch.equal(a.double(), b)


# What goes from one sample to the next


@over(SETUPS)
def test_carrying_a_state_over(setup):
    x = setup.input(steps=4).requires_grad_()
    _, state = run(setup, x)
    nested = {"a": state, "b": {"c": state, "d": None}}
    for between in ("reset", "keep", "detach"):
        assert carry(None, between) is None
    assert carry(state, "reset") is carry(nested, "reset") is None
    assert carry(state, "keep") is state
    assert carry(nested, "keep") is nested
    cut = carry(nested, "detach")
    assert list(cut) == ["a", "b"]
    assert list(cut["b"]) == ["c", "d"]
    assert cut["b"]["d"] is None
    for carried in (carry(state, "detach"), cut["a"], cut["b"]["c"]):
        assert type(carried) is type(state)
        assert list(leaves(carried)) == list(leaves(state))
        for name, tensor in leaves(carried).items():
            assert torch.equal(tensor, leaves(state)[name]), name
            assert not tensor.requires_grad, name
    with pytest.raises(UsageError, match="carry: got 'kept'"):
        carry(state, "kept")
    for between in ("reset", "keep", "detach"):
        run(setup, x, carry(state, between))  # and it can be gone on with
