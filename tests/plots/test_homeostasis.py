from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from spikecl import plots
from spikecl.continual.homeostasis.layers import distribution
from spikecl.errors import RunError, UsageError


@pytest.fixture
def kept_run(fake_run):
    """A finished run whose methods reported distributions of three events."""

    def make(name="kept"):
        record = fake_run(name, method="threshold+need")
        rows = [json.loads(line) for line in (record.path / "steps.jsonl").read_text().splitlines()]
        for event in range(3):
            row = {"event": event, "phase": "report", "eval_set": None, "samples_seen": 0}
            values = torch.linspace(event, event + 1, 101)
            said = {"rate": distribution(values / 4), "threshold": distribution(values)}
            value = {"hidden1": {**said, "moved": 0.1}, "hidden2": said}
            rows.append({**row, "metric": "threshold", "value": value})
            rates = [2.0**event] * (event + 1)
            value = {"state": 0.0, "rate": rates, "every": 10}
            rows.append({**row, "metric": "need", "value": value})
        (record.path / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return record

    return make


def drawn(show, *given):
    ax = Figure().subplots()
    show(*given, ax)
    return ax


def test_quantiles_are_lines_and_bands_over_events(kept_run):
    ax = drawn(plots.plot_distribution, kept_run(), "hidden1", "threshold")
    low, high, median = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(low, [0, 1, 2])
    np.testing.assert_allclose(high, [1, 2, 3])
    np.testing.assert_allclose(median, [0.5, 1.5, 2.5], rtol=1e-6)
    wide, narrow = (np.concatenate([p.vertices for p in c.get_paths()]) for c in ax.collections)
    np.testing.assert_allclose([wide[:, 1].min(), wide[:, 1].max()], [0.05, 2.95], rtol=1e-5)
    np.testing.assert_allclose([narrow[:, 1].min(), narrow[:, 1].max()], [0.25, 2.75], rtol=1e-5)
    assert ax.get_ylabel() == "threshold"
    ax = drawn(plots.plot_distribution, kept_run("b"), "hidden2", "rate")
    np.testing.assert_allclose(ax.lines[2].get_ydata(), [0.125, 0.375, 0.625], rtol=1e-6)


def test_one_method_does_not_hide_another(kept_run):
    record = kept_run()
    rows = [json.loads(line) for line in (record.path / "steps.jsonl").read_text().splitlines()]
    for row in [r for r in rows if r["metric"] == "threshold"]:
        value = {"hidden1": {"rate": distribution(torch.full((5,), 7.0 + row["event"]))}}
        rows.insert(rows.index(row) + 1, {**row, "metric": "sleep", "value": value})
    (record.path / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    median = {}
    for method in ("threshold", "sleep", None):
        ax = Figure().subplots()
        plots.plot_distribution(record, "hidden1", "rate", ax, method=method)
        median[method] = ax.lines[2].get_ydata().tolist()
    assert median["sleep"] == median[None] == [7, 8, 9]
    np.testing.assert_allclose(median["threshold"], [0.125, 0.375, 0.625], rtol=1e-6)
    with pytest.raises(UsageError, match="method 'slep'; did you mean 'sleep'"):
        plots.plot_distribution(record, "hidden1", "rate", ax, method="slep")


def test_the_learning_rate_is_a_curve_over_steps(kept_run):
    ax = drawn(plots.plot_learning_rate, kept_run())
    x, y = ax.lines[1].get_data()
    assert x.tolist() == [0, 10, 20, 30, 40, 50] and y.tolist() == [1, 2, 2, 4, 4, 4]
    assert [line.get_xdata()[0] for line in ax.lines[2:]] == [10, 30]


def test_what_is_not_there_is_named(kept_run, fake_run):
    ax = Figure().subplots()
    with pytest.raises(UsageError, match="'hiden1'; did you mean 'hidden1'"):
        plots.plot_distribution(kept_run(), "hiden1", "rate", ax)
    with pytest.raises(UsageError, match="'sums' of 'hidden1'; allowed: rate, threshold"):
        plots.plot_distribution(kept_run("b"), "hidden1", "sums", ax)
    with pytest.raises(RunError, match="no distributions"):
        plots.plot_distribution(fake_run("c"), "hidden1", "rate", ax)
    with pytest.raises(RunError, match="method 'need'"):
        plots.plot_learning_rate(fake_run("d"), ax)
