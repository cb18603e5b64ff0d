"""The search over clips against programs of every clip alone."""

import nir
import numpy as np
import pytest
from graphs import cells, loop, pooled, row, spikes
from spikecl_hardware.chain import chain
from spikecl_hardware.floating import simulate
from spikecl_hardware.graph import Meta
from spikecl_hardware.loihi.clips import best
from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.needs import Place
from spikecl_hardware.loihi.quantise import SEARCH, Options, quantise, quantise_input

ENDS = {
    "spikes": (cells(10, beta=0.8, threshold=2.0), "mean"),
    "membranes": (cells(10, beta=0.8, threshold=None), "mean"),
    "sums": (None, "sum"),
}


def network(end):
    """Return nodes, a graph and input; one weight is far out, the others need their bits."""
    rng = np.random.default_rng(3)
    weights = np.r_[[[60.0] + 26 * [0.0]], rng.normal(size=(9, 27))]
    neurons, decoder = ENDS[end]
    nodes = [
        pooled(nir.AvgPool2d, 2),
        nir.Flatten(np.array([3, 3, 3]), 0, -1),
        nir.Affine(weights, np.linspace(-4, 4, 10)),
        *([neurons] if neurons else []),
    ]
    graph = row((3, 6, 6), *nodes, steps=30, decoder={"name": decoder})
    return nodes, graph, spikes(rng, 30, 20, 3, 6, 6)


@pytest.mark.parametrize("end", ENDS)
def test_the_best_of_all(end):
    nodes, graph, x = network(end)
    out = loop(nodes, x)[0][-1]

    def weight(clips):
        program = quantise(graph, calibration=x, options=Options(clips=clips, weight_bits=4))
        return program, program.manifest["scales"]["n2"]["weight"]

    def error(clip):
        """Return differing spikes, or squares of what they should be at every step."""
        program, s = weight((clip,))
        record = emulate(program, quantise_input(program, x), states=("v",))
        if end == "spikes":
            return (record.outputs != out).sum(), s
        v = record.states["n2"]["v"][1:] / program.manifest["scales"]["n2"]["unit"]
        return ((v - (out.cumsum(0) if end == "sums" else out)) ** 2).sum(), s

    errors = [error(clip) for clip in SEARCH]
    lowest, s = min(errors, key=lambda pair: pair[0])
    chosen, found = weight(SEARCH)
    assert found == s and (end != "spikes" or lowest < 0.9 * errors[0][0])
    assert logits(emulate(chosen, x.astype(int)).outputs, chosen.readout).shape == (20, 10)


@pytest.mark.parametrize("end", ENDS)
def test_depth_does_not_matter(end):
    """A layer is tried alone, and its bias waits for as long as it will in its place."""
    _, graph, x = network(end)
    (layer,), meta = chain(graph)[1], Meta.of(graph)
    (seen,) = simulate([layer], x)
    options = Options(clips=SEARCH, weight_bits=4)
    found = [best(layer, Place(s, d), seen, options, meta) for s, d in (("input", 1), ("a", 6))]
    assert found[0].scale.weight == found[1].scale.weight
    starts = [np.asarray(made.population.start) / made.scale.unit for made in found]
    assert (abs(starts[1]) >= 4 * abs(starts[0])).any()
