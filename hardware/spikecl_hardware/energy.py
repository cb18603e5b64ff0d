"""Operation counts of a spiking network and what they would cost: estimates, never measurements.

The counts follow NeuroBench (Yik et al., Nature Communications 16, 2025): ``dense`` synaptic
operations count every connection at every step; the effective ones skip zero inputs and zero
weights and are multiply-accumulates (MACs) for graded inputs, accumulates (ACs, also called SynOps)
for binary ones. Everything is per sample.

The energies price arithmetic, on Loihi synaptic events and neuron updates. Memory outside the
synapse, routing, input and output, leakage and idle time are missing and often dominate: compare
estimates that use one table, do not read them as measurements.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

HOROWITZ_2014 = (
    "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, pp. 10-14, "
    "doi:10.1109/ISSCC.2014.6757323: 45 nm, 0.9 V"
)
DAVIES_2018 = (
    "M. Davies et al., Loihi: a neuromorphic manycore processor with on-chip learning, IEEE Micro "
    "38(1), 2018, pp. 82-99, doi:10.1109/MM.2018.112130359, table 2: 14 nm, pre-silicon simulation"
)

ARITHMETIC_PJ = {
    "int8 add": 0.03,
    "int32 add": 0.1,
    "int8 multiply": 0.2,
    "int32 multiply": 3.1,
    "float16 add": 0.4,
    "float16 multiply": 1.1,
    "float32 add": 0.9,
    "float32 multiply": 3.7,
}
"""Picojoules of one operation, from `HOROWITZ_2014`."""

LOIHI_PJ = {
    "synaptic spike operation (min)": 23.6,
    "neuron update (active)": 81.0,
    "neuron update (inactive)": 52.0,
    "synaptic update (pairwise STDP)": 120.0,
    "spike within a tile": 1.7,
}
"""Picojoules of one event, from `DAVIES_2018`."""


@dataclass(frozen=True)
class EnergyTable:
    """Picojoules of one MAC, one AC and one membrane update; ``mac_pj`` None means no such unit."""

    name: str
    mac_pj: float | None
    ac_pj: float
    membrane_update_pj: float
    source: str
    assumption: str


def _arithmetic(name: str, multiply: str, add: str) -> EnergyTable:
    ac = ARITHMETIC_PJ[f"{add} add"]
    mac = ARITHMETIC_PJ[f"{multiply} multiply"] + ac
    assumption = f"MAC = {multiply} multiply + {add} add; AC = {add} add; one update = one MAC"
    return EnergyTable(name, mac, ac, mac, HOROWITZ_2014, assumption)


FLOAT32_45NM = _arithmetic("float32, 45 nm", "float32", "float32")
FLOAT16_45NM = _arithmetic("float16, 45 nm", "float16", "float16")
INT8_45NM = _arithmetic("int8 with int32 sums, 45 nm", "int8", "int32")
LOIHI = EnergyTable(
    name="Loihi, 14 nm",
    mac_pj=None,
    ac_pj=LOIHI_PJ["synaptic spike operation (min)"],
    membrane_update_pj=LOIHI_PJ["neuron update (active)"],
    source=DAVIES_2018,
    assumption="each synaptic operation at its minimum, each neuron active at every step",
)


@dataclass(frozen=True)
class Layer:
    """What a synaptic layer can do: ``connections`` in all, ``fan_out`` without zero weights.

    ``fan_out`` has the shape of the input; each entry counts the non-zero connections that one
    event there reaches. ``neurons`` are those driven by the layer.
    """

    connections: int
    neurons: int
    fan_out: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Operations:
    """Operations per sample; add those of several layers with ``+``."""

    dense: float
    effective_macs: float
    effective_acs: float
    membrane_updates: float

    def __add__(self, other: Operations) -> Operations:
        """Add field by field."""
        return Operations(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Estimate:
    """Estimated energy per sample in picojoules, with the table it rests on."""

    synapses_pj: float
    neurons_pj: float
    table: EnergyTable

    @property
    def total_pj(self) -> float:
        """Synapses and neurons together."""
        return self.synapses_pj + self.neurons_pj

    def __str__(self) -> str:
        """One line that says it is an estimate per sample, and whose numbers it uses."""
        return f"estimate: {self.total_pj:.4g} pJ, {self.table.name} ({self.table.source})"


def linear(weights: npt.ArrayLike) -> Layer:
    """Describe a fully connected layer by its weights ``[n_out, n_in]``."""
    w = np.asarray(weights)
    return Layer(w.size, len(w), np.count_nonzero(w, axis=0))


def conv2d(
    weights: npt.ArrayLike, size: tuple[int, int], *, stride: int = 1, padding: int = 0
) -> Layer:
    """Describe a convolution by its weights ``[c_out, c_in, k, l]`` and input ``[c_in, *size]``.

    Connections into the padding do not exist and are not counted; groups are not supported.
    """
    w = np.asarray(weights)
    rows, columns = (
        _readers(n, k, stride, padding) for n, k in zip(size, w.shape[2:], strict=True)
    )
    fan_out = np.einsum("ckl,yok,xpl->cyx", np.count_nonzero(w, axis=0), rows, columns)
    connections = len(w) * w.shape[1] * int(rows.sum() * columns.sum())
    return Layer(connections, len(w) * rows.shape[1] * columns.shape[1], fan_out)


def _readers(size: int, kernel: int, stride: int, padding: int) -> npt.NDArray[np.int64]:
    """Mark ``[size, out, kernel]``: input y reaches output o through tap k."""
    outputs = np.arange((size + 2 * padding - kernel) // stride + 1)
    read = outputs[:, None] * stride - padding + np.arange(kernel)
    return np.asarray(read == np.arange(size)[:, None, None], dtype=np.int64)


def events(spikes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Average the non-zero entries of ``[T, B, *features]`` per sample, ``[*features]``."""
    return np.asarray(np.count_nonzero(spikes, axis=0).mean(axis=0))


def count(
    layer: Layer, inputs: npt.NDArray[np.float64], *, steps: int, graded: bool = False
) -> Operations:
    """Count the operations of one layer over ``steps`` steps.

    ``inputs`` are the `events` that enter the layer, in the shape of ``layer.fan_out``.
    Deviation: NeuroBench counts membranes that changed; here each neuron is updated at each step,
    as clocked hardware does.

    >>> layer = linear([[1, 0, 2], [3, 0, 0]])
    >>> count(layer, events([[[1, 1, 0]], [[1, 0, 1]]]), steps=2)
    Operations(dense=12, effective_macs=0.0, effective_acs=5.0, membrane_updates=4)
    """
    if inputs.shape != layer.fan_out.shape:
        raise ValueError(
            f"inputs have shape {inputs.shape}; {layer.fan_out.shape} is allowed: pass the events "
            "entering this layer"
        )
    effective = float((inputs * layer.fan_out).sum())
    macs, acs = (effective, 0.0) if graded else (0.0, effective)
    return Operations(layer.connections * steps, macs, acs, layer.neurons * steps)


def estimate(operations: Operations, table: EnergyTable, *, skips_zeros: bool = True) -> Estimate:
    """Price the operations; without ``skips_zeros`` every dense operation is a MAC.

    >>> print(estimate(Operations(12, 0, 5, 4), LOIHI).total_pj)
    442.0
    """
    macs = operations.effective_macs if skips_zeros else operations.dense
    acs = operations.effective_acs if skips_zeros else 0.0
    if table.mac_pj is None and macs > 0:
        raise ValueError(
            f"{macs:g} MACs on {table.name}; only binary spikes are allowed there: count with "
            "graded=False or choose another table"
        )
    synapses = macs * (table.mac_pj or 0.0) + acs * table.ac_pj
    return Estimate(synapses, operations.membrane_updates * table.membrane_update_pj, table)
