from __future__ import annotations

import base64
import json
import re
import statistics
import tomllib
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from scipy.stats import t as student

import spikecl
from spikecl.continual import BennaFusi, Cascade, Ewc, Laborieux, Need, Threshold
from spikecl.errors import RunError, UsageError
from spikecl.report import write_report

VOID = {"meta", "img", "link", "br", "hr", "input"}
EVIL = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """What a page consists of; an element closed out of order is an error."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.cells, self.texts = [], {"pre": [], "h3": [], "h1": []}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        elif tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data
        for tag in self.texts:
            if tag in self.open:
                self.texts[tag][-1] += data

    def of(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


def test_table_has_mean_deviation_and_t_interval(fake_run, tmp_path):
    accuracies = [0.80, 0.90, 0.85]
    records = [
        fake_run(f"s{i}", seed=i, acc=acc, cpu_s=1.5, method_bytes=1_815_040)
        for i, acc in enumerate(accuracies)
    ]
    cells = Page(write_report(records, tmp_path / "page.html")).cells
    row = cells[cells.index("finetune") :]
    percent = [100 * a for a in accuracies]
    sd = statistics.stdev(percent)
    half = student.ppf(0.975, 2) * sd / 3**0.5
    assert row[1] == "3"
    assert row[2] == f"85.00 ± {sd:.2f}{85 - half:.2f} to {85 + half:.2f}"
    assert row[3] == "−22.50 ± 0.00−22.50 to −22.50"
    assert row[7:9] == ["12\u202f345", "1\u202f815\u202f040"]
    assert row[9] == "1.5 ± 0.01.5 to 1.5"


def test_nothing_is_loaded_and_nothing_runs(fake_run, tmp_path):
    path = write_report([fake_run("a"), fake_run("b", method="hlop")], tmp_path / "page.html")
    page, text = Page(path), path.read_text(encoding="utf-8")
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert len(page.of("src")) == 3  # the comparison and two runs
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.of("src"))
    assert all(target.startswith("#") for target in page.of("href"))
    assert {target[1:] for target in page.of("href")} == set(page.of("id"))


def test_figures_are_complete_svg(fake_run, tmp_path):
    page = Page(write_report([fake_run()], tmp_path / "page.html"))
    for source in page.of("src"):
        svg = base64.b64decode(source.partition(",")[2])
        assert ET.fromstring(svg).tag.endswith("svg")


def test_names_are_escaped_everywhere(fake_run, tmp_path):
    record = fake_run("run", method=EVIL, stream=EVIL, sets=[EVIL, "b", "c"])
    path = write_report([record, fake_run("two")], tmp_path / "page.html")
    page = Page(path)
    assert "script" not in page.tags
    assert "<script" not in path.read_text(encoding="utf-8")
    assert any(EVIL in cell for cell in page.cells)
    assert EVIL in page.texts["h1"][0]
    assert tomllib.loads(page.texts["pre"][0])["method"]["name"] == [EVIL]


def test_the_directory_name_is_escaped(fake_run, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    page = Page(write_report([fake_run(name)], tmp_path / "page.html"))
    assert page.texts["h3"] == [name]
    assert "onerror" not in {attribute for _, attribute, _ in page.attributes}


def test_configuration_is_toml_that_reads_back(fake_run, tmp_path):
    page = Page(write_report([fake_run()], tmp_path / "page.html"))
    assert tomllib.loads(page.texts["pre"][0]) == {
        "run": {"seed": 0},
        "stream": {"name": "permuted", "permuted": {"experiences": 3}},
        "optimiser": {"name": "sgd", "sgd": {"lr": 0.1}},
        "method": {"name": ["finetune"]},
    }


def test_environment_and_cost_are_shown(fake_run, tmp_path):
    text = write_report([fake_run()], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<dt>torch</dt><dd>2.9.9</dd>" in text
    assert "<dt>kernels.hidden1</dt><dd>fused</dd>" in text
    assert "<dt>fallbacks</dt><dd>none</dd>" in text
    assert "<dt>firing_rates.hidden1</dt><dd>0.123457</dd>" in text
    assert "<dt>cpu_s</dt><dd>2</dd>" in text


def test_a_run_from_python_shows_its_parameters(fake_run, tmp_path):
    path = write_report([fake_run(from_file=False)], tmp_path / "page.html")
    assert "Made from Python objects." in path.read_text(encoding="utf-8")
    settings = tomllib.loads(Page(path).texts["pre"][0])
    assert settings["optimiser"] == {"name": ["sgd"], "sgd": {"lr": 0.1}}
    assert settings["train"] == {"epochs": 5}


def test_one_task(fake_run, tmp_path):
    record = fake_run(matrix=[[0.1], [0.8]], losses=((1.0,),), bwt=None, fwt=None, forgetting=None)
    cells = Page(write_report([record], tmp_path / "page.html")).cells
    assert cells[cells.index("finetune") + 1 :][:6] == ["1", "80.00", "–", "–", "–", "95.00"]


def test_many_runs(fake_run, tmp_path):
    records = [fake_run(f"r{i}", method=f"m{i % 6}", seed=i // 6) for i in range(12)]
    page = Page(write_report(records, tmp_path / "page.html"))
    assert page.texts["h3"] == [f"r{i}" for i in (0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11)]
    assert len(page.of("src")) == 13


def test_the_page_replaces_an_older_one_and_makes_its_folder(fake_run, tmp_path):
    path = tmp_path / "new" / "folder" / "page.html"
    assert write_report([fake_run("a")], path) == path
    write_report([fake_run("b")], str(path))
    assert Page(path).texts["h3"] == ["b"]
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_refused_and_nothing_written(fake_run, tmp_path):
    record, target = fake_run(), tmp_path / "page.html"
    with pytest.raises(UsageError, match="no runs"):
        write_report([], target)
    with pytest.raises(UsageError, match="is a folder"):
        write_report([record], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_report([record], tmp_path / "file" / "page.html")
    (record.path / "summary.json").unlink()
    with pytest.raises(RunError, match="spikecl resume run"):
        write_report([record], target)
    assert not target.exists()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Return the record of a run that takes a second, with some methods."""
    folder = tmp_path_factory.mktemp("runs")
    stream = spikecl.permuted(spikecl.load_data("digits"), experiences=2, seed=0)

    def run(*methods, **network):
        return spikecl.run(
            stream,
            methods=methods,
            network=spikecl.SpikingMlp(hidden=(10,), **network),
            optimiser=spikecl.Adam(lr=0.003) if "binary" in network else spikecl.Sgd(lr=0.1),
            plan=spikecl.TrainPlan(epochs=1, batch=64),
            runs_dir=folder,
        ).record

    return run


SAID = {
    "ewc": ((Ewc(strength=1.0),), {}, {"Importance": ["hidden1.weight: importance by ewc"]}),
    "laborieux": (
        (Laborieux(m=3.0),),
        {"binary": "fixed"},
        {"Synapses": ["hidden1.weight: weight", "readout.weight: weight"]},
    ),
    "benna_fusi": (
        (BennaFusi(beakers=3),),
        {},
        {"Synapses": ["hidden1.weight: weight", "hidden1.weight: beaker3"]},
    ),
    "cascade": ((Cascade(),), {"binary": "fixed"}, {"Synapses": ["hidden1.weight: state"]}),
    "threshold": (
        (Threshold(),),
        {"learns": ["v_th"], "per_neuron": True},
        {"Neurons": ["hidden1: spikes per step", "hidden1: threshold"]},
    ),
    "need": ((Need(),), {}, {"Learning rate": ["learning rate, relative to the optimiser's"]}),
    "plain": ((), {}, {}),
}


@pytest.mark.parametrize(("methods", "network", "expected"), SAID.values(), ids=SAID)
def test_what_methods_said_is_drawn(small_run, tmp_path, methods, network, expected):
    text = write_report([small_run(*methods, **network)], tmp_path / "page.html").read_text("utf-8")
    figures = dict(re.findall(r'<img alt="([\w ]+) of \S+ after each event" src="([^"]+)"', text))
    assert list(figures) == list(expected)
    for heading, titles in expected.items():
        assert text.count(f"<summary>{heading}</summary>") == 1
        svg = base64.b64decode(figures[heading].partition(",")[2]).decode()
        drawn = re.findall("<!-- (.+) -->", svg)  # each text stands above the shapes of its letters
        assert set(titles) <= set(drawn)


def test_of_many_parameters_a_few_are_drawn(fake_run, tmp_path):
    record = fake_run()
    spread = {"quantiles": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    value = {f"hidden{i}": {"rate": spread, "moved": 0.1} for i in range(9)} | {"note": 3}
    rows = (record.path / "steps.jsonl").read_text()
    row = {"event": 0, "phase": "report", "eval_set": None, "metric": "own", "value": value}
    (record.path / "steps.jsonl").write_text(rows + json.dumps(row) + "\n")
    text = write_report([record], tmp_path / "page.html").read_text("utf-8")
    (source,) = re.findall(r'of run after each event" src="[^,]+,([^"]+)"', text)
    drawn = base64.b64decode(source).decode()
    assert [i for i in range(9) if f"hidden{i}: spikes per step" in drawn] == [0, 3, 6]


def simulated(record, **changes):
    """Put beside a run what ``spikecl simulate`` found of its export."""
    row = {"set": EVIL, "backend": "emulator", "accuracy": 0.8125, "energy": None}
    layer = {"population": "hidden1", "first difference": "step 3, sample 1, neuron 4"}
    found = {
        "format_version": 1,
        "file": "p.h5",
        "rows": [row],
        "energy": [{"table": "Loihi, 14 nm", "total nJ": 22.123456}],
        "comparisons": {"task0": {"outputs": [{"backend": "torch, cpu"}], "rows": [layer]}},
        **changes,
    }
    path = record.path / "export" / "simulation.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))


def test_what_a_simulation_found_is_shown(fake_run, tmp_path):
    record = fake_run()
    simulated(record)
    path = write_report([record], tmp_path / "page.html")
    text, cells = path.read_text(), Page(path).cells
    section = text[text.index("<summary>Hardware</summary>") :]
    assert "p.h5" in section and "not a measurement" in section and "against torch, cpu" in section
    first = cells.index("emulator")
    assert cells[first - 1 : first + 3] == [EVIL, "emulator", "0.8125", "–"]
    assert {"step 3, sample 1, neuron 4", "22.123"} <= set(cells)
    assert "http" not in text and "<script" not in text


def test_runs_without_a_simulation_have_no_such_section(fake_run, tmp_path):
    records = [fake_run("a"), fake_run("b")]
    simulated(records[0], format_version=99)
    text = write_report(records, tmp_path / "page.html").read_text()
    assert "<summary>Hardware</summary>" not in text
    simulated(records[1], energy=[], comparisons={})
    assert (
        write_report(records, tmp_path / "page.html").read_text().count("Hardware</summary>") == 1
    )


def test_a_damaged_simulation_is_named(fake_run, tmp_path):
    record = fake_run()
    simulated(record)
    (record.path / "export" / "simulation.json").write_text("{")
    with pytest.raises(RunError, match="simulation.json is damaged; simulate again, or remove it$"):
        write_report([record], tmp_path / "page.html")
