"""What the libraries cannot compute is refused by name."""

import warnings

import pytest
import torch
from torch import nn

from spikecl.errors import InteropError
from spikecl.interop import OneToOne, to_norse, to_snntorch
from spikecl.networks import (
    AxonalDelay,
    BatchNorm,
    Cells,
    Conv2d,
    Layer,
    Linear,
    Network,
    RecurrentNet,
    ShortTermPlasticity,
    SpikingResNet,
)
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    AdEx,
    Arctan,
    Escape,
    FastSigmoid,
    LeakyIntegrator,
    Reset,
    Sigmoid,
    Smooth,
    SynapticIntegrator,
    Triangle,
)

with warnings.catch_warnings():
    warnings.filterwarnings(
        "ignore", message=".torch.jit.script. is deprecated", category=DeprecationWarning
    )
    import norse.torch as norse  # noqa: F401


def one(neuron, *, synapse=None, learns=(), size=(), **options):
    cells = Cells(neuron, learns=learns, size=size)
    layer = Layer(synapse or Linear(4, 3), cells, inputs=("input",), **options)
    return Network({"first": layer})


def late(**options):
    return LIF(reset_time="next", **options)


MAPS = Conv2d(1, 3, kernel=3)
SNNTORCH = {
    "ALIF": (one(ALIF()), r"'first' \(ALIF\): snnTorch has no such model; use LIF"),
    "AdEx": (one(AdEx()), "no such model"),
    "integrator": (one(LeakyIntegrator()), "no such model"),
    "recurrent units": (RecurrentNet(hidden=(3,)).build((4,), 2), "no such model"),
    "noise": (one(late(noise=0.1)), "noise, escape firing and refractory"),
    "escape": (one(late(escape=Escape())), "noise, escape firing and refractory"),
    "refractory": (one(LIF(refractory=2)), "noise, escape firing and refractory"),
    "smooth": (one(late(surrogate=Smooth())), "Smooth is no spike"),
    "rest": (one(late(v_rest=-0.1)), "v_rest: membranes rest at 0"),
    "reset value": (one(LIF(reset=Reset.VALUE, v_reset=-0.1)), "v_reset: membranes are reset to 0"),
    "threshold": (one(late(v_th=-0.5)), r"v_th=-0\.5: a membrane at rest fires"),
    "threshold at rest": (one(late(v_th=0.0, strict=False)), "v_th=0: a membrane at rest"),
    "soft, after": (
        one(CUBA(reset=Reset.SOFT)),
        r"snnTorch's Synaptic has no Reset\.SOFT with reset_time='same'; use one that it has: SOFT",
    ),
    "zero, after": (one(LIF(reset=Reset.ZERO, reset_time="after")), r"Leaky has no Reset\.ZERO"),
    "Lapicque, at once": (
        one(LIF(reset=Reset.ZERO, scale_input=True)),
        r"Lapicque has no Reset\.ZERO with reset_time='same'",
    ),
    "scaled current": (one(CUBA(reset_time="next", scale_input=True)), "only Lapicque"),
    "scaled recurrence": (one(late(scale_input=True), recurrent=Linear(3, 3)), "only Lapicque"),
    "recurrent maps": (
        one(late(), synapse=MAPS, recurrent=Linear(12, 12)),
        "all its maps listen to each other",
    ),
}
DIFFERENT = IF(reset=Reset.VALUE, v_rest=0.5)
NORSE = {
    "ALIF": (one(ALIF()), "Norse has no such model with these dynamics; use LIF, IF"),
    "noise": (one(CUBA(noise=0.1)), "noise, escape firing, and refractory"),
    "refractory": (one(LIF(refractory=2)), "noise, escape firing, and refractory"),
    "integrating": (
        one(CUBA(refractory=2, integrate_refractory=True)),
        "other than CUBA's with integrate_refractory=False",
    ),
    "not strict": (one(LIF(strict=False)), "strict=False: neurons fire above"),
    "late": (one(late()), r"Reset\.SOFT with reset_time='next': there a spike resets the"),
    "none": (one(LIF(reset=Reset.NONE)), r"Reset\.NONE"),
    "smooth": (one(CUBA(reset=Reset.ZERO, surrogate=Smooth())), "Smooth is no spike"),
    "leak without scale": (one(LIF(reset=Reset.ZERO)), "without scale_input there is only IAF"),
    "another start": (one(DIFFERENT), "the value at which the membrane starts"),
    "soft counter": (one(IF()), "without scale_input there is only IAF"),
    "unscaled current": (one(CUBA(reset=Reset.ZERO)), "scale_input=False.*scaled by 1 - beta"),
    "soft current": (one(CUBA(scale_input=True)), r"Reset\.SOFT: there the current"),
    "unscaled integrator": (one(LeakyIntegrator()), "integrators scale their input"),
    "recurrence without current": (
        one(LIF(scale_input=True, reset=Reset.ZERO), recurrent=Linear(3, 3)),
        "recurrent neurons have a synaptic current there; use CUBA",
    ),
    "recurrent units": (RecurrentNet(hidden=(3,)).build((4,), 2), "have a synaptic current"),
    "bias": (
        one(
            CUBA(scale_input=True, reset=Reset.ZERO),
            synapse=Linear(4, 3, bias=True),
            recurrent=Linear(3, 3),
        ),
        "two dense weights without bias",
    ),
    "bias of the recurrence": (
        one(CUBA(scale_input=True, reset=Reset.ZERO), recurrent=Linear(3, 3, bias=True)),
        "two dense weights without bias",
    ),
    "norm": (
        one(CUBA(scale_input=True, reset=Reset.ZERO), recurrent=Linear(3, 3), norm=BatchNorm(3)),
        "two dense weights without bias",
    ),
    "resting places": (
        one(
            CUBA(scale_input=True, reset=Reset.ZERO, v_rest=torch.tensor([0.1, 0.2, 0.3])),
            recurrent=Linear(3, 3),
        ),
        "v_rest differs between neurons",
    ),
}
BOTH = {
    "delay": (one(IF(), before={"delay": AxonalDelay(4, 2)}), "AxonalDelay has no counterpart"),
    "plasticity": (one(IF(), before={"stp": ShortTermPlasticity()}), "ShortTermPlasticity has no"),
    "shortcut": (
        SpikingResNet(width=2, blocks=(1,), neuron=IF(reset=Reset.ZERO)).build((8, 8), 2),
        r"'stage1block1b' \(IF\): listens to \['stage1block1a', 'stem'\], there each module",
    ),
}


@pytest.mark.parametrize("spikes_only", [False, True])
@pytest.mark.parametrize("case", SNNTORCH | BOTH)
def test_what_snntorch_has_not(case, spikes_only):
    network, message = (SNNTORCH | BOTH)[case]
    spikes_only |= case == "shortcut"  # neurons before it learn otherwise
    with pytest.raises(InteropError, match=message):
        to_snntorch(network, spikes_only=spikes_only)


@pytest.mark.parametrize("spikes_only", [False, True])
@pytest.mark.parametrize("case", NORSE | BOTH)
def test_what_norse_has_not(case, spikes_only):
    network, message = (NORSE | BOTH)[case]
    spikes_only |= case == "shortcut"
    with pytest.raises(InteropError, match=message):
        to_norse(network, spikes_only=spikes_only)


ZERO = {"reset": Reset.ZERO}
GRADIENTS = {
    "kept": (to_snntorch, one(late(detach_reset=False)), "detach_reset=False, snnTorch's Leaky"),
    "cut": (to_snntorch, one(CUBA(**ZERO)), "detach_reset=True, snnTorch's Synaptic has False"),
    "lowered": (to_snntorch, one(LIF()), "becomes a constant connection"),
    "lowered and learned": (
        to_snntorch,
        one(LIF(detach_reset=False), learns=("beta",)),
        "becomes a constant connection",
    ),
    "scaled and learned": (
        to_snntorch,
        one(PLIF(reset_time="next", reset=Reset.SOFT, detach_reset=True), learns=None),
        r"beta learns, there it is constant; build it with learns=\['v_th'\]",
    ),
    "rest learns": (to_snntorch, one(late(), learns=("v_rest",)), "v_rest learns"),
    "ours kept": (
        to_norse,
        one(CUBA(scale_input=True, detach_reset=False, **ZERO), recurrent=Linear(3, 3)),
        "detach_reset=False: there recurrent neurons cut",
    ),
    "ours cut": (to_norse, one(IF(**ZERO)), "detach_reset=True: there recurrent neurons cut"),
    "ours learned": (
        to_norse,
        one(IF(detach_reset=False, **ZERO), learns=("v_th",)),
        "v_th learns, there it is constant",
    ),
    "arctan": (
        to_norse,
        one(IF(detach_reset=False, surrogate=Arctan(), **ZERO)),
        r"Arctan\(slope=2\.0\) is no derivative of this Norse",
    ),
    "superspike": (
        to_norse,
        one(IF(detach_reset=False, surrogate=FastSigmoid(slope=25.0), **ZERO)),
        r"FastSigmoid\(slope=25\.0\) is no derivative.*takes 1 for every slope",
    ),
    "wide triangle": (
        to_norse,
        one(IF(detach_reset=False, surrogate=Triangle(width=2.0), **ZERO)),
        r"Triangle\(height=0\.3, width=2\.0\) is no derivative",
    ),
    "steep sigmoid": (
        to_norse,
        one(IF(detach_reset=False, surrogate=Sigmoid(slope=5.0), **ZERO)),
        r"Sigmoid\(slope=5\.0\) is no derivative",
    ),
    "one to one": (
        to_norse,
        one(
            CUBA(scale_input=True, **ZERO), recurrent=OneToOne(3, nn.Parameter(0.1 * torch.ones(1)))
        ),
        "Diagonal stands between",
    ),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_other_gradients_are_refused_unless_spikes_are_enough(lab, case):
    write, network, message = GRADIENTS[case]
    with pytest.raises(InteropError, match=f"{message}.*spikes_only=True"):
        write(network)
    x = lab.draw(1, lab.STEPS, lab.BATCH, 4)
    assert lab.prepare_ours(network, x)
    library = lab.SNNTORCH if write is to_snntorch else lab.NORSE
    out = library.run(list(write(network, spikes_only=True)), x)[-1].detach()
    assert torch.equal(out, torch.as_tensor(network.record(x)["first"]["spikes"]))


@pytest.mark.parametrize("dt", [0.0, -1e-3, float("inf"), float("nan")])
def test_a_step_without_length_is_refused(dt):
    with pytest.raises(InteropError, match="to_norse: got dt="):
        to_norse(one(IF(**ZERO)), dt=dt)


def test_an_integrator_of_ours_is_none_of_snntorch():
    with pytest.raises(InteropError, match=r"\(SynapticIntegrator\): snnTorch has no such model"):
        to_snntorch(one(SynapticIntegrator()))
