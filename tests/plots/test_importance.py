from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from spikecl import plots
from spikecl.continual.importance.importance import summary
from spikecl.errors import RunError, UsageError


@pytest.fixture
def important_run(fake_run):
    """Write a finished run whose method reported importances."""

    def make(values, method="ewc", name="important"):
        record = fake_run(name, method=method)
        lines = (record.path / "steps.jsonl").read_text().splitlines()
        for event, each in enumerate(values):
            said = {key: summary(torch.tensor(v)) for key, v in each.items()}
            row = {"event": event, "phase": "report", "eval_set": None, "samples_seen": 0}
            lines.append(json.dumps({**row, "metric": "other", "value": {"rows": 3}}))
            lines.append(json.dumps({**row, "metric": method, "value": said}))
        (record.path / "steps.jsonl").write_text("".join(line + "\n" for line in lines))
        return record

    return make


VALUES = [
    {"hidden1.weight": [[0.0, 1.2], [1.2, 120.0]], "hidden1.bias": [0.0, 0.0]},
    {"hidden1.weight": [[1.2, 1.2], [1.2, 1.2]], "hidden1.bias": [0.0, 0.5]},
]


def cells(ax):
    """Share by lower edge of the bin and experience."""
    mesh = ax.collections[0]
    edges = mesh.get_coordinates()[:-1, 0, 1]
    shares = np.ma.filled(mesh.get_array(), 0.0)
    return {
        (round(float(edges[i]), 9), j): float(shares[i, j])
        for i, j in np.argwhere(np.asarray(shares) > 0)
    }


def test_histograms_are_shares_of_all_entries(important_run):
    figure = plots.importance_map(important_run(VALUES))
    ax = figure.axes[0]
    assert ax.get_title(loc="left") == "hidden1.weight: importance by ewc"
    assert cells(ax) == {(0.0, 0): 50, (2.0, 0): 25, (0.0, 1): 100}
    means = ax.lines[0].get_ydata()
    assert means == pytest.approx(np.log10([30.6, 1.2]))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1"]


def test_a_parameter_is_chosen_by_name(important_run):
    record = important_run(VALUES)
    figure = plots.importance_map(record, "hidden1.bias")
    assert cells(figure.axes[0]) == {(-0.5, 1): 50}
    with pytest.raises(UsageError, match="no parameter 'hidden1.wight'.*hidden1.weight"):
        plots.importance_map(record, "hidden1.wight")
    with pytest.raises(UsageError, match="shape= is for an array"):
        plots.importance_map(record, shape=(2, 2))


def test_runs_without_importances_say_so(important_run, fake_run):
    with pytest.raises(RunError, match="no record of importances.*'ewc', 'si', 'mas'"):
        plots.importance_map(fake_run("plain"))
    empty = important_run([{"w.weight": [[0.0]]}], name="empty")
    assert plots.importance_map(empty).axes[0].texts[0].get_text() == "no importance"


def test_a_map_has_every_entry_and_an_image_every_input():
    values = np.outer([1.0, 3.0], [1.0, 10.0, 100.0, 0.0])
    ax = plots.importance_map(values).axes[0]
    shown = ax.collections[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(shown, 0), values)
    assert np.ma.getmaskarray(shown).sum() == 2 and ax.yaxis_inverted()
    ax = plots.importance_map(torch.tensor(values), shape=(2, 2)).axes[0]
    np.testing.assert_allclose(np.ma.filled(ax.collections[0].get_array(), 0), [[2, 20], [200, 0]])
    kernels = plots.importance_map(np.ones((2, 3, 2, 2))).axes[0]
    assert kernels.collections[0].get_array().shape == (2, 12)
    assert plots.importance_map(np.zeros((2, 2))).axes[0].texts[0].get_text() == "no importance"


def test_axes_can_be_given():
    figure = Figure()
    assert plots.importance_map([[1.0, 2.0]], ax=figure.subplots()) is figure


def test_arrays_that_cannot_be_are_refused():
    for wrong, why in (
        ([1.0, 2.0], r"shape \(2,\)"),
        ([[-1.0, 2.0]], "negative or not finite"),
        ([[np.nan, 2.0]], "negative or not finite"),
        (np.zeros((0, 3)), "shape"),
    ):
        with pytest.raises(UsageError, match=why):
            plots.importance_map(wrong)
    with pytest.raises(UsageError, match=r"shape=\(2, 2\) has 4 places.*3 inputs"):
        plots.importance_map([[1.0, 2.0, 3.0]], shape=(2, 2))
    with pytest.raises(UsageError, match="parameter= chooses from a record"):
        plots.importance_map([[1.0]], "w")
