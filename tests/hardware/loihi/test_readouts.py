"""How answers are read, against reductions of the float loop's outputs."""

import nir
import numpy as np
import pytest
from graphs import cells, loop, row, spikes, whole
from spikecl_hardware.loihi.decode import logits
from spikecl_hardware.loihi.emulator import emulate
from spikecl_hardware.loihi.quantise import quantise

STEPS = 20
DECODERS = {
    "mean": {},
    "sum": {},
    "max": {},
    "last": {},
    "leaky": {"beta": 0.75},
    "first_spike": {"xi": 0.5, "tau_syn": 4.0},
}


def reduced(name, z):
    """Return [B, n] of outputs [T, B, n]."""
    if name == "leaky":
        total = weight = 0.0
        for now in z:
            total, weight = 0.75 * total + now, 0.75 * weight + 1
        return total / weight
    if name == "first_spike":
        first = np.where(z.any(0), z.argmax(0), len(z))
        return -first / 2.0
    return {"mean": np.mean, "sum": np.sum, "max": np.max, "last": lambda x, _: x[-1]}[name](z, 0)


LASTS = {
    "spikes": (cells(6, threshold=2.0), "spikes"),
    "membranes": (cells(6, threshold=None, beta=0.5), "v"),
    "currents": (None, "u"),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("last", LASTS)
@pytest.mark.parametrize("units", [1, 3])
def test_logits_are_those_of_the_float_network(name, last, units):
    rng = np.random.default_rng(units)
    neurons, quantity = LASTS[last]
    nodes = [
        nir.Linear(whole(rng, (8, 5))),
        cells(8, threshold=2.0),
        nir.Linear(whole(rng, (6, 8))),
    ]
    nodes += [] if neurons is None else [neurons]
    x = spikes(rng, STEPS, 4, 5)
    told = {"name": name, "units": units, **DECODERS[name]}
    graph = row((5,), *nodes, steps=STEPS, decoder=told)
    if name == "first_spike" and last != "spikes":
        with pytest.raises(ValueError, match="'n2': decoder 'first_spike' reads spikes"):
            quantise(graph, calibration=x)
        return
    program = quantise(graph, calibration=x)
    adds = last == "currents" and name in ("mean", "sum")
    assert program.readout.quantity == ("v" if adds else quantity)
    record = emulate(program, x.astype(int))
    expected = reduced(name, loop(nodes, x)[0][-1])
    expected = expected.reshape(4, 6 // units, units).mean(2)
    found = logits(record.outputs, program.readout)
    unit = program.manifest["scales"]["n2"]["unit"]
    steps = STEPS if name == "sum" else 1
    bound = steps * 2 / unit if last == "membranes" else 0  # halves are rounded down
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound + 1e-9)
    if last != "spikes":
        assert not record.spikes["n2"].any()
    assert not any(sum(counts.values()) for counts in record.notes.values())


def test_currents_are_not_added_up():
    """A long run of a readout of currents leaves no membrane that saturates."""
    nodes = [nir.Linear(np.ones((2, 3)))]
    graph = row((3,), *nodes, steps=2, decoder={"name": "max"})
    record = emulate(quantise(graph), np.ones((600, 1, 3), int))
    assert record.notes["saturated"]["n0"] == 0 and not record.spikes["n0"].any()


def test_refused_biases():
    nodes = [nir.Affine(np.ones((2, 3)), np.ones(2))]
    for name in ("max", "last"):
        with pytest.raises(ValueError, match=f"'n0': decoder '{name}' reads a current at every"):
            quantise(row((3,), *nodes, decoder={"name": name}))
