from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spikecl import plots
from spikecl.continual.metaplasticity import histogram
from spikecl.continual.metaplasticity.benna_fusi import BennaFusi
from spikecl.errors import RunError, UsageError
from spikecl.plots import synapses


@pytest.fixture
def hidden_run(fake_run):
    """Write a finished run whose method reported histograms of synapses."""

    def make(values):
        record = fake_run("hidden", method="mesu")
        lines = (record.path / "steps.jsonl").read_text().splitlines()
        for event, each in enumerate(values):
            said = {
                name: {key: histogram.log_histogram(torch.tensor(v)) for key, v in kinds.items()}
                for name, kinds in each.items()
            }
            row = {"event": event, "phase": "report", "eval_set": None, "samples_seen": 0}
            lines.append(json.dumps({**row, "metric": "hlop", "value": {"h": {"rows": 3}}}))
            lines.append(json.dumps({**row, "metric": "mesu", "value": said}))
        (record.path / "steps.jsonl").write_text("".join(line + "\n" for line in lines))
        return record

    return make


VALUES = [
    {"h.weight": {"weight": [0.0, 0.011, -0.011, 1.1], "sigma": [0.2, 0.2]}},
    {"h.weight": {"weight": [-1.1, -1.1, -1.1, 0.011], "sigma": [0.2, 0.02]}},
]


def test_the_bins_are_those_of_records():
    assert (synapses.LOW, synapses.PER_DECADE) == (histogram.LOW, histogram.PER_DECADE)


def test_shares_of_all_synapses_mirrored_below_zero(hidden_run):
    (ax,) = plots.plot_synapses(hidden_run(VALUES)).axes
    assert ax.get_title(loc="left") == "h.weight: weight"
    first, last = (patch.get_data() for patch in ax.patches)
    # from 10^-2 to 10^0.25 there are nine bins on either side, and one in the middle
    for shares, edges in ((first.values, first.edges), (last.values, last.edges)):
        assert len(shares) == 19 and shares.sum() == pytest.approx(100)
        assert edges[0] == -9.5 and edges[-1] == 9.5

    def at(shares):
        return {int(i) - 9: float(shares[i]) for i in np.nonzero(shares)[0]}

    assert at(first.values) == {-1: 25, 0: 25, 1: 25, 9: 25}
    assert at(last.values) == {-9: 75, 1: 25}
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["experience 0", "experience 1"]


def test_other_variables_have_one_side_where_none_is_negative(hidden_run):
    (ax,) = plots.plot_synapses(hidden_run(VALUES), "h.weight", "sigma").axes
    shares = [patch.get_data() for patch in ax.patches]
    assert all(s.edges[0] == -0.5 for s in shares)
    assert shares[0].values[-1] == 100
    assert shares[1].values[1] == 50 and shares[1].values[-1] == 50


def test_what_is_not_there_is_named(hidden_run, fake_run):
    record = hidden_run(VALUES)
    with pytest.raises(UsageError, match="sigma"):
        plots.plot_synapses(record, "h.weight", "sigm")
    with pytest.raises(UsageError, match=r"h\.weight"):
        plots.plot_synapses(record, "k.weight")
    with pytest.raises(RunError, match="laborieux"):
        plots.plot_synapses(fake_run("plain"))


def test_nothing_but_zeros_is_said(hidden_run):
    (ax,) = plots.plot_synapses(hidden_run([{"h": {"weight": [0.0, 0.0]}}])).axes
    assert ax.texts[0].get_text() == "all are zero"


def test_every_beaker_of_a_chain_can_be_drawn(fake_run):
    weights = {"h.weight": torch.rand(3, 4)}
    network = SimpleNamespace(
        synapses={"h": SimpleNamespace(weight=weights["h.weight"].requires_grad_())},
        weights=lambda: weights,
    )
    chain = BennaFusi(beakers=3).start(SimpleNamespace(network=network, before=()))
    record = fake_run("chain", method="benna_fusi")
    row = {"event": 0, "phase": "report", "eval_set": None, "samples_seen": 0}
    line = json.dumps({**row, "metric": "benna_fusi", "value": chain.report()})
    with (record.path / "steps.jsonl").open("a") as file:
        file.write(line + "\n")
    for variable in ("weight", "beaker2", "beaker3"):
        (ax,) = plots.plot_synapses(record, "h.weight", variable).axes
        assert sum(patch.get_data().values.sum() for patch in ax.patches) == pytest.approx(100)


def test_the_states_of_a_cascade_are_drawn_in_their_order(fake_run):
    record = fake_run("cascade", method="cascade")
    rows = (record.path / "steps.jsonl").read_text().splitlines()
    for event, count in enumerate(([0, 3, 1, 0], [2, 1, 0, 1])):
        said = {"h.weight": {"states": [-2, -1, 1, 2], "count": count}}
        row = {"event": event, "phase": "report", "eval_set": None, "samples_seen": 0}
        rows.append(json.dumps({**row, "metric": "cascade", "value": said}))
    (record.path / "steps.jsonl").write_text("".join(line + "\n" for line in rows))
    (ax,) = plots.plot_synapses(record).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["−2", "−1", "+1", "+2"]
    drawn = [patch.get_data().values.tolist() for patch in ax.patches]
    assert drawn == [[0, 75, 25, 0], [50, 25, 0, 25]]
