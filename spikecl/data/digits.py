"""The handwritten digits that ship with scikit-learn, so that everything runs without a network."""

from __future__ import annotations

import numpy as np

from spikecl.data.checks import Array


def read() -> dict[str, Array]:
    """Return 1,797 images of 8x8 with values 0 .. 16, split by a fixed rule.

    Within each class, in the order of the file, every fifth image is a test image (the fifth, the
    tenth, ...): about 80 to 20, the same share of every class, the same on every machine. The
    split depends on no seed.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[4::5]] = True
    return {
        "x_train": images[~test],
        "y_train": labels[~test],
        "x_test": images[test],
        "y_test": labels[test],
    }
