"""What the readout said over time becomes logits; the same as the decoders of the trainer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.program import ProgramError, Readout

Floats = npt.NDArray[np.float64]


def logits(outputs: npt.ArrayLike, readout: Readout) -> Floats:
    """Return logits [B, classes] of outputs [T, B, n], in the units of the exported network.

    With ``z`` the outputs, first over time (`Readout.reduction`), then over the ``units`` outputs
    of a class, then times ``scale``::

        mean, sum, max, last    as they say
        leaky                   sum_t kappa^(T-1-t) z[t] / sum_t kappa^(T-1-t)
        first_spike             -t_first / (xi tau_syn),  t_first = T without a spike

    ``kappa`` has to be in ``readout.constants``; ``xi`` and ``tau_syn`` are 1 where they are not.

    Raises:
        ProgramError: Outputs of another rank, no steps, units that do not divide, no ``kappa``.

    >>> logits([[[1, 0, 3, 4]], [[0, 0, 1, 4]]], Readout("out", reduction="sum", units=2)).tolist()
    [[0.5, 6.0]]
    """
    z = np.asarray(outputs, dtype=np.float64)
    if z.ndim != 3 or not len(z):
        raise ProgramError(
            f"outputs have shape {z.shape}; [steps, samples, outputs], a step or more, is allowed"
        )
    if readout.units < 1 or z.shape[2] % readout.units:
        raise ProgramError(
            f"{z.shape[2]} outputs, {readout.units} for each class; a divisor is allowed"
        )
    reduced = _reduced(z, readout)
    classes = reduced.reshape(len(reduced), z.shape[2] // readout.units, readout.units)
    return np.asarray(classes.mean(axis=2) * readout.scale)


def accuracy(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the share of samples whose largest logit [B, classes] is that of the label [B].

    >>> accuracy([[1.0, 2.0], [3.0, 0.0]], [1, 1])
    0.5
    """
    guesses, truth = np.argmax(np.asarray(logits), axis=-1), np.asarray(labels)
    if guesses.shape != truth.shape or not truth.size:
        raise ProgramError(
            f"{truth.shape} labels for {guesses.shape} samples; one for each of them is allowed"
        )
    return float(np.mean(guesses == truth))


def _reduced(z: Floats, readout: Readout) -> Floats:
    if readout.reduction == "mean":
        return np.asarray(z.mean(axis=0))
    if readout.reduction == "sum":
        return np.asarray(z.sum(axis=0))
    if readout.reduction == "max":
        return np.asarray(z.max(axis=0))
    if readout.reduction == "last":
        return np.asarray(z[-1])
    if readout.reduction == "leaky":
        return _leaky(z, _constant(readout, "kappa"))
    if readout.reduction == "first_spike":
        return _first_spike(z) / (_constant(readout, "xi", 1) * _constant(readout, "tau_syn", 1))
    raise ProgramError(f"reduction '{readout.reduction}'; see Readout for what is allowed")


def _leaky(z: Floats, kappa: float) -> Floats:
    weight = kappa ** np.arange(len(z) - 1, -1, -1.0)
    return np.asarray((weight[:, None, None] * z).sum(axis=0) / weight.sum())


def _first_spike(z: Floats) -> Floats:
    """Return minus the step of the first spike; an output at -inf stays there."""
    closed = np.isneginf(z).any(axis=0)
    silent = np.cumprod(1 - np.where(closed, 0, z), axis=0)
    return np.where(closed, -np.inf, -silent.sum(axis=0))


def _constant(readout: Readout, name: str, default: float | None = None) -> float:
    value = readout.constants.get(name, default)
    if value is None:
        raise ProgramError(
            f"reduction '{readout.reduction}' has constants {dict(readout.constants)}; "
            f"'{name}' is needed: export again"
        )
    return float(value)
