"""snnTorch networks against their imports: spikes of all layers, outputs and gradients."""

import snntorch
import snntorch.surrogate as theirs
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from spikecl.encoding.decoders import SumDecoder
from spikecl.errors import InteropError
from spikecl.interop import SpikeGrad, from_snntorch
from spikecl.interop.snntorch_in import RULES
from spikecl.networks import AvgPool2d, BatchNorm, Dropout
from spikecl.neurons import CUBA, IF, LIF, Arctan, FastSigmoid, Reset, Sigmoid, Triangle

KINDS = {name: getattr(snntorch, name) for name in RULES}
quick = settings(max_examples=25, deadline=None, derandomize=True, database=None)
GRAD = SpikeGrad(Arctan())


@st.composite
def neurons(draw, n, surrogates):
    """Return a neuron for n inputs, any kind with any of its options."""
    kind = draw(st.sampled_from(sorted(RULES)))
    mechanism, delay = draw(st.sampled_from(sorted(RULES[kind])))
    options = {"reset_mechanism": mechanism, "spike_grad": draw(st.sampled_from(surrogates))}

    def value(low, high, extremes=()):
        numbers = st.sampled_from([*extremes, *(low + (high - low) * k / 7 for k in range(8))])
        if draw(st.booleans()):
            return torch.tensor([draw(numbers) for _ in range(n)], dtype=torch.float64)
        return torch.tensor(draw(numbers), dtype=torch.float64)

    options |= {"threshold": value(0.3, 1.5), "learn_threshold": draw(st.booleans())}
    if kind == "Lapicque":
        return snntorch.Lapicque(R=1, C=1 + float(value(0.2, 5.0).flatten()[0]), **options)
    options["reset_delay"] = delay
    if kind == "RSynaptic":
        del options["reset_delay"]
    learns = draw(st.booleans())
    options |= {"beta": value(0.2, 0.95, () if learns else (0.0, 1.0, 1.4)), "learn_beta": learns}
    if "Synaptic" in kind:
        options |= {"alpha": value(0.1, 0.9), "learn_alpha": draw(st.booleans())}
    if kind.startswith("R"):
        options["learn_recurrent"] = draw(st.booleans())
        if draw(st.booleans()):
            options["linear_features"] = n
        else:
            options |= {"all_to_all": False, "V": value(-0.5, 0.5)}
    return KINDS[kind](**options)


@st.composite
def chains(draw, surrogates):
    sizes = [draw(st.integers(2, 6)) for _ in range(draw(st.integers(2, 4)))]
    modules = []
    for n, m in zip(sizes, sizes[1:]):
        modules.append(nn.Linear(n, m, bias=draw(st.booleans())))
        modules[-1].weight.requires_grad_(draw(st.booleans()))
        if draw(st.booleans()):
            modules.append(nn.Identity())
        modules.append(draw(neurons(m, surrogates)))
    if draw(st.booleans()):
        modules += [nn.Dropout(0.4).eval(), nn.Linear(sizes[-1], 3)]
    return modules


@quick
@given(data=st.data(), seed=st.integers(0, 2**20))
def test_random_networks(lab, data, seed):
    surrogates = [
        lab.double(theirs.ATan, 2.0),
        lab.double(theirs.FastSigmoid, 5.0),
        lab.double(theirs.Sigmoid, 4.0),
        SpikeGrad(Triangle(height=0.5, width=2.0)),
    ]
    modules = data.draw(chains(surrogates))
    assume(any(p.requires_grad for m in modules for p in m.parameters()))
    x = 0.5 + lab.draw(seed, lab.STEPS, lab.BATCH, modules[0].in_features)
    assume(lab.prepare(lab.SNNTORCH, modules, x, seed))
    lab.compare(lab.SNNTORCH, modules, from_snntorch(modules), x)
