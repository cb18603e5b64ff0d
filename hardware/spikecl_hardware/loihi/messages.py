"""Encoded input as the whole numbers that a program takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.program import Program, ProgramError


def messages(x: npt.NDArray[Any], unit: float, bits: int) -> npt.NDArray[Any]:
    """Return ``x`` times ``unit``, rounded and cut to the range of so many bits; 0: spikes."""
    if not bits:
        return (x > 0.5).astype(np.uint8)
    half = 1 << (bits - 1)
    smallest = next(kind for kind in (np.int8, np.int16, np.int32) if half <= -np.iinfo(kind).min)
    return np.clip(np.rint(x * unit), -half, half - 1).astype(smallest)


def quantise_input(program: Program, x: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return encoded input as the whole numbers that a program takes; a repeated step stays one.

    What is beyond the range of messages becomes its end; :func:`cut` counts it.

    Raises:
        ProgramError: Values are not finite.
    """
    x = np.asarray(x)
    one = _one(x)
    if not np.isfinite(one).all():
        raise ProgramError("the input has values that are not finite; look at the data")
    return np.broadcast_to(messages(one, *_told(program)), x.shape)


def cut(program: Program, x: npt.ArrayLike) -> int:
    """Return how many values of encoded input the program's messages cannot hold.

    Beyond the range of graded messages; neither 0 nor 1 where messages are spikes.
    """
    x = np.asarray(x)
    one, (unit, bits) = _one(x), _told(program)
    half = 1 << max(bits - 1, 0)
    whole = np.rint(one * unit)
    beyond = (whole < -half) | (whole > half - 1) if bits else (one != 0) & (one != 1)
    return int(np.count_nonzero(beyond)) * (len(x) // max(len(one), 1))


def _told(program: Program) -> tuple[float, int]:
    told = program.manifest["input"]
    return float(told["scale"]), int(told["bits"]) if told["graded"] else 0


def _one(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return one step where all are the same memory."""
    return x[:1] if x.ndim and x.strides[0] == 0 else x
