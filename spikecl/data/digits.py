"""The handwritten digits that ship with scikit-learn, so that everything runs without a network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from spikecl.data.checks import Array


def read() -> dict[str, Array]:
    """Return 1,797 images of 8x8 with values 0 .. 16, split by a fixed rule.

    Within each class, in the order of the file, every fifth image is a test image (the fifth, the
    tenth, ...): about 80 to 20, the same share of every class, the same on every machine. The
    split depends on no seed.
    """
    package = find_spec("sklearn")  # importing it takes longer than a short run
    assert package is not None and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0])
    table = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[4::5]] = True
    return {
        "x_train": images[~test],
        "y_train": labels[~test],
        "x_test": images[test],
        "y_test": labels[test],
    }
