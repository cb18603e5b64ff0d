"""The figure of memory traces: what was given, read back from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from spikecl.errors import UsageError
from spikecl.metrics import MemoryTrace
from spikecl.plots import plot_memory_trace

AGES = torch.tensor([1, 10, 100])


def trace(*snr):
    return MemoryTrace(AGES, 2 * torch.tensor(snr), torch.full((3,), 2.0))


def test_curves_are_the_ratios_and_lines_have_the_slopes():
    traces = {"chain": trace(9.0, 3.0, 1.0), "binary": trace(4.0, 0.5, -0.1)}
    (ax,) = plot_memory_trace(traces, slopes=(-0.5, -1.0)).axes
    assert ax.get_xscale() == ax.get_yscale() == "log"
    curves = {line.get_label(): line.get_xydata() for line in ax.lines}
    np.testing.assert_allclose(curves["chain"], [[1, 9], [10, 3], [100, 1]])
    np.testing.assert_allclose(
        curves["binary"], [[1, 4], [10, 0.5]]
    )  # what is negative is left out
    lines = [line for line in ax.lines if line.get_gid() == "slope"]
    for line, slope in zip(lines, (-0.5, -1.0), strict=True):
        (x0, y0), (x1, y1) = line.get_xydata()
        assert (x0, y0, x1) == (1, 9, 100)
        assert np.log(y1 / y0) / np.log(x1 / x0) == pytest.approx(slope)
    assert [line.get_ydata()[0] for line in ax.lines if line.get_gid() == "limit"] == [1.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["chain", "binary"]
    low, high = ax.get_ylim()
    assert low < 0.5 and high > 9
    assert ax.get_xlabel() == "memories stored since"


def test_axes_may_be_given_and_something_has_to_be_seen():
    figure = Figure()
    assert plot_memory_trace({"a": trace(2.0, 1.0, 0.5)}, ax=figure.subplots()) is figure
    for traces in ({}, {"a": trace(0.0, -1.0, 0.0)}):
        with pytest.raises(UsageError, match="above 0"):
            plot_memory_trace(traces)
