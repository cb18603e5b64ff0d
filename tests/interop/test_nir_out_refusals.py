"""What no file can say is refused by name."""

import pytest
import torch

from spikecl.errors import InteropError
from spikecl.interop import Currents, Flatten, to_nir
from spikecl.networks import (
    AvgPool2d,
    BatchNorm,
    Cells,
    Channels,
    Conv2d,
    Layer,
    Linear,
    MaxPool2d,
    Mlp,
    Network,
    ShortTermPlasticity,
    SpikingMlp,
    SpikingResNet,
)
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
    Reset,
    SigmaDelta,
    Smooth,
)

ZERO = {"reset": Reset.ZERO}


def one(neuron, *, synapse=None, **options):
    layer = Layer(
        synapse or Linear(4, 3, bias=True), Cells(neuron, learns=()), inputs=("input",), **options
    )
    return Network({"first": layer}, mean_first=False)


def broken(where):
    network = one(LIF(**ZERO), recurrent=Linear(3, 3))
    network.layers["first"].get_parameter(where).data[0] = float("nan")
    return network


SPEC = {"hidden": (3,), "neuron": LIF(**ZERO)}
CONV = {"synapse": Conv2d(1, 3, kernel=3)}
REFUSED = {
    "soft": (one(LIF()), r"'first' \(LIF\): Reset\.SOFT with reset_time='same'.*reset='zero'"),
    "none": (one(LIF(reset=Reset.NONE)), r"Reset\.NONE"),
    "after": (one(CUBA(reset_time="after", **ZERO)), "reset_time='after'"),
    "not strict": (one(PLIF()), "strict=False: neurons fire above"),
    "refractory": (one(LIF(refractory=2, **ZERO)), "noise, escape firing and refractory"),
    "noise": (one(LIF(noise=0.1, **ZERO)), "noise, escape firing and refractory"),
    "escape": (one(LIF(escape=Escape(), **ZERO)), "noise, escape firing and refractory"),
    "smooth": (one(LIF(surrogate=Smooth(), **ZERO)), "Smooth is no spike"),
    "ALIF": (one(ALIF()), r"\(ALIF\): NIR has no such model; use LIF, IF"),
    "AdEx": (one(AdEx()), "no such model"),
    "Izhikevich": (one(Izhikevich()), "no such model"),
    "conductances": (one(ConductanceLIF()), "no such model"),
    "sigma-delta": (one(SigmaDelta()), "no such model"),
    "Loihi": (one(LoihiLIF(vth=10)), "integers, which no .nir file has; export it with --to loihi"),
    "rectified": (Mlp(hidden=(3,)).build((4,), 2), "'hidden1'.*use a spiking network"),
    "mixed leaks": (one(LIF(beta=torch.tensor([1.0, 0.5, 0.5]), **ZERO)), "beta=1 decays never"),
    "CUBA without leak": (one(CUBA(beta=1.0, **ZERO)), "beta=1 decays never"),
    "current without end": (one(CUBA(alpha=1.0, **ZERO)), "alpha=1 decays never"),
    "sum": (one(LeakyIntegrator(kappa=1.0)), "kappa=1 decays never"),
    "start": (one(IF(v_rest=0.5, **ZERO)), "membranes start at 0 there"),
    "axons": (
        SpikingMlp(axonal_delay=2, **SPEC).build((4,), 2),
        r"'hidden1'.*train with axonal_delay=0",
    ),
    "delays": (SpikingMlp(delay=2, **SPEC).build((4,), 2), "train with delay=0"),
    "plasticity": (one(IF(**ZERO), before={"stp": ShortTermPlasticity()}), "train without stp"),
    "maximum": (
        one(IF(**ZERO), before={"pool": MaxPool2d()}, **CONV),
        "no maximum pooling; train with pool='average'",
    ),
    "channels": (
        one(IF(**ZERO), before={"pool": AvgPool2d(1), "channels": Channels()}, **CONV),
        "use it where data enter",
    ),
    "pooled currents": (one(IF(**ZERO), norm=Currents([AvgPool2d()]), **CONV), "changes currents"),
    "late norm": (
        one(IF(**ZERO), norm=Currents([Flatten(), BatchNorm(108)]), **CONV),
        "BatchNorm changes currents",
    ),
    "recurrent maps": (
        one(IF(**ZERO), recurrent=Linear(108, 108), **CONV),
        "its maps listen to each other",
    ),
    "weights": (broken("synapse.weight"), "'first.synapse': weight has values that"),
    "bias": (broken("synapse.bias"), "'first.synapse': bias has values that"),
    "recurrent weights": (broken("recurrent.weight"), "'first.recurrent': weight"),
}
SHAPES = dict.fromkeys(
    ("channels", "maximum", "pooled currents", "late norm", "recurrent maps"), (1, 8, 8)
)


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_file_cannot_say_is_refused(case):
    network, message = REFUSED[case]
    with pytest.raises(InteropError, match=message) as caught:
        to_nir(network, SHAPES.get(case, (4,)))
    assert "\n" not in str(caught.value)


def test_shortcuts_are_refused():
    network = SpikingResNet(width=2, blocks=(1,), neuron=LIF(**ZERO)).build((8, 8), 2)
    with pytest.raises(InteropError, match=r"'stage1block1b' \(LIF\): listens to.*shortcuts"):
        to_nir(network, (8, 8))


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (one(IF(**ZERO)), (5,), r"takes 4 inputs, gets \(5,\); give input_shape"),
        (one(IF(**ZERO), **CONV), (2, 8, 8), r"takes maps \[1, H, W\], gets \(2, 8, 8\)"),
        (one(IF(**ZERO), **CONV), (8, 8), r"takes maps \[1, H, W\]"),
        (one(IF(**ZERO), **CONV), (1, 2, 2), r"takes maps \[1, H, W\]"),
        (one(IF(**ZERO), before={"p": AvgPool2d(9)}, **CONV), (1, 8, 8), r"pools \[9, 9\], maps"),
        (one(IF(**ZERO), before={"p": AvgPool2d(9)}, **CONV), (8, 8), r"pools maps \[C, H, W\]"),
        (one(IF(**ZERO), before={"c": Channels()}, **CONV), (8,), r"takes images \[H, W\]"),
    ],
)
def test_a_shape_that_does_not_fit(network, shape, message):
    with pytest.raises(InteropError, match=message):
        to_nir(network, shape)


@pytest.mark.parametrize("dt", [0.0, -1e-3, float("inf"), float("nan")])
def test_a_step_without_length_is_refused(dt):
    with pytest.raises(InteropError, match="to_nir: got dt="):
        to_nir(one(IF(**ZERO)), (4,), dt=dt)
