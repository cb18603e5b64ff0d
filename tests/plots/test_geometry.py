"""The page of a watched run: what is on it, and that real runs of all kinds fill it."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

import spikecl
from spikecl import plots
from spikecl.cli import app
from spikecl.continual import Inhibition
from spikecl.continual.geometry import Geometry
from spikecl.errors import ActivityWarning, RunError
from spikecl.networks import Mlp, SpikingConvNet, SpikingMlp, SpikingRecurrentNet
from spikecl.neurons import LIF
from spikecl.plots import geometry_tables, plot_geometry
from spikecl.plots.style import COLOURS
from spikecl.report import write_report

PNG = b"\x89PNG"
FREE = "free dimensions: so far (—), newest (···)"


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


def test_first_the_whole_then_synapses_then_layers(watched_run):
    record = watched_run()
    figure = plot_geometry(record)
    found = titles(figure)
    assert found[:7] == [
        "accuracy: mean so far (—), newest task (···)",
        "plasticity left",
        FREE,
        "leakage of steps onto old activity",
        "steps along the gradient",
        "energy in rows, of the most possible",
        "orthonormality defect (×: frozen)",
    ]
    columns = [title.split(": ")[0] for title in found[7:]]
    assert columns == ["hidden1", "readout"] * 4 + ["hidden1"] * 2
    assert record.id in figure.get_suptitle()
    assert figure._repr_png_().startswith(PNG)


def test_what_was_not_recorded_has_no_panel(watched_run, make_report):
    said = make_report(0)
    for look in said["curve"]:
        look["synapses"] = {"hidden1": {}, "readout": {}}
        look["layers"]["hidden1"] = {"rate": [0.2], "cka": []}
    found = titles(plot_geometry(watched_run(reports=[said])))
    assert found[1] == FREE
    assert [title.split(": ")[1] for title in found[2:]] == ["leading directions"] * 2


def free_lines(record):
    ax = Figure().subplots()
    plots.plot_free_dimensions(record, ax)
    return ax, [(line.get_linestyle(), list(line.get_ydata())) for line in ax.lines]


def test_free_dimensions_are_two_lines_for_each_synapse_over_experiences(watched_run, make_report):
    said = [make_report(task) for task in range(3)]
    for task, report in enumerate(said):
        report["synapses"]["readout"] = {
            **report["synapses"]["hidden1"],
            "inputs": 10,
            "free": 9 - task,
            "free_of_all": 6 - 2 * task,
        }
    ax, found = free_lines(watched_run(reports=said))
    assert found == [
        ("-", [75, 50, 25]),
        (":", [25, 25, 25]),
        ("-", [60, 40, 20]),
        (":", [90, 80, 70]),
    ]
    assert all(list(line.get_xdata()) == [0, 1, 2] for line in ax.lines)
    assert [line.get_color() for line in ax.lines] == [COLOURS[0]] * 2 + [COLOURS[1]] * 2
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["hidden1", "readout"]
    assert ax.get_ylabel() == "inputs %" and ax.get_xlabel() == "after task"
    assert ax.get_ylim()[1] > 100


def test_free_dimensions_of_one_task_are_dots_and_of_none_are_left_out(watched_run, make_report):
    ax, _ = free_lines(watched_run("one", reports=[make_report(0)]))
    assert list(ax.get_xticks()) == [0] and all(line.get_marker() == "." for line in ax.lines)
    said = [make_report(task) for task in range(3)]
    said[1]["synapses"] = {}  # no inputs to look at
    ax, found = free_lines(watched_run("two", reports=said))
    assert found[0] == ("-", [75, 25]) and list(ax.lines[0].get_xdata()) == [0, 2]


def test_free_dimensions_of_a_run_that_nobody_watched_are_refused(fake_run):
    with pytest.raises(RunError, match="no record of its geometry"):
        free_lines(fake_run("plain"))


def test_of_many_synapses_four_are_drawn(watched_run, make_report):
    said = make_report(0)
    names = [f"layer{i}" for i in range(9)]
    for look in said["curve"]:
        look["synapses"] = dict.fromkeys(names, look["synapses"]["hidden1"])
    said["synapses"] = dict.fromkeys(names, said["synapses"]["hidden1"])
    found = titles(plot_geometry(watched_run(reports=[said])))
    drawn = [title.split(": ")[0] for title in found if "directions" in title]
    assert drawn == ["layer0", "layer3", "layer5", "layer8"]


def test_tables_hold_the_end_of_the_run(watched_run):
    synapses, layers = geometry_tables(watched_run())
    mean = sum(0.1 * (t + s / 100) for t in (1, 2) for s in (1, 11, 20)) / 6
    assert synapses[0] == {
        "synapse": "hidden1",
        "inputs": 4,
        "free": 1,
        "dimensionality": 4.0,
        "plasticity": 0.25,
        "old energy held": pytest.approx(0.25),
        "leakage": pytest.approx(mean),
    }
    assert synapses[1]["plasticity"] is None and synapses[1]["old energy held"] is None
    assert layers == [
        {
            "layer": "hidden1",
            "rate": pytest.approx(0.4),
            "old spikes flipped": pytest.approx(0.3),
            "old alignment": pytest.approx(0.94),
        }
    ]


def test_an_unfinished_run_and_one_that_nobody_watched_are_refused(fake_run, watched_run):
    record = watched_run()
    (record.path / "summary.json").unlink()
    with pytest.raises(RunError, match="spikecl resume"):
        plot_geometry(record)
    with pytest.raises(RunError, match="no record of its geometry"):
        plot_geometry(fake_run("plain"))


STREAM = spikecl.permuted(spikecl.load_data("digits"), experiences=2, seed=0)
CELLS = LIF(beta=0.5, v_th=0.2)
NETWORKS = {
    "hlop": (SpikingMlp(hidden=(20,)), spikecl.Hlop()),
    "ordinary": (Mlp(hidden=(20,)), Inhibition()),
    "conv": (SpikingConvNet(channels=(4,), kernel=3, neuron=CELLS), spikecl.Hlop()),
    "recurrent": (SpikingRecurrentNet(hidden=(20,), neuron=CELLS), Inhibition()),
    "alone": (SpikingMlp(hidden=(20,)), None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_real_run_fills_the_page(name, tmp_path):
    network, method = NETWORKS[name]
    result = spikecl.run(
        STREAM,
        network,
        methods=[*([] if method is None else [method]), Geometry(samples=30, every=40)],
        plan=spikecl.TrainPlan(epochs=1, batch=64),
        runs_dir=tmp_path,
    )
    figure = plot_geometry(result.record)
    assert all(ax.lines or ax.collections for ax in figure.axes)  # no panel is empty
    if name == "hlop":
        assert figure._repr_png_().startswith(PNG)
    synapses, layers = geometry_tables(result.record)
    assert [row["synapse"] for row in synapses] == list(result.network().synapses)
    assert all((row["plasticity"] is None) == (method is None) for row in synapses)
    assert [row["layer"] for row in layers] == ["conv1" if name == "conv" else "hidden1"]


def test_a_silent_layer_is_drawn_as_silent(tmp_path):
    with pytest.warns(ActivityWarning, match="silent"):
        result = spikecl.run(
            STREAM,
            SpikingMlp(hidden=(20,), neuron=LIF(beta=0.5, v_th=500.0)),
            methods=[Geometry(samples=30, every=40)],
            plan=spikecl.TrainPlan(epochs=1, batch=64),
            runs_dir=tmp_path,
        )
    figure = plot_geometry(result.record)
    assert any(text.get_text() == "silent" for ax in figure.axes for text in ax.texts)


def test_a_report_has_it_where_it_was_watched(fake_run, watched_run, tmp_path):
    page = write_report([fake_run("plain"), watched_run()], tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    assert text.count("<summary>Geometry</summary>") == 1
    section = text[text.index("<summary>Geometry</summary>") :].split("</details>")[0]
    assert '<th scope="col">old energy held</th>' in section and "<td>0.25</td>" in section
    assert section.count("data:image/svg+xml;base64,") == 1 and "http" not in section


def test_show_prints_its_tables(fake_run, watched_run):
    for record, shown in ((fake_run("plain"), False), (watched_run(), True)):
        result = CliRunner().invoke(app, ["show", str(record.path)], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert ("old energy held" in result.output) is shown
        assert ("old spikes flipped" in result.output) is shown
