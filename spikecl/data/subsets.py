"""Fewer training samples, and cross-validation folds; the same on every machine, and no run's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikecl.data.arrays import Data, checked
from spikecl.data.validation import SEED
from spikecl.errors import DataError

Array = NDArray[Any]


def first_samples(data: Data, samples: int) -> Data:
    """Return a data set with fewer training samples; classes keep their shares.

    Args:
        data: The data set.
        samples: Training samples to keep, drawn by a fixed seed; their order stays.

    Raises:
        DataError: Fewer than a sample for each class, or more than there are.

    Example:
        >>> from spikecl.data import load
        >>> len(first_samples(load("digits"), 500).x_train)
        500
    """
    total = len(data.y_train)
    if not data.classes <= samples <= total:
        raise DataError(
            f"data.samples: got {samples}; {data.name} has {total} training samples of "
            f"{data.classes} classes, so {data.classes} to {total}"
        )
    kept = _shares(data.y_train, data.classes, samples)
    rows = np.sort(kept)
    return _made(
        data,
        (data.x_train[rows], data.y_train[rows]),
        (data.x_test, data.y_test),
        f"{data.name}-{samples}",
    )


def fold(data: Data, number: int, folds: int) -> Data:
    """Return a data set whose test set is one of several folds of all samples.

    Training and test samples are put together; every class is spread evenly over the folds. Each
    sample is in the test set of one fold.

    Args:
        data: The data set.
        number: Which fold is tested on, from 0.
        folds: How many there are.

    Raises:
        DataError: A fold that does not exist, or more folds than samples of a class.
    """
    if not (folds >= 2 and 0 <= number < folds):
        raise DataError(
            f"data.fold: got fold {number} of {folds}; at least 2 folds, counted from 0"
        )
    x = np.concatenate([data.x_train, data.x_test])
    y = np.concatenate([data.y_train, data.y_test])
    generator = np.random.default_rng(SEED)
    held, offset = np.zeros(len(y), dtype=bool), 0
    for label in range(data.classes):
        rows = generator.permutation(np.flatnonzero(y == label))
        if len(rows) < folds:
            raise DataError(f"{data.name}: class {label} has {len(rows)} samples for {folds} folds")
        held[rows[(np.arange(len(rows)) + offset) % folds == number]] = True
        offset += len(rows)
    name = f"{data.name}-fold{number}of{folds}"
    return _made(data, (x[~held], y[~held]), (x[held], y[held]), name)


def _shares(y: Array, classes: int, samples: int) -> Array:
    """Return rows drawn so that each class keeps its share, the largest remainders rounded up."""
    generator = np.random.default_rng(SEED)
    counts = np.bincount(y, minlength=classes)
    exact = counts * samples / len(y)
    take = np.maximum(np.floor(exact).astype(int), (counts > 0).astype(int))
    for label in np.argsort(take - exact, kind="stable"):
        if take.sum() < samples and take[label] < counts[label]:
            take[label] += 1
    drawn = [generator.permutation(np.flatnonzero(y == c))[: take[c]] for c in range(classes)]
    found: Array = np.concatenate(drawn)[:samples]
    return found


def _made(data: Data, train: tuple[Array, Array], test: tuple[Array, Array], name: str) -> Data:
    arrays = {"x_train": train[0], "y_train": train[1], "x_test": test[0], "y_test": test[1]}
    made = checked(arrays, name, peak=data.peak, temporal=data.temporal, step_ms=data.step_ms)
    return replace(made, class_names=data.class_names)
