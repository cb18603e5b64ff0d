"""A head that learns new classes on the chip: a prototype for each, the mean of what it was shown.

It listens to a population of an exported network. In every sample its synapses count spikes ``r``
in a trace that does not decay; at the end a third factor reaches the prototype of the label::

    w <- w + y2 / 128 (r - w),    y2 = 128 / n at the n th sample of a class

so weights are running means, in whole numbers. Membranes do not leak and do not fire: they end at
``w . r``, and start from ``-|w|^2 / 2``, which whoever runs the chip writes once the prototypes
are learned. The largest one is the nearest mean.

Source: the idea is that of ``lava.proc.clp``: prototypes on frozen features, a third factor as the
rate. Deviation: one prototype for each class, which the label names, and Euclidean distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from spikecl_hardware.loihi.learning import TRACE_MAX, Learning, Trace
from spikecl_hardware.loihi.library import term
from spikecl_hardware.loihi.plastic import Learned, learn
from spikecl_hardware.loihi.program import (
    INPUT,
    Connection,
    Population,
    Program,
    ProgramError,
    Readout,
)
from spikecl_hardware.loihi.semantics import STATE_LIMIT, DenseParameters, LIFParameters, SignMode

NAME = "prototypes"
NEVER = 1e9  # a time constant after which nothing of a sample is left to decay


def with_prototypes(program: Program, source: str, classes: int) -> Program:
    """Return a program whose answer is that of prototypes that listen to a population.

    Args:
        program: An exported network; all of it stays.
        source: The population (or ``input``) that prototypes listen to.
        classes: How many there are; those that were not learned never win.

    Raises:
        ProgramError: There is no such population, it fires too many steps to be counted, or the
            program has prototypes already.
    """
    if NAME in program.populations:
        raise ProgramError(f"there is a population '{NAME}' already; learn with it")
    if source not in (INPUT, *program.populations):
        raise ProgramError(f"no population '{source}'; {', '.join(program.populations)} are there")
    if classes < 1:
        raise ProgramError(f"{classes} classes; 1 or more is allowed")
    longest = program.steps + len(program.populations) + 1
    if longest > TRACE_MAX:
        raise ProgramError(
            f"samples of {program.steps} steps; traces count up to {TRACE_MAX} spikes: fewer steps"
        )
    n = int(np.prod(program.shape(source)))
    rule = Learning(
        term(1 / 128, "u0", "x1", "y2") + term(-1 / 128, "u0", "w", "y2"),
        traces={"x1": Trace(1.0, NEVER)},
        modulated=True,
    )
    synapses = DenseParameters(
        np.zeros((classes, n), np.int64),
        weight_exp=_exponent(n, longest),
        sign_mode=SignMode.EXCITATORY,
    )
    cells = Population((classes,), LIFParameters(vth=(1 << 17) - 1, du=4095), start=-STATE_LIMIT)
    return replace(
        program,
        populations={**program.populations, NAME: cells},
        connections=(*program.connections, Connection(source, NAME, synapses, rule)),
        readout=Readout(NAME, quantity="v", reduction="last"),
    )


def _exponent(n: int, steps: int) -> int:
    """Return the largest exponent with which no membrane can leave its range or fire."""
    most = n * steps * steps  # w . r, both at most one a step
    return max(-8, min(0, int(np.floor(np.log2((1 << 17) * 64 / 2 / (64 * most))))))


def learn_classes(
    program: Program,
    inputs: npt.ArrayLike,
    labels: Sequence[int],
    *,
    run: Callable[..., Learned] = learn,
) -> Program:
    """Show samples one after the other and return the program with their prototypes.

    Args:
        program: From :func:`with_prototypes`.
        inputs: Samples [T, B, *input_shape], as for `plastic.learn`.
        labels: A class for each.
        run: `plastic.learn`, or `lava.learn`.

    Raises:
        ProgramError: There are no prototypes, or a label is none of theirs.
    """
    if NAME not in program.populations:
        raise ProgramError("the program has no prototypes; make them with with_prototypes()")
    classes, x = program.populations[NAME].size, np.asarray(inputs)
    found = np.asarray(labels)
    if len(found) != x.shape[1] or not len(found) or not (found >= 0).all():
        raise ProgramError(f"{len(found)} labels for {x.shape[1]} samples; one each is allowed")
    if (found >= classes).any():
        raise ProgramError(f"label {found.max()}; 0 to {classes - 1} is allowed")
    third = np.zeros((len(x) + program.latency, len(found), 2, classes), np.int64)
    for sample, label in enumerate(found):
        n = int((found[: sample + 1] == label).sum())
        third[-1, sample, 0, label] = min(round(128 / n), TRACE_MAX)
    made = run(program, x, third={NAME: third}).program
    return with_starts(made)


def with_starts(program: Program) -> Program:
    """Return a program whose membranes start from ``-|w|^2 / 2``."""
    (connection,) = (c for c in program.connections if c.target == NAME)
    weights = connection.dense.effective
    half = (weights**2).sum(1) * 64 * 2.0**connection.dense.weight_exp / 2
    known = weights.any(1)
    start = np.where(known, -np.round(half), -STATE_LIMIT).astype(np.int64)
    cells = replace(program.populations[NAME], start=start)
    return replace(program, populations={**program.populations, NAME: cells})
