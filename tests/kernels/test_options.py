"""Which kernel runs where: what was asked for, or the fastest that can."""

import pytest
import torch

from spikecl.errors import ConfigError, UsageError
from spikecl.kernels import Kernels, Recurrence, c_code, choose, scan
from spikecl.kernels.scans import BACKENDS
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    ConductanceLIF,
    Escape,
    Izhikevich,
    LeakyIntegrator,
    LoihiLIF,
    Rectified,
    SigmaDelta,
    Smooth,
)

X = torch.zeros(4, 1, 2)
COMPILES = c_code.against(torch.float32, "cpu") is None
FAST = "compiled" if COMPILES else "fused"
ANY = [
    LIF(), LIF(refractory=2), LIF(reset_time="after"), LIF(beta=[0.5, 0.6]), LIF(v_th=[1.0, 2.0]),
    LIF().bind({"beta": torch.tensor(0.5)}), IF(), PLIF(), ALIF(), CUBA(), LeakyIntegrator(),
    SigmaDelta(), Izhikevich(),
]  # fmt: skip
RANDOM = [LIF(noise=0.1), LIF(escape=Escape()), ALIF(noise=0.1)]
INEXACT = [LIF(surrogate=Smooth()), AdEx()]


@pytest.mark.parametrize("neuron", ANY, ids=str)
def test_what_has_a_program_gets_the_fastest_kernel(neuron):
    kernel = choose(neuron, X)
    assert kernel.name == FAST
    assert "one autograd node" in kernel.reason


def test_units_without_memory_are_one_call():
    assert choose(Rectified(), X) == ("reference", "no memory: one call for all steps")
    assert choose(Rectified(), X, recurrent=True).name == FAST
    assert choose(Rectified(), X, kernels=Kernels(scan="fused")).name == "fused"


@pytest.mark.parametrize("neuron", RANDOM, ids=str)
def test_what_draws_goes_to_the_reference(neuron):
    kernel = choose(neuron, X)
    assert kernel.name == "reference"
    assert kernel.reason == f"{type(neuron).__name__} draws random numbers"


@pytest.mark.parametrize("neuron", INEXACT, ids=str)
def test_what_is_rounded_in_many_ways_goes_to_the_reference(neuron):
    kernel = choose(neuron, X)
    assert kernel.name == "reference"
    assert type(neuron).__name__ in kernel.reason
    assert "exp" in kernel.reason


@pytest.mark.parametrize(
    ("neuron", "x"), [(LoihiLIF(vth=70), X), (ConductanceLIF(), torch.zeros(4, 1, 2, 3))]
)
def test_what_symbols_cannot_follow_goes_to_the_reference(neuron, x):
    kernel = choose(neuron, x)
    assert kernel.name == "reference"
    assert type(neuron).__name__ in kernel.reason


def test_a_recurrent_layer_gets_the_same_kernel():
    x = X.clone().requires_grad_()
    out, _ = scan(x, None, LIF(), recurrence=Recurrence(torch.zeros(2, 2)))
    assert "_Scan" in out.grad_fn.name()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_fused(dtype):
    kernel = choose(LIF(), X.to(dtype))
    assert kernel.name == "fused"
    assert str(dtype) in kernel.reason
    with pytest.raises(UsageError, match=f"'compiled' cannot run here: the input is {dtype}"):
        choose(LIF(), X.to(dtype), kernels=Kernels(scan="compiled"))


@pytest.mark.skipif(not COMPILES, reason="no working C compiler here")
def test_another_device_is_not_compiled_for():
    assert "on meta" in c_code.against(torch.float32, "meta")
    with pytest.raises(UsageError, match="runs on a CPU"):
        choose(LIF(), X.to("meta"), kernels=Kernels(scan="compiled"))


@pytest.mark.parametrize("name", ["fused", "compiled", "inductor", "triton"])
@pytest.mark.parametrize("neuron", [*RANDOM, *INEXACT], ids=str)
def test_what_was_asked_for_and_cannot_run_is_refused(name, neuron):
    kernels = Kernels(scan=name)
    for run in (
        lambda: choose(neuron, X, kernels=kernels),
        lambda: scan(X, None, neuron, generator=torch.Generator(), kernels=kernels),
    ):
        with pytest.raises(UsageError) as caught:
            run()
        text = str(caught.value)
        assert f"kernel '{name}' cannot run here" in text
        assert type(neuron).__name__ in text
        assert text.endswith("these can: reference")


def test_a_refusal_lists_what_can_run():
    with pytest.raises(UsageError) as caught:
        choose(LIF(), X.half(), kernels=Kernels(scan="compiled"))
    able = str(caught.value).split("these can: ")[1].split(", ")
    assert able[:2] == ["reference", "fused"]
    assert "compiled" not in able
    for name in able:
        assert choose(LIF(), X.half(), kernels=Kernels(scan=name)).name == name


@pytest.mark.parametrize("name", ["reference", "fused"])
def test_what_was_asked_for_runs(name):
    assert choose(LIF(), X, kernels=Kernels(scan=name)) == (name, "asked for")
    x = X.clone().requires_grad_()
    node = scan(x, None, LIF(), kernels=Kernels(scan=name))[0].grad_fn.name()
    assert ("_Scan" in node) == (name == "fused")


def test_the_choice_is_what_runs():
    x = X.clone().requires_grad_()
    assert "_Scan" in scan(x, None, LIF())[0].grad_fn.name()
    assert "_Scan" not in scan(x, None, LIF(surrogate=Smooth()))[0].grad_fn.name()


def test_values_have_no_say():
    made = {
        choose(LIF(), x)
        for x in (X, X + 1, X * torch.nan, torch.rand(4, 1, 2), X.clone().requires_grad_())
    }
    assert len(made) == 1
    assert {choose(LIF(beta=beta), X) for beta in (0.0, 0.5, 1.0)} == made
    with torch.no_grad():
        assert choose(LIF(), X) in made


def test_sizes_have_no_say():
    shapes = [(1, 2, 3), (2, 2, 3), (0, 2, 3), (4, 0, 3), (100, 1, 1), (3, 2), (3, 2, 4, 5)]
    assert len({choose(LIF(), torch.zeros(shape)) for shape in shapes}) == 1


def test_options():
    assert Kernels() == Kernels(
        scan="auto", synapse="auto", precision="full", memory="full", chunk=0, steps=0
    )
    assert hash(Kernels()) == hash(Kernels())
    assert {"auto", "reference", *BACKENDS} == {
        name for name in ("auto", "reference", "fused", "compiled", "inductor", "triton")
        if Kernels(scan=name)
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"scan": "cuda"},
        {"memory": "small"},
        {"precision": "half"},
        {"chunk": -1},
        {"steps": -1},
        {"chunks": 1},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError):
        Kernels(**options)
