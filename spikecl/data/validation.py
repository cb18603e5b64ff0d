"""A validation split: what hyper-parameters may be chosen on, so that test sets are read once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spikecl.data.arrays import Data, checked
from spikecl.errors import DataError

SEED = 20_240_229  # of the split; the same on every machine, and no run's


def hold_out(data: Data, fraction: float) -> Data:
    """Return a data set whose test set is a part of the training set; the real one is left out.

    Every class gives up the same share, at least one sample, drawn by a fixed seed.

    Args:
        data: The data set.
        fraction: Share of the training samples to hold out, above 0 and below 1.

    Raises:
        DataError: A fraction outside that range, or a class with a single sample.

    Example:
        >>> from spikecl.data import load
        >>> validation = hold_out(load("digits"), 0.1)
        >>> validation.name, len(validation.x_train), len(validation.x_test)
        ('digits-validation0.1', 1299, 143)
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.validation: got {fraction}; a fraction above 0 and below 1")
    generator = np.random.default_rng(SEED)
    held = np.zeros(len(data.y_train), dtype=bool)
    for label in range(data.classes):
        rows = generator.permutation(np.flatnonzero(data.y_train == label))
        if len(rows) < 2:
            raise DataError(f"{data.name}: class {label} has one sample, none to hold out")
        held[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    made = checked(
        {
            "x_train": data.x_train[~held],
            "y_train": data.y_train[~held],
            "x_test": data.x_train[held],
            "y_test": data.y_train[held],
        },
        f"{data.name}-validation{fraction:g}",
        peak=data.peak,
        temporal=data.temporal,
        step_ms=data.step_ms,
    )
    return replace(made, class_names=data.class_names)
