"""Files become networks again: ours with the same spikes, those of others with theirs."""

import nir
import numpy as np
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from spikecl_hardware.chain import chain
from spikecl_hardware.floating import simulate
from spikecl_hardware.graph import Meta

from spikecl.encoding.decoders import (
    Decoder,
    FirstSpikeDecoder,
    LastDecoder,
    LeakyDecoder,
    MaxDecoder,
    MeanDecoder,
    PopulationDecoder,
    SumDecoder,
)
from spikecl.errors import InteropError
from spikecl.interop import first_difference, from_nir, to_nir
from spikecl.networks import (
    BatchNorm,
    Cells,
    Dropout,
    Layer,
    Linear,
    Network,
    SpikingConvNet,
    SpikingMlp,
    SpikingRecurrentNet,
)
from spikecl.neurons import CUBA, IF, LIF, PLIF, LeakyIntegrator, Reset, SynapticIntegrator

quick = settings(
    max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
ZERO = {"reset": Reset.ZERO}


def values(draw, low, high, m):
    numbers = st.sampled_from([low + (high - low) * k / 7 for k in range(8)])
    if draw(st.booleans()):
        return torch.tensor([draw(numbers) for _ in range(m)], dtype=torch.float64)
    return draw(numbers)


@st.composite
def layers(draw, n, m, source):
    """Return a dense layer of any spiking neurons that files have."""
    kind = draw(st.sampled_from([LIF, CUBA, IF, PLIF]))
    reset = draw(st.sampled_from([Reset.ZERO, Reset.VALUE]))
    own = {}
    if kind is not IF:
        own |= {"beta": values(draw, 0.2, 0.95, m), "scale_input": draw(st.booleans())}
        own |= {"v_rest": draw(st.sampled_from([0.0, -0.1, 0.2]))}
    if kind is CUBA:
        own["alpha"] = values(draw, 0.0, 0.9, m)
    neuron = kind(
        **own,
        v_th=values(draw, 0.4, 1.5, m),
        v_reset=values(draw, -0.5, 0.2, m) if reset is Reset.VALUE else 0.0,
        reset=reset,
        reset_time=draw(st.sampled_from(["same", "next"])),
        strict=True,
    )
    onto = Linear(m, m, bias=draw(st.booleans())) if draw(st.booleans()) else None
    norm = BatchNorm(m, positive=draw(st.booleans())) if draw(st.booleans()) else None
    before = {"drop": Dropout(0.3)} if draw(st.booleans()) else {}
    learns = () if kind is IF else draw(st.sampled_from([(), ("beta",), ("beta", "v_th")]))
    return Layer(
        Linear(n, m, bias=draw(st.booleans())),
        Cells(neuron, learns=learns, size=(m,) if draw(st.booleans()) else ()),
        inputs=(source,),
        before=before,
        norm=norm,
        recurrent=onto,
    )


READOUTS = [
    None,
    Cells(LeakyIntegrator(kappa=0.8)),
    Cells(LeakyIntegrator(kappa=0.7, scale_input=True)),
    Cells(SynapticIntegrator(alpha=0.6, v_rest=0.2)),
]
DECODERS = [
    MeanDecoder(),
    SumDecoder(),
    MaxDecoder(),
    LastDecoder(),
    LeakyDecoder(kappa=0.6),
    PopulationDecoder(units=2),
]


@st.composite
def networks(draw):
    sizes = [draw(st.integers(2, 6)) for _ in range(draw(st.integers(2, 4)))]
    found, source = {}, "input"
    for i, (n, m) in enumerate(zip(sizes, sizes[1:])):
        found[f"layer{i}"] = draw(layers(n, m, source))
        source = f"layer{i}"
    cells = draw(st.sampled_from(READOUTS))
    readout = Linear(sizes[-1], 4, bias=draw(st.booleans()))
    found["readout"] = Layer(readout, cells, inputs=(source,))
    return Network(found, decoder=draw(st.sampled_from(DECODERS)))


def equal(one, other, x, y=None):
    """Compare spikes, states behind the reset, and logits."""
    y = x if y is None else y
    ours, theirs = one.record(x), other.record(y)
    assert list(ours) == list(theirs)
    for name in ours:
        if one.layers[name].neuron.is_spiking:
            assert 0.002 < ours[name]["spikes"].mean() < 0.98
            assert first_difference(ours[name]["spikes"], theirs[name]["spikes"]) is None
        if getattr(one.layers[name].neuron.neuron, "reset_time", "same") == "same":
            np.testing.assert_allclose(ours[name]["v"], theirs[name]["v"], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(one(x).logits, other(y).logits, rtol=1e-11, atol=1e-11)


def reference(graph, x):
    """Return what the chain of the hardware package computes in floating point."""
    _, found = chain(graph)
    return {layer.name: a.out for layer, a in zip(found, simulate(found, x.numpy()))}


@quick
@given(network=networks(), seed=st.integers(0, 2**20), dt=st.sampled_from([1e-4, 1e-3, 0.125]))
def test_random_networks_there_and_back(lab, network, seed, dt):
    first = next(iter(network.layers.values()))
    x = 0.5 + lab.draw(seed, 100, lab.BATCH, first.synapse.weight.shape[1])
    assume(lab.prepare_ours(network, x, seed))
    rates = [r["spikes"].mean() for n, r in network.record(x).items() if n != "readout"]
    assume(all(0.01 < rate < 0.9 for rate in rates))
    graph = to_nir(network, x.shape[2:], dt=dt)
    back = from_nir(graph)
    equal(network, back, x)
    assert type(back.decoder) is type(network.decoder)
    for name, out in reference(graph, x).items():
        if name != "readout":
            assert first_difference(network.record(x)[name]["spikes"], out) is None


SPECS = {
    "mlp": SpikingMlp(hidden=(9, 7), neuron=LIF(**ZERO), bias=True, norm="batch"),
    "population": SpikingMlp(hidden=(9,), neuron=LIF(**ZERO), population=3),
    "spikes": SpikingMlp(hidden=(9,), neuron=IF(**ZERO), output=LIF(**ZERO), readout="first_spike"),
    "leaky": SpikingMlp(hidden=(9,), neuron=CUBA(**ZERO), readout="leaky"),
    "recurrent": SpikingRecurrentNet(hidden=(9,), neuron=LIF(**ZERO), readout="max"),
    "Dale": SpikingMlp(hidden=(9, 8), neuron=LIF(v_th=0.3, **ZERO), excitatory=0.5),
    "conv": SpikingConvNet(
        channels=(3, 4), kernel=3, pool="average", neuron=LIF(**ZERO), bias=True, norm="batch"
    ),
    "conv, each": SpikingConvNet(
        channels=(3,),
        kernel=3,
        pool="average",
        hidden=(5,),
        neuron=LIF(scale_input=True, **ZERO),
        learns=("beta", "v_th"),
        per_neuron=True,
        readout="sum",
    ),
    "conv, integrator": SpikingConvNet(
        channels=(2,), kernel=3, pool="average", output=LeakyIntegrator(), neuron=CUBA(**ZERO),
        readout="last",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPECS)
def test_networks_of_builders_in_files(lab, case, tmp_path):
    network = SPECS[case].build((12, 12), 3)
    x = lab.draw(7, 60, lab.BATCH, 12, 12)
    assert lab.prepare_ours(network, x)
    generator = torch.Generator().manual_seed(1)
    for cells in (layer.neuron for layer in network.layers.values() if layer.neuron is not None):
        for p in cells.parameters():
            p.data += 0.3 * torch.randn(p.shape, generator=generator)
    nir.write(tmp_path / "net.nir", to_nir(network, (12, 12)))
    back = from_nir(tmp_path / "net.nir")
    assert next(back.parameters()).dtype == torch.float64
    equal(network, back, x, x[:, :, None] if "conv" in case else x.flatten(2))
    assert type(back.decoder) is type(network.decoder) and back.decoder == network.decoder


class Median(Decoder):
    def decode(self, steps):
        return steps.median(0).values


NAMED = {
    PopulationDecoder(units=3): {"name": "mean", "units": 3},
    MaxDecoder(): {"name": "max", "units": 1},
    LeakyDecoder(kappa=0.5): {"name": "leaky", "kappa": 0.5, "units": 1},
    FirstSpikeDecoder(xi=2.0): {"name": "first_spike", "xi": 2.0, "tau_syn": 5.0, "units": 1},
}


@pytest.mark.parametrize("decoder", NAMED, ids=lambda d: type(d).__name__)
def test_decoders_are_named(decoder):
    network = SPECS["mlp"].build((4,), 6)
    network.decoder = decoder
    meta = Meta(steps=9, classes=("a", "b"), decoder={"name": "sum"}, dt=1.0)
    found = Meta.of(to_nir(network, (4,), meta=meta, dt=1e-3))
    assert found == Meta(steps=9, classes=("a", "b"), decoder=NAMED[decoder], dt=1e-3)


def test_a_decoder_of_the_users_own_is_refused():
    network = SPECS["mlp"].build((4,), 6)
    network.decoder = Median()
    with pytest.raises(InteropError, match="decoder Median: files know mean, sum"):
        to_nir(network, (4,))
