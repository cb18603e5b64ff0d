from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from spikecl.data import library


@pytest.fixture
def arrays():
    """Valid arrays: 6 + 3 samples of 4x4 bytes, 3 classes."""
    values = np.arange(9 * 16, dtype=np.uint8).reshape(9, 4, 4)
    return {
        "x_train": values[:6],
        "y_train": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "x_test": values[6:],
        "y_test": np.array([0, 1, 2], np.uint8),
    }


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user's and no SPIKECL_DATA."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(library, "cache_dir", lambda: folder)
    monkeypatch.delenv("SPIKECL_DATA", raising=False)
    return folder


@pytest.fixture
def real_folder():
    """The folder of the real files."""
    folder = os.environ.get("SPIKECL_DATA")
    if not folder:
        pytest.skip("SPIKECL_DATA is not set")
    return Path(folder)
