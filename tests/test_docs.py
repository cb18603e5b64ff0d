"""The scripts that write parts of the documentation."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from spikecl.components import component, fields_of
from spikecl.experiments.config import CHOICES, FIXED

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def docs(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    yield importlib.import_module
    for name in ("reference", "results"):
        sys.modules.pop(name, None)


def test_every_key_of_a_configuration_is_in_the_reference(docs, tmp_path):
    docs("reference").main(tmp_path)
    text = (tmp_path / "configuration.md").read_text("utf-8")
    for section, cls in FIXED.items():
        part = text.split(f"## `[{section}]`")[1].split("\n## ")[0]
        assert all(f"| `{field}` |" in part for field in fields_of(cls))
    for section, choice in CHOICES.items():
        for name in choice.registry.names():
            part = text.split(f"### `[{section}.{name}]`")[1].split("\n#")[0]
            assert all(f"| `{field}` |" in part for field in fields_of(choice.registry.get(name)))
    assert "| `seed` | integer ≥ 0 | `0` | Root of all randomness. |" in text
    assert "| `beta` | number ≥ 0 and ≤ 1 | `0.5` |" in text
    json.loads((tmp_path / "spikecl.schema.json").read_text("utf-8"))


def test_a_parameter_without_a_meaning_stops_the_build(docs):
    @component
    class Silent:
        """Says nothing of its parameter."""

        size: int = 1

    with pytest.raises(ValueError, match="Silent.size"):
        docs("reference").table(Silent)


def test_what_is_unchanged_is_not_written_again(docs, tmp_path):
    reference, path = docs("reference"), tmp_path / "page.md"
    reference.write(path, "text")
    before = path.stat().st_mtime_ns
    reference.write(path, "text")
    assert path.stat().st_mtime_ns == before


ROWS = {
    "name": "a table",
    "command": "python benchmarks/table.py a",
    "commit": "abc1234",
    "versions": {"torch": "2.9"},
    "cpu": "a processor",
    "threads": 1,
    "rows": [
        {
            "label": "one | two",
            "seeds": [0, 1, 2],
            "parameters": 1200,
            "metrics": {
                "acc": {"n": 3, "mean": 0.9512, "sd": 0.0123, "low": 0.92, "high": 0.98},
                "bwt": {"n": 3, "mean": -0.0156, "sd": 0.006, "low": -0.03, "high": -0.0008},
            },
        },
        {"label": "single", "metrics": {"acc": {"n": 1, "mean": 0.8, "sd": None}, "bwt": None}},
    ],
    "notes": "A note.",
}


def test_rows_become_a_table(docs, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    text = docs("results").render(tmp_path / "a.json")
    assert "| label | parameters | n | ACC % | BWT % |" in text
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    numbers = "95.12 ± 1.23 (92.00 to 98.00) | −1.56 ± 0.60 (−3.00 to −0.08)"
    assert rf"| one \| two | 1200 | 3 | {numbers} |" in text
    assert "| single |  | 1 | 80.00 | – |" in text
    origin = "Commit abc1234; versions torch 2.9; CPU a processor; threads 1."
    assert f"Made by `python benchmarks/table.py a`. {origin}" in text
    assert "A note." in text


def test_medians_become_a_table(docs, tmp_path):
    content = {"results": {"train_b64": {"median": 1.04321, "min": 1.0, "max": 1.2, "n": 21}}}
    (tmp_path / "host_loop.json").write_text(json.dumps(content))
    docs("results").main(tmp_path, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text("utf-8")
    assert text.startswith("## host_loop\n")
    assert "| `train_b64` | 1.043 | 1 | 1.2 | 21 |" in text


def test_without_results_there_is_nothing(docs, tmp_path):
    docs("results").main(tmp_path / "missing", tmp_path)
    assert (tmp_path / "benchmarks.md").read_text("utf-8") == ""


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "x"}', '{"rows": [3]}'])
def test_a_damaged_file_is_named(docs, tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match="bad.json"):
        docs("results").main(tmp_path, tmp_path)


def test_notebooks_are_stored_without_outputs():
    for path in (DOCS.parent / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), path.name


def test_ratios_of_the_scans_stand_with_their_contestants(docs, tmp_path):
    ratio = {"median": 0.5, "min": 0.4, "max": 0.6, "n": 9, "low": 0.45, "high": 0.55}
    keys = {
        "step_b64_over_gemm": 1.01,  # multiplies densely, since there is an event_ beside it
        "event_step_b64_over_gemm": 0.52,
        "snntorch_step_b64_over_gemm": 1.63,
        "step_b1_over_gemm": 1.14,  # the default
        "dense_step_b1_over_gemm": 1.25,
        "snntorch_over_event_b64": 3.3,  # no ratio to the bound: not in this table
    }
    content = {
        "results": {key: {**ratio, "median": median} for key, median in keys.items()},
        "saved_bytes": {"T=25": {"spikecl_default": 6_800_000}},
        "densities": {"mlp": [0.15, 0.02]},
        "command": "python benchmarks/scan.py --write", "versions": {}, "cpu": "a", "threads": 1,
    }  # fmt: skip
    path = tmp_path / "scan.json"
    path.write_text(json.dumps(content))
    text = docs("results").render_scan(path)
    header, _, *rows = [line for line in text.split("\n") if line.startswith("|")][:4]
    columns = [cell.strip() for cell in header.split("|")[1:-1]]
    table = [dict(zip(columns, (c.strip() for c in row.split("|")[1:-1]))) for row in rows]
    assert [row[columns[0]] for row in table] == ["training step", "training step, one sample"]
    assert [row["`dense`"][:4] for row in table] == ["1.01", "1.25"]
    assert [row["`auto`"][:4] for row in table] == ["0.52", "1.14"]
    assert table[0]["snnTorch"].startswith("1.63") and not table[1]["snnTorch"]
    assert "3.3" not in text and "6.8" in text and "15" in text
