"""Our networks against their exports to snnTorch, and back again."""

import copy
import dataclasses

import pytest
import snntorch
import snntorch.utils
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from spikecl.errors import InteropError
from spikecl.interop import OneToOne, from_snntorch, to_snntorch
from spikecl.interop.snntorch_in import RULES
from spikecl.networks import (
    AvgPool2d,
    AxonalDelay,
    BatchNorm,
    Cells,
    Conv2d,
    Layer,
    Linear,
    Mlp,
    Network,
    RecurrentNet,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
    SpikingResNet,
    initialise,
)
from spikecl.neurons import (
    ALIF,
    CUBA,
    IF,
    LIF,
    PLIF,
    Arctan,
    Escape,
    FastSigmoid,
    MultiGaussian,
    Reset,
    Sigmoid,
    Smooth,
)
from spikecl.seeds import Seeds

quick = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
SURROGATES = [Arctan(), Sigmoid(), FastSigmoid(slope=3.0), MultiGaussian()]


@st.composite
def layers(draw, n, m, source):
    """Return a layer of any neurons that snnTorch has."""

    def value(low, high):
        numbers = st.sampled_from([low + (high - low) * k / 7 for k in range(8)])
        if draw(st.booleans()):
            return torch.tensor([draw(numbers) for _ in range(m)], dtype=torch.float64)
        return draw(numbers)

    kind = draw(st.sampled_from(sorted(RULES)))
    rule = draw(st.sampled_from(sorted(set(RULES[kind].values()))))
    again = kind.startswith("R")
    neuron = (CUBA if "Synaptic" in kind else draw(st.sampled_from([LIF, PLIF])))(
        beta=value(0.2, 0.95),
        v_th=value(0.4, 1.5),
        **({"alpha": value(0.1, 0.9)} if "Synaptic" in kind else {}),
        scale_input=kind == "Lapicque",
        reset=rule.reset,
        reset_time=rule.time,
        detach_reset=rule.detach,
        surrogate=draw(st.sampled_from(SURROGATES)),
        strict=draw(st.booleans()),
    )
    allowed = {"v_th", "beta", "alpha"} & {f.name for f in dataclasses.fields(neuron)}
    learns = draw(st.sets(st.sampled_from(sorted(allowed - {"beta"} * (kind == "Lapicque")))))
    onto = None
    if again and draw(st.booleans()):
        onto = OneToOne(m, nn.Parameter(torch.zeros(draw(st.sampled_from([1, m])))))
    elif again:
        onto = Linear(m, m, bias=draw(st.booleans()))
    cells = Cells(neuron, learns=sorted(learns), size=(m,) if draw(st.booleans()) else ())
    return Layer(
        Linear(n, m, bias=draw(st.booleans())), cells, inputs=(source,), recurrent=onto
    )


@st.composite
def networks(draw):
    sizes = [draw(st.integers(2, 6)) for _ in range(draw(st.integers(2, 4)))]
    found, source = {}, "input"
    for i, (n, m) in enumerate(zip(sizes, sizes[1:])):
        found[f"layer{i}"] = draw(layers(n, m, source))
        source = f"layer{i}"
    if draw(st.booleans()):
        found["readout"] = Layer(Linear(sizes[-1], 3), None, inputs=(source,))
    return Network(found, mean_first=False)
