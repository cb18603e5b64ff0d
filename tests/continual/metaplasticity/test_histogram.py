"""Histograms on a logarithmic scale, against numpy's."""

from __future__ import annotations

import numpy as np
import torch

from spikecl.continual.metaplasticity.histogram import edges, log_histogram


def test_bins_are_those_of_numpy():
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(40, 50, generator=draw, dtype=torch.float64)
    values = values * 10 ** torch.linspace(-8, 2, 50, dtype=torch.float64)
    found, bounds = log_histogram(values), np.array(edges())
    x = values.flatten().numpy()
    for key, side in (("positive", x[x > 0]), ("negative", -x[x < 0])):
        assert found[key] == np.histogram(side, bounds)[0].tolist()
    assert found["below"] == int((np.abs(x) < 1e-6).sum())
    np.testing.assert_allclose(np.diff(np.log10(bounds)), 0.25)


def test_what_is_too_large_is_in_the_last_bin_and_none_is_lost():
    found = log_histogram(torch.tensor([1e9, -1e9, 999.0, 0.0, float(edges()[3])]))
    assert found["positive"][-1] == 2 and found["negative"][-1] == 1 and found["below"] == 1
    assert sum(found["positive"]) + sum(found["negative"]) + found["below"] == 5
