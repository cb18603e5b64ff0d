"""Lateral neurons of an exported network: what populations sent, seen along rows of weights.

A population ``SOURCE.lateral`` listens to a source with signed weights ``H`` [k, n]. Its membranes
do not leak and do not fire: at the end of a sample they hold ``y = H x`` of the spikes (or graded
messages) ``x`` that came, summed over steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.learning import Array
from spikecl_hardware.loihi.program import INPUT, Connection, Population, Program, ProgramError
from spikecl_hardware.loihi.semantics import DenseParameters, LIFParameters, SignMode
from spikecl_hardware.record import Record

SUFFIX = ".lateral"
TOP = 254  # largest weight of mixed signs, which are even
COARSEST = 3  # bits that rows may lose
SILENT = LIFParameters(vth=(1 << 17) - 1, du=4095)


class Rows(NamedTuple):
    """Rows of weights in whole numbers: ``H = weights / scale``."""

    weights: Array
    scale: float

    @classmethod
    def of(cls, rows: npt.ArrayLike, *, largest: float = 0.0) -> Rows:
        """Round rows [k, n]; ``largest`` leaves room for entries up to that magnitude."""
        h = np.asarray(rows, dtype=np.float64)
        scale = TOP / max(float(abs(h).max(initial=0.0)), largest, 1e-9)
        return cls(np.clip(2 * np.rint(h * scale / 2), -TOP, TOP).astype(np.int64), scale)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The rows in numbers."""
        return self.weights / self.scale


def with_lateral(program: Program, rows: Mapping[str, Rows]) -> Program:
    """Return a program with lateral neurons that listen to populations (or ``input``).

    Raises:
        ProgramError: There is no such population, rows do not fit it, or sums could not be held.
    """
    populations, connections = dict(program.populations), list(program.connections)
    for source, each in rows.items():
        if source not in (INPUT, *program.populations):
            raise ProgramError(
                f"no population '{source}'; {', '.join(program.populations)} are there"
            )
        n, bits = int(np.prod(program.shape(source))), _bits(program, source)
        if each.weights.ndim != 2 or each.weights.shape[1] != n:
            raise ProgramError(
                f"rows of '{source}' have shape {each.weights.shape}; [rows, {n}] is allowed"
            )
        if not len(each.weights):
            continue
        held, exponent = fitting(program, source, each)
        synapses = DenseParameters(
            held.weights, weight_exp=exponent, sign_mode=SignMode.MIXED, num_message_bits=bits
        )
        name = source + SUFFIX
        populations[name] = Population((len(each.weights),), SILENT)
        connections.append(Connection(source, name, synapses))
    return replace(program, populations=populations, connections=tuple(connections))


def _bits(program: Program, source: str) -> int:
    """Return the bits of messages that a source sends."""
    return max(
        (c.synapses.num_message_bits for c in program.connections if c.source == source), default=0
    )


def fitting(program: Program, source: str, rows: Rows) -> tuple[Rows, int]:
    """Return rows as neurons hold them, and the exponent of their weights.

    It is the largest with which no membrane can leave its range. Where none is small enough, rows
    lose up to three bits.

    Raises:
        ProgramError: That is not enough.
    """
    largest = 1 << max(_bits(program, source) - 1, 0)
    populations = sum(not name.endswith(SUFFIX) for name in program.populations)
    for bits in range(COARSEST + 1):
        weights = 2 * np.rint(rows.weights / 2 ** (bits + 1)).astype(np.int64)
        most = int(abs(weights).sum(1).max(initial=0)) * largest * (program.steps + populations + 1)
        exponent = min(0, int(np.floor(np.log2(((1 << 17) - 1) / max(most, 1)))))
        if exponent >= -8:
            return Rows(weights, rows.scale / 2**bits), exponent
    raise ProgramError(
        f"lateral sums of '{source}' reach {most}, far beyond a membrane; fewer steps or inputs "
        "are allowed"
    )


def responses(program: Program, record: Record, source: str, rows: Rows) -> Array:
    """Return ``H x`` [B, k] as membranes hold it at the end of samples.

    Args:
        program: From :func:`with_lateral`.
        record: A run with the states ``v``.
        source: What the neurons listen to.
        rows: Their weights.
    """
    name = source + SUFFIX
    if name not in program.populations:
        return np.zeros((record.inputs.shape[1], 0))
    held, exponent = fitting(program, source, rows)
    v: Array = record.states[name]["v"][-1]
    return v / (64 * 2.0**exponent * held.scale)


def sent(record: Record, source: str) -> Array:
    """Return the spikes or messages [B, n] that lateral neurons have heard by the end."""
    x = record.inputs if source == INPUT else record.spikes[source]
    heard: Array = x[:-1].reshape(len(x) - 1, x.shape[1], -1).sum(0, dtype=np.int64)
    return heard
