"""Compiled targets have the same spikes; each compiles for a while, so there is one case each."""

from __future__ import annotations

import importlib

import nir
import numpy as np
import pytest
from graphs import cells, row, spikes
from spikecl_hardware.brian2 import library, run
from spikecl_hardware.brian2.description import Brian2Error

try:
    brian2 = library.library()
except Brian2Error as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.mark.parametrize("target", ["cython", "cpp_standalone"])
def test_a_target_has_the_spikes_of_numpy(target):
    usable, why = library.usable(target)
    if usable != target:
        pytest.skip(f"{target} cannot be used here: {why}")
    rng = np.random.default_rng(2)
    graph = row((5,), nir.Linear(rng.normal(0.5, size=(7, 5))), cells(7, beta=0.7))
    x = spikes(rng, 60, 2, 5)
    settings = {name: brian2.prefs[name] for name in brian2.prefs}
    expected, found = run.run(graph, x), run.run(graph, x, target=target)
    assert found.backend.endswith(f"({target})") and not found.notes
    assert 0.1 < found.spikes["n0"].mean() < 0.9
    np.testing.assert_array_equal(found.spikes["n0"], expected.spikes["n0"])
    assert {name: brian2.prefs[name] for name in brian2.prefs} == settings
    devices = importlib.import_module("brian2.devices.device")
    assert brian2.get_device() is devices.runtime_device
